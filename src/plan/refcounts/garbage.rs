//! Refcount blocks that hold something else.
//!
//! Comes in: an examination. Goes out: which blocks are none, by what they say of structures that are never shared. Never
//! here: a block that merely misses counts, or counts too much: one of zeros is empty, one with a lost snapshot's counts is
//! right.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::Examination;
use crate::finding::OwnerKind;
use crate::qcow2::ClusterRange;
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;

/// Structures that every image has for itself: whatever else is lost, each of their clusters is counted once.
const NEVER_SHARED: [OwnerKind; 8] = [
    OwnerKind::Header,
    OwnerKind::RefcountTable,
    OwnerKind::RefcountBlock,
    OwnerKind::L1Table,
    OwnerKind::SnapshotTable,
    OwnerKind::BitmapDirectory,
    OwnerKind::BitmapTable,
    OwnerKind::EncryptionHeader,
];
/// So many of them are counted more than once in a block that is none.
const MOST_ODD: u64 = 1;

/// Blocks that hold something else, and the clusters whose counts prove it.
#[derive(Debug)]
pub(in crate::plan) struct Garbage {
    /// Indices of the blocks.
    pub(in crate::plan) blocks: BTreeSet<u64>,
    /// Clusters that are counted once, whatever the block says.
    pub(super) never_shared: ClusterSet,
}

/// What a block says of the structures in its range that are never shared.
#[derive(Clone, Copy, Default)]
struct Testimony {
    right: u64,
    wrong: u64,
    /// Of the wrong ones, those that are not zero.
    odd: u64,
}

/// Finds blocks by which structures that are never shared have any counts but one.
///
/// They are not written to: what is in them may be somebody's, to whom nothing leads any more.
pub(in crate::plan) fn garbage<S: Storage>(examination: &Examination<'_, S>) -> Garbage {
    let geometry = examination.walk.geometry;
    let differences = examination.differences();
    let never_shared = ClusterSet::new();
    let mut testimonies: BTreeMap<u64, Testimony> = BTreeMap::new();
    if differences.is_empty() {
        return Garbage {
            blocks: BTreeSet::new(),
            never_shared,
        };
    }
    let claims = examination.survey.claims.iter();
    let claims = claims.filter(|claim| NEVER_SHARED.contains(&claim.kind));
    let ranges = ClusterRange::merged(claims.map(|claim| claim.clusters).collect());
    let clusters = ranges.into_iter().flat_map(ClusterRange::clusters);
    for cluster in clusters.take_while(|cluster| cluster.0 < geometry.file_clusters()) {
        if examination.has_conflict(cluster) {
            continue;
        }
        never_shared.insert(cluster);
        let index = cluster.0 / geometry.refcount_block_entries();
        let testimony = testimonies.entry(index).or_default();
        match differences.get(cluster) {
            None => testimony.right += 1,
            Some(known) => {
                testimony.wrong += u64::from(known.stored.is_some());
                testimony.odd += u64::from(known.stored > Some(1));
            }
        }
    }
    testimonies.retain(|_, said| said.odd > MOST_ODD && said.right < said.wrong);
    Garbage {
        blocks: testimonies.into_keys().collect(),
        never_shared,
    }
}
