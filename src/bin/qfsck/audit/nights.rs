//! The nights of a state, read and never written.
//!
//! Comes in: a directory. Goes out: which nights there are, and what each came to. Never here: a lock, a file made: an
//! audit may work in the state meanwhile, and each of its files is there whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use qfsck::report::{AuditRecord, AuditRow, AuditSummary, Night, NightMark, SCHEMA, read_line};

/// A state, as it is now.
#[derive(Debug)]
pub(super) struct Nights {
    directory: PathBuf,
    summaries: BTreeMap<u64, PathBuf>,
    reports: BTreeMap<u64, PathBuf>,
    /// A night that was begun and is not over.
    pub(super) unfinished: Option<Night>,
}

/// Where the rows of a night come from.
#[derive(Debug)]
pub(super) enum Source {
    /// From the report of a night that is over.
    Over(u64, PathBuf),
    /// From the records: there is no night yet that is over.
    Begun(Night),
}

impl Nights {
    /// Looks into a state.
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let mark = fs::read(directory.join("night.json"))?;
        let mark: NightMark = read_line(&mark)?;
        if mark.schema != SCHEMA {
            let why = format!("it has schema {}, not {SCHEMA}", mark.schema);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut nights = Self {
            directory: directory.to_owned(),
            summaries: BTreeMap::new(),
            reports: BTreeMap::new(),
            unfinished: (!mark.finished).then_some(mark.night),
        };
        for entry in fs::read_dir(directory.join("nights"))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some((number, what)) = name.and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "summary.json" => nights.summaries.insert(number, path),
                "jsonl" => nights.reports.insert(number, path),
                _ => None,
            };
        }
        Ok(nights)
    }

    /// The last night that is over; the one that was begun, where none is.
    pub(super) fn last(&self) -> Option<Source> {
        let over = self.reports.iter().rev();
        let mut over = over.filter(|(number, _)| self.summaries.contains_key(number));
        match over.next() {
            Some((number, path)) => Some(Source::Over(*number, path.clone())),
            None => self.unfinished.map(Source::Begun),
        }
    }

    /// The report of the night before.
    pub(super) fn before(&self, night: u64) -> Option<(u64, &Path)> {
        let (number, path) = self.reports.range(..night).next_back()?;
        self.summaries.get(number)?;
        Some((*number, path))
    }

    /// What the last nights up to one came to, the last first: the number, and the summary or why there is none.
    pub(super) fn summaries(
        &self,
        up_to: u64,
        most: usize,
    ) -> impl Iterator<Item = (u64, io::Result<AuditSummary>)> {
        let last = self.summaries.range(..=up_to).rev().take(most);
        last.map(|(number, path)| {
            let summary = fs::read(path).and_then(|bytes| read_line(&bytes));
            (*number, summary)
        })
    }

    /// How many nights up to one there are.
    pub(super) fn count(&self, up_to: u64) -> usize {
        self.summaries.range(..=up_to).count()
    }

    /// The rows that the records have of a night, by path, and how many records could not be read.
    pub(super) fn rows(&self, night: u64) -> io::Result<(Vec<AuditRow>, u64)> {
        let (mut rows, mut unread) = (Vec::new(), 0);
        for entry in fs::read_dir(self.directory.join("images"))? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(entry.path())? {
                let path = file?.path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                match fs::read(&path).and_then(|bytes| read_line::<AuditRecord>(&bytes)) {
                    Ok(record) if record.row.night == night => rows.push(record.row),
                    Ok(_) => {}
                    Err(_) => unread += 1,
                }
            }
        }
        rows.sort_by_cached_key(|row| row.name.to_bytes());
        Ok((rows, unread))
    }
}
