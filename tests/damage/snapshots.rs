//! Damage to the snapshot table and to what it says of its L1 tables.

use super::{plain, small};
use crate::support::image_forge::{Forge, Forged, SnapshotRecipe, Tree};

/// Two snapshots, the active mapping has moved on.
fn with_two() -> Forge {
    plain()
        .snapshot("1", "monday")
        .data(0)
        .snapshot("2", "tuesday")
        .data(1)
}

fn with_one() -> Forge {
    plain().snapshot("1", "monday").data(0)
}

fn with_vm_state() -> Forge {
    let mut snapshot = SnapshotRecipe::new("1", "running");
    snapshot.vm_state_bytes = 2 << 12;
    let forge = plain().vm_state(2).snapshot_with(snapshot);
    let first = forge.vm_state_start();
    forge.unmap(first).unmap(first + 1)
}

fn bytes_at(image: &Forged, offset: u64, count: u64) -> Vec<u8> {
    (offset..offset + count).map(|at| image.u8_at(at)).collect()
}

damages! {
    snapshot_table_off_the_cluster_boundary: SnapshotTableUnaligned {
        forge: with_one,
        harm: |image| image.put_u64(image.field("snapshots_offset"), image.snapshot_table() + 8),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 5: guest data 0x1000-0x2000",
            "snapshot-table-unaligned 1",
        ],
    }
    // The zeros behind the table, and behind the file, read as entries.
    snapshot_count_is_beyond_the_limit: SnapshotCountTooLarge {
        forge: with_one,
        harm: |image| image.put_u32(image.field("nb_snapshots"), 65_537),
        report: [
            "do-not-boot, 4 not walked",
            "metadata-overlap 2: refcount table + snapshot table + refcount block",
            "snapshot-count-too-large 1",
            "snapshot-table-truncated 1",
            "snapshot-entry-incomplete 1",
            "snapshot-phantom 65534",
            "snapshot-name-unreadable 1",
            "snapshot-l1-unaligned 1",
        ],
    }
    snapshot_entry_longer_than_the_file: SnapshotTableTruncated {
        forge: with_two,
        harm: |image| image.put_u32(image.snapshot_field(0, "extra_data_size"), 0x100000),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 8: guest data 0x0-0x1000",
            "snapshot-table-truncated 1",
            "snapshot-extra-data-too-large 1",
        ],
    }
    second_snapshot_entry_is_cut_off: SnapshotTableTruncated {
        forge: with_two,
        harm: |image| {
            let old_table = image.snapshot_table();
            let (first, second) = (image.snapshot_entry(0), image.snapshot_entry(1));
            let entries = bytes_at(image, first, 160);
            let table = image.allocate(1) * image.cluster_size();
            image.put(table, &entries);
            image.put_u64(image.field("snapshots_offset"), table);
            image.set_refcount(old_table / image.cluster_size(), 0);
            image.truncate(table + second - first + 60);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4: guest data 0x1000-0x2000; guest data 0x0-0x1000",
            "snapshot-table-truncated 1",
        ],
    }
    extra_data_of_more_than_a_kibibyte: SnapshotExtraDataTooLarge {
        forge: with_one,
        harm: |image| image.put_u32(image.snapshot_field(0, "extra_data_size"), 1032),
        report: [
            "do-not-boot",
            "snapshot-extra-data-too-large 1",
            "snapshot-name-unreadable 1",
        ],
    }
    extra_data_of_eight_bytes_in_version_3: SnapshotEntryIncomplete {
        forge: with_one,
        harm: |image| image.put_u32(image.snapshot_field(0, "extra_data_size"), 8),
        report: [
            "repairable",
            "snapshot-entry-incomplete 1",
            "snapshot-name-unreadable 1",
        ],
    }
    snapshot_count_is_one_too_large: SnapshotPhantom {
        forge: with_one,
        harm: |image| image.put_u32(image.field("nb_snapshots"), 2),
        report: [
            "repairable, 1 not walked",
            "snapshot-phantom 1",
        ],
    }
    two_snapshots_with_one_id: SnapshotIdDuplicate {
        forge: with_two,
        harm: |image| image.put_u8(image.snapshot_field(1, "id"), b'1'),
        report: [
            "clean",
            "snapshot-id-duplicate 1",
        ],
    }
    two_snapshots_with_one_name: SnapshotNameDuplicate {
        forge: || plain().snapshot("1", "day1").data(0).snapshot("2", "day2"),
        harm: |image| image.put_u8(image.snapshot_field(1, "name") + 3, b'1'),
        report: [
            "clean",
            "snapshot-name-duplicate 1",
        ],
    }
    snapshot_name_with_an_escape_character: SnapshotNameUnreadable {
        forge: with_one,
        harm: |image| image.put_u8(image.snapshot_field(0, "name"), 0x1b),
        report: [
            "clean",
            "snapshot-name-unreadable 1",
        ],
    }
    snapshot_l1_table_off_the_cluster_boundary: SnapshotL1Unaligned {
        forge: with_one,
        harm: |image| {
            let field = image.snapshot_field(0, "l1_table_offset");
            image.put_u64(field, image.u64_at(field) + 8);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4: guest data 0x1000-0x2000",
            "snapshot-l1-unaligned 1",
        ],
    }
    snapshot_l1_table_of_more_than_32_mebibytes: SnapshotL1TooLarge {
        forge: with_one,
        harm: |image| image.put_u32(image.snapshot_field(0, "l1_size"), (4 << 20) + 1),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4: guest data 0x1000-0x2000",
            "snapshot-l1-too-large 1",
        ],
    }
    snapshot_l1_table_past_the_end_of_the_file: SnapshotL1PastEnd {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.snapshot_field(0, "l1_table_offset"), end + 0x1000);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4: guest data 0x1000-0x2000",
            "snapshot-l1-past-end 1",
        ],
    }
    snapshot_l1_table_shorter_than_its_disk: SnapshotL1TooSmall {
        forge: with_one,
        harm: |image| image.put_u32(image.snapshot_field(0, "l1_size"), 3),
        report: [
            "repairable, 1 not walked",
            "snapshot-l1-too-small 1",
        ],
    }
    vm_state_larger_than_the_l1_table_has_room_for: SnapshotVmStateBeyondL1 {
        forge: with_vm_state,
        harm: |image| image.put_u64(image.snapshot_field(0, "vm_state_size_large"), 3 << 21),
        report: [
            "repairable, 1 not walked",
            "snapshot-vm-state-beyond-l1 1",
        ],
    }
    snapshot_l1_table_loses_its_vm_state: SnapshotVmStateBeyondL1 {
        forge: with_vm_state,
        harm: |image| image.put_u32(image.snapshot_field(0, "l1_size"), 4),
        report: [
            "repairable, 1 not walked",
            "refcount-leak 3",
            "snapshot-vm-state-beyond-l1 1",
        ],
    }
    snapshots_beside_a_data_file: SnapshotsWithDataFile {
        forge: || small().data_file(Some("data.raw")).data(0),
        harm: |image| {
            let mut other = with_one().build();
            let table = image.allocate(1) * image.cluster_size();
            let l1_table = image.allocate(1) * image.cluster_size();
            other.put_u64(other.snapshot_field(0, "l1_table_offset"), l1_table);
            let entry = bytes_at(&other, other.snapshot_entry(0), 80);
            image.put(table, &entry);
            image.put_u64(image.field("snapshots_offset"), table);
            image.put_u32(image.field("nb_snapshots"), 1);
        },
        report: [
            "do-not-boot",
            "snapshots-with-data-file 1",
        ],
    }
    two_snapshots_with_one_l1_table: MetadataOverlap {
        forge: || plain().snapshot("1", "monday").snapshot("2", "tuesday"),
        harm: |image| {
            let first = image.l1_table(Tree::Snapshot(0));
            image.put_u64(image.snapshot_field(1, "l1_table_offset"), first);
        },
        report: [
            "do-not-boot",
            "refcount-leak 1",
            "metadata-overlap 1: L1 table + L1 table",
        ],
    }
    snapshot_l1_table_right_behind_the_end_of_the_file: SnapshotL1PastEnd {
        forge: with_one,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.snapshot_field(0, "l1_table_offset"), end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 4: guest data 0x1000-0x2000",
            "snapshot-l1-past-end 1",
        ],
    }
    snapshot_l1_table_loses_its_data: SnapshotL1TooSmall {
        forge: || plain().data(1600).snapshot("1", "monday").unmap(1600),
        harm: |image| image.put_u32(image.snapshot_field(0, "l1_size"), 3),
        report: [
            "repairable, 1 not walked",
            "refcount-leak 2",
            "snapshot-l1-too-small 1",
        ],
    }
    snapshot_table_pointer_leads_to_zeros: SnapshotPhantom {
        forge: with_two,
        harm: |image| {
            let table = image.allocate(1) * image.cluster_size();
            image.put_u64(image.field("snapshots_offset"), table);
        },
        report: [
            "repairable, 1 not walked",
            "refcount-leak 8: guest data 0x0-0x1000",
            "snapshot-phantom 2",
        ],
    }
    snapshot_entry_is_wiped: SnapshotPhantom {
        forge: with_two,
        harm: |image| {
            let first = image.snapshot_entry(0);
            let second = image.snapshot_entry(1);
            for byte in first..second {
                image.put_u8(second + byte - first, 0);
            }
        },
        report: [
            "repairable, 1 not walked",
            "refcount-leak 4: guest data 0x1000-0x2000; guest data 0x0-0x1000",
            "snapshot-phantom 1",
        ],
    }
    snapshot_table_lies_past_the_end_of_the_file: SnapshotTableTruncated {
        forge: with_two,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.field("snapshots_offset"), end + 0x1000);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 8: guest data 0x0-0x1000",
            "snapshot-table-truncated 1",
            "snapshot-phantom 2",
        ],
    }
    snapshot_table_lies_right_behind_the_end_of_the_file: SnapshotTableTruncated {
        forge: with_two,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.field("snapshots_offset"), end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 8: guest data 0x0-0x1000",
            "snapshot-table-truncated 1",
            "snapshot-phantom 2",
        ],
    }
}
