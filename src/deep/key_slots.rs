//! The LUKS header's key slots, without a key.
//!
//! Comes in: the LUKS header. Goes out: a finding for each slot that no program would accept. Never here: the header's
//! place and magic, which the check judges; what is in a slot.

use crate::finding::{Code, Finding};
use crate::qcow2::{
    CryptMethod, ExtensionKind, HostOffset, LUKS_HEADER_BYTES, LUKS_SLOT_UNUSED, LUKS_SLOT_USED,
    LUKS_STRIPES, LuksHeader, LuksKeySlot, Place, SECTOR_BYTES, luks_payload_start, u64_at,
};
use crate::storage::Storage;
use crate::walk::{Notes, Walk};

/// Judges the key slots of an image that is encrypted with LUKS.
pub(super) fn judge_key_slots<S: Storage>(walk: Walk<'_, S>, notes: &mut Notes) {
    let pointer = walk
        .image
        .extensions()
        .find(ExtensionKind::EncryptionHeader);
    let Some(pointer) = pointer.filter(|_| walk.image.header().crypt_method() == CryptMethod::Luks)
    else {
        return;
    };
    let (Some(offset), Some(area_bytes)) = (u64_at(&pointer.data, 0), u64_at(&pointer.data, 8))
    else {
        return;
    };
    let mut header = [0; LUKS_HEADER_BYTES];
    // Where it cannot be read, or is none, the check has said so.
    let is_read = walk
        .image
        .read_into(HostOffset(offset), &mut header)
        .is_ok();
    if !is_read || LuksHeader::decode(&header).is_none() {
        return;
    }
    let payload_start = luks_payload_start(&header).unwrap_or(0);
    let slots = LuksKeySlot::decode_all(&header);
    for (index, slot) in slots.iter().enumerate() {
        let others = slots.get(..index).unwrap_or(&[]);
        let mut problems = problems(slot, area_bytes, payload_start);
        let overlaps = others
            .iter()
            .position(|other| slot.start < other.end && other.start < slot.end);
        if let Some(other) = overlaps {
            problems.push(format!("its key material overlaps slot {other}'s"));
        }
        if !problems.is_empty() {
            notes.push(
                Finding::new(Code::EncryptionKeySlotInvalid, Place::EncryptionHeader)
                    .detail(format!("slot {index}: {}", problems.join(", "))),
            );
        }
    }
}

/// What is wrong with a slot by itself.
fn problems(slot: &LuksKeySlot, area_bytes: u64, payload_start: u64) -> Vec<String> {
    let header_end = (LUKS_HEADER_BYTES as u64).next_multiple_of(SECTOR_BYTES);
    let mut problems = Vec::new();
    if ![LUKS_SLOT_USED, LUKS_SLOT_UNUSED].contains(&slot.state) {
        problems.push(format!("its state is {:#010x}", slot.state));
    }
    if slot.stripes != LUKS_STRIPES {
        problems.push(format!(
            "it has {} stripes instead of {LUKS_STRIPES}",
            slot.stripes
        ));
    }
    if slot.start < header_end {
        problems.push(format!(
            "its key material begins at {:#x}, in the header",
            slot.start
        ));
    }
    if slot.end > area_bytes {
        problems.push(format!(
            "its key material ends at {:#x}, past the area's end at {area_bytes:#x}",
            slot.end
        ));
    } else if slot.end > payload_start {
        problems.push(format!(
            "its key material ends at {:#x}, past the begin of the data at {payload_start:#x}",
            slot.end
        ));
    }
    problems
}
