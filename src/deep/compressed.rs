//! Every compressed cluster, unpacked and thrown away.
//!
//! Comes in: the L2 tables. Goes out: a finding for each guest range that does not unpack. Never here: an extent twice
//! because several mappings name it; more entries at once than a fixed number: the tables are read again for the next.

use std::sync::Mutex;

use rayon::prelude::*;

use super::decompress::{Defect, Unpacker};
use super::gather;
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding};
use crate::image::Image;
use crate::progress::{Phase, Progress};
use crate::qcow2::{ClusterRange, CompressedExtent, CompressionType, Geometry, HostCluster, Place};
use crate::storage::Storage;
use crate::walk::l2_table::Target;
use crate::walk::{Notes, Survey, Walk};

/// Entries that are kept at once, in bytes of the disk's order: 28 MiB.
const KEPT_ENTRIES: usize = 1 << 19;
/// Entries a thread collects before it hands them over.
const HANDED_OVER: usize = 4096;
/// Extents one thread unpacks at a time.
const EXTENTS_AT_ONCE: usize = 16;

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

/// What came of an extent.
enum Outcome {
    Unpacked(Result<(), Defect>),
    Unread(std::io::Error),
    NotReached,
}

/// Unpacks every compressed cluster.
pub(super) fn unpack_all<S: Storage>(walk: Walk<'_, S>, survey: &Survey, notes: &mut Notes) {
    let compression = walk.image.header().compression_type();
    let mut done = None;
    loop {
        let window = collect(walk, survey, done);
        let Some(&last) = window.entries.last() else {
            return;
        };
        if let CompressionType::Unknown(number) = compression {
            return notes.gap(Gap {
                place: Place::Header {
                    field: "compression_type",
                },
                kind: GapKind::UnknownMeaning,
                detail: format!("compressed data of type {number} was not unpacked"),
            });
        }
        unpack(walk, compression, &window.entries, notes);
        if !window.is_cut || walk.progress.is_stopped() {
            return;
        }
        done = Some(last);
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

fn collect<S: Storage>(walk: Walk<'_, S>, survey: &Survey, done: Option<Entry>) -> Window {
    let total_bytes = survey.l2_tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Tables, total_bytes);
    let window = Mutex::new(Window::default());
    let rests = gather(walk, survey, |found: &mut Vec<Entry>, item, mapped| {
        let Target::Compressed {
            extent,
            clusters: Ok(_),
        } = mapped.target
        else {
            return;
        };
        let entry = Entry {
            extent,
            guest_cluster: mapped.guest_cluster,
            table: item.cluster,
            index: mapped.index,
            weight: item.weight(),
        };
        if done.is_none_or(|done| entry > done) {
            found.push(entry);
        }
        // A lock is only poisoned by a panic, which ends the run.
        if found.len() >= HANDED_OVER
            && let Ok(mut window) = window.lock()
        {
            window.take(found);
        }
    });
    let mut window = window.into_inner().unwrap_or_default();
    for mut rest in rests {
        window.take(&mut rest);
    }
    window.cut();
    window.entries.par_sort_unstable();
    window
}

fn unpack<S: Storage>(
    walk: Walk<'_, S>,
    compression: CompressionType,
    entries: &[Entry],
    notes: &mut Notes,
) {
    let extents: Vec<&[Entry]> = entries
        .chunk_by(|one, next| one.extent == next.extent)
        .collect();
    let first = |entries: &&[Entry]| entries.first().map_or(0, |entry| entry.extent.bytes());
    walk.progress
        .begin(Phase::Data, extents.iter().map(first).sum());
    let make = || Worker::new(walk, compression);
    let bad: Vec<Vec<(&[Entry], Outcome)>> = extents
        .par_chunks(EXTENTS_AT_ONCE)
        .map_init(make, |worker, extents| {
            let outcomes = extents
                .iter()
                .map(|entries| (*entries, worker.try_one(entries)));
            outcomes
                .filter(|(_, outcome)| !matches!(outcome, Outcome::Unpacked(Ok(()))))
                .collect()
        })
        .collect();
    let mut bad: Vec<(Entry, Outcome)> = bad
        .into_iter()
        .flatten()
        .flat_map(|(entries, outcome)| entries.iter().map(move |entry| (*entry, outcome.copied())))
        .collect();
    // As a guest counts, so that neighbours become one finding.
    bad.sort_by_key(|(entry, _)| (entry.guest_cluster, entry.table, entry.index));
    for (entry, outcome) in &bad {
        note(walk.geometry, entry, outcome, notes);
    }
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
                Some(number) => std::io::Error::from_raw_os_error(number),
                None => std::io::Error::new(error.kind(), error.to_string()),
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
            input: Vec::new(),
            unpacker: Unpacker::new(cluster_bytes),
        }
    }

    /// Unpacks the extent these entries share.
    fn try_one(&mut self, entries: &[Entry]) -> Outcome {
        let Some(entry) = entries.first().filter(|_| !self.progress.is_stopped()) else {
            return Outcome::NotReached;
        };
        // An extent has at most twice the sectors of a cluster: the entry has no more bits for them.
        let bytes = usize::try_from(entry.extent.bytes()).unwrap_or(0);
        self.input.resize(bytes, 0);
        self.progress.advance(entry.extent.bytes());
        if let Err(error) = self.image.read_into(entry.extent.offset, &mut self.input) {
            return Outcome::Unread(error);
        }
        Outcome::Unpacked(match self.compression {
            CompressionType::Zstd => self.unpacker.unzstd(&mut self.input),
            CompressionType::Deflate | CompressionType::Unknown(_) => {
                self.unpacker.inflate(&self.input)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
