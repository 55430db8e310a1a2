//! What is written is read, from memory and from disk.
//!
//! Comes in: records of every size and kind. Goes out: the same again. Never here: a file that is damaged.

use super::*;

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
    let mut random = Rng::with_seed(7);
    for record_count in 0..200 {
        let header = UndoHeader {
            path: noise(&mut random, record_count * 20),
            is_block_device: record_count % 2 == 1,
            ..header()
        };
        let mut sink = MemorySink::default();
        let mut writer = UndoWriter::new(&mut sink, &header).expect("begun");
        let mut originals = Vec::new();
        for index in 0..record_count as u64 {
            let original = noise(&mut random, SECTOR_BYTES);
            let count = random.usize(..=MAX_VERSIONS);
            let versions = versions_of((0..count).map(|_| noise(&mut random, SECTOR_BYTES)));
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
    let mut random = Rng::with_seed(17);
    let before = noise(&mut random, 458_752 + 77);
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
            let offset = match random.usize(..3) {
                0 => random.usize(..4_096),
                1 => 65_000 + random.usize(..6_000),
                _ => 458_000 + random.usize(..3_000),
            };
            let mut read = vec![0xaa; random.usize(..5_000)];
            view.read_at(offset as u64, &mut read).expect("memory");
            let mut wanted = before.get(offset..).unwrap_or(&[]).to_vec();
            wanted.resize(read.len(), 0);
            assert!(read == wanted, "{} bytes at {offset}", read.len());
        }
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
