//! Compressed data that lies over something else, or below a table that serves two ranges; and what is too much for one
//! repair.
//!
//! Comes in: forged images. Goes out: nothing, or the promise that was broken. Never here: what decompressing gives; the
//! bytes are the same before and after.

use qfsck::Code;

use super::overlaps::{clean, copied_bytes, filled, layouts, put_compressed};
use super::{all, planned, repaired};
use crate::damage::without_leaks;
use crate::support::image_forge::{Forge, Tree};

#[test]
fn compressed_data_leaves_a_structure() {
    for (name, forge) in layouts() {
        let forge = filled(forge, 0..3).compressed(8, 100).compressed(9, 100);
        let mut image = forge.build();
        let table = image.l1_table(Tree::Active);
        put_compressed(&mut image, Tree::Active, 8, table + 7, 1);
        let done = clean(&name, &image.bytes);
        assert_eq!(copied_bytes(&done), image.cluster_size(), "{name}");
    }
}

#[test]
fn compressed_data_across_two_clusters_leaves_a_structure_as_one() {
    for (name, forge) in layouts() {
        let mut image = filled(forge, 0..3).compressed(8, 100).build();
        // From the last bytes of a structure into what follows it.
        let after = image.l1_table(Tree::Active) + image.cluster_size();
        put_compressed(&mut image, Tree::Active, 8, after - 100, 2);
        let done = clean(&name, &image.bytes);
        let copied = copied_bytes(&done) / image.cluster_size();
        assert!((2..=3).contains(&copied), "{name}: {copied}");
    }
}

#[test]
fn compressed_data_and_snapshots_of_it_leave_a_structure_together() {
    for bits in [9, 12, 16] {
        let forge = Forge::new().cluster_bits(bits).size(64 << bits);
        let forge = filled(forge, 0..3).compressed(8, 100);
        let mut image = forge.snapshot("1", "one").data(1).build();
        let table = image.l1_table(Tree::Active);
        for tree in [Tree::Active, Tree::Snapshot(0)] {
            put_compressed(&mut image, tree, 8, table + 7, 1);
        }
        let done = clean("snapshot", &image.bytes);
        assert_eq!(copied_bytes(&done), image.cluster_size());
    }
}

#[test]
fn l2_table_of_compressed_data_is_cloned_with_copies_of_it() {
    for (name, forge) in layouts() {
        let probe = forge.clone().build();
        // Two in a cluster, and some across two of them.
        let length = probe.cluster_size() * 45 / 100;
        let forge = (8..12).fold(filled(forge, 0..3), |forge, guest| {
            forge.compressed(guest, length)
        });
        let mut image = forge.l1_size(8).build();
        let first = image.u64_at(image.l1_entry(Tree::Active, 0));
        for index in [2, 3] {
            image.put_u64(image.l1_entry(Tree::Active, index), first);
        }
        clean(&name, &image.bytes);
    }
}

#[test]
fn compressed_data_in_a_table_that_is_contested_itself_stays() {
    let forge = filled(Forge::new().cluster_bits(12).size(64 << 12), 0..3);
    let mut image = forge.compressed(8, 100).build();
    let table = image.l2_table(Tree::Active, 8);
    put_compressed(&mut image, Tree::Active, 8, table + 2048, 1);
    let done = repaired(&without_leaks(&image.bytes), &all());
    let left = done.plan.withheld.iter();
    let mut reasons = left.filter(|left| left.code == Code::MetadataOverlap);
    assert!(
        reasons.any(|left| left.reason.contains("put right first")),
        "{:?}",
        done.plan.withheld
    );
}

fn says_that_it_is_too_much(bytes: &[u8], code: Code) {
    let plan = planned(&without_leaks(bytes), &all()).expect("an image");
    let mut reasons = plan.withheld.iter().filter(|left| left.code == code);
    assert!(
        reasons.any(|left| left.reason.contains("repair the image again")),
        "{:?}",
        plan.withheld
    );
    assert_eq!(plan.copied_bytes(), 0);
}

#[test]
fn more_references_than_one_repair_looks_at_are_left_and_said() {
    // An L2 table of two mebibytes has so many entries; one more makes it too many.
    let entries = 1_u64 << 18;
    let forge = Forge::new().cluster_bits(21).refcount_order(5);
    let mut image = forge.size(entries << 22).data(0).data(entries).build();
    let word = image.u64_at(image.l2_entry(Tree::Active, 0));
    for guest in 0..=entries {
        image.put_u64(image.l2_entry(Tree::Active, guest), word);
    }
    says_that_it_is_too_much(&image.bytes, Code::GuestDataShared);
}

#[test]
fn more_clones_than_one_repair_writes_are_left_and_said() {
    let forge = Forge::new().cluster_bits(21).size(1 << 30);
    let mut image = forge.data(0).l1_size(64).build();
    let first = image.u64_at(image.l1_entry(Tree::Active, 0));
    for index in 1..34 {
        image.put_u64(image.l1_entry(Tree::Active, index), first);
    }
    says_that_it_is_too_much(&image.bytes, Code::L2TableShared);
}
