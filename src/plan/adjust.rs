//! Refcounts and COPIED flags, adjusted in place.
//!
//! Comes in: an examination and a permit. Goes out: patches of counts and flags. Never here: new structures, or a
//! patch in a cluster that has an owner besides the structure it belongs to.

use std::collections::BTreeSet;
use std::io;

use super::changes::{Changes, Patch, PlannedCounts};
use super::evidence::{self, Permit};
use super::holes::Holes;
use super::notes::DraftNotes;
use super::remains;
use super::{RepairOptions, StageKind, refcounts};
use crate::check::{DifferenceRun, Differences, Examination};
use crate::coverage::Gap;
use crate::finding::Code;
use crate::qcow2::{
    ClusterRange, Geometry, HostCluster, HostOffset, L1Entry, Place, SECTOR_BYTES, Tree, words,
};
use crate::refcount_map::{ClusterSet, by_word, region_of};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::Rules;
use crate::walk::{L2Item, Survey};

/// Raises counts that are too low, and puts the COPIED flags right.
pub(super) fn raise<S: Storage>(examination: &Examination<'_, S>) -> io::Result<Changes> {
    let permit = Permit {
        may_correct: true,
        may_lower: None,
    };
    let mut changes = patches(examination, permit)?;
    changes.patches.extend(protect(examination)?);
    Ok(changes)
}

/// Gives a count of one to what is not blank and has lost its count together with a cluster that was shared: the tables
/// that shared it may be there.
fn protect<S: Storage>(examination: &Examination<'_, S>) -> io::Result<Vec<Patch>> {
    let geometry = examination.walk.geometry;
    let per_sector = (SECTOR_BYTES * 8) >> geometry.refcount_order();
    let differences = examination.differences();
    let contested = contested_clusters(differences);
    let lost_counts = remains::lost_counts(examination)?;
    let garbage = refcounts::garbage(examination);
    let lost = differences.iter().map(|known| known.cluster);
    let lost = lost.filter(|&cluster| lost_counts.contains(cluster));
    let sectors: BTreeSet<u64> = lost.map(|cluster| cluster.0 / per_sector).collect();
    let sectors: Vec<u64> = sectors.into_iter().collect();
    let of_clusters = |sector: &u64| HostCluster(sector * per_sector);
    let mut holes = Holes::new(examination.walk.image.storage());
    let mut patches = Vec::new();
    // The counts of a region are read once, however many of its sectors have lost some.
    for sectors in
        sectors.chunk_by(|one, next| region_of(of_clusters(one)) == region_of(of_clusters(next)))
    {
        if examination.walk.progress.is_stopped() {
            break;
        }
        let (Some(first), Some(end)) = (sectors.first(), sectors.last()) else {
            continue;
        };
        let unused = examination
            .unused_clusters(first * per_sector..(end + 1) * per_sector)
            .filter(|cluster| sectors.binary_search(&(cluster.0 / per_sector)).is_ok());
        for cluster in unused {
            if !holes.is_stored(geometry, cluster)? {
                continue;
            }
            let block = refcount_block(&examination.survey, geometry, cluster);
            let index = cluster.0 / geometry.refcount_block_entries();
            let block = block.filter(|&block| {
                !contested.contains(block)
                    && !garbage.blocks.contains(&index)
                    && is_in_file(geometry, block, cluster)
            });
            if let Some(block) = block
                && holes.holds_data(geometry, cluster)?
            {
                patches.push(Patch::refcount(
                    StageKind::RaiseRefcounts,
                    Code::RefcountZero,
                    geometry.offset_of(block).0,
                    geometry.refcount_order(),
                    cluster.0 % geometry.refcount_block_entries(),
                    1,
                ));
            }
        }
    }
    Ok(patches)
}

/// Lowers counts that are too high, where that is proven to free nothing that is used.
pub(super) fn lower<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> io::Result<Changes> {
    let (permit, withheld) = evidence::permit(examination, wishes, notes);
    Ok(Changes {
        withheld,
        ..patches(examination, permit)?
    })
}

/// Everything the permit allows, as patches, and the clusters that are free then.
fn patches<S: Storage>(
    examination: &Examination<'_, S>,
    permit: Permit<'_>,
) -> io::Result<Changes> {
    let differences = examination.differences();
    let contested = contested_clusters(differences);
    let counts = planned_counts(examination, permit, differences, &contested)?;
    let mut patches = refcount_patches(examination, differences, &counts);
    // Where nothing but leaks was found, every flag fits its count: only what is lowered to one gets a new flag.
    if permit.may_correct || permit.may_lower.is_some() {
        let flags = flag_patches(examination, differences, &counts, &contested);
        let sets = |patch: &Patch| patch.stage == StageKind::SetCopied;
        let may_set = !flags.iter().any(sets)
            || (permit.may_lower.is_some() || !evidence::may_hide_owners(examination));
        patches.extend(flags.into_iter().filter(|patch| may_set || !sets(patch)));
    }
    let is_leaked = |run: &DifferenceRun| run.expected == 0 && run.stored > Some(0);
    let freed = counts
        .beside(differences)
        .filter(|(run, count)| is_leaked(run) && *count == Some(0));
    Ok(Changes {
        patches,
        freed: freed.map(|(run, _)| run.clusters).collect(),
        ..Changes::default()
    })
}

/// Clusters with users that may not share them: nothing is written there.
fn contested_clusters(differences: &Differences) -> ClusterSet {
    let contested = ClusterSet::new();
    let runs = differences.runs().iter();
    for run in runs.filter(|run| run.has_conflict) {
        contested.insert_run(run.clusters);
    }
    contested
}

/// The count each difference is to have afterwards: the stored one where nothing may be done, `None` where it is not known.
fn planned_counts<S: Storage>(
    examination: &Examination<'_, S>,
    permit: Permit<'_>,
    differences: &Differences,
    contested: &ClusterSet,
) -> io::Result<PlannedCounts> {
    let geometry = examination.walk.geometry;
    let lost = remains::lost_counts(examination)?;
    let garbage = refcounts::garbage(examination);
    let is_garbage = |cluster: HostCluster| {
        let index = cluster.0 / geometry.refcount_block_entries();
        garbage.blocks.contains(&index)
    };
    // The count of the first cluster of a run.
    let plan = |run: DifferenceRun, block: Option<HostCluster>| {
        let stored = run.stored?;
        let cluster = run.clusters.start;
        let once_shared = u64::from(lost.contains(cluster));
        let wanted = run.expected + once_shared;
        let wanted = wanted.min(geometry.refcount_max());
        let is_allowed = if wanted > stored {
            permit.may_correct
        } else {
            permit.may_lower.is_some()
        };
        // A block that the file ends in has counts that are not on disk; writing one would grow the file.
        let is_writable = || {
            block.is_some_and(|block| {
                !contested.contains(block)
                    && !is_garbage(cluster)
                    && is_in_file(geometry, block, cluster)
            })
        };
        Some(if is_allowed && is_writable() {
            wanted
        } else {
            stored
        })
    };
    let mut counts = PlannedCounts::default();
    for run in differences.runs() {
        for of_block in within_blocks(geometry, *run) {
            let block = refcount_block(&examination.survey, geometry, of_block.clusters.start);
            let end = HostCluster(of_block.clusters.end().saturating_sub(1));
            // In a block that is whole, clusters differ only by what is lost.
            let are_alike =
                lost.is_empty() && block.is_none_or(|block| is_in_file(geometry, block, end));
            let step = if are_alike {
                of_block.clusters.count
            } else {
                1
            };
            let mut rest = of_block;
            while rest.clusters.count > 0 {
                let (part, more) = rest.split_at(step);
                counts.push(plan(part, block), part.clusters.count);
                rest = more;
            }
        }
    }
    Ok(counts)
}

/// A run by the refcount blocks that its clusters are counted in.
fn within_blocks(geometry: Geometry, run: DifferenceRun) -> impl Iterator<Item = DifferenceRun> {
    let per_block = geometry.refcount_block_entries();
    let mut rest = run;
    std::iter::from_fn(move || {
        let first = (rest.clusters.count > 0).then_some(rest.clusters.start.0)?;
        let (part, more) = rest.split_at(per_block - first % per_block);
        rest = more;
        Some(part)
    })
}

/// Whether a cluster's count lies before the end of the file, in the block at `block`.
fn is_in_file(geometry: Geometry, block: HostCluster, cluster: HostCluster) -> bool {
    let index = cluster.0 % geometry.refcount_block_entries();
    let last_bit = ((index + 1) << geometry.refcount_order()) - 1;
    geometry.offset_of(block).0 + last_bit / 8 < geometry.file_bytes()
}

fn refcount_block(
    survey: &Survey,
    geometry: Geometry,
    cluster: HostCluster,
) -> Option<HostCluster> {
    let index = cluster.0 / geometry.refcount_block_entries();
    let at = survey
        .refcount_blocks
        .binary_search_by_key(&index, |block| block.index)
        .ok()?;
    survey.refcount_blocks.get(at).map(|block| block.cluster)
}

fn refcount_patches<S: Storage>(
    examination: &Examination<'_, S>,
    differences: &Differences,
    counts: &PlannedCounts,
) -> Vec<Patch> {
    let geometry = examination.walk.geometry;
    let mut patches = Vec::new();
    for (run, count) in counts.beside(differences) {
        let (Some(stored), Some(count)) = (run.stored, count) else {
            continue;
        };
        if count == stored {
            continue;
        }
        let (stage, because) = match stored {
            0 => (StageKind::RaiseRefcounts, Code::RefcountZero),
            _ if count > stored => (StageKind::RaiseRefcounts, Code::RefcountTooLow),
            _ => (StageKind::LowerRefcounts, Code::RefcountLeak),
        };
        for part in within_blocks(geometry, run) {
            let block = refcount_block(&examination.survey, geometry, part.clusters.start);
            let Some(block) = block else { continue };
            let block_offset = geometry.offset_of(block).0;
            let order = geometry.refcount_order();
            for cluster in part.clusters.clusters() {
                let index = cluster.0 % geometry.refcount_block_entries();
                Patch::refcount(stage, because, block_offset, order, index, count)
                    .add_to(&mut patches);
            }
        }
    }
    patches
}

/// COPIED flags of the active mapping that will not say whether the count is one.
fn flag_patches<S: Storage>(
    examination: &Examination<'_, S>,
    differences: &Differences,
    counts: &PlannedCounts,
    contested: &ClusterSet,
) -> Vec<Patch> {
    if examination.walk.image.header().has_data_file() || differences.is_empty() {
        return Vec::new();
    }
    let shared = ClusterSet::new();
    let single = ClusterSet::new();
    for (run, count) in counts.beside(differences) {
        // With a count of zero that cannot be raised, a flag that is cleared makes the next write allocate, from counts
        // that are wrong.
        if count.is_some_and(|count| count > 1 || run.expected > 1) {
            shared.insert_run(run.clusters);
        }
        if count == Some(1) && run.expected == 1 {
            single.insert_run(run.clusters);
        }
    }
    if shared.is_empty() && single.is_empty() {
        return Vec::new();
    }
    let wanted = Wanted {
        shared: &shared,
        single: &single,
    };
    let mut patches = l1_flag_patches(examination, &wanted, contested);
    let rules = Rules::new(examination.walk);
    let visitors = read_tables(examination.walk, &examination.survey.l2_tables, || {
        Visitor {
            rules: &rules,
            wanted,
            contested,
            patches: Vec::new(),
        }
    });
    for visitor in visitors {
        patches.extend(visitor.patches);
    }
    patches
}

/// Which clusters have several users or counts, and which have one of each afterwards.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    shared: &'a ClusterSet,
    single: &'a ClusterSet,
}

impl Wanted<'_> {
    /// Those of a run with such flags that are to have another one.
    fn wrong_in(&self, clusters: ClusterRange, copied: bool) -> impl Iterator<Item = ClusterRange> {
        let wrong = if copied { self.shared } else { self.single };
        by_word(clusters).flat_map(|part| part.runs_of(wrong.bits_of(part)))
    }

    /// The flag at `flag_offset`, corrected where it is not what it should be.
    fn correction(self, cluster: HostCluster, copied: bool, flag_offset: u64) -> Option<Patch> {
        let (stage, because) = if copied && self.shared.contains(cluster) {
            (StageKind::ClearCopied, Code::CopiedFlagStale)
        } else if !copied && self.single.contains(cluster) {
            (StageKind::SetCopied, Code::CopiedFlagMissing)
        } else {
            return None;
        };
        Some(Patch::copied_flag(stage, because, flag_offset, !copied))
    }
}

fn l1_flag_patches<S: Storage>(
    examination: &Examination<'_, S>,
    wanted: &Wanted<'_>,
    contested: &ClusterSet,
) -> Vec<Patch> {
    let walk = examination.walk;
    let place = Place::L1Table { tree: Tree::Active };
    // Only a table that the walk has admitted is written to.
    let claim = examination
        .survey
        .claims
        .iter()
        .find(|claim| claim.place == place);
    let Some(claim) = claim else {
        return Vec::new();
    };
    let table_offset = walk.geometry.offset_of(claim.clusters.start).0;
    let in_file = walk.geometry.file_bytes().saturating_sub(table_offset) / 8;
    let in_claim = claim.clusters.count * walk.geometry.cluster_bytes() / 8;
    let entries = u64::from(walk.image.header().l1_size)
        .min(in_file)
        .min(in_claim);
    let mut table = vec![0; usize::try_from(entries * 8).unwrap_or(0)];
    let read = walk.image.read_into(HostOffset(table_offset), &mut table);
    if read.is_err() {
        return Vec::new();
    }
    let mut patches = Vec::new();
    for (index, word) in (0_u64..).zip(words(&table)) {
        let entry = L1Entry(word);
        let offset = table_offset + index * 8;
        let is_writable = !contested.contains(walk.geometry.cluster_at(HostOffset(offset)));
        let cluster = entry
            .l2_table_offset()
            .and_then(|offset| walk.geometry.admit(offset).ok())
            .filter(|_| is_writable);
        patches
            .extend(cluster.and_then(|cluster| wanted.correction(cluster, entry.copied(), offset)));
    }
    patches
}

struct Visitor<'a> {
    rules: &'a Rules,
    wanted: Wanted<'a>,
    contested: &'a ClusterSet,
    patches: Vec<Patch>,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        if item.trees.active == 0 || self.contested.contains(item.cluster) {
            return;
        }
        let geometry = self.rules.geometry;
        let table_offset = geometry.offset_of(item.cluster).0;
        let rules = self.rules;
        rules.walk_standard(item, bytes, |run| {
            for clusters in self.wanted.wrong_in(run.clusters, run.copied) {
                let first = run.index + (clusters.start.0 - run.clusters.start.0);
                for (index, cluster) in (first..).zip(clusters.clusters()) {
                    let offset = table_offset + index * geometry.l2_entry_bytes();
                    let correction = self.wanted.correction(cluster, run.copied, offset);
                    self.patches.extend(correction);
                }
            }
        });
    }

    fn miss(&mut self, _item: &L2Item, _gap: Gap) {}
}
