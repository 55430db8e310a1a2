//! A glance at an undo file: is it worth reading whole?
//!
//! Comes in: the last sectors of a file. Goes out: whether they look like those of a repair that was cut short. Never
//! here: proof; that takes the whole file (`reader`).

use super::block::Seal;
use super::{SECTOR_BYTES, UndoFile};
use crate::qcow2::u32_at;

/// What a finish seal has at byte 8.
const FINISHED: u32 = 2;

impl UndoFile<'_> {
    /// Whether a file that ends in `tail` may be of a repair that was begun and not finished. `tail` begins at a multiple
    /// of [`SECTOR_BYTES`] and has the last two whole sectors at least, where the file has as many.
    ///
    /// It says `false` of what no repair has committed, and of what a repair has finished; a damaged seal is looked into.
    pub fn may_be_committed(tail: &[u8]) -> bool {
        last_seal(tail).is_some_and(|seal| u32_at(seal, 8) != Some(FINISHED))
    }

    /// Whether a file that ends in such a `tail` seems to be of a repair that was finished. A damaged file may seem so.
    pub fn seems_finished(tail: &[u8]) -> bool {
        last_seal(tail).is_some_and(|seal| u32_at(seal, 8) == Some(FINISHED))
    }
}

/// The last sector that something was written to, if it is a seal.
fn last_seal(tail: &[u8]) -> Option<&[u8; SECTOR_BYTES]> {
    let (sectors, _cut) = tail.as_chunks::<SECTOR_BYTES>();
    let last = sectors
        .iter()
        .rfind(|sector| !Seal::is_unwritten_in(sector));
    last.filter(|seal| Seal::leaves_trace_in(seal))
}
