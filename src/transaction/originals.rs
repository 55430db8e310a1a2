//! What a plan will change, kept in the undo file before it does.
//!
//! Comes in: the image as it is, and the plan. Goes out: a journal, once the undo file is durable. Never here: a write to
//! the image.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::{Identity, PIECE_BYTES, RepairError, read_failed};
use crate::check::metadata_digest;
use crate::image::Image;
use crate::plan::{CopyEdit, Plan};
use crate::progress::Progress;
use crate::storage::{Overlay, Storage, UndoSink};
use crate::undo::{
    Journal, MAX_RECORD_BYTES, SECTOR_BYTES, UndoHeader, UndoWriter, sector_checksums,
};

/// Writes the undo file: every sector the plan changes, as it is, and what it will be after each stage.
pub(super) fn keep_originals<U: UndoSink>(
    storage: &impl Storage,
    identity: &Identity,
    plan: &Plan,
    progress: &Progress,
    sink: U,
) -> Result<Journal<U>, RepairError> {
    let image = Image::open(storage, Path::new("image")).map_err(RepairError::Image)?;
    let digest = metadata_digest(&image, progress).map_err(read_failed)?;
    let pieces = pieces(storage, plan).map_err(read_failed)?;
    let header = UndoHeader {
        original_length_bytes: plan.length_bytes,
        device: identity.device,
        inode: identity.inode,
        is_block_device: identity.is_block_device,
        path: identity.path.clone(),
    };
    let mut writer = UndoWriter::new(sink, &header).map_err(RepairError::UndoFile)?;
    for of_window in pieces.chunk_by(|left, right| left.window() == right.window()) {
        for range in ranges(of_window) {
            // What is past the end of the file reads as zero, and takes no room in the undo file.
            let mut original = vec![0; range.sector_count() * SECTOR_BYTES];
            storage
                .read_at(range.offset, &mut original)
                .map_err(read_failed)?;
            for part in range.split_at_blanks(&original) {
                writer
                    .record(part.offset, part.original, &part.versions)
                    .map_err(RepairError::UndoFile)?;
            }
        }
    }
    writer
        .commit(plan.length_bytes_after, digest)
        .map_err(RepairError::UndoFile)
}

/// Sectors that one stage writes, by their checksums; all within one window of the longest record.
struct Piece {
    offset: u64,
    checksums: Vec<u32>,
}

impl Piece {
    fn window(&self) -> u64 {
        self.offset / MAX_RECORD_BYTES as u64
    }
}

/// Everything the plan writes, by window, and within a window in the order in which it is written.
fn pieces(storage: &impl Storage, plan: &Plan) -> io::Result<Vec<Piece>> {
    let mut later = Overlay::new(storage);
    let mut copied: BTreeMap<u64, u64> = BTreeMap::new();
    let mut pieces = Vec::new();
    for stage in &plan.stages {
        for edit in &stage.edits {
            later.write(edit.offset, &edit.after);
            push(&mut pieces, edit.offset, &edit.after);
        }
        for copy in &stage.copies {
            // What is copied may itself be a copy.
            let from = copied.get(&copy.from).copied().unwrap_or(copy.from);
            push_copy(&mut pieces, &later, CopyEdit { from, ..*copy })?;
            copied.insert(copy.to, from);
        }
    }
    pieces.sort_by_key(Piece::window);
    Ok(pieces)
}

fn push_copy(pieces: &mut Vec<Piece>, storage: &impl Storage, copy: CopyEdit) -> io::Result<()> {
    let mut done = 0;
    while done < copy.bytes {
        let left = usize::try_from(copy.bytes - done).unwrap_or(PIECE_BYTES);
        let mut bytes = vec![0; left.min(PIECE_BYTES)];
        storage.read_at(copy.from + done, &mut bytes)?;
        push(pieces, copy.to + done, &bytes);
        done += bytes.len() as u64;
    }
    Ok(())
}

fn push(pieces: &mut Vec<Piece>, offset: u64, bytes: &[u8]) {
    let mut offset = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let into_window = usize::try_from(offset % MAX_RECORD_BYTES as u64).unwrap_or(0);
        let (part, behind) = rest.split_at(rest.len().min(MAX_RECORD_BYTES - into_window));
        // A sector the file ends in has zeros behind its end.
        let mut sectors = part.to_vec();
        sectors.resize(part.len().next_multiple_of(SECTOR_BYTES), 0);
        pieces.push(Piece {
            offset,
            checksums: sector_checksums(&sectors).collect(),
        });
        offset += part.len() as u64;
        rest = behind;
    }
}

/// Neighbouring sectors that are written equally often.
struct Range {
    offset: u64,
    /// Of each sector, its checksum each time it is written.
    sectors: Vec<Vec<u32>>,
}

/// Part of a range: all blank, or all not.
struct Part<'a> {
    offset: u64,
    original: &'a [u8],
    versions: Vec<u32>,
}

/// The sectors of one window as ranges.
fn ranges(pieces: &[Piece]) -> Vec<Range> {
    let mut sectors: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for piece in pieces {
        let offsets = (piece.offset..).step_by(SECTOR_BYTES);
        for (offset, &checksum) in offsets.zip(&piece.checksums) {
            sectors.entry(offset).or_default().push(checksum);
        }
    }
    let mut ranges: Vec<Range> = Vec::new();
    for (offset, versions) in sectors {
        match ranges.last_mut() {
            // The first sector has the header: it is put back by itself.
            Some(last) if last.offset > 0 && last.is_followed_by(offset, versions.len()) => {
                last.sectors.push(versions);
            }
            _ => ranges.push(Range {
                offset,
                sectors: vec![versions],
            }),
        }
    }
    ranges
}

impl Range {
    fn sector_count(&self) -> usize {
        self.sectors.len()
    }

    fn is_followed_by(&self, offset: u64, version_count: usize) -> bool {
        self.offset + (self.sector_count() * SECTOR_BYTES) as u64 == offset
            && self.sectors.last().map(Vec::len) == Some(version_count)
    }

    /// The range in parts that are blank and parts that are not: of a blank one nothing need be kept.
    fn split_at_blanks<'a>(&'a self, original: &'a [u8]) -> Vec<Part<'a>> {
        let is_blank = |sector: &[u8]| sector.iter().all(|&byte| byte == 0);
        let together: Vec<(bool, &[u8], &Vec<u32>)> = original
            .chunks(SECTOR_BYTES)
            .zip(&self.sectors)
            .map(|(sector, versions)| (is_blank(sector), sector, versions))
            .collect();
        let mut parts = Vec::new();
        let mut start = 0;
        for of_part in together.chunk_by(|left, right| left.0 == right.0) {
            let length = of_part.len() * SECTOR_BYTES;
            let version_count = of_part.first().map_or(0, |(_, _, versions)| versions.len());
            let versions = (0..version_count).flat_map(|version| {
                let of_sector = move |(_, _, versions): &(bool, &[u8], &'a Vec<u32>)| {
                    versions.get(version).copied()
                };
                of_part.iter().filter_map(of_sector)
            });
            parts.push(Part {
                offset: self.offset + start as u64,
                original: original.get(start..start + length).unwrap_or(&[]),
                versions: versions.collect(),
            });
            start += length;
        }
        parts
    }
}
