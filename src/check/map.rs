//! The map of an image's host clusters: what each part of the file is used for, in a bounded number of cells.
//!
//! Comes in: an examination. Goes out: a [`HostMap`], in which each cluster of the file is counted once, as the worst that
//! it is. Never here: an L2 table read again, memory that grows with the file.
//!
//! What settled has as many references as its stored count says, so its count tells that it is used, and the survey tells
//! whether it is a structure: the rest of it is data. What did not settle is told apart by the comparison.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::claimed::for_each_claimed;
use super::compare::{Standing, for_each_standing};
use super::{Check, Examination, Options, Statistics, conclude, examine};
use crate::coverage::Gap;
use crate::finding::Code;
use crate::image::Image;
use crate::progress::{Phase, Progress};
use crate::qcow2::{Geometry, HostCluster, counts_by_64};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::{RefcountBlockItem, Survey};

/// More cells than anybody can look at.
const MAX_CELLS: u64 = 1 << 16;
/// Uses a cluster can have.
const USES: usize = 7;

/// What a host cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterUse {
    /// By several that may not share it.
    Overlap,
    /// More often than its stored count says: the next write may take it for free.
    Undercounted,
    /// Less often than its stored count says.
    Leak,
    /// Nobody can tell: its count could not be read, or a table that may refer to it.
    Unknown,
    /// By a structure of the format.
    Metadata,
    /// By the guest: data, or VM state.
    Data,
    /// By nobody.
    Free,
}

impl ClusterUse {
    /// All of them, worst first.
    pub const WORST_FIRST: [Self; USES] = [
        Self::Overlap,
        Self::Undercounted,
        Self::Leak,
        Self::Unknown,
        Self::Metadata,
        Self::Data,
        Self::Free,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::Undercounted => "undercounted",
            Self::Leak => "leak",
            Self::Unknown => "unknown",
            Self::Metadata => "metadata",
            Self::Data => "data",
            Self::Free => "free",
        }
    }

    /// Whether something is wrong, or may be.
    pub fn is_wrong(self) -> bool {
        self <= Self::Unknown
    }
}

/// Consecutive clusters, counted by what they are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapCell {
    counts: [u64; USES],
}

impl MapCell {
    /// Clusters that are used so.
    pub fn count(&self, used: ClusterUse) -> u64 {
        self.counts.get(used as usize).copied().unwrap_or(0)
    }

    /// The worst that is in it; `Free` where nothing is.
    pub fn worst(&self) -> ClusterUse {
        let mut uses = ClusterUse::WORST_FIRST.into_iter();
        uses.find(|used| self.count(*used) > 0)
            .unwrap_or(ClusterUse::Free)
    }

    /// Takes the clusters of another cell in.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }

    fn note(&mut self, used: ClusterUse, clusters: u64) {
        if let Some(count) = self.counts.get_mut(used as usize) {
            *count += clusters;
        }
    }

    /// Takes clusters out, as far as there are any.
    fn take(&mut self, used: ClusterUse, clusters: u64) {
        if let Some(count) = self.counts.get_mut(used as usize) {
            *count = count.saturating_sub(clusters);
        }
    }
}

/// What the clusters of an image file are used for, from its first to its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMap {
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Clusters of the file; a last one that is only partly there counts.
    pub file_clusters: u64,
    /// Clusters of each cell, a power of two; the last cell may have fewer.
    pub cell_clusters: u64,
    /// The cells, in the order of the file.
    pub cells: Vec<MapCell>,
}

impl HostMap {
    /// All cells together.
    pub fn total(&self) -> MapCell {
        let mut total = MapCell::default();
        for cell in &self.cells {
            total.add(cell);
        }
        total
    }

    fn empty(geometry: Geometry, max_cells: u64) -> Self {
        let file_clusters = geometry.file_clusters();
        let max_cells = max_cells.clamp(1, MAX_CELLS);
        let cell_clusters = file_clusters.div_ceil(max_cells).max(1).next_power_of_two();
        let cells = file_clusters.div_ceil(cell_clusters);
        Self {
            cluster_bytes: geometry.cluster_bytes(),
            file_clusters,
            cell_clusters,
            cells: vec![MapCell::default(); usize::try_from(cells).unwrap_or(0)],
        }
    }

    /// The cell of a cluster; none for one past the end of the file.
    fn cell(&mut self, cluster: HostCluster) -> Option<&mut MapCell> {
        if cluster.0 >= self.file_clusters {
            return None;
        }
        let index = usize::try_from(cluster.0 / self.cell_clusters).ok()?;
        self.cells.get_mut(index)
    }
}

/// Checks an image, and draws a map of at most `max_cells` cells; there is none without a cluster size, and none of a check
/// that was stopped.
pub fn check_and_map<S: Storage>(
    image: &Image<S>,
    options: Options,
    max_cells: u64,
    progress: &Progress,
) -> (Check, Option<HostMap>) {
    match examine(image, options, progress) {
        Ok(examination) => {
            let map = draw(&examination, max_cells);
            let check = examination.conclude();
            let is_stopped = check.coverage.is_stopped() || progress.is_stopped();
            (check, Some(map).filter(|_| !is_stopped))
        }
        Err(notes) => {
            let (survey, statistics) = (Survey::default(), Statistics::default());
            (conclude(image, *notes, survey, statistics), None)
        }
    }
}

fn draw<S: Storage>(examination: &Examination<'_, S>, max_cells: u64) -> HostMap {
    let mut map = HostMap::empty(examination.walk.geometry, max_cells);
    note_counted(examination, &mut map);
    note_unknown(examination, &mut map);
    note_metadata(examination, &mut map);
    note_unsettled(examination, &mut map);
    let (file_clusters, cell_clusters) = (map.file_clusters, map.cell_clusters);
    let starts = (0..file_clusters).step_by(usize::try_from(cell_clusters).unwrap_or(usize::MAX));
    for (start, cell) in starts.zip(&mut map.cells) {
        let clusters = cell_clusters.min(file_clusters - start);
        let used: u64 = cell.counts.iter().sum();
        cell.note(ClusterUse::Free, clusters.saturating_sub(used));
    }
    map
}

/// Everything that has a stored count is data at first.
fn note_counted<S: Storage>(examination: &Examination<'_, S>, map: &mut HostMap) {
    let walk = examination.walk;
    let survey = &examination.survey;
    let mut blocks = survey.refcount_blocks.clone();
    blocks.retain(|block| !survey.unknown_counts.blocks.contains(&block.index));
    blocks.sort_by_key(|block| (block.cluster, block.index));
    let total_bytes = blocks.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Refcounts, total_bytes);
    let counted: Vec<AtomicU64> = map.cells.iter().map(|_| AtomicU64::new(0)).collect();
    let (cell_clusters, file_clusters) = (map.cell_clusters, map.file_clusters);
    let _visitors = read_tables(walk, &blocks, || Visitor {
        geometry: walk.geometry,
        counted: &counted,
        cell_clusters,
        file_clusters,
    });
    for (cell, counted) in map.cells.iter_mut().zip(counted) {
        cell.note(ClusterUse::Data, counted.into_inner());
    }
}

struct Visitor<'a> {
    geometry: Geometry,
    counted: &'a [AtomicU64],
    cell_clusters: u64,
    file_clusters: u64,
}

impl GroupVisitor<RefcountBlockItem> for Visitor<'_> {
    fn visit(&mut self, block: &RefcountBlockItem, bytes: &[u8]) {
        let first = block
            .index
            .saturating_mul(self.geometry.refcount_block_entries());
        let counts = counts_by_64(bytes, self.geometry.refcount_order());
        let in_file = self.file_clusters.saturating_sub(first).div_ceil(64);
        let counts = counts.take(usize::try_from(in_file).unwrap_or(usize::MAX));
        for (start, counts) in (first..).step_by(64).zip(counts) {
            self.add(start, counts.used);
        }
    }

    fn miss(&mut self, _block: &RefcountBlockItem, _gap: Gap) {
        // The check could read it. Now its clusters look free: a disk that fails from one moment to the next.
    }
}

impl Visitor<'_> {
    /// Counts the clusters from `start` on whose bits are set.
    fn add(&self, start: u64, mut used: u64) {
        if used == u64::MAX && self.cell_clusters >= 64 && start + 64 <= self.file_clusters {
            self.add_to_cell(start, 64);
            return;
        }
        while used != 0 {
            let cluster = start + u64::from(used.trailing_zeros());
            if cluster < self.file_clusters {
                self.add_to_cell(cluster, 1);
            }
            used &= used - 1;
        }
    }

    fn add_to_cell(&self, cluster: u64, clusters: u64) {
        let index = usize::try_from(cluster / self.cell_clusters);
        if let Some(cell) = index.ok().and_then(|index| self.counted.get(index)) {
            cell.fetch_add(clusters, Relaxed);
        }
    }
}

/// Where counts could not be read, nothing is known at first.
fn note_unknown<S: Storage>(examination: &Examination<'_, S>, map: &mut HostMap) {
    let unknown = &examination.survey.unknown_counts;
    let file_clusters = map.file_clusters;
    let mut note = |start: u64, end: u64| {
        let mut start = start;
        while start < end {
            let next = (start / map.cell_clusters + 1) * map.cell_clusters;
            let clusters = next.min(end) - start;
            if let Some(cell) = map.cell(HostCluster(start)) {
                cell.note(ClusterUse::Unknown, clusters);
            }
            start = next;
        }
    };
    if unknown.all {
        note(0, file_clusters);
        return;
    }
    let per_block = examination.walk.geometry.refcount_block_entries();
    for block in &unknown.blocks {
        let start = block.saturating_mul(per_block).min(file_clusters);
        note(start, start.saturating_add(per_block).min(file_clusters));
    }
}

/// Structures that settled are not data.
fn note_metadata<S: Storage>(examination: &Examination<'_, S>, map: &mut HostMap) {
    let survey = &examination.survey;
    let mut note = |cluster| {
        if examination.ledger.is_settled(cluster)
            && let Some(cell) = map.cell(cluster)
        {
            cell.take(ClusterUse::Data, 1);
            cell.note(ClusterUse::Metadata, 1);
        }
    };
    // There is no map of a check that was stopped.
    let _gap = for_each_claimed(survey, examination.walk.progress, |clusters, _| {
        clusters.clusters().for_each(&mut note);
    });
    let tables = survey.l2_tables.iter().map(|item| item.cluster);
    tables.for_each(note);
}

/// What did not settle is what the comparison says.
fn note_unsettled<S: Storage>(examination: &Examination<'_, S>, map: &mut HostMap) {
    for_each_standing(examination, |standing| {
        let mut rest = standing.clusters;
        while rest.count > 0 {
            let in_cell = map.cell_clusters - rest.start.0 % map.cell_clusters;
            let count = rest.count.min(in_cell);
            if let Some(cell) = map.cell(rest.start) {
                match standing.stored {
                    None => cell.take(ClusterUse::Unknown, count),
                    Some(0) => {}
                    Some(_) => cell.take(ClusterUse::Data, count),
                }
                cell.note(use_of(standing), count);
            }
            rest.start.0 += count;
            rest.count -= count;
        }
    });
}

fn use_of(standing: Standing) -> ClusterUse {
    let Standing {
        expected,
        is_metadata,
        codes,
        ..
    } = standing;
    match codes {
        [Some(_), _] => ClusterUse::Overlap,
        [_, Some(Code::RefcountLeak)] => ClusterUse::Leak,
        [_, Some(_)] => ClusterUse::Undercounted,
        [None, None] if expected == 0 => ClusterUse::Unknown,
        [None, None] if standing.stored > Some(expected) => ClusterUse::Unknown,
        [None, None] if is_metadata => ClusterUse::Metadata,
        [None, None] => ClusterUse::Data,
    }
}
