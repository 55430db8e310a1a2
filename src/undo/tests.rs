//! The undo file in memory: a sink that keeps every call, records to write, and files forged of them.
//!
//! | module | what holds |
//! |---|---|
//! | `written` | what is written is read |
//! | `refused` | what was not written is refused |
//! | `durable` | a failing sink or a power cut leaves the truth |
//! | `judged` | the state of an image is told sector by sector |

#![expect(clippy::print_stdout, reason = "a test says how much it tried")]

use std::io;
use std::iter::repeat_with;

use fastrand::Rng;

use super::block::{self, Chain, Seal};
use super::*;
use crate::storage::{Storage, UndoSink, UndoSinkFile};

mod durable;
mod judged;
mod refused;
mod written;

/// One call, as a disk sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Write { offset: usize, bytes: Vec<u8> },
    Sync,
    SyncDirectory,
}

/// A sink that keeps every call, and fails at one of them after doing half of it.
#[derive(Debug, Default)]
struct MemorySink {
    bytes: Vec<u8>,
    calls: Vec<Call>,
    fails_at: Option<usize>,
}

impl MemorySink {
    fn call(&mut self, call: Call) -> io::Result<()> {
        let fails = self.fails_at == Some(self.calls.len());
        if let Call::Write { offset, bytes } = &call {
            let kept = if fails { bytes.len() / 2 } else { bytes.len() };
            apply_write(&mut self.bytes, *offset, &bytes[..kept]);
        }
        self.calls.push(call);
        if fails {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl UndoSink for MemorySink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.call(Call::Write {
            offset: usize::try_from(offset).expect("small files only"),
            bytes: bytes.to_vec(),
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.call(Call::Sync)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.call(Call::SyncDirectory)
    }
}

fn apply_write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    file.resize(file.len().max(end), 0);
    file[offset..end].copy_from_slice(bytes);
}

fn noise(random: &mut Rng, length: usize) -> Vec<u8> {
    repeat_with(|| random.u8(..)).take(length).collect()
}

/// A record as it is handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    offset: u64,
    original: Vec<u8>,
    versions: Versions,
}

fn header() -> UndoHeader {
    UndoHeader {
        original_length_bytes: 458_752 + 77,
        device: 0xfd01,
        inode: 1_234_567,
        is_block_device: false,
        path: b"/srv/images/web-7.qcow2".to_vec(),
    }
}

/// Versions with these bytes, each made by a stage of its own.
fn versions_of(contents: impl IntoIterator<Item = Vec<u8>>) -> Versions {
    let mut versions = Versions::default();
    let mut last = None;
    for (stage, content) in (1..).step_by(3).zip(contents) {
        versions.kept.extend(last.take().unwrap_or_default());
        versions.stages.push(stage);
        versions.checksums.extend(sector_checksums(&content));
        last = Some(content);
    }
    versions
}

/// Four records with 1, 3, 2 and no versions, of 1, 2, 5 and 1 sectors; the second is blank, as lost tables are.
fn wanted(seed: u64) -> Vec<Wanted> {
    let mut random = Rng::with_seed(seed);
    [
        (0_u64, 1, 1),
        (65_536, 2, 3),
        (66_560, 5, 2),
        (458_752, 1, 0),
    ]
    .into_iter()
    .enumerate()
    .map(|(index, (offset, sector_count, version_count))| {
        let length = sector_count * SECTOR_BYTES;
        Wanted {
            offset,
            original: match index {
                1 => vec![0; length],
                _ => noise(&mut random, length),
            },
            versions: versions_of((0..version_count).map(|_| noise(&mut random, length))),
        }
    })
    .collect()
}

/// Writes an undo file as far as `sink` goes along.
fn write(sink: &mut MemorySink, wanted: &[Wanted], finishes: bool) -> io::Result<()> {
    let journal = committed(sink, wanted)?;
    if finishes {
        journal.finish(524_288, 0xdead_beef_0bad_cafe)?;
    }
    Ok(())
}

fn committed<'s>(
    sink: &'s mut MemorySink,
    wanted: &[Wanted],
) -> io::Result<Journal<&'s mut MemorySink>> {
    let mut writer = UndoWriter::new(sink, &header())?;
    for record in wanted {
        writer.record(record.offset, &record.original, &record.versions)?;
    }
    for (offset, checksums) in RELIED_ON {
        writer.rely_on(offset, &checksums)?;
    }
    writer.commit(524_288, DIGEST_BEFORE)
}

fn written(wanted: &[Wanted], finishes: bool) -> MemorySink {
    let mut sink = MemorySink::default();
    write(&mut sink, wanted, finishes).expect("memory does not fail");
    sink
}

fn is_content(file: &UndoFile<'_>, wanted: &[Wanted]) -> bool {
    file.header == header()
        && file.digest_before == Some(DIGEST_BEFORE)
        && file.relied_on.iter().map(of_relied).eq(RELIED_ON)
        && file.records.len() == wanted.len()
        && file.records.iter().zip(wanted).all(|(record, wanted)| {
            record.offset == wanted.offset
                && record.original == wanted.original
                && record
                    .versions()
                    .eq(wanted.versions.checksums.iter().copied())
                && record.stages().eq(wanted.versions.stages.iter().copied())
                && record.kept == wanted.versions.kept
        })
}

/// Ranges that every file relies on, among those of its records or not.
const RELIED_ON: [(u64, [u32; 2]); 2] = [(512, [0x1234_5678, 0]), (1 << 40, [1, u32::MAX])];

fn of_relied(relied: &Relied<'_>) -> (u64, [u32; 2]) {
    let checksums: Vec<u32> = relied
        .checksums
        .iter()
        .copied()
        .map(block::checksum)
        .collect();
    (relied.offset, checksums.try_into().unwrap_or_default())
}

const DIGEST_BEFORE: u64 = 0x0123_4567_89ab_cdef;
const COMMITTED: UndoState = UndoState::Committed {
    predicted_length_bytes: 524_288,
};
const FINISHED: UndoState = UndoState::Finished {
    left_length_bytes: 524_288,
    digest: 0xdead_beef_0bad_cafe,
};

/// How reading went, over many files.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    refused: usize,
    no_header: usize,
    incomplete: usize,
    committed: usize,
    finished: usize,
}

impl Tally {
    /// Reads `bytes`, and fails if they are accepted as anything but what was written.
    fn count(&mut self, bytes: &[u8], wanted: &[Wanted]) {
        match UndoFile::decode(bytes) {
            Err(UndoError::NoHeader) => self.no_header += 1,
            Err(_) => self.refused += 1,
            Ok(file) if file.state == UndoState::Incomplete => {
                assert_eq!(file.header, header());
                assert!(file.records.is_empty());
                self.incomplete += 1;
            }
            Ok(file) => {
                assert!(is_content(&file, wanted), "accepted with other content");
                if file.state == COMMITTED {
                    self.committed += 1;
                } else {
                    assert_eq!(file.state, FINISHED);
                    self.finished += 1;
                }
            }
        }
    }
}

/// The blocks of a file: header, records, and the rest from the commit on.
fn blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut chain = Chain::START;
    let (_header, _flags, mut at) = block::decode_header(bytes, &mut chain).expect("a header");
    let mut blocks = vec![bytes[..at].to_vec()];
    let mut length_at = |at: usize| {
        let record = block::decode_record(block::VERSION, &bytes[at..], &mut chain);
        let length = record.map(|(_, length)| length);
        length.or_else(|| Some(block::decode_relied(&bytes[at..], &mut chain)?.1))
    };
    while let Some(length) = length_at(at) {
        blocks.push(bytes[at..at + length].to_vec());
        at += length;
    }
    blocks.push(bytes[at..].to_vec());
    blocks
}

/// Pads before the last block again, so that seals are where seals are looked for.
fn assemble(blocks: &[Vec<u8>]) -> Vec<u8> {
    let (tail, before) = blocks.split_last().expect("blocks");
    let mut bytes = before.concat();
    bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES), 0);
    let seals = tail.len() / SECTOR_BYTES * SECTOR_BYTES;
    bytes.extend(&tail[tail.len() - seals..]);
    bytes
}

fn is_damaged(bytes: &[u8]) -> bool {
    matches!(UndoFile::decode(bytes), Err(UndoError::Damaged { .. }))
}

/// A file whose checksums are all right, made by somebody who does not keep to the rules.
struct Forger {
    bytes: Vec<u8>,
    chain: Chain,
}

impl Forger {
    fn new() -> Self {
        Self::of_version(block::VERSION)
    }

    fn of_version(version: u32) -> Self {
        let mut chain = Chain::START;
        let bytes = block::encode_header(version, &header(), &mut chain).expect("short");
        Self { bytes, chain }
    }

    fn record(mut self, offset: u64, sector_count: u16, version_count: u16, body: &[u8]) -> Self {
        let mut block = block::RECORD_MAGIC.to_vec();
        block.extend(version_count.to_be_bytes());
        block.extend(sector_count.to_be_bytes());
        block.extend(offset.to_be_bytes());
        block.extend(body);
        self.chain.close(&mut block);
        self.bytes.extend(block);
        self
    }

    fn seal(mut self, seal: Seal) -> Self {
        let end = self.bytes.len().next_multiple_of(SECTOR_BYTES);
        self.bytes.resize(end, 0);
        self.bytes.extend(seal.encode(&mut self.chain));
        self
    }

    fn commit(self, record_count: u64, original_bytes: u64) -> Self {
        self.seal(Seal::Commit {
            record_count,
            original_bytes,
            predicted_length_bytes: 0,
            digest_before: 0,
        })
    }
}
