//! The corpus: every image in `corpus/` is checked, and the report compared with the one recorded beside it.
//!
//! Comes in: `corpus/NNN-symptom/image.qcow2`. Goes out: nothing, or the cases whose report changed. Never here: QEMU;
//! what it said is recorded in `qemu-img.json`, and `oracle.rs` asks it again where it is installed.
//!
//! `QFSCK_BLESS=1` rewrites the expectations; read the difference before you commit it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directories of the corpus, in order.
pub(crate) fn cases() -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let entries = fs::read_dir(&corpus).expect("the corpus is part of the repository");
    let mut cases: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.join("image.qcow2").is_file())
        .collect();
    cases.sort();
    cases
}

/// What qfsck says about a case, for people, with its exit code.
fn report(case: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfsck"));
    command.current_dir(case).arg("check");
    if case.join("data.raw").is_file() {
        command.args(["--data-file", "data.raw"]);
    }
    let output = command
        .arg("image.qcow2")
        .output()
        .expect("qfsck can be run");
    format!(
        "{}{}exit {}\n",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().expect("qfsck exits by itself"),
    )
}

#[test]
fn every_case_is_reported_as_recorded() {
    let is_blessed = std::env::var_os("QFSCK_BLESS").is_some();
    let cases = cases();
    let mut changed = Vec::new();
    for case in &cases {
        let expected_path = case.join("expect.txt");
        let now = report(case);
        if is_blessed {
            fs::write(&expected_path, &now).expect("the expectation can be written");
        } else if fs::read_to_string(&expected_path).ok().as_ref() != Some(&now) {
            changed.push(format!("{}\n{now}", case.display()));
        }
    }
    assert!(
        cases.len() >= 40,
        "the corpus has only {} cases",
        cases.len()
    );
    println!("{} cases", cases.len());
    assert!(
        changed.is_empty(),
        "{} of {} reports changed (QFSCK_BLESS=1 records them):\n\n{}",
        changed.len(),
        cases.len(),
        changed.join("\n")
    );
}

#[test]
fn damage_qemu_img_sees_is_never_called_clean() {
    for case in cases() {
        let recorded = fs::read(case.join("qemu-img.json")).expect("qemu-img's word is recorded");
        let recorded: serde_json::Value = serde_json::from_slice(&recorded).expect("JSON");
        let saw_damage = matches!(recorded["exit"].as_i64(), Some(2 | 3));
        assert!(
            !saw_damage || !report(&case).ends_with("exit 0\n"),
            "{}: qemu-img sees damage here, qfsck does not",
            case.display()
        );
    }
}

#[test]
fn readme_shows_a_real_session() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md can be read");
    let command = "cargo run --release -- check ";
    let (_, after) = readme
        .split_once(command)
        .expect("the README has the command");
    let image = after.lines().next().expect("the command names an image");
    let (_, session) = after.split_once("```text\n").expect("a session follows");
    let (session, _) = session.split_once("```").expect("the session ends");
    let output = Command::new(env!("CARGO_BIN_EXE_qfsck"))
        .current_dir(root)
        .args(["check", image])
        .output()
        .expect("qfsck can be run");
    assert_eq!(String::from_utf8_lossy(&output.stdout), session);
}
