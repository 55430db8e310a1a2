//! Writes one of the benchmark's images: `cargo run --release --example big_image -- CASE FILE [--scale 1/64]`.
//!
//! Comes in: the name of a case. Goes out: a sparse file with the metadata of a whole disk. Never here: an existing file
//! that is written over.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the person who gave it"
)]

#[path = "../tests/support/big_images.rs"]
#[expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "the images are shared with the tests; they stop where a shape makes no sense"
)]
mod big_images;

use std::fs::File;
use std::process::ExitCode;

use big_images::{CASES, Case, Scale};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, file, scale) = match words[..] {
        [name, file] => (name, file, Scale::FULL),
        [name, file, "--scale", scale] => (name, file, scale.parse()?),
        _ => return Err(usage()),
    };
    let case = Case::named(name).ok_or_else(|| format!("no case is called {name}\n{}", usage()))?;
    let layout = case.layout(scale);
    let image = File::create_new(file).map_err(|error| format!("{file}: {error}"))?;
    let written = layout.write(&image).and_then(|()| image.sync_all());
    written.map_err(|error| format!("{file}: {error}"))?;
    println!("{file}: {}, scale 1/{}", case.title, scale.divisor);
    println!("{:#?}", layout.expected());
    Ok(())
}

fn usage() -> String {
    let rows = CASES.map(|case| format!("  {:<22}{}", case.name, case.title));
    format!(
        "usage: big_image CASE FILE [--scale 1/N]\n{}",
        rows.join("\n")
    )
}
