//! Damage to the refcount table, its blocks and their counts; what the end of the file gives away.

use super::{plain, small};
use crate::support::image_forge::{BitmapCluster, Forge, Forged, Tree};

/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;

/// 64 counts to a refcount block, and enough clusters for a second block.
fn with_two_blocks() -> Forge {
    let forge = Forge::new().cluster_bits(9).refcount_order(6).size(1 << 20);
    (0..64).fold(forge, Forge::data)
}

fn with_snapshot() -> Forge {
    plain().snapshot("1", "before")
}

/// One structure of every kind.
fn with_everything() -> Forge {
    let bitmap = [BitmapCluster::Data];
    with_snapshot()
        .data(0)
        .luks(1)
        .bitmap("daily", 16, 0, &bitmap)
}

/// Lets guest clusters 100, 102, 104… name these clusters too.
fn share_with_guest_data(image: &mut Forged, offsets: &[u64]) {
    for (guest, offset) in (100..).step_by(2).zip(offsets) {
        image.put_u64(image.l2_entry(Tree::Active, guest), offset | 1 << 63);
    }
}

damages! {
    refcount_table_off_the_cluster_boundary: RefcountTableUnaligned {
        forge: plain,
        harm: |image| image.put_u64(image.field("refcount_table_offset"), image.refcount_table() + 512),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-table-unaligned 1",
        ],
    }
    refcount_table_of_more_than_eight_mebibytes: RefcountTableTooLarge {
        forge: || plain().refcount_table_clusters(2048),
        harm: |image| image.put_u32(image.field("refcount_table_clusters"), 2049),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-table-too-large 1",
        ],
    }
    refcount_table_of_no_clusters: RefcountTableMissing {
        forge: plain,
        harm: |image| image.put_u32(image.field("refcount_table_clusters"), 0),
        report: [
            "do-not-boot",
            "refcount-table-missing 1",
            "refcount-zero 5: header + L1 table + guest data 0x0-0x1000 + L2 table 0x0-0x200000 + \
             guest data 0x1000-0x2000",
            "copied-flag-stale 3",
        ],
    }
    refcount_table_at_offset_zero: RefcountTableMissing {
        forge: plain,
        harm: |image| image.put_u64(image.field("refcount_table_offset"), 0),
        report: [
            "do-not-boot",
            "refcount-table-missing 1",
            "refcount-zero 5: header + L1 table + guest data 0x0-0x1000 + L2 table 0x0-0x200000 + \
             guest data 0x1000-0x2000",
            "copied-flag-stale 3",
        ],
    }
    refcount_table_past_the_end_reads_as_zero: RefcountTablePastEnd {
        forge: plain,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.field("refcount_table_offset"), end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-table-past-end 1",
            "refcount-zero 5: header + L1 table + guest data 0x0-0x1000 + L2 table 0x0-0x200000 + \
             guest data 0x1000-0x2000",
            "copied-flag-stale 3",
        ],
    }
    reserved_bit_in_a_refcount_table_entry: RefcountTableEntryReservedBits {
        forge: plain,
        harm: |image| {
            let entry = image.refcount_table_entry(0);
            image.put_u64(entry, image.u64_at(entry) | 1 << 3);
        },
        report: [
            "repairable",
            "refcount-table-entry-reserved-bits 1",
        ],
    }
    refcount_block_off_the_cluster_boundary_makes_counts_unknown_not_zero: RefcountBlockUnaligned {
        forge: plain,
        harm: |image| {
            let entry = image.refcount_table_entry(0);
            image.put_u64(entry, image.u64_at(entry) + 512);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-block-unaligned 1",
        ],
    }
    refcount_block_past_the_end_reads_as_zero: RefcountBlockPastEnd {
        forge: plain,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.refcount_table_entry(0), end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-block-past-end 1",
            "refcount-zero 6: header + L1 table + guest data 0x0-0x1000 + L2 table 0x0-0x200000 + \
             guest data 0x1000-0x2000 + refcount table",
            "copied-flag-stale 3",
        ],
    }
    one_refcount_block_serves_two_entries: RefcountBlockShared {
        forge: with_two_blocks,
        harm: |image| {
            let first = image.u64_at(image.refcount_table_entry(0));
            image.put_u64(image.refcount_table_entry(1), first);
        },
        report: [
            "do-not-boot",
            "refcount-block-shared 1",
            "refcount-leak 1",
            "refcount-past-end 58",
            "metadata-overlap 1: refcount block + refcount block",
        ],
    }
    guest_data_with_refcount_zero: RefcountZero {
        forge: plain,
        harm: |image| image.set_refcount(image.host_cluster(Tree::Active, 1), 0),
        report: [
            "do-not-boot",
            "refcount-zero 1: guest data 0x1000-0x2000",
            "copied-flag-stale 1",
        ],
    }
    all_kinds_of_metadata_with_refcount_zero: RefcountZero {
        forge: with_snapshot,
        harm: |image| {
            let structures = [
                0,
                image.l1_table(Tree::Active),
                image.l1_table(Tree::Snapshot(0)),
                image.l2_table(Tree::Active, 0),
                image.snapshot_table(),
                image.refcount_table(),
                image.refcount_block(0),
            ];
            for offset in structures {
                image.set_refcount(offset / image.cluster_size(), 0);
            }
        },
        report: [
            "do-not-boot",
            "refcount-zero 7: header + L1 table; L2 table 0x0-0x200000 ×2; L1 table + snapshot table + \
             refcount table + refcount block",
        ],
    }
    data_shared_with_a_snapshot_is_counted_once: RefcountTooLow {
        forge: with_snapshot,
        harm: |image| image.set_refcount(image.host_cluster(Tree::Active, 1), 1),
        report: [
            "do-not-boot",
            "refcount-too-low 1: guest data 0x1000-0x2000 ×2",
            "copied-flag-missing 1",
        ],
    }
    fourth_compressed_cluster_in_one_host_cluster_of_two_bit_counts: RefcountOverflow {
        forge: || small().refcount_order(1).compressed(0, 600).compressed(1, 600).compressed(2, 600),
        harm: |image| {
            let behind = image.host_offset(Tree::Active, 2).expect("mapped") + 600;
            image.put_u64(image.l2_entry(Tree::Active, 3), COMPRESSED | behind);
        },
        report: [
            "do-not-boot",
            "refcount-overflow 1: compressed guest data 0x0-0x1000 + \
             compressed guest data 0x1000-0x2000 + compressed guest data 0x2000-0x3000 + \
             compressed guest data 0x3000-0x4000",
        ],
    }
    free_cluster_with_a_count_is_leaked: RefcountLeak {
        forge: plain,
        harm: |image| { image.allocate(1); },
        report: [
            "leaks",
            "refcount-leak 1",
        ],
    }
    overcounted_guest_data_names_its_remaining_user: RefcountLeak {
        forge: plain,
        harm: |image| image.set_refcount(image.host_cluster(Tree::Active, 1), 3),
        report: [
            "do-not-boot",
            "refcount-leak 1: guest data 0x1000-0x2000",
            "copied-flag-stale 1",
        ],
    }
    overcounted_metadata_names_its_remaining_user: RefcountLeak {
        forge: with_snapshot,
        harm: |image| {
            image.set_refcount(image.snapshot_table() / image.cluster_size(), 9);
            image.set_refcount(image.l1_table(Tree::Active) / image.cluster_size(), 2);
        },
        report: [
            "leaks",
            "refcount-leak 2: L1 table; snapshot table",
        ],
    }
    count_behind_the_end_of_the_file_is_a_notice: RefcountPastEnd {
        forge: plain,
        harm: |image| image.set_refcount(image.cluster_count(), 1),
        report: [
            "clean",
            "refcount-past-end 1",
        ],
    }
    last_data_cluster_is_cut_off_with_its_count_in_place: FileTruncated {
        forge: plain,
        harm: |image| {
            let cluster = image.allocate(1);
            let offset = cluster * image.cluster_size();
            image.put_u64(image.l2_entry(Tree::Active, 7), offset | 1 << 63);
            image.truncate(offset);
        },
        report: [
            "do-not-boot, 1 not walked",
            "l2-entry-past-end 1",
            "file-truncated 1",
        ],
    }
    l2_table_is_cut_off_with_its_count_in_place: FileTruncated {
        forge: plain,
        harm: |image| {
            let cluster = image.allocate(1);
            let offset = cluster * image.cluster_size();
            image.put_u64(image.l1_entry(Tree::Active, 3), offset | 1 << 63);
            image.truncate(offset);
        },
        report: [
            "do-not-boot, 1 not walked",
            "l2-table-past-end 1",
            "file-truncated 1",
        ],
    }
    cut_off_cluster_of_two_trees_is_no_leak: FileTruncated {
        forge: with_snapshot,
        harm: |image| {
            let cluster = image.allocate(2);
            let offset = cluster * image.cluster_size();
            image.put_u64(image.l2_entry(Tree::Active, 7), offset);
            image.truncate(offset);
        },
        report: [
            "do-not-boot, 1 not walked",
            "l2-entry-past-end 2",
            "file-truncated 1",
        ],
    }
    cut_off_cluster_that_two_entries_name_is_no_leak_beside_larger_counts: FileTruncated {
        forge: plain,
        harm: |image| {
            let cluster = image.allocate(1);
            let offset = cluster * image.cluster_size();
            image.put_u64(image.l2_entry(Tree::Active, 7), offset | 1 << 63);
            image.put_u64(image.l2_entry(Tree::Active, 8), offset | 1 << 63);
            image.set_refcount(cluster + 1, 2);
            image.truncate(offset);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-past-end 1",
            "l2-entry-past-end 2",
            "file-truncated 1",
        ],
    }
    stranger_appends_half_a_cluster: TrailingBytes {
        forge: plain,
        harm: |image| image.append(&[0x5a; 100]),
        report: [
            "clean",
            "trailing-bytes 1",
        ],
    }
    sixteen_compressed_clusters_share_a_cluster_with_refcount_zero: RefcountZero {
        forge: || (0..16).fold(small(), |forge, guest| forge.compressed(guest, 200)),
        harm: |image| image.set_refcount(image.host_cluster(Tree::Active, 0), 0),
        report: [
            "do-not-boot",
            "refcount-zero 1: compressed guest data 0x0-0x1000 + compressed guest data 0x1000-0x2000 + \
             compressed guest data 0x2000-0x3000 + compressed guest data 0x3000-0x4000 + \
             compressed guest data 0x4000-0x5000 + compressed guest data 0x5000-0x6000 + \
             compressed guest data 0x6000-0x7000 + compressed guest data 0x7000-0x8000 + 8 more",
        ],
    }
    mapping_and_refcount_tables_each_have_a_stranger_in_them: MetadataOverlap {
        forge: with_everything,
        harm: |image| {
            let structures = [
                image.refcount_table(),
                image.l1_table(Tree::Active),
                image.l1_table(Tree::Snapshot(0)),
                image.l2_table(Tree::Active, 0),
                image.l2_table(Tree::Snapshot(0), 0),
            ];
            share_with_guest_data(image, &structures);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 5: L1 table + guest data 0x66000-0x67000; L2 table 0x0-0x200000 + \
             guest data 0x6c000-0x6d000; L1 table + guest data 0x68000-0x69000; \
             L2 table 0x0-0x200000 + guest data 0x6a000-0x6b000; refcount table + \
             guest data 0x64000-0x65000",
        ],
    }
    refcount_block_and_bitmap_table_have_strangers_in_them: MetadataOverlap {
        forge: with_everything,
        harm: |image| {
            let structures = [
                image.refcount_block(0),
                image.bitmap_table(0),
            ];
            share_with_guest_data(image, &structures);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 2: bitmap table + guest data 0x66000-0x67000; refcount block + \
             guest data 0x64000-0x65000",
        ],
    }
    snapshot_table_bitmaps_and_luks_header_have_strangers_in_them: MetadataOverlap {
        forge: with_everything,
        harm: |image| {
            let structures = [
                image.snapshot_table(),
                image.bitmap_directory(),
                image.bitmap_data(0, 0).expect("data"),
                image.luks_area().expect("LUKS").0,
            ];
            share_with_guest_data(image, &structures);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 4: encryption header + guest data 0x6a000-0x6b000; snapshot table + \
             guest data 0x64000-0x65000; bitmap data + guest data 0x68000-0x69000 + bitmap directory + \
             guest data 0x66000-0x67000",
        ],
    }
}
