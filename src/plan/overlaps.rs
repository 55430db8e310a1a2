//! Clusters used by two owners of which only one may.
//!
//! Comes in: an examination. Goes out: changes that give each owner a place of its own, or the reason why not. Never here:
//! a write; a change to what a guest reads.
//!
//! Every reader finds the same bytes before and after. That does not make them right: who wrote to the cluster last is
//! not known, so for all but one of its users the bytes may be somebody else's. Only the guest can tell.
//!
//! Three kinds of copies are made, each independent of the others (`l1_tables`, `l2_tables`, `guest_data`), on what
//! `contested` knows. An entry is only switched in a table that nobody else uses, so one kind may clear the way for
//! another: the pass runs more than once.

mod compressed;
mod contested;
mod guest_data;
mod l1_tables;
mod l2_tables;
mod obstacles;

use std::collections::BTreeMap;
use std::io;

use super::changes::{Changes, Fresh, FreshCopy, Patch};
use super::notes::DraftNotes;
use super::refcounts;
use super::space::{Space, no_room};
use super::{Overlaps, RepairOptions, StageKind, Withheld};
use crate::check::Examination;
use crate::finding::{Code, Findings};
use crate::qcow2::{CryptMethod, Geometry, Header, HostCluster, HostOffset};
use crate::storage::Storage;

use contested::Contested;

/// The findings this pass answers.
const CODES: [Code; 5] = [
    Code::GuestDataOverlap,
    Code::GuestDataShared,
    Code::MetadataOverlap,
    Code::L2TableShared,
    Code::CompressedExtentOverlap,
];

/// References to contested clusters and tables that are looked at in one run, and clusters that are copied: a plan names
/// each of them. The next repair goes on with the rest.
const MAX_REFERENCES: u64 = 1 << 18;
/// Tables that are cloned in one run: their bytes are part of the plan.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Why something beyond the bounds is left.
const TOO_MANY: &str =
    "there are more of these than one repair copies; repair the image again to go on with the rest";

/// What the examination calls for.
pub(super) fn part<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> io::Result<Changes> {
    let findings = &examination.notes.findings;
    if CODES.iter().all(|&code| findings.total_of(code).count == 0) {
        return Ok(Changes::default());
    }
    if let Some(reason) = forbidden(examination, wishes) {
        return Ok(nothing(findings, |_| reason.to_owned()));
    }
    if notes.doubt().is_some()
        && let Some(doubtful) = doubtful(examination, wishes)
    {
        return Ok(doubtful);
    }
    let Some(contested) = Contested::gather(examination) else {
        return Ok(nothing(findings, |_| UNREAD.to_owned()));
    };
    match separate(examination, &contested)? {
        // With a copy each, nothing tells any more that a cluster which looks leaked is what one of them meant.
        Ok(changes) => Ok(Changes {
            gave_up: notes.doubt().is_some(),
            ..changes
        }),
        Err(reason) => Ok(nothing(findings, |_| reason.clone())),
    }
}

const MAY_BE_MEANT: &str = "clusters are counted that nothing uses, or counts are not known: one of the pointers may be damaged and have meant \
     one of those; writes are kept apart meanwhile";

const TIED: &str = "LUKS ties encrypted data to the place it is stored at, so a copy could not be decrypted; read the guest's data \
     with the key and write it anew";

const UNREAD: &str =
    "not every table could be read, so who else uses the same clusters is not known";

/// Why nothing of all this is done.
fn forbidden<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
) -> Option<&'static str> {
    if wishes.overlaps == Overlaps::Keep {
        return Some("it is left as it is, as asked for");
    }
    (examination.notes.coverage.failure_count() > 0).then_some(UNREAD)
}

/// Nothing, where one of the pointers may be damaged, and what can be chosen; `None` where all of that was chosen.
///
/// A choice that no repair could carry out is not offered.
fn doubtful<S: Storage>(
    examination: &Examination<'_, S>,
    wishes: &RepairOptions,
) -> Option<Changes> {
    let findings = &examination.notes.findings;
    let header = examination.walk.image.header();
    let is_tied = |code| is_guest_data(code) && is_tied_to_its_place(header);
    let open = CODES.into_iter();
    let open = open.filter(|&code| findings.total_of(code).count > 0 && !is_accepted(code, wishes));
    let (tied, to_accept): (Vec<Code>, Vec<Code>) = open.partition(|&code| is_tied(code));
    let others = [Code::MetadataOverlap, Code::L2TableShared];
    let is_all_tied = !tied.is_empty()
        && others
            .iter()
            .all(|&code| findings.total_of(code).count == 0);
    if to_accept.is_empty() && !is_all_tied {
        return None;
    }
    let choice: Vec<String> = to_accept
        .into_iter()
        .map(|code| format!("--accept-loss {code}"))
        .collect();
    let choice = choice.join(" ");
    Some(nothing(findings, |code| {
        if is_tied(code) {
            TIED.to_owned()
        } else if choice.is_empty() {
            MAY_BE_MEANT.to_owned()
        } else {
            format!("{MAY_BE_MEANT}; {choice} gives each owner a copy of what both see now")
        }
    }))
}

fn is_guest_data(code: Code) -> bool {
    matches!(code, Code::GuestDataOverlap | Code::GuestDataShared)
}

/// Whether encrypted data can only be decrypted where it is: the legacy method encrypts by guest offset, LUKS by host
/// offset.
fn is_tied_to_its_place(header: &Header) -> bool {
    !matches!(header.crypt_method(), CryptMethod::None | CryptMethod::Aes)
}

fn is_accepted(code: Code, wishes: &RepairOptions) -> bool {
    match code {
        // What is lost is lost already, and nothing is done about it.
        Code::CompressedExtentOverlap => true,
        // Nothing but the stored count tells the two from one another, and a repair has raised that by now.
        code if is_guest_data(code) => {
            wishes.accepts(Code::GuestDataOverlap) || wishes.accepts(Code::GuestDataShared)
        }
        _ => wishes.accepts(code),
    }
}

fn nothing(findings: &Findings, reason_of: impl Fn(Code) -> String) -> Changes {
    let open = CODES.into_iter().filter_map(|code| {
        let count = findings.total_of(code).count;
        (count > 0).then(|| Withheld {
            code,
            count,
            reason: reason_of(code),
        })
    });
    Changes {
        withheld: open.collect(),
        ..Changes::default()
    }
}

/// Everything that can be done; the inner error says why nothing can.
fn separate<S: Storage>(
    examination: &Examination<'_, S>,
    contested: &Contested,
) -> io::Result<Result<Changes, String>> {
    let mut work = match Work::new(examination) {
        Ok(work) => work,
        Err(reason) => return Ok(Err(reason)),
    };
    let done = l1_tables::separate(examination, contested, &mut work)?
        .and_then(|separated| guest_data::separate(examination, contested, &separated, &mut work));
    if let Err(reason) = done {
        return Ok(Err(reason));
    }
    if let Err(reason) = l2_tables::separate(examination, contested, &mut work)? {
        return Ok(Err(reason));
    }
    let findings = &examination.notes.findings;
    let extents = findings.total_of(Code::CompressedExtentOverlap).count;
    let reason = "two compressed clusters lie over each other, so one of them is overwritten: decompressing tells which, \
                  and its guest range has to be restored from elsewhere";
    work.withhold(Code::CompressedExtentOverlap, extents, reason.into());
    work.finish(examination)
}

/// Why something is left as it is. Of one kind only the first is told, for all of them.
struct Reason {
    kind: String,
    text: String,
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self {
            kind: text.to_owned(),
            text: text.to_owned(),
        }
    }
}

/// Changes in the making, and what is still allowed.
struct Work<'a> {
    geometry: Geometry,
    /// Encrypted data can only be decrypted where it is.
    is_tied_to_its_place: bool,
    space: Space<'a>,
    /// Why there would be no room.
    no_room: String,
    changes: Changes,
    withheld: BTreeMap<(Code, String), Withheld>,
    copies_left: u64,
    table_bytes_left: u64,
}

impl<'a> Work<'a> {
    fn new<S: Storage>(examination: &'a Examination<'_, S>) -> Result<Self, String> {
        Ok(Self {
            geometry: examination.walk.geometry,
            is_tied_to_its_place: is_tied_to_its_place(examination.walk.image.header()),
            space: Space::new(examination)?,
            no_room: no_room(examination),
            changes: Changes::default(),
            withheld: BTreeMap::new(),
            copies_left: MAX_REFERENCES,
            table_bytes_left: MAX_TABLE_BYTES,
        })
    }

    /// Leaves something as it is.
    fn withhold(&mut self, code: Code, count: u64, reason: Reason) {
        if count == 0 {
            return;
        }
        let known = self.withheld.entry((code, reason.kind));
        let known = known.or_insert(Withheld {
            code,
            count: 0,
            reason: reason.text,
        });
        known.count += count;
    }

    /// Whether so many clusters of guest data may be copied.
    fn may_copy(&self, copies: u64) -> Result<(), &'static str> {
        if copies > 0 && self.is_tied_to_its_place {
            return Err(TIED);
        }
        (copies <= self.copies_left).then_some(()).ok_or(TOO_MANY)
    }

    /// Whether tables of so many clusters may be cloned.
    fn may_clone(&self, clusters: u64) -> Result<(), &'static str> {
        let bytes = clusters.saturating_mul(self.geometry.cluster_bytes());
        (bytes <= self.table_bytes_left)
            .then_some(())
            .ok_or(TOO_MANY)
    }

    /// Neighbouring clusters that nothing uses, each to be counted `count` times.
    fn take(&mut self, clusters: u64, count: u64) -> Result<HostCluster, String> {
        let room = self.space.take(clusters, count);
        room.ok_or_else(|| self.no_room.clone())
    }

    /// A copy of a cluster of guest data.
    fn copy(&mut self, from: HostCluster, count: u64, because: Code) -> Result<HostOffset, String> {
        let to = self.take(1, count)?;
        self.copy_to(from, to, because);
        Ok(self.geometry.offset_of(to))
    }

    fn copy_to(&mut self, from: HostCluster, to: HostCluster, because: Code) {
        self.copies_left = self.copies_left.saturating_sub(1);
        self.changes.copies.push(FreshCopy { from, to, because });
    }

    /// Neighbouring clusters that nothing uses, each with its own count.
    fn take_counted(&mut self, counts: &[u64]) -> Result<HostCluster, String> {
        let room = self.space.take_counted(counts);
        room.ok_or_else(|| self.no_room.clone())
    }

    /// A cluster, or neighbouring ones, with a table in them.
    fn write(
        &mut self,
        clusters: u64,
        count: u64,
        bytes: Vec<u8>,
        because: Code,
    ) -> Result<HostOffset, String> {
        let cluster = self.take(clusters, count)?;
        self.table_bytes_left = self.table_bytes_left.saturating_sub(bytes.len() as u64);
        self.changes.fresh.push(Fresh {
            cluster,
            bytes,
            because,
        });
        Ok(self.geometry.offset_of(cluster))
    }

    /// What the word at `offset` refers to becomes something else.
    fn switch(&mut self, offset: u64, word: u64, because: Code) {
        let patch = Patch::word(StageKind::SwitchPointers, because, offset, word);
        self.changes.patches.push(patch);
    }

    /// Counts what was taken, before anything refers to it.
    fn finish<S: Storage>(
        mut self,
        examination: &Examination<'_, S>,
    ) -> io::Result<Result<Changes, String>> {
        if let Some(patch) = self.changes.patches.first() {
            let because = patch.because;
            let covered =
                refcounts::cover(examination, &mut self.space, because, &mut self.changes)?;
            if let Err(reason) = covered {
                return Ok(Err(reason));
            }
        }
        self.changes.withheld.extend(self.withheld.into_values());
        Ok(Ok(self.changes))
    }
}
