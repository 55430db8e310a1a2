//! Every compressed cluster, unpacked and thrown away.
//!
//! Comes in: the L2 tables. Goes out: a finding for each guest range that does not unpack. Never here: an extent twice
//! because several mappings name it; more entries at once than a fixed number: the tables are read again for the next;
//! more work than the bytes that are really there give reason for ([`Budget`]).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::decompress::{Defect, Unpacker};
use super::gather;
use super::spans::Spans;
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding};
use crate::image::Image;
use crate::progress::{Phase, Progress};
use crate::qcow2::{
    ClusterRange, CompressedExtent, CompressionType, Geometry, HostCluster, Place, SECTOR_BYTES,
};
use crate::storage::Storage;
use crate::walk::l2_table::Target;
use crate::walk::{L2Item, Notes, Survey, Walk};

/// Entries that are kept at once, in bytes of the disk's order: 28 MiB.
const KEPT_ENTRIES: usize = 1 << 19;
/// Entries a thread collects before it hands them over.
const HANDED_OVER: usize = 4096;
/// Extents one thread unpacks at a time.
const EXTENTS_AT_ONCE: usize = 16;
/// Extents, and their bytes, after which the work is added up.
const ROUND_EXTENTS: usize = 1024;
const ROUND_BYTES: u64 = 64 << 20;
/// Work that is always allowed.
const FREE_BYTES: u64 = 1 << 20;

/// An entry with compressed data; they order as the data lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    extent: CompressedExtent,
    guest_cluster: u64,
    table: HostCluster,
    index: u64,
    /// L1 entries that name its table.
    weight: u64,
}

/// How much work there may be.
///
/// Writers put extents one behind the other, so that an honest image has no more bytes to unpack than it stores. Entries
/// are smaller than what they can name: a few megabytes of them may name the same bytes over and over, from another first
/// byte each time. What is unpacked may be twice what is stored where the entries point, and a little; what goes beyond is
/// a gap of the coverage. The work is added up after each round, so the same is left out with any number of threads.
struct Budget {
    stored_bytes: u64,
    /// Bytes behind the last one that was named so far.
    end: u64,
    /// Bytes that were named so far, each counted once.
    named_bytes: u64,
    spent_bytes: u64,
    /// Extents that were left out.
    left_out: u64,
}

impl Budget {
    fn new(stored_bytes: u64) -> Self {
        Self {
            stored_bytes,
            end: 0,
            named_bytes: 0,
            spent_bytes: 0,
            left_out: 0,
        }
    }

    /// Whether the next extent on the disk may be unpacked.
    fn admits(&mut self, extent: CompressedExtent) -> bool {
        let end = extent.end().0;
        self.named_bytes += end.saturating_sub(self.end.max(extent.offset.0));
        self.end = self.end.max(end);
        let reason_bytes = self.named_bytes.min(self.stored_bytes);
        let limit_bytes = reason_bytes.saturating_mul(2).saturating_add(FREE_BYTES);
        let is_admitted = self.spent_bytes <= limit_bytes;
        self.left_out += u64::from(!is_admitted);
        is_admitted
    }
}

/// What came of an extent.
enum Outcome {
    Unpacked(Result<(), Defect>),
    Unread(io::Error),
    NotReached,
}

/// Unpacks every compressed cluster.
pub(super) fn unpack_all<S: Storage>(walk: Walk<'_, S>, survey: &Survey, notes: &mut Notes) {
    let compression = walk.image.header().compression_type();
    let stored_bytes = walk.image.storage().allocated_bytes();
    // Where the system does not even know a length, there is nothing to be unpacked.
    let mut budget = Budget::new(stored_bytes.unwrap_or(0));
    unpack_within(walk, survey, compression, &mut budget, notes);
    if budget.left_out > 0 {
        notes.gap(Gap {
            place: Place::File,
            kind: GapKind::WorkLimit,
            detail: format!(
                "{} pieces of compressed data were not unpacked: they overlap more than any honest image's",
                budget.left_out
            ),
        });
    }
}

fn unpack_within<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    compression: CompressionType,
    budget: &mut Budget,
    notes: &mut Notes,
) {
    let mut spans = Spans::default();
    let mut window = collect(walk, &survey.l2_tables, None, Some(&mut spans));
    loop {
        let Some(&last) = window.entries.last() else {
            return;
        };
        if let CompressionType::Unknown(number) = compression {
            return notes.gap(Gap {
                place: Place::Header {
                    field: "compression_type",
                },
                kind: GapKind::OutOfReach,
                detail: format!("compressed data of type {number} was not unpacked"),
            });
        }
        unpack(walk, compression, &window.entries, budget, notes);
        if !window.is_cut || walk.progress.is_stopped() {
            return;
        }
        let (tables, has_more) = spans.next_tables(last.extent.offset.0, KEPT_ENTRIES);
        window = collect(walk, &tables, Some(last), None);
        window.is_cut |= has_more;
    }
}

/// The first entries in the order of the disk, behind those that are done.
#[derive(Default)]
struct Window {
    entries: Vec<Entry>,
    /// There are more.
    is_cut: bool,
}

impl Window {
    /// Takes entries in; of too many the last on the disk are left for later.
    fn take(&mut self, more: &mut Vec<Entry>) {
        self.entries.append(more);
        if self.entries.len() >= 2 * KEPT_ENTRIES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.entries.len() > KEPT_ENTRIES {
            self.entries.select_nth_unstable(KEPT_ENTRIES);
            self.entries.truncate(KEPT_ENTRIES);
            self.is_cut = true;
        }
    }
}

/// What one group of tables has.
#[derive(Default)]
struct Found {
    entries: Vec<Entry>,
    spans: Spans,
}

/// Collects the first entries behind those that are done; of some tables, or of all, with their spans.
fn collect<S: Storage>(
    walk: Walk<'_, S>,
    tables: &[L2Item],
    done: Option<Entry>,
    spans: Option<&mut Spans>,
) -> Window {
    let total_bytes = tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Tables, total_bytes);
    let window = Mutex::new(Window::default());
    let notes_spans = spans.is_some();
    let rests = gather(walk, tables, |found: &mut Found, item, mapped| {
        let Target::Compressed {
            extent,
            clusters: Ok(_),
        } = mapped.target
        else {
            return;
        };
        if notes_spans {
            found.spans.note(item, extent.offset.0);
        }
        let entry = Entry {
            extent,
            guest_cluster: mapped.guest_cluster,
            table: item.cluster,
            index: mapped.index,
            weight: item.weight(),
        };
        if done.is_none_or(|done| entry > done) {
            found.entries.push(entry);
        }
        // A lock is only poisoned by a panic, which ends the run.
        if found.entries.len() >= HANDED_OVER
            && let Ok(mut window) = window.lock()
        {
            window.take(&mut found.entries);
        }
    });
    let mut window = window.into_inner().unwrap_or_default();
    let mut noted = Spans::default();
    for mut rest in rests {
        window.take(&mut rest.entries);
        noted.append(rest.spans);
    }
    if let Some(spans) = spans {
        *spans = noted;
    }
    window.cut();
    window.entries.par_sort_unstable();
    window
}

fn unpack<S: Storage>(
    walk: Walk<'_, S>,
    compression: CompressionType,
    entries: &[Entry],
    budget: &mut Budget,
    notes: &mut Notes,
) {
    let extents: Vec<&[Entry]> = entries
        .chunk_by(|one, next| one.extent == next.extent)
        .collect();
    let first = |entries: &&[Entry]| entries.first().map_or(0, |entry| entry.extent.bytes());
    walk.progress
        .begin(Phase::Data, extents.iter().map(first).sum());
    let make = || Worker::new(walk, compression);
    let mut bad: Vec<(&[Entry], Outcome)> = Vec::new();
    let mut rest = extents.as_slice();
    while !rest.is_empty() {
        let (round, more) = rest.split_at(round_length(rest));
        rest = more;
        let admitted: Vec<&[Entry]> = round
            .iter()
            .filter(|entries| entries.first().is_some_and(|one| budget.admits(one.extent)))
            .copied()
            .collect();
        let parts: Vec<(u64, Vec<_>)> = admitted
            .par_chunks(EXTENTS_AT_ONCE)
            .map_init(make, Worker::try_all)
            .collect();
        for (spent_bytes, outcomes) in parts {
            budget.spent_bytes = budget.spent_bytes.saturating_add(spent_bytes);
            bad.extend(outcomes);
        }
    }
    let mut bad: Vec<(Entry, Outcome)> = bad
        .into_iter()
        .flat_map(|(entries, outcome)| entries.iter().map(move |entry| (*entry, outcome.copied())))
        .collect();
    // As a guest counts, so that neighbours become one finding.
    bad.sort_by_key(|(entry, _)| (entry.guest_cluster, entry.table, entry.index));
    for (entry, outcome) in &bad {
        note(walk.geometry, entry, outcome, notes);
    }
}

/// How many of the first extents make a round.
fn round_length(extents: &[&[Entry]]) -> usize {
    let bytes = |entries: &&[Entry]| entries.first().map_or(0, |entry| entry.extent.bytes());
    let sums = extents.iter().scan(0_u64, |sum, entries| {
        *sum = sum.saturating_add(bytes(entries));
        Some(*sum)
    });
    let fitting = sums
        .take(ROUND_EXTENTS)
        .take_while(|sum| *sum <= ROUND_BYTES);
    fitting.count().max(1)
}

fn note(geometry: Geometry, entry: &Entry, outcome: &Outcome, notes: &mut Notes) {
    let place = Place::L2Entry {
        table: entry.table,
        index: entry.index,
    };
    let finding = |code, detail: String| {
        Finding::new(code, place)
            .host(clusters_of(geometry, entry.extent))
            .guest(geometry.guest_range(entry.guest_cluster, 1))
            .count(entry.weight)
            .detail(detail)
    };
    match outcome {
        Outcome::Unpacked(Ok(())) | Outcome::NotReached => {}
        Outcome::Unpacked(Err(Defect::Invalid(why))) => {
            notes.push(finding(Code::CompressedDataInvalid, (*why).to_owned()));
        }
        Outcome::Unpacked(Err(Defect::Overrun(why))) => {
            notes.push(finding(Code::CompressedDataOverrun, (*why).to_owned()));
        }
        Outcome::Unread(error) => {
            notes.push(finding(Code::DataUnreadable, error.to_string()));
            notes.gap(Gap::unreadable(place, error));
        }
    }
}

fn clusters_of(geometry: Geometry, extent: CompressedExtent) -> ClusterRange {
    let start = geometry.cluster_at(extent.offset);
    let end = extent.offset.0.saturating_add(extent.bytes());
    ClusterRange {
        start,
        count: geometry.clusters_for(end).saturating_sub(start.0).max(1),
    }
}

impl Outcome {
    /// The same for another entry; an error's words are kept.
    fn copied(&self) -> Self {
        match self {
            Self::Unpacked(result) => Self::Unpacked(*result),
            Self::Unread(error) => Self::Unread(match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
            Self::NotReached => Self::NotReached,
        }
    }
}

/// One thread's buffers: an extent in, a cluster out.
struct Worker<'a, S> {
    image: &'a Image<S>,
    progress: &'a Progress,
    compression: CompressionType,
    /// Where nothing is stored, as the file system said last: one hole may have millions of extents.
    hole: Range<u64>,
    /// What came of so many bytes of a hole.
    of_hole: BTreeMap<u64, Result<(), Defect>>,
    input: Vec<u8>,
    unpacker: Unpacker,
}

impl<'a, S: Storage> Worker<'a, S> {
    fn new(walk: Walk<'a, S>, compression: CompressionType) -> Self {
        let cluster_bytes = usize::try_from(walk.geometry.cluster_bytes()).unwrap_or(0);
        Self {
            image: walk.image,
            progress: walk.progress,
            compression,
            hole: 0..0,
            of_hole: BTreeMap::new(),
            input: Vec::new(),
            unpacker: Unpacker::new(cluster_bytes),
        }
    }

    /// Unpacks some extents; gives the work it was, and what is wrong.
    fn try_all<'b>(&mut self, extents: &[&'b [Entry]]) -> (u64, Vec<(&'b [Entry], Outcome)>) {
        let mut spent_bytes = 0_u64;
        let mut bad = Vec::new();
        for &entries in extents {
            let (more_bytes, outcome) = self.try_one(entries);
            spent_bytes = spent_bytes.saturating_add(more_bytes);
            if !matches!(outcome, Outcome::Unpacked(Ok(()))) {
                bad.push((entries, outcome));
            }
        }
        (spent_bytes, bad)
    }

    /// Unpacks the extent these entries share, and says how many bytes' work that was.
    fn try_one(&mut self, entries: &[Entry]) -> (u64, Outcome) {
        let Some(entry) = entries.first().filter(|_| !self.progress.is_stopped()) else {
            return (0, Outcome::NotReached);
        };
        let extent = entry.extent;
        self.progress.advance(extent.bytes());
        match self.read(extent) {
            Err(error) => return (extent.bytes(), Outcome::Unread(error)),
            Ok(false) => {
                // Zeros are zeros: each number of them is unpacked once.
                let bytes = self.input.len() as u64;
                let known = self.of_hole.get(&bytes).copied();
                let result = known.unwrap_or_else(|| self.unpack());
                self.of_hole.insert(bytes, result);
                return (0, Outcome::Unpacked(result));
            }
            Ok(true) => {}
        }
        let outcome = Outcome::Unpacked(self.unpack());
        // The last sector may be the next extent's first one.
        let whole_bytes = extent.bytes().saturating_sub(SECTOR_BYTES);
        (whole_bytes.max(self.unpacker.read_bytes()), outcome)
    }

    /// Unpacks what was read.
    fn unpack(&mut self) -> Result<(), Defect> {
        match self.compression {
            CompressionType::Zstd => self.unpacker.unzstd(&mut self.input),
            CompressionType::Deflate | CompressionType::Unknown(_) => {
                self.unpacker.inflate(&self.input)
            }
        }
    }

    /// Reads an extent; `false` where it lies in a hole, of which a few zeros are enough.
    fn read(&mut self, extent: CompressedExtent) -> io::Result<bool> {
        let (offset, end) = (extent.offset.0, extent.end().0);
        if !self.hole.contains(&offset) || end > self.hole.end {
            let next = self.image.storage().next_data(offset);
            // Where the system cannot say, everything may be data.
            self.hole = offset..next.map_or(offset, |next| next.unwrap_or(u64::MAX));
        }
        let is_hole = end <= self.hole.end;
        // An extent has at most twice the sectors of a cluster: the entry has no more bits for them.
        let bytes = extent
            .bytes()
            .min(if is_hole { SECTOR_BYTES } else { u64::MAX });
        self.input.clear();
        self.input.resize(usize::try_from(bytes).unwrap_or(0), 0);
        if is_hole {
            return Ok(false);
        }
        self.image.read_into(extent.offset, &mut self.input)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Trees;
    use crate::qcow2::HostOffset;

    fn entry(number: u64) -> Entry {
        Entry {
            extent: CompressedExtent {
                offset: HostOffset(number * 100),
                sectors: 1,
            },
            guest_cluster: number,
            table: HostCluster(1),
            index: number,
            weight: 1,
        }
    }

    #[test]
    fn entries_that_do_not_fit_are_left_for_the_next_time_and_none_twice() {
        // A step that is prime to the count visits every number, far from its order.
        let count = 2 * KEPT_ENTRIES as u64 + 12_345;
        let numbers = (0..count).map(|number| number * 7_919 % count);
        let shuffled: Vec<Entry> = numbers.map(entry).collect();
        let mut seen = Vec::new();
        let mut done: Option<Entry> = None;
        for time in 1.. {
            let mut window = Window::default();
            for chunk in shuffled.chunks(HANDED_OVER) {
                let later = chunk
                    .iter()
                    .filter(|one| done.is_none_or(|done| **one > done));
                window.take(&mut later.copied().collect());
                assert!(window.entries.len() < 2 * KEPT_ENTRIES + HANDED_OVER);
            }
            window.cut();
            window.entries.sort_unstable();
            done = window.entries.last().copied();
            seen.append(&mut window.entries);
            if !window.is_cut {
                assert_eq!(time, 3);
                break;
            }
        }
        let numbers: Vec<u64> = seen.iter().map(|one| one.index).collect();
        assert!(numbers == (0..count).collect::<Vec<_>>());
    }

    /// Tables of four entries, as [`collect`] reads them: all, or only those that are named.
    fn window_of(tables: &[Vec<Entry>], chosen: &[L2Item], done: Option<Entry>) -> Window {
        let mut window = Window::default();
        for entries in tables {
            let is_read = |one: &Entry| chosen.iter().any(|item| item.cluster == one.table);
            let read = entries.iter().filter(|one| is_read(one));
            let later = read.filter(|one| done.is_none_or(|done| **one > done));
            window.entries.extend(later);
        }
        window.entries.sort_unstable();
        window.is_cut = window.entries.len() > 7;
        window.entries.truncate(7);
        window
    }

    #[test]
    fn tables_that_are_passed_over_have_none_of_the_next_entries() {
        for step in [1_u64, 7, 13, 91, 389] {
            let numbers: Vec<u64> = (0..400).map(|number| number * step % 401 / 2).collect();
            let of_table = |(number, numbers): (u64, &[u64])| {
                let place = HostCluster(number);
                let entries = numbers.iter().map(|&at| Entry {
                    table: place,
                    ..entry(at)
                });
                entries.collect::<Vec<_>>()
            };
            let tables: Vec<Vec<Entry>> = (0..).zip(numbers.chunks(4)).map(of_table).collect();
            let item = |number| L2Item {
                cluster: HostCluster(number),
                l1_index: number,
                trees: Trees::default(),
                active_copied: 0,
                is_shared_across_ranges: false,
            };
            let all: Vec<L2Item> = (0..100).map(item).collect();
            let mut spans = Spans::default();
            for (table, entries) in all.iter().zip(&tables) {
                for one in entries {
                    spans.note(table, one.extent.offset.0);
                }
            }
            let mut window = window_of(&tables, &all, None);
            let mut read = 0;
            while window.is_cut {
                let done = *window.entries.last().expect("it was cut");
                let whole = window_of(&tables, &all, Some(done));
                let (chosen, has_more) = spans.next_tables(done.extent.offset.0, 7);
                read += chosen.len();
                window = window_of(&tables, &chosen, Some(done));
                window.is_cut |= has_more;
                assert_eq!(window.entries, whole.entries, "step {step}");
                assert_eq!(window.is_cut, whole.is_cut, "step {step}");
            }
            assert!(step > 1 || read < 250, "{read} tables were read again");
        }
    }
}
