//! The whole check, over any image: it ends, and its answers agree with each other and with the model.
//!
//! Comes in: an input. Goes out: nothing, or what disagrees. Never here: the same check at several numbers of threads;
//! that is a law (`law.rs`).

use std::path::Path;

use qfsck::qcow2::{GuestOffset, HostOffset};
use qfsck::report::{CheckDocument, Conditions, GuestDocument, HostDocument, write_line};
use qfsck::{
    Boot, Check, Code, Image, Options, PolicyLimits, Progress, Severity, Verdict, deep_read,
    guest_path, host_owners, judge_policy, metadata_digest,
};

use super::Bounds;
use super::given::Given;
use crate::law::model::{Model, Opinion};

/// What the model has an opinion on.
pub(crate) const MODELLED: [Code; 10] = [
    Code::RefcountZero,
    Code::RefcountTooLow,
    Code::RefcountOverflow,
    Code::RefcountLeak,
    Code::RefcountPastEnd,
    Code::CopiedFlagMissing,
    Code::CopiedFlagStale,
    Code::MetadataOverlap,
    Code::GuestDataOverlap,
    Code::GuestDataShared,
];
/// The model keeps every reference: images given as they are may have too many.
const MODELLED_BYTES: usize = 256 << 10;

/// A check of the image ends within its bounds, and agrees with itself and with the model.
pub(crate) fn holds(input: &[u8], bounds: &impl Bounds) {
    let given = Given::of(input);
    let Given {
        bytes,
        mut choices,
        story,
    } = given;
    let bytes = bytes.as_slice();
    let Ok(image) = Image::open(bytes, Path::new("input")) else {
        return;
    };
    let progress = Progress::default();
    let has_data_file_length = choices.chance(20);
    let options = Options {
        data_file_bytes: has_data_file_length.then(|| choices.below(1 << 16) << 9),
        // So little that a check of anything goes on in passes.
        max_memory_bytes: choices.chance(20).then(|| choices.below(1 << 16)),
        is_block_device: choices.chance(10),
    };
    let check = bounds.hold(bytes.len(), || qfsck::check(&image, options, &progress));
    assert_consistent(&check, &story);
    if options == Options::default() && bytes.len() <= MODELLED_BYTES {
        model_agrees(bytes, &check, &story);
    }
    let mut all = check;
    bounds.hold(bytes.len(), || {
        if choices.chance(60) {
            deep_read(&image, &mut all, &progress);
        }
        if choices.chance(60) {
            judge_policy(&image, PolicyLimits::default(), &mut all);
        }
        let document = CheckDocument::new("input", &image, &all, &Conditions::default());
        write_line(&document, std::io::sink()).expect("nowhere takes everything");
    });
    // That the data file was not read is said, and changes no verdict.
    if !image.header().has_data_file() {
        assert_consistent(&all, &story);
    }
    let at = choices.below(bytes.len() as u64 + 1);
    bounds.hold(bytes.len(), || {
        let owners = host_owners(&image, HostOffset(at), &progress);
        if let Some(answer) = owners {
            write_line(
                &HostDocument::new("input", &image, &answer),
                std::io::sink(),
            )
            .expect("nowhere takes everything");
        }
        let path = guest_path(&image, GuestOffset(at << 3)).expect("memory can be read");
        if let Some(path) = path {
            write_line(&GuestDocument::new("input", &path), std::io::sink())
                .expect("nowhere takes everything");
        }
        metadata_digest(&image, &progress).expect("memory can be read");
    });
}

/// Fields up to here are in every header of version 3.
const WHOLE_HEADER_BYTES: usize = 104;

fn model_agrees(bytes: &[u8], check: &Check, story: &str) {
    // What a header means that the file ends in, the model does not say.
    if check.coverage.failure_count() > 0 || bytes.len() < WHOLE_HEADER_BYTES {
        return;
    }
    let Some(opinion) = Model::of(bytes).filter(|opinion| opinion.disputed.is_empty()) else {
        return;
    };
    let found = differences(&opinion, check);
    assert!(found.is_empty(), "{story}: {found:?}");
}

/// Verdict, findings and coverage say the same thing in three ways.
pub(crate) fn assert_consistent(check: &Check, case: &str) {
    let corruptions = check.findings.count_of(Severity::Corruption);
    let leaks = check.findings.count_of(Severity::Leak);
    let is_unsafe = |(code, _): (Code, _)| code.boot() == Boot::Unsafe;
    let has_unsafe = check.findings.totals().any(is_unsafe);
    let has_failed = check.coverage.failure_count() > 0;
    let is_complete = check.coverage.complete().is_some();
    let agrees = match check.verdict {
        // Whatever was refused was refused for a reason, and the reason is a finding.
        Verdict::Clean => corruptions == 0 && leaks == 0 && !has_failed && is_complete,
        Verdict::Leaks => corruptions == 0 && leaks > 0 && !has_failed && is_complete,
        Verdict::Repairable => corruptions > 0 && !has_unsafe && !has_failed,
        Verdict::DoNotBoot => has_unsafe && !has_failed,
        Verdict::Unreadable => !is_complete,
    };
    assert!(
        agrees,
        "{case}: {:?} with {:?}",
        check.verdict, check.coverage
    );
    assert_eq!(is_complete, check.coverage.gap_count() == 0, "{case}");
    for finding in check.findings.iter() {
        assert!(finding.count > 0, "{case}: {finding:?} stands for nothing");
        let is_empty = finding.host.is_some_and(|host| host.count == 0);
        assert!(!is_empty, "{case}: {finding:?} has no clusters");
    }
}

/// Where the model says something else.
pub(crate) fn differences(opinion: &Opinion, check: &Check) -> Vec<String> {
    let mut differences = Vec::new();
    for code in MODELLED {
        let model = opinion.totals.get(&code).copied().unwrap_or(0);
        let found = check.findings.total_of(code).count;
        if model != found {
            differences.push(format!("{code}: {found} found, {model} in the model"));
        }
    }
    let model = opinion.has_extent_overlap;
    let found = check.findings.total_of(Code::CompressedExtentOverlap).count > 0;
    if model != found {
        differences.push(format!(
            "extents overlap: {found} found, {model} in the model"
        ));
    }
    let model = opinion.image_end_offset;
    let found = check.statistics.image_end_offset;
    if model != found {
        differences.push(format!(
            "image end: {found:#x} found, {model:#x} in the model"
        ));
    }
    differences
}
