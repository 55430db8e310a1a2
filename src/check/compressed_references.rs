//! References of compressed data, put together before they are paid: its extents mostly follow one another.
//!
//! Comes in: the clusters that extents touch, one after the other. Goes out: payments for eight clusters at a time. Never
//! here: an extent.

use std::mem;

use crate::qcow2::HostCluster;
use crate::refcount_map::{Directory, Payment};

/// What one table refers to and has not paid for yet.
pub(super) struct CompressedReferences<'a> {
    ledger: &'a Directory<'a>,
    /// References each extent stands for.
    weight: u64,
    /// Extents that touch the eight clusters from `first` on, a byte for each.
    counts: u64,
    first: HostCluster,
}

impl<'a> CompressedReferences<'a> {
    pub(super) fn new(ledger: &'a Directory<'a>, weight: u64) -> Self {
        Self {
            ledger,
            weight,
            counts: 0,
            first: HostCluster(0),
        }
    }

    /// So many extents touch a cluster, at most 64.
    #[inline]
    pub(super) fn add(&mut self, cluster: HostCluster, extents: u64) {
        let first = HostCluster(cluster.0 & !7);
        let shift = 8 * (cluster.0 % 8);
        let count = (self.counts >> shift & 0xff) + extents;
        if first != self.first || count > Directory::MAX_BYTE {
            self.pay();
            self.first = first;
        }
        self.counts += extents << shift;
    }

    /// Pays for all that were added.
    pub(super) fn pay(&mut self) {
        let counts = mem::take(&mut self.counts);
        if self.weight == 1 {
            return self.ledger.pay_for_compressed(self.first, counts);
        }
        let bytes = counts.to_be_bytes();
        let largest = bytes.iter().fold(0, |largest, count| largest.max(*count));
        if u64::from(largest).saturating_mul(self.weight) <= Directory::MAX_BYTE {
            return self
                .ledger
                .pay_for_compressed(self.first, counts * self.weight);
        }
        for (cluster, count) in (self.first.0..).zip(bytes.into_iter().rev()) {
            if count > 0 {
                let count = u64::from(count).saturating_mul(self.weight);
                self.ledger
                    .pay(HostCluster(cluster), Payment::for_compressed(count));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refcount_map::{ClusterSet, Ledger};

    #[test]
    fn references_that_one_byte_cannot_count_are_all_paid() {
        let cases = [
            (1, 126, 1),
            (1, 127, 1),
            (1, 1000, 1),
            (1, 1024, 64),
            (3, 128, 64),
            (40, 3, 1),
            (40, 4, 1),
            (40, 4, 4),
            (130, 2, 1),
        ];
        for (weight, extents, at_once) in cases {
            let ledger = Ledger::of(0..u64::MAX, u64::MAX, ClusterSet::new());
            let mut counts = [0; 64];
            let references = weight * extents;
            (counts[7], counts[8]) = (references, references + 1);
            ledger.entry().owe_larger(HostCluster(0), &counts);
            let directory = ledger.directory();
            let mut compressed = CompressedReferences::new(&directory, u64::from(weight));
            for cluster in [7, 8] {
                for _ in 0..extents / at_once {
                    compressed.add(HostCluster(cluster), u64::from(at_once));
                }
            }
            compressed.pay();
            let owed = [7, 8].map(|cluster| ledger.owed(HostCluster(cluster)));
            assert_eq!(owed, [0, 1], "{extents} extents, each {weight} times");
            assert!(ledger.suspects().is_empty());
        }
    }
}
