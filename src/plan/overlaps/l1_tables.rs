//! An L1 table that two mappings use: all but one get a clone.
//!
//! Comes in: contested clusters. Goes out: clones, and snapshot table entries that name them. Never here: a change to the
//! header, because the active mapping keeps the original, or else the first snapshot does.
//!
//! A walk counts what such a table names once for each mapping, and those counts were raised in an earlier pass. A clone
//! refers to nothing that was not counted for it already.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::Work;
use super::contested::Contested;
use crate::check::Examination;
use crate::finding::{Code, OwnerKind};
use crate::qcow2::{ClusterRange, HostCluster, HostOffset, L1Entry, Place, Tree, words};
use crate::storage::Storage;

/// An L1 table as one mapping uses it.
struct User {
    tree: Tree,
    clusters: ClusterRange,
}

/// Clones shared L1 tables; returns the clusters that are not contested any more. The inner error says why nothing at all
/// can be done.
pub(super) fn separate<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
    work: &mut Work<'_>,
) -> io::Result<Result<BTreeSet<HostCluster>, String>> {
    let mut separated = BTreeSet::new();
    for (start, mut users) in tables(examination, contested) {
        let is_plain = users.iter().all(|user| is_only_shared(contested, user));
        users.sort_by_key(|user| user.tree);
        let others: Vec<(&User, u64)> = users
            .iter()
            .skip(1)
            .filter_map(|user| Some((user, switch_offset(examination, contested, user)?)))
            .collect();
        let clusters = others.iter().map(|(user, _)| user.clusters.count).sum();
        if !is_plain || others.len() + 1 < users.len() || work.may_clone(clusters).is_err() {
            continue;
        }
        for (user, switch_offset) in others {
            let bytes = clone_of(examination, start, user)?;
            let because = Code::MetadataOverlap;
            match work.write(user.clusters.count, 1, bytes, because) {
                Ok(offset) => work.switch(switch_offset, offset.0, because),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        let clusters = users.iter().flat_map(|user| user.clusters.clusters());
        separated.extend(clusters.filter(|&cluster| is_alone(contested, cluster)));
    }
    Ok(Ok(separated))
}

/// L1 tables that more than one mapping names, by their first cluster.
fn tables<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
) -> BTreeMap<HostCluster, Vec<User>> {
    let mut tables: BTreeMap<HostCluster, Vec<User>> = BTreeMap::new();
    for claim in &examination.survey.claims {
        if let (OwnerKind::L1Table, Place::L1Table { tree }) = (claim.kind, claim.place)
            && contested.contains(claim.clusters.start)
        {
            let clusters = claim.clusters;
            let users = tables.entry(clusters.start).or_default();
            users.push(User { tree, clusters });
        }
    }
    tables.retain(|_, users| users.len() > 1);
    tables
}

/// Whether no structure but L1 tables that begin at the same place uses a table's clusters.
fn is_only_shared(contested: &Contested, user: &User) -> bool {
    let start = user.clusters.start;
    user.clusters.clusters().all(|cluster| {
        !contested.contains(cluster)
            || contested.cases.get(&cluster).is_some_and(|case| {
                let mut structures = case.structures.iter();
                structures.all(|owner| owner.kind == OwnerKind::L1Table && owner.start == start)
            })
    })
}

/// Whether only L1 tables use a cluster.
fn is_alone(contested: &Contested, cluster: HostCluster) -> bool {
    let case = contested.cases.get(&cluster);
    case.is_some_and(|case| case.guests.is_empty() && case.packed.is_empty())
}

fn entries<S: Storage>(examination: &Examination<'_, S>, tree: Tree) -> u64 {
    match tree {
        Tree::Active => examination.walk.image.header().l1_size.into(),
        Tree::Snapshot(index) => {
            let snapshots = &examination.survey.snapshots;
            let entry = usize::try_from(index)
                .ok()
                .and_then(|index| snapshots.get(index));
            entry.map_or(0, |entry| entry.fixed.l1_size.into())
        }
    }
}

/// Where a snapshot's table is named, if that can be changed: in a snapshot table that is nobody else's, and only for a
/// table that is all there.
fn switch_offset<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
    user: &User,
) -> Option<u64> {
    let Tree::Snapshot(index) = user.tree else {
        return None;
    };
    let geometry = examination.walk.geometry;
    let entry = examination
        .survey
        .snapshots
        .get(usize::try_from(index).ok()?)?;
    let table = entry.fixed.l1_table_offset;
    let bytes = entries(examination, user.tree) * 8;
    let is_whole = geometry.admit_table(table, bytes) == Ok(user.clusters);
    let holder = geometry.cluster_at(HostOffset(entry.offset));
    let is_writable = entry.offset.is_multiple_of(8) && !contested.contains(holder);
    (is_whole && is_writable).then_some(entry.offset)
}

/// The table's bytes with every COPIED flag cleared, and zeros behind its last entry.
fn clone_of<S: Storage>(
    examination: &Examination<'_, S>,
    start: HostCluster,
    user: &User,
) -> io::Result<Vec<u8>> {
    let geometry = examination.walk.geometry;
    let bytes = entries(examination, user.tree) * 8;
    let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
    examination
        .walk
        .image
        .read_into(geometry.offset_of(start), &mut table)?;
    let mut clone: Vec<u8> = words(&table)
        .flat_map(|word| L1Entry(word).with_copied(false).0.to_be_bytes())
        .collect();
    let whole = user.clusters.count * geometry.cluster_bytes();
    clone.resize(usize::try_from(whole).unwrap_or(0), 0);
    Ok(clone)
}
