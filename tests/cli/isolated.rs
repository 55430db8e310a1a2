//! Isolation: no thread reads an image before it has given up its rights.
//!
//! Comes in: images, and the system calls of every command. Goes out: which threads read them, and what they had given up
//! by then. Never here: what a thread without rights can still do (`src/bin/qfsck/isolation.rs`).

use std::collections::BTreeSet;
use std::fs;

use super::stage::{QFSCK, Stage, has_tools, skip};

/// How often threads gave up their rights, how often an image was read, and the reads of threads that had not.
fn reads(stage: &Stage, arguments: &[&str], image: &str) -> Option<(usize, usize, Vec<String>)> {
    let calls = "trace=landlock_restrict_self,pread64,preadv2,read,mmap";
    let tracing = ["-f", "-y", "-s", "8", "-o", "log", "-e", calls, QFSCK];
    let said = stage.run("strace", tracing.iter().chain(arguments));
    let log = fs::read_to_string(stage.path("log")).unwrap_or_default();
    if !log.contains("exited with") {
        skip(&format!("strace may not trace here: {}", said.err()));
        return None;
    }
    let mut without_rights = BTreeSet::new();
    let mut count = 0;
    let mut early = Vec::new();
    for line in log.lines() {
        let thread = line.split_whitespace().next().unwrap_or_default();
        if line.contains("landlock_restrict_self") && line.ends_with("= 0") {
            without_rights.insert(thread.to_owned());
        } else if line.contains(&format!("/{image}>")) {
            count += 1;
            if !without_rights.contains(thread) {
                early.push(line.to_owned());
            }
        }
    }
    fs::remove_file(stage.path("log")).expect("the log can be removed");
    Some((without_rights.len(), count, early))
}

#[test]
fn every_thread_that_reads_an_image_has_given_up_its_rights() {
    if !has_tools(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    stage.copy("002-v3-plain", "other");
    let commands: [&[&str]; 15] = [
        &["check", "image"],
        &["check", "-j", "3", "image"],
        &["check", "-U", "image"],
        &["check", "--deep", "--untrusted", "image"],
        &["check", "other", "image"],
        &["owner", "image", "0"],
        &["owner", "--guest", "image", "0"],
        &["repair", "--dry-run", "image"],
        &["repair", "--plan", "-", "image"],
        &["repair", "--plan", "plan", "image"],
        &["repair", "--apply", "plan", "--yes", "image"],
        &["undo", "image.qfsck-undo"],
        &["repair", "--yes", "image"],
        &["undo", "image.qfsck-undo"],
        &["check", "-r", "all", "image"],
    ];
    stage.copy("178-data-on-snapshot-l1", "image");
    for arguments in commands {
        let Some((threads, count, early)) = reads(&stage, arguments, "image") else {
            return;
        };
        if threads == 0 {
            skip("this kernel has no Landlock: nothing is isolated");
            return;
        }
        assert!(count > 0, "{arguments:?} does not read the image");
        assert!(early.is_empty(), "{arguments:?}: {early:#?}");
    }
}

#[test]
fn whether_anything_is_isolated_is_said_to_whoever_asks() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    let said = stage.run("env", ["QFSCK_DEBUG=1", QFSCK, "check", "image"]);
    said.expect_exit(0);
    let words = said.err();
    assert!(
        words.starts_with("qfsck: debug: ")
            && words.contains("isolated")
            && words.lines().count() == 1,
        "{words}"
    );
    assert_eq!(stage.qfsck(["check", "image"]).err(), "");
}
