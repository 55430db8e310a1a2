//! Isolation: what reads an image from a stranger cannot open anything, nor call anybody.
//!
//! Comes in: work on files that are open already. Goes out: its result. Never here: a decision what to open; a reason not
//! to work, where the system has no means to isolate.
//!
//! The main thread opens files, asks and prints; where one image is only looked at, it gives up its rights as soon as that
//! is open. Everything an image says is read by threads that gave up, before the
//! first byte, the right to open, make, rename or delete any file, to run programs, and to use the network over TCP
//! (Landlock). What they read and write is open then. The one thing a repair opens late, its undo file, it asks for. The
//! threads of an audit open one image after another, so they keep the right to read, and to write records.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::say;

/// What is asked for; an older kernel gives what it has.
const ABI_WANTED: ABI = ABI::V7;

struct Workers {
    pool: ThreadPool,
    /// The threads are others than the one that opens files.
    are_apart: bool,
}

static WORKERS: OnceLock<Option<Workers>> = OnceLock::new();
static IS_SAID: AtomicBool = AtomicBool::new(false);

/// How an image that is looked at is isolated.
#[derive(Clone, Copy)]
pub(crate) struct Isolation {
    /// Threads to use.
    pub(crate) jobs: Option<u16>,
    /// There are further images to open.
    pub(crate) opens_more: bool,
}

impl Isolation {
    /// Starts the threads that read the image, which is open. Where nothing is opened later, this thread has no more rights
    /// than they.
    pub(crate) fn begin(self, keeps_rights: bool) {
        let mut jobs = self.jobs;
        if !keeps_rights && !self.opens_more {
            // What the system allows is written in files, too.
            if jobs.is_none() && std::env::var_os("RAYON_NUM_THREADS").is_none() {
                let count = std::thread::available_parallelism().ok();
                jobs = count.and_then(|count| u16::try_from(count.get()).ok());
            }
            give_up_rights();
        }
        start(jobs);
    }
}

/// Starts the threads that read images, one for each processor if nobody gives a number. Where the system gives out none
/// (a full process table, a service with few tasks), this one thread does it all: late is better than never.
pub(crate) fn start(jobs: Option<u16>) {
    WORKERS.get_or_init(|| {
        let apart = ThreadPoolBuilder::new()
            .num_threads(jobs.map_or(0, usize::from))
            .start_handler(|_| give_up_rights())
            .build();
        let workers = apart.map(|pool| Workers {
            pool,
            are_apart: true,
        });
        let workers = workers.or_else(|error| {
            say(&format!("qfsck: working with a single thread: {error}"));
            say_once("not isolated: there is no thread to do it in");
            let alone = ThreadPoolBuilder::new().num_threads(1);
            alone.use_current_thread().build().map(|pool| Workers {
                pool,
                are_apart: false,
            })
        });
        workers.ok()
    });
}

/// Does work in the threads that have no rights.
pub(crate) fn confined<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    match WORKERS.get() {
        Some(Some(workers)) => workers.pool.install(work),
        _ => work(),
    }
}

/// Does work in the threads that have no rights, and once, when it asks for it, something here that needs them. `None` only
/// where the work came to no end.
pub(crate) fn confined_but_for<T: Send, R: Send>(
    open: impl FnOnce() -> io::Result<T>,
    work: impl FnOnce(&mut dyn FnMut() -> io::Result<T>) -> R + Send,
) -> Option<R> {
    let gone = || io::Error::other("the thread that opens files is gone");
    let mut open = Some(open);
    let mut open = || open.take().map_or_else(|| Err(gone()), |open| open());
    let apart = WORKERS.get().and_then(Option::as_ref);
    let Some(workers) = apart.filter(|workers| workers.are_apart) else {
        return Some(work(&mut open));
    };
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let mut result = None;
    workers.pool.in_place_scope(|scope| {
        let result = &mut result;
        scope.spawn(move |_| {
            let mut ask = || {
                ask.send(()).map_err(|_| gone())?;
                answered.recv().map_err(|_| gone())?
            };
            *result = Some(work(&mut ask));
        });
        // The asker goes away with the work, asked or not.
        if asked.recv().is_ok() {
            // Who asked waits for it.
            let _heard = answer.send(open());
        }
    });
    result
}

/// Gives up the rights of this thread, and of those it starts.
fn give_up_rights() {
    tell(restrict(), "reading images opens nothing");
}

/// Gives up the rights of this thread, and of those it starts, to write anywhere but in a directory, to run programs and to
/// use the network.
pub(crate) fn only_write_in(directory: Option<&Path>) {
    tell(
        restrict_writing(directory),
        "reading images writes only records",
    );
}

/// Says what became of it, to whoever wants to know.
fn tell(status: Result<RulesetStatus, impl Display>, what: &str) {
    match status {
        Ok(RulesetStatus::FullyEnforced) => say_once(&format!("isolated: {what}")),
        Ok(RulesetStatus::PartiallyEnforced) => {
            say_once("isolated in part: this kernel's Landlock is an older one");
        }
        Ok(RulesetStatus::NotEnforced) => say_once("not isolated: this kernel has no Landlock"),
        Err(error) => say_once(&format!("not isolated: {error}")),
    }
}

fn restrict_writing(directory: Option<&Path>) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let writing = AccessFs::from_write(ABI_WANTED);
    let mut rules = Ruleset::default()
        .handle_access(writing | AccessFs::Execute)?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    if let Some(directory) = directory {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(directory)?, writing))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn restrict() -> Result<RulesetStatus, RulesetError> {
    let none_allowed = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    Ok(none_allowed.restrict_self()?.ruleset)
}

/// A word for whoever looks for it: with `QFSCK_DEBUG` in the environment, and once.
fn say_once(word: &str) {
    if std::env::var_os("QFSCK_DEBUG").is_some() && !IS_SAID.swap(true, Relaxed) {
        say(&format!("qfsck: debug: {word}"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    #[test]
    #[expect(clippy::print_stdout, reason = "what is not tested is said")]
    fn a_thread_that_keeps_records_writes_nothing_else() {
        let name = format!("qfsck-records-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let records = directory.join("records");
        fs::create_dir_all(&records).expect("a directory");
        let image = directory.join("image");
        fs::write(&image, "image").expect("written");
        let (there, store) = (image.clone(), records.clone());
        let confined = thread::spawn(move || {
            let status = restrict_writing(Some(&store)).expect("the kernel says yes or no");
            let record = store.join("new");
            fs::write(&record, "record").expect("records are written");
            fs::rename(&record, store.join("record")).expect("and renamed");
            let text = fs::read_to_string(&there).expect("images are read");
            let denied = [
                OpenOptions::new().write(true).open(&there).is_err(),
                File::create(there.with_extension("new")).is_err(),
                fs::remove_file(&there).is_err(),
                fs::rename(&there, store.join("image")).is_err(),
                TcpListener::bind("127.0.0.1:0").is_err(),
            ];
            (status, text, denied)
        });
        let (status, text, denied) = confined.join().expect("no panic");
        assert_eq!(text, "image");
        if status == RulesetStatus::FullyEnforced {
            assert_eq!(denied, [true; 5]);
        } else {
            println!("NOT TESTED: that nothing else is written; Landlock here: {status:?}");
        }
        fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "what is not tested is said")]
    fn a_thread_without_rights_uses_what_is_open_and_opens_nothing() {
        let directory =
            std::env::temp_dir().join(format!("qfsck-isolation-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let path = directory.join("file");
        fs::write(&path, "before").expect("written");
        let mut open = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("opened");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (there, new) = (path.clone(), directory.join("new"));
        let confined = thread::spawn(move || {
            let status = restrict().expect("the kernel says yes or no");
            let mut text = String::new();
            open.read_to_string(&mut text).expect("it was open");
            open.write_all(b", after").expect("it was open");
            open.set_len(9).expect("it was open");
            let denied = [
                File::open(&there).is_err(),
                File::create(&new).is_err(),
                fs::read_dir("/").is_err(),
                fs::remove_file(&there).is_err(),
                fs::rename(&there, &new).is_err(),
                TcpStream::connect(address).is_err(),
                TcpListener::bind("127.0.0.1:0").is_err(),
            ];
            // A thread it starts has no more.
            let child = thread::spawn(move || File::open(&there).is_err());
            (status, text, denied, child.join().expect("no panic"))
        });
        let (status, text, denied, child) = confined.join().expect("no panic");
        assert_eq!(text, "before");
        assert_eq!(fs::read(&path).expect("still there"), b"before, a");
        if status == RulesetStatus::FullyEnforced {
            assert_eq!((denied, child), ([true; 7], true));
        } else {
            println!("NOT TESTED: that nothing can be opened; Landlock here: {status:?}");
        }
        assert!(File::open(&path).is_ok(), "other threads keep their rights");
        fs::remove_dir_all(&directory).expect("removed");
    }
}
