//! Which host cluster is what.
//!
//! In front lie the header, the refcount table, the L1 table, the snapshot table, the snapshots' L1 tables and the
//! refcount blocks that count all this. Then comes the body: L2 tables and data in *slots*. A refcount block lies at the
//! start of the range of clusters it counts, as in a file that grew, so a slot is not quite a cluster number. Images
//! with compressed data have all refcount blocks in front, because packed data run on from cluster to cluster.

use super::case::{Damage, Fill, Order, Shape};
use super::history::{self, CHUNK, Version};
use super::permutation::{Permutation, hash};

/// Clusters within which half are allocated, in one run.
const HALF_CHUNK: u64 = 2 * CHUNK;

/// Every how manieth entry of an L2 table is damaged, and which.
const DAMAGED: (u64, u64) = (16, 7);

/// Right after the header.
pub const REFCOUNT_TABLE_CLUSTER: u64 = 1;

/// Where everything lies.
#[derive(Clone, Debug)]
pub struct Layout {
    pub shape: Shape,
    pub cluster_bytes: u64,
    /// Entries of an L2 table, and how many the virtual disk needs.
    pub l2_entries: u64,
    pub l2_tables: u64,
    /// Refcounts in a refcount block.
    pub block_refcounts: u64,
    pub refcount_table_clusters: u64,
    pub l1_clusters: u64,
    pub snapshot_table_bytes: u64,
    /// Refcount blocks that lie in front.
    pub front_blocks: u64,
    /// Clusters before the body.
    pub front_clusters: u64,
    /// Clusters of the file without the far end.
    pub clusters: u64,
    /// All refcount blocks but that of the far end.
    pub blocks: u64,
    /// The data cluster at the far end; its refcount block lies before it.
    pub far_cluster: Option<u64>,
    /// The L2 tables, each with the slots that came with it.
    pub groups: Vec<Group>,
    body_slots: u64,
    /// For each table the group of its version 0, which is its own number, and those of later versions.
    later_groups: Vec<Vec<usize>>,
    table_places: Permutation,
    data_places: Permutation,
}

/// An L2 table and the data clusters that came with it.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub version: Version,
    pub first_slot: u64,
    pub data_slots: u64,
}

/// What a checker must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub leaks: u64,
    /// COPIED flags that contradict the counts, and clusters in use whose count is zero.
    pub corruptions: u64,
    pub file_bytes: u64,
    pub data_clusters: u64,
}

/// What the L2 entry of a guest cluster says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    Nothing,
    Cluster { cluster: u64, copied: bool },
    Compressed { offset: u64, bytes: u64 },
}

impl Layout {
    /// # Panics
    /// If no valid image has this shape.
    pub fn new(shape: Shape) -> Self {
        let cluster_bytes = 1u64 << shape.cluster_bits;
        let l2_entries = cluster_bytes / if shape.extended_l2 { 16 } else { 8 };
        let l2_tables = shape
            .virtual_bytes
            .div_ceil(l2_entries * cluster_bytes)
            .max(1);
        let block_refcounts = (cluster_bytes * 8) >> shape.refcount_order;
        let is_plain = shape.fill == Fill::Full && shape.order == Order::InOrder;
        assert!(
            is_plain || shape.snapshots == 0 && shape.tail_bytes.is_none(),
            "snapshots and a far end need a full disk in order"
        );
        assert!(
            shape.snapshots == 0
                || u64::from(shape.snapshots) < (1 << (1 << shape.refcount_order)) - 1,
            "the refcounts are too narrow"
        );
        let mut layout = Self {
            shape,
            cluster_bytes,
            l2_entries,
            l2_tables,
            block_refcounts,
            refcount_table_clusters: 1,
            l1_clusters: (l2_tables * 8).div_ceil(cluster_bytes),
            snapshot_table_bytes: super::write::snapshot_table_bytes(shape.snapshots),
            front_blocks: 1,
            front_clusters: 0,
            clusters: 0,
            blocks: 0,
            far_cluster: None,
            groups: Vec::new(),
            body_slots: 0,
            later_groups: vec![Vec::new(); l2_tables as usize],
            table_places: Permutation::of(l2_tables),
            data_places: Permutation::of(1),
        };
        layout.place_groups();
        layout.place_front();
        layout.place_far_end();
        layout
    }

    fn place_groups(&mut self) {
        if self.shape.fill == Fill::Nothing {
            return;
        }
        let mut slot = 0;
        for version in history::versions(self.l2_tables, self.shape.snapshots) {
            let data_slots = if version.number > 0 {
                self.l2_entries / 2
            } else {
                self.data_slots_of_a_table()
            };
            if version.number > 0 {
                self.later_groups[version.table as usize].push(self.groups.len());
            }
            self.groups.push(Group {
                version,
                first_slot: slot,
                data_slots,
            });
            slot += 1 + data_slots;
        }
        if self.shape.tail_bytes.is_some() {
            let last = self.groups.last_mut().expect("a full disk has a table");
            last.data_slots -= 1;
            slot -= 1;
        }
        self.body_slots = slot;
        self.data_places = Permutation::of(slot - self.l2_tables);
    }

    fn data_slots_of_a_table(&self) -> u64 {
        match self.shape.fill {
            Fill::Nothing => 0,
            Fill::Half => self.l2_entries / 2,
            Fill::Full => self.l2_entries,
            Fill::Compressed => {
                (self.l2_entries * self.compressed_bytes()).div_ceil(self.cluster_bytes)
            }
        }
    }

    /// What one compressed cluster takes: 20,000 bytes of 64 KiB.
    pub fn compressed_bytes(&self) -> u64 {
        (self.cluster_bytes * 20_000) >> 16
    }

    /// Grows front and body until every cluster is counted by a block and every block has its entry.
    fn place_front(&mut self) {
        let snapshots = u64::from(self.shape.snapshots);
        let fixed = 1
            + self.l1_clusters * (1 + snapshots)
            + self.snapshot_table_bytes.div_ceil(self.cluster_bytes);
        let tail_clusters = self
            .shape
            .tail_bytes
            .unwrap_or(0)
            .div_ceil(self.cluster_bytes);
        loop {
            self.front_clusters = fixed + self.refcount_table_clusters + self.front_blocks;
            self.clusters = match self.body_slots {
                0 => self.front_clusters,
                slots => self.cluster_of_slot(slots - 1) + 1,
            };
            self.blocks = self.clusters.div_ceil(self.block_refcounts);
            let entries = tail_clusters
                .div_ceil(self.block_refcounts)
                .max(self.blocks);
            let table_clusters = (entries * 8).div_ceil(self.cluster_bytes);
            let front_blocks = if self.shape.fill == Fill::Compressed {
                self.blocks
            } else {
                self.front_clusters.div_ceil(self.block_refcounts)
            };
            // One more in front may mean one less elsewhere: room to spare is as good as exact.
            let table_fits = table_clusters <= self.refcount_table_clusters;
            if table_fits && front_blocks <= self.front_blocks {
                assert!(
                    self.front_blocks <= self.blocks,
                    "every block counts something"
                );
                return;
            }
            self.refcount_table_clusters = table_clusters.max(self.refcount_table_clusters);
            self.front_blocks = front_blocks.max(self.front_blocks);
        }
    }

    fn place_far_end(&mut self) {
        let Some(tail_bytes) = self.shape.tail_bytes else {
            return;
        };
        let far = tail_bytes / self.cluster_bytes - 1;
        let range = far / self.block_refcounts;
        assert!(
            range >= self.blocks && !far.is_multiple_of(self.block_refcounts),
            "the far end must have a refcount block of its own"
        );
        self.far_cluster = Some(far);
    }

    /// Slots skip the refcount blocks that lie among them.
    pub fn cluster_of_slot(&self, slot: u64) -> u64 {
        if self.shape.fill == Fill::Compressed {
            return self.front_clusters + slot;
        }
        // Up to the end of the last block in front there is no block in the way.
        let free_until = self.front_blocks * self.block_refcounts;
        let before = free_until.saturating_sub(self.front_clusters);
        if slot < before {
            return self.front_clusters + slot;
        }
        let beyond = slot - before;
        let per_range = self.block_refcounts - 1;
        free_until + beyond / per_range * self.block_refcounts + 1 + beyond % per_range
    }

    /// Where the refcount block for a range of clusters lies.
    pub fn block_cluster(&self, block: u64) -> u64 {
        if block < self.front_blocks {
            self.front_clusters - self.front_blocks + block
        } else if block < self.blocks {
            block * self.block_refcounts
        } else {
            self.far_cluster.expect("no other block is asked for") - 1
        }
    }

    /// Tree 0 to the number of snapshots, which is the active one.
    pub fn l1_cluster(&self, tree: u32) -> u64 {
        let active = 1 + self.refcount_table_clusters;
        if tree == self.shape.snapshots {
            active
        } else {
            let snapshot_table_clusters = self.snapshot_table_bytes.div_ceil(self.cluster_bytes);
            active + self.l1_clusters * u64::from(1 + tree) + snapshot_table_clusters
        }
    }

    pub fn snapshot_table_cluster(&self) -> u64 {
        1 + self.refcount_table_clusters + self.l1_clusters
    }

    pub fn table_cluster(&self, group: &Group) -> u64 {
        self.cluster_of_slot(match self.shape.order {
            Order::InOrder => group.first_slot,
            Order::Random => self.table_places.at(group.version.table),
        })
    }

    /// The version of a table that a tree sees.
    pub fn group_seen(&self, table: u64, tree: u32) -> Option<&Group> {
        let later = self.later_groups[table as usize].iter().rev();
        let mut later = later.map(|index| &self.groups[*index]);
        let seen = later.find(|group| group.version.first_tree <= tree);
        seen.or_else(|| self.groups.get(table as usize))
    }

    /// What a table says of a guest cluster.
    pub fn mapping(&self, group: &Group, entry: u64) -> Mapping {
        let is_damaged = entry % DAMAGED.0 == DAMAGED.1;
        if is_damaged && self.shape.damage == Damage::Leaks {
            return Mapping::Nothing;
        }
        if self.shape.fill == Fill::Compressed {
            let first = self.cluster_of_slot(group.first_slot + 1) * self.cluster_bytes;
            let bytes = self.compressed_bytes();
            let offset = first + entry * bytes;
            return Mapping::Compressed { offset, bytes };
        }
        let Some((data, trees)) = self.data_seen(group, entry) else {
            return Mapping::Nothing;
        };
        let is_active =
            group.version.trees == 1 && group.version.first_tree == self.shape.snapshots;
        let flag_is_lost = is_damaged && self.shape.damage == Damage::CopiedMissing;
        Mapping::Cluster {
            cluster: data,
            copied: is_active && trees == 1 && !flag_is_lost,
        }
    }

    /// The data cluster of an entry, and how many trees see it.
    fn data_seen(&self, group: &Group, entry: u64) -> Option<(u64, u32)> {
        let chunk = entry / CHUNK;
        let version = group.version;
        let owner = if version.rewrites(chunk) {
            group
        } else {
            let groups = &self.later_groups[version.table as usize];
            match version.origin(chunk).checked_sub(1) {
                None => &self.groups[version.table as usize],
                Some(index) => &self.groups[groups[index as usize]],
            }
        };
        let index = self.data_index(owner, entry)?;
        let slot = match self.shape.order {
            Order::InOrder if index == owner.data_slots => {
                return self.far_cluster.map(|far| (far, 1));
            }
            Order::InOrder => owner.first_slot + 1 + index,
            Order::Random => {
                let number = version.table * self.data_slots_of_a_table() + index;
                self.l2_tables + self.data_places.at(number)
            }
        };
        Some((self.cluster_of_slot(slot), owner.version.data_trees(chunk)))
    }

    /// Which of the data clusters that came with a table belongs to an entry.
    fn data_index(&self, owner: &Group, entry: u64) -> Option<u64> {
        if owner.version.number > 0 {
            return Some(entry / HALF_CHUNK * CHUNK + entry % CHUNK);
        }
        if self.shape.fill != Fill::Half {
            return Some(entry);
        }
        let half_chunk = entry / HALF_CHUNK;
        let number = owner.version.table * (self.l2_entries / HALF_CHUNK) + half_chunk;
        let first = hash(number) % (CHUNK + 1);
        let place = (entry % HALF_CHUNK).checked_sub(first)?;
        (place < CHUNK).then_some(half_chunk * CHUNK + place)
    }

    /// The refcounts of all slots in order, as runs of a count and a length.
    pub fn for_each_run_of_slots(&self, mut each: impl FnMut(u64, u64)) {
        if self.shape.snapshots == 0 && self.shape.fill != Fill::Compressed {
            each(1, self.body_slots);
            return;
        }
        for group in &self.groups {
            each(group.version.trees.into(), 1);
            if self.shape.fill == Fill::Compressed {
                (0..group.data_slots).for_each(|slot| each(self.compressed_users(slot), 1));
            } else if group.version.number > 0 {
                // Only chunks that this version rewrites came with it, and they all have the same fate.
                let chunk = u64::from(group.version.number % 2);
                each(group.version.data_trees(chunk).into(), group.data_slots);
            } else {
                for chunk in 0..group.data_slots / CHUNK {
                    each(group.version.data_trees(chunk).into(), CHUNK);
                }
            }
        }
    }

    /// How many compressed clusters lie at least partly in a data cluster of a table.
    fn compressed_users(&self, slot: u64) -> u64 {
        let bytes = self.compressed_bytes();
        let first = slot * self.cluster_bytes / bytes;
        let last = ((slot + 1) * self.cluster_bytes - 1) / bytes;
        last.min(self.l2_entries - 1) - first + 1
    }

    pub fn expected(&self) -> Expected {
        let data_slots: u64 = self.groups.iter().map(|group| group.data_slots).sum();
        let damaged = self.l2_tables * self.l2_entries / DAMAGED.0;
        let when = |damage, count| {
            if self.shape.damage == damage {
                count
            } else {
                0
            }
        };
        // Nothing is counted but everything is used, and every table and data cluster is said to have a count of one.
        let uncounted = self.clusters - self.blocks;
        let flags = self.groups.len() as u64 + data_slots;
        let corruptions = when(Damage::CopiedMissing, damaged)
            + when(Damage::RefcountTableLost, uncounted + flags);
        let end = self.far_cluster.map_or(self.clusters, |far| far + 1);
        Expected {
            leaks: when(Damage::Leaks, damaged),
            corruptions,
            file_bytes: end * self.cluster_bytes,
            data_clusters: data_slots + u64::from(self.far_cluster.is_some()),
        }
    }

    /// Offset and length of all metadata a checker has to read, in disk order, neighbours as one.
    pub fn metadata_extents(&self) -> Vec<(u64, u64)> {
        let whole = |cluster: u64| (cluster * self.cluster_bytes, self.cluster_bytes);
        let part = |cluster: u64, bytes: u64| (cluster * self.cluster_bytes, bytes);
        let table_bytes = self.refcount_table_clusters * self.cluster_bytes;
        let mut all = vec![whole(0), part(REFCOUNT_TABLE_CLUSTER, table_bytes)];
        let trees = 0..=self.shape.snapshots;
        all.extend(trees.map(|tree| part(self.l1_cluster(tree), self.l2_tables * 8)));
        if self.shape.snapshots > 0 {
            all.push(part(
                self.snapshot_table_cluster(),
                self.snapshot_table_bytes,
            ));
        }
        // Where the refcount table is lost, so are they.
        if self.shape.damage != Damage::RefcountTableLost {
            let far_block = self.far_cluster.map(|_| self.blocks);
            let blocks = (0..self.blocks).chain(far_block);
            all.extend(blocks.map(|block| whole(self.block_cluster(block))));
        }
        let tables = self.groups.iter();
        all.extend(tables.map(|group| whole(self.table_cluster(group))));
        all.sort_unstable();
        let mut extents: Vec<(u64, u64)> = Vec::new();
        for (offset, bytes) in all {
            match extents.last_mut() {
                Some((start, length)) if *start + *length == offset => {
                    *length += bytes;
                }
                _ => extents.push((offset, bytes)),
            }
        }
        extents
    }
}
