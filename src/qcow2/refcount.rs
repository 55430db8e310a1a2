//! The refcount table and refcount blocks, section "Host cluster management" of the specification.
//!
//! | bits | refcount table entry |
//! |------|----------------------|
//! | 0-8  | reserved, zero |
//! | 9-63 | offset of the refcount block; 0: all its counts are zero |
//!
//! Comes in: words and blocks. Goes out: offsets and counts. Never here: what a count should be.

use std::ops::Range;

use super::HostOffset;
use super::bytes::{bits, flag_bits};

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

/// Sets neighbouring counts of a block, those at `indices`, to the same; past its end nothing happens.
pub fn set_refcounts(block: &mut [u8], order: u32, indices: Range<usize>, count: u64) {
    // Eight counts are whole bytes at every width.
    let unit_bytes = 1_usize << order.min(6);
    let mut unit = [0; 64];
    for index in 0..8 {
        set_refcount_at(&mut unit, order, index, count);
    }
    let unit = unit.get(..unit_bytes).unwrap_or_default();
    let end = indices
        .end
        .min((block.len() / unit_bytes).saturating_mul(8));
    let first_unit = indices.start.next_multiple_of(8).min(end);
    let last_unit = (end - end % 8).max(first_unit);
    for index in (indices.start..first_unit).chain(last_unit..end) {
        set_refcount_at(block, order, index, count);
    }
    let middle = block.get_mut(first_unit / 8 * unit_bytes..last_unit / 8 * unit_bytes);
    for counts in middle.unwrap_or_default().chunks_exact_mut(unit_bytes) {
        counts.copy_from_slice(unit);
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

/// 64 counts of a refcount block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts64 {
    /// The bits of the counts that are not zero.
    pub used: u64,
    /// The bits of the counts that are one.
    pub ones: u64,
    /// All counts, where any of them is larger than one; the largest number stands for itself and all beyond.
    pub larger: Option<[u16; 64]>,
}

/// A refcount block of counts of `1 << order` bits, 64 counts at a time; every block is a multiple of that.
///
/// In most blocks every count is one, and in the rest of them most are zero or one.
pub fn counts_by_64(block: &[u8], order: u32) -> impl Iterator<Item = Counts64> {
    let order = order.min(6);
    let ones = all_ones(order);
    block.chunks_exact(8 << order).map(move |bytes| {
        if bytes == ones {
            return Counts64 {
                used: u64::MAX,
                ones: u64::MAX,
                larger: None,
            };
        }
        let counts = match order {
            0 => narrow_counts::<0>(bytes),
            1 => narrow_counts::<1>(bytes),
            2 => narrow_counts::<2>(bytes),
            3 => wide_counts::<1>(bytes),
            4 => wide_counts::<2>(bytes),
            5 => wide_counts::<4>(bytes),
            _ => wide_counts::<8>(bytes),
        };
        let used = flag_bits(&counts.map(|count| u8::from(count != 0)));
        let ones = flag_bits(&counts.map(|count| u8::from(count == 1)));
        Counts64 {
            used,
            ones,
            larger: (used != ones).then_some(counts),
        }
    })
}

/// 64 counts of one, as they are stored.
fn all_ones(order: u32) -> &'static [u8] {
    const fn every(width_bytes: usize) -> [u8; 512] {
        let mut bytes = [0; 512];
        let mut at = width_bytes - 1;
        while at < bytes.len() {
            #[expect(
                clippy::indexing_slicing,
                reason = "worked out by the compiler, which refuses what is out of range"
            )]
            {
                bytes[at] = 1;
            }
            at += width_bytes;
        }
        bytes
    }
    static ONES: [[u8; 512]; 7] = [
        [0xff; 512],
        [0x55; 512],
        [0x11; 512],
        every(1),
        every(2),
        every(4),
        every(8),
    ];
    let index = usize::try_from(order).unwrap_or(0);
    ONES.get(index)
        .and_then(|ones| ones.get(..8 << order))
        .unwrap_or_default()
}

/// 64 counts of less than a byte, which start at the lowest bits of the first byte.
fn narrow_counts<const ORDER: u32>(bytes: &[u8]) -> [u16; 64] {
    let (width, per_byte) = (1 << ORDER, 8 >> ORDER);
    let mut counts = [0; 64];
    for (counts, &byte) in counts.chunks_exact_mut(per_byte).zip(bytes) {
        for (slot, count) in (0..).zip(counts) {
            *count = u16::from(byte >> (slot * width)) & (u16::MAX >> (16 - width));
        }
    }
    counts
}

/// 64 counts of so many bytes each, which are big-endian.
fn wide_counts<const BYTES: usize>(bytes: &[u8]) -> [u16; 64] {
    let mut counts = [0; 64];
    for (count, bytes) in counts.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        let value = bytes
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        *count = u16::try_from(value).unwrap_or(u16::MAX);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_make_up_the_word_without_overlap() {
        assert_eq!(RESERVED ^ OFFSET, u64::MAX);
    }

    #[test]
    fn neighbouring_counts_are_set_as_each_of_them_is() {
        for order in 0..=6 {
            let counts = (16 * 8) >> order.min(3);
            for start in 0..20 {
                for end in start..counts + 4 {
                    let mut block = [0x5a; 128];
                    let block = &mut block[..counts << order >> 3];
                    let mut one_by_one = block.to_vec();
                    set_refcounts(block, order, start..end, 1);
                    for index in start..end {
                        set_refcount_at(&mut one_by_one, order, index, 1);
                    }
                    assert_eq!(block, one_by_one, "order {order}, {start}..{end}");
                }
            }
        }
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
    fn sixty_four_counts_at_a_time_are_the_same_as_one_by_one() {
        let blocks: [Vec<u8>; 4] = [
            (0..=255)
                .chain(0..=255)
                .map(|i: u8| i.wrapping_mul(37))
                .collect(),
            vec![0; 512],
            vec![1; 512],
            (0..512).map(|i| u8::from(i % 16 == 15)).collect(),
        ];
        for order in 0..=6_u32 {
            for block in blocks.iter().cloned().chain([all_ones(order).repeat(8)]) {
                let chunks: Vec<Counts64> = counts_by_64(&block, order).collect();
                assert_eq!(
                    chunks.len(),
                    ((block.len() * 8) >> order) / 64,
                    "order {order}"
                );
                for (index, chunk) in chunks.iter().enumerate() {
                    let counts: Vec<u64> = (0..64)
                        .map(|slot| refcount_at(&block, order, index * 64 + slot))
                        .collect();
                    let ones = counts
                        .iter()
                        .rev()
                        .fold(0, |ones, &count| ones << 1 | u64::from(count == 1));
                    assert_eq!(chunk.ones, ones, "order {order}, chunk {index}");
                    assert_eq!(
                        chunk.larger.is_some(),
                        counts.iter().any(|&count| count > 1)
                    );
                    let used = counts
                        .iter()
                        .rev()
                        .fold(0, |used, &count| used << 1 | u64::from(count != 0));
                    assert_eq!(chunk.used, used, "order {order}, chunk {index}");
                    let counts = counts
                        .iter()
                        .map(|&count| u16::try_from(count).unwrap_or(u16::MAX));
                    assert!(
                        chunk
                            .larger
                            .is_none_or(|larger| larger.into_iter().eq(counts)),
                        "order {order}, chunk {index}"
                    );
                }
            }
        }
    }
}
