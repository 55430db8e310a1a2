//! An audit on many machines: freeze a list, check a part of it, put the parts together, compare two nights.
//!
//! Comes in: lists, records, reports. Goes out: the same. Never here: a shard count that was guessed, a report that is not
//! complete and does not say so.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use qfsck::audit::{
    ChangeKind, List, Shard, Tally, diff as compare, is_due, is_overdue, metrics_of_image, part_of,
    write_list,
};
use qfsck::report::{AuditRow, ImageName, ListEntry, ListHeader, Night, read_line, write_line};
use qfsck::{escaped_path, path_of_bytes};

use super::args::{DiffArgs, MergeArgs, PlanArgs, RunArgs};
use super::budget::Budget;
use super::discover::{Discovery, Place, Unfound, discover, named};
use super::look::{Surroundings, Task};
use super::store::{Store, host, write_whole};
use super::{crew, fails, now, of_muster, refuse, show, write_metrics};
use crate::exit::Outcome;
use crate::{finish, print, say};

const DAY_SECONDS: u64 = 86_400;

/// Freezes the list.
pub(super) fn plan(args: &PlanArgs) -> Outcome {
    let discovery = match &args.files_from {
        Some(path) => names_from(path).map(named).map_err(|error| {
            let why = format!("cannot read {}: {error}", escaped_path(path));
            (Outcome::Missing, why)
        }),
        None => discover(&args.roots, &args.search)
            .map_err(|why| (Outcome::Usage, format!("--exclude: {why}"))),
    };
    let mut discovery = match discovery {
        Ok(discovery) => discovery,
        Err((outcome, why)) => return refuse(outcome, &why),
    };
    if discovery.is_stopped {
        return refuse(
            Outcome::TryAgain,
            "stopped by a signal; no list was written",
        );
    }
    let at = now();
    let night = Night {
        night: args.night.unwrap_or(at / DAY_SECONDS),
        at,
    };
    let since = args.since.as_deref().map(|path| rows_by_name(path, night));
    let since = match since.transpose() {
        Ok(since) => since.unwrap_or_default(),
        Err(why) => return refuse(Outcome::Usage, &why),
    };
    let entries = entries(&mut discovery, since, night, args.full_every);
    show::refused(&discovery);
    let count = entries.len();
    let written = to_place(&args.out, |to| {
        write_list(entries, args.shards, night, to).map(|_| ())
    });
    if let Err(error) = written {
        return refuse(Outcome::Missing, &format!("cannot write the list: {error}"));
    }
    say(&format!("qfsck: {count} images in the list"));
    if discovery.refused.is_empty() {
        Outcome::Clean
    } else {
        Outcome::Missing
    }
}

/// The entries of all images that were found, and of those the night before knew.
fn entries(
    discovery: &mut Discovery,
    mut since: BTreeMap<Vec<u8>, AuditRow>,
    night: Night,
    full_every: u64,
) -> Vec<ListEntry> {
    let mut entries: Vec<ListEntry> = Vec::new();
    for found in &discovery.images {
        let name = ImageName::new(&found.path);
        let since = since.remove(&name.to_bytes()).map(Box::new);
        let is_overdue = |row: &AuditRow| is_overdue(row, night, full_every);
        entries.push(ListEntry {
            full: is_due(&name, night, full_every) || since.as_deref().is_some_and(is_overdue),
            lost: false,
            linked: false,
            cost: found.cost,
            other_names: found.other_names,
            name,
            since,
        });
    }
    // What is left was there the night before: gone by now, or without its first bytes.
    for row in since.into_values() {
        let place = match discovery.judge(&row, night) {
            Unfound::Elsewhere | Unfound::Forgotten => continue,
            Unfound::Expected(place) => place,
        };
        entries.push(ListEntry {
            name: row.name.clone(),
            cost: 0,
            other_names: 0,
            since: Some(Box::new(row)),
            full: true,
            lost: place == Place::Lost,
            linked: place == Place::Linked,
        });
    }
    entries
}

/// Names that end with a zero byte, or with a line end.
fn names_from(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.read_to_end(&mut bytes)?;
    }
    let end = if bytes.contains(&0) { 0 } else { b'\n' };
    let names = bytes.split(|byte| *byte == end);
    let names = names.filter(|name| !name.is_empty());
    Ok(names.map(path_of_bytes).collect())
}

/// The rows of a report.
pub(super) fn rows(
    path: &Path,
) -> Result<impl Iterator<Item = Result<AuditRow, String>> + use<>, String> {
    let shown = escaped_path(path);
    let file = File::open(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let lines = (1_u64..).zip(BufReader::new(file).split(b'\n'));
    Ok(lines.map(move |(number, line)| {
        let row = line.and_then(|line| read_line(&line));
        row.map_err(|error| format!("line {number} of {shown} is no row of a report: {error}"))
    }))
}

fn rows_by_name(path: &Path, night: Night) -> Result<BTreeMap<Vec<u8>, AuditRow>, String> {
    let mut by_name = BTreeMap::new();
    for row in rows(path)? {
        let row = row?;
        if row.night >= night.night {
            return Err(format!(
                "the report of --since is of night {}, and this is night {}: give a larger --night",
                row.night, night.night
            ));
        }
        by_name.insert(row.name.to_bytes(), row);
    }
    Ok(by_name)
}

/// Writes to a file by renaming, or to stdout.
pub(super) fn to_place(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    if path == Path::new("-") {
        return print(write);
    }
    write_whole(path, write)
}

fn read_list(path: &Path) -> Result<List, Outcome> {
    let shown = escaped_path(path);
    let file = File::open(path)
        .map_err(|error| refuse(Outcome::Usage, &format!("cannot read {shown}: {error}")))?;
    List::read(BufReader::new(file))
        .map_err(|error| refuse(Outcome::Usage, &format!("{shown} cannot be used: {error}")))
}

/// Checks one shard.
pub(super) fn run(args: &RunArgs) -> Outcome {
    let started = Instant::now();
    let list = match read_list(&args.work) {
        Ok(list) => list,
        Err(outcome) => return outcome,
    };
    let shard = match shard_of(args, &list, &|name| env::var(name).ok()) {
        Ok(shard) => shard,
        Err(why) => return refuse(Outcome::Usage, &why),
    };
    let store = Store::open(&args.out.join(&list.header.id)).and_then(|store| {
        store.sweep()?;
        Ok(store)
    });
    let store = match store {
        Ok(store) => store,
        Err(error) => {
            let shown = escaped_path(&args.out);
            return refuse(Outcome::Missing, &format!("cannot use {shown}: {error}"));
        }
    };
    let entries = if args.balance {
        shard.pick_balanced(list.entries)
    } else {
        shard.pick(list.entries)
    };
    let tasks: Vec<Task> = entries.into_iter().map(task).collect();
    let count = tasks.len();
    let around = Surroundings {
        night: list.header.night,
        full_every: None,
        store: Some(store),
        budget: Arc::new(Budget::new(&args.limits)),
        host: host(),
    };
    let muster = crew::work(tasks, around, &args.limits, started, &mut |_, _| {});
    say(&format!(
        "qfsck: shard {}/{}: {count} images, {} looked at, {} had a record, {} not reached",
        shard.index(),
        shard.count(),
        muster.recorded,
        muster.already,
        muster.left
    ));
    of_muster(&muster)
}

fn task(entry: ListEntry) -> Task {
    Task {
        name: entry.name,
        other_names: entry.other_names,
        since: entry.since,
        full: entry.full,
        place: match (entry.linked, entry.lost) {
            (true, _) => Place::Linked,
            (false, true) => Place::Lost,
            (false, false) => Place::Usual,
        },
    }
}

/// Which shard this is. How many there are is never taken from the engine: one that runs some of them again counts fewer.
fn shard_of(
    args: &RunArgs,
    List { header, .. }: &List,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Shard, String> {
    // What a merge missed is run by one as well: nobody divided it.
    let is_part = header.digest != header.id;
    let shard = match (args.shard, args.shard_from_env) {
        (Some(shard), _) => shard,
        (None, Some(count)) => {
            Shard::new(index_from(variable)?, count).map_err(|error| error.to_string())?
        }
        (None, None) if is_part => return Ok(Shard::WHOLE),
        (None, None) if header.shards.is_none_or(|shards| shards == 1) => Shard::WHOLE,
        (None, None) => return Err("the list is for shards: give --shard i/n".to_owned()),
    };
    match header.shards {
        Some(shards) if shards != shard.count() => Err(format!(
            "the list is for {shards} shards, not for {}",
            shard.count()
        )),
        _ => Ok(shard),
    }
}

/// The engine's index, the first being 0. Nothing is taken off a Slurm index: an array of `3,5-6` means those shards.
fn index_from(variable: &dyn Fn(&str) -> Option<String>) -> Result<u32, String> {
    const ENGINES: [(&str, u32); 4] = [
        ("SLURM_ARRAY_TASK_ID", 0),
        ("JOB_COMPLETION_INDEX", 0),
        ("NOMAD_ALLOC_INDEX", 0),
        ("PARALLEL_SEQ", 1),
    ];
    let mut found = ENGINES
        .into_iter()
        .filter_map(|(name, first)| Some((name, first, variable(name)?)));
    let Some((name, first, text)) = found.next() else {
        let names = ENGINES.map(|(name, _)| name).join(", ");
        return Err(format!("--shard-from-env: none of {names} is set"));
    };
    if let Some((other, ..)) = found.next() {
        return Err(format!(
            "--shard-from-env: both {name} and {other} are set; give --shard i/n"
        ));
    }
    let index = text
        .parse::<u32>()
        .ok()
        .and_then(|index| index.checked_sub(first));
    index.ok_or_else(|| format!("--shard-from-env: {name} is no index: {text:?}"))
}

/// Puts the records of all shards together.
pub(super) fn merge(args: &MergeArgs) -> Outcome {
    let started = Instant::now();
    let list = match read_list(&args.work) {
        Ok(list) => list,
        Err(outcome) => return outcome,
    };
    let merged = match put_together(args, &list).and_then(|merged| {
        merged.write(args, &list.header, started)?;
        Ok(merged)
    }) {
        Ok(merged) => merged,
        Err(error) => {
            let why = format!("cannot read the records or write the report: {error}");
            return refuse(Outcome::Missing, &why);
        }
    };
    let is_stdout_taken = [&args.report, &args.summary, &args.missing]
        .into_iter()
        .any(|path| path.as_deref() == Some(Path::new("-")));
    let summarise = |to: &mut dyn Write| {
        show::groups(to, &merged.tally)?;
        show::counts(to, &merged.tally)
    };
    let shown = if is_stdout_taken {
        summarise(&mut anstream::stderr().lock())
    } else {
        print(summarise)
    };
    let outcome = finish(shown).max(fails(&merged.tally, args.results.fail_on));
    if merged.missing.is_empty() {
        return outcome;
    }
    let (count, of) = (merged.missing.len(), list.entries.len());
    // A list of all of them is the list that was divided.
    let divided = list.header.shards.filter(|n| *n > 1 && count == of);
    let how = divided.map_or_else(String::new, |n| format!(", with --shard i/{n} for each i"));
    let advice = match &args.missing {
        Some(path) => format!("run {} as a list{how}", escaped_path(path)),
        None => "--missing FILE makes a list of them".to_owned(),
    };
    let why = format!("{count} of {of} images have no record; {advice}");
    refuse(Outcome::Missing, &why)
}

/// The records of a list, as far as there are any.
struct Merged {
    tally: Tally,
    missing: Vec<ListEntry>,
    per_image: String,
}

/// Reads the records, and writes the report.
fn put_together(args: &MergeArgs, list: &List) -> io::Result<Merged> {
    let directory = args.records.join(&list.header.id);
    // A directory that is not there has no records, and is not made.
    let store = if directory.is_dir() {
        Some(Store::open(&directory)?)
    } else {
        let shown = escaped_path(&args.records);
        say(&format!(
            "qfsck: there are no records of this list in {shown}"
        ));
        None
    };
    let mut merged = Merged {
        tally: Tally::new(list.header.night),
        missing: Vec::new(),
        per_image: metrics_of_image(None),
    };
    let mut unread = None;
    let mut each = |to: &mut dyn Write| {
        for entry in &list.entries {
            let record = store.as_ref().map(|store| store.read(&entry.name));
            // What cannot be read is missing, and keeps no other image out of the report.
            let record = record.transpose().unwrap_or_else(|error| {
                unread.get_or_insert(error);
                None
            });
            let record = record.flatten();
            let night = list.header.night.night;
            let Some(record) = record.filter(|record| record.row.night == night) else {
                merged.tally.miss();
                merged.missing.push(entry.clone());
                continue;
            };
            merged.tally.add(&record.row);
            if args.results.metrics_per_image {
                merged
                    .per_image
                    .push_str(&metrics_of_image(Some(&record.row)));
            }
            write_line(&record.row, &mut *to)?;
        }
        Ok(())
    };
    match &args.report {
        Some(path) => to_place(path, each)?,
        None => each(&mut io::sink())?,
    }
    if let Some(error) = unread {
        say(&format!("qfsck: a record cannot be read: {error}"));
    }
    Ok(merged)
}

impl Merged {
    /// Writes everything but the report.
    fn write(&self, args: &MergeArgs, header: &ListHeader, started: Instant) -> io::Result<()> {
        if let Some(path) = &args.summary {
            to_place(path, |to| write_line(self.tally.summary(), to))?;
        }
        if self.missing.is_empty() {
            // What is not complete does not pass for the last complete night.
            return write_metrics(&args.results, &self.tally, &self.per_image, started);
        }
        match &args.missing {
            Some(path) => to_place(path, |to| part_of(header, &self.missing, to)),
            None => Ok(()),
        }
    }
}

/// Says what differs between two nights.
pub(super) fn diff(args: &DiffArgs) -> Outcome {
    let read = |path: &Path| -> Result<Vec<AuditRow>, String> {
        let rows: Vec<AuditRow> = rows(path)?.collect::<Result<_, _>>()?;
        if !rows.is_sorted_by_key(|row| row.name.to_bytes()) {
            return Err(format!("{} is not in order", escaped_path(path)));
        }
        Ok(rows)
    };
    let (old, new) = match (read(&args.old), read(&args.new)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(why), _) | (_, Err(why)) => return refuse(Outcome::Usage, &why),
    };
    let mut changes: Vec<_> = compare(old.into_iter(), new.into_iter()).collect();
    changes.sort_by_key(|change| change.kind);
    finish(print(|to| {
        for change in &changes {
            show::change(to, change)?;
        }
        let of = |kind: ChangeKind| changes.iter().filter(|change| change.kind == kind).count();
        let damaged = of(ChangeKind::NewDamage) + of(ChangeKind::NewAndDamaged);
        writeln!(
            to,
            "{damaged} newly damaged, {} worse, {} healed, {} still busy, {} new, {} gone",
            of(ChangeKind::Worse),
            of(ChangeKind::Healed),
            of(ChangeKind::StillBusy),
            of(ChangeKind::New) + of(ChangeKind::NewAndDamaged),
            of(ChangeKind::Gone),
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index that such an environment gives.
    fn index(variables: &[(&str, &str)]) -> Result<u32, String> {
        index_from(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_engine_gives_the_index_and_never_the_count() {
        // What Slurm sets for the second task of --array=3,5-6.
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "5"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_MAX", "6"),
            ("SLURM_ARRAY_TASK_COUNT", "3"),
        ];
        assert_eq!(index(&slurm), Ok(5));
        assert_eq!(index(&[("JOB_COMPLETION_INDEX", "0")]), Ok(0));
        assert_eq!(index(&[("PARALLEL_SEQ", "1")]), Ok(0));
    }

    #[test]
    fn an_environment_that_is_not_clear_is_refused() {
        assert!(index(&[]).is_err());
        assert!(index(&[("PARALLEL_SEQ", "0")]).is_err());
        assert!(index(&[("SLURM_ARRAY_TASK_ID", "4294967294x")]).is_err());
        assert!(index(&[("SLURM_ARRAY_TASK_ID", "-1")]).is_err());
        assert!(index(&[("SLURM_ARRAY_TASK_ID", "1"), ("JOB_COMPLETION_INDEX", "1")]).is_err());
    }
}
