//! The undo file in memory: what is written is read, and what was not written is refused.

#![expect(clippy::print_stdout, reason = "a test says how much it tried")]

use std::io;

use super::block::{self, Chain, Seal};
use super::*;
use crate::storage::{Storage, UndoSink, UndoSinkFile};

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

/// Numbers that look random and are the same every time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a limit")
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }
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
    let mut random = Random(seed);
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
                _ => random.bytes(length),
            },
            versions: versions_of((0..version_count).map(|_| random.bytes(length))),
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

#[test]
fn what_is_written_is_read() {
    let wanted = wanted(1);
    let sink = written(&wanted, false);
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    assert!(is_content(&file, &wanted));
    assert_eq!(file.state, COMMITTED);
    let sink = written(&wanted, true);
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    assert!(is_content(&file, &wanted));
    assert_eq!(file.state, FINISHED);
}

#[test]
fn any_number_of_records_and_any_path_are_read_back() {
    let mut random = Random(7);
    for record_count in 0..200 {
        let header = UndoHeader {
            path: random.bytes(record_count * 20),
            is_block_device: record_count % 2 == 1,
            ..header()
        };
        let mut sink = MemorySink::default();
        let mut writer = UndoWriter::new(&mut sink, &header).expect("begun");
        let mut originals = Vec::new();
        for index in 0..record_count as u64 {
            let original = random.bytes(SECTOR_BYTES);
            let count = random.below(MAX_VERSIONS + 1);
            let versions = versions_of((0..count).map(|_| random.bytes(SECTOR_BYTES)));
            writer
                .record(index * 512, &original, &versions)
                .expect("kept");
            originals.push(original);
        }
        let _journal = writer.commit(0, 0).expect("committed");
        let file = UndoFile::decode(&sink.bytes).expect("readable");
        assert_eq!(file.header, header);
        assert!(
            file.records
                .iter()
                .map(|record| record.original)
                .eq(&originals)
        );
    }
}

#[test]
fn the_largest_record_is_taken_and_a_larger_one_is_not() {
    let sectors = MAX_RECORD_BYTES / SECTOR_BYTES;
    let original = vec![0x5a; MAX_RECORD_BYTES];
    let mut sink = MemorySink::default();
    let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
    let versions = versions_of(vec![original.clone(); MAX_VERSIONS]);
    writer.record(0, &original, &versions).expect("kept");
    let last = i64::MAX.unsigned_abs() - 511;
    writer
        .record(last - 512, &original[..512], &Versions::default())
        .expect("kept");
    let _journal = writer.commit(0, 0).expect("committed");
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    assert_eq!(file.records[0].original, original);
    assert_eq!(file.records[0].versions().len(), sectors * MAX_VERSIONS);

    let too_large = vec![0; MAX_RECORD_BYTES + SECTOR_BYTES];
    let one = &original[..SECTOR_BYTES];
    let none = Versions::default;
    let odd = |stages: &[u16], kept_bytes: usize, checksums: usize| Versions {
        stages: stages.to_vec(),
        kept: vec![1; kept_bytes],
        checksums: vec![0; checksums],
    };
    let refused: [(u64, &[u8], Versions); 13] = [
        (0, &too_large, none()),
        (0, &[], none()),
        (0, &original[..513], none()),
        (1, one, none()),
        (last, one, none()),
        (u64::MAX - 511, one, none()),
        (0, one, versions_of(vec![one.to_vec(); MAX_VERSIONS + 1])),
        (0, &original[..1024], odd(&[0], 0, 3)),
        (0, &original[..1024], odd(&[0], 0, 1)),
        (0, one, odd(&[0, 1], 0, 2)),
        (0, one, odd(&[0, 1], 1024, 2)),
        (0, one, odd(&[1, 1], 512, 2)),
        (0, one, odd(&[1, 0], 512, 2)),
    ];
    for (offset, original, versions) in &refused {
        let offset = *offset;
        let mut sink = MemorySink::default();
        let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
        let error = writer
            .record(offset, original, versions)
            .expect_err("misuse");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        writer
            .record(0, one, &Versions::default())
            .expect("a good one");
        writer.commit(0, 0).expect_err("a record is missing");
    }
    let long_path = UndoHeader {
        path: vec![b'a'; MAX_PATH_BYTES + 1],
        ..header()
    };
    UndoWriter::new(&mut MemorySink::default(), &long_path).expect_err("too long");
}

#[test]
fn records_that_overlap_or_go_back_are_refused() {
    let original = [1; 1024];
    for offset in [0, 512, 1024, 1536] {
        let mut sink = MemorySink::default();
        let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
        writer
            .record(1024, &original, &Versions::default())
            .expect("kept");
        writer
            .record(offset, &original, &Versions::default())
            .expect_err("refused");
        writer.commit(0, 0).expect_err("a record is missing");
    }
}

#[test]
fn what_an_undo_relies_on_comes_last_in_order_and_is_judged_sector_by_sector() {
    let image: Vec<u8> = (0..8 * 512_u32)
        .map(|at| (at / 512 + 1).to_be_bytes()[3])
        .collect();
    let mut sink = MemorySink::default();
    let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
    let checksums: Vec<u32> = sector_checksums(&image[1024..3072]).collect();
    writer.rely_on(1024, &checksums).expect("kept");
    let _journal = writer.commit(0, DIGEST_BEFORE).expect("committed");
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    assert_eq!((file.sector_count(), file.relied_on.len()), (0, 1));
    for sector in 0..8 {
        let mut now = image.clone();
        now[sector * 512 + 511] ^= 1;
        let foreign = Judgement::Foreign {
            offset: sector as u64 * 512,
        };
        let expected = if (2..6).contains(&sector) {
            foreign
        } else {
            Judgement::Original
        };
        assert_eq!(file.relied_on[0].judge(&now), expected);
    }
    // Past the end nothing can be read.
    let unreadable = Judgement::Unreadable { offset: 2560 };
    assert_eq!(file.relied_on[0].judge(&Short(&image[..2560])), unreadable);

    for offset in [1024, 2560, 3071] {
        let mut sink = MemorySink::default();
        let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
        writer.rely_on(1024, &checksums).expect("kept");
        writer.rely_on(offset, &checksums).expect_err("refused");
        writer.commit(0, 0).expect_err("something is missing");
    }
    let mut sink = MemorySink::default();
    let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
    writer.rely_on(1024, &checksums).expect("kept");
    let late = writer.record(1 << 20, &image, &Versions::default());
    late.expect_err("records come before");
}

/// An image that ends in an error.
struct Short<'a>(&'a [u8]);

impl Storage for Short<'_> {
    fn length_bytes(&self) -> io::Result<u64> {
        self.0.len().try_into().map_err(io::Error::other)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = self
            .0
            .get(start..)
            .and_then(|rest| rest.get(..buffer.len()));
        let part = part.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

#[test]
fn every_truncation_is_untouched_or_committed_with_the_same_content() {
    let wanted = wanted(2);
    for finishes in [false, true] {
        let bytes = written(&wanted, finishes).bytes;
        // The commit seal ends where the sector reserved behind it, or the finish seal, begins.
        let commit_end = bytes.len() - SECTOR_BYTES;
        let mut tally = Tally::default();
        for length in 0..=bytes.len() {
            let before = tally.no_header + tally.incomplete;
            tally.count(&bytes[..length], &wanted);
            let is_untouched = tally.no_header + tally.incomplete > before;
            assert_eq!(is_untouched, length < commit_end, "at {length}");
        }
        assert_eq!(tally.refused, 0);
        assert_eq!(tally.finished, usize::from(finishes));
        println!("{} truncations: {tally:?}", bytes.len() + 1);
    }
}

#[test]
fn no_flipped_bit_is_accepted_where_it_means_anything() {
    let wanted = wanted(3);
    for finishes in [false, true] {
        let mut bytes = written(&wanted, finishes).bytes;
        let mut tally = Tally::default();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            tally.count(&bytes, &wanted);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        println!("{} single bits: {tally:?}", bytes.len() * 8);
        // Not even as incomplete: that would mean an untouched image. Only the sector reserved behind the commit seal
        // says nothing, except that a finish seal would end in its last byte.
        let meaningless = if finishes { 0 } else { (SECTOR_BYTES - 1) * 8 };
        assert_eq!(tally.committed, meaningless);
        assert_eq!(tally.refused, bytes.len() * 8 - meaningless);
    }
}

#[test]
fn ten_thousand_times_several_flipped_bits_are_never_accepted_as_other_content() {
    let wanted = wanted(4);
    let whole = written(&wanted, true).bytes;
    let mut random = Random(4);
    let mut tally = Tally::default();
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        for _ in 0..2 + random.below(7) {
            let bit = random.below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        // Three in a hundred are cut as well, one in a hundred has a lost sector.
        match random.below(100) {
            0..=2 => bytes.truncate(random.below(bytes.len())),
            3 => {
                let sector = random.below(bytes.len() / SECTOR_BYTES) * SECTOR_BYTES;
                bytes[sector..sector + SECTOR_BYTES].fill(0);
            }
            _ => {}
        }
        tally.count(&bytes, &wanted);
    }
    println!("10000 times 2 to 8 bits: {tally:?}");
    assert_eq!(tally.finished, 0);
    assert!(tally.refused > 9_000);
}

#[test]
fn any_bytes_at_all_are_read_without_a_panic() {
    let wanted = wanted(5);
    let whole = written(&wanted, true).bytes;
    let mut random = Random(5);
    let mut tally = Tally::default();
    for _ in 0..20_000 {
        let length = random.below(2_000);
        let mut bytes = random.bytes(length);
        // A believable beginning, more often than not.
        let kept = random.below(whole.len()).min(length);
        bytes[..kept].copy_from_slice(&whole[..kept]);
        tally.count(&bytes, &wanted);
    }
    println!("20000 random files: {tally:?}");
    assert_eq!(tally.committed + tally.finished, 0);
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

#[test]
fn records_moved_doubled_dropped_or_from_another_file_are_refused() {
    let wanted = wanted(6);
    let whole = blocks(&written(&wanted, true).bytes);
    assert_eq!(
        UndoFile::decode(&assemble(&whole)).map(|file| file.state),
        Ok(FINISHED)
    );
    let mut other_wanted = wanted.clone();
    other_wanted[0].original[100] ^= 1;
    // The same image, the same ranges; everything but one byte of the first record is equal.
    let other = blocks(&written(&other_wanted, true).bytes);
    let mut tried = 0;
    for first in 1..=wanted.len() {
        let mut dropped = whole.clone();
        dropped.remove(first);
        let mut doubled = whole.clone();
        doubled.insert(first, whole[first].clone());
        let mut foreign = whole.clone();
        foreign[first] = other[first].clone();
        for changed in [dropped, doubled, foreign] {
            assert!(is_damaged(&assemble(&changed)));
            tried += 1;
        }
        for second in 1..first {
            let mut swapped = whole.clone();
            swapped.swap(first, second);
            assert!(is_damaged(&assemble(&swapped)));
            tried += 1;
        }
    }
    for from in [0, wanted.len() + 1] {
        let mut foreign = whole.clone();
        foreign[from] = match from {
            // The header of a file about another image.
            0 => {
                let header = UndoHeader {
                    inode: 8,
                    ..header()
                };
                block::encode_header(block::VERSION, &header, &mut Chain::START.clone())
                    .expect("short")
            }
            _ => other[from].clone(),
        };
        assert!(is_damaged(&assemble(&foreign)));
        tried += 1;
    }
    println!("{tried} rearranged files refused");
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

#[test]
fn valid_checksums_do_not_excuse_broken_rules() {
    const SECTOR: &[u8] = &[1; SECTOR_BYTES];
    let finish = Seal::Finish {
        left_length_bytes: 0,
        digest: 0,
    };
    let forged = Forger::new;
    let good = || forged().record(512, 1, 0, SECTOR);
    let fine = [
        forged().commit(0, 0),
        good().commit(1, 512),
        good().commit(1, 512).seal(finish).seal(Seal::Reopen),
        good()
            .commit(1, 512)
            .seal(finish)
            .seal(Seal::Reopen)
            .seal(finish),
    ];
    for forger in fine {
        UndoFile::decode(&forger.bytes).expect("within the rules");
    }
    let broken = [
        good().record(512, 1, 0, SECTOR).commit(2, 1024),
        good().record(0, 1, 0, SECTOR).commit(2, 1024),
        forged().record(1, 1, 0, SECTOR).commit(1, 512),
        forged().record(u64::MAX - 511, 1, 0, SECTOR).commit(1, 512),
        forged()
            .record(i64::MAX.unsigned_abs() - 511, 1, 0, SECTOR)
            .commit(1, 512),
        forged().record(0, 0, 0, &[]).commit(1, 0),
        forged().record(0, u16::MAX, 0, SECTOR).commit(1, 512),
        forged()
            .record(0, 2049, 0, &vec![1; 2049 * SECTOR_BYTES])
            .commit(1, 2049 * 512),
        forged()
            .record(0, 1, 17, &[1; 17 * (SECTOR_BYTES + 2 + 4) + 2])
            .commit(1, 512),
        forged().record(0, 1, u16::MAX, SECTOR).commit(1, 512),
        forged().record(0, 2, 0, SECTOR).commit(1, 1024),
        good().commit(2, 512),
        good().commit(0, 512),
        good().commit(1, 511),
        good().commit(1, u64::MAX),
        good().seal(finish),
        good().seal(Seal::Reopen),
        good().commit(1, 512).commit(1, 512),
        good().commit(1, 512).seal(Seal::Reopen),
        good().commit(1, 512).seal(finish).seal(finish),
        good().commit(1, 512).seal(finish).commit(1, 512),
        good().commit(1, 512).record(1024, 1, 0, SECTOR),
    ];
    for (index, forger) in broken.iter().enumerate() {
        assert!(is_damaged(&forger.bytes), "forgery {index}");
    }
    println!("{} forgeries with valid checksums refused", broken.len());
}

#[test]
fn stages_ascend_and_what_pads_them_is_zero() {
    let two = |stages: &[u8]| {
        let body = [&[1; 2 * SECTOR_BYTES], stages, &[0; 8]].concat();
        let forger = Forger::new().record(0, 1, 2, &body);
        forger.commit(1, 512).bytes
    };
    let one = |stage: &[u8]| {
        let body = [&[1; SECTOR_BYTES], stage, &[0; 4]].concat();
        let forger = Forger::new().record(0, 1, 1, &body);
        forger.commit(1, 512).bytes
    };
    for fine in [two(&[0, 2, 0, 3]), one(&[0, 3, 0, 0])] {
        UndoFile::decode(&fine).expect("within the rules");
    }
    for broken in [two(&[0, 3, 0, 3]), two(&[0, 3, 0, 2]), one(&[0, 3, 0, 1])] {
        assert!(is_damaged(&broken));
    }
}

#[test]
fn a_file_of_the_first_version_is_read_and_has_no_digest() {
    let sector = [1; SECTOR_BYTES];
    let forger = Forger::of_version(1).record(512, 1, 0, &sector);
    let forger = forger.commit(1, 512);
    let file = UndoFile::decode(&forger.bytes).expect("the first version is known");
    assert_eq!(file.records[0].original, sector);
    assert_eq!(file.digest_before, None);
    // It has versions, but says nothing of stages.
    let body = [&sector[..], &[0; 4]].concat();
    let forger = Forger::of_version(1)
        .record(512, 1, 1, &body)
        .commit(1, 512);
    let file = UndoFile::decode(&forger.bytes).expect("the first version is known");
    assert_eq!(file.records[0].versions().len(), 1);
    assert_eq!(file.stage_reached(&vec![1; 1024]), None);
}

#[test]
fn of_a_blank_range_only_the_place_is_kept() {
    let mut sink = MemorySink::default();
    let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
    let (blank, first) = (vec![0; MAX_RECORD_BYTES], vec![7; SECTOR_BYTES]);
    writer
        .record(0, &first, &Versions::default())
        .expect("kept");
    writer
        .record(512, &blank, &Versions::default())
        .expect("kept");
    writer
        .record(4 << 20, &first, &Versions::default())
        .expect("kept");
    let _journal = writer.commit(0, DIGEST_BEFORE).expect("committed");
    assert!(sink.bytes.len() < 4096, "{} bytes", sink.bytes.len());
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    let originals = file.records.iter().map(|record| record.original);
    assert!(originals.eq([&first[..], &blank, &first]));
    // What lies past the end of the image as it was is not put back.
    assert_eq!(header().original_length_bytes, 458_829);
    assert_eq!(file.sector_count(), 1 + 2048);
}

#[test]
fn the_image_before_is_read_through_the_undo_file_whatever_the_repair_came_to() {
    let mut random = Random(17);
    let before = random.bytes(458_752 + 77);
    let ranges = [(0, 1), (1024, 3), (65_536, 8), (458_752, 2)];
    let mut after = before.clone();
    after.resize(500_000, 0x77);
    let mut sink = MemorySink::default();
    let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
    for (offset, sectors) in ranges {
        let mut original = before[offset..].to_vec();
        original.resize(sectors * SECTOR_BYTES, 0);
        writer
            .record(offset as u64, &original, &Versions::default())
            .expect("kept");
        after[offset..offset + sectors * SECTOR_BYTES].fill(0xee);
    }
    let _journal = writer.commit(0, DIGEST_BEFORE).expect("committed");
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    for now in [&before, &after] {
        let view = file.before(now);
        assert_eq!(view.length_bytes().ok(), Some(before.len() as u64));
        for _ in 0..2_000 {
            let offset = match random.below(3) {
                0 => random.below(4_096),
                1 => 65_000 + random.below(6_000),
                _ => 458_000 + random.below(3_000),
            };
            let mut read = vec![0xaa; random.below(5_000)];
            view.read_at(offset as u64, &mut read).expect("memory");
            let mut wanted = before.get(offset..).unwrap_or(&[]).to_vec();
            wanted.resize(read.len(), 0);
            assert!(read == wanted, "{} bytes at {offset}", read.len());
        }
    }
}

#[test]
fn whatever_follows_a_blank_sector_is_damage() {
    let committed = written(&wanted(8), false).bytes;
    for behind in [&b"\0"[..], b"x", &[0; SECTOR_BYTES], &[1; 3 * SECTOR_BYTES]] {
        assert!(is_damaged(&[&committed, behind].concat()));
    }
}

#[test]
fn a_file_on_disk_goes_through_a_repair_and_its_undo() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.qfsck-undo");
    let wanted = wanted(16);
    let sink = UndoSinkFile::create(&path).expect("a new file");
    let mut writer = UndoWriter::new(sink, &header()).expect("begun");
    for record in &wanted {
        writer
            .record(record.offset, &record.original, &record.versions)
            .expect("kept");
    }
    for (offset, checksums) in RELIED_ON {
        writer.rely_on(offset, &checksums).expect("kept");
    }
    let journal = writer.commit(524_288, DIGEST_BEFORE).expect("committed");
    let state = |bytes: &[u8]| {
        let file = UndoFile::decode(bytes).expect("readable");
        assert!(is_content(&file, &wanted));
        file.state
    };
    let read = || UndoSinkFile::read(&path).expect("readable");
    assert_eq!(state(&read()), COMMITTED);
    journal
        .finish(524_288, 0xdead_beef_0bad_cafe)
        .expect("finished");
    assert_eq!(state(&read()), FINISHED);
    assert_eq!(read(), written(&wanted, true).bytes);
    let (mut sink, bytes) = UndoSinkFile::open(&path).expect("ours");
    let file = UndoFile::decode(&bytes).expect("readable");
    let _journal = file.reopen(&mut sink).expect("reopened");
    assert_eq!(state(&read()), COMMITTED);
    sink.remove().expect("removed");
    UndoSinkFile::read(&path).expect_err("gone");
}

#[test]
fn other_files_and_later_versions_are_refused_by_name() {
    let mut bytes = written(&wanted(8), false).bytes;
    for version in [0, 4] {
        bytes[11] = version;
        let unknown = Err(UndoError::UnknownVersion(version.into()));
        assert_eq!(UndoFile::decode(&bytes), unknown);
    }
    let mut flagged = bytes[..64].to_vec();
    flagged[11] = 1;
    flagged[15] = 6;
    flagged[40..44].fill(0);
    let mut block = flagged[..44].to_vec();
    Chain::START.clone().close(&mut block);
    assert_eq!(UndoFile::decode(&block), Err(UndoError::UnknownFlags(6)));
    for other in [&b"QFI\xfb\0\0\0\x03"[..], b"Q\0", b"text"] {
        assert_eq!(UndoFile::decode(other), Err(UndoError::NotAnUndoFile));
    }
    for blank in [&b""[..], b"QFSCK", &[0; 700], b"QFSCKUND"] {
        assert_eq!(UndoFile::decode(blank), Err(UndoError::NoHeader));
    }
}

#[test]
fn a_sink_that_fails_at_any_call_gives_no_journal() {
    let wanted = wanted(9);
    let calls = written(&wanted, true).calls.len();
    let commit_calls = written(&wanted, false).calls.len();
    let mut tally = Tally::default();
    for fails_at in 0..calls {
        let mut sink = MemorySink {
            fails_at: Some(fails_at),
            ..MemorySink::default()
        };
        let error = write(&mut sink, &wanted, true).expect_err("it failed");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // Nothing is tried after an error, above all no second sync.
        assert_eq!(sink.calls.len(), fails_at + 1);
        let mut again = MemorySink {
            fails_at: Some(fails_at),
            ..MemorySink::default()
        };
        assert_eq!(
            committed(&mut again, &wanted).is_ok(),
            fails_at >= commit_calls
        );
        tally.count(&sink.bytes, &wanted);
    }
    println!("{calls} calls failed in turn: {tally:?}");
    assert_eq!(tally.refused, 0);
}

#[test]
fn a_writer_that_failed_once_cannot_commit() {
    let wanted = wanted(9);
    for fails_at in 1..=wanted.len() {
        let mut sink = MemorySink {
            fails_at: Some(fails_at),
            ..MemorySink::default()
        };
        let mut writer = UndoWriter::new(&mut sink, &header()).expect("begun");
        let mut failures = 0;
        for record in &wanted {
            let result = writer.record(record.offset, &record.original, &record.versions);
            failures += usize::from(result.is_err());
        }
        assert_eq!(failures, 1);
        let error = writer.commit(0, 0).expect_err("a record is missing");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn records_and_name_are_durable_before_the_seal_and_the_seal_before_the_journal() {
    let wanted = wanted(10);
    let calls = written(&wanted, true).calls;
    let names: Vec<&str> = calls
        .iter()
        .map(|call| match call {
            Call::Write { .. } => "write",
            Call::Sync => "sync",
            Call::SyncDirectory => "sync directory",
        })
        .collect();
    let before_seals = 1 + wanted.len() + RELIED_ON.len();
    let header_and_records = vec!["write"; before_seals];
    let seals = ["sync", "sync directory", "write", "sync", "write", "sync"];
    assert_eq!(names, [&header_and_records[..], &seals].concat());
    // Both seals are whole sectors in their places, and the second one takes no new space.
    let mut ends = Vec::new();
    for call in &calls[before_seals..] {
        if let Call::Write { offset, bytes } = call {
            ends.push(offset + bytes.len());
        }
    }
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[0] % SECTOR_BYTES, 0);
}

/// What a disk may hold after a power cut: all that was synced, and of the rest any sectors, absent ones blank.
fn after_power_cut(calls: &[Call], random: &mut Random) -> Vec<u8> {
    let synced = calls
        .iter()
        .rposition(|call| *call == Call::Sync)
        .unwrap_or(0);
    let mut file = Vec::new();
    let chance = random.below(5);
    for (index, call) in calls.iter().enumerate() {
        let Call::Write { offset, bytes } = call else {
            continue;
        };
        let mut from = *offset;
        while from < offset + bytes.len() {
            let next_sector = (from + 1).next_multiple_of(SECTOR_BYTES);
            let to = next_sector.min(offset + bytes.len());
            if index < synced || random.below(4) < chance {
                apply_write(&mut file, from, &bytes[from - offset..to - offset]);
            }
            from = to;
        }
    }
    file
}

#[test]
fn a_power_cut_at_any_time_leaves_a_file_that_tells_the_truth() {
    let wanted = wanted(11);
    let mut random = Random(11);
    let calls = written(&wanted, true).calls;
    let commit_done = written(&wanted, false).calls.len();
    let mut tally = Tally::default();
    let mut not_ours = 0;
    for done in 0..=calls.len() {
        for _ in 0..400 {
            let bytes = after_power_cut(&calls[..done], &mut random);
            let before = tally.committed + tally.finished;
            let refused = tally.refused;
            tally.count(&bytes, &wanted);
            let is_sealed = tally.committed + tally.finished > before;
            // Sealed is what has been synced before; what has a journal is sealed.
            assert!(!is_sealed || done > commit_done - 2);
            assert!(is_sealed || done < commit_done);
            not_ours += tally.refused - refused;
        }
    }
    println!("{} power cuts: {tally:?}", (calls.len() + 1) * 400);
    assert_eq!(not_ours, 0, "a power cut is not damage");
}

#[test]
fn a_power_cut_without_the_first_sync_would_be_seen() {
    // The control: were the seal not held back until everything else is synced, the cuts above would leave damage.
    let wanted = wanted(11);
    let mut random = Random(12);
    let mut calls = written(&wanted, false).calls;
    let first_sync = calls.iter().position(|call| *call == Call::Sync);
    calls.remove(first_sync.expect("a sync"));
    calls.truncate(calls.len() - 1);
    let mut tally = Tally::default();
    for _ in 0..400 {
        tally.count(&after_power_cut(&calls, &mut random), &wanted);
    }
    println!("400 power cuts without the first sync: {tally:?}");
    assert!(tally.refused > 0);
}

#[test]
fn a_file_is_reopened_finished_and_reopened_again() {
    let wanted = wanted(13);
    let mut sink = written(&wanted, true);
    for round in 0..3 {
        let bytes = sink.bytes.clone();
        let file = UndoFile::decode(&bytes).expect("readable");
        assert_eq!(file.state, FINISHED);
        sink.calls.clear();
        let _journal = file.reopen(&mut sink).expect("reopened");
        // Durable before there is a journal.
        assert_eq!(sink.calls.last(), Some(&Call::Sync), "round {round}");
        let bytes = sink.bytes.clone();
        let file = UndoFile::decode(&bytes).expect("readable");
        assert_eq!(file.state, COMMITTED);
        assert!(is_content(&file, &wanted));
        let journal = file.reopen(&mut sink).expect("reopened");
        journal
            .finish(524_288, 0xdead_beef_0bad_cafe)
            .expect("finished");
    }
    // A seal cut short, as a full disk does it, is written over; there is room for it, or the file ends with it.
    for (cut, has_room) in (1..SECTOR_BYTES).flat_map(|cut| [(cut, false), (cut, true)]) {
        let mut sink = written(&wanted, true);
        let (end, length) = (sink.bytes.len() - SECTOR_BYTES, sink.bytes.len());
        sink.bytes.truncate(end + cut);
        if has_room {
            sink.bytes.resize(length, 0);
        }
        let bytes = sink.bytes.clone();
        let file = UndoFile::decode(&bytes).expect("readable");
        assert_eq!(file.state, COMMITTED);
        let journal = file.reopen(&mut sink).expect("reopened");
        journal
            .finish(524_288, 0xdead_beef_0bad_cafe)
            .expect("finished");
        assert_eq!(
            UndoFile::decode(&sink.bytes).map(|file| file.state),
            Ok(FINISHED)
        );
    }
}

#[test]
fn an_uncommitted_file_and_a_failing_sink_give_no_journal_again() {
    let wanted = wanted(14);
    let whole = written(&wanted, true);
    let cut = &whole.bytes[..whole.bytes.len() - 2 * SECTOR_BYTES];
    let file = UndoFile::decode(cut).expect("readable");
    assert_eq!(file.state, UndoState::Incomplete);
    file.reopen(&mut MemorySink::default())
        .expect_err("nothing to go on with");
    for bytes in [&whole.bytes[..], &whole.bytes[..whole.bytes.len() - 1]] {
        let file = UndoFile::decode(bytes).expect("readable");
        for fails_at in 0..2 {
            let mut sink = MemorySink {
                fails_at: Some(fails_at),
                ..MemorySink::default()
            };
            file.reopen(&mut sink).expect_err("it failed");
        }
    }
}

/// An image, its two later versions, and the undo file of a range of four sectors in its middle.
fn judged(change: impl Fn(&mut [u8], &[u8], &[u8])) -> Judgement {
    let mut random = Random(15);
    let mut image = random.bytes(16 * SECTOR_BYTES - 100);
    let range = 4 * SECTOR_BYTES..8 * SECTOR_BYTES;
    let original = image[range.clone()].to_vec();
    let mut first = original.clone();
    first[..2 * SECTOR_BYTES].copy_from_slice(&random.bytes(2 * SECTOR_BYTES));
    let mut second = first.clone();
    second[SECTOR_BYTES..].copy_from_slice(&random.bytes(3 * SECTOR_BYTES));
    let mut tail = image[15 * SECTOR_BYTES..].to_vec();
    tail.resize(SECTOR_BYTES, 0);
    let wanted = [
        Wanted {
            offset: range.start as u64,
            original,
            versions: versions_of([first.clone(), second.clone()]),
        },
        Wanted {
            offset: 15 * SECTOR_BYTES as u64,
            original: tail,
            versions: Versions::default(),
        },
    ];
    let sink = written(&wanted, false);
    let file = UndoFile::decode(&sink.bytes).expect("readable");
    change(&mut image[range], &first, &second);
    let judgements = file.judge(&image);
    // The last sector is cut by the end of the image, and as it was.
    assert_eq!(judgements[1], Judgement::Original);
    judgements[0]
}

#[test]
fn an_image_is_judged_sector_by_sector() {
    const SECTOR: usize = SECTOR_BYTES;
    assert_eq!(judged(|_, _, _| {}), Judgement::Original);
    let version = |now: &mut [u8], version: &[u8]| now.copy_from_slice(version);
    assert_eq!(
        judged(|now, first, _| version(now, first)),
        Judgement::Version(0)
    );
    assert_eq!(
        judged(|now, _, second| version(now, second)),
        Judgement::Version(1)
    );
    // Any sectors of any versions: what power cuts leave.
    let mixed = judged(|now, first, second| {
        now[..SECTOR].copy_from_slice(&first[..SECTOR]);
        now[3 * SECTOR..].copy_from_slice(&second[3 * SECTOR..]);
    });
    assert_eq!(mixed, Judgement::Mixed);
    // Only the sectors that the first stage does not touch are as they were: this is just the first version.
    let only_first = judged(|now, first, _| {
        now[..2 * SECTOR].copy_from_slice(&first[..2 * SECTOR]);
    });
    assert_eq!(only_first, Judgement::Version(0));
    for (at, sector) in [(0, 4), (SECTOR + 511, 5), (4 * SECTOR - 1, 7)] {
        let foreign = judged(|now, _, _| now[at] ^= 1);
        let offset = sector * SECTOR as u64;
        assert_eq!(foreign, Judgement::Foreign { offset });
    }
    // A sector of the range at another place, and a torn one.
    let moved =
        judged(|now, first, _| now[2 * SECTOR..3 * SECTOR].copy_from_slice(&first[..SECTOR]));
    assert_eq!(moved, Judgement::Foreign { offset: 6 * 512 });
    let torn = judged(|now, first, _| now[..256].copy_from_slice(&first[..256]));
    assert_eq!(torn, Judgement::Foreign { offset: 4 * 512 });
}

/// An image of three sectors after each of four stages, and the undo file of its repair.
fn of_four_stages() -> (Vec<Vec<u8>>, Vec<u8>) {
    let sector = |byte| [byte; SECTOR_BYTES];
    let states = vec![
        [sector(1), sector(2)].concat(),
        // What is new comes behind the end; the last stage gives the first sector back what it had.
        [sector(1), sector(2), sector(3)].concat(),
        [sector(4), sector(2), sector(3)].concat(),
        [sector(4), sector(5), sector(6)].concat(),
        [sector(1), sector(5), sector(6)].concat(),
    ];
    let versions = |contents: &[u8], stages: &[u16]| Versions {
        stages: stages.to_vec(),
        ..versions_of(contents.iter().map(|&byte| sector(byte).to_vec()))
    };
    let header = UndoHeader {
        original_length_bytes: 1024,
        ..header()
    };
    let mut sink = MemorySink::default();
    let mut writer = UndoWriter::new(&mut sink, &header).expect("begun");
    let records = [
        (sector(1), versions(&[4, 1], &[1, 3])),
        (sector(2), versions(&[5], &[2])),
        (sector(0), versions(&[3, 6], &[0, 2])),
    ];
    for ((original, versions), offset) in records.iter().zip((0..).step_by(SECTOR_BYTES)) {
        writer.record(offset, original, versions).expect("kept");
    }
    let _journal = writer.commit(1536, DIGEST_BEFORE).expect("committed");
    (states, sink.bytes)
}

#[test]
fn the_way_back_goes_through_what_the_repair_went_through() {
    let (states, bytes) = of_four_stages();
    let file = UndoFile::decode(&bytes).expect("readable");
    for (state, at) in states.iter().zip(0_u16..) {
        // Where a stage is over, the next may have begun: the later one is named, the last at the end.
        let stage = file.stage_reached(state);
        assert_eq!(stage, Some(at.min(3)), "after {at} stages");
        let mut now = state.clone();
        let steps: Vec<StepBack<'_>> = file.steps_back(at.min(3)).collect();
        assert_eq!(steps.len(), usize::from(at.min(3)) + 1);
        for (step, wanted) in steps
            .iter()
            .zip(states.iter().take(usize::from(at.min(3)) + 1).rev())
        {
            for (offset, bytes) in &step.ranges {
                apply_write(&mut now, usize::try_from(*offset).expect("small"), bytes);
            }
            now.truncate(usize::try_from(step.length_bytes).expect("small"));
            assert!(now == *wanted, "back from {at}");
        }
    }
}

#[test]
fn what_no_cut_leaves_is_in_no_stage() {
    let (states, bytes) = of_four_stages();
    let file = UndoFile::decode(&bytes).expect("readable");
    // A mixture of the image before and after one stage is in that stage.
    let mut mixed = states[2].clone();
    mixed[512..1024].copy_from_slice(&states[3][512..1024]);
    assert_eq!(file.stage_reached(&mixed), Some(2));
    // The first sector is as before the second stage, the next as after the third.
    let mut lost = states[3].clone();
    lost[2 * SECTOR_BYTES..].copy_from_slice(&states[0][..SECTOR_BYTES]);
    assert_eq!(file.stage_reached(&lost), None);
    let mut lost = states[1].clone();
    lost[512..1024].copy_from_slice(&states[3][512..1024]);
    lost[1024..].copy_from_slice(&states[0][..SECTOR_BYTES]);
    assert_eq!(file.stage_reached(&lost), None);
}
