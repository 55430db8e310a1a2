//! What a plan will change, kept in the undo file before it does.
//!
//! Comes in: the image as it is, and the plan. Goes out: a journal, once the undo file is durable. Never here: a write to
//! the image.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::{Identity, PIECE_BYTES, RepairError, read_failed};
use crate::check::metadata_digest;
use crate::image::Image;
use crate::plan::{CopyEdit, Plan};
use crate::progress::Progress;
use crate::storage::{Overlay, Storage, UndoSink};
use crate::undo::{
    Journal, MAX_RECORD_BYTES, SECTOR_BYTES, UndoHeader, UndoWriter, Versions, sector_checksums,
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
            for part in range.split_at_blanks(&original).map_err(read_failed)? {
                writer
                    .record(part.offset, part.original, &part.versions)
                    .map_err(RepairError::UndoFile)?;
            }
        }
    }
    for (offset, checksums) in relied_on(storage, plan, &pieces).map_err(read_failed)? {
        writer
            .rely_on(offset, &checksums)
            .map_err(RepairError::UndoFile)?;
    }
    writer
        .commit(plan.length_bytes_after, digest)
        .map_err(RepairError::UndoFile)
}

/// Sectors that one stage writes, by their checksums; all within one window of the longest record.
struct Piece<'p> {
    stage: u16,
    offset: u64,
    checksums: Vec<u32>,
    /// What an edit expects there, as far as the file reaches. What guest data is copied over was never written before.
    before: Option<&'p [u8]>,
}

impl Piece<'_> {
    fn window(&self) -> u64 {
        self.offset / MAX_RECORD_BYTES as u64
    }
}

/// Everything the plan writes, by window, and within a window in the order in which it is written.
fn pieces<'p>(storage: &impl Storage, plan: &'p Plan) -> io::Result<Vec<Piece<'p>>> {
    let mut later = Overlay::new(storage);
    let has_copies = plan.stages.iter().any(|stage| !stage.copies.is_empty());
    let mut copied: BTreeMap<u64, u64> = BTreeMap::new();
    let mut pieces = Vec::new();
    for (stage, number) in plan.stages.iter().zip(0_u16..) {
        for edit in &stage.edits {
            if has_copies {
                later.write(edit.offset, &edit.after);
            }
            push(
                &mut pieces,
                number,
                edit.offset,
                &edit.after,
                Some(&edit.before),
            );
        }
        for copy in &stage.copies {
            // What is copied may itself be a copy.
            let from = copied.get(&copy.from).copied().unwrap_or(copy.from);
            push_copy(&mut pieces, number, &later, CopyEdit { from, ..*copy })?;
            copied.insert(copy.to, from);
        }
    }
    pieces.sort_by_key(Piece::window);
    Ok(pieces)
}

/// Sectors that are copied and not written to, by their checksums: an undo gives them both their owners again, and neither
/// must have written to its own since.
fn relied_on(
    storage: &impl Storage,
    plan: &Plan,
    pieces: &[Piece<'_>],
) -> io::Result<Vec<(u64, Vec<u32>)>> {
    let copies = plan.stages.iter().flat_map(|stage| &stage.copies);
    let sources: BTreeMap<u64, u64> = copies.map(|copy| (copy.from, copy.bytes)).collect();
    let written = written_in(&sources, pieces);
    let mut ranges: Vec<(u64, Vec<u32>)> = Vec::new();
    let mut bytes = Vec::new();
    for (&start, &length) in &sources {
        bytes.resize(usize::try_from(length).unwrap_or(0), 0);
        storage.read_at(start, &mut bytes)?;
        let sectors = (start..)
            .step_by(SECTOR_BYTES)
            .zip(sector_checksums(&bytes));
        for (offset, checksum) in sectors.filter(|(offset, _)| !written.contains(offset)) {
            match ranges.last_mut() {
                Some((start, checksums))
                    if *start + (checksums.len() * SECTOR_BYTES) as u64 == offset
                        && checksums.len() < MAX_RECORD_BYTES / SECTOR_BYTES =>
                {
                    checksums.push(checksum);
                }
                _ => ranges.push((offset, vec![checksum])),
            }
        }
    }
    Ok(ranges)
}

/// Sectors of some ranges, by their start and length, that are written.
fn written_in(ranges: &BTreeMap<u64, u64>, pieces: &[Piece<'_>]) -> BTreeSet<u64> {
    let mut written = BTreeSet::new();
    for piece in pieces {
        let end = piece.offset + (piece.checksums.len() * SECTOR_BYTES) as u64;
        let last = ranges.range(..end).next_back();
        if last.is_some_and(|(start, length)| start + length > piece.offset) {
            written.extend((piece.offset..end).step_by(SECTOR_BYTES));
        }
    }
    written
}

fn push_copy(
    pieces: &mut Vec<Piece<'_>>,
    stage: u16,
    storage: &impl Storage,
    copy: CopyEdit,
) -> io::Result<()> {
    let mut done = 0;
    while done < copy.bytes {
        let left = usize::try_from(copy.bytes - done).unwrap_or(PIECE_BYTES);
        let mut bytes = vec![0; left.min(PIECE_BYTES)];
        storage.read_at(copy.from + done, &mut bytes)?;
        push(pieces, stage, copy.to + done, &bytes, None);
        done += bytes.len() as u64;
    }
    Ok(())
}

fn push<'p>(
    pieces: &mut Vec<Piece<'p>>,
    stage: u16,
    offset: u64,
    bytes: &[u8],
    before: Option<&'p [u8]>,
) {
    let mut offset = offset;
    let mut rest = bytes;
    let mut before = before;
    while !rest.is_empty() {
        let into_window = usize::try_from(offset % MAX_RECORD_BYTES as u64).unwrap_or(0);
        let length = rest.len().min(MAX_RECORD_BYTES - into_window);
        let (part, behind) = rest.split_at(length);
        let split = before.map(|before| before.split_at(length.min(before.len())));
        let (whole, cut_short) = part.split_at(part.len() - part.len() % SECTOR_BYTES);
        let mut checksums: Vec<u32> = sector_checksums(whole).collect();
        if !cut_short.is_empty() {
            // A sector the file ends in has zeros behind its end.
            let mut sector = cut_short.to_vec();
            sector.resize(SECTOR_BYTES, 0);
            checksums.extend(sector_checksums(&sector));
        }
        pieces.push(Piece {
            stage,
            offset,
            checksums,
            before: split.map(|(before, _)| before),
        });
        offset += part.len() as u64;
        rest = behind;
        before = split.map(|(_, behind)| behind);
    }
}

/// What one stage makes of a sector.
#[derive(Clone, Copy)]
struct Version<'p> {
    stage: u16,
    checksum: u32,
    before: Option<&'p [u8]>,
}

/// Neighbouring sectors that are written by the same stages.
struct Range<'p> {
    offset: u64,
    /// Of each sector, each time it is written.
    sectors: Vec<Vec<Version<'p>>>,
}

/// Part of a range: all blank, or all not.
struct Part<'a> {
    offset: u64,
    original: &'a [u8],
    versions: Versions,
}

/// The sectors of one window as ranges.
fn ranges<'p>(pieces: &[Piece<'p>]) -> Vec<Range<'p>> {
    let mut sectors: BTreeMap<u64, Vec<Version<'p>>> = BTreeMap::new();
    for piece in pieces {
        let offsets = (piece.offset..).step_by(SECTOR_BYTES).zip(0..);
        for ((offset, index), &checksum) in offsets.zip(&piece.checksums) {
            let before = piece.before.map(|before| sector_of(before, index));
            sectors.entry(offset).or_default().push(Version {
                stage: piece.stage,
                checksum,
                before,
            });
        }
    }
    let mut ranges: Vec<Range<'p>> = Vec::new();
    for (offset, versions) in sectors {
        match ranges.last_mut() {
            // The first sector has the header: it may be put back by itself.
            Some(last) if last.offset > 0 && last.is_followed_by(offset, &versions) => {
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

/// A sector of some bytes, as far as they reach.
fn sector_of(bytes: &[u8], index: usize) -> &[u8] {
    let start = index.saturating_mul(SECTOR_BYTES).min(bytes.len());
    let (_, rest) = bytes.split_at(start);
    rest.get(..SECTOR_BYTES).unwrap_or(rest)
}

impl Range<'_> {
    fn sector_count(&self) -> usize {
        self.sectors.len()
    }

    fn is_followed_by(&self, offset: u64, versions: &[Version<'_>]) -> bool {
        let stages =
            |of: &[Version<'_>]| of.iter().map(|version| version.stage).collect::<Vec<_>>();
        self.offset + (self.sector_count() * SECTOR_BYTES) as u64 == offset
            && self.sectors.last().map(|last| stages(last)) == Some(stages(versions))
    }

    /// The range in parts that are blank and parts that are not: of a blank one nothing need be kept.
    fn split_at_blanks<'a>(&self, original: &'a [u8]) -> io::Result<Vec<Part<'a>>> {
        let is_blank = |sector: &[u8]| sector.iter().fold(0, |any, byte| any | byte) == 0;
        let together: Vec<_> = original
            .chunks(SECTOR_BYTES)
            .zip(&self.sectors)
            .map(|(sector, versions)| (is_blank(sector), versions.as_slice()))
            .collect();
        let mut parts = Vec::new();
        let mut start = 0;
        for of_part in together.chunk_by(|left, right| left.0 == right.0) {
            let length = of_part.len() * SECTOR_BYTES;
            let sectors: Vec<&[Version<'_>]> = of_part.iter().map(|(_, of)| *of).collect();
            parts.push(Part {
                offset: self.offset + start as u64,
                original: original.get(start..start + length).unwrap_or(&[]),
                versions: versions(&sectors)?,
            });
            start += length;
        }
        Ok(parts)
    }
}

/// The versions of neighbouring sectors, as the undo file keeps them.
fn versions(sectors: &[&[Version<'_>]]) -> io::Result<Versions> {
    let stages = sectors.first().copied().unwrap_or_default();
    let mut kept = Versions {
        stages: stages.iter().map(|version| version.stage).collect(),
        ..Versions::default()
    };
    for number in 0..stages.len() {
        for version in sectors.iter().filter_map(|versions| versions.get(number)) {
            kept.checksums.push(version.checksum);
            if number == 0 {
                continue;
            }
            let before = version.before.ok_or_else(|| {
                io::Error::other("guest data would be copied over what the repair has written")
            })?;
            let end = kept.kept.len() + SECTOR_BYTES;
            kept.kept.extend(before);
            kept.kept.resize(end, 0);
        }
    }
    Ok(kept)
}
