//! The transaction: the one room that writes to an image.
//!
//! Comes in: a plan, and an undo file nobody has written to yet. Goes out: an image repaired, or as it was, or with an
//! undo file beside it that says how to go back. Never here: deciding what to change.
//!
//! 1. Every sector that will change is kept in the undo file, which is synced, name and all, before the first write.
//! 2. Stage by stage: what must be there is there, then it is written, then synced.
//! 3. The image is read again, whole, as a stranger would; it must be what the rehearsal promised.
//! 4. Only then the dirty and corrupt bits are cleared, and the undo file is marked as finished.
//!
//! Any error stops at once: nothing is tried twice, because a failed sync does not say what was lost. After a failed
//! write or sync the undo file is the way back. Where the image is not what the plan expects, or not what the rehearsal
//! promised, the sectors written so far are put back; then the undo file is of use to nobody, and whoever made it may
//! delete it ([`RepairError::is_put_back`]).

mod back;
mod error;
mod originals;
mod used;

use std::collections::BTreeSet;
use std::io;
use std::iter::repeat;
use std::mem;
use std::path::Path;

use crate::check::{Check, Options, check};
use crate::coverage::{Coverage, GapKind};
use crate::error::Error;
use crate::finding::Code;
use crate::image::Image;
use crate::plan::{CopyEdit, Plan, Stage, StageKind};
use crate::progress::Progress;
use crate::storage::{Storage, StorageMut, UndoSink};
use crate::undo::{Journal, SECTOR_BYTES};

pub use back::{UndoOptions, undo_repair};
pub use error::RepairError;
use originals::keep_originals;
use used::left_digest;

/// Which file an image is, for the undo file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Number of the device.
    pub device: u64,
    /// Number of the inode.
    pub inode: u64,
    /// Whether the image is a block device.
    pub is_block_device: bool,
    /// The path as it was given.
    pub path: Vec<u8>,
}

/// Guest data is copied in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// What a repair or an undo did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Sectors written.
    pub sectors_written: u64,
}

/// Keeps what a plan will change in the undo file, and applies it. An empty plan needs neither.
pub fn apply<S: StorageMut, U: UndoSink>(
    storage: &mut S,
    identity: &Identity,
    plan: &Plan,
    options: Options,
    progress: &Progress,
    sink: impl FnOnce() -> io::Result<U>,
) -> Result<Receipt, RepairError> {
    if plan.is_empty() {
        return Ok(Receipt { sectors_written: 0 });
    }
    let length_bytes = length(storage)?;
    if length_bytes != plan.length_bytes {
        return Err(RepairError::Changed {
            offset: length_bytes.min(plan.length_bytes),
        });
    }
    storage
        .reserve(plan.length_bytes_after)
        .map_err(RepairError::NoSpace)?;
    let sink = sink().map_err(RepairError::UndoFile)?;
    let journal = keep_originals(storage, identity, plan, progress, sink)?;
    let mut transaction = Transaction {
        storage,
        journal,
        sectors_written: 0,
        stages_done: 0,
        was: Vec::new(),
    };
    transaction.apply(plan, options, progress)?;
    let sectors_written = transaction.sectors_written;
    let image = reopened(&*transaction.storage)?;
    let digest =
        left_digest(&image, length_bytes, progress).map_err(|error| RepairError::Unread {
            what: error.to_string(),
        })?;
    let left_length_bytes = image.file_bytes();
    transaction
        .journal
        .finish(left_length_bytes, digest)
        .map_err(RepairError::Seal)?;
    Ok(Receipt { sectors_written })
}

/// Gives the clusters that a repair has freed back to the file system, and says how many bytes they were.
///
/// What is in them is nobody's: they were leaked before the repair, it wrote nothing there, and its undo, which still
/// works, finds them leaked again, with zeros. The receipt is that of the repair: before its end nothing is given back.
pub fn punch_freed<S: StorageMut>(
    storage: &mut S,
    plan: &Plan,
    _repaired: Receipt,
) -> io::Result<u64> {
    let cluster_bits = plan.before.header.cluster_bits;
    for range in &plan.freed {
        storage.punch(range.start.0 << cluster_bits, range.count << cluster_bits)?;
    }
    storage.sync()?;
    Ok(plan.freed_bytes())
}

/// The image as it is, after something was written to it.
fn reopened<S: Storage>(storage: &S) -> Result<Image<&S>, RepairError> {
    Image::open(storage, Path::new("image")).map_err(RepairError::Reread)
}

fn length(storage: &impl Storage) -> Result<u64, RepairError> {
    storage.length_bytes().map_err(read_failed)
}

/// Nothing was written yet.
fn read_failed(source: io::Error) -> RepairError {
    RepairError::Image(Error::Read {
        path: Path::new("image").to_owned(),
        offset: 0,
        source,
    })
}

/// An image being written to. Whoever writes holds the journal.
struct Transaction<'a, S, U> {
    storage: &'a mut S,
    journal: Journal<U>,
    sectors_written: u64,
    stages_done: usize,
    /// What was there before the last write, for the next to use the same memory.
    was: Vec<u8>,
}

impl<S: StorageMut, U: UndoSink> Transaction<'_, S, U> {
    fn apply(
        &mut self,
        plan: &Plan,
        options: Options,
        progress: &Progress,
    ) -> Result<(), RepairError> {
        let mut is_verified = false;
        for stage in &plan.stages {
            if stage.kind == StageKind::ClearState {
                self.expect_as_rehearsed(plan, options, progress)?;
                is_verified = true;
            }
            self.apply_stage(stage, plan)?;
            self.stages_done += 1;
        }
        if !is_verified {
            self.expect_as_rehearsed(plan, options, progress)?;
        }
        Ok(())
    }

    fn apply_stage(&mut self, stage: &Stage, plan: &Plan) -> Result<(), RepairError> {
        let mut now = Vec::new();
        for edit in &stage.edits {
            now.resize(edit.after.len(), 0);
            self.storage
                .read_at(edit.offset, &mut now)
                .map_err(RepairError::Read)?;
            // Where the file ends, zeros are as good as nothing.
            let behind = now.strip_prefix(edit.before.as_slice());
            if behind.is_none_or(|behind| behind.iter().any(|&byte| byte != 0)) {
                self.put_back(plan).map_err(RepairError::PutBack)?;
                return Err(RepairError::Changed {
                    offset: edit.offset,
                });
            }
        }
        for edit in &stage.edits {
            self.write(edit.offset, &edit.after)
                .map_err(RepairError::Write)?;
        }
        for copy in &stage.copies {
            self.copy(*copy)?;
        }
        self.storage.sync().map_err(RepairError::Write)
    }

    fn copy(&mut self, copy: CopyEdit) -> Result<(), RepairError> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut done = 0;
        while done < copy.bytes {
            let left = usize::try_from(copy.bytes - done).unwrap_or(PIECE_BYTES);
            let Some(part) = piece.get_mut(..left.min(PIECE_BYTES)) else {
                break;
            };
            self.storage
                .read_at(copy.from + done, part)
                .map_err(RepairError::Read)?;
            self.write(copy.to + done, part)
                .map_err(RepairError::Write)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.sectors_written += bytes.len().div_ceil(SECTOR_BYTES) as u64;
        let mut was = mem::take(&mut self.was);
        was.resize(bytes.len(), 0);
        // A sector that cannot be read may still be written to.
        let is_known = self.storage.read_at(offset, &mut was).is_ok();
        let written = self.storage.write_at(offset, bytes);
        if written.is_err() && is_known {
            // The error counts, whatever comes of this.
            let _mended = self.mend_torn_sectors(offset, &was, bytes);
        }
        self.was = was;
        written
    }

    /// A write that failed may have ended inside a sector, at a limit of file sizes for one: no undo knows such a sector.
    /// It is made what it was.
    fn mend_torn_sectors(&mut self, offset: u64, was: &[u8], wanted: &[u8]) -> io::Result<()> {
        let length_bytes = self.storage.length_bytes()?;
        let mut now = vec![0; was.len()];
        self.storage.read_at(offset, &mut now)?;
        let sectors = now
            .chunks(SECTOR_BYTES)
            .zip(was.chunks(SECTOR_BYTES))
            .zip(wanted.chunks(SECTOR_BYTES));
        for (offset, ((now, was), wanted)) in (offset..).step_by(SECTOR_BYTES).zip(sectors) {
            if now != was && now != wanted {
                // The file ends where the write did: it shall not grow, for it may not.
                let left =
                    usize::try_from(length_bytes.saturating_sub(offset)).unwrap_or(SECTOR_BYTES);
                let there = was.get(..left).unwrap_or(was);
                self.storage.write_at(offset, there)?;
            }
        }
        Ok(())
    }

    /// Takes back what was written so far: the stages backwards, every sector that is as its stage left it.
    ///
    /// Sectors that are otherwise are not ours. What was copied over clusters that nothing uses stays there; the undo file
    /// has it.
    fn put_back(&mut self, plan: &Plan) -> io::Result<()> {
        for number in (0..self.stages_done).rev() {
            let (earlier, rest) = plan.stages.split_at(number.min(plan.stages.len()));
            let Some(stage) = rest.first() else {
                continue;
            };
            for edit in &stage.edits {
                let mut now = vec![0; edit.after.len()];
                self.storage.read_at(edit.offset, &mut now)?;
                let sectors = (edit.offset..).step_by(SECTOR_BYTES).zip(
                    edit.before.chunks(SECTOR_BYTES).zip(
                        edit.after
                            .chunks(SECTOR_BYTES)
                            .zip(now.chunks(SECTOR_BYTES)),
                    ),
                );
                for (offset, (before, (after, now))) in sectors {
                    if now == after && before != after {
                        self.write(offset, before)?;
                    }
                }
            }
            self.storage.sync()?;
            // What a stage before put right may have pointed to where this one appended.
            let ends = earlier.iter().map(Stage::end);
            self.cut_off(ends.fold(plan.length_bytes, u64::max))?;
        }
        self.cut_off(plan.length_bytes)
    }

    /// Whether every sector is as it was before the first stage that changed it.
    fn expect_originals(&self, plan: &Plan) -> io::Result<()> {
        let mut seen = BTreeSet::new();
        for edit in plan.stages.iter().flat_map(|stage| &stage.edits) {
            let mut now = vec![0; edit.before.len()];
            self.storage.read_at(edit.offset, &mut now)?;
            // Of what was appended there is nothing before, and what a later stage found there is cut off.
            let count = edit.after.len().div_ceil(SECTOR_BYTES);
            let blank: &[u8] = &[];
            let mut before = edit.before.chunks(SECTOR_BYTES).chain(repeat(blank));
            let mut now = now.chunks(SECTOR_BYTES).chain(repeat(blank));
            for offset in (edit.offset..).step_by(SECTOR_BYTES).take(count) {
                let is_equal = before.next() == now.next();
                if seen.insert(offset) && !is_equal {
                    return Err(io::Error::other(format!("byte {offset} is not as it was")));
                }
            }
        }
        Ok(())
    }

    /// Takes back what was appended. Nothing may refer to it any more, on disk.
    fn cut_off(&mut self, length_bytes: u64) -> io::Result<()> {
        if self.storage.length_bytes()? > length_bytes {
            self.storage.truncate(length_bytes)?;
            self.storage.sync()?;
        }
        Ok(())
    }

    /// Reads the whole image again; all but the bits that are cleared last must be as the rehearsal found them.
    fn expect_as_rehearsed(
        &mut self,
        plan: &Plan,
        options: Options,
        progress: &Progress,
    ) -> Result<(), RepairError> {
        let image = reopened(&*self.storage)?;
        let now = check(&image, options, progress);
        // A disk that cannot read says nothing about what was written.
        if let Some(what) = unread(&now.coverage) {
            return Err(RepairError::Unread { what });
        }
        if totals(&now) == totals(&plan.after) && now.coverage == plan.after.coverage {
            return Ok(());
        }
        drop(image);
        self.put_back(plan)
            .and_then(|()| self.expect_originals(plan))
            .map_err(RepairError::PutBack)?;
        Err(RepairError::NotAsRehearsed)
    }
}

/// What the system could not read, if anything.
fn unread(coverage: &Coverage) -> Option<String> {
    let mut gaps = coverage.gaps().iter();
    let gap = gaps.find(|gap| gap.kind == GapKind::Unreadable);
    let is_whole = coverage.unreadable_count() == 0;
    (!is_whole).then(|| match gap {
        Some(gap) => format!("{}: {}", gap.place, gap.detail),
        None => "some of its tables".to_owned(),
    })
}

/// How often each code was found, but for the bits a repair sets and clears itself.
fn totals(check: &Check) -> Vec<(Code, u64)> {
    check
        .findings
        .totals()
        .filter(|(code, _)| !matches!(code, Code::CorruptBitSet | Code::DirtyBitSet))
        .map(|(code, total)| (code, total.count))
        .collect()
}
