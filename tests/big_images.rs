//! The images of the benchmark are what their names say: valid ones are clean, damaged ones have exactly the findings
//! they were made with, and `qemu-img check` agrees.
//!
//! Comes in: every case, at a scale that takes a blink. Never here: time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use qfsck::{Check, Image, ImageFile, Options, Progress, Severity, Sharing, Storage, Verdict};
use rayon::ThreadPoolBuilder;
use tempfile::TempDir;

use crate::support::big_images::{CASES, Case, Damage, Layout, Scale};
use crate::support::qemu;

/// Every case as small as can be and a little larger, and snapshots of more than one L2 table.
fn small_images() -> impl Iterator<Item = (&'static Case, Scale)> {
    let each = |divisor| CASES.iter().map(move |case| (case, Scale { divisor }));
    let with_snapshots = CASES.iter().filter(|case| case.shape.snapshots == 50);
    let several_tables = with_snapshots.map(|case| (case, Scale { divisor: 8 }));
    each(2048).chain(each(1000)).chain(several_tables)
}

/// A case written to a file in a directory of its own.
fn written(case: &Case, scale: Scale) -> (TempDir, Layout, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.qcow2");
    let layout = case.layout(scale);
    let file = File::create_new(&path).expect("a file");
    layout.write(&file).expect("the image can be written");
    (directory, layout, path)
}

fn checked(path: &Path) -> Check {
    checked_within(path, None)
}

fn checked_within(path: &Path, max_memory_bytes: Option<u64>) -> Check {
    let file = ImageFile::open(path, Sharing::Protected).expect("a file");
    let image = Image::open(file, path).expect("an image");
    let options = Options {
        max_memory_bytes,
        ..Options::default()
    };
    qfsck::check(&image, options, &Progress::default())
}

/// Images of several regions of 32,768 clusters each, so that there is something to divide.
#[test]
fn several_passes_in_little_memory_find_the_same() {
    let cases = [
        ("1tib-64k", 64),
        ("1tib-64k-random", 64),
        ("16gib-512b", 128),
        ("256gib-4k-random", 512),
        ("snapshots-50", 8),
        ("snapshots-500", 4),
        ("compressed", 64),
        ("refcount-1-bit", 64),
        ("sparse-tail", 64),
        ("leaks", 64),
        ("copied", 64),
        ("refcount-table-lost", 64),
    ];
    for (name, divisor) in cases {
        let case = CASES.iter().find(|case| case.name == name).expect(name);
        let (_directory, _, path) = written(case, Scale { divisor });
        let whole = checked(&path);
        for max_memory_bytes in [0, 100 << 10] {
            let divided = checked_within(&path, Some(max_memory_bytes));
            assert!(divided == whole, "{name} within {max_memory_bytes} bytes");
        }
    }
}

/// A disk with sectors that cannot be read, from the so-manieth read on.
struct Failing<'a> {
    file: &'a ImageFile,
    bad: &'a [u64],
    from: usize,
    reads: &'a Mutex<Vec<u64>>,
}

impl Storage for Failing<'_> {
    fn length_bytes(&self) -> io::Result<u64> {
        self.file.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = {
            let mut reads = self.reads.lock().expect("nobody panics with it");
            reads.push(offset);
            reads.len()
        };
        let end = offset + buffer.len() as u64;
        let is_bad = self.bad.iter().any(|bad| (offset..end).contains(bad));
        if is_bad && read > self.from {
            return Err(io::Error::other("bad sector"));
        }
        self.file.read_at(offset, buffer)
    }
}

/// What a check of a failing disk finds, and the places it read.
fn checked_failing(path: &Path, bad: &[u64], from: usize, max: Option<u64>) -> (Check, Vec<u64>) {
    let file = ImageFile::open(path, Sharing::Protected).expect("a file");
    let reads = Mutex::new(Vec::new());
    let disk = Failing {
        file: &file,
        bad,
        from,
        reads: &reads,
    };
    let options = Options {
        max_memory_bytes: max,
        ..Options::default()
    };
    let pool = ThreadPoolBuilder::new().num_threads(1).build();
    let check = pool.expect("a thread").install(|| {
        let image = Image::open(&disk, path).expect("the header can be read");
        qfsck::check(&image, options, &Progress::default())
    });
    (check, reads.into_inner().expect("nobody panicked with it"))
}

/// The gaps, whatever their order: each pass comes to some of them.
fn gaps(check: &Check) -> BTreeSet<String> {
    let gaps = check.coverage.gaps().iter();
    gaps.map(|gap| format!("{gap:?}")).collect()
}

#[test]
fn several_passes_over_what_cannot_be_read_find_and_miss_the_same() {
    let mut compared = 0;
    for (name, divisor) in [("16gib-512b", 256), ("snapshots-50", 8)] {
        let case = CASES.iter().find(|case| case.name == name).expect(name);
        let (_directory, _, path) = written(case, Scale { divisor });
        let (_, places) = checked_failing(&path, &[], 0, None);
        let places: BTreeSet<u64> = places.into_iter().filter(|place| *place > 0).collect();
        let places: Vec<u64> = places.into_iter().collect();
        for step in [1, 4] {
            // One place, or several far apart.
            let every = (places.len() / step).max(1);
            let bad: Vec<u64> = places
                .iter()
                .copied()
                .skip(every / 2)
                .step_by(every)
                .collect();
            let (whole, _) = checked_failing(&path, &bad, 0, None);
            assert!(whole.coverage.unreadable_count() > 0, "{name} {bad:x?}");
            let (divided, _) = checked_failing(&path, &bad, 0, Some(0));
            let about = format!("{name}, {bad:x?}");
            assert!(divided.findings == whole.findings, "{about}");
            assert_eq!(gaps(&divided), gaps(&whole), "{about}");
            assert_eq!(
                divided.coverage.gap_count(),
                whole.coverage.gap_count(),
                "{about}"
            );
            assert_eq!(divided.statistics, whole.statistics, "{about}");
            assert_eq!(divided.verdict, whole.verdict, "{about}");
            compared += 1;
        }
    }
    println!("{compared} checks in several passes compared with one pass");
}

#[test]
fn what_fails_in_a_later_pass_only_is_a_gap_too() {
    let case = CASES.iter().find(|case| case.name == "16gib-512b");
    let (_directory, _, path) = written(case.expect("the case"), Scale { divisor: 256 });
    let (whole, once) = checked_failing(&path, &[], 0, None);
    let (_, places) = checked_failing(&path, &[], 0, Some(0));
    assert!(places.len() > once.len(), "it takes no second pass");
    assert_eq!(whole.verdict, Verdict::Clean);
    let mut faults = 0;
    for at in (1..places.len()).step_by(places.len() / 20) {
        let (check, _) = checked_failing(&path, &places[at..=at], at, Some(0));
        assert!(check.coverage.unreadable_count() > 0, "read {at}");
        assert_eq!(check.verdict, Verdict::Unreadable, "read {at}");
        assert_eq!(check.findings.totals().count(), 0, "read {at}");
        faults += 1;
    }
    println!("{faults} reads failed from some pass on");
}

#[test]
fn big_images_have_exactly_the_findings_they_are_made_with() {
    for (case, scale) in small_images() {
        let (_directory, layout, path) = written(case, scale);
        let expected = layout.expected();
        let check = checked(&path);
        let found = [Severity::Leak, Severity::Corruption]
            .map(|severity| check.findings.count_of(severity));
        assert_eq!(
            found,
            [expected.leaks, expected.corruptions],
            "{} {scale:?}",
            case.name
        );
        let is_clean = check.verdict == Verdict::Clean;
        assert_eq!(is_clean, case.shape.damage == Damage::None, "{}", case.name);
        assert_eq!(
            check.statistics.image_end_offset, expected.file_bytes,
            "{}",
            case.name
        );
    }
}

#[test]
fn qemu_img_agrees_about_big_images() {
    if qemu::tools().is_none() {
        return;
    }
    for (case, scale) in small_images() {
        let (_directory, layout, path) = written(case, scale);
        let mut command = Command::new("qemu-img");
        let command = command.args(["check", "--output=json"]).arg(&path);
        // It may have a line for each cluster to say.
        let said = command.stderr(Stdio::null()).output().expect("it runs");
        let answer: serde_json::Value = serde_json::from_slice(&said.stdout).expect("an answer");
        let number = |key| {
            answer
                .get(key)
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0)
        };
        let expected = layout.expected();
        assert_eq!(number("leaks"), expected.leaks, "{} {scale:?}", case.name);
        assert_eq!(
            number("corruptions"),
            expected.corruptions,
            "{} {scale:?}",
            case.name
        );
        assert_eq!(number("check-errors"), 0, "{}", case.name);
        assert_eq!(
            number("image-end-offset"),
            expected.file_bytes,
            "{}",
            case.name
        );
    }
}

#[test]
fn big_images_hold_metadata_and_holes() {
    for (case, scale) in small_images() {
        let (_directory, layout, path) = written(case, scale);
        let metadata: u64 = layout
            .metadata_extents()
            .iter()
            .map(|(_, length)| length)
            .sum();
        let on_disk = fs::metadata(&path).expect("the file is there").blocks() * 512;
        // File systems have pages, and notes of their own about where the holes are.
        let slack = (1 << 20)
            + if case.shape.cluster_bits < 12 {
                8 * metadata
            } else {
                metadata / 4
            };
        let lost_blocks = layout.blocks * layout.cluster_bytes;
        assert!(
            on_disk <= metadata + lost_blocks + slack,
            "{}: {on_disk} {metadata}",
            case.name
        );
    }
}

#[test]
fn every_case_has_a_name_of_its_own() {
    for (index, case) in CASES.iter().enumerate() {
        let first = CASES.iter().position(|other| other.name == case.name);
        assert_eq!(first, Some(index), "{}", case.name);
    }
}

#[test]
fn every_case_can_be_laid_out_at_full_size() {
    for case in &CASES {
        let layout = case.layout(Scale::FULL);
        assert!(layout.expected().file_bytes > 0, "{}", case.name);
        assert!(layout.front_blocks <= layout.blocks, "{}", case.name);
    }
}
