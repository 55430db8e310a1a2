//! The tally: exact reference counts, for suspect clusters only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::cluster_set::ClusterSet;
use super::{Identity, METADATA, NOBODY, by_word, locate};
use crate::qcow2::{ClusterRange, HostCluster};

/// The suspects of one region, in order, with one counter each.
#[derive(Debug)]
struct Region {
    suspects: Box<[u64]>,
    /// Suspects in the words before each word.
    ranks: Box<[u16]>,
    /// How many suspects there are.
    total: u16,
    /// Nothing before the first reference: what leaks has none, and there may be billions of those.
    counters: OnceLock<Counters>,
}

/// A counter for each suspect of a region.
#[derive(Debug)]
struct Counters {
    counts: Box<[AtomicU16]>,
    identity: Box<[AtomicU32]>,
}

impl Region {
    fn new(suspects: Box<[u64]>) -> Self {
        let mut total = 0;
        let ranks = suspects.iter().map(|word| {
            let rank = total;
            total += u16::try_from(word.count_ones()).unwrap_or(0);
            rank
        });
        let ranks = ranks.collect();
        Self {
            suspects,
            ranks,
            total,
            counters: OnceLock::new(),
        }
    }

    fn counters(&self) -> &Counters {
        self.counters.get_or_init(|| Counters {
            counts: (0..self.total).map(|_| AtomicU16::new(0)).collect(),
            identity: (0..self.total).map(|_| AtomicU32::new(NOBODY)).collect(),
        })
    }

    /// Which of the suspects a slot is; `None` if it is none.
    fn rank(&self, slot: usize) -> Option<usize> {
        let word = *self.suspects.get(slot / 64)?;
        let bit = 1 << (slot % 64);
        let before = (word & (bit - 1)).count_ones() as usize;
        (word & bit != 0).then_some(usize::from(*self.ranks.get(slot / 64)?) + before)
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
    conflicts: ClusterSet,
}

impl Tally {
    /// A tally of nothing yet, for the clusters of `suspects`.
    pub(crate) fn new(suspects: &ClusterSet) -> Self {
        let regions = suspects.regions();
        let regions =
            regions.map(|region| (region, Region::new(suspects.words_of(region).collect())));
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
            let Some(region) = region else { continue };
            let mut suspects = region.suspects.get(slot / 64).copied().unwrap_or(0) & part.mask;
            if suspects == 0 {
                continue;
            }
            let first_bit = suspects.trailing_zeros() as usize;
            let word_start = part.first.0 - slot as u64 % 64;
            // Suspects of a run follow one another in the counters, too.
            let ranks = region.rank(slot / 64 * 64 + first_bit);
            for rank in ranks.into_iter().flat_map(|first| first..) {
                if suspects == 0 {
                    break;
                }
                let cluster = HostCluster(word_start + u64::from(suspects.trailing_zeros()));
                let identity = identity.after(cluster.0 - clusters.start.0);
                self.add_at(region, rank, cluster, weight, identity);
                suspects &= suspects - 1;
            }
        }
    }

    fn add_at(
        &self,
        region: &Region,
        rank: usize,
        cluster: HostCluster,
        weight: u64,
        identity: Identity,
    ) {
        self.identify(region, rank, cluster, identity);
        let Some(count) = region.counters().counts.get(rank) else {
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

    fn identify(&self, region: &Region, rank: usize, cluster: HostCluster, identity: Identity) {
        let number = identity.number();
        if number == METADATA {
            self.metadata.insert(cluster);
        }
        let Some(first) = region.counters().identity.get(rank) else {
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

    /// The counts of one region, to be asked for cluster by cluster.
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
        !self.conflicts.is_empty() && self.conflicts.contains(cluster)
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
        let (_, slot) = locate(cluster);
        let region = self.region?;
        let rank = region.rank(slot)?;
        let Some(counters) = region.counters.get() else {
            return Some(0);
        };
        let small = u64::from(counters.counts.get(rank)?.load(Relaxed));
        if !self.tally.has_overflow.load(Relaxed) {
            return Some(small);
        }
        let overflow = self.tally.overflow.lock();
        let overflow = overflow.unwrap_or_else(PoisonError::into_inner);
        Some(small.saturating_add(overflow.get(&cluster).copied().unwrap_or(0)))
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

    #[test]
    fn suspects_that_nothing_refers_to_have_no_counters() {
        let tally = Tally::new(&suspects(&[3, 70_000]));
        assert_eq!(tally.of_region(0).count(HostCluster(3)), Some(0));
        tally.add(HostCluster(70_000), 1, Identity::Guest(1));
        let counted = tally.regions.values();
        let counted: Vec<bool> = counted
            .map(|region| region.counters.get().is_some())
            .collect();
        assert_eq!(counted, [false, true]);
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
