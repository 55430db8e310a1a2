//! `check --untrusted` as a gate runs it: the exit code, the words, and the system calls.
//!
//! Comes in: images of the corpus, some with names of other files. Goes out: what the gate says. Never here: the rules
//! themselves (`policy`).

use super::footprint::{calls, expect_one_reading_open};
use super::stage::{Stage, bytes_of, has_tools};

const CLEAN: &str = "002-v3-plain";
const LEAKS: &str = "100-refcount-leak";
const CORRUPT: &str = "104-refcount-zero-data";
const BACKING: &str = "042-backing-present";
const NOTICE: &str = "048-dirty-bit-only";

#[test]
fn a_gate_turns_away_with_2_and_only_if_it_is_told_to() {
    let stage = Stage::new();
    for case in [CLEAN, LEAKS, CORRUPT, BACKING, NOTICE] {
        stage.copy(case, case);
    }
    let rows: [(&str, &[&str], i32); 13] = [
        (CLEAN, &["--untrusted"], 0),
        (CLEAN, &["--untrusted", "--fail-on", "policy"], 0),
        (BACKING, &[], 0),
        (BACKING, &["--untrusted"], 0),
        (BACKING, &["--untrusted", "--fail-on", "policy"], 2),
        (BACKING, &["--untrusted", "--fail-on", "leak,policy"], 2),
        (BACKING, &["--untrusted", "--fail-on", "leak"], 0),
        (LEAKS, &["--untrusted", "--fail-on", "policy"], 3),
        (LEAKS, &["--fail-on", "leak"], 2),
        (LEAKS, &["--fail-on", "notice"], 3),
        (CORRUPT, &["--untrusted", "--fail-on", "policy"], 2),
        (NOTICE, &["--fail-on", "notice"], 2),
        (NOTICE, &["--fail-on", "leak"], 0),
    ];
    for (case, options, code) in rows {
        let arguments = [&["check", "-q"], options, &[case]].concat();
        let said = stage.qfsck(&arguments);
        assert_eq!(said.exit, Some(code), "{arguments:?}: {}", said.err());
        let json = [&["check", "--output", "json"], options, &[case]].concat();
        let said = stage.qfsck(&json);
        assert_eq!(said.exit, Some(code), "{json:?}");
        let count = said.document()["policy-findings"].as_u64();
        let wanted = (case == BACKING && options.contains(&"--untrusted")).then_some(1);
        assert_eq!(count, wanted, "{json:?}");
    }
}

#[test]
fn limits_are_the_gates_own() {
    let stage = Stage::new();
    stage.copy(CLEAN, "image");
    let gate = ["check", "-q", "--untrusted", "--fail-on", "policy"];
    let with = |options: &[&'static str]| stage.qfsck([&gate, options, &["image"]].concat());
    with(&[]).expect_exit(0);
    with(&["--max-virtual-size", "1K"]).expect_exit(2);
    with(&["--max-virtual-size", "1T"]).expect_exit(0);
    with(&["--max-expansion", "1"]).expect_exit(0);
    with(&["--max-expansion", "0"]).expect_exit(64);
}

#[test]
fn a_gate_that_could_not_fail_is_a_mistake() {
    let stage = Stage::new();
    stage.copy(BACKING, "image");
    stage.put("base", &[]);
    let commands: [&[&str]; 6] = [
        &["check", "--fail-on", "policy", "image"],
        &["check", "--untrusted", "--fail-on", "corrupt", "image"],
        &["check", "--untrusted", "-r", "all", "image"],
        &["check", "--untrusted", "--data-file", "base", "image"],
        &["check", "--max-virtual-size", "1G", "image"],
        &["check", "--max-expansion", "10", "image"],
    ];
    for arguments in commands {
        let said = stage.qfsck(arguments);
        assert_eq!(said.exit, Some(64), "{arguments:?}: {}", said.err());
        assert_eq!(said.out(), "", "{arguments:?}");
    }
}

#[test]
fn people_are_told_what_is_turned_away_and_why() {
    let stage = Stage::new();
    stage.copy(BACKING, "image");
    let said = stage.qfsck(["check", "--untrusted", "image"]).out();
    assert!(said.contains("policy policy-backing-file"), "{said}");
    assert!(
        said.contains("\"base.qcow2\"") || said.contains("\"base"),
        "{said}"
    );
    assert!(
        said.contains("1 against the policy for untrusted images"),
        "{said}"
    );
    let explained = stage.qfsck(["explain", "policy-backing-file"]).out();
    assert!(explained.contains("--untrusted"), "{explained}");
}

#[test]
fn a_gate_opens_the_image_and_nothing_it_names() {
    if !has_tools(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    let gate = ["check", "--untrusted", "--fail-on", "policy", "image"];
    for (case, neighbour) in [(BACKING, "base.raw"), ("044-data-file-raw", "data.raw")] {
        stage.copy(case, "image");
        stage.put(neighbour, &[0; 4096]);
        let Some(calls) = calls(&stage, &gate) else {
            return;
        };
        expect_one_reading_open(&calls, "image", &[neighbour]);
    }
    for backing in [
        "nbd://127.0.0.1:9/disk",
        "json:{\"driver\":\"nbd\"}",
        "fifo",
    ] {
        let mut bytes = bytes_of("041-backing-missing");
        bytes[8..16].copy_from_slice(&400_u64.to_be_bytes());
        let length = u32::try_from(backing.len()).expect("a small number");
        bytes[16..20].copy_from_slice(&length.to_be_bytes());
        bytes[400..400 + backing.len()].copy_from_slice(backing.as_bytes());
        stage.put("image", &bytes);
        let Some(calls) = calls(&stage, &gate) else {
            return;
        };
        expect_one_reading_open(&calls, "image", &[backing]);
    }
}

#[test]
fn a_deep_read_finds_what_tables_cannot_tell() {
    let stage = Stage::new();
    let garbage = "194-compressed-payload-garbage";
    let tail = "280-bitmap-bits-past-end-of-disk";
    for case in [CLEAN, garbage, tail] {
        stage.copy(case, case);
    }
    stage.qfsck(["check", "-q", CLEAN]).expect_exit(0);
    stage.qfsck(["check", "-q", "--deep", CLEAN]).expect_exit(0);
    let shallow = stage.qfsck(["check", "-q", garbage]).exit;
    assert_eq!(shallow, Some(0), "the tables are consistent");
    let said = stage.qfsck(["check", "--deep", garbage]);
    said.expect_exit(2);
    assert!(
        said.out().contains("compressed-data-invalid"),
        "{}",
        said.out()
    );
    assert!(said.out().contains("guest "), "{}", said.out());
    let said = stage.qfsck(["check", "--deep", tail]);
    said.expect_exit(0);
    assert!(
        said.out().contains("bitmap-tail-bits-set"),
        "{}",
        said.out()
    );
    stage
        .qfsck(["check", "--deep", "-r", "all", CLEAN])
        .expect_exit(64);
}
