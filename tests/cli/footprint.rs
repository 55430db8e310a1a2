//! What a run leaves behind, and what it touches on the way: the image, once, for reading; nothing else.
//!
//! Comes in: images that name other files and servers. Goes out: the list of system calls, the state of the disk before
//! and after. Never here: the report.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::stage::{QFSCK, Stage, bytes_of, has_tools, skip};

/// Everything a look must not change: bytes, length, both times, mode.
#[derive(Debug, PartialEq, Eq)]
struct State {
    bytes: Vec<u8>,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

fn states(directory: &Path) -> BTreeMap<String, State> {
    let entries = fs::read_dir(directory).expect("the directory can be read");
    let state = |entry: fs::DirEntry| {
        let metadata = entry.metadata().expect("the file is there");
        let state = State {
            bytes: fs::read(entry.path()).expect("the file can be read"),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
        };
        (entry.file_name().to_string_lossy().into_owned(), state)
    };
    entries.flatten().map(state).collect()
}

const CASES: [&str; 12] = [
    "002-v3-plain",
    "015-snapshots-diverged",
    "048-dirty-bit-only",
    "049-corrupt-bit-only",
    "051-unknown-autoclear-bit",
    "100-refcount-leak",
    "104-refcount-zero-data",
    "130-l1-entry-lost",
    "214-refcount-table-entry-lost",
    "270-bitmap-in-use",
    "340-truncated-data",
    "360-raw-file",
];

#[test]
fn a_look_changes_nothing_not_even_a_time() {
    let stage = Stage::new();
    for case in CASES {
        stage.copy(case, case);
    }
    let before = states(&stage.path(""));
    for case in CASES {
        let commands: [&[&str]; 9] = [
            &["check", case],
            &["check", "-U", "--output", "json", case],
            &["check", "-q", "--budget", "0s", case],
            &["repair", "--plan", "-", case],
            &["repair", "--dry-run", case],
            &["repair", case],
            &["undo", "--dry-run", case],
            &["owner", case, "0"],
            &["owner", "--guest", case, "0"],
        ];
        for arguments in commands {
            stage.qfsck(arguments);
        }
    }
    assert!(
        before == states(&stage.path("")),
        "a file came, went or changed"
    );
}

/// The lines of system calls of a run that have to do with files, sockets and writing; `None` where nobody may trace.
pub(super) fn calls(stage: &Stage, arguments: &[&str]) -> Option<Vec<String>> {
    let calls = "trace=open,openat,openat2,creat,open_by_handle_at,socket,connect,sendto,sendmsg,write,writev,pwrite64,\
                 pwritev,pwritev2,ftruncate,truncate,fallocate,unlink,unlinkat,rename,renameat,renameat2,mkdir,link,\
                 linkat,symlink,fchmod,fchown,utimensat,setxattr,fsetxattr,copy_file_range,sendfile,splice,execve";
    let tracing = ["-f", "-y", "-s", "200", "-o", "log", "-e", calls, QFSCK];
    let said = stage.run("strace", tracing.iter().chain(arguments));
    let log = fs::read_to_string(stage.path("log")).unwrap_or_default();
    if !log.contains("exited with") {
        skip(&format!("strace may not trace here: {}", said.err()));
        return None;
    }
    fs::remove_file(stage.path("log")).expect("the log can be removed");
    Some(log.lines().map(str::to_owned).collect())
}

fn is_open(call: &str, name: &str) -> bool {
    call.contains("open") && call.contains(&format!("{name}\""))
}

#[track_caller]
pub(super) fn expect_one_reading_open(calls: &[String], image: &str, strangers: &[&str]) {
    let opens: Vec<_> = calls.iter().filter(|call| is_open(call, image)).collect();
    assert_eq!(opens.len(), 1, "{opens:#?}");
    assert!(opens[0].contains("O_RDONLY"), "{opens:?}");
    for stranger in strangers {
        let opens: Vec<_> = calls
            .iter()
            .filter(|call| is_open(call, stranger))
            .collect();
        assert!(opens.is_empty(), "{stranger} was opened: {opens:#?}");
    }
    for call in calls {
        let words = [
            "socket(",
            "connect(",
            "sendto(",
            "unlink",
            "rename",
            "truncate(",
            "fallocate(",
        ];
        assert!(!words.iter().any(|word| call.contains(word)), "{call}");
        let creates =
            call.contains("O_CREAT") || call.contains("O_WRONLY") || call.contains("O_RDWR");
        assert!(!creates, "{call}");
        let writes = call.contains("write") && call.contains(&format!("{image}>"));
        assert!(!writes, "{call}");
    }
    let executions = calls.iter().filter(|call| call.contains("execve(")).count();
    assert_eq!(executions, 1, "only qfsck itself is run");
}

#[test]
fn a_run_opens_the_image_once_and_nothing_it_names() {
    if !has_tools(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    let images = [
        ("042-backing-present", "overlay", "base.raw"),
        ("044-data-file-raw", "with-data", "data.raw"),
        ("045-luks", "encrypted", "none"),
        ("178-data-on-snapshot-l1", "damaged", "none"),
    ];
    for (case, image, neighbour) in images {
        stage.copy(case, image);
        stage.put(neighbour, &[0; 4096]);
        let commands: [&[&str]; 5] = [
            &["check", image],
            &["repair", "--dry-run", image],
            &["check", "-U", "--output", "json", image],
            &["owner", image, "0"],
            &["owner", "--guest", image, "0"],
        ];
        for arguments in commands {
            let Some(calls) = calls(&stage, arguments) else {
                return;
            };
            expect_one_reading_open(&calls, image, &[neighbour]);
        }
    }
}

#[test]
fn a_server_named_as_backing_file_is_never_called() {
    if !has_tools(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    for backing in [
        "nbd://127.0.0.1:9/disk",
        "json:{\"driver\":\"nbd\",\"host\":\"127.0.0.1\",\"port\":\"9\"}",
        "/dev/zero",
        "fifo",
        "../../../../etc/passwd",
    ] {
        let mut bytes = bytes_of("041-backing-missing");
        bytes[8..16].copy_from_slice(&400_u64.to_be_bytes());
        let length = u32::try_from(backing.len()).expect("a small number");
        bytes[16..20].copy_from_slice(&length.to_be_bytes());
        bytes[400..400 + backing.len()].copy_from_slice(backing.as_bytes());
        stage.put("image", &bytes);
        let Some(calls) = calls(&stage, &["check", "--output", "json", "image"]) else {
            return;
        };
        expect_one_reading_open(&calls, "image", &[backing]);
    }
}
