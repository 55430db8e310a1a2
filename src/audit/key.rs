//! The key of an image: a number of its path, the same on every machine and in every version.
//!
//! Comes in: the bytes of a path. Goes out: 128 bits to name its record by, and to divide work by. Never here: trust in
//! it. Who may name files can make two paths with one key; a record says which image it is of, so one of the two is then
//! missing, loudly.

use std::fmt;

use crate::report::ImageName;

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// A number of a path: FNV-1a, 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageKey(u128);

impl ImageKey {
    /// The key of an image.
    pub fn new(name: &ImageName) -> Self {
        let mut hash = Fnv::default();
        hash.add(&name.to_bytes());
        Self(hash.0)
    }

    /// The part below `count` this key falls into. Adding images moves no other one.
    pub fn remainder(self, count: u64) -> u64 {
        let count = u128::from(count.max(1));
        // The upper half has seen every byte many times, the lower half only of the last ones.
        u64::try_from((self.0 ^ (self.0 >> 67)) % count).unwrap_or(0)
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:032x}", self.0)
    }
}

/// The sum of bytes that come piece by piece.
pub(super) struct Fnv(pub(super) u128);

impl Default for Fnv {
    fn default() -> Self {
        Self(OFFSET_BASIS)
    }
}

impl Fnv {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn keys_are_the_published_sums() {
        let key = |text: &str| ImageKey::new(&ImageName::new(Path::new(text))).to_string();
        assert_eq!(key(""), "6c62272e07bb014262b821756295c58d");
        assert_eq!(key("a"), "d228cb696f1a8caf78912b704e4a8964");
        assert_eq!(key("foobar"), "343e1662793c64bf6f0d3597ba446f18");
    }
}
