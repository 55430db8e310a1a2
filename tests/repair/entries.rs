//! Entries that stand by themselves: what is put right in place, what only where a loss is accepted, and what is left.
//!
//! Comes in: forged images over versions, cluster sizes and extended L2 entries, alone and with a snapshot that shares
//! every table, each with one kind of damage. Goes out: nothing, or the entry that is not what it should be. Never here:
//! a refcount for its own sake.

use std::path::Path;

use qfsck::{
    Check, Code, Image, Mode, Options, Plan, Progress, RepairOptions, Severity, StageKind,
};

use super::{all, checked, planned, repaired};
use crate::support::image_forge::{Forge, Forged, Tree};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const RESERVED: u64 = 1 << 58 | 1 << 4;

/// A compressed guest cluster that begins where no standard one can.
const COMPRESSED_GUEST: u64 = 5;
/// A guest cluster with a preallocated zero cluster, or with subclusters of every kind.
const SPECIAL_GUEST: u64 = 6;
/// Subclusters of `SPECIAL_GUEST` with extended L2 entries.
const ALLOCATED: u32 = 0x0000_00ff;
const ZEROS: u32 = 0x00ff_0000;

/// What an image is made like.
#[derive(Clone, Copy, Debug)]
struct Shape {
    version: u32,
    cluster_bits: u32,
    is_extended: bool,
    has_snapshot: bool,
}

impl Shape {
    /// Version 2 and 3, clusters of 512 bytes, 4 KiB and 64 KiB, extended where the format has it.
    fn each(mut look: impl FnMut(Self)) {
        for (version, cluster_bits, is_extended) in [
            (2, 9, false),
            (2, 16, false),
            (3, 9, false),
            (3, 12, false),
            (3, 16, false),
            (3, 14, true),
            (3, 16, true),
        ] {
            for has_snapshot in [false, true] {
                look(Self {
                    version,
                    cluster_bits,
                    is_extended,
                    has_snapshot,
                });
            }
        }
    }

    fn forge(self) -> Forge {
        let mut forge = Forge::new().version(self.version);
        forge = forge.cluster_bits(self.cluster_bits);
        forge = forge.size(512 << self.cluster_bits);
        if self.is_extended {
            forge = forge.extended_l2();
        }
        forge = (0..4).fold(forge, Forge::data);
        forge = forge.compressed(4, 100).compressed(COMPRESSED_GUEST, 100);
        if self.is_extended {
            forge = forge.subclusters(SPECIAL_GUEST, ALLOCATED, ZEROS);
        } else if self.version == 3 {
            forge = forge.zero_allocated(SPECIAL_GUEST);
        }
        if self.has_snapshot {
            forge = forge.snapshot("1", "one");
        }
        forge
    }

    /// The trees whose L1 tables there are.
    fn trees(self) -> impl Iterator<Item = Tree> {
        let snapshot = self.has_snapshot.then_some(Tree::Snapshot(0));
        [Tree::Active].into_iter().chain(snapshot)
    }

    /// How often a finding in an L2 table counts.
    fn weight(self) -> u64 {
        1 + u64::from(self.has_snapshot)
    }
}

fn word(image: &Forged, guest: u64) -> u64 {
    image.u64_at(image.l2_entry(Tree::Active, guest))
}

fn bitmap(image: &Forged, guest: u64) -> u64 {
    image.u64_at(image.l2_entry(Tree::Active, guest) + 8)
}

fn put_word(image: &mut Forged, guest: u64, word: u64) {
    image.put_u64(image.l2_entry(Tree::Active, guest), word);
}

/// Changes the L2 entry of a guest cluster.
fn alter_word(image: &mut Forged, guest: u64, change: impl Fn(u64) -> u64) {
    put_word(image, guest, change(word(image, guest)));
}

fn put_bitmap(image: &mut Forged, guest: u64, bitmap: u64) {
    image.put_u64(image.l2_entry(Tree::Active, guest) + 8, bitmap);
}

fn file_end(image: &Forged) -> u64 {
    image.cluster_count() * image.cluster_size()
}

fn accepting(codes: &[Code]) -> RepairOptions {
    let mut wishes = all();
    wishes.accepted_losses = codes.iter().copied().collect();
    wishes
}

/// The image after a repair that holds every promise.
#[track_caller]
fn mended(image: &Forged, shape: Shape, wishes: &RepairOptions) -> Forged {
    let mut mended = shape.forge().build();
    mended.bytes = repaired(&image.bytes, wishes).bytes;
    mended
}

#[track_caller]
fn assert_sound(image: &Forged, what: impl std::fmt::Debug) {
    let check = checked(&image.bytes).expect("an image");
    let corruptions = check.findings.count_of(Severity::Corruption);
    assert_eq!(corruptions, 0, "{what:?}: {:#?}", check.findings);
}

/// Why a code is left, which has to be said for as many as there are.
#[track_caller]
fn reason(plan: &Plan, code: Code) -> String {
    let of_code = plan.withheld.iter().filter(|left| left.code == code);
    let count: u64 = of_code.clone().map(|left| left.count).sum();
    let found = plan.before.findings.total_of(code).count;
    assert_eq!(count, found, "{code} is left: {:#?}", plan.withheld);
    let reasons: Vec<&str> = of_code.map(|left| left.reason.as_str()).collect();
    reasons.join("; ")
}

/// Nothing is done about a code, and the reason has these words in it.
#[track_caller]
fn assert_left(image: &Forged, wishes: &RepairOptions, code: Code, words: &str) {
    let plan = repaired(&image.bytes, wishes).plan;
    let (before, after) = (counted(&plan.before, code), counted(&plan.after, code));
    assert!(
        before > 0 && before == after,
        "{code}: {before} and {after}"
    );
    let reason = reason(&plan, code);
    assert!(reason.contains(words), "{code}: {reason}");
    let frees = |kind| kind == StageKind::LowerRefcounts;
    let frees = plan.stages.iter().any(|stage| frees(stage.kind));
    assert!(!frees, "{code} is open, and something is freed");
}

/// Nothing is done about a code unless it is accepted, and the reason says so.
#[track_caller]
fn assert_left_unless_accepted(image: &Forged, code: Code) {
    assert_left(image, &all(), code, &format!("--accept-loss {code}"));
}

fn counted(check: &Check, code: Code) -> u64 {
    check.findings.total_of(code).count
}

#[test]
fn reserved_bits_are_cleared_and_nothing_else_changes() {
    Shape::each(|shape| {
        let healthy = shape.forge().build();
        let mut image = shape.forge().build();
        for guest in [1, 20] {
            put_word(&mut image, guest, word(&healthy, guest) | RESERVED);
        }
        for tree in shape.trees() {
            let entry = image.l1_entry(tree, 0);
            image.put_u64(entry, image.u64_at(entry) | RESERVED);
        }
        let entry = image.refcount_table_entry(0);
        image.put_u64(entry, image.u64_at(entry) | 0x1f0);
        let damaged = checked(&image.bytes).expect("an image");
        let weight = shape.weight();
        assert_eq!(counted(&damaged, Code::L2EntryReservedBits), 2 * weight);
        assert_eq!(counted(&damaged, Code::L1EntryReservedBits), weight);
        assert_eq!(counted(&damaged, Code::RefcountTableEntryReservedBits), 1);
        let mended = mended(&image, shape, &all());
        assert_eq!(mended.bytes, healthy.bytes, "{shape:?}");
    });
}

#[test]
fn reserved_bits_stay_where_the_offset_beside_them_may_be_wrong() {
    Shape::each(|shape| {
        let code = Code::L2EntryReservedBits;
        let mut image = shape.forge().build();
        // The offset is that of another cluster now, and the one that was meant looks leaked.
        let other = word(&image, 2);
        put_word(&mut image, 1, other | RESERVED);
        let lost = image.host_cluster(Tree::Active, 1);
        assert_left_unless_accepted(&image, code);
        let after = mended(&image, shape, &all());
        assert_eq!(word(&after, 1) & RESERVED, RESERVED);
        assert!(after.refcount(lost) > 0, "{shape:?}: frees what was meant");

        let code = Code::L1EntryReservedBits;
        let mut image = shape.forge().build();
        let entry = image.l1_entry(Tree::Active, 0);
        image.put_u64(entry, image.u64_at(entry) | RESERVED);
        image.allocate(1);
        assert_left_unless_accepted(&image, code);
        let mended = mended(&image, shape, &accepting(&[code]));
        assert_eq!(mended.u64_at(entry) & RESERVED, 0);
        assert_sound(&mended, shape);
    });
}

#[test]
fn reserved_bits_stay_where_counts_are_not_known() {
    Shape::each(|shape| {
        let mut image = shape.forge().build();
        alter_word(&mut image, 1, |word| word | RESERVED);
        let entry = image.refcount_table_entry(0);
        image.put_u64(entry, file_end(&image));
        let plan = planned(&image.bytes, &all()).expect("an image");
        let reason = reason(&plan, Code::L2EntryReservedBits);
        assert!(reason.contains("not all known"), "{reason}");
    });
}

#[test]
fn zero_cluster_that_points_nowhere_is_a_plain_zero_cluster() {
    Shape::each(|shape| {
        if shape.version == 2 {
            return;
        }
        for offset in [1 << 40, 0x1_0200] {
            let mut image = shape.forge().build();
            if shape.is_extended {
                put_word(&mut image, SPECIAL_GUEST, offset | COPIED);
                put_bitmap(&mut image, SPECIAL_GUEST, u64::from(ZEROS) << 32);
            } else {
                put_word(&mut image, SPECIAL_GUEST, offset | COPIED | 1);
            }
            let mended = mended(&image, shape, &all());
            if shape.is_extended {
                assert_eq!(word(&mended, SPECIAL_GUEST), 0);
                assert_eq!(bitmap(&mended, SPECIAL_GUEST), u64::from(ZEROS) << 32);
            } else {
                assert_eq!(word(&mended, SPECIAL_GUEST), 1);
            }
            assert_sound(&mended, shape);
        }
    });
}

#[test]
fn zero_cluster_with_more_damage_than_that_is_not_believed() {
    Shape::each(|shape| {
        if shape.version == 3 && !shape.is_extended {
            let mut image = shape.forge().build();
            put_word(&mut image, SPECIAL_GUEST, 1 << 40 | RESERVED | 1);
            assert_left_unless_accepted(&image, Code::L2EntryPastEnd);
        }
    });
}

#[test]
fn data_that_cannot_be_there_becomes_zeros_only_where_that_is_accepted() {
    Shape::each(|shape| {
        let cases = [
            (Code::L2EntryPastEnd, 0),
            (Code::L2EntryPastEnd, COPIED | 3 << 40 | RESERVED),
            (Code::L2EntryUnaligned, 512),
        ];
        for (code, more) in cases {
            if code == Code::L2EntryUnaligned && shape.cluster_bits == 9 {
                continue;
            }
            let mut image = shape.forge().build();
            let broken = match code {
                Code::L2EntryPastEnd => file_end(&image) | more,
                _ => word(&image, 1) + more,
            };
            put_word(&mut image, 1, broken);
            assert_left_unless_accepted(&image, code);
            let mended = mended(&image, shape, &accepting(&[code]));
            let wanted = match (shape.version, shape.is_extended) {
                (2, _) | (_, true) => 0,
                _ => 1,
            };
            assert_eq!(word(&mended, 1), wanted, "{shape:?} {code}");
            if shape.is_extended {
                assert_eq!(bitmap(&mended, 1), 0xffff_ffff << 32);
            }
            assert_sound(&mended, (shape, code));
        }
    });
}

#[test]
fn what_a_backing_file_would_show_instead_is_not_dropped() {
    let forge = |version: u32| {
        let forge = Forge::new().version(version).cluster_bits(12);
        forge.size(512 << 12).backing_file("old").data(0).data(1)
    };
    let mut image = forge(2).build();
    put_word(&mut image, 1, 1 << 40);
    let code = Code::L2EntryPastEnd;
    assert_left(&image, &accepting(&[code]), code, "backing file");
    for version in [2, 3] {
        let mut image = forge(version).build();
        let entry = image.l1_entry(Tree::Active, 0);
        image.put_u64(entry, 1 << 40);
        let code = Code::L2TablePastEnd;
        assert_left(&image, &accepting(&[code]), code, "backing file");
    }
    let mut image = forge(3).build();
    put_word(&mut image, 1, 1 << 40);
    let done = repaired(&image.bytes, &accepting(&[Code::L2EntryPastEnd]));
    image.bytes = done.bytes;
    assert_eq!(word(&image, 1), 1, "version 3 can say zeros");
}

#[test]
fn l2_table_that_cannot_be_there_is_given_up_only_where_that_is_accepted() {
    Shape::each(|shape| {
        for (code, broken) in [
            (Code::L2TablePastEnd, 1 << 40 | COPIED),
            (Code::L2TableUnaligned, 0x1_0200),
            (Code::L1EntryWithoutOffset, COPIED),
        ] {
            if code == Code::L2TableUnaligned && shape.cluster_bits == 9 {
                continue;
            }
            let mut image = shape.forge().build();
            for tree in shape.trees() {
                image.put_u64(image.l1_entry(tree, 0), broken | 1 << 57);
            }
            assert_left_unless_accepted(&image, code);
            let mended = mended(&image, shape, &accepting(&[code]));
            for tree in shape.trees() {
                assert_eq!(mended.u64_at(mended.l1_entry(tree, 0)), 0, "{shape:?}");
            }
            assert_sound(&mended, (shape, code));
        }
    });
}

#[test]
fn subclusters_that_are_both_keep_their_data() {
    Shape::each(|shape| {
        if !shape.is_extended {
            return;
        }
        let healthy = shape.forge().build();
        let mut image = shape.forge().build();
        let bits = bitmap(&image, SPECIAL_GUEST);
        put_bitmap(&mut image, SPECIAL_GUEST, bits | 0xf << 32);
        alter_word(&mut image, 1, |word| word | 1);
        let mended = mended(&image, shape, &all());
        assert_eq!(mended.bytes, healthy.bytes, "{shape:?}");
    });
}

#[test]
fn subclusters_without_a_cluster_become_zeros_only_where_that_is_accepted() {
    Shape::each(|shape| {
        if !shape.is_extended {
            return;
        }
        let code = Code::SubclusterWithoutCluster;
        let mut image = shape.forge().build();
        put_word(&mut image, SPECIAL_GUEST, 0);
        assert_left_unless_accepted(&image, code);
        let mended = mended(&image, shape, &accepting(&[code]));
        let zeros = u64::from(ZEROS | ALLOCATED) << 32;
        assert_eq!(bitmap(&mended, SPECIAL_GUEST), zeros);
        assert_sound(&mended, shape);
    });
}

#[test]
fn compressed_clusters_lose_what_only_standard_ones_have() {
    Shape::each(|shape| {
        let healthy = shape.forge().build();
        let mut image = shape.forge().build();
        let entry = word(&image, COMPRESSED_GUEST);
        put_word(&mut image, COMPRESSED_GUEST, entry | COPIED);
        if shape.is_extended {
            put_bitmap(&mut image, COMPRESSED_GUEST, 0x0000_0001_0000_00f0);
        }
        let mended = mended(&image, shape, &all());
        assert_eq!(mended.bytes, healthy.bytes, "{shape:?}");
    });
}

#[test]
fn standard_entry_that_only_looks_compressed_is_left_to_a_person() {
    Shape::each(|shape| {
        let mut image = shape.forge().build();
        alter_word(&mut image, 1, |word| word | COMPRESSED | COPIED);
        if shape.is_extended {
            let code = Code::CompressedWithSubclusters;
            assert_left_unless_accepted(&image, code);
            assert_eq!(bitmap(&mended(&image, shape, &all()), 1), 0xffff_ffff);
        }
        assert_left_unless_accepted(&image, Code::CompressedCopied);
    });
}

#[test]
fn compressed_data_nobody_counts_is_not_claimed() {
    Shape::each(|shape| {
        if !shape.is_extended {
            return;
        }
        let mut image = shape.forge().build();
        put_bitmap(&mut image, COMPRESSED_GUEST, 1);
        let cluster = image.host_cluster(Tree::Active, COMPRESSED_GUEST);
        image.set_refcount(cluster, image.refcount(cluster) - shape.weight());
        let code = Code::CompressedWithSubclusters;
        assert_left(&image, &all(), code, "not counted");
    });
}

#[test]
fn compressed_data_past_the_end_becomes_zeros_only_where_that_is_accepted() {
    Shape::each(|shape| {
        let code = Code::CompressedPastEnd;
        let mut image = shape.forge().build();
        let end = file_end(&image) + 8 * image.cluster_size();
        put_word(&mut image, COMPRESSED_GUEST, COMPRESSED | COPIED | end);
        assert_left_unless_accepted(&image, code);
        let mended = mended(&image, shape, &accepting(&[code]));
        let wanted = match (shape.version, shape.is_extended) {
            (2, _) | (_, true) => 0,
            _ => 1,
        };
        assert_eq!(word(&mended, COMPRESSED_GUEST), wanted);
        if shape.is_extended {
            assert_eq!(bitmap(&mended, COMPRESSED_GUEST), 0xffff_ffff << 32);
        }
        assert_sound(&mended, shape);
    });
}

#[test]
fn compressed_data_beside_a_data_file_is_left_to_a_person() {
    let forge = Forge::new().cluster_bits(12).size(512 << 12);
    let mut image = forge.data_file(Some("data")).data(0).data(1).build();
    put_word(&mut image, 1, COMPRESSED | COPIED | 0x1200);
    for code in [Code::CompressedWithDataFile, Code::CompressedCopied] {
        assert_left(&image, &accepting(&[code]), code, "which of the two files");
    }
}

#[test]
fn reserved_bits_beside_an_offset_of_a_data_file_are_cleared_where_it_is_the_guest_offset() {
    let forge = || {
        let forge = Forge::new().cluster_bits(12).size(512 << 12);
        forge.data_file(Some("data")).data(0).data(1)
    };
    let mut image = forge().build();
    alter_word(&mut image, 1, |word| word | RESERVED);
    let done = repaired(&image.bytes, &all());
    assert_eq!(done.bytes, forge().build().bytes);
    alter_word(&mut image, 1, |word| word + 0x4000);
    assert_left(&image, &all(), Code::L2EntryReservedBits, "guest's");
}

#[test]
fn copied_in_a_table_of_several_snapshots_is_cleared_and_in_one_of_a_single_snapshot_left() {
    for snapshots in [1, 2] {
        let forge = Forge::new()
            .cluster_bits(12)
            .size(512 << 12)
            .data(0)
            .data(1);
        let forge = (0..snapshots).fold(forge, |forge, number| {
            forge.snapshot(&number.to_string(), "name")
        });
        let mut image = forge.data(0).build();
        let entry = image.l2_entry(Tree::Snapshot(0), 0);
        let healthy = image.u64_at(entry);
        image.put_u64(entry, healthy | COPIED);
        let damaged = image.bytes.clone();
        image.bytes = repaired(&damaged, &all()).bytes;
        if snapshots == 1 {
            assert_eq!(image.bytes, damaged, "QEMU sets it itself");
        } else {
            assert_eq!(image.u64_at(entry), healthy);
        }
    }
}

#[test]
fn zero_flag_in_version_2_is_left_to_a_person() {
    Shape::each(|shape| {
        if shape.version == 2 {
            let mut image = shape.forge().build();
            alter_word(&mut image, 1, |word| word | 1);
            let code = Code::ZeroFlagInV2;
            assert_left(&image, &accepting(&[code]), code, "compat=1.1");
        }
    });
}

/// Cluster 4 KiB, so that a table has room for enough impossible entries.
fn with_overwritten_table() -> Forged {
    let forge = Forge::new().cluster_bits(12).size(1024 << 12);
    let mut image = forge.data(0).data(1).data(600).build();
    for guest in 10..40 {
        put_word(&mut image, guest, 1 << 40 | RESERVED);
    }
    image
}

#[test]
fn table_that_does_not_look_like_one_is_not_mended_entry_by_entry() {
    let image = with_overwritten_table();
    let codes = [Code::L2EntryPastEnd, Code::L2EntryReservedBits];
    for code in codes {
        assert_left(&image, &accepting(&codes), code, "as a whole");
    }
}

#[test]
fn table_that_something_else_uses_too_is_not_written_to() {
    let forge = Forge::new().cluster_bits(12).size(1024 << 12);
    let mut image = forge.data(0).data(1).data(600).build();
    let table = image.l2_table(Tree::Active, 0);
    alter_word(&mut image, 1, |word| word | RESERVED);
    let entry = image.l2_entry(Tree::Active, 600);
    image.put_u64(entry, table);
    let plan = planned(&image.bytes, &accepting(&[Code::L2EntryReservedBits]));
    let plan = plan.expect("an image");
    let correct = |kind| kind == StageKind::CorrectEntries;
    let has_corrected = plan.stages.iter().any(|stage| correct(stage.kind));
    assert!(!has_corrected, "{:?}", plan.stages);
    let reason = reason(&plan, Code::L2EntryReservedBits);
    assert!(reason.contains("something else"), "{reason}");
}

#[test]
fn each_sector_may_reach_the_disk_without_the_others() {
    let codes = [Code::L2EntryPastEnd, Code::L2TablePastEnd];
    Shape::each(|shape| {
        let forge = (0..512).step_by(40).fold(shape.forge(), Forge::data);
        let mut image = forge.build();
        for guest in (0..512).step_by(40) {
            put_word(&mut image, guest, 1 << 40 | 1 << 60);
        }
        alter_word(&mut image, 3, |word| word | RESERVED);
        let entry = image.refcount_table_entry(0);
        image.put_u64(entry, image.u64_at(entry) | 2);
        let before = checked(&image.bytes).expect("an image");
        let wishes = accepting(&[codes[0], codes[1], Code::L2EntryReservedBits]);
        let plan = planned(&image.bytes, &wishes).expect("an image");
        let correct = plan
            .stages
            .iter()
            .find(|stage| stage.kind == StageKind::CorrectEntries)
            .expect("there is something to correct");
        let sectors = correct.edits.iter().flat_map(|edit| {
            let offsets = (edit.offset..).step_by(512);
            offsets.zip(edit.after.chunks(512))
        });
        let sectors: Vec<(u64, &[u8])> = sectors.collect();
        assert!(sectors.len() > 1, "{shape:?}");
        for pivot in 0..sectors.len() {
            for is_alone in [true, false] {
                let mut state = image.bytes.clone();
                for (at, (offset, after)) in sectors.iter().enumerate() {
                    if (at == pivot) == is_alone {
                        let start = usize::try_from(*offset).expect("a small image");
                        let place = state.get_mut(start..start + after.len());
                        place.expect("in place").copy_from_slice(after);
                    }
                }
                assert_no_worse(&before, &state);
            }
        }
    });
}

/// No error is found more often than before.
fn assert_no_worse(before: &Check, state: &[u8]) {
    let image = Image::open(state.to_vec(), Path::new("image")).expect("an image");
    let now = qfsck::check(&image, Options::default(), &Progress::default());
    for (code, total) in now.findings.totals() {
        let is_error = code.severity() == Severity::Corruption;
        let was = counted(before, code);
        assert!(!is_error || total.count <= was, "{code}: {was}, {total:?}");
    }
}

#[test]
fn mode_leaks_corrects_no_entry() {
    Shape::each(|shape| {
        let mut image = shape.forge().build();
        alter_word(&mut image, 1, |word| word | RESERVED);
        let plan = planned(&image.bytes, &RepairOptions::new(Mode::Leaks));
        assert!(plan.expect("an image").is_empty(), "{shape:?}");
    });
}

#[test]
fn table_of_which_the_file_has_lost_all_data_can_be_given_up() {
    let forge = Forge::new().cluster_bits(12).size(1024 << 12);
    let mut image = forge.data(0).data(1).data(600).build();
    for guest in 10..40 {
        put_word(&mut image, guest, COPIED | 1 << 40 | guest << 12);
    }
    let code = Code::L2EntryPastEnd;
    assert_left_unless_accepted(&image, code);
    image.bytes = repaired(&image.bytes, &accepting(&[code])).bytes;
    assert_eq!(word(&image, 20), 1);
}

/// A pointer damaged so that it leads to a lost cluster, with few words in it.
#[test]
fn what_may_be_data_is_not_mended_as_if_it_were_a_table() {
    let forge = || Forge::new().cluster_bits(12).size(1024 << 12);
    let mut image = forge().data(0).data(600).build();
    let lost = image.allocate(1) << 12;
    image.put_u64(lost + 80, 0x1_0201);
    image.put_u64(image.l1_entry(Tree::Active, 1), lost | COPIED);
    let code = Code::L2EntryUnaligned;
    assert_left(&image, &accepting(&[code]), code, "nothing else");
    assert_eq!(image.u64_at(lost + 80), 0x1_0201);

    let mut image = forge().data(0).build();
    let lost = image.allocate(1) << 12;
    image.put_u64(lost + 80, 0x30);
    image.put_u64(image.field("refcount_table_offset"), lost);
    let plan = planned(&image.bytes, &all()).expect("an image");
    // The refcounts are built anew elsewhere.
    let mut edits = plan.stages.iter().flat_map(|stage| &stage.edits);
    let is_touched = edits.any(|edit| (lost..lost + 4096).contains(&edit.offset));
    assert!(!is_touched && !plan.is_empty());

    let mut image = forge().data(0).build();
    let l1_size = image.l1_size(Tree::Active);
    image.put_u32(image.field("l1_size"), l1_size + 8);
    let behind = image.l1_table(Tree::Active) + u64::from(l1_size) * 8;
    image.put_u64(behind, 0x30);
    assert_left(
        &image,
        &all(),
        Code::L1EntryReservedBits,
        "behind the table",
    );

    let mut image = forge().data(0).data(600).build();
    for entry in 10..20 {
        image.put_u64(image.refcount_table_entry(entry), 1 << 40 | 0x31);
    }
    let plan = planned(&image.bytes, &all()).expect("an image");
    // They name nothing that is a block, and nothing needs one there: they are cleared.
    assert_eq!(plan.after.verdict, qfsck::Verdict::Clean);
}

#[test]
fn l1_table_full_of_garbage_is_not_mended_entry_by_entry() {
    let forge = Forge::new().cluster_bits(9).size(4096 << 9);
    let mut image = forge.data(0).data(600).build();
    for entry in 20..40 {
        image.put_u64(image.l1_entry(Tree::Active, entry), 0x30 | COPIED);
    }
    let codes = [Code::L1EntryReservedBits, Code::L1EntryWithoutOffset];
    for code in codes {
        assert_left(&image, &accepting(&codes), code, "as a whole");
    }
}
