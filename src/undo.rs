//! The undo file: what an image was before a repair, durable before the first byte of the image changes.
//!
//! Comes in: ranges of an image with their bytes, and checksums of what they will become. Goes out: a [`Journal`], the
//! proof that all of it will survive a power cut; later, from any bytes at all, an [`UndoFile`] or why there is none.
//! Never here: qcow2, plans, an image being written to, a file being opened (`storage/undo_file.rs`), a clock.
//!
//! The format is described byte by byte in `docs/undo-file.md`.

mod before;
mod block;
mod glance;
mod judge;
mod reader;
mod stages;
#[cfg(test)]
mod tests;
mod writer;

pub use before::Before;
use block::Chain;
pub use judge::Judgement;
pub use stages::StepBack;
pub use writer::{Journal, UndoWriter};

use crate::qcow2::u16_at;

/// The unit of records and of writes that a power cut cannot tear, in bytes.
pub const SECTOR_BYTES: usize = 512;
/// Longest range of one record in bytes.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Most versions a range may go through in one repair, the original not counted.
pub const MAX_VERSIONS: usize = 16;
/// Longest path of an image in bytes.
pub const MAX_PATH_BYTES: usize = 4096;

/// Which image an undo file belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoHeader {
    /// Length of the image before the repair, in bytes.
    pub original_length_bytes: u64,
    /// Number of the device the image is on, or that the image is. May change at a reboot.
    pub device: u64,
    /// Number of the image's inode on its device.
    pub inode: u64,
    /// Whether the image is a block device: its length is not the image's, and cannot be put back.
    pub is_block_device: bool,
    /// Path of the image as it was given; to be shown, not to be trusted.
    pub path: Vec<u8>,
}

/// One range of an image, as it was and as it will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UndoRecord<'a> {
    /// Where in the image, in bytes; a multiple of [`SECTOR_BYTES`].
    pub offset: u64,
    /// The bytes before the repair; what was past the end of the image is zero.
    pub original: &'a [u8],
    /// For each version but the last, in turn, the bytes of the range.
    kept: &'a [u8],
    /// The stage that makes each version, ascending, big endian; none in a file of version 1.
    stages: &'a [[u8; 2]],
    /// For each version in turn, one checksum for each sector, big endian.
    versions: &'a [[u8; 4]],
}

/// A range that the repair does not write to, and whose bytes an undo relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relied<'a> {
    /// Where in the image, in bytes; a multiple of [`SECTOR_BYTES`].
    pub offset: u64,
    /// One checksum for each sector, big endian.
    checksums: &'a [[u8; 4]],
}

/// What becomes of a range in a repair: one version for each stage that changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The numbers of these stages, ascending.
    pub stages: Vec<u16>,
    /// For each version but the last, in turn, the bytes of the range: what the next one is taken back to.
    pub kept: Vec<u8>,
    /// For each version in turn, the [`sector_checksums`] of the range.
    pub checksums: Vec<u32>,
}

impl UndoRecord<'_> {
    /// For each version in turn, one checksum for each sector, as [`sector_checksums`] gives them.
    pub fn versions(&self) -> impl ExactSizeIterator<Item = u32> {
        self.versions.iter().copied().map(block::checksum)
    }

    /// The stage that makes each version, ascending; none in a file of version 1.
    pub fn stages(&self) -> impl ExactSizeIterator<Item = u16> {
        self.stages
            .iter()
            .map(|stage| u16_at(stage, 0).unwrap_or_default())
    }

    /// What the range held before its version `number`.
    fn before_version(&self, number: usize) -> &[u8] {
        let Some(earlier) = number.checked_sub(1) else {
            return self.original;
        };
        let length = self.original.len();
        let start = earlier.saturating_mul(length);
        let kept = self.kept.get(start..start.saturating_add(length));
        kept.unwrap_or(self.original)
    }
}

/// How far the repair came that an undo file was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UndoState {
    /// Never committed: no byte of the image was changed.
    Incomplete,
    /// The repair, or its undo, may be anywhere between its first write and its last.
    Committed {
        /// Length the repair was going to leave the image with, in bytes.
        predicted_length_bytes: u64,
    },
    /// The repair is done.
    Finished {
        /// Length the repair left the image with, in bytes.
        left_length_bytes: u64,
        /// Digest of the image's metadata as the repair left it; only the caller knows of what.
        digest: u64,
    },
}

/// An undo file, read and proven to be as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoFile<'a> {
    /// The image it belongs to.
    pub header: UndoHeader,
    /// What to put back, in the order of the image, without overlaps; nothing in an [`UndoState::Incomplete`] file.
    pub records: Vec<UndoRecord<'a>>,
    /// What must be as it was for an undo to put anything back: guest data that had two owners, and was copied for one of
    /// them. Files of version 1 and 2 have none.
    pub relied_on: Vec<Relied<'a>>,
    /// Digest of the image's metadata before the repair; only the caller knows of what. Files of version 1 have none.
    pub digest_before: Option<u64>,
    /// How far the repair came.
    pub state: UndoState,
    /// What is left of the records of a file without a commit. They are held against the image, and never put back.
    uncommitted: Vec<UndoRecord<'a>>,
    next_seal_offset: u64,
    chain: Chain,
}

impl UndoFile<'_> {
    /// How many sectors an undo puts back; what a repair appended is cut off instead.
    pub fn sector_count(&self) -> u64 {
        let length_bytes = self.header.original_length_bytes;
        let is_in_file = |record: &&UndoRecord<'_>| record.offset < length_bytes;
        let records = self.records.iter().filter(is_in_file);
        let sectors = records.map(|record| (record.original.len() / SECTOR_BYTES) as u64);
        sectors.fold(0, u64::saturating_add)
    }
}

/// Why bytes are not taken for an undo file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UndoError {
    /// Something else, or nothing recognizable any more.
    #[error("is not an undo file of qfsck")]
    NotAnUndoFile,
    /// Empty, blank, or cut inside the header.
    #[error("holds no whole header, and no repair was ever committed in it")]
    NoHeader,
    /// Made by a later qfsck.
    #[error("is an undo file of version {0}; this qfsck knows versions 1 to 3")]
    UnknownVersion(u32),
    /// Made by a later qfsck.
    #[error("has unknown flags {0:#x}; a later qfsck made it")]
    UnknownFlags(u32),
    /// Not what was written. Whether the image was changed cannot be told from this file.
    #[error("is damaged at byte {offset}")]
    Damaged {
        /// Where the first block begins that is not as it was written.
        offset: u64,
    },
}

/// The checksum of each sector of a range: what [`Versions`] has of each version.
///
/// A tail shorter than a sector is left out.
pub fn sector_checksums(range: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    let (sectors, _tail) = range.as_chunks::<SECTOR_BYTES>();
    sectors.iter().map(|sector| crc32fast::hash(sector))
}
