//! How much of a large product of cases one run of the tests takes.
//!
//! Comes in: all cases. Goes out: every n-th of them, and a line on the terminal that says so; all, with
//! `QFSCK_THOROUGH=1`. Never here: a case left out in silence.

use std::io::{self, Write};

/// Every `step`-th case. Choose a step that shares no divisor with the lengths of the lists the product is made of: then
/// each member of each list is among the cases.
pub fn sampled<T>(what: &str, all: Vec<T>, step: usize) -> Vec<T> {
    if std::env::var_os("QFSCK_THOROUGH").is_some_and(|value| value == "1") {
        return all;
    }
    let total = all.len();
    let some: Vec<T> = all.into_iter().step_by(step).collect();
    let line = format!(
        "sampled: {} of {total} {what}; QFSCK_THOROUGH=1 takes all\n",
        some.len()
    );
    // `eprintln!` in a test that passes is swallowed.
    let _said = io::stderr().write_all(line.as_bytes());
    some
}
