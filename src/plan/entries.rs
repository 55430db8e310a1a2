//! Words of L1, L2 and refcount table entries that stand by themselves.
//!
//! Comes in: an examination. Goes out: patches of single entries, and what is withheld and why. Never here: a new cluster,
//! a refcount, a write into a table that something else uses too, a lost reference nobody agreed to.
//!
//! Each patch stands by itself, so any subset of them may reach the disk: an entry refers to what it referred to before,
//! or to nothing. What it no longer refers to can only look leaked. The one exception, compressed data beside a bitmap that
//! kept it from being counted, is counted again only where the stored counts have a reference to spare for it.
//!
//! A bit that means nothing can be cleared without a reader seeing it. But whatever flipped it may have flipped a bit of
//! the offset too, and then the cluster that was meant looks leaked. So it is cleared where no cluster of the file is
//! counted more often than it is used; otherwise the finding stays, and with it everything that looks leaked.
//!
//! A damaged pointer makes a table of what may be the only copy of something else. So nothing is written into what does not
//! look like a table, or where nothing says that it is one.

mod l2;
mod outcome;
mod tables;

use self::outcome::{Obstacle, Outcome};
use super::RepairOptions;
use super::changes::Changes;
use super::notes::Doubt;
use super::notes::DraftNotes;
use crate::check::{Differences, Examination};
use crate::finding::Code;
use crate::storage::Storage;

/// What is looked at in refcount table entries.
const REFCOUNT_TABLE_CODES: &[Code] = &[Code::RefcountTableEntryReservedBits];

/// What is looked at in L1 entries.
const L1_CODES: &[Code] = &[
    Code::L1EntryReservedBits,
    Code::L1EntryWithoutOffset,
    Code::L2TableUnaligned,
    Code::L2TablePastEnd,
];

/// What is looked at in L2 entries.
const L2_CODES: &[Code] = &[
    Code::L2EntryReservedBits,
    Code::L2EntryUnaligned,
    Code::L2EntryPastEnd,
    Code::L2EntryWithoutOffset,
    Code::ZeroFlagInV2,
    Code::SubclusterAllocatedAndZero,
    Code::SubclusterWithoutCluster,
    Code::ExtendedL2ZeroFlag,
    Code::CompressedCopied,
    Code::CompressedPastEnd,
    Code::CompressedWithSubclusters,
    Code::CompressedWithDataFile,
    Code::CopiedFlagInactive,
];

/// Words that can be no entries which a table must have before it is taken for something else.
const GARBAGE_ENTRIES: u64 = 8;

/// What the examination calls for.
pub(super) fn correct<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> Changes {
    let findings = &examination.notes.findings;
    let has_any = |codes: &[Code]| {
        let mut counts = codes.iter().map(|&code| findings.total_of(code).count);
        counts.any(|count| count > 0)
    };
    let mut outcome = Outcome::default();
    if has_any(REFCOUNT_TABLE_CODES) {
        outcome.append(tables::mend_refcount_table(examination));
    }
    if has_any(L1_CODES) || has_any(L2_CODES) {
        let grounds = Grounds::new(examination, wishes, notes);
        if has_any(L1_CODES) {
            outcome.append(tables::mend_l1_tables(examination, &grounds));
        }
        if has_any(L2_CODES) {
            outcome.append(l2::mend_tables(examination, &grounds));
        }
    }
    outcome.into_changes()
}

/// What all entries are judged on.
struct Grounds<'a> {
    wishes: &'a RepairOptions,
    differences: &'a Differences,
    /// Why an offset may be wrong that looks right.
    doubt: Option<Obstacle>,
    version: u32,
    has_data_file: bool,
    has_backing_file: bool,
}

impl<'a> Grounds<'a> {
    fn new<S: Storage>(
        examination: &'a Examination<'_, S>,
        wishes: &'a RepairOptions,
        notes: &DraftNotes,
    ) -> Self {
        let header = examination.walk.image.header();
        Self {
            wishes,
            doubt: notes.doubt().map(|doubt| match doubt {
                Doubt::CountsUnknown => Obstacle::CountsUnknown,
                Doubt::LooksLeaked => Obstacle::LooksLeaked,
            }),
            differences: examination.differences(),
            version: header.version,
            has_data_file: header.has_data_file(),
            has_backing_file: header.backing_file_offset != 0,
        }
    }

    fn accepts(&self, code: Code) -> bool {
        self.wishes.accepts(code)
    }

    /// What keeps meaningless bits from being cleared beside an offset of this file, if anything does.
    fn doubt_unless_accepted(&self, code: Code) -> Option<Obstacle> {
        self.doubt.filter(|_| !self.accepts(code))
    }
}
