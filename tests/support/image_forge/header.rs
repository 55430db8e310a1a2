//! The first cluster: header, header extensions, backing file name.

use super::canvas::{Canvas, filler};
use super::{Forge, Forged};

pub const EXTENSION_END: u32 = 0;
pub const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
pub const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
pub const EXTENSION_BITMAPS: u32 = 0x2385_2875;
pub const EXTENSION_LUKS: u32 = 0x0537_be77;
pub const EXTENSION_DATA_FILE_NAME: u32 = 0x4441_5441;

const FIELDS: [(&str, u64); 20] = [
    ("magic", 0),
    ("version", 4),
    ("backing_file_offset", 8),
    ("backing_file_size", 16),
    ("cluster_bits", 20),
    ("size", 24),
    ("crypt_method", 32),
    ("l1_size", 36),
    ("l1_table_offset", 40),
    ("refcount_table_offset", 48),
    ("refcount_table_clusters", 56),
    ("nb_snapshots", 60),
    ("snapshots_offset", 64),
    ("incompatible_features", 72),
    ("compatible_features", 80),
    ("autoclear_features", 88),
    ("refcount_order", 96),
    ("header_length", 100),
    ("compression_type", 104),
    ("padding", 105),
];

/// Where header and extensions ended up.
#[derive(Default)]
pub(super) struct HeaderLayout {
    pub(super) header_bytes: u64,
    /// Type and offset of each extension, in the order of the file, the end marker included.
    pub(super) extensions: Vec<(u32, u64)>,
    pub(super) backing_file_offset: u64,
}

impl HeaderLayout {
    pub(super) fn field_offset(&self, name: &str) -> u64 {
        let field = FIELDS.iter().find(|(known, _)| *known == name);
        let (_, offset) = *field.unwrap_or_else(|| panic!("the header has no field {name}"));
        assert!(
            offset < self.header_bytes,
            "this header is too short for {name}"
        );
        offset
    }
}

/// Writes the first cluster. `forged` is complete but for its bytes and this layout.
pub(super) fn write(forge: &Forge, forged: &Forged, canvas: &mut Canvas) -> HeaderLayout {
    let mut layout = HeaderLayout {
        header_bytes: forge.header_bytes().into(),
        ..Default::default()
    };
    let mut area = Vec::new();
    for (extension_type, data) in extensions(forge, forged) {
        layout
            .extensions
            .push((extension_type, layout.header_bytes + area.len() as u64));
        area.extend(extension_type.to_be_bytes());
        area.extend((data.len() as u32).to_be_bytes());
        area.extend(&data);
        area.resize(area.len().next_multiple_of(8), 0);
    }
    if let Some(name) = &forge.backing_file {
        layout.backing_file_offset = layout.header_bytes + area.len() as u64;
        area.extend(name.as_bytes());
    }
    let first_cluster = [encode(forge, forged, &layout), area].concat();
    assert!(
        first_cluster.len() as u64 <= canvas.cluster_size(),
        "the header area is too full"
    );
    canvas.put(0, &first_cluster);
    layout
}

fn encode(forge: &Forge, forged: &Forged, layout: &HeaderLayout) -> Vec<u8> {
    let backing_file_bytes = forge.backing_file.as_ref().map_or(0, String::len);
    assert!(
        backing_file_bytes <= 1023,
        "the backing file name is too long"
    );
    let mut header = Vec::new();
    header.extend(b"QFI\xfb");
    header.extend(forge.version.to_be_bytes());
    header.extend(layout.backing_file_offset.to_be_bytes());
    header.extend((backing_file_bytes as u32).to_be_bytes());
    header.extend(forge.cluster_bits.to_be_bytes());
    header.extend(forge.size.to_be_bytes());
    header.extend(forge.crypt_method.to_be_bytes());
    header.extend(forged.guest.active.size.to_be_bytes());
    header.extend(forged.guest.active.offset.to_be_bytes());
    header.extend(forged.refcounts.table_offset.to_be_bytes());
    header.extend((forged.refcounts.table_clusters as u32).to_be_bytes());
    header.extend((forged.snapshots.entries.len() as u32).to_be_bytes());
    header.extend(forged.snapshots.table_offset.to_be_bytes());
    if forge.version >= 3 {
        header.extend(forge.incompatible_features.to_be_bytes());
        header.extend(forge.compatible_features.to_be_bytes());
        header.extend(forge.autoclear_features.to_be_bytes());
        header.extend(forge.refcount_order.to_be_bytes());
        header.extend(forge.header_bytes().to_be_bytes());
        header.extend([forge.compression_type, 0, 0, 0, 0, 0, 0, 0]);
        header.extend(filler("unknown ", layout.header_bytes.saturating_sub(112)));
        header.truncate(layout.header_bytes as usize);
    }
    header
}

fn extensions(forge: &Forge, forged: &Forged) -> Vec<(u32, Vec<u8>)> {
    let mut list = Vec::new();
    if let Some(format) = &forge.backing_format {
        list.push((EXTENSION_BACKING_FORMAT, format.clone().into_bytes()));
    }
    if let Some(name) = &forge.data_file_name {
        list.push((EXTENSION_DATA_FILE_NAME, name.clone().into_bytes()));
    }
    if let Some(luks) = &forged.luks {
        let words = [luks.offset, luks.length_bytes];
        list.push((EXTENSION_LUKS, words.map(u64::to_be_bytes).concat()));
    }
    if !forge.feature_names.is_empty() {
        list.push((EXTENSION_FEATURE_NAMES, encode_feature_names(forge)));
    }
    if !forge.bitmaps.is_empty() {
        // The count in the upper half of the first word, reserved zeros in the lower.
        let bitmap_count = (forge.bitmaps.len() as u64) << 32;
        let words = [
            bitmap_count,
            forged.bitmaps.directory_bytes,
            forged.bitmaps.directory_offset,
        ];
        list.push((EXTENSION_BITMAPS, words.map(u64::to_be_bytes).concat()));
    }
    list.extend(forge.unknown_extensions.iter().cloned());
    list.push((EXTENSION_END, Vec::new()));
    list
}

fn encode_feature_names(forge: &Forge) -> Vec<u8> {
    let mut table = Vec::new();
    for (kind, bit, name) in &forge.feature_names {
        assert!(name.len() <= 46, "a feature name has at most 46 bytes");
        table.extend([*kind, *bit]);
        table.extend(name.as_bytes());
        table.resize(table.len().next_multiple_of(48), 0);
    }
    table
}
