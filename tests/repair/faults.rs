//! Faults: disks that fail, are full, are read-only, or are slow to answer.
//!
//! Comes in: damaged images, and a system call that goes wrong. Goes out: how many were tried. Never here: a fault that
//! nobody is told about.
//!
//! Whatever happens: the program ends by itself, says why in words, does not say that it did what it could not, and the
//! image is as it was, or `qfsck undo` puts it back to the byte.

use std::fs;
use std::process::Command;

use super::binary::{Bench, Ended, IMAGE, Injection, UNDO_FILE, can_trace, in_parallel};
use super::killed::damaged;
use crate::support::image_forge::Forge;
use crate::support::needs::{has_tools, not_tested};
use crate::support::sample::sampled;

/// The images with the longest repairs are enough.
const MOST_IMAGES: usize = 3;

/// A damaged image, and what becomes of it when nothing goes wrong.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) start: Vec<u8>,
    /// After a repair.
    pub(super) end: Vec<u8>,
    /// The undo file of that repair.
    pub(super) undo_file: Vec<u8>,
}

pub(super) fn repaired_on_disk(most_images: usize) -> Vec<Case> {
    let repair = |(name, start): (String, Vec<u8>)| {
        let bench = Bench::new();
        bench.lay(&start, None);
        let ended = bench.qfsck(&["repair", "--yes", IMAGE]);
        assert!(ended.is_done(), "{name}: {ended:?}");
        let (end, undo_file) = (bench.image(), bench.undo_file().expect("a way back"));
        let case = Case {
            name,
            start,
            end,
            undo_file,
        };
        assert!(
            case.end != case.start,
            "{}: nothing was repaired",
            case.name
        );
        case
    };
    damaged()
        .into_iter()
        .take(most_images)
        .map(repair)
        .collect()
}

/// What goes wrong, and whether the program may know a way around it.
const FAULTS: [(&str, &str); 23] = [
    ("pread64", "error=EIO"),
    ("pread64", "error=EINTR"),
    ("preadv2", "error=EAGAIN"),
    ("preadv2", "error=EINTR"),
    ("preadv2", "error=EIO"),
    ("preadv2", "retval=1"),
    ("read", "error=EIO"),
    ("lseek", "error=EIO"),
    ("pwrite64", "error=EIO"),
    ("pwrite64", "error=ENOSPC"),
    ("pwrite64", "error=EINTR"),
    // Nothing was written, and that is no error: as short as a write can be.
    ("pwrite64", "retval=0"),
    ("fsync", "error=EIO"),
    ("fsync", "error=EINTR"),
    ("ftruncate", "error=EIO"),
    ("unlinkat", "error=EACCES"),
    ("fallocate", "error=ENOSPC"),
    ("fallocate", "error=EIO"),
    ("fallocate", "error=EINTR"),
    ("fallocate", "error=EOPNOTSUPP"),
    ("statx", "error=EIO"),
    ("fcntl", "error=EINTR"),
    ("openat", "error=EMFILE"),
];

/// Whether a fault comes alone, or stays from then on.
const LASTS: [&str; 2] = ["", "+"];

#[derive(Debug, Default)]
struct Score {
    faults: usize,
    /// The program found a way around it.
    overcome: usize,
    /// The image was changed, and put back by `qfsck undo`.
    undone: usize,
    /// Everything was written, and could not be read again.
    unproven: usize,
    broken: Vec<String>,
}

/// What must hold of every end.
pub(super) fn ends_well(ended: &Ended) -> Result<(), String> {
    let said = ended.stderr.trim();
    match ended.exit {
        None => Err("ended by a signal".to_owned()),
        Some(70 | 101) => Err("a panic".to_owned()),
        Some(0 | 2 | 3) => Ok(()),
        // A plan for an image that cannot be read is shown like any other, on stdout.
        Some(_) if said.is_empty() && !ended.stdout.contains("verdict: unreadable") => {
            Err("ends without a word on stderr".to_owned())
        }
        Some(_) => Ok(()),
    }
}

/// Goes back, if there is anything to go back from.
fn can_go_back(bench: &Bench, start: &[u8], score: &mut Score) -> Result<(), String> {
    if bench.image() == start {
        return Ok(());
    }
    let ended = bench.qfsck(&["undo", UNDO_FILE]);
    if ended.exit != Some(0) {
        return Err(format!("the image was changed, and undo fails: {ended:?}"));
    }
    if bench.image() != start {
        return Err("undo gives other bytes".to_owned());
    }
    score.undone += 1;
    Ok(())
}

fn fail_repair(
    case: &Case,
    injection: &Injection<'_>,
    bench: &Bench,
    score: &mut Score,
) -> Result<bool, String> {
    bench.lay(&case.start, None);
    let ended = bench.tampered(injection, &["repair", "--yes", IMAGE]);
    if !ended.is_injected {
        return Ok(false);
    }
    score.faults += 1;
    let told = |why: String| format!("{why}: {ended:?}");
    ends_well(&ended).map_err(told)?;
    if ended.is_done() {
        score.overcome += 1;
        // What cannot be read makes no plan smaller: it is the whole repair, or none and a failure.
        if bench.image() != case.end {
            return Err(told("says it is done, but it is not all done".to_owned()));
        }
    }
    if ended.says("what was written was put back")
        && (bench.image() != case.start || bench.undo_file().is_some())
    {
        return Err(told(
            "says it is put back, and something is left".to_owned(),
        ));
    }
    if matches!(injection.calls, "pread64" | "lseek") && ended.says("writing to the image failed") {
        return Err(told("calls a read a write".to_owned()));
    }
    score.unproven += usize::from(ended.says("cannot be read whole to prove it"));
    if matches!(injection.calls, "pread64" | "lseek") && ended.says("the rehearsal promised") {
        return Err(told("calls a read that failed another result".to_owned()));
    }
    if injection.calls == "preadv2" && !ended.is_done() {
        return Err(told("gives up for want of bytes at hand".to_owned()));
    }
    if matches!(injection.what, "error=EINTR" | "error=EOPNOTSUPP")
        && injection.calls == "fallocate"
        && !ended.is_done()
    {
        return Err(told("gives up for want of a reservation".to_owned()));
    }
    can_go_back(bench, &case.start, score).map_err(told)?;
    Ok(true)
}

fn fail_undo(
    case: &Case,
    injection: &Injection<'_>,
    bench: &Bench,
    score: &mut Score,
) -> Result<bool, String> {
    bench.lay(&case.end, Some(&case.undo_file));
    let ended = bench.tampered(injection, &["undo", UNDO_FILE]);
    if !ended.is_injected {
        return Ok(false);
    }
    score.faults += 1;
    let told = |why: String| format!("undo, {why}: {ended:?}");
    ends_well(&ended).map_err(told)?;
    if ended.exit == Some(0) {
        score.overcome += 1;
        if bench.image() != case.start {
            return Err(told(
                "says it is done, but the image is not as it was".to_owned(),
            ));
        }
    }
    can_go_back(bench, &case.start, score).map_err(told)?;
    Ok(true)
}

/// One kind of fault at every call of one image.
fn fail_everywhere(case: &Case, calls: &str, what: &str, lasts: &str) -> Score {
    let bench = Bench::new();
    let mut score = Score::default();
    for (verb, fail) in [
        ("repair", fail_repair as fn(_, &_, &_, &mut _) -> _),
        ("undo", fail_undo),
    ] {
        for when in 1..400 {
            let injection = Injection {
                calls,
                what,
                when: format!("{when}{lasts}"),
                only_file: None,
            };
            match fail(case, &injection, &bench, &mut score) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => {
                    let name = &case.name;
                    let at = format!("{name}: {verb}, {calls} {when}{lasts} {what}: {why}");
                    score.broken.push(at);
                }
            }
        }
    }
    score
}

fn report(what: &str, scores: Vec<Score>) -> Score {
    let mut total = Score::default();
    for score in scores {
        total.faults += score.faults;
        total.overcome += score.overcome;
        total.undone += score.undone;
        total.unproven += score.unproven;
        total.broken.extend(score.broken);
    }
    println!(
        "{what}: {} faults, {} overcome, {} images put back by undo, {} repairs that could not be read again",
        total.faults, total.overcome, total.undone, total.unproven
    );
    let few: Vec<&str> = total.broken.iter().take(12).map(String::as_str).collect();
    assert!(
        total.broken.is_empty(),
        "{} broken:\n{}",
        total.broken.len(),
        few.join("\n")
    );
    total
}

#[test]
fn any_system_call_may_fail_and_nothing_is_lost() {
    if !can_trace() {
        return;
    }
    let cases = repaired_on_disk(MOST_IMAGES);
    let mut work = Vec::new();
    for case in &cases {
        for (calls, what) in FAULTS {
            // Interrupted for ever is no fault but a standstill; a failing disk stays one.
            let lasts = if what == "error=EIO" {
                &LASTS[..]
            } else {
                &LASTS[..1]
            };
            work.extend(lasts.iter().map(|lasts| (case, calls, what, *lasts)));
        }
    }
    let work = sampled("images and ways to fail", work, 3);
    let scores = in_parallel(work, |(case, calls, what, lasts)| {
        fail_everywhere(case, calls, what, lasts)
    });
    let total = report("system calls", scores);
    assert!(
        total.faults > 500 && total.undone > 100 && total.unproven > 2,
        "{} {}",
        total.faults,
        total.undone
    );
}

/// Runs a script beside the image; `$QFSCK` is the program. `None` where this machine does not let it.
fn script(bench: &Bench, text: &str) -> Option<Ended> {
    fs::write(bench.path("script.sh"), text).expect("the script can be written");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "script.sh"]);
    command.env("QFSCK", env!("CARGO_BIN_EXE_qfsck"));
    let ended = bench.run(command);
    // What the scripts end with when they may not mount, and what `unshare` ends with when it may not.
    let is_refused = ended.exit == Some(99) || ended.stderr.contains("unshare failed");
    if is_refused {
        not_tested("a full or read-only disk: no mounts for us here");
    }
    Some(ended).filter(|_| !is_refused)
}

/// An image whose second refcount block is all zeros, a hole on the disk, and ought not to be.
fn with_a_hole_to_fill() -> Vec<u8> {
    let forge = Forge::new().version(3).cluster_bits(12).refcount_order(6);
    let mut image = (0..700).fold(forge.size(4096 << 12), Forge::data).build();
    for cluster in 512..image.cluster_count() {
        image.set_refcount(cluster, 0);
    }
    image.bytes
}

#[test]
fn on_a_full_disk_nothing_is_lost() {
    if !has_tools(&["unshare", "mkfs.ext4"]) {
        return;
    }
    fill_and_repair("mkdir -p room && mount -t tmpfs -o size=16m tmpfs room || exit 99\n");
    // A file system that finds room only when it writes back, and says so in the sync.
    fill_and_repair(
        "truncate -s 24M disk && mkfs.ext4 -q -m 0 disk && mkdir -p room && mount -o loop disk room || exit 99\n",
    );
}

/// Fills a disk that `mount` mounts at `room`, and repairs an image on it.
fn fill_and_repair(mount: &str) {
    let start = with_a_hole_to_fill();
    let mount = format!(
        "{mount}cp --sparse=always image.qcow2 room/ && cd room\n\
         cat /dev/zero >fill 2>../full; sync -f .\n\
         i=0; while [ $i -lt 300 ] && head -c 1024 /dev/zero >fill$i; do sync -f fill$i; i=$((i+1)); done 2>../full\n"
    );
    let out = "end=$?\ncp image.qcow2 ../image.qcow2\ncp image.qcow2.qfsck-undo .. 2>../none\nexit $end\n";

    // No room for the undo file: nothing is done.
    let bench = Bench::new();
    bench.lay(&start, None);
    let repair = "$QFSCK repair --yes image.qcow2\n";
    let Some(ended) = script(&bench, &format!("{mount}{repair}{out}")) else {
        return;
    };
    assert_eq!(ended.exit, Some(1), "{ended:?}");
    assert!(ended.says("the image was not changed"), "{ended:?}");
    assert!(bench.image() == start, "a repair without a way back");

    // Room for the undo file, elsewhere, but none for a refcount block that was a hole: undo goes back, and needs none.
    bench.lay(&start, None);
    let undo = "$QFSCK undo --image image.qcow2 ../undo\n";
    let repair = "$QFSCK repair --yes --undo-file ../undo image.qcow2 && exit 98\n";
    let Some(ended) = script(&bench, &format!("{mount}{repair}{undo}{out}")) else {
        return;
    };
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert!(ended.says("writing to the image failed"), "{ended:?}");
    assert!(bench.image() == start, "undo gives other bytes");
}

#[test]
fn what_may_not_be_written_to_is_left_as_it_is() {
    if !has_tools(&["unshare", "chattr", "setpriv"]) {
        return;
    }
    let (name, start) = damaged().swap_remove(0);
    let bench = Bench::new();
    let scripts = [
        (
            "a read-only mount",
            "mkdir room && cp image.qcow2 room && mount --bind room room && mount -o remount,bind,ro room || exit 99\n\
             cd room; $QFSCK repair --yes image.qcow2; end=$?; cp image.qcow2 ../image.qcow2; exit $end",
        ),
        (
            "an immutable file",
            "chattr +i image.qcow2 2>none || exit 99\n$QFSCK repair --yes image.qcow2; end=$?; chattr -i image.qcow2; exit $end",
        ),
        (
            "somebody else's file",
            "mkdir theirs && cp image.qcow2 theirs && chmod 444 theirs/* && chmod 755 . theirs || exit 99\n\
             cd theirs; setpriv --reuid 65534 --clear-groups $QFSCK check image.qcow2 >../none 2>&1; [ $? = 2 ] || exit 99\n\
             setpriv --reuid 65534 --clear-groups $QFSCK repair --yes image.qcow2; end=$?\n\
             cp image.qcow2 ../image.qcow2; exit $end",
        ),
    ];
    for (what, text) in scripts {
        bench.lay(&start, None);
        let Some(ended) = script(&bench, text) else {
            continue;
        };
        assert_eq!(ended.exit, Some(1), "{name}, {what}: {ended:?}");
        assert!(ended.says("cannot"), "{name}, {what}: {ended:?}");
        assert!(bench.image() == start, "{name}, {what}: changed");
    }
}

#[test]
fn at_a_limit_of_file_sizes_nothing_is_lost() {
    let (name, start) = damaged().swap_remove(0);
    let bench = Bench::new();
    let mut score = Score::default();
    for blocks in 0..16 {
        bench.lay(&start, None);
        let mut command = Command::new("sh");
        let text = format!("ulimit -f {blocks}; exec \"$QFSCK\" repair --yes {IMAGE}");
        command
            .args(["-c", &text])
            .env("QFSCK", env!("CARGO_BIN_EXE_qfsck"));
        let ended = bench.run(command);
        score.faults += usize::from(!ended.is_done());
        // A process over the limit is killed, unless it asks not to be; then it is told, and says so.
        ends_well(&ended).unwrap_or_else(|why| panic!("{name}, {blocks}: {why}: {ended:?}"));
        can_go_back(&bench, &start, &mut score).expect("a way back");
    }
    println!(
        "{} limits, {} images put back by undo",
        score.faults, score.undone
    );
    assert!(score.faults > 1, "{score:?}");
}
