//! Snapshot table entries, section "Snapshots" of the specification.
//!
//! Comes in: bytes of the snapshot table. Goes out: the fixed part of an entry first, because it tells how long the
//! rest is; then the whole entry. Never here: which lengths are acceptable.

use super::HostOffset;
use super::bytes::{u16_at, u32_at, u64_at};

/// Bytes of an entry before its extra data.
pub const SNAPSHOT_FIXED_BYTES: u64 = 40;
/// Extra data version 3 demands: VM state size and virtual disk size.
pub const SNAPSHOT_V3_EXTRA_BYTES: u32 = 16;
/// QEMU's limit of an entry's extra data.
pub const MAX_SNAPSHOT_EXTRA_BYTES: u32 = 1024;
/// QEMU's limit of snapshots in an image.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// QEMU's limit of the whole snapshot table.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;

/// The extra data version 3 demands.
pub fn encode_snapshot_extra(vm_state_bytes: u64, disk_bytes: u64) -> Vec<u8> {
    [vm_state_bytes.to_be_bytes(), disk_bytes.to_be_bytes()].concat()
}

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the specification's table, name by name"
)]
pub struct SnapshotFixed {
    pub l1_table_offset: HostOffset,
    pub l1_size: u32,
    pub id_size: u16,
    pub name_size: u16,
    pub date_seconds: u32,
    pub date_nanoseconds: u32,
    pub vm_clock_nanoseconds: u64,
    pub vm_state_size: u32,
    pub extra_data_size: u32,
}

/// A whole entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Byte offset of the entry in the file.
    pub offset: u64,
    /// The fixed part.
    pub fixed: SnapshotFixed,
    /// VM state bytes: the 64-bit field where the extra data holds one, else the 32-bit field.
    pub vm_state_bytes: u64,
    /// Virtual disk size at the time of the snapshot, where the extra data holds it.
    pub disk_bytes: Option<u64>,
    /// The unique ID string.
    pub id: Vec<u8>,
    /// The name.
    pub name: Vec<u8>,
}

impl SnapshotFixed {
    /// Reads the fixed part; `None` where `bytes` are fewer than it has.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            l1_table_offset: HostOffset(u64_at(bytes, 0)?),
            l1_size: u32_at(bytes, 8)?,
            id_size: u16_at(bytes, 12)?,
            name_size: u16_at(bytes, 14)?,
            date_seconds: u32_at(bytes, 16)?,
            date_nanoseconds: u32_at(bytes, 20)?,
            vm_clock_nanoseconds: u64_at(bytes, 24)?,
            vm_state_size: u32_at(bytes, 32)?,
            extra_data_size: u32_at(bytes, 36)?,
        })
    }

    /// Writes the fixed part, the reverse of [`decode`](Self::decode).
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend(self.l1_table_offset.0.to_be_bytes());
        bytes.extend(self.l1_size.to_be_bytes());
        bytes.extend(self.id_size.to_be_bytes());
        bytes.extend(self.name_size.to_be_bytes());
        bytes.extend(self.date_seconds.to_be_bytes());
        bytes.extend(self.date_nanoseconds.to_be_bytes());
        bytes.extend(self.vm_clock_nanoseconds.to_be_bytes());
        bytes.extend(self.vm_state_size.to_be_bytes());
        bytes.extend(self.extra_data_size.to_be_bytes());
        bytes
    }

    /// Bytes of the whole entry without the padding behind it.
    pub fn entry_bytes(self) -> u64 {
        SNAPSHOT_FIXED_BYTES
            + u64::from(self.extra_data_size)
            + u64::from(self.id_size)
            + u64::from(self.name_size)
    }

    /// Bytes from this entry to the next.
    pub fn padded_bytes(self) -> u64 {
        self.entry_bytes().next_multiple_of(8)
    }
}

impl SnapshotEntry {
    /// Reads an entry that lies at byte `offset` of the file; `None` where `bytes` are fewer than it has.
    pub fn decode(bytes: &[u8], offset: u64) -> Option<Self> {
        let fixed = SnapshotFixed::decode(bytes)?;
        let extra_end = usize::try_from(fixed.extra_data_size)
            .ok()?
            .checked_add(40)?;
        let extra = bytes.get(40..extra_end)?;
        let id_end = extra_end.checked_add(usize::from(fixed.id_size))?;
        let name_end = id_end.checked_add(usize::from(fixed.name_size))?;
        Some(Self {
            offset,
            fixed,
            vm_state_bytes: u64_at(extra, 0).unwrap_or(u64::from(fixed.vm_state_size)),
            disk_bytes: u64_at(extra, 8),
            id: bytes.get(extra_end..id_end)?.to_vec(),
            name: bytes.get(id_end..name_end)?.to_vec(),
        })
    }

    /// Writes the entry with this extra data and this ID, and the padding behind it; `None` where a length has no room in
    /// its field.
    pub fn encode(&self, extra_data: &[u8], id: &[u8]) -> Option<Vec<u8>> {
        let fixed = SnapshotFixed {
            id_size: u16::try_from(id.len()).ok()?,
            name_size: u16::try_from(self.name.len()).ok()?,
            extra_data_size: u32::try_from(extra_data.len()).ok()?,
            ..self.fixed
        };
        let mut bytes = [&fixed.encode(), extra_data, id, &self.name].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        Some(bytes)
    }

    /// Nothing at all in it: what a count larger than the table makes of the zeros behind it.
    pub fn is_blank(&self) -> bool {
        let fixed = &self.fixed;
        fixed.l1_table_offset.0 == 0
            && fixed.l1_size == 0
            && fixed.date_seconds == 0
            && self.id.is_empty()
            && self.name.is_empty()
            && fixed.extra_data_size == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(extra: &[u8], id: &[u8], name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0_u8; 40];
        bytes[5] = 7;
        bytes[11] = 1;
        bytes[13] = u8::try_from(id.len()).expect("short");
        bytes[15] = u8::try_from(name.len()).expect("short");
        bytes[35] = 9;
        bytes[39] = u8::try_from(extra.len()).expect("short");
        [&bytes, extra, id, name].concat()
    }

    #[test]
    fn extra_data_overrides_the_narrow_vm_state_size() {
        let mut extra = [0_u8; 16];
        extra[7] = 5;
        extra[15] = 6;
        let with = SnapshotEntry::decode(&entry(&extra, b"1", b"a"), 0).expect("whole");
        assert_eq!((with.vm_state_bytes, with.disk_bytes), (5, Some(6)));
        let without = SnapshotEntry::decode(&entry(&[], b"1", b"a"), 0).expect("whole");
        assert_eq!((without.vm_state_bytes, without.disk_bytes), (9, None));
        assert_eq!(without.name, b"a");
        assert_eq!(without.fixed.padded_bytes(), 48);
    }

    #[test]
    fn entry_cut_short_is_none() {
        let bytes = entry(&[0; 16], b"id", b"name");
        for length in 0..bytes.len() {
            assert_eq!(SnapshotEntry::decode(&bytes[..length], 0), None);
        }
        assert!(SnapshotEntry::decode(&bytes, 0).is_some());
    }

    #[test]
    fn encoding_an_entry_as_it_was_decoded_gives_its_bytes() {
        for extra in [&[][..], &[7; 8], &[9; 16], &[1; 31]] {
            let mut bytes = entry(extra, b"12", b"name");
            bytes[16..32].copy_from_slice(&[3; 16]);
            let decoded = SnapshotEntry::decode(&bytes, 0).expect("whole");
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(8), 0);
            assert_eq!(decoded.encode(extra, b"12"), Some(padded));
        }
    }

    #[test]
    fn other_extra_data_and_another_id_change_nothing_else() {
        let decoded = SnapshotEntry::decode(&entry(&[], b"1", b"name"), 0).expect("whole");
        let bytes = decoded.encode(&encode_snapshot_extra(5, 6), b"234");
        let encoded = SnapshotEntry::decode(&bytes.expect("short"), 0).expect("whole");
        assert_eq!((encoded.vm_state_bytes, encoded.disk_bytes), (5, Some(6)));
        assert_eq!((&*encoded.id, &*encoded.name), (&b"234"[..], &b"name"[..]));
        let fixed = SnapshotFixed {
            id_size: 1,
            extra_data_size: 0,
            ..encoded.fixed
        };
        assert_eq!(fixed, decoded.fixed);
    }

    #[test]
    fn id_longer_than_its_length_field_can_say_is_not_encoded() {
        let decoded = SnapshotEntry::decode(&entry(&[], b"1", b"a"), 0).expect("whole");
        assert_eq!(decoded.encode(&[], &vec![b'1'; 65_536]), None);
    }

    #[test]
    fn zeros_are_a_blank_entry() {
        assert!(
            SnapshotEntry::decode(&[0; 40], 0)
                .expect("whole")
                .is_blank()
        );
    }
}
