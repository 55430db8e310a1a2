//! The snapshot table: what is wrong in it is put right, and no snapshot that could be read is lost.
//!
//! Comes in: forged images with snapshots, broken one by one, and those of the corpus. Goes out: the snapshots that are
//! left, by ID and name. Never here: what a snapshot maps (every repair is held to that anyway).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use qfsck::{Code, Mode, RepairOptions, Severity, StageKind, Verdict};

use super::{Repaired, all, repaired};
use crate::crash::{Score, try_image};
use crate::support::image_forge::{Forge, Forged, SnapshotRecipe, Tree};

type Damage = fn(&mut Forged);

fn plain() -> Forge {
    Forge::new().cluster_bits(12).size(8 << 20).data(0).data(1)
}

fn with_two(forge: Forge) -> Forge {
    let forge = forge.snapshot("1", "monday").data(0);
    forge.snapshot("2", "tuesday").data(1)
}

fn two() -> Forge {
    with_two(plain())
}

fn damaged(forge: Forge, damage: Damage) -> Forged {
    let mut image = forge.build();
    damage(&mut image);
    image
}

/// ID and name of each snapshot.
fn listed(repaired: &Repaired) -> Vec<String> {
    let snapshots = repaired.plan.after.snapshots.iter();
    snapshots
        .map(|entry| {
            String::from_utf8_lossy(&[&*entry.id, b" ", &*entry.name].concat()).into_owned()
        })
        .collect()
}

fn bytes_at(image: &Forged, offset: u64, count: u64) -> Vec<u8> {
    (offset..offset + count).map(|at| image.u8_at(at)).collect()
}

/// Takes the extra data out of both entries.
fn without_extra_data(image: &mut Forged) {
    let mut table = Vec::new();
    for index in 0..2 {
        let text = 1 + u64::from(image.u16_at(image.snapshot_field(index, "name_size")));
        image.put_u32(image.snapshot_field(index, "extra_data_size"), 0);
        table.extend(bytes_at(image, image.snapshot_entry(index), 40));
        table.extend(bytes_at(image, image.snapshot_field(index, "id"), text));
        table.resize(table.len().next_multiple_of(8), 0);
    }
    table.resize(160, 0);
    image.put(image.snapshot_table(), &table);
}

/// Lets guest data lie in the snapshot table's cluster.
fn data_on_table(image: &mut Forged) {
    let entry = image.l2_entry(Tree::Active, 1);
    let lost = image.host_cluster(Tree::Active, 1);
    image.set_refcount(lost, 0);
    image.put_u64(entry, image.snapshot_table() | 1 << 63);
}

#[test]
fn count_that_reaches_into_zeros_is_lowered() {
    for version in [2, 3] {
        let image = damaged(two().version(version), |image| {
            image.put_u32(image.field("nb_snapshots"), 5);
        });
        let done = repaired(&image.bytes, &all());
        assert_eq!(listed(&done), ["1 monday", "2 tuesday"]);
        assert_eq!(done.plan.after.verdict, Verdict::Clean);
        assert_eq!(
            done.bytes,
            two().version(version).build().bytes,
            "only the count"
        );
    }
}

#[test]
fn only_lost_counts_of_clusters_in_the_file_keep_a_count_that_reaches_into_zeros() {
    // Entry 0 has the counts of every cluster of the file, entry 40 those of clusters far behind its end.
    for (entry, is_lowered) in [(40, true), (0, false)] {
        let mut image = damaged(two(), |image| {
            image.put_u32(image.field("nb_snapshots"), 5);
        });
        let word = image.refcount_table_entry(entry);
        image.put_u64(word, image.u64_at(word) | 0x200);
        let done = repaired(&image.bytes, &all());
        let mut kept = done.plan.withheld.iter().map(|withheld| withheld.code);
        assert_eq!(
            kept.any(|code| code == Code::SnapshotPhantom),
            !is_lowered,
            "{:?}",
            done.plan.withheld
        );
        let is_healthy = done.bytes == two().build().bytes;
        assert_eq!(is_healthy, is_lowered, "one repair does all there is to do");
    }
}

#[test]
fn count_beyond_the_limit_is_lowered_to_what_reads_as_snapshots() {
    let image = damaged(two(), |image| {
        image.put_u32(image.field("nb_snapshots"), 65_537);
    });
    let done = repaired(&image.bytes, &all());
    assert_eq!(
        listed(&done),
        ["1 monday", "2 tuesday"],
        "{:?}",
        done.plan.withheld
    );
    assert_eq!(done.plan.after.verdict, Verdict::Clean);
}

#[test]
fn zeros_that_may_have_been_a_snapshot_are_left() {
    let wiped: [Damage; 3] = [
        |image| {
            let (first, second) = (image.snapshot_entry(0), image.snapshot_entry(1));
            image.put(
                second,
                &vec![0; usize::try_from(second - first).expect("small")],
            );
        },
        |image| image.put(image.snapshot_entry(0), &[0; 160]),
        |image| {
            let table = image.allocate(1) * image.cluster_size();
            image.put_u64(image.field("snapshots_offset"), table);
        },
    ];
    for damage in wiped {
        let image = damaged(two(), damage);
        let done = repaired(&image.bytes, &all());
        assert!(done.plan.is_empty(), "{:?}", done.plan.stages);
        let mut reasons = done.plan.withheld.iter().map(|withheld| withheld.code);
        assert!(reasons.any(|code| code == Code::SnapshotPhantom));
        let accepted = RepairOptions {
            accepted_losses: BTreeSet::from([Code::SnapshotPhantom]),
            ..RepairOptions::new(Mode::All)
        };
        let done = repaired(&image.bytes, &accepted);
        assert_eq!(
            done.plan
                .after
                .findings
                .total_of(Code::SnapshotPhantom)
                .count,
            0
        );
        let lowers = |kind| kind == StageKind::LowerRefcounts;
        assert!(!done.plan.stages.iter().any(|stage| lowers(stage.kind)));
    }
}

#[test]
fn damaged_entry_behind_the_last_good_one_is_left_unless_the_loss_is_accepted() {
    let image = damaged(two(), |image| {
        image.put_u32(image.snapshot_field(1, "extra_data_size"), 0x0800_0000);
    });
    let done = repaired(&image.bytes, &all());
    assert!(done.plan.is_empty(), "{:?}", done.plan.stages);
    let accepted = RepairOptions {
        accepted_losses: BTreeSet::from([Code::SnapshotTableTruncated]),
        ..RepairOptions::new(Mode::All)
    };
    assert_eq!(listed(&repaired(&image.bytes, &accepted)), ["1 monday"]);
}

#[test]
fn blank_entry_between_snapshots_is_left_out_of_a_new_table() {
    let image = damaged(two(), |image| {
        let second = bytes_at(image, image.snapshot_entry(1), 80);
        image.put(image.snapshot_entry(1), &[0; 40]);
        image.put(image.snapshot_entry(1) + 40, &second);
        image.put_u32(image.field("nb_snapshots"), 3);
    });
    let done = repaired(&image.bytes, &all());
    assert_eq!(
        listed(&done),
        ["1 monday", "2 tuesday"],
        "{:?}",
        done.plan.withheld
    );
    assert_eq!(
        done.plan.after.verdict,
        Verdict::Clean,
        "{:?}",
        done.plan.withheld
    );
}

#[test]
fn missing_extra_data_is_filled_in_with_what_readers_take_it_for() {
    let image = damaged(two(), without_extra_data);
    let done = repaired(&image.bytes, &all());
    assert_eq!(
        listed(&done),
        ["1 monday", "2 tuesday"],
        "{:?}",
        done.plan.withheld
    );
    assert_eq!(
        done.plan.after.verdict,
        Verdict::Clean,
        "{:?}",
        done.plan.withheld
    );
    for entry in &done.plan.after.snapshots {
        assert_eq!(entry.disk_bytes, Some(8 << 20));
        assert_eq!((entry.fixed.extra_data_size, entry.vm_state_bytes), (16, 0));
    }
}

#[test]
fn extra_data_beyond_a_kibibyte_is_cut_and_the_rest_of_the_entry_kept() {
    let mut long = SnapshotRecipe::new("1", "monday");
    long.extra_data_bytes = Some(1100);
    let forge = || {
        plain()
            .snapshot_with(long.clone())
            .data(0)
            .snapshot("2", "tuesday")
            .data(1)
    };
    let image = forge().build();
    let done = repaired(&image.bytes, &all());
    assert_eq!(listed(&done), ["1 monday", "2 tuesday"]);
    assert_eq!(
        done.plan.after.verdict,
        Verdict::Clean,
        "{:?}",
        done.plan.withheld
    );
    let entry = done.plan.after.snapshots.first().expect("two snapshots");
    let start = usize::try_from(entry.offset).expect("a small image") + 40;
    let kept = done.bytes.get(start..start + 1024).expect("in the file");
    assert_eq!(kept, bytes_at(&image, image.snapshot_entry(0) + 40, 1024));
}

#[test]
fn length_that_may_itself_be_damaged_is_left() {
    for size in [8, 1032] {
        let mut image = two().build();
        image.put_u32(image.snapshot_field(1, "extra_data_size"), size);
        let done = repaired(&image.bytes, &all());
        assert!(done.plan.is_empty(), "{size}: {:?}", done.plan.stages);
        assert!(!done.plan.withheld.is_empty(), "{size}");
    }
}

#[test]
fn later_of_two_equal_ids_becomes_an_unused_number() {
    let image = damaged(two(), |image| {
        image.put_u8(image.snapshot_field(1, "id"), b'1');
    });
    let done = repaired(&image.bytes, &all());
    assert_eq!(listed(&done), ["1 monday", "2 tuesday"]);
    assert_eq!(done.bytes.len(), image.bytes.len(), "in place");

    let forge = ["1", "2", "3", "4", "5", "6", "7", "8", "9"]
        .into_iter()
        .fold(plain(), |forge, id| forge.snapshot(id, "day").data(0));
    let mut image = forge.snapshot("x", "last").build();
    image.put_u8(image.snapshot_field(9, "id"), b'4');
    let done = repaired(&image.bytes, &all());
    let ids: BTreeSet<_> = done
        .plan
        .after
        .snapshots
        .iter()
        .map(|entry| &entry.id)
        .collect();
    assert_eq!(ids.len(), 10, "{:?}", listed(&done));
}

#[test]
fn table_that_guest_data_lies_on_is_moved_away_from_it() {
    let image = damaged(two(), data_on_table);
    let done = repaired(&image.bytes, &all());
    assert_eq!(listed(&done), ["1 monday", "2 tuesday"]);
    let after = &done.plan.after.findings;
    assert_eq!(
        after.total_of(Code::MetadataOverlap).count,
        0,
        "{:?}",
        done.plan.withheld
    );
}

#[test]
fn offset_of_an_empty_table_is_forgotten_where_it_leads_nowhere() {
    let mut image = plain().build();
    image.put_u64(image.field("snapshots_offset"), 0x1008);
    assert_eq!(
        repaired(&image.bytes, &all()).plan.after.verdict,
        Verdict::Clean
    );
    let mut image = two().build();
    image.put_u64(image.field("snapshots_offset"), image.snapshot_table() + 8);
    image.put_u32(image.field("nb_snapshots"), 0);
    assert!(
        repaired(&image.bytes, &all()).plan.is_empty(),
        "lost snapshots"
    );
}

#[test]
fn choice_is_named_where_an_l1_table_is_lost() {
    let image = damaged(two(), |image| {
        let field = image.snapshot_field(0, "l1_table_offset");
        image.put_u64(field, image.u64_at(field) + 8);
    });
    let done = repaired(&image.bytes, &all());
    assert!(done.plan.is_empty());
    let mut reasons = done.plan.withheld.iter();
    let reason = reasons.find(|withheld| withheld.code == Code::SnapshotL1Unaligned);
    assert!(reason.is_some_and(|withheld| withheld.reason.contains("delete the snapshot")));
}

#[test]
fn power_cuts_while_the_table_is_switched_make_nothing_worse() {
    let damages: [(&str, Damage); 4] = [
        ("count", |image| {
            image.put_u32(image.field("nb_snapshots"), 9);
        }),
        ("incomplete", without_extra_data),
        ("contested", data_on_table),
        ("id", |image| {
            image.put_u8(image.snapshot_field(1, "id"), b'1');
        }),
    ];
    let mut score = Score::default();
    for (what, damage) in damages {
        try_image(what, &damaged(two(), damage).bytes, false, &mut score);
    }
    println!("{} images, {} states", score.images, score.states);
    assert!(score.worse.is_empty(), "{:#?}", score.worse);
    assert!(
        score.undo_mismatches.is_empty(),
        "{:#?}",
        score.undo_mismatches
    );
    assert_eq!(score.images, damages.len());
}

#[test]
fn snapshots_of_the_corpus_are_all_there_after_a_repair() {
    for (name, corruptions) in [
        ("230-snapshot-count-too-large", Some(0)),
        ("233-snapshot-count-over-limit", Some(0)),
        ("235-snapshot-table-past-end-of-file", None),
        ("236-snapshot-table-offset-zero", None),
        ("244-snapshot-duplicate-id", Some(0)),
        ("246-snapshot-id-empty", None),
        ("248-snapshot-name-not-utf-8-and-l1-unaligned", None),
        ("249-snapshot-extra-data-too-small", Some(0)),
        ("250-snapshot-extra-data-too-large", None),
        ("256-snapshot-count-too-large-v2", Some(0)),
        ("177-data-on-snapshot-table", None),
    ] {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let bytes = fs::read(corpus.join(name).join("image.qcow2")).expect("an image");
        let done = repaired(&bytes, &all());
        let after = &done.plan.after.findings;
        let left = after.count_of(Severity::Corruption);
        println!("{name}: {:?}, {left} errors left", listed(&done));
        assert!(
            corruptions.is_none_or(|wanted| wanted == left),
            "{name}: {:?}",
            done.plan.withheld
        );
    }
}
