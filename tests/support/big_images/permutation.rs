//! What "random order" is: a shuffle of any length that needs no memory, the same every time.

/// A bijection of the numbers below `length`.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    length: u64,
    /// Half of the bits of the square the shuffle works in.
    half_bits: u32,
}

impl Permutation {
    pub fn of(length: u64) -> Self {
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        Self {
            length,
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    /// Where number `index` goes. Numbers that leave the range are shuffled on until they are back.
    pub fn at(self, index: u64) -> u64 {
        let mut place = self.shuffle(index);
        while place >= self.length {
            place = self.shuffle(place);
        }
        place
    }

    /// Four rounds, each adding a hash of one half to the other, which can be undone whatever the hash is.
    fn shuffle(self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (index >> self.half_bits, index & mask);
        for round in 1..=4 {
            (left, right) = (right, left ^ (hash(right ^ (round << 40)) & mask));
        }
        left << self.half_bits | right
    }
}

/// A number that looks like chance. Multiplier and shifts mix high and low bits into each other twice.
pub fn hash(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
