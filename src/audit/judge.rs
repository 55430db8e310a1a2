//! One image in one night: what was seen of it, and what it was the night before, become a row.
//!
//! Comes in: what was seen, and the row of the night before. Goes out: tonight's row. Never here: damage made out of
//! somebody else's writing. An image in use has no verdict tonight, and keeps its last one.

use std::collections::BTreeMap;

use super::key::ImageKey;
use crate::check::{Check, Verdict};
use crate::finding::{Code, Severity};
use crate::report::{AuditRow, Fingerprint, ImageName, ImageStatus, LastVerdict, Night};

/// What was seen of an image.
#[derive(Debug)]
pub enum Seen<'a> {
    /// It stood still while it was read.
    Checked {
        /// What was found.
        check: &'a Check,
        /// The cluster size, if the header gives one.
        cluster_bytes: u64,
    },
    /// Anything else, and why.
    Otherwise(ImageStatus, Option<String>),
}

/// What is known of an image from before tonight.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    status: Option<ImageStatus>,
    busy_nights: u64,
    verdict: Option<LastVerdict>,
    first_night: Option<u64>,
}

impl Before {
    /// From the last row there is, which may be one of tonight: then it is looked at again.
    fn new(row: Option<&AuditRow>, night: Night) -> Self {
        let Some(row) = row else {
            return Self::default();
        };
        let is_tonight = row.night == night.night;
        let told = !row.status.is_in_use() && row.status != ImageStatus::Unfinished;
        let busy_tonight = u64::from(is_tonight && row.status.is_in_use());
        Self {
            status: if is_tonight || !told {
                row.previous
            } else {
                Some(row.status)
            },
            busy_nights: row.busy_nights.saturating_sub(busy_tonight),
            verdict: row.verdict,
            first_night: Some(row.first_night),
        }
    }
}

/// The row of an image that was looked at.
pub fn judge(
    name: ImageName,
    seen: &Seen<'_>,
    fingerprint: Option<Fingerprint>,
    last: Option<&AuditRow>,
    night: Night,
) -> AuditRow {
    let before = Before::new(last, night);
    let mut row = AuditRow {
        name,
        status: ImageStatus::Unreadable,
        reason: None,
        unreliable: Vec::new(),
        corruptions: 0,
        leaks: 0,
        leaked_bytes: 0,
        notices: 0,
        check_errors: 0,
        findings: BTreeMap::new(),
        fingerprint,
        other_names: 0,
        busy_nights: 0,
        previous: before.status,
        first_night: before.first_night.unwrap_or(night.night),
        verdict: before.verdict,
        carried: false,
        night: night.night,
        tool: env!("CARGO_PKG_VERSION").to_owned(),
    };
    match seen {
        Seen::Checked {
            check,
            cluster_bytes,
        } => fill(&mut row, check, *cluster_bytes),
        Seen::Otherwise(status, reason) => {
            row.status = *status;
            row.reason.clone_from(reason);
        }
    }
    if row.status.is_in_use() {
        row.busy_nights = before.busy_nights.saturating_add(1);
    } else if row.status == ImageStatus::Unfinished {
        row.busy_nights = before.busy_nights;
    }
    if row.status.is_verdict() {
        row.verdict = Some(LastVerdict {
            status: row.status,
            night,
        });
    }
    row
}

fn fill(row: &mut AuditRow, check: &Check, cluster_bytes: u64) {
    let findings = &check.findings;
    row.status = match check.verdict {
        Verdict::Clean => ImageStatus::Clean,
        Verdict::Leaks => ImageStatus::Leaks,
        Verdict::Repairable => ImageStatus::Repairable,
        Verdict::DoNotBoot => ImageStatus::DoNotBoot,
        Verdict::Unreadable => ImageStatus::Unreadable,
    };
    row.corruptions = findings.count_of(Severity::Corruption);
    row.leaks = findings.count_of(Severity::Leak);
    row.notices = findings.count_of(Severity::Notice);
    row.check_errors = check.coverage.failure_count();
    for (code, total) in findings.totals() {
        row.findings.insert(code.id().to_owned(), total.count);
        if code == Code::RefcountLeak {
            row.leaked_bytes = total.count.saturating_mul(cluster_bytes);
        }
    }
    if row.status == ImageStatus::Unreadable {
        let gap = check.coverage.gaps().first();
        row.reason = gap.map(|gap| format!("{}: {}", gap.place, gap.detail));
    }
}

/// Whether an image is to be read tonight even if nobody touched it: each has its turn once in `full_every` nights.
pub fn is_due(name: &ImageName, night: Night, full_every: u64) -> bool {
    let every = full_every.max(1);
    ImageKey::new(name).remainder(every) == night.night % every
}

/// Whether an image was not read for so many nights, whosever turn it is: nights that were left out take turns with them.
pub fn is_overdue(row: &AuditRow, night: Night, full_every: u64) -> bool {
    row.verdict.is_none_or(|verdict| {
        let last = verdict.night.night;
        night.night < last || night.night - last >= full_every.max(1)
    })
}

/// The row of an image that nobody touched since it was last read, if that can be relied on.
///
/// A time stamp does not see what a disk forgets, so each image is read again in its turn, as is one that had no verdict,
/// and all of them once there is a new version of qfsck.
pub fn carried(
    last: Option<&AuditRow>,
    fingerprint: Option<Fingerprint>,
    is_due: bool,
    night: Night,
) -> Option<AuditRow> {
    let last = last?;
    let is_same = fingerprint.is_some() && last.fingerprint == fingerprint;
    let is_known = last.status.is_verdict() && last.tool == env!("CARGO_PKG_VERSION");
    if is_due || !is_same || !is_known {
        return None;
    }
    let before = Before::new(Some(last), night);
    Some(AuditRow {
        previous: before.status,
        busy_nights: 0,
        carried: true,
        night: night.night,
        ..last.clone()
    })
}

/// Whether a record of tonight is all there is to say, so that a run that goes on after a kill may pass the image by.
///
/// One that was in use may be free by now, and one that could not be read or is gone may be back.
pub fn is_done(row: &AuditRow, fingerprint: Option<Fingerprint>, night: Night) -> bool {
    let is_settled = row.status.is_verdict()
        || matches!(row.status, ImageStatus::NotQcow2 | ImageStatus::Unfinished);
    row.night == night.night
        && is_settled
        && row.tool == env!("CARGO_PKG_VERSION")
        && fingerprint.is_some()
        && row.fingerprint == fingerprint
}
