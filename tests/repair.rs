//! Repair and undo, by what they leave behind.
//!
//! | module | what holds |
//! |---|---|
//! | `bitmaps` | bad bitmaps go, the others stay |
//! | `snapshots` | no snapshot that could be read is lost with what was wrong in their table |
//! | `guest` | the reader that says what a guest sees |
//! | `overlaps` | clusters used twice get one owner each, or are left with a reason |
//! | `compressed` | compressed data leaves structures, and tables that serve two ranges |
//! | `content` | what was well defined before a repair is the same afterwards, in the active disk and every snapshot |
//! | `attack` | damages that once made a repair lose what could have been saved |
//! | `better` | a plan is refused for nothing that is harmless, and left whole for nothing that is not |
//! | `binary` | the real binary, with its system calls in somebody else's hands |
//! | `check_faults` | a check whose system calls fail ends with the right exit code |
//! | `killed` | the program may end at any write or sync, of a repair and of an undo |
//! | `faults` | disks that fail, are full or read-only: clear words, and a way back |
//! | `short_io` | reads and writes that do less than they were asked to |
//! | `power` | power cuts on real file systems |
//! | `reads` | a read that fails, or a stop, makes no plan smaller: it is whole, or there is none |
//! | `real` | bitmaps and snapshots of the real tools, read by the real tools afterwards |
//! | `fuzz` | random damage, held against the image before it |
//! | `given_back` | what is freed, and what of it the file system gets back |
//! | `headline` | ten ways to lose data with `qemu-img check -r`, and that nothing of it is lost here |
//! | `used` | an image somebody wrote to after a cut repair is not put back |
//! | `refcounts` | damaged and lost refcount blocks and tables |
//! | `entries` | words of L1, L2 and refcount table entries are put right in place, or left with a reason |
//!
//! Comes in: bytes of an image. Goes out: [`Repaired`], after everything that holds of every repair was held against it.
//! Never here: what one kind of repair does in particular; that is the business of the modules.

mod attack;
mod better;
mod binary;
mod bitmaps;
mod check_faults;
mod compressed;
mod content;
mod entries;
mod faults;
pub(crate) mod fuzz;
mod given_back;
pub(crate) mod guest;
mod headline;
mod killed;
mod overlaps;
mod power;
mod reads;
mod real;
pub(crate) mod refcounts;
mod short_io;
mod snapshots;
mod used;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::OnceLock;

use qfsck::undo::UndoFile;
use qfsck::{
    Check, Image, Mode, Options, Plan, Progress, RepairOptions, Severity, Stage, StageKind,
    Storage, StorageMut, UndoSink,
};

use crate::crash::identity;
use crate::support::qemu;
use guest::Guest;

/// An image that was repaired in memory, and held what every repair promises.
#[derive(Debug)]
pub(crate) struct Repaired {
    /// The image afterwards.
    pub(crate) bytes: Vec<u8>,
    /// What was done, with the checks before and after.
    pub(crate) plan: Plan,
    /// What a guest saw before.
    pub(crate) before: Guest,
    /// What a guest sees now.
    pub(crate) after: Guest,
}

/// Repairs an image in memory, and holds that
///
/// - the check afterwards is the rehearsal's, and a second repair plans nothing;
/// - guest content that was well defined before is the same, in the active disk and every snapshot, and no snapshot is
///   gone (unless a loss was accepted);
/// - `qemu-img check`, where it is installed, finds no corruption that qfsck does not, and no more than before;
/// - undo gives back every byte, and the length.
#[track_caller]
pub(crate) fn repaired(bytes: &[u8], wishes: &RepairOptions) -> Repaired {
    let repaired = try_repaired(bytes, wishes);
    let broken = repaired.as_ref().err();
    assert!(broken.is_none(), "{}", broken.unwrap_or(&String::new()));
    repaired.expect("just looked at")
}

/// The same, with the promise that was broken as an error. An image that cannot be opened is an error too.
pub(crate) fn try_repaired(bytes: &[u8], wishes: &RepairOptions) -> Result<Repaired, String> {
    let plan = planned(bytes, wishes)?;
    let mut disk = Disk(bytes.to_vec());
    let sink = MemorySink::default();
    let receipt = qfsck::apply(
        &mut disk,
        &identity(),
        &plan,
        Options::default(),
        &Progress::default(),
        || Ok(sink.clone()),
    );
    receipt.map_err(|error| format!("the repair fails: {error}"))?;
    let Disk(after) = disk;
    if plan.is_empty() && after != bytes {
        return Err("an empty plan changes the image".to_owned());
    }
    if after.len() as u64 != plan.length_bytes_after {
        return Err(format!("the image is {} bytes long", after.len()));
    }
    let repaired = Repaired {
        plan,
        before: Guest::of(bytes),
        after: Guest::of(&after),
        bytes: after,
    };
    if !repaired.plan.is_empty() {
        is_as_rehearsed(&repaired)?;
        has_no_second_plan(&repaired, wishes)?;
        keeps_guest_content(&repaired, wishes)?;
        satisfies_qemu_img(bytes, &repaired)?;
        can_be_undone(bytes, &repaired, &sink)?;
    }
    Ok(repaired)
}

/// The plan for an image in memory.
pub(crate) fn planned(bytes: &[u8], wishes: &RepairOptions) -> Result<Plan, String> {
    let image = Image::open(bytes.to_vec(), Path::new("image"));
    let image = image.map_err(|error| format!("cannot be opened: {error}"))?;
    let plan = qfsck::plan(&image, wishes, Options::default(), &Progress::default());
    plan.map_err(|error| format!("no plan can be made: {error}"))
}

/// A check of an image in memory.
pub(crate) fn checked(bytes: &[u8]) -> Result<Check, String> {
    let image = Image::open(bytes.to_vec(), Path::new("image"));
    let image = image.map_err(|error| format!("cannot be opened: {error}"))?;
    Ok(qfsck::check(
        &image,
        Options::default(),
        &Progress::default(),
    ))
}

fn is_as_rehearsed(repaired: &Repaired) -> Result<(), String> {
    let now = checked(&repaired.bytes)?;
    if now == repaired.plan.after {
        return Ok(());
    }
    let rehearsed = &repaired.plan.after;
    Err(format!(
        "the rehearsal said {rehearsed:#?}, the image is {now:#?}"
    ))
}

fn has_no_second_plan(repaired: &Repaired, wishes: &RepairOptions) -> Result<(), String> {
    let again = planned(&repaired.bytes, wishes)?;
    if again.is_empty() {
        return Ok(());
    }
    // What was given up is not freed by the repair that gave it up. Freeing may begin with a guard.
    let gave_up = !wishes.accepted_losses.is_empty();
    let frees = |stage: &Stage| stage.kind >= StageKind::LowerRefcounts;
    let is_guard = |stage: &Stage| stage.kind == StageKind::Guard;
    let only_frees = |stage| frees(stage) || is_guard(stage);
    if gave_up && again.stages.iter().any(frees) && again.stages.iter().all(only_frees) {
        return Ok(());
    }
    let kinds: Vec<_> = again
        .stages
        .iter()
        .map(|stage| (stage.kind, &stage.changes))
        .collect();
    Err(format!("a second repair plans {kinds:?}"))
}

fn keeps_guest_content(repaired: &Repaired, wishes: &RepairOptions) -> Result<(), String> {
    let losses = repaired.before.losses(&repaired.after);
    if losses.is_empty() || !wishes.accepted_losses.is_empty() {
        return Ok(());
    }
    let count = losses.len();
    let first = losses.into_iter().take(8).collect::<Vec<_>>().join("\n");
    Err(format!("{count} guest clusters changed:\n{first}"))
}

fn can_be_undone(before: &[u8], repaired: &Repaired, sink: &MemorySink) -> Result<(), String> {
    let undo_file = sink.0.borrow().clone();
    let file = UndoFile::decode(&undo_file).map_err(|error| format!("the undo file {error}"))?;
    let mut disk = Disk(repaired.bytes.clone());
    let sink = MemorySink(Rc::new(RefCell::new(undo_file.clone())));
    qfsck::undo_repair(
        &mut disk,
        &file,
        qfsck::UndoOptions::default(),
        &Progress::default(),
        || Ok(sink),
    )
    .map_err(|error| format!("undo fails: {error}"))?;
    if disk.0 == before {
        return Ok(());
    }
    let (was, is) = (before.len(), disk.0.len());
    let differs = before.iter().zip(&disk.0).position(|(was, is)| was != is);
    Err(format!(
        "undo gives back other bytes: {was} bytes long before, {is} after, different at {differs:?}"
    ))
}

/// What `qemu-img check` said: its exit code, and how much it found.
#[derive(Clone, Copy, Debug)]
struct Opinion {
    exit: Option<i32>,
    corruptions: u64,
    leaks: u64,
}

fn qemu_img_check(bytes: &[u8]) -> Result<Opinion, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let image = directory.path().join("image.qcow2");
    fs::write(&image, bytes).map_err(|error| error.to_string())?;
    let output = Command::new("qemu-img")
        .args(["check", "--output=json", "-f", "qcow2"])
        .arg(&image)
        .output()
        .map_err(|error| error.to_string())?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let number = |key: &str| report.get(key).and_then(serde_json::Value::as_u64);
    Ok(Opinion {
        exit: output.status.code(),
        corruptions: number("corruptions").unwrap_or(0),
        leaks: number("leaks").unwrap_or(0),
    })
}

/// Whether there is a `qemu-img` to ask. Looked for once.
fn has_qemu_img() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| qemu::tools().is_some())
}

/// An image `qemu-img` cannot open, for want of a key or of another file, has no opinion to compare with.
fn satisfies_qemu_img(bytes: &[u8], repaired: &Repaired) -> Result<(), String> {
    if !has_qemu_img() {
        return Ok(());
    }
    let (before, after) = (qemu_img_check(bytes)?, qemu_img_check(&repaired.bytes)?);
    let check = &repaired.plan.after;
    let corruptions = check.findings.count_of(Severity::Corruption);
    let leaks = check.findings.count_of(Severity::Leak);
    let is_worse = match (before.exit, after.exit) {
        (_, Some(0)) => false,
        (Some(1), Some(1)) => before.corruptions < after.corruptions,
        (_, Some(2 | 3)) => {
            let could_compare = before.exit != Some(1);
            (corruptions == 0 && after.corruptions > 0)
                || (leaks == 0 && corruptions == 0 && after.leaks > 0)
                || (could_compare && after.corruptions > before.corruptions)
        }
        _ => true,
    };
    if is_worse {
        return Err(format!(
            "qemu-img said {before:?} before and says {after:?} now, where qfsck finds {corruptions} corruptions and \
             {leaks} leaks"
        ));
    }
    Ok(())
}

/// An image in memory that can be written to.
#[derive(Clone, Debug)]
pub(crate) struct Disk(pub(crate) Vec<u8>);

impl Storage for Disk {
    fn length_bytes(&self) -> io::Result<u64> {
        self.0.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

impl StorageMut for Disk {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        write(&mut self.0, offset, bytes)
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        self.0
            .truncate(usize::try_from(length_bytes).map_err(io::Error::other)?);
        Ok(())
    }

    fn reserve(&mut self, _length_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An undo file in memory, shared with whoever looks at it afterwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemorySink(pub(crate) Rc<RefCell<Vec<u8>>>);

impl UndoSink for MemorySink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        write(&mut self.0.borrow_mut(), offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes into a file, which grows if it has to.
fn write(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    let place = file.get_mut(start..end).expect("just made");
    place.copy_from_slice(bytes);
    Ok(())
}

/// Everything that loses nothing.
pub(crate) fn all() -> RepairOptions {
    RepairOptions::new(Mode::All)
}
