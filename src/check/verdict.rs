//! The verdict: one word a boot hook can act on.

use crate::coverage::Coverage;
use crate::finding::{Boot, Findings, Severity};

/// How an image stands, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is wrong.
    Clean,
    /// Only space is lost.
    Leaks,
    /// Something is wrong that starting the guest does not make worse.
    Repairable,
    /// The next write may destroy something, or the image cannot be used as it is.
    DoNotBoot,
    /// Too little could be read to say.
    Unreadable,
}

impl Verdict {
    /// Kebab-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Leaks => "leaks",
            Self::Repairable => "repairable",
            Self::DoNotBoot => "do-not-boot",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The gravest word any finding or gap deserves.
pub(super) fn judge(has_geometry: bool, findings: &Findings, coverage: &Coverage) -> Verdict {
    if !has_geometry || coverage.failure_count() > 0 {
        return Verdict::Unreadable;
    }
    let worst = findings
        .totals()
        .map(|(code, _)| match (code.severity(), code.boot()) {
            (_, Boot::Unsafe) => Verdict::DoNotBoot,
            (Severity::Corruption, Boot::Safe) => Verdict::Repairable,
            (Severity::Leak, Boot::Safe) => Verdict::Leaks,
            (Severity::Notice | Severity::Policy, Boot::Safe) => Verdict::Clean,
        });
    worst.max().unwrap_or(Verdict::Clean)
}
