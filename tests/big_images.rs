//! The images of the benchmark are what their names say: valid ones are clean, damaged ones have exactly the findings
//! they were made with, and `qemu-img check` agrees.
//!
//! Comes in: every case, at a scale that takes a blink. Never here: time.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use qfsck::{Image, ImageFile, Options, Progress, Severity, Sharing, Verdict};
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

fn checked(path: &Path) -> qfsck::Check {
    checked_within(path, None)
}

fn checked_within(path: &Path, max_memory_bytes: Option<u64>) -> qfsck::Check {
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
