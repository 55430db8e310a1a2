//! Ordinary entries whose host clusters mostly lie anywhere, a chunk of them at a time.
//!
//! Comes in: the words of a chunk, and which of them follow one another. Goes out: how many follow the one before, where
//! empty entries between them do not matter. Never here: a word with anything wrong in it.

use super::chunk::{CHUNK, bits_of};
use crate::qcow2::{HostOffset, L2Entry};

/// Fewer entries of a chunk than these that follow the one before are not worth to be told as runs.
const SCATTERED: u32 = 16;

/// The entries of a chunk of ordinary and empty ones, a bit for each.
#[derive(Clone, Copy)]
pub(super) struct Ordinary {
    pub(super) used: u64,
    /// In the host cluster after that of the entry before, with the same flags.
    pub(super) following: u64,
}

/// Ordinary and empty entries, at least one of them ordinary.
pub(crate) struct ScatteredChunk<'a> {
    /// Of the first entry.
    pub(crate) guest_cluster: u64,
    pub(crate) words: &'a [u64; CHUNK],
    pub(super) ordinary: Ordinary,
}

impl Ordinary {
    pub(super) fn is_scattered(self) -> bool {
        self.following.count_ones() < SCATTERED
    }
}

impl ScatteredChunk<'_> {
    /// How many of its entries are not empty.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.ordinary.used.count_ones())
    }

    /// How many of its entries have the COPIED flag.
    pub(crate) fn copied_count(&self) -> u64 {
        let flags = self.words.iter().map(|word| word >> 63);
        flags.fold(0, u64::wrapping_add)
    }

    /// The place of the first host cluster.
    pub(crate) fn first_offset(&self) -> HostOffset {
        self.offset_at(self.ordinary.used.trailing_zeros())
    }

    /// The place of the last entry's host cluster.
    pub(crate) fn last_offset(&self) -> HostOffset {
        self.offset_at(self.ordinary.used.checked_ilog2().unwrap_or(0))
    }

    /// How many entries map the host cluster after that of the one before that is not empty.
    pub(crate) fn following_count(&self, cluster_bytes: u64) -> u64 {
        let Ordinary { used, following } = self.ordinary;
        let behind_empty_ones = bits_of(used & !(used << 1)).filter(|&at| {
            let before = used & ((1 << at) - 1);
            before != 0 && {
                let last = self.offset_at(before.ilog2());
                let offset = u32::try_from(at).map(|at| self.offset_at(at));
                offset.is_ok_and(|offset| last.0.saturating_add(cluster_bytes) == offset.0)
            }
        });
        u64::from(following.count_ones()) + behind_empty_ones.count() as u64
    }

    fn offset_at(&self, at: u32) -> HostOffset {
        let word = self.words.get(at as usize);
        L2Entry(word.copied().unwrap_or(0)).standard_offset()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_the_one_before_whatever_is_empty_between_them() {
        const CLUSTER_BYTES: u64 = 1 << 16;
        let mut random = fastrand::Rng::with_seed(3);
        let mut behind_empty_ones = 0;
        for _ in 0..2000 {
            let (density, mut next) = (random.u8(1..=8), 1);
            let words: [u64; CHUNK] = [(); CHUNK].map(|()| {
                if random.u8(..8) >= density {
                    return 0;
                }
                if random.u8(..4) == 0 {
                    next = random.u64(1..100);
                }
                next += 1;
                (next - 1) * CLUSTER_BYTES
            });
            let used: Vec<u64> = words.into_iter().filter(|word| *word != 0).collect();
            let [Some(&first), Some(&last)] = [used.first(), used.last()] else {
                continue;
            };
            let bit = |at: usize, is_set: bool| u64::from(is_set) << at;
            let follows = |at: usize| {
                at > 0 && words[at - 1] != 0 && words[at - 1] + CLUSTER_BYTES == words[at]
            };
            let chunk = ScatteredChunk {
                guest_cluster: 0,
                words: &words,
                ordinary: Ordinary {
                    used: (0..CHUNK).map(|at| bit(at, words[at] != 0)).sum(),
                    following: (0..CHUNK).map(|at| bit(at, follows(at))).sum(),
                },
            };
            let pairs = used.windows(2);
            let expected = pairs
                .filter(|pair| pair[0] + CLUSTER_BYTES == pair[1])
                .count() as u64;
            assert_eq!(chunk.following_count(CLUSTER_BYTES), expected, "{words:x?}");
            behind_empty_ones += expected - u64::from(chunk.ordinary.following.count_ones());
            assert_eq!(chunk.count(), used.len() as u64);
            assert_eq!(
                [chunk.first_offset().0, chunk.last_offset().0],
                [first, last]
            );
        }
        assert!(behind_empty_ones > 1000, "{behind_empty_ones}");
    }
}
