//! Hostile images: a few kilobytes made to cost as much as can be.
//!
//! Comes in: headers and tables written here, most of them in files that are long and almost empty. Goes out: how each run
//! ended, within limits on memory, time, output and files. Never here: whether the findings are right.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::footprint::{calls, expect_one_reading_open};
use super::stage::{QFSCK, Said, Stage, has_tools};

/// A file of almost nothing, as long as a large disk.
pub(super) const LONG: u64 = 256 << 30;
/// Seconds of processor time a check may take, and a repair, which checks many times; the system enforces them. They are
/// the promise for programs as they are released; tests run one that is hardly optimised.
const CHECK_SECONDS: u64 = 10;
const REPAIR_SECONDS: u64 = 40;
pub(super) const MIB: u64 = 1 << 20;

/// Fields of a header of version 3.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1: (u64, u32),
    pub(super) refcount_table: (u64, u32),
    pub(super) snapshots: (u64, u32),
    pub(super) autoclear: u64,
    pub(super) order: u32,
    pub(super) length: u32,
}

pub(super) const HEAD: Head = Head {
    cluster_bits: 9,
    size: 1 << 20,
    l1: (0, 0),
    refcount_table: (0, 0),
    snapshots: (0, 0),
    autoclear: 0,
    order: 4,
    length: 112,
};

impl Head {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
        bytes.extend([0; 12]);
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.l1.1.to_be_bytes());
        bytes.extend(self.l1.0.to_be_bytes());
        bytes.extend(self.refcount_table.0.to_be_bytes());
        bytes.extend(self.refcount_table.1.to_be_bytes());
        bytes.extend(self.snapshots.1.to_be_bytes());
        bytes.extend(self.snapshots.0.to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend(self.autoclear.to_be_bytes());
        bytes.extend(self.order.to_be_bytes());
        bytes.extend(self.length.to_be_bytes());
        bytes.resize(112, 0);
        bytes
    }
}

/// Bytes, and where they are.
pub(super) type Parts = Vec<(u64, Vec<u8>)>;

pub(super) struct Hostile {
    pub(super) name: &'static str,
    pub(super) length: u64,
    pub(super) parts: Parts,
}

impl Hostile {
    pub(super) fn write(&self, path: &Path) {
        let file = File::create(path).expect("a file can be made");
        for (offset, bytes) in &self.parts {
            file.write_all_at(bytes, *offset)
                .expect("it can be written");
        }
        file.set_len(self.length).expect("it can be made long");
    }
}

pub(super) fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_be_bytes).collect()
}

/// The header extension of `count` bitmaps, with their directory.
pub(super) fn bitmaps(count: u32, bytes: u64, offset: u64) -> Vec<u8> {
    let numbers = [0x2385_2875, 24, count, 0].map(u32::to_be_bytes);
    [numbers.concat(), words([bytes, offset])].concat()
}

const COPIED: u64 = 1 << 63;

pub(super) fn image(name: &'static str, length: u64, head: Head, mut parts: Parts) -> Hostile {
    parts.insert(0, (0, head.bytes()));
    Hostile {
        name,
        length,
        parts,
    }
}

fn long(name: &'static str, head: Head, parts: Parts) -> Hostile {
    image(name, LONG, head, parts)
}

fn short(name: &'static str, head: Head, parts: Parts) -> Hostile {
    image(name, 4096, head, parts)
}

fn set() -> Vec<Hostile> {
    let parts = [
        refcounts_in_holes(),
        mappings_in_holes(),
        bitmaps_in_holes(),
        circles(),
        numbers(),
    ];
    let mut set: Vec<_> = parts.into_iter().flatten().collect();
    set.push(pointer_far_away());
    set
}

fn refcounts_in_holes() -> Vec<Hostile> {
    let small_clusters = Head {
        order: 6,
        size: LONG,
        ..HEAD
    };
    vec![
        long(
            "a few refcounts in a long file of small clusters",
            Head {
                l1: (4096, 0x1f_ffff),
                refcount_table: (2048, 4),
                ..small_clusters
            },
            vec![(2048, words([2560, 3072]))],
        ),
        long(
            "a refcount table of 8 MiB in a hole",
            Head {
                l1: (1 << 30, 1 << 22),
                refcount_table: (1 << 32, 16384),
                ..small_clusters
            },
            vec![],
        ),
        long(
            "refcount blocks in a hole",
            Head {
                l1: (1 << 30, 1 << 22),
                refcount_table: (512, 7),
                ..small_clusters
            },
            vec![(512, words((1000..1448).map(|cluster| cluster * 512)))],
        ),
    ]
}

fn mappings_in_holes() -> Vec<Hostile> {
    vec![
        long(
            "65,536 snapshots of zeros",
            Head {
                snapshots: (512, 65536),
                l1: (1024, 1),
                ..HEAD
            },
            vec![],
        ),
        long(
            "four million L1 entries in a hole",
            Head {
                cluster_bits: 16,
                size: 1 << 60,
                l1: (1 << 16, 1 << 22),
                refcount_table: (1 << 30, 128),
                ..HEAD
            },
            vec![],
        ),
        long(
            "one L2 table in a hole, many times",
            Head {
                cluster_bits: 21,
                size: 1 << 50,
                l1: (1 << 21, 1 << 22),
                refcount_table: (1 << 30, 1),
                ..HEAD
            },
            vec![(1 << 21, words([COPIED | 4 << 21; 512]))],
        ),
    ]
}

/// Tables that are many and not small: 8 GiB of zeros, named by 32 KiB.
fn tables_in_a_hole() -> Hostile {
    let tables = 1 << 12;
    let first = 16 << 21;
    let entries = (0..tables).map(|table| COPIED | (first + (table << 21)));
    long(
        "tables of 8 GiB in a hole",
        Head {
            cluster_bits: 21,
            size: 1 << 54,
            l1: (1 << 21, 1 << 12),
            refcount_table: (1 << 30, 1),
            ..HEAD
        },
        vec![(1 << 21, words(entries))],
    )
}

/// A bitmap's entry of 32 bytes; its table begins at 1 GiB, its granularity is 512 bytes.
pub(super) fn bitmap(number: u64, table_entries: u32) -> Vec<u8> {
    let name = format!("n{number:07}");
    let table = [
        words([1 << 30]),
        table_entries.to_be_bytes().to_vec(),
        vec![0; 4],
    ];
    let rest = [[1, 9, 0, 8], [0; 4]].concat();
    [table.concat(), rest, name.into_bytes()].concat()
}

/// `count` bitmaps that all have one table.
fn bitmaps_of_one_table(
    name: &'static str,
    length: u64,
    head: Head,
    (count, table_entries): (u32, u32),
    mut parts: Parts,
) -> Hostile {
    let bytes = u64::from(count) * 32;
    let entries = (0..u64::from(count)).flat_map(|number| bitmap(number, table_entries));
    parts.push((112, bitmaps(count, bytes, 1 << 22)));
    parts.push((1 << 22, entries.collect()));
    let head = Head {
        autoclear: 1,
        ..head
    };
    image(name, length, head, parts)
}

fn bitmaps_in_holes() -> Vec<Hostile> {
    vec![
        long(
            "65,535 bitmaps of zeros",
            Head {
                autoclear: 1,
                size: 1 << 40,
                ..HEAD
            },
            vec![(112, bitmaps(65535, 65535 * 64, 1 << 20))],
        ),
        bitmaps_of_one_table(
            "100 bitmaps that share one table of 8 MiB in a hole",
            LONG,
            Head {
                size: 1 << 60,
                ..HEAD
            },
            (100, 1 << 20),
            vec![],
        ),
    ]
}

/// An entry of the snapshot table, of 72 bytes.
pub(super) fn snapshot(number: u32, l1_offset: u64, l1_size: u32) -> Vec<u8> {
    let name = format!("{number:08}");
    let start = [words([l1_offset]), l1_size.to_be_bytes().to_vec()].concat();
    let lengths = [[0, 8], [0, 0]].concat();
    let rest = [vec![0; 20], 16_u32.to_be_bytes().to_vec(), words([0, 0])].concat();
    let mut entry = [start, lengths, rest, name.into_bytes()].concat();
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

/// Snapshots, each with an L1 table at a place and of a size.
fn snapshots(
    name: &'static str,
    tables: impl IntoIterator<Item = (u64, u32)>,
    mut parts: Parts,
) -> Hostile {
    let tables: Vec<_> = (0..).zip(tables).collect();
    let entries = tables
        .iter()
        .flat_map(|&(number, (offset, size))| snapshot(number, offset, size));
    parts.push((1 << 20, entries.collect()));
    let count = u32::try_from(tables.len()).expect("not so many");
    let head = Head {
        snapshots: (1 << 20, count),
        ..HEAD
    };
    image(name, 8 << 40, head, parts)
}

/// Claims that lie over one another: few bytes name the same long table many times.
fn tables_that_are_shared() -> Vec<Hostile> {
    let (one, largest) = (1 << 30, 1 << 22);
    let small_clusters = (0..8192).map(|entry| (8 << 20) + entry * 512);
    vec![
        bitmaps_of_one_table(
            "16,384 bitmaps that share one table of 8 MiB in a hole",
            LONG,
            Head {
                size: 1 << 60,
                ..HEAD
            },
            (1 << 14, 1 << 20),
            vec![],
        ),
        snapshots(
            "8,192 snapshots that share an L1 table of 32 MiB in a hole",
            vec![(one, largest); 1 << 13],
            vec![],
        ),
        snapshots(
            "8,192 snapshots that share an L1 table that names one L2 table",
            vec![(one, 1 << 19); 1 << 13],
            vec![(one, words(vec![1 << 29; 1 << 19]))],
        ),
        snapshots(
            "8,192 L1 tables of different lengths that begin at one place, all unaligned",
            (0..1 << 13).map(|number| (one, 1 + number * 8)),
            vec![(one, words(vec![(1 << 29) + 256 * 3; 1 << 16]))],
        ),
        bitmaps_of_one_table(
            "2,048 bitmaps that share a table that names 8,192 clusters",
            64 << 34,
            Head {
                size: 8192 << 21,
                ..HEAD
            },
            (2048, 8192),
            (1..64)
                .map(|window| (window << 34, vec![1]))
                .chain([(one, words(small_clusters))])
                .collect(),
        ),
        bitmaps_of_one_table(
            "8,192 bitmaps that end in one cluster of 2 MiB of a hole",
            2 << 30,
            Head {
                cluster_bits: 21,
                size: 512_000,
                ..HEAD
            },
            (1 << 13, 1),
            vec![(one, words([10 << 21]))],
        ),
    ]
}

/// A refcount table of 8 MiB that names one block of ones everywhere: counts for four billion clusters, all of them in the
/// file, which may not grow.
fn one_block_of_counts() -> Hostile {
    image(
        "a refcount table that names one block 1,048,576 times",
        1 << 41,
        Head {
            size: 1 << 15,
            l1: (65 << 20, 1),
            refcount_table: (1 << 20, 1 << 14),
            order: 0,
            ..HEAD
        },
        vec![
            (1 << 20, words(vec![64 << 20; 1 << 20])),
            (64 << 20, vec![0xff; 512]),
            (65 << 20, words([COPIED | 1 << 50])),
        ],
    )
}

fn circles() -> Vec<Hostile> {
    vec![
        short(
            "the L1 table is the header",
            Head {
                l1: (0, 14),
                refcount_table: (0, 1),
                ..HEAD
            },
            vec![],
        ),
        short(
            "every table is every other, and itself",
            Head {
                l1: (512, 64),
                refcount_table: (512, 1),
                ..HEAD
            },
            vec![(512, words([512; 448]))],
        ),
        short(
            "an L2 table that maps itself",
            Head {
                l1: (512, 64),
                refcount_table: (1024, 1),
                ..HEAD
            },
            vec![(512, words([COPIED | 512; 448]))],
        ),
    ]
}

fn numbers() -> Vec<Hostile> {
    vec![
        short(
            "the largest numbers",
            Head {
                size: 1 << 63,
                l1: (512, u32::MAX),
                refcount_table: (512, u32::MAX),
                snapshots: (512, u32::MAX),
                ..HEAD
            },
            vec![],
        ),
        short(
            "the longest header",
            Head {
                length: u32::MAX,
                ..HEAD
            },
            vec![],
        ),
        short(
            "the longest extension",
            HEAD,
            vec![(112, [0x2385_2875, u32::MAX].map(u32::to_be_bytes).concat())],
        ),
        short(
            "clusters of 256 bytes",
            Head {
                cluster_bits: 8,
                ..HEAD
            },
            vec![],
        ),
        short(
            "clusters of 8 EiB",
            Head {
                cluster_bits: 63,
                ..HEAD
            },
            vec![],
        ),
        short("refcounts of 128 bits", Head { order: 7, ..HEAD }, vec![]),
    ]
}

fn pointer_far_away() -> Hostile {
    image(
        "a pointer to 4 TiB",
        5 << 16,
        Head {
            cluster_bits: 16,
            size: 1 << 30,
            l1: (1 << 16, 2),
            refcount_table: (2 << 16, 1),
            ..HEAD
        },
        vec![
            (1 << 16, words([COPIED | 3 << 16])),
            (2 << 16, words([4 << 16])),
            (3 << 16, words([COPIED | 4 << 40])),
            (4 << 16, [1_u16.to_be_bytes(); 5].concat()),
        ],
    )
}

/// Runs qfsck with so much memory for all it holds and has the right to write to: more than it is ever resident.
pub(super) fn within(
    stage: &Stage,
    (memory_bytes, seconds): (u64, u64),
    arguments: &[&str],
) -> Said {
    let limit = format!("--data={memory_bytes}");
    let time = format!("--cpu={seconds}");
    let start = [limit.as_str(), &time, QFSCK];
    stage.run("prlimit", start.iter().chain(arguments))
}

#[track_caller]
pub(super) fn expect_cheap(said: &Said, output_bytes: usize, about: &str) {
    assert!(
        matches!(said.exit, Some(0..=3)),
        "{about}: {:?}: {}",
        said.exit,
        said.err()
    );
    let output = said.stdout.len() + said.stderr.len();
    assert!(output <= output_bytes, "{about} wrote {output} bytes");
    for bytes in [&said.stdout, &said.stderr] {
        let odd = bytes.iter().find(|&&byte| byte < 0x20 && byte != b'\n');
        assert_eq!(odd, None, "{about}");
    }
}

#[test]
fn sixteen_mebibytes_are_enough_to_check_what_a_stranger_made() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let stage = Stage::new();
    // A repair reads the tables many times, and is not held to these limits with so many.
    let more = tables_that_are_shared()
        .into_iter()
        .chain([tables_in_a_hole()]);
    for hostile in set().into_iter().chain(more) {
        hostile.write(&stage.path("image"));
        let about = hostile.name;
        let said = within(
            &stage,
            (16 * MIB, CHECK_SECONDS),
            &["check", "-j", "1", "image"],
        );
        expect_cheap(&said, 16 << 10, about);
        let deep = ["check", "-j", "1", "--deep", "--untrusted", "image"];
        expect_cheap(
            &within(&stage, (32 * MIB, CHECK_SECONDS), &deep),
            64 << 10,
            about,
        );
        let json = ["check", "-j", "1", "--output", "json", "image"];
        expect_cheap(
            &within(&stage, (32 * MIB, CHECK_SECONDS), &json),
            2 << 20,
            about,
        );
    }
}

#[test]
fn counts_of_one_block_that_a_million_entries_name_cost_no_more_than_the_table() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let stage = Stage::new();
    let hostile = one_block_of_counts();
    hostile.write(&stage.path("image"));
    let runs: [(u64, &[&str]); 3] = [
        (CHECK_SECONDS, &["check", "-j", "1", "image"]),
        (
            CHECK_SECONDS,
            &["check", "-j", "1", "--max-memory", "100M", "image"],
        ),
        (REPAIR_SECONDS, &["repair", "--dry-run", "image"]),
    ];
    for (seconds, arguments) in runs {
        let said = within(&stage, (320 * MIB, seconds), arguments);
        expect_cheap(&said, 16 << 10, hostile.name);
        let out = said.out();
        assert!(out.contains("refcount-leak"), "{out}");
        if arguments[0] == "check" {
            assert!(out.contains("more of them than is believed"), "{out}");
        }
    }
}

/// L2 tables of 2 MiB, each with one entry, for a cluster that is not counted; `at` is where in the table it is.
fn large_tables_of_one_entry(count: u64, at: u64) -> Hostile {
    let (bits, first) = (21, 16);
    let tables = (0..count).map(|table| (first + table) << bits);
    let entry = |(number, table)| {
        let cluster = (first + count + number) << bits;
        (table + at, words([COPIED | cluster]))
    };
    let named = words(tables.clone().map(|table| COPIED | table));
    let mut parts: Parts = (0..).zip(tables).map(entry).collect();
    parts.extend([(1 << bits, named), (2 << bits, words([3 << bits]))]);
    image(
        "L2 tables of 2 MiB with one entry each",
        (first + 2 * count) << bits,
        Head {
            cluster_bits: 21,
            size: count << (bits + 18),
            l1: (1 << bits, u32::try_from(count).expect("not so many")),
            refcount_table: (2 << bits, 1),
            ..HEAD
        },
        parts,
    )
}

#[test]
fn of_large_tables_that_are_mostly_hole_only_what_is_stored_is_read() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let stage = Stage::new();
    for (count, at) in [(4000, 0), (200, 1 << 20), (200, (2 << 20) - 8)] {
        let hostile = large_tables_of_one_entry(count, at);
        hostile.write(&stage.path("image"));
        let check = ["check", "-j", "1", "image"];
        // Read whole, they would be 16 GB.
        let said = within(&stage, (32 * MIB, 6), &check);
        expect_cheap(&said, 16 << 10, hostile.name);
        // Tables, what they map, and four structures.
        let lost = format!("refcount zero ({}×)", 2 * count + 4);
        assert!(said.out().contains(&lost), "{at}: {}", said.out());
    }
}

#[test]
fn nothing_is_written_to_an_image_of_which_not_all_tables_were_walked() {
    let stage = Stage::new();
    let hostile = tables_that_are_shared().swap_remove(0);
    hostile.write(&stage.path("image"));
    let check = stage.qfsck(["check", "--output", "json", "image"]);
    assert!(check.out().contains("work-limit"), "{}", check.out());
    let repair = stage.qfsck(["repair", "--yes", "image"]);
    let said = [repair.out(), repair.err()].concat();
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("longer than what is walked"), "{said}");
    assert!(!stage.path("image.qfsck-undo").exists(), "{said}");
}

#[test]
fn a_repair_of_what_a_stranger_made_grows_it_by_no_more_than_a_few_structures() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let stage = Stage::new();
    for hostile in set() {
        let path = stage.path("image");
        hostile.write(&path);
        let about = hostile.name;
        let before = fs::metadata(&path).expect("it is there");
        let repair = ["repair", "--yes", "image"];
        expect_cheap(
            &within(&stage, (128 * MIB, REPAIR_SECONDS), &repair),
            16 << 10,
            about,
        );
        let after = fs::metadata(&path).expect("it is there");
        let word = u32::from_be_bytes(hostile.parts[0].1[20..24].try_into().expect("four bytes"));
        // At most an L2 table, a refcount block and a refcount table, and what was only a part of a cluster.
        let room = 4 * (1_u64 << word.clamp(12, 21));
        assert!(
            after.len() <= before.len() + room,
            "{about}: {} bytes became {}",
            before.len(),
            after.len()
        );
        assert!(
            after.blocks() * 512 <= before.blocks() * 512 + room,
            "{about}: {} blocks became {}",
            before.blocks(),
            after.blocks()
        );
        let undo_file = stage.path("image.qfsck-undo");
        if undo_file.exists() {
            let kept = fs::metadata(&undo_file).expect("it is there").len();
            assert!(kept <= MIB, "{about}: an undo file of {kept} bytes");
            let undone = stage.qfsck(["undo", "image.qfsck-undo"]);
            expect_cheap(&undone, 4 << 10, about);
            assert_eq!(
                fs::metadata(&path).expect("it is there").len(),
                before.len()
            );
        }
    }
}

#[test]
fn what_a_stranger_made_opens_no_other_file() {
    if !has_tools(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    for hostile in set() {
        hostile.write(&stage.path("image"));
        let check = ["check", "--deep", "--untrusted", "image"];
        let Some(calls) = calls(&stage, &check) else {
            return;
        };
        expect_one_reading_open(&calls, "image", &[]);
    }
}

/// Entries that each name a cluster in the range of another refcount block; there is none of these blocks.
fn entries_far_apart(count: u64) -> Hostile {
    const CLUSTER: u64 = 1 << 16;
    // At 64 bits for a count.
    const RANGE: u64 = CLUSTER / 8 * CLUSTER;
    let head = Head {
        cluster_bits: 16,
        size: CLUSTER / 8 * CLUSTER,
        l1: (4 << 20, 1),
        refcount_table: (1 << 20, 1),
        order: 6,
        ..HEAD
    };
    let entries = (1..=count).map(|number| COPIED | (number * RANGE));
    image(
        "entries far apart",
        (count + 1) * RANGE,
        head,
        vec![
            (1 << 20, words([2 << 20])),
            (2 << 20, vec![0; 1 << 16]),
            (4 << 20, words([COPIED | (8 << 20)])),
            (8 << 20, words(entries)),
        ],
    )
}

#[test]
fn a_few_entries_far_apart_do_not_make_a_large_file_of_a_small_one() {
    const MOST: u64 = 64 << 20;
    let stage = Stage::new();
    let path = stage.path("image");
    let length = || fs::metadata(&path).expect("it is there").len();
    for (count, is_repaired) in [(900, true), (1100, false)] {
        let hostile = entries_far_apart(count);
        hostile.write(&path);
        let repair = stage.qfsck(["repair", "--yes", "image"]);
        let said = [repair.out(), repair.err()].concat();
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let grown = length() - hostile.length;
        assert_eq!(grown > 0, is_repaired, "{count} entries: {said}");
        assert!(grown <= MOST, "{count} entries: {grown} bytes more");
        let is_withheld = words.contains("grow by more than 64 MiB");
        assert_eq!(is_withheld, !is_repaired, "{count} entries: {said}");
        let again = stage.qfsck(["repair", "--dry-run", "image"]);
        assert!(again.out().contains("nothing"), "{}", again.out());
        fs::remove_file(stage.path("image.qfsck-undo")).expect("something was written");
    }
}
