//! What passes have to know besides their examination.
//!
//! Comes in: the image as it is, before anything is put right; later, what the passes did. Goes out: [`DraftNotes`]. Never
//! here: a decision on a change.

use std::cell::{Cell, OnceCell};
use std::io;

use super::remains;
use crate::check::Examination;
use crate::finding::Code;
use crate::refcount_map::{ClusterSet, WordPart};
use crate::storage::Storage;

/// What passes have to know of those before them, and of the image as it is.
#[derive(Debug)]
pub(super) struct DraftNotes {
    /// Clusters that this repair itself has put out of use: what is in them is known, and lost to nobody.
    pub(super) released: ClusterSet,
    /// References were dropped that somebody accepted to lose.
    pub(super) gave_up: bool,
    /// Refcount structures were built anew or given up: what looked leaked before may be hidden since.
    pub(super) was_recounted: bool,
    /// Why some cluster may be one that a damaged pointer meant.
    doubt: OnceCell<Cell<Option<Doubt>>>,
    /// Clusters that are leaked in the image as it is.
    leaked: OnceCell<ClusterSet>,
}

impl DraftNotes {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            released: ClusterSet::new(),
            gave_up: false,
            was_recounted: false,
            doubt: OnceCell::new(),
            leaked: OnceCell::new(),
        }
    }

    /// Keeps what only the image as it is can tell. The first answer stays, but for leaks: where an owner of each came to
    /// light since, they were none, and the next repair would not doubt any more either.
    pub(super) fn remember<S: Storage>(&self, examination: &Examination<'_, S>) -> io::Result<()> {
        if let Some(known) = self.doubt.get() {
            let may_end = known.get() == Some(Doubt::LooksLeaked) && !self.was_recounted;
            if may_end && !has_unaccounted(examination) {
                known.set(None);
            }
        } else {
            let doubt = doubt(examination)?;
            self.doubt.get_or_init(|| Cell::new(doubt));
        }
        self.leaked.get_or_init(|| leaked(examination));
        Ok(())
    }

    /// Why some cluster may be one that a damaged pointer meant.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        self.doubt.get().and_then(Cell::get)
    }

    /// Those of a part that are leaked in the image as it is, as bits of its word.
    pub(super) fn leaked_bits(&self, part: WordPart) -> u64 {
        self.leaked.get().map_or(0, |leaked| leaked.bits_of(part))
    }
}

/// Why some cluster may be one that a damaged pointer meant. Judged on the image as it is, before a repair hides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Some stored counts are not those the image once had.
    CountsUnknown,
    /// Some cluster is counted more often than it is used.
    LooksLeaked,
}

/// Codes that say that some stored counts are not those the image once had.
///
/// Blocks that nobody can locate are known one by one.
const HIDING_CODES: [Code; 6] = [
    Code::HeaderRefcountOrderInvalid,
    Code::RefcountTableUnaligned,
    Code::RefcountTableTooLarge,
    Code::RefcountTableMissing,
    Code::RefcountTablePastEnd,
    Code::RefcountBlockPastEnd,
];

/// Looks for clusters that a damaged pointer may have meant.
fn doubt<S: Storage>(examination: &Examination<'_, S>) -> io::Result<Option<Doubt>> {
    let findings = &examination.notes.findings;
    let unknown = &examination.survey.unknown_counts;
    let is_hidden = |code: &Code| findings.total_of(*code).count > 0;
    let geometry = examination.walk.geometry;
    let per_block = geometry.refcount_block_entries();
    // Counts of clusters behind the end of the file vouch for nothing.
    let is_in_file = |block: &u64| block.saturating_mul(per_block) < geometry.file_clusters();
    let has_unknown = unknown.all || unknown.blocks.iter().any(is_in_file);
    let is_unknown = has_unknown || HIDING_CODES.iter().any(is_hidden);
    let may_have_lost = examination.has_unflagged;
    if is_unknown || (may_have_lost && !remains::lost_counts(examination)?.is_empty()) {
        return Ok(Some(Doubt::CountsUnknown));
    }
    Ok(has_unaccounted(examination).then_some(Doubt::LooksLeaked))
}

/// Whether a cluster of the file is counted more often than it is used.
fn has_unaccounted<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let file_clusters = examination.walk.geometry.file_clusters();
    let mut runs = examination.differences().runs().iter();
    runs.any(|run| run.stored > Some(run.expected) && run.clusters.start.0 < file_clusters)
}

/// The clusters that are leaked in the image as it is, not by this repair.
fn leaked<S: Storage>(examination: &Examination<'_, S>) -> ClusterSet {
    let leaked = ClusterSet::new();
    for run in examination.differences().runs() {
        if run.expected == 0 && run.stored > Some(0) {
            leaked.insert_run(run.clusters);
        }
    }
    leaked
}
