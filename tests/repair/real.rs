//! Bitmaps and snapshots that `qemu-img` made, damaged and repaired, and then read by `qemu-img` and `qemu-io`.
//!
//! Comes in: images of the real tools with two bitmaps and two snapshots. Goes out: nothing, or what is not there any more.
//! Never here: images that were forged (`bitmaps`, `snapshots`).

use std::process::Command;

use super::binary::{Bench, IMAGE};
use super::headline::{Patient, reads_as_written, their_verdict};

const BITMAPS: [&str; 2] = ["changes", "nightly"];
const SNAPSHOTS: [&str; 2] = ["first", "other"];

/// Damages after which nothing tells where a bitmap's table is.
const HIDES_TABLE: [&str; 2] = ["table offset", "second table offset"];

fn patient() -> Option<Patient> {
    let add = |name| ["qemu-img", "bitmap", "--add", IMAGE, name];
    let [changes, nightly] = BITMAPS.map(add);
    let mark = [
        "qemu-io",
        "-f",
        "qcow2",
        "-c",
        "write -q -P 0x33 1G 64k",
        IMAGE,
    ];
    let snapshot = ["qemu-img", "snapshot", "-c", "other", IMAGE];
    Patient::new(&[&snapshot, &changes, &nightly, &mark])
}

/// Repairs a damaged image, and holds that the real tools find these bitmaps and all snapshots afterwards, and read what
/// was written.
fn mends(name: &str, patient: &Patient, bitmaps: &[&str]) {
    let bench = Bench::new();
    bench.lay(&patient.bytes, None);
    let ended = bench.qfsck(&["repair", "--yes", IMAGE]);
    let verdict = bench.qfsck(&["check", IMAGE]).exit;
    assert!(bench.image() != patient.bytes, "{name}: nothing is damaged");
    // Where nothing leads to the bitmap's table any more, it stays behind as a leak, and with it what it names.
    let wanted = if HIDES_TABLE.contains(&name) { 3 } else { 0 };
    assert_eq!(verdict, Some(wanted), "{name}: {ended:?}");
    assert_eq!(their_verdict(&bench), verdict, "{name}");
    reads_as_written(name, &bench);
    let ask = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(arguments).arg(bench.path(IMAGE));
        let output = command.output().expect("qemu-img can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = ask(&["info", "-f", "qcow2"]);
    for bitmap in BITMAPS {
        let is_listed = listed.contains(&format!("name: {bitmap}"));
        assert_eq!(is_listed, bitmaps.contains(&bitmap), "{name}: {listed}");
    }
    let listed = ask(&["snapshot", "-l"]);
    for snapshot in SNAPSHOTS {
        assert!(listed.contains(snapshot), "{name}: {listed}");
    }
}

#[test]
fn bitmaps_of_the_real_tools_are_dropped_one_by_one() {
    let damages: [(&str, u64, &[u8], &[&str]); 8] = [
        ("table offset", 6, &[2, 0], &["nightly"]),
        ("table size", 11, &[9], &["nightly"]),
        ("flags", 12, &[0x80], &["nightly"]),
        ("type", 16, &[7], &["nightly"]),
        ("granularity", 17, &[99], &["nightly"]),
        ("second table offset", 32 + 6, &[2, 0], &["changes"]),
        ("second type", 32 + 16, &[7], &["changes"]),
        ("two of one name", 32 + 24, b"changes", &[]),
    ];
    for (name, within, bytes, left) in damages {
        let Some(mut patient) = patient() else {
            return;
        };
        let at = patient.bitmap_directory() + within;
        patient.put(at, bytes);
        mends(name, &patient, left);
    }
}

#[test]
fn entries_of_a_real_bitmap_table_that_are_damaged_drop_the_bitmap() {
    for (name, word) in [("unaligned", 0x1200_u64), ("reserved", 2), ("far", 1 << 40)] {
        let Some(mut patient) = patient() else {
            return;
        };
        let table = patient.u64_at(patient.bitmap_directory());
        patient.put_u64(table, word);
        mends(name, &patient, &["nightly"]);
    }
}

#[test]
fn snapshots_of_the_real_tools_are_all_there() {
    for name in ["count", "same ID"] {
        let Some(mut patient) = patient() else {
            return;
        };
        if name == "count" {
            patient.put(63, &[3]);
        } else {
            let first = patient.u64_at(64);
            // 40 bytes, 24 of extra data, an ID of one digit and a name of five.
            let second = first + (40 + 24 + 1 + 5_u64).next_multiple_of(8);
            assert_eq!(patient.u64_at(second + 64) >> 56, u64::from(b'2'));
            patient.put(second + 64, b"1");
        }
        mends(name, &patient, &BITMAPS);
    }
}
