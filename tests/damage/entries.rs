//! Damage to single L2 entries.

use super::{plain, small};
use crate::support::image_forge::{Forge, Forged, INCOMPATIBLE_DATA_FILE, Tree};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

fn with_data_file() -> Forge {
    small().data_file(Some("data.raw")).data(0).data(1)
}

fn with_compressed() -> Forge {
    small().compressed(0, 600).compressed(1, 600)
}

/// 16 KiB clusters of 32 subclusters.
fn with_subclusters() -> Forge {
    Forge::new()
        .cluster_bits(14)
        .extended_l2()
        .data(0)
        .subclusters(1, 0x0000ffff, 0xffff0000)
}

/// Version 3 and 2 differ in the header; the mapping is the same.
fn version_2() -> Forge {
    plain().version(2)
}

/// Changes the L2 entry of a guest cluster.
fn alter(image: &mut Forged, guest_cluster: u64, change: impl Fn(u64) -> u64) {
    let entry = image.l2_entry(Tree::Active, guest_cluster);
    image.put_u64(entry, change(image.u64_at(entry)));
}

/// Changes the subcluster bitmap of a guest cluster.
fn alter_bitmap(image: &mut Forged, guest_cluster: u64, change: impl Fn(u64) -> u64) {
    let bitmap = image.l2_entry(Tree::Active, guest_cluster) + 8;
    image.put_u64(bitmap, change(image.u64_at(bitmap)));
}

/// Compressed data is counted in sectors, and writers do not fill the last one.
#[test]
fn compressed_data_may_end_in_a_sector_the_file_has_only_in_part() {
    let mut image = with_compressed().build();
    let cluster = image.allocate(1);
    let offset = cluster * image.cluster_size();
    image.put_u64(
        image.l2_entry(Tree::Active, 7),
        COMPRESSED | 1 << 58 | offset,
    );
    image.truncate(offset + 600);
    let check = super::check(&image.bytes, qfsck::Options::default());
    assert_eq!(super::lines(&check), ["clean"]);
}

/// Writers with several threads write in any order, and what is small shares a sector.
#[test]
fn small_compressed_clusters_may_be_written_in_any_order() {
    let image = small()
        .compressed(0, 600)
        .compressed(7, 100)
        .compressed(1, 600);
    let check = super::check(&image.build().bytes, qfsck::Options::default());
    assert_eq!(super::lines(&check), ["clean"]);
}

damages! {
    reserved_bits_in_an_l2_entry: L2EntryReservedBits {
        forge: plain,
        harm: |image| alter(image, 1, |word| word | 1 << 58 | 1 << 4),
        report: [
            "repairable",
            "l2-entry-reserved-bits 1",
        ],
    }
    l2_entry_off_the_cluster_boundary_makes_its_cluster_look_leaked: L2EntryUnaligned {
        forge: plain,
        harm: |image| alter(image, 1, |word| word + 512),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "l2-entry-unaligned 1",
        ],
    }
    l2_entry_past_the_end_of_the_file: L2EntryPastEnd {
        forge: plain,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            alter(image, 1, |_| end | COPIED);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "l2-entry-past-end 1",
        ],
    }
    entry_in_a_shared_table_counts_once_for_each_tree: L2EntryPastEnd {
        forge: || plain().snapshot("1", "before"),
        harm: |image| alter(image, 1, |word| word | 1 << 50),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "l2-entry-past-end 2",
        ],
    }
    l2_entry_that_is_only_copied: L2EntryWithoutOffset {
        forge: plain,
        harm: |image| alter(image, 7, |_| COPIED),
        report: [
            "repairable, 1 not walked",
            "l2-entry-without-offset 1",
        ],
    }
    zero_flag_in_version_2: ZeroFlagInV2 {
        forge: version_2,
        harm: |image| alter(image, 1, |word| word | 1),
        report: [
            "do-not-boot",
            "zero-flag-in-v2 1",
        ],
    }
    subcluster_both_allocated_and_zero: SubclusterAllocatedAndZero {
        forge: with_subclusters,
        harm: |image| alter_bitmap(image, 1, |bits| bits | 1 << 32),
        report: [
            "do-not-boot",
            "subcluster-allocated-and-zero 1",
        ],
    }
    subclusters_allocated_without_a_host_cluster: SubclusterWithoutCluster {
        forge: with_subclusters,
        harm: |image| alter_bitmap(image, 9, |_| 1),
        report: [
            "do-not-boot, 1 not walked",
            "subcluster-without-cluster 1",
        ],
    }
    zero_flag_beside_a_subcluster_bitmap: ExtendedL2ZeroFlag {
        forge: with_subclusters,
        harm: |image| alter(image, 1, |word| word | 1),
        report: [
            "clean",
            "extended-l2-zero-flag 1",
        ],
    }
    compressed_cluster_with_copied_set: CompressedCopied {
        forge: with_compressed,
        harm: |image| alter(image, 1, |word| word | COPIED),
        report: [
            "repairable",
            "compressed-copied 1",
        ],
    }
    compressed_data_past_the_end_of_the_file: CompressedPastEnd {
        forge: with_compressed,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            alter(image, 1, |_| COMPRESSED | 7 << 58 | end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1: compressed guest data 0x0-0x1000",
            "compressed-past-end 1",
        ],
    }
    compressed_cluster_with_a_subcluster_bitmap: CompressedWithSubclusters {
        forge: || with_subclusters().compressed(2, 100),
        harm: |image| alter_bitmap(image, 2, |_| 1),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "compressed-with-subclusters 1",
        ],
    }
    compressed_cluster_beside_a_data_file: CompressedWithDataFile {
        forge: with_data_file,
        harm: |image| alter(image, 1, |_| COMPRESSED | 0x1000),
        report: [
            "do-not-boot, 1 not walked",
            "compressed-with-data-file 1",
        ],
    }
    data_file_bit_appears_in_an_image_without_one: CompressedWithDataFile {
        forge: with_compressed,
        harm: |image| image.put_u64(image.field("incompatible_features"), INCOMPATIBLE_DATA_FILE),
        report: [
            "do-not-boot, 1 not walked",
            "data-file-name-missing 1",
            "refcount-leak 1",
            "compressed-with-data-file 2",
        ],
    }
    compressed_data_begins_inside_other_compressed_data: CompressedExtentOverlap {
        forge: || small().compressed(0, 2000).compressed(1, 600),
        harm: |image| alter(image, 1, |word| word - 1500),
        report: [
            "repairable",
            "compressed-extent-overlap 1",
        ],
    }
    two_guest_clusters_name_the_same_compressed_data: CompressedExtentOverlap {
        forge: with_compressed,
        harm: |image| {
            let first = image.u64_at(image.l2_entry(Tree::Active, 0));
            alter(image, 1, |_| first);
        },
        report: [
            "repairable",
            "compressed-extent-overlap 1",
        ],
    }
    data_behind_the_end_of_the_virtual_disk: MappingPastVirtualSize {
        forge: plain,
        harm: |image| image.put_u64(image.field("size"), 4096),
        report: [
            "clean",
            "mapping-past-virtual-size 1",
        ],
    }
    copied_is_clear_at_a_count_of_one: CopiedFlagMissing {
        forge: plain,
        harm: |image| alter(image, 1, |word| word & !COPIED),
        report: [
            "repairable",
            "copied-flag-missing 1",
        ],
    }
    copied_is_clear_in_the_l1_entry_at_a_count_of_one: CopiedFlagMissing {
        forge: plain,
        harm: |image| {
            let entry = image.l1_entry(Tree::Active, 0);
            image.put_u64(entry, image.u64_at(entry) & !COPIED);
        },
        report: [
            "repairable",
            "copied-flag-missing 1",
        ],
    }
    copied_is_clear_on_a_preallocated_zero_cluster: CopiedFlagMissing {
        forge: || plain().zero_allocated(2),
        harm: |image| alter(image, 2, |word| word & !COPIED),
        report: [
            "repairable",
            "copied-flag-missing 1",
        ],
    }
    copied_is_clear_in_a_data_file: CopiedFlagMissing {
        forge: with_data_file,
        harm: |image| alter(image, 1, |word| word & !COPIED),
        report: [
            "repairable",
            "copied-flag-missing 1",
        ],
    }
    copied_is_set_on_data_a_snapshot_shares: CopiedFlagStale {
        forge: || plain().snapshot("1", "before").data(0),
        harm: |image| alter(image, 1, |word| word | COPIED),
        report: [
            "do-not-boot",
            "copied-flag-stale 1",
        ],
    }
    copied_is_set_on_an_l2_table_a_snapshot_shares: CopiedFlagStale {
        forge: || plain().snapshot("1", "before"),
        harm: |image| {
            let entry = image.l1_entry(Tree::Active, 0);
            image.put_u64(entry, image.u64_at(entry) | COPIED);
        },
        report: [
            "do-not-boot",
            "copied-flag-stale 1",
        ],
    }
    copied_is_set_in_a_table_only_a_snapshot_has: CopiedFlagInactive {
        forge: || plain().snapshot("1", "before").data(0),
        harm: |image| {
            let entry = image.l2_entry(Tree::Snapshot(0), 0);
            image.put_u64(entry, image.u64_at(entry) | COPIED);
        },
        report: [
            "clean",
            "copied-flag-inactive 1",
        ],
    }
    guest_cluster_at_another_offset_of_the_data_file: DataFileOffsetMismatch {
        forge: with_data_file,
        harm: |image| alter(image, 1, |word| word + 0x4000),
        report: [
            "do-not-boot, 1 not walked",
            "data-file-offset-mismatch 1",
        ],
    }
    guest_cluster_past_the_end_of_the_data_file: DataFilePastEnd {
        forge: with_data_file,
        harm: |image| alter(image, 2, |_| 0x2000 | COPIED),
        options: qfsck::Options { data_file_bytes: Some(0x2000), ..Default::default() },
        report: [
            "clean",
            "data-file-past-end 1",
        ],
    }
    compressed_data_right_behind_the_end_of_the_file: CompressedPastEnd {
        forge: with_compressed,
        harm: |image| {
            let cluster = image.allocate(1);
            let offset = cluster * image.cluster_size();
            image.put_u64(image.l2_entry(Tree::Active, 7), COMPRESSED | 3 << 58 | offset);
            image.truncate(offset);
        },
        report: [
            "do-not-boot, 1 not walked",
            "compressed-past-end 1",
            "file-truncated 1",
        ],
    }
    compressed_data_is_cut_off_in_the_middle: CompressedPastEnd {
        forge: with_compressed,
        harm: |image| {
            let cluster = image.allocate(1);
            let offset = cluster * image.cluster_size();
            image.put_u64(image.l2_entry(Tree::Active, 7), COMPRESSED | 6 << 58 | offset);
            image.truncate(offset + 600);
        },
        report: [
            "do-not-boot, 1 not walked",
            "compressed-past-end 1",
        ],
    }
    l2_entry_loses_its_offset: L2EntryWithoutOffset {
        forge: plain,
        harm: |image| alter(image, 1, |_| COPIED),
        report: [
            "repairable, 1 not walked",
            "refcount-leak 1",
            "l2-entry-without-offset 1",
        ],
    }
    subclusters_lose_their_host_cluster: SubclusterWithoutCluster {
        forge: with_subclusters,
        harm: |image| alter(image, 1, |_| 0),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1",
            "subcluster-without-cluster 1",
        ],
    }
    data_file_bit_appears_over_standard_clusters: DataFileOffsetMismatch {
        forge: plain,
        harm: |image| image.put_u64(image.field("incompatible_features"), INCOMPATIBLE_DATA_FILE),
        report: [
            "do-not-boot, 1 not walked",
            "data-file-name-missing 1",
            "data-file-offset-mismatch 2",
            "refcount-leak 2",
        ],
    }
    extended_l2_bit_disappears: L2EntryUnaligned {
        forge: with_subclusters,
        harm: |image| image.put_u64(image.field("incompatible_features"), 0),
        report: [
            "do-not-boot, 1 not walked",
            "l2-entry-reserved-bits 1",
            "l2-entry-unaligned 1",
            "compressed-copied 1",
            "compressed-past-end 1",
        ],
    }
    compressed_bit_appears: CompressedCopied {
        forge: plain,
        harm: |image| alter(image, 1, |word| word | COMPRESSED),
        report: [
            "repairable",
            "compressed-copied 1",
        ],
    }
    compressed_bit_disappears: L2EntryUnaligned {
        forge: with_compressed,
        harm: |image| alter(image, 1, |word| word & !COMPRESSED),
        report: [
            "do-not-boot, 1 not walked",
            "refcount-leak 1: compressed guest data 0x0-0x1000",
            "l2-entry-reserved-bits 1",
            "l2-entry-unaligned 1",
        ],
    }
}
