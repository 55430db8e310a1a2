//! Whether the image as it would be is better than the image as it is.
//!
//! Comes in: two checks. Goes out: yes, or why not. Never here: a change to the plan.

use super::changes::Withheld;
use crate::check::Check;
use crate::finding::{Code, Severity};

/// Whether nothing is wrong but bits that say so.
pub(super) fn is_consistent(check: &Check) -> bool {
    let corruptions = check.findings.count_of(Severity::Corruption);
    let corrupt_bit = check.findings.total_of(Code::CorruptBitSet).count;
    corruptions == corrupt_bit && check.coverage.complete().is_some()
}

/// Strictly better: no error is found more often, and something is found less often. Leaks may be the price of an error.
///
/// What was not looked at to its end is not known to be better.
pub(super) fn is_better(before: &Check, after: &Check) -> Result<(), Withheld> {
    if after.coverage.is_stopped() {
        return Err(Withheld {
            code: Code::RefcountLeak,
            count: 0,
            reason: super::STOPPED.to_owned(),
        });
    }
    let counts = |code| {
        let count = |check: &Check| check.findings.total_of(code).count;
        (count(before), count(after))
    };
    let severities = |severity| {
        (
            before.findings.count_of(severity),
            after.findings.count_of(severity),
        )
    };
    let (corruptions, corruptions_after) = severities(Severity::Corruption);
    let may_leak = corruptions_after < corruptions;
    // Shared with a count for each user, guest data is overwritten by nobody: the lesser of two evils.
    let shared = |check: &Check| {
        let codes = [Code::GuestDataOverlap, Code::GuestDataShared];
        let counts = codes.map(|code| check.findings.total_of(code).count);
        counts.into_iter().fold(0, u64::saturating_add)
    };
    let may_share = shared(after) <= shared(before);
    for &code in Code::ALL {
        let (count, count_after) = counts(code);
        let is_tolerated = match code.severity() {
            Severity::Notice => true,
            Severity::Leak => may_leak,
            Severity::Corruption => code == Code::GuestDataShared && may_share,
        };
        if count_after > count && !is_tolerated {
            return Err(Withheld {
                code,
                count: count_after,
                reason: "the rehearsal found more of these than there are now, so nothing is done"
                    .to_owned(),
            });
        }
    }
    let gains = |&code: &Code| {
        let (before, after) = counts(code);
        after < before
    };
    if Code::ALL.iter().any(gains) {
        return Ok(());
    }
    Err(Withheld {
        code: Code::RefcountLeak,
        count: 0,
        reason: "the rehearsal found nothing better afterwards, so nothing is done".to_owned(),
    })
}
