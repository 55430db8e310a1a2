//! Persistent bitmaps: directory, bitmap tables and bitmap data.

use super::Forge;
use super::canvas::Canvas;

/// One entry of a bitmap table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    AllZero,
    AllOne,
    /// A host cluster of its own, every other bit set as far as the virtual disk goes.
    Data,
}

/// What a bitmap directory entry says besides its table.
#[derive(Clone, Debug)]
pub struct BitmapRecipe {
    pub name: String,
    pub granularity_bits: u8,
    pub flags: u32,
    pub extra_data: Vec<u8>,
    /// Repeats as a pattern over the whole table.
    pub table_entries: Vec<BitmapCluster>,
}

/// Where the bitmaps ended up.
#[derive(Default)]
pub(super) struct BitmapLayout {
    /// 0 if there are no bitmaps.
    pub(super) directory_offset: u64,
    pub(super) directory_bytes: u64,
    pub(super) entries: Vec<BitmapPlace>,
}

pub(super) struct BitmapPlace {
    pub(super) entry_offset: u64,
    pub(super) extra_data_bytes: u64,
    pub(super) table_offset: u64,
    /// Host offset of the data, per table entry.
    pub(super) data_offsets: Vec<Option<u64>>,
}

pub(super) fn write(forge: &Forge, canvas: &mut Canvas) -> BitmapLayout {
    let mut layout = BitmapLayout::default();
    let mut directory = Vec::new();
    for recipe in &forge.bitmaps {
        let (table_offset, data_offsets) = write_table(recipe, forge, canvas);
        layout.entries.push(BitmapPlace {
            entry_offset: directory.len() as u64,
            extra_data_bytes: recipe.extra_data.len() as u64,
            table_offset,
            data_offsets,
        });
        directory.extend(recipe.encode(forge, table_offset));
    }
    layout.directory_bytes = directory.len() as u64;
    layout.directory_offset = canvas.claim_metadata(layout.directory_bytes);
    canvas.put(layout.directory_offset, &directory);
    for place in &mut layout.entries {
        place.entry_offset += layout.directory_offset;
    }
    layout
}

fn write_table(
    recipe: &BitmapRecipe,
    forge: &Forge,
    canvas: &mut Canvas,
) -> (u64, Vec<Option<u64>>) {
    let entry_count = forge.bitmap_table_size(recipe.granularity_bits);
    assert!(entry_count > 0, "an empty disk has no bitmaps");
    let table_offset = canvas.claim_metadata(entry_count * 8);
    let pattern = recipe.table_entries.iter().cycle();
    let mut data_offsets = Vec::new();
    for (index, cluster) in (0..entry_count).zip(pattern) {
        let data_offset = match cluster {
            BitmapCluster::Data => Some(write_data(recipe, forge, index, canvas)),
            BitmapCluster::AllZero | BitmapCluster::AllOne => None,
        };
        let all_ones = u64::from(*cluster == BitmapCluster::AllOne);
        canvas.put_u64(table_offset + index * 8, data_offset.unwrap_or(all_ones));
        data_offsets.push(data_offset);
    }
    assert_eq!(
        data_offsets.len() as u64,
        entry_count,
        "the pattern of table entries is empty"
    );
    (table_offset, data_offsets)
}

/// Bits past the end of the virtual disk must stay zero, so only whole bytes before it are set.
fn write_data(recipe: &BitmapRecipe, forge: &Forge, index: u64, canvas: &mut Canvas) -> u64 {
    let cluster_size = canvas.cluster_size();
    let bitmap_bytes = (forge.size >> recipe.granularity_bits) / 8;
    let used_bytes = bitmap_bytes
        .saturating_sub(index * cluster_size)
        .min(cluster_size);
    let offset = canvas.claim_metadata(cluster_size);
    canvas.put(offset, &vec![0x55; used_bytes as usize]);
    offset
}

impl BitmapRecipe {
    fn encode(&self, forge: &Forge, table_offset: u64) -> Vec<u8> {
        let table_size = u32::try_from(forge.bitmap_table_size(self.granularity_bits))
            .expect("the bitmap table is too large");
        let name_size = u16::try_from(self.name.len()).expect("the bitmap name is too long");
        assert!(name_size > 0, "a bitmap has a name");
        let mut entry = Vec::new();
        entry.extend(table_offset.to_be_bytes());
        entry.extend(table_size.to_be_bytes());
        entry.extend(self.flags.to_be_bytes());
        entry.extend([1, self.granularity_bits]);
        entry.extend(name_size.to_be_bytes());
        entry.extend((self.extra_data.len() as u32).to_be_bytes());
        entry.extend(&self.extra_data);
        entry.extend(self.name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }
}

/// Offset of a field within a bitmap directory entry.
pub(super) fn field_offset(place: &BitmapPlace, name: &str) -> u64 {
    match name {
        "bitmap_table_offset" => 0,
        "bitmap_table_size" => 8,
        "flags" => 12,
        "type" => 16,
        "granularity_bits" => 17,
        "name_size" => 18,
        "extra_data_size" => 20,
        "extra_data" => 24,
        "name" => 24 + place.extra_data_bytes,
        _ => panic!("a bitmap directory entry has no field {name}"),
    }
}
