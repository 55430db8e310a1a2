//! Killed: the program ends at any write, sync or truncation, of a repair and of an undo.
//!
//! Comes in: damaged images, one for each way a repair can go. Goes out: how many times the program was killed. Never
//! here: power cuts, where what was written may be lost as well (`crash.rs`).

use std::collections::BTreeMap;
use std::fs;

use qfsck::StageKind;
use qfsck::undo::UndoState;

use super::binary::{Bench, IMAGE, Injection, UNDO_FILE, can_trace, in_parallel};
use super::{all, planned};
use crate::corpus::cases;
use crate::crash::forged;
use crate::support::sample::sampled;

const KILL: &str = "signal=KILL";
/// Calls a repair or an undo changes something with, in the order of interest.
const CALLS: [&str; 4] = ["pwrite64", "fsync", "ftruncate", "unlinkat"];
/// Images are chosen so that the test stays short.
const MOST_IMAGES: usize = 12;

/// Whether an image is of version 2, the stages of its repair, and whether it grows.
type Way = (bool, Vec<StageKind>, bool);

/// For each sequence of stages that occurs, the smallest image that is repaired that way.
pub(super) fn damaged() -> Vec<(String, Vec<u8>)> {
    let mut found: BTreeMap<Way, (String, Vec<u8>)> = BTreeMap::new();
    let of_corpus = cases().into_iter().map(|case| {
        let name = case
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        (name, fs::read(case.join(IMAGE)).expect("an image"))
    });
    for (name, bytes) in of_corpus.chain(forged()) {
        let Ok(plan) = planned(&bytes, &all()) else {
            continue;
        };
        let kinds: Vec<StageKind> = plan.stages.iter().map(|stage| stage.kind).collect();
        if kinds.is_empty() {
            continue;
        }
        let is_v2 = bytes.get(7) == Some(&2);
        let grows = plan.length_bytes_after > plan.length_bytes;
        let best = found
            .entry((is_v2, kinds, grows))
            .or_insert_with(|| (name.clone(), bytes.clone()));
        if bytes.len() < best.1.len() {
            *best = (name, bytes);
        }
    }
    // The longest repairs come first: they have the most to be killed in.
    let mut images: Vec<_> = found.into_iter().collect();
    images.sort_by_key(|((_, kinds, grows), _)| (!grows, std::cmp::Reverse(kinds.len())));
    let images = images.into_iter().map(|(_, image)| image);
    images.take(MOST_IMAGES).collect()
}

/// What was tried.
#[derive(Debug, Default)]
struct Score {
    kills: usize,
    committed: usize,
    kills_in_undo: usize,
}

fn kill(calls: &'static str, when: usize) -> Injection<'static> {
    Injection {
        calls,
        what: KILL,
        when: when.to_string(),
        only_file: None,
    }
}

/// Kills the repair of one image at each of one kind of call.
fn kill_repair(name: &str, start: &[u8], calls: &'static str) -> Score {
    let bench = Bench::new();
    let mut score = Score::default();
    for when in 1.. {
        bench.lay(start, None);
        let ended = bench.tampered(&kill(calls, when), &["repair", "--yes", IMAGE]);
        let at = format!("{name}, killed at {calls} {when}");
        if ended.signal.is_none() {
            assert!(ended.is_done(), "{at}: {ended:?}");
            break;
        }
        score.kills += 1;
        let Some(state) = bench.undo_state() else {
            assert!(
                bench.image() == start,
                "{at}: changed before the undo file was committed"
            );
            continue;
        };
        let said = bench.qfsck(&["check", IMAGE]);
        let is_cut = matches!(state, UndoState::Committed { .. });
        assert_eq!(
            said.says("a repair was cut short"),
            is_cut,
            "{at}: {said:?}"
        );
        if is_cut {
            score.committed += 1;
            let again = bench.qfsck(&["repair", "--yes", IMAGE]);
            assert_eq!(
                again.exit,
                Some(1),
                "{at}: a second repair came first: {again:?}"
            );
        }
        let (image, undo_file) = (bench.image(), bench.undo_file());
        for (number, calls) in CALLS.into_iter().enumerate() {
            // Each call of the undo comes up, over the calls of the repair.
            let in_undo = 1 + (when + number) % 5;
            bench.lay(&image, undo_file.as_deref());
            let ended = bench.tampered(&kill(calls, in_undo), &["undo", UNDO_FILE]);
            score.kills_in_undo += usize::from(ended.signal.is_some());
            if bench.undo_file().is_some() {
                let ended = bench.qfsck(&["undo", UNDO_FILE]);
                assert_eq!(
                    ended.exit,
                    Some(0),
                    "{at}, then at {calls} {in_undo} of undo: {ended:?}"
                );
            }
            assert!(
                bench.image() == start,
                "{at}, then at {calls} {in_undo} of undo: other bytes"
            );
            assert!(bench.undo_file().is_none(), "{at}: the undo file stays");
        }
        bench.lay(&image, undo_file.as_deref());
        let ended = bench.qfsck(&["undo", UNDO_FILE]);
        assert_eq!(ended.exit, Some(0), "{at}: {ended:?}");
        assert!(bench.image() == start, "{at}: undo gives other bytes");
    }
    score
}

#[test]
fn killed_at_any_write_or_sync_a_repair_can_be_undone_to_the_byte() {
    if !can_trace() {
        return;
    }
    let images = damaged();
    let work: Vec<_> = images
        .iter()
        .flat_map(|image| CALLS.map(|calls| (image, calls)))
        .collect();
    let work = sampled("images and calls to be killed in", work, 3);
    let scores = in_parallel(work, |((name, start), calls)| {
        kill_repair(name, start, calls)
    });
    let sum = |what: fn(&Score) -> usize| scores.iter().map(what).sum::<usize>();
    let (kills, committed) = (sum(|score| score.kills), sum(|score| score.committed));
    let in_undo = sum(|score| score.kills_in_undo);
    println!(
        "{} images, killed {kills} times, {committed} of them with an undo file to go back by, {in_undo} times in undo",
        images.len()
    );
    assert!(
        images.len() >= 6 && committed > 20 && in_undo > 20,
        "{scores:?}"
    );
}
