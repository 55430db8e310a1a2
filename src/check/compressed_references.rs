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
    /// References to the eight clusters from `first` on, a byte for each.
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

    /// An extent touches a cluster.
    #[inline]
    pub(super) fn add(&mut self, cluster: HostCluster) {
        let first = HostCluster(cluster.0 & !7);
        let shift = 8 * (cluster.0 % 8);
        if first != self.first {
            self.pay();
            self.first = first;
        }
        let count = (self.counts >> shift & 0xff) + self.weight;
        if count <= Directory::MAX_BYTE {
            self.counts += self.weight << shift;
        } else {
            self.begin_anew(cluster);
        }
    }

    /// A cluster has more references than are paid together with those to its neighbours.
    #[cold]
    fn begin_anew(&mut self, cluster: HostCluster) {
        self.pay();
        if self.weight <= Directory::MAX_BYTE {
            self.counts = self.weight << (8 * (cluster.0 % 8));
        } else {
            self.ledger
                .pay(cluster, Payment::for_compressed(self.weight));
        }
    }

    /// Pays for all that were added.
    pub(super) fn pay(&mut self) {
        let counts = mem::take(&mut self.counts);
        self.ledger.pay_for_compressed(self.first, counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refcount_map::{ClusterSet, Ledger};

    #[test]
    fn references_that_one_byte_cannot_count_are_all_paid() {
        for (weight, extents) in [(1, 126), (1, 127), (1, 1000), (40, 3), (40, 4), (130, 2)] {
            let ledger = Ledger::of(0..u64::MAX, u64::MAX, ClusterSet::new());
            let mut counts = [0; 64];
            let references = u16::try_from(weight * extents).expect("small");
            (counts[7], counts[8]) = (references, references + 1);
            ledger.entry().owe_larger(HostCluster(0), &counts);
            let directory = ledger.directory();
            let mut compressed = CompressedReferences::new(&directory, weight);
            for cluster in [7, 8] {
                for _ in 0..extents {
                    compressed.add(HostCluster(cluster));
                }
            }
            compressed.pay();
            let owed = [7, 8].map(|cluster| ledger.owed(HostCluster(cluster)));
            assert_eq!(owed, [0, 1], "{extents} extents, each {weight} times");
            assert!(ledger.suspects().is_empty());
        }
    }
}
