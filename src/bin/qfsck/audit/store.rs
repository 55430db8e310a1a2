//! Records on disk: one file for each image, there whole or not at all.
//!
//! Comes in: records. Goes out: what is on the disk of them. Never here: a record half written. Each is written under a
//! name of its own and renamed; one that a power cut took the bytes of does not parse, and counts as missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use qfsck::audit::ImageKey;
use qfsck::report::{
    AuditRecord, AuditSummary, ImageName, Night, NightMark, SCHEMA, read_line, write_line,
};

use super::discover::begins_as_image;

/// How the name of a file ends that is still being written.
const UNFINISHED: &str = ".tmp";
/// A file of another host that is still being written after this time never will be.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Reports of nights that are kept.
const KEPT_REPORTS: u64 = 30;

/// Letters of a boot's number in such a name.
const BOOT_LETTERS: usize = 32;

static WRITES: AtomicU64 = AtomicU64::new(0);

/// The name of this machine.
pub(crate) fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(
        |_| "unknown".to_owned(),
        |name| qfsck::escaped(name.trim_ascii().as_bytes()),
    )
}

/// Who writes: host, boot and process, so that what they leave behind when they are killed can be told from what is
/// still being written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Writer {
    host: String,
    boot: String,
    process: u32,
}

impl Writer {
    fn this() -> Self {
        let plain = |text: &str| {
            let letters = text.chars().filter(char::is_ascii_alphanumeric);
            letters.take(BOOT_LETTERS).collect::<String>()
        };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            host: plain(&host()),
            boot: plain(&boot),
            process: std::process::id(),
        }
    }

    /// Where to write what shall be named `path`, so that no two threads of any machine write the same file.
    fn unfinished(&self, path: &Path) -> PathBuf {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        let number = WRITES.fetch_add(1, Relaxed);
        name.push(format!(
            ".{}.{}.{}.{number}{UNFINISHED}",
            self.host, self.boot, self.process
        ));
        path.with_file_name(name)
    }

    /// Whether a file that is being written never will be.
    fn has_abandoned(&self, path: &Path) -> bool {
        let name = path.to_string_lossy();
        let Some(name) = name.strip_suffix(UNFINISHED) else {
            return false;
        };
        // Only a name that was made above: what else somebody calls so is not touched.
        let mut parts = name.rsplit('.');
        let number = parts.next().and_then(|text| text.parse::<u64>().ok());
        let process = parts.next().and_then(|text| text.parse::<u32>().ok());
        let (boot, host) = (parts.next(), parts.next());
        let is_boot = boot.is_some_and(|boot| {
            boot.len() == BOOT_LETTERS && boot.bytes().all(|letter| letter.is_ascii_alphanumeric())
        });
        if number.is_none() || process.is_none() || !is_boot || parts.next().is_none() {
            return false;
        }
        if host != Some(self.host.as_str()) {
            let age = fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|at| at.elapsed().ok());
            return age.is_some_and(|age| age > ABANDONED);
        }
        let is_alive = boot == Some(self.boot.as_str())
            && process.is_some_and(|id| Path::new(&format!("/proc/{id}")).exists());
        !is_alive
    }
}

/// Writes a file by renaming it into place, and forces it to the disk. An image is never replaced, nor a link to one; what
/// takes what is written and is no file, such as a pipe, is written to.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    if let Some(mut stream) = stream_at(path)? {
        write(&mut stream)?;
        return stream.flush();
    }
    let path = &behind_own_link(path);
    let unfinished = Writer::this().unfinished(path);
    let written = (|| {
        let mut to = BufWriter::new(create(&unfinished)?);
        write(&mut to)?;
        to.flush()?;
        to.get_ref().sync_all()
    })();
    let done = written.and_then(|()| fs::rename(&unfinished, path));
    if done.is_err() {
        // It may not be there, and it says nothing.
        let _removed = fs::remove_file(&unfinished);
    }
    done
}

/// Makes a file that nobody else has made, be it as a link to something else. What an earlier process of the same
/// number left there goes.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)
        }
        opened => opened,
    }
}

/// What a link leads to that whoever runs this made: a link that is replaced leaves what it led to as it was. One that
/// somebody else made, as anybody can in a directory for all, is replaced: where it leads is not for them to say.
fn behind_own_link(path: &Path) -> PathBuf {
    let is_own = fs::symlink_metadata(path)
        .is_ok_and(|link| link.is_symlink() && link.uid() == geteuid().as_raw());
    let real = fs::canonicalize(path).ok().filter(|_| is_own);
    real.unwrap_or_else(|| path.to_owned())
}

/// Opens what `path` leads to if it is no regular file; says no if it is an image.
fn stream_at(path: &Path) -> io::Result<Option<File>> {
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(None);
    };
    // The first bytes of a link are not looked at, those of what it leads to are.
    let real = fs::canonicalize(path);
    let path = real.as_deref().unwrap_or(path);
    let kind = metadata.file_type();
    if kind.is_char_device() || kind.is_fifo() {
        return OpenOptions::new().write(true).open(path).map(Some);
    }
    if kind.is_block_device() || (kind.is_file() && begins_as_image(path).unwrap_or(false)) {
        return Err(io::Error::other("it is an image, or a disk"));
    }
    Ok(None)
}

/// A directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    writer: Writer,
}

impl Store {
    /// Where the records are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens a directory of records, and makes it if need be.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            writer: Writer::this(),
        })
    }

    /// Where the record of an image is.
    fn path_of(&self, name: &ImageName) -> PathBuf {
        let key = ImageKey::new(name).to_string();
        let first_two = key.get(..2).unwrap_or_default();
        self.directory.join(first_two).join(format!("{key}.json"))
    }

    /// The record of an image; what is not one, or is another image's, is none.
    pub(crate) fn read(&self, name: &ImageName) -> io::Result<Option<AuditRecord>> {
        let bytes = match fs::read(self.path_of(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record = read_line::<AuditRecord>(&bytes).ok();
        Ok(record.filter(|record| record.schema == SCHEMA && record.row.name == *name))
    }

    /// Writes the record of an image. It is not forced to the disk: after a power cut the image is looked at again.
    pub(crate) fn write(&self, record: &AuditRecord) -> io::Result<()> {
        let path = self.path_of(&record.row.name);
        let mut bytes = Vec::new();
        write_line(record, &mut bytes)?;
        let write = || {
            let unfinished = self.writer.unfinished(&path);
            let written = create(&unfinished).and_then(|mut to| to.write_all(&bytes));
            let done = written.and_then(|()| fs::rename(&unfinished, &path));
            if done.is_err() {
                // It may not be there, and it says nothing.
                let _removed = fs::remove_file(&unfinished);
            }
            done
        };
        match write() {
            // The shelf is not there yet, or somebody took the unfinished file for abandoned.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                write()
            }
            done => done,
        }
    }

    /// Forgets an image.
    pub(crate) fn remove(&self, name: &ImageName) -> io::Result<()> {
        match fs::remove_file(self.path_of(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what was left unfinished by runs that are over.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        self.for_each_file(|path| self.remove_if_abandoned(path))
    }

    fn remove_if_abandoned(&self, path: &Path) {
        if self.writer.has_abandoned(path) {
            // Somebody else may have been faster.
            let _removed = fs::remove_file(path);
        }
    }

    /// Hands over every record that is in its place: one that is not is no image's.
    pub(crate) fn for_each(&self, mut take: impl FnMut(AuditRecord)) -> io::Result<()> {
        self.for_each_file(|path| {
            let is_record = path
                .extension()
                .is_some_and(|extension| extension == "json");
            let bytes = is_record.then(|| fs::read(path).ok()).flatten();
            let record = bytes.and_then(|bytes| read_line::<AuditRecord>(&bytes).ok());
            if let Some(record) = record.filter(|record| self.path_of(&record.row.name) == path) {
                take(record);
            }
        })
    }

    fn for_each_file(&self, mut take: impl FnMut(&Path)) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(entry.path())? {
                take(&file?.path());
            }
        }
        Ok(())
    }
}

/// Who may open the lock of a state can hold it, so that no audit begins: its owner, and a group that shares the state.
const LOCK_MODE: u32 = 0o660;

/// Takes a lock that an earlier version made away from everybody else. What has anything in it is not the audit's.
fn close_to_others(lock: &File) {
    let Ok(metadata) = lock.metadata() else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && metadata.len() == 0 && mode & !LOCK_MODE != 0 {
        // Only its owner can.
        let _closed = lock.set_permissions(fs::Permissions::from_mode(mode & LOCK_MODE));
    }
}

/// What an audit of one machine keeps from night to night.
#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
    pub(crate) night: Night,
    /// The last run of this night did not get through.
    pub(crate) goes_on: bool,
    _lock: Flock<File>,
}

/// Why there is no state.
#[derive(Debug)]
pub(crate) enum NoState {
    /// Another audit works in it.
    Taken,
    /// It cannot be used, and why.
    Broken(String),
}

impl From<io::Error> for NoState {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl State {
    /// Opens a state, and begins a night, or goes on with one that did not get through.
    pub(crate) fn open(directory: &Path, now: u64) -> Result<(Self, Store), NoState> {
        fs::create_dir_all(directory.join("nights"))?;
        // Who named another directory by mistake loses nothing there.
        let lock = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(LOCK_MODE)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(directory.join("lock"))?;
        close_to_others(&lock);
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(NoState::Taken),
            Err((_, error)) => return Err(NoState::Broken(error.to_string())),
        };
        let (night, goes_on) = match fs::read(directory.join("night.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Night { night: 1, at: now }, false)
            }
            Err(error) => return Err(error.into()),
            Ok(bytes) => {
                let mark: NightMark = read_line(&bytes).map_err(|error| {
                    NoState::Broken(format!("night.json is not what qfsck writes: {error}"))
                })?;
                if mark.schema != SCHEMA {
                    let what = format!("it has schema {}, not {SCHEMA}", mark.schema);
                    return Err(NoState::Broken(what));
                }
                let next = Night {
                    night: mark.night.night.saturating_add(1),
                    at: now,
                };
                if mark.finished {
                    (next, false)
                } else {
                    (mark.night, true)
                }
            }
        };
        let state = Self {
            directory: directory.to_owned(),
            night,
            goes_on,
            _lock: lock,
        };
        state.mark(false)?;
        let store = Store::open(&directory.join("images"))?;
        store.sweep()?;
        for place in [directory.to_owned(), directory.join("nights")] {
            for file in fs::read_dir(place)? {
                store.remove_if_abandoned(&file?.path());
            }
        }
        Ok((state, store))
    }

    fn mark(&self, finished: bool) -> io::Result<()> {
        let mark = NightMark {
            schema: SCHEMA,
            night: self.night,
            finished,
        };
        write_whole(&self.directory.join("night.json"), |to| {
            write_line(&mark, to)
        })
    }

    fn path_of(&self, night: u64, what: &str) -> PathBuf {
        let name = format!("{night:08}.{what}");
        self.directory.join("nights").join(name)
    }

    /// Where the report of this night goes.
    pub(crate) fn report(&self) -> PathBuf {
        self.path_of(self.night.night, "jsonl")
    }

    /// Ends the night: every image has a record.
    pub(crate) fn finish(&self, summary: &AuditSummary) -> io::Result<()> {
        let path = self.path_of(self.night.night, "summary.json");
        write_whole(&path, |to| write_line(summary, to))?;
        if let Some(old) = self.night.night.checked_sub(KEPT_REPORTS) {
            // Summaries are small and stay; the report may never have been there.
            let _removed = fs::remove_file(self.path_of(old, "jsonl"));
        }
        self.mark(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_abandoned_and_what_a_live_one_writes_is_not() {
        let writer = Writer::this();
        let record = Path::new("0123.json");
        assert!(!writer.has_abandoned(&writer.unfinished(record)));
        let dead = Writer {
            process: u32::MAX,
            ..writer.clone()
        };
        assert!(writer.has_abandoned(&dead.unfinished(record)));
        let before_the_boot = Writer {
            boot: "0".repeat(BOOT_LETTERS),
            ..writer.clone()
        };
        assert!(writer.has_abandoned(&before_the_boot.unfinished(record)));
        let elsewhere = Writer {
            host: "another".to_owned(),
            ..writer.clone()
        };
        assert!(!writer.has_abandoned(&elsewhere.unfinished(record)));
        assert!(!writer.has_abandoned(record));
        for name in ["disk.tmp", "a.b.c.1.2.tmp", "my.host.7.0.tmp", ".tmp"] {
            assert!(!writer.has_abandoned(Path::new(name)), "{name}");
        }
    }
}
