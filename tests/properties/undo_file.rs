//! Undo files, over any bytes: only what was written is accepted, and what is accepted is put back and nothing else.
//!
//! Comes in: an input. Goes out: nothing, or an undo file that lies and is believed. Never here: a whole repair.
//!
//! Bytes that begin as an undo file does are one. Of all others the first choice is between two kinds:
//!
//! - *honest*: written by the library, and then damaged. It is read as what was written, or as untouched, or refused.
//! - *forged*: by somebody who can compute checksums, with any numbers in it. Reading and undoing it ends within bounds; an
//!   undo that is done leaves the image that `before` shows, and one that is refused leaves the image alone.

use std::io;
use std::path::Path;

use qfsck::undo::{
    Judgement, MAX_RECORD_BYTES, SECTOR_BYTES, UndoFile, UndoHeader, UndoState, UndoWriter,
    Versions, sector_checksums,
};
use qfsck::{Image, Progress, RepairError, Storage, UndoOptions, metadata_digest};

use super::Bounds;
use super::disk::{Disk, Sink};
use super::given::Given;
use crate::support::image_forge::Random;

/// Undo files are read, judged and put back.
pub(crate) fn holds(input: &[u8], bounds: &impl Bounds) {
    if input.starts_with(b"QFSCK") {
        let image = vec![0; 4096];
        bounds.hold(input.len(), || put_back(input, &image));
        return;
    }
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    if first % 2 == 0 {
        honest(&mut Random::from_tape(rest), bounds);
    } else {
        forged(*first, rest, bounds);
    }
}

/// What was handed to a writer.
struct Wanted {
    header: UndoHeader,
    records: Vec<(u64, Vec<u8>, Versions)>,
    digest: u64,
    predicted: u64,
    finish: Option<(u64, u64)>,
}

impl Wanted {
    fn at_random(random: &mut Random) -> Self {
        let path_bytes = random.below(40) as usize;
        let header = UndoHeader {
            original_length_bytes: random.next_u64() >> random.below(64),
            device: random.below(256),
            inode: random.below(256),
            is_block_device: random.chance(10),
            path: random.take_tape(path_bytes),
        };
        let mut offset = 0;
        let records = (0..random.below(5)).map(|_| {
            offset += random.below(16) * SECTOR_BYTES as u64;
            let sectors = 1 + random.below(3) as usize;
            let fill = random.below(256) as u8;
            let original = vec![fill; sectors * SECTOR_BYTES];
            let record = (offset, original, versions(random, sectors));
            offset += (sectors * SECTOR_BYTES) as u64;
            record
        });
        let records = records.collect();
        Self {
            header,
            records,
            digest: random.below(256),
            predicted: random.below(1 << 16),
            finish: random
                .chance(50)
                .then(|| (random.below(1 << 16), random.below(256))),
        }
    }

    fn written(&self) -> Vec<u8> {
        let sink = Sink::default();
        self.write(sink.clone()).expect("memory takes it");
        sink.0.take()
    }

    fn write(&self, sink: Sink) -> io::Result<()> {
        let mut writer = UndoWriter::new(sink, &self.header)?;
        for (offset, original, versions) in &self.records {
            writer.record(*offset, original, versions)?;
        }
        let journal = writer.commit(self.predicted, self.digest)?;
        match self.finish {
            Some((length, digest)) => journal.finish(length, digest),
            None => Ok(()),
        }
    }

    /// Whether a file that was read says exactly this, or a beginning of it that leaves the image alone.
    fn is_said_by(&self, file: &UndoFile<'_>, is_damaged: bool) -> bool {
        let committed = UndoState::Committed {
            predicted_length_bytes: self.predicted,
        };
        let finished = self
            .finish
            .map(|(left_length_bytes, digest)| UndoState::Finished {
                left_length_bytes,
                digest,
            });
        let records = file.records.iter().map(|record| {
            let stages: Vec<u16> = record.stages().collect();
            let checksums: Vec<u32> = record.versions().collect();
            (record.offset, record.original, stages, checksums)
        });
        let wanted = self.records.iter().map(|(offset, original, versions)| {
            let Versions {
                stages, checksums, ..
            } = versions.clone();
            (*offset, original.as_slice(), stages, checksums)
        });
        let is_whole = records.eq(wanted)
            && file.digest_before == Some(self.digest)
            && (Some(file.state) == finished
                || (file.state == committed && (finished.is_none() || is_damaged)));
        let is_untouched =
            is_damaged && file.state == UndoState::Incomplete && file.records.is_empty();
        file.header == self.header && (is_whole || is_untouched)
    }
}

/// What up to three stages make of so many sectors.
fn versions(random: &mut Random, sectors: usize) -> Versions {
    let mut versions = Versions::default();
    let mut stage = 0;
    for number in 0..random.below(4) {
        stage += 1 + random.below(3) as u16;
        if number > 0 {
            let fill = random.below(256) as u8;
            versions
                .kept
                .extend(std::iter::repeat_n(fill, sectors * SECTOR_BYTES));
        }
        versions.stages.push(stage);
        let checksums = (0..sectors).map(|_| random.below(1 << 16) as u32);
        versions.checksums.extend(checksums);
    }
    versions
}

fn honest(random: &mut Random, bounds: &impl Bounds) {
    let wanted = Wanted::at_random(random);
    let written = wanted.written();
    let mut bytes = written.clone();
    let mut changes = 0;
    while random.has_tape() && changes < 3 {
        damage(&mut bytes, random);
        changes += 1;
    }
    bounds.hold(bytes.len(), || {
        let decoded = UndoFile::decode(&bytes);
        let is_damaged = bytes != written;
        match decoded {
            Ok(file) => {
                let is_true = wanted.is_said_by(&file, is_damaged);
                assert!(is_true, "{:?} of {changes} changes: {file:?}", file.state);
            }
            Err(error) => assert!(is_damaged, "{error} though nothing was changed"),
        }
    });
}

/// A byte becomes another, a sector is lost, the end is cut off, or a sector stands where another stood.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below((bytes.len() as u64).min(1 << 16)) as usize;
    let sector = at / SECTOR_BYTES * SECTOR_BYTES;
    let end = (sector + SECTOR_BYTES).min(bytes.len());
    match random.below(5) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[sector..end].fill(0),
        3 => bytes.truncate(at),
        _ => {
            let from = random.below(bytes.len().div_ceil(SECTOR_BYTES) as u64) as usize;
            let piece = bytes[from * SECTOR_BYTES..].to_vec();
            let count = piece.len().min(end - sector);
            bytes[sector..sector + count].copy_from_slice(&piece[..count]);
        }
    }
}

/// Blocks with the checksums they must have, and whatever else in them.
struct Forger {
    bytes: Vec<u8>,
    chain: u32,
}

impl Forger {
    fn block(&mut self, body: &[u8]) {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.chain.to_be_bytes());
        hasher.update(body);
        self.chain = hasher.finalize();
        self.bytes.extend(body);
        self.bytes.extend(self.chain.to_be_bytes());
    }

    fn seal(&mut self, kind: u32, values: [u64; 4]) {
        let mut body = b"QFSCKSEA".to_vec();
        body.extend(kind.to_be_bytes());
        body.extend(values.into_iter().flat_map(u64::to_be_bytes));
        body.resize(500, 0);
        self.block(&body);
        self.bytes.extend(b"QFSCKSEA");
    }
}

/// A number that is often near one that matters.
fn number(random: &mut Random, near: u64) -> u64 {
    match random.below(6) {
        0..=2 => near,
        3 => near.wrapping_add(random.below(256)).wrapping_sub(128),
        4 => random.pick(&[0, 1, u64::MAX, 1 << 63, (1 << 63) - 512, 1 << 56]),
        _ => random.next_u64(),
    }
}

/// Most often a later stage, as it must be.
fn number_of_stage(last: u16, random: &mut Random) -> u16 {
    match random.below(8) {
        0 => random.next_u64() as u16,
        steps => last.saturating_add(steps as u16),
    }
}

fn forged(first: u8, rest: &[u8], bounds: &impl Bounds) {
    let (image, random) = if first & 2 == 0 {
        (small_image(first >> 2), Random::from_tape(rest))
    } else {
        let split = rest.len() / 2;
        (
            Given::of(&rest[..split]).bytes,
            Random::from_tape(&rest[split..]),
        )
    };
    // The digest of what it puts back is right as well, unless chance wants another.
    let undo_file = forge(&image, 0, random.clone());
    let digest = UndoFile::decode(&undo_file)
        .ok()
        .and_then(|file| digest_of(&file.before(&image)));
    let undo_file = match digest {
        Some(digest) => forge(&image, digest, random),
        None => undo_file,
    };
    bounds.hold(image.len() + undo_file.len(), || {
        put_back(&undo_file, &image);
    });
}

/// An image of version 2 with 512-byte clusters and nothing in it but bytes that nobody owns.
fn small_image(fill: u8) -> Vec<u8> {
    let mut image = vec![fill; 4 * SECTOR_BYTES + 100];
    image[..SECTOR_BYTES].fill(0);
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    image[23] = 9;
    image
}

fn digest_of(storage: &impl Storage) -> Option<u64> {
    let image = Image::open(storage, Path::new("input")).ok()?;
    metadata_digest(&image, &Progress::default()).ok()
}

/// An undo file for an image, with this digest of what it puts back.
fn forge(image: &[u8], digest: u64, mut random: Random) -> Vec<u8> {
    let random = &mut random;
    let mut forger = Forger {
        bytes: Vec::new(),
        chain: 0,
    };
    let length = image.len() as u64;
    let version = random.pick(&[1_u32, 2, 2, 2, 3]);
    let mut header = b"QFSCKUND".to_vec();
    header.extend(version.to_be_bytes());
    header.extend((random.pick(&[0_u32, 0, 0, 1, 2])).to_be_bytes());
    let shorter = length.saturating_sub(random.below(8) * SECTOR_BYTES as u64);
    header.extend(number(random, shorter).to_be_bytes());
    header.extend([0; 16]);
    header.extend(4_u32.to_be_bytes());
    header.extend(b"path");
    forger.block(&header);
    let mut originals = 0_u64;
    let mut offset = 0_u64;
    let count = random.below(5);
    for _ in 0..count {
        let gap = random.below(8) * SECTOR_BYTES as u64;
        offset = number(random, offset.wrapping_add(gap));
        let sectors = random.pick(&[1_u16, 1, 1, 1, 2, 2, 3, 3, 0, 2048]);
        forger.block(&record(image, version, offset, sectors, random));
        let bytes = u64::from(sectors) * SECTOR_BYTES as u64;
        originals = originals.wrapping_add(bytes);
        offset = offset.wrapping_add(bytes) / 512 * 512;
    }
    let padding = forger.bytes.len().next_multiple_of(SECTOR_BYTES);
    forger.bytes.resize(padding, 0);
    let values = [
        number(random, count),
        number(random, originals),
        number(random, length),
        number(random, digest),
    ];
    forger.seal(1, values);
    for _ in 0..random.below(3) {
        let kind = random.pick(&[2, 3, 3, 1]);
        let left = number(random, length);
        forger.seal(kind, [left, number(random, 0), 0, 0]);
    }
    forger.bytes
}

/// A record of a range, which the image most often is as a version of.
fn record(image: &[u8], version: u32, offset: u64, sectors: u16, random: &mut Random) -> Vec<u8> {
    let most: &[u16] = if sectors > 3 {
        &[0, 1]
    } else {
        &[0, 1, 1, 2, 3, 16, 17]
    };
    let versions = random.pick(most);
    let is_blank = random.chance(30) || sectors > 3;
    let mut body = if is_blank {
        b"QZER".to_vec()
    } else {
        b"QREC".to_vec()
    };
    body.extend(versions.to_be_bytes());
    body.extend(sectors.to_be_bytes());
    body.extend(offset.to_be_bytes());
    let bytes = usize::from(sectors) * SECTOR_BYTES;
    let mut fill = |body: &mut Vec<u8>| {
        let byte = random.below(256) as u8;
        body.extend(std::iter::repeat_n(byte, bytes));
    };
    if !is_blank {
        fill(&mut body);
    }
    if version > 1 {
        for _ in 1..versions {
            fill(&mut body);
        }
        let mut stage = 0;
        for _ in 0..versions {
            stage = number_of_stage(stage, random);
            body.extend(stage.to_be_bytes());
        }
        body.resize(body.len().next_multiple_of(4), 0);
    }
    // As the image is, so that nobody has used it.
    let mut now = vec![0; bytes.min(MAX_RECORD_BYTES)];
    image.read_at(offset, &mut now).expect("memory can be read");
    for _ in 0..versions {
        let is_known = random.chance(70);
        let checksums = sector_checksums(&now).map(|it| if is_known { it } else { !it });
        body.extend(checksums.flat_map(u32::to_be_bytes));
    }
    body
}

/// Reads an undo file and undoes what it says, on an image in memory.
fn put_back(undo_file: &[u8], image: &[u8]) {
    let Ok(file) = UndoFile::decode(undo_file) else {
        return;
    };
    let judgements = file.judge(image);
    let is_foreign = |judgement: &Judgement| matches!(judgement, Judgement::Foreign { .. });
    let is_used = judgements.iter().any(is_foreign);
    let _sectors = file.sector_count();
    let before = file.before(image);
    let length = before.length_bytes().expect("a number");
    // All of it, if it is what the image was: longer ones are refused.
    let shown = usize::try_from(length).unwrap_or(usize::MAX);
    let mut shown = vec![0; shown.min(image.len())];
    before.read_at(0, &mut shown).expect("memory can be read");
    let mut disk = Disk::new(image);
    let sink = Sink::holding(undo_file);
    let options = UndoOptions::default();
    match qfsck::undo_repair(&mut disk, &file, options, &Progress::default(), || Ok(sink)) {
        Ok(_) => {
            assert!(!is_used, "an image that was used is written to");
            let is_shown = disk
                .bytes
                .starts_with(&shown[..shown.len().min(disk.bytes.len())]);
            assert!(is_shown, "other bytes than were shown");
            assert_eq!(disk.bytes.len() as u64, length, "another length");
        }
        // The disk is full: half of it is done, and the undo file says so.
        Err(RepairError::PutBack(_)) => {}
        Err(error) => {
            assert_eq!(disk.writes, 0, "written to, and then {error}");
        }
    }
}
