//! As many passes over the tables as the memory asks for: each settles the clusters of one window of the file.
//!
//! Comes in: the survey, and how much memory the counts may take. Goes out: a ledger in which only what does not add up
//! is left, the same whatever the number of passes; overlaps of compressed data, looked for once. Never here: what a count or a reference means.

use std::mem;
use std::ops::Range;

use super::extents::judge_extents;
use super::settle::{Settled, settle};
use super::stored::enter_stored_counts;
use crate::coverage::Coverage;
use crate::qcow2::{Geometry, HostCluster};
use crate::refcount_map::{ClusterSet, Ledger, REGION_CLUSTERS, region_of};
use crate::storage::Storage;
use crate::walk::{Notes, Survey, Walk};

/// What a region of clusters takes at least: a bit for each, and a little to find it by.
const REGION_BYTES: u64 = REGION_CLUSTERS / 8 + 128;

/// Where the next pass begins.
#[derive(Clone, Copy)]
struct Next {
    /// Among the refcount blocks, which are sorted by index.
    block: usize,
    region: u64,
}

/// What one pass settles.
struct Window {
    blocks: Range<usize>,
    regions: Range<u64>,
}

/// Settles all clusters, in one pass if their counts take no more than `max_bytes`.
pub(super) fn settle_in_passes<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    max_bytes: u64,
    notes: &mut Notes,
) -> (Ledger, Settled) {
    let mut max_regions = max_bytes / REGION_BYTES;
    let mut next = Next {
        block: 0,
        region: 0,
    };
    let mut suspects = ClusterSet::new();
    let mut first: Option<Settled> = None;
    // So far there are only the failures of the survey.
    let are_all_users_known = notes.coverage.failure_count() == 0;
    // What could not be read in a pass that is made again.
    let mut given_up = Coverage::default();
    loop {
        let window = next.window(walk.geometry, survey, max_regions);
        // What does not fit even alone is let in.
        let limit = if max_regions <= 1 {
            u64::MAX
        } else {
            max_bytes
        };
        let ledger = Ledger::of(window.regions.clone(), limit, suspects);
        let mut entered = Notes::default();
        let last = enter_stored_counts(walk, survey, window.blocks.clone(), &ledger, &mut entered);
        if ledger.is_over_limit() {
            given_up.append_new_failures(entered.coverage);
            suspects = ledger.into_known_suspects();
            max_regions /= 2;
            continue;
        }
        notes.append(entered);
        let mut seen = Notes::default();
        let mut settled = settle(walk, survey, &ledger, are_all_users_known, &mut seen);
        let mut all = match first.take() {
            None => {
                notes.append(seen);
                let extents = mem::take(&mut settled.extents);
                judge_extents(walk, survey, extents, notes);
                settled
            }
            Some(mut all) => {
                all.truncated_clusters += settled.truncated_clusters;
                all.has_unflagged |= settled.has_unflagged;
                // The tables' findings are known from the first pass; what only this one could not read is not.
                notes.coverage.append_new_failures(seen.coverage);
                all
            }
        };
        all.last_cluster = all.last_cluster.max(last);
        if window.regions.end == u64::MAX || walk.progress.is_stopped() {
            notes.coverage.append_new_failures(given_up);
            return (ledger, all);
        }
        suspects = ledger.into_suspects();
        next = Next {
            block: window.blocks.end,
            region: window.regions.end,
        };
        first = Some(all);
    }
}

impl Next {
    /// The next window: refcount blocks from here on whose counts are for no more than so many regions, at least one.
    fn window(self, geometry: Geometry, survey: &Survey, max_regions: u64) -> Window {
        let per_block = geometry.refcount_block_entries();
        let blocks = survey.refcount_blocks.get(self.block..).unwrap_or_default();
        let (mut regions, mut end) = (0, None);
        for (position, block) in (self.block..).zip(blocks) {
            let first = block.index.saturating_mul(per_block);
            let last = region_of(HostCluster(first.saturating_add(per_block - 1)));
            let first = region_of(HostCluster(first)).max(end.unwrap_or(0));
            let more = (last + 1).saturating_sub(first);
            let is_cut = more > 0 && end.is_some_and(|end| first >= end) && regions > 0;
            if is_cut && regions + more > max_regions {
                return Window {
                    blocks: self.block..position,
                    regions: self.region..first,
                };
            }
            regions += more;
            end = Some(last + 1);
        }
        Window {
            blocks: self.block..survey.refcount_blocks.len(),
            regions: self.region..u64::MAX,
        }
    }
}
