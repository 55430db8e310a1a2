//! Stored counts above one, of one region of clusters: what is still owed, and whether each cluster's payers are of one
//! identity.
//!
//! Comes in: counts, then payments for up to 64 clusters at a time. Goes out: which payments failed, and whether the
//! identities are beyond doubt. Never here: a count of one, a COPIED flag.
//!
//! A count takes 8 bits, and 16 more only in regions where one needs them. Identities are not kept, only a sum for the
//! whole region: a cluster's first payer adds what the payers after it must take away again if they are who it is. Each
//! cluster and identity has a number of its own for this, made with a key nobody can know beforehand. Where the sum is
//! zero at the end, all is well, but for a chance of one in 2^64; where it is not, the region's shared clusters are
//! suspects, and counted exactly.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

use super::cluster_set::WORDS;
use super::{Identity, REGION_CLUSTERS};

/// Counts that share a word.
const LANES: usize = 8;
/// Words of counts in a region.
const COUNT_WORDS: usize = WORDS * 64 / LANES;
/// The lowest bit of each lane.
const LOWEST: u64 = 0x0101_0101_0101_0101;
/// The bit of a lane that says that somebody has paid.
const TOUCHED: u64 = 0x80;
/// The bits of a lane that count. All of them set: the wide counter has the count.
const COUNT: u64 = 0x7f;
/// The same two in a wide counter.
const WIDE_TOUCHED: u16 = 0x8000;
const WIDE_COUNT: u16 = 0x7fff;

/// The counts of one region.
#[derive(Debug)]
pub(super) struct Shared {
    /// Eight counts to a word.
    owed: Box<[AtomicU64]>,
    /// Counts of 127 and more.
    wide: OnceLock<Box<[AtomicU16]>>,
    /// What first payers have added and later ones not yet taken away.
    identities: AtomicU64,
}

/// Payments for clusters of one word of 64.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payments {
    /// A slot of the region, in the word.
    pub(super) slot: usize,
    /// The clusters of the word that are paid for.
    pub(super) mask: u64,
    /// References each payment stands for.
    pub(super) weight: u64,
    /// What the cluster at `slot` is used for; its neighbours are by those of the guest cluster.
    pub(super) identity: Identity,
    /// What the identities' numbers are made with.
    pub(super) key: u64,
}

/// What was owed on one cluster when it was paid for.
#[derive(Clone, Copy)]
struct Payable {
    owed: u64,
    is_first: bool,
}

impl Shared {
    /// What one takes, but for wide counters.
    pub(super) const BYTES: usize = size_of::<Self>() + COUNT_WORDS * size_of::<u64>();

    /// The largest count that needs no wide counter.
    pub(super) const MAX_NARROW: u64 = COUNT - 1;

    pub(super) fn new() -> Self {
        Self {
            owed: (0..COUNT_WORDS).map(|_| AtomicU64::new(0)).collect(),
            wide: OnceLock::new(),
            identities: AtomicU64::new(0),
        }
    }

    /// Enters the counts above one among those of 64 clusters, whose first is at `slot`, once; returns the bits of the
    /// clusters whose counts are too large to be kept.
    pub(super) fn owe(&self, slot: usize, counts: &[u64; 64]) -> u64 {
        let mut refused = 0;
        let words = self.owed.iter().skip(slot / LANES);
        for (index, (word, counts)) in words.zip(counts.chunks_exact(LANES)).enumerate() {
            let mut lanes = 0;
            for (lane, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 1) {
                let bit = index * LANES + lane;
                if count >= COUNT && !self.owe_wide(slot + bit, count) {
                    refused |= 1 << bit;
                }
                lanes |= count.min(COUNT) << (8 * lane);
            }
            word.store(lanes, Relaxed);
        }
        refused
    }

    fn owe_wide(&self, slot: usize, count: u64) -> bool {
        let wide = self
            .wide
            .get_or_init(|| (0..REGION_CLUSTERS).map(|_| AtomicU16::new(0)).collect());
        let count = u16::try_from(count)
            .ok()
            .filter(|&count| count <= WIDE_COUNT);
        match (wide.get(slot), count) {
            (Some(counter), Some(count)) => {
                counter.store(count, Relaxed);
                true
            }
            _ => false,
        }
    }

    /// What is still owed on a cluster.
    pub(super) fn owed(&self, slot: usize) -> u64 {
        match self.lane(slot) & COUNT {
            COUNT => u64::from(self.wide_counter(slot) & WIDE_COUNT),
            count => count,
        }
    }

    /// Lets go of what is owed on a cluster; says whether that was anything.
    pub(super) fn forgive(&self, slot: usize) -> bool {
        let shift = 8 * (slot % LANES);
        let Some(word) = self.owed.get(slot / LANES) else {
            return false;
        };
        match word.fetch_and(!(COUNT << shift), Relaxed) >> shift & COUNT {
            COUNT => {
                let counter = self.wide.get().and_then(|wide| wide.get(slot));
                counter.is_some_and(|counter| counter.swap(0, Relaxed) & WIDE_COUNT != 0)
            }
            count => count != 0,
        }
    }

    fn lane(&self, slot: usize) -> u64 {
        let word = self.owed.get(slot / LANES);
        word.map_or(0, |word| word.load(Relaxed)) >> (8 * (slot % LANES))
    }

    fn wide_counter(&self, slot: usize) -> u16 {
        let counter = self.wide.get().and_then(|wide| wide.get(slot));
        counter.map_or(0, |counter| counter.load(Relaxed))
    }

    /// Clusters that are owed something, 64 to a word.
    pub(super) fn owing_words(&self) -> impl Iterator<Item = u64> {
        let counts = self.owed.chunks(64 / LANES).enumerate();
        counts.map(|(index, counts)| {
            // Most often nothing was ever owed on any of the 64.
            if counts.iter().all(|lanes| lanes.load(Relaxed) == 0) {
                return 0;
            }
            word_where(index, |slot| self.owed(slot) != 0)
        })
    }

    /// Where it is not certain that each cluster is used for one thing: those that anybody paid for, 64 to a word.
    pub(super) fn doubtful_words(&self) -> Option<impl Iterator<Item = u64>> {
        let is_touched = |slot| match self.lane(slot) & (TOUCHED | COUNT) {
            COUNT => self.wide_counter(slot) & WIDE_TOUCHED != 0,
            lane => lane & TOUCHED != 0,
        };
        (self.identities.load(Relaxed) != 0).then(|| words_where(is_touched))
    }

    /// Takes payments; returns the bits of the clusters on which less was owed.
    pub(super) fn pay(&self, payments: Payments) -> u64 {
        if payments.mask.is_power_of_two() {
            return self.pay_one(payments);
        }
        let (mut failed, mut sum, mut rest) = (0, 0_u64, payments.mask);
        while rest != 0 {
            let part = rest.trailing_zeros() / 8 * 8;
            let bits = (rest >> part) & 0xff;
            rest &= !(0xff << part);
            let first_slot = payments.slot / 64 * 64 + part as usize;
            for (lane, payable) in self.lower(first_slot, bits, payments.weight) {
                failed |= u64::from(payable.owed < payments.weight) << lane << part;
                sum = sum.wrapping_add(payments.difference(first_slot + lane, payable));
            }
        }
        if sum != 0 {
            self.identities.fetch_add(sum, Relaxed);
        }
        failed
    }

    /// Takes all that is owed on clusters among the eight from `slot` on, if it is just this, a byte of at most
    /// [`MAX_NARROW`](Self::MAX_NARROW) for each, and nobody has paid before: then all who pay are of one identity. Otherwise
    /// takes nothing, and returns `false`.
    pub(super) fn pay_off(&self, slot: usize, counts: u64) -> bool {
        let Some(word) = self.owed.get(slot / LANES) else {
            return false;
        };
        let chosen = ((counts + LOWEST * COUNT) >> 7) & LOWEST;
        let lanes = chosen * 0xff;
        let paid = word.fetch_update(Relaxed, Relaxed, |owed| {
            (owed & lanes == counts).then_some((owed & !lanes) | (chosen * TOUCHED))
        });
        paid.is_ok()
    }

    /// Takes a payment for one cluster, as `pay` does for many.
    fn pay_one(&self, payments: Payments) -> u64 {
        let slot = payments.slot / 64 * 64 + payments.mask.trailing_zeros() as usize;
        let shift = 8 * (slot % LANES);
        let Some(word) = self.owed.get(slot / LANES) else {
            return payments.mask;
        };
        let lowered = word.fetch_update(Relaxed, Relaxed, |owed| {
            let lane = (owed >> shift) & COUNT;
            let paid = if lane < COUNT && lane >= payments.weight {
                payments.weight
            } else {
                0
            };
            let touched = if lane < COUNT { TOUCHED << shift } else { 0 };
            Some((owed - (paid << shift)) | touched)
        });
        let before = lowered.unwrap_or_else(|owed| owed) >> shift;
        let payable = if before & COUNT == COUNT {
            self.lower_wide(slot, payments.weight)
        } else {
            Payable {
                owed: before & COUNT,
                is_first: before & TOUCHED == 0,
            }
        };
        let difference = payments.difference(slot, payable);
        if difference != 0 {
            self.identities.fetch_add(difference, Relaxed);
        }
        if payable.owed < payments.weight {
            payments.mask
        } else {
            0
        }
    }

    /// Lowers the lanes of one word whose bits are set, where enough is owed; tells what was owed on each.
    fn lower(
        &self,
        first_slot: usize,
        bits: u64,
        weight: u64,
    ) -> impl Iterator<Item = (usize, Payable)> {
        let chosen = spread(bits);
        let before = self.owed.get(first_slot / LANES).map(|word| {
            let lowered = word.fetch_update(Relaxed, Relaxed, |owed| {
                Some(lower_all(owed, chosen, weight))
            });
            lowered.unwrap_or_else(|owed| owed)
        });
        let lanes = (0..LANES).filter(move |lane| bits >> lane & 1 != 0);
        lanes
            .zip(std::iter::repeat(before.unwrap_or(0)))
            .map(move |(lane, before)| {
                let before = before >> (8 * lane);
                if before & COUNT == COUNT {
                    return (lane, self.lower_wide(first_slot + lane, weight));
                }
                let payable = Payable {
                    owed: before & COUNT,
                    is_first: before & TOUCHED == 0,
                };
                (lane, payable)
            })
    }

    fn lower_wide(&self, slot: usize, weight: u64) -> Payable {
        let counter = self.wide.get().and_then(|wide| wide.get(slot));
        let before = counter.map_or(0, |counter| {
            let lowered = counter.fetch_update(Relaxed, Relaxed, |before| {
                let owed = before & WIDE_COUNT;
                let left = u16::try_from(weight)
                    .ok()
                    .and_then(|weight| owed.checked_sub(weight));
                Some(left.unwrap_or(owed) | WIDE_TOUCHED)
            });
            lowered.unwrap_or_else(|before| before)
        });
        Payable {
            owed: u64::from(before & WIDE_COUNT),
            is_first: before & WIDE_TOUCHED == 0,
        }
    }
}

/// The slots of a region for which something holds, 64 to a word.
fn words_where(is_set: impl Fn(usize) -> bool) -> impl Iterator<Item = u64> {
    (0..WORDS).map(move |word| word_where(word, &is_set))
}

/// The same for one word.
fn word_where(word: usize, is_set: impl Fn(usize) -> bool) -> u64 {
    let slots = (0_u64..64).zip(word * 64..);
    slots.fold(0, |bits, (bit, slot)| {
        bits | (u64::from(is_set(slot)) << bit)
    })
}

impl Payments {
    /// What one payment changes in the sum of the identities.
    fn difference(&self, slot: usize, payable: Payable) -> u64 {
        let share = if payable.is_first {
            payable.owed.wrapping_sub(self.weight)
        } else {
            self.weight.wrapping_neg()
        };
        if share == 0 {
            return 0;
        }
        // A structure shares with nobody, not even another structure: the second one is none of the first's kind.
        let kind = match self.identity {
            Identity::Metadata => u64::from(payable.is_first),
            Identity::Compressed => 2,
            Identity::Guest(cluster) => {
                let distance = (slot as u64).wrapping_sub(self.slot as u64);
                cluster.wrapping_add(distance).wrapping_add(3)
            }
        };
        share.wrapping_mul(scramble(
            scramble(kind ^ self.key).wrapping_add(slot as u64),
        ))
    }
}

/// The last steps of the hash function `SplitMix64`: each bit of the number changes half of those of the result.
fn scramble(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// One in each lane whose bit is set.
fn spread(bits: u64) -> u64 {
    // Each lane gets all eight bits, keeps its own, and turns it into a one.
    let own = (bits * LOWEST) & 0x8040_2010_0804_0201;
    ((own + LOWEST * COUNT) >> 7) & LOWEST
}

/// Marks the chosen lanes as touched, and takes `weight` from those that owe as much.
fn lower_all(owed: u64, chosen: u64, weight: u64) -> u64 {
    let is_wide = ((owed & (LOWEST * COUNT)) + LOWEST) >> 7;
    let narrow = chosen & !is_wide;
    if weight >= COUNT {
        return owed | (narrow * TOUCHED);
    }
    // With its highest bit set no lane borrows from the next, and keeps that bit if it owes enough.
    let left = (owed | (LOWEST * TOUCHED)) - narrow * weight;
    let payable = narrow & (left >> 7);
    (owed - payable * weight) | (narrow * TOUCHED)
}
