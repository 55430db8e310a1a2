//! The tally: exact reference counts, for suspect clusters only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::cluster_set::ClusterSet;
use super::sparse::Sparse;
use super::{Identity, MAX_CLUSTERS, METADATA, NOBODY, REGION_CLUSTERS, locate};
use crate::qcow2::HostCluster;

#[derive(Debug)]
struct Region {
    counts: Box<[AtomicU16]>,
    identity: Box<[AtomicU32]>,
}

impl Region {
    fn new() -> Self {
        Self {
            counts: (0..REGION_CLUSTERS).map(|_| AtomicU16::new(0)).collect(),
            identity: (0..REGION_CLUSTERS)
                .map(|_| AtomicU32::new(NOBODY))
                .collect(),
        }
    }
}

/// References, counting up.
#[derive(Debug)]
pub(crate) struct Tally {
    regions: Sparse<Region>,
    /// What did not fit into a small counter; the sum of both is the count.
    overflow: Mutex<BTreeMap<HostCluster, u64>>,
    metadata: ClusterSet,
    conflicts: ClusterSet,
}

impl Tally {
    /// An empty tally.
    pub(crate) fn new() -> Self {
        Self {
            regions: Sparse::new(MAX_CLUSTERS / REGION_CLUSTERS),
            overflow: Mutex::default(),
            metadata: ClusterSet::new(),
            conflicts: ClusterSet::new(),
        }
    }

    /// Adds `weight` references of one identity.
    pub(crate) fn add(&self, cluster: HostCluster, weight: u64, identity: Identity) {
        let (region, slot) = locate(cluster);
        let Some(region) = self.regions.get_or_make(region, Region::new) else {
            return;
        };
        self.identify(region, slot, cluster, identity);
        let Some(count) = region.counts.get(slot) else {
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

    fn identify(&self, region: &Region, slot: usize, cluster: HostCluster, identity: Identity) {
        let number = identity.number();
        if number == METADATA {
            self.metadata.insert(cluster);
        }
        let Some(first) = region.identity.get(slot) else {
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
            .get(region)
            .and_then(|region| region.counts.get(slot))
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

    #[test]
    fn counts_are_exact_beyond_the_small_counter() {
        let tally = Tally::new();
        let cluster = HostCluster(40_000);
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
        let tally = Tally::new();
        let cluster = HostCluster(3);
        tally.add(cluster, 1, Identity::Guest(1));
        assert!(!tally.has_metadata(cluster));
        tally.add(cluster, 1, Identity::Metadata);
        assert!(tally.has_metadata(cluster) && tally.has_conflict(cluster));
    }
}
