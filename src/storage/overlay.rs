//! Storage with changed sectors on top: the image as it would be.
//!
//! Comes in: storage, and sectors that differ. Goes out: reads that see them, and which reads failed. Never here: a write
//! to the storage below.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::Storage;

const SECTOR: usize = 512;

/// An image with sectors that differ, kept in memory.
#[derive(Debug)]
pub struct Overlay<S> {
    below: S,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    /// Where the last byte laid over it ends.
    end: u64,
    failures: Failures,
}

/// Reads that failed and were not made good by another try.
#[derive(Debug, Default)]
struct Failures {
    /// So that a healthy disk costs nothing: only then there is something in `reads`.
    any: AtomicBool,
    reads: Mutex<Vec<Failure>>,
}

#[derive(Debug)]
struct Failure {
    start: u64,
    end: u64,
    source: io::Error,
}

/// More failed reads than these are only known to be some.
const KEPT_FAILURES: usize = 1000;

impl Failures {
    /// A read came to its end. It stands for a failed one that it is a part of: pieces are read again one by one, and
    /// each of them tells for itself.
    fn note(&self, start: u64, end: u64, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() && !self.any.load(Relaxed) {
            return Ok(());
        }
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if reads.len() < KEPT_FAILURES {
            reads.retain(|read| start < read.start || read.end < end);
            if let Err(error) = &result {
                let source = copy_of(error);
                reads.push(Failure { start, end, source });
            }
        }
        self.any.store(!reads.is_empty(), Relaxed);
        result
    }
}

/// An error with the same words.
fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}

impl<S: Storage> Overlay<S> {
    /// Nothing differs yet.
    pub fn new(below: S) -> Self {
        Self {
            below,
            sectors: BTreeMap::new(),
            end: 0,
            failures: Failures::default(),
        }
    }

    /// A read that failed since the last time somebody asked, and was not made good by another try; and where.
    pub fn take_read_failure(&self) -> Option<(u64, io::Error)> {
        let failures = &self.failures;
        let mut reads = failures
            .reads
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        failures.any.store(false, Relaxed);
        let first = reads.drain(..).next();
        first.map(|read| (read.start, read.source))
    }

    /// Lays bytes over the storage; `offset` is a multiple of 512, and only the last sector may be cut short.
    ///
    /// Bytes past the end of the storage make the image longer.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.extend_to(offset + bytes.len() as u64);
        for (index, part) in (offset / SECTOR as u64..).zip(bytes.chunks(SECTOR)) {
            let mut sector = [0; SECTOR];
            if let Some(target) = sector.get_mut(..part.len()) {
                target.copy_from_slice(part);
            }
            self.sectors.insert(index, sector);
        }
    }

    /// Makes the image reach to `end` at least; what is not written reads as zero.
    pub fn extend_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }
}

impl<S: Storage> Storage for Overlay<S> {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.below.length_bytes()?.max(self.end))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        let read = self.below.read_at(offset, buffer);
        self.failures.note(offset, end, read)?;
        let first = offset / SECTOR as u64;
        let last = end.div_ceil(SECTOR as u64);
        for (&index, sector) in self.sectors.range(first..last) {
            let sector_start = index * SECTOR as u64;
            let from = offset.max(sector_start);
            let to = end.min(sector_start + SECTOR as u64);
            let within = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(0);
            let source = sector.get(within(from, sector_start)..within(to, sector_start));
            let target = buffer.get_mut(within(from, offset)..within(to, offset));
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        self.below.will_read(offset, bytes);
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let laid = self.sectors.range(offset / SECTOR as u64..).next();
        let laid = laid.map(|(&index, _)| (index * SECTOR as u64).max(offset));
        Ok(match (self.below.next_data(offset)?, laid) {
            (Some(below), Some(laid)) => Some(below.min(laid)),
            (below, laid) => below.or(laid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Storage with one bad sector.
    struct Bad(u64);

    impl Storage for Bad {
        fn length_bytes(&self) -> io::Result<u64> {
            Ok(4096)
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            buffer.fill(0);
            let is_bad = (offset..offset + buffer.len() as u64).contains(&self.0);
            if is_bad {
                return Err(io::Error::other("bad sector"));
            }
            Ok(())
        }
    }

    #[test]
    fn a_failed_read_is_told_once_unless_its_pieces_can_be_read() {
        let overlay = Overlay::new(Bad(1024));
        let read = |offset: u64, bytes: usize| overlay.read_at(offset, &mut vec![0; bytes]).is_ok();
        assert!(!read(0, 4096));
        assert!(read(0, 512) && read(2048, 512));
        assert!(overlay.take_read_failure().is_none(), "around it");
        assert!(!read(0, 4096) && read(0, 512) && !read(1024, 512) && read(2048, 512));
        let (offset, error) = overlay.take_read_failure().expect("a failure");
        assert_eq!((offset, error.to_string()), (1024, "bad sector".to_owned()));
        assert!(overlay.take_read_failure().is_none(), "told once");
    }

    #[test]
    fn reads_see_changed_sectors_at_any_offset() {
        let mut overlay = Overlay::new(vec![1_u8; 2000]);
        overlay.write(512, &[2; 512]);
        for (offset, length) in [
            (0_u64, 2000_usize),
            (500, 30),
            (511, 2),
            (512, 512),
            (600, 1),
            (1023, 2),
        ] {
            let mut buffer = vec![9; length];
            overlay
                .read_at(offset, &mut buffer)
                .expect("memory can be read");
            for (position, &byte) in (offset..).zip(&buffer) {
                let wanted = if (512..1024).contains(&position) {
                    2
                } else {
                    1
                };
                assert_eq!(byte, wanted, "byte {position} of a read at {offset}");
            }
        }
    }
}
