//! The tally: exact reference counts, for suspect clusters only.
//!
//! Most suspects have one reference, and most of these come in runs. So a reference is a bit where it can be one: for guest
//! data, if the clusters of its word that came first hold the guest clusters that its neighbours would have; for a structure,
//! if it is the first. Only the other references have counters, made where they are needed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::cluster_set::{ClusterSet, WORDS};
use super::{Identity, METADATA, NOBODY, by_word, locate};
use crate::qcow2::{ClusterRange, HostCluster};

/// Suspects among 64 clusters, with the references that are a bit each.
#[derive(Debug)]
struct Line {
    suspects: u64,
    /// Suspects of the region in the lines before.
    rank: u16,
    /// The guest cluster that the first cluster of the word would hold if it went along with the others, plus 64; 0 before
    /// the first reference.
    guest_origin: AtomicU64,
    /// One reference by guest data, of the guest cluster that follows from the origin.
    guest: AtomicU64,
    /// One reference by a structure.
    metadata: AtomicU64,
}

impl Line {
    /// Takes one reference to each of some suspects, the first of them for `identity`; returns those that were taken.
    fn take(&self, suspects: u64, identity: Identity) -> u64 {
        let bits = match identity {
            Identity::Metadata => &self.metadata,
            Identity::Guest(cluster) if self.is_in_line(cluster, suspects.trailing_zeros()) => {
                &self.guest
            }
            Identity::Guest(_) | Identity::Compressed => return 0,
        };
        suspects & !bits.fetch_or(suspects, Relaxed)
    }

    /// Whether a guest cluster goes along with the first that was referred to here; the first one does.
    fn is_in_line(&self, guest_cluster: u64, bit: u32) -> bool {
        let origin = guest_cluster.wrapping_sub(u64::from(bit)).wrapping_add(64);
        let known = self.guest_origin.load(Relaxed);
        if known != 0 || origin == 0 {
            return known == origin && origin != 0;
        }
        let exchanged = self
            .guest_origin
            .compare_exchange(0, origin, Relaxed, Relaxed);
        exchanged.map_or_else(|other| other == origin, |_| true)
    }

    /// What guest data at a bit that was taken is.
    fn identity_at(&self, bit: u32) -> Identity {
        let origin = self.guest_origin.load(Relaxed);
        Identity::Guest(origin.wrapping_sub(64).wrapping_add(u64::from(bit)))
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
                guest_origin: AtomicU64::new(0),
                guest: AtomicU64::new(0),
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
    /// Guest data.
    pub(crate) guest: u64,
    /// Structures.
    pub(crate) metadata: u64,
    /// What the word's first cluster would hold, if guest data was in it: each next cluster has the next guest cluster. It
    /// may be less than zero, and has wrapped around then.
    pub(crate) first_guest_cluster: u64,
}

impl Singles {
    /// All of them.
    pub(crate) fn all(self) -> u64 {
        self.guest | self.metadata
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
        let of = |bits: &AtomicU64| bits.load(Relaxed) >> bit & 1;
        let small = of(&line.guest) + of(&line.metadata);
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
        let is_set = |bits: &AtomicU64| bits.load(Relaxed) >> bit & 1 != 0;
        let (guest, metadata) = (is_set(&line.guest), is_set(&line.metadata));
        let counted = region.counters.get();
        let counted = counted.map_or(NOBODY, |counters| counters.identity(line.rank_of(bit)));
        let is_counted = counted != NOBODY;
        // A structure shares with nobody, not even its like.
        let is_shared = metadata && (guest || is_counted);
        is_shared
            || (guest && is_counted && counted != line.identity_at(bit).number())
            || (!self.tally.conflicts.is_empty() && self.tally.conflicts.contains(cluster))
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
        let (guest, metadata) = (line.guest.load(Relaxed), line.metadata.load(Relaxed));
        let mut single = guest ^ metadata;
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
        let origin = line.guest_origin.load(Relaxed);
        Singles {
            guest: guest & single,
            metadata: metadata & single,
            first_guest_cluster: origin.wrapping_sub(64),
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

    #[test]
    fn bits_and_counters_together_say_what_a_list_says() {
        const FIRST: u64 = 32_600;
        const CLUSTERS: u64 = 300;
        for seed in 0..400_u64 {
            let mut state = seed;
            let mut below = |limit: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % limit
            };
            let asked: Vec<u64> = (FIRST..FIRST + CLUSTERS).filter(|_| below(3) > 0).collect();
            let tally = Tally::new(&suspects(&asked));
            let mut listed = vec![Listed::default(); CLUSTERS as usize];
            for _ in 0..below(12) {
                let (start, weight) = (below(CLUSTERS), 1 + below(5) / 4);
                let clusters = ClusterRange {
                    start: HostCluster(FIRST + start),
                    count: 1 + below(CLUSTERS - start),
                };
                let identity = match below(8) {
                    0 => Identity::Metadata,
                    1 => Identity::Compressed,
                    // Mostly where its neighbours would be.
                    2 => Identity::Guest(below(4)),
                    _ => Identity::Guest(start),
                };
                tally.add_run(clusters, weight, identity);
                for distance in 0..clusters.count {
                    let one = &mut listed[(start + distance) as usize];
                    one.count += weight;
                    one.identities.push(identity.after(distance));
                }
            }
            for (cluster, one) in (FIRST..).map(HostCluster).zip(&listed) {
                let of_region = tally.of_region(locate(cluster).0);
                let is_asked = asked.contains(&cluster.0);
                let expected = is_asked.then_some(one.count);
                assert_eq!(
                    of_region.count(cluster),
                    expected,
                    "seed {seed}, {cluster:?}"
                );
                let has_conflict = is_asked && one.has_conflict();
                assert_eq!(
                    tally.has_conflict(cluster),
                    has_conflict,
                    "seed {seed}, {cluster:?}"
                );
                let has_metadata = is_asked && one.identities.contains(&Identity::Metadata);
                assert_eq!(
                    tally.has_metadata(cluster),
                    has_metadata,
                    "seed {seed}, {cluster:?}"
                );
                let bit = cluster.0 % 64;
                let singles = of_region.singles(HostCluster(cluster.0 - bit));
                let single = singles.all() >> bit & 1 != 0;
                assert!(!single || expected == Some(1), "seed {seed}, {cluster:?}");
                if singles.guest >> bit & 1 != 0 {
                    let guest_cluster = singles.first_guest_cluster.wrapping_add(bit);
                    assert_eq!(one.identities, [Identity::Guest(guest_cluster)]);
                } else if single {
                    assert_eq!(one.identities, [Identity::Metadata]);
                }
            }
        }
    }

    #[test]
    fn guest_data_in_a_line_is_counted_by_bits_alone() {
        let asked: Vec<u64> = (100..200).collect();
        let tally = Tally::new(&suspects(&asked));
        let run = ClusterRange {
            start: HostCluster(100),
            count: 100,
        };
        tally.add_run(run, 1, Identity::Guest(7));
        let singles = tally.of_region(0).singles(HostCluster(128));
        assert_eq!((singles.guest, singles.first_guest_cluster), (u64::MAX, 35));
        assert!(
            tally
                .regions
                .values()
                .all(|region| region.counters.get().is_none())
        );
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
