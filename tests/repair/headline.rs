//! Headline: ten ways to lose data with `qemu-img check -r`, and that a repair here loses none of it.
//!
//! Comes in: images made by the real tools, with one damage each. Goes out: a line for each on what the other tool lost.
//! Never here: a claim about one version of the other tool; what it does is shown and only ours is asserted.

use std::fs;
use std::process::Command;

use super::binary::{Bench, Ended, IMAGE};
use super::guest::Guest;
use super::has_qemu_img;

const MASK: u64 = 0x00ff_ffff_ffff_fe00;
const CLUSTER: u64 = 65_536;
const THEIRS: &str = "theirs.qcow2";
const COPY: &str = "first.qcow2";

/// A real image, to be damaged.
pub(super) struct Patient {
    pub(super) bytes: Vec<u8>,
}

impl Patient {
    /// 2 GiB, two L2 tables, a snapshot that differs in two clusters, and whatever `more` does.
    pub(super) fn new(more: &[&[&str]]) -> Option<Self> {
        if !has_qemu_img() {
            return None;
        }
        let bench = Bench::new();
        let write = |commands: &'static [&'static str]| {
            let each = commands.iter().flat_map(|command| ["-c", command]);
            let start = ["qemu-io", "-f", "qcow2"].into_iter();
            start.chain(each).chain([IMAGE]).collect::<Vec<_>>()
        };
        let mut commands = vec![
            vec!["qemu-img", "create", "-q", "-f", "qcow2", IMAGE, "2G"],
            write(&["write -q -P 0x11 0 1M", "write -q -P 0x33 1G 256k"]),
            vec!["qemu-img", "snapshot", "-c", "first", IMAGE],
            write(&["write -q -P 0x22 0 128k"]),
        ];
        commands.extend(more.iter().map(|command| command.to_vec()));
        for words in commands {
            let (program, arguments) = words.split_first().expect("a command");
            let mut command = Command::new(program);
            command.args(arguments);
            let ended = bench.run(command);
            assert_eq!(ended.exit, Some(0), "{words:?}: {ended:?}");
        }
        Some(Self {
            bytes: bench.image(),
        })
    }

    fn part(&self, offset: u64, length: u64) -> &[u8] {
        let at = |offset| usize::try_from(offset).expect("a small image");
        self.bytes
            .get(at(offset)..at(offset + length))
            .expect("in the file")
    }

    pub(super) fn u64_at(&self, offset: u64) -> u64 {
        let bytes = self.part(offset, 8);
        bytes
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).expect("a small image");
        let place = self.bytes.get_mut(start..start + bytes.len());
        place.expect("in the file").copy_from_slice(bytes);
    }

    pub(super) fn put_u64(&mut self, offset: u64, value: u64) {
        self.put(offset, &value.to_be_bytes());
    }

    fn l1_table(&self) -> u64 {
        self.u64_at(40)
    }

    fn l2_table(&self, l1_index: u64) -> u64 {
        self.u64_at(self.l1_table() + l1_index * 8) & MASK
    }

    /// Where the bytes of a guest cluster below the first L1 entry are.
    fn data(&self, guest: u64) -> u64 {
        self.u64_at(self.l2_table(0) + guest * 8) & MASK
    }

    fn refcount_table(&self) -> u64 {
        self.u64_at(48)
    }

    fn set_refcount(&mut self, offset: u64, count: u16) {
        let block = self.u64_at(self.refcount_table());
        self.put(block + offset / CLUSTER * 2, &count.to_be_bytes());
    }

    /// Where the bitmap directory is.
    pub(super) fn bitmap_directory(&self) -> u64 {
        let mut at = u64::from(u32::try_from(self.u64_at(96) & 0xffff_ffff).expect("32 bits"));
        loop {
            let head = self.u64_at(at);
            if head >> 32 == 0x2385_2875 {
                return self.u64_at(at + 8 + 16);
            }
            at += 8 + (head & 0xffff_ffff).next_multiple_of(8);
        }
    }
}

/// What became of two copies of an image.
struct Contest {
    ours: Patient,
    ended: Ended,
    /// Exit code of a check afterwards.
    verdict: Option<i32>,
    /// Nothing where the file has become too long to look at.
    theirs: Option<Patient>,
    their_bytes: u64,
}

/// Repairs one copy with each tool. Ours loses nothing that was well defined, and can be undone.
fn contest(name: &str, patient: &Patient, mode: &str) -> Contest {
    let bench = Bench::new();
    bench.lay(&patient.bytes, None);
    fs::copy(bench.path(IMAGE), bench.path(THEIRS)).expect("a copy");
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "-f", "qcow2", "-r", mode, THEIRS]);
    let their_end = bench.run(command);
    let their_bytes = fs::metadata(bench.path(THEIRS)).expect("their copy").len();
    let theirs = (their_bytes < 64 << 20).then(|| Patient {
        bytes: fs::read(bench.path(THEIRS)).expect("their copy"),
    });
    let before = Guest::of(&patient.bytes);
    let lost = theirs
        .as_ref()
        .map(|theirs| before.losses(&Guest::of(&theirs.bytes)));
    println!(
        "{name}: qemu-img check -r {mode} ends with {:?}, {their_bytes} bytes, loses {:?}",
        their_end.exit,
        lost.map(|lost| (lost.len(), lost.into_iter().next()))
    );

    let ended = bench.qfsck(&["repair", "--yes", "--mode", mode, IMAGE]);
    let ours = Patient {
        bytes: bench.image(),
    };
    let losses = before.losses(&Guest::of(&ours.bytes));
    assert!(losses.is_empty(), "{name}: {losses:?}");
    let verdict = bench.qfsck(&["check", IMAGE]).exit;
    // H4 damages what was written before the repair.
    if verdict == Some(0) && name != "H4" {
        reads_as_written(name, &bench);
        assert_eq!(their_verdict(&bench), Some(0), "{name}");
    }
    if ours.bytes != patient.bytes {
        let undone = bench.qfsck(&["undo", "image.qcow2.qfsck-undo"]);
        assert_eq!(undone.exit, Some(0), "{name}: {undone:?}");
        assert!(
            bench.image() == patient.bytes,
            "{name}: undo gives other bytes"
        );
    }
    Contest {
        ours,
        ended,
        verdict,
        theirs,
        their_bytes,
    }
}

/// Exit code of the other tool's check.
pub(super) fn their_verdict(bench: &Bench) -> Option<i32> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "-f", "qcow2", IMAGE]);
    bench.run(command).exit
}

/// The other tool's own reader finds what was written, in the active disk and in the first snapshot.
pub(super) fn reads_as_written(name: &str, bench: &Bench) {
    let run = |words: &[&str]| {
        let (program, arguments) = words.split_first().expect("a command");
        let mut command = Command::new(program);
        command.args(arguments);
        let ended = bench.run(command);
        assert_eq!(ended.exit, Some(0), "{name}: {words:?}: {ended:?}");
        assert!(!ended.says("erification failed"), "{name}: {ended:?}");
    };
    let of_snapshot = ["-l", "snapshot.name=first", "-O", "qcow2", IMAGE, COPY];
    let convert = ["qemu-img", "convert", "-f", "qcow2"];
    run(&[&convert[..], &of_snapshot[..]].concat());
    for (image, newest) in [
        (IMAGE, "read -P 0x22 0 128k"),
        (COPY, "read -P 0x11 0 128k"),
    ] {
        let rest = [
            "read -P 0x11 128k 896k",
            "read -P 0 1M 1M",
            "read -P 0x33 1G 256k",
        ];
        for read in [newest].into_iter().chain(rest) {
            run(&["qemu-io", "-r", "-f", "qcow2", "-c", read, image]);
        }
    }
}

/// The bytes of these places are as they were.
fn keeps(name: &str, patient: &Patient, contest: &Contest, places: &[u64]) {
    let is_kept = |after: &Patient| {
        let same = places.iter().filter(|&&at| {
            after.bytes.len() as u64 >= at + CLUSTER
                && after.part(at, CLUSTER) == patient.part(at, CLUSTER)
        });
        same.count()
    };
    let theirs = contest.theirs.as_ref().map(is_kept);
    println!(
        "{name}: of {} clusters with lost data, theirs keeps {theirs:?}",
        places.len()
    );
    assert_eq!(
        is_kept(&contest.ours),
        places.len(),
        "{name}: data that could be saved is gone"
    );
}

#[test]
fn h1_snapshots_of_a_healthy_image_with_a_bitmap_are_kept() {
    let add = ["qemu-img", "bitmap", "--add", IMAGE, "changes"];
    let Some(patient) = Patient::new(&[&add]) else {
        return;
    };
    let contest = contest("H1", &patient, "leaks");
    assert!(
        contest.ours.bytes == patient.bytes,
        "a healthy image is not touched"
    );
    assert_eq!(contest.ended.exit, Some(0));
    assert_eq!(
        Guest::of(&contest.ours.bytes).trees.len(),
        2,
        "the active disk and a snapshot"
    );
}

#[test]
fn h2_the_dirty_bit_stays_until_the_counts_are_right() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    patient.set_refcount(patient.data(0), 0);
    patient.put(79, &[1]);
    let leaks = contest("H2", &patient, "leaks");
    assert!(leaks.ours.bytes == patient.bytes, "no leak, nothing to do");
    assert_eq!(leaks.verdict, Some(2));
    let all = contest("H2", &patient, "all");
    assert_eq!(all.verdict, Some(0));
    assert_eq!(all.ours.part(79, 1), [0], "clean at last");
}

#[test]
fn h3_data_below_a_lost_l1_entry_is_not_freed() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    // Guest clusters 0 and 1 were written after the snapshot: only the active disk leads to them.
    let places = [patient.data(0), patient.data(1), patient.l2_table(0)];
    patient.put_u64(patient.l1_table(), 0);
    for mode in ["leaks", "all"] {
        let contest = contest("H3", &patient, mode);
        keeps("H3", &patient, &contest, &places);
        assert!(contest.ended.says("left as it is"), "{:?}", contest.ended);
        assert_ne!(contest.verdict, Some(0), "still to be looked at");
    }
}

#[test]
fn h4_guest_data_is_not_repaired_as_if_it_were_a_table() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    // What the guest wrote happens to look like a table whose COPIED flags are wrong.
    let entry = (patient.data(5) | 1 << 63).to_be_bytes();
    let like_a_table = entry.repeat(8192);
    patient.put(patient.data(0), &like_a_table);
    let places = [patient.data(1), patient.data(5)];
    let written = patient.part(patient.data(0), CLUSTER).to_vec();
    patient.put_u64(patient.l1_table() + 8, patient.data(0) | 1 << 63);
    let contest = contest("H4", &patient, "all");
    keeps("H4", &patient, &contest, &places);
    // Whether the table or the guest keeps the cluster: the guest has its bytes.
    let ours = &contest.ours;
    assert!(
        ours.part(ours.data(0), CLUSTER) == written,
        "H4: the guest's bytes"
    );
}

#[test]
fn h5_two_owners_of_a_cluster_are_named_and_never_counted_into_health() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    let entry = patient.u64_at(patient.l2_table(0));
    patient.put_u64(patient.l2_table(0) + 8, entry);
    let contest = contest("H5", &patient, "all");
    // Either each has a cluster of its own now, or it is said that they share one.
    let is_parted = contest.ours.data(0) != contest.ours.data(1);
    println!("H5: ours parts them: {is_parted}, {:?}", contest.verdict);
    assert!(
        is_parted || contest.verdict == Some(2),
        "{:?}",
        contest.verdict
    );
}

#[test]
fn h6_a_reserved_bit_in_the_refcount_table_does_not_make_an_image_unusable() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    let table = patient.refcount_table();
    patient.put_u64(table, patient.u64_at(table) | 4);
    let contest = contest("H6", &patient, "all");
    println!("H6: ours ends with {:?}", contest.verdict);
    assert_eq!(
        contest.ours.part(79, 1),
        [0],
        "no corrupt bit, no dirty bit"
    );
    assert_eq!(contest.verdict, Some(0));
}

#[test]
fn h7_a_flipped_high_bit_does_not_grow_the_file() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    let table = patient.refcount_table();
    patient.put_u64(table, patient.u64_at(table) | 1 << 36);
    let contest = contest("H7", &patient, "all");
    let (before, after) = (patient.bytes.len(), contest.ours.bytes.len());
    println!(
        "H7: {before} bytes, ours {after}, theirs {}",
        contest.their_bytes
    );
    assert!(after <= before + (1 << 20), "{before} became {after}");
    assert_eq!(contest.verdict, Some(0), "{:?}", contest.ended);
}

#[test]
fn h8_new_refcount_structures_are_not_written_over_what_may_be_saved() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    let places = [patient.data(0), patient.data(1), patient.l2_table(0)];
    patient.put_u64(patient.l1_table(), 0);
    patient.put_u64(patient.refcount_table(), 0);
    let contest = contest("H8", &patient, "all");
    keeps("H8", &patient, &contest, &places);
}

#[test]
fn h9_a_bad_bitmap_does_not_take_the_disk_with_it() {
    let add = ["qemu-img", "bitmap", "--add", IMAGE, "changes"];
    let Some(mut patient) = Patient::new(&[&add]) else {
        return;
    };
    // The bitmap table is said to be where nothing can be.
    patient.put_u64(patient.bitmap_directory(), 0x1234);
    let contest = contest("H9", &patient, "all");
    println!("H9: ours ends with {:?}", contest.verdict);
    // To be tightened when bitmaps are repaired: the image opens again, and the bitmap is not believed.
    assert!(
        contest.verdict == Some(0) || contest.ended.says("bitmap"),
        "{:?}",
        contest.ended
    );
}

#[test]
fn h10_reserved_bits_lose_nothing_and_are_named() {
    let Some(mut patient) = Patient::new(&[]) else {
        return;
    };
    let entry = patient.l2_table(0);
    patient.put_u64(entry, patient.u64_at(entry) | 1 << 56 | 8);
    let contest = contest("H10", &patient, "all");
    println!("H10: ours ends with {:?}", contest.verdict);
    assert_eq!(contest.verdict, Some(0), "{:?}", contest.ended);
}
