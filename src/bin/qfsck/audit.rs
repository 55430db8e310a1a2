//! `qfsck audit`: many images, on this machine or on many.
//!
//! Comes in: arguments. Goes out: records, a summary, an exit code. Never here: a write to an image, a lock on one.

pub(crate) mod args;
mod budget;
mod crew;
mod discover;
mod fleet;
mod look;
mod nights;
mod page;
mod report;
mod show;
mod store;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use qfsck::audit::{Tally, is_due, metrics, metrics_of_image};
use qfsck::report::{AuditRecord, AuditRow, ImageName, ImageStatus, Night, write_line};

use self::args::{AuditArgs, AuditFailOn, AuditOutput, AuditVerb, ResultArgs};
use self::budget::Budget;
use self::crew::Muster;
use self::discover::{Discovery, Place, Unfound, discover};
use self::look::{Surroundings, Task};
use self::store::{NoState, State, Store, host, write_whole};
use crate::exit::Outcome;
use crate::progress::Watch;
use crate::{print, say};

/// Audits.
pub(crate) fn run(args: &AuditArgs) -> Outcome {
    Watch::heed_signals();
    match &args.verb {
        None => alone(args),
        Some(AuditVerb::Plan(args)) => fleet::plan(args),
        Some(AuditVerb::Run(args)) => fleet::run(args),
        Some(AuditVerb::Merge(args)) => fleet::merge(args),
        Some(AuditVerb::Diff(args)) => fleet::diff(args),
        Some(AuditVerb::Report(args)) => report::run(args),
    }
}

/// Seconds since the Epoch.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// Says why nothing can be done.
fn refuse(outcome: Outcome, why: &str) -> Outcome {
    say(&format!("qfsck: {why}"));
    outcome
}

/// A state and its records, if there is one.
type Kept = Option<(State, Store)>;

/// An audit of this machine.
fn alone(args: &AuditArgs) -> Outcome {
    let started = Instant::now();
    let (kept, mut discovery) = match begin(args) {
        Ok(begun) => begun,
        Err(outcome) => return outcome,
    };
    let first = Night {
        night: 1,
        at: now(),
    };
    let night = kept.as_ref().map_or(first, |(state, _)| state.night);
    let store = kept.as_ref().map(|(_, store)| store.clone());
    let mut tasks = tasks(&discovery, night, args.full_every);
    if let Some(store) = &store
        && let Err(error) = add_known(&mut tasks, store, &mut discovery, night)
    {
        let why = format!("the state cannot be read: {error}");
        return refuse(Outcome::Missing, &why);
    }
    show::refused(&discovery);
    let mut names: Vec<ImageName> = tasks.iter().map(|task| task.name.clone()).collect();
    names.sort_by_cached_key(ImageName::to_bytes);
    let around = Surroundings {
        night,
        full_every: Some(args.full_every),
        store,
        budget: Arc::new(Budget::new(&args.limits)),
        host: host(),
    };
    let mut results = Results::new(args, night);
    let has_state = kept.is_some();
    let muster = crew::work(
        tasks,
        around,
        &args.limits,
        started,
        &mut |record, is_kept| {
            results.take(record, is_kept && has_state);
        },
    );
    let is_over = if let Some(kept) = &kept {
        results.end_night(kept, &names, &muster)
    } else {
        (0..muster.left).for_each(|_| results.tally.miss());
        muster.left == 0
    };
    if is_over {
        let written = write_metrics(&args.results, &results.tally, &results.per_image, started);
        results.note(written, "the metrics");
    }
    let told = show::Told {
        muster: &muster,
        discovery: &discovery,
        goes_on: kept.as_ref().is_some_and(|(state, _)| state.goes_on),
        has_state,
        took: started.elapsed(),
    };
    let written = summarise(args.output, |to| show::summary(to, &results.tally, &told));
    results.note(written, "the result");
    results.end(&muster, &discovery)
}

/// Opens the state, and searches.
fn begin(args: &AuditArgs) -> Result<(Kept, Discovery), Outcome> {
    let kept = args.state.as_deref().map(|path| State::open(path, now()));
    let kept = kept.transpose().map_err(|why| match why {
        NoState::Taken => refuse(
            Outcome::TryAgain,
            "another audit works in this state; run this one again later",
        ),
        NoState::Broken(why) => refuse(
            Outcome::Missing,
            &format!("the state cannot be used: {why}"),
        ),
    })?;
    let discovery = discover(&args.roots, &args.search)
        .map_err(|why| refuse(Outcome::Usage, &format!("--exclude: {why}")))?;
    if discovery.is_stopped {
        let why = "stopped by a signal; no image was read";
        return Err(refuse(Outcome::TryAgain, why));
    }
    Ok((kept, discovery))
}

/// What an audit comes to, as it goes on.
struct Results<'a> {
    args: &'a AuditArgs,
    tally: Tally,
    per_image: String,
    outcome: Outcome,
    /// Images that were counted as they came, though there is a state: their records could not be kept.
    unkept: BTreeSet<Vec<u8>>,
}

impl<'a> Results<'a> {
    fn new(args: &'a AuditArgs, night: Night) -> Self {
        Self {
            args,
            tally: Tally::new(night),
            per_image: metrics_of_image(None),
            outcome: Outcome::Clean,
            unkept: BTreeSet::new(),
        }
    }

    /// A record, as it is there. What the state keeps is counted at the end of the night, by path.
    fn take(&mut self, record: &AuditRecord, is_in_state: bool) {
        if self.args.output == AuditOutput::Jsonl {
            self.note(print(|to| write_line(record, to)), "a record");
        }
        if !is_in_state {
            self.add(&record.row);
            if self.args.state.is_some() {
                self.unkept.insert(record.row.name.to_bytes());
            }
        }
    }

    fn add(&mut self, row: &AuditRow) {
        self.tally.add(row);
        if self.args.results.metrics_per_image {
            self.per_image.push_str(&metrics_of_image(Some(row)));
        }
    }

    /// What could not be written is said once.
    fn note(&mut self, written: io::Result<()>, what: &str) {
        if let Err(error) = written
            && self.outcome != Outcome::Missing
        {
            self.outcome = refuse(Outcome::Missing, &format!("cannot write {what}: {error}"));
        }
    }

    /// What the run ends with.
    fn end(&self, muster: &Muster, discovery: &Discovery) -> Outcome {
        let outcome = self.outcome.max(of_muster(muster));
        if muster.left > 0 {
            // What the night comes to is for the run to say that ends it.
            return outcome;
        }
        let looked_everywhere = if discovery.refused.is_empty() {
            Outcome::Clean
        } else {
            Outcome::Missing
        };
        outcome
            .max(looked_everywhere)
            .max(fails(&self.tally, self.args.results.fail_on))
    }

    /// Counts what the state has of this night, and ends it if that is all; says whether it is over.
    fn end_night(
        &mut self,
        (state, store): &(State, Store),
        names: &[ImageName],
        muster: &Muster,
    ) -> bool {
        let is_through = muster.left == 0 && muster.unwritten == 0;
        let unkept = std::mem::take(&mut self.unkept);
        let names = names
            .iter()
            .filter(|name| unkept.is_empty() || !unkept.contains(&name.to_bytes()));
        let (missed, gathered) = gather(state, store, names, is_through, &mut |row| self.add(row));
        (0..missed).for_each(|_| self.tally.miss());
        self.note(gathered, "the report");
        let mut is_over = false;
        if is_through && self.outcome == Outcome::Clean {
            let finished = state.finish(self.tally.summary());
            is_over = finished.is_ok();
            self.note(finished, "the end of the night");
        }
        if is_through && missed > 0 {
            // Another run would find no more: the night ends for all others.
            let why = format!("{missed} images have no record, though all were looked at");
            self.outcome = self.outcome.max(refuse(Outcome::Missing, &why));
        }
        is_over
    }
}

/// The summary is the result, unless that is records.
fn summarise(
    output: AuditOutput,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    match output {
        AuditOutput::Human => print(write),
        AuditOutput::Jsonl => write(&mut anstream::stderr().lock()),
    }
}

/// What the images that were found are to be looked at for.
fn tasks(discovery: &Discovery, night: Night, full_every: u64) -> Vec<Task> {
    let images = discovery.images.iter();
    images
        .map(|found| {
            let name = ImageName::new(&found.path);
            Task {
                full: is_due(&name, night, full_every),
                name,
                other_names: found.other_names,
                since: None,
                place: Place::Usual,
            }
        })
        .collect()
}

/// An image that has a record and was not found may be gone; or its first bytes are, and then it must not go unnoticed.
fn add_known(
    tasks: &mut Vec<Task>,
    store: &Store,
    discovery: &mut Discovery,
    night: Night,
) -> io::Result<()> {
    let found: BTreeSet<Vec<u8>> = tasks.iter().map(|task| task.name.to_bytes()).collect();
    let mut forgotten = Vec::new();
    store.for_each(|record: AuditRecord| {
        let row = record.row;
        if found.contains(&row.name.to_bytes()) {
            return;
        }
        let place = match discovery.judge(&row, night) {
            Unfound::Elsewhere => return,
            Unfound::Forgotten => {
                forgotten.push(row.name);
                return;
            }
            Unfound::Expected(place) => place,
        };
        tasks.push(Task {
            name: row.name,
            other_names: 0,
            since: None,
            full: true,
            place,
        });
    })?;
    for name in forgotten {
        store.remove(&name)?;
    }
    Ok(())
}

/// Hands over the rows of this night, by path, and writes them down if that can be done; says how many are not there.
/// What goes wrong with one image or with the report keeps no other image from being counted; the first of it is said.
fn gather<'a>(
    state: &State,
    store: &Store,
    mut names: impl Iterator<Item = &'a ImageName>,
    is_through: bool,
    take: &mut dyn FnMut(&AuditRow),
) -> (u64, io::Result<()>) {
    let mut missed = 0;
    let mut each = |to: &mut dyn Write| {
        let mut done = Ok(());
        for name in names.by_ref() {
            let record = match store.read(name) {
                Ok(record) => record,
                Err(error) => {
                    done = done.and(Err(error));
                    None
                }
            };
            match record.filter(|record| record.row.night == state.night.night) {
                Some(record) => {
                    take(&record.row);
                    if done.is_ok() {
                        done = write_line(&record.row, &mut *to);
                    }
                }
                None => missed += 1,
            }
        }
        done
    };
    let mut done = Ok(());
    if is_through {
        done = write_whole(&state.report(), &mut each);
    }
    // Where the report could not even be begun, they are still to be counted.
    let done = done.and(each(&mut io::sink()));
    (missed, done)
}

/// Writes the metrics, if anybody wants them.
fn write_metrics(
    results: &ResultArgs,
    tally: &Tally,
    per_image: &str,
    started: Instant,
) -> io::Result<()> {
    let Some(path) = results.metrics.as_deref() else {
        return Ok(());
    };
    let mut text = metrics(tally.summary(), now(), started.elapsed().as_secs_f64());
    if results.metrics_per_image {
        text.push_str(per_image);
    }
    write_text(path, &text)
}

fn write_text(path: &Path, text: &str) -> io::Result<()> {
    write_whole(path, |to| to.write_all(text.as_bytes()))
}

/// What became of the work decides, not what was found.
fn of_muster(muster: &Muster) -> Outcome {
    if muster.defects > 0 {
        Outcome::Internal
    } else if muster.unwritten > 0 {
        Outcome::Missing
    } else if muster.left > 0 {
        Outcome::TryAgain
    } else {
        Outcome::Clean
    }
}

/// What `--fail-on` makes of it.
fn fails(tally: &Tally, wanted: Option<AuditFailOn>) -> Outcome {
    let Some(wanted) = wanted else {
        return Outcome::Clean;
    };
    let damaged = ImageStatus::WORST_FIRST
        .into_iter()
        .filter(|status| status.is_damage())
        .map(|status| tally.count(status))
        .sum::<u64>();
    if damaged > 0 {
        Outcome::Corrupt
    } else if wanted == AuditFailOn::Leak && tally.count(ImageStatus::Leaks) > 0 {
        Outcome::Leaks
    } else {
        Outcome::Clean
    }
}
