//! The `qfsck` program: the only room that talks.
//!
//! Comes in: arguments and signals. Goes out: the result on stdout, the talk on stderr, an exit code. Never here: a
//! decision about an image.

mod args;
mod audit;
mod check;
mod exit;
mod explain;
mod fix;
mod isolation;
mod memory;
mod mend;
mod owner;
mod plan_file;
mod plan_text;
mod progress;
mod render;
mod repair;
mod session;
mod undo;
mod way_back;

use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use args::{Cli, Command};
use clap::Parser;
use exit::Outcome;
use nix::sys::signal::{SigSet, Signal};
use qfsck::escaped_path;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_usage(&error),
    };
    panic::set_hook(Box::new(|info| {
        say(&format!(
            "qfsck: internal error: {info}\nA check has written nothing; a repair has left its undo file. Please report this with the image's metadata."
        ));
    }));
    hold_signals(&cli.command);
    leave_ignored_signals_ignored();
    let outcome = panic::catch_unwind(|| match cli.command {
        Command::Check(args) => match args.repair {
            Some(what) => fix::run(&args, what),
            None => check::run(&args),
        },
        Command::Repair(args) => repair::run(&args),
        Command::Undo(args) => undo::run(&args),
        Command::Owner(args) => owner::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Explain(args) => explain::run(&args),
    });
    outcome.unwrap_or(Outcome::Internal).into()
}

/// A write past a limit of file sizes (`ulimit -f`) shall fail with words, not end the program in the middle of a repair.
/// Nor shall Ctrl-\ in whatever writes to an image; Ctrl-C stops that where it can be stopped. Called before there is a
/// second thread: threads inherit it.
fn hold_signals(command: &Command) {
    let mut held = SigSet::empty();
    held.add(Signal::SIGXFSZ);
    let writes = match command {
        Command::Check(args) => args.repair.is_some(),
        Command::Repair(_) | Command::Undo(_) => true,
        Command::Audit(_) | Command::Owner(_) | Command::Explain(_) => false,
    };
    if writes {
        held.add(Signal::SIGQUIT);
    }
    // Where they cannot be blocked, they still end the program, as a power cut would.
    let _blocked = held.thread_block();
}

/// Who started the program may not want it to end with a terminal (`nohup`), or by a Ctrl-C meant for another job: a
/// signal that is ignored now stays without effect, whatever handlers come. Called before there is a second thread.
fn leave_ignored_signals_ignored() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        if is_ignored(&status, signal) {
            ignored.add(signal);
        }
    }
    let _blocked = ignored.thread_block();
}

/// Whether the status of a process, as `/proc` has it, says that a signal is ignored.
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = (signal as i32).unsigned_abs().saturating_sub(1);
    mask.and_then(|mask| mask.checked_shr(bit))
        .is_some_and(|mask| mask & 1 == 1)
}

/// A usage error must never read as a finding: clap's own exit code for it is 2, "corrupt".
fn refuse_usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // It quotes the arguments, and a file named by a stranger may have become one: no colours, line by line.
        for line in error.render().to_string().lines() {
            say(&escaped_path(Path::new(line)));
        }
        return Outcome::Usage.into();
    }
    finish(error.print()).into()
}

/// What it comes to that the result could be written, or not.
fn finish(written: io::Result<()>) -> Outcome {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(&format!("qfsck: cannot write the result: {error}"));
            Outcome::Incomplete
        }
        _ => Outcome::Clean,
    }
}

/// Says a line on stderr.
fn say(line: &str) {
    // Nothing can be said if the terminal is gone.
    let _said = writeln!(anstream::stderr().lock(), "{line}");
}

/// Writes the result to stdout; a reader that has gone away is not an error of ours.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            UNREAD.store(true, Relaxed);
            Ok(())
        }
        other => other,
    }
}

/// Set when the reader of stdout has gone away.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads the result any more: then there is no use in going on to the next image.
fn is_unread() -> bool {
    UNREAD.load(Relaxed)
}
