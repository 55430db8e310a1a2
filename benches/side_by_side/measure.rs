//! One program, measured.
//!
//! The kernel tells peak memory only of a process that has been waited for, as the maximum over all children there ever
//! were, and counts the memory of the process that started it as the child's until the child's own program begins. So
//! every program is started by a process that has nothing in memory and no other child: this program again, with
//! [`VERB`]. What is read is counted by the kernel in `/proc/PID/io`, which is still there once the program has ended
//! and before it is waited for. Reads that are no system calls (`mmap`, `io_uring`) are not in that count.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// The first argument of the process that measures.
pub(crate) const VERB: &str = "measure";

/// What one run took. Durations in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) wall_us: u64,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) peak_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) read_calls: u64,
    pub(crate) context_switches: u64,
    /// 128 and the signal, as a shell has it, if one ended the program.
    pub(crate) exit: u64,
    /// 1 if it was ended by the time limit.
    pub(crate) was_cut: u64,
}

impl Cost {
    pub(crate) fn cpu_us(&self) -> u64 {
        self.user_us + self.system_us
    }

    fn to_words(self) -> [u64; 9] {
        [
            self.wall_us,
            self.user_us,
            self.system_us,
            self.peak_bytes,
            self.read_bytes,
            self.read_calls,
            self.context_switches,
            self.exit,
            self.was_cut,
        ]
    }

    fn from_line(line: &str) -> Option<Self> {
        let words: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        let words: [u64; 9] = words.ok()?.try_into().ok()?;
        let [wall_us, user_us, system_us, peak_bytes, ..] = words;
        let [.., read_bytes, read_calls, context_switches, exit, was_cut] = words;
        Some(Self {
            wall_us,
            user_us,
            system_us,
            peak_bytes,
            read_bytes,
            read_calls,
            context_switches,
            exit,
            was_cut,
        })
    }

    pub(crate) fn print(self) {
        println!("{}", self.to_words().map(|word| word.to_string()).join(" "));
    }
}

/// Runs a program in a process of its own and says what it took.
pub(crate) fn program(
    program: &Path,
    arguments: &[&str],
    limit: Option<Duration>,
) -> Result<Cost, String> {
    let seconds = limit.map_or(0, |limit| limit.as_secs()).to_string();
    let program = program.to_string_lossy();
    let words = [&[VERB, &seconds, &program], arguments].concat();
    ourselves(&words)
}

/// Runs this program with other words and reads the line it prints.
pub(crate) fn ourselves(words: &[&str]) -> Result<Cost, String> {
    let said = |error: std::io::Error| format!("cannot run this program again: {error}");
    let own = std::env::current_exe().map_err(said)?;
    let mut command = Command::new(own);
    let command = command.args(words).stderr(Stdio::inherit());
    let output = command.output().map_err(said)?;
    let line = String::from_utf8_lossy(&output.stdout);
    Cost::from_line(&line).ok_or_else(|| format!("{}: no measurement: {line}", words.join(" ")))
}

/// In the process that measures: a limit in seconds (0 for none), a program, its arguments.
pub(crate) fn inside(words: &[String]) -> Result<(), String> {
    let [limit, program, arguments @ ..] = words else {
        return Err("a limit and a program are needed".into());
    };
    let limit: u64 = limit.parse().map_err(|_| "the limit is in seconds")?;
    let limit = if limit == 0 {
        u64::from(u32::MAX)
    } else {
        limit
    };
    let mut command = Command::new(program);
    // A million lines are written, but nobody is kept waiting by a terminal or a pipe.
    let command = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let started = Instant::now();
    let mut child = command.stderr(Stdio::null()).spawn();
    let child = child
        .as_mut()
        .map_err(|error| format!("{program}: {error}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|_| "a process id is an int")?);

    let (ended, has_ended) = mpsc::channel();
    let guard = thread::spawn(move || {
        let is_late = has_ended.recv_timeout(Duration::from_secs(limit)).is_err();
        // The process is not reaped before this thread has ended, so the number is still its own.
        is_late && kill(pid, Signal::SIGKILL).is_ok()
    });
    let waited = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    let wall = started.elapsed();
    // The guard may have gone already.
    let _ = ended.send(());
    let was_cut = guard.join().map_err(|_| "the guard failed")?;
    waited.map_err(|error| format!("{program}: {error}"))?;

    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let status = child
        .wait()
        .map_err(|error| format!("{program}: {error}"))?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|error| error.to_string())?;
    let mut cost = Cost::of(&usage, wall);
    cost.read_bytes = field(&io, "rchar:");
    cost.read_calls = field(&io, "syscr:");
    cost.exit = status.code().map_or(137, i32::cast_unsigned).into();
    cost.was_cut = was_cut.into();
    cost.print();
    Ok(())
}

impl Cost {
    fn of(usage: &Usage, wall: Duration) -> Self {
        let positive = |number: i64| u64::try_from(number).unwrap_or(0);
        let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
        Self {
            wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
            user_us: positive(usage.user_time().num_microseconds()),
            system_us: positive(usage.system_time().num_microseconds()),
            // Linux counts in KiB here.
            peak_bytes: positive(usage.max_rss()) * 1024,
            context_switches: positive(switches),
            ..Self::default()
        }
    }

    /// What something done in this very process took, without peak memory.
    pub(crate) fn of_this_process(
        work: impl FnOnce() -> Result<(), String>,
    ) -> Result<Self, String> {
        let look = || getrusage(UsageWho::RUSAGE_SELF).map_err(|error| error.to_string());
        let before = Self::of(&look()?, Duration::ZERO);
        let started = Instant::now();
        work()?;
        let mut cost = Self::of(&look()?, started.elapsed());
        cost.user_us -= before.user_us;
        cost.system_us -= before.system_us;
        cost.context_switches -= before.context_switches;
        cost.peak_bytes = 0;
        Ok(cost)
    }
}

fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    lines
        .next()
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}
