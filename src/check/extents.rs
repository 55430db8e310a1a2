//! Compressed extents: do any two of them overlap within the clusters they share?
//!
//! Comes in: extents in the order of their tables. Goes out: findings for pairs of guest clusters whose data overlaps.
//! Never here: decompressing.
//!
//! An extent is counted in whole sectors, and the next one may begin in the sector it ends in. So an extent may only
//! begin at or after the last sector of the one before it. Extents that follow one another in a table, as writers
//! leave them, are kept as one run, so that only the runs have to be sorted. Where a run reaches into another, both may be
//! sound: a small extent fits in the sector that two others share. There the tables are read once more, for the extents.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding};
use crate::progress::Phase;
use crate::qcow2::{CompressedExtent, Geometry, HostOffset, Place, SECTOR_BYTES};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{Rules, Target, is_followed};
use crate::walk::{L2Item, Notes, Survey, Walk};

/// Runs kept in one image; beyond, overlaps are not looked for, and the coverage says so.
const MAX_RUNS: usize = 1 << 24;

/// Runs of a group after which the others are told of them.
const TOLD_TOGETHER: usize = 1 << 12;

/// Extents of consecutive guest clusters that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    /// First byte.
    start: u64,
    /// First byte of the last sector.
    last_sector: u64,
    /// Guest cluster of the first extent.
    guest_cluster: u64,
    /// How many guest clusters.
    count: u64,
    /// First byte of the last extent.
    last_start: u64,
}

/// How many runs all groups together keep; once they are too many, a group that goes on keeps no more than [`TOLD_TOGETHER`], and one.
#[derive(Clone, Debug, Default)]
pub(super) struct RunsKept(Arc<AtomicUsize>);

impl RunsKept {
    fn are_too_many(&self) -> bool {
        self.0.load(Relaxed) > MAX_RUNS
    }
}

/// The extents of a group of tables.
#[derive(Clone, Debug)]
pub(super) struct Extents {
    runs: Vec<Run>,
    /// How many runs there were, kept or not.
    total: usize,
    /// How many of them `all_kept` has been told of.
    told: usize,
    all_kept: RunsKept,
    /// Tables of different snapshots repeat each other's extents, so each extent stays a run of its own.
    is_shared: bool,
}

impl Extents {
    pub(super) fn new(is_shared: bool, all_kept: &RunsKept) -> Self {
        Self {
            runs: Vec::new(),
            total: 0,
            told: 0,
            all_kept: all_kept.clone(),
            is_shared,
        }
    }

    pub(super) fn push(&mut self, extent: CompressedExtent, guest_cluster: u64) {
        self.append(Run::one(extent, guest_cluster));
    }

    /// Extents that follow one another, of guest clusters from this one on.
    pub(super) fn push_run(
        &mut self,
        mut extents: impl ExactSizeIterator<Item = CompressedExtent> + DoubleEndedIterator,
        guest_cluster: u64,
    ) {
        let count = extents.len() as u64;
        if self.is_shared {
            for (guest_cluster, extent) in (guest_cluster..).zip(extents) {
                self.push(extent, guest_cluster);
            }
        } else if let Some(first) = extents.next() {
            let last = extents.next_back().unwrap_or(first);
            self.append(Run {
                count,
                last_sector: last.last_sector_offset().0,
                last_start: last.offset.0,
                ..Run::one(first, guest_cluster)
            });
        }
    }

    fn append(&mut self, run: Run) {
        if let Some(last) = self.runs.last_mut()
            && !self.is_shared
            && last.is_followed_by(run)
        {
            last.last_sector = run.last_sector;
            last.last_start = run.last_start;
            last.count += run.count;
            return;
        }
        if self.total - self.told >= TOLD_TOGETHER {
            self.tell();
        }
        self.total += 1;
        self.runs.push(run);
    }

    /// Tells the other groups of its runs; where all have too many, they are dropped but for the last, which the next one
    /// may go on from.
    #[cold]
    fn tell(&mut self) {
        self.all_kept.0.fetch_add(self.total - self.told, Relaxed);
        self.told = self.total;
        if self.all_kept.are_too_many() {
            self.runs = self.runs.pop().into_iter().collect();
        }
    }
}

impl Run {
    fn one(extent: CompressedExtent, guest_cluster: u64) -> Self {
        Self {
            start: extent.offset.0,
            last_sector: extent.last_sector_offset().0,
            guest_cluster,
            count: 1,
            last_start: extent.offset.0,
        }
    }

    /// Whether another run begins where this one may be followed, with nothing between them.
    fn is_followed_by(&self, next: Self) -> bool {
        is_followed(self.last_start, self.last_sector, next.start)
            && self.guest_cluster.wrapping_add(self.count) == next.guest_cluster
    }
}

/// Looks for overlaps among the extents of all groups.
pub(super) fn judge_extents<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    groups: Vec<Extents>,
    notes: &mut Notes,
) {
    let runs = sorted(groups, notes);
    let windows = windows(&runs);
    drop(runs);
    if windows.is_empty() {
        return;
    }
    let rules = Rules::new(walk);
    let total_bytes = survey.l2_tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Tables, total_bytes);
    let runs_kept = RunsKept::default();
    let visitors = read_tables(walk, &survey.l2_tables, || Visitor {
        rules: &rules,
        windows: &windows,
        extents: Extents::new(true, &runs_kept),
        gap: None,
    });
    let mut extents = Vec::new();
    for visitor in visitors {
        notes.coverage.push_new_failure(visitor.gap);
        extents.push(visitor.extents);
    }
    judge_exactly(walk.geometry, &sorted(extents, notes), notes);
}

/// Keeps the extents of tables that touch a window.
struct Visitor<'a> {
    rules: &'a Rules,
    windows: &'a [Range<u64>],
    extents: Extents,
    gap: Option<Gap>,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        self.rules.walk_table(item, bytes, None, |mapped| {
            if let Target::Compressed {
                extent,
                clusters: Ok(_),
            } = mapped.target
                && is_in_window(self.windows, extent)
            {
                self.extents.push(extent, mapped.guest_cluster);
            }
        });
    }

    fn miss(&mut self, _item: &L2Item, gap: Gap) {
        self.gap = Some(gap);
    }
}

fn is_in_window(windows: &[Range<u64>], extent: CompressedExtent) -> bool {
    let next = windows.partition_point(|window| window.end <= extent.offset.0);
    windows
        .get(next)
        .is_some_and(|window| window.start < extent.end().0)
}

/// Where a run begins before another is over: the bytes that both cover, or that lie between their extents.
fn windows(runs: &[Run]) -> Vec<Range<u64>> {
    let mut windows: Vec<Range<u64>> = Vec::new();
    let (mut last_touched, mut end) = (None, 0);
    for run in runs {
        let run_end = run.last_sector.saturating_add(SECTOR_BYTES);
        if last_touched >= Some(run.start) {
            let window = run.start & !(SECTOR_BYTES - 1)..run_end.min(end);
            match windows.last_mut().filter(|last| window.start <= last.end) {
                Some(last) => last.end = last.end.max(window.end),
                None => windows.push(window),
            }
        }
        let touched = run.last_start.max(run.last_sector.saturating_sub(1));
        last_touched = last_touched.max(Some(touched));
        end = end.max(run_end);
    }
    windows
}

/// The runs of all groups in the order of the file; none where they are too many.
fn sorted(groups: Vec<Extents>, notes: &mut Notes) -> Vec<Run> {
    let total: usize = groups.iter().map(|group| group.total).sum();
    if total > MAX_RUNS {
        notes.gap(Gap {
            place: Place::File,
            kind: GapKind::WorkLimit,
            detail: format!("{total} runs of compressed data are too many to look for overlaps"),
        });
        return Vec::new();
    }
    let mut runs: Vec<Run> = groups
        .into_iter()
        .flat_map(|mut group| mem::take(&mut group.runs))
        .collect();
    runs.sort_unstable();
    // The same extent for the same guest cluster is a snapshot's share in it.
    runs.dedup();
    runs
}

/// Looks for overlaps among runs of one extent each.
fn judge_exactly(geometry: Geometry, extents: &[Run], notes: &mut Notes) {
    let mut widest: Option<Run> = None;
    let mut previous: Option<Run> = None;
    for &extent in extents {
        let reaches_in = widest.filter(|before| extent.start < before.last_sector);
        let same = previous.filter(|before| extent.start == before.start);
        if let Some(before) = reaches_in.or(same) {
            notes.push(overlap(geometry, before, extent));
        }
        if widest.is_none_or(|before| extent.last_sector >= before.last_sector) {
            widest = Some(extent);
        }
        previous = Some(extent);
    }
}

fn overlap(geometry: Geometry, before: Run, run: Run) -> Finding {
    let other = geometry.guest_range(before.guest_cluster, before.count);
    Finding::new(
        Code::CompressedExtentOverlap,
        Place::CompressedExtent {
            offset: HostOffset(run.start),
        },
    )
    .guest(geometry.guest_range(run.guest_cluster, run.count))
    .detail(format!(
        "it overlaps compressed data at {:#x} of guest {other}",
        before.start
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::Header;

    const ONE_SECTOR: CompressedExtent = CompressedExtent {
        offset: HostOffset(512),
        sectors: 1,
    };

    fn geometry() -> Geometry {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        let header = Header::decode(&bytes).expect("a header");
        Geometry::new(&header, 1 << 40).expect("cluster_bits in range")
    }

    /// Overlaps among extents given as (first byte, sectors, guest cluster).
    fn overlaps(extents: &[(u64, u64, u64)], is_shared: bool) -> u64 {
        let mut group = Extents::new(is_shared, &RunsKept::default());
        for &(offset, sectors, guest_cluster) in extents {
            let offset = HostOffset(offset);
            group.push(CompressedExtent { offset, sectors }, guest_cluster);
        }
        let mut notes = Notes::default();
        let runs = sorted(vec![group], &mut notes);
        // As the second look finds them.
        let windows = windows(&runs);
        let mut exact = Extents::new(true, &RunsKept::default());
        for &(offset, sectors, guest_cluster) in extents {
            let offset = HostOffset(offset);
            let extent = CompressedExtent { offset, sectors };
            if is_in_window(&windows, extent) {
                exact.push(extent, guest_cluster);
            }
        }
        judge_exactly(geometry(), &sorted(vec![exact], &mut notes), &mut notes);
        notes.findings.total_of(Code::CompressedExtentOverlap).count
    }

    #[test]
    fn extents_may_share_the_sector_one_ends_in() {
        assert_eq!(
            overlaps(&[(0, 2, 0), (600, 2, 1), (1200, 1, 2), (1300, 1, 3)], false),
            0
        );
        assert_eq!(overlaps(&[(0, 2, 0), (511, 2, 1)], false), 1);
        assert_eq!(overlaps(&[(0, 4, 0), (512, 1, 9)], false), 1);
    }

    #[test]
    fn small_extents_between_others_overlap_none_of_them() {
        assert_eq!(overlaps(&[(0, 2, 0), (700, 2, 1), (600, 1, 7)], false), 0);
        // Two runs of three extents each, one as the other.
        let small = [0, 100, 200, 0, 100, 200].map(|offset| (offset, 1));
        let guests = [0, 1, 2, 75, 76, 77];
        let twice: Vec<_> = small
            .iter()
            .zip(guests)
            .map(|(&(at, n), guest)| (at, n, guest))
            .collect();
        assert_eq!(overlaps(&twice, false), 3);
    }

    #[test]
    fn same_extent_is_shared_only_for_the_same_guest_cluster() {
        assert_eq!(overlaps(&[(100, 1, 7), (100, 1, 7)], true), 0);
        assert_eq!(overlaps(&[(100, 1, 7), (100, 1, 8)], false), 1);
        assert_eq!(overlaps(&[(0, 2, 6), (600, 1, 7), (600, 1, 8)], false), 1);
    }

    #[test]
    fn a_run_of_extents_is_kept_as_its_extents_are_one_by_one() {
        for (is_shared, count, kept) in [(false, 40, 1), (false, 1, 1), (true, 40, 80)] {
            let at = |index| CompressedExtent {
                offset: HostOffset(index * 1024),
                sectors: 2,
            };
            let mut whole = Extents::new(is_shared, &RunsKept::default());
            let mut single = Extents::new(is_shared, &RunsKept::default());
            for first in [0, count] {
                let extents: Vec<_> = (first..first + count).map(at).collect();
                whole.push_run(extents.iter().copied(), first);
                for (guest_cluster, &extent) in (first..).zip(&extents) {
                    single.push(extent, guest_cluster);
                }
            }
            assert_eq!(whole.runs, single.runs, "{is_shared}, {count}");
            assert_eq!(whole.runs.len(), kept, "{is_shared}, {count}");
        }
    }

    #[test]
    fn a_group_that_goes_on_where_all_have_too_many_runs_keeps_few() {
        let all_kept = RunsKept::default();
        let mut groups: Vec<Extents> = (0..4).map(|_| Extents::new(true, &all_kept)).collect();
        let step = MAX_RUNS / 4 + 2 * TOLD_TOGETHER;
        let kept: Vec<usize> = groups
            .iter_mut()
            .map(|group| {
                (0..step).for_each(|_| group.append(Run::one(ONE_SECTOR, 0)));
                group.runs.len()
            })
            .collect();
        assert!(kept[3] <= TOLD_TOGETHER + 1, "{kept:?} runs");
        let mut notes = Notes::default();
        assert!(sorted(groups, &mut notes).is_empty());
        assert_eq!(notes.coverage.gap_count(), 1);
    }

    #[test]
    fn runs_swallow_extents_that_follow_one_another() {
        let mut group = Extents::new(false, &RunsKept::default());
        for guest_cluster in 0..1000 {
            let offset = HostOffset(guest_cluster * 700);
            group.push(CompressedExtent { offset, sectors: 2 }, guest_cluster);
        }
        assert!(group.runs.len() < 700, "{} runs", group.runs.len());
    }
}
