//! Plans: what a repair would do to every image of the corpus, rehearsed in memory.
//!
//! Comes in: the corpus. Goes out: nothing, or a plan that makes something worse. Never here: a write to an image.

use std::fs;
use std::path::Path;

use qfsck::{
    Code, Image, Mode, Options, Plan, Progress, RepairOptions, Severity, Stage, StageKind, Verdict,
};

use crate::corpus::cases;
use crate::support::image_forge::{Forge, Tree};

fn plan_of(bytes: &[u8], mode: Mode) -> Option<Plan> {
    let image = Image::open(bytes.to_vec(), Path::new("image")).ok()?;
    let plan = qfsck::plan(
        &image,
        &RepairOptions::new(mode),
        Options::default(),
        &Progress::default(),
    );
    Some(plan.expect("memory can be read"))
}

/// Does what a plan says, in memory.
pub(crate) fn apply(plan: &Plan, bytes: &mut Vec<u8>) {
    assert_eq!(bytes.len() as u64, plan.length_bytes, "the image it is for");
    for stage in &plan.stages {
        for edit in &stage.edits {
            let place = reach(bytes, edit.offset, edit.after.len() as u64);
            let mut before = edit.before.clone();
            before.resize(edit.after.len(), 0);
            assert_eq!(place, before, "an edit finds what it expects");
            place.copy_from_slice(&edit.after);
        }
        for copy in &stage.copies {
            let copied = reach(bytes, copy.from, copy.bytes).to_vec();
            reach(bytes, copy.to, copy.bytes).copy_from_slice(&copied);
        }
    }
    assert_eq!(bytes.len() as u64, plan.length_bytes_after, "as foreseen");
}

/// Bytes of an image that grows to hold them.
fn reach(bytes: &mut Vec<u8>, offset: u64, length: u64) -> &mut [u8] {
    let start = usize::try_from(offset).expect("small images");
    let end = start + usize::try_from(length).expect("small images");
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes.get_mut(start..end).expect("just made")
}

#[test]
fn plans_make_nothing_worse_and_leave_nothing_to_plan() {
    let mut planned = 0;
    for case in cases() {
        for mode in [Mode::Leaks, Mode::All] {
            let mut bytes = fs::read(case.join("image.qcow2")).expect("an image");
            let Some(plan) = plan_of(&bytes, mode) else {
                continue;
            };
            let name = case.display();
            apply(&plan, &mut bytes);
            planned += usize::from(!plan.is_empty());
            let image = Image::open(bytes.clone(), Path::new("image")).expect("still an image");
            let after = qfsck::check(&image, Options::default(), &Progress::default());
            assert_eq!(after, plan.after, "{name}: the rehearsal told the truth");
            let again = plan_of(&bytes, mode).expect("still an image");
            assert!(
                again.is_empty(),
                "{name}: a second repair plans {:?}",
                again.stages
            );
            println!(
                "{} {mode:?}: {} stages, {:?} -> {:?}, withheld {}",
                case.file_name().unwrap_or_default().display(),
                plan.stages.len(),
                plan.before.verdict,
                plan.after.verdict,
                plan.withheld.len(),
            );
        }
    }
    println!("{planned} plans");
    assert!(planned > 40, "only {planned} plans");
}

/// A plan lowers a refcount.
fn lowers(plan: &Plan) -> bool {
    let is_lowering = |stage: &Stage| stage.kind == StageKind::LowerRefcounts;
    plan.stages.iter().any(is_lowering)
}

#[test]
fn what_a_lost_pointer_hides_is_never_freed() {
    for name in [
        "130-l1-entry-lost",
        "132-l1-entry-offset-lost",
        "137-l1-entry-at-data",
        "231-snapshot-count-too-small",
        "232-snapshot-count-zero",
        "234-snapshot-table-unaligned",
        "235-snapshot-table-past-end-of-file",
        "236-snapshot-table-offset-zero",
        "237-snapshot-l1-unaligned",
        "240-snapshot-l1-size-zero",
        "253-snapshot-l1-entry-lost",
        "301-header-l1-unaligned",
        "302-header-l1-at-data",
        "330-dirty-bit-with-l1-entry-lost",
    ] {
        let image = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let bytes = fs::read(image.join("image.qcow2")).expect("an image of the corpus");
        let plan = plan_of(&bytes, Mode::All).expect("an image");
        assert!(!lowers(&plan), "{name} would lose data");
        assert!(!plan.withheld.is_empty(), "{name}: the reason is named");
    }
}

#[test]
fn lost_snapshots_keep_their_counts_whether_they_have_diverged_or_not() {
    for diverges in [false, true] {
        for cluster_bits in [9, 12, 16] {
            let forge = Forge::new()
                .cluster_bits(cluster_bits)
                .size(256 << cluster_bits);
            let forge = (0..20).fold(forge, Forge::data).snapshot("1", "one");
            let forge = if diverges {
                forge.data(3).data(7)
            } else {
                forge
            };
            let mut image = forge.build();
            image.put_u32(image.field("nb_snapshots"), 0);
            for mode in [Mode::Leaks, Mode::All] {
                let plan = plan_of(&image.bytes, mode).expect("an image");
                assert!(plan.before.findings.count_of(Severity::Leak) > 0);
                assert!(!lowers(&plan), "{cluster_bits} {diverges} {mode:?}");
            }
        }
    }
}

#[test]
fn lost_l1_entry_with_an_external_data_file_frees_nothing() {
    let forge = Forge::new()
        .cluster_bits(12)
        .size(4096 << 12)
        .data_file(Some("data"));
    let mut image = (0..20).fold(forge, Forge::data).build();
    image.put_u64(image.l1_entry(Tree::Active, 0), 0);
    let plan = plan_of(&image.bytes, Mode::All).expect("an image");
    assert!(plan.before.findings.count_of(Severity::Leak) > 0);
    assert!(plan.is_empty(), "{:?}", plan.stages);
}

#[test]
fn image_with_unknown_bits_is_not_written_to() {
    for field in ["incompatible_features", "autoclear_features"] {
        let mut image = Forge::new()
            .cluster_bits(12)
            .size(4096 << 12)
            .data(1)
            .build();
        image.put_u64(image.field(field), 1 << 40);
        image.set_refcount(image.host_cluster(Tree::Active, 1), 0);
        let plan = plan_of(&image.bytes, Mode::All).expect("an image");
        assert!(plan.is_empty() && !plan.withheld.is_empty(), "{field}");
    }
}

#[test]
fn leaked_tables_are_named_with_what_they_would_map_and_freed_only_on_demand() {
    let forge = Forge::new().cluster_bits(12).size(4 << 20);
    let mut image = (0..20).fold(forge, Forge::data).build();
    let lost = image.l2_table(Tree::Active, 0) / image.cluster_size();
    image.put_u64(image.l1_entry(Tree::Active, 0), 0);
    let plan = plan_of(&image.bytes, Mode::All).expect("an image");
    assert!(!lowers(&plan), "{plan:?}");
    let suspected = plan
        .withheld
        .iter()
        .find(|withheld| withheld.code == Code::LostMappingSuspected);
    let suspected = suspected.expect("the lost table is named");
    let wanted = format!("cluster {lost} names 20 of them (81920 bytes)");
    assert_eq!(suspected.count, 1);
    assert!(suspected.reason.contains(&wanted), "{}", suspected.reason);

    let mut wishes = RepairOptions::new(Mode::Leaks);
    wishes.accepted_losses.insert(Code::LostMappingSuspected);
    let opened = Image::open(image.bytes.clone(), Path::new("image")).expect("an image");
    let plan = qfsck::plan(&opened, &wishes, Options::default(), &Progress::default());
    let plan = plan.expect("memory can be read");
    assert!(lowers(&plan), "it was asked for");
    assert_eq!(plan.after.verdict, Verdict::Clean);
}
