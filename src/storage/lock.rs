//! QEMU's lock protocol: byte-range locks of the open file description, one byte for each permission.
//!
//! Byte 100 + p held says "I use permission p", byte 200 + p "I do not share permission p"; all locks are shared ones,
//! and a conflict is found by asking whether an exclusive lock could be had. Both sides lock before they ask, so a race
//! ends with a refusal, never with two winners.
//!
//! Comes in: an open file. Goes out: locks that last as long as it is open, or who is in the way. Never here: waiting.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Sharing;
use crate::error::Error;
use crate::finding::escaped;

const USES_CONSISTENT_READ: i64 = 100;
const USES_WRITE: i64 = 101;
const USES_RESIZE: i64 = 103;
const UNSHARES_CONSISTENT_READ: i64 = 200;
const UNSHARES_WRITE: i64 = 201;
const UNSHARES_RESIZE: i64 = 203;

/// Whether locks mean anything on this file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockScope {
    /// The locks are held, or would be seen.
    Held,
    /// The file system refused to lock at all.
    Unsupported,
}

/// Takes a reader's locks, or says who is in the way.
///
/// `Protected` is what `qemu-img check` takes: other readers are welcome, a writer is kept out. `Forced` only asks not
/// to be shut out by somebody who must be alone.
pub(super) fn acquire(file: &File, path: &Path, sharing: Sharing) -> Result<LockScope, Error> {
    let (held, asked): (&[i64], &[i64]) = match sharing {
        Sharing::Protected => (
            &[USES_CONSISTENT_READ, UNSHARES_WRITE, UNSHARES_RESIZE],
            &[UNSHARES_CONSISTENT_READ, USES_WRITE, USES_RESIZE],
        ),
        Sharing::Forced => (&[USES_CONSISTENT_READ], &[UNSHARES_CONSISTENT_READ]),
        Sharing::Observed => return Ok(scope_without_locking(file)),
    };
    lock_bytes(file, path, held, asked, sharing == Sharing::Protected)
}

/// Takes the locks of somebody who must be alone, even with readers, or says who is in the way.
pub(super) fn acquire_alone(file: &File, path: &Path) -> Result<LockScope, Error> {
    let uses = [USES_CONSISTENT_READ, USES_WRITE, USES_RESIZE];
    let unshares: Vec<i64> = (UNSHARES_CONSISTENT_READ..=UNSHARES_RESIZE).collect();
    let held = [&uses[..], &unshares].concat();
    let others_use: Vec<i64> = (USES_CONSISTENT_READ..=USES_RESIZE).collect();
    let others_refuse = [UNSHARES_CONSISTENT_READ, UNSHARES_WRITE, UNSHARES_RESIZE];
    let asked = [&others_use[..], &others_refuse].concat();
    lock_bytes(file, path, &held, &asked, true).map_err(|error| match error {
        Error::InUse { path, holder, .. } => Error::InUse {
            path,
            holder,
            for_repair: true,
        },
        other => other,
    })
}

/// Locks bytes first and asks about others' then: whoever comes at the same time sees the same, and one or both refuse.
fn lock_bytes(
    file: &File,
    path: &Path,
    held: &[i64],
    asked: &[i64],
    asks_outside: bool,
) -> Result<LockScope, Error> {
    for &byte in held {
        match set_shared(file, byte) {
            Ok(()) => {}
            // A whole-file exclusive lock, as other monitors take it.
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(in_use(file, path, byte, 1)),
            Err(_) => return Ok(LockScope::Unsupported),
        }
    }
    for &byte in asked {
        if is_held_by_others(file, byte, 1) {
            return Err(in_use(file, path, byte, 1));
        }
    }
    if asks_outside {
        // Outside QEMU's bytes: libvirt's lock manager holds byte 0, other monitors lock the whole file.
        for (start, length) in [(0, 100), (204, 0)] {
            if is_held_by_others(file, start, length) {
                return Err(in_use(file, path, start, length));
            }
        }
    }
    Ok(LockScope::Held)
}

/// Whether the file system answers questions about locks, found out without taking one.
fn scope_without_locking(file: &File) -> LockScope {
    let mut asked = range(libc::F_WRLCK, USES_WRITE, 1);
    match fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut asked)) {
        Ok(_) => LockScope::Held,
        Err(_) => LockScope::Unsupported,
    }
}

/// Whether somebody may be writing, by the locks: QEMU's, libvirt's, or those of a monitor that locks the whole file.
/// Nobody is named, which would take a look at every process.
pub(super) fn is_written(file: &File) -> bool {
    let asked = [(USES_WRITE, 1), (USES_RESIZE, 1), (0, 100), (204, 0)];
    asked
        .into_iter()
        .any(|(start, length)| is_held_by_others(file, start, length))
}

/// Who has the file open for writing, by the locks.
pub(super) fn writer(file: &File) -> Option<String> {
    [USES_WRITE, USES_RESIZE]
        .into_iter()
        .find(|&byte| is_held_by_others(file, byte, 1))
        .map(|byte| describe_holder(file, byte, 1))
}

fn in_use(file: &File, path: &Path, start: i64, length: i64) -> Error {
    Error::InUse {
        path: path.to_owned(),
        holder: describe_holder(file, start, length),
        for_repair: false,
    }
}

fn range(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn set_shared(file: &File, byte: i64) -> Result<(), Errno> {
    let wanted = range(libc::F_RDLCK, byte, 1);
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&wanted)).map(|_| ())
}

/// Whether anyone else holds a lock in `length` bytes from `start` on (0: to the end of all offsets).
fn is_held_by_others(file: &File, start: i64, length: i64) -> bool {
    let mut asked = range(libc::F_WRLCK, start, length);
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut asked)).is_ok()
        && i32::from(asked.l_type) != libc::F_UNLCK
}

/// The processes that hold a lock there, as far as `/proc` lets us see.
fn describe_holder(file: &File, start: i64, length: i64) -> String {
    let holders = file
        .metadata()
        .and_then(|metadata| holders(&metadata, start, length))
        .unwrap_or_default();
    if holders.is_empty() {
        return "another program".to_owned();
    }
    holders.join(", ")
}

/// Looks through the lock lines of every process's open files; the kernel names no process for these locks elsewhere.
fn holders(image: &Metadata, start: i64, length: i64) -> io::Result<Vec<String>> {
    let own_id = std::process::id().to_string();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let id = process.file_name().to_string_lossy().into_owned();
        if id == own_id || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(entries) = fs::read_dir(process.path().join("fdinfo")) else {
            continue;
        };
        let holds = entries.flatten().any(|entry| {
            let has_lock = fs::read_to_string(entry.path()).is_ok_and(|text| {
                text.lines()
                    .any(|line| is_lock_in(line, image.ino(), start, length))
            });
            // Other file systems have the same inode numbers, and lock lines do not always tell them apart.
            let open_file = process.path().join("fd").join(entry.file_name());
            has_lock
                && fs::metadata(open_file).map_or(true, |opened| {
                    (opened.dev(), opened.ino()) == (image.dev(), image.ino())
                })
        });
        if holds {
            let name = fs::read(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (process {id})", escaped(name.trim_ascii())));
        }
    }
    Ok(found)
}

/// Reads a line such as `lock: 1: OFDLCK  ADVISORY  READ -1 fd:00:1234 100 100`.
fn is_lock_in(line: &str, inode: u64, start: i64, length: i64) -> bool {
    let Some(rest) = line.strip_prefix("lock:") else {
        return false;
    };
    let mut fields = rest.split_whitespace().rev();
    let last = fields.next().map(|text| text.parse().unwrap_or(i64::MAX));
    let first = fields.next().and_then(|text| text.parse::<i64>().ok());
    let file = fields.next().and_then(|text| text.rsplit(':').next());
    let end = if length == 0 {
        i64::MAX
    } else {
        start.saturating_add(length - 1)
    };
    file.and_then(|text| text.parse().ok()) == Some(inode)
        && first.is_some_and(|first| first <= end)
        && last.is_some_and(|last| last >= start)
}

#[cfg(test)]
mod tests {
    use super::is_lock_in;

    #[test]
    fn lock_lines_are_matched_by_inode_and_range() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fd:00:1234 101 101";
        assert!(is_lock_in(line, 1234, 101, 1));
        assert!(!is_lock_in(line, 1234, 100, 1));
        assert!(!is_lock_in(line, 1235, 101, 1));
        let whole = "lock:\t1: OFDLCK  ADVISORY  WRITE -1 fd:00:1234 0 EOF";
        assert!(is_lock_in(whole, 1234, 204, 0));
        assert!(!is_lock_in("pos:\t0", 1234, 0, 0));
    }
}
