//! The plan of a repair: what would be done, in which order, and why. Printed, it is the dry run.
//!
//! Comes in: an image. Goes out: a [`Plan`], rehearsed on an overlay in memory, or the reasons why nothing is planned.
//! Never here: a write; a change that is not answered for by a finding.
//!
//! 1. Examine the image, as a check does.
//! 2. Decide what may be done (`evidence`): counts may always be raised; they are only lowered when every table was read,
//!    no structural finding is open, and nothing that would be freed may be a lost table.
//! 3. Describe it as patches of single counts and flags (`adjust`), and lay those out as sectors, stage by stage
//!    (`sectors`).
//! 4. Rehearse: check the image as it would be; unless that is strictly better, plan nothing.

mod adjust;
mod evidence;
mod sectors;

use std::path::Path;

use crate::check::{Check, Options, check, examine};
use crate::error::Error;
use crate::finding::{Code, Severity};
use crate::image::Image;
use crate::progress::Progress;
use crate::storage::{Overlay, Storage};

pub use evidence::Withheld;

/// What a repair is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only lower counts of leaked clusters, in an image that has no other error.
    Leaks,
    /// Everything that can be done without losing anything.
    All,
}

/// What is done between two syncs. A cut anywhere inside a stage leaves the image no worse than before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageKind {
    /// The corrupt bit is set, so that nothing opens the image for writing while it is repaired.
    Guard,
    /// Refcounts that are too low are raised.
    RaiseRefcounts,
    /// COPIED flags that would let a write through to another owner are cleared.
    ClearCopied,
    /// Refcounts that are too high are lowered. Nothing is freed before this.
    LowerRefcounts,
    /// Missing COPIED flags are set.
    SetCopied,
    /// The dirty and corrupt bits are cleared, after the image was read again and found consistent.
    ClearState,
}

/// Bytes to change, whole sectors of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where, in bytes from the start of the file; a multiple of 512.
    pub offset: u64,
    /// What must be there before.
    pub before: Vec<u8>,
    /// What is there afterwards.
    pub after: Vec<u8>,
}

/// The edits between two syncs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What they are for.
    pub kind: StageKind,
    /// By offset; none overlaps another.
    pub edits: Vec<Edit>,
    /// Single counts, flags and bits that change.
    pub change_count: u64,
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
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }
}

/// Plans a repair and rehearses it.
pub fn plan<S: Storage>(
    image: &Image<S>,
    mode: Mode,
    options: Options,
    progress: &Progress,
) -> Result<Plan, Error> {
    let read_error = |source| Error::Read {
        path: Path::new("image").to_owned(),
        offset: 0,
        source,
    };
    let Ok(examination) = examine(image, options, progress) else {
        return Ok(nothing_to_locate(image, options, progress));
    };
    let (permit, mut withheld) = evidence::permit(&examination, mode);
    let may_correct = permit.may_correct;
    let patches = adjust::patches(&examination, permit);
    let before = examination.conclude();
    let mut stages = sectors::lay_out(image.storage(), patches).map_err(read_error)?;
    let settled = rehearse(image, &stages, options, progress)?;
    let is_guarded = stages.iter().any(|stage| stage.kind == StageKind::Guard);
    // Leaks alone are lowered, or not, without a word about the state of the rest.
    if is_guarded || may_correct {
        let goal = if is_consistent(&settled) && may_correct {
            adjust::State::Consistent
        } else {
            adjust::State::AsItWas
        };
        stages = adjust::with_final_state(image, stages, goal).map_err(read_error)?;
    }
    let mut after = rehearse(image, &stages, options, progress)?;
    if !stages.is_empty()
        && let Err(reason) = is_better(&before, &after)
    {
        withheld.push(reason);
        stages = Vec::new();
        after.clone_from(&before);
    }
    Ok(Plan {
        stages,
        withheld,
        before,
        after,
    })
}

/// The plan for an image whose header does not say how large a cluster is.
fn nothing_to_locate<S: Storage>(image: &Image<S>, options: Options, progress: &Progress) -> Plan {
    let before = check(image, options, progress);
    Plan {
        stages: Vec::new(),
        withheld: evidence::unreadable(),
        after: before.clone(),
        before,
    }
}

/// Checks the image as it would be after `stages`.
fn rehearse<S: Storage>(
    image: &Image<S>,
    stages: &[Stage],
    options: Options,
    progress: &Progress,
) -> Result<Check, Error> {
    let mut overlay = Overlay::new(image.storage());
    for edit in stages.iter().flat_map(|stage| &stage.edits) {
        overlay.write(edit.offset, &edit.after);
    }
    let rehearsed = Image::open(overlay, Path::new("rehearsal"))?;
    Ok(check(&rehearsed, options, progress))
}

/// Whether nothing is wrong but bits that say so.
fn is_consistent(check: &Check) -> bool {
    let corruptions = check.findings.count_of(Severity::Corruption);
    let corrupt_bit = check.findings.total_of(Code::CorruptBitSet).count;
    corruptions == corrupt_bit && check.coverage.complete().is_some()
}

/// Strictly better: no leak or error is found more often, and something is found less often.
fn is_better(before: &Check, after: &Check) -> Result<(), Withheld> {
    let counts = |code| {
        let count = |check: &Check| check.findings.total_of(code).count;
        (count(before), count(after))
    };
    for &code in Code::ALL {
        let (count, count_after) = counts(code);
        if count_after > count && code.severity() > Severity::Notice {
            return Err(Withheld {
                code,
                count: count_after,
                reason: "the rehearsal found more of these than there are now, so nothing is done"
                    .to_owned(),
            });
        }
    }
    let gains = |&code: &Code| {
        let (before, after) = counts(code);
        after < before
    };
    if Code::ALL.iter().any(gains) {
        return Ok(());
    }
    Err(Withheld {
        code: Code::RefcountLeak,
        count: 0,
        reason: "the rehearsal found nothing better afterwards, so nothing is done".to_owned(),
    })
}
