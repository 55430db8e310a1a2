//! The undo file on disk: made new, never followed, ours alone.
//!
//! Comes in: a path where nothing is yet, or where an undo file was left behind. Goes out: something to write to and
//! sync, or all its bytes. Never here: what the bytes mean (`undo.rs`), and an image.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// Unit the end of a file is read in, in bytes.
const SECTOR: u64 = 512;
/// At least so much of the end of a file is read, where there is as much.
const TAIL_BYTES: u64 = 3 * SECTOR;

/// Something to write an undo file to.
///
/// An error leaves open what of the write is there. Whoever gets one stops: a second sync that succeeds says nothing
/// about what the first one lost.
pub trait UndoSink {
    /// Writes all of `bytes` from byte `offset` on.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written will survive a power cut.
    fn sync(&mut self) -> io::Result<()>;

    /// Returns when the file's name will survive a power cut.
    fn sync_directory(&mut self) -> io::Result<()>;
}

impl<S: UndoSink + ?Sized> UndoSink for &mut S {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        (**self).sync_directory()
    }
}

/// An undo file, open in its directory.
#[derive(Debug)]
pub struct UndoSinkFile {
    file: File,
    directory: File,
    name: OsString,
}

impl UndoSinkFile {
    /// Makes a new, empty file that only its owner can read; an existing file or symbolic link is an error.
    pub fn create(path: &Path) -> io::Result<Self> {
        let new = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        Self::open_in_directory(path, new)
    }

    /// Opens the undo file of an earlier repair to write the next seal, and reads it.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<u8>)> {
        let opened = Self::open_in_directory(path, OFlag::O_RDWR)?;
        let bytes = read_trusted(&opened.file)?;
        Ok((opened, bytes))
    }

    /// Reads the undo file of an earlier repair.
    pub fn read(path: &Path) -> io::Result<Vec<u8>> {
        read_trusted(&Self::open_in_directory(path, OFlag::O_RDONLY)?.file)
    }

    /// Reads the undo file of an earlier repair, unless it is longer than `most_bytes`.
    pub fn read_at_most(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
        let file = Self::open_in_directory(path, OFlag::O_RDONLY)?.file;
        if file.metadata()?.len() > most_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        read_trusted(&file)
    }

    /// Reads the beginning of the undo file of an earlier repair, at most `most_bytes` of it.
    pub fn read_head(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
        let file = Self::open_in_directory(path, OFlag::O_RDONLY)?.file;
        read_trusted_part(&file, most_bytes)
    }

    /// Reads the end of the undo file of an earlier repair, from a multiple of 512 on, at most 2 KiB of it.
    pub fn read_tail(path: &Path) -> io::Result<Vec<u8>> {
        let mut file = Self::open_in_directory(path, OFlag::O_RDONLY)?.file;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES) / SECTOR * SECTOR;
        file.seek(SeekFrom::Start(start))?;
        read_trusted(&file)
    }

    /// Deletes the file, and returns when it will stay deleted.
    pub fn remove(mut self) -> io::Result<()> {
        unlinkat(
            &self.directory,
            self.name.as_os_str(),
            UnlinkatFlags::NoRemoveDir,
        )?;
        self.sync_directory()
    }

    /// The directory is opened first and the name looked up in it, so that the directory synced is the one that holds
    /// the file, whatever is renamed meanwhile.
    fn open_in_directory(path: &Path, how: OFlag) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path of an undo file ends in a name",
            )
        })?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let directory = open(
            &parent,
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        // Non-blocking, so that a FIFO under the name is refused and not waited on.
        let safely = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&directory, name, how | safely, owner_only)?;
        Ok(Self {
            file: file.into(),
            directory: directory.into(),
            name: name.to_owned(),
        })
    }
}

impl UndoSink for UndoSinkFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.directory.sync_all()
    }
}

/// Reads a file whose bytes will be written into an image: only one that nobody else could have made or changed.
fn read_trusted(file: &File) -> io::Result<Vec<u8>> {
    read_trusted_part(file, u64::MAX)
}

fn read_trusted_part(file: &File, most_bytes: u64) -> io::Result<Vec<u8>> {
    let metadata = file.metadata()?;
    let refusal = if !metadata.is_file() {
        "not a regular file"
    } else if metadata.uid() != geteuid().as_raw() {
        "an undo file is trusted only by the user who owns it"
    } else if metadata.mode() & 0o022 != 0 {
        "an undo file that others can write to is not trusted"
    } else {
        let mut bytes = Vec::new();
        // What is appended meanwhile is nobody's.
        file.take(metadata.len().min(most_bytes))
            .read_to_end(&mut bytes)?;
        return Ok(bytes);
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_new_file_is_made_in_the_directory_given_for_its_owner_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image.qfsck-undo");
        let mut sink = UndoSinkFile::create(&path).expect("a new file");
        sink.write_at(4, b"kept").expect("written");
        sink.sync().expect("synced");
        sink.sync_directory().expect("the directory synced");
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        let kept = b"\0\0\0\0kept";
        assert_eq!(UndoSinkFile::read(&path).expect("readable"), kept);
        let (reopened, bytes) = UndoSinkFile::open(&path).expect("openable");
        assert_eq!(bytes, kept);
        reopened.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn whatever_stands_under_the_name_is_refused_and_left_as_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "precious").expect("written");
        symlink(at("file"), at("link")).expect("linked");
        symlink(at("nowhere"), at("dangling")).expect("linked");
        fs::create_dir(at("directory")).expect("made");
        mkfifo(&at("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).expect("made");
        for name in ["file", "link", "dangling", "directory", "fifo"] {
            let error = UndoSinkFile::create(&at(name)).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
        }
        assert!(!at("nowhere").exists());
        assert_eq!(fs::read(at("file")).expect("readable"), b"precious");
        for name in ["link", "dangling", "directory", "fifo", "nowhere"] {
            UndoSinkFile::read(&at(name)).expect_err(name);
            UndoSinkFile::open(&at(name)).expect_err(name);
        }
        UndoSinkFile::create(&at("missing/undo")).expect_err("no such directory");
        UndoSinkFile::create(Path::new("/")).expect_err("no name");
    }

    #[test]
    fn a_file_that_others_can_write_to_is_not_trusted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("undo");
        drop(UndoSinkFile::create(&path).expect("a new file"));
        for mode in [0o620, 0o602, 0o666] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
            let error = UndoSinkFile::read(&path).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).expect("changed");
        assert_eq!(UndoSinkFile::read(&path).expect("readable"), b"");
    }

    #[test]
    fn a_file_of_somebody_else_is_not_trusted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("undo");
        drop(UndoSinkFile::create(&path).expect("a new file"));
        // Only root can give a file away, and only root can then open it.
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            let error = UndoSinkFile::read(&path).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
