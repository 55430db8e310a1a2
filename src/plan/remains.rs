//! What is left of structures that nothing leads to: words behind the end of a table, entries that read as a list, COPIED
//! flags that are clear.
//!
//! Comes in: an examination. Goes out: which clusters such remains tell of. Never here: what follows from it.

use std::io;

use super::holes::Holes;
use crate::check::{Difference, Examination};
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, OwnerKind};
use crate::qcow2::{
    BitmapDirectoryEntry, DirectoryDecode, Geometry, HostCluster, HostOffset, L1Entry,
    SnapshotEntry, words,
};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;
use crate::walk::L2Item;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::Rules;

/// Tables and lists whose last cluster may hold more than belongs to them.
const LISTS: [OwnerKind; 4] = [
    OwnerKind::Header,
    OwnerKind::L1Table,
    OwnerKind::SnapshotTable,
    OwnerKind::BitmapDirectory,
];

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 1 << 14;

/// Leaked clusters that words behind the end of a table or list still name: a count or a size may be what is wrong.
///
/// What lies before the end refers to its clusters, so those are not leaked; of each last cluster everything is read that is
/// stored.
pub(super) fn named<S: Storage>(
    examination: &Examination<'_, S>,
    leaked: &ClusterSet,
) -> ClusterSet {
    let named = ClusterSet::new();
    if leaked.is_empty() {
        return named;
    }
    let geometry = examination.walk.geometry;
    let image = examination.walk.image;
    let claims = examination.survey.claims.iter();
    let lists = claims.filter(|claim| LISTS.contains(&claim.kind));
    let ends = lists.filter_map(|claim| claim.clusters.end().checked_sub(1));
    // Forged tables may all end in one cluster, or each in a hole of its own.
    let mut last_clusters: Vec<u64> = ends.collect();
    last_clusters.sort_unstable();
    last_clusters.dedup();
    let mut holes = Holes::new(image.storage());
    let piece_bytes = geometry.cluster_bytes().min(PIECE_BYTES);
    let mut bytes = vec![0; usize::try_from(piece_bytes).unwrap_or(0)];
    for last in last_clusters {
        let start = geometry.offset_of(HostCluster(last)).0;
        let end = start + geometry.cluster_bytes();
        let mut at = start;
        // Nothing is planned by somebody who was stopped: only the end counts then.
        while at < end && !examination.walk.progress.is_stopped() {
            // Where the system cannot say, everything may be data.
            let next = holes.next_stored(at).unwrap_or(at);
            at = next - next % piece_bytes;
            if at >= end {
                break;
            }
            let read = image.read_into(HostOffset(at), &mut bytes);
            at += piece_bytes;
            if read.is_err() {
                continue;
            }
            for word in words(&bytes) {
                let offset = L1Entry(word).l2_table_offset();
                let cluster = offset.and_then(|offset| geometry.admit(offset).ok());
                if let Some(cluster) = cluster.filter(|it| leaked.contains(*it)) {
                    named.insert(cluster);
                }
            }
        }
    }
    named
}

/// Whether a cluster begins as a snapshot table or a bitmap directory does.
pub(super) fn reads_as_list(geometry: Geometry, bytes: &[u8]) -> bool {
    reads_as_snapshot(geometry, bytes) || reads_as_bitmap(geometry, bytes)
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty() && !bytes.iter().any(u8::is_ascii_control)
}

fn names_table(geometry: Geometry, offset: HostOffset, entries: u32) -> bool {
    let bytes = u64::from(entries) * 8;
    offset.0 != 0 && entries != 0 && geometry.admit_table(offset, bytes).is_ok()
}

fn reads_as_snapshot(geometry: Geometry, bytes: &[u8]) -> bool {
    SnapshotEntry::decode(bytes, 0).is_some_and(|entry| {
        names_table(geometry, entry.fixed.l1_table_offset, entry.fixed.l1_size)
            && is_text(&entry.id)
            && entry.name.iter().all(|byte| !byte.is_ascii_control())
    })
}

fn reads_as_bitmap(geometry: Geometry, bytes: &[u8]) -> bool {
    match BitmapDirectoryEntry::decode(bytes) {
        DirectoryDecode::Overrun => false,
        DirectoryDecode::Entry(entry, _) => {
            let size = entry.bitmap_table_size;
            names_table(geometry, entry.bitmap_table_offset, size)
                && entry.unknown_flags() == 0
                && is_text(&entry.name)
        }
    }
}

/// What the active mapping uses without COPIED: it had another user once.
pub(super) fn unflagged<S: Storage>(examination: &Examination<'_, S>) -> io::Result<ClusterSet> {
    let once_shared = ClusterSet::new();
    let walk = examination.walk;
    if walk.image.header().has_data_file() {
        return Ok(once_shared);
    }
    let rules = Rules::new(walk);
    let visitors = read_tables(walk, &examination.survey.l2_tables, || Unflagged {
        rules: &rules,
        once_shared: &once_shared,
        is_unreadable: false,
    });
    if visitors.iter().any(|visitor| visitor.is_unreadable) {
        return Err(io::Error::other("an L2 table could not be read"));
    }
    Ok(once_shared)
}

struct Unflagged<'a> {
    rules: &'a Rules,
    once_shared: &'a ClusterSet,
    is_unreadable: bool,
}

impl GroupVisitor<L2Item> for Unflagged<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        if item.trees.active == 0 {
            return;
        }
        if item.active_copied == 0 {
            self.once_shared.insert(item.cluster);
        }
        let rules = self.rules;
        rules.walk_standard(item, bytes, |run| {
            if !run.copied {
                self.once_shared.insert_run(run.clusters);
            }
        });
    }

    fn miss(&mut self, _item: &L2Item, gap: Gap) {
        self.is_unreadable |= gap.kind == GapKind::Unreadable;
    }
}

/// Clusters of one visible user that count as free, and had a second user once: its COPIED flag is clear.
///
/// Where the count is gone, the flag is all that still tells of a snapshot that is gone as well.
pub(super) fn lost_counts<S: Storage>(examination: &Examination<'_, S>) -> io::Result<ClusterSet> {
    let lost = ClusterSet::new();
    let findings = &examination.notes.findings;
    if findings.total_of(Code::RefcountZero).count == 0 {
        return Ok(lost);
    }
    let unflagged = unflagged(examination)?;
    let is_lost = |known: &Difference| known.stored == Some(0) && known.expected == 1;
    for known in examination.differences().iter() {
        if is_lost(&known) && unflagged.contains(known.cluster) {
            lost.insert(known.cluster);
        }
    }
    Ok(lost)
}
