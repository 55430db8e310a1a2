//! Entries of L2 tables.
//!
//! Comes in: an examination. Goes out: patches of single entries; a table is mended once, however many trees share it.
//! Never here: a decision that depends on another entry, but for the references that compressed data may claim.

use std::collections::BTreeMap;

use super::outcome::{Obstacle, Outcome};
use super::{GARBAGE_ENTRIES, Grounds, L2_CODES};
use crate::check::Examination;
use crate::coverage::Gap;
use crate::finding::Code;
use crate::plan::StageKind;
use crate::plan::changes::Patch;
use crate::qcow2::{
    ClusterRange, Geometry, HostCluster, L2Descriptor, L2Entry, Refusal, SubclusterBitmap, words,
};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{Rules, Target};
use crate::walk::{L2Item, Notes};

/// Bit 0 alone: zeros, without a host cluster.
const PLAIN_ZERO: u64 = 1;
const ZERO: u64 = 1;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Mends what can be mended in any L2 table.
pub(super) fn mend_tables<S: Storage>(
    examination: &Examination<'_, S>,
    grounds: &Grounds<'_>,
) -> Outcome {
    let rules = Rules::new(examination.walk);
    let visitors = read_tables(examination.walk, &examination.survey.l2_tables, || {
        Visitor {
            examination,
            rules: &rules,
            grounds,
            outcome: Outcome::default(),
            claims: Vec::new(),
        }
    });
    let mut outcome = Outcome::default();
    let mut claims = Vec::new();
    for visitor in visitors {
        outcome.append(visitor.outcome);
        claims.extend(visitor.claims);
    }
    settle_claims(grounds, &claims, &mut outcome);
    outcome
}

/// An entry that refers to nothing as it is, and to these clusters once its bitmap is cleared.
struct CompressedClaim {
    clusters: ClusterRange,
    weight: u64,
    patch: Patch,
}

/// Lets compressed entries refer to their data again where its clusters are counted for them.
fn settle_claims(grounds: &Grounds<'_>, claims: &[CompressedClaim], outcome: &mut Outcome) {
    let mut spare: BTreeMap<HostCluster, u64> = BTreeMap::new();
    for cluster in claims.iter().flat_map(|claim| claim.clusters.clusters()) {
        spare.insert(cluster, 0);
    }
    for difference in grounds.differences.iter() {
        if let Some(spare) = spare.get_mut(&difference.cluster)
            && !difference.has_conflict
        {
            let stored = difference.stored.unwrap_or(0);
            *spare = stored.saturating_sub(difference.expected);
        }
    }
    for claim in claims {
        let has_spare = |cluster| {
            spare
                .get(&cluster)
                .is_some_and(|&left| left >= claim.weight)
        };
        if !claim.clusters.clusters().all(has_spare) {
            let code = Code::CompressedWithSubclusters;
            outcome.leave(code, Obstacle::NotCounted, claim.weight);
            continue;
        }
        for cluster in claim.clusters.clusters() {
            if let Some(left) = spare.get_mut(&cluster) {
                *left = left.saturating_sub(claim.weight);
            }
        }
        outcome.patches.push(claim.patch);
    }
}

struct Visitor<'a, S> {
    examination: &'a Examination<'a, S>,
    rules: &'a Rules,
    grounds: &'a Grounds<'a>,
    outcome: Outcome,
    claims: Vec<CompressedClaim>,
}

impl<S: Storage> GroupVisitor<L2Item> for Visitor<'_, S> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        let mut notes = Notes::default();
        let mut sound = 0_u64;
        self.rules
            .walk_table(item, bytes, Some(&mut notes), |mapped| {
                sound += u64::from(is_sound(mapped.target));
            });
        let findings = notes.findings;
        let count = |code: Code| findings.total_of(code).count;
        if L2_CODES.iter().all(|&code| count(code) == 0) {
            return;
        }
        // Entries past the end alone are what a truncation leaves of a table.
        let garbage = count(Code::L2EntryReservedBits).max(count(Code::L2EntryUnaligned))
            + count(Code::CompressedCopied);
        let has_garbage = garbage >= GARBAGE_ENTRIES.saturating_mul(item.weight());
        let obstacle = if self.examination.has_conflict(item.cluster) {
            Some(Obstacle::Table)
        } else if is_layout_doubtful(self.examination)
            || (has_garbage && count(Code::L2TableImplausible) > 0)
        {
            Some(Obstacle::Implausible)
        } else {
            // Where nothing looks leaked, no table is missing, so this one is right.
            let is_vouched_for = sound > 0 || self.grounds.doubt.is_none();
            (!is_vouched_for).then_some(Obstacle::NotVouchedFor)
        };
        if let Some(obstacle) = obstacle {
            return self.outcome.leave_all(&findings, L2_CODES, obstacle);
        }
        let geometry = self.rules.geometry;
        let table_offset = geometry.offset_of(item.cluster).0;
        for_each_entry(geometry, bytes, |index, word, bitmap| {
            Entry {
                geometry,
                grounds: self.grounds,
                item,
                index,
                offset: table_offset + index * geometry.l2_entry_bytes(),
                word,
                bitmap,
                outcome: &mut self.outcome,
                claims: &mut self.claims,
            }
            .mend();
        });
    }

    /// What is in it was not found either.
    fn miss(&mut self, _item: &L2Item, _gap: Gap) {}
}

/// Whether the bit that makes entries twice as long may be the damage: nobody has such entries with so small clusters, and
/// where the L1 table is too short for them, it was made for others.
fn is_layout_doubtful<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let findings = &examination.notes.findings;
    let codes = [Code::ExtendedL2ClusterTooSmall, Code::L1TableTooSmall];
    let is_contradicted = codes.iter().any(|&code| findings.total_of(code).count > 0);
    examination.walk.geometry.has_extended_l2() && is_contradicted
}

/// Whether what an entry maps is in its file.
fn is_sound(target: Target) -> bool {
    match target {
        Target::Standard { cluster, .. } => cluster.is_ok(),
        Target::Compressed { clusters, .. } => clusters.is_ok(),
        Target::External { .. } => true,
    }
}

/// Calls `each` for every entry.
fn for_each_entry(
    geometry: Geometry,
    bytes: &[u8],
    mut each: impl FnMut(u64, L2Entry, SubclusterBitmap),
) {
    let is_extended = geometry.has_extended_l2();
    let mut words = words(bytes);
    for index in 0.. {
        let Some(word) = words.next() else { return };
        let bitmap = is_extended.then(|| words.next()).flatten().unwrap_or(0);
        each(index, L2Entry(word), SubclusterBitmap(bitmap));
    }
}

/// One entry, as it is after what was mended so far.
struct Entry<'a> {
    geometry: Geometry,
    grounds: &'a Grounds<'a>,
    item: &'a L2Item,
    index: u64,
    /// Where it is in the file.
    offset: u64,
    word: L2Entry,
    bitmap: SubclusterBitmap,
    outcome: &'a mut Outcome,
    claims: &'a mut Vec<CompressedClaim>,
}

impl Entry<'_> {
    fn mend(mut self) {
        if self.word.is_compressed() {
            self.mend_compressed();
        } else {
            self.mend_standard();
        }
    }

    fn leave(&mut self, code: Code, obstacle: Obstacle) {
        self.outcome.leave(code, obstacle, self.item.weight());
    }

    /// Gives the entry these words.
    fn put(&mut self, code: Code, word: u64, bitmap: u64) {
        if self.offset + self.geometry.l2_entry_bytes() > self.geometry.file_bytes() {
            return self.leave(code, Obstacle::CutOff);
        }
        let stage = StageKind::CorrectEntries;
        if word != self.word.0 {
            let patch = Patch::word(stage, code, self.offset, word);
            self.outcome.patches.push(patch);
        }
        if bitmap != self.bitmap.0 {
            let patch = Patch::word(stage, code, self.offset + 8, bitmap);
            self.outcome.patches.push(patch);
        }
        self.word = L2Entry(word);
        self.bitmap = SubclusterBitmap(bitmap);
    }

    fn mend_standard(&mut self) {
        if let Some(code) = self.broken_offset() {
            return self.mend_broken(code);
        }
        self.clear_lone_copied();
        self.clear_reserved_bits();
        if self.geometry.has_extended_l2() {
            self.mend_subclusters();
        } else if self.grounds.version == 2 && self.word.zero_flag() {
            self.leave(Code::ZeroFlagInV2, Obstacle::Version2);
        }
        self.clear_inactive_copied();
    }

    /// COPIED without an offset: no guest sees the flag, but it may be all that is left of a reference.
    fn clear_lone_copied(&mut self) {
        let has_offset = self.word.standard_offset().0 != 0 || self.grounds.has_data_file;
        if has_offset || !self.word.copied() {
            return;
        }
        let code = Code::L2EntryWithoutOffset;
        if self.maps_no_data() && self.word.zero_flag() || self.grounds.accepts(code) {
            self.put(code, self.word.0 & !COPIED, self.bitmap.0);
        } else {
            self.leave(code, Obstacle::Loss);
        }
    }

    /// Why the entry's offset cannot be followed, if it cannot. In a data file every offset can.
    fn broken_offset(&self) -> Option<Code> {
        let offset = self.word.standard_offset();
        if self.grounds.has_data_file || offset.0 == 0 {
            return None;
        }
        match self.geometry.admit(offset) {
            Err(Refusal::Unaligned) => Some(Code::L2EntryUnaligned),
            Err(Refusal::PastEnd) => Some(Code::L2EntryPastEnd),
            Ok(_) => None,
        }
    }

    /// An entry whose offset cannot be followed: where it maps no data, it goes on to map none, without the offset.
    fn mend_broken(&mut self, code: Code) {
        if self.maps_no_data() {
            let is_extended = self.geometry.has_extended_l2();
            let word = if is_extended { 0 } else { PLAIN_ZERO };
            return self.put(code, word, self.bitmap.0);
        }
        let Some(obstacle) = self.obstacle_to_dropping(code) else {
            return self.drop_data(code);
        };
        self.leave(code, obstacle);
        if self.word.reserved_bits() != 0 {
            self.leave(Code::L2EntryReservedBits, Obstacle::Impossible);
        }
        if self.geometry.has_extended_l2() {
            if self.bitmap.allocated() & self.bitmap.zero() != 0 {
                self.leave(Code::SubclusterAllocatedAndZero, Obstacle::Impossible);
            }
        } else if self.grounds.version == 2 && self.word.zero_flag() {
            self.leave(Code::ZeroFlagInV2, Obstacle::Impossible);
        }
    }

    /// Whether the host cluster was only reserved: the guest cluster reads as zeros, or from the backing file, without it.
    ///
    /// With reserved bits set too, too much is damaged to believe the flag that says so.
    fn maps_no_data(&self) -> bool {
        let has_none = if self.geometry.has_extended_l2() {
            self.bitmap.allocated() == 0
        } else {
            self.grounds.version >= 3 && self.word.zero_flag()
        };
        has_none && self.word.reserved_bits() == 0
    }

    /// What keeps the reference of an entry from being dropped, if anything does.
    fn obstacle_to_dropping(&self, code: Code) -> Option<Obstacle> {
        if !self.grounds.accepts(code) {
            return Some(Obstacle::Loss);
        }
        // Version 2 cannot say "zeros".
        let shows_backing = self.grounds.version == 2 && self.grounds.has_backing_file;
        shows_backing.then_some(Obstacle::BackingFile)
    }

    /// Lets an entry read as zeros where it mapped data.
    fn drop_data(&mut self, code: Code) {
        if !self.geometry.has_extended_l2() {
            let word = u64::from(self.grounds.version >= 3) * PLAIN_ZERO;
            return self.put(code, word, 0);
        }
        let lost = if self.word.is_compressed() {
            u64::from(u32::MAX)
        } else {
            self.bitmap.allocated()
        };
        self.put(code, 0, (self.bitmap.zero() | lost) << 32);
    }

    fn clear_reserved_bits(&mut self) {
        let reserved_bits = self.word.reserved_bits();
        if reserved_bits == 0 {
            return;
        }
        let code = Code::L2EntryReservedBits;
        let obstacle = if self.grounds.has_data_file {
            // A data file has no counts to vouch for an offset, but every cluster has only one place in it.
            let is_proven = self.word.standard_offset().0 == self.guest_offset()
                && !self.item.is_shared_across_ranges;
            (!is_proven).then_some(Obstacle::NotGuestOffset)
        } else {
            self.grounds.doubt_unless_accepted(code)
        };
        match obstacle {
            Some(obstacle) => self.leave(code, obstacle),
            None => self.put(code, self.word.0 & !reserved_bits, self.bitmap.0),
        }
    }

    fn guest_offset(&self) -> u64 {
        let guest_cluster = self.geometry.guest_cluster(self.item.l1_index, self.index);
        self.geometry.guest_range(guest_cluster, 1).start.0
    }

    fn mend_subclusters(&mut self) {
        if self.word.zero_flag() {
            let code = Code::ExtendedL2ZeroFlag;
            self.put(code, self.word.0 & !ZERO, self.bitmap.0);
        }
        let allocated = self.bitmap.allocated();
        let both = allocated & self.bitmap.zero();
        let is_first_of_data_file = self.grounds.has_data_file && self.word.copied();
        let has_cluster = self.word.standard_offset().0 != 0 || is_first_of_data_file;
        if !has_cluster && allocated != 0 {
            let code = Code::SubclusterWithoutCluster;
            match self.obstacle_to_dropping(code) {
                Some(obstacle) => self.leave(code, obstacle),
                None => self.put(code, self.word.0, (self.bitmap.zero() | allocated) << 32),
            }
        } else if both != 0 {
            // QEMU answers any read of such a guest cluster with an error, so there is nothing a reader could miss. The
            // data is in the host cluster whichever bit is cleared, but only with the allocation bit can it be read.
            let code = Code::SubclusterAllocatedAndZero;
            self.put(code, self.word.0, self.bitmap.0 & !(both << 32));
        }
    }

    /// Clears a COPIED flag that no count can bear out: the table has more than one snapshot, so its clusters have too.
    ///
    /// In a table of one snapshot QEMU itself sets the flag, where deleting another snapshot leaves a count of one.
    fn clear_inactive_copied(&mut self) {
        let is_refuted = self.item.trees.active == 0 && self.item.weight() > 1;
        let names_cluster = self.word.standard_offset().0 != 0 && !self.grounds.has_data_file;
        if is_refuted && names_cluster && self.word.copied() {
            let code = Code::CopiedFlagInactive;
            self.put(code, self.word.0 & !COPIED, self.bitmap.0);
        }
    }

    fn mend_compressed(&mut self) {
        let is_copied = self.word.copied();
        if self.grounds.has_data_file {
            self.leave(Code::CompressedWithDataFile, Obstacle::DataFile);
            if is_copied {
                self.leave(Code::CompressedCopied, Obstacle::DataFile);
            }
            return;
        }
        let Some(clusters) = self.admitted_extent() else {
            return self.mend_broken_extent();
        };
        if is_copied {
            let code = Code::CompressedCopied;
            if self.may_be_standard() && !self.grounds.accepts(code) {
                self.leave(code, Obstacle::MayBeStandard);
            } else {
                self.put(code, self.word.0 & !COPIED, self.bitmap.0);
            }
        }
        if self.bitmap.0 != 0 {
            self.claim(clusters);
        }
    }

    /// The clusters the compressed data is in, where the file has all of it.
    fn admitted_extent(&self) -> Option<ClusterRange> {
        let L2Descriptor::Compressed(extent) = self.word.descriptor(self.geometry) else {
            return None;
        };
        let clusters = self.geometry.admit_extent(extent.offset, extent.bytes());
        clusters
            .ok()
            .filter(|_| !self.geometry.is_extent_cut(extent.end()))
    }

    /// Compressed data that cannot be in the file.
    fn mend_broken_extent(&mut self) {
        let code = if self.bitmap.0 == 0 {
            Code::CompressedPastEnd
        } else {
            Code::CompressedWithSubclusters
        };
        let obstacle = if self.bitmap.0 == 0 {
            self.obstacle_to_dropping(code)
        } else {
            Some(Obstacle::Impossible)
        };
        match obstacle {
            None => self.drop_data(code),
            Some(obstacle) => {
                self.leave(code, obstacle);
                if self.word.copied() {
                    self.leave(Code::CompressedCopied, Obstacle::Impossible);
                }
            }
        }
    }

    /// Whether the entry would have nothing wrong with it without the compressed bit.
    fn may_be_standard(&self) -> bool {
        let word = L2Entry(self.word.0 & !COMPRESSED);
        let offset = word.standard_offset();
        let is_ordinary = word.0 & L2Entry::odd_bits(self.geometry) == 0;
        is_ordinary && offset.0 != 0 && self.geometry.admit(offset).is_ok()
    }

    /// A compressed entry with a subcluster bitmap: QEMU reads the data all the same, but does not count its clusters.
    fn claim(&mut self, clusters: ClusterRange) {
        let code = Code::CompressedWithSubclusters;
        if self.may_be_standard() && !self.grounds.accepts(code) {
            return self.leave(code, Obstacle::MayBeStandard);
        }
        if self.offset + self.geometry.l2_entry_bytes() > self.geometry.file_bytes() {
            return self.leave(code, Obstacle::CutOff);
        }
        self.claims.push(CompressedClaim {
            clusters,
            weight: self.item.weight(),
            patch: Patch::word(StageKind::CorrectEntries, code, self.offset + 8, 0),
        });
    }
}
