//! The LUKS partition header, section "Full disk encryption header pointer" of the specification, and the LUKS1 on-disk
//! format it refers to. All of it is plain text.
//!
//! Comes in: the first 592 bytes of the encryption header. Goes out: how many bytes it fills with its key slots. Never
//! here: a key.

use super::bytes::{u16_at, u32_at};

/// Bytes of the partition header, before the key material.
pub const LUKS_HEADER_BYTES: usize = 592;

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const KEY_BYTES_AT: usize = 108;
const KEY_SLOTS_AT: usize = 208;
const KEY_SLOT_BYTES: usize = 48;
const KEY_SLOTS: usize = 8;
const SECTOR_BYTES: u64 = 512;

/// A LUKS partition header, as far as its size goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    bytes: u64,
}

impl LuksHeader {
    /// Reads the header; `None` without the magic and version 1.
    pub fn decode(header: &[u8]) -> Option<Self> {
        if !header.starts_with(MAGIC) || u16_at(header, MAGIC.len()) != Some(VERSION) {
            return None;
        }
        let key_bytes = u64::from(u32_at(header, KEY_BYTES_AT)?);
        let mut bytes = LUKS_HEADER_BYTES as u64;
        for slot in 0..KEY_SLOTS {
            let at = KEY_SLOTS_AT + slot * KEY_SLOT_BYTES;
            let offset_sectors = u64::from(u32_at(header, at + 40)?);
            let stripes = u64::from(u32_at(header, at + 44)?);
            // Numbers of 32 bits each: the sum stays below 2^65 only by saturating.
            let end =
                (offset_sectors * SECTOR_BYTES).saturating_add(key_bytes.saturating_mul(stripes));
            if stripes > 0 {
                bytes = bytes.max(end);
            }
        }
        Some(Self { bytes })
    }

    /// Bytes from its start to the end of its last key slot.
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_reaches_to_the_end_of_its_last_key_slot() {
        let mut header = vec![0_u8; LUKS_HEADER_BYTES];
        assert_eq!(LuksHeader::decode(&header), None);
        header[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        header[KEY_BYTES_AT + 3] = 32;
        assert_eq!(
            LuksHeader::decode(&header).map(LuksHeader::bytes),
            Some(592)
        );
        let last = KEY_SLOTS_AT + 7 * KEY_SLOT_BYTES;
        header[last + 42] = 0x0f;
        header[last + 46] = 0x0f;
        header[last + 47] = 0xa0;
        let end = 0xf00 * 512 + 32 * 4000;
        assert_eq!(
            LuksHeader::decode(&header).map(LuksHeader::bytes),
            Some(end)
        );
        header[last + 40..].fill(0xff);
        assert!(LuksHeader::decode(&header).is_some());
    }
}
