//! What a test needs of the machine, and what is said where the machine has it not.
//!
//! Comes in: the name of a tool, or what was refused. Goes out: a line on the terminal, past the capture of test output,
//! with a running number; or a failed test, where `QFSCK_REQUIRE_ORACLE=1` says that every tool is there. Never here: a
//! test that passes in silence without having tested anything.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Tests, or parts of tests, that were not run.
static NOT_TESTED: AtomicUsize = AtomicUsize::new(0);

/// Says that something was not tested because the machine does not let us: no installation helps.
pub fn not_tested(why: &str) {
    let number = NOT_TESTED.fetch_add(1, Relaxed) + 1;
    // `eprintln!` in a test that passes is swallowed.
    let line = format!("NOT TESTED ({number} so far in this run): {why}\n");
    let _said = io::stderr().write_all(line.as_bytes());
}

/// Whether the tools are there; without one of them nothing is tested, and that is said, or a failure.
pub fn has_tools(programs: &[&str]) -> bool {
    let Some(missing) = programs.iter().find(|program| found(program).is_none()) else {
        return true;
    };
    let is_required = std::env::var_os("QFSCK_REQUIRE_ORACLE").is_some_and(|value| value == "1");
    assert!(
        !is_required,
        "QFSCK_REQUIRE_ORACLE=1, but {missing} is not installed"
    );
    not_tested(&format!("{missing} is not installed"));
    false
}

/// Where a program is: not every one of them knows `--version`.
fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let homes = std::env::split_paths(&path);
    homes.map(|home| home.join(program)).find(|it| it.is_file())
}

/// Whether mounts can be made in a namespace of our own; says so if not.
pub fn can_mount(what: &str) -> bool {
    let mut command = Command::new("unshare");
    command.args(["-m", "true"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let may = command.status().is_ok_and(|status| status.success());
    if !may {
        not_tested(&format!("{what}: no mounts for us here (not root?)"));
    }
    may
}
