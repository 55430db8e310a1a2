//! What the bytes are: writes a layout to a file, one table at a time.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::case::{Damage, Fill};
use super::layout::{Group, Layout, Mapping, REFCOUNT_TABLE_CLUSTER};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const SECTOR_BITS: u32 = 9;
const HEADER_BYTES: u32 = 112;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Every subcluster allocated, none of them zeros.
const SUBCLUSTERS_ALLOCATED: u64 = 0xffff_ffff;

/// A snapshot table entry of version 3 with 16 bytes of extra data, an id and a name.
fn snapshot_entry(l1_offset: u64, l1_entries: u32, virtual_bytes: u64, number: u32) -> Vec<u8> {
    let (id, name) = snapshot_words(number);
    let mut entry = Vec::new();
    entry.extend(l1_offset.to_be_bytes());
    entry.extend(l1_entries.to_be_bytes());
    entry.extend((id.len() as u16).to_be_bytes());
    entry.extend((name.len() as u16).to_be_bytes());
    // Date in seconds and nanoseconds, clock of the guest, size of the VM state.
    entry.extend((1_500_000_000 + number).to_be_bytes());
    entry.extend([0; 4 + 8 + 4]);
    // Extra data: its length, the VM state's size in 64 bits, the disk's size.
    entry.extend(16u32.to_be_bytes());
    entry.extend(0u64.to_be_bytes());
    entry.extend(virtual_bytes.to_be_bytes());
    entry.extend(id.as_bytes());
    entry.extend(name.as_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

fn snapshot_words(number: u32) -> (String, String) {
    (format!("{}", number + 1), format!("day {}", number + 1))
}

pub(super) fn snapshot_table_bytes(snapshots: u32) -> u64 {
    let entries = (0..snapshots).map(|number| snapshot_entry(0, 0, 0, number).len() as u64);
    entries.sum()
}

impl Layout {
    /// Writes the image into an empty file. Data clusters stay holes.
    pub fn write(&self, file: &File) -> io::Result<()> {
        assert!(file.metadata()?.len() == 0, "the file must be empty");
        // First, so that a file system with smaller files says so before anything is written.
        file.set_len(self.expected().file_bytes)?;
        let mut image = Writer {
            file: BufWriter::with_capacity(1 << 20, file),
            cluster_bytes: self.cluster_bytes,
            at: 0,
        };
        image.put(0, &self.header())?;
        self.write_refcount_table(&mut image)?;
        self.write_trees(&mut image)?;
        self.write_body(&mut image)?;
        image.file.flush()
    }

    fn header(&self) -> Vec<u8> {
        let shape = &self.shape;
        let has_snapshots = shape.snapshots > 0;
        let offset = |cluster: u64| (cluster * self.cluster_bytes).to_be_bytes();
        let mut header = Vec::new();
        header.extend(b"QFI\xfb");
        header.extend(3u32.to_be_bytes());
        // No backing file.
        header.extend([0; 8 + 4]);
        header.extend(shape.cluster_bits.to_be_bytes());
        header.extend(self.virtual_bytes().to_be_bytes());
        // Not encrypted.
        header.extend([0; 4]);
        header.extend((self.l2_tables as u32).to_be_bytes());
        header.extend(offset(self.l1_cluster(shape.snapshots)));
        header.extend(offset(REFCOUNT_TABLE_CLUSTER));
        header.extend((self.refcount_table_clusters as u32).to_be_bytes());
        header.extend(shape.snapshots.to_be_bytes());
        header.extend(offset(if has_snapshots {
            self.snapshot_table_cluster()
        } else {
            0
        }));
        let incompatible = if shape.extended_l2 {
            INCOMPATIBLE_EXTENDED_L2
        } else {
            0
        };
        header.extend(incompatible.to_be_bytes());
        header.extend([0; 8 + 8]);
        header.extend(shape.refcount_order.to_be_bytes());
        header.extend(HEADER_BYTES.to_be_bytes());
        // Deflate, padding, and the end of the header extensions.
        header.extend([0; 8 + 8]);
        header
    }

    /// The virtual disk ends where its last L2 table does.
    pub fn virtual_bytes(&self) -> u64 {
        self.l2_tables * self.l2_entries * self.cluster_bytes
    }

    fn write_refcount_table(&self, image: &mut Writer<'_>) -> io::Result<()> {
        if self.shape.damage == Damage::RefcountTableLost {
            return Ok(());
        }
        let far_range = self.far_cluster.map(|far| far / self.block_refcounts);
        let mut table: Vec<u64> = (0..self.blocks)
            .map(|block| self.block_cluster(block))
            .collect();
        if let Some(range) = far_range {
            table.resize(range as usize, 0);
            table.push(self.block_cluster(range));
        }
        let words = table.iter().map(|cluster| cluster * self.cluster_bytes);
        image.put_words(REFCOUNT_TABLE_CLUSTER, words)
    }

    fn write_trees(&self, image: &mut Writer<'_>) -> io::Result<()> {
        let snapshots = self.shape.snapshots;
        let mut table = Vec::new();
        for tree in 0..=snapshots {
            let l1_cluster = self.l1_cluster(tree);
            let words = (0..self.l2_tables).map(|table| {
                let group = self.group_seen(table, tree)?;
                let is_copied = group.version.trees == 1 && tree == snapshots;
                let flag = if is_copied { COPIED } else { 0 };
                Some(flag | (self.table_cluster(group) * self.cluster_bytes))
            });
            image.put_words(l1_cluster, words.map(Option::unwrap_or_default))?;
            if tree < snapshots {
                let offset = l1_cluster * self.cluster_bytes;
                let entries = self.l2_tables as u32;
                table.extend(snapshot_entry(offset, entries, self.virtual_bytes(), tree));
            }
        }
        if snapshots > 0 {
            image.put(self.snapshot_table_cluster(), &table)?;
        }
        Ok(())
    }

    fn write_body(&self, image: &mut Writer<'_>) -> io::Result<()> {
        self.write_refcounts(image)?;
        for group in &self.groups {
            image.put(self.table_cluster(group), &self.l2_table(group))?;
        }
        Ok(())
    }

    fn l2_table(&self, group: &Group) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.cluster_bytes as usize);
        for entry in 0..self.l2_entries {
            let word = self.l2_entry(self.mapping(group, entry));
            table.extend(word.to_be_bytes());
            if self.shape.extended_l2 {
                let subclusters = if word == 0 { 0 } else { SUBCLUSTERS_ALLOCATED };
                table.extend(subclusters.to_be_bytes());
            }
        }
        table
    }

    fn l2_entry(&self, mapping: Mapping) -> u64 {
        match mapping {
            Mapping::Nothing => 0,
            Mapping::Cluster { cluster, copied } => {
                let flag = if copied { COPIED } else { 0 };
                flag | (cluster * self.cluster_bytes)
            }
            Mapping::Compressed { offset, bytes } => {
                let more_sectors = ((offset + bytes - 1) >> SECTOR_BITS) - (offset >> SECTOR_BITS);
                let offset_bits = 62 - (self.shape.cluster_bits - 8);
                COMPRESSED | more_sectors << offset_bits | offset
            }
        }
    }

    fn write_refcounts(&self, image: &mut Writer<'_>) -> io::Result<()> {
        let mut blocks = Blocks {
            layout: self,
            image,
            cluster: 0,
            bytes: vec![0; self.cluster_bytes as usize],
            outcome: Ok(()),
        };
        blocks.push(1, self.front_clusters);
        self.for_each_run_of_slots(|count, length| blocks.push_slots(count, length));
        blocks.finish()?;
        let Some(far) = self.far_cluster else {
            return Ok(());
        };
        let mut block = vec![0; self.cluster_bytes as usize];
        for cluster in [far - 1, far] {
            let index = cluster % self.block_refcounts;
            put_refcount(&mut block, self.shape.refcount_order, index, 1);
        }
        image.put(far - 1, &block)
    }
}

/// Refcount blocks as their counts come in.
struct Blocks<'layout, 'image, 'file> {
    layout: &'layout Layout,
    image: &'image mut Writer<'file>,
    /// The cluster whose count comes next.
    cluster: u64,
    /// The block under construction.
    bytes: Vec<u8>,
    /// The first error, after which nothing is written.
    outcome: io::Result<()>,
}

impl Blocks<'_, '_, '_> {
    /// Counts of slots, with a one for each refcount block among them.
    fn push_slots(&mut self, count: u64, mut length: u64) {
        let range = self.layout.block_refcounts;
        let blocks_are_in_front = self.layout.shape.fill == Fill::Compressed;
        while length > 0 {
            let index = self.cluster % range;
            let is_block = index == 0 && self.cluster >= self.layout.front_blocks * range;
            if is_block && !blocks_are_in_front {
                self.push(1, 1);
                continue;
            }
            let now = length.min(range - index);
            self.push(count, now);
            length -= now;
        }
    }

    /// Counts of clusters.
    fn push(&mut self, count: u64, length: u64) {
        let range = self.layout.block_refcounts;
        for _ in 0..length {
            let index = self.cluster % range;
            put_refcount(
                &mut self.bytes,
                self.layout.shape.refcount_order,
                index,
                count,
            );
            self.cluster += 1;
            if index + 1 == range {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let block = (self.cluster - 1) / self.layout.block_refcounts;
        if self.outcome.is_ok() {
            let cluster = self.layout.block_cluster(block);
            self.outcome = self.image.put(cluster, &self.bytes);
        }
        self.bytes.fill(0);
    }

    fn finish(mut self) -> io::Result<()> {
        assert!(
            self.cluster == self.layout.clusters,
            "a count for each cluster"
        );
        if !self.cluster.is_multiple_of(self.layout.block_refcounts) {
            self.flush();
        }
        self.outcome
    }
}

/// Counts of less than a byte fill it from the low bits.
fn put_refcount(block: &mut [u8], order: u32, index: u64, count: u64) {
    let bits = 1 << order;
    assert!(bits == 64 || count >> bits == 0, "the count is too large");
    if bits < 8 {
        let bit = index << order;
        block[(bit / 8) as usize] |= (count as u8) << (bit % 8);
    } else {
        let bytes = bits / 8;
        let start = index as usize * bytes;
        block[start..start + bytes].copy_from_slice(&count.to_be_bytes()[8 - bytes..]);
    }
}

/// Clusters to places in the file; what is written in order is gathered.
struct Writer<'file> {
    file: BufWriter<&'file File>,
    cluster_bytes: u64,
    at: u64,
}

impl Writer<'_> {
    fn put(&mut self, cluster: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = cluster * self.cluster_bytes;
        if offset != self.at {
            self.file.seek(SeekFrom::Start(offset))?;
        }
        self.file.write_all(bytes)?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }

    fn put_words(&mut self, cluster: u64, words: impl Iterator<Item = u64>) -> io::Result<()> {
        let bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
        self.put(cluster, &bytes)
    }
}
