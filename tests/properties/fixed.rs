//! The properties, on a fixed set of inputs and on every input that once broke one (`fuzz/regressions/`).
//!
//! Comes in: seeds, the corpus, and files. Goes out: how many inputs there were. Never here: a search; `fuzz/run` searches.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::{Bounds, check, parse, plan_json, repair, undo_file};
use crate::support::image_forge::Random;

/// Other tests run beside these, so nothing can be measured: `fuzz/run` measures.
struct Unmeasured;

impl Bounds for Unmeasured {
    fn hold<T>(&self, _: usize, work: impl FnOnce() -> T) -> T {
        work()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file in a directory of `fuzz/regressions/`.
fn regressions(target: &str) -> Vec<Vec<u8>> {
    let directory = root().join("fuzz/regressions").join(target);
    let entries = fs::read_dir(&directory).expect("each target has a directory");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    let read = |path| fs::read(path).expect("a regression can be read");
    paths.into_iter().map(read).collect()
}

/// Choices at random, of all lengths up to a hundred bytes.
fn choices(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ 0x0066_757a_7a00);
    let length = random.below(100);
    (0..length).map(|_| random.next_u64() as u8).collect()
}

/// Small images of the corpus, with a few bytes changed in every one but the first.
fn images(seed: u64) -> Option<Vec<u8>> {
    let mut random = Random::new(seed);
    let directories = fs::read_dir(root().join("corpus")).expect("there is a corpus");
    let mut all: Vec<_> = directories
        .map(|entry| entry.expect("an entry").path())
        .collect();
    all.sort();
    let directory = &all[random.below(all.len() as u64) as usize];
    let mut bytes = fs::read(directory.join("image.qcow2")).ok()?;
    bytes.truncate(64 << 10);
    for _ in 0..random.below(4) {
        let reach = random
            .pick(&[112, 512, bytes.len() as u64])
            .min(bytes.len() as u64);
        if reach > 0 {
            bytes[random.below(reach) as usize] = random.pick(&[0, 1, 0x80, 0xff, 0x42]);
        }
    }
    Some(bytes)
}

/// Holds a property for regressions and for a fixed set, on a few threads.
fn hold(
    target: &str,
    count: u64,
    input: impl Fn(u64) -> Option<Vec<u8>> + Sync,
    holds: fn(&[u8], &Unmeasured),
) {
    let regressions = regressions(target);
    for input in &regressions {
        holds(input, &Unmeasured);
    }
    let next = AtomicU64::new(0);
    let workers = thread::available_parallelism().map_or(2, Into::into).min(4);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        break;
                    }
                    if let Some(input) = input(seed) {
                        holds(&input, &Unmeasured);
                    }
                }
            });
        }
    });
    println!(
        "{target}: {} regressions and {count} inputs of a fixed set",
        regressions.len()
    );
}

/// Every fourth input is an image as it is.
fn mixed(seed: u64) -> Option<Vec<u8>> {
    if seed.is_multiple_of(4) {
        images(seed)
    } else {
        Some(choices(seed))
    }
}

#[test]
fn every_decoder_takes_any_bytes() {
    hold("parse", 4000, mixed, parse::holds);
}

#[test]
fn a_check_ends_and_agrees_with_itself_whatever_the_image() {
    hold("check", 2000, mixed, check::holds);
}

#[test]
fn a_repair_keeps_its_promises_whatever_the_image() {
    hold("repair", 1500, mixed, repair::holds);
}

#[test]
fn an_undo_file_is_only_believed_as_it_was_written() {
    hold(
        "undo_file",
        10_000,
        |seed| Some(choices(seed)),
        undo_file::holds,
    );
}

#[test]
fn a_plan_file_that_says_anything_else_is_another_plan() {
    hold("json", 2000, |seed| Some(choices(seed)), plan_json::holds);
}
