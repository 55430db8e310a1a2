//! The stages of a repair, from its undo file: how far it came, and the way back, one stage after the other.
//!
//! Comes in: an undo file and the image. Goes out: the stage the image is in the middle of, and what to write so that it
//! is as before that stage, and before the one ahead of it, and so on. Never here: a write.
//!
//! What a cut leaves is a mixture of an image before and after one stage, and no such mixture is worse than the image
//! before the repair. Going back by the same stages, with a sync between each two, no other mixture comes up.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{SECTOR_BYTES, UndoFile, UndoRecord, sector_checksums};
use crate::storage::Storage;

/// What takes one stage back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBack<'a> {
    /// Where to write what.
    pub ranges: Vec<(u64, &'a [u8])>,
    /// Length of the image before the stage, in bytes: what is behind was appended by it.
    pub length_bytes: u64,
}

impl UndoFile<'_> {
    /// The last stage the image can be in the middle of: every sector is as it was before or after it.
    ///
    /// `None` where no cut leaves an image so, and for a file of version 1, which says nothing of stages. A sector that
    /// cannot be read may be anything.
    pub fn stage_reached<S: Storage>(&self, image: &S) -> Option<u16> {
        let mut stages: Vec<u16> = self.stages().into_iter().collect();
        let mut now = Vec::new();
        for record in &self.records {
            now.resize(record.original.len(), 0);
            let is_read = image.read_at(record.offset, &mut now).is_ok();
            let offsets = (record.offset..).step_by(SECTOR_BYTES);
            for ((index, sector), offset) in now.chunks_mut(SECTOR_BYTES).enumerate().zip(offsets) {
                if is_read || image.read_at(offset, sector).is_ok() {
                    let spans = spans_of_sector(record, index, sector);
                    stages.retain(|stage| spans.iter().any(|span| span.contains(stage)));
                }
            }
        }
        stages.last().copied()
    }

    /// The way back from the middle of a stage: that stage first, then each one before it.
    pub fn steps_back(&self, from: u16) -> impl Iterator<Item = StepBack<'_>> {
        let stages = self.stages().into_iter().rev();
        stages
            .skip_while(move |&stage| stage > from)
            .map(|stage| self.step_back(stage))
    }

    /// Every stage that changes anything.
    fn stages(&self) -> BTreeSet<u16> {
        self.records.iter().flat_map(UndoRecord::stages).collect()
    }

    fn step_back(&self, stage: u16) -> StepBack<'_> {
        let original_length_bytes = self.header.original_length_bytes;
        let mut length_bytes = original_length_bytes;
        let mut ranges = Vec::new();
        for record in &self.records {
            if record.stages().next().is_some_and(|first| first < stage) {
                // The last sector of the original may be a part of one.
                let end = record.offset.saturating_add(record.original.len() as u64);
                if end.saturating_sub(original_length_bytes) >= SECTOR_BYTES as u64 {
                    length_bytes = length_bytes.max(end);
                }
            }
            if let Some(number) = record.stages().position(|of_record| of_record == stage) {
                ranges.push((record.offset, record.before_version(number)));
            }
        }
        StepBack {
            ranges,
            length_bytes,
        }
    }
}

/// From which to which stage a cut can leave a sector as it is: of each version it equals, the stage that makes it and
/// the one that changes it again.
fn spans_of_sector(record: &UndoRecord<'_>, index: usize, now: &[u8]) -> Vec<RangeInclusive<u16>> {
    let start = index * SECTOR_BYTES;
    let original = record.original.get(start..start + SECTOR_BYTES);
    let checksum = sector_checksums(now).next();
    let sector_count = record.original.len() / SECTOR_BYTES;
    let versions = record.versions().skip(index).step_by(sector_count.max(1));
    let is_as = [original == Some(now)]
        .into_iter()
        .chain(versions.map(|version| Some(version) == checksum));
    let begins = [0].into_iter().chain(record.stages());
    let ends = record.stages().chain([u16::MAX]);
    let spans = is_as.zip(begins.zip(ends));
    spans
        .filter(|(is_as, _)| *is_as)
        .map(|(_, (begin, end))| begin..=end)
        .collect()
}
