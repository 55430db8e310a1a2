//! The ledger: what the stored refcounts owe, paid off by the references.
//!
//! 1. Every stored count is entered: a bit for a count of one, a counter aside for a larger one.
//! 2. Every reference pays. One that is not owed, that pays with the wrong COPIED flag, or that shares with somebody it
//!    may not share with makes its cluster a *suspect*.
//! 3. What is still owed at the end on a cluster that is not suspect is a leak, exactly of that size.
//!
//! Whether a cluster is suspect does not depend on the order of payment: if more is paid than is owed, some payment
//! must fail; if identities differ, their sum does not come out even; flags are judged against what was stored.
//!
//! References mostly come in runs, guest cluster after guest cluster in host cluster after host cluster. A run pays 64
//! clusters with one operation; a payment of one cluster is a run of one.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::cluster_set::{ClusterSet, Plane, WORDS, clusters_of_words};
use super::shared::{Payments, Shared};
use super::sparse::Sparse;
use super::{Identity, MAX_CLUSTERS, REGION_CLUSTERS, locate, region_clusters};
use crate::qcow2::{ClusterRange, HostCluster};

/// Regions that are found without walking down the tree of regions: all of a file of 2 PiB at 64 KiB.
const MAX_DIRECTORY_REGIONS: u64 = 1 << 20;

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

/// What references of one run have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payment {
    /// How many references each stands for.
    pub(crate) weight: u64,
    /// What the first cluster is used for; each next one by the next guest cluster.
    pub(crate) identity: Identity,
    pub(crate) flag: CopiedFlag,
}

impl Payment {
    /// So many references of compressed data.
    pub(crate) fn for_compressed(count: u64) -> Self {
        Self {
            weight: count,
            identity: Identity::Compressed,
            flag: CopiedFlag::Any,
        }
    }

    /// The payment for what lies `count` clusters further on in the run.
    fn after(self, count: u64) -> Self {
        Self {
            identity: self.identity.after(count),
            ..self
        }
    }
}

#[derive(Debug)]
struct Region {
    /// The stored count is one and not yet paid.
    one: Plane,
    /// Stored counts above one; only in regions that have any.
    shared: OnceLock<Box<Shared>>,
}

impl Region {
    fn new() -> Self {
        Self {
            one: Plane::new(),
            shared: OnceLock::new(),
        }
    }
}

/// Stored counts, counting down.
#[derive(Debug)]
pub(crate) struct Ledger {
    regions: Sparse<Region>,
    /// The regions it is kept for; what concerns others is not noted at all.
    window: Range<u64>,
    /// Bytes the regions may take, and take.
    limit_bytes: u64,
    bytes: AtomicU64,
    is_over_limit: AtomicBool,
    suspects: ClusterSet,
    /// Another one in each run, so that nobody can make an image for which the sums of identities come out even.
    key: u64,
}

impl Ledger {
    /// An empty ledger.
    #[cfg(test)]
    fn new() -> Self {
        Self::of(0..u64::MAX, u64::MAX, ClusterSet::new())
    }

    /// An empty ledger for some regions, which may take so many bytes, beside suspects that are already known.
    pub(crate) fn of(window: Range<u64>, limit_bytes: u64, suspects: ClusterSet) -> Self {
        Self {
            regions: Sparse::new(MAX_CLUSTERS / REGION_CLUSTERS),
            window,
            limit_bytes,
            bytes: AtomicU64::new(0),
            is_over_limit: AtomicBool::new(false),
            suspects,
            key: RandomState::new().hash_one(0),
        }
    }

    /// Whether counts were left out because there was no room for them: the ledger is of no use then.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.is_over_limit.load(Relaxed)
    }

    /// Gives the ledger up and makes whatever is not settled in it a suspect.
    pub(crate) fn into_suspects(self) -> ClusterSet {
        for (index, region) in self.regions.iter() {
            let first = region_clusters(index).start;
            for (first, owing) in (first..).step_by(64).zip(region.owing_words()) {
                if owing != 0 {
                    self.suspects.insert_word(HostCluster(first), owing);
                }
            }
        }
        self.suspects
    }

    /// Gives the ledger up and keeps the suspects it began with: none were added yet.
    pub(crate) fn into_known_suspects(self) -> ClusterSet {
        self.suspects
    }

    /// Takes room for a part of a region; `false` where there is none left.
    fn take_room(&self, bytes: usize) -> bool {
        let taken = self.bytes.fetch_add(bytes as u64, Relaxed);
        let has_room = taken < self.limit_bytes;
        if !has_room {
            self.is_over_limit.store(true, Relaxed);
        }
        has_room
    }

    /// After the last payment: where it is not certain that each shared cluster is used for one thing, makes them suspects.
    pub(crate) fn close(&self) {
        for (index, region) in self.regions.iter() {
            let doubtful = region
                .shared
                .get()
                .and_then(|shared| shared.doubtful_words());
            let first = region_clusters(index).start;
            for (first, bits) in (first..).step_by(64).zip(doubtful.into_iter().flatten()) {
                if bits != 0 {
                    self.suspects.insert_word(HostCluster(first), bits);
                }
            }
        }
    }

    /// Clusters that do not add up.
    pub(crate) fn suspects(&self) -> &ClusterSet {
        &self.suspects
    }

    /// A way to enter stored counts.
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry {
            ledger: self,
            last: None,
        }
    }

    /// Closes the entering of counts: what is not entered by now is zero.
    pub(crate) fn directory(&self) -> Directory<'_> {
        let mut regions = Vec::new();
        for (index, region) in self.regions.iter() {
            if index < MAX_DIRECTORY_REGIONS {
                let end = usize::try_from(index).unwrap_or(0);
                regions.resize(end, None);
                regions.push(Some(region));
            }
        }
        Directory {
            ledger: self,
            regions,
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
        region.shared.get().map_or(0, |shared| shared.owed(slot))
    }

    /// Whether a cluster has as many references as its stored count says.
    pub(crate) fn is_settled(&self, cluster: HostCluster) -> bool {
        self.owed(cluster) == 0 && !self.suspects.contains(cluster)
    }

    /// Clusters of a region that are owed something or suspect, in order.
    pub(crate) fn unsettled_clusters(&self, region: u64) -> Vec<HostCluster> {
        let either = self.unsettled_words(region);
        let either = either.map(|word| word.owing | word.suspect);
        clusters_of_words(region, either).collect()
    }

    /// The same, 64 clusters at a time.
    pub(crate) fn unsettled_words(&self, region: u64) -> impl Iterator<Item = Unsettled> {
        let empty = || std::iter::repeat_n(0, WORDS);
        let known = self.regions.get(region);
        let owing: Vec<u64> = known.map_or_else(|| empty().collect(), Region::owing_words);
        let ones = known.into_iter().flat_map(|region| region.one.words());
        let suspects = self.suspects.words_of(region).chain(empty());
        let starts = region_clusters(region).step_by(64);
        let words = owing.into_iter().zip(ones.chain(empty())).zip(suspects);
        starts
            .zip(words)
            .map(|(start, ((owing, owing_one), suspect))| Unsettled {
                start: HostCluster(start),
                owing,
                owing_one,
                suspect,
            })
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

/// What is not settled among 64 clusters, a bit for each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    pub(crate) start: HostCluster,
    /// Something is owed.
    pub(crate) owing: u64,
    /// Of those, the stored count is one and not paid.
    pub(crate) owing_one: u64,
    pub(crate) suspect: u64,
}

impl Unsettled {
    /// Runs of clusters that are all in one of the classes, of which no two have a cluster in common, and single ones that
    /// are in none, in order.
    pub(crate) fn runs<const N: usize>(
        self,
        classes: [u64; N],
    ) -> impl Iterator<Item = ClusterRange> {
        let mut rest = self.owing | self.suspect;
        std::iter::from_fn(move || {
            let first = (rest != 0).then(|| rest.trailing_zeros())?;
            let lengths = classes.map(|class| ((rest & class) >> first).trailing_ones());
            let count = lengths.into_iter().fold(1, u32::max);
            rest &= !((u64::MAX >> (64 - count)) << first);
            Some(ClusterRange {
                start: HostCluster(self.start.0 + u64::from(first)),
                count: u64::from(count),
            })
        })
    }
}

/// One thread's way to enter stored counts, each once.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    ledger: &'a Ledger,
    last: Option<(u64, &'a Region)>,
}

impl<'a> Entry<'a> {
    /// Enters counts of one for the 64 clusters from `first` on, a multiple of 64, whose bits are set.
    pub(crate) fn owe_ones(&mut self, first: HostCluster, ones: u64) {
        let (index, slot) = locate(first);
        if ones != 0
            && let Some(region) = self.region(index)
        {
            region.one.set_word(slot / 64, ones);
        }
    }

    /// Enters the counts above one among those of the 64 clusters from `first` on, a multiple of 64.
    pub(crate) fn owe_larger(&mut self, first: HostCluster, counts: &[u16; 64]) {
        let (index, slot) = locate(first);
        let Some(region) = self.region(index) else {
            return;
        };
        if region.shared.get().is_none() && !self.ledger.take_room(Shared::BYTES) {
            return;
        }
        let shared = region.shared.get_or_init(|| Box::new(Shared::new()));
        let refused = shared.owe(slot, counts);
        // Beyond what a counter holds: left to the exact tally.
        if refused != 0 {
            self.ledger.suspects.insert_word(first, refused);
        }
    }

    fn region(&mut self, index: u64) -> Option<&'a Region> {
        if let Some((last, region)) = self.last
            && last == index
        {
            return Some(region);
        }
        let ledger = self.ledger;
        if !ledger.window.contains(&index) {
            return None;
        }
        let is_new = ledger.regions.get(index).is_none();
        if is_new && !ledger.take_room(size_of::<Region>()) {
            return None;
        }
        let region = ledger.regions.get_or_make(index, Region::new)?;
        self.last = Some((index, region));
        Some(region)
    }
}

/// The ledger with all counts entered, for all threads to pay into.
#[derive(Debug)]
pub(crate) struct Directory<'a> {
    ledger: &'a Ledger,
    regions: Vec<Option<&'a Region>>,
}

impl Directory<'_> {
    /// The most references to one cluster that are paid together with those to its neighbours.
    pub(crate) const MAX_BYTE: u64 = Shared::MAX_NARROW;

    /// Makes a cluster a suspect.
    pub(crate) fn suspect(&self, cluster: HostCluster) {
        self.ledger.suspects.insert(cluster);
    }

    /// Pays off one cluster.
    pub(crate) fn pay(&self, cluster: HostCluster, payment: Payment) {
        self.pay_run(ClusterRange::one(cluster), payment);
    }

    /// Pays off a run of clusters, each next one for the next guest cluster; those where that fails become suspects.
    pub(crate) fn pay_run(&self, clusters: ClusterRange, payment: Payment) {
        let mut done = 0;
        while done < clusters.count {
            let first = HostCluster(clusters.start.0 + done);
            let count = (64 - first.0 % 64).min(clusters.count - done);
            let failed = self.pay_in_word(first, count, payment.after(done));
            if failed != 0 {
                self.ledger.suspects.insert_word(first, failed);
            }
            done += count;
        }
    }

    /// Pays for compressed data in the eight clusters from `first` on, a multiple of 8: a byte of `counts` is the number of
    /// references to one, at most [`MAX_BYTE`](Self::MAX_BYTE).
    pub(crate) fn pay_for_compressed(&self, first: HostCluster, counts: u64) {
        if counts == 0 {
            return;
        }
        let (index, slot) = locate(first);
        let shared = self.region(index).and_then(|region| region.shared.get());
        // Mostly these are all the references there are.
        if shared.is_some_and(|shared| shared.pay_off(slot, counts)) {
            return;
        }
        for lane in 0..8 {
            let count = counts >> (8 * lane) & 0xff;
            if count > 0 {
                self.pay(HostCluster(first.0 + lane), Payment::for_compressed(count));
            }
        }
    }

    /// Lets go of whatever is owed on a cluster, whoever may have owed it; says whether that was anything.
    pub(crate) fn forgive(&self, cluster: HostCluster) -> bool {
        let (index, slot) = locate(cluster);
        let is_forgiven = |region: &Region| {
            let shared = region.shared.get();
            region.one.clear_word(slot / 64, 1 << (slot % 64)) != 0
                || shared.is_some_and(|shared| shared.forgive(slot))
        };
        self.region(index).is_some_and(is_forgiven)
    }

    /// Pays one reference off each of up to 64 clusters that lie far apart, for guest clusters that follow one another;
    /// cluster 0 stands for none. COPIED flags are set, or not judged.
    pub(crate) fn pay_scattered(&self, clusters: &[HostCluster; 64], payment: Payment) {
        static NOTHING_OWED: AtomicU64 = AtomicU64::new(0);
        let words = clusters.map(|cluster| {
            let (index, slot) = locate(cluster);
            let region = self.region(index);
            let word = region.and_then(|region| region.one.shared_word(slot / 64));
            word.unwrap_or(&NOTHING_OWED)
        });
        // Payments have to wait for one another, looks do not: this brings what they touch into the cache all at once.
        let seen = words.map(|word| word.load(Relaxed));
        let places = clusters.iter().zip(words).zip(seen);
        for (distance, ((&cluster, word), seen)) in (0..).zip(places) {
            let bit = 1 << (cluster.0 % 64);
            if cluster.0 == 0 || seen & bit != 0 && word.fetch_and(!bit, Relaxed) & bit != 0 {
                continue;
            }
            self.pay(cluster, payment.after(distance));
        }
    }

    /// Pays off `count` clusters whose bits lie in one word; returns the bits of those where that failed.
    fn pay_in_word(&self, first: HostCluster, count: u64, payment: Payment) -> u64 {
        let (index, slot) = locate(first);
        let mask = (u64::MAX >> (64 - count)) << (slot % 64);
        let Some(region) = self.region(index) else {
            let is_ours = self.ledger.window.contains(&index);
            return if is_ours { mask } else { 0 };
        };
        let paid = if payment.weight == 1 {
            region.one.clear_word(slot / 64, mask)
        } else {
            0
        };
        let failed = if payment.flag == CopiedFlag::Clear {
            paid
        } else {
            0
        };
        let rest = mask & !paid;
        if rest == 0 {
            return failed;
        }
        let unpaid = region.shared.get().map_or(rest, |shared| {
            shared.pay(Payments {
                slot,
                mask: rest,
                weight: payment.weight,
                identity: payment.identity,
                key: self.ledger.key,
            })
        });
        // A set flag is wrong on all of them, paid or not.
        failed
            | if payment.flag == CopiedFlag::Set {
                rest
            } else {
                unpaid
            }
    }

    fn region(&self, index: u64) -> Option<&Region> {
        let slot = usize::try_from(index).unwrap_or(usize::MAX);
        match self.regions.get(slot) {
            Some(region) => *region,
            None if index < MAX_DIRECTORY_REGIONS => None,
            None => self.ledger.regions.get(index),
        }
    }
}

impl Region {
    /// Clusters that are owed something, 64 to a word.
    fn owing_words(&self) -> Vec<u64> {
        let mut words: Vec<u64> = self.one.words().collect();
        if let Some(shared) = self.shared.get() {
            for (word, owing) in words.iter_mut().zip(shared.owing_words()) {
                *word |= owing;
            }
        }
        words
    }

    fn owes_anything(&self) -> bool {
        let mut shared = self.shared.get().into_iter();
        !self.one.is_empty() || shared.any(|shared| shared.owing_words().any(|word| word != 0))
    }
}

#[cfg(test)]
mod tests;
