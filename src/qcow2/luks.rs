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
const PAYLOAD_AT: usize = 104;
const KEY_BYTES_AT: usize = 108;
const KEY_SLOTS_AT: usize = 208;
const KEY_SLOT_BYTES: usize = 48;
const KEY_SLOTS: usize = 8;
const SECTOR_BYTES: u64 = 512;

/// The state of a key slot that holds a key.
pub const LUKS_SLOT_USED: u32 = 0x00ac_71f3;
/// The state of a key slot that holds none.
pub const LUKS_SLOT_UNUSED: u32 = 0x0000_dead;
/// Stripes every writer of the format spreads a key over, in used and unused slots alike.
pub const LUKS_STRIPES: u32 = 4000;

/// A LUKS partition header, as far as its size goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    bytes: u64,
}

/// A key slot, and where its key material lies, from the start of the LUKS header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksKeySlot {
    /// [`LUKS_SLOT_USED`] or [`LUKS_SLOT_UNUSED`].
    pub state: u32,
    /// Pieces the key is spread over.
    pub stripes: u32,
    /// The first byte of the key material.
    pub start: u64,
    /// The byte behind it; its length is the key's times the stripes.
    pub end: u64,
}

impl LuksKeySlot {
    /// Reads all slots of a header; fewer where `header` ends first.
    pub fn decode_all(header: &[u8]) -> Vec<Self> {
        let key_bytes = u32_at(header, KEY_BYTES_AT).map_or(0, u64::from);
        let slots = (0..KEY_SLOTS).map_while(|slot| {
            let at = KEY_SLOTS_AT + slot * KEY_SLOT_BYTES;
            let stripes = u32_at(header, at + 44)?;
            let start = u64::from(u32_at(header, at + 40)?) * SECTOR_BYTES;
            let bytes = key_bytes.saturating_mul(stripes.into());
            Some(Self {
                state: u32_at(header, at)?,
                stripes,
                start,
                end: start.saturating_add(bytes),
            })
        });
        slots.collect()
    }
}

/// Where the encrypted data begins, from the start of the LUKS header, by the header's word.
pub fn luks_payload_start(header: &[u8]) -> Option<u64> {
    u32_at(header, PAYLOAD_AT).map(|sectors| u64::from(sectors) * SECTOR_BYTES)
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
