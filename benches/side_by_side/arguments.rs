//! What to run: the words of the command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::big_images::{CASES, Case, Scale};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Checks.
    Check,
    /// Repairs.
    Repair,
    /// How the cost of a check grows, without a peer.
    Growth,
}

/// What the command line asks for.
pub(crate) struct Arguments {
    pub(crate) cases: Vec<&'static Case>,
    pub(crate) scale: Scale,
    pub(crate) runs: usize,
    /// Where images are built.
    pub(crate) into: PathBuf,
    /// Images are left where they were built.
    pub(crate) keep: bool,
    /// How long `qemu-img` may take, once; what it took until then counts as "at least".
    pub(crate) peer_limit: Duration,
    pub(crate) markdown: bool,
    pub(crate) what: What,
    pub(crate) qfsck: PathBuf,
    /// More arguments for `qfsck check`.
    pub(crate) more_for_qfsck: Vec<String>,
}

impl Arguments {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut arguments = Self {
            cases: Vec::new(),
            scale: Scale::FULL,
            runs: 5,
            into: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            keep: false,
            peer_limit: Duration::from_secs(60),
            markdown: false,
            what: What::Check,
            qfsck: PathBuf::from(env!("CARGO_BIN_EXE_qfsck")),
            more_for_qfsck: Vec::new(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                // Cargo says so to every benchmark.
                "--bench" => {}
                "--scale" => arguments.scale = value()?.parse()?,
                "--runs" => arguments.runs = number(value()?)?.max(1),
                "--into" => arguments.into = PathBuf::from(value()?),
                "--keep" => arguments.keep = true,
                "--peer-limit" => {
                    let seconds = number(value()?)?;
                    arguments.peer_limit = Duration::from_secs(seconds as u64);
                }
                "--markdown" => arguments.markdown = true,
                "--repair" => arguments.what = What::Repair,
                "--growth" => arguments.what = What::Growth,
                "--qfsck" => arguments.qfsck = PathBuf::from(value()?),
                "--jobs" => {
                    let jobs = ["--jobs".into(), value()?.clone()];
                    arguments.more_for_qfsck.extend(jobs);
                }
                "all" => arguments.cases.extend(&CASES),
                name => {
                    let unknown = || format!("no case is called {name}\n{}", usage());
                    arguments.cases.push(Case::named(name).ok_or_else(unknown)?);
                }
            }
        }
        Ok(arguments)
    }
}

fn number(word: &str) -> Result<usize, String> {
    let digits = word.trim_end_matches('s');
    digits
        .parse()
        .map_err(|_| format!("{word} is not a number"))
}

pub(crate) fn usage() -> String {
    let rows = CASES.map(|case| format!("  {:<22}{}", case.name, case.title));
    format!(
        "cargo bench --bench side_by_side -- [OPTIONS] CASE…

cases (or all):
{}

options:
  --scale 1/64        smaller images
  --runs 5            of which the median is shown
  --into DIR          where images are built
  --keep              leave them there
  --peer-limit 60s    end qemu-img after so long, and show what it took as a lower bound
  --repair            of damaged cases: the repair, not the check
  --growth            without a case: how the cost grows as images do
  --markdown          tables for a document
  --jobs N            for qfsck
  --qfsck FILE        another qfsck than the one of this source",
        rows.join("\n")
    )
}
