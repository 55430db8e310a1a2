//! Refcount blocks and tables that are damaged, lost, or not there.
//!
//! Comes in: forged images, over versions, cluster sizes and refcount widths. Goes out: nothing, or a repair that breaks
//! a promise. Never here: counts in sound blocks (`plan`, `crash`).

use std::path::Path;

use qfsck::{
    Code, Image, Mode, Options, Plan, Progress, RepairOptions, Severity, StageKind, Verdict,
};

use super::{all, repaired};
use crate::plan::apply;
use crate::support::image_forge::{Forge, Forged, Tree};

type Damage = fn(&mut Forged);

/// What happens to the refcount structures.
pub(crate) const DAMAGES: [(&str, Damage); 11] = [
    ("table offset lost", |image| {
        image.put_u64(image.field("refcount_table_offset"), 0);
    }),
    ("table without clusters", |image| {
        image.put_u32(image.field("refcount_table_clusters"), 0);
    }),
    ("table off the boundary", |image| {
        let field = image.field("refcount_table_offset");
        image.put_u64(field, image.u64_at(field) + 8);
    }),
    ("table far past the end", |image| {
        image.put_u64(image.field("refcount_table_offset"), 1 << 40);
    }),
    ("table of zeros", |image| {
        let table = image.refcount_table();
        let zeros = vec![0; usize::try_from(image.cluster_size()).expect("small")];
        image.put(table, &zeros);
    }),
    ("entry lost", |image| {
        image.put_u64(image.refcount_table_entry(0), 0);
    }),
    ("entry past the end", |image| {
        let entry = image.refcount_table_entry(0);
        image.put_u64(entry, image.u64_at(entry) | 1 << 43);
    }),
    ("entry off the boundary", |image| {
        let entry = image.refcount_table_entry(0);
        image.put_u64(entry, image.u64_at(entry) + 512);
    }),
    ("stray entry past the end", |image| {
        image.put_u64(image.refcount_table_entry(5), 1 << 43);
    }),
    ("block is guest data as well", |image| {
        let block = image.refcount_block(0);
        let entry = image.l2_entry(Tree::Active, 3);
        image.put_u64(entry, block | 1 << 63);
    }),
    ("table is an L2 table as well", |image| {
        let table = image.refcount_table();
        let entry = image.l1_entry(Tree::Active, 0);
        let (l2_table, size) = (image.l2_table(Tree::Active, 0), image.cluster_size());
        let start = usize::try_from(l2_table).expect("small");
        let end = start + usize::try_from(size).expect("small");
        let content = image.bytes.get(start..end).expect("in the file").to_vec();
        image.put(table, &content);
        image.put_u64(entry, table | 1 << 63);
    }),
];

pub(crate) fn images() -> Vec<(String, Forged)> {
    let mut images = Vec::new();
    for (version, order) in [(2, 4), (3, 0), (3, 2), (3, 4), (3, 6)] {
        for cluster_bits in [9, 12, 16] {
            for with_snapshot in [false, true] {
                // Counts of one bit leave no room for a second user.
                if order == 0 && with_snapshot {
                    continue;
                }
                let size = 4096_u64 << cluster_bits;
                let forge = Forge::new().version(version).cluster_bits(cluster_bits);
                let forge = forge.refcount_order(order).size(size);
                let forge = (0..70).fold(forge, Forge::data);
                let forge = if with_snapshot {
                    forge.snapshot("1", "one").data(2).data(9)
                } else {
                    forge
                };
                let name = format!("v{version} {cluster_bits} {order} {with_snapshot}");
                images.push((name, forge.build()));
            }
        }
    }
    images
}

#[test]
fn lost_refcounts_are_rebuilt_beside_the_old() {
    let mut done = 0;
    for (what, damage) in DAMAGES {
        for (name, mut image) in images() {
            let has_entry_5 = image.cluster_size() / 8 > 5;
            if what.starts_with("entry off") && image.cluster_size() == 512
                || what.starts_with("stray") && !has_entry_5
            {
                continue;
            }
            damage(&mut image);
            let before = image.bytes.clone();
            let done_to = repaired(&image.bytes, &all());
            let plan = &done_to.plan;
            if what.starts_with("block is guest data") {
                // The pointer may have meant what looks leaked: first the evidence.
                let mut kinds = plan.stages.iter().map(|stage| stage.kind);
                let moves = kinds.any(|kind| kind == StageKind::SwitchRefcounts);
                assert!(!moves, "{what}, {name}: {:?}", plan.stages);
                let mut withheld = plan.withheld.iter();
                let is_said = withheld.any(|it| it.code == Code::MetadataOverlap);
                assert!(is_said, "{what}, {name}: {:?}", plan.withheld);
                continue;
            }
            assert!(!plan.is_empty(), "{what}, {name}: {:?}", plan.withheld);
            if !what.contains("as well") {
                // An old table that nothing names any more looks like the lost mapping of something: it stays a leak.
                let is_mended = plan.after.verdict == Verdict::Clean
                    || plan.after.verdict == Verdict::Leaks && what.starts_with("table");
                assert!(is_mended, "{what}, {name}: {:?}", plan.after.findings);
            }
            // Nothing of the old structures is written over before the switch: the way back is short.
            let is_in_place = what.starts_with("stray");
            let switches = plan
                .stages
                .iter()
                .any(|stage| stage.kind == StageKind::SwitchRefcounts);
            assert_eq!(switches, !is_in_place, "{what}, {name}");
            let grown = done_to.bytes.len().saturating_sub(before.len());
            assert!(grown < 64 << 16, "{what}, {name}: grows by {grown} bytes");
            done += 1;
        }
    }
    println!("{done} images with damaged refcount structures");
    assert!(done > 200);
}

#[test]
fn leaks_alone_ask_for_no_new_structures() {
    for (_, mut image) in images() {
        image.put_u64(image.refcount_table_entry(0), 0);
        let done = repaired(&image.bytes, &RepairOptions::new(Mode::Leaks));
        assert!(done.plan.is_empty());
    }
}

/// Plans for a block device with these bytes.
fn planned_on_a_device(bytes: &[u8]) -> Plan {
    let image = Image::open(bytes.to_vec(), Path::new("device")).expect("an image");
    let options = Options {
        is_block_device: true,
        ..Options::default()
    };
    qfsck::plan(&image, &all(), options, &Progress::default()).expect("memory can be read")
}

#[test]
fn on_a_block_device_new_structures_go_behind_the_image_and_never_past_the_device() {
    for (name, mut image) in images() {
        image.put_u64(image.refcount_table_entry(0), 0);
        let end = image.bytes.len();
        let mut device = image.bytes.clone();
        // Somebody else's leavings: what is behind the image is nobody's.
        device.resize(end + (96 << 10) + (96 << 16), 0x5a);
        let plan = planned_on_a_device(&device);
        assert_eq!(plan.length_bytes_after, device.len() as u64, "{name}");
        let mut repaired = device.clone();
        apply(&plan, &mut repaired);
        let again = planned_on_a_device(&repaired);
        assert!(again.is_empty(), "{name}: {:?}", again.stages);
        let corruptions = plan.after.findings.count_of(Severity::Corruption);
        assert_eq!(corruptions, 0, "{name}: {:?}", plan.withheld);
        assert_eq!(repaired.get(..8), device.get(..8), "{name}");
    }
}

#[test]
fn on_a_full_block_device_nothing_is_done_and_what_is_missing_is_said() {
    let forge = Forge::new().cluster_bits(12).size(4096 << 12);
    let mut image = (0..70).fold(forge, Forge::data).build();
    image.put_u64(image.refcount_table_entry(0), 0);
    let plan = planned_on_a_device(&image.bytes);
    let reasons: Vec<&str> = plan.withheld.iter().map(|it| it.reason.as_str()).collect();
    let is_said = |reason: &&str| reason.contains("4096 bytes") && reason.contains("device");
    assert!(plan.is_empty(), "{:?}", plan.stages);
    assert!(reasons.iter().any(is_said), "{reasons:?}");
}

#[test]
fn header_that_compressed_data_lies_over_is_not_written_to() {
    for cluster_bits in [9, 12] {
        let forge = Forge::new()
            .cluster_bits(cluster_bits)
            .size(4096 << cluster_bits);
        let mut image = (0..20).fold(forge, Forge::data).build();
        // Compressed data may begin at any byte.
        image.put_u64(image.l2_entry(Tree::Active, 3), 1 << 62 | 8);
        image.put_u64(image.refcount_table_entry(0), 0);
        let plan = super::planned(&image.bytes, &all()).expect("an image");
        let mut edits = plan.stages.iter().flat_map(|stage| &stage.edits);
        assert!(!edits.any(|edit| edit.offset == 0), "{:?}", plan.stages);
        let mut reasons = plan.withheld.iter();
        let is_said = reasons.any(|it| it.reason.contains("header's cluster"));
        assert!(is_said, "{:?}", plan.withheld);
    }
}

#[test]
fn a_block_that_holds_something_else_is_left_as_it_is_and_built_anew() {
    let mut done = 0;
    for text in [&b"precious"[..], b"\x35\x57\x72\x23", b"\xff"] {
        for (name, mut image) in images() {
            if name.contains(" 0 ") || image.snapshot_count() > 0 {
                // With one bit for each cluster anything reads as counts; what a snapshot names as well is contested.
                continue;
            }
            // Data that no table names any more, and a refcount table that does.
            let cluster = image.host_cluster(Tree::Active, 20);
            let size = usize::try_from(image.cluster_size()).expect("small");
            let content: Vec<u8> = text.iter().copied().cycle().take(size).collect();
            image.put(cluster * image.cluster_size(), &content);
            image.put_u64(image.l2_entry(Tree::Active, 20), 0);
            image.put_u64(
                image.refcount_table_entry(0),
                cluster * image.cluster_size(),
            );
            for mode in [Mode::Leaks, Mode::All] {
                let repaired = repaired(&image.bytes, &RepairOptions::new(mode));
                let start = usize::try_from(cluster).expect("small") * size;
                let now = repaired.bytes.get(start..start + size);
                assert!(
                    now == Some(&content),
                    "{name}, {text:?}, {mode:?}: other bytes"
                );
                let is_mended = repaired.plan.after.verdict < Verdict::DoNotBoot;
                assert!(
                    mode == Mode::Leaks || is_mended,
                    "{name}, {text:?}: {:?}",
                    repaired.plan.withheld
                );
                done += 1;
            }
        }
    }
    assert!(done > 60, "{done}");
}

#[test]
fn counts_of_a_lost_snapshot_do_not_make_a_block_garbage() {
    for (name, mut image) in images() {
        if image.snapshot_count() == 0 {
            continue;
        }
        image.put_u32(image.field("nb_snapshots"), 0);
        image.put_u64(image.field("snapshots_offset"), 0);
        let plan = super::planned(&image.bytes, &all()).expect("an image");
        let mut kinds = plan.stages.iter().map(|stage| stage.kind);
        let moves = kinds.any(|kind| kind == StageKind::SwitchRefcounts);
        assert!(!moves, "{name}: {:?}", plan.stages);
    }
}

#[test]
fn whoever_accepts_the_corrupt_bit_as_a_loss_gives_nothing_up_by_it() {
    let forge = Forge::new().cluster_bits(12).size(8 << 20).data(0).data(1);
    let mut image = forge.build();
    image.set_refcount(image.host_cluster(Tree::Active, 1), 3);
    let mut wishes = all();
    wishes.accepted_losses.insert(Code::CorruptBitSet);
    let done = repaired(&image.bytes, &wishes);
    assert_eq!(done.plan.after.verdict, Verdict::Clean);
}
