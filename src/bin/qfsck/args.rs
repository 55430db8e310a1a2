//! The command line.

pub(crate) mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use qfsck::Code;

use self::values::{ProgressMode, parse_code, parse_offset};
use crate::audit::args::AuditArgs;

/// Checks QEMU qcow2 disk images, offline, and says what is wrong, where, and whose it is.
///
/// qfsck reads metadata only, unless it is told to read the data too (`check --deep`), and a check never writes. It opens no file but the one it is given: not the backing file,
/// not the external data file, and it needs no encryption key.
#[derive(Debug, Parser)]
#[command(name = "qfsck", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check images: refcounts, tables, snapshots, bitmaps, header
    Check(CheckArgs),
    /// Repair an image, in a way that can be looked at first and taken back
    Repair(RepairArgs),
    /// Take a repair back
    Undo(UndoArgs),
    /// Audit many images: a record of each, night after night; never repairs
    Audit(Box<AuditArgs>),
    /// Say who owns a place in the image file, or where a guest offset lives
    Owner(OwnerArgs),
    /// Explain a finding: cause, risk, remedy
    Explain(ExplainArgs),
}

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Human,
    /// One JSON document, a superset of qemu-img's
    Json,
    /// One JSON document a line, for several images
    Jsonl,
}

/// What `-r` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Repair {
    /// Free leaked clusters, if nothing else is wrong
    Leaks,
    /// Put right everything that can be without losing anything
    All,
}

/// What `--fail-on` can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Anything worth knowing
    Notice,
    /// What --untrusted finds
    Policy,
    /// Space that is lost
    Leak,
}

/// Check images: refcounts, tables, snapshots, bitmaps, header.
///
/// Reads every table of the metadata once and holds what the tables refer to against the refcounts stored on disk.
/// A clean answer is about metadata: qcow2 has no checksums for guest data, so nobody can say that the data is intact.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes (of several images, the gravest):
   0  clean, notices at most
   1  the check could not be completed
   2  corruption, or what --fail-on names
   3  leaks, but no corruption
   4  another program uses the image
   5  the image changed while it was read
   6  the --budget ran out
  63  not a qcow2 image
  64  the arguments make no sense
  70  a defect of qfsck

Examples:
  qfsck check disk.qcow2                       what is wrong, where, and whose it is
  qfsck check --output json disk.qcow2         all keys of `qemu-img check --output=json`, and more
  qfsck check -q --budget 2s disk.qcow2        a gate before boot: only the exit code
  qfsck check --output jsonl *.qcow2           one document for each image
  qfsck check -r leaks disk.qcow2              free what is leaked; `qfsck undo disk.qcow2.qfsck-undo` goes back
  qfsck check --deep disk.qcow2                can all of it be read, and unpacked
  qfsck check --untrusted --fail-on policy upload.qcow2
                                               a gate for uploads: 2 means turn it away
  qfsck check -U disk.qcow2                    while the guest runs; not to be relied on")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct CheckArgs {
    /// Image files or block devices
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,

    /// How to write the result
    #[arg(long, value_enum, default_value = "human", value_name = "FORMAT")]
    pub(crate) output: Output,

    /// Format of the images; only qcow2 can be checked
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    pub(crate) format: Option<String>,

    /// Repair the image first, without asking, and keep an undo file; one image at a time
    ///
    /// What `qfsck repair --yes` does, for scripts written for `qemu-img check -r`. What was put right is counted in the
    /// report; the rest of it, and the exit code, are of the image as it is then. `qfsck repair --dry-run` shows
    /// beforehand what would be done.
    #[arg(short = 'r', long, value_enum, value_name = "WHAT")]
    pub(crate) repair: Option<Repair>,

    /// With -r: where to keep what changes; by default beside the image. A block device needs it
    #[arg(long, value_name = "PATH", requires = "repair")]
    pub(crate) undo_file: Option<PathBuf>,

    /// Read even if another program is writing; the result is then unreliable
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,

    /// No output, only the exit code (errors still go to stderr)
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Threads to use; by default one for each processor
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,

    /// Stop after this time (500ms, 2s, 1min) for each image, and say what was not covered
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) budget: Option<Duration>,

    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    pub(crate) progress: ProgressMode,

    /// Read the data as well: unpack every compressed cluster, look for what the disk cannot read, judge LUKS key slots
    /// and the ends of bitmaps
    ///
    /// Takes as long as reading every allocated byte of the file does. What a guest has written cannot be judged: qcow2 has
    /// no checksums.
    #[arg(long, conflicts_with = "repair")]
    pub(crate) deep: bool,

    /// About how much memory to take, as 512M; a quarter of what there is unless given
    ///
    /// An image whose counts take more is checked in several passes over its tables. The answer is the same. What damage
    /// takes comes on top: some bits for each cluster that leaks, some bytes for each other one that does not add up.
    #[arg(long, value_name = "SIZE", value_parser = parse_offset)]
    pub(crate) max_memory: Option<u64>,

    /// Judge the image as one from a stranger, before anything else opens it
    ///
    /// What a gate for uploads turns away becomes findings of severity `policy`: names of other files, encryption, unknown
    /// features, absurd sizes, other formats hidden in the file, data that unpacks to a multiple of the upload. No other
    /// file is opened.
    #[arg(long, conflicts_with_all = ["repair", "data_file"])]
    pub(crate) untrusted: bool,

    /// With --untrusted: the largest virtual disk allowed, as 64T
    #[arg(long, value_name = "SIZE", value_parser = parse_offset, requires = "untrusted")]
    pub(crate) max_virtual_size: Option<u64>,

    /// With --untrusted: how many bytes of guest data are allowed for each byte of the file; 100 unless given
    #[arg(long, value_name = "RATIO", value_parser = clap::value_parser!(u64).range(1..), requires = "untrusted")]
    pub(crate) max_expansion: Option<u64>,

    /// Exit with 2 for findings of this severity too; may be given several times
    #[arg(
        long,
        value_enum,
        value_name = "SEVERITY",
        value_delimiter = ',',
        conflicts_with = "repair"
    )]
    pub(crate) fail_on: Vec<FailOn>,

    /// The image's external data file; only its length is looked at
    #[arg(long, value_name = "PATH")]
    pub(crate) data_file: Option<PathBuf>,

    /// Accepted for scripts written for qemu-img; qfsck reads through the page cache
    #[arg(short = 'T', hide = true, value_name = "CACHE")]
    pub(crate) cache: Option<String>,

    /// Accepted for scripts written for qemu-img; qfsck needs no key
    #[arg(long, hide = true, value_name = "OBJECT")]
    pub(crate) object: Vec<String>,
}

/// What `--mode` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RepairMode {
    /// Only lower the refcounts of leaked clusters, if nothing else is wrong
    Leaks,
    /// Everything that can be put right without losing anything
    All,
}

/// What `--overlaps` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverlapsArg {
    /// Each owner gets a copy of its own
    Clone,
    /// They are left as they are, and named
    Keep,
}

/// Repair an image, in a way that can be looked at first and taken back.
///
/// What can be put right without losing anything is put right; what is left as it is, is named, with the reason. Nothing
/// is freed while any table is damaged or unread, or while a leaked cluster may be a lost table, snapshot or bitmap.
///
/// The plan is rehearsed in memory first, and only applied if the rehearsed image is better. Every sector that changes
/// is kept in the undo file, on disk before the first write. Afterwards the image is read again, whole.
///
/// Undo files stand beside the image: IMAGE.qfsck-undo, then IMAGE.qfsck-undo.2 and so on up to 99; delete those you no
/// longer need. While one is of a repair that was cut short, only `repair --resume` and `undo` touch the image.
///
/// Ctrl-C while the plan is made leaves the image unchanged. Once the image is written to, signals wait until the repair
/// is done: that takes moments, and a power cut does no harm either.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes: as for `qfsck check`, of the image as it is afterwards; of --dry-run and --plan, as it is.
   1  the repair was not begun or not finished; nothing was changed, or the undo file is named
   5  the image is not as it was when the plan of --apply was made, or is another file
  64  the arguments make no sense, or the file of --apply is no plan

Examples:
  qfsck repair --dry-run disk.qcow2            what would be done, and what would be left
  qfsck repair disk.qcow2                      show it, ask, do it
  qfsck repair --plan disk.plan disk.qcow2     look now,
  qfsck repair --apply disk.plan disk.qcow2    and do later exactly what was looked at, or nothing
  qfsck repair --resume disk.qcow2             after a power cut in the middle of a repair
  qfsck repair --yes --undo-file /var/tmp/disk.undo disk.qcow2
  qfsck undo /var/tmp/disk.undo --image disk.qcow2")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct RepairArgs {
    /// Image file or block device
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,

    /// Show the plan and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// What to put right
    #[arg(long, value_enum, default_value = "all", value_name = "MODE")]
    pub(crate) mode: RepairMode,

    /// What to do about clusters that two owners use and only one may
    ///
    /// With `clone` both keep what they read now, in clusters of their own; which of the two it belongs to, only the
    /// guest can tell. With `keep` the cluster stays shared until somebody has looked.
    #[arg(long, value_enum, default_value = "clone", value_name = "WHAT")]
    pub(crate) overlaps: OverlapsArg,

    /// Put findings of this code right even though something is lost for good that way
    ///
    /// A repair says of what it leaves whether this is the choice, and what would be lost. --yes never implies it. May be
    /// given several times; `qfsck explain` lists the codes.
    #[arg(long, value_name = "CODE", value_parser = parse_code)]
    pub(crate) accept_loss: Vec<Code>,

    /// Where to keep what changes; by default beside the image, with .qfsck-undo behind its name
    #[arg(long, value_name = "PATH")]
    pub(crate) undo_file: Option<PathBuf>,

    /// Write the plan to a new file as JSON, `-` for stdout, and change nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["yes", "undo_file"])]
    pub(crate) plan: Option<PathBuf>,

    /// Do what a plan file says, and only that: the options are taken from it, the plan is made again, and unless it is
    /// the same, of the same file with the same metadata, nothing is written
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["plan", "mode", "overlaps", "accept_loss", "resume"]
    )]
    pub(crate) apply: Option<PathBuf>,

    /// After a repair that was cut short: put the image back as it was, then repair it anew
    #[arg(long, conflicts_with_all = ["plan", "dry_run"])]
    pub(crate) resume: bool,

    /// Give the clusters that are freed back to the file system, once the repair is done
    ///
    /// `qfsck undo` still works then, but finds zeros in them: what was in leaked clusters is gone. Clusters freed by
    /// earlier repairs are left as they are, and so is a block device.
    #[arg(long, conflicts_with_all = ["plan", "dry_run"])]
    pub(crate) punch: bool,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    pub(crate) progress: ProgressMode,
}

/// Take a repair back: every sector as it was, from the undo file the repair left.
///
/// It works after a repair that is done and after one that was cut, and can itself be cut and run again. It refuses when
/// the metadata is no longer as the repair left it, because somebody has used the image since: old metadata over new data
/// would destroy it. Guest data written in place meanwhile stays as it is.
#[derive(Debug, Args)]
pub(crate) struct UndoArgs {
    /// The undo file
    #[arg(value_name = "UNDO-FILE")]
    pub(crate) undo_file: PathBuf,

    /// The image, if it is not the undo file's name without .qfsck-undo
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<PathBuf>,

    /// Put back even where the image cannot be read any more, so that nobody can tell whether it was used since the repair
    ///
    /// What can be read must be as the repair found or left it all the same. What a guest wrote since is lost.
    #[arg(long)]
    pub(crate) accept_unverified: bool,

    /// Say what would be put back and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Say who owns a place in the image file, or where a guest offset lives.
///
/// Offsets are bytes: 327680, 0x50000, or with a suffix, 320K.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  qfsck owner disk.qcow2 0x50000             everyone who refers to this cluster of the file
  qfsck owner --guest disk.qcow2 1G          the path from the L1 table to this byte of the disk")]
pub(crate) struct OwnerArgs {
    /// Image file or block device
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,

    /// Byte offset in the image file, or in the virtual disk with --guest
    #[arg(value_name = "OFFSET", value_parser = parse_offset)]
    pub(crate) offset: u64,

    /// The offset is one the guest sees
    #[arg(long)]
    pub(crate) guest: bool,

    /// How to write the result
    #[arg(long, value_enum, default_value = "human", value_name = "FORMAT")]
    pub(crate) output: Output,

    /// Read even if another program is writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
}

/// Explain a finding: cause, risk, remedy.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The code, as a check prints it; without one, all codes are listed
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
