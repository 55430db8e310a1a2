//! Refcount blocks and the refcount table, built anew where they are damaged or missing.
//!
//! Comes in: an examination. Goes out: new blocks and a new table, and one switch of the header. Never here: a change to
//! a refcount block in place (that is `adjust.rs`).

use std::io;

use super::draft::Changes;
use super::space::Space;
use crate::check::Examination;
use crate::finding::Code;
use crate::storage::Storage;

/// Builds what is damaged or missing.
pub(super) fn rebuild<S: Storage>(_examination: &Examination<'_, S>) -> io::Result<Changes> {
    Ok(Changes::default())
}

/// Counts every cluster taken from `space`, before anything refers to it; with new blocks where there are none.
///
/// The inner error says why that cannot be done.
pub(super) fn cover<S: Storage>(
    _examination: &Examination<'_, S>,
    _space: &mut Space,
    _because: Code,
    _changes: &mut Changes,
) -> io::Result<Result<(), String>> {
    Ok(Ok(()))
}
