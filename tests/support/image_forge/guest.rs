//! The guest map: L1 and L2 tables of the active tree and of the snapshots, as the steps leave
//! them. Kept as a model first and written once, when all references have been counted.

use std::collections::BTreeMap;

use super::canvas::{Canvas, filler};
use super::snapshots::SnapshotRecipe;
use super::{Dimensions, Step};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1 << 0;

/// Subcluster bitmap of a cluster that is wholly allocated, or wholly zero.
const ALL_ALLOCATED: u64 = 0xffff_ffff;
const ALL_ZERO: u64 = 0xffff_ffff << 32;

/// All trees of the image. Trees share L2 tables by index into `tables`.
pub(super) struct GuestMap {
    dimensions: Dimensions,
    pub(super) active: L1Table,
    pub(super) inactive: Vec<L1Table>,
    tables: Vec<L2Table>,
    compressed_tail: Option<CompressedTail>,
    write_count: u64,
}

#[derive(Clone)]
pub(super) struct L1Table {
    pub(super) offset: u64,
    pub(super) size: u32,
    /// L1 index to L2 table; absent is unallocated.
    tables: BTreeMap<u64, usize>,
}

struct L2Table {
    offset: u64,
    /// L2 index to what is mapped there; absent is unallocated.
    entries: BTreeMap<u64, Mapping>,
}

#[derive(Clone, Copy)]
enum Mapping {
    Standard {
        host_offset: Option<u64>,
        zero: bool,
        /// The second word of an extended entry.
        subclusters: u64,
    },
    Compressed {
        host_offset: u64,
        length_bytes: u64,
    },
}

/// Where the next compressed cluster may be packed.
struct CompressedTail {
    offset: u64,
    /// Compressed clusters that touch the host cluster before `offset`.
    share_count: u64,
}

impl GuestMap {
    pub(super) fn new(dimensions: Dimensions, canvas: &mut Canvas) -> Self {
        Self {
            dimensions,
            active: L1Table::claim(dimensions.l1_size, BTreeMap::new(), canvas),
            inactive: Vec::new(),
            tables: Vec::new(),
            compressed_tail: None,
            write_count: 0,
        }
    }

    pub(super) fn take(&mut self, step: &Step, canvas: &mut Canvas) {
        match step {
            &Step::Data(guest) => self.map_standard(guest, true, false, ALL_ALLOCATED, canvas),
            &Step::ZeroPlain(guest) => self.map_standard(guest, false, true, ALL_ZERO, canvas),
            &Step::ZeroAllocated(guest) => self.map_standard(guest, true, true, ALL_ZERO, canvas),
            &Step::Subclusters(guest, alloc_mask, zero_mask) => {
                let has_host = alloc_mask != 0 || zero_mask == 0;
                let bitmap = u64::from(zero_mask) << 32 | u64::from(alloc_mask);
                self.map_standard(guest, has_host, false, bitmap, canvas);
            }
            Step::Compressed(guest, stream) => self.map_compressed(*guest, stream, canvas),
            &Step::Unmap(guest) => self.unmap(guest, canvas),
            &Step::Gap(cluster_count) => {
                canvas.claim(cluster_count);
            }
            Step::Snapshot(recipe) => self.take_snapshot(recipe, canvas),
            Step::VmState(_) => unreachable!("spelled out as guest clusters before"),
        }
    }

    fn map_standard(
        &mut self,
        guest: u64,
        has_host: bool,
        zero: bool,
        subclusters: u64,
        canvas: &mut Canvas,
    ) {
        let host_offset = has_host.then(|| self.writable_host(guest, canvas));
        if let Some(offset) = host_offset.filter(|_| !self.dimensions.data_file) {
            self.write_count += 1;
            let label = format!("[guest cluster {guest}, write {}] ", self.write_count);
            canvas.put(offset, &filler(&label, self.dimensions.cluster_size));
        }
        self.map(
            guest,
            Mapping::Standard {
                host_offset,
                zero,
                subclusters,
            },
            canvas,
        );
    }

    /// The host cluster a write goes to: its own if no snapshot holds it, else a fresh one.
    fn writable_host(&self, guest: u64, canvas: &mut Canvas) -> u64 {
        if self.dimensions.data_file {
            return guest * self.dimensions.cluster_size;
        }
        match self.mapping(&self.active, guest) {
            Some(Mapping::Standard {
                host_offset: Some(host),
                ..
            }) if !self.is_frozen(host) => host,
            _ => canvas.claim(1),
        }
    }

    /// Whether a snapshot holds the host cluster.
    fn is_frozen(&self, offset: u64) -> bool {
        let frozen = self.inactive.iter().flat_map(|tree| tree.tables.values());
        let mut mappings = frozen.flat_map(|&table| self.tables[table].entries.values());
        mappings.any(|mapping| match *mapping {
            Mapping::Standard { host_offset, .. } => host_offset == Some(offset),
            Mapping::Compressed { .. } => false,
        })
    }

    fn map_compressed(&mut self, guest: u64, stream: &[u8], canvas: &mut Canvas) {
        let length_bytes = stream.len() as u64;
        let host_offset = self.claim_compressed(length_bytes, canvas);
        canvas.put(host_offset, stream);
        self.map(
            guest,
            Mapping::Compressed {
                host_offset,
                length_bytes,
            },
            canvas,
        );
    }

    /// Room for a compressed cluster: behind the previous one if the tail of its host cluster is
    /// long enough or the next host cluster is free, and if one more owner fits the refcount.
    fn claim_compressed(&mut self, length_bytes: u64, canvas: &mut Canvas) -> u64 {
        let cluster_size = self.dimensions.cluster_size;
        let tail = self.compressed_tail.take().filter(|tail| {
            let room_bytes = tail.offset.next_multiple_of(cluster_size) - tail.offset;
            let next_is_free = tail.offset.next_multiple_of(cluster_size) == canvas.end_offset();
            tail.share_count < self.dimensions.compressed_share_count
                && (length_bytes <= room_bytes || next_is_free)
        });
        let share_count = tail.as_ref().map_or(0, |tail| tail.share_count);
        let start = tail.map_or(canvas.end_offset(), |tail| tail.offset);
        let end = start + length_bytes;
        let missing_bytes = end.saturating_sub(canvas.end_offset());
        canvas.claim(missing_bytes.div_ceil(cluster_size));
        if !end.is_multiple_of(cluster_size) {
            let share_count = if missing_bytes > 0 {
                1
            } else {
                share_count + 1
            };
            self.compressed_tail = Some(CompressedTail {
                offset: end,
                share_count,
            });
        }
        start
    }

    fn map(&mut self, guest: u64, mapping: Mapping, canvas: &mut Canvas) {
        let index = guest % self.dimensions.l2_entry_count;
        self.writable_table(guest, canvas)
            .entries
            .insert(index, mapping);
    }

    fn unmap(&mut self, guest: u64, canvas: &mut Canvas) {
        if self.mapping(&self.active, guest).is_some() {
            let index = guest % self.dimensions.l2_entry_count;
            self.writable_table(guest, canvas).entries.remove(&index);
        }
    }

    /// The active L2 table of a guest cluster, made or copied first if need be.
    fn writable_table(&mut self, guest: u64, canvas: &mut Canvas) -> &mut L2Table {
        let l1_index = guest / self.dimensions.l2_entry_count;
        let present = self.active.tables.get(&l1_index).copied();
        let shared = |table| {
            self.inactive
                .iter()
                .any(|tree| tree.tables.values().any(|&t| t == table))
        };
        let table = match present {
            Some(table) if !shared(table) => table,
            _ => {
                let entries =
                    present.map_or_else(BTreeMap::new, |table| self.tables[table].entries.clone());
                self.tables.push(L2Table {
                    offset: canvas.claim(1),
                    entries,
                });
                self.tables.len() - 1
            }
        };
        self.active.tables.insert(l1_index, table);
        &mut self.tables[table]
    }

    fn take_snapshot(&mut self, recipe: &SnapshotRecipe, canvas: &mut Canvas) {
        let size = recipe.l1_size.unwrap_or(self.active.size);
        let needed = self
            .active
            .tables
            .keys()
            .last()
            .map_or(0, |index| index + 1);
        assert!(
            needed <= size.into(),
            "the snapshot's L1 table is too short for what is mapped"
        );
        self.inactive
            .push(L1Table::claim(size, self.active.tables.clone(), canvas));
    }

    fn mapping(&self, tree: &L1Table, guest: u64) -> Option<Mapping> {
        let table = tree.tables.get(&(guest / self.dimensions.l2_entry_count))?;
        self.tables[*table]
            .entries
            .get(&(guest % self.dimensions.l2_entry_count))
            .copied()
    }
}

/// Writing.
impl GuestMap {
    /// Every tree refers to its L2 tables and to all they map, shared or not.
    pub(super) fn count_references(&self, canvas: &mut Canvas) {
        let trees = std::iter::once(&self.active).chain(&self.inactive);
        for &table in trees.flat_map(|tree| tree.tables.values()) {
            let table = &self.tables[table];
            canvas.refer(table.offset, self.dimensions.cluster_size);
            for mapping in table.entries.values() {
                match *mapping {
                    Mapping::Standard {
                        host_offset: Some(host),
                        ..
                    } if !self.dimensions.data_file => {
                        canvas.refer(host, self.dimensions.cluster_size);
                    }
                    Mapping::Standard { .. } => {}
                    Mapping::Compressed {
                        host_offset,
                        length_bytes,
                    } => {
                        canvas.refer(host_offset, length_bytes);
                    }
                }
            }
        }
    }

    /// Writes all L1 and L2 tables. Flags are exact where the active tree reaches, else clear.
    pub(super) fn write_tables(&self, canvas: &mut Canvas) {
        self.write_l1(&self.active, true, canvas);
        for tree in &self.inactive {
            self.write_l1(tree, false, canvas);
        }
        let mut active = vec![false; self.tables.len()];
        for &table in self.active.tables.values() {
            active[table] = true;
        }
        let trees = std::iter::once(&self.active).chain(&self.inactive);
        for &table in trees.flat_map(|tree| tree.tables.values()) {
            self.write_l2(&self.tables[table], active[table], canvas);
        }
    }

    fn write_l1(&self, tree: &L1Table, is_active: bool, canvas: &mut Canvas) {
        for (l1_index, &table) in &tree.tables {
            let offset = self.tables[table].offset;
            let copied = is_active && canvas.reference_count(offset) == 1;
            canvas.put_u64(
                tree.offset + l1_index * 8,
                offset | if copied { COPIED } else { 0 },
            );
        }
    }

    fn write_l2(&self, table: &L2Table, is_active: bool, canvas: &mut Canvas) {
        for (index, mapping) in &table.entries {
            let entry_offset = table.offset + index * self.dimensions.l2_entry_bytes;
            let (descriptor, subclusters) = match *mapping {
                Mapping::Standard {
                    host_offset,
                    zero,
                    subclusters,
                } => {
                    let copied = host_offset.is_some_and(|host| {
                        // An external data file is not refcounted: its clusters count as 1.
                        self.dimensions.data_file || is_active && canvas.reference_count(host) == 1
                    });
                    let zero = zero && !self.dimensions.extended_l2;
                    let flags = if copied { COPIED } else { 0 } | if zero { ZERO } else { 0 };
                    (host_offset.unwrap_or(0) | flags, subclusters)
                }
                Mapping::Compressed {
                    host_offset,
                    length_bytes,
                } => (self.encode_compressed(host_offset, length_bytes), 0),
            };
            canvas.put_u64(entry_offset, descriptor);
            if self.dimensions.extended_l2 {
                canvas.put_u64(entry_offset + 8, subclusters);
            }
        }
    }

    fn encode_compressed(&self, host_offset: u64, length_bytes: u64) -> u64 {
        let additional_sectors = (host_offset + length_bytes - 1) / 512 - host_offset / 512;
        let offset_bits = 62 - (self.dimensions.cluster_bits - 8);
        COMPRESSED | additional_sectors << offset_bits | host_offset
    }
}

/// Asking where things are.
impl GuestMap {
    /// Offset of the L2 table that a tree uses for a guest cluster.
    pub(super) fn l2_table_offset(&self, tree: &L1Table, guest: u64) -> Option<u64> {
        let table = tree.tables.get(&(guest / self.dimensions.l2_entry_count))?;
        Some(self.tables[*table].offset)
    }

    /// Offset of a guest cluster's data; for a compressed cluster, of its first byte.
    pub(super) fn host_offset(&self, tree: &L1Table, guest: u64) -> Option<u64> {
        match self.mapping(tree, guest)? {
            Mapping::Standard { host_offset, .. } => host_offset,
            Mapping::Compressed { host_offset, .. } => Some(host_offset),
        }
    }

    /// The guest clusters a tree maps in any way, ascending.
    pub(super) fn mapped_guest_clusters(&self, tree: &L1Table) -> Vec<u64> {
        let per_table = tree.tables.iter().flat_map(|(l1_index, &table)| {
            let first = l1_index * self.dimensions.l2_entry_count;
            self.tables[table]
                .entries
                .keys()
                .map(move |index| first + index)
        });
        per_table.collect()
    }
}

impl L1Table {
    fn claim(size: u32, tables: BTreeMap<u64, usize>, canvas: &mut Canvas) -> Self {
        Self {
            offset: canvas.claim_metadata(u64::from(size) * 8),
            size,
            tables,
        }
    }
}
