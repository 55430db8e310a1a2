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
    /// Bytes that differ, whole sectors of them, by their offset. No two of them overlap.
    laid: BTreeMap<u64, Vec<u8>>,
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
            laid: BTreeMap::new(),
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
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len().next_multiple_of(SECTOR);
        let known = self.laid.range_mut(..=offset).next_back();
        let known = known.and_then(|(&start, laid)| {
            let start = usize::try_from(offset - start).ok()?;
            laid.get_mut(start..start.checked_add(length)?)
        });
        if let Some(known) = known {
            let (head, tail) = known.split_at_mut(bytes.len());
            head.copy_from_slice(bytes);
            tail.fill(0);
            return;
        }
        self.clear(offset, offset + length as u64);
        let mut laid = Vec::with_capacity(length);
        laid.extend_from_slice(bytes);
        laid.resize(length, 0);
        self.laid.insert(offset, laid);
    }

    /// Takes away what lies between two multiples of 512.
    fn clear(&mut self, start: u64, end: u64) {
        let before = self.laid.range_mut(..start).next_back();
        let behind = before.and_then(|(&offset, bytes)| cut(offset, bytes, start));
        self.laid.extend(behind.map(|bytes| (start, bytes)));
        while let Some((&offset, _)) = self.laid.range(start..end).next() {
            let behind = self.laid.remove(&offset);
            let behind = behind.and_then(|mut bytes| cut(offset, &mut bytes, end));
            self.laid.extend(behind.map(|bytes| (end, bytes)));
        }
    }

    /// What is laid over the bytes from `start` to `end`, in order, with its offset.
    fn laid_over(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let before = self.laid.range(..start).next_back();
        let before = before.filter(|(offset, bytes)| *offset + bytes.len() as u64 > start);
        let laid = before
            .into_iter()
            .chain(self.laid.range(start..end.max(start)));
        laid.map(|(&offset, bytes)| (offset, bytes.as_slice()))
    }

    /// Puts what is laid over the bytes from `offset` to `end` into what was read of them below.
    fn lay_over(&self, offset: u64, end: u64, buffer: &mut [u8]) {
        for (start, bytes) in self.laid_over(offset, end) {
            let from = offset.max(start);
            let to = end.min(start + bytes.len() as u64);
            let within = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(0);
            let source = bytes.get(within(from, start)..within(to, start));
            let target = buffer.get_mut(within(from, offset)..within(to, offset));
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
        }
    }

    /// Makes the image reach to `end` at least; what is not written reads as zero.
    pub fn extend_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }
}

/// Cuts bytes that begin at `offset` off at `end`, and returns those from there on, if there are any.
fn cut(offset: u64, bytes: &mut Vec<u8>, end: u64) -> Option<Vec<u8>> {
    let kept = usize::try_from(end - offset).unwrap_or(usize::MAX);
    (kept < bytes.len()).then(|| bytes.split_off(kept))
}

impl<S: Storage> Storage for Overlay<S> {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.below.length_bytes()?.max(self.end))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        let read = self.below.read_at(offset, buffer);
        self.failures.note(offset, end, read)?;
        self.lay_over(offset, end, buffer);
        Ok(())
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let end = offset.saturating_add(buffer.len() as u64);
        let is_read = self.below.read_at_hand(offset, buffer)
            // It makes good what failed before, like any other try.
            && self.failures.note(offset, end, Ok(())).is_ok();
        if is_read {
            self.lay_over(offset, end, buffer);
        }
        is_read
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        self.below.will_read(offset, bytes);
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let laid = self.laid_over(offset, u64::MAX).next();
        let laid = laid.map(|(start, _)| start.max(offset));
        Ok(match (self.below.next_data(offset)?, laid) {
            (Some(below), Some(laid)) => Some(below.min(laid)),
            (below, laid) => below.or(laid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

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
    #[expect(clippy::cast_possible_truncation, reason = "all numbers are small")]
    fn what_was_laid_last_is_seen_however_it_lies_over_the_rest() {
        for seed in 0..300_u64 {
            let mut numbers = Rng::with_seed(seed);
            let mut below = |limit: u64| numbers.u64(..limit);
            let mut overlay = Overlay::new(vec![0_u8; 3000]);
            let mut expected = vec![0_u8; 16 * SECTOR];
            for number in 1..=8 {
                let start = below(12) * SECTOR as u64;
                let bytes = vec![number; 1 + below(4 * SECTOR as u64) as usize];
                overlay.write(start, &bytes);
                let start = start as usize;
                let sectors = start..start + bytes.len().next_multiple_of(SECTOR);
                expected[sectors].fill(0);
                expected[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            for _ in 0..20 {
                let (offset, length) = (below(15 * SECTOR as u64), below(SECTOR as u64 + 1));
                let mut seen = vec![9; length as usize];
                overlay
                    .read_at(offset, &mut seen)
                    .expect("memory can be read");
                let offset = offset as usize;
                assert_eq!(seen, expected[offset..offset + seen.len()], "seed {seed}");
            }
            let ends: Vec<u64> = overlay
                .laid
                .iter()
                .map(|(at, bytes)| at + bytes.len() as u64)
                .collect();
            let starts = overlay.laid.keys().skip(1);
            assert!(
                starts.zip(&ends).all(|(start, end)| start >= end),
                "seed {seed}"
            );
        }
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
