//! Files and block devices, opened once: for reading, or alone for a repair.
//!
//! Comes in: a path a person gave. Goes out: an [`ImageFile`] that holds QEMU's locks. Never here: opening anything an
//! image names, waiting on a FIFO.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek};
use rustix::io::{ReadWriteFlags, preadv2};

use super::lock::{self, LockScope};
use super::{Storage, StorageMut};
use crate::error::Error;

/// How to treat other programs that have the image open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Keep writers out while the image is read, and refuse if one is in.
    Protected,
    /// Read whatever is there, as `qemu-img check -U` does; the result is unreliable while a writer is in.
    Forced,
    /// Hold no lock at all, so that nobody is ever kept from starting; who reads asks before and after whether somebody
    /// writes.
    Observed,
}

/// An image file or block device, open for reading and locked.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    file: File,
    is_block_device: bool,
    lock_scope: LockScope,
    /// The system once said that it cannot read this file without waiting: it is not asked again.
    always_waits: AtomicBool,
}

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Length in bytes.
    pub length_bytes: u64,
    /// Time of the last change of the content, in nanoseconds since the Epoch.
    pub modified_nanoseconds: i128,
}

/// What tells a file that nobody touched from one that somebody did, also from one night to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Length in bytes.
    pub length_bytes: u64,
    /// Time of the last change of the content, in nanoseconds since the Epoch.
    pub modified_nanoseconds: i64,
    /// Time of the last change of the content or of the inode, in nanoseconds since the Epoch. Nobody can set it back.
    pub changed_nanoseconds: i64,
    /// The number of the inode.
    pub inode: u64,
}

impl FileStamp {
    /// The stamp in a file's metadata.
    pub fn of(metadata: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            length_bytes: metadata.len(),
            modified_nanoseconds: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_nanoseconds: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

impl ImageFile {
    /// Opens `path`, which must be a regular file or a block device, and takes QEMU's locks.
    pub fn open(path: &Path, sharing: Sharing) -> Result<Self, Error> {
        let (file, is_block_device) =
            open_file(path, OpenOptions::new().read(true), OFlag::empty())?;
        let lock_scope = lock::acquire(&file, path, sharing)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            is_block_device,
            lock_scope,
            always_waits: AtomicBool::new(false),
        })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is a block device, whose length says nothing about the image's.
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Why locks protect less than they should, if so.
    pub fn lock_weakness(&self) -> Option<&'static str> {
        match self.lock_scope {
            LockScope::Unsupported => Some(
                "the file system has no locks, so a program writing to the image would not be seen",
            ),
            LockScope::Held => None,
        }
    }

    /// Who has the image open for writing right now, if anyone the locks tell of.
    pub fn writer(&self) -> Option<String> {
        lock::writer(&self.file)
    }

    /// Whether somebody may be writing to the image right now, by the locks.
    pub fn is_written(&self) -> bool {
        lock::is_written(&self.file)
    }

    /// The file's stamp, as it is now.
    pub fn stamp(&self) -> io::Result<FileStamp> {
        Ok(FileStamp::of(&self.file.metadata()?))
    }

    /// The numbers of the device and the inode, to tell this file from others.
    pub fn device_and_inode(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        if self.is_block_device {
            return Ok((metadata.rdev(), 0));
        }
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Whether the path still leads to this file: an image may be moved away, or another moved over it.
    pub fn is_at_its_path(&self) -> io::Result<bool> {
        let there = match std::fs::metadata(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let here = self.file.metadata()?;
        if self.is_block_device {
            return Ok(there.rdev() == here.rdev());
        }
        Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
    }

    /// What tells this state of the file from a later one.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        let metadata = self.file.metadata()?;
        Ok(FileIdentity {
            length_bytes: self.length_bytes()?,
            modified_nanoseconds: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
        })
    }
}

/// An image file or block device, open for a repair: nobody else may have it open, not even for reading.
#[derive(Debug)]
pub struct RepairFile {
    image: ImageFile,
}

impl RepairFile {
    /// Opens `path` for reading and writing, and keeps everybody else out.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let is_device =
            std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        // Of a block device this also keeps mounts and device mappers out.
        let alone = if is_device {
            OFlag::O_EXCL
        } else {
            OFlag::empty()
        };
        let mut options = OpenOptions::new();
        let (file, is_block_device) = open_file(path, options.read(true).write(true), alone)?;
        if is_block_device {
            refuse_read_only_device(path, &file)?;
        }
        let lock_scope = lock::acquire_alone(&file, path)?;
        if lock_scope == LockScope::Unsupported {
            return Err(Error::NoLocks {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            image: ImageFile {
                path: path.to_owned(),
                file,
                is_block_device,
                lock_scope,
                always_waits: AtomicBool::new(false),
            },
        })
    }

    /// The same file, to be read.
    pub fn image(&self) -> &ImageFile {
        &self.image
    }

    /// The numbers of the device and the inode, to tell this file from others.
    pub fn device_and_inode(&self) -> io::Result<(u64, u64)> {
        self.image.device_and_inode()
    }
}

impl Storage for RepairFile {
    fn length_bytes(&self) -> io::Result<u64> {
        self.image.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.image.next_data(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.image.allocated_bytes()
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.image.read_at_hand(offset, buffer)
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        self.image.will_read(offset, bytes);
    }
}

impl StorageMut for RepairFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.image.file.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        if self.image.is_block_device {
            return Ok(());
        }
        self.image.file.set_len(length_bytes)
    }

    fn reserve(&mut self, length_bytes: u64) -> io::Result<()> {
        let now = self.image.length_bytes()?;
        if length_bytes <= now {
            return Ok(());
        }
        if self.image.is_block_device {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let out_of_range = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let start = i64::try_from(now).map_err(out_of_range)?;
        let bytes = i64::try_from(length_bytes - now).map_err(out_of_range)?;
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match allocate(&self.image.file, flags, start, bytes) {
            // Not every file system can; the first write then tells, and the undo file is the way back.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.image.file.sync_all()
    }

    fn punch(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        // A device may keep the bytes, or not, or give others: nobody could say what it reads as then.
        if self.image.is_block_device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let out_of_range = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let start = i64::try_from(offset).map_err(out_of_range)?;
        let bytes = i64::try_from(bytes).map_err(out_of_range)?;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(allocate(&self.image.file, flags, start, bytes)?)
    }
}

/// A device that is set read-only is opened for writing without a word: only the first write fails, and by then there is
/// an undo file. Where the system does not say how it is set, that write tells.
fn refuse_read_only_device(path: &Path, device: &File) -> Result<(), Error> {
    let open_error = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let number = device.metadata().map_err(open_error)?.rdev();
    let setting = format!("/sys/dev/block/{}:{}/ro", major(number), minor(number));
    match std::fs::read_to_string(setting) {
        Ok(setting) if setting.trim() == "1" => Err(open_error(io::Error::new(
            io::ErrorKind::ReadOnlyFilesystem,
            "the block device is read-only",
        ))),
        _ => Ok(()),
    }
}

/// Goes on after a signal, like every other call here.
fn allocate(file: &File, flags: FallocateFlags, start: i64, bytes: i64) -> nix::Result<()> {
    loop {
        match fallocate(file, flags, start, bytes) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

impl Storage for ImageFile {
    fn length_bytes(&self) -> io::Result<u64> {
        length_bytes(&self.file, self.is_block_device)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut rest = buffer;
        let mut position = offset;
        while !rest.is_empty() {
            // An offset the system call cannot express is past the end of any file.
            if i64::try_from(position).is_err() {
                rest.fill(0);
                return Ok(());
            }
            match self.file.read_at(rest, position) {
                Ok(0) => {
                    rest.fill(0);
                    return Ok(());
                }
                Ok(count) => {
                    let (_done, more) = rest.split_at_mut(count);
                    rest = more;
                    position = position.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let length_bytes = self.length_bytes()?;
        let Some(start) = i64::try_from(offset).ok().filter(|_| offset < length_bytes) else {
            return Ok(None);
        };
        match lseek(&self.file, start, Whence::SeekData) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            Err(Errno::ENXIO) => Ok(None),
            // Not every file knows its holes.
            Err(_) => Ok(Some(offset)),
        }
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let length_bytes = self.length_bytes()?;
        let stored = self.file.metadata()?.blocks().saturating_mul(512);
        // A device has no blocks of its own, and some file systems keep small files elsewhere, or do not say.
        let is_known = stored > 0 && !self.is_block_device;
        Ok(if is_known {
            stored.min(length_bytes)
        } else {
            length_bytes
        })
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        // An offset the system call cannot express means something else to it.
        if i64::try_from(offset).is_err() || self.always_waits.load(Relaxed) {
            return false;
        }
        let wanted = buffer.len();
        let mut buffers = [IoSliceMut::new(buffer)];
        match preadv2(&self.file, &mut buffers, offset, ReadWriteFlags::NOWAIT) {
            // With less than that, the rest is not at hand, or there is no more: a plain read tells.
            Ok(count) => count == wanted,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            // Older kernels, some file systems and some sandboxes refuse the call. A disk that fails is read plainly.
            Err(_) => {
                self.always_waits.store(true, Relaxed);
                false
            }
        }
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        if let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) {
            // Advice: where it is not taken, the read that follows waits a little longer.
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _taken = posix_fadvise(&self.file, offset, bytes, advice);
        }
    }
}

/// The path with these bytes: any bytes but zero are a name on Unix.
pub fn path_of_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The length of a file or block device whose content is nobody's business here, such as an external data file.
pub fn file_length_bytes(path: &Path) -> Result<u64, Error> {
    let open_error = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    // A regular file need not even be readable for this.
    let metadata = std::fs::metadata(path).map_err(open_error)?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let (device, is_block_device) = open_file(path, OpenOptions::new().read(true), OFlag::empty())?;
    length_bytes(&device, is_block_device).map_err(open_error)
}

/// A block device's length is not in its metadata.
fn length_bytes(mut file: &File, is_block_device: bool) -> io::Result<u64> {
    if is_block_device {
        file.seek(SeekFrom::End(0))
    } else {
        Ok(file.metadata()?.len())
    }
}

/// Opens a regular file or block device; says whether it is a block device.
fn open_file(path: &Path, options: &mut OpenOptions, flags: OFlag) -> Result<(File, bool), Error> {
    let open_error = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    // Looked at before it is opened: opening a FIFO or a tape has effects of its own.
    refuse_other_types(path, &std::fs::metadata(path).map_err(open_error)?)?;
    let file = options
        .custom_flags((OFlag::O_NONBLOCK | flags).bits())
        .open(path)
        .map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    refuse_other_types(path, &metadata)?;
    Ok((file, metadata.file_type().is_block_device()))
}

fn refuse_other_types(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let file_type = metadata.file_type();
    let what = if file_type.is_file() || file_type.is_block_device() {
        return Ok(());
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "character device"
    };
    Err(Error::NotAFile {
        path: path.to_owned(),
        what,
    })
}
