//! The tally: exact reference counts, for suspect clusters only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::cluster_set::ClusterSet;
use super::{Identity, METADATA, NOBODY, locate};
use crate::qcow2::HostCluster;

/// The suspects of one region, in order, with one counter each.
#[derive(Debug)]
struct Region {
    suspects: Box<[u64]>,
    /// Suspects in the words before each word.
    ranks: Box<[u16]>,
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
            counts: (0..total).map(|_| AtomicU16::new(0)).collect(),
            identity: (0..total).map(|_| AtomicU32::new(NOBODY)).collect(),
        }
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
            metadata: ClusterSet::new(),
            conflicts: ClusterSet::new(),
        }
    }

    /// Adds `weight` references of one identity to a suspect; other clusters do not count.
    pub(crate) fn add(&self, cluster: HostCluster, weight: u64, identity: Identity) {
        let (region, slot) = locate(cluster);
        let found = self.regions.get(&region);
        let Some((region, rank)) = found.and_then(|region| Some((region, region.rank(slot)?)))
        else {
            return;
        };
        self.identify(region, rank, cluster, identity);
        let Some(count) = region.counts.get(rank) else {
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
        }
    }

    fn identify(&self, region: &Region, rank: usize, cluster: HostCluster, identity: Identity) {
        let number = identity.number();
        if number == METADATA {
            self.metadata.insert(cluster);
        }
        let Some(first) = region.identity.get(rank) else {
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
        let (region, slot) = locate(cluster);
        let small = self
            .regions
            .get(&region)
            .and_then(|region| region.counts.get(region.rank(slot)?))
            .map_or(0, |count| u64::from(count.load(Relaxed)));
        let overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
        small.saturating_add(overflow.get(&cluster).copied().unwrap_or(0))
    }

    /// Whether a structure of the format is among the references.
    pub(crate) fn has_metadata(&self, cluster: HostCluster) -> bool {
        self.metadata.contains(cluster)
    }

    /// Whether references share the cluster that may not share one.
    pub(crate) fn has_conflict(&self, cluster: HostCluster) -> bool {
        self.conflicts.contains(cluster)
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
    fn conflicts_and_metadata_are_remembered() {
        let cluster = HostCluster(3);
        let tally = Tally::new(&suspects(&[3]));
        tally.add(cluster, 1, Identity::Guest(1));
        assert!(!tally.has_metadata(cluster));
        tally.add(cluster, 1, Identity::Metadata);
        assert!(tally.has_metadata(cluster) && tally.has_conflict(cluster));
    }
}
