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
    regions: BTreeMap<u64, Region>,
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
        let regions = regions.map(|region| (region, Region::new(suspects.words_of(region))));
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
            let region = match last {
                Some((known, region)) if known == index => region,
                _ => self.regions.get(&index),
            };
            last = Some((index, region));
            let line = region.and_then(|region| Some((region, region.line(slot)?)));
            let Some((region, line)) = line else { continue };
            let word_start = part.first.0 - slot as u64 % 64;
            let mut rest = line.suspects & part.mask;
            if rest == 0 {
                continue;
            }
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
            region: self.regions.get(&index),
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
    region: Option<&'a Region>,
}

impl RegionTally<'_> {
    /// References to a cluster of the region; `None` if it is no suspect.
    pub(crate) fn count(self, cluster: HostCluster) -> Option<u64> {
        let (region, line, bit) = self.find(cluster)?;
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
        let found = self
            .region
            .and_then(|region| Some((region, region.line(slot)?)));
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
        let region = self.region?;
        let line = region.line(slot)?;
        let bit = u32::try_from(slot % 64).unwrap_or(0);
        (line.suspects >> bit & 1 != 0).then_some((region, line, bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspects(clusters: &[u64]) -> ClusterSet {
        let set = ClusterSet::new();
        for &cluster in clusters {
            set.insert(HostCluster(cluster));
        }
        set
    }

    #[test]
    fn counts_are_exact_beyond_the_small_counter() {
        let cluster = HostCluster(40_000);
        let tally = Tally::new(&suspects(&[39_999, 40_000, 40_064]));
        for _ in 0..3 {
            tally.add(cluster, 40_000, Identity::Guest(1));
        }
        tally.add(cluster, 1 << 40, Identity::Guest(1));
        assert_eq!(tally.count(cluster), 120_000 + (1 << 40));
        assert_eq!(tally.count(HostCluster(40_001)), 0);
        assert!(!tally.has_conflict(cluster));
    }

    #[test]
    fn a_run_counts_for_its_suspects_and_for_nobody_else() {
        let asked = [30_000, 32_703, 32_704, 32_767, 32_768, 32_900, 70_000];
        let (runs, singles) = (Tally::new(&suspects(&asked)), Tally::new(&suspects(&asked)));
        let run = ClusterRange {
            start: HostCluster(32_703),
            count: 197,
        };
        runs.add_run(run, 2, Identity::Guest(7));
        for (cluster, guest_cluster) in run.clusters().zip(7..) {
            singles.add(cluster, 2, Identity::Guest(guest_cluster));
        }
        let counts = |tally: &Tally| asked.map(|cluster| tally.count(HostCluster(cluster)));
        assert_eq!(counts(&runs), [0, 2, 2, 2, 2, 0, 0]);
        assert_eq!(counts(&singles), counts(&runs));
        runs.add(HostCluster(32_768), 1, Identity::Guest(7 + 65));
        assert!(!runs.has_conflict(HostCluster(32_768)));
        runs.add(HostCluster(32_768), 1, Identity::Guest(7));
        assert!(runs.has_conflict(HostCluster(32_768)));
    }

    /// What somebody would say who keeps a list.
    #[derive(Clone, Default)]
    struct Listed {
        count: u64,
        identities: Vec<Identity>,
    }

    impl Listed {
        fn has_conflict(&self) -> bool {
            let first = self.identities.first();
            let differs = self.identities.iter().any(|other| Some(other) != first);
            differs || (self.identities.len() > 1 && first == Some(&Identity::Metadata))
        }
    }

    const FIRST: u64 = 32_600;
    const CLUSTERS: u64 = 300;

    /// Suspects, and references to them and their neighbours.
    fn some_case(seed: u64) -> (Vec<u64>, Vec<(ClusterRange, u64, Identity)>) {
        let mut state = seed;
        let mut below = |limit: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        let asked = (FIRST..FIRST + CLUSTERS).filter(|_| below(3) > 0);
        let asked = asked.collect();
        let references = (0..below(12)).map(|_| {
            let start = below(CLUSTERS);
            let clusters = ClusterRange {
                start: HostCluster(FIRST + start),
                count: 1 + below(CLUSTERS - start),
            };
            let identity = match below(8) {
                0 => Identity::Metadata,
                1 => Identity::Compressed,
                2 => Identity::Guest(below(4)),
                // Mostly where its neighbours would be.
                _ => Identity::Guest(start),
            };
            (clusters, 1 + below(5) / 4, identity)
        });
        let references = references.collect();
        (asked, references)
    }

    #[test]
    fn bits_and_counters_together_say_what_a_list_says() {
        for seed in 0..400 {
            let (asked, references) = some_case(seed);
            let tally = Tally::new(&suspects(&asked));
            let mut listed: BTreeMap<u64, Listed> = BTreeMap::new();
            for (clusters, weight, identity) in references {
                tally.add_run(clusters, weight, identity);
                for cluster in clusters.clusters() {
                    let one = listed.entry(cluster.0).or_default();
                    one.count += weight;
                    let identity = identity.after(cluster.0 - clusters.start.0);
                    one.identities.push(identity);
                }
            }
            for cluster in (FIRST..FIRST + CLUSTERS).map(HostCluster) {
                let is_asked = asked.contains(&cluster.0);
                let listed = listed.get(&cluster.0).filter(|_| is_asked);
                let one = listed.cloned().unwrap_or_default();
                expect_as_listed(&tally, cluster, is_asked, &one, seed);
            }
        }
    }

    fn expect_as_listed(
        tally: &Tally,
        cluster: HostCluster,
        is_asked: bool,
        one: &Listed,
        seed: u64,
    ) {
        let of_region = tally.of_region(locate(cluster).0);
        let about = format!("seed {seed}, {cluster:?}");
        let expected = is_asked.then_some(one.count);
        assert_eq!(of_region.count(cluster), expected, "{about}");
        assert_eq!(tally.has_conflict(cluster), one.has_conflict(), "{about}");
        let has_metadata = one.identities.contains(&Identity::Metadata);
        assert_eq!(tally.has_metadata(cluster), has_metadata, "{about}");
        let bit = cluster.0 % 64;
        let singles = of_region.singles(HostCluster(cluster.0 - bit));
        let is_single = singles.all() >> bit & 1 != 0;
        assert!(!is_single || expected == Some(1), "{about}");
        let mut guests = singles.guests.iter();
        if let Some(guest) = guests.find(|guest| guest.bits >> bit & 1 != 0) {
            let guest_cluster = guest.first_guest_cluster.wrapping_add(bit);
            assert_eq!(one.identities, [Identity::Guest(guest_cluster)], "{about}");
        } else if is_single {
            assert_eq!(one.identities, [Identity::Metadata], "{about}");
        }
    }

    #[test]
    fn guest_data_with_a_table_in_between_is_counted_by_bits_alone() {
        let tally = Tally::new(&suspects(&(100..200).collect::<Vec<_>>()));
        let run = |start: u64, end: u64| ClusterRange {
            start: HostCluster(start),
            count: end - start,
        };
        tally.add_run(run(100, 150), 1, Identity::Guest(7));
        tally.add(HostCluster(150), 1, Identity::Metadata);
        tally.add_run(run(151, 200), 1, Identity::Guest(57));
        let singles = tally.of_region(0).singles(HostCluster(128));
        let guests = singles.guests;
        let guests = guests.map(|guest| (guest.bits.count_ones(), guest.first_guest_cluster));
        assert_eq!((guests, singles.metadata), ([(22, 35), (41, 34)], 1 << 22));
        let mut regions = tally.regions.values();
        assert!(regions.all(|region| region.counters.get().is_none()));
    }

    #[test]
    fn conflicts_and_metadata_are_remembered() {
        let cluster = HostCluster(3);
        let tally = Tally::new(&suspects(&[3]));
        tally.add(cluster, 1, Identity::Guest(1));
        assert!(!tally.has_metadata(cluster));
        tally.add(cluster, 1, Identity::Metadata);
        assert!(tally.has_metadata(cluster) && tally.has_conflict(cluster));
    }
}
