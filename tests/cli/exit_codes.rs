//! Exit codes: each of them, usage errors that never look like findings, and several images at once.
//!
//! Comes in: images of the corpus. Goes out: numbers. Never here: what the report says.
//! Codes 4 to 6 have their own rooms, `locks` and `interruption`, and appear here only among several images.

use super::stage::{LargeImage, Stage, corpus};

const CLEAN: &str = "002-v3-plain";
const LEAKS: &str = "100-refcount-leak";
const CORRUPT: &str = "104-refcount-zero-data";
const RAW: &str = "360-raw-file";

#[test]
fn each_state_of_an_image_has_its_exit_code() {
    let stage = Stage::new();
    let codes = [
        (CLEAN, 0),
        ("048-dirty-bit-only", 0),
        (LEAKS, 3),
        (CORRUPT, 2),
        ("103-refcount-too-high-with-copied", 2),
        (RAW, 63),
        ("361-empty-file", 63),
        ("362-qcow-v1", 63),
        ("321-magic-damaged", 63),
    ];
    for (case, code) in codes {
        for output in ["human", "json", "jsonl"] {
            let arguments = ["check", "--output", output].map(Into::into);
            let said = stage.qfsck(arguments.into_iter().chain([corpus(case)]));
            assert_eq!(said.exit, Some(code), "{case} as {output}: {}", said.err());
        }
    }
    stage.qfsck(["check", "missing.qcow2"]).expect_exit(1);
}

#[test]
fn usage_errors_are_64_and_say_nothing_on_stdout() {
    let stage = Stage::new();
    let image = stage.copy(CLEAN, "image.qcow2");
    let before = std::fs::read(&image).expect("the image can be read");
    let commands: [&[&str]; 34] = [
        &[],
        &["frob"],
        &["check"],
        &["check", "--frob", "image.qcow2"],
        &["check", "--output", "xml", "image.qcow2"],
        &["check", "--jobs", "0", "image.qcow2"],
        &["check", "--jobs", "-1", "image.qcow2"],
        &["check", "--jobs", "100000", "image.qcow2"],
        &["check", "--budget", "2", "image.qcow2"],
        &["check", "--budget", "-1s", "image.qcow2"],
        &["check", "--budget", "soon", "image.qcow2"],
        &["check", "--progress", "loud", "image.qcow2"],
        &["check", "-r", "image.qcow2"],
        &["check", "-r", "some", "image.qcow2"],
        &["check", "-r", "all", "-U", "image.qcow2"],
        &["check", "-r", "all", "image.qcow2", "image.qcow2"],
        &["check", "--undo-file", "undo", "image.qcow2"],
        &[
            "check",
            "--data-file",
            "data.raw",
            "image.qcow2",
            "image.qcow2",
        ],
        &["check", "--output", "json", "image.qcow2", "image.qcow2"],
        &["check", ""],
        &["owner", "image.qcow2"],
        &["owner", "image.qcow2", "-1"],
        &["owner", "image.qcow2", "0x"],
        &["owner", "image.qcow2", "99999999T"],
        &["owner", "image.qcow2", "0", "1"],
        &["repair"],
        &["repair", "--mode", "some", "image.qcow2"],
        &["repair", "--yes", "image.qcow2", "image.qcow2"],
        &["repair", "--resume", "--dry-run", "image.qcow2"],
        &["repair", "--plan", "plan", "--apply", "plan", "image.qcow2"],
        &["undo"],
        &["undo", "--image", "image.qcow2"],
        &["explain", "no-such-code"],
        &["explain", "refcount-leak", "refcount-zero"],
    ];
    for arguments in commands {
        let said = stage.qfsck(arguments);
        assert_eq!(said.exit, Some(64), "{arguments:?}: {}", said.err());
        assert_eq!(said.out(), "", "{arguments:?}");
        assert_ne!(said.err(), "", "{arguments:?} without a word");
    }
    let after = std::fs::read(&image).expect("the image can be read");
    assert!(before == after, "a usage error changed the image");
}

#[test]
fn help_and_version_are_answers_and_not_errors() {
    let stage = Stage::new();
    let commands: [&[&str]; 9] = [
        &["--help"],
        &["-h"],
        &["--version"],
        &["help", "check"],
        &["check", "--help"],
        &["repair", "--help"],
        &["undo", "--help"],
        &["owner", "--help"],
        &["explain", "-h"],
    ];
    for arguments in commands {
        let said = stage.qfsck(arguments);
        said.expect_exit(0);
        assert_ne!(said.out(), "", "{arguments:?} without a word");
        assert_eq!(said.err(), "", "{arguments:?}");
    }
    let help = stage.qfsck(["check", "--help"]).out();
    for code in ["0", "1", "2", "3", "4", "5", "6", "63", "64", "70"] {
        let is_listed = help
            .lines()
            .any(|line| line.split_whitespace().next() == Some(code));
        assert!(is_listed, "the help does not explain exit code {code}");
    }
}

#[test]
fn options_of_qemu_img_scripts_are_understood() {
    let stage = Stage::new();
    stage.copy(CLEAN, "image.qcow2");
    for format in ["raw", "vmdk", "qcow", ""] {
        let said = stage.qfsck(["check", "-f", format, "image.qcow2"]);
        said.expect_exit(63);
        assert_eq!(said.out(), "");
        assert!(said.err().contains("qcow2"), "{}", said.err());
    }
    let accepted: [&[&str]; 5] = [
        &["-f", "qcow2"],
        &["-T", "none"],
        &["--object", "secret,id=s,data=x"],
        &["-U"],
        &["--force-share", "--format", "qcow2", "--output=json"],
    ];
    for options in accepted {
        let arguments = [&["check"], options, &["image.qcow2"]].concat();
        stage.qfsck(arguments).expect_exit(0);
    }
}

#[test]
fn of_several_images_the_gravest_is_the_answer() {
    let stage = Stage::new();
    for (case, name) in [(CLEAN, "clean"), (LEAKS, "leaks"), (CORRUPT, "corrupt")] {
        stage.copy(case, name);
    }
    stage.copy(RAW, "raw");
    // From the mildest to the gravest; each beats all before it, in any order.
    let ranks = [
        ("clean", 0),
        ("leaks", 3),
        ("raw", 63),
        ("missing", 1),
        ("corrupt", 2),
    ];
    for (index, (grave, code)) in ranks.iter().enumerate() {
        for (mild, _) in ranks.iter().take(index + 1) {
            stage.qfsck(["check", "-q", grave, mild]).expect_exit(*code);
            stage.qfsck(["check", "-q", mild, grave]).expect_exit(*code);
        }
    }
    let all = ["check", "clean", "missing", "corrupt", "raw", "leaks"];
    let said = stage.qfsck(all);
    said.expect_exit(2);
    for name in ["clean", "corrupt", "leaks"] {
        assert!(
            said.out().lines().any(|line| line == name),
            "{name} is reported"
        );
    }
    for name in ["missing", "raw"] {
        assert!(said.err().contains(name), "{name} is reported");
    }
}

#[test]
fn a_budget_is_for_each_image_and_beats_leaks_but_not_corruption() {
    let stage = Stage::new();
    LargeImage::of_a_while().write(&stage.path("large"));
    stage.copy(LEAKS, "leaks");
    stage.copy(CORRUPT, "corrupt");
    let budget = ["check", "--budget", "300ms", "--output", "jsonl", "large"];
    let said = stage.qfsck(budget.into_iter().chain(["leaks"]));
    said.expect_exit(6);
    let documents = said.documents();
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[0]["coverage"]["stopped"], true);
    assert_eq!(
        documents[1]["leaks"], 1,
        "the second has a budget of its own"
    );
    let said = stage.qfsck(budget.into_iter().chain(["corrupt"]));
    said.expect_exit(2);
}
