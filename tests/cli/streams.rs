//! Where the words go: a reader that leaves, a disk that is full, a terminal, and a system short of threads.
//!
//! Comes in: every kind of stdout. Goes out: no panic, no noise, no lie about success. Never here: what is said.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::stage::{
    LargeImage, QFSCK, Said, Stage, bytes_of, has_tools, is_installed, is_root, skip,
};

/// Bytes that start every colour.
const ESCAPE: char = '\x1b';

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let stage = Stage::new();
    // The document is larger than any pipe, so that the rest of it meets nobody.
    let many_findings = LargeImage {
        l2_tables: 8,
        leaks: 3000,
    };
    many_findings.write(&stage.path("image"));
    let commands: [&[&str]; 3] = [
        &["check", "--output", "json", "image"],
        &["check", "image"],
        &["explain"],
    ];
    for arguments in commands {
        let mut child = Command::new(QFSCK)
            .args(arguments)
            .current_dir(stage.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("qfsck can be started");
        let mut head = [0; 10];
        let mut reader = child.stdout.take().expect("a pipe");
        reader.read_exact(&mut head).expect("ten bytes come");
        drop(reader);
        let ended = child.wait_with_output().expect("qfsck ends");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{arguments:?}");
        let expected = if arguments == ["explain"] { 0 } else { 3 };
        assert_eq!(ended.status.code(), Some(expected), "{arguments:?}");
    }
}

#[test]
fn where_nobody_reads_the_result_the_next_image_is_not_checked() {
    let stage = Stage::new();
    // The images after the first would take a minute.
    stage.copy("100-refcount-leak", "small");
    LargeImage::of_a_while().write(&stage.path("large"));
    for output in ["human", "jsonl"] {
        let check = "\"$0\" check -j 1 --output \"$1\" small large large large";
        let script = format!("{{ sleep 0.2; {check}; echo $? >exit; }} | true");
        let said = stage.run("sh", ["-c", &script, QFSCK, output]);
        let exit = fs::read_to_string(stage.path("exit")).expect("it ended");
        assert_eq!(exit.trim(), "1", "{output}: {}", said.err());
        let words = "nobody reads the result any more; not checked: 3 more of 4 images";
        assert!(said.err().contains(words), "{output}: {}", said.err());
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error_in_words() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "image");
    let commands: [&[&str]; 11] = [
        &["check", "image"],
        &["repair", "--dry-run", "image"],
        &["repair", "--yes", "image"],
        &["check", "--output", "json", "image"],
        &["check", "--output", "jsonl", "image", "image"],
        &["check", "--output", "json", "missing"],
        &["owner", "image", "0"],
        &["owner", "--guest", "--output", "json", "image", "0"],
        &["explain"],
        &["explain", "refcount-leak"],
        &["--help"],
    ];
    for arguments in commands {
        let full = File::create("/dev/full").expect("the full device");
        let ended = Command::new(QFSCK)
            .args(arguments)
            .current_dir(stage.path(""))
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .expect("qfsck can be run");
        let words = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {words}");
        assert!(
            words.contains("cannot write the result"),
            "{arguments:?}: {words}"
        );
        assert!(words.contains("No space left"), "{arguments:?}: {words}");
    }
    let bytes = fs::read(stage.path("image")).expect("the image can be read");
    assert!(
        bytes == bytes_of("100-refcount-leak"),
        "a plan nobody saw was applied"
    );
}

#[test]
fn a_quiet_check_needs_no_stdout_and_no_stderr() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "image");
    for streams in [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        ">/dev/full",
        ">/dev/full 2>/dev/full",
    ] {
        let script = format!("exec \"$0\" check -q image {streams}");
        let said = stage.run("sh", ["-c", &script, QFSCK]);
        assert_eq!(said.exit, Some(3), "{streams}");
    }
    let said = stage.run("sh", ["-c", "exec \"$0\" check missing 2>/dev/full", QFSCK]);
    said.expect_exit(1);
}

/// Runs a command on a terminal, which is stdout and stderr in one, with variables set as a shell sets them.
fn on_a_terminal(stage: &Stage, variables: &str, arguments: &str) -> Said {
    let command = format!("{variables} {QFSCK} {arguments}");
    stage.run("script", ["-qec", &command, "/dev/null"])
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let stage = Stage::new();
    stage.copy("104-refcount-zero-data", "image");
    for output in ["human", "json", "jsonl"] {
        let said = stage.qfsck(["check", "--output", output, "image"]);
        assert!(!said.out().contains(ESCAPE), "{}", said.out());
    }
    if !has_tools(&["script"]) {
        return;
    }
    let said = on_a_terminal(&stage, "", "check image");
    said.expect_exit(2);
    assert!(said.out().contains(ESCAPE), "no colours: {}", said.out());
    let said = on_a_terminal(&stage, "NO_COLOR=1", "check image");
    said.expect_exit(2);
    assert!(!said.out().contains(ESCAPE), "{}", said.out());
    let said = on_a_terminal(&stage, "TERM=dumb", "check image");
    assert!(!said.out().contains(ESCAPE), "{}", said.out());
    let said = on_a_terminal(&stage, "", "check --output json image");
    said.document();
    for help in ["--help", "check --help", "explain refcount-leak"] {
        let said = on_a_terminal(&stage, "NO_COLOR=1", help);
        assert!(!said.out().contains(ESCAPE), "{help}: {}", said.out());
    }
}

#[test]
fn a_bar_is_drawn_on_a_terminal_and_wiped_off() {
    if !has_tools(&["script"]) {
        return;
    }
    let stage = Stage::new();
    LargeImage::of_a_while().write(&stage.path("image"));
    let colourless = "NO_COLOR=1";
    let said = on_a_terminal(&stage, colourless, "check -j 1 --budget 900ms image");
    said.expect_exit(6);
    let shown = said.out();
    assert!(shown.contains("tables ["), "no bar: {shown:?}");
    let (_, after_the_bar) = shown.rsplit_once(ESCAPE).expect("the bar is wiped off");
    assert!(after_the_bar.starts_with("[2K"), "{after_the_bar:?}");
    assert!(
        after_the_bar.contains("verdict: unreadable"),
        "{after_the_bar:?}"
    );
    for option in ["--progress none", "-q"] {
        let command = format!("check -j 1 --budget 900ms {option} image");
        let said = on_a_terminal(&stage, colourless, &command);
        said.expect_exit(6);
        assert!(
            !said.out().contains("tables ["),
            "{option}: {:?}",
            said.out()
        );
    }
}

#[test]
fn where_no_threads_are_to_be_had_one_does_the_work() {
    if !is_root() || !is_installed("prlimit") || !is_installed("setpriv") {
        skip("to become a user without another process needs root, prlimit and setpriv");
        return;
    }
    let stage = Stage::new();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(stage.path(""), open).expect("permissions can be changed");
    // A copy made by this process could still be open for writing in a child another test has just forked.
    stage.run("cp", [QFSCK, "qfsck"]).expect_exit(0);
    stage.copy("100-refcount-leak", "image");
    let check = ["./qfsck", "check", "--output", "json", "image"];
    for limit in ["--nproc=1", "--nproc=2", "--nproc=4", "--nproc=7"] {
        let user = [
            "--reuid=54321",
            "--regid=54321",
            "--clear-groups",
            "prlimit",
            limit,
        ];
        let said = stage.run("setpriv", user.iter().chain(&check));
        said.expect_exit(3);
        assert_eq!(said.document()["leaks"], 1);
    }
}
