//! Compressed data that lies in a cluster of a structure, or below a table that is cloned: copies of the clusters it lies in.
//!
//! Comes in: entries that name compressed data. Goes out: copies, and the same entries for the same bytes elsewhere. Never
//! here: decompressing; a change to how far the data lies into its cluster, or how long it is.
//!
//! Data may lie across neighbouring clusters, so their copies are neighbours too. Nobody writes to compressed data in
//! place, so a copy of a whole cluster may hold bytes of others without harm.

use std::collections::{BTreeMap, BTreeSet};

use super::contested::{Case, Contested, Packed};
use super::obstacles::{may_copy, may_switch};
use super::{Reason, Work};
use crate::check::Examination;
use crate::finding::Code;
use crate::qcow2::{ClusterRange, Geometry, HostCluster, HostOffset};
use crate::storage::Storage;

/// All entries that name one guest cluster's compressed data at one place.
type Group<'a> = &'a [Packed];

/// The compressed data that leaves a cluster, or why it is left as it is. Only a structure is left by it.
pub(super) fn who_moves<'a, S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
    case: &'a Case,
) -> Result<Vec<Group<'a>>, Reason> {
    if case.structures.is_empty() {
        return Ok(Vec::new());
    }
    let geometry = examination.walk.geometry;
    let same = |left: &Packed, right: &Packed| {
        left.guest.index == right.guest.index
            && left.offset == right.offset
            && left.clusters == right.clusters
    };
    let groups: Vec<Group<'a>> = case.packed.chunk_by(same).collect();
    for group in &groups {
        may_switch(contested, group.iter().map(|packed| &packed.guest))?;
        let ends = group.iter().map(|packed| packed.clusters.end());
        may_copy(geometry, ends, weight(group))?;
    }
    Ok(groups)
}

fn weight(group: Group<'_>) -> u64 {
    let weights = group.iter().map(|packed| packed.guest.weight);
    weights.fold(0, u64::saturating_add)
}

/// How many clusters are copied for these.
pub(super) fn copies_of(groups: &[Group<'_>]) -> u64 {
    let each = groups.iter().filter_map(|group| group.first());
    each.fold(0, |sum, packed| sum.saturating_add(packed.clusters.count))
}

/// Copies what a group names, and switches its entries; once, however many clusters of it are contested.
pub(super) fn move_group(
    group: Group<'_>,
    because: Code,
    moved: &mut BTreeSet<u64>,
    work: &mut Work<'_>,
) -> Result<(), String> {
    let left: Vec<&Packed> = group
        .iter()
        .filter(|packed| moved.insert(packed.guest.entry_offset))
        .collect();
    let Some(first) = left.first() else {
        return Ok(());
    };
    let weights = left.iter().map(|packed| packed.guest.weight);
    let count = weights.fold(0, u64::saturating_add);
    let copies = copy(&[first.clusters], count, because, work)?;
    for packed in left {
        let offset = copies.of(work.geometry, packed.offset);
        let entry = packed
            .guest
            .entry
            .compressed_moved_to(offset, work.geometry);
        let entry = entry.ok_or_else(|| TOO_FAR.to_owned())?;
        work.switch(packed.guest.entry_offset, entry.0, because);
    }
    Ok(())
}

/// Why an entry cannot name a copy.
pub(super) const TOO_FAR: &str = "the file is too long for a compressed entry to name its end";

/// Where clusters were copied to.
pub(super) struct Copies(BTreeMap<HostCluster, HostCluster>);

impl Copies {
    /// The place of a byte in the copy.
    pub(super) fn of(&self, geometry: Geometry, offset: HostOffset) -> HostOffset {
        let cluster = geometry.cluster_at(offset);
        let copy = self.0.get(&cluster).copied().unwrap_or(cluster);
        let within = offset.0 - geometry.offset_of(cluster).0;
        HostOffset(geometry.offset_of(copy).0 + within)
    }
}

/// How often each cluster is lain in.
pub(super) fn users(extents: &[ClusterRange]) -> BTreeMap<HostCluster, u64> {
    let mut users = BTreeMap::new();
    for cluster in extents.iter().flat_map(|extent| extent.clusters()) {
        *users.entry(cluster).or_default() += 1_u64;
    }
    users
}

/// Copies all clusters that extents lie in, each counted `weight` times for each extent in it. Neighbours stay neighbours.
pub(super) fn copy(
    extents: &[ClusterRange],
    weight: u64,
    because: Code,
    work: &mut Work<'_>,
) -> Result<Copies, String> {
    let users: Vec<(HostCluster, u64)> = users(extents).into_iter().collect();
    let mut copies = BTreeMap::new();
    for run in users.chunk_by(|(left, _), (right, _)| left.0 + 1 == right.0) {
        let counts: Vec<u64> = run
            .iter()
            .map(|(_, users)| users.saturating_mul(weight))
            .collect();
        let first = work.take_counted(&counts)?;
        for (&(from, _), to) in run.iter().zip((first.0..).map(HostCluster)) {
            work.copy_to(from, to, because);
            copies.insert(from, to);
        }
    }
    Ok(Copies(copies))
}
