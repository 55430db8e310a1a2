//! Large tables that are mostly hole, read where something is stored.
//!
//! Comes in: where the table is, and a buffer for it. Goes out: the buffer, filled up to the last byte that may be other
//! than zero. Never here: a question to the file system about tables so small that reading them is as cheap.

use std::io;

use crate::qcow2::{Geometry, is_zero};
use crate::storage::Storage;

/// Tables larger than this are asked about: the answer is worth much less than reading them.
const SMALL_TABLE_BYTES: u64 = 64 << 10;
/// Bytes that are read from the first stored one on, before the file system is asked again.
const FIRST_BYTES: usize = 64 << 10;
/// Where so many bytes at the end of what was read are zero, a hole may begin there: what a page of memory holds.
const PAGE_BYTES: usize = 4 << 10;

/// Whether tables of this image are read by the parts that are stored.
pub(super) fn are_read_by_parts(geometry: Geometry) -> bool {
    geometry.cluster_bytes() > SMALL_TABLE_BYTES
}

/// Fills `buffer` from `offset` on; gives how many of its bytes may be other than zero. Behind those it is not filled.
///
/// A table without holes takes one question and a few reads, each twice as long as the one before.
pub(super) fn read_stored(
    storage: &impl Storage,
    offset: u64,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let (mut done, mut filled, mut piece_bytes) = (0, 0, FIRST_BYTES);
    let mut may_be_hole = true;
    while done < buffer.len() {
        if may_be_hole {
            // Where the system cannot say, everything may be data.
            let here = offset.saturating_add(done as u64);
            let next = storage.next_data(here).unwrap_or(Some(here));
            let next = next.map_or(u64::MAX, |next| next.saturating_sub(offset));
            let next = usize::try_from(next).unwrap_or(usize::MAX);
            // No entry is cut in two.
            let next = next - next % PAGE_BYTES;
            let Some(hole) = buffer.get_mut(done..next.max(done)) else {
                return Ok(filled);
            };
            hole.fill(0);
            if !hole.is_empty() {
                piece_bytes = FIRST_BYTES;
            }
            done = done.max(next);
        }
        let end = done.saturating_add(piece_bytes).min(buffer.len());
        let Some(piece) = buffer.get_mut(done..end) else {
            return Ok(filled);
        };
        storage.read_at(offset.saturating_add(done as u64), piece)?;
        let tail = piece.len().saturating_sub(PAGE_BYTES);
        may_be_hole = is_zero(piece.get(tail..).unwrap_or_default());
        piece_bytes = piece_bytes.saturating_mul(2);
        done = end;
        filled = end;
    }
    Ok(filled)
}
