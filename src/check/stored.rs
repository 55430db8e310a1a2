//! Stored refcounts: from the refcount blocks into the ledger.
//!
//! Comes in: the refcount blocks of the survey. Goes out: every count that is not zero, entered once. Never here:
//! what a count should be.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::coverage::Gap;
use crate::progress::Phase;
use crate::qcow2::{Geometry, HostCluster, HostOffset, Place, refcount_at, refcounts};
use crate::refcount_map::{Ledger, region_clusters};
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
    fn visit(&mut self, block: &RefcountBlockItem, bytes: &[u8]) {
        let first = block
            .index
            .saturating_mul(self.geometry.refcount_block_entries());
        let file_clusters = self.geometry.file_clusters();
        let mut cursor = self.ledger.cursor();
        let mut last = 0;
        refcounts(bytes, self.geometry.refcount_order(), |index, count| {
            let cluster = first.saturating_add(index);
            cursor.owe(HostCluster(cluster), count);
            if cluster < file_clusters {
                last = cluster;
            }
        });
        self.last_stored.fetch_max(last, Relaxed);
    }

    fn miss(&mut self, block: &RefcountBlockItem, gap: Gap) {
        self.missed.push(block.index);
        self.notes.gap(gap);
    }
}

/// Enters every stored count into the ledger; returns the last cluster of the file that has one.
pub(super) fn enter_stored_counts<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    ledger: &Ledger,
    notes: &mut Notes,
) -> u64 {
    let mut blocks = survey.refcount_blocks.clone();
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
    first: u64,
    /// `None` where the count is not known.
    counts: Vec<Option<u64>>,
}

impl RegionCounts {
    /// Reads the counts of a region; what cannot be read is not known.
    pub(super) fn read<S: Storage>(walk: Walk<'_, S>, survey: &Survey, region: u64) -> Self {
        let clusters = region_clusters(region);
        let per_block = walk.geometry.refcount_block_entries();
        let mut counts = Vec::new();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let block = cluster / per_block;
            let end = (block + 1).saturating_mul(per_block).min(clusters.end);
            read_part(walk, survey, block, cluster..end, &mut counts);
            cluster = end;
        }
        Self {
            first: clusters.start,
            counts,
        }
    }

    /// The stored count of a cluster of this region.
    pub(super) fn get(&self, cluster: HostCluster) -> Option<u64> {
        let index = usize::try_from(cluster.0.checked_sub(self.first)?).ok()?;
        self.counts.get(index).copied().flatten()
    }
}

/// Appends the counts of `clusters`, which lie in refcount block `block`.
fn read_part<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    block: u64,
    clusters: std::ops::Range<u64>,
    counts: &mut Vec<Option<u64>>,
) {
    let order = walk.geometry.refcount_order();
    let wanted = usize::try_from(clusters.end - clusters.start).unwrap_or(0);
    if survey.unknown_counts.all || survey.unknown_counts.blocks.contains(&block) {
        counts.extend(std::iter::repeat_n(None, wanted));
        return;
    }
    let found = survey
        .refcount_blocks
        .binary_search_by_key(&block, |item| item.index);
    let Some(item) = found.ok().and_then(|at| survey.refcount_blocks.get(at)) else {
        counts.extend(std::iter::repeat_n(Some(0), wanted));
        return;
    };
    // Blocks and regions hold powers of two of counts, at least 64, so a part starts and ends at whole bytes.
    let per_block = walk.geometry.refcount_block_entries();
    let start_byte = ((clusters.start % per_block) << order) / 8;
    let bytes = ((clusters.end - clusters.start) << order) / 8;
    let mut part = vec![0; usize::try_from(bytes).unwrap_or(0)];
    let offset = walk.geometry.offset_of(item.cluster).0 + start_byte;
    let is_read = walk.image.read_into(HostOffset(offset), &mut part).is_ok();
    counts.extend((0..wanted).map(|index| is_read.then(|| refcount_at(&part, order, index))));
}

/// The stored count of one cluster; `None` where it is not known.
pub(super) fn stored_count<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    cluster: HostCluster,
) -> Option<u64> {
    let block = cluster.0 / walk.geometry.refcount_block_entries();
    let first = cluster.0 / 64 * 64;
    let mut counts = Vec::new();
    read_part(walk, survey, block, first..first + 64, &mut counts);
    let index = usize::try_from(cluster.0 % 64).ok()?;
    counts.get(index).copied().flatten()
}
