//! Undo files that nobody can vouch for: each may be the way back from a repair that was cut short.
//!
//! Comes in: images with repairs that were cut, and what became of their undo files since. Goes out: that nothing is
//! written over the image, and that a check says so. Never here: undo files that are whole and ours (`repair_undo`).

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use super::repair_stage::cut_repair;
use super::stage::{Stage, bytes_of, is_root, skip};

const PLAIN: &str = "002-v3-plain";
const LEAK: &str = "100-refcount-leak";
const TOO_LOW: &str = "113-refcount-too-low-with-snapshots";
const SHARED: &str = "173-data-on-l2";
const UNDO_FILE: &str = "image.qfsck-undo";

fn bytes_at(path: &Path) -> Vec<u8> {
    fs::read(path).expect("the file can be read")
}

/// Nothing is written to the image, whatever undo file is named, and everybody hears this word.
#[track_caller]
fn expect_kept_from(stage: &Stage, word: &str) {
    let image = stage.path("image");
    let before = bytes_at(&image);
    let report = stage.qfsck(["check", "image"]).out();
    let line = report.lines().find(|line| line.contains(word));
    assert!(
        line.is_some_and(|line| line.starts_with("unreliable: ")),
        "{word}: {report}"
    );
    let document = stage.qfsck(["check", "--output", "json", "image"]);
    let reasons = document.document()["unreliable"].to_string();
    assert!(reasons.contains(word), "{word}: {reasons}");
    let dry_run = stage.qfsck(["repair", "--dry-run", "image"]);
    assert!(dry_run.err().contains(word), "{word}: {}", dry_run.err());
    let refused: [&[&str]; 6] = [
        &["repair", "--yes", "image"],
        &["repair", "--yes", "--undo-file", "elsewhere", "image"],
        &["repair", "--resume", "--yes", "image"],
        &[
            "repair",
            "--resume",
            "--yes",
            "--undo-file",
            "elsewhere",
            "image",
        ],
        &["check", "-r", "all", "image"],
        &["check", "-r", "leaks", "--undo-file", "elsewhere", "image"],
    ];
    for arguments in refused {
        let said = stage.qfsck(arguments);
        said.expect_exit(1);
        let words = said.err();
        assert!(words.contains(word), "{arguments:?}: {word}: {words}");
        for lure in ["another --undo-file", "no repair of this image"] {
            assert!(!words.contains(lure), "{arguments:?}: {words}");
        }
    }
    assert!(bytes_at(&image) == before, "{word}: the image changed");
    assert!(!stage.path("elsewhere").exists(), "{word}");
}

/// What became of an undo file, and the word for it.
type Fate = (&'static str, fn(&Path));

#[test]
fn a_way_back_that_nobody_can_vouch_for_stops_every_repair_and_a_check_says_so() {
    let given_away: Fate = ("run qfsck as its owner", |path| {
        chown(path, Some(65_534), None).expect("root may give files away");
    });
    let fates: [Fate; 5] = [
        ("others can write to", |path| {
            fs::set_permissions(path, Permissions::from_mode(0o664)).expect("changed");
        }),
        ("is damaged at byte", |path| {
            let mut bytes = bytes_at(path);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).expect("written");
        }),
        ("is an undo file of version 9", |path| {
            let mut bytes = bytes_at(path);
            bytes[11] = 9;
            fs::write(path, bytes).expect("written");
        }),
        ("is not an undo file", |path| {
            fs::write(path, b"precious").expect("written");
        }),
        ("cannot be read", |path| {
            fs::remove_file(path).expect("removed");
            fs::create_dir(path).expect("made");
        }),
    ];
    let mut fates = fates.to_vec();
    if is_root() {
        fates.push(given_away);
    } else {
        skip("only root may give files away");
    }
    for (word, befall) in fates {
        let stage = Stage::new();
        let image = stage.copy(TOO_LOW, "image");
        assert!(cut_repair(&image, &stage.path(UNDO_FILE), 2));
        befall(&stage.path(UNDO_FILE));
        expect_kept_from(&stage, word);
    }
}

#[test]
fn a_way_back_that_is_made_ours_again_leads_back() {
    let stage = Stage::new();
    let image = stage.copy(TOO_LOW, "image");
    let undo_path = stage.path(UNDO_FILE);
    assert!(cut_repair(&image, &undo_path, 2));
    fs::set_permissions(&undo_path, Permissions::from_mode(0o666)).expect("changed");
    let repair = ["repair", "--yes", "--undo-file", "elsewhere", "image"];
    stage.qfsck(repair).expect_exit(1);
    stage.qfsck(["undo", UNDO_FILE]).expect_exit(1);
    fs::set_permissions(&undo_path, Permissions::from_mode(0o600)).expect("changed");
    stage.qfsck(["undo", UNDO_FILE]).expect_exit(0);
    assert!(bytes_at(&image) == bytes_of(TOO_LOW));
}

#[test]
fn a_way_back_that_was_cut_off_is_not_taken_for_one_of_a_repair_that_never_began() {
    let stage = Stage::new();
    let image = stage.copy(SHARED, "image");
    let undo_path = stage.path(UNDO_FILE);
    let mut writes = 3;
    while cut_repair(&image, &undo_path, writes) && bytes_at(&image) == bytes_of(SHARED) {
        fs::remove_file(&undo_path).expect("removed");
        writes += 1;
    }
    let cut = bytes_at(&image);
    assert!(cut != bytes_of(SHARED), "the repair has begun");
    let whole = bytes_at(&undo_path);
    // Without its seals, and the last of what it kept.
    fs::write(&undo_path, &whole[..whole.len() - 1536]).expect("written");
    let word = "is cut off, and the image differs from what it holds";
    expect_kept_from(&stage, word);
    // However long it is.
    let file = fs::OpenOptions::new().write(true).open(&undo_path);
    let file = file.expect("it can be opened");
    file.set_len(100 << 20).expect("it can be made longer");
    expect_kept_from(&stage, word);
    for arguments in [&["undo", UNDO_FILE][..], &["undo", "--dry-run", UNDO_FILE]] {
        let said = stage.qfsck(arguments);
        said.expect_exit(1);
        assert!(said.err().contains("is cut off"), "{}", said.err());
    }
    // With a whole copy of it there is a way back.
    fs::write(&undo_path, &whole).expect("written");
    stage.qfsck(["undo", UNDO_FILE]).expect_exit(0);
    assert!(bytes_at(&image) == bytes_of(SHARED));
}

#[test]
fn what_a_repair_that_never_began_left_is_explained_by_the_repair_that_came_after_it() {
    let stage = Stage::new();
    let image = stage.copy(TOO_LOW, "image");
    let undo_path = stage.path(UNDO_FILE);
    assert!(cut_repair(&image, &undo_path, 0));
    assert!(bytes_at(&image) == bytes_of(TOO_LOW), "nothing is written");
    let whole = bytes_at(&undo_path);
    fs::write(&undo_path, &whole[..whole.len() - 1024]).expect("written");
    let said = stage.qfsck(["undo", UNDO_FILE]);
    said.expect_exit(1);
    assert!(said.err().contains("never began"), "{}", said.err());
    stage.qfsck(["repair", "--yes", "image"]).expect_exit(0);
    assert!(bytes_at(&image) != bytes_of(TOO_LOW), "it is repaired");
    let second = stage.path("image.qfsck-undo.2");
    assert!(second.exists());
    let check = stage.qfsck(["check", "image"]);
    check.expect_exit(0);
    assert!(!check.out().contains("unreliable"), "{}", check.out());
    // Without the second one, nobody can tell that it was not this repair.
    fs::remove_file(second).expect("removed");
    let check = stage.qfsck(["check", "image"]);
    assert!(check.out().contains("is cut off"), "{}", check.out());
}

#[test]
fn a_dry_run_of_an_undo_refuses_what_the_undo_refuses() {
    let stage = Stage::new();
    let image = stage.copy(LEAK, "image");
    stage.qfsck(["repair", "--yes", "image"]).expect_exit(0);
    let said = stage.qfsck(["undo", "--dry-run", UNDO_FILE]);
    said.expect_exit(0);
    assert!(said.err().contains("would be put back"), "{}", said.err());
    let repaired = bytes_at(&image);
    let mut used = repaired.clone();
    used.extend([0; 512]);
    fs::write(&image, &used).expect("written");
    for arguments in [&["undo", "--dry-run", UNDO_FILE][..], &["undo", UNDO_FILE]] {
        let said = stage.qfsck(arguments);
        said.expect_exit(1);
        assert!(said.err().contains("was used since"), "{}", said.err());
    }
    fs::remove_file(&image).expect("removed");
    let said = stage.qfsck(["undo", "--dry-run", UNDO_FILE]);
    said.expect_exit(1);
    assert!(said.err().contains("No such file"), "{}", said.err());
    fs::write(&image, &repaired).expect("written");
    let undo_file = bytes_at(&stage.path(UNDO_FILE));
    stage.qfsck(["undo", "--dry-run", UNDO_FILE]).expect_exit(0);
    assert!(bytes_at(&image) == repaired && bytes_at(&stage.path(UNDO_FILE)) == undo_file);
}

#[test]
fn behind_a_link_the_undo_file_stands_beside_the_image_itself() {
    let stage = Stage::new();
    for name in ["pool", "vm"] {
        fs::create_dir(stage.path(name)).expect("made");
    }
    let image = stage.copy(TOO_LOW, "pool/real");
    symlink("../pool/real", stage.path("vm/disk")).expect("linked");
    stage.qfsck(["repair", "--yes", "vm/disk"]).expect_exit(0);
    let undo_path = stage.path("pool/real.qfsck-undo");
    assert!(undo_path.exists());
    assert!(!stage.path("vm/disk.qfsck-undo").exists());
    stage.qfsck(["undo", "pool/real.qfsck-undo"]).expect_exit(0);
    assert!(bytes_at(&image) == bytes_of(TOO_LOW));
    // A cut is seen by both names, and so is one of an undo file that stands beside the link.
    for name in ["pool/real.qfsck-undo", "vm/disk.qfsck-undo"] {
        assert!(cut_repair(&image, &stage.path(name), 2));
        let words = stage.qfsck(["check", "vm/disk"]).out();
        assert!(words.contains("a repair was cut short"), "{words}");
        assert!(words.contains("`qfsck repair --resume vm/disk`"), "{words}");
        let resume = ["repair", "--resume", "--yes", "vm/disk"];
        stage.qfsck(resume).expect_exit(0);
        stage.qfsck(["undo", "pool/real.qfsck-undo"]).expect_exit(0);
        assert!(bytes_at(&image) == bytes_of(TOO_LOW));
    }
    assert!(cut_repair(&image, &undo_path, 2));
    let words = stage.qfsck(["check", "pool/real"]).out();
    assert!(words.contains("a repair was cut short"), "{words}");
}

#[test]
fn an_audit_has_a_cut_repair_in_the_record_as_long_as_its_undo_file_is_there() {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("made");
    let image = stage.copy(TOO_LOW, "images/vm");
    let undo_path = stage.path("images/vm.qfsck-undo");
    assert!(cut_repair(&image, &undo_path, 2));
    // Else the image has its turn in one night of seven, by chance of its path.
    let seldom = ["--full-every", "3650"];
    let audit = ["audit", "--state", "state", "--output", "jsonl", "images"];
    let audit = [&audit[..], &seldom].concat();
    for is_carried in [false, true] {
        let said = stage.qfsck(&audit);
        let records = said.documents();
        let record = records.iter().find(|record| record["image"].is_string());
        let record = record.expect("a record");
        assert_eq!(record["carried"].as_bool().unwrap_or(false), is_carried);
        let reasons = record["unreliable"].to_string();
        assert!(reasons.contains("--resume"), "{record}");
    }
    let human = stage.qfsck(["audit", "images"]);
    let words = format!("{}{}", human.out(), human.err());
    assert!(words.contains("a repair was cut short"), "{words}");
    fs::remove_file(undo_path).expect("removed");
    let records = stage.qfsck(&audit).documents();
    assert!(
        records
            .iter()
            .all(|record| record.get("unreliable").is_none())
    );
}

#[test]
fn a_clean_image_is_checked_whatever_stands_beside_it_under_an_undo_files_name() {
    let stage = Stage::new();
    let image = stage.copy(PLAIN, "image");
    fs::write(stage.path(UNDO_FILE), b"precious").expect("written");
    let word = "is not an undo file";
    for what in ["leaks", "all"] {
        let said = stage.qfsck(["check", "-r", what, "image"]);
        said.expect_exit(0);
        assert!(said.out().contains(word), "{}", said.out());
    }
    assert!(bytes_at(&image) == bytes_of(PLAIN));
    assert_eq!(bytes_at(&stage.path(UNDO_FILE)), b"precious");
    // Where there is something to write, it is not written.
    stage.copy(LEAK, "image");
    let said = stage.qfsck(["check", "-r", "leaks", "image"]);
    said.expect_exit(1);
    assert!(said.err().contains(word), "{}", said.err());
    assert!(bytes_at(&image) == bytes_of(LEAK));
}
