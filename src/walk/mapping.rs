//! L1 tables: the active one and those of the snapshots.
//!
//! Checks: each table's place and size, its entries' reserved bits, alignment and range, and that no L2 table serves
//! two guest ranges. Collects: the tables' claims, and each distinct L2 table once, with how many entries name it.
//! Never here: reading an L2 table (that is `l2_table.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::pieces::{entries_walked, for_each_piece};
use super::{L2Item, Notes, Survey, Walk};
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding, OwnerKind, Trees};
use crate::qcow2::{
    HostCluster, HostOffset, L1Entry, MAX_L1_TABLE_BYTES, Place, Refusal, Tree, words,
};
use crate::storage::Storage;

/// L1 entries walked in one image before qfsck calls it a trap: two hundred times the largest honest table.
const MAX_L1_ENTRIES_WALKED: u64 = 1 << 28;
/// Of those, entries that tables lying over one another may have together, beyond twice the entries there are. Sound tables
/// have places of their own.
const MAX_L1_ENTRIES_OVERLAPPING: u64 = 1 << 24;
/// L2 tables that are not worth to be told apart from one another before all are known.
const FEW_TABLES: usize = 1 << 12;
/// L2 tables past the end of the file that are remembered, to tell a truncation by.
const MAX_LOST_TABLES: usize = 1 << 16;

/// An L1 table, and every tree that is mapped by it.
struct L1Table {
    offset: HostOffset,
    entries: u64,
    /// The first of the trees.
    tree: Tree,
    /// More than one only where snapshots wrongly share a table.
    trees: Trees,
}

/// The L1 entries that may still be walked.
struct Budget {
    limit: u64,
    left: u64,
    is_overdrawn: bool,
}

impl Budget {
    fn new<S: Storage>(walk: Walk<'_, S>, survey: &Survey) -> Self {
        let header = walk.image.header();
        let active = (HostOffset(header.l1_table_offset), header.l1_size);
        let snapshots = survey.snapshots.iter();
        let snapshots = snapshots.map(|it| (it.fixed.l1_table_offset, it.fixed.l1_size));
        let clusters = std::iter::once(active)
            .chain(snapshots)
            .filter_map(|(offset, entries)| {
                let bytes = (u64::from(entries) * 8).min(MAX_L1_TABLE_BYTES);
                walk.geometry.clip_table(offset, bytes)
            });
        let limit = entries_walked(
            walk.geometry,
            clusters.collect(),
            MAX_L1_ENTRIES_OVERLAPPING,
            MAX_L1_ENTRIES_WALKED,
        );
        Self {
            limit,
            left: limit,
            is_overdrawn: false,
        }
    }

    /// Takes the entries of one more table, or says once that there are too many.
    fn take(&mut self, entries: u64, place: Place, notes: &mut Notes) -> bool {
        if let Some(left) = self.left.checked_sub(entries) {
            self.left = left;
            return true;
        }
        if !self.is_overdrawn {
            self.is_overdrawn = true;
            notes.gap(Gap {
                place,
                kind: GapKind::WorkLimit,
                detail: format!("the image has more than {} L1 entries", self.limit),
            });
        }
        false
    }
}

/// What the L1 entries name.
#[derive(Default)]
struct Found {
    /// The first so many are distinct and in order. Of the others each is one entry's.
    tables: Vec<L2Item>,
    distinct: usize,
    lost: BTreeSet<HostCluster>,
}

impl Found {
    fn name(&mut self, item: L2Item) {
        self.tables.push(item);
        // Once there are twice as many: then it is cheap, and never takes much more room than the distinct ones.
        if self.tables.len() >= 2 * self.distinct.max(FEW_TABLES) {
            self.merge();
        }
    }

    /// Leaves each table once.
    fn merge(&mut self) {
        // Of those alike the first to come stays the first.
        self.tables.sort_by_key(|item| item.cluster);
        self.tables.dedup_by(|later, item| {
            let is_same = later.cluster == item.cluster;
            if is_same {
                item.is_shared_across_ranges |=
                    later.is_shared_across_ranges || later.l1_index != item.l1_index;
                add_users(&mut item.trees, later.trees);
                item.active_copied += later.active_copied;
            }
            is_same
        });
        self.distinct = self.tables.len();
    }
}

/// Walks the active L1 table and each distinct snapshot L1 table.
pub(super) fn walk_l1_tables<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let mut budget = Budget::new(walk, survey);
    let mut tables = Vec::new();
    tables.extend(locate_active(walk, survey, &mut budget, notes));
    tables.extend(locate_snapshots(walk, survey, &mut budget, notes));
    let mut found = Found::default();
    for table in &tables {
        if !walk_table(walk, table, &mut found, notes) {
            break;
        }
    }
    found.merge();
    found.tables.shrink_to_fit();
    survey.l2_tables = found.tables;
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
    budget: &mut Budget,
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
    let table = locate(walk, Tree::Active, offset, entries, notes)?;
    claim(walk, &table, None, survey, budget, notes).then_some(table)
}

fn locate_snapshots<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    budget: &mut Budget,
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
        let Some(table) = locate(walk, tree, offset, entries, notes) else {
            continue;
        };
        let known = distinct.get_mut(&(offset, entries));
        if claim(walk, &table, known, survey, budget, notes) {
            distinct.entry((offset, entries)).or_insert(table);
        }
    }
    distinct.into_values().collect()
}

/// Judges an L1 table's place; `None` where nothing of it can be read.
fn locate<S: Storage>(
    walk: Walk<'_, S>,
    tree: Tree,
    offset: HostOffset,
    entries: u64,
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
        }
        Ok(_) => {}
    }
    let trees = match tree {
        Tree::Active => Trees {
            active: 1,
            ..Trees::default()
        },
        Tree::Snapshot(index) => Trees {
            snapshots: 1,
            first_snapshot: Some(index),
            ..Trees::default()
        },
    };
    Some(L1Table {
        offset,
        entries,
        tree,
        trees,
    })
}

/// Claims an L1 table's clusters; `false` where its entries are too many. The same table a second time costs nothing.
fn claim<S: Storage>(
    walk: Walk<'_, S>,
    table: &L1Table,
    known: Option<&mut L1Table>,
    survey: &mut Survey,
    budget: &mut Budget,
    notes: &mut Notes,
) -> bool {
    let place = Place::L1Table { tree: table.tree };
    let is_new = known.is_none();
    if let Some(known) = known {
        add_users(&mut known.trees, table.trees);
    }
    if is_new && !budget.take(bytes_in_file(walk, table).div_ceil(8), place, notes) {
        survey.is_cut_short = true;
        return false;
    }
    let bytes = table.entries * 8;
    let admitted = walk.geometry.admit_table(table.offset, bytes).ok();
    let clusters = admitted.or_else(|| walk.geometry.clip_table(table.offset, bytes));
    if let Some(clusters) = clusters {
        survey.claim(clusters, OwnerKind::L1Table, place);
    }
    true
}

fn add_users(users: &mut Trees, more: Trees) {
    users.active += more.active;
    users.snapshots += more.snapshots;
    let first = [users.first_snapshot, more.first_snapshot];
    users.first_snapshot = first.into_iter().flatten().min();
}

/// How many bytes of a table can be read.
fn bytes_in_file<S: Storage>(walk: Walk<'_, S>, table: &L1Table) -> u64 {
    (table.entries * 8).min(walk.geometry.word_bytes_from(table.offset))
}

/// Walks a table; `false` where it was told to stop.
fn walk_table<S: Storage>(
    walk: Walk<'_, S>,
    table: &L1Table,
    found: &mut Found,
    notes: &mut Notes,
) -> bool {
    let tree = table.tree;
    if walk.progress.is_stopped() {
        notes.gap(Gap::stopped(Place::L1Table { tree }));
        return false;
    }
    for_each_piece(
        walk,
        table.offset,
        bytes_in_file(walk, table),
        |done, piece| {
            let index = done / 8;
            if walk.progress.is_stopped() {
                notes.gap(Gap::stopped(Place::L1Entry { tree, index }));
                return false;
            }
            match piece {
                Err(error) => notes.gap(Gap::unreadable(Place::L1Entry { tree, index }, &error)),
                Ok(piece) => {
                    for (index, word) in (index..).zip(words(piece)) {
                        if word != 0 {
                            walk_entry(walk, table, index, L1Entry(word), found, notes);
                        }
                    }
                }
            }
            true
        },
    );
    !walk.progress.is_stopped()
}

fn walk_entry<S: Storage>(
    walk: Walk<'_, S>,
    table: &L1Table,
    index: u64,
    entry: L1Entry,
    found: &mut Found,
    notes: &mut Notes,
) {
    let place = Place::L1Entry {
        tree: table.tree,
        index,
    };
    let weight = table.trees.active + table.trees.snapshots;
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
            notes.refuse(place, || "it may have named an L2 table".to_owned());
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
            notes.refuse(place, || format!("an L2 table at {offset} was not read"));
        }
        Ok(cluster) => {
            if walk.geometry.is_cut(offset, walk.geometry.cluster_bytes()) {
                notes.push(finding(Code::L2TablePastEnd));
                notes.refuse(place, || {
                    format!("the part past the end of an L2 table at {offset} reads as zero")
                });
            }
            found.name(L2Item {
                cluster,
                l1_index: index,
                trees: table.trees,
                active_copied: u64::from(entry.copied()) * table.trees.active,
                is_shared_across_ranges: false,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(cluster: u64, l1_index: u64, snapshot: Option<u32>) -> L2Item {
        L2Item {
            cluster: HostCluster(cluster),
            l1_index,
            trees: Trees {
                active: u64::from(snapshot.is_none()),
                snapshots: u64::from(snapshot.is_some()),
                first_snapshot: snapshot,
            },
            active_copied: u64::from(snapshot.is_none()),
            is_shared_across_ranges: false,
        }
    }

    #[test]
    fn tables_named_in_any_order_are_each_found_once_with_all_who_name_them() {
        const TABLES: u64 = 4 * FEW_TABLES as u64 + 1;
        let mut found = Found::default();
        for snapshot in [None, Some(7), Some(3), Some(5)] {
            for l1_index in 0..TABLES {
                // Another order in each tree.
                let place = l1_index * (2 * u64::from(snapshot.unwrap_or(0)) + 2) % TABLES;
                found.name(item(place, place, snapshot));
            }
        }
        found.name(item(9, 10, Some(1)));
        found.merge();
        assert!(found.tables.capacity() < 5 * found.tables.len());
        for (cluster, table) in (0..).zip(&found.tables) {
            let odd = u64::from(cluster == 9);
            let expected = L2Item {
                trees: Trees {
                    active: 1,
                    snapshots: 3 + odd,
                    first_snapshot: Some(if odd == 1 { 1 } else { 3 }),
                },
                is_shared_across_ranges: odd == 1,
                ..item(cluster, cluster, None)
            };
            assert_eq!(*table, expected);
        }
        assert_eq!(found.tables.len() as u64, TABLES);
    }
}
