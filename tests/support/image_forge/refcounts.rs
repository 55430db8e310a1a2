//! The refcount structure: table and blocks, placed behind everything else and counting
//! themselves.

use std::collections::BTreeMap;

use super::Forge;
use super::canvas::Canvas;

/// Where the refcount structure ended up.
pub(super) struct RefcountLayout {
    pub(super) table_offset: u64,
    pub(super) table_clusters: u64,
    /// Index in the refcount table to offset of the refcount block; absent is all free.
    pub(super) blocks: BTreeMap<u64, u64>,
    refcount_order: u32,
    cluster_bits: u32,
}

/// The largest count that `1 << refcount_order` bits can hold.
pub(super) fn maximum(refcount_order: u32) -> u64 {
    u64::MAX >> (64 - (1 << refcount_order))
}

pub(super) fn write(forge: &Forge, canvas: &mut Canvas) -> RefcountLayout {
    let (table_clusters, block_indexes) = plan(forge, canvas);
    let table_offset = canvas.claim_metadata(table_clusters << canvas.cluster_bits);
    let mut layout = RefcountLayout {
        table_offset,
        table_clusters,
        blocks: BTreeMap::new(),
        refcount_order: forge.refcount_order,
        cluster_bits: canvas.cluster_bits,
    };
    for index in block_indexes {
        let block_offset = canvas.claim_metadata(canvas.cluster_size());
        canvas.put_u64(table_offset + index * 8, block_offset);
        layout.blocks.insert(index, block_offset);
    }
    for (cluster, &count) in (0..).zip(&canvas.reference_counts) {
        if count != 0 {
            layout.put(&mut canvas.bytes, cluster, count);
        }
    }
    layout
}

/// How many clusters the table takes and which blocks exist: those with a count to hold, among
/// them the counts of table and blocks themselves, and those of the headroom. More blocks need
/// more counts, so the plan grows until it covers itself.
fn plan(forge: &Forge, canvas: &Canvas) -> (u64, Vec<u64>) {
    let entries_per_block = block_entry_count(canvas.cluster_bits, forge.refcount_order);
    let first_own = canvas.cluster_count();
    let mut occupied: Vec<u64> = (0..)
        .zip(&canvas.reference_counts)
        .filter_map(|(cluster, &count): (u64, _)| {
            (count != 0).then_some(cluster / entries_per_block)
        })
        .collect();
    occupied.dedup();

    let mut table_clusters = forge.refcount_table_clusters.max(1);
    let mut blocks = occupied.clone();
    loop {
        let end =
            first_own + table_clusters + blocks.len() as u64 + forge.refcount_headroom_clusters;
        let mut covering = occupied.clone();
        covering.extend(first_own / entries_per_block..=(end - 1) / entries_per_block);
        covering.dedup();
        let table_bytes = (covering[covering.len() - 1] + 1) * 8;
        let needed_clusters = table_bytes
            .div_ceil(canvas.cluster_size())
            .max(table_clusters);
        if covering == blocks && needed_clusters == table_clusters {
            return (table_clusters, blocks);
        }
        (table_clusters, blocks) = (needed_clusters, covering);
    }
}

/// How many refcounts a refcount block holds.
pub(super) fn block_entry_count(cluster_bits: u32, refcount_order: u32) -> u64 {
    (8 << cluster_bits) >> refcount_order
}

impl RefcountLayout {
    /// Offset of the refcount block that covers a host cluster.
    pub(super) fn block_offset(&self, cluster: u64) -> Option<u64> {
        let index = cluster / block_entry_count(self.cluster_bits, self.refcount_order);
        self.blocks.get(&index).copied()
    }

    /// Where an entry lies: offset of its first byte and, below 8 bits, how far it is shifted.
    pub(super) fn entry_place(&self, cluster: u64) -> Option<(u64, u32)> {
        let index = cluster % block_entry_count(self.cluster_bits, self.refcount_order);
        let bit = index << self.refcount_order;
        Some((self.block_offset(cluster)? + bit / 8, (bit % 8) as u32))
    }

    pub(super) fn get(&self, bytes: &[u8], cluster: u64) -> Option<u64> {
        let (offset, shift) = self.entry_place(cluster)?;
        let entry = &bytes[offset as usize..][..self.entry_bytes()];
        let word = entry
            .iter()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
        Some(word >> shift & maximum(self.refcount_order))
    }

    pub(super) fn put(&self, bytes: &mut [u8], cluster: u64, count: u64) {
        let (offset, shift) = self
            .entry_place(cluster)
            .expect("no refcount block covers the cluster");
        let mask = maximum(self.refcount_order);
        assert!(
            count <= mask,
            "refcount {count} of cluster {cluster} does not fit"
        );
        let entry = &mut bytes[offset as usize..][..self.entry_bytes()];
        if self.refcount_order < 3 {
            entry[0] = entry[0] & !((mask as u8) << shift) | (count as u8) << shift;
        } else {
            entry.copy_from_slice(&count.to_be_bytes()[8 - self.entry_bytes()..]);
        }
    }

    fn entry_bytes(&self) -> usize {
        (1_usize << self.refcount_order).div_ceil(8)
    }
}
