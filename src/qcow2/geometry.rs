//! The sizes everything else is measured in, and the gate from alleged offsets to clusters.
//!
//! Comes in: a header's numbers and the file's length. Goes out: sizes, indices, and [`Geometry::admit`], the one
//! place where an offset read from disk becomes a [`HostCluster`]. Never here: I/O.
//!
//! Limits are QEMU's where the specification names an implementation limit.

use super::{ClusterRange, GuestOffset, GuestRange, Header, HostCluster, HostOffset};

/// A sector, the unit compressed extents are counted in.
pub const SECTOR_BYTES: u64 = 512;
/// Smallest `cluster_bits` (512-byte clusters).
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest `cluster_bits` QEMU opens (2 MiB clusters).
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Smallest `cluster_bits` with extended L2 entries (16 KiB clusters, 512-byte subclusters).
pub const MIN_EXTENDED_L2_CLUSTER_BITS: u32 = 14;
/// Largest `refcount_order` (64-bit refcounts).
pub const MAX_REFCOUNT_ORDER: u32 = 6;
/// QEMU's limit of an L1 table, active or of a snapshot.
pub const MAX_L1_TABLE_BYTES: u64 = 32 << 20;
/// QEMU's limit of the refcount table.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// Why an alleged offset is not a cluster of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The offset is not a multiple of the cluster size.
    Unaligned,
    /// The range ends a whole cluster or more past the end of the file.
    PastEnd,
}

/// The sizes of one image. Only built from a header whose `cluster_bits` and `refcount_order` are in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    l2_entry_bytes: u64,
    file_bytes: u64,
}

impl Geometry {
    /// The geometry a header describes in a file of `file_bytes`, or `None` where its numbers are out of range.
    pub fn new(header: &Header, file_bytes: u64) -> Option<Self> {
        let cluster_bits = header.cluster_bits;
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return None;
        }
        let refcount_order = header.refcount_order.min(MAX_REFCOUNT_ORDER);
        let l2_entry_bytes = if header.has_extended_l2() { 16 } else { 8 };
        Some(Self {
            cluster_bits,
            refcount_order,
            l2_entry_bytes,
            file_bytes,
        })
    }

    /// Bits of an offset within a cluster.
    pub fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes in a cluster.
    pub fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Length of the image file in bytes.
    pub fn file_bytes(self) -> u64 {
        self.file_bytes
    }

    /// Clusters in the file; a last one that is only partly there counts.
    pub fn file_clusters(self) -> u64 {
        self.clusters_for(self.file_bytes)
    }

    /// Logarithm of the refcount width in bits.
    pub fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    /// The largest count a refcount of this width can hold.
    pub fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - (1_u32 << self.refcount_order))
    }

    /// Refcounts in one refcount block.
    pub fn refcount_block_entries(self) -> u64 {
        (self.cluster_bytes() * 8) >> self.refcount_order
    }

    /// Bytes of an L2 entry: 8, or 16 with extended L2 entries.
    pub fn l2_entry_bytes(self) -> u64 {
        self.l2_entry_bytes
    }

    /// Whether L2 entries carry a subcluster bitmap.
    pub fn has_extended_l2(self) -> bool {
        self.l2_entry_bytes == 16
    }

    /// Entries in one L2 table.
    pub fn l2_entries(self) -> u64 {
        1 << (self.cluster_bits - self.l2_entry_bytes.trailing_zeros())
    }

    /// Guest bytes one L1 entry stands for.
    pub fn l1_entry_coverage_bytes(self) -> u64 {
        self.cluster_bytes() * self.l2_entries()
    }

    /// L1 entries a virtual disk of `virtual_bytes` needs.
    pub fn l1_entries_needed(self, virtual_bytes: u64) -> u64 {
        virtual_bytes.div_ceil(self.l1_entry_coverage_bytes())
    }

    /// Clusters `bytes` bytes fill, the last one rounded up.
    pub fn clusters_for(self, bytes: u64) -> u64 {
        // Shifts, not divisions: this is asked for every entry of every table.
        let partial = u64::from(bytes & (self.cluster_bytes() - 1) != 0);
        (bytes >> self.cluster_bits) + partial
    }

    /// Where a cluster starts in the file.
    pub fn offset_of(self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0.saturating_mul(self.cluster_bytes()))
    }

    /// The cluster an offset falls into, whether or not the file reaches that far.
    pub fn cluster_at(self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// Whether an offset is a multiple of the cluster size.
    pub fn is_aligned(self, offset: HostOffset) -> bool {
        offset.0 & (self.cluster_bytes() - 1) == 0
    }

    /// The index, in clusters of the virtual disk, of entry `l2_index` of the table that L1 entry `l1_index` names.
    pub fn guest_cluster(self, l1_index: u64, l2_index: u64) -> u64 {
        l1_index
            .saturating_mul(self.l2_entries())
            .saturating_add(l2_index)
    }

    /// The guest bytes of `count` clusters from `guest_cluster` on.
    pub fn guest_range(self, guest_cluster: u64, count: u64) -> GuestRange {
        GuestRange {
            start: GuestOffset(guest_cluster.saturating_mul(self.cluster_bytes())),
            bytes: count.saturating_mul(self.cluster_bytes()),
        }
    }

    /// Turns an alleged offset of one whole cluster into a cluster of this file.
    ///
    /// The last cluster may be only partly there: a file ends where its last write ended.
    pub fn admit(self, offset: HostOffset) -> Result<HostCluster, Refusal> {
        if !self.is_aligned(offset) {
            return Err(Refusal::Unaligned);
        }
        if offset.0 >= self.file_bytes {
            return Err(Refusal::PastEnd);
        }
        Ok(self.cluster_at(offset))
    }

    /// Turns an alleged table of `bytes` bytes at a cluster boundary into the clusters it fills.
    ///
    /// It has to be in the file whole, but for the padding of its last eight bytes.
    pub fn admit_table(self, offset: HostOffset, bytes: u64) -> Result<ClusterRange, Refusal> {
        let clusters = self.admit_clusters(offset, bytes)?;
        if self.is_cut(offset, bytes) {
            return Err(Refusal::PastEnd);
        }
        Ok(clusters)
    }

    /// How many bytes of words the file has from `offset` on: one that it ends in goes on with zeros.
    pub fn word_bytes_from(self, offset: HostOffset) -> u64 {
        self.file_bytes.saturating_sub(offset.0).saturating_add(7) & !7
    }

    /// Whether the file ends before the last eight bytes of a structure begin.
    pub fn is_cut(self, offset: HostOffset, bytes: u64) -> bool {
        let end = offset.0.saturating_add(bytes);
        end.saturating_sub(1) & !7 >= self.file_bytes
    }

    /// Turns an alleged structure of `bytes` bytes at a cluster boundary, of whose last cluster the file may have a part
    /// only, into the clusters it fills.
    pub fn admit_clusters(self, offset: HostOffset, bytes: u64) -> Result<ClusterRange, Refusal> {
        if !self.is_aligned(offset) {
            return Err(Refusal::Unaligned);
        }
        self.admit_extent(offset, bytes)
    }

    /// Turns an alleged extent of `bytes` bytes, at any byte, into the clusters it touches.
    ///
    /// It begins in a cluster of the file, and may end less than a cluster past its end, as a half-written last cluster
    /// does.
    #[inline]
    pub fn admit_extent(self, offset: HostOffset, bytes: u64) -> Result<ClusterRange, Refusal> {
        let end = offset.0.checked_add(bytes).ok_or(Refusal::PastEnd)?;
        let limit = self.file_bytes.saturating_add(self.cluster_bytes());
        let start = self.cluster_at(offset);
        if start.0 >= self.file_clusters() || end >= limit {
            return Err(Refusal::PastEnd);
        }
        let count = self.clusters_for(end).saturating_sub(start.0);
        Ok(ClusterRange { start, count })
    }

    /// Whether the file ends before the last sector of compressed data that ends here begins.
    pub fn is_extent_cut(self, end: HostOffset) -> bool {
        end.0.saturating_sub(1) & !(SECTOR_BYTES - 1) >= self.file_bytes
    }

    /// The bytes of whole sectors the file has.
    pub fn whole_sector_bytes(self) -> u64 {
        self.file_bytes & !(SECTOR_BYTES - 1)
    }

    /// The part of an aligned table that lies in the file, for tables whose tail is lost.
    pub fn clip_table(self, offset: HostOffset, bytes: u64) -> Option<ClusterRange> {
        let start = self.admit(offset).ok()?;
        let end = offset.0.saturating_add(bytes).min(self.file_bytes);
        let count = self.clusters_for(end).saturating_sub(start.0);
        (count > 0).then_some(ClusterRange { start, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(file_bytes: u64) -> Geometry {
        Geometry {
            cluster_bits: 16,
            refcount_order: 4,
            l2_entry_bytes: 8,
            file_bytes,
        }
    }

    #[test]
    fn half_written_last_cluster_is_admitted() {
        let geometry = geometry(0x2_0001);
        assert_eq!(geometry.file_clusters(), 3);
        assert_eq!(geometry.admit(HostOffset(0x2_0000)), Ok(HostCluster(2)));
        assert_eq!(geometry.admit(HostOffset(0x3_0000)), Err(Refusal::PastEnd));
        assert_eq!(
            geometry.admit(HostOffset(0x1_0200)),
            Err(Refusal::Unaligned)
        );
    }

    #[test]
    fn extent_may_end_less_than_a_cluster_past_the_end() {
        let geometry = geometry(0x2_0000);
        let range = geometry.admit_extent(HostOffset(0x1_ff00), 0x200);
        assert_eq!(
            range,
            Ok(ClusterRange {
                start: HostCluster(1),
                count: 2
            })
        );
        assert_eq!(
            geometry.admit_extent(HostOffset(0x2_0000), 0x1_0000),
            Err(Refusal::PastEnd)
        );
        assert_eq!(
            geometry.admit_extent(HostOffset(u64::MAX), 2),
            Err(Refusal::PastEnd)
        );
    }

    #[test]
    fn widths_give_their_largest_count() {
        for (order, max) in [(0, 1), (1, 3), (3, 255), (4, 65_535), (6, u64::MAX)] {
            let geometry = Geometry {
                refcount_order: order,
                ..geometry(0)
            };
            assert_eq!(geometry.refcount_max(), max);
        }
    }
}
