//! Planning on a disk that fails to read, and planning that is stopped.
//!
//! Comes in: damaged images, and the n-th read going wrong, for every n. Goes out: nothing, or a plan that is neither the
//! whole one nor none. Never here: faults of system calls (`faults`).

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qfsck::{Error, Image, Options, Plan, Progress, Storage};

use super::killed::damaged;
use super::{all, planned};

/// Where the image is said to be.
const PATH: &str = "disk.qcow2";

/// What happens at the n-th read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// It fails; a later one of the same place does not.
    Fails,
    /// It fails, and so does every later one.
    FailsFromThenOn,
    /// Somebody asks the planning to end.
    Stops,
}

struct Disk<'a> {
    bytes: &'a [u8],
    reads: AtomicUsize,
    when: usize,
    event: Event,
    progress: &'a Progress,
}

impl Storage for Disk<'_> {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.reads.fetch_add(1, Relaxed);
        let fails = match self.event {
            Event::Fails => read == self.when,
            Event::FailsFromThenOn => read >= self.when,
            Event::Stops => {
                if read == self.when {
                    self.progress.stop();
                }
                false
            }
        };
        if fails {
            return Err(io::Error::other("bad sector"));
        }
        self.bytes.read_at(offset, buffer)
    }
}

/// The plan where the n-th read goes so; `None` where there are fewer reads.
fn planned_on(bytes: &[u8], when: usize, event: Event) -> Option<Result<Plan, Error>> {
    let progress = Progress::default();
    let disk = Disk {
        bytes,
        reads: AtomicUsize::new(0),
        when,
        event,
        progress: &progress,
    };
    let image = Image::open(&disk, Path::new(PATH));
    let planned =
        image.and_then(|image| qfsck::plan(&image, &all(), Options::default(), &progress));
    (disk.reads.load(Relaxed) > when).then_some(planned)
}

#[test]
fn whatever_read_fails_the_plan_is_the_whole_one_or_none() {
    let (mut whole, mut failed, mut none) = (0, 0, 0);
    for (name, bytes) in damaged().into_iter().take(4) {
        let wanted = planned(&bytes, &all()).expect("memory can be read");
        assert!(!wanted.is_empty(), "{name}");
        for event in [Event::Fails, Event::FailsFromThenOn] {
            for when in 0.. {
                match planned_on(&bytes, when, event) {
                    None => break,
                    Some(Err(Error::Read { path, .. })) => {
                        assert_eq!(path, Path::new(PATH), "{name}, read {when} {event:?}");
                        failed += 1;
                    }
                    Some(Err(error)) => panic!("{name}, read {when} {event:?}: {error}"),
                    Some(Ok(plan)) if plan.is_empty() => {
                        assert!(
                            plan.before.coverage.unreadable_count() > 0,
                            "{name}, {when}"
                        );
                        none += 1;
                    }
                    Some(Ok(plan)) => {
                        assert_eq!(plan.stages, wanted.stages, "{name}, read {when} {event:?}");
                        whole += 1;
                    }
                }
            }
        }
    }
    println!("{whole} whole plans, {failed} failed, {none} images that cannot be read");
    assert!(
        whole > 0 && failed > 10 && none > 10,
        "{whole} {failed} {none}"
    );
}

#[test]
fn whenever_the_planning_is_stopped_nothing_is_planned() {
    for (name, bytes) in damaged().into_iter().take(4) {
        let mut stopped = 0;
        for when in 0.. {
            let Some(planned) = planned_on(&bytes, when, Event::Stops) else {
                break;
            };
            let plan = planned.expect("memory can be read");
            // Stopped behind the last read, it is done.
            let is_whole = plan.after.coverage.complete().is_some();
            assert!(plan.is_empty() || is_whole, "{name}, read {when}");
            stopped += usize::from(plan.is_empty());
        }
        assert!(stopped > 10, "{name}: {stopped}");
    }
}
