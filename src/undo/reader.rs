//! Reading an undo file: total over all byte strings, and never more trusting than the checksums allow.
//!
//! Comes in: bytes. Goes out: exactly what was written, or an error. Never here: a repair of the undo file, a guess.
//!
//! A file whose chain of blocks breaks off was either never completed, and then the image is untouched, or was damaged
//! after its commit, and then the image may be half repaired. The two are told apart by the commit seal: it is written
//! last and alone, so any trace of one behind the break means damage.

use super::block::{self, Chain, Seal};
use super::{Relied, SECTOR_BYTES, UndoError, UndoFile, UndoHeader, UndoRecord, UndoState};
use crate::qcow2::u32_at;

/// A proven part of the file: what it says, and where in the file it ends.
type Proven<T> = (T, usize);

impl<'a> UndoFile<'a> {
    /// Reads an undo file from all of its bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, UndoError> {
        let mut chain = Chain::START;
        let ((header, version), header_end) = decode_header(bytes, &mut chain)?;
        let (records, records_end) = decode_records(version, bytes, header_end, &mut chain)?;
        let (relied_on, blocks_end) = decode_relied(bytes, records_end, &mut chain)?;
        let counts = (records.as_slice(), relied_on.len());
        let Some((commit, commit_end)) = decode_commit(bytes, blocks_end, counts, &mut chain)
        else {
            refuse_seals_behind(bytes, blocks_end)?;
            return Ok(Self {
                header,
                records: Vec::new(),
                relied_on: Vec::new(),
                digest_before: None,
                state: UndoState::Incomplete,
                uncommitted: records,
                next_seal_offset: 0,
                chain: Chain::START,
            });
        };
        let (predicted_length_bytes, digest_before) = commit;
        let (state, seals_end) =
            decode_later_seals(bytes, commit_end, predicted_length_bytes, &mut chain)?;
        Ok(Self {
            header,
            records,
            relied_on,
            digest_before: (version > block::FIRST_VERSION).then_some(digest_before),
            state,
            uncommitted: Vec::new(),
            next_seal_offset: seals_end as u64,
            chain,
        })
    }
}

/// The header and the version of the file.
fn decode_header(bytes: &[u8], chain: &mut Chain) -> Result<Proven<(UndoHeader, u32)>, UndoError> {
    let (magic, _rest) = bytes.split_at(bytes.len().min(block::MAGIC.len()));
    if !block::MAGIC.starts_with(magic) && magic.iter().any(|&byte| byte != 0) {
        return Err(UndoError::NotAnUndoFile);
    }
    let version = u32_at(bytes, 8).unwrap_or(block::VERSION);
    if !(block::FIRST_VERSION..=block::VERSION).contains(&version) && magic == block::MAGIC {
        return Err(UndoError::UnknownVersion(version));
    }
    if let Some((header, unknown_flags, end)) = block::decode_header(bytes, chain)
        && magic == block::MAGIC
    {
        return match unknown_flags {
            0 => Ok(((header, version), end)),
            flags => Err(UndoError::UnknownFlags(flags)),
        };
    }
    refuse_seals_behind(bytes, 0)?;
    Err(UndoError::NoHeader)
}

/// The records up to the first bytes that are not one.
fn decode_records<'a>(
    version: u32,
    bytes: &'a [u8],
    header_end: usize,
    chain: &mut Chain,
) -> Result<Proven<Vec<UndoRecord<'a>>>, UndoError> {
    let mut records = Vec::new();
    let mut at = header_end;
    let mut recorded_to = 0;
    while let Some((record, length_bytes)) = block::decode_record(version, rest(bytes, at), chain) {
        if record.offset < recorded_to {
            return Err(damaged(at));
        }
        recorded_to = record.offset + record.original.len() as u64;
        at += length_bytes;
        records.push(record);
    }
    Ok((records, at))
}

/// The records of what is relied on, up to the first bytes that are not one.
fn decode_relied<'a>(
    bytes: &'a [u8],
    records_end: usize,
    chain: &mut Chain,
) -> Result<Proven<Vec<Relied<'a>>>, UndoError> {
    let mut relied_on: Vec<Relied<'a>> = Vec::new();
    let mut at = records_end;
    while let Some((relied, length_bytes)) = block::decode_relied(rest(bytes, at), chain) {
        let end = relied_on.last().map_or(0, Relied::end);
        if relied.offset < end {
            return Err(damaged(at));
        }
        at += length_bytes;
        relied_on.push(relied);
    }
    Ok((relied_on, at))
}

/// The predicted length and the digest from the commit seal, if that stands right behind the records and speaks of exactly these.
fn decode_commit(
    bytes: &[u8],
    records_end: usize,
    (records, relied_count): (&[UndoRecord<'_>], usize),
    chain: &mut Chain,
) -> Option<Proven<(u64, u64)>> {
    let seal_at = records_end.next_multiple_of(SECTOR_BYTES);
    let padding = bytes.get(records_end..seal_at)?;
    let sector = rest(bytes, seal_at).first_chunk()?;
    let Seal::Commit {
        record_count,
        original_bytes,
        predicted_length_bytes,
        digest_before,
    } = Seal::decode(sector, chain)?
    else {
        return None;
    };
    let recorded_bytes: u64 = records
        .iter()
        .map(|record| record.original.len() as u64)
        .sum();
    let is_of_these = padding.iter().all(|&byte| byte == 0)
        && record_count == (records.len() + relied_count) as u64
        && original_bytes == recorded_bytes;
    let said = (predicted_length_bytes, digest_before);
    is_of_these.then_some((said, seal_at + SECTOR_BYTES))
}

/// Finished and reopened in turn; behind the last seal is nothing, or one sector that was reserved or cut short.
fn decode_later_seals(
    bytes: &[u8],
    commit_end: usize,
    predicted_length_bytes: u64,
    chain: &mut Chain,
) -> Result<Proven<UndoState>, UndoError> {
    let committed = UndoState::Committed {
        predicted_length_bytes,
    };
    let mut state = committed;
    let mut at = commit_end;
    while let Some((sector, behind)) = rest(bytes, at).split_first_chunk() {
        if behind.is_empty() && Seal::is_unwritten_in(sector) {
            break;
        }
        state = match (state, Seal::decode(sector, chain)) {
            (
                UndoState::Committed { .. },
                Some(Seal::Finish {
                    left_length_bytes,
                    digest,
                }),
            ) => UndoState::Finished {
                left_length_bytes,
                digest,
            },
            (UndoState::Finished { .. }, Some(Seal::Reopen)) => committed,
            _ => return Err(damaged(at)),
        };
        at += SECTOR_BYTES;
    }
    Ok((state, at))
}

/// The chain broke at `at`: fine in a file that was never committed.
fn refuse_seals_behind(bytes: &[u8], at: usize) -> Result<(), UndoError> {
    let (sectors, _tail) = rest(bytes, at.next_multiple_of(SECTOR_BYTES)).as_chunks();
    if sectors.iter().any(Seal::leaves_trace_in) {
        return Err(damaged(at));
    }
    Ok(())
}

fn rest(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or(&[])
}

fn damaged(at: usize) -> UndoError {
    UndoError::Damaged { offset: at as u64 }
}
