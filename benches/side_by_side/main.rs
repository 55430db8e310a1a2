//! `qfsck check` beside `qemu-img check`: `cargo bench --bench side_by_side -- CASE…`, or `all`.
//!
//! Comes in: names of cases. Goes out: a table of what both took, and of the ratios. Without a case it only lists them, so
//! that `cargo bench` costs nothing here. Never here: a number without an answer; a run whose exit status is not the one
//! the image was made to have ends the benchmark.
//!
//! | file | does |
//! |---|---|
//! | `arguments.rs` | what to run |
//! | `case_run.rs` | builds an image, runs everything on it in turn |
//! | `measure.rs` | one program, measured by a process that does nothing else |
//! | `repair_run.rs` | builds a damaged image and has it repaired |
//! | `growth.rs` | the same image, larger and larger |
//! | `floor.rs` | plain reads of the same bytes |
//! | `table.rs` | the numbers for people |

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the person who gave it"
)]

mod arguments;
#[path = "../../tests/support/big_images.rs"]
#[expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "the images are shared with the tests; they stop where a shape makes no sense"
)]
mod big_images;
mod case_run;
mod floor;
mod growth;
mod measure;
mod repair_run;
mod table;

use std::process::ExitCode;

use arguments::{Arguments, What, usage};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    match words.split_first() {
        // This program again, in a process of its own.
        Some((verb, rest)) if verb == measure::VERB => return measure::inside(rest),
        Some((verb, rest)) if verb == floor::VERB => return floor::inside(rest),
        _ => {}
    }
    let arguments = Arguments::parse(words)?;
    if arguments.what == What::Growth {
        println!("{}", growth::run(&arguments)?);
        return Ok(());
    }
    if arguments.cases.is_empty() {
        println!("{}", usage());
        return Ok(());
    }
    let mut rows = Vec::new();
    for case in &arguments.cases {
        eprintln!("{}: {}", case.name, case.title);
        rows.push(if arguments.what == What::Repair {
            repair_run::run(case, &arguments)?
        } else {
            case_run::run(case, &arguments)?
        });
        if !arguments.markdown {
            eprintln!(
                "{}",
                table::plain(rows.get(rows.len() - 1..).unwrap_or_default())
            );
        }
    }
    if arguments.markdown {
        println!("{}", table::markdown(&rows));
    } else {
        println!("{}", table::plain(&rows));
    }
    Ok(())
}
