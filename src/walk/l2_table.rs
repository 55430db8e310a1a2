//! L2 tables.
//!
//! Checks: each entry's reserved bits, alignment, range and flags by themselves (`judge`). Collects: what each entry
//! maps, with ordinary entries that follow one another as runs. Never here: a refcount, another table.

mod chunk;
mod compressed;
mod judge;
mod scattered;

pub(crate) use self::chunk::CHUNK;
use self::chunk::{Chunk, Entry, bits_of, for_each_chunk};
pub(crate) use self::compressed::{CompressedChunk, is_followed};
use self::scattered::Ordinary;
pub(crate) use self::scattered::ScatteredChunk;
use super::batch::Table;
use super::{L2Item, Notes, Walk};
use crate::qcow2::{
    ClusterRange, CompressedExtent, Geometry, HostCluster, HostOffset, L2Descriptor, L2Entry,
    Place, Refusal,
};

impl Table for L2Item {
    fn cluster(&self) -> HostCluster {
        self.cluster
    }

    fn place(&self) -> Place {
        Place::L2Table {
            cluster: self.cluster,
        }
    }
}

/// What of the header an entry is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) geometry: Geometry,
    version: u32,
    has_data_file: bool,
    /// Bits that are clear in an ordinary entry: all but COPIED and an aligned offset.
    odd_bits: u64,
    virtual_clusters: u64,
    data_file_bytes: Option<u64>,
    /// Every L1 table was read: a table that only snapshots name is no table of the active mapping.
    pub(crate) are_all_users_known: bool,
}

/// What an entry maps its guest cluster to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A host cluster of its own, or why it cannot be that.
    Standard {
        offset: HostOffset,
        cluster: Result<HostCluster, Refusal>,
        copied: bool,
    },
    /// A cluster of the external data file, which has no refcounts.
    External { offset: HostOffset },
    /// Part of the clusters an extent touches, or why it cannot be that.
    Compressed {
        extent: CompressedExtent,
        clusters: Result<ClusterRange, Refusal>,
    },
}

/// An entry that maps something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    pub(crate) index: u64,
    pub(crate) guest_cluster: u64,
    pub(crate) target: Target,
}

/// Ordinary entries that follow one another: each next guest cluster in the next host cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Of the first entry.
    pub(crate) index: u64,
    /// Of the first entry.
    pub(crate) guest_cluster: u64,
    pub(crate) clusters: ClusterRange,
    pub(crate) copied: bool,
}

/// A descriptor of compressed data in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompressedEntry {
    pub(crate) index: u64,
    pub(crate) guest_cluster: u64,
    pub(crate) extent: CompressedExtent,
    /// The clusters it touches.
    pub(crate) clusters: ClusterRange,
}

/// What is told of a table's entries that map something.
pub(crate) trait Entries {
    /// Standard descriptors, in which nothing is wrong by itself.
    fn run(&mut self, run: Run);
    /// Descriptors of compressed data in which nothing is wrong by themselves; `false` if they are to be told one by one.
    fn compressed_chunk(&mut self, _chunk: &CompressedChunk<'_>) -> bool {
        false
    }
    /// A descriptor of compressed data in which nothing is wrong by itself.
    fn compressed(&mut self, entry: CompressedEntry);
    /// Any other entry.
    fn other(&mut self, mapped: Mapped);
    /// Runs that are mostly of one entry each, or empty entries; `false` if they are to be told one by one.
    fn scattered(&mut self, _chunk: &ScatteredChunk<'_>) -> bool {
        false
    }
}

/// Tells runs entry by entry.
struct OneByOne<F> {
    geometry: Geometry,
    each: F,
}

impl<F: FnMut(Mapped)> Entries for OneByOne<F> {
    fn run(&mut self, run: Run) {
        for (offset, cluster) in (0..).zip(run.clusters.clusters()) {
            (self.each)(Mapped {
                index: run.index + offset,
                guest_cluster: run.guest_cluster.saturating_add(offset),
                target: Target::Standard {
                    offset: self.geometry.offset_of(cluster),
                    cluster: Ok(cluster),
                    copied: run.copied,
                },
            });
        }
    }

    fn compressed(&mut self, entry: CompressedEntry) {
        (self.each)(Mapped {
            index: entry.index,
            guest_cluster: entry.guest_cluster,
            target: Target::Compressed {
                extent: entry.extent,
                clusters: Ok(entry.clusters),
            },
        });
    }

    fn other(&mut self, mapped: Mapped) {
        (self.each)(mapped);
    }
}

/// Tells only of standard clusters of the file, in runs.
struct StandardRuns<F>(F);

impl<F: FnMut(Run)> Entries for StandardRuns<F> {
    fn run(&mut self, run: Run) {
        (self.0)(run);
    }

    fn compressed(&mut self, _entry: CompressedEntry) {}

    fn compressed_chunk(&mut self, _chunk: &CompressedChunk<'_>) -> bool {
        true
    }

    fn other(&mut self, mapped: Mapped) {
        if let Target::Standard {
            cluster: Ok(cluster),
            copied,
            ..
        } = mapped.target
        {
            (self.0)(Run {
                index: mapped.index,
                guest_cluster: mapped.guest_cluster,
                clusters: ClusterRange::one(cluster),
                copied,
            });
        }
    }
}

/// How many of a table's entries are what.
#[derive(Default)]
struct TableTally {
    used: u64,
    /// Cannot be what was meant, or have reserved bits set.
    impossible: u64,
    /// Cannot be what was meant.
    refused: u64,
}

impl TableTally {
    fn add(&mut self, entry: Entry, is_refused: bool) {
        self.refused += u64::from(is_refused);
        self.impossible += u64::from(is_refused || entry.word.reserved_bits() != 0);
    }
}

/// One table, with what every finding in it has in common.
struct TableContext<'a> {
    rules: &'a Rules,
    item: &'a L2Item,
    first_guest_cluster: u64,
    is_active: bool,
    /// Entries with nothing wrong by themselves need no further look.
    may_be_plain: bool,
}

impl Rules {
    pub(crate) fn new<S: crate::storage::Storage>(walk: Walk<'_, S>) -> Self {
        let header = walk.image.header();
        Self {
            geometry: walk.geometry,
            version: header.version,
            has_data_file: header.has_data_file(),
            odd_bits: L2Entry::odd_bits(walk.geometry),
            virtual_clusters: walk.geometry.clusters_for(header.size),
            data_file_bytes: walk.data_file_bytes,
            are_all_users_known: true,
        }
    }

    /// Calls `each` for every entry of a table that maps something, and notes what is wrong with its entries by
    /// themselves if `notes` are to be taken.
    pub(crate) fn walk_table(
        &self,
        item: &L2Item,
        bytes: &[u8],
        notes: Option<&mut Notes>,
        each: impl FnMut(Mapped),
    ) {
        self.walk_runs(
            item,
            bytes,
            notes,
            &mut OneByOne {
                geometry: self.geometry,
                each,
            },
        );
    }

    /// Calls `each` for the standard clusters of the file that a table maps, in runs.
    pub(crate) fn walk_standard(&self, item: &L2Item, bytes: &[u8], each: impl FnMut(Run)) {
        self.walk_runs(item, bytes, None, &mut StandardRuns(each));
    }

    /// As [`walk_table`](Self::walk_table), with ordinary entries that follow one another told as runs.
    pub(crate) fn walk_runs(
        &self,
        item: &L2Item,
        bytes: &[u8],
        mut notes: Option<&mut Notes>,
        entries: &mut impl Entries,
    ) {
        let context = TableContext {
            rules: self,
            item,
            first_guest_cluster: self.geometry.guest_cluster(item.l1_index, 0),
            is_active: item.trees.active > 0,
            may_be_plain: self.may_be_plain(item),
        };
        let mut tally = TableTally::default();
        for_each_chunk(self.geometry, bytes, |chunk| {
            if chunk.any == 0 {
                return;
            }
            // Nearly every chunk of nearly every image: one run, and nothing to note.
            if let Some(run) = context.whole_run(chunk) {
                tally.used += run.clusters.count;
                return entries.run(run);
            }
            if let Some(ordinary) = context.ordinary(chunk) {
                tally.used += u64::from(ordinary.used.count_ones());
                let scattered = ScatteredChunk {
                    guest_cluster: context.first_guest_cluster + chunk.index,
                    words: &chunk.words,
                    ordinary,
                };
                if !ordinary.is_scattered() || !entries.scattered(&scattered) {
                    context.tell_runs(chunk, ordinary, entries);
                }
                return;
            }
            if let Some(compressed) = context.all_compressed(chunk)
                && entries.compressed_chunk(&compressed)
            {
                tally.used += CHUNK as u64;
                return;
            }
            context.walk_chunk(chunk, notes.as_deref_mut(), entries, &mut tally);
        });
        if let Some(notes) = notes {
            context.judge_whole(&tally, notes);
        }
    }

    /// Whether there is nothing about a table that would make all of its entries worth a look.
    fn may_be_plain(&self, item: &L2Item) -> bool {
        let first = self.geometry.guest_cluster(item.l1_index, 0);
        let is_inside = first.saturating_add(self.geometry.l2_entries()) <= self.virtual_clusters;
        is_inside && !self.has_data_file
    }

    fn target(&self, entry: Entry) -> Option<Target> {
        let copied = entry.word.copied();
        match entry.word.descriptor(self.geometry) {
            // An external data file's first cluster is at offset 0; COPIED tells it from an unallocated one.
            L2Descriptor::Unallocated if self.has_data_file && copied => Some(Target::External {
                offset: HostOffset(0),
            }),
            L2Descriptor::Unallocated | L2Descriptor::Zero { preallocated: None } => None,
            L2Descriptor::Standard(offset)
            | L2Descriptor::Zero {
                preallocated: Some(offset),
            } if self.has_data_file => Some(Target::External { offset }),
            L2Descriptor::Standard(offset)
            | L2Descriptor::Zero {
                preallocated: Some(offset),
            } => Some(Target::Standard {
                offset,
                cluster: self.geometry.admit(offset),
                copied,
            }),
            // Nothing says what these mean; they claim nothing.
            L2Descriptor::Compressed(_) if self.has_data_file || entry.bitmap.0 != 0 => None,
            L2Descriptor::Compressed(extent) => {
                let clusters = self.geometry.admit_extent(extent.offset, extent.bytes());
                let in_file = |clusters: ClusterRange| {
                    let count = self.geometry.file_clusters() - clusters.start.0;
                    ClusterRange {
                        count: clusters.count.min(count),
                        ..clusters
                    }
                };
                Some(Target::Compressed {
                    extent,
                    clusters: clusters.map(in_file),
                })
            }
        }
    }
}

impl TableContext<'_> {
    /// A chunk that is one run from its first entry to its last.
    fn whole_run(&self, chunk: &Chunk) -> Option<Run> {
        if !self.may_be_plain || chunk.has_contradiction {
            return None;
        }
        let step = self.rules.geometry.cluster_bytes();
        let [first, .., last] = chunk.words;
        // Mostly the ends tell.
        if last.wrapping_sub(first) != step * (CHUNK as u64 - 1) {
            return None;
        }
        let (mut expected, mut differences) = (first, 0);
        for &word in &chunk.words {
            differences |= word ^ expected;
            expected = expected.wrapping_add(step);
        }
        let is_run = differences == 0 && self.is_ordinary(first) && self.is_ordinary(last);
        is_run.then(|| self.run(chunk.index, first, CHUNK as u64))
    }

    /// Which entries of a chunk are what, if it is nothing but ordinary and empty ones.
    fn ordinary(&self, chunk: &Chunk) -> Option<Ordinary> {
        let is_compressed = L2Entry(chunk.words[0]).is_compressed();
        if !self.may_be_plain || chunk.has_contradiction || is_compressed {
            return None;
        }
        if self.rules.geometry.has_extended_l2() && chunk.has_bare_subclusters() {
            return None;
        }
        let step = self.rules.geometry.cluster_bytes();
        let (used, following) = chunk.used_and_following(step);
        let ordinary = Ordinary { used, following };
        let are_ordinary = if ordinary.is_scattered() {
            self.are_ordinary_or_empty(&chunk.words)
        } else {
            // What is between the ends of a run is as they are.
            let ends = used & (!following | !(following >> 1));
            bits_of(ends).all(|at| {
                chunk
                    .words
                    .get(at)
                    .is_some_and(|word| self.is_ordinary(*word))
            })
        };
        are_ordinary.then_some(ordinary)
    }

    fn are_ordinary_or_empty(&self, words: &[u64; CHUNK]) -> bool {
        let may_be_copied = if self.is_active { L2Entry::COPIED } else { 0 };
        let last = self.rules.geometry.file_bytes().min(i64::MAX as u64);
        // What vectors can gather, as they cannot compare: the highest bit of `remarks` is that of any difference below zero,
        // where an offset lies beyond the file, or is none though the entry is not empty.
        let (mut odd, mut remarks) = (0, 0);
        for &word in words {
            let offset = word & !may_be_copied;
            let is_bare = offset.wrapping_sub(1) & (word | word.wrapping_neg());
            odd |= offset;
            remarks |= last.wrapping_sub(1).wrapping_sub(offset) | is_bare;
        }
        odd & (self.rules.odd_bits | L2Entry::COPIED) == 0 && remarks >> 63 == 0
    }

    /// Tells the runs of a chunk of ordinary entries.
    fn tell_runs(&self, chunk: &Chunk, ordinary: Ordinary, entries: &mut impl Entries) {
        for at in bits_of(ordinary.used & !ordinary.following) {
            let count = 1 + u64::from((ordinary.following >> at >> 1).trailing_ones());
            if let Some(&word) = chunk.words.get(at) {
                entries.run(self.run(chunk.index + at as u64, word, count));
            }
        }
    }

    /// A chunk that is nothing but descriptors of compressed data in which nothing is wrong.
    fn all_compressed<'c>(&self, chunk: &'c Chunk) -> Option<CompressedChunk<'c>> {
        let geometry = self.rules.geometry;
        if !self.may_be_plain || geometry.has_extended_l2() {
            return None;
        }
        let guest_cluster = self.first_guest_cluster + chunk.index;
        CompressedChunk::new(geometry, guest_cluster, &chunk.words)
    }

    /// Tells the entries of any chunk: runs, other plain entries, and what is wrong with the rest.
    fn walk_chunk(
        &self,
        chunk: &Chunk,
        mut notes: Option<&mut Notes>,
        entries: &mut impl Entries,
        tally: &mut TableTally,
    ) {
        let mut at = 0;
        while let Some(entry) = chunk.entry(at) {
            if entry.word.is_plain_compressed()
                && let Some(compressed) = self.plain_compressed(entry)
            {
                at += 1;
                tally.used += 1;
                entries.compressed(compressed);
                continue;
            }
            let run = self.run_at(chunk, at);
            at += run.map_or(1, |run| run.clusters.count);
            if let Some(run) = run {
                tally.used += run.clusters.count;
                entries.run(run);
                continue;
            }
            if entry.is_empty() {
                continue;
            }
            tally.used += 1;
            if let Some(notes) = notes.as_deref_mut() {
                tally.add(entry, self.judge(entry, notes));
            }
            if let Some(target) = self.rules.target(entry) {
                entries.other(Mapped {
                    index: entry.index,
                    guest_cluster: self.guest_cluster(entry),
                    target,
                });
            }
        }
    }

    /// The run of ordinary entries that begins at one of a chunk.
    #[inline]
    fn run_at(&self, chunk: &Chunk, at: u64) -> Option<Run> {
        let step = self.rules.geometry.cluster_bytes();
        let first = chunk.entry(at)?;
        let is_ordinary =
            |entry: Entry| self.is_ordinary(entry.word.0) && !entry.has_contradiction();
        if !self.may_be_plain || !is_ordinary(first) {
            return None;
        }
        let mut expected = first.word.0;
        let mut count = 1;
        while let Some(next) = chunk.entry(at + count) {
            expected = expected.wrapping_add(step);
            if next.word.0 != expected || !is_ordinary(next) {
                break;
            }
            count += 1;
        }
        Some(self.run(first.index, first.word.0, count))
    }

    /// A descriptor of compressed data in the file, in which nothing can be wrong.
    #[inline]
    fn plain_compressed(&self, entry: Entry) -> Option<CompressedEntry> {
        if !self.may_be_plain || entry.bitmap.0 != 0 {
            return None;
        }
        let extent = entry.word.compressed_extent(self.rules.geometry)?;
        if extent.end().0 > self.rules.geometry.whole_sector_bytes() {
            return None;
        }
        Some(CompressedEntry {
            index: entry.index,
            guest_cluster: self.guest_cluster(entry),
            extent,
            clusters: self
                .rules
                .geometry
                .admit_extent(extent.offset, extent.bytes())
                .ok()?,
        })
    }

    /// A standard descriptor of an aligned cluster of the file, in which nothing can be wrong.
    fn is_ordinary(&self, word: u64) -> bool {
        let entry = L2Entry(word);
        let offset = entry.standard_offset().0;
        word & self.rules.odd_bits == 0
            && offset != 0
            && offset < self.rules.geometry.file_bytes()
            // COPIED has no business in a table that is not active.
            && (self.is_active || !entry.copied())
    }

    fn run(&self, index: u64, first: u64, count: u64) -> Run {
        let first = L2Entry(first);
        Run {
            index,
            guest_cluster: self.first_guest_cluster.saturating_add(index),
            clusters: ClusterRange {
                start: self.rules.geometry.cluster_at(first.standard_offset()),
                count,
            },
            copied: first.copied(),
        }
    }
}
