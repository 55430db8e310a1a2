//! Entries of the refcount table and of L1 tables.
//!
//! Comes in: an examination. Goes out: patches of single entries. Never here: following an entry.

use std::collections::{BTreeMap, BTreeSet};

use super::outcome::{Obstacle, Outcome};
use super::{GARBAGE_ENTRIES, Grounds, L1_CODES, REFCOUNT_TABLE_CODES};
use crate::check::Examination;
use crate::finding::Code;
use crate::plan::StageKind;
use crate::plan::changes::Patch;
use crate::qcow2::{
    Geometry, HostOffset, L1Entry, Place, RefcountTableEntry, Refusal, Tree, words,
};
use crate::storage::Storage;
use crate::walk::Claim;

/// Clears reserved bits of refcount table entries that name a block no one else uses, or none beside one that does.
///
/// A wrong block is no loss: what it should say is worked out from the references.
pub(super) fn mend_refcount_table<S: Storage>(examination: &Examination<'_, S>) -> Outcome {
    let mut mender = Mender::new(examination.walk.geometry);
    let is_table = |claim: &&Claim| claim.place == Place::RefcountTable;
    let names_block = |entry: RefcountTableEntry| {
        let offset = entry.refcount_block_offset();
        let block = offset.map(|offset| examination.walk.geometry.admit(offset));
        block.map(|block| block.is_ok_and(|cluster| !examination.has_conflict(cluster)))
    };
    for claim in examination.survey.claims.iter().filter(is_table) {
        for_each_piece(examination, claim, u64::MAX, |offset, piece| {
            let of_piece =
                || entries_of(offset, piece).map(|(at, word)| (at, RefcountTableEntry(word)));
            let mut has_block = false;
            let mut strange = 0;
            for (_, entry) in of_piece() {
                match names_block(entry) {
                    Some(true) => has_block = true,
                    Some(false) => strange += 1,
                    None => {}
                }
            }
            for (at, entry) in of_piece().filter(|(_, entry)| entry.reserved_bits() != 0) {
                let obstacle = match names_block(entry) {
                    _ if strange >= GARBAGE_ENTRIES => Some(Obstacle::Implausible),
                    Some(false) => Some(Obstacle::Impossible),
                    None if !has_block => Some(Obstacle::NotVouchedFor),
                    Some(true) | None => None,
                };
                let code = Code::RefcountTableEntryReservedBits;
                mender.settle(code, obstacle, at, entry.0 & !entry.reserved_bits());
            }
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
    let mut seen = BTreeSet::new();
    for claim in &examination.survey.claims {
        let Place::L1Table { tree } = claim.place else {
            continue;
        };
        // What two L1 tables claim is in conflict, however many more there are, and nothing is done about it here.
        if !seen.insert(claim.clusters) {
            continue;
        }
        let L1Length { entries, needed } = l1_length(examination, tree);
        let start = examination.walk.geometry.offset_of(claim.clusters.start).0;
        let needed_end = start.saturating_add(needed.saturating_mul(8));
        for_each_piece(examination, claim, entries, |offset, piece| {
            let garbage = entries_of(offset, piece).filter(|&(_, word)| mender.is_garbage(word));
            let is_implausible = garbage.count() as u64 >= GARBAGE_ENTRIES;
            for (at, word) in entries_of(offset, piece) {
                let stranger = if is_implausible {
                    Some(Obstacle::Implausible)
                } else {
                    (at >= needed_end).then_some(Obstacle::BeyondDisk)
                };
                mender.mend_l1_entry(grounds, stranger, at, L1Entry(word));
            }
        });
    }
    mender.finish(examination, L1_CODES)
}

/// How long an L1 table is said to be, and how long it has to be.
struct L1Length {
    entries: u64,
    needed: u64,
}

fn l1_length<S: Storage>(examination: &Examination<'_, S>, tree: Tree) -> L1Length {
    let geometry = examination.walk.geometry;
    let header = examination.walk.image.header();
    let of_disk = |bytes| geometry.l1_entries_needed(bytes);
    let snapshot = match tree {
        Tree::Active => None,
        Tree::Snapshot(index) => {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            examination.survey.snapshots.get(index)
        }
    };
    match snapshot {
        None => L1Length {
            entries: u64::from(header.l1_size),
            needed: of_disk(header.size),
        },
        Some(entry) => L1Length {
            entries: u64::from(entry.fixed.l1_size),
            needed: of_disk(entry.disk_bytes.unwrap_or(header.size))
                .saturating_add(of_disk(entry.vm_state_bytes)),
        },
    }
}

/// The words of a piece of a table that are not zero, with their offsets.
fn entries_of(offset: u64, piece: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let entries = (offset..).step_by(8).zip(words(piece));
    entries.filter(|&(_, word)| word != 0)
}

/// Calls `each` with offset and content of every cluster of a claimed table, but for those that have other users and those
/// that cannot be read. No cluster has two claims and no conflict, so none is read twice.
fn for_each_piece<S: Storage>(
    examination: &Examination<'_, S>,
    claim: &Claim,
    entries: u64,
    mut each: impl FnMut(u64, &[u8]),
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
        each(offset, piece);
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

    /// Whether a word can hardly be an L1 entry. A table past the end is what a truncation leaves.
    fn is_garbage(&self, word: u64) -> bool {
        let offset = L1Entry(word).l2_table_offset();
        let is_unaligned = offset.is_some_and(|offset| !self.geometry.is_aligned(offset));
        is_unaligned || L1Entry(word).reserved_bits() != 0
    }

    fn mend_l1_entry(
        &mut self,
        grounds: &Grounds<'_>,
        stranger: Option<Obstacle>,
        offset: u64,
        entry: L1Entry,
    ) {
        let refusal = entry
            .l2_table_offset()
            .map(|table| self.geometry.admit(table));
        let broken = match refusal {
            None if entry.copied() => Some(Code::L1EntryWithoutOffset),
            Some(Err(Refusal::Unaligned)) => Some(Code::L2TableUnaligned),
            Some(Err(Refusal::PastEnd)) => Some(Code::L2TablePastEnd),
            None | Some(Ok(_)) => None,
        };
        let is_cut = |table| self.geometry.is_cut(table, self.geometry.cluster_bytes());
        if broken.is_none() && entry.l2_table_offset().is_some_and(is_cut) {
            self.settle(
                Code::L2TablePastEnd,
                Some(Obstacle::CutOff),
                offset,
                entry.0,
            );
        }
        let code = Code::L1EntryReservedBits;
        let has_reserved_bits = entry.reserved_bits() != 0;
        let Some(broken) = broken else {
            if has_reserved_bits {
                let obstacle = stranger.or_else(|| grounds.doubt_unless_accepted(code));
                self.settle(code, obstacle, offset, entry.0 & !entry.reserved_bits());
            }
            return;
        };
        // An entry without offset reads as unallocated as it is.
        let shows_backing = grounds.has_backing_file && broken != Code::L1EntryWithoutOffset;
        let obstacle = if stranger.is_some() {
            stranger
        } else if !grounds.accepts(broken) {
            Some(Obstacle::Loss)
        } else if shows_backing {
            Some(Obstacle::BackingFile)
        } else {
            None
        };
        self.settle(broken, obstacle, offset, 0);
        if has_reserved_bits {
            let obstacle = obstacle.map(|_| stranger.unwrap_or(Obstacle::Impossible));
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
