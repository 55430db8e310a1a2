//! Encryption header.
//!
//! Checks: the method, its header's pointer, and that the LUKS header fits the length the pointer gives. No key is
//! needed: all of this is plain text. Collects: the encryption header's claim. Never here: decryption.

use super::{Notes, Survey, Walk};
use crate::coverage::Gap;
use crate::finding::{Code, Finding, OwnerKind};
use crate::qcow2::{
    CryptMethod, ExtensionKind, HostOffset, LUKS_HEADER_BYTES, LuksHeader, Place, Refusal, u64_at,
};
use crate::storage::Storage;

const CRYPT_METHOD: Place = Place::Header {
    field: "crypt_method",
};

/// Judges the encryption method and claims the encryption header.
pub(super) fn walk_encryption_header<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let method = walk.image.header().crypt_method();
    let pointer = walk
        .image
        .extensions()
        .find(ExtensionKind::EncryptionHeader);
    if let CryptMethod::Unknown(number) = method {
        notes.push(Finding::new(Code::CryptMethodUnknown, CRYPT_METHOD).word(number.into()));
    }
    match (method, pointer) {
        (CryptMethod::Luks, None) => {
            notes.push(Finding::new(Code::EncryptionHeaderMissing, CRYPT_METHOD));
            notes.gap(Gap::refused(
                Place::EncryptionHeader,
                "the LUKS header cannot be located",
            ));
        }
        (_, None) => {}
        (_, Some(pointer)) => {
            let place = Place::HeaderExtension {
                offset: pointer.offset,
            };
            if method != CryptMethod::Luks {
                notes.push(Finding::new(Code::EncryptionHeaderUnexpected, place));
            }
            let is_luks = method == CryptMethod::Luks;
            claim_encryption_header(walk, &pointer.data, is_luks, survey, notes);
        }
    }
}

/// An encryption header's place, as its pointer gives it.
#[derive(Clone, Copy)]
struct Pointer {
    offset: HostOffset,
    bytes: u64,
}

fn claim_encryption_header<S: Storage>(
    walk: Walk<'_, S>,
    pointer: &[u8],
    is_luks: bool,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let (Some(offset), Some(bytes), 16) = (u64_at(pointer, 0), u64_at(pointer, 8), pointer.len())
    else {
        let detail = format!("its pointer has {} bytes instead of 16", pointer.len());
        return refuse(Code::EncryptionHeaderMalformed, detail, notes);
    };
    let pointer = Pointer {
        offset: HostOffset(offset),
        bytes,
    };
    match walk.geometry.admit_clusters(pointer.offset, bytes) {
        Err(Refusal::Unaligned) => refuse(
            Code::EncryptionHeaderMalformed,
            format!("its offset {} is not at a cluster boundary", pointer.offset),
            notes,
        ),
        Err(Refusal::PastEnd) => refuse(
            Code::EncryptionHeaderPastEnd,
            format!("{bytes} bytes at {}", pointer.offset),
            notes,
        ),
        Ok(given) => {
            // What the key slots need beyond the pointer's length is not free for others.
            let needed = if is_luks {
                judge_luks_header(walk, pointer, notes)
            } else {
                0
            };
            let wider = walk
                .geometry
                .admit_clusters(pointer.offset, bytes.max(needed));
            let clusters = wider.unwrap_or(given);
            if clusters.count > 0 {
                survey.claim(
                    clusters,
                    OwnerKind::EncryptionHeader,
                    Place::EncryptionHeader,
                );
            }
        }
    }
}

fn refuse(code: Code, detail: String, notes: &mut Notes) {
    let place = Place::EncryptionHeader;
    notes.push(Finding::new(code, place).detail(detail.clone()));
    notes.gap(Gap::refused(place, detail));
}

/// Looks at the LUKS header; returns the bytes it needs, 0 where it cannot be read.
fn judge_luks_header<S: Storage>(walk: Walk<'_, S>, pointer: Pointer, notes: &mut Notes) -> u64 {
    let place = Place::EncryptionHeader;
    let mut bytes = [0; LUKS_HEADER_BYTES];
    if let Err(error) = walk.image.read_into(pointer.offset, &mut bytes) {
        notes.gap(Gap::unreadable(place, &error));
        return 0;
    }
    let Some(header) = LuksHeader::decode(&bytes) else {
        notes.push(
            Finding::new(Code::EncryptionHeaderMalformed, place)
                .detail("the LUKS magic and version are missing"),
        );
        return 0;
    };
    let needed = header.bytes();
    if pointer.bytes < needed {
        let detail = format!(
            "its pointer gives it {} bytes, its key slots need {needed}",
            pointer.bytes
        );
        refuse(Code::EncryptionHeaderMalformed, detail, notes);
    }
    needed
}
