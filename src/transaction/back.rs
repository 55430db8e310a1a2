//! The way back: an undo file, and every byte and the length of an image are as they were before the repair.
//!
//! Comes in: the image, and the undo file. Goes out: the image as it was, or an error that says why not. Never here: old
//! bytes over an image that somebody has used since (`used`).
//!
//! An undo goes back stage by stage, the last first, with a sync between each two: so a cut leaves nothing that a cut of
//! the repair would not leave. Which stage the image is in tell its own sectors. Where they tell of none, because a disk
//! did not keep to its syncs or the undo file is of version 1, everything is put back at once, behind the corrupt bit.

use std::io;

use super::used::refuse_used_image;
use super::{Receipt, RepairError, Transaction};
use crate::progress::Progress;
use crate::storage::{StorageMut, UndoSink};
use crate::undo::{UndoFile, UndoRecord};

/// Byte of the header that holds the corrupt bit, and the bit.
const CORRUPT_BYTE: usize = 79;
const CORRUPT_BIT: u8 = 2;

/// What an undo is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UndoOptions {
    /// Put back even though tables cannot be read any more that would tell whether the image was used since.
    pub accept_unverified: bool,
}

/// Puts back what a repair changed. `sink` holds the very bytes `file` was read from.
///
/// It can be cut anywhere and run again.
pub fn undo_repair<S: StorageMut, U: UndoSink>(
    storage: &mut S,
    file: &UndoFile<'_>,
    options: UndoOptions,
    progress: &Progress,
    sink: impl FnOnce() -> io::Result<U>,
) -> Result<Receipt, RepairError> {
    refuse_used_image(storage, file, options, progress)?;
    let stage = file.stage_reached(&*storage);
    let sink = sink().map_err(RepairError::UndoFile)?;
    let journal = file.reopen(sink).map_err(RepairError::UndoFile)?;
    let mut transaction = Transaction {
        storage,
        journal,
        sectors_written: 0,
        stages_done: 0,
        was: Vec::new(),
    };
    let back = match stage {
        Some(stage) => transaction.go_back_from(stage, file, options),
        None => transaction.put_originals(file),
    };
    back.map_err(RepairError::PutBack)?;
    Ok(Receipt {
        sectors_written: transaction.sectors_written,
    })
}

impl<S: StorageMut, U: UndoSink> Transaction<'_, S, U> {
    fn go_back_from(
        &mut self,
        stage: u16,
        file: &UndoFile<'_>,
        options: UndoOptions,
    ) -> io::Result<()> {
        for step in file.steps_back(stage) {
            for (offset, bytes) in step.ranges {
                self.put(offset, bytes, step.length_bytes)?;
            }
            if self.storage.length_bytes()? > step.length_bytes {
                self.storage.truncate(step.length_bytes)?;
            }
            self.storage.sync()?;
        }
        if options.accept_unverified {
            // A sector that cannot be read may be as a later stage left it.
            for record in &file.records {
                self.put(
                    record.offset,
                    record.original,
                    file.header.original_length_bytes,
                )?;
            }
            self.storage.sync()?;
        }
        Ok(())
    }

    fn put_originals(&mut self, file: &UndoFile<'_>) -> io::Result<()> {
        let length_bytes = file.header.original_length_bytes;
        let is_header = |record: &&UndoRecord<'_>| record.offset == 0;
        let (header, body): (Vec<&UndoRecord<'_>>, Vec<&UndoRecord<'_>>) =
            file.records.iter().partition(is_header);
        // While the body is neither as it was nor as it was left, nobody shall open the image for writing.
        for record in &header {
            let mut guarded = record.original.to_vec();
            if record.versions().len() > 1
                && let Some(byte) = guarded.get_mut(CORRUPT_BYTE)
            {
                *byte |= CORRUPT_BIT;
            }
            self.put(record.offset, &guarded, length_bytes)?;
        }
        self.storage.sync()?;
        for record in &body {
            self.put(record.offset, record.original, length_bytes)?;
        }
        self.storage.sync()?;
        self.cut_off(length_bytes)?;
        for record in &header {
            self.put(record.offset, record.original, length_bytes)?;
        }
        self.storage.sync()
    }

    /// Writes what lies before the end the file will have.
    ///
    /// Zeros are not written into a hole: they are there, and the disk may have no room for them. Other bytes are written
    /// even where they are read: after a sync that failed, what is read need not be what is on the disk.
    fn put(&mut self, offset: u64, bytes: &[u8], length_bytes: u64) -> io::Result<()> {
        let in_file = usize::try_from(length_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let part = bytes.get(..bytes.len().min(in_file)).unwrap_or(bytes);
        // What was appended is cut off.
        if part.is_empty() {
            return Ok(());
        }
        if part.iter().all(|&byte| byte == 0) {
            let end = offset.saturating_add(part.len() as u64);
            let next_data = self.storage.next_data(offset);
            let is_hole = next_data.is_ok_and(|next| next.is_none_or(|next| next >= end));
            if is_hole && end <= self.storage.length_bytes()? {
                return Ok(());
            }
        }
        self.write(offset, part)
    }
}
