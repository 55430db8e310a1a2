//! The oracle: `qemu-img check` and `qfsck check` look at the same images and have to agree to the digit.
//!
//! In come recipes: every row of `FEATURES` in every one of its shapes, except the combinations that `refusal()` turns
//! down; each is made by the real tools in a directory of its own. Out comes one list of every image the two disagree
//! about, and a few lines of numbers. A second test does the same for the damaged images of `corpus/`, where qemu-img's
//! recorded answer is compared with its living one and only a law binds qfsck: what qemu-img objects to is never clean.
//!
//! Never here: an expectation written by hand. What is right about a healthy image is that everybody is content; what
//! is right about any other is what qemu-img says.
//!
//! `QFSCK_REQUIRE_ORACLE=1` makes missing tools a failure, `QFSCK_ORACLE_ONLY=text` runs the recipes whose names
//! contain the text, `QFSCK_ORACLE_KEEP=1` leaves the images of failed recipes where the failure says.

#![expect(
    clippy::print_stdout,
    reason = "the summary of a run is what the run is for"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::iter::repeat_with;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;

use crate::support::qemu::{self, Checked, Health, Origin, Recipe, Step, Tools};
use crate::support::sample::sampled;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Directories of `corpus/` that qemu-img objects to and qfsck may call clean, each with the reason.
const FORGIVEN: &[(&str, &str)] = &[
    (
        "041-backing-missing",
        "qemu-img opens the backing file; qfsck checks the image it is given",
    ),
    (
        "043-data-file-missing",
        "qemu-img opens the data file; the metadata can be checked without it",
    ),
    (
        "045-luks",
        "qemu-img wants the key; metadata is not encrypted",
    ),
    (
        "046-aes-legacy",
        "qemu-img wants the key; metadata is not encrypted",
    ),
    (
        "059-bitmap-with-extra-data",
        "the specification allows it, and the notice says that QEMU refuses to open the image",
    ),
];

#[test]
fn real_images_get_the_same_answer_from_qemu_img_and_qfsck() {
    let Some(tools) = qemu::tools() else { return };
    let started = Instant::now();
    let (cells, skipped) = matrix();
    assert!(!cells.is_empty(), "no recipe has such a name");
    let cells = sampled("recipes and shapes", cells, 3);
    let outcomes = in_parallel(&cells, |cell| try_recipe(&tools, &cell.recipe()));
    let failures: Vec<&str> = outcomes
        .iter()
        .filter_map(|outcome| outcome.failure.as_deref())
        .collect();

    let (count, seconds) = (cells.len(), started.elapsed().as_secs_f64());
    println!(
        "oracle: {count} images in {seconds:.0} s, qemu-img {}",
        tools.version
    );
    println!(
        "oracle: qemu-img ended with: {}",
        tally(outcomes.iter().map(|outcome| exit_text(outcome.exit)))
    );
    println!(
        "oracle: notices: {}",
        tally(outcomes.iter().flat_map(|outcome| outcome.notices.clone()))
    );
    println!("oracle: left out: {}", tally(skipped));
    println!("oracle: slowest: {}", slowest(&outcomes));
    assert!(failures.is_empty(), "{}", first_of(&failures, count));
}

#[test]
fn what_qemu_img_objects_to_is_never_clean() {
    let Some(tools) = qemu::tools() else { return };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let cases = directories(&corpus);
    assert!(!cases.is_empty(), "the corpus is empty");
    let problems = in_parallel(&cases, |case| {
        try_case(&tools, case).unwrap_or_else(|why| vec![why])
    });
    let mut failures = Vec::new();
    for (case, problems) in cases.iter().zip(&problems) {
        failures.extend(
            problems
                .iter()
                .map(|problem| format!("{}: {problem}", name_of(case))),
        );
    }
    for (name, reason) in FORGIVEN {
        if !cases.iter().any(|case| name_of(case) == *name) {
            failures.push(format!("{name}: is forgiven ({reason}) but does not exist"));
        }
    }

    println!(
        "oracle: {} damaged images of the corpus, qemu-img {}",
        cases.len(),
        tools.version
    );
    let failures: Vec<&str> = failures.iter().map(String::as_str).collect();
    assert!(failures.is_empty(), "{}", first_of(&failures, cases.len()));
}

#[test]
fn the_corners_have_every_main_cluster_size_refcount_width_and_version() {
    let corners = corners();
    for bytes in [512, 4 * KIB, 64 * KIB, 2 * MIB] {
        assert!(
            corners.iter().any(|shape| shape.cluster_bytes == bytes),
            "no corner has clusters of {bytes} bytes"
        );
    }
    for bits in [1, 8, 16, 64] {
        assert!(
            corners.iter().any(|shape| shape.refcount_bits == bits),
            "no corner has {bits} bit refcounts"
        );
    }
    assert!(
        corners.iter().any(|shape| shape.version == Version::Two),
        "no corner has version 2"
    );
}

/// What became of one recipe.
struct Outcome {
    name: String,
    took: Duration,
    failure: Option<String>,
    /// qemu-img's exit code, `None` when it was never asked.
    exit: Option<i32>,
    /// The codes of qfsck's notices.
    notices: Vec<String>,
}

fn try_recipe(tools: &Tools, recipe: &Recipe) -> Outcome {
    let started = Instant::now();
    let mut outcome = Outcome {
        name: recipe.name.clone(),
        took: Duration::ZERO,
        failure: None,
        exit: None,
        notices: Vec::new(),
    };
    let problem = match tempfile::TempDir::new() {
        Ok(mut dir) => compare_checkers(tools, recipe, dir.path(), &mut outcome)
            .err()
            .map(|why| {
                let keep = std::env::var_os("QFSCK_ORACLE_KEEP").is_some();
                dir.disable_cleanup(keep);
                if keep {
                    format!("{why}\n  kept in {}", dir.path().display())
                } else {
                    why
                }
            }),
        Err(error) => Some(format!("no temporary directory: {error}")),
    };
    outcome.failure = problem.map(|why| format!("{}: {why}", recipe.name));
    outcome.took = started.elapsed();
    outcome
}

/// The whole life of one image; the error is everything there is to say about a failure.
fn compare_checkers(
    tools: &Tools,
    recipe: &Recipe,
    dir: &Path,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let made_by = qemu::make(tools, recipe, dir).map_err(|why| format!("cannot be made: {why}"))?;
    let theirs = qemu::qemu_check(tools, recipe, dir)?;
    for file in &recipe.gone_before_qfsck {
        fs::remove_file(dir.join(file))
            .map_err(|error| format!("cannot remove {file}: {error}"))?;
    }
    let before = qemu::fingerprints(dir)?;
    let ours = qemu::qfsck_check(dir)?;
    let mut problems = disagreements(recipe, &theirs, &ours);
    if qemu::fingerprints(dir)? != before {
        problems.push("qfsck changed a file by looking at it".to_owned());
    }
    let notices = findings(&ours)
        .into_iter()
        .filter(|(_, severity)| severity == "notice");
    outcome.notices = notices.map(|(code, _)| code).collect();
    outcome.exit = theirs.exit;
    if problems.is_empty() {
        return Ok(());
    }
    let (problems, made_by) = (
        problems.join("; "),
        made_by.trim_end().replace('\n', "\n    "),
    );
    Err(format!(
        "{problems}\n  qemu-img: {theirs}\n  qfsck:    {ours}\n  made by:\n    {made_by}"
    ))
}

/// Every key whose value must be the same in both documents, absent where it is absent.
const SAME_KEYS: [&str; 11] = [
    "format",
    "check-errors",
    "corruptions",
    "leaks",
    "image-end-offset",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "corruptions-fixed",
    "leaks-fixed",
];

fn disagreements(recipe: &Recipe, theirs: &Checked, ours: &Checked) -> Vec<String> {
    if ours.report.is_none() {
        return vec!["qfsck printed no document".to_owned()];
    }
    let mut problems = Vec::new();
    if recipe.health == Health::Healthy && theirs.exit != Some(0) {
        problems.push("qemu-img itself objects to an image its own tools made".to_owned());
    }
    if theirs.exit != ours.exit {
        problems.push(format!(
            "exit codes differ: {:?} and {:?}",
            theirs.exit, ours.exit
        ));
    }
    for key in SAME_KEYS {
        let (expected, actual) = (theirs.value(key), ours.value(key));
        if expected != actual {
            problems.push(format!(
                "{key}: qemu-img {}, qfsck {}",
                or_absent(expected),
                or_absent(actual)
            ));
        }
    }
    for key in ["filename", "schema", "verdict", "findings", "coverage"] {
        if ours.value(key).is_none() {
            problems.push(format!("qfsck's document has no {key:?}"));
        }
    }
    problems.extend(self_contradictions(recipe, ours));
    problems
}

/// What qfsck's findings, verdict and exit code must have in common, whatever qemu-img says.
fn self_contradictions(recipe: &Recipe, ours: &Checked) -> Vec<String> {
    let mut problems = Vec::new();
    let findings = findings(ours);
    let of = |wanted: &str| findings.iter().any(|(_, severity)| severity == wanted);
    let by_findings = if of("corruption") {
        2
    } else if of("leak") {
        3
    } else {
        0
    };
    if ours.exit != Some(by_findings) {
        problems.push(format!(
            "the findings make exit {by_findings}, not {:?}: {findings:?}",
            ours.exit
        ));
    }
    for (code, severity) in &findings {
        if code.is_empty() || !["notice", "leak", "corruption"].contains(&severity.as_str()) {
            problems.push(format!("a finding {code:?} has severity {severity:?}"));
        }
    }
    let verdict = ours
        .value("verdict")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let fits = match by_findings {
        2 => ["repairable", "do-not-boot"].contains(&verdict),
        3 => verdict == "leaks",
        _ => verdict == "clean" || recipe.health == Health::AsQemuSays,
    };
    if !fits {
        problems.push(format!(
            "the verdict {verdict:?} does not go with exit {by_findings}"
        ));
    }
    let complete = ours
        .value("coverage")
        .and_then(|coverage| coverage.get("complete"));
    if recipe.health == Health::Healthy && complete != Some(&Value::Bool(true)) {
        problems.push("the coverage of a healthy image is not complete".to_owned());
    }
    problems
}

fn or_absent(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

/// Code and severity of every finding; what is missing is an empty text, which is neither.
fn findings(checked: &Checked) -> Vec<(String, String)> {
    let text = |finding: &Value, key| {
        finding
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let list = checked.value("findings").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|finding| (text(finding, "code"), text(finding, "severity")))
        .collect()
}

/// One damaged image: qemu-img as recorded, qemu-img alive, and the law for qfsck.
fn try_case(tools: &Tools, case: &Path) -> Result<Vec<String>, String> {
    let recorded = fs::read_to_string(case.join("qemu-img.json"))
        .map_err(|error| format!("qemu-img.json cannot be read: {error}"))?;
    let recorded: Value = serde_json::from_str(&recorded)
        .map_err(|error| format!("qemu-img.json is not JSON: {error}"))?;
    let before = qemu::fingerprints(case)?;
    let theirs = qemu::qemu_check_plain(tools, case)?;
    let ours = qemu::qfsck_check(case)?;
    let mut problems = Vec::new();
    if qemu::fingerprints(case)? != before {
        problems.push("a checker changed a file by looking at it".to_owned());
    }
    if recorded.get("exit").and_then(Value::as_i64) != theirs.exit.map(i64::from)
        || without_filename(recorded.get("report")) != without_filename(theirs.report.as_ref())
    {
        problems.push(format!(
            "qemu-img {} says {theirs}\n  recorded: {recorded}",
            tools.version
        ));
    }
    let forgiven = FORGIVEN.iter().any(|(name, _)| *name == name_of(case));
    let too_kind = theirs.exit != Some(0) && ours.exit == Some(0);
    if too_kind && !forgiven {
        problems.push(format!(
            "qfsck calls clean what qemu-img does not\n  qemu-img: {theirs}\n  qfsck:    {ours}"
        ));
    }
    if forgiven && !too_kind {
        problems.push("is forgiven without need".to_owned());
    }
    Ok(problems)
}

/// A report that was never printed is recorded as null.
fn without_filename(report: Option<&Value>) -> Value {
    let mut report = report.cloned().unwrap_or(Value::Null);
    if let Some(keys) = report.as_object_mut() {
        keys.remove("filename");
    }
    report
}

/// The directories in `parent`, in order; none when there is no such place.
fn directories(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// `what` for every item, by as many threads as there are processors, answers in the order of the items.
fn in_parallel<I: Sync, T: Send>(items: &[I], what: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return done;
            };
            done.push((index, what(item)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, answer)| answer).collect()
}

fn slowest(outcomes: &[Outcome]) -> String {
    let mut by_time: Vec<&Outcome> = outcomes.iter().collect();
    by_time.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
    let line = |outcome: &&Outcome| format!("{} {:.1} s", outcome.name, outcome.took.as_secs_f64());
    by_time
        .iter()
        .take(5)
        .map(line)
        .collect::<Vec<String>>()
        .join(", ")
}

fn exit_text(exit: Option<i32>) -> String {
    exit.map_or_else(|| "no answer".to_owned(), |code| format!("exit {code}"))
}

fn tally(words: impl IntoIterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(word, count)| format!("{word} × {count}"))
        .collect();
    if counts.is_empty() {
        "none".to_owned()
    } else {
        counts.join(", ")
    }
}

fn first_of(failures: &[&str], of: usize) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<&str> = failures.iter().take(SHOWN).copied().collect();
    format!(
        "{} of {of} failed, the first {}:\n\n{}\n",
        failures.len(),
        shown.len(),
        shown.join("\n\n")
    )
}

/// A feature in a shape: the recipe is written down only when its turn comes, because some hold megabytes.
struct Cell {
    feature: &'static Feature,
    shape: Shape,
}

impl Cell {
    fn name(&self) -> String {
        format!("{}/{}", self.feature.name, self.shape)
    }

    fn recipe(&self) -> Recipe {
        let mut recipe = (self.feature.recipe)(&self.shape);
        recipe.name = self.name();
        recipe
    }
}

/// Every cell there is, and for every combination there is not, the reason.
fn matrix() -> (Vec<Cell>, Vec<String>) {
    let only = std::env::var("QFSCK_ORACLE_ONLY").unwrap_or_default();
    let (mut cells, mut skipped) = (Vec::new(), Vec::new());
    for feature in FEATURES {
        let shapes = match feature.reach {
            Reach::Everywhere => every_shape(),
            Reach::Corners => corners(),
        };
        for shape in shapes {
            let cell = Cell { feature, shape };
            if let Some(reason) = feature.needs.iter().find_map(|need| refusal(need, &shape)) {
                skipped.push(reason.to_owned());
            } else if cell.name().contains(&only) {
                cells.push(cell);
            }
        }
    }
    (cells, skipped)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Two,
    Three,
}

/// The three numbers that decide how an image is laid out.
#[derive(Clone, Copy)]
struct Shape {
    version: Version,
    cluster_bytes: u64,
    refcount_bits: u32,
}

/// The full product of the four cluster sizes and the five refcount widths that differ most, and one shape for each
/// remaining cluster size and width.
fn every_shape() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for cluster_bytes in [512, 4 * KIB, 64 * KIB, 2 * MIB] {
        shapes.push(Shape {
            version: Version::Two,
            cluster_bytes,
            refcount_bits: 16,
        });
        for refcount_bits in [1, 8, 16, 64] {
            shapes.push(Shape {
                version: Version::Three,
                cluster_bytes,
                refcount_bits,
            });
        }
    }
    shapes.push(Shape {
        version: Version::Two,
        cluster_bytes: 32 * KIB,
        refcount_bits: 16,
    });
    for (cluster_bytes, refcount_bits) in [
        (KIB, 2),
        (2 * KIB, 32),
        (8 * KIB, 4),
        (16 * KIB, 16),
        (128 * KIB, 32),
        (256 * KIB, 8),
        (MIB, 64),
    ] {
        shapes.push(Shape {
            version: Version::Three,
            cluster_bytes,
            refcount_bits,
        });
    }
    shapes
}

/// A few shapes that between them have each of those cluster sizes, widths and versions.
fn corners() -> Vec<Shape> {
    let two = |cluster_bytes| Shape {
        version: Version::Two,
        cluster_bytes,
        refcount_bits: 16,
    };
    let three = |cluster_bytes, refcount_bits| Shape {
        version: Version::Three,
        cluster_bytes,
        refcount_bits,
    };
    vec![
        two(4 * KIB),
        two(2 * MIB),
        three(512, 64),
        three(4 * KIB, 1),
        three(64 * KIB, 8),
        three(2 * MIB, 16),
    ]
}

impl fmt::Display for Shape {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.version == Version::Two {
            "v2"
        } else {
            "v3"
        };
        write!(
            to,
            "{version}-cluster{}-refcount{}",
            self.cluster_bytes, self.refcount_bits
        )
    }
}

impl Shape {
    /// From 16 to 2,048 clusters: cheap even when every one of them is allocated.
    fn compact(&self) -> u64 {
        (2048 * self.cluster_bytes)
            .min(16 * MIB)
            .max(16 * self.cluster_bytes)
    }

    /// Needs at least three L2 tables, with small clusters a hundred. Mostly holes.
    fn wide(&self) -> u64 {
        self.l2_coverage_bytes() * (24 * MIB / self.l2_coverage_bytes()).clamp(3, 128)
    }

    fn l2_coverage_bytes(&self) -> u64 {
        self.cluster_bytes * self.cluster_bytes / 8
    }

    /// Needs a second refcount block once all of it is allocated, where that can be had below 700 MiB.
    fn two_refcount_blocks(&self) -> u64 {
        let block_coverage_bytes =
            self.cluster_bytes * self.cluster_bytes * 8 / u64::from(self.refcount_bits);
        let enough = block_coverage_bytes / 4 * 5;
        if enough < 700 * MIB {
            enough.max(self.compact())
        } else {
            self.compact()
        }
    }

    fn image(&self, virtual_bytes: u64) -> Recipe {
        let mut options = vec![format!("cluster_size={}", self.cluster_bytes)];
        match self.version {
            Version::Two => options.push("compat=0.10".to_owned()),
            Version::Three => {
                options.push("compat=1.1".to_owned());
                options.push(format!("refcount_bits={}", self.refcount_bits));
            }
        }
        Recipe::new(String::new(), virtual_bytes, options)
    }

    /// An image of `compact` size and the guest that will use it.
    fn compact_image(&self) -> (Recipe, Guest) {
        (
            self.image(self.compact()),
            Guest::new(*self, self.compact()),
        )
    }

    /// An image of `wide` size and the guest that will use it.
    fn wide_image(&self) -> (Recipe, Guest) {
        (self.image(self.wide()), Guest::new(*self, self.wide()))
    }

    fn converted(&self, flags: &'static [&'static str]) -> (Recipe, Guest) {
        let (image, guest) = self.compact_image();
        (
            image.origin(Origin::Convert {
                flags,
                bytes: patterned(self.compact()),
            }),
            guest,
        )
    }

    fn overlay(&self) -> (Recipe, Guest) {
        let (image, guest) = self.compact_image();
        // Shorter than the overlay and not a multiple of its clusters.
        let bytes = patterned(self.compact() / 2 + 512);
        (
            image.origin(Origin::Overlay {
                backing: "base.raw",
                bytes,
            }),
            guest,
        )
    }
}

/// What a feature asks of a shape.
enum Need {
    /// Version 3 of the format.
    Version3,
    /// Clusters of at least so many bytes.
    ClusterBytes(u64),
    /// Refcounts that can count so far.
    Owners(u64),
    /// Refcount blocks small enough for `qemu-img amend` to widen or narrow them while somebody waits.
    QuickAmend,
}

/// Why qemu-img would not make this combination, or why there is no such thing.
fn refusal(need: &Need, shape: &Shape) -> Option<&'static str> {
    let largest_refcount = 1_u64
        .checked_shl(shape.refcount_bits)
        .map_or(u64::MAX, |above| above - 1);
    match *need {
        Version3 => (shape.version == Version::Two).then_some("version 2 has no such feature"),
        ClusterBytes(least) => {
            (shape.cluster_bytes < least).then_some("the clusters are too small for it")
        }
        QuickAmend => {
            let refcounts_per_block = shape.cluster_bytes * 8 / u64::from(shape.refcount_bits);
            let quick = shape.version == Version::Two || refcounts_per_block <= 65_536;
            (!quick).then_some("qemu-img takes minutes for it")
        }
        Owners(least) => {
            (largest_refcount < least).then_some("the refcounts cannot count so many owners")
        }
    }
}

/// A way to use an image.
struct Feature {
    name: &'static str,
    needs: &'static [Need],
    recipe: fn(&Shape) -> Recipe,
    reach: Reach,
}

/// How much of the matrix a feature is worth.
#[derive(Clone, Copy)]
enum Reach {
    Everywhere,
    /// Slow, or close to another feature.
    Corners,
}

const fn feature(
    name: &'static str,
    needs: &'static [Need],
    recipe: fn(&Shape) -> Recipe,
) -> Feature {
    Feature {
        name,
        needs,
        recipe,
        reach: Reach::Everywhere,
    }
}

impl Feature {
    const fn at_corners(mut self) -> Self {
        self.reach = Reach::Corners;
        self
    }
}

use Need::{ClusterBytes, Owners, QuickAmend, Version3};

/// The table of contents of everything below.
const FEATURES: &[Feature] = &[
    feature("empty", &[], |shape| shape.image(shape.wide())),
    feature("plain", &[], plain),
    // Sizes are multiples of 512 bytes: with clusters of 512 bytes none is ragged.
    feature("ragged-size", &[ClusterBytes(KIB)], ragged_size),
    feature(
        "extended-l2",
        &[Version3, ClusterBytes(16 * KIB)],
        extended_l2,
    ),
    feature(
        "extended-l2-snapshots",
        &[Version3, ClusterBytes(16 * KIB), Owners(4)],
        extended_l2_snapshots,
    ),
    feature("deflate-converted", &[], |shape| shape.converted(&["-c"]).0),
    feature("deflate-mixed", &[], |shape| {
        compressed_mixed(shape.compact_image())
    }),
    feature("deflate-overwritten", &[], |shape| {
        overwritten(shape.converted(&["-c"]))
    }),
    feature("zstd-converted", &[Version3], |shape| {
        zstd(shape.converted(&["-c"])).0
    }),
    feature("zstd-mixed", &[Version3], |shape| {
        compressed_mixed(zstd(shape.compact_image()))
    }),
    feature("converted", &[], |shape| {
        overwritten(shape.converted(&["-S", "4k"]))
    })
    .at_corners(),
    feature("snapshots", &[Owners(4)], snapshots),
    feature("snapshots-applied", &[Owners(4)], snapshots_applied).at_corners(),
    feature(
        "snapshots-resized",
        &[Version3, Owners(4)],
        snapshots_resized,
    )
    .at_corners(),
    feature(
        "snapshots-compressed",
        &[Owners(4096)],
        snapshots_compressed,
    ),
    feature("bitmaps", &[Version3], bitmaps),
    feature("bitmaps-in-use", &[Version3], |shape| {
        crashed(bitmaps(shape), shape)
    }),
    // qemu-img takes at least a second to find out how many iterations a key takes.
    feature("luks", &[], |shape| {
        encrypted(shape, "luks").option("encrypt.iter-time=10")
    })
    .at_corners(),
    feature("aes", &[], |shape| encrypted(shape, "aes")).at_corners(),
    feature("data-file", &[Version3], |shape| data_file(shape, "off")),
    feature("data-file-raw", &[Version3], |shape| data_file(shape, "on")),
    feature("backing-file", &[], |shape| overwritten(shape.overlay())).at_corners(),
    feature("backing-file-gone", &[], |shape| {
        overwritten(shape.overlay()).without("base.raw")
    }),
    feature("committed", &[], |shape| {
        img(overwritten(shape.overlay()), &["commit", "-q"])
    })
    .at_corners(),
    feature("rebased", &[], |shape| {
        img(overwritten(shape.overlay()), &["rebase", "-q", "-b", ""])
    })
    .at_corners(),
    feature("preallocated-metadata", &[], |shape| {
        preallocated(shape, "metadata", shape.two_refcount_blocks())
    }),
    feature("preallocated-falloc", &[], |shape| {
        preallocated(shape, "falloc", shape.compact())
    })
    .at_corners(),
    feature("preallocated-full", &[], |shape| {
        preallocated(shape, "full", shape.compact())
    }),
    feature("resized-up", &[], |shape| {
        resized(shape.wide_image(), &[], shape.wide() * 4)
    }),
    feature("resized-up-preallocated", &[], resized_up_preallocated).at_corners(),
    feature("resized-down", &[], |shape| {
        resized(shape.wide_image(), &["--shrink"], shape.wide() / 2 + 512)
    }),
    feature("discarded", &[], discarded),
    feature("zeroes", &[], zeroes),
    feature("vm-state", &[], vm_state),
    feature("vm-state-snapshots", &[Owners(4)], vm_state_snapshots),
    feature("amended", &[QuickAmend], amended).at_corners(),
    feature("lazy-refcounts", &[Version3], |shape| lazy(plain(shape))).at_corners(),
    feature("lazy-refcounts-crash", &[Version3], lazy_crash),
    feature("lazy-refcounts-repaired", &[Version3], |shape| {
        used_again(lazy_crash(shape), shape)
    }),
    feature("crash", &[], |shape| crashed(plain(shape), shape)),
    feature("crash-then-used", &[], |shape| {
        used_again(crashed(plain(shape), shape), shape)
    })
    .at_corners(),
    feature("crash-with-snapshots", &[Owners(4)], |shape| {
        crashed(snapshots(shape), shape)
    }),
    feature(
        "everything",
        &[Version3, ClusterBytes(16 * KIB), Owners(4096)],
        everything,
    ),
];

fn plain(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    image.io(guest.writes()).io(guest.writes())
}

fn ragged_size(shape: &Shape) -> Recipe {
    let virtual_bytes = shape.wide() - shape.cluster_bytes + 512;
    let mut guest = Guest::new(*shape, virtual_bytes);
    let last_sector = format!("write -q -P 9 {} 512", virtual_bytes - 512);
    shape
        .image(virtual_bytes)
        .io(guest.writes())
        .io([last_sector])
        .io(guest.zeroes("write -q -z"))
}

fn extended_l2(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    image
        .option("extended_l2=on")
        .io(guest.writes())
        .io(guest.subclusters("write -q -P 5"))
        .io(guest.subclusters("write -q -z"))
        .io(guest.subclusters("write -q -z -u"))
        .step(Step::Unmap(guest.subclusters("discard -q")))
        .step(Step::Unmap(guest.zeroes("discard -q")))
        .io(guest.subclusters("write -q -P 6"))
}

fn extended_l2_snapshots(shape: &Shape) -> Recipe {
    let mut guest = Guest::returning(*shape, shape.wide(), 1);
    extended_l2(shape)
        .snapshot("-c", "one")
        .io(guest.subclusters("write -q -P 5"))
        .io(guest.subclusters("write -q -z -u"))
        .snapshot("-c", "two")
        .step(Step::Unmap(guest.zeroes("discard -q")))
        .snapshot("-d", "one")
        .io(guest.writes())
}

fn zstd((image, guest): (Recipe, Guest)) -> (Recipe, Guest) {
    (image.option("compression_type=zstd"), guest)
}

/// Compressed clusters between ordinary ones, some of them overwritten later.
fn compressed_mixed((image, mut guest): (Recipe, Guest)) -> Recipe {
    image
        .io(guest.compressed_writes())
        .io(guest.writes())
        .io(guest.zeroes("write -q -z"))
}

/// Ordinary writes, zeroes and discards over whatever is there.
fn overwritten((image, mut guest): (Recipe, Guest)) -> Recipe {
    image
        .io(guest.writes())
        .io(guest.zeroes("write -q -z"))
        .step(Step::Unmap(guest.zeroes("discard -q")))
}

fn img(image: Recipe, command: &[&str]) -> Recipe {
    image.step(Step::Img(
        command.iter().map(|&word| word.to_owned()).collect(),
    ))
}

/// Three snapshots that differ, the middle one deleted, and writes after all of it.
fn snapshots(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    image
        .io(guest.writes())
        .snapshot("-c", "one")
        .io(guest.writes())
        .snapshot("-c", "two")
        .io(guest.zeroes("write -q -z"))
        .snapshot("-c", "a snapshot with a rather longer name")
        .step(Step::Unmap(guest.zeroes("discard -q")))
        .snapshot("-d", "two")
        .io(guest.writes())
}

fn snapshots_applied(shape: &Shape) -> Recipe {
    snapshots(shape)
        .snapshot("-a", "one")
        .snapshot("-c", "four")
}

fn snapshots_resized(shape: &Shape) -> Recipe {
    let mut guest = Guest::returning(*shape, shape.wide() * 2, 1);
    let resized = Step::Resize {
        flags: &[],
        to_bytes: shape.wide() * 2,
    };
    snapshots(shape)
        .step(resized)
        .io(guest.writes())
        .snapshot("-c", "four")
        .snapshot("-d", "one")
}

fn snapshots_compressed(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.converted(&["-c"]);
    let image = image
        .snapshot("-c", "one")
        .io(guest.writes())
        .snapshot("-c", "two");
    image
        .io(guest.zeroes("write -q -z -u"))
        .snapshot("-d", "one")
}

/// Three bitmaps, one of them disabled, all with data that came after them; one more is removed.
fn bitmaps(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    // Fine enough that a bitmap needs several clusters.
    let granularity = (shape.cluster_bytes / 32).max(512).to_string();
    image
        .io(guest.writes())
        .bitmap(["--add", "-g", &granularity], "fine")
        .bitmap(["--add"], "coarse")
        .bitmap(["--add", "-g", &granularity], "stopped")
        .bitmap(["--add"], "removed")
        .io(guest.writes())
        .bitmap(["--disable"], "stopped")
        .bitmap(["--remove"], "removed")
        .io(guest.zeroes("write -q -z"))
        .bitmap(["--add"], "empty")
}

fn encrypted(shape: &Shape, format: &str) -> Recipe {
    let (image, guest) = shape.wide_image();
    let image = image
        .key()
        .option(format!("encrypt.format={format}"))
        .option("encrypt.key-secret=key");
    overwritten((image, guest))
}

fn data_file(shape: &Shape, raw: &str) -> Recipe {
    let (image, guest) = shape.compact_image();
    overwritten((
        image
            .option("data_file=data.raw")
            .option(format!("data_file_raw={raw}")),
        guest,
    ))
}

fn preallocated(shape: &Shape, mode: &str, virtual_bytes: u64) -> Recipe {
    let mut guest = Guest::new(*shape, virtual_bytes);
    let image = shape
        .image(virtual_bytes)
        .option(format!("preallocation={mode}"));
    image.io(guest.writes()).io(guest.zeroes("write -q -z"))
}

fn resized(
    (image, mut guest): (Recipe, Guest),
    flags: &'static [&'static str],
    to_bytes: u64,
) -> Recipe {
    let mut later = Guest::new(guest.shape, to_bytes);
    image
        .io(guest.writes())
        .step(Step::Resize { flags, to_bytes })
        .io(later.writes())
}

fn resized_up_preallocated(shape: &Shape) -> Recipe {
    let to_bytes = shape.compact() + shape.two_refcount_blocks() + 512;
    resized(
        shape.compact_image(),
        &["--preallocation=metadata"],
        to_bytes,
    )
}

fn discarded(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    image
        .io(guest.writes())
        .step(Step::Unmap(guest.zeroes("discard -q")))
        .io(guest.zeroes("discard -q"))
        .step(Step::Unmap(guest.zeroes("write -q -z -u")))
        .io(guest.writes())
}

fn zeroes(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    image
        .io(guest.zeroes("write -q -z"))
        .io(guest.writes())
        .io(guest.zeroes("write -q -z"))
        .io(guest.zeroes("write -q -z -u"))
}

fn vm_state(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.compact_image();
    image.io(guest.writes()).io(guest.vm_state())
}

fn vm_state_snapshots(shape: &Shape) -> Recipe {
    let mut guest = Guest::returning(*shape, shape.compact(), 1);
    vm_state(shape)
        .snapshot("-c", "one")
        .io(guest.writes())
        .io(guest.vm_state())
        .snapshot("-c", "two")
}

/// Another refcount width, or version 3 instead of 2.
fn amended(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    let option = match (shape.version, shape.refcount_bits) {
        (Version::Two, _) => "compat=1.1",
        (Version::Three, 64) => "refcount_bits=16",
        (Version::Three, _) => "refcount_bits=64",
    };
    img(image.io(guest.writes()), &["amend", "-q", "-o", option]).io(guest.writes())
}

/// Killed between what it has flushed and what it has not: leaks.
fn crashed(image: Recipe, shape: &Shape) -> Recipe {
    let mut guest = Guest::returning(*shape, shape.wide(), 1);
    let flush = vec!["flush".to_owned()];
    let commands = [
        guest.writes(),
        flush,
        guest.zeroes("discard -q"),
        guest.writes(),
    ]
    .concat();
    image.step(Step::Crash(commands)).health(Health::AsQemuSays)
}

fn lazy(image: Recipe) -> Recipe {
    image.option("lazy_refcounts=on")
}

/// Killed when the mapping is on disk and its refcounts are not: corruptions, with the dirty bit set.
fn lazy_crash(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.wide_image();
    let flush = vec!["flush".to_owned()];
    let commands = [guest.writes(), guest.fill_last_l2_table(), flush].concat();
    lazy(image)
        .step(Step::Crash(commands))
        .health(Health::AsQemuSays)
}

/// A dirty image is repaired by the next tool that opens it to write; any other keeps its leaks.
fn used_again(image: Recipe, shape: &Shape) -> Recipe {
    image.io(Guest::returning(*shape, shape.wide(), 2).writes())
}

fn everything(shape: &Shape) -> Recipe {
    let (image, mut guest) = shape.converted(&["-c"]);
    let mut later = Guest::returning(*shape, shape.compact() * 2, 1);
    image
        .option("extended_l2=on")
        .option("compression_type=zstd")
        .io(guest.subclusters("write -q -P 5"))
        .snapshot("-c", "one")
        .io(guest.vm_state())
        .io(guest.zeroes("write -q -z -u"))
        .snapshot("-c", "two")
        .step(Step::Resize {
            flags: &[],
            to_bytes: shape.compact() * 2,
        })
        .bitmap(["--add"], "first")
        .io(later.writes())
        .snapshot("-d", "one")
        .bitmap(["--add", "--disable"], "second")
        .step(Step::Unmap(later.zeroes("discard -q")))
        .io(later.compressed_writes_at_the_end())
}

/// Somebody who uses a disk: the same somebody every time, different requests every time they are asked.
struct Guest {
    shape: Shape,
    virtual_bytes: u64,
    random: Rng,
}

impl Guest {
    /// The guest's first visit to an image; a later one is another guest, or it would only repeat itself.
    fn new(shape: Shape, virtual_bytes: u64) -> Self {
        Self::returning(shape, virtual_bytes, 0)
    }

    fn returning(shape: Shape, virtual_bytes: u64, visit: u64) -> Self {
        let seed =
            shape.cluster_bytes ^ virtual_bytes ^ u64::from(shape.refcount_bits) << 8 ^ visit << 60;
        Self {
            shape,
            virtual_bytes,
            random: Rng::with_seed(seed),
        }
    }

    /// Enough to meet every case, few enough to stay small where one cluster is a megabyte.
    fn request_count(&self) -> u64 {
        if self.shape.cluster_bytes < MIB {
            40
        } else {
            8
        }
    }

    /// Patterned writes from one sector to a few clusters: a third close together, the others anywhere.
    fn writes(&mut self) -> Vec<String> {
        (0..self.request_count())
            .map(|_| {
                let pattern = 1 + self.random.u64(..255);
                self.anywhere(&format!("write -q -P {pattern}"), 512)
            })
            .collect()
    }

    /// Requests of another kind in the same places, half of them on whole clusters.
    fn zeroes(&mut self, verb: &str) -> Vec<String> {
        let whole = self.shape.cluster_bytes;
        (0..self.request_count() / 2)
            .map(|turn| self.anywhere(verb, if turn % 2 == 0 { whole } else { 512 }))
            .collect()
    }

    /// Requests on whole subclusters, of which a cluster has 32.
    fn subclusters(&mut self, verb: &str) -> Vec<String> {
        let subcluster_bytes = self.shape.cluster_bytes / 32;
        (0..self.request_count())
            .map(|_| self.anywhere(verb, subcluster_bytes))
            .collect()
    }

    /// One cluster each, never the same twice: what is allocated cannot be compressed in place.
    fn compressed_writes(&mut self) -> Vec<String> {
        let clusters = self.virtual_bytes / self.shape.cluster_bytes;
        let step = (clusters / self.request_count()).max(1);
        (0..clusters)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .map(|cluster| self.compressed(cluster))
            .collect()
    }

    /// The same in the last four clusters, freed first.
    fn compressed_writes_at_the_end(&mut self) -> Vec<String> {
        let clusters = self.virtual_bytes / self.shape.cluster_bytes;
        let hole_bytes = 4 * self.shape.cluster_bytes;
        let hole = format!(
            "write -q -z -u {} {hole_bytes}",
            self.virtual_bytes - hole_bytes
        );
        [hole]
            .into_iter()
            .chain((clusters - 4..clusters).map(|cluster| self.compressed(cluster)))
            .collect()
    }

    fn compressed(&mut self, cluster: u64) -> String {
        let cluster_bytes = self.shape.cluster_bytes;
        format!(
            "write -q -c -P {} {} {cluster_bytes}",
            self.random.u64(..256),
            cluster * cluster_bytes
        )
    }

    fn vm_state(&mut self) -> Vec<String> {
        let cluster_bytes = self.shape.cluster_bytes;
        let far = cluster_bytes * (20 + self.random.u64(..9));
        vec![
            format!("write -q -b -P 7 0 {}", 3 * cluster_bytes),
            format!("write -q -b -P 8 {far} 512"),
        ]
    }

    /// A new L2 table brings the refcounts up to date on disk; the clusters it gets afterwards do not.
    fn fill_last_l2_table(&self) -> Vec<String> {
        let cluster_bytes = self.shape.cluster_bytes;
        let start = self.virtual_bytes - self.shape.l2_coverage_bytes();
        let bytes = (20 * cluster_bytes).min(384 * KIB).max(2 * cluster_bytes);
        vec![
            format!("write -q -P 3 {start} 512"),
            format!("write -q -P 4 {} {bytes}", start + cluster_bytes),
        ]
    }

    /// One request whose start and length are multiples of `unit`.
    fn anywhere(&mut self, verb: &str, unit: u64) -> String {
        let longest = (6 * self.shape.cluster_bytes).min(384 * KIB).max(unit);
        let near = (64 * self.shape.cluster_bytes).min(self.virtual_bytes);
        let range = if self.random.u64(..3) == 0 {
            near
        } else {
            self.virtual_bytes
        };
        let bytes = unit * (1 + self.random.u64(..longest / unit));
        let units = range.saturating_sub(bytes) / unit;
        format!("{verb} {} {bytes}", unit * self.random.u64(..=units))
    }
}

/// The disk of somebody who has stored holes, constants, text, noise, and halves of noise: clusters that compress to
/// nothing, to half, and not at all.
fn patterned(bytes: u64) -> Vec<u8> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut random = Rng::with_seed(7);
    let mut disk = Vec::with_capacity(bytes);
    while disk.len() < bytes {
        let half_noise: Vec<u8> = [noise(&mut random), vec![0x5a; 256]].concat();
        let stripe = match random.u64(..6) {
            0 => half_noise,
            1 => noise(&mut random),
            2 => b"The quick brown fox jumps over the lazy dog. ".to_vec(),
            3 => vec![0xee; 512],
            _ => vec![0; 512],
        };
        let times = usize::try_from(1 + random.u64(..256)).unwrap_or(1);
        disk.extend_from_slice(&stripe.repeat(times));
    }
    disk.truncate(bytes);
    disk
}

fn noise(random: &mut Rng) -> Vec<u8> {
    repeat_with(|| random.u8(..)).take(256).collect()
}
