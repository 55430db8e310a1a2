//! Who else is in the image: QEMU's lock protocol, seen from both sides.
//!
//! Comes in: QEMU's tools and other programs that hold an image. Goes out: a refusal that names them, or an answer that
//! says how far to trust it. Never here: waiting for a lock.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::stage::{LargeImage, Running, Said, Stage, bytes_of, has_tools, skip};

const OPEN_READ_WRITE: [&str; 5] = ["-f", "qcow2", "-c", "write 0 512", "image"];
const OPEN_READ_ONLY: [&str; 6] = ["-r", "-f", "qcow2", "-c", "read 0 512", "image"];

/// Starts a program that opens the image, and waits until it holds a lock.
fn hold(stage: &Stage, program: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(arguments);
    let mut holder = stage.start_command(command);
    assert!(holder.has_locked(), "{program}: {}", holder.wait().err());
    holder
}

/// The programs that keep an image open for writing, each with its name as the kernel cuts it.
fn writers() -> [(&'static str, Vec<&'static str>, &'static str); 3] {
    let daemon = [
        "--nbd-server",
        "addr.type=unix,addr.path=daemon.socket",
        "--blockdev",
        "driver=file,node-name=file,filename=image",
        "--blockdev",
        "driver=qcow2,node-name=disk,file=file",
        "--export",
        "type=nbd,id=export,node-name=disk,writable=on",
    ];
    let nbd = ["-f", "qcow2", "-k", "server.socket", "image"];
    [
        ("qemu-io", vec!["-f", "qcow2", "image"], "qemu-io"),
        ("qemu-storage-daemon", daemon.to_vec(), "qemu-storage-da"),
        ("qemu-nbd", nbd.to_vec(), "qemu-nbd"),
    ]
}

#[test]
fn an_image_open_for_writing_is_refused_and_the_program_named() {
    let stage = Stage::new();
    stage.copy("100-refcount-leak", "image");
    for (program, mut arguments, name) in writers() {
        if !has_tools(&[program]) {
            continue;
        }
        let socket = stage.path("server.socket");
        let socket = socket.to_string_lossy();
        for argument in &mut arguments {
            if *argument == "server.socket" {
                *argument = &socket;
            }
        }
        let holder = hold(&stage, program, &arguments);
        let who = format!("{name} (process {})", holder.id());
        for output in ["human", "json"] {
            let said = stage.qfsck(["check", "--output", output, "image"]);
            said.expect_exit(4);
            assert!(said.err().contains(&who), "{who} in {}", said.err());
            assert!(said.err().contains("-U"), "the way out is named");
            if output == "json" {
                let message = said.document()["error"]["message"].to_string();
                assert!(message.contains(&who), "{message}");
            }
        }
        stage.qfsck(["owner", "image", "0"]).expect_exit(4);
        let repair = stage.qfsck(["repair", "--yes", "image"]);
        repair.expect_exit(4);
        assert!(repair.err().contains(&who), "{}", repair.err());
        expect_unreliable(
            &stage.qfsck(["check", "-U", "--output", "json", "image"]),
            &who,
        );
        let said = stage.qfsck(["check", "-U", "image"]);
        said.expect_exit(3);
        assert!(said.out().contains(&who), "{}", said.out());
        let said = stage.qfsck(["owner", "-U", "image", "0"]);
        said.expect_exit(0);
        assert!(said.err().contains(&who), "{}", said.err());
        drop(holder);
        stage.qfsck(["check", "image"]).expect_exit(3);
    }
}

#[track_caller]
fn expect_unreliable(said: &Said, who: &str) {
    said.expect_exit(3);
    let document = said.document();
    assert_eq!(document["leaks"], 1);
    let reasons = document["unreliable"].to_string();
    assert!(reasons.contains(who), "{who} in {reasons}");
}

#[test]
fn forced_sharing_is_never_called_reliable() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    let said = stage.qfsck(["check", "-U", "--output", "json", "image"]);
    said.expect_exit(0);
    let reasons = said.document()["unreliable"].clone();
    assert_eq!(reasons.as_array().map(Vec::len), Some(1), "{reasons}");
    let said = stage.qfsck(["check", "--output", "json", "image"]);
    assert_eq!(said.document()["unreliable"], serde_json::json!([]));
}

#[test]
fn readers_and_checks_coexist() {
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    if has_tools(&["qemu-io"]) {
        let reader = hold(&stage, "qemu-io", &["-r", "-f", "qcow2", "image"]);
        stage.qfsck(["check", "image"]).expect_exit(0);
        reader.wait().expect_exit(0);
        let reader = hold(&stage, "qemu-io", &["-r", "-U", "-f", "qcow2", "image"]);
        stage.qfsck(["check", "image"]).expect_exit(0);
        reader.wait().expect_exit(0);
    }
    let checks: Vec<Running> = (0..8).map(|_| stage.start(["check", "image"])).collect();
    for check in checks {
        check.wait().expect_exit(0);
    }
}

/// A check of a large image, held still in its middle.
fn held_check(stage: &Stage, options: &[&str]) -> Running {
    let large = LargeImage::of_a_moment();
    large.write(&stage.path("image"));
    let arguments = [&["check", "--jobs", "1"], options, &["image"]].concat();
    let mut check = stage.start(arguments);
    assert!(
        check.has_read(large.head_bytes()),
        "the check ended too soon"
    );
    check.signal("STOP");
    check
}

#[test]
fn a_check_keeps_writers_out_and_lets_readers_in() {
    let stage = Stage::new();
    let mut check = held_check(&stage, &[]);
    stage.qfsck(["repair", "--yes", "image"]).expect_exit(4);
    stage.qfsck(["check", "-q", "image"]).expect_exit(0);
    if has_tools(&["qemu-img", "qemu-io"]) {
        let said = stage.run("qemu-io", OPEN_READ_WRITE);
        said.expect_exit(1);
        assert!(said.err().contains("lock"), "{}", said.err());
        stage.run("qemu-io", OPEN_READ_ONLY).expect_exit(0);
        stage.run("qemu-img", ["check", "image"]).expect_exit(0);
        stage.run("qemu-img", ["info", "image"]).expect_exit(0);
        let said = stage.run("qemu-img", ["check", "-r", "leaks", "image"]);
        assert_ne!(said.exit, Some(0), "a repair came in: {}", said.err());
    }
    assert!(check.is_running(), "the check was still in the image");
    check.signal("CONT");
    check.wait().expect_exit(0);
    if has_tools(&["qemu-io"]) {
        stage.run("qemu-io", OPEN_READ_WRITE).expect_exit(0);
    }
}

#[test]
fn forced_sharing_keeps_nobody_out_and_says_what_came_of_it() {
    if !has_tools(&["qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let check = held_check(&stage, &["-U", "--output", "json"]);
    stage.run("qemu-io", OPEN_READ_WRITE).expect_exit(0);
    check.signal("CONT");
    let said = check.wait();
    said.expect_exit(5);
    let document = said.document();
    assert_eq!(document["changed-while-read"], true);
    assert_ne!(document["verdict"], "clean");
}

/// A lock of an open file description, held by this process: to qfsck that is somebody else.
struct Lock {
    file: File,
}

impl Lock {
    fn take(path: &Path, kind: libc::c_int, start: i64, length: i64) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = options.open(path).expect("the image can be opened");
        set_lock(&file, kind, start, length).expect("the lock can be had");
        Self { file }
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a child another test has just forked may have it open, too.
    fn drop(&mut self) {
        let _unlocked = set_lock(&self.file, libc::F_UNLCK, 0, 0);
    }
}

pub(super) fn set_lock(
    file: &File,
    kind: libc::c_int,
    start: i64,
    length: i64,
) -> nix::Result<libc::c_int> {
    let wanted = libc::flock {
        l_type: i16::try_from(kind).expect("a small number"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("a small number"),
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&wanted))
}

#[test]
fn locks_of_other_programs_count_by_what_they_mean() {
    let stage = Stage::new();
    let path = stage.copy("002-v3-plain", "image");
    let who = format!("(process {})", std::process::id());
    let (read, write) = (libc::F_RDLCK, libc::F_WRLCK);
    // What is held; whether a check goes on; whether one with -U does.
    let locks = [
        (
            "the whole file, as other monitors do",
            write,
            0,
            0,
            false,
            false,
        ),
        ("byte 0, libvirt's", write, 0, 1, false, true),
        ("a reader's permission", read, 100, 1, true, true),
        ("a writer's permission", read, 101, 1, false, true),
        ("a resizer's permission", read, 103, 1, false, true),
        ("not sharing reads", read, 200, 1, false, false),
        ("not sharing writes", read, 201, 1, true, true),
        ("not sharing resizes", read, 203, 1, true, true),
        ("far behind", write, 1 << 40, 1, false, true),
    ];
    for (what, kind, start, length, is_shared, is_shared_by_force) in locks {
        let _lock = Lock::take(&path, kind, start, length);
        for (option, goes_on) in [("--jobs=1", is_shared), ("-U", is_shared_by_force)] {
            let said = stage.qfsck(["check", option, "image"]);
            let expected = if goes_on { 0 } else { 4 };
            assert_eq!(
                said.exit,
                Some(expected),
                "{what}, {option}: {}",
                said.err()
            );
            assert!(
                goes_on || said.err().contains(&who),
                "{what}: {}",
                said.err()
            );
        }
    }
    stage.qfsck(["check", "image"]).expect_exit(0);
}

#[test]
fn a_lock_is_the_images_and_not_the_paths() {
    let stage = Stage::new();
    let path = stage.copy("002-v3-plain", "image");
    stage.copy("002-v3-plain", "other");
    std::os::unix::fs::symlink("image", stage.path("link")).expect("a link can be made");
    std::fs::hard_link(&path, stage.path("hard")).expect("a link can be made");
    let _lock = Lock::take(&path, libc::F_RDLCK, 101, 1);
    for name in ["image", "link", "hard"] {
        stage.qfsck(["check", name]).expect_exit(4);
    }
    stage.qfsck(["check", "other"]).expect_exit(0);
}

#[test]
fn a_file_system_without_locks_is_said() {
    if !has_tools(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    stage.copy("002-v3-plain", "image");
    let inject = ["-f", "-o", "log", "-e", "inject=fcntl:error=ENOLCK"];
    let qfsck = super::stage::QFSCK;
    let check = [qfsck, "check", "--output", "json", "image"];
    let said = stage.run("strace", inject.iter().chain(&check));
    if said.exit.is_none() || said.stdout.is_empty() {
        skip(&format!("strace may not trace here: {}", said.err()));
        return;
    }
    said.expect_exit(0);
    let reasons = said.document()["unreliable"].to_string();
    assert!(reasons.contains("no locks"), "{reasons}");
    // To look is one thing; to write where nobody can be kept out is another.
    let image = stage.copy("100-refcount-leak", "image");
    let repair = [qfsck, "repair", "--yes", "image"];
    let said = stage.run("strace", inject.iter().chain(&repair));
    said.expect_exit(1);
    assert!(said.err().contains("without locks"), "{}", said.err());
    let bytes = std::fs::read(image).expect("the image can be read");
    assert!(bytes == bytes_of("100-refcount-leak"), "the image changed");
}
