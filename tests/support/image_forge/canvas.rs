//! The canvas: the growing file and how often each host cluster of it is referenced.
//!
//! Space is only ever taken at the end. Taking space and referring to it are separate, because
//! guest clusters are counted at the very end, once for every tree that reaches them.

/// The file under construction.
pub(super) struct Canvas {
    pub(super) bytes: Vec<u8>,
    pub(super) cluster_bits: u32,
    /// References per host cluster, as long as the file.
    pub(super) reference_counts: Vec<u64>,
}

impl Canvas {
    /// A file of one cluster, the header's.
    pub(super) fn new(cluster_bits: u32) -> Self {
        let mut canvas = Self {
            bytes: Vec::new(),
            cluster_bits,
            reference_counts: Vec::new(),
        };
        canvas.claim_metadata(1);
        canvas
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn cluster_count(&self) -> u64 {
        self.reference_counts.len() as u64
    }

    /// Where the next claim will start.
    pub(super) fn end_offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Takes zeroed clusters at the end of the file; nobody refers to them yet.
    pub(super) fn claim(&mut self, cluster_count: u64) -> u64 {
        let offset = self.end_offset();
        let clusters = self.reference_counts.len() + cluster_count as usize;
        self.reference_counts.resize(clusters, 0);
        self.bytes.resize(clusters << self.cluster_bits, 0);
        offset
    }

    /// Takes and counts the clusters of a structure that has exactly one owner. An empty structure
    /// takes nothing and lies nowhere (offset 0).
    pub(super) fn claim_metadata(&mut self, length_bytes: u64) -> u64 {
        if length_bytes == 0 {
            return 0;
        }
        let offset = self.claim(length_bytes.div_ceil(self.cluster_size()));
        self.refer(offset, length_bytes);
        offset
    }

    /// Counts one reference to every cluster the range touches.
    pub(super) fn refer(&mut self, offset: u64, length_bytes: u64) {
        let first = offset >> self.cluster_bits;
        let last = (offset + length_bytes - 1) >> self.cluster_bits;
        for cluster in first..=last {
            self.reference_counts[cluster as usize] += 1;
        }
    }

    pub(super) fn reference_count(&self, offset: u64) -> u64 {
        self.reference_counts[(offset >> self.cluster_bits) as usize]
    }

    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn put_u64(&mut self, offset: u64, value: u64) {
        self.put(offset, &value.to_be_bytes());
    }
}

/// Recognisable guest content: the label over and over. It must not be zeros, so that a repair
/// that loses a byte is seen, and it must be readable, so that a hex dump tells whose it is.
pub(super) fn filler(label: &str, length_bytes: u64) -> Vec<u8> {
    let mut bytes = label
        .as_bytes()
        .repeat((length_bytes as usize).div_ceil(label.len()));
    bytes.truncate(length_bytes as usize);
    bytes
}
