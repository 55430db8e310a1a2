//! An audit among people who wish it ill, on disks that fail it.
//!
//! Comes in: hostile directories, disks that are full or not mounted, state directories that are none. Goes out: records
//! that say no more than was seen, exit codes that say what was not. Never here: an image that was changed.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::audit::{peak_kibibytes, statuses};
use super::locks::set_lock;
use super::stage::{LargeImage, QFSCK, Said, Stage, bytes_of, has_tools, is_root, skip};

/// A stage with images in `images/a` and `images/b`, three in each: one damaged, one leaky, one clean.
fn fleet() -> Stage {
    let stage = Stage::new();
    for directory in ["a", "b"] {
        fs::create_dir_all(stage.path(format!("images/{directory}"))).expect("it can be made");
        for (name, case) in [
            ("broken", "104-refcount-zero-data"),
            ("leaky", "100-refcount-leak"),
            ("good", "002-v3-plain"),
        ] {
            stage.copy(case, format!("images/{directory}/{name}"));
        }
    }
    stage
}

fn night(stage: &Stage) -> Said {
    stage.qfsck(["audit", "--state", "state", "images"])
}

fn night_jsonl(stage: &Stage) -> Said {
    stage.qfsck(["audit", "--state", "state", "--output", "jsonl", "images"])
}

fn diff(stage: &Stage, old: u32, new: u32) -> String {
    let report = |night: u32| format!("state/nights/{night:08}.jsonl");
    let said = stage.qfsck(["audit", "diff", &report(old), &report(new)]);
    said.expect_exit(0).out()
}

const NOTHING_NEW: &str = "0 newly damaged, 0 worse, 0 healed, 0 still busy, 0 new, 0 gone\n";

#[test]
fn a_directory_whose_disk_is_not_mounted_makes_no_image_gone_or_healed() {
    let stage = fleet();
    night(&stage).expect_exit(0);
    // One of two disks; then the whole root as an empty directory; then no root; then something else mounted over it.
    let aside = |from: &str| fs::rename(stage.path(from), stage.path("aside"));
    let back = |to: &str| {
        let _other = fs::remove_dir_all(stage.path(to));
        fs::rename(stage.path("aside"), stage.path(to)).expect("it can be renamed");
    };
    let check = |lost: usize, place: &str| {
        let said = night_jsonl(&stage);
        said.expect_exit(8);
        assert!(said.err().contains(place), "{}", said.err());
        let documents = said.documents();
        let unfinished = documents
            .iter()
            .filter(|record| record["status"] == "unfinished");
        assert_eq!(unfinished.count(), lost, "{documents:?}");
        assert!(documents.iter().all(|record| record["status"] != "gone"));
        assert!(!said.err().contains("newly damaged"), "{}", said.err());
        assert!(!said.err().contains("healed"), "{}", said.err());
    };
    aside("images/a").expect("it can be renamed");
    fs::create_dir(stage.path("images/a")).expect("it can be made");
    check(3, "images/a");
    assert_eq!(diff(&stage, 1, 2), NOTHING_NEW);
    back("images/a");
    aside("images").expect("it can be renamed");
    fs::create_dir(stage.path("images")).expect("it can be made");
    check(6, "is its disk mounted?");
    fs::remove_dir(stage.path("images")).expect("it can be removed");
    check(6, "No such file");
    fs::create_dir_all(stage.path("images/lost+found")).expect("it can be made");
    check(6, "is its disk mounted?");
    assert_eq!(diff(&stage, 1, 5), NOTHING_NEW);
    back("images");
    let said = night(&stage);
    said.expect_exit(0);
    assert!(said.out().contains("night 6: 6 images"), "{}", said.out());
    assert_eq!(diff(&stage, 1, 6), NOTHING_NEW);
    // One that is removed beside others is gone, and that is said once.
    fs::remove_file(stage.path("images/a/broken")).expect("it can be removed");
    assert!(night(&stage).expect_exit(0).out().contains("1 gone"));
    assert!(!night(&stage).expect_exit(0).out().contains("gone"));
}

#[test]
fn a_list_made_while_a_disk_is_not_mounted_calls_nothing_gone_either() {
    let stage = fleet();
    let round = |night: &str, since: &[&str], exit: i32| {
        let plan = [
            "audit",
            "plan",
            "images",
            "--out",
            "work.jsonl",
            "--night",
            night,
        ];
        let said = stage.qfsck([&plan[..], since].concat());
        said.expect_exit(exit);
        let run = ["audit", "run", "--work", "work.jsonl", "--out", "out"];
        stage.qfsck(run).expect_exit(0);
        let report = format!("{night}.jsonl");
        let merge = [
            "audit",
            "merge",
            "--work",
            "work.jsonl",
            "out",
            "--report",
            &report,
        ];
        stage.qfsck(merge).expect_exit(0);
        fs::read_to_string(stage.path(report)).expect("there is a report")
    };
    round("100", &[], 0);
    for (night, empty) in [("101", true), ("102", false)] {
        fs::rename(stage.path("images"), stage.path("aside")).expect("it can be renamed");
        if empty {
            fs::create_dir(stage.path("images")).expect("it can be made");
        }
        let rows = round(night, &["--since", "100.jsonl"], 8);
        assert_eq!(
            rows.matches("\"status\":\"unfinished\"").count(),
            6,
            "{rows}"
        );
        let said = stage.qfsck(["audit", "diff", "100.jsonl", &format!("{night}.jsonl")]);
        assert_eq!(said.expect_exit(0).out(), NOTHING_NEW);
        let _empty = fs::remove_dir(stage.path("images"));
        fs::rename(stage.path("aside"), stage.path("images")).expect("it can be renamed");
    }
    // Gone is said once.
    fs::remove_file(stage.path("images/b/leaky")).expect("it can be removed");
    let rows = round("103", &["--since", "102.jsonl"], 0);
    assert_eq!(rows.matches("\"status\":\"gone\"").count(), 1, "{rows}");
    let rows = round("104", &["--since", "103.jsonl"], 0);
    assert_eq!(rows.lines().count(), 5, "{rows}");
}

#[test]
fn nights_that_are_left_out_take_no_turn_with_them() {
    let stage = fleet();
    let plan = |night: &str, since: &[&str]| {
        let plan = [
            "audit",
            "plan",
            "images",
            "--out",
            "work.jsonl",
            "--night",
            night,
        ];
        stage.qfsck([&plan[..], since].concat()).expect_exit(0);
        fs::read_to_string(stage.path("work.jsonl")).expect("there is a list")
    };
    plan("100", &[]);
    let run = ["audit", "run", "--work", "work.jsonl", "--out", "out"];
    stage.qfsck(run).expect_exit(0);
    let merge = [
        "audit",
        "merge",
        "--work",
        "work.jsonl",
        "out",
        "--report",
        "100.jsonl",
    ];
    stage.qfsck(merge).expect_exit(0);
    // Every seventh day is the same day of the round, every time.
    let due = |night: &str| {
        plan(night, &["--since", "100.jsonl"])
            .matches("\"full\":true")
            .count()
    };
    assert_eq!(due("107"), 6);
    assert!(due("101") < 6);
}

#[test]
fn an_ignore_file_that_is_none_holds_nobody_up_and_hides_nothing() {
    let stage = fleet();
    fs::create_dir_all(stage.path("images/a/deep")).expect("it can be made");
    stage.copy("002-v3-plain", "images/a/deep/one");
    mkfifo(&stage.path("images/a/.qfsckignore"), Mode::S_IRWXU).expect("a FIFO can be made");
    mkfifo(&stage.path("elsewhere"), Mode::S_IRWXU).expect("a FIFO can be made");
    symlink("../../elsewhere", stage.path("images/b/.qfsckignore")).expect("a link can be made");
    let audit = |root: &str, count: usize| {
        let said = stage.qfsck(["audit", "--output", "jsonl", "--exclude", "leaky", root]);
        said.expect_exit(8);
        assert!(said.err().contains(".qfsckignore"), "{}", said.err());
        assert_eq!(said.documents().len(), count, "{}", said.out());
    };
    audit("images", 5);
    audit("images/a", 3);
    fs::remove_file(stage.path("images/a/.qfsckignore")).expect("it can be removed");
    fs::remove_file(stage.path("images/b/.qfsckignore")).expect("it can be removed");
    stage.put("images/a/.qfsckignore", &b"*\n".repeat(600_000));
    audit("images", 5);
}

/// Runs qfsck as somebody whom directories can be closed to.
fn as_nobody(stage: &Stage, arguments: &[&str]) -> Said {
    let program = stage.path("qfsck");
    if !program.exists() && fs::hard_link(QFSCK, &program).is_err() {
        fs::copy(QFSCK, &program).expect("the program can be copied");
    }
    let mut command = Command::new(program);
    command.args(arguments);
    if is_root() {
        command.uid(65_534).gid(65_534);
    }
    stage.run_command(command)
}

fn close(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions can be set");
}

#[test]
fn what_is_in_a_directory_that_cannot_be_listed_is_neither_forgotten_nor_gone() {
    let stage = fleet();
    for directory in ["", "images", "images/a", "images/b"] {
        close(&stage.path(directory), 0o755);
    }
    fs::create_dir(stage.path("state")).expect("it can be made");
    close(&stage.path("state"), 0o777);
    let night = |exit: i32| {
        let arguments = ["audit", "--state", "state", "--output", "jsonl", "images"];
        let said = as_nobody(&stage, &arguments);
        said.expect_exit(exit);
        let status = |name: &str| {
            let documents = said.documents();
            let mut of_name = documents.iter().filter(|record| {
                record["image"]
                    .as_str()
                    .is_some_and(|path| path.ends_with(name))
            });
            of_name
                .next()
                .map(|record| record["status"].as_str().expect("a word").to_owned())
        };
        (status("a/broken"), status("b/good"), said.err())
    };
    let word = |word: &str| Some(word.to_owned());
    let (broken, good, _) = night(0);
    assert_eq!((broken, good), (word("do-not-boot"), word("clean")));
    // It can be entered, not listed: what is known to be in it is looked at as before.
    close(
        &stage.path("images/a"),
        if is_root() { 0o711 } else { 0o311 },
    );
    let (broken, good, said) = night(8);
    assert_eq!((broken, good), (word("do-not-boot"), word("clean")));
    assert!(said.contains("images/a: Permission denied"), "{said}");
    // It cannot be entered: nobody knows.
    close(&stage.path("images/a"), if is_root() { 0o700 } else { 0 });
    let (broken, _, _) = night(8);
    assert_eq!(broken, word("unreadable"));
    close(&stage.path("images/a"), 0o755);
    let (broken, _, said) = night(0);
    assert_eq!(broken, word("do-not-boot"));
    assert!(said.contains("night 4: 6 images"), "{said}");
}

#[test]
fn results_replace_no_image_and_no_pipe() {
    let stage = fleet();
    let image = "images/a/good";
    let before = fs::read(stage.path(image)).expect("it can be read");
    let said = stage.qfsck(["audit", "--metrics", image, "images"]);
    said.expect_exit(8);
    assert!(said.err().contains("it is an image"), "{}", said.err());
    for arguments in [
        ["audit", "plan", "images", "--out", image],
        ["audit", "plan", "images/a", "--out", image],
    ] {
        stage.qfsck(arguments).expect_exit(8);
    }
    assert!(fs::read(stage.path(image)).expect("it can be read") == before);
    mkfifo(&stage.path("pipe"), Mode::S_IRWXU).expect("a FIFO can be made");
    let running = stage.start(["audit", "--metrics", "pipe", "images"]);
    let text = fs::read_to_string(stage.path("pipe")).expect("it can be read");
    running.wait().expect_exit(0);
    assert!(text.contains("qfsck_images{status=\"clean\"} 2"), "{text}");
    let kind = fs::symlink_metadata(stage.path("pipe"))
        .expect("it is there")
        .file_type();
    assert!(kind.is_fifo());
}

#[test]
fn results_go_where_a_link_leads_and_not_through_one_to_an_image() {
    let stage = fleet();
    let image = "images/a/good";
    let before = fs::read(stage.path(image)).expect("it can be read");
    symlink("good", stage.path("images/a/disk")).expect("a link can be made");
    let said = stage.qfsck(["audit", "--metrics", "images/a/disk", "images"]);
    said.expect_exit(8);
    assert!(said.err().contains("it is an image"), "{}", said.err());
    let link = fs::read_link(stage.path("images/a/disk")).expect("it is a link");
    assert_eq!(link, Path::new("good"));
    assert!(fs::read(stage.path(image)).expect("it can be read") == before);
    fs::create_dir(stage.path("collected")).expect("it can be made");
    stage.put("collected/real.prom", b"of last night");
    symlink("collected/real.prom", stage.path("m.prom")).expect("a link can be made");
    let audit = ["audit", "--metrics", "m.prom", "images"];
    stage.qfsck(audit).expect_exit(0);
    fs::read_link(stage.path("m.prom")).expect("it is a link still");
    let text = fs::read_to_string(stage.path("collected/real.prom")).expect("it is there");
    assert!(text.contains("qfsck_images{status=\"clean\"} 2"), "{text}");
    if !is_root() {
        return skip("a link of somebody else: only root can make one");
    }
    // Where somebody else's link leads is not for them to say.
    lchown(stage.path("m.prom"), Some(65_534), None).expect("a link can be given away");
    stage.put("collected/real.prom", b"precious");
    stage.qfsck(audit).expect_exit(0);
    let text = fs::read_to_string(stage.path("collected/real.prom")).expect("it is there");
    assert_eq!(text, "precious");
    let text = fs::read_to_string(stage.path("m.prom")).expect("it is there");
    assert!(text.contains("qfsck_images{status=\"clean\"} 2"), "{text}");
}

/// Where the record of an image is.
fn record_of(stage: &Stage, image: &str) -> PathBuf {
    let shelves = fs::read_dir(stage.path("state/images")).expect("there are records");
    let files = shelves.flat_map(|shelf| {
        let shelf = shelf.expect("it can be read").path();
        fs::read_dir(shelf).expect("it can be read")
    });
    let mut paths = files.map(|file| file.expect("it can be read").path());
    let is_of = |path: &PathBuf| {
        let bytes = fs::read(path).expect("a record can be read");
        let record: Value = serde_json::from_slice(&bytes).expect("a record is whole");
        record["image"].as_str().expect("a path").ends_with(image)
    };
    paths.find(is_of).expect("it has a record")
}

#[test]
fn a_night_that_cannot_end_leaves_the_metrics_as_the_last_one_left_them() {
    let stage = fleet();
    let night = || {
        let arguments = ["--state", "state", "--metrics", "m.prom", "images"];
        stage.qfsck([&["audit", "--fail-on", "corruption"], &arguments[..]].concat())
    };
    let metrics = || fs::read_to_string(stage.path("m.prom")).expect("there are metrics");
    night().expect_exit(2);
    let whole = metrics();
    assert!(
        whole.contains("qfsck_images{status=\"do-not-boot\"} 2"),
        "{whole}"
    );
    // A record that can be neither read nor replaced.
    let record = record_of(&stage, "a/broken");
    fs::remove_file(&record).expect("it can be removed");
    fs::create_dir(&record).expect("it can be made");
    let said = night();
    said.expect_exit(8);
    assert_eq!(metrics(), whole);
    // It was seen all the same, as were those behind it.
    let counts = "2 do-not-boot, 2 leaks, 2 clean";
    assert!(said.out().contains(counts), "{}", said.out());
    let mark = fs::read_to_string(stage.path("state/night.json")).expect("there is a mark");
    assert!(mark.contains("\"finished\":false"), "{mark}");
    assert!(!stage.path("state/nights/00000002.jsonl").exists());
    fs::remove_dir(&record).expect("it can be removed");
    // The numbers of the night have no place.
    let numbers = stage.path("state/nights/00000002.summary.json");
    fs::create_dir(&numbers).expect("it can be made");
    let said = night();
    said.expect_exit(8);
    assert!(
        said.err().contains("the end of the night"),
        "{}",
        said.err()
    );
    assert_eq!(metrics(), whole);
    fs::remove_dir(&numbers).expect("it can be removed");
    night().expect_exit(2);
    let text = metrics();
    assert!(
        text != whole && text.contains("\"do-not-boot\"} 2"),
        "{text}"
    );
}

#[test]
fn an_image_that_is_behind_a_link_now_is_gone_and_never_opened() {
    let stage = fleet();
    night(&stage).expect_exit(0);
    fs::rename(stage.path("images/a"), stage.path("aside")).expect("it can be renamed");
    symlink("../aside", stage.path("images/a")).expect("a link can be made");
    fs::remove_file(stage.path("images/b/broken")).expect("it can be removed");
    symlink("good", stage.path("images/b/broken")).expect("a link can be made");
    let said = night_jsonl(&stage);
    said.expect_exit(0);
    let documents = said.documents();
    let gone: Vec<_> = documents
        .iter()
        .filter(|record| record["status"] == "gone")
        .collect();
    assert_eq!(gone.len(), 4, "{documents:?}");
    for record in gone {
        assert_eq!(record["reason"], "it is behind a symbolic link now");
        assert_eq!(record["run"]["reads"], 0, "{record}");
    }
    // Said once.
    let said = night(&stage).expect_exit(0).out();
    assert!(said.contains("night 3: 2 images"), "{said}");
    assert!(!said.contains("gone"), "{said}");
}

#[test]
fn a_list_says_of_an_image_behind_a_link_that_it_is_gone() {
    let stage = fleet();
    let round = |night: &str, since: &[&str]| {
        let plan = ["audit", "plan", "images", "--out", "work.jsonl", "--night"];
        let said = stage.qfsck([&plan[..], &[night], since].concat());
        said.expect_exit(0);
        let run = ["audit", "run", "--work", "work.jsonl", "--out", "out"];
        stage.qfsck(run).expect_exit(0);
        let report = format!("{night}.jsonl");
        let merge = ["audit", "merge", "--work", "work.jsonl", "out", "--report"];
        stage
            .qfsck([&merge[..], &[&report]].concat())
            .expect_exit(0);
        fs::read_to_string(stage.path(report)).expect("there is a report")
    };
    round("100", &[]);
    fs::rename(stage.path("images/a"), stage.path("aside")).expect("it can be renamed");
    symlink("../aside", stage.path("images/a")).expect("a link can be made");
    let rows = round("101", &["--since", "100.jsonl"]);
    let behind = "\"reason\":\"it is behind a symbolic link now\"";
    assert_eq!(rows.matches(behind).count(), 3, "{rows}");
    assert_eq!(rows.matches("\"status\":\"gone\"").count(), 3, "{rows}");
    let rows = round("102", &["--since", "101.jsonl"]);
    assert_eq!(rows.lines().count(), 3, "{rows}");
}

#[test]
fn a_damaged_image_that_somebody_starts_stays_in_the_metrics() {
    let stage = fleet();
    let damaged = || {
        let arguments = ["--state", "state", "--metrics", "m.prom", "images"];
        stage.qfsck([&["audit"], &arguments[..]].concat());
        let text = fs::read_to_string(stage.path("m.prom")).expect("there are metrics");
        let value = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        (
            value("qfsck_images{status=\"do-not-boot\"}"),
            value("qfsck_damaged_when_last_read"),
        )
    };
    assert_eq!(damaged(), (Some(2), Some(0)));
    let open = |name: &str| {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).open(stage.path(name));
        let file = file.expect("it can be opened");
        set_lock(&file, libc::F_WRLCK, 0, 0).expect("it can be locked");
        file
    };
    let started = [open("images/a/broken"), open("images/b/good")];
    assert_eq!(damaged(), (Some(1), Some(1)));
    // However long.
    assert_eq!(damaged(), (Some(1), Some(1)));
    for file in &started {
        set_lock(file, libc::F_UNLCK, 0, 0).expect("it can be unlocked");
    }
    assert_eq!(damaged(), (Some(2), Some(0)));
    fs::remove_file(stage.path("images/a/broken")).expect("it can be removed");
    assert_eq!(damaged(), (Some(1), Some(0)));
}

#[test]
fn nobody_else_can_hold_the_lock_of_a_state() {
    let stage = fleet();
    let others = || {
        let metadata = fs::metadata(stage.path("state/lock")).expect("there is a lock");
        metadata.permissions().mode() & 0o007
    };
    night(&stage).expect_exit(0);
    assert_eq!(others(), 0);
    // One that an earlier version made.
    close(&stage.path("state/lock"), 0o644);
    night(&stage).expect_exit(0);
    assert_eq!(others(), 0);
}

#[test]
fn a_directory_that_is_no_state_loses_nothing_by_being_named_as_one() {
    let stage = fleet();
    fs::create_dir(stage.path("state")).expect("it can be made");
    let image = stage.copy("002-v3-plain", "precious");
    let before = fs::read(&image).expect("it can be read");
    symlink("../precious", stage.path("state/lock")).expect("a link can be made");
    night(&stage).expect_exit(8);
    assert!(fs::read(&image).expect("it can be read") == before);
    fs::remove_file(stage.path("state/lock")).expect("it can be removed");
    stage.put("state/lock", b"somebody's notes");
    stage.put("state/disk.tmp", b"a download");
    let long_ago = ["-d", "2001-01-01", "state/disk.tmp"];
    stage.run("touch", long_ago).expect_exit(0);
    night(&stage).expect_exit(0);
    let read = |name: &str| fs::read(stage.path(name)).expect("it is there");
    assert_eq!(read("state/lock"), b"somebody's notes");
    assert_eq!(read("state/disk.tmp"), b"a download");
}

#[test]
fn on_a_full_disk_no_record_is_half_there_and_the_night_goes_on_when_there_is_room() {
    if !has_tools(&["unshare"]) {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("it can be made");
    let bytes = bytes_of("002-v3-plain");
    for number in 0..200 {
        stage.put(format!("images/vm-{number:04}"), &bytes);
    }
    let script = format!(
        "mkdir room && mount -t tmpfs -o size=8m,nr_inodes=150 tmpfs room || exit 99\n\
         {QFSCK} audit --state room/state images; echo \"first: $?\"\n\
         find room -name '*.tmp' | wc -l\n\
         for f in $(find room -name '*.json'); do tail -c 1 $f | od -c | grep -q '\\\\n' || echo torn $f; done\n\
         mount -o remount,nr_inodes=1000 room || exit 99\n\
         {QFSCK} audit --state room/state images; echo \"second: $?\"\n"
    );
    let said = stage.run("unshare", ["-m", "sh", "-c", &script]);
    if said.exit == Some(99) || said.err().contains("unshare failed") {
        return skip("a full disk: no mounts for us here");
    }
    let text = said.out();
    assert!(text.contains("first: 8\n0\n"), "{text}{}", said.err());
    assert!(
        said.err().matches("cannot be written").count() <= 21,
        "{}",
        said.err()
    );
    assert!(text.contains("not written:"), "{text}");
    assert!(!text.contains("torn"), "{text}");
    assert!(text.contains("night 1: 200 images"), "{text}");
    assert!(text.contains("second: 0\n"), "{text}{}", said.err());
}

#[test]
fn what_was_stopped_early_is_to_be_run_again_whatever_else_went_wrong() {
    let stage = fleet();
    let large = LargeImage::of_a_while();
    large.write(&stage.path("images/large"));
    let arguments = [
        "audit",
        "--output",
        "jsonl",
        "--jobs",
        "2",
        "--fail-on",
        "leak",
        "--time",
        "1s",
        "images",
        "missing",
    ];
    let said = stage.qfsck(arguments);
    said.expect_exit(75);
    assert!(said.took < Duration::from_secs(4), "{:?}", said.took);
    assert_eq!(said.documents().len(), 6);
}

#[test]
fn huge_images_are_checked_one_beside_the_other_in_little_memory() {
    let stage = fleet();
    // Each is some 2 TiB of clusters, as its length has it, and has counts for few.
    for name in ["one", "two", "three"] {
        let image = LargeImage {
            l2_tables: 1 << 11,
            leaks: 0,
        };
        let path = stage.path(format!("images/{name}"));
        image.write(&path);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("it can be opened");
        file.set_len(1 << 41).expect("a file can have holes");
    }
    let arguments = [
        "audit",
        "--output",
        "jsonl",
        "--jobs",
        "4",
        "--max-memory",
        "48M",
        "images",
    ];
    let (kibibytes, said) = peak_kibibytes(stage.start(arguments));
    said.expect_exit(0);
    println!("{kibibytes} KiB at most");
    let seen = statuses(&said);
    for name in ["one", "two", "three"] {
        assert_eq!(seen[name], "clean", "{}", said.out());
    }
    assert!(kibibytes < 32 << 10, "{kibibytes} KiB");
}
