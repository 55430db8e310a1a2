//! Disks that fail while they are read: whatever read fails, and however, a check ends, and says what it did not see.
//!
//! Comes in: forged images and the corpus, and a disk on which the n-th read goes wrong, for every n. Goes out: how many
//! faults were put in. Never here: a repair (`repair::reads`, `repair::faults`), faults of system calls (`repair::faults` and
//! `repair::check_faults`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use qfsck::{
    Check, Code, Error, Image, Options, PolicyLimits, Progress, Severity, Storage, Verdict,
    deep_read, judge_policy,
};
use rayon::ThreadPoolBuilder;

use crate::corpus;
use crate::support::image_forge::{BitmapCluster, Forge, Forged, Tree};

/// What goes wrong at the n-th read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It fails; later reads of the same place do not.
    Once,
    /// It fails, and so does every later read of any of these bytes.
    BadPlace,
    /// It fails, and so does every later read.
    DiskIsGone,
    /// It gives zeros from then on, everywhere.
    Zeros,
    /// From then on every byte is another one.
    Noise,
    /// From then on the file ends in the middle of what was asked for.
    Shrinks,
    /// From then on the file is longer, by noise.
    Grows,
}

const FAILING: [Fault; 3] = [Fault::Once, Fault::BadPlace, Fault::DiskIsGone];
const LYING: [Fault; 4] = [Fault::Zeros, Fault::Noise, Fault::Shrinks, Fault::Grows];

/// What is done to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Check,
    Deep,
    Untrusted,
}

const LOOKS: [Look; 3] = [Look::Check, Look::Deep, Look::Untrusted];

struct Disk<'a> {
    bytes: &'a [u8],
    fault: Option<(usize, Fault)>,
    reads: AtomicUsize,
    is_broken: AtomicBool,
    bad: Mutex<(u64, u64)>,
}

impl<'a> Disk<'a> {
    fn new(bytes: &'a [u8], fault: Option<(usize, Fault)>) -> Self {
        Self {
            bytes,
            fault,
            reads: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
            bad: Mutex::new((0, u64::MAX)),
        }
    }

    fn kind(&self) -> Option<Fault> {
        self.fault
            .filter(|_| self.is_broken.load(Relaxed))
            .map(|(_, fault)| fault)
    }
}

impl Storage for Disk<'_> {
    fn length_bytes(&self) -> io::Result<u64> {
        let whole = self.bytes.length_bytes()?;
        let bad = *self.bad.lock().expect("nobody panics with it");
        Ok(match self.kind() {
            Some(Fault::Shrinks) => whole.min(bad.0 + (bad.1 - bad.0) / 2),
            Some(Fault::Grows) => whole + 3 * 4096 + 17,
            _ => whole,
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        let read = self.reads.fetch_add(1, Relaxed);
        let is_the_one = self.fault.is_some_and(|(when, _)| when == read);
        if is_the_one {
            *self.bad.lock().expect("nobody panics with it") = (offset, end);
            self.is_broken.store(true, Relaxed);
        }
        let bad = *self.bad.lock().expect("nobody panics with it");
        self.bytes.read_at(offset, buffer)?;
        let length = self.length_bytes()?;
        match self.kind() {
            Some(Fault::Once) if is_the_one => return Err(io::Error::other("bad sector")),
            Some(Fault::BadPlace) if offset < bad.1 && bad.0 < end => {
                return Err(io::Error::other("bad sector"));
            }
            Some(Fault::DiskIsGone) => return Err(io::Error::other("no such disk")),
            Some(Fault::Zeros) => buffer.fill(0),
            Some(Fault::Noise) => {
                for (at, byte) in (offset..).zip(buffer) {
                    *byte ^= (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1;
                }
            }
            Some(Fault::Shrinks) => {
                for (_, byte) in (offset..).zip(buffer).filter(|(at, _)| *at >= length) {
                    *byte = 0;
                }
            }
            Some(Fault::Grows) => {
                let whole = self.bytes.len() as u64;
                for (_, byte) in (offset..).zip(buffer).filter(|(at, _)| *at >= whole) {
                    *byte = 0xa5;
                }
            }
            Some(Fault::Once | Fault::BadPlace) | None => {}
        }
        Ok(())
    }
}

/// Looks at a disk; the reads come in the same order every time.
fn look(disk: &Disk<'_>, look: Look) -> Result<Check, Error> {
    let progress = Progress::default();
    let image = Image::open(disk, Path::new("image"))?;
    let mut check = qfsck::check(&image, Options::default(), &progress);
    match look {
        Look::Check => {}
        Look::Deep => deep_read(&image, &mut check, &progress),
        Look::Untrusted => judge_policy(&image, PolicyLimits::default(), &mut check),
    }
    Ok(check)
}

fn codes(check: &Check) -> BTreeSet<Code> {
    let totals = check.findings.totals();
    totals.map(|(code, _)| code).collect()
}

/// Breaks one thing.
type Damage = fn(&mut Forged);

/// Small images with everything the format has, and with several batches of tables.
fn forged() -> Vec<(String, Vec<u8>)> {
    let small = || Forge::new().cluster_bits(9).size(4 << 20);
    let spread = |forge: Forge| (0..30).fold(forge, |forge, index| forge.data(index * 71));
    let everything = || {
        spread(small())
            .snapshot("1", "one")
            .data(3)
            .compressed(5, 200)
            .compressed(6, 300)
            .snapshot("2", "two")
            .data(71)
            .bitmap("b", 9, 0, &[BitmapCluster::Data, BitmapCluster::AllOne])
    };
    let mut images: Vec<(String, Forged)> = vec![
        ("spread".to_owned(), spread(small()).build()),
        ("everything".to_owned(), everything().build()),
        ("luks".to_owned(), spread(small()).luks(520).build()),
        (
            "data file".to_owned(),
            Forge::new()
                .data_file(Some("data.raw"))
                .data(0)
                .data(9000)
                .build(),
        ),
        (
            "extended".to_owned(),
            Forge::new()
                .cluster_bits(14)
                .size(64 << 20)
                .extended_l2()
                .data(1)
                .data(900)
                .build(),
        ),
    ];
    let damage: [(&str, Damage); 4] = [
        ("a count too high", |image| {
            let cluster = image.host_cluster(Tree::Active, 71 * 4);
            image.set_refcount(cluster, 5);
        }),
        ("a count of zero", |image| {
            let cluster = image.host_cluster(Tree::Active, 71 * 4);
            image.set_refcount(cluster, 0);
        }),
        ("a leak", |image| {
            let _leaked = image.allocate(1);
        }),
        ("a flag that is missing", |image| {
            let entry = image.l2_entry(Tree::Active, 71 * 4);
            let word = image.u64_at(entry);
            image.put_u64(entry, word ^ 1 << 63);
        }),
    ];
    for (name, damage) in damage {
        let mut image = everything().build();
        damage(&mut image);
        images.push((name.to_owned(), image));
    }
    let named = images.into_iter();
    named.map(|(name, image)| (name, image.bytes)).collect()
}

fn images() -> Vec<(String, Vec<u8>)> {
    let real = corpus::cases().into_iter().map(|case| {
        let bytes = fs::read(case.join("image.qcow2")).expect("the image can be read");
        (
            case.file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            bytes,
        )
    });
    // Longer ones only repeat what shorter ones have.
    let real = real.filter(|(_, bytes)| bytes.len() <= 2 << 20);
    forged().into_iter().chain(real.step_by(3)).collect()
}

/// What every fault came to, over all images, looks and reads. `judge` says what is wrong.
fn every_read(
    faults: &[Fault],
    judge: impl Fn(&Check, &Disk<'_>, &Result<Check, Error>) -> Result<(), String> + Sync,
) -> usize {
    let images = images();
    let jobs: Vec<_> = images
        .iter()
        .flat_map(|image| LOOKS.map(|look| (image, look)))
        .collect();
    let next = AtomicUsize::new(0);
    // One thread for each image, so that reads come in the same order every time.
    let work = || {
        let pool = ThreadPoolBuilder::new().num_threads(1).build();
        pool.expect("a thread").install(|| {
            let mut injected = 0;
            let mut broken = Vec::new();
            while let Some(((name, bytes), how)) = jobs.get(next.fetch_add(1, Relaxed)) {
                let Ok(whole) = look(&Disk::new(bytes, None), *how) else {
                    continue;
                };
                for &fault in faults {
                    for when in 0.. {
                        let disk = Disk::new(bytes, Some((when, fault)));
                        let result = look(&disk, *how);
                        if !disk.is_broken.load(Relaxed) {
                            break;
                        }
                        injected += 1;
                        if let Err(why) = judge(&whole, &disk, &result) {
                            broken.push(format!("{name}, {how:?}, read {when} {fault:?}: {why}"));
                        }
                    }
                }
            }
            (injected, broken)
        })
    };
    let results: Vec<(usize, Vec<String>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no look panics"))
            .collect()
    });
    let injected = results.iter().map(|(count, _)| count).sum();
    let broken: Vec<_> = results.into_iter().flat_map(|(_, broken)| broken).collect();
    let few: Vec<&str> = broken.iter().take(12).map(String::as_str).collect();
    assert!(
        broken.is_empty(),
        "{} broken:\n{}",
        broken.len(),
        few.join("\n")
    );
    injected
}

/// Clean is said of what was looked at whole.
fn not_clean_with_a_gap(check: &Check) -> Result<(), String> {
    if check.verdict == Verdict::Clean && check.coverage.complete().is_none() {
        return Err(format!("clean, with a gap: {:?}", check.coverage.gaps()));
    }
    Ok(())
}

#[test]
fn whatever_read_fails_the_check_ends_and_says_what_was_lost() {
    let injected = every_read(&FAILING, |whole, _, result| {
        let check = match result {
            Err(Error::Read { .. }) => return Ok(()),
            Err(error) => return Err(format!("not a failed read: {error}")),
            Ok(check) => check,
        };
        not_clean_with_a_gap(check)?;
        if check == whole {
            // It was read again.
            return Ok(());
        }
        if check.coverage.unreadable_count() == 0 {
            return Err(format!("another answer, and no gap: {:?}", codes(check)));
        }
        if check.verdict != Verdict::Unreadable {
            return Err(format!("verdict {:?}", check.verdict));
        }
        let mut invented = codes(check);
        invented.remove(&Code::DataUnreadable);
        let mut known = codes(whole);
        if known.contains(&Code::GuestDataShared) {
            // Which of the two it is, the count says; where that is not known, it is the graver one.
            known.insert(Code::GuestDataOverlap);
        }
        invented.retain(|code| !known.contains(code));
        if !invented.is_empty() {
            return Err(format!("found only because of the fault: {invented:?}"));
        }
        Ok(())
    });
    println!("{injected} failed reads put in");
    assert!(injected > 5_000, "{injected}");
}

#[test]
fn bytes_that_are_not_the_same_twice_never_make_a_bad_image_clean() {
    let injected = every_read(&LYING, |whole, disk, result| {
        let Ok(check) = result else {
            return Ok(());
        };
        not_clean_with_a_gap(check)?;
        let is_bad = whole.findings.count_of(Severity::Corruption) > 0;
        // The program looks at these two when it is done.
        let image = Image::open(disk, Path::new("image"));
        let has_changed =
            image.is_err() || disk.length_bytes().ok() != Some(disk.bytes.len() as u64);
        let says_clean = check.verdict == Verdict::Clean && check.coverage.failure_count() == 0;
        if is_bad && says_clean && !has_changed {
            return Err(format!(
                "a damaged image is called clean; it has {:?}",
                codes(whole)
            ));
        }
        Ok(())
    });
    println!("{injected} reads with other bytes put in");
    assert!(injected > 10_000, "{injected}");
}
