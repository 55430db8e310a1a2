//! Refcount blocks and the refcount table, built anew where they are damaged or missing.
//!
//! Comes in: an examination. Goes out: new blocks, a new table that names them and the old blocks that are sound, and one
//! switch of the header. Never here: a change to a refcount block in place (that is `adjust.rs`), a count lowered: what
//! nothing refers to but is not blank keeps a count of one, as a leak, until it is proven worthless.

mod content;
mod contested;
mod garbage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use content::{block_content, table_content};
use garbage::Garbage;
pub(super) use garbage::garbage;

use super::changes::{Changes, Fresh, Patch};
use super::holes::Holes;
use super::notes::{Doubt, DraftNotes};
use super::space::{Space, no_room};
use super::{RepairOptions, StageKind, Withheld, remains};
use crate::check::Examination;
use crate::finding::Code;
use crate::qcow2::{
    ClusterRange, HostCluster, MAX_REFCOUNT_TABLE_BYTES, Place, RefcountTableEntry, words,
};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;

/// Header fields of the refcount table, in bytes from the start of the file.
const TABLE_OFFSET_FIELD: u64 = 48;
const TABLE_CLUSTERS_FIELD: u64 = 56;

/// Findings that stand for counts which have no sound block to be in.
const ANSWERED: [Code; 11] = [
    Code::RefcountTableUnaligned,
    Code::RefcountTableTooLarge,
    Code::RefcountTableMissing,
    Code::RefcountTablePastEnd,
    Code::RefcountBlockUnaligned,
    Code::RefcountBlockPastEnd,
    Code::RefcountBlockShared,
    Code::MetadataOverlap,
    Code::RefcountZero,
    Code::RefcountTooLow,
    Code::RefcountLeak,
];

/// Builds what is damaged or missing.
pub(super) fn rebuild<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> io::Result<Changes> {
    let mut changes = Changes::default();
    let findings = &examination.notes.findings;
    let Some(because) = ANSWERED
        .into_iter()
        .find(|&code| findings.total_of(code).count > 0)
    else {
        return Ok(changes);
    };
    let damage = Damage::find(examination)?;
    if damage.is_none() {
        return Ok(changes);
    }
    if let Some(patch) = contested::shrunk_table(examination, because) {
        changes.patches.push(patch);
        return Ok(changes);
    }
    changes.gave_up =
        notes.doubt() == Some(Doubt::LooksLeaked) && contested::tells_of_leaks(examination);
    if changes.gave_up && !wishes.accepts(Code::MetadataOverlap) {
        changes.withheld.push(Withheld {
            code: Code::MetadataOverlap,
            count: findings.total_of(Code::MetadataOverlap).count,
            reason: "something looks leaked, and the pointer that leads into the refcount structures may have meant it; moving them \
                would hide that; --accept-loss metadata-overlap moves them"
                .to_owned(),
        });
        return Ok(changes);
    }
    let built = match Space::new(examination) {
        Ok(mut space) => build(examination, &mut space, &damage, because, &mut changes)?,
        Err(reason) => Err(reason),
    };
    if let Err(reason) = built {
        changes = Changes::default();
        changes.withheld.push(Withheld {
            code: because,
            count: findings.total_of(because).count,
            reason,
        });
    }
    Ok(changes)
}

/// Counts every cluster taken from `space`, before anything refers to it; with new blocks where there are none.
///
/// The inner error says why that cannot be done; `changes` are then not to be used.
pub(super) fn cover<S: Storage>(
    examination: &Examination<'_, S>,
    space: &mut Space<'_>,
    because: Code,
    changes: &mut Changes,
) -> io::Result<Result<(), String>> {
    let damage = Damage::find(examination)?;
    build(examination, space, &damage, because, changes)
}

/// What of the refcount structures cannot be used.
struct Damage {
    /// The table itself has to go.
    has_lost_table: bool,
    /// Indices of refcount table entries that need a new block, because something in their range is to be counted.
    needy: BTreeSet<u64>,
    /// Indices of blocks that must not be used any more.
    unsound: BTreeSet<u64>,
    /// Entries to clear: they name nothing that is a block, and nothing needs one there.
    stray: Vec<u64>,
    /// Blocks that hold something else.
    garbage: Garbage,
    /// Clusters whose COPIED flag says that they had another user once.
    once_shared: ClusterSet,
}

impl Damage {
    fn is_none(&self) -> bool {
        !self.has_lost_table && self.needy.is_empty() && self.stray.is_empty()
    }

    fn find<S: Storage>(examination: &Examination<'_, S>) -> io::Result<Self> {
        let geometry = examination.walk.geometry;
        let per_block = geometry.refcount_block_entries();
        let survey = &examination.survey;
        let table_claim = table_claim(examination);
        let has_lost_table = survey.unknown_counts.all
            || table_claim.is_none()
            || examination
                .notes
                .findings
                .total_of(Code::RefcountTableTooLarge)
                .count
                > 0
            || examination
                .notes
                .findings
                .total_of(Code::RefcountTablePastEnd)
                .count
                > 0
            || table_claim.is_some_and(|claim| {
                claim
                    .clusters()
                    .any(|cluster| examination.has_conflict(cluster))
            });
        let mut unsound = survey.unknown_counts.blocks.clone();
        for block in &survey.refcount_blocks {
            if examination.has_conflict(block.cluster) {
                unsound.insert(block.index);
            }
        }
        let garbage = garbage(examination);
        let mut needy: BTreeSet<u64> = garbage.blocks.difference(&unsound).copied().collect();
        unsound.extend(&garbage.blocks);
        let sound = |index: &u64| {
            let found = survey
                .refcount_blocks
                .binary_search_by_key(index, |block| block.index);
            found.is_ok() && !unsound.contains(index)
        };
        let file_end = geometry.file_clusters();
        let runs = examination.differences().runs().iter();
        for run in runs.filter(|run| run.expected > 0 && run.clusters.start.0 < file_end) {
            let end = run.clusters.end().min(file_end);
            let indices = run.clusters.start.0 / per_block..end.div_ceil(per_block);
            needy.extend(indices.filter(|index| !sound(index)));
        }
        let mut damage = Self {
            has_lost_table,
            needy,
            unsound,
            stray: Vec::new(),
            garbage,
            once_shared: ClusterSet::new(),
        };
        damage.look_at_unknown_ranges(examination)?;
        damage.find_strays(examination)?;
        if !damage.needy.is_empty() && examination.has_unflagged {
            damage.once_shared = remains::unflagged(examination)?;
        }
        Ok(damage)
    }

    /// Where counts are not known, whatever is not blank needs one.
    fn look_at_unknown_ranges<S: Storage>(
        &mut self,
        examination: &Examination<'_, S>,
    ) -> io::Result<()> {
        let geometry = examination.walk.geometry;
        let per_block = geometry.refcount_block_entries();
        let block_bytes = per_block.saturating_mul(geometry.cluster_bytes());
        if !self.has_lost_table {
            let unsound = self.unsound.iter().copied();
            let missing = unsound.filter(|index| !self.needy.contains(index));
            let mut found = Vec::new();
            let mut holes = Holes::new(examination.walk.image.storage());
            for index in missing {
                let start = index.saturating_mul(block_bytes);
                // In order, so what follows lies behind the end as well.
                if start >= geometry.file_bytes() {
                    break;
                }
                if holes.next_stored(start)? < start.saturating_add(block_bytes) {
                    found.push(index);
                }
            }
            self.needy.extend(found);
            return Ok(());
        }
        let mut offset = 0;
        while let Some(data) = examination.walk.image.storage().next_data(offset)? {
            let index = data / block_bytes;
            self.needy.insert(index);
            offset = index.saturating_add(1).saturating_mul(block_bytes);
        }
        // Blocks that are sound stay in use, whatever happens to the table.
        let sound = examination.survey.refcount_blocks.iter();
        let sound = sound.filter(|block| !self.unsound.contains(&block.index));
        for block in sound {
            self.needy.remove(&block.index);
        }
        Ok(())
    }

    /// Entries of a sound table that name no block of this file, where none is needed.
    fn find_strays<S: Storage>(&mut self, examination: &Examination<'_, S>) -> io::Result<()> {
        let findings = &examination.notes.findings;
        let wild = [Code::RefcountBlockPastEnd, Code::RefcountBlockUnaligned];
        let is_wild = wild.iter().any(|&code| findings.total_of(code).count > 0);
        let Some(claim) = table_claim(examination).filter(|_| is_wild && !self.has_lost_table)
        else {
            return Ok(());
        };
        let geometry = examination.walk.geometry;
        let bytes = (claim.count * geometry.cluster_bytes()).min(MAX_REFCOUNT_TABLE_BYTES);
        let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let image = examination.walk.image;
        image.read_into(geometry.offset_of(claim.start), &mut table)?;
        for (index, word) in (0_u64..).zip(words(&table)) {
            let offset = RefcountTableEntry(word).refcount_block_offset();
            let is_wild = offset.is_some_and(|offset| geometry.admit(offset).is_err());
            if is_wild && !self.needy.contains(&index) {
                self.stray.push(index);
            }
        }
        Ok(())
    }
}

/// How many clusters a refcount table for this file has at least.
fn needed_table_cluster_count<S: Storage>(examination: &Examination<'_, S>) -> u64 {
    let geometry = examination.walk.geometry;
    let per_block = geometry.refcount_block_entries();
    let entries = geometry.file_clusters().div_ceil(per_block);
    geometry.clusters_for(entries.saturating_mul(8))
}

/// The clusters of the refcount table that hold the entries which this file needs.
fn needed_table_clusters<S: Storage>(examination: &Examination<'_, S>) -> Range<u64> {
    let clusters = needed_table_cluster_count(examination);
    table_claim(examination).map_or(0..0, |claim| {
        let end = claim.start.0.saturating_add(clusters);
        claim.start.0..end.min(claim.end())
    })
}

/// The refcount table's clusters, where it has any.
fn table_claim<S: Storage>(examination: &Examination<'_, S>) -> Option<ClusterRange> {
    let mut claims = examination.survey.claims.iter();
    let claim = claims.find(|claim| claim.place == Place::RefcountTable)?;
    Some(claim.clusters)
}

/// New blocks, and the table that names them.
#[derive(Default)]
struct Structure {
    blocks: BTreeMap<u64, HostCluster>,
    table: Option<ClusterRange>,
}

fn build<S: Storage>(
    examination: &Examination<'_, S>,
    space: &mut Space<'_>,
    damage: &Damage,
    because: Code,
    changes: &mut Changes,
) -> io::Result<Result<(), String>> {
    let geometry = examination.walk.geometry;
    let structure = match place(examination, space, damage) {
        Ok(structure) => structure,
        Err(reason) => return Ok(Err(reason)),
    };
    if structure.table.is_some() && examination.has_conflict(HostCluster(0)) {
        return Ok(Err(
            "something else uses the header's cluster too, so no new refcount table can be named there"
                .to_owned(),
        ));
    }
    let taken: BTreeMap<HostCluster, u64> = space.taken().iter().copied().collect();
    count_in_old_blocks(examination, &structure, &taken, because, changes);
    let old_table = table_claim(examination);
    let mut released = replaced(examination, &structure);
    for (&index, &cluster) in &structure.blocks {
        let bytes = block_content(examination, damage, index, &taken, &released)?;
        changes.fresh.push(Fresh {
            cluster,
            bytes,
            because,
        });
    }
    let Some(table) = structure.table else {
        let table_offset = old_table.map_or(0, |claim| geometry.offset_of(claim.start).0);
        for index in &damage.stray {
            let offset = table_offset + index * 8;
            let patch = Patch::word(StageKind::CorrectEntries, because, offset, 0);
            changes.patches.push(patch);
        }
        return Ok(Ok(()));
    };
    changes.fresh.push(Fresh {
        cluster: table.start,
        bytes: table_content(examination, damage, &structure, table),
        because,
    });
    let switch = StageKind::SwitchRefcounts;
    let offset = geometry.offset_of(table.start).0;
    let clusters = u32::try_from(table.count).unwrap_or(u32::MAX);
    changes.patches.extend([
        Patch::word(switch, because, TABLE_OFFSET_FIELD, offset),
        Patch::half_word(switch, because, TABLE_CLUSTERS_FIELD, clusters),
    ]);
    // What is in a block that is none may be somebody's: it is looked through like every other leak.
    let blocks = examination.survey.refcount_blocks.iter();
    let garbage = blocks.filter(|block| damage.garbage.blocks.contains(&block.index));
    for block in garbage {
        released.remove(&block.cluster);
    }
    let released = released.into_keys().map(ClusterRange::one);
    changes.released.extend(released);
    Ok(Ok(()))
}

/// What the new structures take the place of, and how often each cluster of it was used for that.
fn replaced<S: Storage>(
    examination: &Examination<'_, S>,
    structure: &Structure,
) -> BTreeMap<HostCluster, u64> {
    let mut released: BTreeMap<HostCluster, u64> = BTreeMap::new();
    if structure.table.is_some() {
        let replaced = examination.survey.refcount_blocks.iter();
        let replaced = replaced.filter(|block| structure.blocks.contains_key(&block.index));
        let replaced = replaced.map(|block| block.cluster);
        // What lies behind the entries that are needed may never have been a part of it.
        let table = needed_table_clusters(examination).map(HostCluster);
        for cluster in table.chain(replaced) {
            *released.entry(cluster).or_default() += 1;
        }
    }
    released
}

/// Finds room for every block that is needed, those included that count the new blocks and the new table.
fn place<S: Storage>(
    examination: &Examination<'_, S>,
    space: &mut Space<'_>,
    damage: &Damage,
) -> Result<Structure, String> {
    let geometry = examination.walk.geometry;
    let survey = &examination.survey;
    let is_sound = |index: u64| {
        let found = survey
            .refcount_blocks
            .binary_search_by_key(&index, |block| block.index);
        found.is_ok() && !damage.unsound.contains(&index)
    };
    let mut structure = Structure::default();
    let mut needed = damage.needy.clone();
    loop {
        for (cluster, _) in space.taken() {
            let index = cluster.0 / geometry.refcount_block_entries();
            if !is_sound(index) {
                needed.insert(index);
            }
        }
        let missing: Vec<u64> = needed
            .iter()
            .copied()
            .filter(|index| !structure.blocks.contains_key(index))
            .collect();
        for &index in &missing {
            let cluster = space
                .take_for_counts(1)
                .ok_or_else(|| no_room(examination))?;
            structure.blocks.insert(index, cluster);
        }
        let is_table_needed = damage.has_lost_table || !structure.blocks.is_empty();
        let last_old = survey.refcount_blocks.iter().map(|block| block.index).max();
        let last = last_old.max(structure.blocks.keys().next_back().copied());
        let table_bytes = (last.unwrap_or(0) + 1).saturating_mul(8);
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err("a refcount table for this file would be larger than 8 MiB".to_owned());
        }
        let clusters = geometry.clusters_for(table_bytes);
        let fits = structure.table.is_some_and(|table| table.count >= clusters);
        if is_table_needed && !fits {
            if let Some(small) = structure.table {
                space.forget(small.start.0..small.end());
            }
            let start = space
                .take_for_counts(clusters)
                .ok_or_else(|| no_room(examination))?;
            structure.table = Some(ClusterRange {
                start,
                count: clusters,
            });
        } else if missing.is_empty() {
            return Ok(structure);
        }
    }
}

/// Counts of new clusters in the blocks that stay.
fn count_in_old_blocks<S: Storage>(
    examination: &Examination<'_, S>,
    structure: &Structure,
    taken: &BTreeMap<HostCluster, u64>,
    because: Code,
    changes: &mut Changes,
) {
    let geometry = examination.walk.geometry;
    let per_block = geometry.refcount_block_entries();
    let blocks = &examination.survey.refcount_blocks;
    for (cluster, &count) in taken {
        let index = cluster.0 / per_block;
        let old = blocks.binary_search_by_key(&index, |block| block.index);
        let old = old.ok().and_then(|at| blocks.get(at));
        if let Some(block) = old.filter(|_| !structure.blocks.contains_key(&index)) {
            changes.patches.push(Patch::refcount(
                StageKind::RaiseRefcounts,
                because,
                geometry.offset_of(block.cluster).0,
                geometry.refcount_order(),
                cluster.0 % per_block,
                count.min(geometry.refcount_max()),
            ));
        }
    }
}
