//! `check -r`: the drop-in for `qemu-img check -r`.
//!
//! Comes in: damaged images of the corpus. Goes out: documents, words and exit codes, those of `qemu-img` beside them
//! where it is installed. Never here: which damage is repaired (`plan`, `repair`).

use std::fs;

use serde_json::Value;

use super::repair_stage::cut_repair;
use super::stage::{LargeImage, Stage, bytes_of, has_tools};

const LEAK: &str = "100-refcount-leak";
const TOO_LOW: &str = "113-refcount-too-low-with-snapshots";
const SHARED: &str = "173-data-on-l2";

#[test]
fn leaks_are_freed_and_counted_and_an_undo_file_leads_back() {
    let stage = Stage::new();
    let image = stage.copy(LEAK, "image");
    let said = stage.qfsck(["check", "-r", "leaks", "--output", "json", "image"]);
    said.expect_exit(0);
    let document = said.document();
    assert_eq!(document["leaks-fixed"], 1);
    assert_eq!(document.get("corruptions-fixed"), None);
    assert_eq!(document.get("leaks"), None);
    assert_eq!(document["verdict"], "clean");
    assert_eq!(document["repair"]["mode"], "leaks");
    assert_eq!(document["repair"]["sectors-written"], 1);
    assert_eq!(document["repair"]["undo-file"], "image.qfsck-undo");
    assert_eq!(document["repair"]["withheld"], serde_json::json!([]));
    stage.qfsck(["undo", "image.qfsck-undo"]).expect_exit(0);
    let bytes = fs::read(image).expect("the image can be read");
    assert!(bytes == bytes_of(LEAK), "undo puts every byte back");
}

#[test]
fn the_report_for_people_says_what_was_repaired_and_then_what_a_check_says() {
    let stage = Stage::new();
    stage.copy(TOO_LOW, "image");
    let said = stage.qfsck(["check", "-r", "all", "image"]);
    said.expect_exit(0);
    let (fixed, report) = said
        .out()
        .split_once("Double checking the fixed image now...\n")
        .map(|(fixed, report)| (fixed.to_owned(), report.to_owned()))
        .expect("the words of qemu-img");
    assert_eq!(
        fixed,
        "The following inconsistencies were found and repaired:\n\n    0 leaked clusters\n    1 corruptions\n\n"
    );
    assert_eq!(report, stage.qfsck(["check", "image"]).out());
    assert!(
        said.err().contains("qfsck undo image.qfsck-undo"),
        "{}",
        said.err()
    );
}

#[test]
fn an_image_without_errors_is_checked_and_left_alone() {
    let stage = Stage::new();
    let image = stage.copy("002-v3-plain", "image");
    let modified = fs::metadata(&image).and_then(|found| found.modified());
    let modified = modified.expect("a time");
    let check = stage.qfsck(["check", "image"]).out();
    for what in ["leaks", "all"] {
        let said = stage.qfsck(["check", "-r", what, "image"]);
        said.expect_exit(0);
        assert_eq!(said.out(), check);
        assert_eq!(said.err(), "");
    }
    let now = fs::metadata(&image).and_then(|found| found.modified());
    assert_eq!(now.expect("a time"), modified);
    assert!(!stage.path("image.qfsck-undo").exists());
}

#[test]
fn what_is_left_is_counted_as_left_and_decides_the_exit_code() {
    let stage = Stage::new();
    stage.copy(TOO_LOW, "image");
    let said = stage.qfsck(["check", "-r", "leaks", "--output", "json", "image"]);
    said.expect_exit(2);
    let document = said.document();
    assert_eq!(document["corruptions"], 1);
    assert_eq!(document.get("corruptions-fixed"), None);
    assert_eq!(document["repair"].get("undo-file"), None);
    let withheld = document["repair"]["withheld"].to_string();
    assert!(withheld.contains("refcount-too-low"), "{withheld}");
    assert!(!stage.path("image.qfsck-undo").exists());
}

#[test]
fn quiet_repairs_without_a_word() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    let said = stage.qfsck(["check", "-q", "-r", "leaks", "image"]);
    said.expect_exit(0);
    assert_eq!((said.out(), said.err()), (String::new(), String::new()));
    stage.qfsck(["check", "-q", "image"]).expect_exit(0);
}

#[test]
fn what_cannot_be_meant_is_a_usage_error_with_the_reason() {
    let stage = Stage::new();
    for name in ["image", "other"] {
        stage.copy(LEAK, name);
    }
    let commands: [(&[&str], &str); 4] = [
        (&["check", "-r", "leaks", "-U", "image"], "-U"),
        (
            &[
                "check",
                "-r",
                "all",
                "--force-share",
                "--output",
                "json",
                "image",
            ],
            "-U",
        ),
        (&["check", "-r", "leaks", "image", "other"], "one image"),
        (&["check", "--undo-file", "undo", "image"], "-r"),
    ];
    for (arguments, word) in commands {
        let said = stage.qfsck(arguments);
        said.expect_exit(64);
        assert_eq!(said.out(), "", "{arguments:?}");
        assert!(said.err().contains(word), "{arguments:?}: {}", said.err());
    }
    for name in ["image", "other"] {
        let bytes = fs::read(stage.path(name)).expect("the image can be read");
        assert!(bytes == bytes_of(LEAK), "{name} changed");
    }
    stage.copy("360-raw-file", "raw");
    stage.qfsck(["check", "-r", "all", "raw"]).expect_exit(63);
    stage
        .qfsck(["check", "-r", "all", "-f", "raw", "image"])
        .expect_exit(63);
}

#[test]
fn there_is_one_document_even_when_the_repair_may_not_begin() {
    let stage = Stage::new();
    stage.copy(LEAK, "image");
    stage.put("image.qfsck-undo", b"precious");
    let arguments = ["check", "-r", "leaks", "--output", "json", "image"];
    let said = stage.qfsck(arguments);
    said.expect_exit(1);
    let document = said.document();
    assert_eq!(document["leaks"], 1);
    assert_eq!(document.get("leaks-fixed"), None);
    let failure = document["repair"]["failure"].as_str().unwrap_or_default();
    assert!(failure.contains("image.qfsck-undo"), "{failure}");
    assert!(said.err().contains(failure), "stderr says it as well");

    fs::remove_file(stage.path("image.qfsck-undo")).expect("it can be removed");
    stage.copy(TOO_LOW, "image");
    let undo_path = stage.path("image.qfsck-undo.7");
    assert!(cut_repair(&stage.path("image"), &undo_path, 1));
    let before = fs::read(stage.path("image")).expect("the image can be read");
    let said = stage.qfsck(arguments);
    said.expect_exit(1);
    let failure = said.document()["repair"]["failure"].to_string();
    for way in ["qfsck undo image.qfsck-undo.7", "--resume"] {
        assert!(failure.contains(way), "{failure}");
    }
    let now = fs::read(stage.path("image")).expect("the image can be read");
    assert!(now == before, "the image changed");

    let said = stage.qfsck(["check", "-r", "all", "--output", "json", "missing"]);
    said.expect_exit(1);
    assert!(said.document()["error"]["message"].is_string());
}

#[test]
fn a_signal_or_the_budget_while_planning_leaves_the_image_as_it_is() {
    let stage = Stage::new();
    let large = LargeImage::of_a_while();
    large.write(&stage.path("image"));
    let arguments = ["check", "-r", "all", "-j", "1", "--output", "json"];
    let mut run = stage.start(arguments.iter().chain(&["image"]));
    assert!(run.has_read(large.head_bytes()), "it ended too soon");
    run.signal("TERM");
    let said = run.wait();
    said.expect_exit(1);
    assert_eq!(said.document()["coverage"]["stopped"], true);
    assert!(said.err().contains("nothing was changed"), "{}", said.err());
    let said = stage.qfsck(arguments.iter().chain(&["--budget", "100ms", "image"]));
    said.expect_exit(6);
    assert_eq!(said.document()["coverage"]["stopped"], true);
    assert!(!stage.path("image.qfsck-undo").exists());
}

/// The numbers both programs print of an image after its repair.
fn numbers(document: &Value) -> Vec<(&'static str, u64)> {
    let keys = [
        "check-errors",
        "corruptions",
        "leaks",
        "leaks-fixed",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
        "image-end-offset",
    ];
    keys.iter()
        .map(|key| (*key, document[*key].as_u64().unwrap_or(0)))
        .collect()
}

#[test]
fn where_qemu_img_frees_leaks_rightly_both_say_the_same() {
    if !has_tools(&["qemu-img"]) {
        return;
    }
    let stage = Stage::new();
    let cases = [
        "002-v3-plain",
        LEAK,
        "101-refcount-leaks-in-two-ranges",
        "122-writer-killed",
        SHARED,
    ];
    for case in cases {
        stage.copy(case, "ours");
        stage.copy(case, "theirs");
        let arguments = ["check", "-r", "leaks", "--output", "json"];
        let ours = stage.qfsck(arguments.iter().chain(&["ours"]));
        let theirs = stage.run("qemu-img", arguments.iter().chain(&["theirs"]));
        assert_eq!(ours.exit, theirs.exit, "{case}: {}", ours.err());
        assert_eq!(
            numbers(&ours.document()),
            numbers(&theirs.document()),
            "{case}"
        );
        let again = stage.run("qemu-img", ["check", "--output", "json", "ours"]);
        assert_eq!(again.exit, theirs.exit, "{case}: qemu-img agrees");
        for left in ["ours.qfsck-undo", "theirs.qfsck-undo"] {
            drop(fs::remove_file(stage.path(left)));
        }
    }
}
