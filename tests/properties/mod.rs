//! Properties: what holds of any bytes at all. The fuzz targets (`fuzz/`) and the tests share them.
//!
//! | module | comes in | what holds |
//! |---|---|---|
//! | `parse` | any bytes | every decoder takes them, and what is encoded again is what was decoded |
//! | `check` | an image, or bytes | the check ends, and verdict, findings, coverage and model agree |
//! | `repair` | an image, or bytes | a repair is as rehearsed, never worse, and undone to the byte |
//! | `undo_file` | an undo file, or bytes | only what was written is accepted; what is accepted is put back and nothing else |
//! | `plan_json` | a plan's JSON, or bytes | a plan that says anything else is not the same plan |
//! | `given` | any bytes | makes the image of them |
//! | `fixed` | | the same on a fixed set and on `fuzz/regressions/` |
//!
//! Comes in: an input of a fuzzer, and [`Bounds`] to hold the work against. Goes out: nothing, or a panic that says which
//! promise is broken. Never here: a choice that the input does not make.

#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "inputs are small, and a property stops where it is broken"
)]

pub(crate) mod check;
mod disk;
#[cfg(test)]
mod fixed;
mod given;
pub(crate) mod parse;
pub(crate) mod plan_json;
pub(crate) mod repair;
pub(crate) mod undo_file;

/// What the work on an input may cost.
pub(crate) trait Bounds {
    /// Does the work, and holds what it cost against what an input of so many bytes may cost.
    fn hold<T>(&self, input_bytes: usize, work: impl FnOnce() -> T) -> T;
}
