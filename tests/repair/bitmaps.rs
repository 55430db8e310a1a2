//! Bitmaps: one bad bitmap goes and the others stay, and the image opens again.
//!
//! Comes in: forged images with bitmaps, broken one by one, and those of the corpus. Goes out: the names of the bitmaps
//! that are left. Never here: the bits of a bitmap.

use std::fs;
use std::path::Path;

use qfsck::{Code, Mode, Overlaps, RepairOptions, Severity, StageKind, Verdict};

use super::{Repaired, all, repaired};
use crate::crash::{Score, try_image};
use crate::support::image_forge::{
    AUTOCLEAR_BITMAPS, BitmapCluster, EXTENSION_BITMAPS, Forge, Forged, Tree,
};

type Damage = fn(&mut Forged);

fn plain() -> Forge {
    Forge::new().cluster_bits(12).size(8 << 20).data(0).data(1)
}

fn with_bitmaps(forge: Forge) -> Forge {
    forge
        .bitmap("daily", 16, 0, &[BitmapCluster::Data])
        .bitmap("night", 16, 0, &[BitmapCluster::Data])
        .bitmap("week", 17, 0, &[BitmapCluster::AllOne])
}

/// Enough feature names that the bitmaps extension, which follows them, lies across two sectors.
fn across_sectors(forge: Forge) -> Forge {
    (0..8).fold(forge, |forge, bit| forge.feature_name(1, bit, "feature"))
}

fn three() -> Forge {
    across_sectors(with_bitmaps(plain()))
}

fn names(repaired: &Repaired) -> Vec<String> {
    let names = repaired.plan.after.bitmap_names.iter();
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn damaged(forge: Forge, damage: Damage) -> Forged {
    let mut image = forge.build();
    damage(&mut image);
    image
}

fn has_extension(bytes: &[u8]) -> bool {
    let start = bytes.get(..1024).expect("a header");
    start
        .windows(4)
        .step_by(4)
        .any(|word| word == EXTENSION_BITMAPS.to_be_bytes())
}

/// Whether the two last bytes of the autoclear features say that the bitmaps may be believed.
fn has_bit(bytes: &[u8]) -> bool {
    bytes.get(95).is_some_and(|byte| byte & 1 == 1)
}

/// One thing wrong with the second of three bitmaps.
const BAD_SECOND: [(&str, Damage); 9] = [
    ("type", |image| {
        image.put_u8(image.bitmap_field(1, "type"), 2);
    }),
    ("granularity", |image| {
        image.put_u8(image.bitmap_field(1, "granularity_bits"), 40);
    }),
    ("flags", |image| {
        image.put_u32(image.bitmap_field(1, "flags"), 1 << 20);
    }),
    ("table size", |image| {
        image.put_u32(image.bitmap_field(1, "bitmap_table_size"), 2);
    }),
    ("table past the end", |image| {
        image.put_u64(image.bitmap_field(1, "bitmap_table_offset"), 1 << 40);
    }),
    ("table unaligned", |image| {
        let field = image.bitmap_field(1, "bitmap_table_offset");
        image.put_u64(field, image.u64_at(field) + 512);
    }),
    ("table entry", |image| {
        let entry = image.bitmap_table_entry(1, 0);
        image.put_u64(entry, image.u64_at(entry) | 4);
    }),
    ("data past the end", |image| {
        image.put_u64(image.bitmap_table_entry(1, 0), 1 << 40);
    }),
    ("table is the first one's", |image| {
        let table = image.bitmap_table(0);
        image.put_u64(image.bitmap_field(1, "bitmap_table_offset"), table);
    }),
];

#[test]
fn bad_bitmap_goes_and_the_others_stay() {
    for (what, damage) in BAD_SECOND {
        let image = damaged(three(), damage);
        let done = repaired(&image.bytes, &all());
        let left: &[&str] = if what == "table is the first one's" {
            &["week"]
        } else {
            &["daily", "week"]
        };
        assert_eq!(names(&done), left, "{what}");
        assert!(has_bit(&done.bytes), "{what}");
        let after = &done.plan.after;
        assert_eq!(after.findings.count_of(Severity::Corruption), 0, "{what}");
        assert!(after.coverage.complete().is_some(), "{what}");
    }
}

#[test]
fn clusters_of_a_dropped_bitmap_are_freed() {
    let image = damaged(three(), |image| {
        image.put_u32(image.bitmap_field(1, "bitmap_table_size"), 2);
    });
    let done = repaired(&image.bytes, &all());
    let mut after = three().build();
    after.bytes.clone_from(&done.bytes);
    let data = image.bitmap_data(1, 0).expect("data");
    for freed in [image.bitmap_directory(), image.bitmap_table(1), data] {
        let count = after.refcount(freed / image.cluster_size());
        assert_eq!(count, 0, "{:?}", done.plan.withheld);
    }
}

#[test]
fn clusters_of_a_bitmap_whose_entry_is_wrong_are_freed_where_its_table_names_them() {
    for (what, damage) in BAD_SECOND {
        let is_named = ["type", "granularity", "flags"].contains(&what);
        let image = damaged(three(), damage);
        let (table, data) = {
            let healthy = three().build();
            let data = healthy.bitmap_data(1, 0).expect("data");
            (healthy.bitmap_table(1), data)
        };
        if !is_named {
            continue;
        }
        let done = repaired(&image.bytes, &all());
        let mut after = three().build();
        after.bytes.clone_from(&done.bytes);
        for freed in [table, data] {
            let count = after.refcount(freed / image.cluster_size());
            assert_eq!(count, 0, "{what}: {:?}", done.plan.withheld);
        }
        // Counted for somebody else as well, the table may be theirs.
        let mut image = image;
        image.set_refcount(data / image.cluster_size(), 2);
        let done = repaired(&image.bytes, &all());
        after.bytes.clone_from(&done.bytes);
        for kept in [table, data] {
            let count = after.refcount(kept / image.cluster_size());
            assert!(count > 0, "{what}: freed");
        }
    }
}

#[test]
fn only_bitmap_is_taken_out_of_the_header() {
    for unknown in [None, Some(4)] {
        let forge = plain().bitmap("daily", 16, 0, &[BitmapCluster::Data]);
        let forge = unknown.into_iter().fold(forge, |forge, length| {
            forge.unknown_extension(0x1234_5678, &vec![7; length])
        });
        let image = damaged(forge, |image| {
            image.put_u8(image.bitmap_field(0, "type"), 2);
        });
        let done = repaired(&image.bytes, &all());
        assert!(!has_extension(&done.bytes) && !has_bit(&done.bytes));
        let kept = done.bytes.get(..512).expect("a sector");
        let is_kept = kept
            .windows(4)
            .any(|word| word == 0x1234_5678_u32.to_be_bytes());
        assert_eq!(is_kept, unknown.is_some());
        assert_eq!(done.plan.after.findings.count_of(Severity::Corruption), 0);
        assert_eq!(
            done.plan.after.findings.total_of(Code::BitmapsStale).count,
            0
        );
    }
}

#[test]
fn extension_that_shares_its_sectors_stays_but_is_not_believed() {
    let forge = plain().bitmap("daily", 16, 0, &[BitmapCluster::Data]);
    let forge = forge.unknown_extension(0x1234_5678, &[7; 900]);
    let image = damaged(forge, |image| {
        image.put_u8(image.bitmap_field(0, "type"), 2);
    });
    let done = repaired(&image.bytes, &all());
    assert!(has_extension(&done.bytes) && !has_bit(&done.bytes));
    let is_said = done.plan.withheld.iter();
    let mut is_said = is_said.filter(|withheld| withheld.code == Code::BitmapsStale);
    assert!(is_said.next().is_some(), "{:?}", done.plan.withheld);
}

#[test]
fn of_two_bitmaps_with_one_name_neither_stays() {
    let image = damaged(three(), |image| {
        image.put(image.bitmap_field(1, "name"), b"daily");
    });
    let done = repaired(&image.bytes, &all());
    assert_eq!(names(&done), ["week"]);
}

#[test]
fn bitmaps_that_share_data_go_unless_overlaps_are_kept() {
    let image = damaged(three(), |image| {
        let data = image.bitmap_data(0, 0).expect("data");
        image.put_u64(image.bitmap_table_entry(1, 0), data);
    });
    assert_eq!(names(&repaired(&image.bytes, &all())), ["week"]);
    let keep = RepairOptions {
        overlaps: Overlaps::Keep,
        ..RepairOptions::new(Mode::All)
    };
    let done = repaired(&image.bytes, &keep);
    assert_eq!(names(&done), ["daily", "night", "week"]);
}

#[test]
fn count_of_bitmaps_and_size_of_their_directory_are_put_right_from_each_other() {
    let whole = three().build().bytes;
    for count in [0, 1, 2, 4, 7, 1 << 20] {
        let mut image = three().build();
        image.put_u32(image.extension(EXTENSION_BITMAPS) + 8, count);
        let done = repaired(&image.bytes, &all());
        assert_eq!(done.bytes, whole, "a count of {count}");
    }
    for size in [0, 8, 32, 64, 65, 200, 4096, 4104, 1 << 40] {
        let mut image = three().build();
        image.put_u64(image.extension(EXTENSION_BITMAPS) + 16, size);
        let done = repaired(&image.bytes, &all());
        assert_eq!(done.bytes, whole, "a size of {size}");
    }
    let mut image = three().build();
    image.put_u32(image.extension(EXTENSION_BITMAPS) + 12, 9);
    let done = repaired(&image.bytes, &all());
    assert_eq!(done.bytes, whole, "a reserved field");
}

#[test]
fn size_that_would_lead_to_a_cluster_of_something_else_is_not_believed() {
    let mut image = three().build();
    let table = image.l1_table(Tree::Active);
    image.put_u64(image.bitmap_field(1, "bitmap_table_offset"), table);
    image.put_u64(image.extension(EXTENSION_BITMAPS) + 16, 0);
    let done = repaired(&image.bytes, &all());
    assert_eq!(done.bytes, image.bytes);
}

#[test]
fn what_nothing_proves_is_left_until_the_loss_is_accepted() {
    let harms: [(Damage, Code, &[&str]); 3] = [
        (
            |image| image.put_u32(image.bitmap_field(1, "extra_data_size"), 1 << 30),
            Code::BitmapDirectoryMalformed,
            &["daily"],
        ),
        (
            |image| {
                let field = image.extension(EXTENSION_BITMAPS) + 24;
                image.put_u64(field, image.u64_at(field) + 8);
            },
            Code::BitmapsExtensionMalformed,
            &[],
        ),
        (
            |image| {
                let extension = image.extension(EXTENSION_BITMAPS);
                image.put_u32(extension + 8, 2);
                image.put_u64(extension + 16, 1 << 40);
                image.put_u64(extension + 24, 1 << 41);
            },
            Code::BitmapsExtensionMalformed,
            &[],
        ),
    ];
    for (damage, code, left) in harms {
        let image = damaged(three(), damage);
        let done = repaired(&image.bytes, &all());
        assert_eq!(done.bytes, image.bytes);
        let mut withheld = done.plan.withheld.iter();
        let reason = withheld.find(|it| it.code == code).expect("a reason");
        assert!(reason.reason.contains("--accept-loss"), "{reason:?}");
        let mut wishes = all();
        wishes.accepted_losses.insert(code);
        let done = repaired(&image.bytes, &wishes);
        assert_eq!(names(&done), left);
        let after = &done.plan.after.findings;
        assert_eq!(after.count_of(Severity::Corruption), 0);
    }
}

#[test]
fn length_of_the_extension_is_put_right_where_everything_else_agrees() {
    for length in [8, 16, 23, 32] {
        let mut image = three().build();
        image.put_u32(image.extension(EXTENSION_BITMAPS) + 4, length);
        let done = repaired(&image.bytes, &all());
        assert_eq!(names(&done), ["daily", "night", "week"], "{length}");
        assert_eq!(done.bytes, three().build().bytes, "{length}");
    }
}

#[test]
fn stale_bitmaps_are_removed_with_their_clusters() {
    let image = damaged(three(), |image| {
        image.put_u64(image.field("autoclear_features"), 0);
    });
    let done = repaired(&image.bytes, &all());
    assert!(!has_extension(&done.bytes));
    assert_eq!(
        done.plan.after.verdict,
        Verdict::Clean,
        "{:?}",
        done.plan.withheld
    );
}

#[test]
fn stale_list_whose_clusters_are_in_use_is_not_let_go() {
    let image = damaged(three(), |image| {
        image.put_u64(image.field("autoclear_features"), 0);
        let used = image.host_offset(Tree::Active, 0);
        image.put_u64(image.bitmap_table_entry(1, 0), used.expect("mapped"));
    });
    let done = repaired(&image.bytes, &all());
    assert!(!has_extension(&done.bytes));
    let lowers = done.plan.stages.iter();
    let mut lowers = lowers.filter(|stage| stage.kind == StageKind::LowerRefcounts);
    assert!(lowers.next().is_none(), "a leak may be another's table");
}

#[test]
fn bit_without_bitmaps_is_cleared_unless_something_leaks() {
    let set: Damage = |image| image.put_u64(image.field("autoclear_features"), AUTOCLEAR_BITMAPS);
    let image = damaged(plain(), set);
    assert!(!has_bit(&repaired(&image.bytes, &all()).bytes));
    let mut image = damaged(plain(), set);
    let table = image.allocate(1) * image.cluster_size();
    let leaked = image.allocate(1) * image.cluster_size();
    image.put_u64(table, leaked);
    assert!(has_bit(&repaired(&image.bytes, &all()).bytes));
}

#[test]
fn image_with_healthy_bitmaps_is_left_alone() {
    let image = three().build();
    assert!(repaired(&image.bytes, &all()).plan.is_empty());
}

#[test]
fn power_cuts_while_bitmaps_are_dropped_make_nothing_worse() {
    let mut score = Score::default();
    for (what, damage) in BAD_SECOND {
        try_image(what, &damaged(three(), damage).bytes, false, &mut score);
    }
    let image = damaged(three(), |image| {
        image.put_u32(image.extension(EXTENSION_BITMAPS) + 8, 0);
    });
    try_image("extension", &image.bytes, false, &mut score);
    println!("{} images, {} states", score.images, score.states);
    assert!(score.worse.is_empty(), "{:#?}", score.worse);
    assert!(
        score.undo_mismatches.is_empty(),
        "{:#?}",
        score.undo_mismatches
    );
    assert_eq!(score.images, BAD_SECOND.len() + 1);
}

#[test]
fn bitmaps_of_the_corpus_no_longer_keep_qemu_from_opening_their_images() {
    for name in [
        "263-bitmap-directory-size-wrong",
        "264-bitmap-count-wrong",
        "265-bitmap-table-past-end-of-file",
        "266-bitmap-table-unaligned",
        "267-bitmap-table-size-wrong",
        "268-bitmap-table-entry-reserved-bit",
        "269-bitmap-data-past-end-of-file",
        "271-bitmaps-stale",
        "272-bitmap-duplicate-name",
        "273-bitmaps-bit-without-extension",
        "274-bitmap-flags-reserved-bit",
        "275-bitmap-type-unknown",
        "276-bitmap-granularity-wrong",
        "278-bitmap-in-use-with-bad-table",
        "279-bitmaps-share-data",
        "281-bitmaps-extension-reserved",
        "282-bitmaps-extension-length-wrong",
    ] {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let bytes = fs::read(corpus.join(name).join("image.qcow2")).expect("an image");
        let done = repaired(&bytes, &all());
        let after = &done.plan.after.findings;
        assert_eq!(
            after.count_of(Severity::Corruption),
            0,
            "{name}: {:?}",
            done.plan.withheld
        );
        println!("{name}: {:?}, {:?}", names(&done), done.plan.after.verdict);
    }
}

#[test]
fn what_only_looked_leaked_while_no_directory_was_read_is_no_reason_for_a_second_repair() {
    let mut image = three().build();
    let size = image.extension(EXTENSION_BITMAPS) + 16;
    image.put_u64(size, image.u64_at(size) | 1 << 21);
    let entry = image.l1_entry(Tree::Active, 0);
    image.put_u64(entry, image.u64_at(entry) | 1);
    let done = repaired(&image.bytes, &all());
    assert_eq!(names(&done), ["daily", "night", "week"]);
    assert_eq!(done.plan.after.verdict, Verdict::Clean);
    assert_eq!(done.bytes, three().build().bytes, "two bits, at once");
}
