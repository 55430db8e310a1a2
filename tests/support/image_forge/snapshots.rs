//! The snapshot table. The trees of the snapshots are the guest map's; here are their entries.

use super::Forge;
use super::canvas::{Canvas, filler};
use super::guest::{GuestMap, L1Table};

/// What a snapshot table entry says besides its L1 table.
#[derive(Clone, Debug)]
pub struct SnapshotRecipe {
    pub id: String,
    pub name: String,
    /// 0 (version 2 only), 16, 24, or more with unknown bytes; 24 if `None`, in version 2 0.
    pub extra_data_bytes: Option<u32>,
    pub vm_state_bytes: u64,
    /// The image's virtual size if `None`.
    pub disk_size: Option<u64>,
    /// The active table's if `None`; an image that was grown later has a smaller one here.
    pub l1_size: Option<u32>,
    pub date_seconds: u32,
    pub date_nanoseconds: u32,
    pub vm_clock_nanoseconds: u64,
    pub icount: u64,
}

impl SnapshotRecipe {
    pub fn new(id: &str, name: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            extra_data_bytes: None,
            vm_state_bytes: 0,
            disk_size: None,
            l1_size: None,
            date_seconds: 1_700_000_000,
            date_nanoseconds: 123_456_789,
            vm_clock_nanoseconds: 0,
            icount: u64::MAX,
        }
    }

    fn encode(&self, forge: &Forge, l1: &L1Table) -> Vec<u8> {
        let extra_bytes = self.extra_data_bytes(forge.version);
        assert!(
            forge.version == 2 || extra_bytes >= 16,
            "version 3 wants extra data of 16 bytes"
        );
        // The old field holds what fits; the extra data overrules it.
        let short_vm_state_bytes = u32::try_from(self.vm_state_bytes).unwrap_or(0);
        assert!(
            extra_bytes >= 8 || u64::from(short_vm_state_bytes) == self.vm_state_bytes,
            "so much VM state needs extra data"
        );
        let mut entry = Vec::new();
        entry.extend(l1.offset.to_be_bytes());
        entry.extend(l1.size.to_be_bytes());
        entry.extend(length_u16(&self.id).to_be_bytes());
        entry.extend(length_u16(&self.name).to_be_bytes());
        entry.extend(self.date_seconds.to_be_bytes());
        entry.extend(self.date_nanoseconds.to_be_bytes());
        entry.extend(self.vm_clock_nanoseconds.to_be_bytes());
        entry.extend(short_vm_state_bytes.to_be_bytes());
        entry.extend(extra_bytes.to_be_bytes());
        entry.extend(self.encode_extra_data(forge.size, extra_bytes));
        entry.extend(self.id.as_bytes());
        entry.extend(self.name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }

    fn extra_data_bytes(&self, version: u32) -> u32 {
        self.extra_data_bytes
            .unwrap_or(if version == 2 { 0 } else { 24 })
    }

    fn encode_extra_data(&self, image_size: u64, extra_bytes: u32) -> Vec<u8> {
        let disk_size = self.disk_size.unwrap_or(image_size);
        let known = [self.vm_state_bytes, disk_size, self.icount]
            .map(u64::to_be_bytes)
            .concat();
        let unknown = filler("unknown ", u64::from(extra_bytes).saturating_sub(24));
        [known, unknown].concat()[..extra_bytes as usize].to_vec()
    }
}

/// Where the snapshot table ended up.
pub(super) struct SnapshotLayout {
    /// 0 if there are no snapshots.
    pub(super) table_offset: u64,
    pub(super) entries: Vec<SnapshotPlace>,
}

pub(super) struct SnapshotPlace {
    pub(super) offset: u64,
    pub(super) extra_data_bytes: u64,
    pub(super) id_bytes: u64,
}

pub(super) fn write_table(forge: &Forge, guest: &GuestMap, canvas: &mut Canvas) -> SnapshotLayout {
    let recipes: Vec<_> = forge.snapshot_recipes().collect();
    let encoded: Vec<_> = recipes
        .iter()
        .zip(&guest.inactive)
        .map(|(recipe, l1)| recipe.encode(forge, l1))
        .collect();
    let table = encoded.concat();
    let table_offset = canvas.claim_metadata(table.len() as u64);
    canvas.put(table_offset, &table);

    let mut entries = Vec::new();
    let mut offset = table_offset;
    for (recipe, entry) in recipes.iter().zip(&encoded) {
        let extra_data_bytes = recipe.extra_data_bytes(forge.version).into();
        entries.push(SnapshotPlace {
            offset,
            extra_data_bytes,
            id_bytes: recipe.id.len() as u64,
        });
        offset += entry.len() as u64;
    }
    SnapshotLayout {
        table_offset,
        entries,
    }
}

/// Offset of a field within a snapshot table entry.
pub(super) fn field_offset(place: &SnapshotPlace, name: &str) -> u64 {
    match name {
        "l1_table_offset" => 0,
        "l1_size" => 8,
        "id_size" => 12,
        "name_size" => 14,
        "date_seconds" => 16,
        "date_nanoseconds" => 20,
        "vm_clock_nanoseconds" => 24,
        "vm_state_size" => 32,
        "extra_data_size" => 36,
        "extra_data" | "vm_state_size_large" => 40,
        "disk_size" => 48,
        "icount" => 56,
        "id" => 40 + place.extra_data_bytes,
        "name" => 40 + place.extra_data_bytes + place.id_bytes,
        _ => panic!("a snapshot table entry has no field {name}"),
    }
}

fn length_u16(text: &str) -> u16 {
    u16::try_from(text.len()).expect("a snapshot's id and name have at most 65535 bytes")
}
