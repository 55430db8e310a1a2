//! What cuts a check short: signals, a budget, an image that changes. And how it talks on the way.
//!
//! Comes in: a large image that is all hole, signals, another hand in the image. Goes out: in time, a document that says
//! what was not looked at. Never here: a race; a check is stopped (SIGSTOP) before anything is done to it.

use std::fs::{self, FileTimes, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::stage::{LargeImage, QFSCK, Running, Said, Stage, corpus};

/// The promise is one second; the rest is for a machine that runs all tests at once.
const SOON: Duration = Duration::from_secs(2);

fn large_image(stage: &Stage) -> LargeImage {
    let large = LargeImage::of_a_while();
    large.write(&stage.path("image"));
    large
}

/// What a check says that did not read everything: nothing that only a whole check can know.
#[track_caller]
fn expect_partial(said: &Said) {
    let document = said.document();
    assert_eq!(document["coverage"]["stopped"], true);
    assert_eq!(document["coverage"]["complete"], false);
    assert_eq!(document["verdict"], "unreadable");
    assert_ne!(document["check-errors"], 0);
    assert_eq!(
        document.get("leaks"),
        None,
        "what was not read may well be used"
    );
    assert_eq!(document.get("corruptions"), None, "{}", document["totals"]);
    // Volumes are shrunk to it.
    assert_eq!(document.get("image-end-offset"), None);
}

#[test]
fn a_signal_ends_a_check_soon_with_a_valid_report() {
    let stage = Stage::new();
    let large = large_image(&stage);
    for (signal, threads) in [("INT", "1"), ("TERM", "4"), ("HUP", "2"), ("INT", "16")] {
        let mut check = stage.start(["check", "--output", "json", "-j", threads, "image"]);
        assert!(
            check.has_read(large.head_bytes()),
            "the check ended too soon"
        );
        let sent = Instant::now();
        check.signal(signal);
        let said = check.wait();
        assert!(sent.elapsed() < SOON, "{signal} took {:?}", sent.elapsed());
        said.expect_exit(1);
        expect_partial(&said);
    }
}

#[test]
fn a_signal_before_the_tables_ends_a_check_as_well() {
    let stage = Stage::new();
    LargeImage::of_a_moment().write(&stage.path("image"));
    let mut check = stage.start(["check", "--output", "json", "-j", "1", "image"]);
    assert!(check.has_locked(), "the check ended too soon");
    check.signal("STOP");
    check.signal("INT");
    let sent = Instant::now();
    check.signal("CONT");
    let said = check.wait();
    // The handler may not be there yet; then the signal itself ends the program.
    assert!(matches!(said.exit, Some(1) | None), "{:?}", said.exit);
    assert!(sent.elapsed() < SOON, "it took {:?}", sent.elapsed());
}

#[test]
fn a_person_who_interrupts_reads_what_was_not_covered() {
    let stage = Stage::new();
    let large = large_image(&stage);
    let mut check = stage.start(["check", "image"]);
    assert!(
        check.has_read(large.head_bytes()),
        "the check ended too soon"
    );
    check.signal("INT");
    let said = check.wait();
    said.expect_exit(1);
    assert!(said.out().contains("not covered"), "{}", said.out());
    assert!(said.out().contains("verdict: unreadable"), "{}", said.out());
    assert!(!said.out().contains("Image end offset"), "{}", said.out());
}

#[test]
fn a_signal_ends_a_run_over_many_images_and_the_rest_is_counted() {
    let stage = Stage::new();
    let large = large_image(&stage);
    let mut check = stage.start(["check", "-q", "image", "image", "image"]);
    assert!(
        check.has_read(large.head_bytes()),
        "the check ended too soon"
    );
    check.signal("INT");
    let said = check.wait();
    said.expect_exit(1);
    assert!(said.err().contains("2 more of 3 images"), "{}", said.err());

    // Each of these is checked before anybody looks whether a signal came.
    let small = corpus("002-v3-plain");
    let images = std::iter::repeat_n(small.as_os_str(), 3000);
    let options = ["check", "--output", "jsonl"].map(AsRef::as_ref);
    let mut check = stage.start(options.into_iter().chain(images));
    assert!(check.has_read(1 << 20), "the checks ended too soon");
    let sent = Instant::now();
    check.signal("INT");
    let said = check.wait();
    assert!(sent.elapsed() < SOON, "it took {:?}", sent.elapsed());
    said.expect_exit(1);
    assert!(said.documents().len() < 3000, "all images were checked");
    assert!(said.err().contains("not checked"), "{}", said.err());
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let stage = Stage::new();
    let large = large_image(&stage);
    let mut check = stage.start(["check", "image"]);
    assert!(
        check.has_read(large.head_bytes()),
        "the check ended too soon"
    );
    check.signal("STOP");
    // Two different ones: the same one twice is one signal to a program that is stopped.
    check.signal("INT");
    check.signal("TERM");
    check.signal("CONT");
    let said = check.wait();
    assert!(matches!(said.exit, Some(1 | 130)), "{:?}", said.exit);
}

#[test]
fn a_budget_ends_a_check_in_time_with_exit_code_6() {
    let stage = Stage::new();
    let images = [
        ("0s", LargeImage::of_a_moment()),
        ("1ms", LargeImage::of_a_moment()),
        ("300ms", LargeImage::of_a_while()),
    ];
    for (budget, large) in images {
        large.write(&stage.path("image"));
        let check = ["check", "--output", "json", "-j", "1", "--budget", budget];
        let said = stage.qfsck(check.iter().chain(&["image"]));
        said.expect_exit(6);
        expect_partial(&said);
        assert!(said.took < 2 * SOON, "{budget} took {:?}", said.took);
        assert_eq!(said.err(), "");
    }
    // The data is read when the tables are done.
    let deep = [
        "check", "--output", "json", "-j", "1", "--deep", "--budget", "300ms",
    ];
    let said = stage.qfsck(deep.iter().chain(&["image"]));
    said.expect_exit(6);
    expect_partial(&said);
    assert!(said.took < 2 * SOON, "a deep read took {:?}", said.took);
    let said = stage.qfsck(["check", "-q", "-j", "1", "--budget", "100ms", "image"]);
    said.expect_exit(6);
    assert_eq!((said.out(), said.err()), (String::new(), String::new()));
}

#[test]
fn a_budget_that_is_enough_changes_nothing() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "image");
    let plain = stage.qfsck(["check", "image"]);
    let said = stage.qfsck(["check", "--budget", "1min", "image"]);
    said.expect_exit(3);
    assert_eq!(said.out(), plain.out());
}

/// What a stranger does to an image.
type Change = fn(&Path);

/// A check in the middle of the image.
fn stopped_check(stage: &Stage) -> Running {
    let large = LargeImage::of_a_moment();
    large.write(&stage.path("image"));
    let mut check = stage.start(["check", "--output", "json", "--jobs", "1", "image"]);
    assert!(
        check.has_read(large.head_bytes()),
        "the check ended too soon"
    );
    check.signal("STOP");
    check
}

#[test]
fn an_image_that_changes_under_the_reader_is_exit_code_5() {
    let stage = Stage::new();
    let changes: [(&str, Change); 4] = [
        ("the file made longer", |path| {
            let file = OpenOptions::new().append(true).open(path);
            let longer = file.and_then(|mut file| file.write_all(&[0xa5; 5000]));
            longer.expect("the file can grow");
        }),
        ("the file cut", |path| {
            let file = OpenOptions::new().write(true).open(path);
            let cut = file.and_then(|file| file.set_len(1 << 20));
            cut.expect("the file can be cut");
        }),
        ("a header field, and the clock turned back", |path| {
            let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
            let times = FileTimes::new().set_modified(modified.expect("a time"));
            let file = OpenOptions::new().write(true).open(path);
            let file = file.expect("the image can be opened");
            file.write_all_at(&[1], 79).expect("a byte can be written");
            file.set_times(times).expect("the time can be set");
        }),
        ("a byte far inside", |path| {
            let file = OpenOptions::new().write(true).open(path);
            let written = file.and_then(|file| file.write_all_at(&[0], 1 << 28));
            written.expect("a byte can be written");
        }),
    ];
    for (what, change) in changes {
        let check = stopped_check(&stage);
        change(&stage.path("image"));
        check.signal("CONT");
        let said = check.wait();
        assert_eq!(said.exit, Some(5), "{what}: {}{}", said.out(), said.err());
        let document = said.document();
        assert_eq!(document["changed-while-read"], true, "{what}");
        assert_ne!(document["unreliable"], serde_json::json!([]), "{what}");
        assert_eq!(
            document["verdict"], "unreadable",
            "{what}: nothing to act on"
        );
        assert_eq!(document.get("image-end-offset"), None, "{what}");
    }
}

#[test]
fn an_image_that_is_replaced_or_removed_under_the_reader_is_exit_code_5() {
    let stage = Stage::new();
    let changes: [(&str, Change); 3] = [
        ("another renamed over it", |path| {
            let other = path.with_extension("new");
            fs::copy(corpus("002-v3-plain"), &other).expect("a copy");
            fs::rename(other, path).expect("renamed");
        }),
        ("moved away", |path| {
            fs::rename(path, path.with_extension("old")).expect("renamed");
        }),
        ("removed", |path| fs::remove_file(path).expect("removed")),
    ];
    for (what, change) in changes {
        let check = stopped_check(&stage);
        change(&stage.path("image"));
        check.signal("CONT");
        let said = check.wait();
        assert_eq!(said.exit, Some(5), "{what}: {}{}", said.out(), said.err());
        let document = said.document();
        assert_eq!(document["changed-while-read"], true, "{what}");
        assert_eq!(document["verdict"], "unreadable", "{what}");
    }
}

/// A check that is started with a signal ignored, as `nohup` does it.
fn ignoring(stage: &Stage, signal: &str) -> Running {
    let script = format!("trap '' {signal}; exec \"$0\" check --output json -j 1 image");
    let mut command = Command::new("sh");
    command.args(["-c", &script, QFSCK]);
    stage.start_command(command)
}

#[test]
fn a_signal_that_was_ignored_before_stays_so() {
    let stage = Stage::new();
    let large = LargeImage::of_a_moment();
    large.write(&stage.path("image"));
    for signal in ["HUP", "INT", "TERM"] {
        let mut check = ignoring(&stage, signal);
        assert!(check.has_read(large.head_bytes()), "it ended too soon");
        check.signal(signal);
        let said = check.wait();
        said.expect_exit(0);
        assert_eq!(said.document()["coverage"]["stopped"], false, "{signal}");
    }
    // And one that was not ignored still stops it.
    let large = large_image(&stage);
    let mut check = ignoring(&stage, "HUP");
    assert!(check.has_read(large.head_bytes()), "it ended too soon");
    check.signal("TERM");
    let said = check.wait();
    said.expect_exit(1);
    expect_partial(&said);
}

#[test]
fn a_signal_ends_the_planning_of_a_repair_soon_wherever_it_is() {
    let stage = Stage::new();
    // Many tables, and many leaks to look through for lost ones.
    let large = LargeImage {
        l2_tables: 1 << 14,
        leaks: 1 << 14,
    };
    large.write(&stage.path("image"));
    large.fill_leaks(&stage.path("image"));
    let (mut stopped, mut slowest) = (0, Duration::ZERO);
    for moment in 0..24 {
        let mut repair = stage.start(["repair", "--dry-run", "image"]);
        assert!(repair.has_locked(), "the repair ended too soon");
        thread::sleep(Duration::from_millis(40 + moment * 90));
        let sent = Instant::now();
        repair.signal("INT");
        let said = repair.wait();
        if said.err().contains("stopped by a signal") {
            stopped += 1;
            slowest = slowest.max(sent.elapsed());
            assert!(sent.elapsed() < SOON, "it took {:?}", sent.elapsed());
        }
    }
    println!("{stopped} plans stopped, the slowest in {slowest:?}");
    assert!(stopped > 6, "only {stopped} plans were stopped");
}

#[test]
fn an_image_that_is_only_looked_at_does_not_count_as_changed() {
    let stage = Stage::new();
    let check = stopped_check(&stage);
    fs::hard_link(stage.path("image"), stage.path("backup")).expect("a link can be made");
    stage.qfsck(["check", "-q", "backup"]).expect_exit(0);
    check.signal("CONT");
    let said = check.wait();
    said.expect_exit(0);
    assert_eq!(said.document()["changed-while-read"], false);
}

#[test]
fn progress_events_are_json_lines_on_stderr_and_only_on_demand() {
    let stage = Stage::new();
    large_image(&stage);
    let options = ["check", "--output", "json", "-j", "1", "--budget", "900ms"];
    for progress in [&[][..], &["--progress", "auto"], &["--progress", "none"]] {
        let said = stage.qfsck(options.iter().chain(progress).chain(&["image"]));
        said.expect_exit(6);
        assert_eq!(said.err(), "", "{progress:?}");
    }
    let said = stage.qfsck(options.iter().chain(&["--progress", "json", "image"]));
    expect_partial(said.expect_exit(6));
    let events: Vec<Value> = said
        .err()
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert!(events.len() >= 2, "{}", said.err());
    for event in events {
        assert_eq!(event["event"], "progress");
        assert!(event["phase"].is_string(), "{event}");
        assert!(
            event["done-bytes"].as_u64() <= event["total-bytes"].as_u64(),
            "{event}"
        );
    }
}
