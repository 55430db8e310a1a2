//! Settling: every reference pays off what the stored refcounts owe.
//!
//! Comes in: the survey and the ledger. Goes out: a ledger in which only what does not add up is left; the defects of
//! the L2 tables' words; allocation statistics. Never here: a second look at a table.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Statistics;
use super::extents::{Extents, judge_extents};
use crate::coverage::Gap;
use crate::progress::Phase;
use crate::qcow2::{HostCluster, Refusal};
use crate::refcount_map::{CopiedFlag, Cursor, Identity, Ledger};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{Mapped, Rules, Target};
use crate::walk::{L2Item, Notes, Survey, Walk};

/// What settling found out besides.
#[derive(Debug)]
pub(super) struct Settled {
    /// The last cluster anything refers to.
    pub(super) last_referenced: u64,
    /// References past the end of the file to clusters that have a stored count: they existed once.
    pub(super) truncated_clusters: u64,
    /// `image_end_offset` and `total_clusters` are not filled in.
    pub(super) statistics: Statistics,
}

/// Lets all references pay.
pub(super) fn settle<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    notes: &mut Notes,
) -> Settled {
    let mut last_referenced = 0;
    let mut cursor = ledger.cursor();
    for claim in &survey.claims {
        for cluster in claim.clusters.clusters() {
            cursor.pay(cluster, 1, Identity::Metadata, CopiedFlag::Any);
        }
        last_referenced = last_referenced.max(claim.clusters.end().saturating_sub(1));
    }
    let total_bytes = survey.l2_tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Tables, total_bytes);
    let rules = Rules::new(walk);
    let last = AtomicU64::new(last_referenced);
    let truncated = AtomicU64::new(0);
    for &cluster in &survey.lost_l2_tables {
        pay_past_end(&mut cursor, cluster, Identity::Metadata, &truncated);
    }
    let visitors = read_tables(walk, &survey.l2_tables, || Visitor {
        rules: &rules,
        ledger,
        cursor: ledger.cursor(),
        last: &last,
        truncated: &truncated,
        statistics: Statistics::default(),
        extents: Extents::new(!survey.snapshots.is_empty()),
        notes: Notes::default(),
    });
    let mut statistics = Statistics::default();
    let mut extents = Vec::new();
    for visitor in visitors {
        statistics.add(visitor.statistics);
        extents.push(visitor.extents);
        notes.append(visitor.notes);
    }
    judge_extents(walk.geometry, extents, notes);
    Settled {
        last_referenced: last.into_inner(),
        truncated_clusters: truncated.into_inner(),
        statistics,
    }
}

struct Visitor<'a> {
    rules: &'a Rules,
    ledger: &'a Ledger,
    cursor: Cursor<'a>,
    last: &'a AtomicU64,
    truncated: &'a AtomicU64,
    statistics: Statistics,
    extents: Extents,
    notes: Notes,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        self.pay_for_table(item);
        let mut last = item.cluster.0;
        let mut run = FragmentationRun::default();
        let rules = self.rules;
        let mut notes = mem::take(&mut self.notes);
        rules.walk_table(item, bytes, Some(&mut notes), |mapped| {
            run.add(&mapped, rules.geometry.cluster_bytes());
            last = last.max(self.pay_mapped(item, &mapped));
        });
        self.notes = notes;
        self.last.fetch_max(last, Relaxed);
        self.statistics.add(run.statistics(item.trees.active));
    }

    fn miss(&mut self, item: &L2Item, gap: Gap) {
        // The table itself is there, whatever is in it.
        self.pay_for_table(item);
        self.notes.gap(gap);
    }
}

impl Visitor<'_> {
    /// Returns the last cluster referred to, or 0 where the file has none such.
    fn pay_mapped(&mut self, item: &L2Item, mapped: &Mapped) -> u64 {
        match mapped.target {
            Target::Standard {
                cluster: Ok(cluster),
                copied,
                ..
            } => {
                let flag = match (item.trees.active, copied) {
                    (0, _) => CopiedFlag::Any,
                    (_, true) => CopiedFlag::Set,
                    (_, false) => CopiedFlag::Clear,
                };
                let identity = Identity::Guest(mapped.guest_cluster);
                self.cursor.pay(cluster, item.weight(), identity, flag);
                cluster.0
            }
            Target::Standard {
                cluster: Err(Refusal::PastEnd),
                offset,
                ..
            } => {
                let cluster = self.rules.geometry.cluster_at(offset);
                let identity = Identity::Guest(mapped.guest_cluster);
                pay_past_end(&mut self.cursor, cluster, identity, self.truncated);
                0
            }
            Target::Compressed {
                extent,
                clusters: Ok(clusters),
            } => {
                self.extents.push(extent, mapped.guest_cluster);
                let (weight, identity) = (item.weight(), Identity::Compressed);
                for cluster in clusters.clusters() {
                    self.cursor.pay(cluster, weight, identity, CopiedFlag::Any);
                }
                clusters.end().saturating_sub(1)
            }
            Target::Standard { .. } | Target::Compressed { .. } | Target::External { .. } => 0,
        }
    }

    fn pay_for_table(&mut self, item: &L2Item) {
        let active = item.trees.active;
        let flag = if active == 0 {
            CopiedFlag::Any
        } else if item.active_copied == active {
            CopiedFlag::Set
        } else {
            CopiedFlag::Clear
        };
        self.cursor
            .pay(item.cluster, item.weight(), Identity::Metadata, flag);
        let is_mixed = item.active_copied != 0 && item.active_copied != active;
        if is_mixed || item.is_shared_across_ranges {
            self.ledger.suspects().insert(item.cluster);
        }
    }
}

/// A cluster past the end of the file that is both referred to and counted was there once.
fn pay_past_end(
    cursor: &mut Cursor<'_>,
    cluster: HostCluster,
    identity: Identity,
    truncated: &AtomicU64,
) {
    if cursor.try_pay(cluster, 1, identity, CopiedFlag::Any) {
        truncated.fetch_add(1, Relaxed);
    }
}

/// Counts as `qemu-img check` does: within a table, an entry whose cluster does not follow the previous one's is a
/// fragment; unallocated entries between them do not matter, and every compressed cluster is a fragment.
#[derive(Default)]
struct FragmentationRun {
    expected_offset: Option<u64>,
    allocated: u64,
    fragmented: u64,
    compressed: u64,
}

impl FragmentationRun {
    fn add(&mut self, mapped: &Mapped, cluster_bytes: u64) {
        self.allocated += 1;
        match mapped.target {
            Target::Compressed { .. } => {
                self.compressed += 1;
                self.fragmented += 1;
            }
            Target::Standard { offset, .. } | Target::External { offset } => {
                let follows = self
                    .expected_offset
                    .is_none_or(|expected| expected == offset.0);
                self.fragmented += u64::from(!follows);
                self.expected_offset = Some(offset.0.saturating_add(cluster_bytes));
            }
        }
    }

    /// The active L1 table's entries that name the table each count it.
    fn statistics(&self, active: u64) -> Statistics {
        Statistics {
            allocated_clusters: self.allocated * active,
            fragmented_clusters: self.fragmented * active,
            compressed_clusters: self.compressed * active,
            ..Statistics::default()
        }
    }
}

impl Statistics {
    fn add(&mut self, more: Self) {
        self.allocated_clusters += more.allocated_clusters;
        self.fragmented_clusters += more.fragmented_clusters;
        self.compressed_clusters += more.compressed_clusters;
    }
}
