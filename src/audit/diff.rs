//! What differs between two nights.
//!
//! Comes in: the rows of two reports, each by path. Goes out: one change for each image that stands otherwise, or that
//! nobody could look at for more than a night. Never here: a report that is not in order.

use std::cmp::Ordering;
use std::iter::Peekable;

use crate::report::{AuditRow, ImageName, ImageStatus};

/// What became of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is damaged, and was not.
    NewDamage,
    /// It stands worse than it did, but is not newly damaged.
    Worse,
    /// It is there and was not, and is damaged.
    NewAndDamaged,
    /// Somebody has been in it for nights.
    StillBusy,
    /// It is not there any more.
    Gone,
    /// It stands better than it did.
    Healed,
    /// It was not there before.
    New,
}

impl ChangeKind {
    /// The words for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NewDamage => "new-damage",
            Self::Worse => "worse",
            Self::NewAndDamaged => "new-and-damaged",
            Self::StillBusy => "still-busy",
            Self::Gone => "gone",
            Self::Healed => "healed",
            Self::New => "new",
        }
    }
}

/// One image that stands otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which image.
    pub name: ImageName,
    /// What became of it.
    pub kind: ChangeKind,
    /// How it stood.
    pub before: Option<ImageStatus>,
    /// How it stands.
    pub after: Option<ImageStatus>,
    /// Nights in a row in which somebody was in it.
    pub busy_nights: u64,
}

/// Compares two reports, row by row.
pub fn diff(
    before: impl Iterator<Item = AuditRow>,
    after: impl Iterator<Item = AuditRow>,
) -> impl Iterator<Item = Change> {
    let is_there = |row: &AuditRow| row.status != ImageStatus::Gone;
    Pairs {
        before: before.filter(is_there).peekable(),
        after: after.filter(is_there).peekable(),
    }
    .filter_map(|(before, after)| judge(before, after))
}

/// The rows of two reports, those of one image together.
struct Pairs<B: Iterator<Item = AuditRow>, A: Iterator<Item = AuditRow>> {
    before: Peekable<B>,
    after: Peekable<A>,
}

impl<B: Iterator<Item = AuditRow>, A: Iterator<Item = AuditRow>> Iterator for Pairs<B, A> {
    type Item = (Option<AuditRow>, Option<AuditRow>);

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.before.peek(), self.after.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(before), Some(after)) => before.name.to_bytes().cmp(&after.name.to_bytes()),
        };
        Some(match order {
            Ordering::Less => (self.before.next(), None),
            Ordering::Greater => (None, self.after.next()),
            Ordering::Equal => (self.before.next(), self.after.next()),
        })
    }
}

fn judge(before: Option<AuditRow>, after: Option<AuditRow>) -> Option<Change> {
    let (was, is) = (told(before.as_ref()), told(after.as_ref()));
    let kind = match (&before, &after) {
        (Some(_), None) => ChangeKind::Gone,
        (None, Some(row)) if row.status.is_damage() => ChangeKind::NewAndDamaged,
        (None, Some(_)) => ChangeKind::New,
        (_, Some(row)) if row.status.is_in_use() && row.busy_nights > 1 => ChangeKind::StillBusy,
        _ => match (was, is) {
            (Some(was), Some(is)) if is.is_damage() && !was.is_damage() => ChangeKind::NewDamage,
            (Some(was), Some(is)) if is > was => ChangeKind::Worse,
            (Some(was), Some(is)) if is < was => ChangeKind::Healed,
            (None, Some(is)) if is.is_damage() => ChangeKind::NewDamage,
            _ => return None,
        },
    };
    let busy_nights = after.as_ref().map_or(0, |row| row.busy_nights);
    let name = after.as_ref().or(before.as_ref())?.name.clone();
    Some(Change {
        name,
        kind,
        before: before.map(|row| row.status),
        after: after.map(|row| row.status),
        busy_nights,
    })
}

/// How an image stood when anybody could tell: that somebody was in it is no news about its metadata.
fn told(row: Option<&AuditRow>) -> Option<ImageStatus> {
    let row = row?;
    if row.status.is_in_use() || row.status == ImageStatus::Unfinished {
        row.previous
    } else {
        Some(row.status)
    }
}
