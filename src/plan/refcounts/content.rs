//! What is in new refcount blocks and in a new refcount table.
//!
//! Comes in: an examination, and where everything new lies. Goes out: whole blocks, and the table that names them. Never
//! here: a decision which blocks are built anew.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::{Damage, Structure};
use crate::check::{DifferenceRun, Examination};
use crate::plan::holes::Holes;
use crate::qcow2::{ClusterRange, HostCluster, counts_by_64, set_refcounts};
use crate::storage::Storage;

/// The counts of one block, as they ought to be.
pub(super) fn block_content<S: Storage>(
    examination: &Examination<'_, S>,
    damage: &Damage,
    index: u64,
    taken: &BTreeMap<HostCluster, u64>,
    released: &BTreeMap<HostCluster, u64>,
) -> io::Result<Vec<u8>> {
    let geometry = examination.walk.geometry;
    let per_block = geometry.refcount_block_entries();
    let image = examination.walk.image;
    let first = index.saturating_mul(per_block);
    let range = first..first.saturating_add(per_block);
    let mut bytes = vec![0; usize::try_from(geometry.cluster_bytes()).unwrap_or(0)];
    // What settled against an unsound block that could be read is right, by whatever chance.
    let blocks = &examination.survey.refcount_blocks;
    let old = blocks.binary_search_by_key(&index, |block| block.index);
    if let Some(block) = old.ok().and_then(|at| blocks.get(at)) {
        image.read_clusters(geometry, block.cluster, &mut bytes)?;
    }
    let slot_of = |cluster: u64| usize::try_from(cluster - first).unwrap_or(usize::MAX);
    let set = |bytes: &mut [u8], clusters: ClusterRange, count: u64| {
        let slots = slot_of(clusters.start.0)..slot_of(clusters.end());
        let count = count.min(geometry.refcount_max());
        set_refcounts(bytes, geometry.refcount_order(), slots, count);
    };
    let differing = || examination.differences().runs_within(range.clone());
    // A block that something else claims too, but in which nothing in use is counted too low, is intact: what looks leaked
    // by it may be what a damaged structure no longer leads to.
    let is_intact = !examination.survey.unknown_counts.all && {
        let is_sound = |run: DifferenceRun| run.has_conflict || run.stored >= Some(run.expected);
        differing().all(is_sound)
    };
    // What a block that holds something else counts too high is lowered later, on the evidence that all lowering needs.
    let is_garbage = damage.garbage.blocks.contains(&index);
    let file_end = HostCluster(geometry.file_clusters());
    for run in differing() {
        let (start, end) = (run.clusters.start, HostCluster(run.clusters.end()));
        // Nearly always all of a run gets one count.
        let is_alike = end <= file_end
            && !is_intact
            && !is_garbage
            && damage.once_shared.is_empty()
            && released.range(start..end).next().is_none();
        if is_alike {
            set(&mut bytes, run.clusters, run.expected);
            continue;
        }
        for cluster in run.clusters.clusters() {
            let is_in_file = cluster < file_end;
            let is_kept =
                is_intact || (is_garbage && !damage.garbage.never_shared.contains(cluster));
            if is_kept && is_in_file && run.stored > Some(run.expected) {
                continue;
            }
            let dropped = released.get(&cluster).copied().unwrap_or(0);
            let mut expected = run.expected.saturating_sub(dropped);
            if expected == 1 && damage.once_shared.contains(cluster) {
                expected = 2;
            }
            let count = expected * u64::from(is_in_file);
            set(&mut bytes, ClusterRange::one(cluster), count);
        }
    }
    protect(examination, range.clone(), &mut bytes)?;
    for (&cluster, &count) in taken.range(HostCluster(range.start)..HostCluster(range.end)) {
        set(&mut bytes, ClusterRange::one(cluster), count);
    }
    Ok(bytes)
}

/// Gives a count of one to what nobody refers to and is not blank: nobody knows whether somebody did.
fn protect<S: Storage>(
    examination: &Examination<'_, S>,
    range: Range<u64>,
    bytes: &mut [u8],
) -> io::Result<()> {
    let geometry = examination.walk.geometry;
    let storage = examination.walk.image.storage();
    let order = geometry.refcount_order();
    let end = range.end.min(geometry.file_clusters());
    let mut holes = Holes::new(storage);
    for start in (range.start..end).step_by(64) {
        let mut uncounted = uncounted(bytes, order, start - range.start);
        uncounted &= u64::MAX >> (64 - (end - start).min(64));
        while uncounted != 0 {
            let cluster = HostCluster(start + u64::from(uncounted.trailing_zeros()));
            uncounted &= uncounted - 1;
            if holes.holds_data(geometry, cluster)? {
                let slot = usize::try_from(cluster.0 - range.start).unwrap_or(usize::MAX);
                set_refcounts(bytes, order, slot..slot.saturating_add(1), 1);
            }
        }
    }
    Ok(())
}

/// Which of the 64 counts from an index on, a multiple of 64, are zero.
fn uncounted(bytes: &[u8], order: u32, index: u64) -> u64 {
    let start = usize::try_from((index << order) / 8).unwrap_or(usize::MAX);
    let counts = bytes.get(start..start.saturating_add(8 << order));
    counts_by_64(counts.unwrap_or_default(), order).fold(0, |_, counts| !counts.used)
}

/// The new table: the blocks that stay and those that are new.
pub(super) fn table_content<S: Storage>(
    examination: &Examination<'_, S>,
    damage: &Damage,
    structure: &Structure,
    table: ClusterRange,
) -> Vec<u8> {
    let geometry = examination.walk.geometry;
    let bytes = table.count * geometry.cluster_bytes();
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
    let old = examination.survey.refcount_blocks.iter();
    let old = old.filter(|block| !damage.unsound.contains(&block.index));
    let old = old.map(|block| (block.index, block.cluster));
    let new = structure
        .blocks
        .iter()
        .map(|(&index, &cluster)| (index, cluster));
    for (index, cluster) in old.chain(new) {
        let start = usize::try_from(index * 8).unwrap_or(usize::MAX);
        let entry = content.get_mut(start..start.saturating_add(8));
        if let Some(entry) = entry {
            entry.copy_from_slice(&geometry.offset_of(cluster).0.to_be_bytes());
        }
    }
    content
}
