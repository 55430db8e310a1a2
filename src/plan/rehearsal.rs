//! Whether the image as it would be is better than the image as it is, and what to leave out where it is not.
//!
//! Comes in: two checks, and what was wrong before each pass. Goes out: yes, or why not and whose doing it is. Never here: a
//! change to the plan.
//!
//! Better is no sum: one finding more of a kind that loses data is not made good by ten fewer of another. A lost COPIED flag
//! and a leak lose nothing, so they may be the price of an error that does.

use std::collections::{BTreeMap, BTreeSet};

use super::changes::Withheld;
use super::{Pass, STOPPED};
use crate::check::Check;
use crate::finding::{Code, Findings, Severity};

/// Whether nothing is wrong but bits that say so.
pub(super) fn is_consistent(check: &Check) -> bool {
    let corruptions = check.findings.count_of(Severity::Corruption);
    let corrupt_bit = check.findings.total_of(Code::CorruptBitSet).count;
    corruptions == corrupt_bit && check.coverage.complete().is_some()
}

/// How often everything is found.
pub(super) fn counts(findings: &Findings) -> BTreeMap<Code, u64> {
    let totals = findings.totals();
    totals.map(|(code, total)| (code, total.count)).collect()
}

fn count_in(counts: &BTreeMap<Code, u64>, code: Code) -> u64 {
    counts.get(&code).copied().unwrap_or(0)
}

/// What a pass that changes something began with.
pub(super) struct Step {
    pub(super) pass: Pass,
    /// How often everything was found before it.
    pub(super) before: BTreeMap<Code, u64>,
    /// The findings it answers.
    pub(super) answers: BTreeSet<Code>,
}

/// A pass that makes the image worse.
#[derive(Debug)]
pub(super) struct Culprit {
    pub(super) pass: Pass,
    /// What is found more often after it.
    grows: Code,
    /// The findings it answers.
    answers: BTreeSet<Code>,
}

impl Culprit {
    /// What stays because the pass is left out.
    pub(super) fn withheld(&self, after: &Check) -> Vec<Withheld> {
        let reason = format!(
            "with this put right there would be more {} than there are now, so it is left as it is",
            self.grows
        );
        let answers = self.answers.iter().map(|&code| Withheld {
            code,
            count: after.findings.total_of(code).count,
            reason: reason.clone(),
        });
        answers.filter(|withheld| withheld.count > 0).collect()
    }
}

/// Why an image would not be better.
pub(super) struct Refusal {
    pub(super) withheld: Withheld,
    /// What is found more often than before, if anything is.
    grows: Option<Code>,
    /// Somebody stopped the planning, so no other plan is wanted.
    is_stopped: bool,
}

impl Refusal {
    /// The last pass that makes the image worse in the way complained of; where nothing is better at all, in any way.
    pub(super) fn culprit(&self, steps: &[Step], last: &BTreeMap<Code, u64>) -> Option<Culprit> {
        if self.is_stopped {
            return None;
        }
        let limits = &steps.first()?.before;
        let afterwards = steps.iter().skip(1).map(|step| &step.before);
        let mut made: Vec<_> = steps.iter().zip(afterwards.chain([last])).collect();
        made.reverse();
        let errors = || {
            let is_error = |code: &Code| code.severity() == Severity::Corruption;
            Code::ALL.iter().copied().filter(is_error)
        };
        made.into_iter().find_map(|(step, now)| {
            let grows = match self.grows {
                Some(code) => {
                    let limit = count_in(limits, code);
                    let is_crossed =
                        count_in(&step.before, code) <= limit && count_in(now, code) > limit;
                    is_crossed.then_some(code)
                }
                None => errors().find(|&code| count_in(now, code) > count_in(&step.before, code)),
            };
            Some(Culprit {
                pass: step.pass,
                grows: grows?,
                answers: step.answers.clone(),
            })
        })
    }
}

/// Strictly better: no error is found more often, and something is found less often, or it is at least kept from spreading
/// (`protects`).
///
/// What was not looked at to its end is not known to be better.
pub(super) fn is_better(before: &Check, after: &Check, protects: bool) -> Result<(), Refusal> {
    let refuse = |code, count, reason: &str, grows| {
        let reason = reason.to_owned();
        let withheld = Withheld {
            code,
            count,
            reason,
        };
        Err(Refusal {
            withheld,
            grows,
            is_stopped: after.coverage.is_stopped(),
        })
    };
    if after.coverage.is_stopped() {
        return refuse(Code::RefcountLeak, 0, STOPPED, None);
    }
    let counts = |code| {
        let count = |check: &Check| check.findings.total_of(code).count;
        (count(before), count(after))
    };
    // Errors that may lose data: all but a COPIED flag that is missing.
    let losing = |check: &Check| {
        let all = check.findings.count_of(Severity::Corruption);
        all.saturating_sub(check.findings.total_of(Code::CopiedFlagMissing).count)
    };
    let loses_less = losing(after) < losing(before);
    let corruptions = |check: &Check| check.findings.count_of(Severity::Corruption);
    let may_leak = corruptions(after) < corruptions(before);
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
            Severity::Notice | Severity::Policy => true,
            Severity::Leak => may_leak || loses_less,
            Severity::Corruption => match code {
                Code::GuestDataShared => may_share,
                Code::CopiedFlagMissing => loses_less,
                _ => false,
            },
        };
        if count_after > count && !is_tolerated {
            let reason = "the rehearsal found more of these than there are now, so nothing is done";
            return refuse(code, count_after, reason, Some(code));
        }
    }
    let gains = |&code: &Code| {
        let (before, after) = counts(code);
        after < before
    };
    if protects || Code::ALL.iter().any(gains) {
        return Ok(());
    }
    let reason = "the rehearsal found nothing better afterwards, so nothing is done";
    refuse(Code::RefcountLeak, 0, reason, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROWS: Code = Code::CopiedFlagStale;

    fn found(pairs: &[(Code, u64)]) -> BTreeMap<Code, u64> {
        pairs.iter().copied().collect()
    }

    fn step(pass: Pass, before: &[(Code, u64)]) -> Step {
        Step {
            pass,
            before: found(before),
            answers: BTreeSet::from([Code::RefcountZero]),
        }
    }

    fn refusal(grows: Option<Code>, is_stopped: bool) -> Refusal {
        let withheld = Withheld {
            code: GROWS,
            count: 2,
            reason: String::new(),
        };
        Refusal {
            withheld,
            grows,
            is_stopped,
        }
    }

    #[test]
    fn the_last_pass_that_makes_more_of_it_than_there_was_is_left_out() {
        let steps = [
            step(Pass::Entries, &[(GROWS, 1)]),
            step(Pass::Raise, &[(GROWS, 3)]),
            step(Pass::Overlaps, &[(GROWS, 0)]),
            step(Pass::Lower, &[(GROWS, 2)]),
        ];
        let culprit = refusal(Some(GROWS), false).culprit(&steps, &found(&[(GROWS, 2)]));
        assert_eq!(culprit.map(|culprit| culprit.pass), Some(Pass::Overlaps));
    }

    #[test]
    fn where_nothing_is_better_the_last_pass_that_makes_anything_worse_is_left_out() {
        let steps = [
            step(Pass::Entries, &[(Code::RefcountZero, 2)]),
            step(Pass::Raise, &[(Code::RefcountZero, 1)]),
            step(Pass::Lower, &[(Code::RefcountZero, 2)]),
        ];
        let last = found(&[(Code::RefcountZero, 2), (Code::RefcountLeak, 9)]);
        let culprit = refusal(None, false).culprit(&steps, &last);
        assert_eq!(culprit.map(|culprit| culprit.pass), Some(Pass::Raise));
        let none = refusal(None, true).culprit(&steps, &last);
        assert!(none.is_none(), "who was stopped plans nothing else");
    }
}
