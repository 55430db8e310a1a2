//! Exit codes: `qemu-img check`'s, and ours on top. `docs/exit-codes.md` is their documentation.

use std::process::ExitCode;

use qfsck::{Error, Severity};

/// How a run ended, in the order of which one counts when several images are checked: the last is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Nothing is wrong.
    Clean,
    /// Only leaks.
    Leaks,
    /// Not a format qfsck checks.
    NotQcow2,
    /// The image changed while it was read.
    Changed,
    /// Another program uses the image.
    InUse,
    /// A limit or deadline was reached.
    Limit,
    /// The check could not be completed.
    Incomplete,
    /// Corruption.
    Corrupt,
    /// An audit was stopped with work left: run it again.
    TryAgain,
    /// An audit could not account for everything.
    Missing,
    /// The arguments make no sense.
    Usage,
    /// A defect of qfsck.
    Internal,
}

impl Outcome {
    /// What a check's findings and gaps amount to.
    pub(crate) fn of_check(check: &qfsck::Check) -> Self {
        let findings = &check.findings;
        if check.coverage.failure_count() > 0 {
            Self::Incomplete
        } else if findings.count_of(Severity::Corruption) > 0 {
            Self::Corrupt
        } else if findings.count_of(Severity::Leak) > 0 {
            Self::Leaks
        } else {
            Self::Clean
        }
    }

    /// What an error amounts to.
    pub(crate) fn of_error(error: &Error) -> Self {
        match error {
            Error::NotQcow2 { .. } => Self::NotQcow2,
            Error::InUse { .. } => Self::InUse,
            _ => Self::Incomplete,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Incomplete => 1,
            Self::Corrupt => 2,
            Self::Leaks => 3,
            Self::InUse => 4,
            Self::Changed => 5,
            Self::Limit => 6,
            Self::Missing => 8,
            Self::NotQcow2 => 63,
            Self::Usage => 64,
            Self::Internal => 70,
            Self::TryAgain => 75,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome.code())
    }
}
