//! Compressed extents: do any two of them overlap within the clusters they share?
//!
//! Comes in: extents in the order of their tables. Goes out: findings for pairs of guest clusters whose data overlaps.
//! Never here: decompressing.
//!
//! An extent is counted in whole sectors, and the next one may begin in the sector it ends in. So an extent may only
//! begin at or after the last sector of the one before it. Extents that follow one another in a table, as writers
//! leave them, are kept as one run, so that only the runs have to be sorted.

use std::mem;

use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding};
use crate::qcow2::{CompressedExtent, Geometry, HostOffset, Place, SECTOR_BYTES};
use crate::walk::Notes;

/// Runs kept in one image; beyond, overlaps are not looked for, and the coverage says so.
const MAX_RUNS: usize = 1 << 24;

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

/// The extents of a group of tables.
#[derive(Clone, Debug)]
pub(super) struct Extents {
    runs: Vec<Run>,
    /// Tables of different snapshots repeat each other's extents, so each extent stays a run of its own.
    is_shared: bool,
}

impl Extents {
    pub(super) fn new(is_shared: bool) -> Self {
        Self {
            runs: Vec::new(),
            is_shared,
        }
    }

    #[inline]
    pub(super) fn push(&mut self, extent: CompressedExtent, guest_cluster: u64) {
        let start = extent.offset.0;
        let last_sector = extent.last_sector_offset().0;
        if let Some(run) = self.runs.last_mut()
            && !self.is_shared
            && run.is_followed_by(start, guest_cluster)
        {
            run.last_sector = last_sector;
            run.last_start = start;
            run.count += 1;
            return;
        }
        self.runs.push(Run {
            start,
            last_sector,
            guest_cluster,
            count: 1,
            last_start: start,
        });
    }
}

impl Run {
    /// Whether an extent begins where this run may be followed, with nothing between them.
    fn is_followed_by(&self, start: u64, guest_cluster: u64) -> bool {
        // An offset before the last sector wraps around, to a distance no two extents have.
        start > self.last_start
            && start.wrapping_sub(self.last_sector) <= SECTOR_BYTES
            && self.guest_cluster.wrapping_add(self.count) == guest_cluster
    }
}

/// Looks for overlaps among the extents of all groups.
pub(super) fn judge_extents(geometry: Geometry, groups: Vec<Extents>, notes: &mut Notes) {
    let total: usize = groups.iter().map(|group| group.runs.len()).sum();
    if total > MAX_RUNS {
        notes.gap(Gap {
            place: Place::File,
            kind: GapKind::WorkLimit,
            detail: format!("{total} runs of compressed data are too many to look for overlaps"),
        });
        return;
    }
    let mut runs: Vec<Run> = groups
        .into_iter()
        .flat_map(|mut group| mem::take(&mut group.runs))
        .collect();
    runs.sort_unstable();
    // The same extent for the same guest cluster is a snapshot's share in it.
    runs.dedup();
    let mut widest: Option<Run> = None;
    for run in runs {
        if let Some(before) = widest
            && (run.start < before.last_sector || run.start == before.last_start)
        {
            notes.push(overlap(geometry, before, run));
        }
        if widest.is_none_or(|before| run.last_sector >= before.last_sector) {
            widest = Some(run);
        }
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

    fn geometry() -> Geometry {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        let header = Header::decode(&bytes).expect("a header");
        Geometry::new(&header, 1 << 40).expect("cluster_bits in range")
    }

    /// Overlaps among extents given as (first byte, sectors, guest cluster).
    fn overlaps(extents: &[(u64, u64, u64)], is_shared: bool) -> u64 {
        let mut group = Extents::new(is_shared);
        for &(offset, sectors, guest_cluster) in extents {
            let offset = HostOffset(offset);
            group.push(CompressedExtent { offset, sectors }, guest_cluster);
        }
        let mut notes = Notes::default();
        judge_extents(geometry(), vec![group], &mut notes);
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
    fn same_extent_is_shared_only_for_the_same_guest_cluster() {
        assert_eq!(overlaps(&[(100, 1, 7), (100, 1, 7)], true), 0);
        assert_eq!(overlaps(&[(100, 1, 7), (100, 1, 8)], false), 1);
        assert_eq!(overlaps(&[(0, 2, 6), (600, 1, 7), (600, 1, 8)], false), 1);
    }

    #[test]
    fn runs_swallow_extents_that_follow_one_another() {
        let mut group = Extents::new(false);
        for guest_cluster in 0..1000 {
            let offset = HostOffset(guest_cluster * 700);
            group.push(CompressedExtent { offset, sectors: 2 }, guest_cluster);
        }
        assert!(group.runs.len() < 700, "{} runs", group.runs.len());
    }
}
