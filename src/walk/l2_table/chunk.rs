//! L2 tables cut into chunks of 64 entries.
//!
//! Comes in: a table's bytes. Goes out: its words, and what can be said of all of a chunk at once. Never here: a finding.

use crate::qcow2::{Geometry, L2Entry, SubclusterBitmap, words};

/// Entries looked at together. Every table is a multiple of that, but for extended entries in clusters too small for them.
pub(crate) const CHUNK: usize = 64;

pub(super) struct Chunk {
    /// Index of the first entry.
    pub(super) index: u64,
    pub(super) words: [u64; CHUNK],
    /// All zero without extended L2 entries.
    pub(super) bitmaps: [u64; CHUNK],
    /// All bits of words and bitmaps together.
    pub(super) any: u64,
    /// A subcluster is both allocated and zero.
    pub(super) has_contradiction: bool,
}

/// One entry, and where it is.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) index: u64,
    pub(super) word: L2Entry,
    pub(super) bitmap: SubclusterBitmap,
}

/// The places of the bits that are set.
pub(super) fn bits_of(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(at as usize)
    })
}

/// Cuts a table into chunks.
pub(super) fn for_each_chunk(geometry: Geometry, bytes: &[u8], mut each: impl FnMut(&Chunk)) {
    let mut chunk = Chunk {
        index: 0,
        words: [0; CHUNK],
        bitmaps: [0; CHUNK],
        any: 0,
        has_contradiction: false,
    };
    if geometry.has_extended_l2() {
        for pairs in bytes.chunks(CHUNK * 16) {
            chunk.read_pairs(pairs);
            each(&chunk);
            chunk.index += CHUNK as u64;
        }
        return;
    }
    for part in bytes.as_chunks::<{ CHUNK * 8 }>().0 {
        chunk.any = 0;
        for (to, word) in chunk.words.iter_mut().zip(words(part)) {
            *to = word;
            chunk.any |= word;
        }
        each(&chunk);
        chunk.index += CHUNK as u64;
    }
}

impl Entry {
    pub(super) fn is_empty(self) -> bool {
        self.word.0 | self.bitmap.0 == 0
    }

    /// A subcluster is both allocated and zero.
    pub(super) fn has_contradiction(self) -> bool {
        self.bitmap.allocated() & self.bitmap.zero() != 0
    }
}

impl Chunk {
    /// Reads extended entries; those that are missing from the last chunk are zero.
    fn read_pairs(&mut self, pairs: &[u8]) {
        let (mut any, mut contradictions) = (0, 0);
        let mut from = words(pairs);
        for (word, bitmap) in self.words.iter_mut().zip(&mut self.bitmaps) {
            *word = from.next().unwrap_or(0);
            *bitmap = from.next().unwrap_or(0);
            let subclusters = SubclusterBitmap(*bitmap);
            any |= *word | *bitmap;
            contradictions |= subclusters.allocated() & subclusters.zero();
        }
        self.any = any;
        self.has_contradiction = contradictions != 0;
    }

    /// Whether an entry has subclusters and nothing else.
    pub(super) fn has_bare_subclusters(&self) -> bool {
        let mut entries = self.words.iter().zip(&self.bitmaps);
        entries.any(|(word, bitmap)| *word == 0 && *bitmap != 0)
    }

    /// The words that are not empty, and those whose host cluster follows that of the word before with the same flags, a bit
    /// for each.
    pub(super) fn used_and_following(&self, cluster_bytes: u64) -> (u64, u64) {
        let (mut used, mut following, mut next) = (0, 0, 0);
        for &word in self.words.iter().rev() {
            used = used << 1 | u64::from(word != 0);
            following = following << 1 | u64::from(word.wrapping_add(cluster_bytes) == next);
            next = word;
        }
        // An empty entry follows nothing and is followed by nothing.
        (used, (following << 1) & used & (used << 1))
    }

    /// One of its entries, counted from its first.
    pub(super) fn entry(&self, at: u64) -> Option<Entry> {
        let slot = usize::try_from(at).ok()?;
        Some(Entry {
            index: self.index + at,
            word: L2Entry(*self.words.get(slot)?),
            bitmap: SubclusterBitmap(*self.bitmaps.get(slot)?),
        })
    }
}
