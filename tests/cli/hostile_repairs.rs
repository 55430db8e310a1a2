//! Hostile images that are cheap to check, and made to be dear to repair or to read through.
//!
//! Comes in: a few kilobytes that name much, or the same thing often. Goes out: how the run ended, within limits on memory
//! and processor time that the system enforces. Never here: whether what is planned is right.

use super::hostile::{
    HEAD, Head, Hostile, MIB, Parts, bitmap, bitmaps, expect_cheap, image, snapshot, within, words,
};
use super::stage::{Stage, has_tools};

/// What everything here may take: seconds of processor time of a program that is hardly optimised, and memory.
const SECONDS: u64 = 5;
const MEMORY: u64 = 160 * MIB;

#[track_caller]
fn expect_cheap_run(hostile: &Hostile, arguments: &[&str]) -> String {
    expect_within(hostile, SECONDS, arguments)
}

#[track_caller]
fn expect_within(hostile: &Hostile, seconds: u64, arguments: &[&str]) -> String {
    let stage = Stage::new();
    hostile.write(&stage.path("image"));
    let said = within(&stage, (MEMORY, seconds), &[arguments, &["image"]].concat());
    expect_cheap(&said, 32 << 10, hostile.name);
    [said.out(), said.err()].concat()
}

const DRY_RUN: [&str; 2] = ["repair", "--dry-run"];

/// Bits, one for each cluster that has a count of one.
fn counts_of_one(clusters: impl IntoIterator<Item = u64>, bytes: usize) -> Vec<u8> {
    let mut block = vec![0; bytes];
    for cluster in clusters {
        let index = usize::try_from(cluster).expect("a small number");
        block[index / 8] |= 1 << (index % 8);
    }
    block
}

/// Snapshots, each with an L1 table of one entry in a hole of its own, and one leaked cluster. `stored` is in the last
/// bytes of each of the tables' clusters.
fn far_l1_tables(count: u32, stored: &[u8]) -> Hostile {
    let cluster = 1 << 21;
    let end = 16 + u64::from(count);
    let table =
        (0..count).flat_map(|number| snapshot(number, (16 + u64::from(number)) * cluster, 1));
    let used = [0, 1, 2, 4].into_iter().chain(16..=end);
    let tails = (16..end).map(|at| ((at + 1) * cluster - stored.len() as u64, stored.to_vec()));
    image(
        "snapshots with L1 tables in holes of their own",
        (end + 1) * cluster,
        Head {
            cluster_bits: 21,
            size: 0,
            refcount_table: (cluster, 1),
            snapshots: (4 * cluster, count),
            order: 0,
            ..HEAD
        },
        [
            (cluster, words([2 * cluster])),
            (2 * cluster, counts_of_one(used, 1 << 21)),
            (4 * cluster, table.collect()),
        ]
        .into_iter()
        .chain(tails)
        .collect(),
    )
}

#[test]
fn ends_of_tables_that_lie_in_holes_are_not_read_through_for_what_is_leaked() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    for stored in [&[][..], &[b'x'; 8]] {
        let said = expect_cheap_run(&far_l1_tables(8192, stored), &DRY_RUN);
        assert!(said.contains("refcount-leak"), "{said}");
    }
}

/// A file that may not grow, with a count of one for each of millions of clusters that nothing uses.
fn no_free_cluster(blocks: u64) -> Hostile {
    let (table, first_block) = (1 << 20, 8 << 20);
    image(
        "a file that may not grow, and has no free cluster",
        (blocks * 4096) << 9,
        Head {
            size: 1 << 15,
            l1: (4 << 20, 1),
            refcount_table: (table, u32::try_from(blocks / 64).expect("not so many")),
            order: 0,
            ..HEAD
        },
        vec![
            (
                table,
                words((0..blocks).map(|block| first_block + block * 512)),
            ),
            (4 << 20, words([1 << 63 | 1 << 50])),
            (
                first_block,
                vec![0xff; usize::try_from(blocks * 512).expect("megabytes")],
            ),
        ],
    )
}

#[test]
fn what_is_planned_for_clusters_that_are_alike_is_planned_for_all_of_them_at_once() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let said = expect_within(&no_free_cluster(1 << 15), 12, &DRY_RUN);
    assert!(said.contains("l2-table-past-end"), "{said}");
    assert!(said.contains("refcount-leak (134"), "{said}");
}

/// Four million L2 tables in a hole.
fn tables_in_a_hole() -> Hostile {
    let (bits, count, first) = (16, 1 << 22, 2048);
    image(
        "four million L2 tables in a hole",
        (first + count + 16) << bits,
        Head {
            cluster_bits: bits,
            size: count << (bits + 13),
            l1: (1 << 20, 1 << 22),
            refcount_table: (1 << 28, 1),
            ..HEAD
        },
        vec![(
            1 << 20,
            words((0..count).map(|table| 1 << 63 | (first + table) << bits)),
        )],
    )
}

#[test]
fn who_is_told_to_stop_does_not_say_of_millions_of_tables_what_was_not_read() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let stage = Stage::new();
    tables_in_a_hole().write(&stage.path("image"));
    for command in [["check", "-j", "1"], ["check", "--deep", "-j1"]] {
        let budget = ["--budget", "300ms", "image"];
        let said = within(
            &stage,
            (700 * MIB, SECONDS),
            &[&command[..], &budget].concat(),
        );
        assert_eq!(said.exit, Some(6), "{}", said.err());
    }
}

/// L2 entries without COPIED, one for each sector of counts, all of clusters that are not counted.
fn lost_counts(entries: u64) -> Hostile {
    let (bits, per_sector, per_block) = (16, 64, 8192);
    let (table, l1, first_block) = (1, 2, 3);
    let blocks = (entries * per_sector).div_ceil(per_block) + 1;
    let tables = entries.div_ceil(per_block);
    let first_table = first_block + blocks;
    let data = (first_table + tables).next_multiple_of(per_sector);
    let mut parts: Parts = vec![
        (
            table << bits,
            words((0..blocks).map(|block| (first_block + block) << bits)),
        ),
        (
            l1 << bits,
            words((0..tables).map(|it| 1 << 63 | (first_table + it) << bits)),
        ),
        (
            first_block << bits,
            words((0..first_table + tables).map(|_| 1)),
        ),
    ];
    let mapped = (0..entries).map(|entry| (data + entry * per_sector) << bits);
    parts.push((first_table << bits, words(mapped)));
    image(
        "L2 entries that have lost their counts, one for each sector of counts",
        (data + entries * per_sector + 1) << bits,
        Head {
            cluster_bits: 16,
            size: (tables * per_block) << bits,
            l1: (l1 << bits, u32::try_from(tables).expect("a few")),
            refcount_table: (table << bits, 1),
            order: 6,
            ..HEAD
        },
        parts,
    )
}

#[test]
fn counts_of_a_region_are_read_once_however_many_of_them_are_lost() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let said = expect_cheap_run(&lost_counts(32768), &DRY_RUN);
    assert!(said.contains("refcount-zero"), "{said}");
}

#[test]
fn an_l1_table_that_thousands_of_snapshots_share_is_looked_at_once_for_other_damage() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let (one, count) = (1 << 30, 16384);
    let table = (0..count).flat_map(|number| snapshot(number, one, 1 << 22));
    let hostile = image(
        "snapshots that share an L1 table of 32 MiB, damaged L1 and bitmap entries",
        8 << 40,
        Head {
            size: 1 << 12,
            l1: (2 << 20, 1),
            snapshots: (16 << 20, count),
            autoclear: 1,
            ..HEAD
        },
        vec![
            (112, bitmaps(1, 32, 1 << 20)),
            (1 << 20, bitmap(0, 1)),
            (2 << 20, words([1])),
            (1 << 30, words([8 << 20 | 2])),
            (16 << 20, table.collect()),
        ],
    );
    let said = expect_cheap_run(&hostile, &DRY_RUN);
    assert!(said.contains("bitmap-table-entry-invalid"), "{said}");
}

#[test]
fn bitmaps_behind_those_that_are_counted_cost_no_more_than_those() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let table = (0..8192).map(|entry| (8 << 20) + entry * 512);
    let hostile = image(
        "one bitmap is counted, and 2,047 that share its table follow",
        2 << 30,
        Head {
            size: 8192 << 21,
            autoclear: 1,
            ..HEAD
        },
        vec![
            (112, bitmaps(1, 2048 * 32, 1 << 22)),
            (
                1 << 22,
                (0..2048).flat_map(|number| bitmap(number, 8192)).collect(),
            ),
            (1 << 30, words(table)),
        ],
    );
    let said = expect_cheap_run(&hostile, &DRY_RUN);
    assert!(said.contains("bitmap-directory-malformed"), "{said}");
}

#[test]
fn leaks_are_listed_once_however_many_bitmaps_nobody_believes() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let (blocks, table, count) = (256, 1 << 20, 4096);
    let first_block = table + blocks * 8;
    let entry = |number| {
        let mut entry = bitmap(number, 1);
        entry[..8].copy_from_slice(&((1 << 24) + number * 512).to_be_bytes());
        entry[15] = 8;
        entry
    };
    let named =
        (0..count).map(|number| ((1 << 24) + number * 512, words([(1 << 26) + number * 1024])));
    let mut parts: Parts = named.collect();
    parts.extend([
        (112, bitmaps(4096, count * 32, 8 << 20)),
        (8 << 20, (0..count).flat_map(entry).collect()),
        (
            table,
            words((0..blocks).map(|block| first_block + block * 512)),
        ),
        (first_block, vec![0xaa; 512 << 8]),
    ]);
    let hostile = image(
        "4,096 bitmaps with unknown flags beside half a million leaks",
        (blocks * 4096) << 9,
        Head {
            autoclear: 1,
            refcount_table: (table, 4),
            order: 0,
            ..HEAD
        },
        parts,
    );
    let said = expect_cheap_run(&hostile, &DRY_RUN);
    assert!(said.contains("bitmap-entry-invalid"), "{said}");
}

#[test]
fn a_deep_read_of_a_byte_here_and_there_reads_the_tables_for_all_of_them_together() {
    if !has_tools(&["prlimit"]) {
        return;
    }
    let windows = (1..1000).map(|window| (window << 34, vec![1]));
    let named = (1..1000).map(|window| 1 << 63 | window << 34);
    let mut parts: Parts = windows.collect();
    let tables = 1024;
    parts.extend([
        (
            1 << 20,
            words((0..tables).map(|table| (1 << 63) | ((2 << 20) + table * 512))),
        ),
        (2 << 20, words(named)),
    ]);
    let hostile = image(
        "a thousand bytes, 16 GiB apart",
        1000 << 34,
        Head {
            size: tables << 15,
            l1: (1 << 20, 1024),
            ..HEAD
        },
        parts,
    );
    let said = expect_within(&hostile, 2, &["check", "--deep", "--jobs=2"]);
    assert!(said.contains("refcount-zero"), "{said}");
}
