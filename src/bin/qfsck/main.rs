//! The `qfsck` program: the only room that talks.
//!
//! Comes in: arguments and signals. Goes out: the result on stdout, the talk on stderr, an exit code. Never here: a
//! decision about an image.

mod args;
mod check;
mod exit;
mod explain;
mod owner;
mod progress;
mod render;
mod repair;
mod session;
mod undo;

use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use exit::Outcome;

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
    let outcome = panic::catch_unwind(|| match cli.command {
        Command::Check(args) => check::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Undo(args) => undo::run(&args),
        Command::Owner(args) => owner::run(&args),
        Command::Explain(args) => explain::run(&args),
    });
    outcome.unwrap_or(Outcome::Internal).into()
}

/// A usage error must never read as a finding: clap's own exit code for it is 2, "corrupt".
fn refuse_usage(error: &clap::Error) -> ExitCode {
    // Nothing can be said if the terminal is gone.
    let _said = error.print();
    if error.use_stderr() {
        Outcome::Usage.into()
    } else {
        ExitCode::SUCCESS
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
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
