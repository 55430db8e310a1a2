//! Why a repair or an undo did not do what it was asked to.
//!
//! Comes in: what the system said, and when. Goes out: words that say what state the image is in now, and what follows
//! for the undo file. Never here: doing anything about it.

use std::io;

use crate::error::Error;

/// Why a repair or an undo did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The image could not be opened or read; it was not written to.
    #[error("{0}; the image was not changed")]
    Image(Error),
    /// The undo file could not be written; the image was not written to.
    #[error("the undo file cannot be written: {0}; the image was not changed")]
    UndoFile(io::Error),
    /// The disk has no room for what the repair adds; the image was not written to.
    #[error(
        "there is no room for what the repair adds to the image: {0}; the image was not changed"
    )]
    NoSpace(io::Error),
    /// What the plan expects is not there; what was written was put back.
    #[error(
        "the image changed at byte {offset} since the plan was made; what was written so far was put back"
    )]
    Changed {
        /// Where.
        offset: u64,
    },
    /// A write or sync of a repair failed.
    #[error("writing to the image failed: {0}; `qfsck undo` puts it back")]
    Write(io::Error),
    /// A repair that had begun could not read what it was to go on with.
    #[error("reading the image failed in the middle of the repair: {0}; `qfsck undo` puts it back")]
    Read(io::Error),
    /// The image could not be opened again after it was written to.
    #[error("the repaired image cannot be read again: {0}; `qfsck undo` puts it back as it was")]
    Reread(Error),
    /// Everything was written, but not all of it can be read again.
    #[error(
        "the repair was written, but the image cannot be read whole to prove it: {what}; copy it to a healthy disk \
         (ddrescue) and check the copy, or let `qfsck undo` put it back"
    )]
    Unread {
        /// Where, and what the system said.
        what: String,
    },
    /// Reading, writing or a sync failed while the image was put back, by an undo or after a repair that went wrong.
    #[error(
        "putting the image back failed: {0}; it is not as it was, run `qfsck undo` when the disk is well"
    )]
    PutBack(io::Error),
    /// The repair is done, but the undo file does not say so.
    #[error(
        "the image is repaired, but its undo file cannot be marked as finished: {0}; no other repair is made before \
         `qfsck undo`"
    )]
    Seal(io::Error),
    /// The repaired image is not what the rehearsal promised.
    #[error("the image is not what the rehearsal promised; what was written was put back")]
    NotAsRehearsed,
    /// The undo file is of a repair that never began.
    #[error("this undo file belongs to a repair that never began; the image was not changed by it")]
    NothingToUndo,
    /// The image was used since the repair.
    #[error(
        "the image was used since the repair ({what}), so putting old bytes back would damage it"
    )]
    UsedSince {
        /// How one can tell.
        what: String,
    },
    /// Some of the image cannot be read, so nobody can tell whether it was used since the repair.
    #[error(
        "some of the image cannot be read any more ({what}), so it cannot be told whether the image was used since the \
         repair; the image was not changed. Copy it to a healthy disk (ddrescue) and undo the copy there, with --image; \
         if you know that nothing has written to the image since the repair, --accept-unverified goes on without that \
         proof"
    )]
    Unverified {
        /// Where, and what the system said.
        what: String,
    },
}

impl RepairError {
    /// Whether the repair ended before its first write.
    pub fn is_unchanged(&self) -> bool {
        matches!(self, Self::Image(_) | Self::UndoFile(_) | Self::NoSpace(_))
    }

    /// Whether what the repair had written was put back, durably: every sector but those of guest data that was copied
    /// over clusters that nothing uses ([`Plan::overwrites_unused`](crate::Plan::overwrites_unused)).
    pub fn is_put_back(&self) -> bool {
        matches!(self, Self::Changed { .. } | Self::NotAsRehearsed)
    }
}
