//! Many machines: lists, shards, merge, diff.
//!
//! Comes in: the same images, divided in different ways, by runs that are repeated, killed, or never started. Goes out: one
//! report, the same bytes, or a list of what is missing. Never here: an engine that starts the shards.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::audit::peak_kibibytes;
use super::stage::{QFSCK, Said, Stage, bytes_of};

/// A stage with images in `images`: most are clean.
fn fleet(count: usize) -> Stage {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    let clean = bytes_of("002-v3-plain");
    let leaky = bytes_of("100-refcount-leak");
    let broken = bytes_of("104-refcount-zero-data");
    for number in 0..count {
        let bytes = match number % 100 {
            17 => &leaky,
            42 => &broken,
            _ => &clean,
        };
        stage.put(format!("images/vm-{number:05}"), bytes);
    }
    stage
}

fn plan(stage: &Stage, more: &[&str]) {
    let arguments = [
        "audit",
        "plan",
        "images",
        "--out",
        "work.jsonl",
        "--night",
        "100",
    ];
    let said = stage.qfsck([&arguments[..], more].concat());
    said.expect_exit(0);
}

fn run_shard(stage: &Stage, shard: &str, out: &str, more: &[&str]) -> Said {
    let arguments = [
        "audit",
        "run",
        "--work",
        "work.jsonl",
        "--shard",
        shard,
        "--out",
        out,
    ];
    stage.qfsck([&arguments[..], more].concat())
}

fn merge(stage: &Stage, out: &str, report: &str) -> Said {
    stage.qfsck([
        "audit",
        "merge",
        "--work",
        "work.jsonl",
        out,
        "--report",
        report,
        "--missing",
        "missing.jsonl",
    ])
}

fn report(stage: &Stage, name: &str) -> String {
    fs::read_to_string(stage.path(name)).expect("there is a report")
}

#[test]
fn the_report_is_the_same_bytes_however_the_work_was_divided() {
    let stage = fleet(1000);
    plan(&stage, &[]);
    run_shard(&stage, "0/1", "one", &[]).expect_exit(0);
    merge(&stage, "one", "one.jsonl").expect_exit(0);
    let expected = report(&stage, "one.jsonl");
    assert_eq!(expected.lines().count(), 1000);
    assert_eq!(
        expected.matches("\"do-not-boot\",\"corruptions\"").count(),
        10
    );
    let balance = &["--balance"][..];
    for (count, more) in [(7, &[][..]), (64, &[][..]), (7, balance)] {
        let out = format!("out-{count}-{}", more.len());
        // In no order, and some twice.
        for index in (0..count).map(|at| (at * 37 + 5) % count).chain([3, 5]) {
            run_shard(&stage, &format!("{index}/{count}"), &out, more).expect_exit(0);
        }
        merge(&stage, &out, "other.jsonl").expect_exit(0);
        assert!(
            report(&stage, "other.jsonl") == expected,
            "{count} {more:?}"
        );
    }
    assert!(!stage.path("missing.jsonl").exists());
}

#[test]
fn a_shard_that_did_not_run_is_missed_and_its_images_are_a_list() {
    let stage = fleet(50);
    plan(&stage, &["--shards", "4"]);
    for index in [0, 1, 3] {
        run_shard(&stage, &format!("{index}/4"), "out", &[]).expect_exit(0);
    }
    let said = merge(&stage, "out", "report.jsonl");
    said.expect_exit(8);
    let missing = report(&stage, "missing.jsonl").lines().count() - 1;
    assert!(missing > 0);
    assert!(
        said.err()
            .contains(&format!("{missing} of 50 images have no record")),
        "{}",
        said.err()
    );
    let arguments = [
        "audit",
        "run",
        "--work",
        "missing.jsonl",
        "--shard",
        "0/1",
        "--out",
        "out",
    ];
    // The number of shards was laid down; a part of the list is run by as many, or as one.
    stage.qfsck(arguments).expect_exit(64);
    let at_once = ["audit", "run", "--work", "missing.jsonl", "--out", "else"];
    let said = stage.qfsck(at_once);
    said.expect_exit(0);
    let shard = format!("shard 0/1: {missing} images");
    assert!(said.err().contains(&shard), "{}", said.err());
    for index in 0..4 {
        let shard = format!("{index}/4");
        let arguments = [
            "audit",
            "run",
            "--work",
            "missing.jsonl",
            "--shard",
            &shard,
            "--out",
            "out",
        ];
        stage.qfsck(arguments).expect_exit(0);
    }
    merge(&stage, "out", "report.jsonl").expect_exit(0);
    assert_eq!(report(&stage, "report.jsonl").lines().count(), 50);
}

#[test]
fn a_record_that_cannot_be_read_is_missing_and_keeps_no_other_out() {
    let stage = fleet(5);
    plan(&stage, &[]);
    run_shard(&stage, "0/1", "out", &[]).expect_exit(0);
    let found = stage.run("find", ["out", "-name", "*.json"]).out();
    let record = stage.path(found.lines().next().expect("there are records"));
    fs::remove_file(&record).expect("it can be removed");
    fs::create_dir(&record).expect("it can be made");
    let said = merge(&stage, "out", "report.jsonl");
    said.expect_exit(8);
    assert!(said.err().contains("1 of 5 images"), "{}", said.err());
    assert_eq!(report(&stage, "report.jsonl").lines().count(), 4);
}

#[test]
fn the_number_of_shards_is_never_guessed() {
    let stage = fleet(3);
    plan(&stage, &["--shards", "4"]);
    run_shard(&stage, "0/3", "out", &[]).expect_exit(64);
    run_shard(&stage, "4/4", "out", &[]).expect_exit(64);
    let whole = ["audit", "run", "--work", "work.jsonl", "--out", "out"];
    stage.qfsck(whole).expect_exit(64);
    let from_environment = |count: &str, variables: &[(&str, &str)]| {
        let mut command = Command::new(QFSCK);
        command.args(whole).args(["--shard-from-env", count]);
        command.env_remove("SLURM_ARRAY_TASK_ID");
        command.envs(variables.iter().copied());
        stage.run_command(command)
    };
    let slurm = [
        ("SLURM_ARRAY_TASK_ID", "3"),
        ("SLURM_ARRAY_TASK_MIN", "3"),
        ("SLURM_ARRAY_TASK_COUNT", "1"),
    ];
    let said = from_environment("4", &slurm);
    said.expect_exit(0);
    assert!(said.err().contains("shard 3/4"), "{}", said.err());
    from_environment("1", &slurm).expect_exit(64);
    from_environment("4", &[("SLURM_ARRAY_TASK_ID", "4")]).expect_exit(64);
    from_environment("4", &[]).expect_exit(64);
}

#[test]
fn two_runs_of_one_shard_at_once_do_no_harm() {
    let stage = fleet(200);
    plan(&stage, &[]);
    let arguments = [
        "audit",
        "run",
        "--work",
        "work.jsonl",
        "--shard",
        "0/1",
        "--out",
        "out",
    ];
    let runs: Vec<_> = (0..3).map(|_| stage.start(arguments)).collect();
    for run in runs {
        run.wait().expect_exit(0);
    }
    merge(&stage, "out", "report.jsonl").expect_exit(0);
    let said = run_shard(&stage, "0/1", "out", &[]);
    said.expect_exit(0);
    assert!(
        said.err().contains("0 looked at, 200 had a record"),
        "{}",
        said.err()
    );
}

#[test]
fn a_run_that_is_killed_is_run_again_and_looks_at_nothing_twice() {
    let stage = fleet(200);
    plan(&stage, &[]);
    let arguments = [
        "audit",
        "run",
        "--work",
        "work.jsonl",
        "--shard",
        "0/1",
        "--out",
        "out",
        "--max-iops",
        "3000",
    ];
    let mut running = stage.start(arguments);
    std::thread::sleep(Duration::from_millis(150));
    assert!(running.is_running());
    running.signal("KILL");
    drop(running.wait());
    let said = run_shard(&stage, "0/1", "out", &[]);
    said.expect_exit(0);
    let said = said.err();
    let number = |before: &str| -> u64 {
        let text = said.split(before).next().unwrap_or_default();
        text.rsplit(' ')
            .find_map(|word| word.parse().ok())
            .expect("a number")
    };
    assert!(number(" had a record") > 0, "{said}");
    assert_eq!(
        number(" looked at") + number(" had a record"),
        200,
        "{said}"
    );
    merge(&stage, "out", "report.jsonl").expect_exit(0);
}

#[test]
fn the_night_before_is_carried_over_by_the_list() {
    let stage = fleet(30);
    plan(&stage, &[]);
    run_shard(&stage, "0/1", "out", &[]).expect_exit(0);
    merge(&stage, "out", "night-100.jsonl").expect_exit(0);
    stage.copy("104-refcount-zero-data", "images/vm-00003");
    fs::remove_file(stage.path("images/vm-00004")).expect("an image can be removed");
    let next = [
        "audit",
        "plan",
        "images",
        "--out",
        "work.jsonl",
        "--night",
        "101",
        "--since",
        "night-100.jsonl",
        "--full-every",
        "1000",
    ];
    stage.qfsck(next).expect_exit(0);
    run_shard(&stage, "0/1", "out", &[]).expect_exit(0);
    merge(&stage, "out", "night-101.jsonl").expect_exit(0);
    let rows = report(&stage, "night-101.jsonl");
    assert_eq!(rows.lines().count(), 30, "one of them gone");
    // Of 28 that nobody touched, by chance of their paths one may have its turn.
    let list = report(&stage, "work.jsonl");
    let entries = list.lines().filter(|line| {
        let is_touched = line.contains("vm-00003") || line.contains("vm-00004");
        line.contains("\"full\":true") && !is_touched
    });
    let due = entries.count();
    assert!(due < 5, "{list}");
    assert_eq!(rows.matches("\"carried\":true").count(), 28 - due, "{rows}");
    let said = stage.qfsck(["audit", "diff", "night-100.jsonl", "night-101.jsonl"]);
    said.expect_exit(0);
    assert!(
        said.out()
            .ends_with("1 newly damaged, 0 worse, 0 healed, 0 still busy, 0 new, 1 gone\n"),
        "{}",
        said.out()
    );
    // A report of tonight is not the night before.
    let again = [
        "audit",
        "plan",
        "images",
        "--night",
        "101",
        "--since",
        "night-101.jsonl",
    ];
    stage.qfsck(again).expect_exit(64);
}

/// Writes the image of a case under each name.
fn write_all(stage: &Stage, names: &[&[u8]], case: &str) {
    let bytes = bytes_of(case);
    for name in names {
        let path = stage.path("images").join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap_or(&path)).expect("directories can be made");
        fs::write(path, &bytes).expect("an image can be written");
    }
}

#[test]
fn hostile_names_come_through_all_of_it() {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("a directory can be made");
    let long = [b'n'; 250];
    let deep: Vec<u8> = [&long[..]; 14].join(&b'/');
    let names: [&[u8]; 6] = [
        b"new\nline",
        b"\x1b[2J",
        b"\xff\xfe\n",
        b" ",
        b"{\"json\":1}",
        &deep,
    ];
    write_all(&stage, &names, "002-v3-plain");
    plan(&stage, &[]);
    run_shard(&stage, "0/2", "out", &[]).expect_exit(0);
    run_shard(&stage, "1/2", "out", &[]).expect_exit(0);
    merge(&stage, "out", "before.jsonl").expect_exit(0);
    let before = report(&stage, "before.jsonl");
    assert_eq!(before.lines().count(), names.len());
    assert_eq!(
        before
            .matches("\"status\":\"clean\",\"fingerprint\"")
            .count(),
        names.len()
    );
    write_all(&stage, &names, "104-refcount-zero-data");
    stage
        .qfsck([
            "audit",
            "plan",
            "images",
            "--out",
            "work.jsonl",
            "--night",
            "101",
            "--since",
            "before.jsonl",
        ])
        .expect_exit(0);
    run_shard(&stage, "0/1", "out", &[]).expect_exit(0);
    let said = merge(&stage, "out", "after.jsonl");
    assert!(
        !said.stdout.contains(&0x1b) && said.out().contains("\\x1b[2J"),
        "{}",
        said.out()
    );
    let said = stage.qfsck(["audit", "diff", "before.jsonl", "after.jsonl"]);
    assert!(!said.stdout.contains(&0x1b));
    assert_eq!(
        said.out().matches("new-damage").count(),
        names.len(),
        "{}",
        said.out()
    );
}

#[test]
fn a_list_is_taken_from_names_and_each_has_a_record() {
    let stage = fleet(3);
    let mut names: Vec<u8> = Vec::new();
    for name in [
        "images/vm-00000",
        "images/vm-00002",
        "images/never-was",
        "images",
    ] {
        names.extend(name.bytes());
        names.push(0);
    }
    stage.put("names", &names);
    let plan = [
        "audit",
        "plan",
        "--files-from",
        "names",
        "--out",
        "work.jsonl",
    ];
    stage.qfsck(plan).expect_exit(0);
    run_shard(&stage, "0/1", "out", &[]).expect_exit(0);
    merge(&stage, "out", "report.jsonl").expect_exit(0);
    let rows = report(&stage, "report.jsonl");
    assert_eq!(
        rows.matches("\"status\":\"clean\",\"fingerprint\"").count(),
        2
    );
    assert_eq!(rows.matches("\"status\":\"gone\"").count(), 1);
    assert_eq!(
        rows.matches("\"status\":\"not-qcow2\"").count(),
        1,
        "{rows}"
    );
}

#[test]
fn a_list_that_was_changed_is_refused() {
    let stage = fleet(5);
    plan(&stage, &[]);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(stage.path("work.jsonl"))
        .expect("the list can be opened");
    file.write_all(b"{\"image\":\"/etc/passwd\"}\n")
        .expect("the list can be written");
    run_shard(&stage, "0/1", "out", &[]).expect_exit(64);
    merge(&stage, "out", "report.jsonl").expect_exit(64);
    assert!(!stage.path("out").exists() && !Path::new(&stage.path("report.jsonl")).exists());
}

#[test]
fn ten_thousand_images_take_little_memory_and_are_listed_and_merged_in_seconds() {
    let stage = fleet(10_000);
    let peak = |arguments: &[&str]| {
        let (kibibytes, said) = peak_kibibytes(stage.start(arguments));
        said.expect_exit(0);
        let (out, err) = (said.out(), said.err());
        let images = out.lines().chain(err.lines());
        let mut images = images.filter(|line| line.contains(" images"));
        println!(
            "{kibibytes} KiB at most: {}",
            images.next_back().unwrap_or_default()
        );
        kibibytes
    };
    let few = |state: &str, exclude: &str| {
        peak(&["audit", "--state", state, "--exclude", exclude, "images"])
    };
    let hundred = few("few", "vm-{[1-9],0[1-9],00[1-9]}*");
    let thousand = few("more", "vm-{[1-9],0[1-9]}*");
    let started = Instant::now();
    plan(&stage, &[]);
    let planned = started.elapsed();
    let all = peak(&["audit", "run", "--work", "work.jsonl", "--out", "out"]);
    let peaks = [hundred, thousand, all];
    assert!(
        all < hundred + (32 << 10),
        "{peaks:?} KiB for 100, 1,000, 10,000"
    );
    let started = Instant::now();
    merge(&stage, "out", "report.jsonl").expect_exit(0);
    let merged = started.elapsed();
    println!("plan of 10,000 {planned:?}, merge {merged:?}");
    assert_eq!(report(&stage, "report.jsonl").lines().count(), 10_000);
    assert!(planned + merged < Duration::from_secs(10));
}
