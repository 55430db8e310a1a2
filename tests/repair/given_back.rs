//! What a repair frees, and what of it the file system gets back.
//!
//! Comes in: images with clusters that are counted too often. Goes out: nothing, or a count, a byte or a block that is not
//! as it should be. Never here: when freeing is allowed at all (`entries`, `refcounts`, `headline`).

use std::fs;
use std::os::unix::fs::MetadataExt;

use qfsck::{Code, Mode, RepairOptions, Verdict};

use super::binary::{Bench, IMAGE};
use super::guest::Guest;
use super::repaired;
use crate::support::image_forge::{Forge, Forged, Tree};

const COPIED: u64 = 1 << 63;

/// An image with data, and 40 leaked clusters full of bytes behind it.
fn with_leaks() -> (Forged, u64) {
    let forge = Forge::new().version(3).cluster_bits(16).size(64 << 16);
    let mut image = (0..8).fold(forge, Forge::data).build();
    let first = image.cluster_count();
    let end = usize::try_from((first + 40) << 16).expect("small");
    image
        .bytes
        .resize(usize::try_from(first << 16).expect("small"), 0);
    image.bytes.resize(end, 0xa5);
    for cluster in first..first + 40 {
        image.set_refcount(cluster, 1);
    }
    (image, first)
}

#[test]
fn freed_clusters_are_given_back_and_undo_still_puts_every_count_back() {
    let (image, first) = with_leaks();
    let bench = Bench::new();
    let blocks = || fs::metadata(bench.path(IMAGE)).expect("an image").blocks();
    bench.lay(&image.bytes, None);
    let before = blocks();
    let ended = bench.qfsck(&["repair", "--yes", "--mode", "leaks", "--punch", IMAGE]);
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert!(ended.says("cannot bring them back"), "{ended:?}");
    if !ended.says("could be given back") {
        assert!(ended.says("2621440 bytes given back"), "{ended:?}");
        assert!(blocks() + (39 << 7) <= before, "{} of {before}", blocks());
    }
    let after = bench.image();
    assert_eq!(after.len(), image.bytes.len(), "the length stays");
    let losses = Guest::of(&image.bytes).losses(&Guest::of(&after));
    assert!(losses.is_empty(), "{losses:?}");

    let ended = bench.qfsck(&["undo", "image.qcow2.qfsck-undo"]);
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    let start = usize::try_from(first << 16).expect("small");
    let (head, tail) = (&bench.image()[..start], &image.bytes[..start]);
    assert!(head == tail, "everything but what was leaked is as it was");
    assert_eq!(bench.qfsck(&["check", IMAGE]).exit, Some(3));
}

#[test]
fn without_being_asked_nothing_is_given_back() {
    let (image, first) = with_leaks();
    let bench = Bench::new();
    bench.lay(&image.bytes, None);
    let ended = bench.qfsck(&["repair", "--yes", IMAGE]);
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    let start = usize::try_from(first << 16).expect("small");
    assert!(bench.image()[start..] == image.bytes[start..]);
}

#[test]
fn what_the_repair_itself_put_out_of_use_is_never_given_back() {
    for (what, damage) in super::refcounts::DAMAGES {
        for (name, mut image) in super::refcounts::images() {
            damage(&mut image);
            let wishes = RepairOptions::new(Mode::All);
            let Ok(plan) = super::planned(&image.bytes, &wishes) else {
                continue;
            };
            for cluster in plan.freed.iter().flat_map(|range| range.clusters()) {
                let findings = plan.before.findings.iter();
                let mut leaks = findings.filter(|finding| finding.code == Code::RefcountLeak);
                let was_leaked = leaks.any(|finding| {
                    finding
                        .host
                        .is_some_and(|host| host.clusters().any(|it| it == cluster))
                });
                assert!(was_leaked, "{what}, {name}: {cluster:?}");
            }
        }
    }
}

#[test]
fn leaks_mode_lowers_counts_of_clusters_in_use_and_their_flags_follow() {
    for version in [2, 3] {
        for stored in [2, 7] {
            let forge = Forge::new()
                .version(version)
                .cluster_bits(12)
                .size(64 << 12);
            let mut image = (0..8).fold(forge, Forge::data).build();
            for index in [2, 5] {
                let entry = image.l2_entry(Tree::Active, index);
                let word = image.u64_at(entry) & !COPIED;
                image.put_u64(entry, word);
                image.set_refcount(word >> 12, stored);
            }
            let done = repaired(&image.bytes, &RepairOptions::new(Mode::Leaks));
            assert_eq!(done.plan.before.verdict, Verdict::Leaks);
            assert_eq!(done.plan.after.verdict, Verdict::Clean, "{:?}", done.plan);
            assert!(done.plan.freed.is_empty(), "they are in use");
            for index in [2, 5] {
                let entry = image.l2_entry(Tree::Active, index);
                let at = usize::try_from(entry).expect("small");
                assert_eq!(done.bytes[at] >> 7, 1, "COPIED says that the count is one");
            }
        }
    }
}
