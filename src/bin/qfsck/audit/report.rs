//! `qfsck audit report`: a page of a night.
//!
//! Comes in: a state or reports, and maybe one image. Goes out: one HTML file, written by renaming. Never here: a write to
//! a state or an image, a lock on one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use qfsck::audit::diff;
use qfsck::report::{AuditRow, AuditSummary, Night, read_line};
use qfsck::{Check, Code, Finding, Options, Progress, Sharing, check_and_map, escaped_path};

use super::args::ReportArgs;
use super::fleet::{rows, to_place};
use super::nights::{Nights, Source};
use super::page::{
    Before, Changes, Fleet, MAP_CELLS, MapOf, Mapped, NIGHTS, PLACES_PER_CODE, Page, Trend,
};
use super::refuse;
use crate::args::values::ProgressMode;
use crate::exit::Outcome;
use crate::isolation::{Isolation, confined};
use crate::progress::Watch;
use crate::render::{Names, facts};
use crate::session::Session;
use crate::{memory, say};

/// What was gathered for the page.
struct Gathered {
    fleet: Fleet,
    changes: Option<Changes>,
    trend: Trend,
    notes: Vec<String>,
    /// Something is missing on the page that ought to be there.
    lacks: bool,
}

/// Why there is no page.
type Refusal = (Outcome, String);

/// Makes the page.
pub(super) fn run(args: &ReportArgs) -> Outcome {
    let gathered = match (&args.state, &args.report) {
        (Some(state), _) => of_state(state),
        (None, Some(report)) => of_reports(args, report),
        (None, None) => Err((Outcome::Usage, "give a report, or --state".to_owned())),
    };
    let gathered = match gathered {
        Ok(gathered) => gathered,
        Err((outcome, why)) => return refuse(outcome, &why),
    };
    for note in &gathered.notes {
        say(&format!("qfsck: {note}"));
    }
    let (map, mapped) = match &args.map {
        None => (None, Outcome::Clean),
        Some(path) => {
            let (map, outcome) = map_of(path);
            (Some(map), outcome)
        }
    };
    let page = Page {
        fleet: &gathered.fleet,
        changes: gathered.changes.as_ref(),
        trend: &gathered.trend,
        notes: &gathered.notes,
        map: map.as_ref(),
    };
    let page = page.write();
    if let Err(error) = to_place(&args.html, |to| to.write_all(page.as_bytes())) {
        let shown = escaped_path(&args.html);
        return refuse(Outcome::Missing, &format!("cannot write {shown}: {error}"));
    }
    if gathered.lacks {
        return Outcome::Missing.max(mapped);
    }
    mapped
}

/// The last night of a state.
fn of_state(directory: &Path) -> Result<Gathered, Refusal> {
    let shown = escaped_path(directory);
    let no_state = |error: std::io::Error| {
        let why = format!("the state {shown} cannot be read: {error}");
        (Outcome::Missing, why)
    };
    let nights = Nights::read(directory).map_err(no_state)?;
    match nights.last() {
        None => Err((Outcome::Missing, format!("{shown} has no night yet"))),
        Some(Source::Begun(night)) => {
            let (rows, unread) = nights.rows(night.night).map_err(no_state)?;
            let mut fleet = Fleet::new(night);
            for row in &rows {
                fleet.add(row);
            }
            let mut notes = vec![format!(
                "Night {} is not over: this is what has been looked at so far.",
                night.night
            )];
            if unread > 0 {
                notes.push(format!("Records that cannot be read: {unread}."));
            }
            Ok(Gathered {
                fleet,
                changes: None,
                trend: Trend::default(),
                notes,
                lacks: unread > 0,
            })
        }
        Some(Source::Over(number, report)) => of_night(&nights, number, &report),
    }
}

fn of_night(nights: &Nights, number: u64, report: &Path) -> Result<Gathered, Refusal> {
    let mut notes = Vec::new();
    if let Some(later) = nights.unfinished.filter(|night| night.night > number) {
        notes.push(format!(
            "Night {} was begun and is not over: this page is of night {number}.",
            later.night
        ));
    }
    let mut lacks = false;
    let mut summaries = Vec::new();
    for (night, summary) in nights.summaries(number, NIGHTS) {
        match summary {
            Ok(summary) => summaries.push(summary),
            Err(error) => {
                lacks = true;
                notes.push(format!(
                    "The summary of night {night} cannot be read: {error}."
                ));
            }
        }
    }
    let begun = |night: u64| summaries.iter().find(|summary| summary.night == night);
    let before = nights.before(number).map(|(night, path)| {
        let at = begun(night).map_or(0, |summary| summary.at);
        (Before { night, at }, path)
    });
    let (mut fleet, changes) = collect(report, before).map_err(|why| (Outcome::Missing, why))?;
    if let Some(summary) = begun(number) {
        fleet.note_summary(summary);
    }
    let earlier = nights.count(number).saturating_sub(NIGHTS);
    let mut trend = Trend::after(earlier as u64);
    for summary in summaries {
        trend.add(summary);
    }
    Ok(Gathered {
        fleet,
        changes,
        trend,
        notes,
        lacks,
    })
}

/// A report, and those of earlier nights.
fn of_reports(args: &ReportArgs, report: &Path) -> Result<Gathered, Refusal> {
    let usage = |why: String| (Outcome::Usage, why);
    let mut earlier = Vec::new();
    for path in &args.before {
        earlier.push((summary_of(path).map_err(usage)?, path.as_path()));
    }
    earlier.sort_by_key(|(summary, _)| summary.night);
    let before = earlier.last().map(|(summary, path)| {
        let (night, at) = (summary.night, summary.at);
        (Before { night, at }, *path)
    });
    let (mut fleet, changes) = collect(report, before).map_err(usage)?;
    let night = fleet.summary().night;
    let is_empty = fleet.summary().images == 0;
    if let Some((before, path)) = before.filter(|(before, _)| !is_empty && before.night >= night) {
        return Err(usage(format!(
            "{} is of night {}, and not from before night {night}",
            escaped_path(path),
            before.night
        )));
    }
    let mut notes = Vec::new();
    match &args.summary {
        Some(path) => {
            let summary = read_summary(path).map_err(usage)?;
            let counted = fleet.summary();
            let is_of_it = summary.images == counted.images
                && summary.status == counted.status
                && (is_empty || summary.night == counted.night);
            if !is_of_it {
                let shown = escaped_path(path);
                return Err(usage(format!("{shown} is the summary of another report")));
            }
            fleet.note_summary(&summary);
        }
        None => notes.push(
            "A report does not tell whether an image has no record: --summary does.".to_owned(),
        ),
    }
    let mut trend = Trend::default();
    for (summary, _) in earlier {
        trend.add(summary);
    }
    trend.add(fleet.whole_summary());
    Ok(Gathered {
        fleet,
        changes,
        trend,
        notes,
        lacks: false,
    })
}

fn read_summary(path: &Path) -> Result<AuditSummary, String> {
    let shown = escaped_path(path);
    let summary = fs::read(path).and_then(|bytes| read_line(&bytes));
    summary.map_err(|error| format!("{shown} is no summary that can be read: {error}"))
}

/// What a report came to, and when its night began, as far as its rows tell.
fn summary_of(path: &Path) -> Result<AuditSummary, String> {
    let mut fleet: Option<Fleet> = None;
    for row in rows(path)? {
        let row = row?;
        let fleet = fleet.get_or_insert_with(|| Fleet::new(night_of(&row)));
        fleet.count(&row);
    }
    let fleet = fleet.ok_or_else(|| format!("{} has no rows", escaped_path(path)))?;
    Ok(fleet.whole_summary())
}

fn night_of(row: &AuditRow) -> Night {
    Night {
        night: row.night,
        at: 0,
    }
}

/// Rows of a report up to its end or the first that is none, which is noted.
fn sound<'a>(
    path: &Path,
    wrong: &'a RefCell<Option<String>>,
) -> Result<impl Iterator<Item = AuditRow> + use<'a>, String> {
    let shown = escaped_path(path);
    let mut last: Option<Vec<u8>> = None;
    let rows = rows(path)?;
    Ok(rows.map_while(move |row| {
        let row = row.and_then(|row| {
            let name = row.name.to_bytes();
            if last.as_ref().is_some_and(|last| *last >= name) {
                return Err(format!("{shown} is not in order"));
            }
            last = Some(name);
            Ok(row)
        });
        row.map_err(|why| *wrong.borrow_mut() = Some(why)).ok()
    }))
}

/// Reads a report once, and beside it that of the night before.
fn collect(
    report: &Path,
    before: Option<(Before, &Path)>,
) -> Result<(Fleet, Option<Changes>), String> {
    let wrong = RefCell::new(None);
    let mut after = sound(report, &wrong)?.peekable();
    let nothing = Night { night: 0, at: 0 };
    let mut fleet = Fleet::new(after.peek().map_or(nothing, night_of));
    let after = after.inspect(|row| fleet.add(row));
    let changes = match before {
        None => {
            after.for_each(drop);
            None
        }
        Some((before, path)) => {
            let mut changes = Changes::new(before);
            diff(sound(path, &wrong)?, after).for_each(|change| changes.add(change));
            Some(changes)
        }
    };
    match wrong.into_inner() {
        Some(why) => Err(why),
        None => Ok((fleet, changes)),
    }
}

/// Checks the image of the map as the audit does, without a lock.
fn map_of(path: &Path) -> (MapOf, Outcome) {
    let no_map = |why: String, outcome: Outcome| {
        say(&format!("qfsck: no map of {}: {why}", escaped_path(path)));
        let path = path.to_owned();
        let result = Err(why);
        (MapOf { path, result }, outcome)
    };
    // The page is written afterwards.
    let isolation = Isolation {
        jobs: None,
        opens_more: true,
    };
    let session = match Session::open(path, Sharing::Observed, isolation) {
        Ok(session) => session,
        Err(error) => return no_map(error.to_string(), Outcome::of_error(&error)),
    };
    if session.image.storage().is_written() {
        let why = "another program has it open for writing".to_owned();
        return no_map(why, Outcome::InUse);
    }
    let progress = Arc::new(Progress::default());
    let watch = Watch::start(Arc::clone(&progress), ProgressMode::Auto, false, None);
    let options = Options {
        is_block_device: session.image.storage().is_block_device(),
        max_memory_bytes: memory::quarter(),
        ..Options::default()
    };
    let (check, map) = confined(|| check_and_map(&session.image, options, MAP_CELLS, &progress));
    watch.finish();
    let conditions = session.conditions();
    let outcome = if conditions.changed {
        Outcome::Changed
    } else if session.image.storage().is_written() {
        Outcome::InUse
    } else if check.coverage.failure_count() > 0 {
        Outcome::Incomplete
    } else {
        Outcome::Clean
    };
    let mapped = Mapped {
        verdict: conditions.verdict(&check).name(),
        findings: in_words(&session, &check),
        unreliable: conditions.unreliable,
        map,
        check,
    };
    let map = MapOf {
        path: path.to_owned(),
        result: Ok(Box::new(mapped)),
    };
    (map, outcome)
}

/// The first findings of each code, in words.
fn in_words(session: &Session, check: &Check) -> Vec<(Code, String)> {
    let names = Names::new(&session.image, &check.snapshots);
    let words = |finding: &Finding| {
        let owners = finding.owners.named.iter();
        let owners = owners.map(|owner| format!("used by {}", names.owner(owner)));
        let more = finding.owners.more;
        let more = (more > 0).then(|| format!("and {more} more"));
        let parts = std::iter::once(facts(&names, finding))
            .chain(owners)
            .chain(more);
        (finding.code, parts.collect::<Vec<_>>().join("; "))
    };
    let mut shown: BTreeMap<Code, usize> = BTreeMap::new();
    let is_shown = |finding: &&Finding| {
        let shown = shown.entry(finding.code).or_default();
        *shown += 1;
        *shown <= PLACES_PER_CODE
    };
    check.findings.iter().filter(is_shown).map(words).collect()
}
