//! A forged image: its bytes, and by name where everything in them lies.
//!
//! The map is remembered from the making, not read from the bytes, so it still holds after a test
//! has damaged them. Offsets are absolute, in bytes. Asking for what the image does not have
//! panics: it is a mistake in the test.

use std::path::Path;

use super::bitmaps::{self, BitmapLayout, BitmapPlace};
use super::guest::{GuestMap, L1Table};
use super::header::HeaderLayout;
use super::luks::LuksPlace;
use super::refcounts::RefcountLayout;
use super::snapshots::{self, SnapshotLayout};
use super::{Dimensions, random};

/// Which L1 table: the active one, or that of the snapshot with this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    Active,
    Snapshot(usize),
}

pub struct Forged {
    pub bytes: Vec<u8>,
    pub(super) dimensions: Dimensions,
    pub(super) header: HeaderLayout,
    pub(super) luks: Option<LuksPlace>,
    pub(super) guest: GuestMap,
    pub(super) snapshots: SnapshotLayout,
    pub(super) bitmaps: BitmapLayout,
    pub(super) refcounts: RefcountLayout,
}

impl Forged {
    /// A varied valid image; the same seed gives the same bytes for ever.
    pub fn random(seed: u64) -> Self {
        random::recipe(seed).build()
    }

    pub fn cluster_size(&self) -> u64 {
        self.dimensions.cluster_size
    }

    /// Clusters of the file, the last one counted even if it is cut short.
    pub fn cluster_count(&self) -> u64 {
        self.len().div_ceil(self.cluster_size())
    }

    /// Length of the file in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Where things are.
impl Forged {
    /// A header field by the specification's name, e.g. `l1_table_offset`.
    pub fn field(&self, name: &str) -> u64 {
        self.header.field_offset(name)
    }

    /// The first header extension of this type: its type word. Length is at +4, data at +8.
    pub fn extension(&self, extension_type: u32) -> u64 {
        let found = self
            .header
            .extensions
            .iter()
            .find(|(known, _)| *known == extension_type);
        found
            .unwrap_or_else(|| panic!("no header extension {extension_type:#010x}"))
            .1
    }

    /// Type and offset of all header extensions in the order of the file, end marker included.
    pub fn extensions(&self) -> &[(u32, u64)] {
        &self.header.extensions
    }

    pub fn backing_file_name(&self) -> u64 {
        assert!(self.header.backing_file_offset != 0, "no backing file");
        self.header.backing_file_offset
    }

    pub fn l1_table(&self, tree: Tree) -> u64 {
        self.tree(tree).offset
    }

    /// Number of entries.
    pub fn l1_size(&self, tree: Tree) -> u32 {
        self.tree(tree).size
    }

    pub fn l1_entry(&self, tree: Tree, l1_index: u64) -> u64 {
        assert!(
            l1_index < self.l1_size(tree).into(),
            "the L1 table has no entry {l1_index}"
        );
        self.l1_table(tree) + l1_index * 8
    }

    /// Index of the L1 entry that covers a guest cluster.
    pub fn l1_index(&self, guest_cluster: u64) -> u64 {
        guest_cluster / self.dimensions.l2_entry_count
    }

    /// The L2 table a tree has for a guest cluster.
    pub fn l2_table(&self, tree: Tree, guest_cluster: u64) -> u64 {
        let table = self.guest.l2_table_offset(self.tree(tree), guest_cluster);
        table
            .unwrap_or_else(|| panic!("{tree:?} has no L2 table for guest cluster {guest_cluster}"))
    }

    /// The L2 entry, mapped or not; with extended L2 the subcluster bitmap is at +8.
    pub fn l2_entry(&self, tree: Tree, guest_cluster: u64) -> u64 {
        let index = guest_cluster % self.dimensions.l2_entry_count;
        self.l2_table(tree, guest_cluster) + index * self.dimensions.l2_entry_bytes
    }

    /// The data of a guest cluster, `None` if it has no host cluster. A compressed cluster starts
    /// anywhere. With a data file this is an offset in that file.
    pub fn host_offset(&self, tree: Tree, guest_cluster: u64) -> Option<u64> {
        self.guest.host_offset(self.tree(tree), guest_cluster)
    }

    /// The number of the host cluster in which a guest cluster's data starts.
    pub fn host_cluster(&self, tree: Tree, guest_cluster: u64) -> u64 {
        let offset = self.host_offset(tree, guest_cluster);
        offset.unwrap_or_else(|| panic!("guest cluster {guest_cluster} has no host cluster"))
            >> self.dimensions.cluster_bits
    }

    /// The guest clusters a tree maps in any way, ascending.
    pub fn mapped_guest_clusters(&self, tree: Tree) -> Vec<u64> {
        self.guest.mapped_guest_clusters(self.tree(tree))
    }

    pub fn refcount_table(&self) -> u64 {
        self.refcounts.table_offset
    }

    pub fn refcount_table_entry(&self, index: u64) -> u64 {
        self.refcounts.table_offset + index * 8
    }

    /// Indexes of the refcount table entries that have a block, and the offsets of the blocks.
    pub fn refcount_blocks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.refcounts
            .blocks
            .iter()
            .map(|(&index, &offset)| (index, offset))
    }

    /// The refcount block that covers a host cluster.
    pub fn refcount_block(&self, cluster: u64) -> u64 {
        let block = self.refcounts.block_offset(cluster);
        block.unwrap_or_else(|| panic!("no refcount block covers cluster {cluster}"))
    }

    /// The (first) byte in which the refcount of a host cluster lies.
    pub fn refcount_entry(&self, cluster: u64) -> u64 {
        let place = self.refcounts.entry_place(cluster);
        place
            .unwrap_or_else(|| panic!("no refcount block covers cluster {cluster}"))
            .0
    }

    pub fn snapshot_count(&self) -> usize {
        self.snapshots.entries.len()
    }

    pub fn snapshot_table(&self) -> u64 {
        assert!(self.snapshot_count() != 0, "no snapshots");
        self.snapshots.table_offset
    }

    pub fn snapshot_entry(&self, index: usize) -> u64 {
        self.snapshots.entries[index].offset
    }

    /// A field of a snapshot table entry: `l1_table_offset`, `l1_size`, `id_size`, `name_size`,
    /// `date_seconds`, `date_nanoseconds`, `vm_clock_nanoseconds`, `vm_state_size`,
    /// `extra_data_size`, `extra_data`, `vm_state_size_large`, `disk_size`, `icount`, `id`, `name`.
    pub fn snapshot_field(&self, index: usize, name: &str) -> u64 {
        let place = &self.snapshots.entries[index];
        place.offset + snapshots::field_offset(place, name)
    }

    pub fn bitmap_count(&self) -> usize {
        self.bitmaps.entries.len()
    }

    pub fn bitmap_directory(&self) -> u64 {
        assert!(self.bitmap_count() != 0, "no bitmaps");
        self.bitmaps.directory_offset
    }

    pub fn bitmap_entry(&self, index: usize) -> u64 {
        self.bitmap_place(index).entry_offset
    }

    /// A field of a bitmap directory entry by the specification's name, `extra_data` and `name`
    /// included.
    pub fn bitmap_field(&self, index: usize, name: &str) -> u64 {
        let place = self.bitmap_place(index);
        place.entry_offset + bitmaps::field_offset(place, name)
    }

    pub fn bitmap_table(&self, index: usize) -> u64 {
        self.bitmap_place(index).table_offset
    }

    pub fn bitmap_table_entry(&self, index: usize, table_index: u64) -> u64 {
        let entry_count = self.bitmap_place(index).data_offsets.len() as u64;
        assert!(
            table_index < entry_count,
            "the bitmap table has no entry {table_index}"
        );
        self.bitmap_table(index) + table_index * 8
    }

    /// The data cluster behind an entry of a bitmap table, `None` if it is all zero or all one.
    pub fn bitmap_data(&self, index: usize, table_index: usize) -> Option<u64> {
        self.bitmap_place(index).data_offsets[table_index]
    }

    /// Offset and written length of the LUKS header area.
    pub fn luks_area(&self) -> Option<(u64, u64)> {
        self.luks.map(|place| (place.offset, place.length_bytes))
    }

    fn tree(&self, tree: Tree) -> &L1Table {
        match tree {
            Tree::Active => &self.guest.active,
            Tree::Snapshot(index) => &self.guest.inactive[index],
        }
    }

    fn bitmap_place(&self, index: usize) -> &BitmapPlace {
        &self.bitmaps.entries[index]
    }
}

/// Reading and breaking.
impl Forged {
    pub fn u64_at(&self, offset: u64) -> u64 {
        u64::from_be_bytes(self.array_at(offset))
    }

    pub fn u32_at(&self, offset: u64) -> u32 {
        u32::from_be_bytes(self.array_at(offset))
    }

    pub fn u16_at(&self, offset: u64) -> u16 {
        u16::from_be_bytes(self.array_at(offset))
    }

    pub fn u8_at(&self, offset: u64) -> u8 {
        self.bytes[offset as usize]
    }

    pub fn put_u64(&mut self, offset: u64, value: u64) {
        self.put(offset, &value.to_be_bytes());
    }

    pub fn put_u32(&mut self, offset: u64, value: u32) {
        self.put(offset, &value.to_be_bytes());
    }

    pub fn put_u16(&mut self, offset: u64, value: u16) {
        self.put(offset, &value.to_be_bytes());
    }

    pub fn put_u8(&mut self, offset: u64, value: u8) {
        self.put(offset, &[value]);
    }

    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The stored refcount of a host cluster, 0 where no refcount block was made.
    pub fn refcount(&self, cluster: u64) -> u64 {
        self.refcounts.get(&self.bytes, cluster).unwrap_or(0)
    }

    /// # Panics
    /// If no refcount block covers the cluster or the value does not fit.
    pub fn set_refcount(&mut self, cluster: u64, value: u64) {
        self.refcounts.put(&mut self.bytes, cluster, value);
    }

    /// A fresh zeroed cluster behind the end of the file, with this refcount; gives its number.
    ///
    /// # Panics
    /// As [`Forged::set_refcount`]; [`super::Forge::refcount_headroom`] makes room.
    pub fn allocate(&mut self, refcount: u64) -> u64 {
        let cluster = self.cluster_count();
        self.bytes
            .resize(((cluster + 1) << self.dimensions.cluster_bits) as usize, 0);
        self.set_refcount(cluster, refcount);
        cluster
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    pub fn truncate(&mut self, length_bytes: u64) {
        self.bytes.truncate(length_bytes as usize);
    }

    pub fn write_to(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        std::fs::write(path, &self.bytes)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    fn array_at<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.bytes[offset as usize..][..N]
            .try_into()
            .expect("N bytes")
    }
}
