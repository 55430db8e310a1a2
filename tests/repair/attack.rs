//! Attacks: damages that once made a repair lose what could have been saved, told by what the image was before them.
//!
//! Comes in: forged images, with one realistic damage or two. Goes out: the image after three repairs in a row. Never here:
//! a loss that nobody could have told from the bytes.

use qfsck::{Code, Mode, Plan, RepairOptions, StageKind};

use super::guest::Guest;
use super::{planned, repaired};
use crate::support::image_forge::{BitmapCluster, Forge, Forged, Tree};

const MODES: [[Mode; 3]; 2] = [
    [Mode::All, Mode::Leaks, Mode::All],
    [Mode::Leaks, Mode::All, Mode::All],
];

/// Repairs three times; every plan on the way goes to `look`.
fn attacked(image: &Forged, mut look: impl FnMut(&Plan, &[u8])) {
    for modes in MODES {
        let mut bytes = image.bytes.clone();
        for mode in modes {
            let before = Guest::of(&bytes);
            let wishes = RepairOptions::new(mode);
            let plan = planned(&bytes, &wishes).expect("an image");
            crate::plan::apply(&plan, &mut bytes);
            let losses = before.losses(&Guest::of(&bytes));
            assert!(losses.is_empty(), "{losses:?}");
            let again = planned(&bytes, &wishes).expect("an image");
            assert!(again.is_empty(), "a second repair: {:?}", again.stages);
            look(&plan, &bytes);
        }
    }
}

fn does(plan: &Plan, kind: StageKind) -> bool {
    plan.stages.iter().any(|stage| stage.kind == kind)
}

/// No count goes down, no flag says that a cluster has one owner.
fn frees_nothing(image: &Forged) {
    attacked(image, |plan, _| {
        let kinds = [StageKind::LowerRefcounts, StageKind::SetCopied];
        assert!(
            !kinds.iter().any(|&kind| does(plan, kind)),
            "{:?}",
            plan.stages
        );
    });
}

fn six_clusters(bits: u32) -> Forge {
    let forge = Forge::new().cluster_bits(bits).size(64 << bits);
    (0..6).fold(forge, Forge::data)
}

fn wipe(image: &mut Forged, offset: u64) {
    image.put(offset, &[0; 512]);
}

#[test]
fn l1_offset_that_names_an_l2_table_frees_nothing() {
    for bits in [9, 12, 16] {
        let mut image = six_clusters(bits).build();
        let wrong = image.l2_table(Tree::Active, 0);
        image.put_u64(image.field("l1_table_offset"), wrong);
        frees_nothing(&image);
    }
}

#[test]
fn snapshot_that_has_not_diverged_keeps_its_counts_when_its_l1_table_is_zeroed() {
    for bits in [9, 12, 16] {
        let mut image = six_clusters(bits).snapshot("1", "one").build();
        let table = image.l1_table(Tree::Snapshot(0));
        wipe(&mut image, table);
        frees_nothing(&image);
    }
}

#[test]
fn snapshot_that_has_diverged_keeps_its_counts_when_its_l2_table_is_zeroed() {
    let forge = six_clusters(9).snapshot("1", "one").data(2);
    let mut image = forge.build();
    let table = image.l2_table(Tree::Snapshot(0), 0);
    wipe(&mut image, table);
    frees_nothing(&image);
}

#[test]
fn snapshot_table_cut_off_together_with_the_refcounts_is_not_taken_for_nothing() {
    for bits in [9, 12] {
        let mut image = six_clusters(bits).snapshot("1", "one").build();
        let length = image.snapshot_table();
        image.truncate(length);
        attacked(&image, |plan, bytes| {
            assert!(!does(plan, StageKind::LowerRefcounts), "{:?}", plan.stages);
            assert!(!does(plan, StageKind::SetCopied), "{:?}", plan.stages);
            assert_eq!(
                bytes.get(60..64),
                Some([0, 0, 0, 1].as_slice()),
                "nb_snapshots"
            );
        });
    }
}

#[test]
fn lost_table_that_maps_only_zeros_over_a_backing_file_is_not_freed() {
    let forge = Forge::new().cluster_bits(12).size(64 << 12);
    let mut image = forge.backing_file("base").zero_plain(3).build();
    image.put_u64(image.l1_entry(Tree::Active, 0), 0);
    frees_nothing(&image);
}

fn with_bitmap(forge: Forge) -> Forged {
    forge
        .bitmap("changes", 12, 0, &[BitmapCluster::Data])
        .build()
}

fn keeps_bitmaps(image: &Forged) {
    attacked(image, |plan, _| {
        assert!(!does(plan, StageKind::SuspendBitmaps), "{:?}", plan.stages);
    });
}

#[test]
fn bitmaps_are_not_dropped_because_the_size_of_the_disk_is_damaged() {
    for size in [0, 64 << 12 | 1 << 40] {
        let mut image = with_bitmap(six_clusters(12));
        image.put_u64(image.field("size"), size);
        keeps_bitmaps(&image);
    }
}

#[test]
fn bitmap_is_not_dropped_because_a_damaged_entry_names_its_cluster() {
    let mut image = with_bitmap(six_clusters(12));
    let bits = image.bitmap_data(0, 0).expect("data");
    image.put_u64(image.l2_entry(Tree::Active, 2), bits | 1 << 63);
    keeps_bitmaps(&image);
}

#[test]
fn bit_that_makes_entries_longer_changes_none_of_them() {
    for bits in [9, 12] {
        let forge = six_clusters(bits).compressed(9, 100).zero_allocated(7);
        let mut image = forge.build();
        image.put_u64(image.field("incompatible_features"), 1 << 4);
        attacked(&image, |plan, _| {
            assert!(!does(plan, StageKind::CorrectEntries), "{:?}", plan.stages);
        });
    }
}

#[test]
fn intact_refcount_block_that_a_damaged_entry_names_keeps_what_it_counts() {
    let mut image = six_clusters(12).snapshot("1", "one").build();
    let shared = image.host_cluster(Tree::Active, 1);
    let block = image.refcount_block(0);
    image.put_u64(image.l2_entry(Tree::Active, 5), block | 1 << 63);
    image.put_u32(image.field("nb_snapshots"), 0);
    attacked(&image, |plan, _| {
        assert!(!does(plan, StageKind::SetCopied), "{:?}", plan.stages);
        let leaks = plan.after.findings.total_of(Code::RefcountLeak).count;
        assert!(leaks > 6, "cluster {shared} and others: {leaks}");
    });
}

#[test]
fn what_a_bitmap_past_the_end_was_in_the_way_of_is_done_in_the_same_repair() {
    let mut image = with_bitmap(six_clusters(12));
    image.put_u64(image.bitmap_table_entry(0, 0), 1 << 30);
    image.put_u32(image.field("refcount_table_clusters"), 0);
    let done = repaired(&image.bytes, &RepairOptions::new(Mode::All));
    let missing = done
        .plan
        .after
        .findings
        .total_of(Code::RefcountTableMissing);
    assert_eq!(missing.count, 0, "{:?}", done.plan.withheld);
}

#[test]
fn flags_tell_of_a_lost_snapshot_where_the_counts_are_lost_too() {
    for (cluster_bits, damage) in [
        (9, "clusters"),
        (12, "clusters"),
        (12, "block"),
        (16, "block"),
    ] {
        let mut image = six_clusters(cluster_bits).snapshot("1", "one").build();
        image.put_u32(image.field("nb_snapshots"), 0);
        if damage == "block" {
            image.put_u64(image.refcount_table_entry(0), 0);
        } else {
            image.put_u32(image.field("refcount_table_clusters"), 0);
        }
        attacked(&image, |plan, _| {
            assert!(!does(plan, StageKind::SetCopied), "{:?}", plan.stages);
        });
    }
}

#[test]
fn table_that_is_said_to_be_longer_drops_no_bitmap() {
    for cluster_bits in [9, 12] {
        let mut image = with_bitmap(six_clusters(cluster_bits));
        let size = image.cluster_size();
        // The L1 table, and right behind it a bitmap table that says "all clear".
        let (old, old_bitmap) = (image.l1_table(Tree::Active), image.bitmap_table(0));
        let data = image.bitmap_data(0, 0);
        let (l1, bitmap) = (image.allocate(1) * size, image.allocate(1) * size);
        for entry in 0..u64::from(image.l1_size(Tree::Active)) {
            image.put_u64(l1 + entry * 8, image.u64_at(old + entry * 8));
        }
        image.put_u64(image.field("l1_table_offset"), l1);
        image.put_u64(image.bitmap_field(0, "bitmap_table_offset"), bitmap);
        for unused in [Some(old), Some(old_bitmap), data].into_iter().flatten() {
            image.set_refcount(unused / size, 0);
        }
        let entries = u32::try_from(size / 8 + 1).expect("a small table");
        image.put_u32(image.field("l1_size"), entries);
        attacked(&image, |plan, _| {
            assert!(!does(plan, StageKind::SuspendBitmaps), "{:?}", plan.stages);
            let overlaps = plan.after.findings.total_of(Code::MetadataOverlap).count;
            assert_eq!(overlaps, 1, "{:?}", plan.after.findings);
        });
    }
}

#[test]
fn snapshot_that_a_stale_header_does_not_count_keeps_its_empty_tables() {
    for bits in [9, 12] {
        let forge = Forge::new().cluster_bits(bits).size(64 << bits);
        let forge = forge.snapshot("1", "empty").snapshot("2", "empty too");
        let mut image = (0..6).fold(forge, Forge::data).build();
        image.put_u32(image.field("nb_snapshots"), 1);
        frees_nothing(&image);
    }
}

#[test]
fn l2_table_that_an_l1_size_leaves_out_is_not_freed_be_it_empty() {
    for bits in [9, 12] {
        let per_table = (1 << bits) / 8;
        let forge = six_clusters(bits).size((per_table * 3) << bits);
        let mut image = forge.data(per_table * 2).build();
        let last = image.l2_table(Tree::Active, per_table * 2);
        wipe(&mut image, last);
        let data = image.cluster_count() - 1;
        assert!(data > 0);
        image.put_u32(image.field("l1_size"), 2);
        image.put_u64(image.field("size"), (per_table * 2) << bits);
        attacked(&image, |plan, bytes| {
            let at = usize::try_from(image.refcount_entry(last >> bits)).expect("small");
            assert_eq!(
                bytes.get(at..at + 2),
                Some([0, 1].as_slice()),
                "{:?}",
                plan.stages
            );
        });
    }
}

#[test]
fn refcount_table_that_is_said_to_be_larger_is_made_smaller_and_nothing_else() {
    for (bits, clusters) in [(9, 2), (9, 0x2001), (12, 3), (12, 0x8000_0001), (16, 2)] {
        let image = six_clusters(bits).snapshot("1", "one").build();
        let mut damaged = six_clusters(bits).snapshot("1", "one").build();
        damaged.put_u32(damaged.field("refcount_table_clusters"), clusters);
        let done = repaired(&damaged.bytes, &RepairOptions::new(Mode::All));
        assert!(done.bytes == image.bytes, "{clusters:#x} of 2^{bits} bytes");
    }
}

#[test]
fn lost_tree_keeps_its_counts_beside_a_refcount_table_that_is_said_to_be_larger() {
    for (bits, clusters) in [(9, 2), (9, 0x2001), (12, 3), (12, 0x8000_0001)] {
        let mut image = six_clusters(bits).snapshot("1", "one").build();
        let table = image.l1_table(Tree::Snapshot(0));
        wipe(&mut image, table);
        image.put_u32(image.field("refcount_table_clusters"), clusters);
        frees_nothing(&image);
    }
}

#[test]
fn pointer_into_the_refcounts_frees_not_what_it_may_have_meant() {
    for bits in [9, 12] {
        let mut image = six_clusters(bits).build();
        let block = image.refcount_block(0);
        image.put_u64(image.l2_entry(Tree::Active, 3), block | 1 << 63);
        frees_nothing(&image);
    }
}

#[test]
fn flags_tell_of_a_lost_snapshot_where_a_sector_of_counts_is_zero() {
    for bits in [9, 12] {
        let mut image = six_clusters(bits).snapshot("1", "one").build();
        image.put_u32(image.field("nb_snapshots"), 0);
        let block = image.refcount_block(0);
        wipe(&mut image, block);
        attacked(&image, |plan, _| {
            assert!(!does(plan, StageKind::SetCopied), "{:?}", plan.stages);
        });
    }
}

#[test]
fn bit_without_bitmaps_goes_with_the_leaks_in_one_repair() {
    let mut image = six_clusters(9).build();
    image.put_u64(image.field("autoclear_features"), 1);
    image.put_u32(image.field("refcount_table_clusters"), 0x0400_0001);
    let leak = image.allocate(1);
    assert!(leak > 0);
    let done = repaired(&image.bytes, &RepairOptions::new(Mode::All));
    let totals = done.plan.after.findings.totals().count();
    assert_eq!(totals, 0, "{:?}", done.plan.after.findings);
}
