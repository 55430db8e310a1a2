//! Damage to the bitmaps: extension, directory, tables, data.

use super::plain;
use crate::support::image_forge::{
    AUTOCLEAR_BITMAPS, BitmapCluster, BitmapRecipe, EXTENSION_BITMAPS, Forge,
};

/// Granularity 64 KiB: 128 bits for 8 MiB, one cluster of data.
const GRANULARITY_BITS: u8 = 16;

fn with_one() -> Forge {
    plain().bitmap("daily", GRANULARITY_BITS, 0, &[BitmapCluster::Data])
}

fn with_two() -> Forge {
    with_one().bitmap("night", GRANULARITY_BITS, 0, &[BitmapCluster::AllOne])
}

/// A granularity that gives the table three entries.
fn with_long_table() -> Forge {
    let kinds = [
        BitmapCluster::Data,
        BitmapCluster::AllZero,
        BitmapCluster::Data,
    ];
    plain().size(48 << 20).bitmap("fine", 9, 0, &kinds)
}

damages! {
    bitmaps_extension_counts_no_bitmaps: BitmapsExtensionMalformed {
        forge: with_one,
        harm: |image| image.put_u32(image.extension(EXTENSION_BITMAPS) + 8, 0),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 3",
            "bitmaps-extension-malformed 1",
        ],
    }
    bitmaps_extension_of_sixteen_bytes: BitmapsExtensionMalformed {
        forge: with_one,
        // What is left of it then reads as an end marker with a length.
        harm: |image| image.put_u32(image.extension(EXTENSION_BITMAPS) + 4, 16),
        report: [
            "do-not-boot, 2 not walked",
            "extension-overrun 1",
            "refcount-leak 3",
            "bitmaps-extension-malformed 1",
        ],
    }
    bitmaps_bit_without_bitmaps: BitmapsAutoclearWithoutExtension {
        forge: plain,
        harm: |image| image.put_u64(image.field("autoclear_features"), AUTOCLEAR_BITMAPS),
        report: [
            "clean",
            "bitmaps-autoclear-without-extension 1",
        ],
    }
    bitmaps_left_behind_by_an_old_writer_are_leaks: BitmapsStale {
        forge: with_one,
        harm: |image| image.put_u64(image.field("autoclear_features"), 0),
        report: [
            "leaks",
            "refcount-leak 3",
            "bitmaps-stale 1",
        ],
    }
    bitmap_directory_with_an_entry_too_few: BitmapDirectoryMalformed {
        forge: with_one,
        harm: |image| image.put_u32(image.extension(EXTENSION_BITMAPS) + 8, 2),
        report: [
            "do-not-boot, 1 not walked",
            "bitmap-directory-malformed 1",
        ],
    }
    bitmap_directory_past_the_end_of_the_file: BitmapDirectoryMalformed {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.extension(EXTENSION_BITMAPS) + 24, end + 0x1000);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 3",
            "bitmap-directory-malformed 1",
        ],
    }
    bitmap_directory_right_behind_the_end_of_the_file: BitmapDirectoryMalformed {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.extension(EXTENSION_BITMAPS) + 24, end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 3",
            "bitmap-directory-malformed 1",
        ],
    }
    bitmap_of_a_type_nobody_defined: BitmapEntryInvalid {
        forge: with_two,
        harm: |image| image.put_u8(image.bitmap_field(0, "type"), 2),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "bitmap-entry-invalid 1",
        ],
    }
    two_bitmaps_with_one_name: BitmapNameDuplicate {
        forge: with_two,
        harm: |image| image.put(image.bitmap_field(1, "name"), b"daily"),
        report: [
            "do-not-boot",
            "bitmap-name-duplicate 1",
        ],
    }
    bitmap_with_extra_data: BitmapExtraData {
        forge: || plain().bitmap_with(BitmapRecipe {
            name: "named at length".to_owned(),
            granularity_bits: GRANULARITY_BITS,
            flags: 0,
            extra_data: Vec::new(),
            table_entries: vec![BitmapCluster::AllOne],
        }),
        harm: |image| {
            image.put_u32(image.bitmap_field(0, "extra_data_size"), 8);
            image.put_u16(image.bitmap_field(0, "name_size"), 7);
        },
        report: [
            "clean",
            "bitmap-extra-data 1",
        ],
    }
    bitmap_table_shorter_than_the_disk: BitmapTableSizeWrong {
        forge: with_long_table,
        harm: |image| image.put_u32(image.bitmap_field(0, "bitmap_table_size"), 2),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "bitmap-table-size-wrong 1",
        ],
    }
    bitmap_table_past_the_end_of_the_file: BitmapTablePastEnd {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.bitmap_field(0, "bitmap_table_offset"), end + 0x1000);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "bitmap-table-past-end 1",
        ],
    }
    bitmap_table_right_behind_the_end_of_the_file: BitmapTablePastEnd {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.bitmap_field(0, "bitmap_table_offset"), end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "bitmap-table-past-end 1",
        ],
    }
    bitmap_table_entry_with_reserved_bits: BitmapTableEntryInvalid {
        forge: with_one,
        harm: |image| {
            let entry = image.bitmap_table_entry(0, 0);
            image.put_u64(entry, image.u64_at(entry) | 1);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "bitmap-table-entry-invalid 1",
        ],
    }
    bitmap_table_entry_off_the_cluster_boundary: BitmapTableEntryInvalid {
        forge: with_one,
        harm: |image| {
            let entry = image.bitmap_table_entry(0, 0);
            image.put_u64(entry, image.u64_at(entry) + 512);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "bitmap-table-entry-invalid 1",
        ],
    }
    bitmap_data_past_the_end_of_the_file: BitmapDataPastEnd {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.bitmap_table_entry(0, 0), end);
        },
        report: [
            "repairable, 1 not walked",
            "refcount-leak 1",
            "bitmap-data-past-end 1",
        ],
    }
    bitmap_its_writer_did_not_save: BitmapInUse {
        forge: with_one,
        harm: |image| image.put_u32(image.bitmap_field(0, "flags"), 1),
        report: [
            "clean",
            "bitmap-in-use 1",
        ],
    }
    bitmap_data_shared_by_two_bitmaps: MetadataOverlap {
        forge: with_two,
        harm: |image| {
            let data = image.bitmap_data(0, 0).expect("data");
            image.put_u64(image.bitmap_table_entry(1, 0), data);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 1: bitmap data + bitmap data",
        ],
    }
}
