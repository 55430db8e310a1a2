//! Short reads and writes: calls that do less than they were asked to, by any number of bytes, and are not wrong to.
//!
//! Comes in: damaged images, and a library between the program and the system (`short_io.c`). Goes out: how many calls
//! were cut short. Never here: calls that fail outright (`faults.rs`).
//!
//! Unlike what `strace` injects, the bytes a short call says it did are done: the rest is what is missing.

use std::process::Command;

use super::binary::{Bench, Ended, IMAGE, UNDO_FILE, in_parallel};
use super::faults::{Case, ends_well, repaired_on_disk};
use crate::support::needs::has_tools;
use crate::support::sample::sampled;

/// How many bytes are done; from the end, if negative.
const BYTES: [i32; 7] = [1, 255, 511, 512, 513, -1, -512];
/// What comes after: nothing, an interruption, a full disk, a broken one.
const THEN: [(i32, &str); 4] = [(0, "nothing"), (4, "EINTR"), (28, "ENOSPC"), (5, "EIO")];
const SAID: &str = "short.log";

#[derive(Debug, Default)]
struct Score {
    cut: usize,
    done: usize,
    undone: usize,
    broken: Vec<String>,
}

/// One call, and what becomes of it.
#[derive(Clone, Copy, Debug)]
struct Short {
    call: &'static str,
    at: usize,
    bytes: i32,
    then: (i32, &'static str),
}

/// The library between the program and the system, made for this run.
fn library(home: &Bench) -> String {
    let library = home.path("short_io.so");
    let library = library.to_str().expect("a plain path").to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/repair/short_io.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o", &library, source, "-ldl"]);
    let built = home.run(compiler);
    assert_eq!(built.exit, Some(0), "{built:?}");
    library
}

/// Runs `qfsck` with one call cut short. `None` where there was no such call, or it was not longer.
fn run(bench: &Bench, library: &str, short: Short, arguments: &[&str]) -> Option<Ended> {
    drop(std::fs::remove_file(bench.path(SAID)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfsck"));
    command.args(arguments);
    command.env("LD_PRELOAD", library);
    command.env("SHORT_CALL", short.call);
    command.env("SHORT_AT", short.at.to_string());
    command.env("SHORT_BYTES", short.bytes.to_string());
    command.env("SHORT_THEN", short.then.0.to_string());
    command.env("SHORT_SAID", SAID);
    let ended = bench.run(command);
    let said = std::fs::metadata(bench.path(SAID));
    said.is_ok_and(|said| said.len() > 0).then_some(ended)
}

/// What must be true after a repair or an undo, short calls or not.
fn judge(
    bench: &Bench,
    case: &Case,
    ended: &Ended,
    short: Short,
    wanted: &[u8],
) -> Result<bool, String> {
    ends_well(ended)?;
    let is_overcome = matches!(short.then.0, 0 | 4);
    if ended.is_done() && bench.image() != wanted {
        return Err("says it is done, but it is not all done".to_owned());
    }
    if is_overcome && !ended.is_done() {
        return Err("a short call is no error".to_owned());
    }
    if bench.image() == case.start {
        return Ok(false);
    }
    let back = bench.qfsck(&["undo", UNDO_FILE]);
    if back.exit != Some(0) || bench.image() != case.start {
        return Err(format!("undo does not put it back: {back:?}"));
    }
    Ok(true)
}

/// Every call of a repair and of its undo, cut in one way.
fn cut_everywhere(
    case: &Case,
    library: &str,
    call: &'static str,
    bytes: i32,
    then: (i32, &'static str),
) -> Score {
    let bench = Bench::new();
    let mut score = Score::default();
    for verb in ["repair", "undo"] {
        let mut missed = 0;
        for at in 1..400 {
            let short = Short {
                call,
                at,
                bytes,
                then,
            };
            let (arguments, wanted) = if verb == "repair" {
                bench.lay(&case.start, None);
                (&["repair", "--yes", IMAGE][..], &case.end)
            } else {
                bench.lay(&case.end, Some(&case.undo_file));
                (&["undo", UNDO_FILE][..], &case.start)
            };
            let Some(ended) = run(&bench, library, short, arguments) else {
                // Some calls are too short to be cut; after twelve of them there are no more calls.
                missed += 1;
                if missed > 12 {
                    break;
                }
                continue;
            };
            missed = 0;
            score.cut += 1;
            score.done += usize::from(ended.is_done());
            match judge(&bench, case, &ended, short, wanted) {
                Ok(is_undone) => score.undone += usize::from(is_undone),
                Err(why) => {
                    let name = &case.name;
                    score
                        .broken
                        .push(format!("{name}, {verb}, {short:?}: {why}: {ended:?}"));
                }
            }
        }
    }
    score
}

#[test]
fn a_read_or_write_that_does_less_than_asked_is_gone_on_with_or_told() {
    if !has_tools(&["cc"]) {
        return;
    }
    let home = Bench::new();
    let library = library(&home);
    let cases = repaired_on_disk(2);
    let mut work = Vec::new();
    for case in &cases {
        for bytes in BYTES {
            work.extend(THEN.map(|then| (case, "pwrite64", bytes, then)));
        }
        work.extend(THEN.map(|then| (case, "pread64", 511, then)));
    }
    let work = sampled("images and ways to cut short", work, 3);
    let scores = in_parallel(work, |(case, call, bytes, then)| {
        cut_everywhere(case, &library, call, bytes, then)
    });
    let mut total = Score::default();
    for score in scores {
        total.cut += score.cut;
        total.done += score.done;
        total.undone += score.undone;
        total.broken.extend(score.broken);
    }
    println!(
        "{} calls cut short, {} gone on with to the end, {} images put back by undo",
        total.cut, total.done, total.undone
    );
    let few: Vec<&str> = total.broken.iter().take(8).map(String::as_str).collect();
    assert!(
        total.broken.is_empty(),
        "{} broken:\n{}",
        total.broken.len(),
        few.join("\n")
    );
    assert!(
        total.cut > 150 && total.undone > 40,
        "{} {}",
        total.cut,
        total.undone
    );
}

/// Every read of a check, cut in one way; how many there were.
fn cut_reads(name: &str, image: &[u8], library: &str, (bytes, then): Cut) -> Result<usize, String> {
    let bench = Bench::new();
    bench.lay(image, None);
    let check = ["check", "--deep", "--output", "json", IMAGE];
    let healthy = bench.qfsck(&check);
    let (mut cut, mut missed) = (0, 0);
    for at in 1..400 {
        let short = Short {
            call: "pread64",
            at,
            bytes,
            then,
        };
        let Some(ended) = run(&bench, library, short, &check) else {
            missed += 1;
            if missed > 12 {
                break;
            }
            continue;
        };
        missed = 0;
        cut += 1;
        let is_same = (ended.exit, &ended.stdout) == (healthy.exit, &healthy.stdout);
        // A piece that fails is read again, and may be good then.
        if !is_same && (then.0 != 5 || ended.exit != Some(1)) {
            return Err(format!("{name}, {short:?}: {ended:?}"));
        }
    }
    Ok(cut)
}

/// How many bytes a read gives, and what the next one comes to.
type Cut = (i32, (i32, &'static str));

#[test]
fn a_check_goes_on_with_a_short_read_and_tells_of_the_one_that_fails_after_it() {
    if !has_tools(&["cc"]) {
        return;
    }
    let home = Bench::new();
    let library = library(&home);
    let images = super::check_faults::images();
    let mut work = Vec::new();
    for (name, image) in &images {
        for bytes in [1, 511, 512, -1] {
            let then = [(0, "nothing"), (4, "EINTR"), (5, "EIO")];
            work.extend(then.map(|then| (name, image, (bytes, then))));
        }
    }
    let results = in_parallel(work, |(name, image, cut)| {
        cut_reads(name, image, &library, cut)
    });
    let results: Result<Vec<usize>, String> = results.into_iter().collect();
    let cut: usize = results.expect("every check ends well").into_iter().sum();
    println!("{cut} reads of a check cut short");
    assert!(cut > 300, "{cut}");
}
