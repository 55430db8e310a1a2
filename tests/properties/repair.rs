//! A repair, over any image: as rehearsed, never worse, undone to the byte.
//!
//! Comes in: an input. Goes out: nothing, or the promise that is broken. Never here: whether more could have been repaired.
//!
//! Worse is measured twice: by the check, kind by kind, and by a reader that knows nothing of it (`repair/guest.rs`): what
//! a guest saw and was well defined is the same afterwards, in the active disk and in every snapshot.

use std::path::Path;

use qfsck::qcow2::Place;
use qfsck::report::{PlanDocument, PlanFile, write_pretty};
use qfsck::undo::UndoFile;
use qfsck::{
    Check, Code, Finding, Identity, Image, Mode, Options, Overlaps, Plan, Progress, RepairOptions,
    Severity, UndoOptions, metadata_digest,
};

use super::Bounds;
use super::disk::{Disk, Sink};
use super::given::Given;
use crate::repair::guest::Guest;
use crate::support::image_forge::Random;

/// What a repair may add: a refcount table has at most 8 MiB and is gone around once, and a little for the rest.
const MAX_GROWTH_BYTES: u64 = 17 << 20;
/// A guest's tables are read entry by entry: images given as they are may claim too many.
const READ_BYTES: usize = 256 << 10;

/// A repair of the image keeps its promises.
pub(crate) fn holds(input: &[u8], bounds: &impl Bounds) {
    let Given {
        bytes,
        mut choices,
        story,
    } = Given::of(input);
    let wishes = wishes(&mut choices);
    let Some(plan) = planned(&bytes, &wishes, bounds) else {
        return;
    };
    document_says_it_all(&bytes, &wishes, &plan);
    if plan.is_empty() {
        return;
    }
    is_not_worse(&plan.before, &plan.after, &wishes, &story);
    let growth = plan.length_bytes_after - plan.length_bytes;
    assert!(growth <= MAX_GROWTH_BYTES, "{story}: grows by {growth}");
    let mut disk = Disk::new(&bytes);
    let sink = Sink::default();
    let progress = Progress::default();
    let applied = bounds.hold(bytes.len(), || {
        qfsck::apply(
            &mut disk,
            &identity(),
            &plan,
            Options::default(),
            &progress,
            || Ok(sink.clone()),
        )
    });
    assert!(applied.is_ok(), "{story}: {applied:?}");
    let after = std::mem::take(&mut disk.bytes);
    assert_eq!(after.len() as u64, plan.length_bytes_after, "{story}");
    let now = checked(&after);
    assert!(now == plan.after, "{story}: not as rehearsed");
    let again = stays_no_worse(&now, &after, &wishes, &story, bounds);
    if wishes.accepted_losses.is_empty() && has_all_counts(&plan.before, plan.length_bytes) {
        let stages: Vec<_> = again
            .stages
            .iter()
            .map(|stage| (stage.kind, &stage.changes))
            .collect();
        assert!(
            again.is_empty(),
            "{story}, {wishes:?}: a second repair does more: {stages:?}"
        );
    }
    keeps_guest_content(&bytes, &after, &wishes, &story);
    let undo_file = sink.0.borrow().clone();
    let file = UndoFile::decode(&undo_file).expect("it was written a moment ago");
    disk.bytes = after;
    let undone = bounds.hold(bytes.len(), || {
        let sink = || Ok(Sink::holding(&undo_file));
        qfsck::undo_repair(&mut disk, &file, UndoOptions::default(), &progress, sink)
    });
    assert!(undone.is_ok(), "{story}: {undone:?}");
    assert!(disk.bytes == bytes, "{story}: undo gives back other bytes");
}

pub(super) fn identity() -> Identity {
    Identity {
        device: 1,
        inode: 2,
        is_block_device: false,
        path: b"input".to_vec(),
    }
}

fn wishes(choices: &mut Random) -> RepairOptions {
    let mut wishes =
        RepairOptions::new(choices.pick(&[Mode::All, Mode::All, Mode::All, Mode::Leaks]));
    wishes.overlaps = choices.pick(&[Overlaps::Clone, Overlaps::Clone, Overlaps::Keep]);
    if choices.chance(20) {
        let losses = (0..3).map(|_| choices.pick(Code::ALL));
        wishes.accepted_losses = losses.collect();
    }
    wishes
}

fn planned(bytes: &[u8], wishes: &RepairOptions, bounds: &impl Bounds) -> Option<Plan> {
    let image = Image::open(bytes, Path::new("input")).ok()?;
    let progress = Progress::default();
    let plan = bounds.hold(bytes.len(), || {
        qfsck::plan(&image, wishes, Options::default(), &progress)
    });
    Some(plan.expect("memory can be read"))
}

fn checked(bytes: &[u8]) -> Check {
    let image = Image::open(bytes, Path::new("input")).expect("it could be opened before");
    qfsck::check(&image, Options::default(), &Progress::default())
}

/// No error is found more often, but for the lesser ones that a greater one may be traded for.
fn is_not_worse(before: &Check, after: &Check, wishes: &RepairOptions, story: &str) {
    for &code in Code::ALL {
        let is_lesser = matches!(code, Code::CopiedFlagMissing | Code::GuestDataShared);
        if code.severity() != Severity::Corruption || is_lesser {
            continue;
        }
        let (was, is) = (
            before.findings.total_of(code).count,
            after.findings.total_of(code).count,
        );
        assert!(
            is <= was,
            "{story}: {was} {code} become {is} with {wishes:?}"
        );
    }
    let count = |check: &Check, code| check.findings.total_of(code).count;
    let shared = |check: &Check| {
        count(check, Code::GuestDataOverlap).saturating_add(count(check, Code::GuestDataShared))
    };
    assert!(shared(after) <= shared(before), "{story}: more is shared");
    let missing = |check: &Check| count(check, Code::CopiedFlagMissing);
    let losing = |check: &Check| {
        check
            .findings
            .count_of(Severity::Corruption)
            .saturating_sub(missing(check))
    };
    let is_traded = losing(after) < losing(before);
    assert!(losing(after) <= losing(before), "{story}: more errors");
    assert!(
        is_traded || missing(after) <= missing(before),
        "{story}: flags lost for nothing"
    );
    assert!(
        after.coverage.gap_count() <= before.coverage.gap_count(),
        "{story}: less is looked at"
    );
}

/// What counts are lost with: the first repair leaves what they would have vouched for, and the second cannot know that.
///
/// Blocks that nobody can locate are looked at one by one.
const LOST_COUNTS: [Code; 7] = [
    Code::HeaderRefcountOrderInvalid,
    Code::RefcountTableUnaligned,
    Code::RefcountTableMissing,
    Code::RefcountTableTooLarge,
    Code::RefcountTablePastEnd,
    Code::RefcountBlockPastEnd,
    Code::RefcountZero,
];

/// Whether no stored count of a cluster of the file is lost.
fn has_all_counts(check: &Check, file_bytes: u64) -> bool {
    let is_found = |code: &Code| check.findings.total_of(*code).count > 0;
    if LOST_COUNTS.iter().any(is_found) {
        return false;
    }
    let code = Code::RefcountBlockUnaligned;
    // What one refcount block counts.
    let cluster_bits = check.header.cluster_bits;
    let bytes_of_block = 8_u64 << (2 * cluster_bits) >> check.header.refcount_order;
    let is_behind_end = |finding: &&Finding| {
        finding.code == code
            && matches!(finding.place, Place::RefcountTableEntry { index }
                if index.saturating_mul(bytes_of_block) >= file_bytes)
    };
    let behind_end = check.findings.iter().filter(is_behind_end);
    behind_end.map(|finding| finding.count).sum::<u64>() == check.findings.total_of(code).count
}

/// A second repair is not worse either.
fn stays_no_worse(
    first: &Check,
    after: &[u8],
    wishes: &RepairOptions,
    story: &str,
    bounds: &impl Bounds,
) -> Plan {
    let again = planned(after, wishes, bounds).expect("it could be opened before");
    assert!(
        again.before == *first,
        "{story}: the second repair sees another image"
    );
    is_not_worse(&again.before, &again.after, wishes, story);
    again
}

fn keeps_guest_content(before: &[u8], after: &[u8], wishes: &RepairOptions, story: &str) {
    if before.len() > READ_BYTES || !wishes.accepted_losses.is_empty() {
        return;
    }
    let losses = Guest::of(before).losses(&Guest::of(after));
    assert!(
        losses.is_empty(),
        "{story}: {:#?}",
        &losses[..losses.len().min(8)]
    );
}

/// The plan's JSON is read back as the same plan.
fn document_says_it_all(bytes: &[u8], wishes: &RepairOptions, plan: &Plan) {
    let document = document(bytes, wishes, plan);
    let mut text = Vec::new();
    write_pretty(&document, &mut text).expect("memory takes it");
    let file = PlanFile::decode(&text).expect("it was written a moment ago");
    assert_eq!(file.wishes(), wishes);
    assert_eq!(file.compare(&document), Ok(()));
}

pub(super) fn document(bytes: &[u8], wishes: &RepairOptions, plan: &Plan) -> PlanDocument {
    let image = Image::open(bytes, Path::new("input")).expect("there is a plan for it");
    let digest = metadata_digest(&image, &Progress::default()).expect("memory can be read");
    PlanDocument::new("input", &identity(), digest, wishes, plan)
}
