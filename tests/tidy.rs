//! Tidy: the rules of the house, held against the text of the sources.
//!
//! Comes in: the repository. Goes out: the lines that break a rule, or a document that is not what the catalog prints.
//! Never here: a rule that a type or a lint already enforces.
//!
//! Comments may say anything; rules are about code. Code that is only compiled for tests is left alone.
//!
//! `QFSCK_BLESS=1` rewrites `docs/findings.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use qfsck::{Boot, Code, Severity};

/// Lines a file may have.
const LONGEST_FILE: usize = 600;

/// Words that only some rooms may say.
struct Rule {
    words: &'static [&'static str],
    /// Paths below `src/` that may, by how they begin.
    rooms: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        words: &["std::fs", "std::os"],
        rooms: &["storage/", "bin/"],
        why: "files are opened in one room",
    },
    Rule {
        words: &["serde", "serde_json"],
        rooms: &["report.rs", "report/"],
        why: "the JSON shape is decided in one room",
    },
    Rule {
        words: &[
            "clap",
            "indicatif",
            "anstream",
            "anstyle",
            "ctrlc",
            "humantime",
        ],
        rooms: &["bin/"],
        why: "only the binary talks to people",
    },
    Rule {
        words: &[
            "print!",
            "println!",
            "eprint!",
            "eprintln!",
            "stdout",
            "stderr",
            "stdin",
        ],
        rooms: &["bin/"],
        why: "the library returns values",
    },
    Rule {
        words: &["from_be_bytes"],
        rooms: &["qcow2/bytes.rs"],
        why: "the order of bytes is decided in one file",
    },
    Rule {
        words: &[
            "HashMap",
            "HashSet",
            "SystemTime",
            "Instant",
            "std::env",
            "std::time",
        ],
        rooms: &["bin/"],
        why: "the same bytes give the same report",
    },
    Rule {
        words: &["unsafe", "todo!", "unimplemented!", "dbg!"],
        rooms: &[],
        why: "there is none",
    },
    Rule {
        words: &["StorageMut"],
        rooms: &[
            "storage.rs",
            "storage/",
            "transaction.rs",
            "transaction/back.rs",
            "lib.rs",
            "bin/",
        ],
        why: "an image is written to in one room",
    },
];

/// The rooms of the library. Each may name only those before it, and itself.
const ROOMS: &[&str] = &[
    "qcow2",
    "progress",
    "finding",
    "coverage",
    "error",
    "storage",
    "image",
    "refcount_map",
    "walk",
    "check",
    "deep",
    "policy",
    "plan",
    "undo",
    "transaction",
    "report",
    "audit",
];

/// Two rooms that come before others and do not know each other.
const STRANGERS: &[(&str, &str)] = &[
    ("walk", "refcount_map"),
    ("undo", "check"),
    ("undo", "plan"),
];

/// A source file.
struct Source {
    /// Below `src/`, with slashes.
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory of the repository, in order.
fn files_below(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(directory)];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files_below("src")
        .into_iter()
        .filter(is_rust)
        .map(|path| Source {
            path: path.strip_prefix(&src).map_or(String::new(), slashed),
            text: fs::read_to_string(&path).expect("sources are text"),
        })
        .collect()
}

fn slashed(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

impl Source {
    fn is_only_for_tests(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }

    /// Numbered lines of code: no comments, and nothing that is only compiled for tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let text = if self.is_only_for_tests() {
            ""
        } else {
            &self.text
        };
        let tests_begin = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        let lines = (1..).zip(text.get(..tests_begin).unwrap_or("").lines());
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The room of the library a file belongs to.
    fn room(&self) -> Option<&str> {
        let first = self.path.split('/').next()?;
        let room = first.strip_suffix(".rs").unwrap_or(first);
        ROOMS.contains(&room).then_some(room)
    }
}

/// Whether a line has a word that is not part of a longer one.
fn says(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|head| head.chars().next_back());
        let after = line
            .get(at + word.len()..)
            .and_then(|tail| tail.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[test]
fn words_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for source in sources() {
        for rule in RULES {
            if rule.rooms.iter().any(|room| source.path.starts_with(room)) {
                continue;
            }
            for (number, line) in source.code() {
                if rule.words.iter().any(|word| says(line, word)) {
                    let (path, why) = (&source.path, rule.why);
                    broken.push(format!("src/{path}:{number}: {} ({why})", line.trim()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn rooms_name_only_rooms_before_them() {
    let mut broken = Vec::new();
    let order = |room: &str| ROOMS.iter().position(|known| *known == room);
    for source in sources() {
        let Some(room) = source.room() else { continue };
        for (number, line) in source.code() {
            let named = ROOMS
                .iter()
                .filter(|other| says(line, &format!("crate::{other}")));
            for other in named {
                let is_before = order(other) <= order(room);
                if !is_before || STRANGERS.contains(&(room, *other)) {
                    broken.push(format!(
                        "src/{}:{number}: {room} names {other}",
                        source.path
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The modules of a room that a file of it names, itself not among them.
fn named_modules<'a>(source: &Source, modules: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let Some(room) = source.room() else {
        return BTreeSet::new();
    };
    let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
    let inside = format!("crate::{room}::");
    let outermost = source.path.matches('/').count() == 1;
    let roots = ["super::", inside.as_str()];
    let roots = if outermost { &roots[..] } else { &roots[1..] };
    let code = code.join("\n");
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            let path = code.get(at + root.len()..).unwrap_or("");
            // A list in braces goes on to the end of the statement, a path to its next part.
            let end = if path.starts_with('{') { ";" } else { "::" };
            let path = path.split(end).next().unwrap_or("");
            named.extend(modules.iter().copied().filter(|module| says(path, module)));
        }
    }
    named.retain(|module| module_of(source) != Some(*module));
    named
}

/// The module of its room that a file belongs to.
fn module_of(source: &Source) -> Option<&str> {
    let mut parts = source.path.split('/');
    let _room = parts.next()?;
    let part = parts.next()?;
    Some(part.strip_suffix(".rs").unwrap_or(part))
}

#[test]
fn modules_of_a_room_do_not_name_each_other_in_a_circle() {
    let sources = sources();
    for room in ROOMS {
        let of_room = || {
            let sources = sources.iter();
            sources.filter(|source| source.room() == Some(room) && !source.is_only_for_tests())
        };
        let mut left: BTreeSet<&str> = of_room().filter_map(module_of).collect();
        let modules = left.clone();
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for source in of_room() {
            if let Some(module) = module_of(source) {
                let named = named_modules(source, &modules);
                edges.entry(module).or_default().extend(named);
            }
        }
        // Those that name none of the rest are taken out, over and over: what remains goes in a circle.
        let mut before = usize::MAX;
        while left.len() < before {
            before = left.len();
            let rest = left.clone();
            left.retain(|module| {
                edges
                    .get(module)
                    .is_some_and(|named| !named.is_disjoint(&rest))
            });
        }
        assert!(left.is_empty(), "src/{room}/ goes in a circle: {left:?}");
    }
}

#[test]
fn every_module_of_the_library_is_a_room() {
    let library = fs::read_to_string(root().join("src/lib.rs")).expect("the map of the library");
    let declared: BTreeSet<&str> = library
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "))
        .map(|line| line.trim_end_matches(';'))
        .collect();
    let known: BTreeSet<&str> = ROOMS.iter().copied().collect();
    assert_eq!(declared, known, "the order of the rooms is out of date");
}

#[test]
fn the_dictionary_of_the_format_does_no_io() {
    for source in sources() {
        if source.room() != Some("qcow2") {
            continue;
        }
        for (number, line) in source.code() {
            let does_io = says(line, "std::io") || says(line, "Storage");
            assert!(!does_io, "src/{}:{number}: {line}", source.path);
        }
    }
}

#[test]
fn files_open_with_a_door_sign_and_stay_short() {
    for source in sources() {
        let Source { path, text } = &source;
        assert!(text.starts_with("//! "), "src/{path} has no door comment");
        let lines = text.lines().count();
        let is_short = lines <= LONGEST_FILE || source.is_only_for_tests();
        assert!(is_short, "src/{path} has {lines} lines");
    }
}

#[test]
fn every_code_is_emitted_somewhere() {
    let sources = sources();
    let emitters = sources.iter().filter(|source| {
        let room = source.room();
        matches!(room, Some("walk" | "check" | "deep" | "policy" | "plan"))
    });
    let code: Vec<&str> = emitters
        .flat_map(Source::code)
        .map(|(_, line)| line)
        .collect();
    for finding in Code::ALL {
        let name = format!("Code::{finding:?}");
        let is_emitted = code.iter().any(|line| says(line, &name));
        assert!(is_emitted, "nothing emits {finding}");
    }
}

#[test]
fn readme_shows_the_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    for command in ["\ncargo run --release -- check ", "\ncargo test\n"] {
        assert!(
            readme.contains(command),
            "the README lacks {}",
            command.trim()
        );
    }
}

#[test]
fn no_text_names_a_place_on_the_machine_it_was_written_on() {
    // In pieces, so that this file does not break its own rule.
    let mut homes: Vec<String> = ["work", "home", "root", "Users"]
        .iter()
        .map(|name| format!("/{name}/"))
        .collect();
    let here = slashed(root());
    homes.extend((here.len() > 4).then(|| format!("{here}/")));
    let rooms = [
        "src", "tests", "benches", "examples", "docs", "corpus", "contrib", ".ci",
    ];
    let top = [
        "README.md",
        "CHANGELOG.md",
        "Cargo.toml",
        ".clippy.toml",
        ".gitignore",
    ];
    let files = rooms.into_iter().flat_map(files_below);
    for path in files.chain(top.map(|name| root().join(name))) {
        // Images are no text, and what is not there names nothing.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let named = homes.iter().find(|home| text.contains(home.as_str()));
        assert!(named.is_none(), "{} names {named:?}", path.display());
    }
}

/// The catalog as a document, one heading for each code.
fn findings_document() -> String {
    let mut document = String::from(
        "# Findings\n\n\
         Every finding `qfsck` knows, in the order of the catalog (`src/finding/catalog.rs`), which this file is printed\n\
         from: `QFSCK_BLESS=1 cargo test tidy` writes it anew. `qfsck explain CODE` says the same on a terminal.\n\n\
         A *notice* is worth knowing, a *leak* costs space, a *corruption* contradicts the format. Exit code and verdict\n\
         follow from that, and from whether starting a guest on the image can make things worse. *Policy* is only looked\n\
         for with `--untrusted`: nothing is wrong, but a gate for images from strangers turns it away (`untrusted.md`).\n",
    );
    for code in Code::ALL {
        let boot = match code.boot() {
            Boot::Safe => "safe to boot",
            Boot::Unsafe => "do not boot",
        };
        let severity = code.severity().name();
        let standing = if code.severity() == Severity::Policy {
            severity.to_owned()
        } else {
            format!("{severity}, {boot}")
        };
        let (title, help, remedy) = (code.title(), code.help(), code.remedy());
        write!(
            document,
            "\n## {code}\n\n*{standing}*: {title}.\n\n{help}\n\n**Remedy:** {remedy}\n"
        )
        .expect("a string takes it");
    }
    document
}

#[test]
fn findings_are_documented_as_the_catalog_has_them() {
    let path = root().join("docs/findings.md");
    let printed = findings_document();
    if std::env::var_os("QFSCK_BLESS").is_some() {
        fs::write(&path, &printed).expect("the document can be written");
    }
    let documented = fs::read_to_string(&path).expect("docs/findings.md is there");
    assert!(
        documented == printed,
        "docs/findings.md is out of date: QFSCK_BLESS=1 cargo test tidy"
    );
}
