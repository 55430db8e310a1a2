//! A check whose system calls fail: it ends with the right exit code, and never calls an image clean that is not.
//!
//! Comes in: images of the corpus, and a fault at the n-th call, for every n. Goes out: how many faults were put in. Never
//! here: what exactly a check makes of what it could read (`crate::faults`), reads that are merely short (`short_io`).

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::binary::{Bench, Ended, IMAGE, Injection, can_trace, in_parallel};

/// What goes wrong, from which call on, and whether the image is then another one than it was: `retval=0` is a read past
/// an end that came closer.
const FAULTS: [(&str, &str, &str); 13] = [
    ("pread64", "error=EIO", ""),
    ("pread64", "error=EIO", "+"),
    ("pread64", "error=EINTR", ""),
    ("pread64", "retval=0", ""),
    ("pread64", "retval=0", "+"),
    ("preadv2", "error=EAGAIN", ""),
    ("preadv2", "error=EINTR", ""),
    ("preadv2", "error=EIO", ""),
    ("preadv2", "error=EOPNOTSUPP", "+"),
    ("preadv2", "retval=1", "+"),
    ("lseek", "error=EIO", ""),
    ("lseek", "error=EINVAL", "+"),
    ("fadvise64", "error=EIO", "+"),
];

const LOOKS: [&[&str]; 2] = [
    &["check", "--output", "json", IMAGE],
    &["check", "--deep", "--output", "json", IMAGE],
];

/// Clean ones, leaks, and corruptions that only one read shows.
pub(super) fn images() -> Vec<(String, Vec<u8>)> {
    let names = [
        "002-v3-plain",
        "015-snapshots-diverged",
        "100-refcount-leak",
        "104-refcount-zero-data",
    ];
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let read = |name: &str| {
        let bytes = fs::read(corpus.join(name).join("image.qcow2"));
        (name.to_owned(), bytes.expect("the corpus has this case"))
    };
    names.map(read).into()
}

fn judge(ended: &Ended, healthy: &Ended, calls: &str, what: &str) -> Result<(), String> {
    if (ended.exit, &ended.stdout) == (healthy.exit, &healthy.stdout) {
        return Ok(());
    }
    if what == "error=EINTR" {
        return Err("an interruption is no fault".to_owned());
    }
    if calls == "preadv2" {
        return Err("a try that comes to nothing is no fault".to_owned());
    }
    let document: Value = serde_json::from_str(&ended.stdout).map_err(|error| error.to_string())?;
    match ended.exit {
        // What fails is told, in the document and by the exit code.
        Some(1) if document.get("check-errors") != Some(&Value::from(0)) => Ok(()),
        // A file that ends sooner is another one, and may be damaged otherwise.
        Some(1..=3 | 5 | 63) if what == "retval=0" => Ok(()),
        Some(0) if healthy.exit == Some(0) && what == "retval=0" => Ok(()),
        _ => Err("another answer, without a reason".to_owned()),
    }
}

#[test]
fn whatever_call_of_a_check_fails_the_exit_code_says_so() {
    if !can_trace() {
        return;
    }
    let images = images();
    let mut work = Vec::new();
    for image in &images {
        for look in LOOKS {
            work.extend(FAULTS.map(|fault| (image, look, fault)));
        }
    }
    let results = in_parallel(work, |((name, bytes), look, (calls, what, lasts))| {
        let bench = Bench::new();
        bench.lay(bytes, None);
        let healthy = bench.qfsck(look);
        let (mut faults, mut overcome) = (0, 0);
        for when in 1..400 {
            let injection = Injection {
                calls,
                what,
                when: format!("{when}{lasts}"),
                only_file: Some(IMAGE),
            };
            let ended = bench.tampered(&injection, look);
            if !ended.is_injected {
                break;
            }
            faults += 1;
            overcome += usize::from(ended.stdout == healthy.stdout);
            if let Err(why) = judge(&ended, &healthy, calls, what) {
                let at = format!("{name}, {look:?}, {calls} {when}{lasts} {what}");
                return Err(format!("{at}: {why}: {ended:?}"));
            }
        }
        Ok((faults, overcome))
    });
    let results: Result<Vec<(usize, usize)>, String> = results.into_iter().collect();
    let results = results.expect("every check ends well");
    let faults: usize = results.iter().map(|(faults, _)| faults).sum();
    let overcome: usize = results.iter().map(|(_, overcome)| overcome).sum();
    println!("{faults} failing calls put into checks, {overcome} overcome");
    assert!(faults > 300 && overcome > 30, "{faults} {overcome}");
}
