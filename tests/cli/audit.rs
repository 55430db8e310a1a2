//! An audit of one machine: which files it finds, how it calls them, what it may use, and that it ends.
//!
//! Comes in: directories with images and other things. Goes out: records, a summary, an exit code. Never here: nights,
//! shards, running machines.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::stage::{LargeImage, Running, Said, Stage, bytes_of, is_root, skip};

/// The status of each image, by the name of its file.
pub(super) fn statuses(said: &Said) -> BTreeMap<String, String> {
    let documents = said.documents();
    let status = |record: &Value| {
        let path = record["image"].as_str().expect("a path").to_owned();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        (name, record["status"].as_str().expect("a word").to_owned())
    };
    documents.iter().map(status).collect()
}

/// Runs a program to its end, and says how much memory it had at most, in KiB.
pub(super) fn peak_kibibytes(mut running: Running) -> (u64, Said) {
    let mut kibibytes = 0_u64;
    while running.is_running() {
        let status = fs::read_to_string(format!("/proc/{}/status", running.id()));
        let status = status.unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.split_whitespace().next()?.parse().ok());
        kibibytes = kibibytes.max(peak.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    (kibibytes, running.wait())
}

fn audit(stage: &Stage, arguments: &[&str]) -> Said {
    stage.qfsck([&["audit", "--output", "jsonl"], arguments].concat())
}

fn named(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, status)| ((*name).to_owned(), (*status).to_owned()))
        .collect()
}

#[test]
fn images_are_found_by_their_first_bytes_and_not_by_their_names() {
    let stage = Stage::new();
    fs::create_dir_all(stage.path("a/b/.hidden")).expect("directories can be made");
    stage.copy("002-v3-plain", "a/disk.img");
    stage.copy("100-refcount-leak", "a/b/.hidden/without-a-name");
    stage.copy("104-refcount-zero-data", "a/b/broken");
    stage.copy("117-copied-missing-in-l2", "a/b/shaky");
    stage.copy("310-cluster-bits-absurd", "a/b/unusable");
    stage.copy("362-qcow-v1", "a/b/old");
    stage.put("a/notes.txt", b"QFI is not all of it");
    stage.put("a/short", b"QFI");
    stage.put("a/empty", b"");
    stage.put("a/overwritten.QCOW2", &[0; 9000]);
    let said = audit(&stage, &["a"]);
    said.expect_exit(0);
    let expected = [
        ("broken", "do-not-boot"),
        ("disk.img", "clean"),
        ("old", "not-qcow2"),
        ("overwritten.QCOW2", "not-qcow2"),
        ("shaky", "repairable"),
        ("unusable", "unreadable"),
        ("without-a-name", "leaks"),
    ];
    assert_eq!(statuses(&said), named(&expected));
    assert!(said.err().contains("7 images"), "{}", said.err());
    let mut records = said.documents().into_iter();
    let leak = records.find(|record| record["status"] == "leaks");
    let leak = leak.expect("one has leaks");
    assert_eq!(leak["leaks"], 1);
    assert_eq!(leak["findings"]["refcount-leak"], 1);
    assert!(leak["leaked-bytes"].as_u64() >= Some(512));
}

#[test]
fn the_summary_names_the_worst_first() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "good");
    stage.copy("100-refcount-leak", "leaky");
    stage.copy("104-refcount-zero-data", "broken");
    let said = stage.qfsck(["audit", "."]);
    said.expect_exit(0);
    let text = said.out();
    let at = |word: &str| text.find(word).expect("it is said");
    assert!(at("broken") < at("leaky"), "{text}");
    assert!(at("refcount-zero") > at("do-not-boot"), "{text}");
    assert!(text.contains("1 do-not-boot, 1 leaks, 1 clean"), "{text}");
    assert!(!text.contains("good"), "{text}");
}

#[test]
fn fifos_sockets_and_links_are_passed_by() {
    let stage = Stage::new();
    fs::create_dir(stage.path("a")).expect("a directory can be made");
    stage.copy("002-v3-plain", "outside");
    stage.copy("002-v3-plain", "a/inside");
    mkfifo(&stage.path("a/fifo.qcow2"), Mode::S_IRWXU).expect("a FIFO can be made");
    let socket = std::os::unix::net::UnixListener::bind(stage.path("a/socket.qcow2"));
    let _socket = socket.expect("a socket can be made");
    symlink("../outside", stage.path("a/leads-out")).expect("a link can be made");
    symlink("inside", stage.path("a/leads-in")).expect("a link can be made");
    symlink("..", stage.path("a/leads-up")).expect("a link can be made");
    symlink("/dev/zero", stage.path("a/device.qcow2")).expect("a link can be made");
    let said = audit(&stage, &["a"]);
    said.expect_exit(0);
    assert_eq!(statuses(&said), named(&[("inside", "clean")]));
    assert!(
        said.err().contains("4 symbolic links not followed"),
        "{}",
        said.err()
    );
    symlink("a", stage.path("root")).expect("a link can be made");
    let said = audit(&stage, &["root"]);
    assert_eq!(statuses(&said), named(&[("inside", "clean")]));
}

#[test]
fn a_file_with_several_names_is_one_image() {
    let stage = Stage::new();
    fs::create_dir(stage.path("z")).expect("a directory can be made");
    let image = stage.copy("002-v3-plain", "z/m");
    fs::hard_link(&image, stage.path("z/b")).expect("a link can be made");
    fs::hard_link(&image, stage.path("z/x")).expect("a link can be made");
    let said = audit(&stage, &["z", "z/x", "."]);
    assert_eq!(statuses(&said), named(&[("b", "clean")]));
    assert_eq!(said.document()["other-names"], 2);
}

#[test]
fn patterns_leave_files_out_as_gitignore_does() {
    let stage = Stage::new();
    for name in ["keep", "drop.tmp", "old/a", "old/b", "new/a"] {
        let path = Path::new(name);
        fs::create_dir_all(stage.path(path.parent().unwrap_or(path)))
            .expect("directories can be made");
        stage.copy("002-v3-plain", name);
    }
    let count = |arguments: &[&str]| statuses_with_paths(&audit(&stage, arguments)).len();
    assert_eq!(count(&["."]), 5);
    assert_eq!(count(&["--exclude", "*.tmp", "."]), 4);
    assert_eq!(count(&["--exclude", "*.tmp", "--exclude", "/old/", "."]), 2);
    stage.put(".qfsckignore", b"old/*\n!old/b\n");
    assert_eq!(count(&["."]), 4);
    assert_eq!(count(&["--no-ignore-files", "."]), 5);
    // What others are to ignore is not left out.
    stage.put(".gitignore", b"*\n");
    stage.put(".ignore", b"*\n");
    assert_eq!(count(&["."]), 4);
    audit(&stage, &["--exclude", "a{b", "."]).expect_exit(64);
}

fn statuses_with_paths(said: &Said) -> Vec<String> {
    let documents = said.documents();
    let path = |record: &Value| record["image"].as_str().unwrap_or_default().to_owned();
    documents.iter().map(path).collect()
}

#[test]
fn what_a_person_names_has_a_record_whatever_it_is() {
    let stage = Stage::new();
    stage.put("raw", &[7; 5000]);
    let said = audit(&stage, &["raw"]);
    said.expect_exit(0);
    assert_eq!(statuses(&said), named(&[("raw", "not-qcow2")]));
    let said = audit(&stage, &["raw", "missing"]);
    said.expect_exit(8);
    assert_eq!(statuses(&said).len(), 1);
    assert!(said.err().contains("missing"), "{}", said.err());
    stage.qfsck(["audit"]).expect_exit(64);
}

#[test]
fn what_cannot_be_looked_into_is_said_and_is_a_failure() {
    if is_root() {
        return skip("nothing is closed to root: a directory nobody may read");
    }
    let stage = Stage::new();
    fs::create_dir(stage.path("closed")).expect("a directory can be made");
    stage.copy("002-v3-plain", "open");
    let close = |mode| fs::set_permissions(stage.path("closed"), fs::Permissions::from_mode(mode));
    close(0).expect("permissions can be set");
    let said = audit(&stage, &["."]);
    close(0o700).expect("permissions can be set");
    said.expect_exit(8);
    assert!(said.err().contains("closed"), "{}", said.err());
    assert_eq!(statuses(&said).len(), 1);
}

#[test]
fn hostile_names_act_on_no_terminal() {
    let stage = Stage::new();
    fs::create_dir(stage.path("a")).expect("a directory can be made");
    let names: [&[u8]; 3] = [b"new\nline", b"\x1b[2Jclear", b"\xff\xfe"];
    for name in names {
        stage.copy(
            "100-refcount-leak",
            Path::new("a").join(OsStr::from_bytes(name)),
        );
    }
    let said = stage.qfsck(["audit", "a"]);
    said.expect_exit(0);
    let text = said.out();
    assert!(
        !text.contains('\x1b') && text.contains("\\x1b[2Jclear"),
        "{text}"
    );
    assert!(
        text.contains("new\\x0aline") && text.contains("\\xff\\xfe"),
        "{text}"
    );
    let said = audit(&stage, &["a"]);
    assert_eq!(said.documents().len(), 3);
    assert!(!said.stdout.contains(&0x1b));
}

#[test]
fn fail_on_turns_findings_into_exit_codes() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "good");
    let run = |what: &str| audit(&stage, &["--fail-on", what, "."]);
    run("leak").expect_exit(0);
    stage.copy("100-refcount-leak", "leaky");
    run("corruption").expect_exit(0);
    run("leak").expect_exit(3);
    stage.copy("117-copied-missing-in-l2", "shaky");
    run("corruption").expect_exit(2);
    run("leak").expect_exit(2);
}

#[test]
fn metrics_have_no_paths_unless_they_are_asked_for() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "a\"b\\c");
    stage.copy("002-v3-plain", "good");
    audit(&stage, &["--metrics", "m.prom", "."]).expect_exit(0);
    let read = || fs::read_to_string(stage.path("m.prom")).expect("there are metrics");
    let text = read();
    for line in [
        "qfsck_images{status=\"leaks\"} 1",
        "qfsck_images{status=\"clean\"} 1",
        "qfsck_images{status=\"do-not-boot\"} 0",
        "qfsck_findings{code=\"refcount-leak\"} 1",
        "qfsck_missing 0",
    ] {
        assert!(text.lines().any(|has| has == line), "{line} in {text}");
    }
    assert!(!text.contains("good"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(
            name.starts_with("qfsck_") && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }
    audit(&stage, &["--metrics", "m.prom", "--metrics-per-image", "."]).expect_exit(0);
    let text = read();
    assert!(text.contains("good\",status=\"clean\"} 0"), "{text}");
    assert!(
        text.contains("a\\\"b\\\\\\\\c\",status=\"leaks\"}"),
        "{text}"
    );
    let left: Vec<_> = fs::read_dir(stage.path(""))
        .expect("it is there")
        .flatten()
        .collect();
    assert_eq!(left.len(), 3, "no unfinished file: {left:?}");
}

/// What takes so many seconds at 20 MB/s: 6, or 30 where somebody asks for the long rounds.
fn pace_seconds() -> u64 {
    let is_long = std::env::var_os("QFSCK_AUDIT_ROUNDS").is_some();
    if is_long { 30 } else { 6 }
}

#[test]
fn reads_and_bytes_a_second_are_kept() {
    let stage = Stage::new();
    let seconds = pace_seconds();
    let image = LargeImage {
        l2_tables: seconds * 20_000_000 / 65_536 / 2,
        leaks: 0,
    };
    image.write(&stage.path("one"));
    image.write(&stage.path("two"));
    let said = audit(&stage, &["--max-mbps", "20", "--jobs", "2", "."]);
    said.expect_exit(0);
    assert_eq!(
        statuses(&said),
        named(&[("one", "clean"), ("two", "clean")])
    );
    let read: u64 = said
        .documents()
        .iter()
        .filter_map(|record| record["run"]["bytes-read"].as_u64())
        .sum();
    let due = Duration::from_micros(read / 20);
    println!("{read} bytes in {:?}, due {due:?}", said.took);
    assert!(due > Duration::from_secs(seconds).mul_f64(0.9), "{due:?}");
    assert!(said.took > due.mul_f64(0.9), "{:?} for {due:?}", said.took);
    // Time to start, and a machine that is busy with other tests.
    let latest = due.mul_f64(1.1) + Duration::from_secs(1);
    assert!(said.took < latest, "{:?} for {due:?}", said.took);
    stage.put("three", &bytes_of("002-v3-plain"));
    let said = audit(&stage, &["--max-iops", "5", "three"]);
    let reads = said.document()["run"]["reads"].as_u64().expect("a number");
    let due = Duration::from_millis(reads.saturating_sub(2) * 1000 / 5);
    assert!(said.took > due, "{:?} for {reads} reads", said.took);
}

#[test]
fn reads_that_wait_for_nothing_are_counted_like_all_others() {
    let stage = Stage::new();
    stage.put("image", &bytes_of("002-v3-plain"));
    let counted = |limits: &[&str]| {
        let said = audit(&stage, &[limits, &["image"]].concat());
        let document = said.document();
        ["reads", "bytes-read"].map(|key| document["run"][key].as_u64().expect("a number"))
    };
    // Under a limit every read waits for its turn.
    let [reads, bytes] = counted(&["--max-iops", "1000000"]);
    // Without one, tables are tried first.
    let [reads_at_hand, bytes_at_hand] = counted(&[]);
    assert!(reads <= reads_at_hand, "{reads} {reads_at_hand}");
    assert!(bytes <= bytes_at_hand, "{bytes} {bytes_at_hand}");
}

#[test]
fn a_signal_and_the_time_end_an_audit_with_what_is_known() {
    let stage = Stage::new();
    let large = LargeImage::of_a_while();
    large.write(&stage.path("large"));
    stage.copy("002-v3-plain", "good");
    let mut running = stage.start(["audit", "--output", "jsonl", "--jobs", "2", "."]);
    assert!(running.has_read(large.head_bytes()));
    let asked = std::time::Instant::now();
    running.signal("TERM");
    let said = running.wait();
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    said.expect_exit(75);
    assert_eq!(statuses(&said), named(&[("good", "clean")]));
    assert!(said.err().contains("1 image not reached"), "{}", said.err());
    let said = audit(&stage, &["--jobs", "2", "--time", "300ms", "."]);
    said.expect_exit(75);
    assert!(said.took < Duration::from_secs(3), "{:?}", said.took);
    assert_eq!(statuses(&said), named(&[("good", "clean")]));
}

#[test]
fn an_image_that_takes_too_long_is_given_up_and_the_next_one_is_looked_at() {
    let stage = Stage::new();
    LargeImage::of_a_while().write(&stage.path("a-large"));
    stage.copy("100-refcount-leak", "b-small");
    let said = audit(&stage, &["--jobs", "1", "--image-time", "300ms", "."]);
    said.expect_exit(0);
    let expected = [("a-large", "unfinished"), ("b-small", "leaks")];
    assert_eq!(statuses(&said), named(&expected));
    let given_up = &said.documents()[0];
    assert_eq!(given_up["reason"], "it took longer than 300ms");
    assert_eq!(given_up.get("corruptions"), None);
}
