//! Writing an undo file: header and records, sync, the commit seal, sync; later the finish seal.
//!
//! Comes in: ranges of the image in its order. Goes out: a [`Journal`] once everything is durable. Never here: a second
//! try after an error, because what a failed sync lost is not reported twice.

use std::io;

use super::block::{self, Chain, Seal};
use super::{SECTOR_BYTES, UndoFile, UndoHeader, UndoState, Versions};
use crate::storage::UndoSink;

/// An undo file before its commit: as long as there is only this, the image must not be written to.
#[derive(Debug)]
pub struct UndoWriter<S> {
    sink: S,
    end_offset: u64,
    chain: Chain,
    record_count: u64,
    original_bytes: u64,
    /// Where in the image the last record ends.
    recorded_to: u64,
    /// Where in the image the last range ends that is relied on; 0 before the first.
    relied_to: u64,
    /// Whether every record that was handed in is in the file.
    is_whole: bool,
}

/// The proof that an undo file is committed and durable: whoever writes to an image must hold it.
#[derive(Debug)]
pub struct Journal<S> {
    sink: S,
    next_seal_offset: u64,
    chain: Chain,
}

impl<S: UndoSink> UndoWriter<S> {
    /// Begins an undo file in an empty `sink`.
    pub fn new(sink: S, header: &UndoHeader) -> io::Result<Self> {
        let mut chain = Chain::START;
        let block = block::encode_header(block::VERSION, header, &mut chain)
            .ok_or_else(|| misuse("the path of the image is too long for an undo file"))?;
        let mut writer = Self {
            sink,
            end_offset: 0,
            chain,
            record_count: 0,
            original_bytes: 0,
            recorded_to: 0,
            relied_to: 0,
            is_whole: true,
        };
        writer.append(&block)?;
        Ok(writer)
    }

    /// Keeps `original`, the bytes of the image from `offset` on, padded with zeros past its end.
    ///
    /// Offset and length are multiples of [`SECTOR_BYTES`], records come in the order of the image and do not overlap.
    /// `versions` says what becomes of the range.
    pub fn record(&mut self, offset: u64, original: &[u8], versions: &Versions) -> io::Result<()> {
        // An error on the way out leaves it so: what misses a record is never committed.
        let was_whole = std::mem::replace(&mut self.is_whole, false);
        if offset < self.recorded_to || self.relied_to > 0 {
            return Err(misuse(
                "undo records must not overlap, and come in the order of the image",
            ));
        }
        let block = block::encode_record(offset, original, versions, &mut self.chain)
            .ok_or_else(|| misuse("an undo record is not made of whole sectors, or too large"))?;
        self.append(&block)?;
        self.record_count += 1;
        self.original_bytes += original.len() as u64;
        self.recorded_to = offset + original.len() as u64;
        self.is_whole = was_whole;
        Ok(())
    }

    /// Keeps the checksums of the sectors from `offset` on, which stay as they are and which an undo relies on.
    ///
    /// After all records; in the order of the image, without overlaps, at most [`MAX_RECORD_BYTES`](super::MAX_RECORD_BYTES)
    /// at once.
    pub fn rely_on(&mut self, offset: u64, checksums: &[u32]) -> io::Result<()> {
        let was_whole = std::mem::replace(&mut self.is_whole, false);
        if offset < self.relied_to {
            return Err(misuse(
                "what an undo relies on must not overlap, and come in the order of the image",
            ));
        }
        let block = block::encode_relied(offset, checksums, &mut self.chain).ok_or_else(|| {
            misuse("what an undo relies on is not made of whole sectors, or too large")
        })?;
        self.append(&block)?;
        self.record_count += 1;
        self.relied_to = offset + (checksums.len() * SECTOR_BYTES) as u64;
        self.is_whole = was_whole;
        Ok(())
    }

    /// Makes everything durable, name included, and only then seals it. The image will have the length given; the digest
    /// is of its metadata as it is.
    pub fn commit(
        mut self,
        predicted_length_bytes: u64,
        digest_before: u64,
    ) -> io::Result<Journal<S>> {
        if !self.is_whole {
            return Err(misuse("an undo file that lacks a record is not committed"));
        }
        self.sink.sync()?;
        self.sink.sync_directory()?;
        let commit = Seal::Commit {
            record_count: self.record_count,
            original_bytes: self.original_bytes,
            predicted_length_bytes,
            digest_before,
        };
        // From here on everything is in sectors of its own, so that a power cut leaves a seal whole or absent.
        let padding_bytes = padding_bytes(self.end_offset);
        let mut tail = vec![0; padding_bytes];
        tail.extend(commit.encode(&mut self.chain));
        let next_seal_offset = self.end_offset + tail.len() as u64;
        // Room for the next seal: a full disk must not keep a repair from being marked as done.
        tail.extend([0; SECTOR_BYTES]);
        self.append(&tail)?;
        self.sink.sync()?;
        Ok(Journal {
            sink: self.sink,
            next_seal_offset,
            chain: self.chain,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_at(self.end_offset, bytes)?;
        self.end_offset += bytes.len() as u64;
        Ok(())
    }
}

impl<S: UndoSink> Journal<S> {
    /// Marks the repair as done: the image has the length and the metadata digest given.
    pub fn finish(mut self, left_length_bytes: u64, digest: u64) -> io::Result<()> {
        self.seal(Seal::Finish {
            left_length_bytes,
            digest,
        })
    }

    fn seal(&mut self, seal: Seal) -> io::Result<()> {
        let sector = seal.encode(&mut self.chain);
        self.sink.write_at(self.next_seal_offset, &sector)?;
        self.next_seal_offset += sector.len() as u64;
        self.sink.sync()
    }
}

impl UndoFile<'_> {
    /// The journal of the repair again, to resume it or to undo it. `sink` must hold the very bytes this was read from.
    ///
    /// A finished file is marked as no longer so before the journal is handed out: an undo that was cut half-way finds
    /// an image that is neither as it was nor as it was left, and must still be able to go on.
    pub fn reopen<S: UndoSink>(&self, sink: S) -> io::Result<Journal<S>> {
        let mut journal = Journal {
            sink,
            next_seal_offset: self.next_seal_offset,
            chain: self.chain,
        };
        match self.state {
            UndoState::Incomplete => {
                return Err(misuse(
                    "the repair was never committed: nothing to go on with",
                ));
            }
            // What was read may have come from memory only: the process before this one may have died before its sync.
            UndoState::Committed { .. } => {
                journal.sink.sync()?;
                journal.sink.sync_directory()?;
            }
            UndoState::Finished { .. } => journal.seal(Seal::Reopen)?,
        }
        Ok(journal)
    }
}

/// Zeros from `offset` to the next sector.
fn padding_bytes(offset: u64) -> usize {
    let into_sector = usize::try_from(offset % SECTOR_BYTES as u64).unwrap_or_default();
    (SECTOR_BYTES - into_sector) % SECTOR_BYTES
}

fn misuse(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
