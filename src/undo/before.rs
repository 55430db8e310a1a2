//! The image as it will be once a repair is undone, to be read.
//!
//! Comes in: an undo file and the image as it is. Goes out: storage with the original bytes in their places, and the
//! original length. Never here: a write.

use std::io;

use super::{UndoFile, UndoRecord};
use crate::storage::Storage;

/// An image with what an undo file keeps laid over it.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a, S> {
    now: S,
    records: &'a [UndoRecord<'a>],
    length_bytes: u64,
}

impl<'a> UndoFile<'a> {
    /// What `now` will be when this file is put back. Whatever the repair came to, it is the same.
    pub fn before<S: Storage>(&'a self, now: S) -> Before<'a, S> {
        Before {
            now,
            records: &self.records,
            length_bytes: self.header.original_length_bytes,
        }
    }
}

impl UndoRecord<'_> {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.original.len() as u64)
    }
}

impl<'a, S> Before<'a, S> {
    /// The records that end behind `offset`: they are in the order of the image and do not overlap.
    fn from(&self, offset: u64) -> impl Iterator<Item = &'a UndoRecord<'a>> {
        let first = self
            .records
            .partition_point(|record| record.end() <= offset);
        self.records.iter().skip(first)
    }
}

impl<S: Storage> Storage for Before<'_, S> {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.length_bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        let within = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(0);
        let in_file = within(end.min(self.length_bytes).max(offset), offset);
        let (present, absent) = buffer.split_at_mut(in_file);
        absent.fill(0);
        self.now.read_at(offset, present)?;
        for record in self.from(offset).take_while(|record| record.offset < end) {
            let from = offset.max(record.offset);
            let to = end.min(record.end()).min(self.length_bytes).max(from);
            let kept = record
                .original
                .get(within(from, record.offset)..within(to, record.offset));
            let place = present.get_mut(within(from, offset)..within(to, offset));
            if let (Some(place), Some(kept)) = (place, kept) {
                place.copy_from_slice(kept);
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let kept = self.from(offset).next();
        let kept = kept.map(|record| record.offset.max(offset));
        let now = self.now.next_data(offset)?;
        let first = kept.into_iter().chain(now).min();
        Ok(first.filter(|&first| first < self.length_bytes))
    }
}
