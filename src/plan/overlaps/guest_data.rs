//! Guest data that shares its cluster: all users but one get a copy of their own.
//!
//! Comes in: contested clusters and their users. Goes out: copies, and L2 entries switched to them. Never here: a change
//! to an L2 table that somebody else uses too; a move of a structure.
//!
//! Entries of different L2 tables that map the same guest cluster share it rightfully, a snapshot's with the active
//! mapping's: they move together, to one copy, or stay together.
//!
//! Compressed data moves only out of a structure (`compressed`).
//!
//! Who keeps the cluster: a structure of the format; else compressed data; else the guest cluster that cannot move, or
//! the first. Every choice leaves the same bytes everywhere and costs the same copies.

use std::collections::BTreeSet;
use std::slice::ChunkBy;

use super::contested::{Case, Contested, Guest, Structure};
use super::obstacles::may_switch;
use super::{Reason, TOO_MANY, Work, compressed};
use crate::check::Examination;
use crate::finding::{Code, OwnerKind};
use crate::qcow2::HostCluster;
use crate::storage::Storage;

/// All entries that map one guest cluster to a cluster.
type Group<'a> = &'a [Guest];

/// Gives guest data clusters of its own. `separated` clusters are no longer contested.
pub(super) fn separate<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
    separated: &BTreeSet<HostCluster>,
    work: &mut Work<'_>,
) -> Result<(), String> {
    let refcount_max = examination.walk.geometry.refcount_max();
    let mut moved_entries = BTreeSet::new();
    let rest = contested.cases.iter();
    for (&cluster, case) in rest.filter(|(cluster, _)| !separated.contains(cluster)) {
        let moved = who_moves(contested, cluster, case, refcount_max).and_then(|groups| {
            let packed = compressed::who_moves(examination, contested, case)?;
            let copies = compressed::copies_of(&packed).saturating_add(groups.len() as u64);
            work.may_copy(copies)?;
            Ok((groups, packed))
        });
        match moved {
            Ok((groups, packed)) => {
                for group in groups {
                    move_group(cluster, group, case.code, work)?;
                }
                for group in packed {
                    compressed::move_group(group, case.code, &mut moved_entries, work)?;
                }
            }
            Err(reason) => work.withhold(case.code, 1, reason),
        }
    }
    for (&code, &count) in &contested.beyond {
        work.withhold(code, count, TOO_MANY.into());
    }
    Ok(())
}

fn groups(case: &Case) -> ChunkBy<'_, Guest, fn(&Guest, &Guest) -> bool> {
    case.guests
        .chunk_by(|left, right| left.index == right.index)
}

/// The groups that move, or why the cluster is left as it is.
fn who_moves<'a>(
    contested: &Contested,
    cluster: HostCluster,
    case: &'a Case,
    refcount_max: u64,
) -> Result<Vec<Group<'a>>, Reason> {
    let movable = |group: &Group<'a>| may_move(contested, group, refcount_max);
    let mut groups: Vec<Group<'a>> = groups(case).collect();
    match case.structures.as_slice() {
        [] if case.packed.is_empty() => {
            let stuck = groups.iter().position(|group| movable(group).is_err());
            if !groups.is_empty() {
                groups.remove(stuck.unwrap_or(0));
            }
        }
        [one, other, ..] => return Err(two_structures(cluster, one, other)),
        [] | [_] => {}
    }
    if groups.is_empty() && case.packed.is_empty() {
        return Err("who uses the cluster could not be found out".into());
    }
    groups.iter().try_for_each(movable)?;
    Ok(groups)
}

fn two_structures(cluster: HostCluster, one: &Structure, other: &Structure) -> Reason {
    let is_l1_table = |structure: &Structure| structure.kind == OwnerKind::L1Table;
    if is_l1_table(one) && is_l1_table(other) && one.start == other.start {
        return "two mappings use one L1 table, and it cannot be cloned: it does not lie in the file as a whole, the \
                snapshot table that names it shares its own cluster with something else, or there are too many of them \
                for one repair"
            .into();
    }
    Reason {
        kind: format!("{}, {}", one.kind.name(), other.kind.name()),
        text: format!(
            "the {} and the {} both claim cluster {}, and it can only be one of them: find out which of the two reads \
             well, and restore the other or what refers to it",
            described(one),
            described(other),
            cluster.0
        ),
    }
}

/// Kind and place, once where they say the same.
fn described(structure: &Structure) -> String {
    let (kind, place) = (structure.kind.name(), structure.place.to_string());
    if place.contains(kind) {
        place
    } else {
        format!("{kind} ({place})")
    }
}

/// Why a group must stay where it is, if it must.
fn may_move(contested: &Contested, group: Group<'_>, refcount_max: u64) -> Result<(), Reason> {
    may_switch(contested, group.iter())?;
    if weight(group) > refcount_max {
        return Err("refcounts are too narrow for all who would share the copy".into());
    }
    Ok(())
}

fn weight(group: Group<'_>) -> u64 {
    let weights = group.iter().map(|guest| guest.weight);
    weights.fold(0, u64::saturating_add)
}

/// Copies a cluster for one guest cluster, and switches all entries that map it.
fn move_group(
    cluster: HostCluster,
    group: Group<'_>,
    because: Code,
    work: &mut Work<'_>,
) -> Result<(), String> {
    let count = weight(group);
    let offset = work.copy(cluster, count, because)?;
    for guest in group {
        let copied = guest.is_active && count == 1;
        let entry = guest.entry.moved_to(offset, copied);
        work.switch(guest.entry_offset, entry.0, because);
    }
    Ok(())
}
