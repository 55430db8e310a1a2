//! What an image says now where an undo file has records.
//!
//! Comes in: an undo file and the image. Goes out: for each record, whether the image is there as it was, as the repair
//! made it, or as somebody else did. Never here: what follows from that, a write.

use super::{Relied, SECTOR_BYTES, UndoFile, UndoRecord, block, sector_checksums};
use crate::storage::Storage;

/// What the image holds now in the range of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// What it held before the repair.
    Original,
    /// What it held after this stage, counted from zero among those that change the range; the first of equal ones.
    Version(usize),
    /// Every sector as it was at some time before or during the repair, but not all at the same time: a power cut, or
    /// an undo that was cut.
    Mixed,
    /// At least one sector that was never so: somebody else wrote it, or a disk that tears sectors.
    Foreign {
        /// Where the first such sector is in the image, in bytes.
        offset: u64,
    },
    /// At least one sector cannot be read, and of the others none is foreign.
    Unreadable {
        /// Where the first such sector is in the image, in bytes.
        offset: u64,
    },
}

impl UndoFile<'_> {
    /// Compares the image with every record, in the order of the records.
    ///
    /// Sectors are judged one by one: a power cut leaves any of them written and any not.
    pub fn judge<S: Storage + ?Sized>(&self, image: &S) -> Vec<Judgement> {
        let mut now = Vec::new();
        let mut judgements = Vec::with_capacity(self.records.len());
        for record in &self.records {
            now.resize(record.original.len(), 0);
            judgements.push(match image.read_at(record.offset, &mut now) {
                Ok(()) => judge_record(record, &now),
                Err(_) => judge_readable(record, image),
            });
        }
        judgements
    }

    /// Whether the image shows that this file was cut off after its commit: it has none, and yet there is a sector that is
    /// not as it was but as the repair would have made it.
    ///
    /// `false` proves nothing: of what was cut off nothing is known.
    pub fn is_cut_off<S: Storage + ?Sized>(&self, image: &S) -> bool {
        let mut now = [0; SECTOR_BYTES];
        // What has no version was never to be written.
        let written = self.uncommitted.iter();
        let mut written = written.filter(|record| record.versions().len() > 0);
        written.any(|record| {
            let sectors = record.original.chunks(SECTOR_BYTES).enumerate();
            let mut sectors = sectors.zip((record.offset..).step_by(SECTOR_BYTES));
            sectors.any(|((index, original), offset)| {
                image.read_at(offset, &mut now).is_ok()
                    && original != now
                    && versions_of_sector(record, index, &now) != 0
            })
        })
    }
}

impl Relied<'_> {
    /// Where it ends, in bytes.
    pub(super) fn end(&self) -> u64 {
        let length_bytes = (self.checksums.len() * SECTOR_BYTES) as u64;
        self.offset.saturating_add(length_bytes)
    }

    /// Whether the image holds what it held before the repair: that, something foreign, or a sector that cannot be read.
    pub fn judge<S: Storage + ?Sized>(&self, image: &S) -> Judgement {
        let mut unreadable = None;
        let sectors = (self.offset..).step_by(SECTOR_BYTES).zip(self.checksums);
        for (offset, &checksum) in sectors {
            let mut now = [0; SECTOR_BYTES];
            if image.read_at(offset, &mut now).is_err() {
                unreadable = unreadable.or(Some(offset));
            } else if crc32fast::hash(&now) != block::checksum(checksum) {
                return Judgement::Foreign { offset };
            }
        }
        unreadable.map_or(Judgement::Original, |offset| Judgement::Unreadable {
            offset,
        })
    }
}

/// The judgement of a range of which a part cannot be read.
fn judge_readable<S: Storage + ?Sized>(record: &UndoRecord<'_>, image: &S) -> Judgement {
    let mut unreadable = None;
    let sectors = record.original.chunks(SECTOR_BYTES).enumerate();
    for ((index, original), offset) in sectors.zip((record.offset..).step_by(SECTOR_BYTES)) {
        let mut now = [0; SECTOR_BYTES];
        if image.read_at(offset, &mut now).is_err() {
            unreadable = unreadable.or(Some(offset));
        } else if original != now && versions_of_sector(record, index, &now) == 0 {
            return Judgement::Foreign { offset };
        }
    }
    // What could not be read a moment ago can be now: no better than a mixture.
    unreadable.map_or(Judgement::Mixed, |offset| Judgement::Unreadable { offset })
}

fn judge_record(record: &UndoRecord<'_>, now: &[u8]) -> Judgement {
    let mut is_original = true;
    // Bit k: every sector so far is as in version k.
    let mut versions_left = u32::MAX;
    let sectors = record.original.chunks(SECTOR_BYTES);
    for (index, (original, now)) in sectors.zip(now.chunks(SECTOR_BYTES)).enumerate() {
        let is_sector_original = original == now;
        let versions = versions_of_sector(record, index, now);
        if !is_sector_original && versions == 0 {
            let offset = record.offset + (index * SECTOR_BYTES) as u64;
            return Judgement::Foreign { offset };
        }
        is_original &= is_sector_original;
        versions_left &= versions;
    }
    if is_original {
        Judgement::Original
    } else if versions_left != 0 {
        Judgement::Version(versions_left.trailing_zeros() as usize)
    } else {
        Judgement::Mixed
    }
}

/// Bit k is set if the sector is as in version k.
fn versions_of_sector(record: &UndoRecord<'_>, index: usize, now: &[u8]) -> u32 {
    let sector_count = record.original.len() / SECTOR_BYTES;
    let checksum = sector_checksums(now).next();
    let of_sector = record.versions().skip(index).step_by(sector_count.max(1));
    of_sector
        .enumerate()
        .filter(|&(_, version)| Some(version) == checksum)
        .fold(0, |bits, (version, _)| bits | 1 << version)
}
