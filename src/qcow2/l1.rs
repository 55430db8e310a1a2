//! L1 table entries, section "Cluster mapping" of the specification.
//!
//! | bits  | meaning |
//! |-------|---------|
//! | 0-8   | reserved, zero |
//! | 9-55  | offset of the L2 table |
//! | 56-62 | reserved, zero |
//! | 63    | COPIED: the L2 table's refcount is exactly one (only accurate in the active L1 table) |
//!
//! Comes in: a word. Goes out: its parts. Never here: whether the offset is any good.

use super::HostOffset;
use super::bytes::bits;

const OFFSET: u64 = bits(9, 55);
const RESERVED: u64 = bits(0, 8) | bits(56, 62);
const COPIED: u64 = bits(63, 63);

/// An L1 entry; every bit pattern is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Where the L2 table is alleged to be, or `None` where none is named.
    pub fn l2_table_offset(self) -> Option<HostOffset> {
        let offset = self.0 & OFFSET;
        (offset != 0).then_some(HostOffset(offset))
    }

    /// The COPIED flag.
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The same entry with the flag as given.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        Self(self.0 & !COPIED | u64::from(copied) << 63)
    }

    /// The same entry with its L2 table at another place.
    #[must_use]
    pub fn moved_to(self, offset: HostOffset, copied: bool) -> Self {
        Self(self.0 & !OFFSET | offset.0 & OFFSET).with_copied(copied)
    }

    /// Reserved bits that are set.
    pub fn reserved_bits(self) -> u64 {
        self.0 & RESERVED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_make_up_the_word_without_overlap() {
        assert_eq!(OFFSET | RESERVED | COPIED, u64::MAX);
        assert_eq!(
            OFFSET.count_ones() + RESERVED.count_ones() + COPIED.count_ones(),
            64
        );
    }

    #[test]
    fn moved_entry_keeps_all_but_offset_and_flag() {
        let entry = L1Entry(COPIED | 0x5_0000 | 1 << 60);
        let moved = entry.moved_to(HostOffset(0x7_0000), false);
        assert_eq!(moved, L1Entry(0x7_0000 | 1 << 60));
        assert_eq!(moved.moved_to(HostOffset(0x5_0000), true), entry);
    }

    #[test]
    fn entry_with_only_copied_names_no_table() {
        let entry = L1Entry(COPIED);
        assert!(entry.copied());
        assert_eq!(entry.l2_table_offset(), None);
    }
}
