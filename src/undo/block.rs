//! The blocks an undo file is made of, and the chain of checksums that holds them together.
//!
//! Comes in: values, or bytes. Goes out: bytes, or values that were proven. Never here: which blocks may follow which.

use super::{
    MAX_PATH_BYTES, MAX_RECORD_BYTES, MAX_VERSIONS, Relied, SECTOR_BYTES, UndoHeader, UndoRecord,
    Versions,
};
use crate::qcow2::{u16_at, u32_at, u64_at};

/// First bytes of an undo file.
pub(super) const MAGIC: [u8; 8] = *b"QFSCKUND";
/// The version written here.
pub(super) const VERSION: u32 = 3;
/// The oldest version read here: its commit seal has no digest, it has no blank records, and nothing of stages.
pub(super) const FIRST_VERSION: u32 = 1;
/// First bytes of a record.
pub(super) const RECORD_MAGIC: [u8; 4] = *b"QREC";
/// First bytes of a record of a range that was all zeros, or not there: these bytes are not kept.
pub(super) const BLANK_MAGIC: [u8; 4] = *b"QZER";
/// First bytes of a record of a range that stays as it is.
const RELIED_MAGIC: [u8; 4] = *b"QSAM";
/// What a blank record is of.
static ZEROS: [u8; MAX_RECORD_BYTES] = [0; MAX_RECORD_BYTES];
/// First and last bytes of a seal: one flipped bit cannot make a seal look as if it had never been there.
const SEAL_MAGIC: [u8; 8] = *b"QFSCKSEA";

const FLAG_BLOCK_DEVICE: u32 = 1;

const HEADER_FIXED_BYTES: usize = 44;
const RECORD_FIXED_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
const STAGE_BYTES: usize = 2;
/// Where in a seal its checksum is, right before the second magic.
const SEAL_CHECKSUM_AT: usize = SECTOR_BYTES - SEAL_MAGIC.len() - CHECKSUM_BYTES;

/// The checksum of the last block, which the next one's covers: no block stands anywhere but where it was written.
///
/// Each checksum covers the one before and the block, but never itself: a CRC continued over its own value is a
/// constant and would tie nothing to anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain(u32);

impl Chain {
    /// Before the first block.
    pub(super) const START: Self = Self(0);

    /// The chain with `body` as its next block.
    pub(super) fn link(self, body: &[u8]) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.0.to_be_bytes());
        hasher.update(body);
        Self(hasher.finalize())
    }

    /// The chain after `block`, if that ends in the checksum it has here.
    fn follow(self, block: &[u8]) -> Option<Self> {
        let (body, stored) = block.split_last_chunk()?;
        let next = self.link(body);
        (next.0 == checksum(*stored)).then_some(next)
    }

    /// Ends `body` with its checksum and makes it the last block.
    pub(super) fn close(&mut self, body: &mut Vec<u8>) {
        *self = self.link(body);
        body.extend(self.0.to_be_bytes());
    }
}

/// A checksum from its bytes on disk.
pub(super) fn checksum(bytes: [u8; 4]) -> u32 {
    u32_at(&bytes, 0).unwrap_or_default()
}

/// The header as a block, or `None` if its path is too long.
pub(super) fn encode_header(
    version: u32,
    header: &UndoHeader,
    chain: &mut Chain,
) -> Option<Vec<u8>> {
    if header.path.len() > MAX_PATH_BYTES {
        return None;
    }
    let flags = if header.is_block_device {
        FLAG_BLOCK_DEVICE
    } else {
        0
    };
    let mut block = MAGIC.to_vec();
    block.extend(version.to_be_bytes());
    block.extend(flags.to_be_bytes());
    block.extend(header.original_length_bytes.to_be_bytes());
    block.extend(header.device.to_be_bytes());
    block.extend(header.inode.to_be_bytes());
    block.extend(u32::try_from(header.path.len()).ok()?.to_be_bytes());
    block.extend(&header.path);
    block.resize(block.len().next_multiple_of(CHECKSUM_BYTES), 0);
    chain.close(&mut block);
    Some(block)
}

/// The header, its flags that are unknown here, and its length in bytes; `None` where its bytes are not as written.
pub(super) fn decode_header(bytes: &[u8], chain: &mut Chain) -> Option<(UndoHeader, u32, usize)> {
    let path_bytes = usize::try_from(u32_at(bytes, 40)?).ok()?;
    if path_bytes > MAX_PATH_BYTES {
        return None;
    }
    let path_end = HEADER_FIXED_BYTES + path_bytes;
    let end = path_end.next_multiple_of(CHECKSUM_BYTES) + CHECKSUM_BYTES;
    *chain = chain.follow(bytes.get(..end)?)?;
    let flags = u32_at(bytes, 12)?;
    let header = UndoHeader {
        original_length_bytes: u64_at(bytes, 16)?,
        device: u64_at(bytes, 24)?,
        inode: u64_at(bytes, 32)?,
        is_block_device: flags & FLAG_BLOCK_DEVICE != 0,
        path: bytes.get(HEADER_FIXED_BYTES..path_end)?.to_vec(),
    };
    Some((header, flags & !FLAG_BLOCK_DEVICE, end))
}

/// A record as a block, or `None` if it keeps not to the limits.
pub(super) fn encode_record(
    offset: u64,
    original: &[u8],
    versions: &Versions,
    chain: &mut Chain,
) -> Option<Vec<u8>> {
    let sector_count = original.len() / SECTOR_BYTES;
    let version_count = versions.stages.len();
    let is_whole = sector_count * SECTOR_BYTES == original.len()
        && version_count.checked_mul(sector_count) == Some(versions.checksums.len())
        && version_count.saturating_sub(1).checked_mul(original.len()) == Some(versions.kept.len());
    let is_in_order = versions.stages.is_sorted_by(|left, right| left < right);
    if !is_whole || !is_in_order || !is_within_limits(offset, sector_count, version_count) {
        return None;
    }
    let is_blank = original.iter().all(|&byte| byte == 0);
    let mut block = if is_blank {
        BLANK_MAGIC.to_vec()
    } else {
        RECORD_MAGIC.to_vec()
    };
    block.extend(u16::try_from(version_count).ok()?.to_be_bytes());
    block.extend(u16::try_from(sector_count).ok()?.to_be_bytes());
    block.extend(offset.to_be_bytes());
    if !is_blank {
        block.extend(original);
    }
    block.extend(&versions.kept);
    let stages = versions.stages.iter();
    block.extend(stages.flat_map(|stage| stage.to_be_bytes()));
    block.resize(block.len().next_multiple_of(CHECKSUM_BYTES), 0);
    let checksums = versions.checksums.iter();
    block.extend(checksums.flat_map(|checksum| checksum.to_be_bytes()));
    chain.close(&mut block);
    Some(block)
}

/// The record that `bytes` begin with and its length in them; `None` where they are not as written.
pub(super) fn decode_record<'a>(
    version: u32,
    bytes: &'a [u8],
    chain: &mut Chain,
) -> Option<(UndoRecord<'a>, usize)> {
    let version_count = usize::from(u16_at(bytes, 4)?);
    let sector_count = usize::from(u16_at(bytes, 6)?);
    let offset = u64_at(bytes, 8)?;
    let is_blank = bytes.starts_with(&BLANK_MAGIC);
    let is_record = is_blank || bytes.starts_with(&RECORD_MAGIC);
    if !is_record || !is_within_limits(offset, sector_count, version_count) {
        return None;
    }
    let original_bytes = sector_count * SECTOR_BYTES;
    let kept_at = RECORD_FIXED_BYTES + if is_blank { 0 } else { original_bytes };
    let (kept_count, stage_count) = match version {
        FIRST_VERSION => (0, 0),
        _ => (version_count.saturating_sub(1), version_count),
    };
    let stages_at = kept_at + kept_count * original_bytes;
    let stages_end = stages_at + stage_count * STAGE_BYTES;
    let versions_at = stages_end.next_multiple_of(CHECKSUM_BYTES);
    let versions_end = versions_at + sector_count * version_count * CHECKSUM_BYTES;
    let end = versions_end + CHECKSUM_BYTES;
    let next = chain.follow(bytes.get(..end)?)?;
    let (stages, _none) = bytes.get(stages_at..stages_end)?.as_chunks();
    let (versions, _none) = bytes.get(versions_at..versions_end)?.as_chunks();
    let padding = bytes.get(stages_end..versions_at)?;
    if !stages.is_sorted_by(|left, right| left < right) || padding.iter().any(|&byte| byte != 0) {
        return None;
    }
    *chain = next;
    let record = UndoRecord {
        offset,
        original: if is_blank {
            ZEROS.get(..original_bytes)?
        } else {
            bytes.get(RECORD_FIXED_BYTES..kept_at)?
        },
        kept: bytes.get(kept_at..stages_at)?,
        stages,
        versions,
    };
    Some((record, end))
}

/// A record of what is relied on as a block, or `None` if it keeps not to the limits.
pub(super) fn encode_relied(offset: u64, checksums: &[u32], chain: &mut Chain) -> Option<Vec<u8>> {
    if !is_within_limits(offset, checksums.len(), 0) {
        return None;
    }
    let mut block = RELIED_MAGIC.to_vec();
    block.extend(0_u16.to_be_bytes());
    block.extend(u16::try_from(checksums.len()).ok()?.to_be_bytes());
    block.extend(offset.to_be_bytes());
    block.extend(checksums.iter().flat_map(|checksum| checksum.to_be_bytes()));
    chain.close(&mut block);
    Some(block)
}

/// The record of what is relied on that `bytes` begin with, and its length in them; `None` where they are not as written.
pub(super) fn decode_relied<'a>(bytes: &'a [u8], chain: &mut Chain) -> Option<(Relied<'a>, usize)> {
    let sector_count = usize::from(u16_at(bytes, 6)?);
    let offset = u64_at(bytes, 8)?;
    let is_plain = bytes.starts_with(&RELIED_MAGIC) && u16_at(bytes, 4)? == 0;
    if !is_plain || !is_within_limits(offset, sector_count, 0) {
        return None;
    }
    let checksums_end = RECORD_FIXED_BYTES + sector_count * CHECKSUM_BYTES;
    let end = checksums_end + CHECKSUM_BYTES;
    *chain = chain.follow(bytes.get(..end)?)?;
    let (checksums, _none) = bytes.get(RECORD_FIXED_BYTES..checksums_end)?.as_chunks();
    Some((Relied { offset, checksums }, end))
}

fn is_within_limits(offset: u64, sector_count: usize, version_count: usize) -> bool {
    let length_bytes = (sector_count * SECTOR_BYTES) as u64;
    offset.is_multiple_of(SECTOR_BYTES as u64)
        && (1..=MAX_RECORD_BYTES / SECTOR_BYTES).contains(&sector_count)
        && version_count <= MAX_VERSIONS
        && offset
            .checked_add(length_bytes)
            .is_some_and(|end| i64::try_from(end).is_ok())
}

/// A sector of its own that says how far the repair came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// All records stand before this and are durable.
    Commit {
        record_count: u64,
        original_bytes: u64,
        predicted_length_bytes: u64,
        /// 0 in a file of version 1.
        digest_before: u64,
    },
    /// The repair is done.
    Finish { left_length_bytes: u64, digest: u64 },
    /// Somebody is about to write to the image again, most likely to undo.
    Reopen,
}

impl Seal {
    /// The seal as one sector.
    pub(super) fn encode(self, chain: &mut Chain) -> Vec<u8> {
        let (kind, values): (u32, [u64; 4]) = match self {
            Self::Commit {
                record_count,
                original_bytes,
                predicted_length_bytes,
                digest_before,
            } => (
                1,
                [
                    record_count,
                    original_bytes,
                    predicted_length_bytes,
                    digest_before,
                ],
            ),
            Self::Finish {
                left_length_bytes,
                digest,
            } => (2, [left_length_bytes, digest, 0, 0]),
            Self::Reopen => (3, [0; 4]),
        };
        let mut sector = SEAL_MAGIC.to_vec();
        sector.extend(kind.to_be_bytes());
        sector.extend(values.into_iter().flat_map(u64::to_be_bytes));
        sector.resize(SEAL_CHECKSUM_AT, 0);
        chain.close(&mut sector);
        sector.extend(SEAL_MAGIC);
        sector
    }

    /// The seal in `sector`, or `None` if that is not one that was written at this place.
    pub(super) fn decode(sector: &[u8; SECTOR_BYTES], chain: &mut Chain) -> Option<Self> {
        let (block, last) = sector.split_last_chunk()?;
        if !sector.starts_with(&SEAL_MAGIC) || *last != SEAL_MAGIC {
            return None;
        }
        let next = chain.follow(block)?;
        let (first, second) = (u64_at(sector, 12)?, u64_at(sector, 20)?);
        let seal = match u32_at(sector, 8)? {
            1 => Self::Commit {
                record_count: first,
                original_bytes: second,
                predicted_length_bytes: u64_at(sector, 28)?,
                digest_before: u64_at(sector, 36)?,
            },
            2 => Self::Finish {
                left_length_bytes: first,
                digest: second,
            },
            3 => Self::Reopen,
            _ => return None,
        };
        *chain = next;
        Some(seal)
    }

    /// Whether `sector` is or was a seal: then a break before it is damage, not a file that was never completed.
    pub(super) fn leaves_trace_in(sector: &[u8; SECTOR_BYTES]) -> bool {
        sector.starts_with(&SEAL_MAGIC) || sector.ends_with(&SEAL_MAGIC)
    }

    /// Whether `sector` is still reserved: blank, or written from its start but not to its last byte. No flipped bit makes
    /// a seal look so.
    pub(super) fn is_unwritten_in(sector: &[u8; SECTOR_BYTES]) -> bool {
        sector.ends_with(&[0])
    }
}
