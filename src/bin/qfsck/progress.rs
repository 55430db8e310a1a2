//! Watching a check: a bar or events, Ctrl-C, and the budget.
//!
//! Comes in: a [`Progress`] to poll. Goes out: talk on stderr, and the wish to stop. Never here: the check.
//!
//! What a signal does depends on what it meets: it stops a check or a plan, ends a question, and waits while an image is
//! written to.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qfsck::Progress;

use crate::args::values::ProgressMode;
use crate::say;

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(50);
/// A check that is done sooner shows no progress.
const QUIET_START: Duration = Duration::from_millis(500);
/// How often an event is written.
const EVENT_INTERVAL: Duration = Duration::from_millis(500);

/// Why a check was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// By a signal.
    Interrupted,
    /// By its budget.
    BudgetSpent,
}

/// Signals received so far.
static SIGNALS: AtomicU32 = AtomicU32::new(0);
static HANDLER: Once = Once::new();

/// What a signal meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupation {
    /// Reading: the first signal stops it, the second ends the program.
    Reading = 0,
    /// A question on the terminal: the first signal ends the program.
    Asking = 1,
    /// Writing to an image: signals are counted, and wait.
    Writing = 2,
}

static OCCUPATION: AtomicU8 = AtomicU8::new(Occupation::Reading as u8);

/// When an image was written to last. A signal that came before may be noticed a moment later.
static WRITTEN: Mutex<Option<Instant>> = Mutex::new(None);
const MOMENT: Duration = Duration::from_millis(250);

/// As long as this lives, signals meet something else than reading.
pub(crate) struct Occupied(());

impl Occupied {
    /// Somebody is asked a question.
    pub(crate) fn asking() -> Self {
        Self::with(Occupation::Asking)
    }

    /// An image is written to. Ending in the middle would do no harm, but leave work.
    pub(crate) fn writing() -> Self {
        Self::with(Occupation::Writing)
    }

    fn with(occupation: Occupation) -> Self {
        HANDLER.call_once(install_signal_handler);
        OCCUPATION.store(occupation as u8, Relaxed);
        Self(())
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if OCCUPATION.load(Relaxed) == Occupation::Writing as u8
            && let Ok(mut written) = WRITTEN.lock()
        {
            *written = Some(Instant::now());
        }
        OCCUPATION.store(Occupation::Reading as u8, Relaxed);
    }
}

/// A thread that watches one check.
pub(crate) struct Watch {
    done: Sender<()>,
    thread: Option<JoinHandle<Option<Stopped>>>,
}

impl Watch {
    /// Starts to watch a check or a plan, which signals and the budget stop.
    pub(crate) fn start(
        progress: Arc<Progress>,
        mode: ProgressMode,
        quiet: bool,
        budget: Option<Duration>,
    ) -> Self {
        Self::spawn(progress, mode, quiet, budget, true)
    }

    /// Starts to watch what goes on to its end, whatever comes.
    pub(crate) fn start_unstoppable(
        progress: Arc<Progress>,
        mode: ProgressMode,
        quiet: bool,
    ) -> Self {
        Self::spawn(progress, mode, quiet, None, false)
    }

    fn spawn(
        progress: Arc<Progress>,
        mode: ProgressMode,
        quiet: bool,
        budget: Option<Duration>,
        heeds_signals: bool,
    ) -> Self {
        HANDLER.call_once(install_signal_handler);
        let show = match mode {
            ProgressMode::Json => Show::Events,
            ProgressMode::Auto if !quiet && std::io::stderr().is_terminal() => Show::Bar,
            ProgressMode::Auto | ProgressMode::None => Show::Nothing,
        };
        let (done, end) = mpsc::channel();
        let watch = move || {
            let mut watcher = Watcher::new(progress, show, budget, heeds_signals);
            while end.recv_timeout(watcher.next_look()) == Err(RecvTimeoutError::Timeout) {
                watcher.look();
            }
            watcher.end()
        };
        let thread = thread::Builder::new().spawn(watch);
        if let Err(error) = &thread {
            say(&format!(
                "qfsck: Ctrl-C and --budget cannot stop the check, no thread can watch it: {error}"
            ));
        }
        Self {
            done,
            thread: thread.ok(),
        }
    }

    /// Ends the watch; says whether it stopped the check.
    pub(crate) fn finish(self) -> Option<Stopped> {
        drop(self.done);
        self.thread?.join().unwrap_or(None)
    }

    /// From now on signals are counted, for whoever asks below.
    pub(crate) fn heed_signals() {
        HANDLER.call_once(install_signal_handler);
    }

    /// Whether a signal arrived, be it between two checks or too late to stop one.
    pub(crate) fn is_interrupted() -> bool {
        SIGNALS.load(Relaxed) > 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    Nothing,
    Bar,
    Events,
}

struct Watcher {
    progress: Arc<Progress>,
    show: Show,
    budget: Option<Duration>,
    heeds_signals: bool,
    started: Instant,
    last_event: Instant,
    bar: Option<ProgressBar>,
    stopped: Option<Stopped>,
}

impl Watcher {
    fn new(
        progress: Arc<Progress>,
        show: Show,
        budget: Option<Duration>,
        heeds_signals: bool,
    ) -> Self {
        let now = Instant::now();
        Self {
            progress,
            show,
            budget,
            heeds_signals,
            started: now,
            last_event: now,
            bar: None,
            stopped: None,
        }
    }

    /// A budget shorter than a tick is kept, too.
    fn next_look(&self) -> Duration {
        let left = self
            .budget
            .filter(|_| self.stopped.is_none())
            .map(|budget| budget.saturating_sub(self.started.elapsed()));
        left.map_or(TICK, |left| left.min(TICK))
    }

    fn look(&mut self) {
        if self.heeds_signals && SIGNALS.load(Relaxed) > 0 {
            self.stop(Stopped::Interrupted);
        } else if self
            .budget
            .is_some_and(|budget| self.started.elapsed() >= budget)
        {
            self.stop(Stopped::BudgetSpent);
        }
        match self.show {
            Show::Bar if self.started.elapsed() >= QUIET_START => self.draw(),
            Show::Events if self.last_event.elapsed() >= EVENT_INTERVAL => self.event(),
            Show::Nothing | Show::Bar | Show::Events => {}
        }
    }

    fn stop(&mut self, why: Stopped) {
        self.stopped.get_or_insert(why);
        self.progress.stop();
    }

    fn draw(&mut self) {
        let (phase, done_bytes, total_bytes) = self.progress.now();
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg:>9} [{wide_bar}] {bytes}/{total_bytes}");
            ProgressBar::new(total_bytes)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_message(phase.name());
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
    }

    fn event(&mut self) {
        self.last_event = Instant::now();
        let (phase, done_bytes, total_bytes) = self.progress.now();
        say(&format!(
            "{{\"event\":\"progress\",\"phase\":\"{}\",\"done-bytes\":{done_bytes},\"total-bytes\":{total_bytes}}}",
            phase.name()
        ));
    }

    fn end(mut self) -> Option<Stopped> {
        if self.show == Show::Events {
            self.event();
        }
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.stopped
    }
}

/// The first signal asks a check to stop and say what it knows; a second one ends the program at once, which is safe:
/// nothing is being written.
fn install_signal_handler() {
    let handler = || {
        let count = SIGNALS.fetch_add(1, Relaxed);
        let occupation = OCCUPATION.load(Relaxed);
        if occupation == Occupation::Writing as u8 {
            return;
        }
        if occupation == Occupation::Asking as u8 {
            say("\nqfsck: stopped by a signal; nothing was changed");
            end(1);
        }
        let written = WRITTEN.lock().ok().and_then(|written| *written);
        let is_late = written.is_some_and(|written| written.elapsed() < MOMENT);
        if count > 0 && !is_late {
            end(130);
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        say(&format!(
            "qfsck: Ctrl-C will end the program without a report: {error}"
        ));
    }
}

#[expect(
    clippy::exit,
    reason = "the user asked twice, or was being asked; a read may hang for ever"
)]
fn end(code: i32) -> ! {
    std::process::exit(code)
}
