//! The command line of `qfsck audit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use qfsck::audit::Shard;

use crate::args::values::{ProgressMode, parse_offset};

/// Audit many images: find them, check each, keep a record of each, night after night.
///
/// Images are found by their first bytes, not by their names. A file named like an image that is none is reported, and so
/// is one that was an image last night. Nothing is ever repaired, and no lock is held: a virtual machine can start at any
/// moment. An image somebody writes to is `busy`, not damaged; one that changed while it was read is `changed`.
///
/// With --state, each image has a record there. A run that was killed goes on where it was; an image nobody touched since
/// is not read again, except that each has its turn once in --full-every nights, because a time stamp does not see what a
/// disk forgets.
///
/// For many machines, freeze a list (`audit plan`), give each machine a part of it (`audit run --shard i/n`), and prove
/// that nothing was left out (`audit merge`). The report is the same, byte for byte, for any n, order or retry.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = "\
Exit codes:
   0  every image has a record, whatever was found
   2  --fail-on: one has corruption    3  --fail-on leak: one has leaks
   8  something could not be looked into, or a record could not be written or is missing
  64  the arguments make no sense
  70  a defect of qfsck
  75  stopped early by a signal or --time, or another audit works in the state: run it again

Examples:
  qfsck audit /var/lib/libvirt/images                   all images below, and a summary, worst first
  qfsck audit --output jsonl /srv | jq .status          a record for each, one a line
  qfsck audit --state /var/lib/qfsck --time 4h --max-mbps 50 --jobs 2 \\
        --metrics /var/lib/node_exporter/qfsck.prom /srv
                                                        every night: goes on, skips, compares, reports
  qfsck audit diff STATE/nights/00000041.jsonl STATE/nights/00000042.jsonl
  qfsck audit report --state /var/lib/qfsck --html page.html    a page of the last night, to be looked at

  qfsck audit plan --shards 16 --out work.jsonl /srv    on one machine,
  qfsck audit run --work work.jsonl --shard 3/16 --out DIR     on each, in any order, as often as you like,
  qfsck audit merge --work work.jsonl --report report.jsonl --missing todo.jsonl DIR
                                                        and on one again; todo.jsonl is a list for `run`"
)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<AuditVerb>,

    /// Directories to search, image files, block devices
    #[arg(required = true, value_name = "ROOT")]
    pub(crate) roots: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) search: SearchArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// Where to keep a record of each image from night to night
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// With --state: read each image at least once in so many nights, even if nobody touched it; 1 reads all
    #[arg(long, value_name = "NIGHTS", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(crate) full_every: u64,

    /// What to write to stdout: the summary, or a record for each image
    #[arg(long, value_enum, default_value = "human", value_name = "FORMAT")]
    pub(crate) output: AuditOutput,

    #[command(flatten)]
    pub(crate) results: ResultArgs,
}

/// What `--output` can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditOutput {
    /// The summary, for people
    Human,
    /// One JSON document a line, as images are done; the summary goes to stderr
    Jsonl,
}

/// What `--fail-on` can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditFailOn {
    /// Damage: do-not-boot, unreadable, repairable, not-qcow2
    Corruption,
    /// Damage, or space that is lost
    Leak,
}

/// How images are looked for.
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Leave out what matches, as a line of .gitignore does; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,

    /// Do not obey files named .qfsckignore, which list patterns as .gitignore does
    #[arg(long)]
    pub(crate) no_ignore_files: bool,

    /// Do not descend into other file systems
    #[arg(long)]
    pub(crate) one_file_system: bool,
}

/// What an audit may use.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Images checked at once; by default one for each processor
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,

    /// Reads a second, of all jobs together
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_iops: Option<u32>,

    /// Megabytes (of 1,000,000 bytes) read a second, by all jobs together
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_mbps: Option<u32>,

    /// Memory for all jobs together, as 512M: fewer images at once where they are large, and an image that needs more than
    /// all of it is given up
    #[arg(long, value_name = "SIZE", value_parser = parse_offset)]
    pub(crate) max_memory: Option<u64>,

    /// Give an image up after this time, and go on with the next
    #[arg(long, value_name = "TIME", default_value = "15min", value_parser = humantime::parse_duration)]
    pub(crate) image_time: Duration,

    /// Stop after this time; the next run goes on where this one stopped
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) time: Option<Duration>,

    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    pub(crate) progress: ProgressMode,
}

/// Where results go besides.
#[derive(Debug, Args)]
pub(crate) struct ResultArgs {
    /// Write the night's numbers for Prometheus, as the node exporter's textfile collector reads them
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,

    /// With --metrics: a time series for each image as well
    #[arg(long, requires = "metrics")]
    pub(crate) metrics_per_image: bool,

    /// Exit with 2 if an image is damaged, and with `leak` with 3 if one has leaks
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) fail_on: Option<AuditFailOn>,
}

/// The parts of an audit on many machines.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Freeze the list of images that a night is about
    Plan(PlanArgs),
    /// Check the images of one shard of a list
    Run(RunArgs),
    /// Put the records of all shards together, and prove that none is missing
    Merge(MergeArgs),
    /// Say what differs between two reports
    Diff(DiffArgs),
    /// Make a page of a night, to be looked at
    Report(ReportArgs),
}

/// Freeze the list of images that a night is about.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Directories to search, image files, block devices
    #[arg(value_name = "ROOT", required_unless_present = "files_from")]
    pub(crate) roots: Vec<PathBuf>,

    /// Take the images from a file instead, `-` for stdin: names that end with a zero byte, or with a line end where there
    /// is no zero byte
    #[arg(long, value_name = "FILE", conflicts_with = "roots")]
    pub(crate) files_from: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) search: SearchArgs,

    /// Where to write the list; `-` for stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) out: PathBuf,

    /// Lay down how many shards there are, so that nobody can run with another number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) shards: Option<u32>,

    /// The report of the night before: what nobody touched since is not read again
    #[arg(long, value_name = "REPORT")]
    pub(crate) since: Option<PathBuf>,

    /// With --since: read each image at least once in so many nights
    #[arg(long, value_name = "NIGHTS", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(crate) full_every: u64,

    /// The number of the night; by default days since 1970, so that the turn goes round by the calendar
    #[arg(long, value_name = "NUMBER")]
    pub(crate) night: Option<u64>,
}

/// Check the images of one shard of a list.
///
/// Each image gets a record below DIR, written under another name and renamed, so that it is there whole or not at all.
/// Images that have a record of this list are passed by: kill it, run it twice, run it on two machines at once.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The list; one of images that are missing will do
    #[arg(long, value_name = "FILE")]
    pub(crate) work: PathBuf,

    /// Which part, the first being 0/n
    #[arg(long, value_name = "I/N", conflicts_with = "shard_from_env")]
    pub(crate) shard: Option<Shard>,

    /// Take I from the engine's environment (`SLURM_ARRAY_TASK_ID`, `JOB_COMPLETION_INDEX`, `NOMAD_ALLOC_INDEX`,
    /// or `PARALLEL_SEQ` less one). N is never taken from there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) shard_from_env: Option<u32>,

    /// Divide by what there is to read rather than by name; give it to all shards, or to none
    #[arg(long)]
    pub(crate) balance: bool,

    /// Where the records of all shards go
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// Put the records of all shards together, and prove that none is missing.
///
/// The report has one line for each image of the list, by path. It is the same, byte for byte, whatever the number of
/// shards was, their order, and how often one was run.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The list
    #[arg(long, value_name = "FILE")]
    pub(crate) work: PathBuf,

    /// Where the shards put their records
    #[arg(value_name = "DIR")]
    pub(crate) records: PathBuf,

    /// Where to write the report; `-` for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// Where to write the summary as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,

    /// Where to write the list of images that have no record; it is written only if there are some
    #[arg(long, value_name = "FILE")]
    pub(crate) missing: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) results: ResultArgs,
}

/// Say what differs between two reports: new damage first.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The report of the night before
    #[arg(value_name = "OLD")]
    pub(crate) old: PathBuf,

    /// The report of this night
    #[arg(value_name = "NEW")]
    pub(crate) new: PathBuf,
}

/// Make a page of a night, to be looked at: what is damaged, what is new, what could not be read.
///
/// The page is one file. It needs no network and runs no script; what is damaged comes first. The same records give the
/// same page.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
   0  the page is written, whatever it says
   1, 4, 5, 63  as of `qfsck check`: the page is written, but has no map, or one not to be relied on
   8  something could not be read, or the page could not be written
  64  the arguments make no sense, or a report is none

Examples:
  qfsck audit report --state /var/lib/qfsck --html /srv/www/qfsck.html
                                               the last night of a state, and the nights before it
  qfsck audit report --state /var/lib/qfsck --map /srv/vm/db.qcow2 --html db.html
                                               with a map of what lies where in the file of one image
  qfsck audit report report.jsonl --summary summary.json --before last.jsonl --html page.html
                                               of a report of `audit merge`")]
pub(crate) struct ReportArgs {
    /// A report of `audit merge`, or of one night of a state
    #[arg(
        value_name = "REPORT",
        required_unless_present = "state",
        conflicts_with = "state"
    )]
    pub(crate) report: Option<PathBuf>,

    /// The state of an audit: its last night that is over, beside the nights before
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// With REPORT: what `audit merge --summary` wrote; only that tells of images without a record
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    pub(crate) summary: Option<PathBuf>,

    /// With REPORT: the report of an earlier night, for the trend; the last of them is compared. May be given several times
    #[arg(long, value_name = "REPORT", conflicts_with = "state")]
    pub(crate) before: Vec<PathBuf>,

    /// Check this image too, and draw a map of what its host clusters are used for
    #[arg(long, value_name = "IMAGE")]
    pub(crate) map: Option<PathBuf>,

    /// Where to write the page; `-` for stdout
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) html: PathBuf,
}
