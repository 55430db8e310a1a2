//! Sets of clusters, one bit each, filled by many threads at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::sparse::Sparse;
use super::{MAX_CLUSTERS, REGION_CLUSTERS, WordPart, by_word, locate, region_clusters};
use crate::qcow2::{ClusterRange, HostCluster};

/// Words of 64 bits in a region.
pub(super) const WORDS: usize = (REGION_CLUSTERS / 64) as usize;

/// The bits of one region.
#[derive(Debug)]
pub(super) struct Plane {
    words: [AtomicU64; WORDS],
}

impl Plane {
    pub(super) fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    pub(super) fn set(&self, slot: usize) {
        self.set_word(slot / 64, 1 << (slot % 64));
    }

    /// Sets the bits of `mask` in a word.
    pub(super) fn set_word(&self, index: usize, mask: u64) {
        if let Some(word) = self.words.get(index) {
            word.fetch_or(mask, Relaxed);
        }
    }

    /// Clears the bits of `mask` in a word; returns those of them that were set.
    pub(super) fn clear_word(&self, index: usize, mask: u64) -> u64 {
        let Some(word) = self.words.get(index) else {
            return 0;
        };
        // A look is cheaper than a change, and enough where nothing is set.
        if word.load(Relaxed) & mask == 0 {
            return 0;
        }
        word.fetch_and(!mask, Relaxed) & mask
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        let mask = 1_u64 << (slot % 64);
        self.words
            .get(slot / 64)
            .is_some_and(|word| word.load(Relaxed) & mask != 0)
    }

    pub(super) fn word(&self, index: usize) -> u64 {
        self.shared_word(index).map_or(0, |word| word.load(Relaxed))
    }

    pub(super) fn shared_word(&self, index: usize) -> Option<&AtomicU64> {
        self.words.get(index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| word.load(Relaxed) == 0)
    }

    /// The words, 64 clusters each.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        self.words.iter().map(|word| word.load(Relaxed))
    }

    fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.load(Relaxed).count_ones()))
            .sum()
    }
}

/// The clusters whose bits are set in the words of a region.
pub(super) fn clusters_of_words(
    region: u64,
    words: impl Iterator<Item = u64>,
) -> impl Iterator<Item = HostCluster> {
    let start = region_clusters(region).start;
    (0_u64..).zip(words).flat_map(move |(index, mut word)| {
        std::iter::from_fn(move || {
            let bit = u64::from((word != 0).then(|| word.trailing_zeros())?);
            word &= word - 1;
            Some(HostCluster(start + index * 64 + bit))
        })
    })
}

/// A set of clusters.
#[derive(Debug)]
pub(crate) struct ClusterSet {
    planes: Sparse<Plane>,
    has_any: AtomicBool,
}

impl ClusterSet {
    /// An empty set.
    pub(crate) fn new() -> Self {
        Self {
            planes: Sparse::new(MAX_CLUSTERS / REGION_CLUSTERS),
            has_any: AtomicBool::new(false),
        }
    }

    pub(crate) fn insert(&self, cluster: HostCluster) {
        let (region, slot) = locate(cluster);
        if let Some(plane) = self.planes.get_or_make(region, Plane::new) {
            plane.set(slot);
            self.has_any.store(true, Relaxed);
        }
    }

    /// Inserts the clusters of one word, the one `cluster` is in, whose bits are set.
    pub(crate) fn insert_word(&self, cluster: HostCluster, bits: u64) {
        let (region, slot) = locate(cluster);
        if let Some(plane) = self.planes.get_or_make(region, Plane::new) {
            plane.set_word(slot / 64, bits);
            self.has_any.store(true, Relaxed);
        }
    }

    pub(crate) fn contains(&self, cluster: HostCluster) -> bool {
        let (region, slot) = locate(cluster);
        self.planes
            .get(region)
            .is_some_and(|plane| plane.contains(slot))
    }

    pub(crate) fn insert_run(&self, clusters: ClusterRange) {
        for part in by_word(clusters) {
            self.insert_word(part.first, part.mask);
        }
    }

    /// The clusters of the set among those of a part, as bits of its word.
    pub(crate) fn bits_of(&self, part: WordPart) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let (region, slot) = locate(part.first);
        let word = self
            .planes
            .get(region)
            .map_or(0, |plane| plane.word(slot / 64));
        word & part.mask
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.has_any.load(Relaxed)
    }

    pub(crate) fn count(&self) -> u64 {
        self.planes.iter().map(|(_, plane)| plane.count()).sum()
    }

    /// Regions that hold at least one cluster of the set, in order.
    pub(crate) fn regions(&self) -> impl Iterator<Item = u64> {
        self.planes
            .iter()
            .filter(|(_, plane)| !plane.is_empty())
            .map(|(region, _)| region)
    }

    /// The clusters of the set in one region, 64 to a word.
    pub(crate) fn words_of(&self, region: u64) -> impl Iterator<Item = u64> {
        self.planes.get(region).into_iter().flat_map(Plane::words)
    }

    /// Every cluster, in order.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = HostCluster> {
        self.regions()
            .flat_map(|region| clusters_of_words(region, self.words_of(region)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_holds_what_was_put_in_and_nothing_else() {
        let set = ClusterSet::new();
        assert!(set.is_empty());
        let members = [0, 63, 64, REGION_CLUSTERS - 1, REGION_CLUSTERS, 1 << 39];
        for member in members {
            set.insert(HostCluster(member));
            set.insert(HostCluster(member));
        }
        assert!(!set.is_empty());
        assert_eq!(set.count(), 6);
        assert_eq!(
            set.iter().map(|cluster| cluster.0).collect::<Vec<_>>(),
            members
        );
        assert!(!set.contains(HostCluster(1)));
        assert_eq!(
            set.regions().collect::<Vec<_>>(),
            [0, 1, (1 << 39) / REGION_CLUSTERS]
        );
    }
}
