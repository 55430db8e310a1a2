//! What was not written is refused.
//!
//! Comes in: files cut, changed, put together anew. Goes out: refusals that say why. Never here: a sink that fails.

use super::*;

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
    let mut random = Rng::with_seed(4);
    let mut tally = Tally::default();
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        for _ in 0..2 + random.usize(..7) {
            let bit = random.usize(..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        // Three in a hundred are cut as well, one in a hundred has a lost sector.
        match random.usize(..100) {
            0..=2 => bytes.truncate(random.usize(..bytes.len())),
            3 => {
                let sector = random.usize(..bytes.len() / SECTOR_BYTES) * SECTOR_BYTES;
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
    let mut random = Rng::with_seed(5);
    let mut tally = Tally::default();
    for _ in 0..20_000 {
        let length = random.usize(..2_000);
        let mut bytes = noise(&mut random, length);
        // A believable beginning, more often than not.
        let kept = random.usize(..whole.len()).min(length);
        bytes[..kept].copy_from_slice(&whole[..kept]);
        tally.count(&bytes, &wanted);
    }
    println!("20000 random files: {tally:?}");
    assert_eq!(tally.committed + tally.finished, 0);
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
fn whatever_follows_a_blank_sector_is_damage() {
    let committed = written(&wanted(8), false).bytes;
    for behind in [&b"\0"[..], b"x", &[0; SECTOR_BYTES], &[1; 3 * SECTOR_BYTES]] {
        assert!(is_damaged(&[&committed, behind].concat()));
    }
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
