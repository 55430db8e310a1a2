//! The refcount table and refcount blocks, section "Host cluster management" of the specification.
//!
//! | bits | refcount table entry |
//! |------|----------------------|
//! | 0-8  | reserved, zero |
//! | 9-63 | offset of the refcount block; 0: all its counts are zero |
//!
//! Comes in: words and blocks. Goes out: offsets and counts. Never here: what a count should be.

use super::HostOffset;
use super::bytes::{bits, words};

const RESERVED: u64 = bits(0, 8);
const OFFSET: u64 = bits(9, 63);

/// A refcount table entry; every bit pattern is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// Where the refcount block is alleged to be, or `None` where there is none.
    pub fn refcount_block_offset(self) -> Option<HostOffset> {
        let offset = self.0 & OFFSET;
        (offset != 0).then_some(HostOffset(offset))
    }

    /// Reserved bits that are set.
    pub fn reserved_bits(self) -> u64 {
        self.0 & RESERVED
    }
}

/// The count at `index` of a (part of a) refcount block with counts of `1 << order` bits; 0 past its end.
///
/// Counts narrower than a byte lie with the lowest index in the lowest bits.
pub fn refcount_at(block: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let per_byte_bits = 3 - order;
        let byte = block.get(index >> per_byte_bits).copied().unwrap_or(0);
        let width = 1_u32 << order;
        let slot = u32::try_from(index & ((1 << per_byte_bits) - 1)).unwrap_or(0);
        return u64::from(byte >> (slot * width)) & (u64::MAX >> (64 - width));
    }
    let width_bytes = 1_usize << (order - 3);
    let start = index.saturating_mul(width_bytes);
    block
        .get(start..start.saturating_add(width_bytes))
        .map_or(0, |bytes| {
            bytes
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        })
}

/// Where a count lies in its block: bits of one big-endian number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountField {
    /// Where the number starts, in bytes from the start of the block; a multiple of `bytes`.
    pub byte_offset: u64,
    /// Bytes of the number: 1, 2, 4 or 8.
    pub bytes: usize,
    /// The bits of it that are the count.
    pub mask: u64,
    /// The lowest of them.
    pub shift: u32,
}

/// Where the count at `index` lies in a block with counts of `1 << order` bits.
pub fn count_field(order: u32, index: u64) -> CountField {
    if order < 3 {
        let per_byte_bits = 3 - order;
        let slot = u32::try_from(index & ((1 << per_byte_bits) - 1)).unwrap_or(0);
        let shift = slot << order;
        return CountField {
            byte_offset: index >> per_byte_bits,
            bytes: 1,
            mask: (u64::MAX >> (64 - (1_u32 << order))) << shift,
            shift,
        };
    }
    CountField {
        byte_offset: index << (order - 3),
        bytes: 1 << (order - 3),
        mask: u64::MAX >> (64 - (1_u32 << order.min(6))),
        shift: 0,
    }
}

/// Sets the count at `index` of a block; past its end nothing happens.
pub fn set_refcount_at(block: &mut [u8], order: u32, index: usize, count: u64) {
    let field = count_field(order, index as u64);
    let start = usize::try_from(field.byte_offset).unwrap_or(usize::MAX);
    if let Some(bytes) = block.get_mut(start..start.saturating_add(field.bytes)) {
        put_bits(bytes, field.mask, count << field.shift);
    }
}

/// Changes the bits of `mask` in a big-endian number of at most eight bytes.
pub fn put_bits(bytes: &mut [u8], mask: u64, value: u64) {
    let old = bytes
        .iter()
        .fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    let new = (old & !mask) | (value & mask);
    for (position, byte) in bytes.iter_mut().rev().enumerate() {
        *byte = u8::try_from((new >> (8 * position)) & 0xff).unwrap_or(0);
    }
}

/// Calls `each(index, count)` for every count of a block that is not zero.
///
/// Zero words are stepped over eight bytes at a time: most of a sparse image's counts are zero.
pub fn refcounts(block: &[u8], order: u32, mut each: impl FnMut(u64, u64)) {
    let width = 1_u32 << order.min(6);
    let per_word = u64::from(64 / width);
    let mask = u64::MAX >> (64 - width);
    for (word_index, mut word) in (0_u64..).zip(words(block)) {
        // Narrow counts start at the lowest bits of the first byte, wide ones are big-endian: either way the word can be
        // turned so that the next count is always at one end.
        if word == 0 {
            continue;
        }
        if order < 3 {
            word = word.swap_bytes();
        }
        for slot in 0..per_word {
            let count = if order < 3 {
                let count = word & mask;
                word >>= width;
                count
            } else {
                word = word.rotate_left(width);
                word & mask
            };
            if count != 0 {
                each(word_index * per_word + slot, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_make_up_the_word_without_overlap() {
        assert_eq!(RESERVED ^ OFFSET, u64::MAX);
    }

    #[test]
    fn narrow_counts_lie_lowest_bits_first() {
        let block = [0b1110_0100_u8, 0xf1];
        assert_eq!(
            (0..4)
                .map(|i| refcount_at(&block, 1, i))
                .collect::<Vec<_>>(),
            [0, 1, 2, 3]
        );
        assert_eq!(refcount_at(&block, 0, 2), 1);
        assert_eq!(refcount_at(&block, 0, 8), 1);
        assert_eq!(refcount_at(&block, 2, 3), 0xf);
    }

    #[test]
    fn wide_counts_are_big_endian() {
        let block = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(refcount_at(&block, 3, 1), 2);
        assert_eq!(refcount_at(&block, 4, 1), 0x0304);
        assert_eq!(refcount_at(&block, 5, 1), 0x0506_0708);
        assert_eq!(refcount_at(&block, 6, 0), 0x0102_0304_0506_0708);
        assert_eq!(refcount_at(&block, 6, 1), 0);
    }

    #[test]
    fn every_width_sets_one_count_and_no_other() {
        for order in 0..=6 {
            let entries = (64 * 8) >> order;
            for index in [0, 1, entries / 2, entries - 1] {
                let mut block: Vec<u8> = (0..64_u8).map(|i| i.wrapping_mul(37)).collect();
                let mut wanted: Vec<u64> = (0..entries)
                    .map(|i| refcount_at(&block, order, i))
                    .collect();
                wanted[index] ^= 1;
                set_refcount_at(&mut block, order, index, wanted[index]);
                let found: Vec<u64> = (0..entries)
                    .map(|i| refcount_at(&block, order, i))
                    .collect();
                assert_eq!(found, wanted, "order {order}, index {index}");
            }
        }
    }

    #[test]
    fn walking_a_block_finds_the_same_counts_as_looking_them_up() {
        let block: Vec<u8> = (0..64_u8).map(|i| i.wrapping_mul(37)).collect();
        for order in 0..=6 {
            let entries = (block.len() * 8) >> order;
            let looked_up: Vec<(u64, u64)> = (0..entries)
                .map(|index| (index as u64, refcount_at(&block, order, index)))
                .filter(|&(_, count)| count != 0)
                .collect();
            let mut walked = Vec::new();
            refcounts(&block, order, |index, count| walked.push((index, count)));
            assert_eq!(walked, looked_up, "order {order}");
        }
    }
}
