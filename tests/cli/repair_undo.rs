//! Undo files: their names, what they mean when they are left behind, and a repair that is resumed.
//!
//! Comes in: images with repairs that were finished, cut, or never began. Goes out: whether the next verb goes on, and
//! how. Never here: the format of the file (`docs/undo-file.md`, tested where it is read and written).

use std::fs;
use std::path::Path;

use super::repair_stage::{cut_repair, with_fault};
use super::stage::{Said, Stage, bytes_of};

const LEAK: &str = "100-refcount-leak";
const TOO_LOW: &str = "113-refcount-too-low-with-snapshots";

fn bytes_at(path: &Path) -> Vec<u8> {
    fs::read(path).expect("the file can be read")
}

/// What is beside the image, but for the image.
fn beside(stage: &Stage) -> Vec<String> {
    let entries = fs::read_dir(stage.path("")).expect("the directory can be read");
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("undo"))
        .collect();
    names.sort();
    names
}

#[track_caller]
fn expect_both_ways(said: &Said, undo_file: &str) {
    let words = format!("{}{}", said.out(), said.err());
    for way in [
        "`qfsck repair --resume image`",
        &format!("`qfsck undo {undo_file}`"),
    ] {
        assert!(words.contains(way), "{way} is not in {words}");
    }
}

#[test]
fn each_repair_gets_a_name_of_its_own_and_undo_goes_back_one_by_one() {
    let stage = Stage::new();
    let mut states = Vec::new();
    let image = stage.copy(LEAK, "image");
    let names = [
        "image.qfsck-undo",
        "image.qfsck-undo.2",
        "image.qfsck-undo.3",
    ];
    for name in names {
        states.push(bytes_at(&image));
        let said = stage.qfsck(["check", "-r", "leaks", "image"]);
        said.expect_exit(0);
        assert!(
            said.err().contains(&format!("qfsck undo {name} ")),
            "{}",
            said.err()
        );
        // Another month, another leak: the first free cluster behind the last.
        let mut bytes = bytes_at(&image);
        bytes.extend([0; 512]);
        let leaked = 1024 + 2 * (bytes.len() / 512 - 1);
        bytes[leaked + 1] = 1;
        fs::write(&image, bytes).expect("the image can be written");
    }
    assert_eq!(beside(&stage), names);
    // What was leaked since is not undone: the image was used.
    stage.qfsck(["undo", names[2]]).expect_exit(1);
    let mut bytes = bytes_at(&image);
    let leaked = 1024 + 2 * (bytes.len() / 512 - 1);
    bytes[leaked + 1] = 0;
    bytes.truncate(bytes.len() - 512);
    fs::write(&image, bytes).expect("the image can be written");
    stage.qfsck(["undo", names[2]]).expect_exit(0);
    assert!(bytes_at(&image) == states[2]);
    assert_eq!(beside(&stage), names[..2]);
}

#[test]
fn names_run_out_at_ninety_nine_and_that_is_said() {
    let stage = Stage::new();
    let image = stage.copy(LEAK, "image");
    stage
        .qfsck(["check", "-q", "-r", "leaks", "image"])
        .expect_exit(0);
    for number in 2..=98 {
        let copy = stage.path(format!("image.qfsck-undo.{number}"));
        fs::copy(stage.path("image.qfsck-undo"), copy).expect("copied");
    }
    let leak = bytes_of(LEAK);
    fs::write(&image, &leak).expect("the image can be written");
    stage
        .qfsck(["check", "-q", "-r", "leaks", "image"])
        .expect_exit(0);
    assert!(stage.path("image.qfsck-undo.99").exists());
    fs::write(&image, &leak).expect("the image can be written");
    let said = stage.qfsck(["repair", "--yes", "image"]);
    said.expect_exit(1);
    assert!(said.err().contains("99 undo files"), "{}", said.err());
    assert!(bytes_at(&image) == leak, "the image changed");
    assert!(!stage.path("image.qfsck-undo.100").exists());
}

#[test]
fn a_file_of_a_repair_that_never_began_does_not_stop_the_next() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    stage.put("image.qfsck-undo", b"");
    stage
        .qfsck(["check", "-q", "-r", "leaks", "image"])
        .expect_exit(0);
    assert_eq!(beside(&stage), ["image.qfsck-undo", "image.qfsck-undo.2"]);
}

#[test]
fn a_cut_repair_under_any_name_stops_everything_but_undo_and_resume() {
    for name in [
        "image.qfsck-undo",
        "image.qfsck-undo.2",
        "image.qfsck-undo.99",
    ] {
        let stage = Stage::new();
        let image = stage.copy(TOO_LOW, "image");
        assert!(cut_repair(&image, &stage.path(name), 2));
        let cut = bytes_at(&image);
        let check = stage.qfsck(["check", "image"]);
        expect_both_ways(&check, name);
        let document = stage
            .qfsck(["check", "--output", "json", "image"])
            .document();
        assert!(
            document["unreliable"].to_string().contains("--resume"),
            "{document}"
        );
        let dry_run = stage.qfsck(["repair", "--dry-run", "image"]);
        expect_both_ways(&dry_run, name);
        let refused: [&[&str]; 4] = [
            &["repair", "--yes", "image"],
            &["repair", "--yes", "--undo-file", "elsewhere", "image"],
            &["check", "-r", "all", "image"],
            &["check", "-r", "leaks", "--undo-file", "elsewhere", "image"],
        ];
        for arguments in refused {
            let said = stage.qfsck(arguments);
            said.expect_exit(1);
            expect_both_ways(&said, name);
        }
        assert!(bytes_at(&image) == cut, "the image changed");
        assert!(!stage.path("elsewhere").exists());
        stage.qfsck(["undo", name]).expect_exit(0);
        assert!(bytes_at(&image) == bytes_of(TOO_LOW));
    }
}

#[test]
fn an_earlier_repair_is_not_undone_under_one_that_was_cut_short() {
    let stage = Stage::new();
    let image = stage.copy(LEAK, "image");
    stage
        .qfsck(["check", "-q", "-r", "leaks", "image"])
        .expect_exit(0);
    fs::rename(stage.path("image.qfsck-undo"), stage.path("first")).expect("renamed");
    stage
        .qfsck(["undo", "--image", "image", "first"])
        .expect_exit(0);
    // The same again, with a second one that has kept everything and written nothing yet.
    stage
        .qfsck(["check", "-q", "-r", "leaks", "image"])
        .expect_exit(0);
    let mut bytes = bytes_at(&image);
    bytes[1024 + 1] = 0;
    fs::write(stage.path("other"), &bytes).expect("written");
    assert!(cut_repair(
        &stage.path("other"),
        &stage.path("image.qfsck-undo.2"),
        0
    ));
    let said = stage.qfsck(["undo", "image.qfsck-undo"]);
    said.expect_exit(1);
    expect_both_ways(&said, "image.qfsck-undo.2");
}

#[test]
fn a_check_reads_little_of_an_undo_file_however_long_it_is() {
    let stage = Stage::new();
    stage.copy(TOO_LOW, "image");
    let undo_path = stage.path("image.qfsck-undo");
    assert!(cut_repair(&stage.path("image"), &undo_path, 2));
    // A hole of a tebibyte before the seals.
    let bytes = bytes_at(&undo_path);
    let file = fs::OpenOptions::new().write(true).open(&undo_path);
    let file = file.expect("it can be opened");
    let seals = bytes.len() - 1024;
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[seals..], 1 << 40).expect("written");
    let said = stage.qfsck(["check", "image"]);
    assert!(said.took.as_secs() < 5, "it took {:?}", said.took);
    assert!(
        said.out().contains("it seems that a repair was cut short"),
        "{}",
        said.out()
    );
    expect_both_ways(&said, "image.qfsck-undo");
}

#[test]
fn resume_puts_back_what_was_cut_and_repairs_anew() {
    let stage = Stage::new();
    let repaired = {
        let image = stage.copy(TOO_LOW, "whole");
        stage.qfsck(["repair", "--yes", "whole"]).expect_exit(0);
        bytes_at(&image)
    };
    for name in ["image.qfsck-undo", "image.qfsck-undo.5"] {
        for writes in 0.. {
            let image = stage.copy(TOO_LOW, "image");
            let is_cut = cut_repair(&image, &stage.path(name), writes);
            if !is_cut {
                assert!(writes >= 3, "a repair of three stages");
                fs::remove_file(stage.path(name)).expect("removed");
                break;
            }
            let said = stage.qfsck(["repair", "--resume", "--yes", "image"]);
            said.expect_exit(0);
            assert!(said.err().contains("taken back"), "{}", said.err());
            assert!(bytes_at(&image) == repaired, "{writes} writes");
            // The old file is gone, the new one leads back to the very beginning.
            assert!(stage.path("image.qfsck-undo").exists());
            stage.qfsck(["undo", "image.qfsck-undo"]).expect_exit(0);
            assert!(bytes_at(&image) == bytes_of(TOO_LOW));
            assert!(!stage.path(name).exists());
        }
    }
}

#[test]
fn resume_finds_an_undo_file_elsewhere_when_it_is_named() {
    let stage = Stage::new();
    let image = stage.copy(TOO_LOW, "image");
    assert!(cut_repair(&image, &stage.path("elsewhere.undo"), 2));
    let arguments = [
        "repair",
        "--resume",
        "--yes",
        "--undo-file",
        "elsewhere.undo",
        "image",
    ];
    stage.qfsck(arguments).expect_exit(0);
    assert!(stage.path("elsewhere.undo").exists(), "of the new repair");
    stage.qfsck(["check", "-q", "image"]).expect_exit(0);
    stage
        .qfsck(["undo", "elsewhere.undo", "--image", "image"])
        .expect_exit(0);
    assert!(bytes_at(&image) == bytes_of(TOO_LOW));
}

#[test]
fn resume_without_anything_cut_is_an_ordinary_repair_and_asks_like_one() {
    let stage = Stage::new();
    let image = stage.copy(LEAK, "image");
    let said = stage.qfsck(["repair", "--resume", "image"]);
    said.expect_exit(1);
    assert!(said.err().contains("--yes"), "{}", said.err());
    assert!(bytes_at(&image) == bytes_of(LEAK));
    let said = stage.qfsck(["repair", "--resume", "--yes", "image"]);
    said.expect_exit(0);
    assert!(
        said.err().contains("no repair of this image was cut short"),
        "{}",
        said.err()
    );
    stage.qfsck(["check", "-q", "image"]).expect_exit(0);
}

#[test]
fn resume_refuses_an_image_that_was_used_since() {
    let stage = Stage::new();
    let image = stage.copy(TOO_LOW, "image");
    assert!(cut_repair(&image, &stage.path("image.qfsck-undo"), 2));
    let mut bytes = bytes_at(&image);
    bytes[60] ^= 1;
    fs::write(&image, &bytes).expect("written");
    let said = stage.qfsck(["repair", "--resume", "--yes", "image"]);
    said.expect_exit(1);
    assert!(said.err().contains("used since"), "{}", said.err());
    assert!(bytes_at(&image) == bytes, "the image changed");
    assert!(stage.path("image.qfsck-undo").exists());
}

#[test]
fn a_resume_that_is_killed_anywhere_can_be_resumed_or_undone() {
    let calls = ["pwrite64", "fsync", "unlinkat"];
    let resume = ["repair", "--resume", "--yes", "image"];
    for call in calls {
        for number in 1.. {
            let stage = Stage::new();
            let image = stage.copy(TOO_LOW, "image");
            assert!(cut_repair(&image, &stage.path("image.qfsck-undo"), 2));
            let fault = format!("{call}:signal=KILL:when={number}");
            let Some(said) = with_fault(&stage, &fault, &resume) else {
                return;
            };
            if said.exit == Some(0) {
                assert!(number > 1, "{call} is never called");
                break;
            }
            let (killed, left) = (bytes_at(&image), beside(&stage));
            let kept: Vec<_> = left
                .iter()
                .map(|name| bytes_at(&stage.path(name)))
                .collect();
            stage.qfsck(resume).expect_exit(0);
            stage.qfsck(["check", "-q", "image"]).expect_exit(0);
            // And the other way, from the same state.
            fs::write(&image, &killed).expect("written");
            for name in beside(&stage) {
                fs::remove_file(stage.path(name)).expect("removed");
            }
            for (name, bytes) in left.iter().zip(kept) {
                stage.put(name, &bytes);
            }
            if let [undo_file] = left.as_slice() {
                let said = stage.qfsck(["undo", undo_file]);
                let is_untouched =
                    said.err().contains("never began") || said.err().contains("no whole header");
                assert!(
                    said.exit == Some(0) || is_untouched,
                    "{call} {number}: {}",
                    said.err()
                );
            } else {
                assert_eq!(left, [""; 0], "{call} {number}: one file at most");
            }
            assert!(
                bytes_at(&image) == bytes_of(TOO_LOW),
                "{call} {number}: not as it was, with {left:?}"
            );
        }
    }
}

#[test]
fn an_undo_file_that_cannot_be_written_is_removed_and_the_image_untouched() {
    for fault in [
        "pwrite64:error=ENOSPC:when=1",
        "pwrite64:error=ENOSPC:when=3",
        "fsync:error=EIO:when=1",
        "fsync:error=EIO:when=3",
    ] {
        let stage = Stage::new();
        let image = stage.copy(TOO_LOW, "image");
        let Some(said) = with_fault(&stage, fault, &["repair", "--yes", "image"]) else {
            return;
        };
        said.expect_exit(1);
        assert!(
            said.err().contains("the image was not changed"),
            "{fault}: {}",
            said.err()
        );
        assert!(bytes_at(&image) == bytes_of(TOO_LOW), "{fault}");
        assert_eq!(beside(&stage), [""; 0], "{fault}");
    }
}

#[test]
fn a_disk_that_fails_half_way_leaves_both_ways_open() {
    for number in 3..20 {
        let stage = Stage::new();
        let image = stage.copy(TOO_LOW, "image");
        let fault = format!("fsync:error=EIO:when={number}");
        let arguments = ["check", "-r", "all", "--output", "json", "image"];
        let Some(said) = with_fault(&stage, &fault, &arguments) else {
            return;
        };
        if said.exit == Some(0) {
            assert!(number > 5, "a repair has more syncs than {number}");
            return;
        }
        said.expect_exit(1);
        let document = said.document();
        if beside(&stage).is_empty() {
            continue;
        }
        assert!(document["repair"]["failure"].is_string(), "{document}");
        expect_both_ways(&said, "image.qfsck-undo");
        let half = bytes_at(&image);
        let undo_file = bytes_at(&stage.path("image.qfsck-undo"));
        stage.qfsck(["undo", "image.qfsck-undo"]).expect_exit(0);
        assert!(bytes_at(&image) == bytes_of(TOO_LOW));
        fs::write(&image, half).expect("written");
        stage.put("image.qfsck-undo", &undo_file);
        let resume = ["repair", "--resume", "--yes", "image"];
        // If only the last seal failed to become durable, it is there all the same.
        stage.qfsck(resume).expect_exit(0);
        stage.qfsck(["check", "-q", "image"]).expect_exit(0);
    }
}
