//! The real binary on real files, with its system calls in somebody else's hands.
//!
//! Comes in: bytes of an image, and what shall happen at which system call. Goes out: how `qfsck` ended, what it said, and
//! what is in the files now. Never here: what is right; the tests know.
//!
//! `strace` makes the calls fail or kills the program at them. Where it is missing or may not trace, nothing is tested and
//! a line says so; with `QFSCK_REQUIRE_ORACLE=1` that is a failure.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::thread;

use qfsck::undo::{UndoFile, UndoState};
use tempfile::TempDir;

use crate::support::needs::not_tested;

/// The names of the files, as `qfsck` is told them.
pub(super) const IMAGE: &str = "image.qcow2";
pub(super) const UNDO_FILE: &str = "image.qcow2.qfsck-undo";
const TRACE: &str = "trace.log";
/// What a kernel says that cannot read without waiting.
const REFUSED: &str = "ENOSYS";

/// A directory with an image in it.
pub(super) struct Bench {
    directory: TempDir,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    /// `None` when a signal ended it.
    pub(super) exit: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Whether a system call was tampered with.
    pub(super) is_injected: bool,
}

impl Ended {
    fn of(output: &Output, trace: &str) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            exit: output.status.code(),
            signal: output.status.signal(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            is_injected: trace
                .lines()
                .any(|line| line.contains("(INJECTED)") && !line.contains(REFUSED)),
        }
    }

    /// Whether it says that it did what it was asked to.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.exit, Some(0 | 2 | 3))
    }

    /// Whether it said something in either stream.
    pub(super) fn says(&self, word: &str) -> bool {
        self.stdout.contains(word) || self.stderr.contains(word)
    }
}

impl Bench {
    /// An empty directory, on whatever disk temporary files are.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts the image there, and an undo file or none.
    pub(super) fn lay(&self, image: &[u8], undo_file: Option<&[u8]>) {
        fs::write(self.path(IMAGE), image).expect("the image can be written");
        let undo_path = self.path(UNDO_FILE);
        if let Some(bytes) = undo_file {
            fs::write(&undo_path, bytes).expect("the undo file can be written");
            let owner_only = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&undo_path, owner_only).expect("it is ours");
        } else if undo_path.exists() {
            fs::remove_file(&undo_path).expect("it is ours");
        }
    }

    pub(super) fn image(&self) -> Vec<u8> {
        fs::read(self.path(IMAGE)).expect("the image can be read")
    }

    pub(super) fn undo_file(&self) -> Option<Vec<u8>> {
        fs::read(self.path(UNDO_FILE)).ok()
    }

    /// How far the repair came, by its undo file; `None` when there is none, or none that began.
    pub(super) fn undo_state(&self) -> Option<UndoState> {
        let bytes = self.undo_file()?;
        let state = UndoFile::decode(&bytes).ok()?.state;
        Some(state).filter(|state| *state != UndoState::Incomplete)
    }

    /// Runs `qfsck` as it is.
    pub(super) fn qfsck(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qfsck"));
        command.args(arguments);
        self.run(command)
    }

    /// Runs `qfsck` while `strace` tampers with its system calls.
    pub(super) fn tampered(&self, injection: &Injection<'_>, arguments: &[&str]) -> Ended {
        let mut command = Command::new("strace");
        command.args(["-f", "-o", TRACE, "-e"]);
        command.arg(format!("trace={}", injection.calls));
        if injection.calls == "pread64" {
            // Nothing is at hand then, so that all that is read is read by the call that is tampered with.
            command.args(["-e", "trace=pread64,preadv2", "-e"]);
            command.arg(format!("inject=preadv2:error={REFUSED}"));
        }
        command.arg("-e").arg(format!(
            "inject={}:{}:when={}",
            injection.calls, injection.what, injection.when
        ));
        if let Some(file) = injection.only_file {
            command.arg("-P").arg(self.path(file));
        }
        command.arg(env!("CARGO_BIN_EXE_qfsck")).args(arguments);
        self.run(command)
    }

    /// Runs any command in the directory.
    pub(super) fn run(&self, mut command: Command) -> Ended {
        let trace_path = self.path(TRACE);
        drop(fs::remove_file(&trace_path));
        let output = command
            .current_dir(self.directory.path())
            // One thread reads, so that the n-th read is the same every time.
            .env("RAYON_NUM_THREADS", "1")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .expect("the command can be run");
        let trace = fs::read(&trace_path).unwrap_or_default();
        Ended::of(&output, &String::from_utf8_lossy(&trace))
    }
}

/// What shall happen to which system calls.
#[derive(Clone, Debug)]
pub(super) struct Injection<'a> {
    /// Names, with commas between.
    pub(super) calls: &'a str,
    /// In the words of `strace`, such as `error=EIO`.
    pub(super) what: &'a str,
    /// The how-manieth call, such as `3`, or `3+` for it and all that follow.
    pub(super) when: String,
    /// Only calls that have to do with this file.
    pub(super) only_file: Option<&'a str>,
}

/// Whether `strace` is there and may do its work.
pub(super) fn can_trace() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let is_found = *FOUND.get_or_init(|| {
        let bench = Bench::new();
        let arguments = [
            "-f",
            "-o",
            TRACE,
            "-e",
            "inject=openat:error=EIO:when=1+",
            "cat",
            "-",
        ];
        let mut command = Command::new("strace");
        command
            .args(arguments)
            .current_dir(bench.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let is_run = command.status().is_ok();
        let trace = fs::read_to_string(bench.path(TRACE)).unwrap_or_default();
        is_run && trace.contains("(INJECTED)")
    });
    if !is_found {
        let required = std::env::var_os("QFSCK_REQUIRE_ORACLE").is_some_and(|value| value == "1");
        assert!(
            !required,
            "QFSCK_REQUIRE_ORACLE=1, but strace is missing or may not trace"
        );
        not_tested("failing calls and kills: strace is not installed or may not trace");
    }
    is_found
}

/// Does all the work on four threads, and returns what came of it in no particular order.
pub(super) fn in_parallel<W: Send, R: Send>(work: Vec<W>, doing: impl Fn(W) -> R + Sync) -> Vec<R> {
    let left = Mutex::new(work.into_iter());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = left.lock().expect("no thread panics here").next();
                    let Some(next) = next else { break };
                    let result = doing(next);
                    done.lock().expect("no thread panics here").push(result);
                }
            });
        }
    });
    done.into_inner().expect("no thread panicked here")
}
