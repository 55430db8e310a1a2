//! The snapshot table: a count that is too large, entries that are incomplete, IDs that appear twice.
//!
//! Comes in: an examination. Goes out: a lower count, or a new table in new clusters and one switch of the header. Never
//! here: leaving out an entry that could be read; a guess at where a table lies or how long a damaged entry was.
//!
//! What a lower count leaves out is zeros, or after zeros what neither reads as a snapshot nor has an L1 table. And if it
//! had been a snapshot, its L1 table at least would look leaked: while a leaked cluster may be one, nothing is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::changes::{Changes, Fresh, Patch};
use super::notes::{Doubt, DraftNotes};
use super::space::{self, Space};
use super::{Overlaps, RepairOptions, StageKind, Withheld, evidence, refcounts};
use crate::check::Examination;
use crate::finding::{Code, OwnerKind, Severity};
use crate::qcow2::{
    ClusterRange, Geometry, HostCluster, HostOffset, MAX_SNAPSHOT_EXTRA_BYTES,
    MAX_SNAPSHOT_TABLE_BYTES, Place, SECTOR_BYTES, SNAPSHOT_FIXED_BYTES, SNAPSHOT_V3_EXTRA_BYTES,
    SnapshotEntry, Tree, encode_snapshot_extra,
};
use crate::storage::Storage;

/// Byte offset of the snapshot count in the header. The table's offset is in the same sector.
const NB_SNAPSHOTS_OFFSET: u64 = 60;
/// Byte offset of the snapshot table's offset in the header.
const SNAPSHOTS_OFFSET_OFFSET: u64 = 64;

/// Findings this pass may do something about.
const CODES: [Code; 7] = [
    Code::SnapshotTableUnaligned,
    Code::SnapshotCountTooLarge,
    Code::SnapshotTableTruncated,
    Code::SnapshotExtraDataTooLarge,
    Code::SnapshotEntryIncomplete,
    Code::SnapshotPhantom,
    Code::SnapshotIdDuplicate,
];

/// Findings about the number of entries. Whoever accepts one of them gives up what cannot be read.
const COUNT_CODES: [Code; 3] = [
    Code::SnapshotCountTooLarge,
    Code::SnapshotTableTruncated,
    Code::SnapshotPhantom,
];

/// What nothing can be done about without knowing more, and what a person can choose between.
const CHOICES: [(Code, &str); 6] = [
    (
        Code::SnapshotL1Unaligned,
        "where the L1 table really is nobody knows; restore the entry from a copy of the image, or delete the snapshot",
    ),
    (
        Code::SnapshotL1TooLarge,
        "how long the L1 table really is nobody knows; restore the entry from a copy of the image, or delete the snapshot",
    ),
    (
        Code::SnapshotL1PastEnd,
        "the file may have been cut off; find its tail, or delete the snapshot",
    ),
    (
        Code::SnapshotL1TooSmall,
        "either the L1 table or the disk was larger; restore the entry from a copy of the image, or delete the snapshot",
    ),
    (
        Code::SnapshotVmStateBeyondL1,
        "the VM state behind the table's end is lost; revert to the snapshot's disk without it, or delete the snapshot",
    ),
    (
        Code::SnapshotsWithDataFile,
        "nothing protects what the snapshots map in the data file; copy out what is needed, then delete them",
    ),
];

/// What the examination calls for.
pub(super) fn correct<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> io::Result<Changes> {
    let is_found = |code: &Code| count_of(examination, *code) > 0;
    let moves_out = wishes.overlaps == Overlaps::Clone && is_contested(examination);
    let mut changes = Changes::default();
    if CODES.iter().any(is_found) || moves_out {
        let repair = Repair {
            examination,
            wishes,
            notes,
        };
        if let Err(withheld) = repair.plan_table(moves_out, &mut changes)? {
            changes = Changes::default();
            changes.withheld.extend(withheld);
        }
    }
    // What is left out takes its findings with it; of what is left then, the check afterwards speaks.
    let stays = changes.patches.is_empty() || !leaves_out(examination);
    let choices = CHOICES.iter().filter(|(code, _)| stays && is_found(code));
    changes
        .withheld
        .extend(choices.map(|&(code, reason)| withheld(code, count_of(examination, code), reason)));
    Ok(changes)
}

fn count_of<S: Storage>(examination: &Examination<'_, S>, code: Code) -> u64 {
    examination.notes.findings.total_of(code).count
}

fn withheld(code: Code, count: u64, reason: impl Into<String>) -> Withheld {
    Withheld {
        code,
        count,
        reason: reason.into(),
    }
}

/// Whether something else uses clusters of the snapshot table.
fn is_contested<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let claims = examination.survey.claims.iter();
    let mut clusters = claims
        .filter(|claim| claim.kind == OwnerKind::SnapshotTable)
        .flat_map(|claim| claim.clusters.clusters());
    clusters.any(|cluster| examination.has_conflict(cluster))
}

/// Whether the count in the header, and entries with it, may be too large.
fn leaves_out<S: Storage>(examination: &Examination<'_, S>) -> bool {
    COUNT_CODES
        .iter()
        .any(|&code| count_of(examination, code) > 0)
}

/// Why something is not done; nothing where the reason is somebody else's to give.
type Reasons = Vec<Withheld>;

struct Repair<'a, 'e, S> {
    examination: &'a Examination<'e, S>,
    wishes: &'a RepairOptions,
    notes: &'a DraftNotes,
}

/// The entries that stay, by index, and what their clusters are.
struct Kept {
    indices: Vec<usize>,
    clusters: ClusterRange,
}

impl<S: Storage> Repair<'_, '_, S> {
    fn entries(&self) -> &[SnapshotEntry] {
        &self.examination.survey.snapshots
    }

    fn geometry(&self) -> Geometry {
        self.examination.walk.geometry
    }

    fn found(&self, code: Code) -> bool {
        count_of(self.examination, code) > 0
    }

    /// A reason for each finding of this pass.
    fn for_all(&self, reason: &str) -> Reasons {
        let found = CODES.iter().filter(|&&code| self.found(code));
        found
            .map(|&code| withheld(code, count_of(self.examination, code), reason))
            .collect()
    }

    fn for_one(&self, code: Code, reason: impl Into<String>) -> Reasons {
        vec![withheld(code, count_of(self.examination, code), reason)]
    }

    /// Plans everything; the inner error says why nothing is planned.
    fn plan_table(
        &self,
        moves_out: bool,
        changes: &mut Changes,
    ) -> io::Result<Result<(), Reasons>> {
        let header = self.examination.walk.image.header();
        if let Err(reason) = self.may_write(header.has_data_file()) {
            return Ok(Err(self.for_all(reason)));
        }
        if self.found(Code::SnapshotTableUnaligned) {
            return Ok(self.forget_offset(header.nb_snapshots, changes));
        }
        let kept = match self.kept(changes) {
            Ok(kept) => kept,
            Err(reasons) => return Ok(Err(reasons)),
        };
        let is_prefix = kept.indices.iter().copied().eq(0..kept.indices.len());
        let is_contested = kept
            .clusters
            .clusters()
            .any(|cluster| self.examination.has_conflict(cluster));
        let mut kept_entries = kept
            .indices
            .iter()
            .filter_map(|&index| self.entries().get(index));
        let needs_table = !is_prefix
            || (moves_out && is_contested)
            || kept_entries.any(|entry| self.has_wrong_extra_data(entry));
        let renames = self.renames(&kept, needs_table);
        if needs_table || renames.needs_table {
            return self.plan_new_table(&kept, is_contested, &renames, changes);
        }
        let count = u32::try_from(kept.indices.len()).unwrap_or(u32::MAX);
        if count != header.nb_snapshots {
            let because = self.count_code();
            let stage = StageKind::SwitchPointers;
            let patch = Patch::half_word(stage, because, NB_SNAPSHOTS_OFFSET, count);
            changes.patches.push(patch);
        }
        if !is_contested && self.reads_well(&kept) {
            changes.patches.extend(self.rename_in_place(&renames));
        }
        Ok(Ok(()))
    }

    fn may_write(&self, has_data_file: bool) -> Result<(), &'static str> {
        if self.examination.notes.coverage.failure_count() > 0 {
            return Err("not every table could be read");
        }
        if self.examination.has_conflict(HostCluster(0)) {
            return Err("something else uses the header's cluster too");
        }
        if has_data_file && !self.entries().iter().all(SnapshotEntry::is_blank) {
            return Err(
                "snapshots and an external data file exclude each other, so the table is left alone",
            );
        }
        Ok(())
    }

    /// The offset of a table without entries leads nowhere; QEMU looks at it all the same.
    fn forget_offset(&self, count: u32, changes: &mut Changes) -> Result<(), Reasons> {
        let code = Code::SnapshotTableUnaligned;
        if count > 0 {
            let reason = "where the snapshot table really is nobody knows; restore the header field from a copy of the image";
            return Err(self.for_one(code, reason));
        }
        if let Some(lost) = evidence::suspicion(self.examination, self.notes) {
            let reason = format!("there may have been snapshots: {lost}");
            return Err(self.for_one(code, reason));
        }
        let stage = StageKind::SwitchPointers;
        let patch = Patch::word(stage, code, SNAPSHOTS_OFFSET_OFFSET, 0);
        changes.patches.push(patch);
        Ok(())
    }

    /// The finding a change of the count answers.
    fn count_code(&self) -> Code {
        let found = COUNT_CODES.into_iter().find(|&code| self.found(code));
        found.unwrap_or(Code::SnapshotPhantom)
    }

    /// Neither reads as a snapshot nor has an L1 table.
    fn is_garbage(&self, index: usize, mapped: &BTreeSet<usize>) -> bool {
        let entry = self.entries().get(index);
        entry.is_some_and(|entry| !entry.is_blank() && !has_text(entry) && !mapped.contains(&index))
    }

    /// Snapshots whose L1 table is at a place where one can be.
    fn mapped(&self) -> BTreeSet<usize> {
        let claims = self.examination.survey.claims.iter();
        let snapshots = claims.filter_map(|claim| match claim.place {
            Place::L1Table {
                tree: Tree::Snapshot(index),
            } => usize::try_from(index).ok(),
            _ => None,
        });
        snapshots.collect()
    }

    /// Decides which entries stay: all that could be read as one.
    fn kept(&self, changes: &mut Changes) -> Result<Kept, Reasons> {
        let entries = self.entries();
        let mapped = self.mapped();
        let is_blank = |index: usize| entries.get(index).is_some_and(SnapshotEntry::is_blank);
        let is_real = |index: usize| !is_blank(index) && !self.is_garbage(index, &mapped);
        let end = (0..entries.len())
            .rfind(|&index| is_real(index))
            .map_or(0, |last| last + 1);
        let header = self.examination.walk.image.header();
        let breaks_off = u64::from(header.nb_snapshots) > entries.len() as u64;
        let is_accepted = COUNT_CODES
            .iter()
            .any(|&code| self.found(code) && self.wishes.accepts(code));
        // Without one real entry, the zeros that a table begins with may be what became of the first.
        let is_table = end > 0 || is_accepted;
        let mut garbage = (0..entries.len()).filter(|&index| self.is_garbage(index, &mapped));
        if garbage.next().is_some_and(|first| first < end || !is_table) {
            let reason = "an entry in the middle of the table makes no sense, and so where those behind it begin is doubtful; \
                restore the table from a copy of the image";
            return Err(self.for_all(reason));
        }
        let indices: Vec<usize> = (0..end).filter(|&index| !is_blank(index)).collect();
        let is_complete = indices.len() == entries.len() && !breaks_off;
        if !is_complete && !is_accepted {
            self.may_leave_out(end, breaks_off, is_blank(end))?;
        }
        changes.gave_up |= !is_complete && is_accepted;
        let last = end.checked_sub(1).and_then(|last| entries.get(last));
        let table = HostOffset(header.snapshots_offset);
        let geometry = self.geometry();
        let start = geometry.cluster_at(table);
        let end_of = |last: &SnapshotEntry| last.offset.saturating_add(last.fixed.entry_bytes());
        let kept_end = last.map_or(table.0, end_of);
        let count = geometry.clusters_for(kept_end).saturating_sub(start.0);
        Ok(Kept {
            indices,
            clusters: ClusterRange { start, count },
        })
    }

    /// Whether what is not kept is known to have been nothing.
    fn may_leave_out(
        &self,
        end: usize,
        breaks_off: bool,
        ends_in_zeros: bool,
    ) -> Result<(), Reasons> {
        let is_beyond_limit = self.found(Code::SnapshotCountTooLarge);
        let has_tail = end < self.entries().len() || breaks_off;
        let has_end = end < self.entries().len()
            || (is_beyond_limit && self.found(Code::SnapshotTableTruncated));
        if has_tail && !(has_end && (ends_in_zeros || is_beyond_limit)) {
            let reason = "what follows the last entry that can be read may be a damaged snapshot; restore the table from a copy \
                of the image, or accept the loss of what cannot be read";
            return Err(self.for_all(reason));
        }
        if evidence::has_lost_sharers(self.examination, self.notes) {
            let reason = "clusters in use are counted for more trees than lead to them, so zeros may have been a snapshot; restore \
                the table from a copy of the image, or accept the loss";
            return Err(self.for_all(reason));
        }
        if self.notes.doubt() == Some(Doubt::CountsUnknown) {
            let reason = "stored refcounts are lost too, so nothing says that zeros were no snapshot; restore the table from a \
                copy of the image, or accept the loss";
            return Err(self.for_all(reason));
        }
        if evidence::may_be_cut_off(self.examination) {
            let reason = "the file ends before what its tables name, so the snapshot table may have been cut off too: find the \
                file's tail, or accept the loss";
            return Err(self.for_all(reason));
        }
        if evidence::has_leaks(self.examination, self.notes) {
            let reason = "some cluster is counted that nothing uses, and be it empty it may be the L1 table of a snapshot that is \
                zeros now; restore the table from a copy of the image, or accept the loss";
            return Err(self.for_all(reason));
        }
        if let Some(lost) = evidence::suspicion(self.examination, self.notes) {
            let reason = format!(
                "entries of zeros may have been snapshots: {lost}; restore the table from a copy of the image, or accept \
                 the loss"
            );
            return Err(self.for_all(&reason));
        }
        Ok(())
    }

    /// Whether every entry that stays has an ID and a name, and an L1 table: then its lengths are right, and those behind
    /// it begin where they seem to.
    fn reads_well(&self, kept: &Kept) -> bool {
        let mapped = self.mapped();
        kept.indices.iter().all(|index| {
            let entry = self.entries().get(*index);
            entry.is_some_and(has_text) && mapped.contains(index)
        })
    }

    /// Whether something else uses clusters of a snapshot's L1 table.
    fn has_contested_l1(&self) -> bool {
        let claims = self.examination.survey.claims.iter();
        let first = Tree::Snapshot(0);
        let of_snapshots =
            claims.filter(|claim| matches!(claim.place, Place::L1Table { tree } if tree >= first));
        // Thousands of them may share one long table.
        let ranges = ClusterRange::merged(of_snapshots.map(|claim| claim.clusters).collect());
        let mut clusters = ranges.into_iter().flat_map(ClusterRange::clusters);
        clusters.any(|cluster| self.examination.has_conflict(cluster))
    }

    /// New IDs for snapshots whose ID an earlier one has.
    fn renames(&self, kept: &Kept, has_new_table: bool) -> Renames {
        let mut renames = Renames::default();
        if !self.found(Code::SnapshotIdDuplicate) {
            return renames;
        }
        let kept_entries = || {
            let entries = kept.indices.iter();
            entries.filter_map(|&index| Some((index, self.entries().get(index)?)))
        };
        let mut used: BTreeSet<Vec<u8>> =
            kept_entries().map(|(_, entry)| entry.id.clone()).collect();
        let mut seen = BTreeSet::new();
        let mut numbers = Numbers::default();
        for (index, entry) in kept_entries() {
            if seen.insert(&entry.id) {
                continue;
            }
            let id = numbers.unused(&used, entry.id.len());
            renames.needs_table |= id.len() != entry.id.len();
            used.insert(id.clone());
            renames.ids.push((index, id));
        }
        // A new table makes the old one a leak for a while: not for the sake of a notice, where that may have to stay.
        let findings = &self.examination.notes.findings;
        let is_quiet = findings.count_of(Severity::Corruption) == 0
            && findings.count_of(Severity::Leak) == 0
            && self.reads_well(kept);
        if renames.needs_table && !has_new_table && !is_quiet {
            let geometry_is_kept = |(index, id): &(usize, Vec<u8>)| {
                let entry = self.entries().get(*index);
                entry.is_some_and(|entry| entry.id.len() == id.len())
            };
            renames.ids.retain(geometry_is_kept);
            renames.needs_table = false;
        }
        renames
    }

    /// Patches of IDs that are as long as those they take the place of.
    fn rename_in_place(&self, renames: &Renames) -> Vec<Patch> {
        let mut patches = Vec::new();
        for (index, id) in &renames.ids {
            let Some(entry) = self.entries().get(*index) else {
                continue;
            };
            let extra_data_bytes = u64::from(entry.fixed.extra_data_size);
            let id_offset = entry.offset + SNAPSHOT_FIXED_BYTES + extra_data_bytes;
            let stage = StageKind::CorrectEntries;
            let bytes = (id_offset..).zip(id);
            patches.extend(bytes.map(|(offset, &byte)| {
                Patch::byte(stage, Code::SnapshotIdDuplicate, offset, byte)
            }));
        }
        patches
    }

    fn plan_new_table(
        &self,
        kept: &Kept,
        is_contested: bool,
        renames: &Renames,
        changes: &mut Changes,
    ) -> io::Result<Result<(), Reasons>> {
        if !self.reads_well(kept) {
            let reason = "an entry has no ID or name that reads as one, or no L1 table, so its length may be what is damaged; \
                restore the table from a copy of the image";
            return Ok(Err(self.for_all(reason)));
        }
        if is_contested && self.has_contested_l1() {
            let reason = "something else uses the table's clusters and may have written to them";
            return Ok(Err(self.for_all(reason)));
        }
        let table = match self.encode_table(kept, renames)? {
            Ok(table) => table,
            Err(reasons) => return Ok(Err(reasons)),
        };
        let because = self.table_code();
        let no_room = |reason: String| Ok(Err(self.for_one(because, reason)));
        let geometry = self.geometry();
        let mut space = match Space::new(self.examination) {
            Ok(space) => space,
            Err(reason) => return no_room(reason),
        };
        let clusters = geometry.clusters_for(table.len() as u64);
        let Some(first) = space.take(clusters, 1) else {
            return no_room(space::no_room(self.examination));
        };
        let mut bytes = table;
        let whole = clusters.saturating_mul(geometry.cluster_bytes());
        bytes.resize(usize::try_from(whole).unwrap_or(bytes.len()), 0);
        changes.fresh.push(Fresh {
            cluster: first,
            bytes,
            because,
        });
        let count = u32::try_from(kept.indices.len()).unwrap_or(u32::MAX);
        let offset = geometry.offset_of(first).0;
        let stage = StageKind::SwitchPointers;
        changes.patches.extend([
            Patch::half_word(stage, because, NB_SNAPSHOTS_OFFSET, count),
            Patch::word(stage, because, SNAPSHOTS_OFFSET_OFFSET, offset),
        ]);
        let old = kept.clusters.clusters();
        let alone = old.filter(|&cluster| !self.examination.has_conflict(cluster));
        changes.released.extend(alone.map(ClusterRange::one));
        let covered = refcounts::cover(self.examination, &mut space, because, changes)?;
        match covered {
            Ok(()) => Ok(Ok(())),
            Err(reason) => no_room(reason),
        }
    }

    /// Less extra data than version 3 demands, or more than QEMU accepts.
    fn has_wrong_extra_data(&self, entry: &SnapshotEntry) -> bool {
        let size = entry.fixed.extra_data_size;
        let is_v3 = self.examination.walk.image.header().version == 3;
        (is_v3 && size < SNAPSHOT_V3_EXTRA_BYTES) || size > MAX_SNAPSHOT_EXTRA_BYTES
    }

    /// The finding a new table answers.
    fn table_code(&self) -> Code {
        let codes = [
            Code::SnapshotExtraDataTooLarge,
            Code::SnapshotEntryIncomplete,
            Code::SnapshotPhantom,
            Code::SnapshotIdDuplicate,
        ];
        let found = codes.into_iter().find(|&code| self.found(code));
        found.unwrap_or(Code::MetadataOverlap)
    }

    /// The entries that stay, each with all its bytes but for what is put right.
    fn encode_table(&self, kept: &Kept, renames: &Renames) -> io::Result<Result<Vec<u8>, Reasons>> {
        let mut table = Vec::new();
        let mut ids = renames.ids.iter().peekable();
        for &index in &kept.indices {
            let Some(entry) = self.entries().get(index) else {
                continue;
            };
            let new_id = ids.next_if(|(renamed, _)| *renamed == index);
            let id = new_id.map_or(&entry.id, |(_, id)| id);
            let extra_data = match self.extra_data(entry)? {
                Ok(extra_data) => extra_data,
                Err(reasons) => return Ok(Err(reasons)),
            };
            let encoded = entry.encode(&extra_data, id);
            table.extend(encoded.unwrap_or_default());
        }
        if table.len() as u64 > MAX_SNAPSHOT_TABLE_BYTES {
            return Ok(Err(
                self.for_all("the table would be larger than QEMU accepts")
            ));
        }
        Ok(Ok(table))
    }

    /// An entry's extra data as it should be: as it is, wherever it can be.
    fn extra_data(&self, entry: &SnapshotEntry) -> io::Result<Result<Vec<u8>, Reasons>> {
        let header = self.examination.walk.image.header();
        let size = entry.fixed.extra_data_size;
        if header.version == 3 && size < SNAPSHOT_V3_EXTRA_BYTES {
            // What QEMU takes the missing size for.
            let disk_bytes = header.size / SECTOR_BYTES * SECTOR_BYTES;
            let needed = self.geometry().l1_entries_needed(disk_bytes);
            if u64::from(entry.fixed.l1_size) < needed {
                let reason = "the L1 table is too small for the disk as it is now, so how large it was nobody knows";
                return Ok(Err(self.for_one(Code::SnapshotEntryIncomplete, reason)));
            }
            return Ok(Ok(encode_snapshot_extra(entry.vm_state_bytes, disk_bytes)));
        }
        let bytes = size.min(MAX_SNAPSHOT_EXTRA_BYTES);
        let mut extra_data = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let offset = entry.offset.saturating_add(SNAPSHOT_FIXED_BYTES);
        let image = self.examination.walk.image;
        image.read_into(HostOffset(offset), &mut extra_data)?;
        Ok(Ok(extra_data))
    }
}

/// New IDs, by index of the snapshot.
#[derive(Default)]
struct Renames {
    ids: Vec<(usize, Vec<u8>)>,
    /// One of them is not as long as the ID it takes the place of.
    needs_table: bool,
}

/// An ID, and neither in it nor in the name a character that no program writes there.
fn has_text(entry: &SnapshotEntry) -> bool {
    let is_text = |bytes: &[u8]| !bytes.iter().any(u8::is_ascii_control);
    !entry.id.is_empty() && is_text(&entry.id) && is_text(&entry.name)
}

/// Numbers that are handed out as IDs, each once.
#[derive(Default)]
struct Numbers {
    /// The next one to try, by how many digits it should have.
    next: BTreeMap<usize, u64>,
}

impl Numbers {
    /// The next number of this many digits that is no ID, or a longer one where there is none.
    fn unused(&mut self, used: &BTreeSet<Vec<u8>>, digits: usize) -> Vec<u8> {
        let zeros = u32::try_from(digits.saturating_sub(1)).unwrap_or(0);
        // Longer IDs than a number of 64 bits are not kept to.
        let first = 10_u64.checked_pow(zeros).unwrap_or(1);
        let next = self.next.entry(digits).or_insert(first);
        loop {
            let id = next.to_string().into_bytes();
            *next = next.saturating_add(1);
            if !used.contains(&id) || *next == u64::MAX {
                return id;
            }
        }
    }
}
