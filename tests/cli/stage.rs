//! What every test here stands on: a directory of its own, images in it, programs run in it under a time limit.
//!
//! Comes in: arguments. Goes out: what a program said, and how it ended. Never here: an expectation.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::needs;

/// Longer than any honest run here by an order of magnitude: what takes longer hangs.
const TIME_LIMIT: Duration = Duration::from_secs(50);
const POLL: Duration = Duration::from_millis(1);

/// The binary under test.
pub(super) const QFSCK: &str = env!("CARGO_BIN_EXE_qfsck");

/// Whether the oracle's tools are there. Says so if not, and fails if they have to be.
pub(super) fn has_tools(programs: &[&str]) -> bool {
    needs::has_tools(programs)
}

/// Whether a tool is there that the system need not have in any case.
pub(super) fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Says that a test did nothing, and why.
pub(super) fn skip(why: &str) {
    needs::not_tested(why);
}

pub(super) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

/// The image of a case of the corpus, where it is.
pub(super) fn corpus(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(case)
        .join("image.qcow2")
}

/// A directory that is gone when the test is over.
pub(super) struct Stage {
    dir: TempDir,
}

impl Stage {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory can be made");
        Self { dir }
    }

    pub(super) fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.dir.path().join(name.as_ref())
    }

    /// Writes a file.
    pub(super) fn put(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file can be written");
        path
    }

    /// Copies the image of a case of the corpus.
    pub(super) fn copy(&self, case: &str, name: impl AsRef<OsStr>) -> PathBuf {
        self.put(name, &bytes_of(case))
    }

    /// Runs qfsck here to its end.
    pub(super) fn qfsck<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Said {
        self.run(QFSCK, arguments)
    }

    /// Runs any program here to its end.
    pub(super) fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Said {
        let mut command = Command::new(program);
        command.args(arguments);
        self.run_command(command)
    }

    pub(super) fn run_command(&self, command: Command) -> Said {
        self.start_command(command).wait()
    }

    /// Starts qfsck here.
    pub(super) fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        let mut command = Command::new(QFSCK);
        command.args(arguments);
        self.start_command(command)
    }

    pub(super) fn start_command(&self, mut command: Command) -> Running {
        let started = Instant::now();
        let mut child = command
            .current_dir(self.dir.path())
            // What decides about colours is the test's to set; `CI` counts as a terminal that knows colours.
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR")
            .env_remove("CLICOLOR_FORCE")
            .env_remove("CI")
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        Running {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(drain),
            stderr: child.stderr.take().map(drain),
            child,
            started,
        }
    }
}

/// The image of a case of the corpus, to be damaged.
pub(super) fn bytes_of(case: &str) -> Vec<u8> {
    fs::read(corpus(case)).expect("the corpus has this case")
}

/// What a program said.
pub(super) struct Said {
    /// `None` when a signal ended it.
    pub(super) exit: Option<i32>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) took: Duration,
}

impl Said {
    pub(super) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(super) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The one document on stdout.
    pub(super) fn document(&self) -> Value {
        serde_json::from_slice(&self.stdout).expect("stdout is one JSON document")
    }

    /// The documents on stdout, one a line.
    pub(super) fn documents(&self) -> Vec<Value> {
        let lines = self.out();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is a JSON document"))
            .collect()
    }

    /// Ends the test unless the program ended like this.
    #[track_caller]
    pub(super) fn expect_exit(&self, code: i32) -> &Self {
        assert_eq!(
            self.exit,
            Some(code),
            "\nstdout: {}\nstderr: {}",
            self.out(),
            self.err()
        );
        self
    }
}

/// A program that was started. It is ended with the test.
pub(super) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Option<Receiver<Vec<u8>>>,
    started: Instant,
}

impl Running {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; nothing more comes on its stdin.
    pub(super) fn wait(mut self) -> Said {
        drop(self.stdin.take());
        let deadline = self.started + TIME_LIMIT;
        while self.is_running() {
            assert!(Instant::now() < deadline, "a program hangs");
            thread::sleep(POLL);
        }
        let took = self.started.elapsed();
        let read = |pipe: Option<Receiver<Vec<u8>>>| {
            let left = deadline.saturating_duration_since(Instant::now());
            pipe.and_then(|pipe| pipe.recv_timeout(left).ok())
                .expect("the output ends with the program")
        };
        Said {
            exit: self.child.wait().expect("a child can be waited for").code(),
            stdout: read(self.stdout.take()),
            stderr: read(self.stderr.take()),
            took,
        }
    }

    pub(super) fn is_running(&mut self) -> bool {
        let ended = self.child.try_wait().expect("a child can be asked");
        ended.is_none()
    }

    /// Sends a signal by its name, such as `INT`.
    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", "kill -$0 $1", name, &self.id().to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "{name} can be sent"
        );
    }

    /// Waits until the program has read so much from files; `false` if it ended before.
    pub(super) fn has_read(&mut self, bytes: u64) -> bool {
        self.comes_to(|process| {
            let io = fs::read_to_string(process.join("io")).unwrap_or_default();
            let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
            read.and_then(|read| read.parse().ok()).unwrap_or(0_u64) >= bytes
        })
    }

    /// Waits until the program holds a lock on some file; `false` if it ended before.
    pub(super) fn has_locked(&mut self) -> bool {
        self.comes_to(|process| {
            let files = fs::read_dir(process.join("fdinfo"));
            files.into_iter().flatten().flatten().any(|file| {
                fs::read_to_string(file.path()).is_ok_and(|info| info.contains("lock:"))
            })
        })
    }

    fn comes_to(&mut self, state: impl Fn(&Path) -> bool) -> bool {
        let process = PathBuf::from(format!("/proc/{}", self.id()));
        let deadline = Instant::now() + TIME_LIMIT;
        while self.is_running() {
            if state(&process) {
                return true;
            }
            assert!(Instant::now() < deadline, "a program does nothing");
            thread::sleep(POLL);
        }
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most have ended long ago.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads a pipe to its end on a thread of its own, so that no pipe fills up while another is waited for.
fn drain(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still what was said, and a test that failed listens no more.
        drop(pipe.read_to_end(&mut bytes));
        drop(send.send(bytes));
    });
    receive
}

/// A large image that is nearly all hole, and clean but for the leaks that are asked for: 64 KiB clusters, one L2 table
/// without an entry behind each L1 entry. Each table takes a read of 64 KiB: in every eighth mebibyte some zeros are
/// stored, so that no check takes the tables for one hole.
pub(super) struct LargeImage {
    pub(super) l2_tables: u64,
    /// Leaked clusters with a free one before each.
    pub(super) leaks: u64,
}

impl LargeImage {
    const CLUSTER: u64 = 1 << 16;
    const COPIED: u64 = 1 << 63;

    /// A check reads this for at least 1/10 s with one thread, and tells what it did not read in no time.
    pub(super) fn of_a_moment() -> Self {
        Self {
            l2_tables: 1 << 13,
            leaks: 0,
        }
    }

    /// A check reads this for several seconds with one thread.
    pub(super) fn of_a_while() -> Self {
        Self {
            l2_tables: 1 << 17,
            leaks: 0,
        }
    }

    /// Bytes after which a check is surely among the L2 tables.
    pub(super) fn head_bytes(&self) -> u64 {
        self.first_l2_table() * Self::CLUSTER + (1 << 20)
    }

    fn l1_clusters(&self) -> u64 {
        (self.l2_tables * 8).div_ceil(Self::CLUSTER)
    }

    fn refcount_blocks(&self) -> u64 {
        // One block counts 32,768 clusters; two more for everything that is neither table nor leak.
        (self.l2_tables + 2 * self.leaks) / (1 << 15) + 2
    }

    fn l1_table(&self) -> u64 {
        2 + self.refcount_blocks()
    }

    fn first_l2_table(&self) -> u64 {
        self.l1_table() + self.l1_clusters()
    }

    pub(super) fn write(&self, path: &Path) {
        let used = self.first_l2_table() + self.l2_tables;
        let pointers = |first: u64, count: u64, flag: u64| {
            (first..first + count)
                .flat_map(|cluster| ((cluster * Self::CLUSTER) | flag).to_be_bytes())
                .collect::<Vec<u8>>()
        };
        let leaks = (0..2 * self.leaks).map(|index| u16::from(index % 2 == 1));
        let counts = std::iter::repeat_n(1_u16, usize::try_from(used).expect("a small number"));
        let counts: Vec<u8> = counts.chain(leaks).flat_map(u16::to_be_bytes).collect();
        let parts = [
            (0, self.header()),
            (1, pointers(2, self.refcount_blocks(), 0)),
            (2, counts),
            (
                self.l1_table(),
                pointers(self.first_l2_table(), self.l2_tables, Self::COPIED),
            ),
        ];
        let mut file = File::create(path).expect("an image can be created");
        for (cluster, bytes) in parts {
            file.seek(SeekFrom::Start(cluster * Self::CLUSTER))
                .and_then(|_| file.write_all(&bytes))
                .expect("an image can be written");
        }
        file.set_len((used + 2 * self.leaks) * Self::CLUSTER)
            .expect("a file can have holes");
        for table in (4..self.l2_tables).step_by(128) {
            let offset = (self.first_l2_table() + table) * Self::CLUSTER;
            file.write_all_at(&[0; 4096], offset)
                .expect("zeros can be stored");
        }
    }

    /// Puts something into every leaked cluster, so that each has to be read and looked through.
    pub(super) fn fill_leaks(&self, path: &Path) {
        let first = self.first_l2_table() + self.l2_tables;
        let file = fs::OpenOptions::new().write(true).open(path);
        let file = file.expect("the image can be opened");
        for index in 0..self.leaks {
            let cluster = first + 2 * index + 1;
            let written = file.write_all_at(&[0xa5; 4096], cluster * Self::CLUSTER);
            written.expect("an image can be written");
        }
    }

    fn header(&self) -> Vec<u8> {
        let u32_of = |number: u64| u32::try_from(number).expect("a small number").to_be_bytes();
        let virtual_bytes = self.l2_tables * (Self::CLUSTER / 8) * Self::CLUSTER;
        let fields: [&[u8]; 17] = [
            b"QFI\xfb",
            &u32_of(3),
            &[0; 12], // no backing file
            &u32_of(16),
            &virtual_bytes.to_be_bytes(),
            &u32_of(0), // no encryption
            &u32_of(self.l2_tables),
            &(self.l1_table() * Self::CLUSTER).to_be_bytes(),
            &Self::CLUSTER.to_be_bytes(), // refcount table
            &u32_of(1),
            &u32_of(0), // no snapshots
            &[0; 8],
            &[0; 8], // no feature bits
            &[0; 8],
            &[0; 8],
            &u32_of(4),
            &u32_of(104),
        ];
        fields.concat()
    }
}
