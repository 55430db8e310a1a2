//! The crew: so many threads that look at images, and one that watches them.
//!
//! Comes in: tasks. Goes out: their records, as they are done. Never here: an audit that waits for ever. An image is given
//! up when its time is over, and a thread that a disk does not answer is left to itself.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qfsck::Progress;
use qfsck::report::{AuditRecord, AuditRun, ImageStatus};
use rayon::ThreadPoolBuilder;

use super::args::LimitArgs;
use super::budget::{lock, resident_bytes};
use super::look::{Looked, Minder, StopReason, Surroundings, Task, given_up, keep, look};
use super::store::Store;
use crate::args::values::ProgressMode;
use crate::isolation;
use crate::progress::Watch;
use crate::say;

/// How often the watching thread looks.
const TICK: Duration = Duration::from_millis(50);
/// How often an event is written.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a check that was asked to stop may take to do so before its thread is left to itself.
const GRACE: Duration = Duration::from_secs(10);
/// How long the end of the audit waits for threads.
const LAST_GRACE: Duration = Duration::from_secs(1);
/// Records that cannot be written, of which each is said.
const SAID_UNWRITTEN: usize = 20;
/// Memory that is given back takes a while to be seen.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);
/// Images of which less was read are not what the memory is used for.
const LEAST_SUSPECT: Duration = Duration::from_millis(500);

/// Who is handed each record, and whether it could be kept, if it is to be.
type Take<'a> = &'a mut dyn FnMut(&AuditRecord, bool);

/// What became of all tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Muster {
    /// Images that got a record.
    pub(crate) recorded: usize,
    /// Images that had one.
    pub(crate) already: usize,
    /// Images that were not reached.
    pub(crate) left: usize,
    /// Records that could not be kept.
    pub(crate) unwritten: usize,
    /// Images a defect of qfsck ended the check of.
    pub(crate) defects: usize,
}

/// What a thread is at.
#[derive(Default)]
struct Seat {
    at: Mutex<Option<Job>>,
}

impl Minder for Seat {
    fn why(&self) -> Option<StopReason> {
        let at = lock(&self.at);
        Some(at.as_ref()?.stopped.as_ref()?.1.clone())
    }

    fn waits(&self) {
        if let Some(job) = lock(&self.at).as_mut() {
            job.is_waiting = true;
        }
    }

    fn begins(&self) {
        if let Some(job) = lock(&self.at).as_mut() {
            job.is_waiting = false;
            job.started = Instant::now();
        }
    }
}

struct Job {
    task: usize,
    started: Instant,
    /// For memory: that time is not the image's.
    is_waiting: bool,
    progress: Arc<Progress>,
    stopped: Option<(Instant, StopReason)>,
}

struct Shared {
    tasks: Vec<Task>,
    around: Surroundings,
    next: AtomicUsize,
    is_over: AtomicBool,
    threads_each: usize,
}

/// Looks at all images. Each record is handed to `take` as it is there; what takes too long, or comes too late, is not.
pub(crate) fn work(
    tasks: Vec<Task>,
    around: Surroundings,
    limits: &LimitArgs,
    started: Instant,
    take: Take<'_>,
) -> Muster {
    Watch::heed_signals();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = limits.jobs.map_or(processors, usize::from);
    let hands = jobs.min(tasks.len()).max(1);
    let shared = Arc::new(Shared {
        threads_each: (jobs / hands).max(1),
        tasks,
        around,
        next: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let (tell, hear) = mpsc::channel();
    let mut overseer = Overseer {
        seats: Vec::new(),
        tell,
        hear,
        muster: Muster::default(),
        deadline: limits.time.and_then(|time| started.checked_add(time)),
        image_time: limits.image_time,
        ceiling: shared.around.budget.memory.ceiling,
        memory_due: started,
        show: Show::new(limits.progress),
        shared,
    };
    for _ in 0..hands {
        overseer.hire();
    }
    overseer.watch(take);
    overseer.muster
}

struct Overseer {
    seats: Vec<Arc<Seat>>,
    shared: Arc<Shared>,
    tell: Sender<(usize, Looked)>,
    hear: Receiver<(usize, Looked)>,
    muster: Muster,
    deadline: Option<Instant>,
    image_time: Duration,
    ceiling: Option<u64>,
    memory_due: Instant,
    show: Show,
}

impl Overseer {
    /// One more thread.
    fn hire(&mut self) {
        let seat = Arc::new(Seat::default());
        let (shared, tell) = (Arc::clone(&self.shared), self.tell.clone());
        let at = Arc::clone(&seat);
        let hired = thread::Builder::new().spawn(move || labour(&shared, &at, &tell));
        match hired {
            Ok(_) => self.seats.push(seat),
            Err(error) => say(&format!("qfsck: one thread less: {error}")),
        }
    }

    fn watch(&mut self, take: Take<'_>) {
        let total = self.shared.tasks.len();
        let mut over_since = None;
        let mut done = 0;
        while done < total && !self.seats.is_empty() {
            match self.hear.recv_timeout(TICK) {
                Ok((_, looked)) => {
                    done += 1;
                    self.note(looked, take);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if self.is_time_over(now) && over_since.is_none() {
                over_since = Some(now);
                self.shared.is_over.store(true, Relaxed);
            }
            if let Some(since) = over_since {
                self.stop_all();
                let is_idle = self.seats.iter().all(|seat| lock(&seat.at).is_none());
                if now.duration_since(since) > LAST_GRACE || is_idle {
                    while let Ok((_, looked)) = self.hear.try_recv() {
                        self.note(looked, take);
                    }
                    break;
                }
                continue;
            }
            done += self.look_after_the_slow(now, take);
            self.look_after_memory(now);
            self.show.draw(&self.muster, done, total);
        }
        self.show.end();
        let told = self.muster.recorded + self.muster.already + self.muster.unwritten;
        self.muster.left = total.saturating_sub(told);
    }

    fn is_time_over(&self, now: Instant) -> bool {
        Watch::is_interrupted()
            || crate::is_unread()
            || self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn note(&mut self, looked: Looked, take: Take<'_>) {
        match looked {
            Looked::Record(record) => {
                self.muster.recorded += 1;
                let is_defect = record.row.status == ImageStatus::Unfinished
                    && record
                        .row
                        .reason
                        .as_deref()
                        .is_some_and(|reason| reason.starts_with("a defect"));
                self.muster.defects += usize::from(is_defect);
                self.show.count(record.row.status);
                take(&record, true);
            }
            Looked::Already => self.muster.already += 1,
            Looked::Nothing => {}
            Looked::Unwritten(record, error) => {
                self.muster.unwritten += 1;
                if self.muster.unwritten <= SAID_UNWRITTEN {
                    let name = record.row.name.shown();
                    say(&format!(
                        "qfsck: the record of {name} cannot be written: {error}"
                    ));
                }
                take(&record, false);
            }
        }
    }

    fn stop_all(&self) {
        for seat in &self.seats {
            if let Some(job) = lock(&seat.at).as_mut() {
                job.stop(StopReason::End);
            }
        }
    }

    /// Gives up what takes too long; says how many images were taken from threads that do not come back.
    fn look_after_the_slow(&mut self, now: Instant, take: Take<'_>) -> usize {
        let mut lost = Vec::new();
        let (image_time, shared) = (self.image_time, &self.shared);
        self.seats.retain(|seat| {
            let mut at = lock(&seat.at);
            let Some(job) = at.as_mut() else { return true };
            if !job.is_waiting && now.duration_since(job.started) >= image_time {
                let limit = humantime::format_duration(image_time);
                job.stop(StopReason::GiveUp(format!("it took longer than {limit}")));
            }
            let is_stuck = job
                .stopped
                .as_ref()
                .is_some_and(|(since, _)| now.duration_since(*since) > GRACE);
            if is_stuck {
                lost.push(job.task);
                // Its thread sees that it is not wanted any more, if it ever comes back.
                *at = None;
            }
            !is_stuck
        });
        let shared = Arc::clone(shared);
        for index in &lost {
            let Some(task) = shared.tasks.get(*index) else {
                continue;
            };
            let reason = "the disk does not answer".to_owned();
            let store = shared.around.store.as_ref();
            let record = store.and_then(|store| store.read(&task.name).ok()?);
            let before = record.as_ref().map(|record| &record.row);
            let before = before.or(task.since.as_deref());
            let row = given_up(task, before, shared.around.night, reason);
            let looked = keep(&shared.around, row, AuditRun::default());
            self.note(looked, take);
            self.hire();
        }
        lost.len()
    }

    /// Over the limit of memory, the image that has been read for the longest time is given up, and after a while the next.
    fn look_after_memory(&mut self, now: Instant) {
        let Some(ceiling) = self.ceiling else { return };
        if now < self.memory_due {
            return;
        }
        self.memory_due = now + TICK;
        if resident_bytes().is_none_or(|bytes| bytes <= ceiling) {
            return;
        }
        self.memory_due = now + MEMORY_PAUSE;
        relieve(&self.seats, now);
    }
}

/// Gives up the image that has been read for the longest time. One that waits for memory uses none, and one that was given
/// up already gives back what it has.
fn relieve(seats: &[Arc<Seat>], now: Instant) {
    let suspect = |seat: &Arc<Seat>| {
        let at = lock(&seat.at);
        let job = at
            .as_ref()
            .filter(|job| !job.is_waiting && job.stopped.is_none())?;
        let is_old = now.duration_since(job.started) >= LEAST_SUSPECT;
        is_old.then_some((job.started, job.task))
    };
    let oldest = seats
        .iter()
        .filter_map(|seat| Some((suspect(seat)?, seat)))
        .min_by_key(|(suspect, _)| *suspect);
    if let Some(((_, task), seat)) = oldest
        && let Some(job) = lock(&seat.at).as_mut().filter(|job| job.task == task)
    {
        let reason = "it needs more memory than --max-memory allows".to_owned();
        job.stop(StopReason::GiveUp(reason));
    }
}

impl Job {
    fn stop(&mut self, why: StopReason) {
        if self.stopped.is_none() {
            self.stopped = Some((Instant::now(), why));
        }
        self.progress.stop();
    }
}

/// What a thread does: image after image.
fn labour(shared: &Shared, seat: &Seat, tell: &Sender<(usize, Looked)>) {
    // It opens images, so it may read; all it writes are records.
    let store = shared.around.store.as_ref();
    isolation::only_write_in(store.map(Store::directory));
    // Each image is read by threads of its own, so that one thread does not begin a second image within a first.
    let pool = ThreadPoolBuilder::new()
        .num_threads(shared.threads_each)
        .use_current_thread()
        .build();
    // Without one, reading falls back to threads that all share.
    let _pool = pool.ok();
    while !shared.is_over.load(Relaxed) {
        let index = shared.next.fetch_add(1, Relaxed);
        let Some(task) = shared.tasks.get(index) else {
            return;
        };
        let progress = Arc::new(Progress::default());
        *lock(&seat.at) = Some(Job {
            task: index,
            started: Instant::now(),
            is_waiting: false,
            progress: Arc::clone(&progress),
            stopped: None,
        });
        let looked = look(task, &shared.around, &progress, seat);
        let mut at = lock(&seat.at);
        if at.is_none() {
            // Given up, and somebody else sits here.
            return;
        }
        if tell.send((index, looked)).is_err() {
            return;
        }
        *at = None;
    }
}

/// How it is shown to people.
struct Show {
    bar: Option<ProgressBar>,
    has_events: bool,
    last_event: Instant,
    damaged: usize,
    in_use: usize,
}

impl Show {
    fn new(mode: ProgressMode) -> Self {
        let is_wanted = mode == ProgressMode::Auto && std::io::stderr().is_terminal();
        Self {
            bar: is_wanted.then(|| {
                let style = "{pos}/{len} images [{wide_bar}] {msg} {eta}";
                let style = ProgressStyle::with_template(style);
                ProgressBar::new(0)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            }),
            has_events: mode == ProgressMode::Json,
            last_event: Instant::now(),
            damaged: 0,
            in_use: 0,
        }
    }

    fn count(&mut self, status: ImageStatus) {
        self.damaged += usize::from(status.is_damage());
        self.in_use += usize::from(status.is_in_use());
    }

    fn draw(&mut self, muster: &Muster, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("{} damaged, {} in use", self.damaged, self.in_use));
        }
        if self.has_events && self.last_event.elapsed() >= EVENT_INTERVAL {
            self.last_event = Instant::now();
            say(&format!(
                "{{\"event\":\"audit\",\"done\":{done},\"images\":{total},\"recorded\":{},\"damaged\":{},\"in-use\":{}}}",
                muster.recorded, self.damaged, self.in_use
            ));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_limit_of_memory_the_image_that_uses_it_is_given_up() {
        let began = Instant::now();
        let seat = |task: usize, is_waiting: bool, is_stopped: bool| {
            let mut job = Job {
                task,
                started: began + Duration::from_secs(task as u64),
                is_waiting,
                progress: Arc::new(Progress::default()),
                stopped: None,
            };
            if is_stopped {
                job.stop(StopReason::GiveUp("it took too long".to_owned()));
            }
            Arc::new(Seat {
                at: Mutex::new(Some(job)),
            })
        };
        let seats = [
            seat(0, true, false),
            seat(1, false, true),
            seat(3, false, false),
            seat(2, false, false),
        ];
        let reasons = || seats.each_ref().map(|seat| seat.why());
        let before = reasons();
        relieve(&seats, began + Duration::from_secs(60));
        let after = reasons();
        assert_eq!(after[..3], before[..3]);
        let Some(StopReason::GiveUp(reason)) = &after[3] else {
            panic!("{after:?}");
        };
        assert!(reason.contains("memory"), "{reason}");
        // One that has only begun is not what the memory is used for.
        relieve(&seats, began + Duration::from_secs(3));
        assert_eq!(reasons(), after);
    }
}
