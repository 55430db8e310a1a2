//! An image and an undo file in memory, no larger than a small disk.
//!
//! Comes in: reads and writes. Goes out: what is stored. Never here: a file that grows as far as somebody asks.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use qfsck::{Storage, StorageMut, UndoSink};

/// What a disk has room for beyond the image.
const ROOM_BYTES: usize = 24 << 20;

/// An image.
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    limit: usize,
    /// How often it was written to.
    pub(super) writes: usize,
}

impl Disk {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            limit: bytes.len() + ROOM_BYTES,
            writes: 0,
        }
    }
}

impl Storage for Disk {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buffer)
    }
}

impl StorageMut for Disk {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writes += 1;
        write(&mut self.bytes, self.limit, offset, bytes)
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        self.writes += 1;
        self.bytes
            .truncate(usize::try_from(length_bytes).unwrap_or(usize::MAX));
        Ok(())
    }

    fn reserve(&mut self, length_bytes: u64) -> io::Result<()> {
        if length_bytes > self.limit as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An undo file, shared with whoever looks at it afterwards.
#[derive(Clone, Default)]
pub(super) struct Sink(pub(super) Rc<RefCell<Vec<u8>>>);

impl Sink {
    pub(super) fn holding(bytes: &[u8]) -> Self {
        Self(Rc::new(RefCell::new(bytes.to_vec())))
    }
}

impl UndoSink for Sink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        write(&mut self.0.borrow_mut(), 2 * ROOM_BYTES, offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes into a file, which grows if it has to and may.
fn write(file: &mut Vec<u8>, limit: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(bytes.len());
    if end > limit {
        return Err(io::ErrorKind::StorageFull.into());
    }
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(bytes);
    Ok(())
}
