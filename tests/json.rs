//! JSON: `docs/json.md` names everything that occurs in a document, and its example is one.
//!
//! Comes in: the documents qfsck writes about the corpus, and the file. Goes out: nothing, or the keys and words one
//! side has and the other has not. Never here: whether what a document says about an image is right.
//!
//! `QFSCK_BLESS=1` rewrites the example; read the difference before you commit it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::corpus::cases;

/// The case the example is made of.
const EXAMPLE: &str = "170-shared-cluster";
/// Keys whose values are words of a fixed list, unless they have a space in them.
const WORDS: [&str; 11] = [
    "compression-type",
    "encryption",
    "format",
    "kind",
    "mode",
    "overlaps",
    "phase",
    "severity",
    "stage",
    "structure",
    "target",
];

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")
}

fn text() -> String {
    fs::read_to_string(path()).expect("docs/json.md can be read")
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qfsck"))
        .current_dir(directory)
        .args(arguments)
        .output()
        .expect("qfsck can be run")
}

/// Keys and words that occur, each with the first document it occurs in.
#[derive(Default)]
struct Vocabulary(BTreeMap<String, String>);

impl Vocabulary {
    fn learn(&mut self, word: &str, whence: &str) {
        self.0
            .entry(word.to_owned())
            .or_insert_with(|| whence.to_owned());
    }

    fn read(&mut self, value: &Value, whence: &str) {
        match value {
            Value::Array(values) => {
                for value in values {
                    self.read(value, whence);
                }
            }
            Value::Object(map) => {
                for (key, value) in map {
                    self.learn(key, whence);
                    self.read_member(key, value, whence);
                }
            }
            _ => {}
        }
    }

    fn read_member(&mut self, key: &str, value: &Value, whence: &str) {
        match (key, value) {
            // Its keys are codes, which `qfsck explain` lists.
            ("totals", Value::Object(totals)) => {
                for (code, total) in totals {
                    assert!(
                        qfsck::Code::from_id(code).is_some(),
                        "{whence}: {code} is no code"
                    );
                    self.read(total, whence);
                }
            }
            ("verdict" | "event", Value::String(word)) => self.learn(word, whence),
            (key, Value::String(word)) if WORDS.contains(&key) && !word.contains(' ') => {
                self.learn(word, whence);
            }
            (_, value) => self.read(value, whence),
        }
    }

    /// Reads what one command prints on stdout, if it prints anything.
    fn read_output(&mut self, directory: &Path, arguments: &[&str]) -> Option<Value> {
        let output = run(directory, arguments);
        if output.stdout.is_empty() {
            return None;
        }
        let whence = format!("{}: {arguments:?}", directory.display());
        let value: Value = serde_json::from_slice(&output.stdout).expect(&whence);
        self.read(&value, &whence);
        Some(value)
    }
}

/// The first offsets of a check's findings, under the key `host` or `guest`.
fn offsets(check: &Value, key: &str) -> BTreeSet<String> {
    let findings = check.get("findings").and_then(Value::as_array);
    let found = findings
        .into_iter()
        .flatten()
        .filter_map(|finding| finding.get(key)?.get("offset")?.as_u64())
        .take(2);
    found
        .chain([0])
        .map(|offset: u64| offset.to_string())
        .collect()
}

fn everything_that_occurs() -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    let image = "image.qcow2";
    for case in cases() {
        let check = vocabulary
            .read_output(&case, &["check", "--output", "json", image])
            .expect("a check prints a document");
        let plan = [
            "repair",
            "--plan",
            "-",
            "--accept-loss",
            "refcount-leak",
            image,
        ];
        let gate = ["check", "--untrusted", "--output", "json", image];
        vocabulary.read_output(&case, &gate);
        vocabulary.read_output(&case, &["check", "--deep", "--output", "json", image]);
        vocabulary.read_output(&case, &plan);
        for offset in offsets(&check, "host") {
            vocabulary.read_output(&case, &["owner", "--output", "json", image, &offset]);
        }
        for offset in offsets(&check, "guest") {
            let arguments = ["owner", "--guest", "--output", "json", image, &offset];
            vocabulary.read_output(&case, &arguments);
        }
    }
    let case = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(EXAMPLE);
    repairs_that_occur(&mut vocabulary);
    let watched = run(
        &case,
        &["check", "-q", "--deep", "--progress", "json", image],
    );
    let events = String::from_utf8(watched.stderr).expect("events are UTF-8");
    for line in events.lines() {
        let event = serde_json::from_str(line).expect("an event is JSON");
        vocabulary.read(&event, "progress");
    }
    vocabulary
}

/// What `check -r` prints: of a repair that is done, of one that leaves something, and of one that may not begin.
fn repairs_that_occur(vocabulary: &mut Vocabulary) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for case in ["100-refcount-leak", "104-refcount-zero-data"] {
        for what in ["leaks", "all"] {
            let directory = tempfile::tempdir().expect("a directory");
            let image = directory.path().join("image.qcow2");
            fs::copy(corpus.join(case).join("image.qcow2"), &image).expect("copied");
            let arguments = ["check", "-r", what, "--output", "json", "image.qcow2"];
            vocabulary.read_output(directory.path(), &arguments);
            fs::copy(corpus.join(case).join("image.qcow2"), &image).expect("copied");
            let undo_path = directory.path().join("image.qcow2.qfsck-undo");
            fs::write(undo_path, "no undo file").expect("written");
            vocabulary.read_output(directory.path(), &arguments);
        }
    }
}

/// The texts in backticks outside the example.
fn named(text: &str) -> BTreeSet<String> {
    let outside = text.split("```").step_by(2).collect::<Vec<_>>().concat();
    let quoted = outside.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

/// The keys of the tables that begin with the words `key` and `value`.
fn documented_keys(text: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut is_key_table = false;
    for line in text.lines() {
        is_key_table = line.starts_with("| key | value |") || is_key_table && line.starts_with('|');
        let key = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split_once('`'));
        if let (true, Some((key, _))) = (is_key_table, key) {
            keys.insert(key.to_owned());
        }
    }
    keys
}

#[test]
fn every_key_and_word_that_occurs_is_documented_and_no_other_key_is() {
    let text = text();
    let vocabulary = everything_that_occurs();
    let named = named(&text);
    let missing: Vec<String> = vocabulary
        .0
        .iter()
        .filter(|(word, _)| !named.contains(*word))
        .map(|(word, whence)| format!("{word} ({whence})"))
        .collect();
    assert!(missing.is_empty(), "not in docs/json.md: {missing:#?}");
    let keys = documented_keys(&text);
    assert!(
        keys.len() > 50,
        "the tables of docs/json.md are not found: {keys:?}"
    );
    let stale: Vec<&String> = keys
        .iter()
        .filter(|key| !vocabulary.0.contains_key(*key))
        .collect();
    assert!(
        stale.is_empty(),
        "docs/json.md has keys of no document: {stale:?}"
    );
}

#[test]
fn the_example_is_what_qfsck_prints() {
    let text = text();
    let (before, rest) = text.split_once("```json\n").expect("there is an example");
    let (example, after) = rest.split_once("```").expect("the example has an end");
    assert!(
        before.contains(EXAMPLE),
        "docs/json.md says which case the example is of"
    );
    let case = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(EXAMPLE);
    let now = run(&case, &["check", "--output", "json", "image.qcow2"]).stdout;
    let now = String::from_utf8(now).expect("JSON is UTF-8");
    if std::env::var_os("QFSCK_BLESS").is_some() {
        let blessed = format!("{before}```json\n{now}```{after}");
        fs::write(path(), blessed).expect("docs/json.md can be written");
    } else {
        assert_eq!(example, now, "QFSCK_BLESS=1 writes the example anew");
    }
}

#[test]
fn a_check_that_cannot_start_has_exactly_the_documented_keys() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = run(directory, &["check", "--output", "json", "no such file"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("there is a document");
    let keys: BTreeSet<String> = document
        .as_object()
        .expect("it is an object")
        .keys()
        .cloned()
        .collect();
    let text = text();
    let (_, errors) = text
        .split_once("\n## Errors\n")
        .expect("errors are documented");
    let (errors, _) = errors.split_once("\n## ").expect("another section follows");
    assert_eq!(keys, documented_keys(errors));
}
