//! A plan to look at, and to apply later: `--dry-run`, `--plan`, `--apply`, and the wishes a plan is made with.
//!
//! Comes in: damaged images, plan files as they were written and as somebody changed them. Goes out: a repair that was
//! looked at, or none. Never here: whether a plan is a good one (`plan`, `crash`).

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::repair_stage::with_fault;
use super::stage::{LargeImage, Said, Stage, bytes_of};

const LEAK: &str = "100-refcount-leak";
const TOO_LOW: &str = "113-refcount-too-low-with-snapshots";

fn bytes_at(path: &Path) -> Vec<u8> {
    fs::read(path).expect("the file can be read")
}

fn plan_in(stage: &Stage, name: &str) -> Value {
    serde_json::from_slice(&bytes_at(&stage.path(name))).expect("a plan is one JSON document")
}

/// The image is as it was, and there is no undo file.
#[track_caller]
fn expect_untouched(stage: &Stage, case: &str) {
    assert!(
        bytes_at(&stage.path("image")) == bytes_of(case),
        "the image changed"
    );
    assert!(!stage.path("image.qfsck-undo").exists());
}

#[test]
fn a_dry_run_says_of_each_stage_what_it_does_and_why() {
    let stage = Stage::new();
    stage.copy(TOO_LOW, "image");
    let said = stage.qfsck(["repair", "--dry-run", "image"]);
    said.expect_exit(2);
    for words in [
        "metadata only, no guest data is touched",
        "raise refcounts that are too low: 1 change in 1 sector",
        "for refcount-too-low (1×)",
        "the file keeps its length",
        "verdict: do-not-boot now, clean afterwards",
    ] {
        assert!(
            said.out().contains(words),
            "{words} is not in {}",
            said.out()
        );
    }
    expect_untouched(&stage, TOO_LOW);
    // What is left is named, with the reason.
    stage.copy("130-l1-entry-lost", "image");
    let said = stage.qfsck(["repair", "--dry-run", "image"]);
    let plan = stage.qfsck(["repair", "--plan", "-", "image"]).document();
    for withheld in plan["withheld"].as_array().expect("a list") {
        let code = withheld["code"].as_str().expect("a code");
        assert!(
            said.out().contains(&format!("left as it is: {code}")),
            "{}",
            said.out()
        );
        assert_ne!(withheld["reason"], "");
    }
}

#[test]
fn a_plan_is_one_document_and_changes_nothing() {
    let stage = Stage::new();
    stage.copy(TOO_LOW, "image");
    let said = stage.qfsck(["repair", "--plan", "-", "image"]);
    said.expect_exit(2);
    let plan = said.document();
    assert_eq!(plan["kind"], "repair-plan");
    assert_eq!(plan["schema"], 1);
    assert_eq!(plan["image"]["filename"], "image");
    assert_eq!(
        plan["image"]["length"].as_u64(),
        Some(bytes_of(TOO_LOW).len() as u64)
    );
    assert_eq!(plan["options"]["mode"], "all");
    assert_eq!(plan["options"]["overlaps"], "clone");
    assert_eq!(plan["before"]["verdict"], "do-not-boot");
    assert_eq!(plan["before"]["totals"]["refcount-too-low"]["count"], 1);
    assert_eq!(plan["after"]["verdict"], "clean");
    let stages = plan["stages"].as_array().expect("a list");
    let raise = stages
        .iter()
        .find(|stage| stage["stage"] == "raise-refcounts");
    let raise = raise.expect("the refcount is raised");
    assert_eq!(raise["changes"][0]["code"], "refcount-too-low");
    // What must be there before is what is there.
    for edit in stages
        .iter()
        .flat_map(|stage| stage["edits"].as_array().expect("a list"))
    {
        let length = usize::try_from(edit["length"].as_u64().expect("a number")).expect("small");
        assert_eq!(edit["after"].as_str().map(str::len), Some(2 * length));
    }
    let edit = &raise["edits"][0];
    let offset = usize::try_from(edit["offset"].as_u64().expect("a number")).expect("small");
    let before = edit["before"].as_str().expect("digits");
    let digits: Vec<_> = before.as_bytes().chunks(2).collect();
    let digits = digits.iter().map(|pair| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("two digits")
    });
    let original = &bytes_of(TOO_LOW)[offset..offset + 512];
    assert!(digits.eq(original.iter().copied()));
    expect_untouched(&stage, TOO_LOW);
}

#[test]
fn a_plan_that_was_looked_at_is_applied_as_it_was() {
    let stage = Stage::new();
    let image = stage.copy(TOO_LOW, "image");
    stage
        .qfsck(["repair", "--plan", "plan", "image"])
        .expect_exit(2);
    stage
        .qfsck(["repair", "--apply", "plan", "--dry-run", "image"])
        .expect_exit(2);
    expect_untouched(&stage, TOO_LOW);
    // Without --yes nobody has agreed.
    stage
        .qfsck(["repair", "--apply", "plan", "image"])
        .expect_exit(2);
    expect_untouched(&stage, TOO_LOW);
    // By any name: a moved image is the same file.
    fs::rename(&image, stage.path("moved")).expect("renamed");
    stage
        .qfsck(["repair", "--apply", "plan", "--yes", "moved"])
        .expect_exit(0);
    stage.copy(TOO_LOW, "reference");
    stage.qfsck(["repair", "--yes", "reference"]).expect_exit(0);
    assert!(bytes_at(&stage.path("moved")) == bytes_at(&stage.path("reference")));
    // Twice is once too often.
    stage
        .qfsck(["repair", "--apply", "plan", "--yes", "moved"])
        .expect_exit(5);
}

#[test]
fn the_options_of_a_plan_are_those_it_is_applied_with() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    let plan = [
        "repair",
        "--plan",
        "plan",
        "--mode",
        "leaks",
        "--overlaps",
        "keep",
    ];
    let loss = [
        "--accept-loss",
        "refcount-leak",
        "--accept-loss",
        "l2-entry-unaligned",
    ];
    stage
        .qfsck(plan.iter().chain(&loss).chain(&["image"]))
        .expect_exit(3);
    let options = &plan_in(&stage, "plan")["options"];
    assert_eq!(options["mode"], "leaks");
    assert_eq!(options["overlaps"], "keep");
    assert_eq!(
        options["accepted-losses"].as_array().map(Vec::len),
        Some(2),
        "{options}"
    );
    stage
        .qfsck(["repair", "--apply", "plan", "--yes", "image"])
        .expect_exit(0);
    for also in [
        &["--mode", "all"][..],
        &["--overlaps", "keep"],
        &["--accept-loss", "refcount-leak"],
    ] {
        let apply = ["repair", "--apply", "plan", "image"];
        stage.qfsck(apply.iter().chain(also)).expect_exit(64);
    }
}

#[test]
fn a_plan_of_one_image_is_refused_on_a_copy_of_it() {
    let stage = Stage::new();
    stage.copy(LEAK, "original");
    stage
        .qfsck(["repair", "--plan", "plan", "original"])
        .expect_exit(3);
    stage.copy(LEAK, "image");
    let said = stage.qfsck(["repair", "--apply", "plan", "--yes", "image"]);
    said.expect_exit(5);
    assert!(said.err().contains("another file"), "{}", said.err());
    expect_untouched(&stage, LEAK);
}

#[test]
fn a_plan_is_refused_once_the_metadata_is_other_than_it_was() {
    let stage = Stage::new();
    let image = stage.copy(LEAK, "image");
    stage
        .qfsck(["repair", "--plan", "plan", "image"])
        .expect_exit(3);
    let original = bytes_at(&image);
    let changes: [(usize, u8); 3] = [
        (105, 1),      // in the header's cluster, and nobody's business but the digest's
        (1024 + 1, 2), // a refcount
        (79, 2),       // the corrupt bit
    ];
    for (at, value) in changes {
        let mut bytes = original.clone();
        bytes[at] = value;
        fs::write(&image, &bytes).expect("written");
        let said = stage.qfsck(["repair", "--apply", "plan", "--yes", "image"]);
        said.expect_exit(5);
        assert!(
            said.err().contains("the image changed"),
            "{at}: {}",
            said.err()
        );
        assert!(bytes_at(&image) == bytes, "{at}: the image was written to");
    }
    let mut longer = original.clone();
    longer.extend([0; 512]);
    fs::write(&image, &longer).expect("written");
    let said = stage.qfsck(["repair", "--apply", "plan", "--yes", "image"]);
    said.expect_exit(5);
    assert!(said.err().contains("length"), "{}", said.err());
    fs::write(&image, &original).expect("written");
    stage
        .qfsck(["repair", "--apply", "plan", "--yes", "image"])
        .expect_exit(0);
}

#[test]
fn a_doctored_plan_writes_nothing() {
    let stage = Stage::new();
    stage.copy(TOO_LOW, "image");
    stage
        .qfsck(["repair", "--plan", "plan", "image"])
        .expect_exit(2);
    let plan = plan_in(&stage, "plan");
    let pointers = [
        "/stages/0/edits/0/offset",
        "/stages/0/edits/0/length",
        "/stages/0/edits/0/after",
        "/stages/0/edits/0/before",
        "/stages/0/stage",
        "/stages/0/purpose",
        "/stages/0/changes/0/count",
        "/stages/0/copies",
        "/withheld",
        "/before/verdict",
        "/after/totals",
        "/plan-digest",
        "/image/metadata-digest",
        "/image/length",
        "/image/length-after",
        "/image/device",
        "/image/inode",
        "/image/block-device",
    ];
    for pointer in pointers {
        for value in [
            serde_json::json!(4711),
            serde_json::json!("00"),
            Value::Null,
        ] {
            let mut doctored = plan.clone();
            *doctored.pointer_mut(pointer).expect(pointer) = value;
            stage.put("doctored", doctored.to_string().as_bytes());
            let said = stage.qfsck(["repair", "--apply", "doctored", "--yes", "image"]);
            assert_eq!(said.exit, Some(5), "{pointer}: {}", said.err());
        }
    }
    let mut longer = plan.clone();
    longer["extra"] = Value::Bool(true);
    stage.put("doctored", longer.to_string().as_bytes());
    stage
        .qfsck(["repair", "--apply", "doctored", "--yes", "image"])
        .expect_exit(5);
    expect_untouched(&stage, TOO_LOW);
    // Only the path as it was given and the version may differ.
    let mut renamed = plan.clone();
    renamed["image"]["filename"] = Value::from("elsewhere");
    renamed["program-version"] = Value::from("99.0");
    stage.put("renamed", renamed.to_string().as_bytes());
    stage
        .qfsck(["repair", "--apply", "renamed", "--yes", "image"])
        .expect_exit(0);
}

#[test]
fn what_is_no_plan_is_a_usage_error() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    stage
        .qfsck(["repair", "--plan", "plan", "image"])
        .expect_exit(3);
    let plan = plan_in(&stage, "plan");
    let check = stage.qfsck(["check", "--output", "json", "image"]).stdout;
    let with = |key: &str, value: Value| {
        let mut other = plan.clone();
        other[key] = value;
        other.to_string().into_bytes()
    };
    let mut wrong_options = plan.clone();
    wrong_options["options"]["accepted-losses"] = serde_json::json!(["no-such-code"]);
    let files = [
        Vec::new(),
        b"{}".to_vec(),
        b"[".repeat(100_000),
        bytes_of(LEAK),
        check,
        bytes_at(&stage.path("plan"))[..200].to_vec(),
        with("kind", Value::from("recipe")),
        with("schema", Value::from(99)),
        with("options", Value::Null),
        wrong_options.to_string().into_bytes(),
    ];
    for (number, bytes) in files.iter().enumerate() {
        stage.put("file", bytes);
        let said = stage.qfsck(["repair", "--apply", "file", "--yes", "image"]);
        assert_eq!(said.exit, Some(64), "{number}: {}", said.err());
        assert_eq!(said.out(), "");
    }
    let long = fs::File::create(stage.path("long")).expect("created");
    long.set_len(1 << 40).expect("a hole");
    for name in ["long", "missing", "."] {
        let said = stage.qfsck(["repair", "--apply", name, "--yes", "image"]);
        said.expect_exit(1);
        assert!(said.took.as_secs() < 5, "it took {:?}", said.took);
    }
    expect_untouched(&stage, LEAK);
}

#[test]
fn a_plan_is_never_written_over_a_file() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    stage.copy(LEAK, "other");
    let said = stage.qfsck(["repair", "--plan", "other", "image"]);
    said.expect_exit(1);
    assert!(bytes_at(&stage.path("other")) == bytes_of(LEAK));
    stage
        .qfsck(["repair", "--plan", "image", "image"])
        .expect_exit(1);
    expect_untouched(&stage, LEAK);
}

#[test]
fn an_unknown_loss_is_a_usage_error_that_names_codes_spelled_alike() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    let said = stage.qfsck(["repair", "--yes", "--accept-loss", "refcount-laek", "image"]);
    said.expect_exit(64);
    assert!(said.err().contains("refcount-leak"), "{}", said.err());
    let said = stage.qfsck(["repair", "--yes", "--overlaps", "guess", "image"]);
    said.expect_exit(64);
    expect_untouched(&stage, LEAK);
    let loss = [
        "repair",
        "--dry-run",
        "--accept-loss",
        "l2-entry-unaligned",
        "image",
    ];
    let said = stage.qfsck(loss);
    said.expect_exit(3);
    assert!(said.err().contains("makes no difference"), "{}", said.err());
}

#[test]
fn planning_shows_progress_and_a_signal_ends_it_with_nothing_changed() {
    let stage = Stage::new();
    let large = LargeImage::of_a_while();
    large.write(&stage.path("image"));
    for verb in ["--yes", "--dry-run"] {
        let mut run = stage.start(["repair", verb, "--progress", "json", "image"]);
        assert!(run.has_read(large.head_bytes()), "it ended too soon");
        run.signal("INT");
        let said = run.wait();
        said.expect_exit(1);
        assert!(said.err().contains("nothing was changed"), "{}", said.err());
        let events = said
            .err()
            .lines()
            .filter(|line| line.starts_with('{'))
            .count();
        assert!(events > 0, "{}", said.err());
        assert!(!stage.path("image.qfsck-undo").exists());
    }
}

/// A repair that a signal comes into.
fn signalled(stage: &Stage, fault: &str, arguments: &[&str]) -> Option<Said> {
    stage.copy(TOO_LOW, "image");
    drop(fs::remove_file(stage.path("image.qfsck-undo")));
    with_fault(stage, fault, arguments)
}

#[test]
fn signals_wait_while_the_image_is_written_to() {
    let stage = Stage::new();
    let verbs: [&[&str]; 2] = [
        &["repair", "--yes", "image"],
        &["check", "-r", "all", "image"],
    ];
    for arguments in verbs {
        for fault in [
            "pwrite64:signal=INT:when=1",
            "pwrite64:signal=TERM:when=4",
            "fsync:signal=HUP:when=2+1",
            "pwrite64:signal=QUIT:when=4",
            "pwrite64:signal=INT:when=1+1",
        ] {
            let Some(said) = signalled(&stage, fault, arguments) else {
                return;
            };
            assert_eq!(said.exit, Some(0), "{fault}: {}", said.err());
            // One signal may be noticed too late to be told of; of many one is.
            let is_told = said.err().contains("a signal came");
            assert!(is_told || !fault.ends_with("+1"), "{fault}: {}", said.err());
            stage.qfsck(["check", "-q", "image"]).expect_exit(0);
        }
    }
}

#[test]
fn where_the_file_ends_inside_a_table_a_plan_says_the_way_on_and_it_leads_on() {
    let stage = Stage::new();
    let image = stage.copy("002-v3-plain", "image");
    let file = fs::OpenOptions::new().write(true).open(&image);
    let file = file.expect("it can be opened");
    // Half of the L2 table in the cluster at 0x800.
    file.set_len(0x900).expect("it can be cut");
    let said = stage.qfsck(["repair", "--dry-run", "image"]);
    said.expect_exit(2);
    let words = said.out();
    assert!(words.contains("truncate -s %65536"), "{words}");
    file.set_len(0xa00).expect("it can be made longer");
    // The tables behind the first are lost as well.
    let lost = ["l2-entry-past-end", "l2-table-past-end"];
    let given_up = lost.iter().flat_map(|code| ["--accept-loss", code]);
    let arguments: Vec<&str> = ["repair", "--yes", "image"]
        .into_iter()
        .chain(given_up)
        .collect();
    stage.qfsck(&arguments).expect_exit(0);
    stage.qfsck(["check", "image"]).expect_exit(0);
}
