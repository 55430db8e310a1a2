//! What stands against a move.
//!
//! Comes in: entries that would have to change, or clusters to copy. Goes out: why not, if so. Never here: deciding who moves.

use super::Reason;
use super::contested::{Contested, Guest};
use crate::qcow2::Geometry;

/// Why some of these entries cannot be changed, if they cannot.
pub(super) fn may_switch<'a>(
    contested: &Contested,
    mut guests: impl Iterator<Item = &'a Guest> + Clone,
) -> Result<(), Reason> {
    let stuck = |guest: &Guest, why: &str| Reason {
        kind: why.to_owned(),
        text: format!(
            "the L2 table that would have to be changed (first: in cluster {}) {why}, which must be put right first",
            guest.table.0
        ),
    };
    let mut all = guests.clone();
    if let Some(guest) = all.find(|guest| contested.contains(guest.table)) {
        return Err(stuck(guest, "shares its own cluster with something else"));
    }
    if let Some(guest) = guests.find(|guest| guest.is_ambiguous) {
        return Err(stuck(guest, "serves two guest ranges"));
    }
    Ok(())
}

/// Whether what lies in clusters up to these ends is all in the file, and can be counted so often.
pub(super) fn may_copy(
    geometry: Geometry,
    ends: impl Iterator<Item = u64>,
    count: u64,
) -> Result<(), &'static str> {
    if ends.max() > Some(geometry.file_clusters()) {
        return Err("the compressed data reaches past the end of the file");
    }
    if count > geometry.refcount_max() {
        return Err("refcounts are too narrow for all who would share the copy");
    }
    Ok(())
}
