//! A table of any length, read in pieces.
//!
//! Comes in: where the table is. Goes out: its pieces, in order, but for those that lie in a hole of the file; how much of
//! all tables is walked. Never here:
//! more than one piece in memory; a hole looked through; what the words mean.

use std::io;

use super::Walk;
use crate::qcow2::{ClusterRange, Geometry, HostOffset, is_zero};
use crate::storage::Storage;

/// Bytes of a piece.
const PIECE_BYTES: u64 = 1 << 20;

/// How many entries of tables are walked: twice those there are, so many more that lie over one another, and never more than
/// `most`.
pub(super) fn entries_walked(
    geometry: Geometry,
    tables: Vec<ClusterRange>,
    overlapping: u64,
    most: u64,
) -> u64 {
    let entries_in_cluster = geometry.cluster_bytes() / 8;
    ClusterRange::merged(tables)
        .iter()
        .map(|range| range.count.saturating_mul(entries_in_cluster))
        .fold(0, u64::saturating_add)
        .saturating_mul(2)
        .saturating_add(overlapping)
        .min(most)
}

/// Reads a table of `bytes`, a multiple of 8, piece by piece, as long as `each` wants more. It is told how many bytes of the
/// table come before the piece.
///
/// Only where a piece turns out to be all zeros is the file system asked how far they go: most tables are in no hole.
pub(super) fn for_each_piece<S: Storage>(
    walk: Walk<'_, S>,
    table: HostOffset,
    bytes: u64,
    mut each: impl FnMut(u64, io::Result<&[u8]>) -> bool,
) {
    let mut buffer = vec![0; usize::try_from(bytes.min(PIECE_BYTES)).unwrap_or(0)];
    let mut done = 0;
    while done < bytes {
        let piece_bytes = (bytes - done).min(PIECE_BYTES);
        let Some(piece) = buffer.get_mut(..usize::try_from(piece_bytes).unwrap_or(0)) else {
            return;
        };
        let read = walk
            .image
            .read_into(HostOffset(table.0.saturating_add(done)), piece);
        let is_blank = read.is_ok() && is_zero(piece);
        if !each(done, read.map(|()| &*piece)) {
            return;
        }
        done += piece_bytes;
        if is_blank && done < bytes {
            let next = walk
                .image
                .storage()
                .next_data(table.0.saturating_add(done))
                .map(|next| next.unwrap_or(u64::MAX));
            // Where the system cannot say, everything may be data.
            let next = next.map_or(done, |next| next.saturating_sub(table.0));
            done = done.max(next - next % 8);
        }
    }
}
