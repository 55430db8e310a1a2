//! Stored refcounts: from the refcount blocks into the ledger.
//!
//! Comes in: the refcount blocks of the survey. Goes out: every count that is not zero, entered once. Never here:
//! what a count should be.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::coverage::Gap;
use crate::progress::Phase;
use crate::qcow2::{Geometry, HostCluster, HostOffset, Place, counts_by_64, refcount_at};
use crate::refcount_map::{Ledger, region_clusters, region_of};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, Table, read_tables};
use crate::walk::{Notes, RefcountBlockItem, Survey, Walk};

impl Table for RefcountBlockItem {
    fn cluster(&self) -> HostCluster {
        self.cluster
    }

    fn place(&self) -> Place {
        Place::RefcountBlock { index: self.index }
    }
}

struct Visitor<'a> {
    geometry: Geometry,
    ledger: &'a Ledger,
    last_stored: &'a AtomicU64,
    missed: Vec<u64>,
    notes: Notes,
}

impl GroupVisitor<RefcountBlockItem> for Visitor<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, block: &RefcountBlockItem, bytes: &[u8]) {
        let first = block
            .index
            .saturating_mul(self.geometry.refcount_block_entries());
        let file_clusters = self.geometry.file_clusters();
        let order = self.geometry.refcount_order();
        let mut entry = self.ledger.entry();
        let mut last = 0;
        for (start, counts) in (first..).step_by(64).zip(counts_by_64(bytes, order)) {
            entry.owe_ones(HostCluster(start), counts.ones);
            if let Some(larger) = counts.larger {
                entry.owe_larger(HostCluster(start), &larger);
            }
            let in_file = file_clusters.saturating_sub(start).min(64);
            let used = counts.used
                & u64::MAX
                    .checked_shr(64 - u32::try_from(in_file).unwrap_or(64))
                    .unwrap_or(0);
            if used != 0 {
                last = start + u64::from(used.ilog2());
            }
        }
        self.last_stored.fetch_max(last, Relaxed);
    }

    fn miss(&mut self, block: &RefcountBlockItem, gap: Gap) {
        self.missed.push(block.index);
        self.notes.gap(gap);
    }
}

/// Enters the stored counts of some blocks into the ledger; returns the last cluster of the file that has one.
pub(super) fn enter_stored_counts<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    blocks: Range<usize>,
    ledger: &Ledger,
    notes: &mut Notes,
) -> u64 {
    let mut blocks = survey
        .refcount_blocks
        .get(blocks)
        .map(<[_]>::to_vec)
        .unwrap_or_default();
    blocks.sort_by_key(|block| (block.cluster, block.index));
    let total_bytes = blocks.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Refcounts, total_bytes);
    let last_stored = AtomicU64::new(0);
    let visitors = read_tables(walk, &blocks, || Visitor {
        geometry: walk.geometry,
        ledger,
        last_stored: &last_stored,
        missed: Vec::new(),
        notes: Notes::default(),
    });
    for visitor in visitors {
        survey.unknown_counts.blocks.extend(visitor.missed);
        notes.append(visitor.notes);
    }
    last_stored.into_inner()
}

/// The stored counts of one region of clusters, read again.
pub(super) struct RegionCounts {
    order: u32,
    /// The blocks' parts, in order, each of `per_part` clusters.
    parts: Vec<Part>,
    first: u64,
    per_part: u64,
}

/// The stored counts of 64 clusters that are zero, one, or not known, a bit for each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StoredWord {
    pub(super) zeros: u64,
    pub(super) ones: u64,
    pub(super) unknown: u64,
}

/// What one refcount block has on a region.
enum Part {
    /// The block could not be read.
    Unknown,
    /// There is no block: all counts are zero.
    Absent,
    Bytes(Vec<u8>),
}

impl RegionCounts {
    /// Reads the counts of a region; what cannot be read is not known.
    pub(super) fn read<S: Storage>(walk: Walk<'_, S>, survey: &Survey, region: u64) -> Self {
        let clusters = region_clusters(region);
        // Blocks and regions both hold powers of two of counts, so one is a multiple of the other.
        let region_length = clusters.end - clusters.start;
        let per_part = walk.geometry.refcount_block_entries().min(region_length);
        let starts = (clusters.start..clusters.end).step_by(usize::try_from(per_part).unwrap_or(1));
        Self {
            order: walk.geometry.refcount_order(),
            parts: starts
                .map(|start| read_part(walk, survey, start, per_part))
                .collect(),
            first: clusters.start,
            per_part,
        }
    }

    /// What is stored for the 64 clusters from `start` on, a multiple of 64 in this region.
    pub(super) fn word(&self, start: HostCluster) -> StoredWord {
        let index = start.0.saturating_sub(self.first);
        let part = usize::try_from(index / self.per_part).ok();
        let mut word = StoredWord::default();
        let bytes = match part.and_then(|part| self.parts.get(part)) {
            None | Some(Part::Unknown) => {
                word.unknown = u64::MAX;
                return word;
            }
            Some(Part::Absent) => {
                word.zeros = u64::MAX;
                return word;
            }
            Some(Part::Bytes(bytes)) => bytes,
        };
        let from = ((index % self.per_part) << self.order) / 8;
        let counts = usize::try_from(from)
            .ok()
            .and_then(|from| bytes.get(from..));
        let counts = counts.and_then(|bytes| bytes.get(..8 << self.order));
        for counts in counts_by_64(counts.unwrap_or(&[]), self.order) {
            (word.zeros, word.ones) = (!counts.used, counts.ones);
        }
        word
    }

    /// The stored count of a cluster of this region; `None` where it is not known.
    pub(super) fn get(&self, cluster: HostCluster) -> Option<u64> {
        let index = cluster.0.checked_sub(self.first)?;
        let part = self
            .parts
            .get(usize::try_from(index / self.per_part).ok()?)?;
        match part {
            Part::Unknown => None,
            Part::Absent => Some(0),
            Part::Bytes(bytes) => {
                let within = usize::try_from(index % self.per_part).ok()?;
                Some(refcount_at(bytes, self.order, within))
            }
        }
    }
}

/// Reads `count` counts from cluster `start` on, which all lie in one refcount block and fill whole bytes.
fn read_part<S: Storage>(walk: Walk<'_, S>, survey: &Survey, start: u64, count: u64) -> Part {
    let geometry = walk.geometry;
    let per_block = geometry.refcount_block_entries();
    let block = start / per_block;
    if survey.unknown_counts.all || survey.unknown_counts.blocks.contains(&block) {
        return Part::Unknown;
    }
    let found = survey
        .refcount_blocks
        .binary_search_by_key(&block, |item| item.index);
    let Some(item) = found.ok().and_then(|at| survey.refcount_blocks.get(at)) else {
        return Part::Absent;
    };
    let start_byte = ((start % per_block) << geometry.refcount_order()) / 8;
    let length = (count << geometry.refcount_order()) / 8;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let offset = geometry.offset_of(item.cluster).0 + start_byte;
    match walk.image.read_into(HostOffset(offset), &mut bytes) {
        Ok(()) => Part::Bytes(bytes),
        Err(_) => Part::Unknown,
    }
}

/// The stored count of one cluster; `None` where it is not known.
pub(super) fn stored_count<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    cluster: HostCluster,
) -> Option<u64> {
    RegionCounts::read(walk, survey, region_of(cluster)).get(cluster)
}
