//! Big-endian readers: the only file that says `from_be_bytes`.
//!
//! Comes in: a slice and an index. Goes out: an integer, or `None` past the slice's end; whether bytes are zero. Never here: meaning.

/// The big-endian 16-bit integer at byte `at`, or `None` where the slice ends first.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u16::from_be_bytes(*chunk))
}

/// The big-endian 32-bit integer at byte `at`, or `None` where the slice ends first.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u32::from_be_bytes(*chunk))
}

/// The big-endian 64-bit integer at byte `at`, or `None` where the slice ends first.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u64::from_be_bytes(*chunk))
}

/// The slice as consecutive big-endian 64-bit words; a tail shorter than a word is left out.
pub fn words(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    let (chunks, _tail) = bytes.as_chunks::<8>();
    chunks.iter().map(|chunk| u64::from_be_bytes(*chunk))
}

/// Whether all bytes are zero. Piece by piece, so that a table with something in it is soon done with.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let mut pieces = bytes.chunks(128);
    pieces.all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

/// A mask of bits `low..=high`, as the specification's bit tables name them.
pub(crate) const fn bits(low: u32, high: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// 64 bytes of zero or one as bits, the first byte's the lowest.
pub(crate) fn flag_bits(flags: &[u8; 64]) -> u64 {
    // The product has each byte's lowest bit in its highest byte, where the first one is the lowest.
    let bits_of_eight = |word: u64| word.wrapping_mul(0x8040_2010_0804_0201) >> 56;
    (0..).zip(words(flags)).fold(0, |all, (byte, word)| {
        all | bits_of_eight(word) << (8 * byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_has_its_bit() {
        for seed in [0, 1, 1 << 63, u64::MAX, 0x8000_0000_0180_0001] {
            for bits in (0..64).map(|shift| u64::rotate_left(seed, shift)) {
                let flags = std::array::from_fn(|bit| u8::from(bits >> bit & 1 != 0));
                assert_eq!(flag_bits(&flags), bits, "{bits:#x}");
            }
        }
    }

    #[test]
    fn reads_past_the_end_are_none() {
        let bytes = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3];
        assert_eq!(u16_at(&bytes, 6), Some(3));
        assert_eq!(u32_at(&bytes, 0), Some(0x5146_49fb));
        assert_eq!(u64_at(&bytes, 0), Some(0x5146_49fb_0000_0003));
        assert_eq!(u64_at(&bytes, 1), None);
        assert_eq!(u16_at(&bytes, 9), None);
    }

    #[test]
    fn bit_ranges_are_inclusive_at_both_ends() {
        assert_eq!(bits(0, 0), 1);
        assert_eq!(bits(63, 63), 1 << 63);
        assert_eq!(bits(9, 55), 0x00ff_ffff_ffff_fe00);
        assert_eq!(bits(0, 63), u64::MAX);
    }
}
