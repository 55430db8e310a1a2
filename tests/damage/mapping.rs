//! Damage to L1 tables and to L2 tables as a whole; clusters with two owners.

use super::{plain, small};
use crate::support::image_forge::{Forge, Tree};

const COPIED: u64 = 1 << 63;

/// Data in the first two of four L2 tables.
fn with_two_tables() -> Forge {
    plain().data(512)
}

fn with_snapshot() -> Forge {
    plain().snapshot("1", "before")
}

damages! {
    l1_table_off_the_cluster_boundary_makes_everything_below_look_leaked: L1TableUnaligned {
        forge: plain,
        harm: |image| image.put_u64(image.field("l1_table_offset"), image.l1_table(Tree::Active) + 8),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4",
            "l1-table-unaligned 1",
        ],
    }
    l1_table_of_more_than_32_mebibytes: L1TableTooLarge {
        forge: || Forge::new().data(0).l1_size(4 << 20),
        harm: |image| image.put_u32(image.field("l1_size"), (4 << 20) + 1),
        report: [
            "do-not-boot, 1 not walked",
            "l1-table-too-large 1",
        ],
    }
    l1_table_shorter_than_the_virtual_size: L1TableTooSmall {
        forge: plain,
        harm: |image| image.put_u32(image.field("l1_size"), 3),
        report: [
            "do-not-boot, 1 not walked",
            "l1-table-too-small 1",
        ],
    }
    l1_table_shorter_than_what_it_maps: L1TableTooSmall {
        forge: with_two_tables,
        harm: |image| image.put_u32(image.field("l1_size"), 1),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "l1-table-too-small 1",
        ],
    }
    l1_table_past_the_end_of_the_file: L1TablePastEnd {
        forge: plain,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.field("l1_table_offset"), end + 0x1000);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4",
            "l1-table-past-end 1",
        ],
    }
    l1_table_right_behind_the_end_of_the_file: L1TablePastEnd {
        forge: plain,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.field("l1_table_offset"), end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4",
            "l1-table-past-end 1",
        ],
    }
    l1_table_is_cut_off_in_the_middle: L1TablePastEnd {
        forge: with_two_tables,
        harm: |image| {
            let table = image.allocate(1) * image.cluster_size();
            for index in 0..4 {
                let entry = image.u64_at(image.l1_entry(Tree::Active, index));
                image.put_u64(table + index * 8, entry);
            }
            image.put_u64(image.field("l1_table_offset"), table);
            image.set_refcount(image.l1_table(Tree::Active) / image.cluster_size(), 0);
            image.truncate(table + 8);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "l1-table-past-end 1",
        ],
    }
    reserved_bits_in_an_l1_entry: L1EntryReservedBits {
        forge: plain,
        harm: |image| {
            let entry = image.l1_entry(Tree::Active, 0);
            image.put_u64(entry, image.u64_at(entry) | 1 << 60 | 1);
        },
        report: [
            "repairable",
            "l1-entry-reserved-bits 1",
        ],
    }
    l1_entry_that_is_only_copied_does_not_make_a_table_of_the_header: L1EntryWithoutOffset {
        forge: plain,
        harm: |image| image.put_u64(image.l1_entry(Tree::Active, 2), COPIED),
        report: [
            "do-not-boot, 1 not walked",
            "l1-entry-without-offset 1",
        ],
    }
    l1_entry_loses_its_offset: L1EntryWithoutOffset {
        forge: with_two_tables,
        harm: |image| image.put_u64(image.l1_entry(Tree::Active, 1), COPIED),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "l1-entry-without-offset 1",
        ],
    }
    l2_table_off_the_cluster_boundary: L2TableUnaligned {
        forge: with_two_tables,
        harm: |image| {
            let entry = image.l1_entry(Tree::Active, 1);
            image.put_u64(entry, image.u64_at(entry) + 512);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "l2-table-unaligned 1",
        ],
    }
    l2_table_past_the_end_of_the_file: L2TablePastEnd {
        forge: with_two_tables,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.l1_entry(Tree::Active, 1), end | COPIED);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "l2-table-past-end 1",
        ],
    }
    two_guest_ranges_have_one_l2_table: L2TableShared {
        forge: plain,
        harm: |image| {
            let first = image.u64_at(image.l1_entry(Tree::Active, 0));
            image.put_u64(image.l1_entry(Tree::Active, 2), first);
        },
        report: [
            "do-not-boot",
            "refcount-too-low 3: guest data 0x0-0x1000 ×2 + L2 table 0x0-0x200000 ×2 + guest data 0x1000-0x2000 ×2",
            "l2-table-shared 1",
        ],
    }
    snapshot_uses_the_table_of_another_guest_range: L2TableShared {
        forge: with_snapshot,
        harm: |image| {
            let entry = image.l1_entry(Tree::Snapshot(0), 0);
            let table = image.u64_at(entry);
            image.put_u64(entry, 0);
            image.put_u64(image.l1_entry(Tree::Snapshot(0), 2), table);
        },
        report: [
            "repairable",
            "l2-table-shared 1",
        ],
    }
    text_where_an_l2_table_should_be: L2TableImplausible {
        forge: plain,
        harm: |image| {
            let table = image.l2_table(Tree::Active, 0);
            image.put(table, &b"Lorem ipsum dolor sit amet, nec! ".repeat(8));
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 2",
            "l2-table-implausible 1",
            "l2-entry-reserved-bits 8",
            "l2-entry-unaligned 3",
            "l2-entry-past-end 5",
            "compressed-past-end 25",
        ],
    }
    guest_data_on_the_active_l1_table: MetadataOverlap {
        forge: plain,
        harm: |image| {
            let table = image.l1_table(Tree::Active);
            image.put_u64(image.l2_entry(Tree::Active, 5), table | COPIED);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 1: L1 table + guest data 0x5000-0x6000",
        ],
    }
    guest_data_on_the_header: MetadataOverlap {
        forge: || plain().compressed(4, 100),
        harm: |image| image.put_u64(image.l2_entry(Tree::Active, 5), 1 << 62 | 512),
        report: [
            "do-not-boot",
            "metadata-overlap 1: header + compressed guest data 0x5000-0x6000",
        ],
    }
    l2_table_on_guest_data_of_its_own: MetadataOverlap {
        forge: plain,
        harm: |image| {
            let data = image.host_offset(Tree::Active, 1).expect("mapped");
            image.put_u64(image.l1_entry(Tree::Active, 3), data | COPIED);
            image.put(data, &[0; 4096]);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 1: guest data 0x1000-0x2000 + L2 table 0x600000-0x800000",
        ],
    }
    overlap_is_found_even_where_the_count_allows_for_two: MetadataOverlap {
        forge: plain,
        harm: |image| {
            let table = image.refcount_table();
            image.put_u64(image.l2_entry(Tree::Active, 5), table);
            image.set_refcount(table / image.cluster_size(), 2);
        },
        report: [
            "do-not-boot",
            "metadata-overlap 1: refcount table + guest data 0x5000-0x6000",
        ],
    }
    two_guest_clusters_in_one_host_cluster: GuestDataOverlap {
        forge: plain,
        harm: |image| {
            let first = image.u64_at(image.l2_entry(Tree::Active, 0));
            image.put_u64(image.l2_entry(Tree::Active, 1), first);
        },
        report: [
            "do-not-boot",
            "refcount-leak 1",
            "guest-data-overlap 1: guest data 0x0-0x1000 + guest data 0x1000-0x2000",
        ],
    }
    two_guest_clusters_share_with_the_count_for_it: GuestDataShared {
        forge: plain,
        harm: |image| {
            let first = image.host_offset(Tree::Active, 0).expect("mapped");
            image.put_u64(image.l2_entry(Tree::Active, 0), first);
            image.put_u64(image.l2_entry(Tree::Active, 9), first);
            image.set_refcount(first / image.cluster_size(), 2);
        },
        report: [
            "repairable",
            "guest-data-shared 1: guest data 0x0-0x1000 + guest data 0x9000-0xa000",
        ],
    }
    snapshot_shares_a_cluster_for_another_guest_range: GuestDataShared {
        forge: || plain().snapshot("1", "before").data(0),
        harm: |image| {
            let frozen = image.host_offset(Tree::Snapshot(0), 0).expect("mapped");
            image.put_u64(image.l2_entry(Tree::Active, 9), frozen);
            image.set_refcount(frozen / image.cluster_size(), 2);
        },
        report: [
            "repairable",
            "guest-data-shared 1: guest data 0x0-0x1000 + guest data 0x9000-0xa000",
        ],
    }
    compressed_data_in_a_cluster_of_standard_data: GuestDataOverlap {
        forge: || small().data(0).compressed(1, 100),
        harm: |image| {
            let data = image.host_offset(Tree::Active, 0).expect("mapped");
            image.put_u64(image.l2_entry(Tree::Active, 1), 1 << 62 | data);
        },
        report: [
            "do-not-boot",
            "refcount-leak 1",
            "guest-data-overlap 1: guest data 0x0-0x1000 + compressed guest data 0x1000-0x2000",
        ],
    }
    l2_table_is_cut_off_in_the_middle: L2TablePastEnd {
        forge: || plain().data(1000),
        harm: |image| {
            let old_table = image.l2_table(Tree::Active, 1000);
            let table = image.allocate(1) * image.cluster_size();
            let entry = image.u64_at(image.l2_entry(Tree::Active, 1000));
            image.put_u64(table + (1000 - 512) * 8, entry);
            image.put_u64(image.l1_entry(Tree::Active, 1), table | COPIED);
            image.set_refcount(old_table / image.cluster_size(), 0);
            image.truncate(table + 2048);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "l2-table-past-end 1",
        ],
    }
}
