//! Persistent bitmaps, sections "Bitmaps extension", "Bitmap directory" and "Bitmap table" of the specification.
//!
//! | bits  | bitmap table entry |
//! |-------|--------------------|
//! | 0     | with offset 0: the cluster reads as ones; else reserved, zero |
//! | 1-8   | reserved, zero |
//! | 9-55  | offset of a cluster of bitmap data |
//! | 56-63 | reserved, zero |
//!
//! Comes in: bytes and words. Goes out: entries. Never here: whether a bitmap fits its disk.

use super::HostOffset;
use super::bytes::{bits, u16_at, u32_at, u64_at};

/// Bytes of a bitmap directory entry before its extra data and name.
pub const BITMAP_DIRECTORY_ENTRY_BYTES: u64 = 24;
/// QEMU's limit of bitmaps in an image.
pub const MAX_BITMAPS: u32 = 65_535;
/// QEMU's limit of the bitmap directory.
pub const MAX_BITMAP_DIRECTORY_BYTES: u64 = 65_535 * 1024;
/// QEMU's limit of entries in a bitmap table.
pub const MAX_BITMAP_TABLE_ENTRIES: u32 = 0x0800_0000;
/// QEMU's limit of a bitmap's data.
pub const MAX_BITMAP_DATA_BYTES: u64 = 0x2000_0000;
/// QEMU's limit of a bitmap's name.
pub const MAX_BITMAP_NAME_BYTES: u16 = 1023;

const OFFSET: u64 = bits(9, 55);
const ALL_ONES: u64 = bits(0, 0);
const RESERVED: u64 = bits(1, 8) | bits(56, 63);
const FLAG_IN_USE: u32 = 1;
const FLAG_AUTO: u32 = 2;
const FLAG_EXTRA_DATA_COMPATIBLE: u32 = 4;

/// Bytes of the bitmaps extension's data.
pub const BITMAPS_EXTENSION_BYTES: u32 = 24;

/// The bitmaps header extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in the image.
    pub bitmap_count: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Bytes of the bitmap directory.
    pub directory_bytes: u64,
    /// Where the bitmap directory is alleged to be.
    pub directory_offset: HostOffset,
}

impl BitmapsExtension {
    /// Reads the extension's data; `None` unless it is exactly 24 bytes long.
    pub fn decode(data: &[u8]) -> Option<Self> {
        if data.len() != 24 {
            return None;
        }
        Some(Self {
            bitmap_count: u32_at(data, 0)?,
            reserved: u32_at(data, 4)?,
            directory_bytes: u64_at(data, 8)?,
            directory_offset: HostOffset(u64_at(data, 16)?),
        })
    }

    /// The extension's data as the three words it is made of.
    pub fn encode(self) -> [u64; 3] {
        [
            u64::from(self.bitmap_count) << 32 | u64::from(self.reserved),
            self.directory_bytes,
            self.directory_offset.0,
        ]
    }
}

/// A bitmap directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the specification's table, name by name"
)]
pub struct BitmapDirectoryEntry {
    pub bitmap_table_offset: HostOffset,
    pub bitmap_table_size: u32,
    pub flags: u32,
    pub bitmap_type: u8,
    pub granularity_bits: u8,
    pub extra_data_size: u32,
    pub name: Vec<u8>,
}

/// One step through the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectoryDecode {
    /// An entry, and the bytes from it to the next.
    Entry(BitmapDirectoryEntry, u64),
    /// The bytes end inside the entry.
    Overrun,
}

impl BitmapDirectoryEntry {
    /// Reads the entry at the start of `bytes`, which end where the directory ends.
    pub fn decode(bytes: &[u8]) -> DirectoryDecode {
        Self::decode_whole(bytes).map_or(DirectoryDecode::Overrun, |(entry, step)| {
            DirectoryDecode::Entry(entry, step)
        })
    }

    fn decode_whole(bytes: &[u8]) -> Option<(Self, u64)> {
        let name_size = u16_at(bytes, 18)?;
        let extra_data_size = u32_at(bytes, 20)?;
        let name_start = 24_usize.checked_add(usize::try_from(extra_data_size).ok()?)?;
        let name_end = name_start.checked_add(usize::from(name_size))?;
        let step = (name_end as u64).next_multiple_of(8);
        if step > bytes.len() as u64 {
            return None;
        }
        let entry = Self {
            bitmap_table_offset: HostOffset(u64_at(bytes, 0)?),
            bitmap_table_size: u32_at(bytes, 8)?,
            flags: u32_at(bytes, 12)?,
            bitmap_type: bytes.get(16).copied()?,
            granularity_bits: bytes.get(17).copied()?,
            extra_data_size,
            name: bytes.get(name_start..name_end)?.to_vec(),
        };
        Some((entry, step))
    }

    /// The bitmap was not saved when its writer stopped.
    pub fn is_in_use(&self) -> bool {
        self.flags & FLAG_IN_USE != 0
    }

    /// The bitmap may be used whatever its extra data says.
    pub fn allows_extra_data(&self) -> bool {
        self.flags & FLAG_EXTRA_DATA_COMPATIBLE != 0
    }

    /// Flags the specification does not define.
    pub fn unknown_flags(&self) -> u32 {
        self.flags & !(FLAG_IN_USE | FLAG_AUTO | FLAG_EXTRA_DATA_COMPATIBLE)
    }
}

/// A bitmap table entry; every bit pattern is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapTableEntry(pub u64);

impl BitmapTableEntry {
    /// Where a cluster of bitmap data is alleged to be, or `None` for all zeros or all ones.
    pub fn data_offset(self) -> Option<HostOffset> {
        let offset = self.0 & OFFSET;
        (offset != 0).then_some(HostOffset(offset))
    }

    /// Reserved bits that are set; bit 0 is one of them where there is an offset.
    pub fn reserved_bits(self) -> u64 {
        let all_ones = if self.data_offset().is_some() {
            ALL_ONES
        } else {
            0
        };
        self.0 & (RESERVED | all_ones)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_make_up_the_word_without_overlap() {
        assert_eq!(OFFSET | ALL_ONES | RESERVED, u64::MAX);
        assert_eq!(
            OFFSET.count_ones() + ALL_ONES.count_ones() + RESERVED.count_ones(),
            64
        );
    }

    #[test]
    fn encoding_the_extension_as_it_was_decoded_gives_its_bytes() {
        let data: Vec<u8> = (1..=24).collect();
        let words = BitmapsExtension::decode(&data).expect("24 bytes").encode();
        assert_eq!(words.map(u64::to_be_bytes).concat(), data);
    }

    #[test]
    fn bit_zero_is_reserved_only_beside_an_offset() {
        assert_eq!(BitmapTableEntry(1).reserved_bits(), 0);
        assert_eq!(BitmapTableEntry(0x1_0001).reserved_bits(), 1);
    }

    #[test]
    fn directory_entry_steps_over_extra_data_and_padding() {
        let mut bytes = vec![0_u8; 24];
        bytes[17] = 16;
        bytes[19] = 3;
        bytes[23] = 8;
        bytes.extend_from_slice(&[0xee; 8]);
        bytes.extend_from_slice(b"abc\0\0\0\0\0");
        let DirectoryDecode::Entry(entry, step) = BitmapDirectoryEntry::decode(&bytes) else {
            panic!("a whole entry");
        };
        assert_eq!((entry.name.as_slice(), step), (&b"abc"[..], 40));
        bytes.pop();
        assert_eq!(
            BitmapDirectoryEntry::decode(&bytes),
            DirectoryDecode::Overrun
        );
    }
}
