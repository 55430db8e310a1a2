//! The ledger: what the stored refcounts owe, paid off by the references.
//!
//! 1. Every stored count is entered: a bit for a count of one, a counter aside for a larger one.
//! 2. Every reference pays. One that is not owed, that pays with the wrong COPIED flag, or that shares with somebody it
//!    may not share with makes its cluster a *suspect*.
//! 3. What is still owed at the end on a cluster that is not suspect is a leak, exactly of that size.
//!
//! Whether a cluster is suspect does not depend on the order of payment: if more is paid than is owed, some payment
//! must fail; if identities differ, some payment meets another's; flags are judged against what was stored.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

use super::cluster_set::{ClusterSet, Plane, WORDS, clusters_of_words};
use super::sparse::Sparse;
use super::{Identity, MAX_CLUSTERS, METADATA, NOBODY, REGION_CLUSTERS, locate};
use crate::qcow2::HostCluster;

/// What a reference's COPIED flag says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopiedFlag {
    /// Set: the stored count must be one.
    Set,
    /// Clear: the stored count must not be one.
    Clear,
    /// Not judged: compressed data, metadata, inactive mappings.
    Any,
}

#[derive(Debug)]
struct Region {
    /// The stored count is one and not yet paid.
    one: Plane,
    /// Stored counts above one; only in regions that have any.
    many: OnceLock<Many>,
}

#[derive(Debug)]
struct Many {
    owed: Box<[AtomicU16]>,
    /// Who paid first.
    identity: Box<[AtomicU32]>,
}

impl Region {
    fn new() -> Self {
        Self {
            one: Plane::new(),
            many: OnceLock::new(),
        }
    }
}

impl Many {
    fn new() -> Self {
        Self {
            owed: (0..REGION_CLUSTERS).map(|_| AtomicU16::new(0)).collect(),
            identity: (0..REGION_CLUSTERS)
                .map(|_| AtomicU32::new(NOBODY))
                .collect(),
        }
    }
}

/// Stored counts, counting down.
#[derive(Debug)]
pub(crate) struct Ledger {
    regions: Sparse<Region>,
    suspects: ClusterSet,
}

impl Ledger {
    /// An empty ledger.
    pub(crate) fn new() -> Self {
        Self {
            regions: Sparse::new(MAX_CLUSTERS / REGION_CLUSTERS),
            suspects: ClusterSet::new(),
        }
    }

    /// Clusters that do not add up.
    pub(crate) fn suspects(&self) -> &ClusterSet {
        &self.suspects
    }

    /// A way in that remembers the last region: neighbours mostly follow one another.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            ledger: self,
            last: None,
        }
    }

    /// What is still owed on a cluster.
    pub(crate) fn owed(&self, cluster: HostCluster) -> u64 {
        let (region, slot) = locate(cluster);
        let Some(region) = self.regions.get(region) else {
            return 0;
        };
        if region.one.contains(slot) {
            return 1;
        }
        region
            .many
            .get()
            .and_then(|many| many.owed.get(slot))
            .map_or(0, |owed| u64::from(owed.load(Relaxed)))
    }

    /// Clusters of a region that are owed something or suspect, in order.
    pub(crate) fn unsettled_clusters(&self, region: u64) -> Vec<HostCluster> {
        let empty = || std::iter::repeat_n(0, WORDS);
        let owing: Vec<u64> = match self.regions.get(region) {
            None => empty().collect(),
            Some(region) => region.owing_words(),
        };
        let suspects = self.suspects.words_of(region).chain(empty());
        let either = owing
            .iter()
            .zip(suspects)
            .map(|(owing, suspect)| owing | suspect);
        clusters_of_words(region, either).collect()
    }

    /// Regions where something is owed or suspect, in order.
    pub(crate) fn unsettled_regions(&self) -> Vec<u64> {
        let owing = self
            .regions
            .iter()
            .filter(|(_, region)| region.owes_anything())
            .map(|(index, _)| index);
        let mut regions: Vec<u64> = owing.chain(self.suspects.regions()).collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    }
}

/// One thread's way into the ledger.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    ledger: &'a Ledger,
    last: Option<(u64, &'a Region)>,
}

impl<'a> Cursor<'a> {
    /// Enters a stored count, once for each cluster.
    pub(crate) fn owe(&mut self, cluster: HostCluster, count: u64) {
        let (index, slot) = locate(cluster);
        let Some(region) = self.region_to_fill(index) else {
            return;
        };
        if count == 1 {
            region.one.set(slot);
            return;
        }
        match u16::try_from(count) {
            Ok(count) => {
                if let Some(owed) = region.many.get_or_init(Many::new).owed.get(slot) {
                    owed.store(count, Relaxed);
                }
            }
            // Beyond what a small counter holds: left to the exact tally.
            Err(_) => self.ledger.suspects.insert(cluster),
        }
    }

    /// Pays `weight` references of one identity off a cluster; notes the cluster as suspect where that fails.
    pub(crate) fn pay(
        &mut self,
        cluster: HostCluster,
        weight: u64,
        identity: Identity,
        flag: CopiedFlag,
    ) {
        if !self.try_pay(cluster, weight, identity, flag) {
            self.ledger.suspects.insert(cluster);
        }
    }

    /// Whether a payment is owed and made with the right flag.
    pub(crate) fn try_pay(
        &mut self,
        cluster: HostCluster,
        weight: u64,
        identity: Identity,
        flag: CopiedFlag,
    ) -> bool {
        let (index, slot) = locate(cluster);
        let Some(region) = self.region(index) else {
            return false;
        };
        if weight == 1 && region.one.clear(slot) {
            return flag != CopiedFlag::Clear;
        }
        let Some(many) = region.many.get() else {
            return false;
        };
        // Both are done whatever the other says, so that the outcome does not depend on the order of payment.
        let is_alone_of_its_kind = many.identify(slot, identity);
        many.lower(slot, weight) && is_alone_of_its_kind && flag != CopiedFlag::Set
    }

    fn region(&mut self, index: u64) -> Option<&'a Region> {
        match self.last {
            Some((last, region)) if last == index => Some(region),
            _ => {
                let region = self.ledger.regions.get(index)?;
                self.last = Some((index, region));
                Some(region)
            }
        }
    }

    fn region_to_fill(&mut self, index: u64) -> Option<&'a Region> {
        if let Some((last, region)) = self.last
            && last == index
        {
            return Some(region);
        }
        let region = self.ledger.regions.get_or_make(index, Region::new)?;
        self.last = Some((index, region));
        Some(region)
    }
}

impl Region {
    /// Clusters that are owed something, 64 to a word.
    fn owing_words(&self) -> Vec<u64> {
        let mut words: Vec<u64> = self.one.words().collect();
        if let Some(many) = self.many.get() {
            for (word, counts) in words.iter_mut().zip(many.owed.chunks(64)) {
                for (bit, owed) in counts.iter().enumerate() {
                    *word |= u64::from(owed.load(Relaxed) != 0) << bit;
                }
            }
        }
        words
    }

    fn owes_anything(&self) -> bool {
        !self.one.is_empty()
            || self
                .many
                .get()
                .is_some_and(|many| many.owed.iter().any(|owed| owed.load(Relaxed) != 0))
    }
}

impl Many {
    fn lower(&self, slot: usize, weight: u64) -> bool {
        let Some(owed) = self.owed.get(slot) else {
            return false;
        };
        owed.fetch_update(Relaxed, Relaxed, |owed| {
            u16::try_from(weight)
                .ok()
                .and_then(|weight| owed.checked_sub(weight))
        })
        .is_ok()
    }

    /// Leaves one's identity; says whether the cluster is shared only with its like.
    fn identify(&self, slot: usize, identity: Identity) -> bool {
        let number = identity.number();
        let Some(first) = self.identity.get(slot) else {
            return false;
        };
        match first.compare_exchange(NOBODY, number, Relaxed, Relaxed) {
            Ok(_) => true,
            Err(other) => other == number && number != METADATA,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: HostCluster = HostCluster(77_777);

    fn ledger(stored: u64) -> Ledger {
        let ledger = Ledger::new();
        ledger.cursor().owe(CLUSTER, stored);
        ledger
    }

    fn is_suspect(ledger: &Ledger) -> bool {
        ledger.suspects().contains(CLUSTER)
    }

    #[test]
    fn exact_payment_leaves_nothing() {
        let ledger = ledger(1);
        ledger
            .cursor()
            .pay(CLUSTER, 1, Identity::Guest(5), CopiedFlag::Set);
        assert_eq!(ledger.owed(CLUSTER), 0);
        assert!(!is_suspect(&ledger));
        assert!(ledger.unsettled_regions().is_empty());
    }

    #[test]
    fn unpaid_count_is_left_over() {
        let ledger = ledger(3);
        ledger
            .cursor()
            .pay(CLUSTER, 1, Identity::Guest(5), CopiedFlag::Clear);
        assert_eq!(ledger.owed(CLUSTER), 2);
        assert!(!is_suspect(&ledger));
        assert_eq!(ledger.unsettled_regions(), [CLUSTER.0 / REGION_CLUSTERS]);
    }

    #[test]
    fn paying_what_is_not_owed_is_suspect_in_any_order() {
        for weights in [[2, 1], [1, 2]] {
            let ledger = ledger(2);
            for weight in weights {
                ledger
                    .cursor()
                    .pay(CLUSTER, weight, Identity::Guest(5), CopiedFlag::Any);
            }
            assert!(is_suspect(&ledger), "{weights:?}");
        }
        let nothing_stored = Ledger::new();
        nothing_stored
            .cursor()
            .pay(CLUSTER, 1, Identity::Metadata, CopiedFlag::Any);
        assert!(is_suspect(&nothing_stored));
    }

    #[test]
    fn copied_flag_is_judged_against_the_stored_count() {
        for (stored, weight, flag, wrong) in [
            (1, 1, CopiedFlag::Set, false),
            (1, 1, CopiedFlag::Clear, true),
            (2, 2, CopiedFlag::Set, true),
            (2, 2, CopiedFlag::Clear, false),
            (2, 2, CopiedFlag::Any, false),
        ] {
            let ledger = ledger(stored);
            ledger
                .cursor()
                .pay(CLUSTER, weight, Identity::Guest(0), flag);
            assert_eq!(is_suspect(&ledger), wrong, "{stored} {weight} {flag:?}");
        }
    }

    #[test]
    fn shared_clusters_must_be_shared_by_their_like() {
        for (first, second, wrong) in [
            (Identity::Guest(1), Identity::Guest(1), false),
            (Identity::Guest(1), Identity::Guest(2), true),
            (Identity::Compressed, Identity::Compressed, false),
            (Identity::Compressed, Identity::Guest(0), true),
            (Identity::Metadata, Identity::Metadata, true),
            (Identity::Guest(1), Identity::Metadata, true),
        ] {
            let ledger = ledger(2);
            ledger.cursor().pay(CLUSTER, 1, first, CopiedFlag::Any);
            ledger.cursor().pay(CLUSTER, 1, second, CopiedFlag::Any);
            assert_eq!(is_suspect(&ledger), wrong, "{first:?} {second:?}");
        }
    }

    #[test]
    fn counts_beyond_the_counter_are_left_to_the_tally() {
        assert!(is_suspect(&ledger(70_000)));
    }
}
