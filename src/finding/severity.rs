//! How grave a finding is, and whether it forbids to start a guest.
//!
//! Comes in: nothing. Goes out: two words each row of the catalog has. Never here: which row has which.

/// How grave a finding is; the split is `qemu-img check`'s and drives the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong with the data or the space.
    Notice,
    /// Nothing is wrong, but a gate for images from strangers turns it away.
    Policy,
    /// Space is lost, data is not.
    Leak,
    /// The image contradicts the specification in a way that endangers data.
    Corruption,
}

/// Whether a program that opens the image for writing can make things worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Running a guest does no further harm by this finding.
    Safe,
    /// The next write may destroy something, or the image cannot be opened or used at all.
    Unsafe,
}

impl Severity {
    /// One lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Policy => "policy",
            Self::Leak => "leak",
            Self::Corruption => "corruption",
        }
    }
}
