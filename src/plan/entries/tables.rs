//! Entries of the refcount table and of L1 tables.
//!
//! Comes in: an examination. Goes out: patches of single entries. Never here: following an entry.

use std::collections::BTreeMap;

use super::outcome::{Obstacle, Outcome};
use super::{Grounds, L1_CODES, REFCOUNT_TABLE_CODES};
use crate::check::Examination;
use crate::finding::Code;
use crate::plan::StageKind;
use crate::plan::sectors::Patch;
use crate::qcow2::{
    Geometry, HostOffset, L1Entry, Place, RefcountTableEntry, Refusal, Tree, words,
};
use crate::storage::Storage;
use crate::walk::Claim;

/// Clears reserved bits of refcount table entries that name a block no one else uses, or none.
///
/// A wrong block is no loss: what it should say is worked out from the references.
pub(super) fn mend_refcount_table<S: Storage>(examination: &Examination<'_, S>) -> Outcome {
    let mut mender = Mender::new(examination.walk.geometry);
    let is_table = |claim: &&Claim| claim.place == Place::RefcountTable;
    for claim in examination.survey.claims.iter().filter(is_table) {
        for_each_word(examination, claim, u64::MAX, |offset, word| {
            let entry = RefcountTableEntry(word);
            if entry.reserved_bits() == 0 {
                return;
            }
            let is_alone = entry.refcount_block_offset().is_none_or(|block| {
                let block = examination.walk.geometry.admit(block);
                block.is_ok_and(|cluster| !examination.has_conflict(cluster))
            });
            let code = Code::RefcountTableEntryReservedBits;
            let obstacle = (!is_alone).then_some(Obstacle::Impossible);
            mender.settle(code, obstacle, offset, word & !entry.reserved_bits());
        });
    }
    mender.finish(examination, REFCOUNT_TABLE_CODES)
}

/// Mends entries of every L1 table, where nothing else uses its cluster.
pub(super) fn mend_l1_tables<S: Storage>(
    examination: &Examination<'_, S>,
    grounds: &Grounds<'_>,
) -> Outcome {
    let mut mender = Mender::new(examination.walk.geometry);
    for claim in &examination.survey.claims {
        let Place::L1Table { tree } = claim.place else {
            continue;
        };
        let entries = l1_entries(examination, tree);
        for_each_word(examination, claim, entries, |offset, word| {
            mender.mend_l1_entry(grounds, offset, L1Entry(word));
        });
    }
    mender.finish(examination, L1_CODES)
}

/// Entries of a tree's L1 table, before what the file has of it.
fn l1_entries<S: Storage>(examination: &Examination<'_, S>, tree: Tree) -> u64 {
    match tree {
        Tree::Active => u64::from(examination.walk.image.header().l1_size),
        Tree::Snapshot(index) => {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let snapshot = examination.survey.snapshots.get(index);
            snapshot.map_or(0, |entry| u64::from(entry.fixed.l1_size))
        }
    }
}

/// Calls `each` with offset and content of every word of a claimed table that is not zero, but for clusters that have
/// other users and those that cannot be read. No cluster has two claims and no conflict, so none is read twice.
fn for_each_word<S: Storage>(
    examination: &Examination<'_, S>,
    claim: &Claim,
    entries: u64,
    mut each: impl FnMut(u64, u64),
) {
    let walk = examination.walk;
    let start = walk.geometry.offset_of(claim.clusters.start).0;
    let end = start.saturating_add(entries.saturating_mul(8));
    let cluster_bytes = walk.geometry.cluster_bytes();
    let mut buffer = vec![0; usize::try_from(cluster_bytes).unwrap_or(0)];
    for cluster in claim.clusters.clusters() {
        let offset = walk.geometry.offset_of(cluster).0;
        if offset >= end {
            return;
        }
        let wanted = (end - offset).min(cluster_bytes);
        let Some(piece) = buffer.get_mut(..usize::try_from(wanted).unwrap_or(0)) else {
            return;
        };
        if examination.has_conflict(cluster)
            || walk.image.read_into(HostOffset(offset), piece).is_err()
        {
            continue;
        }
        for (offset, word) in (offset..).step_by(8).zip(words(piece)) {
            if word != 0 {
                each(offset, word);
            }
        }
    }
}

/// Mends entries of eight bytes, and remembers which findings it has come across.
struct Mender {
    geometry: Geometry,
    outcome: Outcome,
    seen: BTreeMap<Code, u64>,
}

impl Mender {
    fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            outcome: Outcome::default(),
            seen: BTreeMap::new(),
        }
    }

    /// Writes the word, unless something speaks against it.
    fn settle(&mut self, code: Code, obstacle: Option<Obstacle>, offset: u64, word: u64) {
        *self.seen.entry(code).or_insert(0) += 1;
        let is_cut_off = offset + 8 > self.geometry.file_bytes();
        let obstacle = obstacle.or(is_cut_off.then_some(Obstacle::CutOff));
        if let Some(obstacle) = obstacle {
            self.outcome.leave(code, obstacle, 1);
        } else {
            let stage = StageKind::CorrectEntries;
            let patch = Patch::word(stage, code, offset, word);
            self.outcome.patches.push(patch);
        }
    }

    fn mend_l1_entry(&mut self, grounds: &Grounds<'_>, offset: u64, entry: L1Entry) {
        let refusal = entry
            .l2_table_offset()
            .map(|table| self.geometry.admit(table));
        let broken = match refusal {
            None if entry.copied() => Some(Code::L1EntryWithoutOffset),
            Some(Err(Refusal::Unaligned)) => Some(Code::L2TableUnaligned),
            Some(Err(Refusal::PastEnd)) => Some(Code::L2TablePastEnd),
            None | Some(Ok(_)) => None,
        };
        let code = Code::L1EntryReservedBits;
        let has_reserved_bits = entry.reserved_bits() != 0;
        let Some(broken) = broken else {
            if has_reserved_bits {
                let obstacle = grounds.doubt_unless_accepted(code);
                self.settle(code, obstacle, offset, entry.0 & !entry.reserved_bits());
            }
            return;
        };
        // An entry without offset reads as unallocated as it is.
        let shows_backing = grounds.has_backing_file && broken != Code::L1EntryWithoutOffset;
        let obstacle = if !grounds.accepts(broken) {
            Some(Obstacle::Loss)
        } else if shows_backing {
            Some(Obstacle::BackingFile)
        } else {
            None
        };
        self.settle(broken, obstacle, offset, 0);
        if has_reserved_bits {
            let obstacle = obstacle.map(|_| Obstacle::Impossible);
            self.settle(code, obstacle, offset, 0);
        }
    }

    /// The outcome, with the findings in clusters that were stepped over.
    fn finish<S: Storage>(mut self, examination: &Examination<'_, S>, codes: &[Code]) -> Outcome {
        for &code in codes {
            let total = examination.notes.findings.total_of(code).count;
            let seen = self.seen.get(&code).copied().unwrap_or(0);
            let missed = total.saturating_sub(seen);
            self.outcome.leave(code, Obstacle::Table, missed);
        }
        self.outcome
    }
}
