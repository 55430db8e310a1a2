//! Laws: what is true of every image, valid or not.
//!
//! Comes in: forged images by the hundred, and mutations of them by the thousand, all from seeds. Goes out: the first
//! seed that breaks a law, in words that make it again. The laws: a valid image is clean; the same bytes give the same
//! report, again and at any number of threads; nothing makes the check panic or dawdle; verdict, findings and coverage
//! agree with each other; and the counts agree with a model that knows no shortcuts (`model.rs`).
//!
//! Never here: a particular fault (those are in `damage.rs`).

#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "images in memory are small, and a test stops where it fails"
)]

mod bytes;
mod map;
pub(crate) mod model;
pub(crate) mod mutate;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use qfsck::report::{CheckDocument, Conditions, write_pretty};
use qfsck::{Check, Code, Image, Options, Progress, Severity, Storage, qcow2};
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::model::{Model, Opinion};
use self::mutate::Mutator;
use crate::properties::check::{MODELLED, assert_consistent, differences};
use crate::support::image_forge::{Forged, Random};

/// Forged images; `QFSCK_LAW_IMAGES` asks for more (or fewer).
const IMAGES: u64 = 600;
/// Mutations of an image, if it is not large.
const MUTATIONS: u64 = 10;
/// Images from here on are mutated once: they cost time, not insight.
const LARGE_BYTES: usize = 4 << 20;
/// No check of an image of a few megabytes takes so long, not even in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A number of threads to check with.
struct Bench(ThreadPool);

impl Bench {
    fn of(threads: usize) -> Self {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        Self(pool.expect("threads can be started"))
    }

    /// The check and the document that is printed of it; `None` for what is no image at all.
    fn check(&self, bytes: &[u8]) -> Option<(Check, Vec<u8>)> {
        let image = Image::open(bytes, Path::new("forged.qcow2")).ok()?;
        let started = Instant::now();
        let progress = Progress::default();
        let check = self
            .0
            .install(|| qfsck::check(&image, Options::default(), &progress));
        assert!(started.elapsed() < PATIENCE, "the check takes too long");
        let document = CheckDocument::new("forged.qcow2", &image, &check, &Conditions::default());
        let mut json = Vec::new();
        write_pretty(&document, &mut json).expect("memory takes it");
        Some((check, json))
    }
}

impl Bench {
    /// Where the owners of some cluster, asked for by name, are not as many as the model has references.
    fn owners_differ(&self, bytes: &[u8], opinion: &Opinion) -> Option<String> {
        let image = Image::open(bytes, Path::new("forged.qcow2")).ok()?;
        let cluster_bytes = image.geometry()?.cluster_bytes();
        let in_file = opinion
            .references
            .range(..bytes.len() as u64 / cluster_bytes);
        let (&cluster, &expected) = in_file.max_by_key(|(cluster, count)| (*count, *cluster))?;
        let offset = qcow2::HostOffset(cluster * cluster_bytes);
        let progress = Progress::default();
        let answer = self
            .0
            .install(|| qfsck::host_owners(&image, offset, &progress))?;
        let named: u64 = answer
            .owners
            .named
            .iter()
            .map(|owner| {
                owner
                    .trees
                    .map_or(1, |trees| trees.active + trees.snapshots)
            })
            .sum();
        let told = (answer.expected, named + answer.owners.more);
        let differs = told != (expected, expected);
        differs.then(|| format!("cluster {cluster}: {told:?} owners, {expected} in the model"))
    }
}

/// Calls `work` for all seeds, on a few threads; says how many seeds there are.
fn for_each_seed(work: impl Fn(u64) + Sync) -> u64 {
    let asked = std::env::var("QFSCK_LAW_IMAGES").ok();
    let count = asked.and_then(|count| count.parse().ok()).unwrap_or(IMAGES);
    let seeds = Mutex::new(0..count);
    let workers = thread::available_parallelism().map_or(2, Into::into);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let next = || seeds.lock().expect("nobody panics with it").next();
                while let Some(seed) = next() {
                    work(seed);
                }
            });
        }
    });
    count
}

#[test]
fn a_valid_image_is_clean_and_says_so_at_any_number_of_threads() {
    let count = for_each_seed(|seed| {
        let image = Forged::random(seed);
        let checks = [1, 1, 2, 8].map(|threads| Bench::of(threads).check(&image.bytes));
        let [Some(first), others @ ..] = checks else {
            panic!("seed {seed} is no image");
        };
        for other in others {
            let is_equal = other.as_ref() == Some(&first);
            assert!(is_equal, "seed {seed}: reports differ");
        }
        // The forge sets the corrupt bit at times, and nothing else that is wrong.
        for (code, _) in first.0.findings.totals() {
            let is_harmless = code.severity() == Severity::Notice || code == Code::CorruptBitSet;
            assert!(is_harmless, "seed {seed}: {code}");
        }
        assert!(first.0.coverage.complete().is_some(), "seed {seed}");
        let opinion = Model::of(&image.bytes).expect("a valid image has a cluster size");
        assert!(opinion.disputed.is_empty(), "seed {seed}");
        assert_eq!(differences(&opinion, &first.0), [""; 0], "seed {seed}");
        let of_map = map::differences(&image.bytes, &opinion, &first.0);
        assert_eq!(of_map, [""; 0], "seed {seed}");
    });
    println!("law: {count} forged images, each checked at 1, 1, 2 and 8 threads");
}

#[test]
fn a_mutated_image_is_judged_alike_by_all_threads_and_by_the_model() {
    let summary = Mutex::new(Summary::default());
    let count = for_each_seed(|seed| {
        let image = Forged::random(seed);
        let is_large = image.bytes.len() > LARGE_BYTES;
        let mutator = Mutator::new(&image);
        let mut random = Random::new(seed ^ 0x6d75_7461_7465);
        let benches = [1, 4].map(Bench::of);
        for number in 0..if is_large { 1 } else { MUTATIONS } {
            let (bytes, done) = mutator.mutate(&mut random);
            let case = format!("seed {seed}, mutation {number}: {done}");
            let outcome = judge(&benches, &bytes, &case);
            summary.lock().expect("nobody panics with it").add(outcome);
        }
    });
    let summary = summary.into_inner().expect("nobody panicked with it");
    println!("law: mutations of {count} forged images: {summary:#?}");
    for code in MODELLED {
        let is_met = summary.codes.contains_key(code.id());
        assert!(is_met || count < IMAGES, "no mutation provokes {code}");
    }
    assert_eq!(summary.differences, [""; 0]);
}

/// What came of a mutation.
struct Outcome {
    check: Check,
    /// Why the model was not asked.
    reasons: Vec<&'static str>,
    differences: Vec<String>,
}

/// What came of all of them: how often each thing happened.
#[derive(Debug, Default)]
struct Summary {
    mutations: u64,
    verdicts: BTreeMap<&'static str, u64>,
    not_modelled: BTreeMap<&'static str, u64>,
    codes: BTreeMap<&'static str, u64>,
    differences: Vec<String>,
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.mutations += 1;
        let verdict = outcome.check.verdict.name();
        *self.verdicts.entry(verdict).or_default() += 1;
        for reason in outcome.reasons {
            *self.not_modelled.entry(reason).or_default() += 1;
        }
        for (code, _) in outcome.check.findings.totals() {
            *self.codes.entry(code.id()).or_default() += 1;
        }
        self.differences.extend(outcome.differences);
    }
}

/// Checks a damaged image on all benches, holds the reports against each other, and one against the model.
fn judge(benches: &[Bench; 2], bytes: &[u8], case: &str) -> Outcome {
    let [alone, together] = benches;
    let first = alone
        .check(bytes)
        .expect("the magic and the version are left alone");
    let second = together.check(bytes);
    assert!(second.as_ref() == Some(&first), "{case}: reports differ");
    let check = first.0;
    assert_consistent(&check, case);
    let mut reasons = Vec::new();
    let mut found = Vec::new();
    match Model::of(bytes) {
        None => reasons.push("there is no cluster size"),
        Some(_) if check.coverage.failure_count() > 0 => reasons.push("the work limit is reached"),
        Some(opinion) if !opinion.disputed.is_empty() => reasons.extend(&opinion.disputed),
        Some(opinion) => {
            found = differences(&opinion, &check);
            found.extend(alone.owners_differ(bytes, &opinion));
            // A map is three checks more, so a part of the images has to do.
            if bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)) < 64 {
                let of_map = alone
                    .0
                    .install(|| map::differences(bytes, &opinion, &check));
                found.extend(of_map);
            }
        }
    }
    Outcome {
        check,
        reasons,
        differences: found.iter().map(|what| format!("{case}: {what}")).collect(),
    }
}

/// A disk on which the check is told to stop at one of the reads.
struct Stopping<'a> {
    bytes: &'a [u8],
    reads: AtomicUsize,
    last: usize,
    progress: &'a Progress,
}

impl Storage for Stopping<'_> {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.reads.fetch_add(1, Relaxed) == self.last {
            self.progress.stop();
        }
        self.bytes.read_at(offset, buffer)
    }
}

/// A refcount table of 256 entries that all name one block of ones: a million counts for nothing, compared in two parts.
fn counts_for_nothing() -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    bytes[20..24].copy_from_slice(&9_u32.to_be_bytes());
    bytes[48..56].copy_from_slice(&1024_u64.to_be_bytes());
    bytes[56..60].copy_from_slice(&4_u32.to_be_bytes());
    bytes[100..104].copy_from_slice(&112_u32.to_be_bytes());
    for entry in bytes[1024..3072].chunks_exact_mut(8) {
        entry.copy_from_slice(&4096_u64.to_be_bytes());
    }
    bytes[4096..4608].fill(0xff);
    bytes
}

#[test]
fn a_check_that_is_told_to_stop_while_there_is_something_to_do_says_so() {
    /// Reads of the second part of the comparison: 16 regions of 32,768 counts, 4096 of them in a block.
    const LAST_READS: usize = 128;
    let bytes = counts_for_nothing();
    let is_stopped_at = |last| {
        let progress = Progress::default();
        let disk = Stopping {
            bytes: &bytes,
            reads: AtomicUsize::new(0),
            last,
            progress: &progress,
        };
        let image = Image::open(disk, Path::new("forged.qcow2")).expect("it has a header");
        let check = qfsck::check(&image, Options::default(), &progress);
        let reads = image.storage().reads.load(Relaxed);
        (check.coverage.is_stopped(), reads)
    };
    let (is_stopped, reads) = is_stopped_at(usize::MAX);
    assert!(!is_stopped && reads > 2 * LAST_READS, "{reads} reads");
    for last in 0..reads - LAST_READS {
        assert!(is_stopped_at(last).0, "read {last} of {reads}");
    }
}
