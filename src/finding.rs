//! Findings: facts about an image, with typed fields. Nothing here is a failure of qfsck; those are [`Error`](crate::Error)s.
//!
//! Comes in: what a walk or a comparison noticed. Goes out: [`Findings`], with neighbours merged into ranges, a bounded
//! number kept and all of them counted. Never here: I/O, deciding what is wrong, printing.

mod catalog;
mod severity;
mod text;

use std::collections::BTreeMap;

pub use catalog::Code;
pub use severity::{Boot, Severity};
pub(crate) use text::is_deceptive;
pub use text::{escaped, escaped_path};

use crate::qcow2::{ClusterRange, GuestRange, HostCluster, Place};

/// Findings of one code that are kept whole; further ones are only counted.
pub const KEPT_PER_CODE: usize = 1000;
/// Owners a finding names; further ones are only counted.
pub const KEPT_OWNERS: usize = 8;

/// One fact, about one thing or about a run of like things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub code: Code,
    /// Where it is, or where its run begins.
    pub place: Place,
    /// How many single defects it stands for.
    pub count: u64,
    /// Host clusters concerned.
    pub host: Option<ClusterRange>,
    /// Guest bytes concerned.
    pub guest: Option<GuestRange>,
    /// The word on disk (the first of a run).
    pub word: Option<u64>,
    /// The counts that differ.
    pub counts: Option<Counts>,
    /// Who refers to the host clusters.
    pub owners: Owners,
    /// What only this finding can say; names in it are escaped already.
    pub detail: Option<String>,
}

/// A refcount as stored, beside what the references add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// On disk; `None` where it could not be read.
    pub stored: Option<u64>,
    /// From the references.
    pub expected: u64,
}

/// Who refers to the clusters of a finding: a bounded list, and how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// The first owners, in the order of the walk.
    pub named: Vec<Owner>,
    /// Owners beyond those: exactly so for a single cluster, at least so many for a range.
    pub more: u64,
}

/// A structure or guest data that refers to host clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// What kind of thing it is.
    pub kind: OwnerKind,
    /// The reference itself.
    pub place: Place,
    /// The mappings it is reached from, for L2 tables and guest data.
    pub trees: Option<Trees>,
    /// The guest bytes, for guest data.
    pub guest: Option<GuestRange>,
    /// The host clusters it owns within the finding.
    pub host: ClusterRange,
}

/// What kind of thing an owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the variants are the specification's structures"
)]
pub enum OwnerKind {
    Header,
    RefcountTable,
    RefcountBlock,
    L1Table,
    L2Table,
    SnapshotTable,
    BitmapDirectory,
    BitmapTable,
    BitmapData,
    EncryptionHeader,
    GuestData,
    CompressedData,
}

/// The mappings that reach an L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trees {
    /// Entries of the active L1 table that name it.
    pub active: u64,
    /// Entries of snapshots' L1 tables that name it.
    pub snapshots: u64,
    /// The first snapshot among them.
    pub first_snapshot: Option<u32>,
}

impl OwnerKind {
    /// The specification's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::L1Table => "L1 table",
            Self::L2Table => "L2 table",
            Self::SnapshotTable => "snapshot table",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::BitmapData => "bitmap data",
            Self::EncryptionHeader => "encryption header",
            Self::GuestData => "guest data",
            Self::CompressedData => "compressed guest data",
        }
    }
}

impl Finding {
    /// A finding at a place; the rest is filled in by the methods below.
    pub fn new(code: Code, place: Place) -> Self {
        Self {
            code,
            place,
            count: 1,
            host: None,
            guest: None,
            word: None,
            counts: None,
            owners: Owners::default(),
            detail: None,
        }
    }

    /// With the host clusters concerned.
    #[must_use]
    pub fn host(mut self, host: ClusterRange) -> Self {
        self.host = Some(host);
        self
    }

    /// With the guest bytes concerned.
    #[must_use]
    pub fn guest(mut self, guest: GuestRange) -> Self {
        self.guest = Some(guest);
        self
    }

    /// With the word on disk.
    #[must_use]
    pub fn word(mut self, word: u64) -> Self {
        self.word = Some(word);
        self
    }

    /// With the counts that differ.
    #[must_use]
    pub fn counts(mut self, stored: Option<u64>, expected: u64) -> Self {
        self.counts = Some(Counts { stored, expected });
        self
    }

    /// Standing for `count` single defects.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = count;
        self
    }

    /// With something only this finding can say.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Takes `next` into this finding if it goes on where this one ends; says whether it did.
    fn absorb(&mut self, next: &Self) -> bool {
        let alike = self.code == next.code
            && self.counts == next.counts
            && self.detail == next.detail
            && self.owners == next.owners;
        if !alike || !self.continues_with(next) {
            return false;
        }
        self.count += next.count;
        if let (Some(host), Some(more)) = (&mut self.host, next.host)
            && host.end() == more.start.0
        {
            host.count += more.count;
        } else {
            self.host = None;
        }
        if let (Some(guest), Some(more)) = (&mut self.guest, next.guest) {
            guest.bytes += more.bytes;
        }
        true
    }

    fn continues_with(&self, next: &Self) -> bool {
        match (self.place, next.place) {
            (Place::Clusters { .. }, Place::Clusters { .. }) => self
                .host
                .zip(next.host)
                .is_some_and(|(host, more)| host.end() == more.start.0),
            // Guest ranges that follow one another are one run, wherever their L2 tables lie.
            (Place::L2Entry { .. }, Place::L2Entry { .. }) => self.guest_continues_with(next),
            (
                Place::L1Entry { tree, .. },
                Place::L1Entry {
                    tree: next_tree, ..
                },
            ) => tree == next_tree && self.guest_continues_with(next),
            (Place::SnapshotEntry { index }, Place::SnapshotEntry { index: next }) => {
                u64::from(index) + self.count == u64::from(next)
            }
            (
                Place::BitmapTableEntry { bitmap, index },
                Place::BitmapTableEntry {
                    bitmap: next_bitmap,
                    index: next,
                },
            ) => bitmap == next_bitmap && index + self.count == next,
            (Place::RefcountTableEntry { index }, Place::RefcountTableEntry { index: next }) => {
                index + self.count == next
            }
            _ => false,
        }
    }

    fn guest_continues_with(&self, next: &Self) -> bool {
        self.guest
            .zip(next.guest)
            .is_some_and(|(guest, more)| guest.end() == more.start.0)
    }
}

impl Owners {
    /// Adds an owner of one more cluster or entry, merging it into a run that it continues.
    pub fn push(&mut self, owner: Owner) {
        let continued = self.named.iter_mut().any(|run| run.absorb(&owner));
        if continued {
            return;
        }
        if self.named.len() < KEPT_OWNERS {
            self.named.push(owner);
        } else {
            self.more += 1;
        }
    }

    /// Sets how many references to a single cluster are not named, out of `expected`.
    pub(crate) fn count_rest(&mut self, expected: u64) {
        let named: u64 = self.named.iter().map(Owner::references).sum();
        self.more = expected.saturating_sub(named);
    }
}

impl Owner {
    /// How many references to each of its clusters it stands for.
    fn references(&self) -> u64 {
        self.trees.map_or(1, |trees| trees.active + trees.snapshots)
    }

    /// The part of this run within a range it meets.
    pub(crate) fn clipped_to(mut self, range: ClusterRange) -> Self {
        let start = self.host.start.0.max(range.start.0);
        let end = self.host.end().min(range.end());
        let is_run = self.host.count > 1;
        if let Some(guest) = &mut self.guest
            && is_run
        {
            let cluster_bytes = guest.bytes / self.host.count;
            guest.start.0 += (start - self.host.start.0) * cluster_bytes;
            guest.bytes = (end - start) * cluster_bytes;
            if let Place::L2Entry { index, .. } = &mut self.place {
                *index += start - self.host.start.0;
            }
        }
        self.host = ClusterRange {
            start: HostCluster(start),
            count: end - start,
        };
        self
    }

    /// Takes `next` into this run if it goes on where this one ends; says whether it did.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        let host_follows = self.host.end() == next.host.start.0;
        let follows = match (self.guest, next.guest) {
            (Some(guest), Some(more)) => {
                guest.end() == more.start.0 && host_follows && self.place.is_in_table_of(next.place)
            }
            (None, None) => host_follows && self.place == next.place,
            _ => false,
        };
        if !follows || self.kind != next.kind || self.trees != next.trees {
            return false;
        }
        self.host.count += next.host.count;
        if let (Some(guest), Some(more)) = (&mut self.guest, next.guest) {
            guest.bytes += more.bytes;
        }
        true
    }
}

/// How many findings of a code there are, kept or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Single defects.
    pub count: u64,
    /// Findings (runs of defects).
    pub findings: u64,
}

/// A bounded list of findings with unbounded counts.
///
/// Adding in a fixed order gives a fixed result: parts walked in parallel are joined in the order of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    by_code: BTreeMap<Code, OfCode>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfCode {
    kept: Vec<Finding>,
    /// The run that is open once `kept` is full: later findings may go on where it ends.
    tail: Option<Finding>,
    total: Total,
}

impl OfCode {
    fn push(&mut self, finding: Finding) {
        self.total.count += finding.count;
        let open_run = self.tail.as_mut().or(self.kept.last_mut());
        if open_run.is_some_and(|run| run.absorb(&finding)) {
            return;
        }
        self.total.findings += 1;
        if self.kept.len() < KEPT_PER_CODE {
            self.kept.push(finding);
        } else {
            self.tail = Some(finding);
        }
    }

    fn append(&mut self, later: Self) {
        let kept_count: u64 = later.kept.iter().map(|finding| finding.count).sum();
        let kept_findings = later.kept.len() as u64;
        for finding in later.kept {
            self.push(finding);
        }
        // Where `later` kept fewer than it saw, it was full, and so is this now: the rest is only counted.
        if let Some(tail) = later.tail {
            self.total.count += later.total.count - kept_count;
            self.total.findings += later.total.findings - kept_findings;
            self.tail = Some(tail);
        }
    }
}

impl Findings {
    /// Adds a finding, merging it into the last of its code where it goes on from that.
    pub fn push(&mut self, finding: Finding) {
        self.by_code.entry(finding.code).or_default().push(finding);
    }

    /// Adds all of `later`, whose places come after those already here.
    pub fn append(&mut self, later: Self) {
        for (code, findings) in later.by_code {
            self.by_code.entry(code).or_default().append(findings);
        }
    }

    /// The kept findings, gravest first, then by code and place.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        let mut codes: Vec<_> = self.by_code.iter().collect();
        codes.sort_by_key(|(code, _)| (std::cmp::Reverse(code.severity()), **code));
        codes.into_iter().flat_map(|(_, of_code)| &of_code.kept)
    }

    /// How often each code was found.
    pub fn totals(&self) -> impl Iterator<Item = (Code, Total)> {
        self.by_code
            .iter()
            .map(|(code, of_code)| (*code, of_code.total))
    }

    /// Single defects of a severity.
    pub fn count_of(&self, severity: Severity) -> u64 {
        self.totals()
            .filter(|(code, _)| code.severity() == severity)
            .map(|(_, total)| total.count)
            .sum()
    }

    /// How often one code was found.
    pub fn total_of(&self, code: Code) -> Total {
        self.by_code
            .get(&code)
            .map(|of_code| of_code.total)
            .unwrap_or_default()
    }

    /// Takes back all findings of a code.
    pub(crate) fn forget(&mut self, code: Code) {
        self.by_code.remove(&code);
    }

    /// The kept findings, to complete them.
    pub(crate) fn kept_mut(&mut self) -> impl Iterator<Item = &mut Finding> {
        self.by_code
            .values_mut()
            .flat_map(|of_code| &mut of_code.kept)
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.by_code.is_empty()
    }
}
