//! Which state of the image an undo file tells of.
//!
//! Comes in: images as they were, as they were left, and neither. Goes out: a judgement, sector by sector. Never here: damage to
//! the file.

use super::*;

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

/// An image, its two later versions, and the undo file of a range of four sectors in its middle.
fn judged(change: impl Fn(&mut [u8], &[u8], &[u8])) -> Judgement {
    let mut random = Rng::with_seed(15);
    let mut image = noise(&mut random, 16 * SECTOR_BYTES - 100);
    let range = 4 * SECTOR_BYTES..8 * SECTOR_BYTES;
    let original = image[range.clone()].to_vec();
    let mut first = original.clone();
    first[..2 * SECTOR_BYTES].copy_from_slice(&noise(&mut random, 2 * SECTOR_BYTES));
    let mut second = first.clone();
    second[SECTOR_BYTES..].copy_from_slice(&noise(&mut random, 3 * SECTOR_BYTES));
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
