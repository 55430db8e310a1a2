//! Nights: an audit with a state, run again and again.
//!
//! Comes in: images that change between nights, audits that are killed. Goes out: what is read again and what is not, what
//! is called new. Never here: shards.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use qfsck::audit::is_due;
use qfsck::report::{ImageName, Night};
use serde_json::Value;

use super::stage::{LargeImage, Said, Stage, bytes_of};

/// A stage with images in `images`.
fn fleet(count: usize) -> Stage {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    let bytes = bytes_of("002-v3-plain");
    for number in 0..count {
        stage.put(format!("images/vm-{number:04}"), &bytes);
    }
    stage
}

fn night(stage: &Stage, more: &[&str]) -> Said {
    let said = stage.qfsck([&["audit", "--state", "state", "images"], more].concat());
    said.expect_exit(0);
    said
}

/// The records of a state, by path.
fn records(stage: &Stage) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for file in files_below(&stage.path("state/images")) {
        let bytes = fs::read(&file).expect("a record can be read");
        if file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let record = serde_json::from_slice(&bytes).expect("a record is whole or not there");
            found.push((file, record));
        }
    }
    found
}

fn count_of_records(stage: &Stage) -> usize {
    let files = files_below(&stage.path("state/images"));
    let is_record = |path: &&PathBuf| path.extension().is_some_and(|end| end == "json");
    files.iter().filter(is_record).count()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn record_of(stage: &Stage, name: &str) -> (PathBuf, Value) {
    let of_image = |record: &Value| {
        let path = record["image"].as_str().expect("a path");
        path.ends_with(name)
    };
    let mut found = records(stage).into_iter();
    found
        .find(|(_, record)| of_image(record))
        .expect("it has a record")
}

fn status(stage: &Stage, name: &str) -> String {
    let (_, record) = record_of(stage, name);
    record["status"].as_str().expect("a word").to_owned()
}

#[test]
fn what_nobody_touched_is_not_read_again_until_it_is_its_turn() {
    let stage = fleet(40);
    night(&stage, &[]);
    let mut read = vec![0; 40];
    for _ in 0..7 {
        night(&stage, &[]);
        let records = records(&stage);
        let fresh = records
            .iter()
            .filter(|(_, record)| record.get("carried").is_none());
        for (_, record) in fresh {
            let path = record["image"].as_str().expect("a path");
            let number: usize = path[path.len() - 4..].parse().expect("a number");
            read[number] += 1;
        }
    }
    assert!(
        read.iter().all(|times| *times == 1),
        "each once in seven nights: {read:?}"
    );
    night(&stage, &["--full-every", "1"]);
    assert!(
        records(&stage)
            .iter()
            .all(|(_, record)| record.get("carried").is_none())
    );
}

#[test]
fn what_changed_is_read_again_and_what_became_of_it_is_said() {
    let stage = fleet(5);
    night(&stage, &["--full-every", "1000"]);
    stage.copy("104-refcount-zero-data", "images/vm-0001");
    stage.copy("100-refcount-leak", "images/vm-0005");
    fs::remove_file(stage.path("images/vm-0002")).expect("an image can be removed");
    let said = night(&stage, &["--full-every", "1000"]);
    let text = said.out();
    assert!(text.contains("vm-0001  (new, "), "{text}");
    assert!(text.contains("1 newly damaged, 1 new"), "{text}");
    assert!(
        text.contains("1 do-not-boot, 1 leaks, 1 gone, 3 clean"),
        "{text}"
    );
    // Gone is said once.
    stage.put("images/vm-0001", &bytes_of("002-v3-plain"));
    let text = night(&stage, &["--full-every", "1000"]).out();
    assert!(text.contains("1 healed"), "{text}");
    assert!(
        text.contains("1 leaks, 4 clean") && !text.contains("gone"),
        "{text}"
    );
    let diff = |old: &str, new: &str| {
        let path = |night: &str| format!("state/nights/0000000{night}.jsonl");
        stage.qfsck(["audit", "diff", &path(old), &path(new)]).out()
    };
    let text = diff("1", "2");
    assert!(
        text.contains("new-damage") && text.contains("gone"),
        "{text}"
    );
    assert!(
        text.ends_with("1 newly damaged, 0 worse, 0 healed, 0 still busy, 1 new, 1 gone\n"),
        "{text}"
    );
    assert!(
        diff("2", "3").contains("0 newly damaged, 0 worse, 1 healed"),
        "{}",
        diff("2", "3")
    );
}

#[test]
fn damage_that_no_time_stamp_tells_of_is_found_in_its_turn() {
    let stage = fleet(20);
    night(&stage, &[]);
    // Whose turn it is depends on the path, which is another one each time: one whose turn is not at once.
    let turn_of = |name: &str| {
        let name = ImageName::new(&stage.path(format!("images/{name}")));
        (2..=8).find(|night| {
            is_due(
                &name,
                Night {
                    night: *night,
                    at: 0,
                },
                7,
            )
        })
    };
    let names = (0..20).map(|number| format!("vm-{number:04}"));
    let later = names.map(|name| (turn_of(&name), name));
    let (turn, name) = later.max().expect("there are twenty");
    assert!(turn > Some(2), "{turn:?}");
    let damaged = bytes_of("104-refcount-zero-data");
    let image = stage.put(format!("images/{name}"), &damaged);
    // Nobody can set the time of the last change of an inode back, so what was recorded of it is set on.
    let (path, mut record) = record_of(&stage, &name);
    let said = stage.qfsck([
        OsStr::new("audit"),
        "--output".as_ref(),
        "jsonl".as_ref(),
        image.as_os_str(),
    ]);
    record["fingerprint"] = said.document()["fingerprint"].clone();
    fs::write(path, record.to_string()).expect("a record can be written");
    let mut found_in = None;
    for number in 2..=8 {
        let said = night(&stage, &[]);
        if said.out().contains(&name) {
            found_in = Some(number);
            break;
        }
        assert_eq!(status(&stage, &name), "clean", "night {number}");
    }
    assert_eq!(found_in, turn);
}

#[test]
fn an_image_that_lost_its_first_bytes_does_not_go_unnoticed() {
    let stage = fleet(3);
    night(&stage, &[]);
    let image = OpenOptions::new()
        .write(true)
        .open(stage.path("images/vm-0001"));
    let image = image.expect("an image can be opened");
    image
        .write_all_at(&[0; 512], 0)
        .expect("an image can be written");
    let text = night(&stage, &[]).out();
    assert!(
        text.contains("not-qcow2") && text.contains("vm-0001  (new, clean 1 night ago"),
        "{text}"
    );
    // One that is left out on purpose is forgotten.
    night(&stage, &["--exclude", "vm-0002"]);
    assert_eq!(records(&stage).len(), 2);
}

#[test]
fn a_root_that_is_not_there_makes_no_image_gone() {
    let stage = fleet(3);
    night(&stage, &[]);
    fs::rename(stage.path("images"), stage.path("away")).expect("a directory can be renamed");
    stage
        .qfsck(["audit", "--state", "state", "images"])
        .expect_exit(8);
    fs::rename(stage.path("away"), stage.path("images")).expect("a directory can be renamed");
    night(&stage, &[]);
    assert_eq!(status(&stage, "vm-0001"), "clean");
    assert_eq!(records(&stage).len(), 3);
}

#[test]
fn an_audit_that_is_killed_at_any_moment_goes_on_where_it_was() {
    let stage = fleet(600);
    // Slowly, so that no run gets through before it is killed.
    let arguments = ["audit", "--state", "state", "--max-iops", "1000", "images"];
    let mut done = Vec::new();
    for round in 0..50 {
        let before = done.last().copied().unwrap_or(0);
        let mut running = stage.start(arguments);
        // Every other time it has written a record, at least.
        while round % 2 == 1 && count_of_records(&stage) <= before {
            assert!(running.is_running(), "{}", running.wait().err());
        }
        thread::sleep(Duration::from_micros(fastrand::u64(..20_000)));
        assert!(running.is_running(), "{}", running.wait().err());
        running.signal("KILL");
        drop(running.wait());
        // Each record parses.
        done.push(records(&stage).len());
    }
    println!("done when it was killed: {done:?}");
    assert!(done.is_sorted() && done.last() >= Some(&25), "{done:?}");
    let said = night(&stage, &[]);
    assert!(
        said.out().starts_with("night 1: 600 images"),
        "{}",
        said.out()
    );
    let records = records(&stage);
    assert_eq!(records.len(), 600);
    for (path, record) in &records {
        assert_eq!(
            record["run"]["checks"],
            1,
            "{} is looked at once",
            path.display()
        );
    }
    let left = files_below(&stage.path("state"));
    let left: Vec<_> = left
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(night(&stage, &[]).out().starts_with("night 2: "));
}

#[test]
fn a_night_that_ran_out_of_time_goes_on_and_is_not_over() {
    let stage = fleet(3);
    LargeImage::of_a_while().write(&stage.path("images/a-large"));
    let arguments = [
        "audit",
        "--state",
        "state",
        "--jobs",
        "2",
        "--time",
        "500ms",
        "--metrics",
        "m.prom",
        "images",
    ];
    let said = stage.qfsck(arguments);
    said.expect_exit(75);
    assert!(said.out().contains("1 image not reached"), "{}", said.out());
    assert!(
        !stage.path("m.prom").exists(),
        "a night that is not over has no metrics"
    );
    assert!(!stage.path("state/nights/00000001.jsonl").exists());
    fs::remove_file(stage.path("images/a-large")).expect("an image can be removed");
    let said = night(&stage, &["--metrics", "m.prom"]);
    assert!(said.out().contains("night 1: 3 images"), "{}", said.out());
    assert!(
        said.out().contains("after an earlier run"),
        "{}",
        said.out()
    );
    assert!(stage.path("m.prom").exists());
}

#[test]
fn a_night_that_goes_on_reads_nothing_of_what_it_has_seen() {
    let stage = fleet(40);
    night(&stage, &[]);
    let mark = fs::read_to_string(stage.path("state/night.json")).expect("there is a mark");
    let open = mark.replace("\"finished\":true", "\"finished\":false");
    assert_ne!(open, mark);
    stage.put("state/night.json", open.as_bytes());
    // At a read a second, forty images would never be passed by.
    let said = night(&stage, &["--max-iops", "1", "--time", "10s"]);
    assert!(said.out().contains("night 1: 40 images"), "{}", said.out());
    assert!(
        records(&stage)
            .iter()
            .all(|(_, record)| record["run"]["checks"] == 1)
    );
}

#[test]
fn a_record_in_another_place_holds_nobody_up() {
    let stage = fleet(3);
    night(&stage, &[]);
    let (path, _) = record_of(&stage, "vm-0002");
    fs::create_dir_all(stage.path("state/images/zz")).expect("a directory can be made");
    let misplaced = stage.path("state/images/zz/copy.json");
    fs::rename(path, &misplaced).expect("a record can be moved");
    // It would be forgotten, and is not where that is done.
    let said = night(&stage, &["--exclude", "vm-0002"]);
    assert!(said.out().contains("night 2: 2 images"), "{}", said.out());
    assert!(misplaced.exists());
}

#[test]
fn two_audits_do_not_work_in_one_state() {
    let stage = fleet(1);
    let large = LargeImage::of_a_while();
    large.write(&stage.path("images/a-large"));
    let mut running = stage.start(["audit", "--state", "state", "images"]);
    assert!(running.has_read(large.head_bytes()));
    stage
        .qfsck(["audit", "--state", "state", "images"])
        .expect_exit(75);
    running.signal("KILL");
    drop(running.wait());
    stage
        .qfsck([
            "audit",
            "--state",
            "state",
            "--exclude",
            "a-large",
            "images",
        ])
        .expect_exit(0);
}

#[test]
fn a_state_that_is_broken_is_refused_and_a_broken_record_is_made_again() {
    let stage = fleet(3);
    night(&stage, &[]);
    let path_of = |name| record_of(&stage, name).0;
    let paths = [path_of("vm-0000"), path_of("vm-0001"), path_of("vm-0002")];
    fs::write(&paths[1], b"{\"schema\":1,").expect("a record can be broken");
    // A record of another image, as two paths with one key would have it.
    fs::copy(&paths[2], &paths[0]).expect("a record can be copied");
    night(&stage, &[]);
    assert_eq!(records(&stage).len(), 3);
    assert_eq!(status(&stage, "vm-0001"), "clean");
    stage.put("state/night.json", b"zzz");
    stage
        .qfsck(["audit", "--state", "state", "images"])
        .expect_exit(8);
}
