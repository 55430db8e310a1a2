//! Bitmaps: the directory without the bitmaps that cannot be believed, or the header without the extension.
//!
//! Comes in: an examination. Goes out: a new directory in new clusters, or the end of the bitmaps extension. Never here:
//! a write into a bitmap, its table or an old directory; dropping a bitmap that nothing is wrong with.
//!
//! One bad bitmap keeps QEMU from opening the whole image. A bitmap that is dropped costs one full backup in place of an
//! incremental one; a bitmap that is wrong costs the backup. So of two with one name neither stays, nor does one whose
//! clusters something else uses.
//!
//! The extension may lie across two sectors, so nothing must believe it while it changes: the autoclear bit is cleared
//! first and set last. A cut in between leaves bitmaps that count for nothing, which the next writer drops.

mod extension;
mod unclaimed;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;

use super::changes::{Changes, Fresh, Patch};
use super::notes::DraftNotes;
use super::space::{self, Space};
use super::{Overlaps, RepairOptions, StageKind, Withheld, refcounts};
use crate::check::{Examination, stretches};
use crate::finding::{Code, OwnerKind, Severity};
use crate::qcow2::{
    AUTOCLEAR_BITMAPS, BITMAPS_EXTENSION_BYTES, BitmapDirectoryEntry, BitmapsExtension,
    ClusterRange, DirectoryDecode, Extension, ExtensionArea, ExtensionKind, HostCluster,
    MAX_BITMAPS, words,
};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;
use crate::walk::bitmaps::{judge_extension, table_entries_walked, walk_bitmap};
use crate::walk::{Claim, Notes, Survey};

/// Byte offset of the autoclear feature bits in a version 3 header.
const AUTOCLEAR_FEATURES_OFFSET: u64 = 88;

/// A directory larger than this is not written over another.
const MAX_DIRECTORY_BYTES_IN_PLACE: u64 = 1 << 20;

/// Why nothing is done about bitmaps of which not all were walked.
const CUT_SHORT: &str = "the bitmap tables are together longer than what is walked";

/// Findings this pass may do something about.
const CODES: [Code; 10] = [
    Code::BitmapsExtensionMalformed,
    Code::BitmapDirectoryMalformed,
    Code::BitmapEntryInvalid,
    Code::BitmapNameDuplicate,
    Code::BitmapTableSizeWrong,
    Code::BitmapTablePastEnd,
    Code::BitmapTableEntryInvalid,
    Code::BitmapDataPastEnd,
    Code::BitmapsStale,
    Code::BitmapsAutoclearWithoutExtension,
];

/// Findings about all bitmaps at once.
const BROKEN: [Code; 2] = [
    Code::BitmapsExtensionMalformed,
    Code::BitmapDirectoryMalformed,
];

/// What the examination calls for.
pub(super) fn correct<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> io::Result<Changes> {
    if examination
        .walk
        .image
        .extensions()
        .find(ExtensionKind::Bitmaps)
        .is_none()
        && !CODES
            .iter()
            .any(|&code| examination.notes.findings.total_of(code).count > 0)
    {
        return Ok(Changes::default());
    }
    let repair = Repair {
        examination,
        wishes,
        drops_contested: wishes.overlaps == Overlaps::Clone,
        of_two_bitmaps: notes.doubt().map(|_| claimed_twice(examination)),
        of_other_structures: claimed_by_others(examination),
        leaked_once: OnceCell::new(),
    };
    let mut changes = Changes::default();
    let is_found = CODES.iter().any(|&code| repair.found(code));
    if (is_found || repair.has_contested_claim())
        && let Err(reason) = repair.plan_bitmaps(&mut changes)?
    {
        changes = Changes::default();
        changes.withheld = repair.for_all(&reason);
    }
    Ok(changes)
}

/// Clears the bit without bitmaps: the specification calls it an error. While something leaks, it may be all that is left
/// of them.
pub(super) fn clear_lone_bit<S: Storage>(examination: &Examination<'_, S>) -> Changes {
    let mut changes = Changes::default();
    let code = Code::BitmapsAutoclearWithoutExtension;
    let findings = &examination.notes.findings;
    let is_alone = findings.total_of(code).count > 0 && findings.count_of(Severity::Leak) == 0;
    if is_alone && !examination.has_conflict(HostCluster(0)) {
        let features = examination.walk.image.header().autoclear_features & !AUTOCLEAR_BITMAPS;
        let stage = StageKind::SuspendBitmaps;
        let patch = Patch::word(stage, code, AUTOCLEAR_FEATURES_OFFSET, features);
        changes.patches.push(patch);
    }
    changes
}

/// A bitmap as the directory lists it.
struct Listed {
    /// The entry's bytes, padding included.
    bytes: Vec<u8>,
    name: Vec<u8>,
    /// Nothing is wrong with it by itself.
    is_sound: bool,
    claims: Vec<Claim>,
    /// What an entry names that is wrong in anything but its table, and was not walked.
    unwalked: Vec<Claim>,
}

/// The directory, as far as it can be read.
#[derive(Default)]
struct Directory {
    clusters: Option<ClusterRange>,
    /// As many as the extension counts.
    listed: Vec<Listed>,
    /// What follows those, where it reads as bitmaps.
    extra: Vec<Listed>,
    /// It holds what the extension says, no more and no less.
    is_whole: bool,
    /// Not all of those counted were walked: together their tables are too long.
    is_cut_short: bool,
}

struct Repair<'a, 'e, S> {
    examination: &'a Examination<'e, S>,
    wishes: &'a RepairOptions,
    drops_contested: bool,
    /// Where something looks leaked: a user besides bitmaps may be a damaged pointer that meant it, and the bitmap be
    /// right. Then only what bitmaps claim twice tells against them.
    of_two_bitmaps: Option<ClusterSet>,
    /// A table that is said to be longer than it is lies over what follows it: that tells nothing against a bitmap.
    of_other_structures: ClusterSet,
    /// What is counted once and used by nobody, once somebody has asked.
    leaked_once: OnceCell<ClusterSet>,
}

const BITMAP_KINDS: [OwnerKind; 3] = [
    OwnerKind::BitmapDirectory,
    OwnerKind::BitmapTable,
    OwnerKind::BitmapData,
];

/// Clusters that structures other than bitmaps claim.
fn claimed_by_others<S: Storage>(examination: &Examination<'_, S>) -> ClusterSet {
    let clusters = ClusterSet::new();
    let claims = examination.survey.claims.iter();
    let others = claims.filter(|claim| !BITMAP_KINDS.contains(&claim.kind));
    for range in ClusterRange::merged(others.map(|claim| claim.clusters).collect()) {
        clusters.insert_run(range);
    }
    for table in &examination.survey.l2_tables {
        clusters.insert(table.cluster);
    }
    clusters
}

/// Clusters that bitmaps claim more than once.
fn claimed_twice<S: Storage>(examination: &Examination<'_, S>) -> ClusterSet {
    let twice = ClusterSet::new();
    let kinds = [OwnerKind::BitmapTable, OwnerKind::BitmapData];
    let claims = examination.survey.claims.iter();
    let of_bitmaps = claims.filter(|claim| kinds.contains(&claim.kind));
    for (clusters, depth) in stretches(of_bitmaps.map(|claim| claim.clusters)) {
        if depth > 1 {
            twice.insert_run(clusters);
        }
    }
    twice
}

impl<S: Storage> Repair<'_, '_, S> {
    fn found(&self, code: Code) -> bool {
        self.count_of(code) > 0
    }

    fn count_of(&self, code: Code) -> u64 {
        self.examination.notes.findings.total_of(code).count
    }

    /// A reason for each error of this pass; notices need none.
    fn for_all(&self, reason: &str) -> Vec<Withheld> {
        let errors = CODES
            .into_iter()
            .filter(|code| self.found(*code) && code.severity() > Severity::Notice);
        errors
            .map(|code| Withheld {
                code,
                count: self.count_of(code),
                reason: reason.to_owned(),
            })
            .collect()
    }

    /// The finding that a change answers.
    fn because(&self) -> Code {
        let found = CODES.into_iter().find(|&code| self.found(code));
        found.unwrap_or(Code::MetadataOverlap)
    }

    fn is_contested(&self, clusters: ClusterRange) -> bool {
        let mut clusters = clusters.clusters();
        clusters.any(|cluster| self.examination.has_conflict(cluster))
    }

    fn has_contested_claim(&self) -> bool {
        let kinds = [
            OwnerKind::BitmapDirectory,
            OwnerKind::BitmapTable,
            OwnerKind::BitmapData,
        ];
        let claims = self.examination.survey.claims.iter();
        let mut of_bitmaps = claims.filter(|claim| kinds.contains(&claim.kind));
        self.drops_contested
            && self.found(Code::MetadataOverlap)
            && of_bitmaps.any(|claim| self.goes_for(claim.clusters))
    }

    /// Whether a bitmap is not to be believed because something else uses one of these clusters.
    fn goes_for(&self, clusters: ClusterRange) -> bool {
        let is_believed_other = |cluster: HostCluster| {
            let twice = self.of_two_bitmaps.as_ref();
            let is_of_other = self.of_other_structures.contains(cluster);
            twice.map_or(!is_of_other, |twice| twice.contains(cluster))
        };
        self.drops_contested
            && clusters
                .clusters()
                .any(|cluster| self.examination.has_conflict(cluster) && is_believed_other(cluster))
    }

    /// Plans everything; the inner error says why nothing is planned.
    fn plan_bitmaps(&self, changes: &mut Changes) -> io::Result<Result<(), String>> {
        let image = self.examination.walk.image;
        if self.examination.notes.coverage.failure_count() > 0 {
            return Ok(Err("not every table could be read".to_owned()));
        }
        if self.examination.has_conflict(HostCluster(0)) {
            return Ok(Err(
                "something else uses the header's cluster too".to_owned()
            ));
        }
        let area = image.extensions();
        let mut found = area
            .extensions
            .iter()
            .filter(|extension| extension.kind == ExtensionKind::Bitmaps);
        let Some(extension) = found.next() else {
            return Ok(Ok(()));
        };
        if found.next().is_some() {
            return Ok(Err(
                "there are two bitmaps extensions, and which one is right nobody knows".to_owned(),
            ));
        }
        let is_live = image.header().has_consistent_bitmaps();
        let with_length = self.with_right_length(extension);
        if let Some(area) = with_length.as_ref().filter(|_| is_live)
            && self.is_sound_area(area)?
        {
            let stage = StageKind::CorrectEntries;
            let patch = Patch::half_word(
                stage,
                self.because(),
                extension.offset + 4,
                BITMAPS_EXTENSION_BYTES,
            );
            changes.patches.push(patch);
            return Ok(Ok(()));
        }
        if is_live && let Some(done) = self.mend_fields(extension, changes)? {
            return Ok(done);
        }
        let area = with_length.as_ref().unwrap_or(area);
        let extension = area.find(ExtensionKind::Bitmaps).unwrap_or(extension);
        let judged = judge_extension(self.examination.walk, extension);
        let directory = match judged {
            Ok(bitmaps) => self.read_directory(bitmaps)?,
            Err(_) => Directory::default(),
        };
        if directory.is_cut_short {
            return Ok(Err(CUT_SHORT.to_owned()));
        }
        if !is_live {
            let is_sound = directory.listed.iter().all(|bitmap| bitmap.is_sound);
            if is_sound {
                let claims = directory.listed.iter().flat_map(|bitmap| &bitmap.claims);
                self.release_unclaimed(directory.clusters, claims, changes);
            }
            self.remove_extension(area, extension, changes);
            return Ok(Ok(()));
        }
        self.plan_live(area, extension, &directory, changes)
    }

    /// Corrects a field of a broken extension, or says why nothing is done; nothing where it is not broken, or where its
    /// loss is accepted.
    fn mend_fields(
        &self,
        extension: &Extension,
        changes: &mut Changes,
    ) -> io::Result<Option<Result<(), String>>> {
        let mut broken = BROKEN
            .into_iter()
            .filter(|&code| self.found(code))
            .peekable();
        if broken.peek().is_none() || !extension.offset.is_multiple_of(8) {
            return Ok(None);
        }
        if let Some(corrected) = self.with_right_fields(extension)? {
            let patches = self.correct_fields(extension, corrected);
            changes.patches.extend(patches);
            return Ok(Some(Ok(())));
        }
        if broken.any(|code| self.wishes.accepts(code)) {
            changes.gave_up = true;
            return Ok(None);
        }
        Ok(Some(Err(format!(
            "the directory or what the header says of it is damaged, and nothing proves what it was: restore it from a copy \
             of the image, or drop what cannot be read with --accept-loss {}",
            self.because()
        ))))
    }

    fn autoclear(&self, stage: StageKind, is_set: bool) -> Patch {
        let features = self.examination.walk.image.header().autoclear_features;
        let features = if is_set {
            features | AUTOCLEAR_BITMAPS
        } else {
            features & !AUTOCLEAR_BITMAPS
        };
        Patch::word(stage, self.because(), AUTOCLEAR_FEATURES_OFFSET, features)
    }

    /// Reads the directory, and judges each bitmap by itself.
    fn read_directory(&self, bitmaps: BitmapsExtension) -> io::Result<Directory> {
        let walk = self.examination.walk;
        let (offset, bytes) = (bitmaps.directory_offset, bitmaps.directory_bytes);
        let mut directory = Directory::default();
        let Ok(clusters) = walk.geometry.admit_table(offset, bytes) else {
            return Ok(directory);
        };
        directory.clusters = Some(clusters);
        let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
        walk.image.read_into(offset, &mut content)?;
        let mut rest = content.as_slice();
        // What the check had, so that no bitmap is left out here that was walked there. Entries that are wrong in themselves
        // take nothing from the others.
        let mut budget = table_entries_walked(walk, rest, MAX_BITMAPS);
        let mut budget_of_invalid = budget;
        for index in 0..MAX_BITMAPS {
            let DirectoryDecode::Entry(entry, step) = BitmapDirectoryEntry::decode(rest) else {
                break;
            };
            let step = usize::try_from(step).unwrap_or(usize::MAX);
            let (mut survey, mut notes) = (Survey::default(), Notes::default());
            walk_bitmap(walk, index, &entry, &mut budget, &mut survey, &mut notes);
            if survey.is_cut_short {
                directory.is_cut_short |= index < bitmaps.bitmap_count;
            } else if notes.coverage.failure_count() > 0 {
                return Err(io::Error::other("a bitmap's table could not be read"));
            }
            let errors = notes.findings.count_of(Severity::Corruption);
            let unwalked = if notes.findings.total_of(Code::BitmapEntryInvalid).count > 0 {
                self.walk_invalid(index, &entry, &mut budget_of_invalid)
            } else {
                Vec::new()
            };
            let listed = Listed {
                bytes: rest.get(..step).unwrap_or(rest).to_vec(),
                name: entry.name,
                unwalked,
                is_sound: errors == 0 && notes.coverage.gap_count() == 0,
                claims: survey.claims,
            };
            if index < bitmaps.bitmap_count {
                directory.listed.push(listed);
            } else {
                directory.extra.push(listed);
            }
            rest = rest.get(step..).unwrap_or(&[]);
        }
        let count = u32::try_from(directory.listed.len()).unwrap_or(u32::MAX);
        directory.is_whole =
            count == bitmaps.bitmap_count && directory.extra.is_empty() && rest.is_empty();
        Ok(directory)
    }

    /// Which of the listed bitmaps stay: sound, the only one of their name, and their clusters nobody else's.
    fn stays(&self, directory: &Directory) -> Vec<bool> {
        let mut names: BTreeMap<&[u8], u32> = BTreeMap::new();
        for bitmap in &directory.listed {
            *names.entry(&bitmap.name).or_default() += 1;
        }
        let listed = directory.listed.iter();
        listed
            .map(|bitmap| {
                let mut claims = bitmap.claims.iter();
                let is_contested = claims.any(|claim| self.goes_for(claim.clusters));
                bitmap.is_sound && names.get(bitmap.name.as_slice()) == Some(&1) && !is_contested
            })
            .collect()
    }

    /// Bitmaps that are believed: the bad ones go.
    fn plan_live(
        &self,
        area: &ExtensionArea,
        extension: &Extension,
        directory: &Directory,
        changes: &mut Changes,
    ) -> io::Result<Result<(), String>> {
        if self.found(Code::BitmapTableSizeWrong) && !self.is_size_believed() {
            return Ok(Err(
                "the L1 table is not as long as the virtual disk needs, so the size of the disk may be what is damaged, and \
                 the bitmaps right: restore the header field, or remove the bitmaps"
                    .to_owned(),
            ));
        }
        let stays = self.stays(directory);
        let is_contested = directory.clusters.is_some_and(|all| self.goes_for(all));
        if directory.is_whole && !is_contested && stays.iter().all(|&stays| stays) {
            return Ok(Ok(()));
        }
        if !extension.offset.is_multiple_of(8) {
            return Ok(Err(
                "the extension does not lie at a multiple of eight bytes".to_owned(),
            ));
        }
        changes
            .patches
            .push(self.autoclear(StageKind::SuspendBitmaps, false));
        if directory.extra.iter().all(|bitmap| bitmap.is_sound) {
            let claims = directory.extra.iter().flat_map(|bitmap| &bitmap.claims);
            self.release_unclaimed(None, claims, changes);
        }
        let mut content = Vec::new();
        let mut count = 0_u32;
        for (bitmap, stays) in directory.listed.iter().zip(stays) {
            if stays {
                content.extend_from_slice(&bitmap.bytes);
                count += 1;
            } else {
                let claims = bitmap.claims.iter().map(|claim| claim.clusters);
                changes.released.extend(self.alone(claims));
                self.release_unclaimed(None, &bitmap.unwalked, changes);
            }
        }
        if count == 0 {
            changes.released.extend(self.alone(directory.clusters));
            self.remove_extension(area, extension, changes);
            return Ok(Ok(()));
        }
        self.switch_directory(extension, count, content, directory.clusters, changes)
    }

    /// Whether the L1 table bears out the size of the virtual disk, which bitmaps are measured by.
    fn is_size_believed(&self) -> bool {
        let header = self.examination.walk.image.header();
        let needed = self
            .examination
            .walk
            .geometry
            .l1_entries_needed(header.size);
        u64::from(header.l1_size) == needed
    }

    /// The clusters of ranges that nothing else uses.
    fn alone(&self, ranges: impl IntoIterator<Item = ClusterRange>) -> Vec<ClusterRange> {
        let clusters = ranges.into_iter().flat_map(ClusterRange::clusters);
        clusters
            .filter(|&cluster| !self.examination.has_conflict(cluster))
            .map(ClusterRange::one)
            .collect()
    }

    /// A new directory, and the extension that names it.
    ///
    /// It lies in new clusters. Where the file must not grow, because the very bitmaps to be dropped point past its end, it
    /// takes the place of the old one, which nothing believes while the autoclear bit is clear.
    fn switch_directory(
        &self,
        extension: &Extension,
        count: u32,
        content: Vec<u8>,
        old: Option<ClusterRange>,
        changes: &mut Changes,
    ) -> io::Result<Result<(), String>> {
        let geometry = self.examination.walk.geometry;
        let directory_bytes = content.len() as u64;
        let mut space = match Space::new(self.examination) {
            Ok(space) => space,
            Err(reason) => return Ok(Err(reason)),
        };
        let clusters = geometry.clusters_for(directory_bytes);
        let in_place = old.filter(|&old| {
            directory_bytes <= MAX_DIRECTORY_BYTES_IN_PLACE && !self.is_contested(old)
        });
        let first = match (space.take(clusters, 1), in_place) {
            (Some(first), _) => {
                changes.fresh.push(self.fresh(first, clusters, content));
                changes.released.extend(self.alone(old));
                first
            }
            (None, Some(old)) => {
                let offset = geometry.offset_of(old.start).0;
                changes
                    .patches
                    .extend(self.words_at(offset, words(&content)));
                old.start
            }
            (None, None) => return Ok(Err(space::no_room(self.examination))),
        };
        let data = BitmapsExtension {
            bitmap_count: count,
            reserved: 0,
            directory_bytes,
            directory_offset: geometry.offset_of(first),
        };
        let fields = self.words_at(extension.offset + 8, data.encode());
        changes.patches.extend(fields);
        changes
            .patches
            .push(self.autoclear(StageKind::ResumeBitmaps, true));
        if changes.fresh.is_empty() {
            return Ok(Ok(()));
        }
        refcounts::cover(self.examination, &mut space, self.because(), changes)
    }

    fn fresh(&self, cluster: HostCluster, clusters: u64, mut bytes: Vec<u8>) -> Fresh {
        let cluster_bytes = self.examination.walk.geometry.cluster_bytes();
        let whole = clusters.saturating_mul(cluster_bytes);
        bytes.resize(usize::try_from(whole).unwrap_or(bytes.len()), 0);
        Fresh {
            cluster,
            bytes,
            because: self.because(),
        }
    }

    /// Words from `offset` on, while nothing believes the bitmaps.
    fn words_at(&self, offset: u64, words: impl IntoIterator<Item = u64>) -> Vec<Patch> {
        let (stage, because) = (StageKind::SwitchPointers, self.because());
        let offsets = (offset..).step_by(8);
        let patches = offsets.zip(words);
        patches
            .map(|(offset, word)| Patch::word(stage, because, offset, word))
            .collect()
    }
}
