//! What a check looked at, and what it could not.
//!
//! Comes in: a gap for everything that was alleged but not walked. Goes out: [`Coverage`]; only one without gaps lets a
//! plan lower a refcount. Never here: a finding.

use crate::qcow2::{HostOffset, Place};

/// Gaps that are kept; further ones are only counted.
const KEPT_GAPS: usize = 100;
/// Of what was not read because the check was stopped, so much is kept by each part of it: it may be millions of tables.
const KEPT_STOPPED: usize = 4;

/// Why something was not walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GapKind {
    /// The system could not read it.
    Unreadable,
    /// The image says where it is, and that place cannot be right.
    RefusedClaim,
    /// Its meaning is not known for sure.
    UnknownMeaning,
    /// There is no way to read it here: it is in another file, or packed in a way nobody here knows.
    OutOfReach,
    /// It is more than qfsck is willing to walk in any honest image.
    WorkLimit,
    /// The check was told to stop.
    Stopped,
}

impl GapKind {
    /// Kebab-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::RefusedClaim => "refused-claim",
            Self::UnknownMeaning => "unknown-meaning",
            Self::OutOfReach => "out-of-reach",
            Self::WorkLimit => "work-limit",
            Self::Stopped => "stopped",
        }
    }

    /// Whether the check could not do its job, as opposed to the image not letting it.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Unreadable | Self::OutOfReach | Self::WorkLimit | Self::Stopped
        )
    }
}

/// One thing that was not walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where.
    pub place: Place,
    /// Why.
    pub kind: GapKind,
    /// What the system or the walk said.
    pub detail: String,
}

/// Reads that failed and were not made good, whoever asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostReads {
    pub(crate) count: u64,
    /// Where the last one was, and what the system said.
    pub(crate) last: Option<(HostOffset, String)>,
}

/// All gaps of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    gaps: Vec<Gap>,
    gap_count: u64,
    failure_count: u64,
    unreadable_count: u64,
    is_stopped: bool,
}

/// Proof that every table was read and every claim admitted. Only [`Coverage::complete`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Complete<'a> {
    _coverage: &'a Coverage,
}

impl Coverage {
    /// Proof that nothing was left out, if nothing was.
    pub fn complete(&self) -> Option<Complete<'_>> {
        (self.gap_count == 0).then_some(Complete { _coverage: self })
    }

    /// The first gaps.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// All gaps, kept or not.
    pub fn gap_count(&self) -> u64 {
        self.gap_count
    }

    /// Gaps that are failures of the check rather than damage of the image.
    pub fn failure_count(&self) -> u64 {
        self.failure_count
    }

    /// Structures the system could not read.
    pub fn unreadable_count(&self) -> u64 {
        self.unreadable_count
    }

    /// Whether the check was told to stop before its end.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    pub(crate) fn push(&mut self, gap: Gap) {
        self.gap_count += 1;
        self.failure_count += u64::from(gap.kind.is_failure());
        self.unreadable_count += u64::from(gap.kind == GapKind::Unreadable);
        self.is_stopped |= gap.kind == GapKind::Stopped;
        if self.keeps_more() && !(gap.kind == GapKind::Stopped && self.names_enough_stopped()) {
            self.gaps.push(gap);
        }
    }

    fn names_enough_stopped(&self) -> bool {
        let stopped = self.gaps.iter().filter(|gap| gap.kind == GapKind::Stopped);
        stopped.count() >= KEPT_STOPPED
    }

    /// Adds a failure, if there was one, unless it is known already.
    pub(crate) fn push_new_failure(&mut self, gap: Option<Gap>) {
        if let Some(gap) = gap {
            let mut later = Self::default();
            later.push(gap);
            self.append_new_failures(later);
        }
    }

    /// Whether another gap would be kept, and not only counted.
    pub(crate) fn keeps_more(&self) -> bool {
        self.gaps.len() < KEPT_GAPS
    }

    /// Adds failures of a second look at the same structures, unless the first look has them already.
    ///
    /// Of a check that was stopped, nobody asks how many more structures it would have looked at twice.
    pub(crate) fn append_new_failures(&mut self, later: Self) {
        for gap in later.gaps {
            let is_known = |known: &Gap| (known.place, known.kind) == (gap.place, gap.kind);
            let is_stopped_twice = gap.kind == GapKind::Stopped && self.is_stopped;
            if gap.kind.is_failure() && !is_stopped_twice && !self.gaps.iter().any(is_known) {
                self.push(gap);
            }
        }
    }

    /// Says that reads failed, where nothing says so yet: no failure shall be forgotten because nobody minded it.
    pub(crate) fn own_up(&mut self, before: &LostReads, now: LostReads) {
        if now.count > before.count
            && self.unreadable_count == 0
            && let Some((offset, error)) = now.last
        {
            self.push(Gap {
                place: Place::File,
                kind: GapKind::Unreadable,
                detail: format!("a read at byte {offset} failed: {error}"),
            });
        }
    }

    pub(crate) fn append(&mut self, later: Self) {
        self.gap_count += later.gap_count;
        self.failure_count += later.failure_count;
        self.unreadable_count += later.unreadable_count;
        self.is_stopped |= later.is_stopped;
        let room = KEPT_GAPS.saturating_sub(self.gaps.len());
        self.gaps.extend(later.gaps.into_iter().take(room));
    }
}

impl Gap {
    pub(crate) fn unreadable(place: Place, error: &std::io::Error) -> Self {
        Self {
            place,
            kind: GapKind::Unreadable,
            detail: error.to_string(),
        }
    }

    pub(crate) fn refused(place: Place, detail: impl Into<String>) -> Self {
        Self {
            place,
            kind: GapKind::RefusedClaim,
            detail: detail.into(),
        }
    }

    pub(crate) fn stopped(place: Place) -> Self {
        Self {
            place,
            kind: GapKind::Stopped,
            detail: "the check was stopped before this was read".to_owned(),
        }
    }
}
