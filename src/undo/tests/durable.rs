//! What a failing sink and a power cut leave.
//!
//! Comes in: calls that fail, and calls of which some are lost. Goes out: files that tell the truth. Never here: the image itself.

use super::*;

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
fn after_power_cut(calls: &[Call], random: &mut Rng) -> Vec<u8> {
    let synced = calls
        .iter()
        .rposition(|call| *call == Call::Sync)
        .unwrap_or(0);
    let mut file = Vec::new();
    let chance = random.usize(..5);
    for (index, call) in calls.iter().enumerate() {
        let Call::Write { offset, bytes } = call else {
            continue;
        };
        let mut from = *offset;
        while from < offset + bytes.len() {
            let next_sector = (from + 1).next_multiple_of(SECTOR_BYTES);
            let to = next_sector.min(offset + bytes.len());
            if index < synced || random.usize(..4) < chance {
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
    let mut random = Rng::with_seed(11);
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
    let mut random = Rng::with_seed(12);
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
