//! The area of a LUKS header: either the caller's bytes, or an invented one that has the right
//! look (magic, names, key slots) and a key nobody has.

use super::canvas::{Canvas, filler};

const KEY_BYTES: u64 = 64;
const PARTITION_HEADER_BYTES: u64 = 592;
const KEY_SLOT_COUNT: u64 = 8;
const KEY_SLOT_ENABLED: u32 = 0x00ac_71f3;
const KEY_SLOT_DISABLED: u32 = 0x0000_dead;

#[derive(Clone, Debug)]
pub(super) enum LuksArea {
    /// Clusters of the area.
    Invented(u64),
    Given(Vec<u8>),
}

/// Where the area ended up.
#[derive(Clone, Copy)]
pub(super) struct LuksPlace {
    pub(super) offset: u64,
    pub(super) length_bytes: u64,
}

impl LuksArea {
    pub(super) fn write(&self, canvas: &mut Canvas) -> LuksPlace {
        let header = match self {
            Self::Invented(cluster_count) => invent(cluster_count * canvas.cluster_size()),
            Self::Given(header) => header.clone(),
        };
        let length_bytes = header.len() as u64;
        let offset = canvas.claim_metadata(length_bytes);
        canvas.put(offset, &header);
        LuksPlace {
            offset,
            length_bytes,
        }
    }
}

/// The written length leaves out some bytes of the last cluster, as real ones do: the area is
/// rounded up to clusters, the length is not.
fn invent(area_bytes: u64) -> Vec<u8> {
    assert!(
        area_bytes > PARTITION_HEADER_BYTES,
        "a LUKS header needs more clusters"
    );
    let length_bytes = (area_bytes - 80).max(PARTITION_HEADER_BYTES);
    let mut header = vec![0; PARTITION_HEADER_BYTES as usize];
    let mut put =
        |offset: usize, bytes: &[u8]| header[offset..][..bytes.len()].copy_from_slice(bytes);
    put(0, b"LUKS\xba\xbe\x00\x01");
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &sectors(length_bytes)); // payload-offset
    put(108, &(KEY_BYTES as u32).to_be_bytes());
    put(112, &filler("digest", 20));
    put(132, &filler("salt", 32));
    put(164, &1000_u32.to_be_bytes()); // iterations of the digest
    put(168, b"5f0a9c3e-71d2-4c55-9b0e-0f6d2a1b7c48");
    let key_material_bytes = (length_bytes - PARTITION_HEADER_BYTES) / KEY_SLOT_COUNT;
    for slot in 0..KEY_SLOT_COUNT {
        let slot_offset = 208 + slot as usize * 48;
        let state = if slot == 0 {
            KEY_SLOT_ENABLED
        } else {
            KEY_SLOT_DISABLED
        };
        put(slot_offset, &state.to_be_bytes());
        put(slot_offset + 4, &1000_u32.to_be_bytes()); // iterations
        put(slot_offset + 8, &filler("slot salt", 32));
        put(
            slot_offset + 40,
            &sectors(PARTITION_HEADER_BYTES + slot * key_material_bytes),
        );
        // Offsets are in sectors: leave room for their rounding.
        let stripes = key_material_bytes.saturating_sub(512) / KEY_BYTES;
        put(slot_offset + 44, &(stripes as u32).to_be_bytes());
    }
    header.extend(filler(
        "key material ",
        length_bytes - PARTITION_HEADER_BYTES,
    ));
    header
}

fn sectors(bytes: u64) -> [u8; 4] {
    (bytes.div_ceil(512) as u32).to_be_bytes()
}
