//! The dirty and corrupt bits of the header: a guard before a repair, and the truth after it.
//!
//! Comes in: a header, and what became of the image. Goes out: patches of the incompatible feature bits. Never here: any
//! other change.

use super::changes::Patch;
use super::{Mode, StageKind};
use crate::finding::Code;
use crate::qcow2::{Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};

/// Byte offset of the incompatible feature bits in a version 3 header.
const INCOMPATIBLE_FEATURES_OFFSET: u64 = 72;

/// Sets the corrupt bit, where the header has one.
pub(super) fn guard_patch(header: &Header) -> Option<Patch> {
    let has_bits = header.version == 3 && !header.is_corrupt();
    has_bits.then(|| {
        let features = header.incompatible_features | INCOMPATIBLE_CORRUPT;
        features_patch(StageKind::Guard, features)
    })
}

/// The incompatible feature bits as a repair is to leave them, where it is to write them at all.
pub(super) fn final_features(
    header: &Header,
    is_guarded: bool,
    is_consistent: bool,
    mode: Mode,
) -> Option<u64> {
    let features = if is_consistent && mode == Mode::All {
        header.incompatible_features & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT)
    } else {
        header.incompatible_features
    };
    let is_wanted = is_guarded || features != header.incompatible_features;
    (header.version == 3 && is_wanted).then_some(features)
}

/// A patch of the incompatible feature bits.
pub(super) fn features_patch(stage: StageKind, features: u64) -> Patch {
    let offset = INCOMPATIBLE_FEATURES_OFFSET;
    Patch::word(stage, Code::CorruptBitSet, offset, features)
}
