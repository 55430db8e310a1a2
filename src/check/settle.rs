//! Settling: every reference pays off what the stored refcounts owe.
//!
//! Comes in: the survey and the ledger. Goes out: a ledger in which only what does not add up is left; the defects of
//! the L2 tables' words; allocation statistics; all compressed data, to be looked through for overlaps. Never here: a second look at a table.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Statistics;
use super::claimed::for_each_claimed;
use super::compressed_references::CompressedReferences;
use super::extents::{Extents, RunsKept};
use crate::coverage::Gap;
use crate::progress::Phase;
use crate::qcow2::{ClusterRange, CompressedExtent, HostCluster, L2Entry, Refusal};
use crate::refcount_map::{CopiedFlag, Directory, Identity, Ledger, Payment};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{
    CHUNK, CompressedChunk, CompressedEntry, Entries, Mapped, Rules, Run, ScatteredChunk, Target,
};
use crate::walk::{L2Item, Notes, Survey, Walk};

/// What settling found out besides.
#[derive(Debug)]
pub(super) struct Settled {
    /// The last cluster anything refers to, or counts.
    pub(super) last_cluster: u64,
    /// References past the end of the file to clusters that have a stored count: they existed once.
    pub(super) truncated_clusters: u64,
    /// Something of the active mapping has no COPIED flag, as far as it was read.
    pub(super) has_unflagged: bool,
    /// `image_end_offset` and `total_clusters` are not filled in.
    pub(super) statistics: Statistics,
    /// All compressed data.
    pub(super) extents: Vec<Extents>,
}

/// Lets all references pay.
pub(super) fn settle<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    are_all_users_known: bool,
    notes: &mut Notes,
) -> Settled {
    let mut last_referenced = 0;
    let directory = ledger.directory();
    let gap = for_each_claimed(survey, walk.progress, |clusters, depth| {
        for _ in 0..depth.min(PAYING_CLAIMS) {
            directory.pay_run(clusters, STRUCTURE);
        }
        last_referenced = last_referenced.max(clusters.end().saturating_sub(1));
    });
    notes.coverage.push_new_failure(gap);
    let total_bytes = survey.l2_tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Tables, total_bytes);
    let mut rules = Rules::new(walk);
    rules.are_all_users_known = are_all_users_known;
    let last = AtomicU64::new(last_referenced);
    let truncated = AtomicU64::new(0);
    for &cluster in &survey.lost_l2_tables {
        note_lost(&directory, cluster, &truncated);
    }
    let runs_kept = RunsKept::default();
    let visitors = read_tables(walk, &survey.l2_tables, || Visitor {
        rules: &rules,
        ledger: &directory,
        last: &last,
        truncated: &truncated,
        has_unflagged: false,
        statistics: Statistics::default(),
        extents: Extents::new(!survey.snapshots.is_empty(), &runs_kept),
        notes: Notes::default(),
    });
    ledger.close();
    let mut statistics = Statistics::default();
    let mut extents = Vec::new();
    let mut has_unflagged = false;
    for visitor in visitors {
        has_unflagged |= visitor.has_unflagged;
        statistics.add(visitor.statistics);
        extents.push(visitor.extents);
        notes.append(visitor.notes);
    }
    Settled {
        last_cluster: last.into_inner(),
        truncated_clusters: truncated.into_inner(),
        has_unflagged,
        statistics,
        extents,
    }
}

/// Claims to one cluster that all pay. The second makes it a suspect, to be counted exactly; those after it change nothing.
const PAYING_CLAIMS: u64 = 64;

/// A structure that is used once.
const STRUCTURE: Payment = Payment {
    weight: 1,
    identity: Identity::Metadata,
    flag: CopiedFlag::Any,
};

struct Visitor<'a> {
    rules: &'a Rules,
    ledger: &'a Directory<'a>,
    last: &'a AtomicU64,
    truncated: &'a AtomicU64,
    has_unflagged: bool,
    statistics: Statistics,
    extents: Extents,
    notes: Notes,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        self.pay_for_table(item);
        let mut notes = mem::take(&mut self.notes);
        let mut payer = Payer {
            item,
            last: item.cluster.0,
            run: FragmentationRun::default(),
            compressed: CompressedReferences::new(self.ledger, item.weight()),
            visitor: self,
        };
        payer
            .visitor
            .rules
            .walk_runs(item, bytes, Some(&mut notes), &mut payer);
        payer.compressed.pay();
        let Payer { last, run, .. } = payer;
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

/// Pays for the entries of one table.
struct Payer<'a, 'b> {
    item: &'a L2Item,
    visitor: &'a mut Visitor<'b>,
    /// The last cluster referred to.
    last: u64,
    run: FragmentationRun,
    compressed: CompressedReferences<'b>,
}

impl Payer<'_, '_> {
    fn pay_for_extent(
        &mut self,
        extent: CompressedExtent,
        guest_cluster: u64,
        clusters: ClusterRange,
    ) {
        self.visitor.extents.push(extent, guest_cluster);
        for cluster in clusters.clusters() {
            self.compressed.add(cluster, 1);
        }
        self.last = self.last.max(clusters.end().saturating_sub(1));
    }

    fn payment(&self, identity: Identity, copied: bool) -> Payment {
        let flag = match (self.item.trees.active, copied) {
            (0, _) => CopiedFlag::Any,
            (_, true) => CopiedFlag::Set,
            (_, false) => CopiedFlag::Clear,
        };
        Payment {
            weight: self.item.weight(),
            identity,
            flag,
        }
    }
}

impl Entries for Payer<'_, '_> {
    fn run(&mut self, run: Run) {
        let geometry = self.visitor.rules.geometry;
        self.run.add_run(
            geometry.offset_of(run.clusters.start).0,
            run.clusters.count,
            geometry.cluster_bytes(),
        );
        let payment = self.payment(Identity::Guest(run.guest_cluster), run.copied);
        self.visitor.has_unflagged |= payment.flag == CopiedFlag::Clear;
        self.visitor.ledger.pay_run(run.clusters, payment);
        self.last = self.last.max(run.clusters.end().saturating_sub(1));
    }

    fn scattered(&mut self, chunk: &ScatteredChunk<'_>) -> bool {
        let geometry = self.visitor.rules.geometry;
        let is_copied = chunk.copied_count() == chunk.count();
        let payment = self.payment(Identity::Guest(chunk.guest_cluster), is_copied);
        if payment.weight != 1 || payment.flag == CopiedFlag::Clear {
            return false;
        }
        let mut clusters = [HostCluster(0); CHUNK];
        let mut beyond = 0;
        for (cluster, &word) in clusters.iter_mut().zip(chunk.words) {
            *cluster = geometry.cluster_at(L2Entry(word).standard_offset());
            // Below zero where it is the furthest by now, as is rare.
            beyond |= self.last.wrapping_sub(cluster.0);
        }
        if beyond >> 63 != 0 {
            let furthest = clusters.iter().max_by_key(|cluster| cluster.0);
            self.last = furthest.map_or(0, |cluster| cluster.0);
        }
        self.visitor.ledger.pay_scattered(&clusters, payment);
        self.run.add_scattered(chunk, geometry.cluster_bytes());
        true
    }

    fn compressed_chunk(&mut self, chunk: &CompressedChunk<'_>) -> bool {
        for run in chunk.runs() {
            self.run.add_compressed(run.count());
            let extents = run.extents();
            self.visitor.extents.push_run(extents, run.guest_cluster);
            let last = run.for_each_cluster(|cluster, count| self.compressed.add(cluster, count));
            self.last = self.last.max(last.0);
        }
        true
    }

    fn compressed(&mut self, entry: CompressedEntry) {
        self.run.add_compressed(1);
        self.pay_for_extent(entry.extent, entry.guest_cluster, entry.clusters);
    }

    fn other(&mut self, mapped: Mapped) {
        let geometry = self.visitor.rules.geometry;
        self.run.add(&mapped, geometry.cluster_bytes());
        match mapped.target {
            Target::Standard {
                cluster: Ok(cluster),
                copied,
                ..
            } => {
                let payment = self.payment(Identity::Guest(mapped.guest_cluster), copied);
                self.visitor.has_unflagged |= payment.flag == CopiedFlag::Clear;
                self.visitor.ledger.pay(cluster, payment);
                self.last = self.last.max(cluster.0);
            }
            Target::Standard {
                cluster: Err(Refusal::PastEnd),
                offset,
                ..
            } => {
                let cluster = geometry.cluster_at(offset);
                note_lost(self.visitor.ledger, cluster, self.visitor.truncated);
            }
            Target::Compressed { extent, clusters } => {
                if let Ok(clusters) = clusters {
                    self.pay_for_extent(extent, mapped.guest_cluster, clusters);
                }
                let first = geometry.cluster_at(extent.offset).0;
                let end = geometry.clusters_for(extent.end().0);
                for cluster in first.max(geometry.file_clusters())..end {
                    note_lost(
                        self.visitor.ledger,
                        HostCluster(cluster),
                        self.visitor.truncated,
                    );
                }
            }
            Target::Standard { .. } | Target::External { .. } => {}
        }
    }
}

impl Visitor<'_> {
    fn pay_for_table(&mut self, item: &L2Item) {
        let active = item.trees.active;
        let flag = if active == 0 {
            CopiedFlag::Any
        } else if item.active_copied == active {
            CopiedFlag::Set
        } else {
            CopiedFlag::Clear
        };
        let payment = Payment {
            weight: item.weight(),
            flag,
            ..STRUCTURE
        };
        self.has_unflagged |= payment.flag == CopiedFlag::Clear;
        self.ledger.pay(item.cluster, payment);
        let is_mixed = item.active_copied != 0 && item.active_copied != active;
        if is_mixed || item.is_shared_across_ranges {
            self.ledger.suspect(item.cluster);
        }
    }
}

/// A cluster past the end of the file that is both referred to and counted, within reason, was there once.
fn note_lost(ledger: &Directory<'_>, cluster: HostCluster, truncated: &AtomicU64) {
    if ledger.forgive(cluster) {
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
        match mapped.target {
            Target::Compressed { .. } => self.add_compressed(1),
            Target::Standard { offset, .. } | Target::External { offset } => {
                self.add_run(offset.0, 1, cluster_bytes);
            }
        }
    }

    fn add_compressed(&mut self, count: u64) {
        self.allocated += count;
        self.compressed += count;
        self.fragmented += count;
    }

    fn add_run(&mut self, offset: u64, count: u64, cluster_bytes: u64) {
        self.allocated += count;
        let follows = self
            .expected_offset
            .is_none_or(|expected| expected == offset);
        self.fragmented += u64::from(!follows);
        self.expected_offset = Some(offset.saturating_add(count * cluster_bytes));
    }

    fn add_scattered(&mut self, chunk: &ScatteredChunk<'_>, cluster_bytes: u64) {
        self.add_run(chunk.first_offset().0, 1, cluster_bytes);
        let others = chunk.count().saturating_sub(1);
        self.allocated += others;
        self.fragmented += others - chunk.following_count(cluster_bytes);
        self.expected_offset = Some(chunk.last_offset().0.saturating_add(cluster_bytes));
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
