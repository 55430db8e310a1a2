//! One image, looked at: who writes to it, whether anybody touched it since, and how its metadata is.
//!
//! Comes in: a task. Goes out: a record. Never here: a lock on the image, a verdict on one that somebody was in.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use qfsck::audit::{Seen, carried, is_done, is_overdue, judge};
use qfsck::qcow2::Geometry;
use qfsck::report::{
    AuditRecord, AuditRow, AuditRun, Fingerprint, ImageName, ImageStatus, Night, SCHEMA,
};
use qfsck::{
    Error, FileStamp, Image, ImageFile, Options, Progress, Sharing, Storage, escaped_path,
};

use super::budget::{Budget, Metered};
use super::discover::{Place, is_absence};
use super::store::Store;
use crate::way_back::interrupted;

/// Bytes of the header that a fingerprint has the sum of.
const HEADER_BYTES: usize = 4096;
/// Memory a check needs whatever the image is.
const LEAST_MEMORY: u64 = 8 << 20;
/// Time stamps are no finer than this: what was written so shortly ago may be written to without another stamp.
const TICK: Duration = Duration::from_millis(25);
/// Where stamps are whole seconds, they are no finer than this.
const COARSE_TICK: Duration = Duration::from_secs(2);

/// What is to be looked at.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) name: ImageName,
    pub(crate) other_names: u64,
    /// How it stood the night before, where no record of that is in the store.
    pub(crate) since: Option<Box<AuditRow>>,
    /// It is to be read even if nobody touched it.
    pub(crate) full: bool,
    pub(crate) place: Place,
}

/// Who looks after a check while it goes on.
pub(crate) trait Minder {
    /// Why the check was stopped, if it was.
    fn why(&self) -> Option<StopReason>;

    /// The check waits for others to be done.
    fn waits(&self);

    /// The check waits no more; from now on it takes its own time.
    fn begins(&self);
}

/// What all tasks have in common.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) night: Night,
    /// Each image is to be read once in so many nights; a list says it of each image itself.
    pub(crate) full_every: Option<u64>,
    pub(crate) store: Option<Store>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) host: String,
}

/// Why a check is being stopped, and whether that is the image's affair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The audit ends: nothing is said of the image.
    End,
    /// The image is given up, for this reason.
    GiveUp(String),
}

/// What became of a task.
#[derive(Debug)]
pub(crate) enum Looked {
    /// There is a new record.
    Record(Box<AuditRecord>),
    /// There was one already.
    Already,
    /// The audit ends before it was known.
    Nothing,
    /// There is one, and it could not be kept.
    Unwritten(Box<AuditRecord>, io::Error),
}

/// Looks at an image, and writes its record. `minder` says why it was stopped, if it was.
pub(crate) fn look(
    task: &Task,
    around: &Surroundings,
    progress: &Arc<Progress>,
    minder: &dyn Minder,
) -> Looked {
    let started = Instant::now();
    let record = around.store.as_ref().map(|store| store.read(&task.name));
    let record = match record.transpose() {
        Ok(record) => record.flatten(),
        // A record that cannot be read cannot be relied on either.
        Err(_) => None,
    };
    let last = record.as_ref().map(|record| &record.row);
    let last = last.or(task.since.as_deref());
    let checks = record
        .as_ref()
        .filter(|record| record.row.night == around.night.night)
        .map_or(0, |record| record.run.checks);
    let looking = Looking {
        task,
        around,
        progress,
        last,
        unreliable: Vec::new(),
        run: AuditRun {
            host: around.host.clone(),
            checks: checks.saturating_add(1),
            ..AuditRun::default()
        },
    };
    let seen = panic::catch_unwind(AssertUnwindSafe(|| looking.see(minder)));
    let (mut row, mut run) = match seen {
        Ok(Some(Sight::Row(row, run))) => (*row, run),
        Ok(Some(Sight::Done)) => return Looked::Already,
        Ok(None) => return Looked::Nothing,
        Err(_) => {
            let reason = "a defect of qfsck: please report it".to_owned();
            (
                given_up(task, last, around.night, reason),
                AuditRun::default(),
            )
        }
    };
    row.other_names = task.other_names;
    run.milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    keep(around, row, run)
}

/// Writes the record of an image.
pub(crate) fn keep(around: &Surroundings, row: AuditRow, run: AuditRun) -> Looked {
    let record = Box::new(AuditRecord {
        schema: SCHEMA,
        row,
        run,
    });
    let written = around.store.as_ref().map(|store| store.write(&record));
    match written {
        Some(Err(error)) => Looked::Unwritten(record, error),
        _ => Looked::Record(record),
    }
}

/// The row of an image that was given up.
pub(crate) fn given_up(
    task: &Task,
    last: Option<&AuditRow>,
    night: Night,
    reason: String,
) -> AuditRow {
    let seen = Seen::Otherwise(ImageStatus::Unfinished, Some(reason));
    judge(task.name.clone(), &seen, None, last, night)
}

enum Sight {
    Row(Box<AuditRow>, AuditRun),
    Done,
}

struct Looking<'a> {
    task: &'a Task,
    around: &'a Surroundings,
    progress: &'a Arc<Progress>,
    last: Option<&'a AuditRow>,
    unreliable: Vec<String>,
    run: AuditRun,
}

impl Looking<'_> {
    /// `None` if the audit ended before anything was known.
    fn see(mut self, minder: &dyn Minder) -> Option<Sight> {
        let mut sight = self.see_once(minder)?;
        let has_changed =
            matches!(&sight, Sight::Row(row, _) if row.status == ImageStatus::Changed);
        if has_changed {
            // Somebody may have come and gone: once more, then never mind.
            sight = self.see_once(minder)?;
        }
        // Also of an image that is in use, or that nobody touched since: undo files come and go beside it.
        if let Sight::Row(row, _) = &mut sight {
            row.unreliable = self.unreliable;
        }
        Some(sight)
    }

    fn see_once(&mut self, minder: &dyn Minder) -> Option<Sight> {
        if self.task.place == Place::Linked {
            let reason = "it is behind a symbolic link now".to_owned();
            return Some(self.otherwise(ImageStatus::Gone, Some(reason), None));
        }
        let path = self.task.name.to_path();
        let file = match ImageFile::open(&path, Sharing::Observed) {
            Ok(file) => file,
            Err(error) => return Some(self.refused(&path, &error)),
        };
        self.run.no_locks = file.lock_weakness().is_some();
        self.unreliable = interrupted(&file).into_iter().collect();
        if file.is_written() {
            return Some(self.otherwise(ImageStatus::Busy, None, None));
        }
        if self.is_seen_tonight(&file) {
            return Some(Sight::Done);
        }
        let metered = Metered {
            file,
            budget: Arc::clone(&self.around.budget),
            progress: Arc::clone(self.progress),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        let (stamp, fingerprint) = match fingerprint(&metered) {
            Ok(found) => found,
            Err(error) => {
                let reason = Some(format!("its first bytes cannot be read: {error}"));
                return Some(self.otherwise(ImageStatus::Unreadable, reason, None));
            }
        };
        // A device has no stamp that tells of writes.
        let fingerprint = (!metered.file.is_block_device()).then_some(fingerprint);
        let night = self.around.night;
        let is_overdue = match (self.last, self.around.full_every) {
            (Some(last), Some(every)) => is_overdue(last, night, every),
            _ => false,
        };
        let is_due = self.task.full || is_overdue;
        if let Some(row) = carried(self.last, fingerprint, is_due, night) {
            self.count(&metered);
            return Some(Sight::Row(Box::new(row), self.run.clone()));
        }
        self.read(metered, &path, stamp, fingerprint, minder)
    }

    /// Whether a record of tonight is all there is to say. That costs no read: every write gives another stamp, and what a
    /// disk forgets in one night is found in another.
    fn is_seen_tonight(&self, file: &ImageFile) -> bool {
        let Some(last) = self.last.filter(|_| !file.is_block_device()) else {
            return false;
        };
        let stamp = file.stamp().ok();
        let known = last.fingerprint.zip(stamp).map(|(known, stamp)| {
            let header_crc = known.header_crc;
            fingerprint_of(stamp, header_crc)
        });
        is_done(last, known, self.around.night)
    }

    /// Reads an image whose file had this stamp before.
    fn read(
        &mut self,
        metered: Metered,
        path: &Path,
        stamp: FileStamp,
        fingerprint: Option<Fingerprint>,
        minder: &dyn Minder,
    ) -> Option<Sight> {
        let night = self.around.night;
        let is_block_device = metered.file.is_block_device();
        let image = match Image::open(metered, path) {
            Ok(image) => image,
            Err(error) => return Some(self.no_image(fingerprint, &error)),
        };
        let clusters = image.geometry().map_or(0, Geometry::file_clusters);
        // A check takes a bit for each cluster that is counted, and its tables.
        let memory = LEAST_MEMORY.saturating_add(clusters / 4);
        minder.waits();
        let share = self.around.budget.memory.take(memory, self.progress);
        minder.begins();
        let options = Options {
            is_block_device,
            max_memory_bytes: Some(share.bytes),
            ..Options::default()
        };
        let check = qfsck::check(&image, options, self.progress);
        drop(share);
        let metered = image.storage();
        self.count(metered);
        if self.progress.is_stopped() && check.coverage.is_stopped() {
            let Some(StopReason::GiveUp(reason)) = minder.why() else {
                return None;
            };
            let row = given_up(self.task, self.last, night, reason);
            let row = AuditRow { fingerprint, ..row };
            return Some(Sight::Row(Box::new(row), self.run.clone()));
        }
        if metered.file.is_written() {
            return Some(self.otherwise(ImageStatus::Busy, None, fingerprint));
        }
        let stood_still = metered.file.stamp().is_ok_and(|now| now == stamp)
            && metered.file.is_at_its_path().unwrap_or(false)
            && image.header_unchanged().unwrap_or(false);
        if !stood_still {
            return Some(self.otherwise(ImageStatus::Changed, None, fingerprint));
        }
        let cluster_bytes = image.geometry().map_or(0, Geometry::cluster_bytes);
        let seen = Seen::Checked {
            check: &check,
            cluster_bytes,
        };
        let name = self.task.name.clone();
        let row = judge(name, &seen, fingerprint, self.last, night);
        Some(Sight::Row(Box::new(row), self.run.clone()))
    }

    fn count(&mut self, metered: &Metered) {
        self.run.reads += metered.reads.load(Relaxed);
        self.run.bytes_read += metered.bytes.load(Relaxed);
    }

    fn otherwise(
        &self,
        status: ImageStatus,
        reason: Option<String>,
        fingerprint: Option<Fingerprint>,
    ) -> Sight {
        let seen = Seen::Otherwise(status, reason);
        let name = self.task.name.clone();
        let row = judge(name, &seen, fingerprint, self.last, self.around.night);
        Sight::Row(Box::new(row), self.run.clone())
    }

    /// It could not be opened.
    fn refused(&self, path: &Path, error: &Error) -> Sight {
        if self.task.place == Place::Lost {
            let reason = "its directory is not there, or is empty: is its disk mounted?";
            return self.otherwise(ImageStatus::Unfinished, Some(reason.to_owned()), None);
        }
        let status = match error {
            Error::Open { source, .. } if is_absence(source.kind()) => ImageStatus::Gone,
            Error::NotAFile { .. } => ImageStatus::NotQcow2,
            _ => ImageStatus::Unreadable,
        };
        // A link that leads nowhere is not gone.
        let is_gone = status == ImageStatus::Gone && path.symlink_metadata().is_err();
        if is_gone {
            return self.otherwise(status, None, None);
        }
        let status = status.max(ImageStatus::NotQcow2);
        self.otherwise(status, Some(without_path(path, error)), None)
    }

    /// It could be opened, and is no image that can be checked.
    fn no_image(&self, fingerprint: Option<Fingerprint>, error: &Error) -> Sight {
        let status = match error {
            Error::NotQcow2 { .. } => ImageStatus::NotQcow2,
            _ => ImageStatus::Unreadable,
        };
        let path = self.task.name.to_path();
        self.otherwise(status, Some(without_path(&path, error)), fingerprint)
    }
}

/// What went wrong, to be said beside the path.
fn without_path(path: &Path, error: &Error) -> String {
    let said = error.to_string();
    said.replace(&escaped_path(path), "it")
}

/// What tells this state of a file from a later one: from now on every write to it gives it another stamp.
fn fingerprint(metered: &Metered) -> io::Result<(FileStamp, Fingerprint)> {
    let mut stamp = metered.file.stamp()?;
    if let Some(left) = unsettled(stamp) {
        thread::sleep(left);
        stamp = metered.file.stamp()?;
    }
    let mut header = [0; HEADER_BYTES];
    metered.read_at(0, &mut header)?;
    Ok((stamp, fingerprint_of(stamp, crc32fast::hash(&header))))
}

fn fingerprint_of(stamp: FileStamp, header_crc: u32) -> Fingerprint {
    Fingerprint {
        bytes: stamp.length_bytes,
        modified_ns: stamp.modified_nanoseconds,
        changed_ns: stamp.changed_nanoseconds,
        inode: stamp.inode,
        header_crc,
    }
}

/// For how long a write might still be given the same stamp.
fn unsettled(stamp: FileStamp) -> Option<Duration> {
    let changed = Duration::from_nanos(u64::try_from(stamp.changed_nanoseconds).ok()?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let tick = if changed.subsec_nanos() == 0 {
        COARSE_TICK
    } else {
        TICK
    };
    // A stamp of the future is another machine's clock: there is no waiting for that.
    let age = now.checked_sub(changed)?;
    tick.checked_sub(age).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    /// A minder in whose hands everything goes wrong, in the middle of a check.
    struct Clumsy;

    impl Minder for Clumsy {
        fn why(&self) -> Option<StopReason> {
            None
        }

        fn waits(&self) {
            panic!("as a check would");
        }

        fn begins(&self) {}
    }

    #[test]
    fn a_defect_of_the_checker_becomes_the_record_of_the_image_and_ends_no_more() {
        let words = ["qfsck", "audit", "x"];
        let Command::Audit(args) = Cli::parse_from(words).command else {
            panic!("it is an audit");
        };
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("image");
        let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
        image.resize(4096, 0);
        fs::write(&path, image).expect("a file can be written");
        let night = Night { night: 1, at: 0 };
        let store = Store::open(&directory.path().join("records")).expect("a store");
        let around = Surroundings {
            night,
            full_every: None,
            store: Some(store.clone()),
            budget: Arc::new(Budget::new(&args.limits)),
            host: String::new(),
        };
        let task = Task {
            name: ImageName::new(&path),
            other_names: 0,
            since: None,
            full: true,
            place: Place::Usual,
        };
        let looked = look(&task, &around, &Arc::new(Progress::default()), &Clumsy);
        assert!(matches!(looked, Looked::Record(_)), "{looked:?}");
        let record = store.read(&task.name).expect("it can be read");
        let row = record.expect("there is a record").row;
        assert_eq!(row.status, ImageStatus::Unfinished);
        assert!(
            row.reason
                .is_some_and(|reason| reason.starts_with("a defect"))
        );
    }
}
