//! The plan of a repair: what would be done, in which order, and why. Printed, it is the dry run.
//!
//! Comes in: an image and what is asked for. Goes out: a [`Plan`], rehearsed on an overlay in memory, or the reasons why
//! nothing is planned. Never here: a write; a change that is not answered for by a finding.
//!
//! A repair is made in passes. Each examines the image as the passes before it would leave it, and puts one kind of
//! thing right: an entry's words (`entries`), the refcount structures (`refcounts`), counts that are too low (`adjust`),
//! the snapshot table (`snapshots`), bitmaps (`bitmaps`), clusters used twice (`overlaps`), and in the end counts that
//! are too high (`adjust` again).
//!
//! 1. Examine the image, as a check does.
//! 2. Pass after pass: decide what may be done (`evidence`); describe it as patches of single words, and as new clusters
//!    where nothing is (`space`); lay those out as sectors, stage by stage (`sectors`), over the image (`draft`).
//! 3. Rehearse: check the image as it would be, unless the last examination did; unless that is strictly better, plan
//!    nothing.
//!
//! Of an image that cannot be read whole nothing is planned, and a read that fails later on ends the planning: what is not
//! read must not make a plan smaller, or different.

mod adjust;
mod bitmaps;
mod changes;
mod draft;
mod entries;
mod evidence;
mod holes;
mod notes;
mod overlaps;
mod refcounts;
mod rehearsal;
mod remains;
mod sectors;
mod snapshots;
mod space;
mod state_bits;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;

use crate::check::{Check, Examination, Options, check, examine};
use crate::coverage::Coverage;
use crate::error::Error;
use crate::finding::Code;
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::{ClusterRange, HostCluster, HostOffset};
use crate::storage::Storage;

use changes::Changes;
use draft::{Draft, Outcome};
use notes::DraftNotes;
use rehearsal::Culprit;

pub use changes::Withheld;

/// How much a repair is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only lower counts of leaked clusters, in an image that has no other error.
    Leaks,
    /// Everything that can be done without losing anything.
    All,
}

/// What is done about clusters that two owners use and only one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlaps {
    /// Each owner gets a copy of its own.
    Clone,
    /// They are left as they are.
    Keep,
}

/// What a repair is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairOptions {
    /// How much.
    pub mode: Mode,
    /// What to do about clusters used twice.
    pub overlaps: Overlaps,
    /// Findings to put right even though something is lost for good that way.
    pub accepted_losses: BTreeSet<Code>,
}

impl RepairOptions {
    /// The usual wishes: overlaps are cloned, no loss is accepted.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            overlaps: Overlaps::Clone,
            accepted_losses: BTreeSet::new(),
        }
    }

    fn accepts(&self, code: Code) -> bool {
        self.accepted_losses.contains(&code)
    }
}

/// What is done between two syncs. A cut anywhere inside a stage leaves the image no worse than before it.
///
/// The order is the one inside a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageKind {
    /// The corrupt bit is set, so that nothing opens the image for writing while it is repaired.
    Guard,
    /// New structures and copies are written where nothing is.
    WriteNew,
    /// Refcounts that are too low are raised.
    RaiseRefcounts,
    /// COPIED flags that would let a write through to another owner are cleared.
    ClearCopied,
    /// Words that stand by themselves are corrected: they refer to no more afterwards than before.
    CorrectEntries,
    /// The autoclear bit of the bitmaps is cleared: until it is set again, nothing believes them.
    SuspendBitmaps,
    /// The header names a new refcount table, in which everything new is counted.
    SwitchRefcounts,
    /// What referred to old structures refers to the new ones.
    SwitchPointers,
    /// The autoclear bit of the bitmaps is set again.
    ResumeBitmaps,
    /// Refcounts that are too high are lowered. Nothing is freed before this.
    LowerRefcounts,
    /// Missing COPIED flags are set.
    SetCopied,
    /// The dirty and corrupt bits are cleared, after the image was read again and found consistent.
    ClearState,
}

/// Bytes to change, whole sectors of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Edit {
    /// Where, in bytes from the start of the file; a multiple of 512.
    pub offset: u64,
    /// What must be there before. Shorter than `after` where the file ends before it does.
    pub before: Vec<u8>,
    /// What is there afterwards.
    pub after: Vec<u8>,
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}", self.after.len(), self.offset)
    }
}

/// Bytes to copy from one place of the image to another where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyEdit {
    /// Where the bytes are, in bytes from the start of the file.
    pub from: u64,
    /// Where they go; a multiple of the cluster size.
    pub to: u64,
    /// How many, at most a cluster.
    pub bytes: u64,
}

/// The edits between two syncs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What they are for.
    pub kind: StageKind,
    /// By offset; none overlaps another.
    pub edits: Vec<Edit>,
    /// By destination; guest data that gets a place of its own.
    pub copies: Vec<CopyEdit>,
    /// How many single counts, flags, words and clusters change, by the finding each change answers.
    pub changes: BTreeMap<Code, u64>,
}

impl Stage {
    /// How many single counts, flags, words and clusters change.
    pub fn change_count(&self) -> u64 {
        self.changes.values().sum()
    }

    /// Where the last byte written by this stage ends.
    pub fn end(&self) -> u64 {
        let edits = self
            .edits
            .iter()
            .map(|edit| edit.offset + edit.after.len() as u64);
        let copies = self.copies.iter().map(|copy| copy.to + copy.bytes);
        edits.chain(copies).max().unwrap_or(0)
    }
}

/// A repair, described.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they are applied.
    pub stages: Vec<Stage>,
    /// What is left as it is, and why.
    pub withheld: Vec<Withheld>,
    /// The image as it is.
    pub before: Check,
    /// The image as it will be.
    pub after: Check,
    /// Clusters that are leaked before and free afterwards, in order: what is in them is nobody's.
    pub freed: Vec<ClusterRange>,
    /// Length of the image before, in bytes.
    pub length_bytes: u64,
    /// Length of the image afterwards, in bytes.
    pub length_bytes_after: u64,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Bytes of guest data that are copied; everything else that is written is metadata.
    pub fn copied_bytes(&self) -> u64 {
        let copies = self.stages.iter().flat_map(|stage| &stage.copies);
        copies.map(|copy| copy.bytes).sum()
    }

    /// Bytes in clusters that are leaked before and free afterwards.
    pub fn freed_bytes(&self) -> u64 {
        let clusters = self.freed.iter().map(|range| range.count);
        clusters.fold(0, u64::saturating_add) << self.before.header.cluster_bits
    }

    /// Whether guest data is copied over clusters of the image that nothing uses; only the undo file has what is in them.
    pub fn overwrites_unused(&self) -> bool {
        let mut copies = self.stages.iter().flat_map(|stage| &stage.copies);
        copies.any(|copy| copy.to < self.length_bytes)
    }
}

/// One kind of thing to put right. What a pass needs of the ones before it decides the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Words of tables that stand by themselves.
    Entries,
    /// Refcount blocks and the refcount table.
    Refcounts,
    /// Counts that are too low, COPIED flags that lie: only ever makes an image safer.
    Raise,
    /// The snapshot table.
    Snapshots,
    /// Bitmaps: the directory and the header extension.
    Bitmaps,
    /// Clusters used by two owners of which only one may.
    Overlaps,
    /// Counts that are too high, once nothing else is wrong.
    Lower,
    /// The autoclear bit of bitmaps that are not there, once nothing looks like them.
    LoneBit,
}

impl Mode {
    fn passes(self) -> &'static [Pass] {
        match self {
            Self::Leaks => &[Pass::Lower],
            // What leaves fewer references comes first, then what new structures are counted in; an overlap may be in
            // the way of another, and new owners want their counts and flags.
            Self::All => &[
                Pass::Entries,
                Pass::Refcounts,
                Pass::Raise,
                Pass::Snapshots,
                Pass::Bitmaps,
                // What pointed past the end is gone, so the file may grow now.
                Pass::Refcounts,
                Pass::Overlaps,
                Pass::Overlaps,
                Pass::Overlaps,
                Pass::Entries,
                Pass::Raise,
                Pass::Lower,
                Pass::LoneBit,
            ],
        }
    }
}

/// Plans a repair and rehearses it.
///
/// Where the image would be worse afterwards in any way, the pass that makes it so is left out, and the plan made anew.
/// Only where no such plan is better than nothing, nothing is planned.
pub fn plan<S: Storage>(
    image: &Image<S>,
    wishes: &RepairOptions,
    options: Options,
    progress: &Progress,
) -> Result<Plan, Error> {
    let mut left_out = Vec::new();
    loop {
        match attempt(image, wishes, &left_out, options, progress)? {
            Outcome::Plan(plan) => return Ok(*plan),
            Outcome::Worse(culprit) => left_out.push(culprit),
        }
    }
}

/// Plans a repair without some passes. Each attempt that fails leaves one more kind of them out, so there are few.
fn attempt<S: Storage>(
    image: &Image<S>,
    wishes: &RepairOptions,
    left_out: &[Culprit],
    options: Options,
    progress: &Progress,
) -> Result<Outcome, Error> {
    let nothing = |image, check, withheld| Ok(Outcome::plan(nothing(image, check, withheld)));
    let read = |source| read_error(image.path(), source);
    let original = image;
    let mut draft = Draft::new(original);
    let max_file_bytes = space::max_file_bytes(original);
    let mut before = None;
    let passes = wishes.mode.passes().iter().copied();
    let is_left_out = |pass: Pass| left_out.iter().any(|culprit| culprit.pass == pass);
    let mut passes = passes.filter(|&pass| !is_left_out(pass)).peekable();
    while passes.peek().is_some() {
        let image = Image::open(draft.overlay(), original.path())?;
        let Ok(mut examination) = examine(&image, options, progress) else {
            return Ok(Outcome::plan(nothing_to_locate(
                original, options, progress,
            )));
        };
        examination.max_file_bytes = max_file_bytes;
        if let Some(reason) = unread(&examination, before.is_none()) {
            let check = before.unwrap_or_else(|| examination.to_check());
            let withheld = evidence::all(&check, reason);
            return nothing(original, check, withheld);
        }
        draft.refuse_failed_reads()?;
        refuse_gaps(&image, &examination.notes.coverage)?;
        draft.notes().remember(&examination).map_err(read)?;
        let before = before.get_or_insert_with(|| examination.to_check());
        if let Some(withheld) = evidence::forbidden(&examination) {
            return nothing(original, before.clone(), vec![withheld]);
        }
        let may_guard = !examination.has_conflict(HostCluster(0));
        let mut done = None;
        let mut withheld = Vec::new();
        for pass in passes.by_ref() {
            let changes = run(pass, &examination, wishes, draft.notes());
            if progress.is_stopped() {
                let withheld = evidence::all(before, STOPPED);
                return nothing(original, before.clone(), withheld);
            }
            draft.refuse_failed_reads()?;
            let mut changes = changes.map_err(read)?;
            let stages = draft.lay_out(&image, &mut changes, may_guard);
            draft.refuse_failed_reads()?;
            let stages = stages.map_err(read)?;
            withheld.push((pass, std::mem::take(&mut changes.withheld)));
            if !stages.is_empty() {
                done = Some((pass, stages, changes));
                break;
            }
        }
        let found = rehearsal::counts(&examination.notes.findings);
        let last = done.is_none().then(|| examination.conclude());
        drop(image);
        for (pass, reasons) in withheld {
            draft.withhold(pass, reasons);
        }
        draft.go_on(done, found, last, wishes);
    }
    let before = before.unwrap_or_else(|| check(image, options, progress));
    draft.finish(before, wishes, left_out, options, progress)
}

/// Why nothing is planned where something cannot be read.
const UNREADABLE: &str = "some of the image cannot be read, so nothing is written to it: copy it to a healthy disk \
    (ddrescue), then repair the copy";

/// Why nothing is planned by somebody who was stopped.
const STOPPED: &str = "the planning was stopped, so nothing is done";

/// Why nothing is planned for an image of which not everything was walked.
const TOO_LONG: &str = "its tables are together longer than what is walked of an image, so nobody knows what else is used, \
    and nothing is written to it";

/// Why nothing can be planned, where not everything was looked at.
fn unread<S: Storage>(examination: &Examination<'_, S>, is_first: bool) -> Option<&'static str> {
    let coverage = &examination.notes.coverage;
    if is_first && coverage.unreadable_count() > 0 {
        return Some(UNREADABLE);
    }
    if examination.survey.is_cut_short {
        return Some(TOO_LONG);
    }
    coverage.is_stopped().then_some(STOPPED)
}

/// A read that failed in a later look at an image that could be read, even if another try made it good: a plan that goes
/// on from there would be another plan.
fn refuse_gaps<S: Storage>(image: &Image<S>, coverage: &Coverage) -> Result<(), Error> {
    if coverage.unreadable_count() == 0 {
        return Ok(());
    }
    let lost = image.lost_reads().last;
    let unknown = || (HostOffset(0), "it gave other bytes than before".to_owned());
    let (offset, why) = lost.unwrap_or_else(unknown);
    Err(Error::Read {
        path: image.path().to_owned(),
        offset: offset.0,
        source: io::Error::other(why),
    })
}

/// What a pass makes of an examination.
fn run<S: Storage>(
    pass: Pass,
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> io::Result<Changes> {
    Ok(match pass {
        Pass::Entries => entries::correct(examination, wishes, notes),
        Pass::Refcounts => refcounts::rebuild(examination, wishes, notes)?,
        Pass::Raise => adjust::raise(examination)?,
        Pass::Snapshots => snapshots::correct(examination, wishes, notes)?,
        Pass::Bitmaps => bitmaps::correct(examination, wishes, notes)?,
        Pass::LoneBit => bitmaps::clear_lone_bit(examination),
        Pass::Overlaps => overlaps::part(examination, wishes, notes)?,
        Pass::Lower => adjust::lower(examination, wishes, notes)?,
    })
}

/// The plan for an image whose header does not say how large a cluster is.
fn nothing_to_locate<S: Storage>(image: &Image<S>, options: Options, progress: &Progress) -> Plan {
    let before = check(image, options, progress);
    nothing(image, before, evidence::unreadable())
}

fn nothing<S: Storage>(image: &Image<S>, before: Check, withheld: Vec<Withheld>) -> Plan {
    Plan {
        stages: Vec::new(),
        freed: Vec::new(),
        withheld,
        after: before.clone(),
        before,
        length_bytes: image.file_bytes(),
        length_bytes_after: image.file_bytes(),
    }
}

fn read_error(path: &Path, source: io::Error) -> Error {
    Error::Read {
        path: path.to_owned(),
        offset: 0,
        source,
    }
}
