//! L2 table entries, sections "Cluster mapping" and "Extended L2 Entries" of the specification.
//!
//! | bits  | standard cluster descriptor | compressed cluster descriptor, x = 62 - (`cluster_bits` - 8) |
//! |-------|-----------------------------|-------------------------------------------------------------|
//! | 0     | reads as zeros (v3, not extended) | host offset, bits 0 to x-1, not aligned |
//! | 1-8   | reserved, zero              | |
//! | 9-55  | host cluster offset         | |
//! | 56-61 | reserved, zero              | additional 512-byte sectors, bits x to 61 |
//! | 62    | 0                           | 1 |
//! | 63    | COPIED: refcount is exactly one | must be 0 |
//!
//! Comes in: words. Goes out: descriptors. Never here: whether an offset lies in the file.

use super::bytes::bits;
use super::{Geometry, HostOffset, SECTOR_BYTES};

const ZERO: u64 = bits(0, 0);
const RESERVED: u64 = bits(1, 8) | bits(56, 61);
const OFFSET: u64 = bits(9, 55);
const COMPRESSED: u64 = bits(62, 62);
const COPIED: u64 = bits(63, 63);

/// The first (or only) word of an L2 entry; every bit pattern is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Entry(pub u64);

/// What an L2 entry says of its guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Descriptor {
    /// Nothing here: reads go to the backing file.
    Unallocated,
    /// Reads as zeros, with or without a preallocated host cluster.
    Zero {
        /// The preallocated host cluster.
        preallocated: Option<HostOffset>,
    },
    /// Data in a host cluster of its own.
    Standard(HostOffset),
    /// Data in a compressed extent.
    Compressed(CompressedExtent),
}

/// Where compressed data lies: at any byte, in whole sectors from the one its first byte is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CompressedExtent {
    /// The first byte.
    pub offset: HostOffset,
    /// Sectors touched, at least one.
    pub sectors: u64,
}

impl CompressedExtent {
    /// Bytes from the first byte to the end of the last sector.
    pub fn bytes(self) -> u64 {
        self.sectors * SECTOR_BYTES - self.offset.0 % SECTOR_BYTES
    }

    /// The first byte of the last sector, which the next extent may share.
    #[inline]
    pub fn last_sector_offset(self) -> HostOffset {
        // At most 55 bits and 14 bits of sectors: no sum of theirs wraps.
        let first_sector = self.offset.0 & !(SECTOR_BYTES - 1);
        HostOffset(
            first_sector.wrapping_add(self.sectors.wrapping_sub(1).wrapping_mul(SECTOR_BYTES)),
        )
    }

    /// The first byte after the last sector.
    #[inline]
    pub fn end(self) -> HostOffset {
        HostOffset(self.last_sector_offset().0.wrapping_add(SECTOR_BYTES))
    }
}

impl L2Entry {
    /// The COPIED flag: the refcount is exactly one.
    pub const COPIED: u64 = COPIED;

    /// The descriptor in this word. With extended L2 entries bit 0 has no meaning and zeros are per subcluster.
    pub fn descriptor(self, geometry: Geometry) -> L2Descriptor {
        if let Some(extent) = self.compressed_extent(geometry) {
            return L2Descriptor::Compressed(extent);
        }
        let offset = self.0 & OFFSET;
        let host = (offset != 0).then_some(HostOffset(offset));
        if self.0 & ZERO != 0 && !geometry.has_extended_l2() {
            return L2Descriptor::Zero { preallocated: host };
        }
        host.map_or(L2Descriptor::Unallocated, L2Descriptor::Standard)
    }

    /// The offset bits 9-55, which stand for offset 0 of an external data file where COPIED is set.
    pub fn standard_offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET)
    }

    /// The COPIED flag.
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Bit 0, whatever it means in this image.
    pub fn zero_flag(self) -> bool {
        self.0 & ZERO != 0
    }

    /// Whether the word is a compressed cluster descriptor without a flag it must not have.
    pub fn is_plain_compressed(self) -> bool {
        self.0 & (COMPRESSED | COPIED) == COMPRESSED
    }

    /// Whether the word is a compressed cluster descriptor.
    pub fn is_compressed(self) -> bool {
        self.0 & COMPRESSED != 0
    }

    /// Reserved bits that are set; a compressed descriptor has none.
    pub fn reserved_bits(self) -> u64 {
        if self.is_compressed() {
            0
        } else {
            self.0 & RESERVED
        }
    }

    /// Bits that are clear in a standard entry with nothing to remark: all but COPIED and an aligned offset.
    pub fn odd_bits(geometry: Geometry) -> u64 {
        !(COPIED | OFFSET) | (geometry.cluster_bytes() - 1)
    }

    /// The same standard or zero descriptor with its host cluster at another place.
    #[must_use]
    pub fn moved_to(self, offset: HostOffset, copied: bool) -> Self {
        let kept = self.0 & !(OFFSET | COPIED);
        Self(kept | offset.0 & OFFSET | u64::from(copied) << 63)
    }

    /// The same compressed descriptor with its data at another place, if the field is wide enough for it.
    pub fn compressed_moved_to(self, offset: HostOffset, geometry: Geometry) -> Option<Self> {
        let field = bits(0, 62 - (geometry.cluster_bits() - 8) - 1);
        let fits = offset.0 & !field == 0;
        fits.then_some(Self(self.0 & !field | offset.0))
    }

    /// The extent of a compressed descriptor.
    #[inline]
    pub fn compressed_extent(self, geometry: Geometry) -> Option<CompressedExtent> {
        self.is_compressed()
            .then(|| self.extent_if_compressed(geometry))
    }

    /// The same, where it is known to be one.
    #[inline]
    pub(crate) fn extent_if_compressed(self, geometry: Geometry) -> CompressedExtent {
        let sector_shift = 62 - (geometry.cluster_bits() - 8);
        let descriptor = self.0 & bits(0, 61);
        CompressedExtent {
            offset: HostOffset(descriptor & ((1 << sector_shift) - 1)),
            sectors: (descriptor >> sector_shift) + 1,
        }
    }
}

/// The second word of an extended L2 entry: subcluster x is allocated by bit x, zero by bit 32 + x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubclusterBitmap(pub u64);

impl SubclusterBitmap {
    /// Subclusters that hold data, one bit each.
    pub fn allocated(self) -> u64 {
        self.0 & bits(0, 31)
    }

    /// Subclusters that read as zeros, one bit each.
    pub fn zero(self) -> u64 {
        self.0 >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::Header;

    fn geometry(cluster_bits: u8) -> Geometry {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = cluster_bits;
        let header = Header::decode(&bytes).expect("a header");
        Geometry::new(&header, 1 << 40).expect("cluster_bits in range")
    }

    #[test]
    fn masks_make_up_the_word_without_overlap() {
        let masks = [ZERO, RESERVED, OFFSET, COMPRESSED, COPIED];
        assert_eq!(masks.iter().fold(0, |all, mask| all | mask), u64::MAX);
        assert_eq!(masks.iter().map(|mask| mask.count_ones()).sum::<u32>(), 64);
    }

    #[test]
    fn standard_and_zero_clusters_are_told_apart() {
        let geometry = geometry(16);
        let read = |word| L2Entry(word).descriptor(geometry);
        assert_eq!(read(0), L2Descriptor::Unallocated);
        assert_eq!(
            read(COPIED | 0x5_0000),
            L2Descriptor::Standard(HostOffset(0x5_0000))
        );
        assert_eq!(read(1), L2Descriptor::Zero { preallocated: None });
        assert_eq!(
            read(0x5_0001),
            L2Descriptor::Zero {
                preallocated: Some(HostOffset(0x5_0000))
            }
        );
    }

    #[test]
    fn moved_entry_keeps_all_but_offset_and_flag() {
        let entry = L2Entry(COPIED | 0x5_0001 | 1 << 60);
        let moved = entry.moved_to(HostOffset(0x7_0000), false);
        assert_eq!(moved, L2Entry(0x7_0001 | 1 << 60));
        assert_eq!(moved.moved_to(HostOffset(0x5_0000), true), entry);
    }

    #[test]
    fn compressed_field_widths_follow_the_cluster_size() {
        for cluster_bits in [9_u8, 12, 16, 21] {
            let shift = 62 - (u32::from(cluster_bits) - 8);
            let word = COMPRESSED | (1 << shift) | 0x1234;
            let L2Descriptor::Compressed(extent) = L2Entry(word).descriptor(geometry(cluster_bits))
            else {
                panic!("bit 62 makes a compressed descriptor");
            };
            assert_eq!(extent.offset, HostOffset(0x1234));
            assert_eq!(extent.sectors, 2);
            assert_eq!(extent.bytes(), 1024 - 0x34);
            assert_eq!(extent.last_sector_offset(), HostOffset(0x1400));
            let entry = L2Entry(word);
            let moved = entry.compressed_moved_to(HostOffset(0x5034), geometry(cluster_bits));
            assert_eq!(moved, Some(L2Entry(word - 0x1234 + 0x5034)));
            let far = HostOffset(1 << shift);
            assert_eq!(entry.compressed_moved_to(far, geometry(cluster_bits)), None);
        }
    }

    #[test]
    fn subcluster_halves_are_told_apart() {
        let bitmap = SubclusterBitmap(0x8000_0000_0000_0001);
        assert_eq!(bitmap.allocated(), 1);
        assert_eq!(bitmap.zero(), 1 << 31);
    }
}
