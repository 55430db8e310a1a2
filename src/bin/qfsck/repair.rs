//! `qfsck repair`: plan, show, ask, apply.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qfsck::undo::{UndoFile, UndoState};
use qfsck::{
    Error, Identity, Image, ImageFile, Mode, Options, Plan, Progress, RepairError, RepairFile,
    RepairOptions, Sharing, Stage, StageKind, UndoSinkFile, escaped_path,
};

use crate::args::{RepairArgs, RepairMode};
use crate::exit::Outcome;
use crate::render::{counted, wrapped};
use crate::{finish, print, say};

/// What an undo file's name ends in.
pub(crate) const SUFFIX: &str = ".qfsck-undo";

/// Plans a repair of one image, and applies it if asked to.
pub(crate) fn run(args: &RepairArgs) -> Outcome {
    let outcome = if args.dry_run {
        dry_run(args)
    } else {
        repair(args)
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("qfsck: {error}\n  {}", error.advice()));
        Outcome::of_error(&error)
    })
}

fn wishes(args: &RepairArgs) -> RepairOptions {
    RepairOptions::new(match args.mode {
        RepairMode::Leaks => Mode::Leaks,
        RepairMode::All => Mode::All,
    })
}

fn dry_run(args: &RepairArgs) -> Result<Outcome, Error> {
    let file = ImageFile::open(&args.image, Sharing::Protected)?;
    let options = options(&file);
    let image = Image::open(file, &args.image)?;
    let plan = qfsck::plan(&image, &wishes(args), options, &Progress::default())?;
    if let Some(outcome) = cannot_show(&plan) {
        return Ok(outcome);
    }
    Ok(Outcome::of_check(&plan.before))
}

fn options(file: &ImageFile) -> Options {
    Options {
        is_block_device: file.is_block_device(),
        ..Options::default()
    }
}

fn repair(args: &RepairArgs) -> Result<Outcome, Error> {
    let mut file = RepairFile::open(&args.image)?;
    let Some(undo_path) = undo_path(args, &file) else {
        return Ok(Outcome::Usage);
    };
    // Also beside the image, wherever the new undo file is to go: a repair that was cut short comes first.
    let word = interrupted(&args.image).or_else(|| leftover(&undo_path));
    if let Some(word) = word {
        say(&format!("qfsck: {word}"));
        return Ok(Outcome::Incomplete);
    }
    let options = options(file.image());
    let image = Image::open(&file, &args.image)?;
    let plan = qfsck::plan(&image, &wishes(args), options, &Progress::default())?;
    if let Some(outcome) = cannot_show(&plan) {
        return Ok(outcome);
    }
    if plan.is_empty() {
        return Ok(Outcome::of_check(&plan.before));
    }
    if !args.yes && !confirm() {
        say("qfsck: nothing was changed");
        return Ok(Outcome::of_check(&plan.before));
    }
    let identity = identity(args, &file);
    let sink = || UndoSinkFile::create(&undo_path);
    let progress = Progress::default();
    match qfsck::apply(&mut file, &identity, &plan, options, &progress, sink) {
        Ok(receipt) => {
            let done = counted(receipt.sectors_written, "sector");
            say(&format!(
                "repaired: {done} written, read back and checked\n\
                 to go back: qfsck undo {} (keep the file until you are sure)",
                shell_word(&undo_path)
            ));
            Ok(Outcome::of_check(&plan.after))
        }
        Err(error) => Ok(refuse(&error, &undo_path)),
    }
}

fn refuse(error: &RepairError, undo_path: &Path) -> Outcome {
    say(&format!("qfsck: {error}"));
    if !matches!(error, RepairError::Image(_) | RepairError::UndoFile(_)) {
        say(&format!("  the undo file is {}", shell_word(undo_path)));
    }
    Outcome::Incomplete
}

fn identity(args: &RepairArgs, file: &RepairFile) -> Identity {
    let (device, inode) = file.device_and_inode().unwrap_or_default();
    let path = args.image.as_os_str().as_bytes();
    Identity {
        device,
        inode,
        is_block_device: file.image().is_block_device(),
        path: path.get(..4096).unwrap_or(path).to_vec(),
    }
}

/// Where the undo file goes. Beside a device node it would be in memory, gone with a power cut.
fn undo_path(args: &RepairArgs, file: &RepairFile) -> Option<PathBuf> {
    if let Some(path) = &args.undo_file {
        return Some(path.clone());
    }
    if file.image().is_block_device() {
        say("qfsck: a block device needs --undo-file, on a disk that survives a power cut");
        return None;
    }
    Some(beside(&args.image))
}

/// The undo file's name beside an image.
pub(crate) fn beside(image: &Path) -> PathBuf {
    let mut name = OsString::from(image);
    name.push(SUFFIX);
    PathBuf::from(name)
}

/// What an undo file that is already there means, and what to do about it.
pub(crate) fn leftover(undo_path: &Path) -> Option<String> {
    if !undo_path.exists() {
        return None;
    }
    let path = shell_word(undo_path);
    let bytes = match UndoSinkFile::read(undo_path) {
        Ok(bytes) => bytes,
        Err(error) => return Some(format!("{path} is there but cannot be read: {error}")),
    };
    Some(match UndoFile::decode(&bytes).map(|file| file.state) {
        Err(error) => format!("{path} {error}; move it away or give another --undo-file"),
        Ok(UndoState::Incomplete) => {
            format!("{path} is of a repair that never began; delete it and try again")
        }
        Ok(UndoState::Committed { .. }) => format!(
            "a repair of this image was cut short; `qfsck undo {path}` puts the image back as it was"
        ),
        Ok(UndoState::Finished { .. }) => format!(
            "{path} is the way back from an earlier repair; delete it if you no longer need it, or give another \
             --undo-file"
        ),
    })
}

/// Whether a repair of this image was cut short, by the undo file beside it.
pub(crate) fn interrupted(image: &Path) -> Option<String> {
    let undo_path = beside(image);
    if !undo_path.exists() {
        return None;
    }
    let bytes = UndoSinkFile::read(&undo_path).ok()?;
    let state = UndoFile::decode(&bytes).ok()?.state;
    matches!(state, UndoState::Committed { .. }).then(|| {
        format!(
            "a repair was cut short; `qfsck undo {}` puts the image back as it was",
            shell_word(&undo_path)
        )
    })
}

/// A path as a shell takes it: whole, printable, and the same path again when it is pasted.
pub(crate) fn shell_word(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let shown = escaped_path(path);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if shown.chars().all(is_plain) {
        shown
    } else if shown.replace("\\\\", "\\").as_bytes() == bytes {
        format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
    } else {
        let quoted = bytes.iter().map(|&byte| match byte {
            b'\\' | b'\'' => format!("\\{}", char::from(byte)),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        });
        format!("$'{}'", quoted.collect::<String>())
    }
}

/// Asks on a terminal; elsewhere the answer is no.
fn confirm() -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        say("qfsck: add --yes to apply this without a question, or --dry-run to only look");
        return false;
    }
    // A terminal that cannot be written to cannot be asked.
    let _asked = write!(io::stderr(), "Apply this plan? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Shows the plan. A plan that nobody can read is not applied.
fn cannot_show(plan: &Plan) -> Option<Outcome> {
    let outcome = finish(print(|to| write_plan(to, plan)));
    (outcome != Outcome::Clean).then_some(outcome)
}

fn write_plan(to: &mut dyn Write, plan: &Plan) -> io::Result<()> {
    if plan.is_empty() {
        writeln!(to, "nothing to do")?;
    } else {
        writeln!(to, "plan (metadata only, no guest data is touched):")?;
    }
    for (number, stage) in (1..).zip(&plan.stages) {
        writeln!(to, "  {number}. {}: {}", purpose(stage.kind), extent(stage))?;
    }
    for withheld in &plan.withheld {
        let count = withheld.count;
        writeln!(to, "  left as it is: {} ({count}×)", withheld.code)?;
        wrapped(to, "      ", &withheld.reason)?;
    }
    writeln!(
        to,
        "verdict: {} now, {} afterwards",
        plan.before.verdict.name(),
        plan.after.verdict.name()
    )
}

fn purpose(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Guard => "set the corrupt bit, so that nothing writes to the image meanwhile",
        StageKind::WriteNew => "write new structures and copies where nothing is",
        StageKind::CorrectEntries => "correct entries that stand by themselves",
        StageKind::SuspendBitmaps => "clear the autoclear bit of the bitmaps for the time being",
        StageKind::SwitchRefcounts => "have the header name the new refcount table",
        StageKind::SwitchPointers => "refer to the new structures instead of the old",
        StageKind::ResumeBitmaps => "set the autoclear bit of the bitmaps again",
        StageKind::RaiseRefcounts => "raise refcounts that are too low",
        StageKind::ClearCopied => "clear COPIED flags that let writes through",
        StageKind::LowerRefcounts => "lower refcounts that are too high",
        StageKind::SetCopied => "set missing COPIED flags",
        StageKind::ClearState => {
            "read everything again, then write the final dirty and corrupt bits"
        }
    }
}

fn extent(stage: &Stage) -> String {
    let sectors: u64 = stage
        .edits
        .iter()
        .map(|edit| edit.after.len().div_ceil(512) as u64)
        .sum();
    format!(
        "{} in {}",
        counted(stage.change_count(), "change"),
        counted(sectors, "sector")
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::shell_word;

    #[test]
    fn shell_words_are_pasted_as_they_are() {
        let word = |bytes: &[u8]| shell_word(OsStr::from_bytes(bytes).as_ref());
        assert_eq!(word(b"/var/lib/disk.qcow2"), "/var/lib/disk.qcow2");
        assert_eq!(word(b"a b'c"), "'a b'\\''c'");
        assert_eq!(word(b"a\\b"), "'a\\b'");
        assert_eq!(word(b"\x1b'\\\xff"), "$'\\x1b\\'\\\\\\xff'");
        assert_eq!(word(&[b'd'; 1000]).len(), 1000);
    }
}
