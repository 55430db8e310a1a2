//! What the page keeps of a fleet: numbers of all of it, and as many rows as anybody reads, worst first.
//!
//! Comes in: rows, in any order. Goes out: the same page for the same rows. Never here: memory that grows with the number
//! of images.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use qfsck::audit::{Change, ChangeKind, Tally};
use qfsck::report::{AuditRow, AuditSummary, ImageStatus, Night};
use qfsck::{escaped, escaped_path, path_of_bytes};

use super::html::{Html, grouped};

/// Images that are shown with all that is known of them.
pub(super) const DETAILED: usize = 1_000;
/// Further images of which only the name is shown.
pub(super) const LISTED: usize = 9_000;
/// Changes of one kind that are shown.
pub(super) const CHANGES_PER_KIND: usize = 100;
/// Versions of qfsck that are named.
const NAMED_TOOLS: usize = 5;

/// Where an image stands in the list: worst first, new damage before old, then by path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) status: Reverse<ImageStatus>,
    is_known: bool,
    path: Vec<u8>,
}

impl Rank {
    /// The path, fit to be shown.
    pub(super) fn shown(&self) -> String {
        escaped_path(&path_of_bytes(&self.path))
    }
}

/// All images of a night.
#[derive(Debug)]
pub(in super::super) struct Fleet {
    tally: Tally,
    at: u64,
    missing: u64,
    pub(super) detailed: BTreeMap<Rank, AuditRow>,
    pub(super) listed: BTreeSet<Rank>,
    /// Images that are only counted.
    pub(super) unlisted: BTreeMap<Reverse<ImageStatus>, u64>,
    tools: BTreeSet<String>,
}

impl Fleet {
    /// Of a night of which nothing is known yet; `at` is 0 where nobody says when it began, and rows may.
    pub(in super::super) fn new(night: Night) -> Self {
        Self {
            tally: Tally::new(night),
            at: night.at,
            missing: 0,
            detailed: BTreeMap::new(),
            listed: BTreeSet::new(),
            unlisted: BTreeMap::new(),
            tools: BTreeSet::new(),
        }
    }

    /// Counts a row.
    pub(in super::super) fn count(&mut self, row: &AuditRow) {
        self.tally.add(row);
        let tonight = row.verdict.filter(|found| found.night.night == row.night);
        self.at = self.at.max(tonight.map_or(0, |found| found.night.at));
    }

    /// Counts a row, and keeps it if it is among the worst.
    pub(in super::super) fn add(&mut self, row: &AuditRow) {
        self.count(row);
        if self.tools.len() < NAMED_TOOLS {
            self.tools.insert(escaped(row.tool.as_bytes()));
        }
        let rank = Rank {
            status: Reverse(row.status),
            is_known: !row.is_newly_damaged(),
            path: row.name.to_bytes(),
        };
        // Of a clean image there is nothing more to tell than that it is.
        if row.status == ImageStatus::Clean {
            self.list(rank);
            return;
        }
        self.detailed.insert(rank, row.clone());
        if self.detailed.len() > DETAILED
            && let Some((rank, _)) = self.detailed.pop_last()
        {
            self.list(rank);
        }
    }

    fn list(&mut self, rank: Rank) {
        self.listed.insert(rank);
        if self.listed.len() > LISTED
            && let Some(rank) = self.listed.pop_last()
        {
            *self.unlisted.entry(rank.status).or_default() += 1;
        }
    }

    /// Notes what only the night's summary knows.
    pub(in super::super) fn note_summary(&mut self, summary: &AuditSummary) {
        self.missing = summary.missing;
        self.at = summary.at;
    }

    /// What all of it came to.
    pub(in super::super) fn summary(&self) -> &AuditSummary {
        self.tally.summary()
    }

    /// The same, with what rows alone do not tell.
    pub(in super::super) fn whole_summary(&self) -> AuditSummary {
        AuditSummary {
            at: self.at,
            missing: self.missing,
            ..self.summary().clone()
        }
    }

    /// Images that have no record.
    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    pub(super) fn count_of(&self, which: impl Fn(ImageStatus) -> bool) -> u64 {
        let statuses = ImageStatus::WORST_FIRST.into_iter();
        let counts = statuses.filter(|status| which(*status));
        counts.map(|status| self.tally.count(status)).sum()
    }

    /// Whether there was a night before: in the first one of all, everything is new.
    pub(super) fn has_past(&self) -> bool {
        self.summary().new_images < self.summary().images
    }

    pub(super) fn tools(&self) -> impl Iterator<Item = &str> {
        self.tools.iter().map(String::as_str)
    }

    /// The night in one sentence.
    pub(super) fn headline(&self) -> String {
        let there = self
            .count_of(|status| status != ImageStatus::Gone)
            .saturating_add(self.missing);
        let damaged = self.count_of(ImageStatus::is_damage);
        let unread = self.count_of(super::is_unread).saturating_add(self.missing);
        let of = |count: u64| {
            if there == 1 {
                "The one image".to_owned()
            } else {
                format!("{} of {} images", grouped(count), grouped(there))
            }
        };
        let are = |count: u64| if count == 1 { "is" } else { "are" };
        if there == 0 {
            return "There are no images".to_owned();
        }
        if damaged == 0 && unread == 0 {
            return format!("No damage in {}", images(there));
        }
        if damaged == 0 {
            return format!("No damage found; {} could not be read", of(unread));
        }
        let new = match self.summary().newly_damaged {
            _ if !self.has_past() => String::new(),
            0 => ", none of them since last night".to_owned(),
            new if new == damaged && new == 1 => " since last night".to_owned(),
            new if new == damaged => ", all of them since last night".to_owned(),
            new => format!(", {} of them since last night", grouped(new)),
        };
        format!("{} {} damaged{new}", of(damaged), are(damaged))
    }

    /// Names the first few images of a kind, and says how many more there are.
    pub(super) fn name(
        &self,
        html: &mut Html,
        most: usize,
        count: u64,
        which: impl Fn(&AuditRow) -> bool,
    ) {
        let rows = (1_u64..).zip(self.detailed.values());
        let rows = rows.filter(|(_, row)| which(row)).take(most);
        if count == 0 {
            return;
        }
        html.raw("<ul>");
        let mut named = 0;
        for (number, row) in rows {
            html.raw("<li>").icon(row.status);
            html.raw("<a class=\"path\" href=\"#i").plain(number);
            html.raw("\">").text(&escaped_path(&row.name.to_path()));
            html.raw("</a> <span class=\"soft\">")
                .raw(row.status.name());
            if row.busy_nights > 1 {
                html.words(format_args!(" for {} nights", row.busy_nights));
            }
            if row.is_damaged_as_last_read() {
                html.raw(", damaged when last read");
            }
            html.raw("</span></li>");
            named += 1;
        }
        let more = count.saturating_sub(named);
        if more > 0 {
            html.raw("<li><a href=\"#images\">")
                .raw(if named > 0 { "and " } else { "" });
            html.number(more)
                .raw(if named > 0 { " more" } else { " images" });
            html.raw("</a></li>");
        }
        html.raw("</ul>");
    }

    /// When the night began, in seconds since the Epoch; 0 where that is not known.
    pub(super) fn at(&self) -> u64 {
        self.at
    }
}

/// `10,000 images`.
pub(super) fn images(count: u64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} image{plural}", grouped(count))
}

/// The night a page compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Before {
    pub(in super::super) night: u64,
    pub(in super::super) at: u64,
}

/// What differs from the night before.
#[derive(Debug)]
pub(in super::super) struct Changes {
    pub(super) before: Before,
    pub(super) counts: BTreeMap<ChangeKind, u64>,
    pub(super) kept: BTreeMap<ChangeKind, Vec<Change>>,
}

impl Changes {
    pub(in super::super) fn new(before: Before) -> Self {
        Self {
            before,
            counts: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Takes a change in; they come by path.
    pub(in super::super) fn add(&mut self, change: Change) {
        *self.counts.entry(change.kind).or_default() += 1;
        let kept = self.kept.entry(change.kind).or_default();
        if kept.len() < CHANGES_PER_KIND {
            kept.push(change);
        }
    }
}
