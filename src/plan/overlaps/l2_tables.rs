//! An L2 table that two L1 entries of different index name, so that it maps two guest ranges to the same clusters: every
//! further range gets a clone, with copies of all its data.
//!
//! Comes in: an examination. Goes out: clones, copies, and L1 entries switched to the clones. Never here: a clone that
//! shares anything with its original, so no count of what is there has to be raised: compressed data of two guest clusters
//! at one place would be an overlap again, so it is copied too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::contested::Contested;
use super::obstacles::may_copy;
use super::{MAX_REFERENCES, TOO_MANY, Work, compressed};
use crate::check::Examination;
use crate::finding::{Code, OwnerKind, Severity};
use crate::qcow2::{
    ClusterRange, HostCluster, HostOffset, L1Entry, L2Entry, Place, Tree, u64_at, words,
};
use crate::storage::Storage;
use crate::walk::l2_table::{Rules, Target};
use crate::walk::{L2Item, Notes};

const BECAUSE: Code = Code::L2TableShared;
/// L1 tables are read in pieces of this many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// An L1 entry that names a table.
#[derive(Clone, Copy)]
struct Name {
    /// Where it is in the file, in bytes.
    offset: u64,
    entry: L1Entry,
    is_active: bool,
}

/// The L1 entries that name a table, by L1 index.
type Names = BTreeMap<u64, Vec<Name>>;

/// A standard entry of a table, and the cluster it maps.
struct Mapping {
    within: usize,
    entry: L2Entry,
    cluster: HostCluster,
}

/// A compressed entry of a table, and the clusters its data lies in.
struct PackedMapping {
    within: usize,
    entry: L2Entry,
    offset: HostOffset,
    clusters: ClusterRange,
}

/// What a table maps.
#[derive(Default)]
struct Mappings {
    standard: Vec<Mapping>,
    packed: Vec<PackedMapping>,
}

impl Mappings {
    fn extents(&self) -> Vec<ClusterRange> {
        self.packed.iter().map(|packed| packed.clusters).collect()
    }
}

/// Clones tables that serve two ranges. The inner error says why nothing at all can be done.
pub(super) fn separate<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
    work: &mut Work<'_>,
) -> io::Result<Result<(), String>> {
    let mut references = 0_u64;
    let (mut tables, mut beyond) = (Vec::new(), 0);
    let items = examination.survey.l2_tables.iter();
    for item in items.filter(|item| item.is_shared_across_ranges) {
        references = references.saturating_add(item.weight());
        if references > MAX_REFERENCES {
            beyond += 1;
        } else {
            tables.push(item);
        }
    }
    work.withhold(BECAUSE, beyond, TOO_MANY.into());
    if tables.is_empty() {
        return Ok(Ok(()));
    }
    let names = names_of(examination, &tables)?;
    for item in tables {
        let Some(names) = names.get(&item.cluster) else {
            continue;
        };
        let bytes = read(examination, item.cluster)?;
        let mappings = mappings(examination, item, &bytes);
        let wanted = mappings.and_then(|mappings| {
            may_separate(examination, contested, item, names, &mappings, work)?;
            Ok(mappings)
        });
        match wanted {
            Ok(mappings) => {
                let others = names.iter().filter(|(index, _)| **index != item.l1_index);
                for (_, names) in others {
                    if let Err(reason) = give_clone(names, &bytes, &mappings, work) {
                        return Ok(Err(reason));
                    }
                }
            }
            Err(reason) => work.withhold(BECAUSE, 1, reason.into()),
        }
    }
    Ok(Ok(()))
}

fn read<S: Storage>(examination: &Examination<'_, S>, table: HostCluster) -> io::Result<Vec<u8>> {
    let walk = examination.walk;
    let mut bytes = vec![0; usize::try_from(walk.geometry.cluster_bytes()).unwrap_or(0)];
    walk.image.read_clusters(walk.geometry, table, &mut bytes)?;
    Ok(bytes)
}

/// The entries of a table, or why it cannot be cloned.
fn mappings<S: Storage>(
    examination: &Examination<'_, S>,
    item: &L2Item,
    bytes: &[u8],
) -> Result<Mappings, &'static str> {
    let rules = Rules::new(examination.walk);
    let mut notes = Notes::default();
    let mut mappings = Mappings::default();
    let mut is_external = false;
    rules.walk_table(item, bytes, Some(&mut notes), |mapped| {
        let within = mapped.index * rules.geometry.l2_entry_bytes();
        let within = usize::try_from(within).unwrap_or(usize::MAX);
        let entry = L2Entry(u64_at(bytes, within).unwrap_or(0));
        match mapped.target {
            Target::Standard {
                cluster: Ok(cluster),
                ..
            } => mappings.standard.push(Mapping {
                within,
                entry,
                cluster,
            }),
            Target::Compressed {
                extent,
                clusters: Ok(clusters),
            } => mappings.packed.push(PackedMapping {
                within,
                entry,
                offset: extent.offset,
                clusters,
            }),
            Target::Standard { .. } | Target::Compressed { .. } => {}
            Target::External { .. } => is_external = true,
        }
    });
    // A flag in a table no active entry names is not taken over.
    let flags = notes.findings.total_of(Code::CopiedFlagInactive).count;
    if notes.findings.count_of(Severity::Corruption) > flags {
        return Err(
            "entries of the table are damaged, and a clone of it would have the same damage",
        );
    }
    if is_external {
        return Err(
            "the table maps an external data file, which is not copied: decide which of its two guest ranges it belongs to",
        );
    }
    Ok(mappings)
}

/// Whether everything can be copied, and everything that has to be changed is nobody else's.
fn may_separate<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
    item: &L2Item,
    names: &Names,
    mappings: &Mappings,
    work: &Work<'_>,
) -> Result<(), &'static str> {
    let geometry = examination.walk.geometry;
    let clones = names
        .keys()
        .filter(|index| **index != item.l1_index)
        .count() as u64;
    work.may_clone(clones)?;
    let users = compressed::users(&mappings.extents());
    let copies = mappings.standard.len().saturating_add(users.len()) as u64;
    work.may_copy(clones.saturating_mul(copies))?;
    let most_names = names.values().map(Vec::len).max().unwrap_or(0) as u64;
    let most_users = users.values().copied().max().unwrap_or(0);
    let ends = mappings.packed.iter().map(|packed| packed.clusters.end());
    may_copy(geometry, ends, most_users.saturating_mul(most_names))?;
    let is_contested = |offset| contested.contains(geometry.cluster_at(HostOffset(offset)));
    let mut all = names.values().flatten();
    if contested.contains(item.cluster) || all.any(|name| is_contested(name.offset)) {
        return Err(
            "the table, or an L1 table that names it, shares its own cluster with something else, which must be put \
             right first",
        );
    }
    let fits = |names: &Vec<Name>| names.len() as u64 <= geometry.refcount_max();
    if !names.values().all(fits) {
        return Err("refcounts are too narrow for all who would share the clone");
    }
    Ok(())
}

/// Writes a clone of a table with copies of all its data, and has `names` name it.
fn give_clone(
    names: &[Name],
    bytes: &[u8],
    mappings: &Mappings,
    work: &mut Work<'_>,
) -> Result<(), String> {
    let count = names.len() as u64;
    let copied = count == 1 && names.iter().all(|name| name.is_active);
    let mut clone = bytes.to_vec();
    let mut put = |within: usize, entry: L2Entry| {
        if let Some(place) = clone.get_mut(within..within.saturating_add(8)) {
            place.copy_from_slice(&entry.0.to_be_bytes());
        }
    };
    for mapping in &mappings.standard {
        let offset = work.copy(mapping.cluster, count, BECAUSE)?;
        put(mapping.within, mapping.entry.moved_to(offset, copied));
    }
    let geometry = work.geometry;
    let elsewhere = compressed::copy(&mappings.extents(), count, BECAUSE, work)?;
    for packed in &mappings.packed {
        let offset = elsewhere.of(geometry, packed.offset);
        let moved = packed.entry.compressed_moved_to(offset, geometry);
        put(packed.within, moved.ok_or(compressed::TOO_FAR)?);
    }
    let offset = work.write(1, count, clone, BECAUSE)?;
    for name in names {
        let entry = name.entry.moved_to(offset, copied);
        work.switch(name.offset, entry.0, BECAUSE);
    }
    Ok(())
}

/// Every L1 entry that names one of the tables. An L1 table of two mappings is read once: it is contested anyway.
fn names_of<S: Storage>(
    examination: &Examination<'_, S>,
    tables: &[&L2Item],
) -> io::Result<BTreeMap<HostCluster, Names>> {
    let mut names: BTreeMap<HostCluster, Names> = tables
        .iter()
        .map(|item| (item.cluster, Names::new()))
        .collect();
    let mut seen = BTreeSet::new();
    for claim in &examination.survey.claims {
        if let (OwnerKind::L1Table, Place::L1Table { tree }) = (claim.kind, claim.place)
            && seen.insert((claim.clusters, tree == Tree::Active))
        {
            read_names(examination, claim.clusters, tree, &mut names)?;
        }
    }
    Ok(names)
}

fn read_names<S: Storage>(
    examination: &Examination<'_, S>,
    clusters: ClusterRange,
    tree: Tree,
    names: &mut BTreeMap<HostCluster, Names>,
) -> io::Result<()> {
    let walk = examination.walk;
    let geometry = walk.geometry;
    let entries = match tree {
        Tree::Active => Some(walk.image.header().l1_size),
        Tree::Snapshot(index) => usize::try_from(index)
            .ok()
            .and_then(|index| examination.survey.snapshots.get(index))
            .map(|entry| entry.fixed.l1_size),
    };
    let start = geometry.offset_of(clusters.start).0;
    let bytes = u64::from(entries.unwrap_or(0))
        .saturating_mul(8)
        .min(clusters.count.saturating_mul(geometry.cluster_bytes()));
    let mut piece = vec![0; usize::try_from(PIECE_BYTES.min(bytes)).unwrap_or(0)];
    let mut done = 0;
    while done < bytes {
        let length = usize::try_from((bytes - done).min(PIECE_BYTES)).unwrap_or(0);
        let Some(part) = piece.get_mut(..length) else {
            break;
        };
        walk.image.read_into(HostOffset(start + done), part)?;
        for (index, word) in (done / 8..).zip(words(part)) {
            let entry = L1Entry(word);
            let table = entry
                .l2_table_offset()
                .and_then(|offset| geometry.admit(offset).ok());
            if let Some(of_table) = table.and_then(|table| names.get_mut(&table)) {
                of_table.entry(index).or_default().push(Name {
                    offset: start + index * 8,
                    entry,
                    is_active: tree == Tree::Active,
                });
            }
        }
        done += PIECE_BYTES;
    }
    Ok(())
}
