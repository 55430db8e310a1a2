//! L1 tables: the active one and those of the snapshots.
//!
//! Checks: each table's place and size, its entries' reserved bits, alignment and range, and that no L2 table serves
//! two guest ranges. Collects: the tables' claims, and each distinct L2 table once, with how many entries name it.
//! Never here: reading an L2 table (that is `l2_table.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::{L2Item, Notes, Survey, Walk};
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding, OwnerKind, Trees};
use crate::qcow2::{
    HostCluster, HostOffset, L1Entry, MAX_L1_TABLE_BYTES, Place, Refusal, Tree, words,
};
use crate::storage::Storage;

/// L1 entries walked in one image before qfsck calls it a trap: two hundred times the largest honest table.
const MAX_L1_ENTRIES_WALKED: u64 = 1 << 28;
/// L1 tables are read in pieces of this many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// L2 tables past the end of the file that are remembered, to tell a truncation by.
const MAX_LOST_TABLES: usize = 1 << 16;

/// An L1 table, and every tree that is mapped by it.
struct L1Table {
    offset: HostOffset,
    entries: u64,
    /// More than one only where snapshots wrongly share a table.
    trees: Vec<Tree>,
}

/// What the L1 entries name.
#[derive(Default)]
struct Found {
    tables: BTreeMap<HostCluster, L2Item>,
    lost: BTreeSet<HostCluster>,
}

/// Walks the active L1 table and each distinct snapshot L1 table.
pub(super) fn walk_l1_tables<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let mut tables = Vec::new();
    tables.extend(locate_active(walk, survey, notes));
    tables.extend(locate_snapshots(walk, survey, notes));
    let mut found = Found::default();
    let mut walked = 0;
    for table in &tables {
        let place = Place::L1Table {
            tree: table.trees.first().copied().unwrap_or(Tree::Active),
        };
        walked += table.entries;
        if walked > MAX_L1_ENTRIES_WALKED {
            notes.gap(Gap {
                place,
                kind: GapKind::WorkLimit,
                detail: format!("the image has more than {MAX_L1_ENTRIES_WALKED} L1 entries"),
            });
            break;
        }
        if walk.progress.is_stopped() {
            notes.gap(Gap::stopped(place));
            break;
        }
        walk_table(walk, table, &mut found, notes);
    }
    survey.l2_tables = found.tables.into_values().collect();
    survey.lost_l2_tables = found.lost;
    judge_shared_tables(walk, survey, notes);
}

/// An L2 table belongs to one guest range, however many mappings share it.
fn judge_shared_tables<S: Storage>(walk: Walk<'_, S>, survey: &Survey, notes: &mut Notes) {
    for item in &survey.l2_tables {
        if item.is_shared_across_ranges {
            notes.push(
                Finding::new(
                    Code::L2TableShared,
                    Place::L2Table {
                        cluster: item.cluster,
                    },
                )
                .guest(walk.geometry.guest_range(
                    walk.geometry.guest_cluster(item.l1_index, 0),
                    walk.geometry.l2_entries(),
                )),
            );
        }
    }
}

fn locate_active<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) -> Option<L1Table> {
    let header = walk.image.header();
    let place = Place::L1Table { tree: Tree::Active };
    let mut entries = u64::from(header.l1_size);
    let needed = walk.geometry.l1_entries_needed(header.size);
    if entries < needed {
        notes.push(Finding::new(Code::L1TableTooSmall, place).detail(format!(
            "{entries} entries, {needed} needed for {} bytes",
            header.size
        )));
        notes.gap(Gap::refused(
            place,
            "tables behind the last entry were not walked",
        ));
    }
    if entries * 8 > MAX_L1_TABLE_BYTES {
        notes.push(Finding::new(Code::L1TableTooLarge, place).detail(format!("{entries} entries")));
        notes.gap(Gap::refused(place, "only the first 32 MiB were walked"));
        entries = MAX_L1_TABLE_BYTES / 8;
    }
    let offset = HostOffset(header.l1_table_offset);
    locate(walk, Tree::Active, offset, entries, survey, notes)
}

fn locate_snapshots<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) -> Vec<L1Table> {
    let mut distinct: BTreeMap<(HostOffset, u64), L1Table> = BTreeMap::new();
    for index in 0..survey.snapshots.len() {
        let Some(entry) = survey.snapshots.get(index) else {
            break;
        };
        let tree = Tree::Snapshot(u32::try_from(index).unwrap_or(u32::MAX));
        let offset = entry.fixed.l1_table_offset;
        let entries = u64::from(entry.fixed.l1_size);
        if entries * 8 > MAX_L1_TABLE_BYTES {
            let place = Place::L1Table { tree };
            notes.push(
                Finding::new(Code::SnapshotL1TooLarge, place).detail(format!("{entries} entries")),
            );
            notes.gap(Gap::refused(place, "this snapshot was not walked"));
            continue;
        }
        if let Some(table) = locate(walk, tree, offset, entries, survey, notes) {
            distinct
                .entry((offset, entries))
                .and_modify(|known| known.trees.push(tree))
                .or_insert(table);
        }
    }
    distinct.into_values().collect()
}

/// Claims an L1 table's clusters; `None` where nothing of it can be read.
fn locate<S: Storage>(
    walk: Walk<'_, S>,
    tree: Tree,
    offset: HostOffset,
    entries: u64,
    survey: &mut Survey,
    notes: &mut Notes,
) -> Option<L1Table> {
    let place = Place::L1Table { tree };
    let (unaligned, past_end) = match tree {
        Tree::Active => (Code::L1TableUnaligned, Code::L1TablePastEnd),
        Tree::Snapshot(_) => (Code::SnapshotL1Unaligned, Code::SnapshotL1PastEnd),
    };
    let bytes = entries * 8;
    if entries == 0 {
        // QEMU looks at the active table's offset even where it has no entries.
        if tree == Tree::Active && !walk.geometry.is_aligned(offset) {
            notes.push(Finding::new(unaligned, place).word(offset.0));
        }
        return None;
    }
    match walk.geometry.admit_table(offset, bytes) {
        Err(Refusal::Unaligned) => {
            notes.push(Finding::new(unaligned, place).word(offset.0));
            notes.gap(Gap::refused(
                place,
                format!("the {tree} mapping was not walked"),
            ));
            return None;
        }
        Err(Refusal::PastEnd) => {
            notes.push(Finding::new(past_end, place).detail(format!("{bytes} bytes at {offset}")));
            notes.gap(Gap::refused(place, "its part past the end reads as zero"));
            if let Some(clusters) = walk.geometry.clip_table(offset, bytes) {
                survey.claim(clusters, OwnerKind::L1Table, place);
            }
        }
        Ok(clusters) => survey.claim(clusters, OwnerKind::L1Table, place),
    }
    Some(L1Table {
        offset,
        entries,
        trees: vec![tree],
    })
}

fn walk_table<S: Storage>(
    walk: Walk<'_, S>,
    table: &L1Table,
    found: &mut Found,
    notes: &mut Notes,
) {
    let in_file_bytes = walk.geometry.file_bytes().saturating_sub(table.offset.0);
    // A word the file ends in goes on with zeros.
    let bytes = (table.entries * 8).min(in_file_bytes.next_multiple_of(8));
    let mut buffer = vec![0; usize::try_from(bytes.min(PIECE_BYTES)).unwrap_or(0)];
    let mut done = 0;
    while done < bytes {
        let piece_bytes = (bytes - done).min(PIECE_BYTES);
        let Some(piece) = buffer.get_mut(..usize::try_from(piece_bytes).unwrap_or(0)) else {
            return;
        };
        let offset = HostOffset(table.offset.0 + done);
        if let Err(error) = walk.image.read_into(offset, piece) {
            let tree = table.trees.first().copied().unwrap_or(Tree::Active);
            notes.gap(Gap::unreadable(
                Place::L1Entry {
                    tree,
                    index: done / 8,
                },
                &error,
            ));
        } else {
            for (index, word) in (done / 8..).zip(words(piece)) {
                if word != 0 {
                    walk_entry(walk, table, index, L1Entry(word), found, notes);
                }
            }
        }
        done += piece_bytes;
    }
}

fn walk_entry<S: Storage>(
    walk: Walk<'_, S>,
    table: &L1Table,
    index: u64,
    entry: L1Entry,
    found: &mut Found,
    notes: &mut Notes,
) {
    let tree = table.trees.first().copied().unwrap_or(Tree::Active);
    let place = Place::L1Entry { tree, index };
    let weight = table.trees.len() as u64;
    let first_guest_cluster = walk.geometry.guest_cluster(index, 0);
    let guest = walk
        .geometry
        .guest_range(first_guest_cluster, walk.geometry.l2_entries());
    let finding = |code| {
        Finding::new(code, place)
            .word(entry.0)
            .guest(guest)
            .count(weight)
    };
    if entry.reserved_bits() != 0 {
        notes.push(finding(Code::L1EntryReservedBits));
    }
    let Some(offset) = entry.l2_table_offset() else {
        if entry.copied() {
            notes.push(finding(Code::L1EntryWithoutOffset));
            notes.gap(Gap::refused(place, "it may have named an L2 table"));
        }
        return;
    };
    match walk.geometry.admit(offset) {
        Err(refusal) => {
            let code = match refusal {
                Refusal::Unaligned => Code::L2TableUnaligned,
                Refusal::PastEnd => {
                    if found.lost.len() < MAX_LOST_TABLES {
                        found.lost.insert(walk.geometry.cluster_at(offset));
                    }
                    Code::L2TablePastEnd
                }
            };
            notes.push(finding(code));
            notes.gap(Gap::refused(
                place,
                format!("an L2 table at {offset} was not read"),
            ));
        }
        Ok(cluster) => {
            let item = found.tables.entry(cluster).or_insert(L2Item {
                cluster,
                l1_index: index,
                trees: Trees::default(),
                active_copied: 0,
                is_shared_across_ranges: false,
            });
            item.is_shared_across_ranges |= item.l1_index != index;
            for &tree in &table.trees {
                add_user(item, tree, entry);
            }
        }
    }
}

fn add_user(item: &mut L2Item, tree: Tree, entry: L1Entry) {
    match tree {
        Tree::Active => {
            item.trees.active += 1;
            item.active_copied += u64::from(entry.copied());
        }
        Tree::Snapshot(index) => {
            item.trees.snapshots += 1;
            let first = item.trees.first_snapshot.unwrap_or(u32::MAX);
            item.trees.first_snapshot = Some(first.min(index));
        }
    }
}
