//! Clusters used by two owners of which only one may.
//!
//! Comes in: an examination. Goes out: changes. Never here: a write.

use std::io;

use super::RepairOptions;
use super::draft::Changes;
use crate::check::Examination;
use crate::storage::Storage;

/// What the examination calls for.
pub(super) fn part<S: Storage>(
    _examination: &Examination<'_, S>,
    _wishes: &RepairOptions,
) -> io::Result<Changes> {
    Ok(Changes::default())
}
