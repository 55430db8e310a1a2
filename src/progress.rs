//! How far a check is, and the wish to stop it.
//!
//! Comes in: bytes read, from any thread. Goes out: two numbers to poll, and a flag to obey. Never here: a clock, output.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

/// What a check is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading headers, L1 tables, the snapshot table and bitmaps.
    Survey,
    /// Reading the refcount blocks.
    Refcounts,
    /// Reading the L2 tables and settling references against refcounts.
    Tables,
    /// Something did not add up: reading again to name the owners.
    Owners,
    /// Reading the data itself, for a deep read.
    Data,
}

impl Phase {
    /// One or two words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Survey => "survey",
            Self::Refcounts => "refcounts",
            Self::Tables => "tables",
            Self::Owners => "owners",
            Self::Data => "data",
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Survey,
            1 => Self::Refcounts,
            2 => Self::Tables,
            3 => Self::Owners,
            _ => Self::Data,
        }
    }
}

/// Shared between a check and whoever watches it.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Asks the check to end soon, with what it knows.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether the check was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// What is being done, how many bytes of it are read, and how many there are.
    pub fn now(&self) -> (Phase, u64, u64) {
        (
            Phase::from_number(self.phase.load(Relaxed)),
            self.done_bytes.load(Relaxed),
            self.total_bytes.load(Relaxed),
        )
    }

    pub(crate) fn begin(&self, phase: Phase, total_bytes: u64) {
        self.phase.store(phase as u8, Relaxed);
        self.done_bytes.store(0, Relaxed);
        self.total_bytes.store(total_bytes, Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Relaxed);
    }
}
