//! What an audit may use: reads and bytes a second, and memory, of all jobs together.
//!
//! Comes in: the limits, and every read. Goes out: a pause where one is due. Never here: a read left out.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qfsck::{ImageFile, Progress, Storage};

use super::args::LimitArgs;
use crate::memory;

/// A pause is taken in such pieces, so that a wish to stop is heard.
const PIECE: Duration = Duration::from_millis(50);
/// What was not used is kept for so long.
const SLACK: Duration = Duration::from_millis(100);

/// The limits, and how much of them is used.
#[derive(Debug)]
pub(crate) struct Budget {
    reads: Option<Pace>,
    bytes: Option<Pace>,
    pub(crate) memory: Memory,
}

impl Budget {
    pub(crate) fn new(limits: &LimitArgs) -> Self {
        Self {
            reads: limits.max_iops.map(|rate| Pace::new(f64::from(rate))),
            bytes: limits
                .max_mbps
                .map(|rate| Pace::new(f64::from(rate) * 1_000_000.0)),
            memory: Memory {
                ceiling: limits.max_memory.or_else(memory::quarter),
                used: Mutex::new(0),
                freed: Condvar::new(),
            },
        }
    }

    /// Whether reads are limited at all.
    fn is_limited(&self) -> bool {
        self.reads.is_some() || self.bytes.is_some()
    }

    /// Waits until a read of so many bytes is due.
    fn wait_for(&self, bytes: u64, progress: &Progress) {
        let now = Instant::now();
        let due = [(&self.reads, 1), (&self.bytes, bytes)]
            .into_iter()
            .filter_map(|(pace, amount)| pace.as_ref().map(|pace| pace.book(now, amount)))
            .max();
        let Some(due) = due else { return };
        while !progress.is_stopped() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(PIECE));
        }
    }
}

/// So much a second.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    free_at: Mutex<Instant>,
}

impl Pace {
    fn new(per_second: f64) -> Self {
        Self {
            per_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes a turn behind everybody who came before; says when it is.
    #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
    fn book(&self, now: Instant, amount: u64) -> Instant {
        let takes = Duration::from_secs_f64((amount as f64 / self.per_second).min(86_400.0));
        let mut free_at = lock(&self.free_at);
        let turn = now
            .checked_sub(SLACK)
            .map_or(*free_at, |earliest| earliest.max(*free_at));
        *free_at = turn + takes;
        turn
    }
}

/// Memory of all images that are being checked.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) ceiling: Option<u64>,
    used: Mutex<u64>,
    freed: Condvar,
}

impl Memory {
    /// Waits until an image that may need so much can be begun. One that may need more than all there is, is begun alone.
    pub(crate) fn take(&self, bytes: u64, progress: &Progress) -> MemoryShare<'_> {
        let bytes = bytes.min(self.ceiling.unwrap_or(u64::MAX));
        let mut used = lock(&self.used);
        if let Some(ceiling) = self.ceiling {
            while *used > 0 && used.saturating_add(bytes) > ceiling && !progress.is_stopped() {
                used = self
                    .freed
                    .wait_timeout(used, PIECE)
                    .map_or_else(|poisoned| poisoned.into_inner().0, |(used, _)| used);
            }
        }
        *used = used.saturating_add(bytes);
        MemoryShare {
            memory: self,
            bytes,
        }
    }
}

/// Memory an image may use, until it is done.
pub(crate) struct MemoryShare<'a> {
    memory: &'a Memory,
    pub(crate) bytes: u64,
}

impl Drop for MemoryShare<'_> {
    fn drop(&mut self) {
        let mut used = lock(&self.memory.used);
        *used = used.saturating_sub(self.bytes);
        drop(used);
        self.memory.freed.notify_all();
    }
}

/// A lock that a thread which panicked held is still good: what is in it is a number.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file whose reads are counted, and wait for their turn.
pub(crate) struct Metered {
    pub(crate) file: ImageFile,
    pub(crate) budget: Arc<Budget>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) reads: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Metered {
    fn count(&self, bytes: u64) {
        let _before = self.reads.fetch_add(1, Relaxed);
        let _before = self.bytes.fetch_add(bytes, Relaxed);
    }
}

impl Storage for Metered {
    fn length_bytes(&self) -> io::Result<u64> {
        self.file.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = buffer.len() as u64;
        self.budget.wait_for(bytes, &self.progress);
        self.count(bytes);
        self.file.read_at(offset, buffer)
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        // Under a limit every read waits for its turn, and then it may wait for the disk, too.
        let is_read = !self.budget.is_limited() && self.file.read_at_hand(offset, buffer);
        if is_read {
            self.count(buffer.len() as u64);
        }
        is_read
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        // What comes ahead of its turn would be more than the limit allows.
        if !self.budget.is_limited() {
            self.file.will_read(offset, bytes);
        }
    }
}

/// The program's resident memory, as the kernel tells it.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}
