//! Where bytes come from: one trait, implemented by files, block devices and plain memory.
//!
//! Comes in: offsets. Goes out: bytes. Never here: what the bytes mean. A check is given a type that can only be read
//! from; [`StorageMut`] is named by the transaction alone.

mod file;
mod lock;
mod overlay;
mod undo_file;

use std::io;

pub use file::{
    FileIdentity, FileStamp, ImageFile, RepairFile, Sharing, file_length_bytes, path_of_bytes,
};
pub use overlay::Overlay;
pub use undo_file::{UndoSink, UndoSinkFile};

/// Something to read an image from.
pub trait Storage: Sync {
    /// The length in bytes, as it is now.
    fn length_bytes(&self) -> io::Result<u64>;

    /// Fills `buffer` from byte `offset` on; bytes past the end read as zero.
    ///
    /// Zeros past the end are what every reader of the format sees: a file ends where its last write ended.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The first byte from `offset` on that may be other than zero, or `None` where only zeros follow.
    ///
    /// A hint from the file system about holes; where there is none, everything may be.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.length_bytes()?).then_some(offset))
    }

    /// How many bytes are really stored: what lies in holes is not. Where nobody knows, all of them.
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.length_bytes()
    }

    /// Fills `buffer` as [`read_at`](Self::read_at) does, if that needs no waiting for a disk; says whether it did.
    ///
    /// A no says nothing about the image: `buffer` holds anything then, and the bytes may be far away, past the end, or
    /// impossible to read. Whoever wants to know reads them. Storage that cannot tell says no. A system may take the
    /// question for a wish to read on from there, so what is far away is asked about here and there, and not in a row.
    fn read_at_hand(&self, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }

    /// Says that a range is read soon, so that it may be on its way. Nothing depends on it.
    fn will_read(&self, _offset: u64, _bytes: u64) {}
}

/// Something an image can be repaired on. Reading shares it, writing does not: nobody reads while something is written.
pub trait StorageMut: Storage {
    /// Writes all of `bytes` from byte `offset` on; a file grows where they end past its end.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a file shorter again. A device has the length it has.
    fn truncate(&mut self, length_bytes: u64) -> io::Result<()>;

    /// Sets space aside on the disk, so that writes up to `length_bytes` will not run out of it. The length stays.
    fn reserve(&mut self, length_bytes: u64) -> io::Result<()>;

    /// Returns when everything written will survive a power cut.
    fn sync(&mut self) -> io::Result<()>;

    /// Gives a range back to the file system: it reads as zero then, and takes no space. What was in it is gone.
    fn punch(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("no hole of {bytes} bytes can be made at byte {offset}"),
        ))
    }
}

impl Storage for [u8] {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let available = self.get(start..).unwrap_or(&[]);
        let present = available.len().min(buffer.len());
        let (head, tail) = buffer.split_at_mut(present);
        head.copy_from_slice(available.get(..present).unwrap_or(&[]));
        tail.fill(0);
        Ok(())
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_at(offset, buffer).is_ok()
    }
}

impl Storage for Vec<u8> {
    fn length_bytes(&self) -> io::Result<u64> {
        self.as_slice().length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buffer)
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.as_slice().read_at_hand(offset, buffer)
    }
}

impl<S: Storage + ?Sized> Storage for &S {
    fn length_bytes(&self) -> io::Result<u64> {
        (**self).length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        (**self).next_data(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        (**self).allocated_bytes()
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        (**self).read_at_hand(offset, buffer)
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        (**self).will_read(offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::Storage;

    #[test]
    fn memory_reads_zero_past_its_end() {
        let bytes = vec![1_u8, 2, 3];
        let mut buffer = [9_u8; 4];
        bytes.read_at(1, &mut buffer).expect("memory can be read");
        assert_eq!(buffer, [2, 3, 0, 0]);
        bytes
            .read_at(u64::MAX, &mut buffer)
            .expect("memory can be read");
        assert_eq!(buffer, [0; 4]);
    }
}
