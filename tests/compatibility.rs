//! Compatibility: `docs/compatibility.md` and `docs/exit-codes.md` say what is so.
//!
//! Comes in: the two documents, the corpus with what qemu-img said there, and qfsck's answers. Goes out: nothing, or
//! every case that differs from qemu-img in another way than the document says. Never here: QEMU, and what qfsck ought
//! to say about a case; that is for `corpus.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::corpus::cases;

/// Ways to differ, as the list items of the document name them.
const KINDS: [&str; 6] = [
    "exit",
    "document",
    "corruptions",
    "leaks",
    "check-errors",
    "statistics",
];
/// The keys that are counted as `statistics`.
const STATISTICS: [&str; 5] = [
    "image-end-offset",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
];

/// Cases by name, and how each differs from qemu-img.
type Differences = BTreeMap<String, BTreeSet<&'static str>>;

/// What both programs say about one case.
struct Answers {
    name: String,
    qemu_exit: i64,
    /// `None` where qemu-img printed nothing.
    qemu: Option<Value>,
    exit: i64,
    ours: Value,
}

impl Answers {
    fn of(case: &Path) -> Self {
        let recorded = fs::read(case.join("qemu-img.json")).expect("qemu-img's word is recorded");
        let recorded: Value = serde_json::from_slice(&recorded).expect("it is JSON");
        let output = Command::new(env!("CARGO_BIN_EXE_qfsck"))
            .current_dir(case)
            .args(["check", "--output", "json", "image.qcow2"])
            .output()
            .expect("qfsck can be run");
        let exit = output.status.code().expect("qfsck exits by itself");
        let name = case.file_name().expect("a case has a name");
        Self {
            name: name.to_string_lossy().into_owned(),
            qemu_exit: recorded
                .get("exit")
                .and_then(Value::as_i64)
                .expect("an exit code is recorded"),
            qemu: recorded.get("report").filter(|it| it.is_object()).cloned(),
            exit: exit.into(),
            ours: serde_json::from_slice(&output.stdout).expect("qfsck prints a document"),
        }
    }

    fn kinds(&self) -> BTreeSet<&'static str> {
        KINDS
            .into_iter()
            .filter(|&kind| self.differs_by(kind))
            .collect()
    }

    fn differs_by(&self, kind: &str) -> bool {
        let Some(qemu) = &self.qemu else {
            return kind == "document" || (kind == "exit" && self.exit != self.qemu_exit);
        };
        let differs = |key: &str| number(qemu, key) != number(&self.ours, key);
        match kind {
            "exit" => self.exit != self.qemu_exit,
            "document" => false,
            "statistics" => STATISTICS.into_iter().any(differs),
            key => differs(key),
        }
    }

    /// Whether qfsck lets pass what qemu-img does not: 0 for anything, or 3 for corruption or a refusal.
    fn is_milder(&self) -> bool {
        matches!((self.qemu_exit, self.exit), (1..=3, 0) | (1 | 2, 3))
    }
}

/// A number of a document; both leave out zeros.
fn number(document: &Value, key: &str) -> u64 {
    document.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    fs::read_to_string(path).expect("the document is part of the repository")
}

/// What follows a heading, up to the next one of the same rank.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let rank = heading.split(' ').next().unwrap_or_default();
    let (_, rest) = document
        .split_once(&format!("\n{heading}\n"))
        .expect(heading);
    rest.split_once(&format!("\n{rank} "))
        .map_or(rest, |(section, _)| section)
}

/// The texts in backticks that are names of cases: three digits and a hyphen.
fn cases_named(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_case = |name: &&str| {
        name.as_bytes().get(3) == Some(&b'-') && name.bytes().take(3).all(|c| c.is_ascii_digit())
    };
    quoted.filter(is_case).map(str::to_owned).collect()
}

/// The list items of a text, each on one line, without their dash.
fn items(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in text.lines() {
        if let Some(start) = line.strip_prefix("- ") {
            items.push(start.to_owned());
            is_open = true;
        } else if let (true, Some(more), Some(item)) =
            (is_open, line.strip_prefix("  "), items.last_mut())
        {
            item.push(' ');
            item.push_str(more);
        } else {
            is_open = false;
        }
    }
    items
}

/// The differences a text lists: items such as ``exit, leaks: `100-case`, `101-case` ``.
fn listed_differences(text: &str) -> Differences {
    let mut listed = Differences::new();
    for item in items(text) {
        let Some((kinds, names)) = item.split_once(": ") else {
            continue;
        };
        let kinds: Option<Vec<&'static str>> = kinds
            .split(", ")
            .map(|word| KINDS.into_iter().find(|&kind| kind == word))
            .collect();
        for name in cases_named(names) {
            listed
                .entry(name)
                .or_default()
                .extend(kinds.iter().flatten());
        }
    }
    listed.retain(|_, kinds| !kinds.is_empty());
    listed
}

/// The cells of a table's rows, without its head.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| "));
    lines
        .map(|line| {
            line.trim_end_matches('|')
                .split('|')
                .map(str::trim)
                .collect()
        })
        .collect()
}

#[test]
fn documented_disagreements_are_those_there_are() {
    let text = document("compatibility.md");
    let listed = listed_differences(section(&text, "## Disagreements"));
    let answers: Vec<Answers> = cases().iter().map(|case| Answers::of(case)).collect();
    let found: Differences = answers
        .iter()
        .map(|answers| (answers.name.clone(), answers.kinds()))
        .filter(|(_, kinds)| !kinds.is_empty())
        .collect();
    let names: BTreeSet<&String> = listed.keys().chain(found.keys()).collect();
    let wrong: Vec<String> = names
        .into_iter()
        .filter(|&name| listed.get(name) != found.get(name))
        .map(|name| {
            let (listed, found) = (listed.get(name), found.get(name));
            format!("{name}: documented {listed:?}, found {found:?}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let words: Vec<&str> = text.split_whitespace().collect();
    let (differing, total) = (found.len(), answers.len());
    let sentence = format!(
        "those that differ: {differing} of {total}. In the other {} the exit code",
        total - differing
    );
    assert!(
        words.join(" ").contains(&sentence),
        "the document should say: {sentence}"
    );
}

#[test]
fn qfsck_lets_pass_only_what_the_document_excuses_with_a_reason() {
    let text = document("compatibility.md");
    let heading = "### Named exceptions: qfsck 0, qemu-img not 0";
    let excused: BTreeSet<String> = rows(section(&text, heading))
        .into_iter()
        .filter(|row| row.get(1).is_some_and(|reason| reason.len() > 10))
        .flat_map(|row| cases_named(row.first().unwrap_or(&"")))
        .collect();
    let passed: BTreeSet<String> = cases()
        .iter()
        .map(|case| Answers::of(case))
        .filter(Answers::is_milder)
        .map(|answers| answers.name)
        .collect();
    assert_eq!(
        excused, passed,
        "on the left what is excused, on the right what passes"
    );
}

#[test]
fn every_case_the_documents_name_exists() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for name in ["compatibility.md", "exit-codes.md", "json.md"] {
        for case in cases_named(&document(name)) {
            assert!(corpus.join(&case).is_dir(), "{name} names {case}");
        }
    }
}

#[test]
fn verdicts_come_with_the_exit_codes_the_document_says() {
    let text = document("exit-codes.md");
    let table = section(&text, "## The verdict");
    for case in cases() {
        let answers = Answers::of(&case);
        let verdict = answers.ours["verdict"]
            .as_str()
            .expect("every document has one");
        let exit = answers.exit.to_string();
        let is_documented = rows(table).iter().any(|row| {
            row.first() == Some(&format!("`{verdict}`").as_str())
                && row
                    .get(1)
                    .is_some_and(|codes| codes.split(", ").any(|code| code == exit))
        });
        assert!(
            is_documented,
            "{}: {verdict} with exit {exit}",
            answers.name
        );
    }
}

/// The exit code of a quiet check of several files, with the corpus as current directory.
fn exit_of(files: &[&str]) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfsck"));
    let command = command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"))
        .args(["check", "-q"])
        .args(files);
    command.output().expect("qfsck can be run").status.code()
}

#[test]
fn of_several_images_the_gravest_counts_in_the_documented_order() {
    let text = document("exit-codes.md");
    let (_, order) = text
        .split_once("From harmless to grave: ")
        .expect("the order is documented");
    let (order, _) = order.split_once('.').expect("it is a sentence");
    let order: Vec<i32> = order.split(", ").filter_map(|it| it.parse().ok()).collect();
    let rank = |code: i32| order.iter().position(|&known| known == code);
    let files = [
        (0, "002-v3-plain/image.qcow2"),
        (3, "100-refcount-leak/image.qcow2"),
        (63, "360-raw-file/image.qcow2"),
        (1, "no such file"),
        (2, "104-refcount-zero-data/image.qcow2"),
    ];
    for (code, file) in files {
        assert_eq!(exit_of(&[file]), Some(code), "{file}");
        assert!(rank(code).is_some(), "{code} has no place in {order:?}");
        for (other, other_file) in files {
            let gravest = if rank(code) > rank(other) {
                code
            } else {
                other
            };
            assert_eq!(
                exit_of(&[file, other_file]),
                Some(gravest),
                "{file} {other_file}"
            );
        }
    }
}

#[test]
fn documented_codes_are_those_the_help_lists() {
    let output = Command::new(env!("CARGO_BIN_EXE_qfsck"))
        .args(["check", "--help"])
        .output()
        .expect("qfsck can be run");
    let help = String::from_utf8(output.stdout).expect("the help is UTF-8");
    let (_, codes) = help
        .split_once("Exit codes")
        .expect("the help has exit codes");
    let helped: BTreeSet<u8> = codes
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    let text = document("exit-codes.md");
    let table = rows(section(&text, "# Exit codes"));
    let documented: BTreeSet<u8> = table
        .iter()
        .filter_map(|row| row.first()?.parse().ok())
        .collect();
    assert!(helped.len() > 5, "{helped:?}");
    assert_eq!(documented, helped);
}
