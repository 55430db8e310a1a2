//! Stored counts above one, of one region of clusters: what is still owed, and whether each cluster's payers are of one
//! identity.
//!
//! Comes in: counts, then payments for up to 64 clusters at a time. Goes out: which payments failed, and whether the
//! identities are beyond doubt. Never here: a count of one, a COPIED flag.
//!
//! A count takes 8 bits, and 16 more only in regions where one needs them. Identities are not kept, only a sum for the
//! whole region: a cluster's first payer adds what the payers after it must take away again if they are who it is. What
//! each adds is counted in products of two numbers, one of the cluster and one of the identity, made with a key nobody can
//! know beforehand. Where the sum is zero at the end, all is well, but for a chance of less than one in 2^40; where it is
//! not, the region's shared clusters are suspects, and counted exactly.
//!
//! Guest clusters in a run have one number, that of their distance from their host clusters, and the numbers of host
//! clusters are the differences of a row of numbers. So a run adds two products, however long it is, for each stretch of it
//! on which equally much is owed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

use super::cluster_set::WORDS;
use super::{Identity, REGION_CLUSTERS};
use crate::qcow2::words;

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

/// What payments add to the sum of identities, in units of the number of theirs.
struct Shares {
    of: Payments,
    sum: u64,
    /// The clusters before this slot were added.
    next: usize,
    /// The code of the last of them.
    last: u64,
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
    pub(super) fn owe(&self, slot: usize, counts: &[u16; 64]) -> u64 {
        let largest = u8::try_from(COUNT).unwrap_or(0);
        let lanes = counts.map(|count| match count {
            1 => 0,
            count => u8::try_from(count).unwrap_or(largest).min(largest),
        });
        let kept = self.owed.iter().skip(slot / LANES);
        for (word, lanes) in kept.zip(words(&lanes)) {
            // The first count is the lowest byte.
            word.store(lanes.swap_bytes(), Relaxed);
        }
        if !lanes.contains(&largest) {
            return 0;
        }
        let wide = (0..)
            .zip(counts)
            .filter(|(_, count)| u64::from(**count) >= COUNT);
        wide.fold(0, |refused, (bit, &count)| {
            refused | u64::from(!self.owe_wide(slot + bit, count)) << bit
        })
    }

    fn owe_wide(&self, slot: usize, count: u16) -> bool {
        let wide = self
            .wide
            .get_or_init(|| (0..REGION_CLUSTERS).map(|_| AtomicU16::new(0)).collect());
        match wide.get(slot) {
            Some(counter) if count <= WIDE_COUNT => {
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
            // Most often nothing is left owed on any of the 64.
            let any = counts
                .iter()
                .fold(0, |any, lanes| any | lanes.load(Relaxed));
            if any & (LOWEST * COUNT) == 0 {
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
        let mut shares = Shares::new(payments);
        let (mut failed, mut rest) = (0, payments.mask);
        while rest != 0 {
            let part = rest.trailing_zeros() / 8 * 8;
            let bits = (rest >> part) & 0xff;
            rest &= !(0xff << part);
            let slot = payments.slot / 64 * 64 + part as usize;
            let Some(word) = self.owed.get(slot / LANES) else {
                continue;
            };
            let chosen = spread(bits);
            let mut lowering = Lowering::default();
            let lowered = word.fetch_update(Relaxed, Relaxed, |owed| {
                lowering = Lowering::new(owed, chosen, payments.weight);
                Some((owed - lowering.payable * payments.weight) | (lowering.narrow * TOUCHED))
            });
            let before = lowered.unwrap_or_else(|owed| owed);
            let untouched = lowering.narrow & !(before >> 7);
            let credits = before & (untouched * COUNT);
            shares.add(slot, (lowering.narrow * TOUCHED) | credits);
            if lowering.payable != chosen {
                failed |= gather(lowering.narrow & !lowering.payable) << part;
                let wide = gather(chosen & !lowering.narrow);
                failed |= self.pay_wide(slot, wide, &mut shares) << part;
            }
        }
        let sum = shares.finish();
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

    /// Takes payments from wide counters, those of the eight from `slot` on whose bits are set.
    fn pay_wide(&self, slot: usize, bits: u64, shares: &mut Shares) -> u64 {
        let weight = shares.of.weight;
        let chosen = (0..LANES).filter(|lane| bits >> lane & 1 != 0);
        chosen.fold(0, |failed, lane| {
            let counter = self.wide.get().and_then(|wide| wide.get(slot + lane));
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
            let owed = u64::from(before & WIDE_COUNT);
            let is_first = before & WIDE_TOUCHED == 0;
            shares.add_one(slot + lane, if is_first { owed } else { 0 });
            failed | u64::from(owed < weight) << lane
        })
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

impl Shares {
    fn new(of: Payments) -> Self {
        let (sum, next, last) = (0, 0, 0);
        Self {
            of,
            sum,
            next,
            last,
        }
    }

    /// Adds the payments for eight clusters from `slot` on. A byte of `codes` is one's: zero if it is not paid for, otherwise
    /// its highest bit and what was owed to the first payer, zero to those after it.
    fn add(&mut self, slot: usize, codes: u64) {
        if slot != self.next {
            self.end_run();
        }
        let before = codes << 8 | self.last;
        let mut changes = codes ^ before;
        while changes != 0 {
            let lane = changes.trailing_zeros() / 8;
            let [before, code] = [before, codes].map(|codes| codes >> (8 * lane) & 0xff);
            self.step(slot + lane as usize, before, code);
            changes &= !(0xff << (8 * lane));
        }
        self.next = slot + LANES;
        self.last = codes >> 56;
    }

    /// Nothing is paid for the next cluster.
    fn end_run(&mut self) {
        self.step(self.next, self.last, 0);
        self.last = 0;
    }

    /// From `slot` on, codes are others.
    fn step(&mut self, slot: usize, before: u64, code: u64) {
        let [before, share] = [before, code].map(|code| match code {
            0 => 0,
            code => self.share(code & COUNT),
        });
        let share = before.wrapping_sub(share);
        if share != 0 {
            self.sum = self
                .sum
                .wrapping_add(share.wrapping_mul(self.row_number(slot)));
        }
    }

    /// Adds a payment for one cluster beside the others.
    fn add_one(&mut self, slot: usize, credit: u64) {
        let number = self
            .row_number(slot + 1)
            .wrapping_sub(self.row_number(slot));
        let share = self.share(credit).wrapping_mul(number);
        self.sum = self.sum.wrapping_add(share);
    }

    /// What a payer adds who was owed this much: nothing is owed to those after the first.
    fn share(&self, credit: u64) -> u64 {
        // A structure shares with nobody, not even another structure: nothing is ever taken away again.
        if credit == 0 && self.of.identity == Identity::Metadata {
            return self.of.weight;
        }
        credit.wrapping_sub(self.of.weight)
    }

    /// What the payments change in the sum of the region.
    fn finish(mut self) -> u64 {
        self.end_run();
        if self.sum == 0 {
            return 0;
        }
        let kind = match self.of.identity {
            Identity::Metadata => 0,
            Identity::Compressed => 1,
            Identity::Guest(cluster) => {
                let distance = cluster.wrapping_sub(self.of.slot as u64);
                distance.wrapping_add(REGION_CLUSTERS + 2)
            }
        };
        self.sum
            .wrapping_mul(scramble(scramble(kind ^ self.of.key)))
    }

    /// A cluster's number is that of the next less this one.
    fn row_number(&self, slot: usize) -> u64 {
        scramble(slot as u64 ^ !self.of.key)
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

/// One bit for each lane that has a one.
fn gather(ones: u64) -> u64 {
    ones.wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// What becomes of the chosen lanes of a word, a one for each.
#[derive(Clone, Copy, Default)]
struct Lowering {
    /// Those whose counter is not a wide one.
    narrow: u64,
    /// Those of them that owe enough.
    payable: u64,
}

impl Lowering {
    fn new(owed: u64, chosen: u64, weight: u64) -> Self {
        let is_wide = ((owed & (LOWEST * COUNT)) + LOWEST) >> 7;
        let narrow = chosen & !is_wide;
        // With its highest bit set no lane borrows from the next, and keeps that bit if it owes enough.
        let left = (owed | (LOWEST * TOUCHED)) - narrow * weight.min(COUNT);
        let payable = narrow & (left >> 7);
        Self { narrow, payable }
    }
}
