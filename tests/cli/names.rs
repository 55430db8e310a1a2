//! Hostile names: whatever an image or a file is called, nothing but printable characters reaches a terminal or a log.
//!
//! Comes in: names with escape sequences, line ends, direction marks and broken UTF-8, in every place a name can be.
//! Goes out: text. Never here: whether the report is right.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::stage::{Said, Stage, bytes_of, has_tools, is_installed, skip};
use crate::support::image_forge::{BitmapCluster, Forge, Forged, Random, Tree};

/// Three bytes each, so that they fit where an image has a name of three letters.
const HOSTILE: [&[u8; 3]; 9] = [
    b"\x1b[m",
    b"\n\x07\x7f",
    b"\xe2\x80\xae", // U+202E, right-to-left override
    b"\xc2\x9b\r",   // U+009B, a one-character escape
    b"\xff\xfe\x80",
    b"\xe2\x80\xa8", // U+2028, a line end to some
    b"\xe2\x80\x8b", // U+200B, a space of no width
    b"\xef\xb8\x8f", // U+FE0F, a variation selector
    b"a\xc2\xad",    // U+00AD, a soft hyphen
];

const ESCAPE_PATH: &[u8] = b"a\x1b]0;owned\x07\x1b[31m\nverdict: clean\r\xe2\x80\xae.qcow2";
const BROKEN_PATH: &[u8] = b"b\xff\xc2\x9b\x7f.qcow2";

/// Ways to name a file: what comes before it and after it.
const COMMANDS: [(&[&str], &[&str]); 10] = [
    (&["check"], &[]),
    (&["check", "--output", "json"], &[]),
    (&["check", "--output", "jsonl"], &[]),
    (&["check", "--data-file"], &["missing"]),
    (&["repair", "--dry-run"], &[]),
    (&["repair", "--yes"], &[]),
    (&["undo"], &[]),
    (&["undo", "--image"], &["missing"]),
    (&["owner"], &["0"]),
    (&["owner", "--output", "json", "--guest"], &["0"]),
];

/// Makes something that is no image at a path.
type Make = fn(&Path) -> io::Result<()>;

/// The first character that should not be there.
fn unprintable(bytes: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Some("broken UTF-8".to_owned());
    };
    text.chars()
        .find(|&character| {
            let reorders_or_hides = matches!(
                character,
                '\u{ad}' | '\u{61c}' | '\u{fe00}'..='\u{fe0f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            );
            character != '\n' && (character.is_control() || reorders_or_hides)
        })
        .map(|character| character.escape_unicode().to_string())
}

#[track_caller]
fn expect_printable(said: &Said, about: &str) {
    for (stream, bytes) in [("stdout", &said.stdout), ("stderr", &said.stderr)] {
        let found = unprintable(bytes);
        let shown = String::from_utf8_lossy(bytes);
        assert!(found.is_none(), "{about}: {found:?} on {stream}: {shown:?}");
    }
}

/// The bytes with every `name` in them made hostile, byte for byte.
fn renamed(mut bytes: Vec<u8>, name: &str, hostile: &[u8]) -> Vec<u8> {
    let length = name.len();
    let places: Vec<usize> = (0..bytes.len().saturating_sub(length))
        .filter(|&at| bytes[at..].starts_with(name.as_bytes()))
        .collect();
    assert!(!places.is_empty(), "the image has no name {name}");
    for at in places {
        let replacement = hostile.iter().cycle().take(length);
        for (byte, new) in bytes[at..].iter_mut().zip(replacement) {
            *byte = *new;
        }
    }
    bytes
}

/// Every run of text in a document.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(rows) => rows.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn names_inside_an_image_are_shown_escaped() {
    let stage = Stage::new();
    let cases = [
        ("015-snapshots-diverged", "two"),
        ("178-data-on-snapshot-l1", "one"),
        ("245-snapshot-duplicate-name", "one"),
        ("272-bitmap-duplicate-name", "aaa"),
        ("023-bitmaps-with-data", "second"),
        ("041-backing-missing", "base.raw"),
        ("041-backing-missing", "raw"),
        ("043-data-file-missing", "data.raw"),
    ];
    for (case, name) in cases {
        for hostile in HOSTILE {
            let about = format!("{case}, {name} as {hostile:?}");
            stage.put("image", &renamed(bytes_of(case), name, hostile));
            let human = stage.qfsck(["check", "image"]);
            expect_printable(&human, &about);
            let json = stage.qfsck(["check", "--output", "json", "image"]);
            expect_printable(&json, &about);
            let document = json.document();
            for text in texts(&document) {
                assert_eq!(unprintable(text.as_bytes()), None, "{about}: {text:?}");
            }
            let is_named = texts(&document).iter().any(|text| text.contains('\\'));
            assert!(is_named, "{about}: the name is not in the document");
            expect_printable(&stage.qfsck(["owner", "image", "0x1a00"]), &about);
            for output in ["human", "json", "jsonl"] {
                let judge = [
                    "check",
                    "--untrusted",
                    "--deep",
                    "--output",
                    output,
                    "image",
                ];
                expect_printable(&stage.qfsck(judge), &about);
            }
            expect_printable(&stage.qfsck(["repair", "--dry-run", "image"]), &about);
            expect_printable(&stage.qfsck(["repair", "--plan", "-", "image"]), &about);
        }
    }
}

/// An image with two snapshots of the same name, which is a finding, and a bitmap that has it too as far as it fits.
fn named(name: &[u8]) -> Forged {
    let plain = "x".repeat(name.len());
    let bitmap = &plain[..plain.len().min(1023)];
    let mut image = Forge::new()
        .cluster_bits(12)
        .size(1 << 20)
        .data(0)
        .snapshot("1", &plain)
        .data(1)
        .snapshot("2", &plain)
        .data(2)
        .bitmap(bitmap, 9, 0, &[BitmapCluster::AllZero])
        .build();
    let mut at = 0;
    // Only names are as long a run of this letter.
    while let Some(found) = image.bytes[at..]
        .windows(bitmap.len())
        .position(|window| window == bitmap.as_bytes())
    {
        at += found;
        let length = image.bytes[at..]
            .iter()
            .take_while(|byte| **byte == b'x')
            .count();
        let length = length.min(name.len());
        image.put(at as u64, &name[..length]);
        at += length;
    }
    // A cluster that only a snapshot uses is counted too low: whose it is, is named.
    let cluster = image.host_cluster(Tree::Snapshot(0), 0);
    image.set_refcount(cluster, 1);
    image
}

/// Names of random bytes, half of them of what does harm to a terminal, of any length up to the largest.
fn random_name(random: &mut Random) -> Vec<u8> {
    let length = random.pick(&[3, 8, 40, 200, 1023, 5000, 65535]);
    let mut name = Vec::new();
    while name.len() < length {
        let harm = random.pick(&HOSTILE);
        if random.chance(50) {
            name.extend(harm);
        } else {
            name.push(random.next_u64().to_be_bytes()[0]);
        }
    }
    name.truncate(length);
    name
}

/// The longest escape of one character, times the characters that are shown, and the dots behind them.
const LONGEST_SHOWN: usize = 10 * 128 + 8;

#[test]
fn no_name_of_random_bytes_reaches_an_output_as_it_is() {
    let stage = Stage::new();
    let mut random = Random::new(0x6e61_6d65);
    let mut shown = 0;
    for round in 0..24 {
        let name = random_name(&mut random);
        stage.put("image", &named(&name).bytes);
        let commands: [&[&str]; 7] = [
            &["check", "--progress", "json", "image"],
            &["check", "--output", "json", "image"],
            &[
                "check",
                "--output",
                "jsonl",
                "--deep",
                "--untrusted",
                "image",
            ],
            &["owner", "image", "0x5000"],
            &["owner", "--output", "json", "image", "0x5000"],
            &["repair", "--dry-run", "--progress", "json", "image"],
            &["repair", "--plan", "-", "image"],
        ];
        for command in commands {
            let debug = ["QFSCK_DEBUG=1", super::stage::QFSCK];
            let said = stage.run("env", debug.iter().chain(command));
            let about = format!("name {round} of {} bytes, {command:?}", name.len());
            assert!(matches!(said.exit, Some(0..=3)), "{about}: {}", said.err());
            expect_printable(&said, &about);
            if command.contains(&"json") && said.stdout.starts_with(b"{") {
                let document = said.document();
                for text in texts(&document) {
                    assert_eq!(unprintable(text.as_bytes()), None, "{about}: {text:?}");
                    assert!(text.len() <= 2 * LONGEST_SHOWN + 512, "{about}: {text:?}");
                    shown += usize::from(text.contains('\\'));
                }
            }
            for line in said.out().lines().chain(said.err().lines()) {
                assert!(
                    line.len() <= 4 * LONGEST_SHOWN + 1024 || command.contains(&"jsonl"),
                    "{about}: a line of {} bytes",
                    line.len()
                );
            }
        }
    }
    println!("{shown} escaped texts in documents");
    assert!(shown > 48, "{shown}");
}

#[test]
fn names_of_feature_bits_are_shown_escaped() {
    let stage = Stage::new();
    let mut bytes = bytes_of("006-cluster-64k");
    // Compatible bit 0 becomes bit 40, which nobody knows, and is set.
    let entry = b"\x01\x00lazy refcounts";
    let at = bytes
        .windows(entry.len())
        .position(|window| window == entry)
        .expect("the image has a feature name table");
    bytes[at + 1] = 40;
    bytes[82] |= 1;
    let hostile = b"\x1b[31m\n\xff\xe2\x80\xae";
    bytes[at + 2..][..hostile.len()].copy_from_slice(hostile);
    stage.put("image", &bytes);
    let said = stage.qfsck(["check", "image"]);
    expect_printable(&said, "a feature name");
    assert!(
        said.out().contains("\\x1b[31m\\x0a\\xff\\u{202e}"),
        "{}",
        said.out()
    );
}

#[test]
fn hostile_file_names_are_shown_escaped_and_whole() {
    let stage = Stage::new();
    for name in [ESCAPE_PATH, BROKEN_PATH].map(OsStr::from_bytes) {
        stage.copy("104-refcount-zero-data", name);
        for output in ["human", "json", "jsonl"] {
            let said = stage.qfsck([
                OsStr::new("check"),
                "--output".as_ref(),
                output.as_ref(),
                name,
            ]);
            said.expect_exit(2);
            expect_printable(&said, output);
            assert!(said.out().contains(".qcow2"), "{}", said.out());
            if output != "human"
                && let Some(text) = name.to_str()
            {
                assert_eq!(
                    said.document()["filename"],
                    text,
                    "a machine finds it again"
                );
            }
        }
        let said = stage.qfsck([OsStr::new("check"), name]);
        let first_line = said.out().lines().next().unwrap_or_default().to_owned();
        assert!(
            first_line.contains(".qcow2"),
            "one line, whole: {first_line}"
        );
        for offset in ["0", "1T"] {
            let said = stage.qfsck([OsStr::new("owner"), name, offset.as_ref()]);
            expect_printable(&said, "owner");
        }
    }
}

#[test]
fn the_way_back_can_be_pasted_into_a_shell() {
    if !is_installed("bash") {
        skip("bash is not installed");
        return;
    }
    let stage = Stage::new();
    let long = ["d".repeat(200), "image.qcow2".to_owned()].join("/");
    fs::create_dir(stage.path("d".repeat(200))).expect("a directory can be made");
    let names: [&[u8]; 6] = [
        b"plain.qcow2",
        b"it's a 'disk'.qcow2",
        b"back\\slash \\x1b.qcow2",
        long.as_bytes(),
        ESCAPE_PATH,
        BROKEN_PATH,
    ];
    for name in names.map(OsStr::from_bytes) {
        let image = stage.copy("100-refcount-leak", name);
        let said = stage.qfsck([OsStr::new("repair"), "--yes".as_ref(), name]);
        said.expect_exit(0);
        expect_printable(&said, "repair");
        let words = said.err();
        let (_, command) = words.split_once("qfsck undo ").expect("the way back");
        let (undo_file, _) = command.split_once(" (keep").expect("a file");
        let script = format!("exec \"$0\" undo {undo_file}");
        let undone = stage.run("bash", ["-c", &script, super::stage::QFSCK]);
        undone.expect_exit(0);
        expect_printable(&undone, "undo");
        let bytes = fs::read(image).expect("the image can be read");
        assert!(bytes == bytes_of("100-refcount-leak"), "{name:?}");
    }
}

#[test]
fn long_paths_are_not_cut() {
    let stage = Stage::new();
    let directory = ["d".repeat(200), "e".repeat(200)].join("/");
    fs::create_dir_all(stage.path(&directory)).expect("directories can be made");
    let path = format!("{directory}/image.qcow2");
    stage.copy("002-v3-plain", &path);
    let said = stage.qfsck(["check", &path]);
    assert_eq!(said.out().lines().next(), Some(path.as_str()));
    let missing = format!("{directory}/missing.qcow2");
    let said = stage.qfsck(["check", &missing]);
    assert!(said.err().contains(&missing), "{}", said.err());
}

#[test]
fn errors_about_hostile_file_names_are_printable() {
    let stage = Stage::new();
    let make: [(&str, Make); 8] = [
        ("missing", |_| Ok(())),
        ("empty", |path| fs::write(path, [])),
        ("raw", |path| fs::write(path, [1; 600])),
        ("stump", |path| fs::write(path, b"QFI\xfb\0\0\0\x01")),
        ("directory", |path| fs::create_dir(path)),
        ("FIFO", |path| Ok(mkfifo(path, Mode::S_IRWXU)?)),
        ("socket", |path| UnixListener::bind(path).map(drop)),
        ("loop", |path| symlink(path, path)),
    ];
    for (what, make) in make {
        for name in [ESCAPE_PATH, BROKEN_PATH] {
            let name = [what.as_bytes(), name].concat();
            let name = OsStr::from_bytes(&name);
            make(&stage.path(name)).expect(what);
            for (before, after) in COMMANDS {
                let arguments = before.iter().map(OsStr::new).chain([name]);
                let said = stage.qfsck(arguments.chain(after.iter().map(OsStr::new)));
                assert_ne!(said.exit, Some(0), "{what} {before:?}");
                assert_ne!(said.stderr, b"", "{what} {before:?}");
                expect_printable(&said, &format!("{what} {before:?}"));
            }
        }
    }
}

#[test]
fn usage_errors_quote_hostile_arguments_printably() {
    let stage = Stage::new();
    let hostile = OsStr::from_bytes(ESCAPE_PATH);
    let option = [b"--", ESCAPE_PATH].concat();
    let commands: [&[&OsStr]; 7] = [
        &[hostile],
        &["check".as_ref(), OsStr::from_bytes(&option)],
        &["check".as_ref(), "--output".as_ref(), hostile, "x".as_ref()],
        &["check".as_ref(), "--budget".as_ref(), hostile, "x".as_ref()],
        &["check".as_ref(), "-f".as_ref(), hostile, "x".as_ref()],
        &["owner".as_ref(), "x".as_ref(), hostile],
        &["explain".as_ref(), hostile],
    ];
    for arguments in commands {
        let said = stage.qfsck(arguments);
        assert!(matches!(said.exit, Some(63 | 64)), "{arguments:?}");
        expect_printable(&said, &format!("{arguments:?}"));
    }
    if !has_tools(&["script"]) {
        return;
    }
    // On a terminal, where colours are allowed, a stranger's escape sequences are not.
    let command = format!(
        "{} check '{}'",
        super::stage::QFSCK,
        String::from_utf8_lossy(&option)
    );
    let said = stage.run("script", ["-qec", &command, "/dev/null"]);
    said.expect_exit(64);
    for stranger in ["\x1b]0;", "\x07", "\x1b[31mv", "\u{202e}"] {
        assert!(!said.out().contains(stranger), "{:?}", said.out());
    }
}

#[test]
fn the_program_in_the_way_is_named_printably() {
    let stage = Stage::new();
    let image = stage.copy("002-v3-plain", "image");
    let program = OsStr::from_bytes(b"ev\x1b[31m\nil\xff");
    if !has_tools(&["qemu-io"]) {
        return;
    }
    // A process is called what its file is called, up to 15 bytes.
    let found = stage.run("sh", ["-c", "command -v qemu-io"]).out();
    // A copy made by this process could still be open for writing in a child another test has just forked.
    let copy = [OsStr::new(found.trim_end()), program];
    stage.run("cp", copy).expect_exit(0);
    let mut command = Command::new(stage.path(program));
    command.args(["-f", "qcow2"]).arg(&image);
    let mut holder = stage.start_command(command);
    if !holder.has_locked() {
        skip("qemu-io does not run under another name");
        return;
    }
    for output in ["human", "json"] {
        let said = stage.qfsck(["check", "--output", output, "image"]);
        said.expect_exit(4);
        expect_printable(&said, output);
        let id = holder.id().to_string();
        assert!(
            said.err()
                .contains(&format!("ev\\x1b[31m\\x0ail\\xff (process {id})")),
            "{}",
            said.err()
        );
    }
}
