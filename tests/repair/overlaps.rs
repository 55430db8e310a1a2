//! Overlaps: clusters that two owners use and only one may.
//!
//! Comes in: forged images in which an entry is pointed at somebody else's cluster, and images of the real tools. Goes
//! out: nothing, or the promise that was broken. Never here: an image with only one owner for each cluster.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use qfsck::{Code, Image, Mode, Options, Overlaps, Progress, RepairOptions, Storage, Verdict};

use super::guest::Guest;
use super::{Repaired, all, repaired};
use crate::crash::for_each_cut;
use crate::damage::without_leaks;
use crate::support::image_forge::{BitmapCluster, Forge, Forged, Tree};
use crate::support::qemu;
use crate::support::sample::sampled;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Every layout of entries and counts, with a name.
pub(super) fn layouts() -> Vec<(String, Forge)> {
    let mut layouts = Vec::new();
    for (version, order) in [(2, 4), (3, 1), (3, 3), (3, 4), (3, 6)] {
        for bits in [9, 12, 16] {
            let forge = Forge::new().version(version).refcount_order(order);
            layouts.push((
                format!("v{version} {order} {bits}"),
                forge.cluster_bits(bits),
            ));
        }
    }
    for bits in [14, 16] {
        let forge = Forge::new().extended_l2().cluster_bits(bits);
        layouts.push((format!("extended {bits}"), forge));
    }
    let sized = |(name, forge): (String, Forge)| {
        let bits = name.rsplit(' ').next().and_then(|bits| bits.parse().ok());
        let size = 4096_u64 << bits.unwrap_or(16);
        (name, forge.size(size))
    };
    layouts.into_iter().map(sized).collect()
}

/// Where a structure is in an image.
type Where = fn(&Forged) -> u64;

pub(super) fn small() -> Forge {
    Forge::new().cluster_bits(12).size(4096 << 12)
}

pub(super) fn filled(forge: Forge, guests: std::ops::Range<u64>) -> Forge {
    guests.fold(forge, Forge::data)
}

/// Makes one guest cluster of a tree use the host cluster of another.
pub(super) fn share(image: &mut Forged, (tree, guest): (Tree, u64), (from, with): (Tree, u64)) {
    let word = image.u64_at(image.l2_entry(from, with));
    image.put_u64(image.l2_entry(tree, guest), word);
}

/// Points a guest cluster at the cluster at an offset.
fn point(image: &mut Forged, guest: u64, offset: u64) {
    let entry = image.l2_entry(Tree::Active, guest);
    image.put_u64(entry, offset | COPIED);
}

/// Says that a guest cluster's compressed data begins at an offset and ends in this sector from there on.
pub(super) fn put_compressed(
    image: &mut Forged,
    tree: Tree,
    guest: u64,
    offset: u64,
    sectors: u64,
) {
    let shift = 62 - (image.cluster_size().trailing_zeros() - 8);
    let word = 1 << 62 | (sectors - 1) << shift | offset;
    image.put_u64(image.l2_entry(tree, guest), word);
}

/// The entry of a guest cluster in a repaired image whose table did not move.
fn word(image: &Forged, done: &Repaired, tree: Tree, guest: u64) -> u64 {
    let start = usize::try_from(image.l2_entry(tree, guest)).expect("small images");
    let bytes = done.bytes.get(start..start + 8).expect("inside the image");
    bytes
        .iter()
        .fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// A repair of an image in which nothing looks like what a damaged pointer meant.
#[track_caller]
fn mended(bytes: &[u8]) -> Repaired {
    repaired(&without_leaks(bytes), &all())
}

#[track_caller]
pub(super) fn clean(name: &str, bytes: &[u8]) -> Repaired {
    let done = mended(bytes);
    let left: Vec<_> = done.plan.after.findings.iter().collect();
    assert_eq!(
        done.plan.after.verdict,
        Verdict::Clean,
        "{name}: {left:#?} {:#?}",
        done.plan.withheld
    );
    assert!(!done.plan.is_empty(), "{name}: nothing was damaged");
    done
}

/// The reasons for what is left, of one finding.
#[track_caller]
pub(super) fn withheld(bytes: &[u8], wishes: &RepairOptions, code: Code) -> String {
    let done = repaired(&without_leaks(bytes), wishes);
    assert!(done.plan.after.findings.total_of(code).count > 0);
    let reasons = done.plan.withheld.iter().filter(|left| left.code == code);
    let reasons: Vec<_> = reasons.map(|left| left.reason.clone()).collect();
    reasons.join("; ")
}

pub(super) fn copied_bytes(done: &Repaired) -> u64 {
    done.plan.copied_bytes()
}

#[test]
fn two_guest_clusters_get_a_cluster_each() {
    for (name, forge) in layouts() {
        for counted in [false, true] {
            let mut image = filled(forge.clone(), 0..6).build();
            share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
            let shared = image.host_cluster(Tree::Active, 3);
            if counted {
                image.set_refcount(shared, 2);
            }
            let done = clean(&name, &image.bytes);
            assert_eq!(copied_bytes(&done), image.cluster_size(), "{name}");
            let (keeps, moves) = (
                word(&image, &done, Tree::Active, 3),
                word(&image, &done, Tree::Active, 5),
            );
            assert_eq!(keeps & OFFSET, shared * image.cluster_size(), "{name}");
            assert_ne!(moves & OFFSET, keeps & OFFSET, "{name}");
            assert_eq!(keeps & moves & COPIED, COPIED, "{name}");
        }
    }
}

#[test]
fn accepting_an_overlap_frees_nothing_that_one_of_its_pointers_may_have_meant() {
    let codes = [
        Code::GuestDataOverlap,
        Code::GuestDataShared,
        Code::MetadataOverlap,
        Code::L2TableShared,
        Code::CompressedExtentOverlap,
        Code::RefcountLeak,
    ];
    for counted in [false, true] {
        for code in codes {
            let mut image = filled(small(), 0..6).build();
            let meant = image.host_cluster(Tree::Active, 5);
            share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
            if counted {
                image.set_refcount(image.host_cluster(Tree::Active, 3), 2);
            }
            let mut wishes = all();
            wishes.accepted_losses.insert(code);
            let done = repaired(&image.bytes, &wishes);
            let is_about_it = matches!(code, Code::GuestDataOverlap | Code::GuestDataShared);
            let expected = u64::from(is_about_it) * image.cluster_size();
            assert_eq!(copied_bytes(&done), expected, "{code} {counted}");
            let left = done.plan.after.findings.iter();
            let mut leaks = left.filter(|it| it.code == Code::RefcountLeak);
            let is_kept = leaks.any(|leak| format!("{leak:?}").contains(&format!("({meant})")));
            assert!(is_kept, "{code} {counted}: {:#?}", done.plan.stages);
            let mut withheld = done.plan.withheld.iter();
            let names_the_choice =
                |left: &qfsck::Withheld| left.reason.contains("--accept-loss guest-data-shared ");
            assert_ne!(
                withheld.any(names_the_choice),
                is_about_it,
                "{code} {counted}"
            );
        }
    }
}

#[test]
fn many_users_of_one_cluster_all_part() {
    let mut image = filled(small(), 0..40).build();
    for guest in 3..40 {
        share(&mut image, (Tree::Active, guest), (Tree::Active, 2));
    }
    let done = clean("forty", &image.bytes);
    assert_eq!(copied_bytes(&done), 37 * image.cluster_size());
}

#[test]
fn entry_in_a_table_that_snapshots_share_is_switched_once_for_all() {
    for (name, forge) in layouts() {
        if name.starts_with("v3 1") {
            continue;
        }
        let forge = filled(forge, 0..6)
            .snapshot("1", "one")
            .snapshot("2", "two");
        let mut image = forge.build();
        share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
        let done = clean(&name, &image.bytes);
        assert_eq!(copied_bytes(&done), image.cluster_size(), "{name}");
        let moved = word(&image, &done, Tree::Active, 5);
        assert_eq!(moved & COPIED, 0, "{name}: two snapshots have it too");
    }
}

#[test]
fn same_guest_cluster_in_other_mappings_moves_along_to_one_copy() {
    for (name, forge) in layouts() {
        // The snapshot's table and the active one differ after the write, and share guest cluster 5.
        let forge = filled(forge, 0..6).snapshot("1", "one").data(1);
        let mut image = forge.build();
        share(&mut image, (Tree::Active, 3), (Tree::Active, 5));
        let done = clean(&name, &image.bytes);
        assert_eq!(copied_bytes(&done), image.cluster_size(), "{name}");
        let (active, inactive) = (
            word(&image, &done, Tree::Active, 5),
            word(&image, &done, Tree::Snapshot(0), 5),
        );
        assert_eq!(active, inactive, "{name}");
        assert_eq!(active & COPIED, 0, "{name}");
        let shared = image.host_cluster(Tree::Active, 5) * image.cluster_size();
        assert_ne!(active & OFFSET, shared, "{name}: the first one keeps it");
    }
}

#[test]
fn guest_data_leaves_every_structure_it_lies_over() {
    let forge = || {
        let forge = filled(small(), 0..6)
            .data(600)
            .snapshot("1", "one")
            .data(700)
            .data(2);
        forge.bitmap("bits", 12, 0, &[BitmapCluster::Data])
    };
    let places: [(&str, Where); 7] = [
        ("active L1 table", |image| image.l1_table(Tree::Active)),
        ("snapshot L1 table", |image| {
            image.l1_table(Tree::Snapshot(0))
        }),
        ("L2 table of another range", |image| {
            image.l2_table(Tree::Active, 700)
        }),
        ("snapshot table", |image| image.snapshot_table()),
        ("bitmap directory", |image| image.bitmap_directory()),
        ("bitmap table", |image| image.bitmap_table(0)),
        ("bitmap data", |image| {
            image.bitmap_data(0, 0).expect("has data")
        }),
    ];
    for (name, place) in places {
        let mut image = forge().build();
        let offset = place(&image);
        let refers = |image: &mut Forged, guest| point(image, guest, offset);
        refers(&mut image, 2);
        let done = clean(name, &image.bytes);
        // The snapshot table is moved by its own pass, bitmaps that something is written over are dropped: then the
        // cluster is the guest's alone.
        let stays = u64::from(name == "snapshot table" || name.starts_with("bitmap"));
        assert_eq!(
            copied_bytes(&done),
            (1 - stays) * image.cluster_size(),
            "{name}"
        );
        let is_there = word(&image, &done, Tree::Active, 2) & OFFSET == offset;
        assert_eq!(is_there, stays == 1, "{name}");
        // Two guests over one structure both leave it, or one of them.
        refers(&mut image, 4);
        let done = clean(name, &image.bytes);
        assert_eq!(
            copied_bytes(&done),
            (2 - stays) * image.cluster_size(),
            "{name}"
        );
    }
}

#[test]
fn refcount_structures_are_built_anew_beside_guest_data() {
    let places: [(&str, Where); 2] = [
        ("refcount table", Forged::refcount_table),
        ("refcount block", |image| image.refcount_block(0)),
    ];
    for (name, place) in places {
        let mut image = filled(small(), 0..6).build();
        let offset = place(&image);
        point(&mut image, 2, offset);
        let done = clean(name, &image.bytes);
        assert_eq!(copied_bytes(&done), 0, "{name}");
        // Of two guests over it, one has to go.
        point(&mut image, 4, offset);
        let done = clean(name, &image.bytes);
        assert_eq!(copied_bytes(&done), image.cluster_size(), "{name}");
    }
}

#[test]
fn table_that_guest_data_leaves_can_then_be_put_right_itself() {
    let mut image = filled(small(), 0..6).data(600).data(601).data(602).build();
    // Guest cluster 2 lies over the table of 600 and following, in which 602 needs to move as well.
    let table = image.l2_table(Tree::Active, 600);
    point(&mut image, 2, table);
    share(&mut image, (Tree::Active, 602), (Tree::Active, 601));
    share(&mut image, (Tree::Active, 601), (Tree::Active, 600));
    share(&mut image, (Tree::Active, 602), (Tree::Active, 600));
    // A guest changes where the table is changed, so only its place there is asked about.
    let plan = super::planned(&without_leaks(&image.bytes), &all()).expect("a plan");
    assert_eq!(plan.after.verdict, Verdict::Clean, "{:#?}", plan.withheld);
}

#[test]
fn whoever_cannot_move_keeps_the_cluster() {
    let mut image = filled(small(), 0..6).data(600).build();
    // The table of 600 lies over itself: nothing is written there.
    let table = image.l2_table(Tree::Active, 600);
    let entry = image.l2_entry(Tree::Active, 601);
    image.put_u64(entry, table);
    // Its flag cannot be cleared there either, so it has none.
    let shared = image.u64_at(image.l2_entry(Tree::Active, 600)) & OFFSET;
    for guest in [2, 600] {
        image.put_u64(image.l2_entry(Tree::Active, guest), shared);
    }
    image.set_refcount(shared / image.cluster_size(), 2);
    let done = mended(&image.bytes);
    let moved = word(&image, &done, Tree::Active, 2);
    let kept = word(&image, &done, Tree::Active, 600);
    assert_ne!(moved & OFFSET, kept & OFFSET);
    let after = &done.plan.after.findings;
    assert_eq!(after.total_of(Code::GuestDataShared).count, 0);
    assert_eq!(after.total_of(Code::GuestDataOverlap).count, 0);
    assert_eq!(after.total_of(Code::MetadataOverlap).count, 1);
}

#[test]
fn standard_data_leaves_compressed_data() {
    for (name, forge) in layouts() {
        let forge = filled(forge, 0..3).compressed(8, 100).compressed(9, 100);
        let mut image = forge.build();
        let offset = image.host_cluster(Tree::Active, 8) * image.cluster_size();
        point(&mut image, 2, offset);
        let done = clean(&name, &image.bytes);
        assert_eq!(copied_bytes(&done), image.cluster_size(), "{name}");
    }
}

#[test]
fn l2_table_of_two_ranges_is_cloned_with_its_data() {
    for (name, forge) in layouts() {
        for with_snapshot in [false, true] {
            if with_snapshot && name.starts_with("v3 1") {
                continue;
            }
            let forge = filled(forge.clone(), 0..6).zero_plain_unless_v2(&name, 7);
            let forge = if with_snapshot {
                forge.snapshot("1", "one")
            } else {
                forge
            };
            let mut image = forge.l1_size(8).build();
            let first = image.u64_at(image.l1_entry(Tree::Active, 0));
            for index in [2, 3] {
                image.put_u64(image.l1_entry(Tree::Active, index), first);
                if with_snapshot {
                    image.put_u64(image.l1_entry(Tree::Snapshot(0), index), first);
                }
            }
            let done = clean(&name, &image.bytes);
            assert_eq!(copied_bytes(&done), 12 * image.cluster_size(), "{name}");
        }
    }
}

trait Zeros {
    fn zero_plain_unless_v2(self, name: &str, guest: u64) -> Self;
}

impl Zeros for Forge {
    /// Zero clusters came with version 3.
    fn zero_plain_unless_v2(self, name: &str, guest: u64) -> Self {
        if name.starts_with("v2") {
            self
        } else {
            self.zero_plain(guest)
        }
    }
}

#[test]
fn snapshots_with_one_l1_table_get_one_each() {
    for (name, forge) in layouts() {
        if name.starts_with("v3 1") {
            continue;
        }
        let forge = filled(forge, 0..6)
            .snapshot("1", "one")
            .data(1)
            .snapshot("2", "two")
            .data(2)
            .data(4);
        for (taken, from) in [
            (1, Tree::Snapshot(0)),
            (0, Tree::Snapshot(1)),
            (0, Tree::Active),
            (1, Tree::Active),
        ] {
            let mut image = forge.clone().build();
            let table = image.l1_table(from);
            image.put_u64(image.snapshot_field(taken, "l1_table_offset"), table);
            let done = mended(&image.bytes);
            let left = done.plan.after.findings.total_of(Code::MetadataOverlap);
            assert_eq!(left.count, 0, "{name}: {:#?}", done.plan.withheld);
            let name = format!("{name} {taken} {from:?}");
            assert_eq!(copied_bytes(&done), 0, "{name}: no data is copied");
            // The L1 table that nothing names any more is the only way to what it maps, so leaks may stay.
            assert!(
                matches!(done.plan.after.verdict, Verdict::Clean | Verdict::Leaks),
                "{name}: {:#?}",
                done.plan.after
            );
        }
    }
}

#[test]
fn all_mappings_with_one_l1_table_and_guest_data_in_it_part() {
    let forge = filled(small(), 0..6)
        .snapshot("1", "one")
        .snapshot("2", "two");
    let mut image = forge.data(600).build();
    let table = image.l1_table(Tree::Active);
    for snapshot in [0, 1] {
        image.put_u64(image.snapshot_field(snapshot, "l1_table_offset"), table);
    }
    point(&mut image, 601, table);
    let done = mended(&image.bytes);
    let left = done.plan.after.findings.total_of(Code::MetadataOverlap);
    assert_eq!(left.count, 0, "{:#?}", done.plan.withheld);
}

#[test]
fn overlaps_are_kept_if_asked_for() {
    let mut image = filled(small(), 0..6).build();
    share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
    let keep = RepairOptions {
        overlaps: Overlaps::Keep,
        ..RepairOptions::new(Mode::All)
    };
    let reason = withheld(&image.bytes, &keep, Code::GuestDataShared);
    assert!(reason.contains("as asked for"), "{reason}");
}

#[test]
fn luks_data_stays_where_it_can_be_decrypted_and_legacy_data_moves() {
    let mut image = filled(small().luks(4), 0..6).build();
    share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
    let reason = withheld(&image.bytes, &all(), Code::GuestDataShared);
    assert!(reason.contains("LUKS"), "{reason}");
    let mut image = filled(small().crypt_method(1), 0..6).build();
    share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
    clean("legacy encryption", &image.bytes);
}

#[test]
fn luks_l1_tables_part_all_the_same() {
    let forge = filled(small().luks(4), 0..6).snapshot("1", "one");
    let mut image = forge.snapshot("2", "two").build();
    let table = image.l1_table(Tree::Snapshot(0));
    image.put_u64(image.snapshot_field(1, "l1_table_offset"), table);
    let done = mended(&image.bytes);
    let left = done.plan.after.findings.total_of(Code::MetadataOverlap);
    assert_eq!(left.count, 0, "{:#?}", done.plan.withheld);
}

#[test]
fn two_structures_in_one_cluster_are_left_with_both_their_names() {
    let forge = || filled(small(), 0..6).data(600).snapshot("1", "one").data(2);
    let mut image = forge().build();
    let table = image.snapshot_table();
    image.put_u64(image.l1_entry(Tree::Active, 1), table);
    let reason = withheld(&image.bytes, &all(), Code::MetadataOverlap);
    assert!(reason.contains("snapshot table"), "{reason}");
    assert!(reason.contains("L2 table"), "{reason}");
}

#[test]
fn reasons_that_are_alike_are_told_once() {
    let forge = filled(small(), 0..6).snapshot("1", "one").data(1);
    let mut image = forge.snapshot("2", "two").data(2).build();
    for (index, snapshot) in [(1, 0), (2, 1)] {
        let table = image.l1_table(Tree::Snapshot(snapshot));
        image.put_u64(image.l1_entry(Tree::Active, index), table);
    }
    let done = mended(&image.bytes);
    let both = done.plan.withheld.iter();
    let both: Vec<_> = both
        .filter(|left| left.reason.contains("both claim"))
        .collect();
    assert!(
        matches!(both.as_slice(), [left] if left.count == 2),
        "{both:#?}"
    );
}

#[test]
fn compressed_extents_that_overlap_are_left() {
    let forge = filled(small(), 0..3).compressed(8, 900).compressed(9, 900);
    let mut image = forge.build();
    share(&mut image, (Tree::Active, 9), (Tree::Active, 8));
    let reason = withheld(&image.bytes, &all(), Code::CompressedExtentOverlap);
    assert!(reason.contains("decompressing"), "{reason}");
}

#[test]
fn tables_that_cannot_be_read_leave_everything_as_it_is() {
    let mut image = filled(small(), 0..6).data(600).build();
    share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
    let disk = BadSector {
        bad: image.l2_table(Tree::Active, 600),
        bytes: without_leaks(&image.bytes),
    };
    let disk = Image::open(disk, Path::new("image")).expect("an image");
    let progress = Progress::default();
    let plan = qfsck::plan(&disk, &all(), Options::default(), &progress).expect("a plan");
    assert!(plan.is_empty(), "{plan:#?}");
    let mut left = plan.withheld.iter();
    let is_named = left.any(|left| left.reason.contains("cannot be read"));
    assert!(is_named, "{:#?}", plan.withheld);
}

/// An image with a sector that cannot be read.
struct BadSector {
    bytes: Vec<u8>,
    bad: u64,
}

impl Storage for BadSector {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        if (offset..end).contains(&self.bad) {
            return Err(io::Error::other("bad sector"));
        }
        self.bytes.read_at(offset, buffer)
    }
}

/// Images with an overlap of each kind that is put right.
fn overlapping(forge: &Forge) -> Vec<(&'static str, Forged)> {
    let plain = || filled(forge.clone(), 0..6).data(600).l1_size(16);
    let with_snapshots = || {
        plain()
            .snapshot("1", "one")
            .data(1)
            .snapshot("2", "two")
            .data(2)
    };
    let mut guests = plain().build();
    share(&mut guests, (Tree::Active, 5), (Tree::Active, 3));
    share(&mut guests, (Tree::Active, 600), (Tree::Active, 3));
    let mut diverged = with_snapshots().build();
    share(&mut diverged, (Tree::Active, 3), (Tree::Active, 5));
    let mut structure = with_snapshots().build();
    let table = structure.snapshot_table();
    point(&mut structure, 4, table);
    let mut l2_table = plain().snapshot("1", "one").build();
    let first = l2_table.u64_at(l2_table.l1_entry(Tree::Active, 0));
    for tree in [Tree::Active, Tree::Snapshot(0)] {
        l2_table.put_u64(l2_table.l1_entry(tree, 3), first);
    }
    let mut l1_table = with_snapshots().build();
    let table = l1_table.l1_table(Tree::Active);
    for snapshot in [0, 1] {
        l1_table.put_u64(l1_table.snapshot_field(snapshot, "l1_table_offset"), table);
    }
    let mut compressed = plain().compressed(8, 100).build();
    let table = compressed.l1_table(Tree::Active);
    put_compressed(&mut compressed, Tree::Active, 8, table + 7, 1);
    let mut packed = plain().compressed(8, 300).compressed(9, 300).build();
    let first = packed.u64_at(packed.l1_entry(Tree::Active, 0));
    packed.put_u64(packed.l1_entry(Tree::Active, 3), first);
    vec![
        ("compressed", compressed),
        ("L2 table of compressed data", packed),
        ("guests", guests),
        ("diverged", diverged),
        ("structure", structure),
        ("L2 table", l2_table),
        ("L1 table", l1_table),
    ]
}

#[test]
fn no_power_cut_makes_an_overlap_worse_or_changes_what_a_guest_sees() {
    let mut images = Vec::new();
    for (version, order, bits) in [(2, 4, 9), (3, 6, 9), (3, 2, 12), (3, 4, 12), (3, 4, 16)] {
        let forge = Forge::new().version(version).refcount_order(order);
        let forge = forge.cluster_bits(bits).size(4096 << bits);
        // Counts of what is added are in blocks that are there, or in new ones of a new table.
        let per_block = (8 << bits) >> order;
        for is_full in [false, bits == 9] {
            let headroom = if is_full { 0 } else { 64 };
            for (name, mut image) in overlapping(&forge.clone().refcount_headroom(headroom)) {
                while is_full && !image.cluster_count().is_multiple_of(per_block) {
                    image.allocate(1);
                }
                let name = format!("{name} v{version} {order} {bits} {is_full}");
                images.push((name, image.bytes));
            }
        }
    }
    let images = sampled("overlapping images", images, 3);
    let mut cuts = 0;
    let mut broken = BTreeSet::new();
    for (name, start) in &images {
        let before = Guest::of(start);
        let mut last = start.clone();
        for_each_cut(start, |state, is_no_worse| {
            cuts += 1;
            // A guest is only asked where something arrived that could concern it.
            let is_kept = state == last || before.losses(&Guest::of(state)).is_empty();
            if !is_no_worse || !is_kept {
                broken.insert(name);
            }
            last = state.to_vec();
        });
    }
    println!("{} images, {cuts} cuts", images.len());
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(cuts > 1000, "{cuts} cuts");
}

/// The number at an offset, as large as the rest of the word.
fn number(bytes: &[u8], offset: u64, length: usize) -> u64 {
    let start = usize::try_from(offset).expect("small images");
    let part = bytes.get(start..start + length).expect("inside the image");
    part.iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Where the active L2 entry of a guest cluster is, in an image nobody has forged.
fn active_entry(bytes: &[u8], guest: u64) -> u64 {
    let cluster_bytes = 1 << number(bytes, 20, 4);
    let is_v3 = number(bytes, 4, 4) == 3;
    let is_extended = is_v3 && number(bytes, 72, 8) & 16 != 0;
    let entry_bytes = if is_extended { 16 } else { 8 };
    let entries = cluster_bytes / entry_bytes;
    let l1_entry = number(bytes, 40, 8) + guest / entries * 8;
    (number(bytes, l1_entry, 8) & OFFSET) + guest % entries * entry_bytes
}

/// What `qemu-img` reads from an image, or from one of its snapshots.
fn raw(bytes: &[u8], snapshot: Option<&str>) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("image"), bytes).expect("can be written");
    let snapshot = snapshot.map(|name| format!("snapshot.name={name}"));
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "qcow2", "-O", "raw"]);
    if let Some(name) = &snapshot {
        command.args(["-l", name]);
    }
    let done = command.arg(path("image")).arg(path("raw")).output();
    let done = done.expect("qemu-img can be run");
    assert!(done.status.success(), "{done:?}");
    fs::read(path("raw")).expect("was just written")
}

#[test]
fn images_of_the_real_tools_read_the_same_and_are_clean() {
    let Some(tools) = qemu::tools() else { return };
    for options in [
        ["compat=0.10", "cluster_size=4k"].as_slice(),
        &["compat=1.1", "cluster_size=64k"],
        &["compat=1.1", "cluster_size=512", "refcount_bits=64"],
        &["compat=1.1", "cluster_size=16k", "extended_l2=on"],
    ] {
        let owned = options.iter().map(|option| (*option).to_owned()).collect();
        let recipe = qemu::Recipe::new("overlap".to_owned(), 8 << 20, owned)
            .io(["write -P 1 0 1M", "write -P 2 3M 70k"])
            .snapshot("-c", "one")
            .io(["write -P 3 128k 4k", "write -P 4 640k 64k"])
            .snapshot("-c", "two")
            .io(["write -P 5 0 4k"]);
        let directory = tempfile::tempdir().expect("a directory");
        qemu::make(&tools, &recipe, directory.path()).expect("qemu-img makes images");
        let mut bytes = fs::read(directory.path().join(qemu::IMAGE)).expect("was made");
        let cluster_bytes = 1_u64 << number(&bytes, 20, 4);
        let l1_table = number(&bytes, 40, 8);
        for (from_bytes, to) in [
            (64 << 10, None),
            (128 << 10, None),
            (640 << 10, Some(l1_table)),
        ] {
            let from = active_entry(&bytes, from_bytes / cluster_bytes);
            let with = active_entry(&bytes, (3 << 20) / cluster_bytes);
            let word = to.unwrap_or_else(|| number(&bytes, with, 8)) & OFFSET;
            let start = usize::try_from(from).expect("small images");
            let entry = bytes.get_mut(start..start + 8).expect("inside the image");
            entry.copy_from_slice(&word.to_be_bytes());
        }
        let done = clean(&format!("{options:?}"), &bytes);
        for snapshot in [None, Some("one"), Some("two")] {
            let (was, is) = (raw(&bytes, snapshot), raw(&done.bytes, snapshot));
            assert!(was == is, "{options:?}: {snapshot:?} reads differently");
        }
    }
}
