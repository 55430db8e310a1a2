//! The tally: exact reference counts, for suspect clusters only.
//!
//! Most suspects have one reference, and most of these come in runs. So a reference is a bit where it can be one: for guest
//! data, if it goes along with what other clusters of its word hold; for a structure, if it is the first. Only the other
//! references have counters, made where they are needed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::cluster_set::{ClusterSet, WORDS};
use super::{Identity, METADATA, NOBODY, by_word, locate};
use crate::qcow2::{ClusterRange, HostCluster};

/// Clusters of a word that hold the guest clusters which their neighbours would have, with one reference each.
#[derive(Debug)]
struct Series {
    /// The guest cluster that the first cluster of the word would hold, plus 64; 0 before the first reference.
    origin: AtomicU64,
    taken: AtomicU64,
}

impl Series {
    fn new() -> Self {
        Self {
            origin: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// Takes one reference to each of some suspects, the first of them for a guest cluster; returns those that were taken,
    /// or `None` where they are no part of the series.
    fn take(&self, suspects: u64, guest_cluster: u64) -> Option<u64> {
        let bit = u64::from(suspects.trailing_zeros());
        let origin = guest_cluster.wrapping_sub(bit).wrapping_add(64);
        let mut known = self.origin.load(Relaxed);
        if known == 0 {
            let exchanged = self.origin.compare_exchange(0, origin, Relaxed, Relaxed);
            known = exchanged.map_or_else(|other| other, |_| origin);
        }
        let is_part = known == origin && origin != 0;
        is_part.then(|| take(&self.taken, suspects))
    }

    fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// The guest cluster that the first cluster of the word would hold.
    fn first_guest_cluster(&self) -> u64 {
        self.origin.load(Relaxed).wrapping_sub(64)
    }
}

/// Sets bits; returns those that were not set.
fn take(bits: &AtomicU64, wanted: u64) -> u64 {
    wanted & !bits.fetch_or(wanted, Relaxed)
}

/// Suspects among 64 clusters, with the references that are a bit each.
#[derive(Debug)]
struct Line {
    suspects: u64,
    /// Suspects of the region in the lines before.
    rank: u16,
    /// Guest data: one series, or two with a table between them.
    guests: [Series; 2],
    /// One reference by a structure.
    metadata: AtomicU64,
}

impl Line {
    /// Takes one reference to each of some suspects, the first of them for `identity`; returns those that were taken.
    fn take(&self, suspects: u64, identity: Identity) -> u64 {
        let taken = match identity {
            Identity::Metadata => Some(take(&self.metadata, suspects)),
            Identity::Guest(cluster) => {
                let mut guests = self.guests.iter();
                guests.find_map(|series| series.take(suspects, cluster))
            }
            Identity::Compressed => None,
        };
        taken.unwrap_or(0)
    }

    /// What refers to the cluster at a bit, as far as bits tell, by numbers.
    fn identities(&self, bit: u32) -> [u32; 3] {
        let number = |is_set: u64, identity: Identity| {
            if is_set >> bit & 1 == 0 {
                NOBODY
            } else {
                identity.number()
            }
        };
        let guest = |series: &Series| {
            let cluster = series.first_guest_cluster().wrapping_add(u64::from(bit));
            number(series.taken(), Identity::Guest(cluster))
        };
        let [one, other] = &self.guests;
        let metadata = number(self.metadata.load(Relaxed), Identity::Metadata);
        [guest(one), guest(other), metadata]
    }

    /// Where a suspect's counter is among those of the region.
    fn rank_of(&self, bit: u32) -> usize {
        let before = self.suspects & !(u64::MAX << bit);
        usize::from(self.rank) + before.count_ones() as usize
    }
}

/// Counters for the references that are no bits.
#[derive(Debug)]
struct Counters {
    counts: Box<[AtomicU16]>,
    identity: Box<[AtomicU32]>,
}

impl Counters {
    fn new(count: usize) -> Self {
        Self {
            counts: (0..count).map(|_| AtomicU16::new(0)).collect(),
            identity: (0..count).map(|_| AtomicU32::new(NOBODY)).collect(),
        }
    }

    fn identity(&self, rank: usize) -> u32 {
        let identity = self.identity.get(rank);
        identity.map_or(NOBODY, |identity| identity.load(Relaxed))
    }
}

/// The suspects of one region.
#[derive(Debug)]
struct Suspects {
    words: Box<[u64]>,
    /// Nothing before the first reference: what leaks has none, and there may be billions of those.
    region: OnceLock<Region>,
}

impl Suspects {
    fn new(words: impl Iterator<Item = u64>) -> Self {
        Self {
            words: words.collect(),
            region: OnceLock::new(),
        }
    }

    /// Those among the 64 clusters that a slot is one of.
    fn word(&self, slot: usize) -> u64 {
        self.words.get(slot / 64).copied().unwrap_or(0)
    }

    /// For the first reference, and all that follow.
    fn region(&self) -> &Region {
        let region = || Region::new(self.words.iter().copied());
        self.region.get_or_init(region)
    }
}

/// What refers to the suspects of one region.
#[derive(Debug)]
struct Region {
    /// By word, the place of its line plus one; 0 where it has no suspects.
    places: Box<[u16]>,
    lines: Box<[Line]>,
    suspect_count: usize,
    counters: OnceLock<Counters>,
}

impl Region {
    fn new(suspects: impl Iterator<Item = u64>) -> Self {
        let mut places = vec![0; WORDS].into_boxed_slice();
        let (mut lines, mut total) = (Vec::new(), 0_u16);
        for (place, suspects) in places.iter_mut().zip(suspects) {
            if suspects == 0 {
                continue;
            }
            lines.push(Line {
                suspects,
                rank: total,
                guests: [Series::new(), Series::new()],
                metadata: AtomicU64::new(0),
            });
            // A region has 2^15 clusters.
            total += u16::try_from(suspects.count_ones()).unwrap_or(0);
            *place = u16::try_from(lines.len()).unwrap_or(0);
        }
        Self {
            places,
            lines: lines.into_boxed_slice(),
            suspect_count: usize::from(total),
            counters: OnceLock::new(),
        }
    }

    /// The line of the word a slot is in, if it has suspects.
    fn line(&self, slot: usize) -> Option<&Line> {
        let place = usize::from(*self.places.get(slot / 64)?);
        self.lines.get(place.checked_sub(1)?)
    }

    fn counters(&self) -> &Counters {
        self.counters
            .get_or_init(|| Counters::new(self.suspect_count))
    }
}

/// References to suspects, counting up.
#[derive(Debug)]
pub(crate) struct Tally {
    regions: BTreeMap<u64, Suspects>,
    /// What did not fit into a small counter; the sum of both is the count.
    overflow: Mutex<BTreeMap<HostCluster, u64>>,
    has_overflow: AtomicBool,
    metadata: ClusterSet,
    /// Those that the counters tell of; beside them, a bit may contradict another or a counter.
    conflicts: ClusterSet,
}

impl Tally {
    /// A tally of nothing yet, for the clusters of `suspects`.
    pub(crate) fn new(suspects: &ClusterSet) -> Self {
        let regions = suspects.regions();
        let regions = regions.map(|region| (region, Suspects::new(suspects.words_of(region))));
        Self {
            regions: regions.collect(),
            overflow: Mutex::default(),
            has_overflow: AtomicBool::new(false),
            metadata: ClusterSet::new(),
            conflicts: ClusterSet::new(),
        }
    }

    /// Adds `weight` references of one identity to a suspect; other clusters do not count.
    pub(crate) fn add(&self, cluster: HostCluster, weight: u64, identity: Identity) {
        self.add_run(ClusterRange::one(cluster), weight, identity);
    }

    /// Adds `weight` references to each suspect of a run, the first for `identity`, each next one for the next guest cluster.
    pub(crate) fn add_run(&self, clusters: ClusterRange, weight: u64, identity: Identity) {
        let mut last = None;
        for part in by_word(clusters) {
            let (index, slot) = locate(part.first);
            let suspects = match last {
                Some((known, suspects)) if known == index => suspects,
                _ => self.regions.get(&index),
            };
            last = Some((index, suspects));
            let Some(suspects) = suspects.filter(|them| them.word(slot) & part.mask != 0) else {
                continue;
            };
            let region = suspects.region();
            let Some(line) = region.line(slot) else {
                continue;
            };
            let word_start = part.first.0 - slot as u64 % 64;
            let mut rest = line.suspects & part.mask;
            if identity == Identity::Metadata {
                self.metadata.insert_word(part.first, rest);
            }
            let identity_at = |bit: u32| {
                let cluster = word_start + u64::from(bit);
                identity.after(cluster - clusters.start.0)
            };
            if weight == 1 {
                rest &= !line.take(rest, identity_at(rest.trailing_zeros()));
            }
            while rest != 0 {
                let bit = rest.trailing_zeros();
                let cluster = HostCluster(word_start + u64::from(bit));
                let rank = line.rank_of(bit);
                self.add_at(region.counters(), rank, cluster, weight, identity_at(bit));
                rest &= rest - 1;
            }
        }
    }

    fn add_at(
        &self,
        counters: &Counters,
        rank: usize,
        cluster: HostCluster,
        weight: u64,
        identity: Identity,
    ) {
        self.identify(counters, rank, cluster, identity);
        let Some(count) = counters.counts.get(rank) else {
            return;
        };
        let added = count.fetch_update(Relaxed, Relaxed, |count| {
            u16::try_from(weight)
                .ok()
                .and_then(|weight| count.checked_add(weight))
        });
        if added.is_err() {
            let mut overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
            let more = overflow.entry(cluster).or_default();
            *more = more.saturating_add(weight);
            self.has_overflow.store(true, Relaxed);
        }
    }

    fn identify(&self, counters: &Counters, rank: usize, cluster: HostCluster, identity: Identity) {
        let number = identity.number();
        let Some(first) = counters.identity.get(rank) else {
            return;
        };
        let exchanged = first.compare_exchange(NOBODY, number, Relaxed, Relaxed);
        if let Err(other) = exchanged
            && (other != number || number == METADATA)
        {
            self.conflicts.insert(cluster);
        }
    }

    /// References to a cluster.
    pub(crate) fn count(&self, cluster: HostCluster) -> u64 {
        let (index, _) = locate(cluster);
        self.of_region(index).count(cluster).unwrap_or(0)
    }

    /// The counts of one region, to be asked for cluster by cluster. All references are added by now.
    pub(crate) fn of_region(&self, index: u64) -> RegionTally<'_> {
        RegionTally {
            tally: self,
            suspects: self.regions.get(&index),
        }
    }

    /// Whether a structure of the format is among the references.
    pub(crate) fn has_metadata(&self, cluster: HostCluster) -> bool {
        self.metadata.contains(cluster)
    }

    /// Whether references share the cluster that may not share one.
    pub(crate) fn has_conflict(&self, cluster: HostCluster) -> bool {
        let (index, _) = locate(cluster);
        self.of_region(index).has_conflict(cluster)
    }
}

/// The suspects of a word that have one reference each, by what refers to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Singles {
    pub(crate) guests: [GuestSingles; 2],
    /// Structures.
    pub(crate) metadata: u64,
}

/// Those of guest clusters that follow one another as their clusters do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestSingles {
    pub(crate) bits: u64,
    /// What the word's first cluster would hold. It may be less than zero, and has wrapped around then.
    pub(crate) first_guest_cluster: u64,
}

impl Singles {
    /// All of them.
    pub(crate) fn all(self) -> u64 {
        let [one, other] = self.guests;
        one.bits | other.bits | self.metadata
    }
}

/// The counts of one region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionTally<'a> {
    tally: &'a Tally,
    suspects: Option<&'a Suspects>,
}

impl RegionTally<'_> {
    /// References to a cluster of the region; `None` if it is no suspect.
    pub(crate) fn count(self, cluster: HostCluster) -> Option<u64> {
        let (_, slot) = locate(cluster);
        let is_suspect = self.suspects?.word(slot) >> (slot % 64) & 1 != 0;
        let Some((region, line, bit)) = self.find(cluster) else {
            return is_suspect.then_some(0);
        };
        let identities = line.identities(bit).into_iter();
        let small = identities.filter(|number| *number != NOBODY).count() as u64;
        let Some(counters) = region.counters.get() else {
            return Some(small);
        };
        let count = counters.counts.get(line.rank_of(bit))?;
        let small = small + u64::from(count.load(Relaxed));
        if !self.tally.has_overflow.load(Relaxed) {
            return Some(small);
        }
        let overflow = self.tally.overflow.lock();
        let overflow = overflow.unwrap_or_else(PoisonError::into_inner);
        Some(small.saturating_add(overflow.get(&cluster).copied().unwrap_or(0)))
    }

    /// Whether references share a cluster of the region that may not share one.
    pub(crate) fn has_conflict(self, cluster: HostCluster) -> bool {
        let Some((region, line, bit)) = self.find(cluster) else {
            return false;
        };
        let counted = region.counters.get();
        let counted = counted.map_or(NOBODY, |counters| counters.identity(line.rank_of(bit)));
        let [one, other, metadata] = line.identities(bit);
        let mut known = NOBODY;
        for number in [one, other, metadata, counted] {
            // A structure shares with nobody, not even its like.
            let is_shared = number != NOBODY && known != NOBODY;
            if is_shared && (number != known || number == METADATA) {
                return true;
            }
            known = known.max(number);
        }
        !self.tally.conflicts.is_empty() && self.tally.conflicts.contains(cluster)
    }

    /// The suspects of the word from `start` on, a multiple of 64, that have exactly one reference and no other note.
    pub(crate) fn singles(self, start: HostCluster) -> Singles {
        let (_, slot) = locate(start);
        let region = self.suspects.and_then(|them| them.region.get());
        let found = region.and_then(|region| Some((region, region.line(slot)?)));
        let Some((region, line)) = found else {
            return Singles::default();
        };
        let metadata = line.metadata.load(Relaxed);
        let [one, other] = line.guests.each_ref().map(Series::taken);
        let any = one | other | metadata;
        let mut single = any & !((one & other) | ((one | other) & metadata));
        if let Some(counters) = region.counters.get() {
            let mut rest = single;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                if counters.identity(line.rank_of(bit)) != NOBODY {
                    single &= !(1 << bit);
                }
                rest &= rest - 1;
            }
        }
        Singles {
            guests: line.guests.each_ref().map(|series| GuestSingles {
                bits: series.taken() & single,
                first_guest_cluster: series.first_guest_cluster(),
            }),
            metadata: metadata & single,
        }
    }

    fn find(&self, cluster: HostCluster) -> Option<(&Region, &Line, u32)> {
        let (_, slot) = locate(cluster);
        let region = self.suspects?.region.get()?;
        let line = region.line(slot)?;
        let bit = u32::try_from(slot % 64).unwrap_or(0);
        (line.suspects >> bit & 1 != 0).then_some((region, line, bit))
    }
}

#[cfg(test)]
mod tests;
