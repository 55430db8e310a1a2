//! Writing a recipe: the settings and steps a test strings together.

use super::bitmaps::{BitmapCluster, BitmapRecipe};
use super::canvas::filler;
use super::luks::LuksArea;
use super::snapshots::SnapshotRecipe;
use super::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA_FILE, COMPATIBLE_LAZY_REFCOUNTS, Forge,
    INCOMPATIBLE_COMPRESSION_TYPE, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2, Step,
};

/// Settings of the header.
impl Forge {
    /// Version 3, 64 KiB clusters, 16 bit refcounts, 64 MiB, nothing written yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    pub fn cluster_bits(mut self, cluster_bits: u32) -> Self {
        self.cluster_bits = cluster_bits;
        self
    }

    pub fn refcount_order(mut self, refcount_order: u32) -> Self {
        self.refcount_order = refcount_order;
        self
    }

    /// Virtual size in bytes.
    pub fn size(mut self, size_bytes: u64) -> Self {
        self.size = size_bytes;
        self
    }

    /// Version 3 only; 112 unless told. What lies past byte 112 is filled with unknown bytes.
    pub fn header_length(mut self, header_length: u32) -> Self {
        self.header_length = Some(header_length);
        self
    }

    /// Adds known incompatible feature bits.
    pub fn incompatible(mut self, bits: u64) -> Self {
        self.incompatible_features |= bits;
        self
    }

    /// Adds compatible feature bits, known or not.
    pub fn compatible(mut self, bits: u64) -> Self {
        self.compatible_features |= bits;
        self
    }

    /// Adds autoclear feature bits, known or not.
    pub fn autoclear(mut self, bits: u64) -> Self {
        self.autoclear_features |= bits;
        self
    }

    pub fn dirty(self) -> Self {
        self.incompatible(INCOMPATIBLE_DIRTY)
    }

    pub fn corrupt(self) -> Self {
        self.incompatible(INCOMPATIBLE_CORRUPT)
    }

    pub fn extended_l2(self) -> Self {
        self.incompatible(INCOMPATIBLE_EXTENDED_L2)
    }

    pub fn lazy_refcounts(self) -> Self {
        self.compatible(COMPATIBLE_LAZY_REFCOUNTS)
    }

    /// 0 is deflate, 1 is zstd; sets the incompatible bit that must go with it.
    pub fn compression_type(mut self, compression_type: u8) -> Self {
        self.compression_type = compression_type;
        self.incompatible_features &= !INCOMPATIBLE_COMPRESSION_TYPE;
        if compression_type != 0 {
            self.incompatible_features |= INCOMPATIBLE_COMPRESSION_TYPE;
        }
        self
    }

    /// 0 is none, 1 is AES; 2 comes with [`Forge::luks`].
    pub fn crypt_method(mut self, crypt_method: u32) -> Self {
        self.crypt_method = crypt_method;
        self
    }

    /// LUKS with an invented header that looks right and opens with no key.
    pub fn luks(mut self, area_cluster_count: u64) -> Self {
        self.luks = Some(LuksArea::Invented(area_cluster_count));
        self.crypt_method(2)
    }

    /// LUKS with these bytes as its header area.
    pub fn luks_header(mut self, header: &[u8]) -> Self {
        self.luks = Some(LuksArea::Given(header.to_vec()));
        self.crypt_method(2)
    }

    pub fn backing_file(mut self, name: &str) -> Self {
        self.backing_file = Some(name.to_owned());
        self
    }

    pub fn backing_format(mut self, format: &str) -> Self {
        self.backing_format = Some(format.to_owned());
        self
    }

    /// Guest data lives in another file at the guest's own offsets. Without a name the extension
    /// is left out, which is legal.
    pub fn data_file(mut self, name: Option<&str>) -> Self {
        self.data_file_name = name.map(str::to_owned);
        self.incompatible(INCOMPATIBLE_DATA_FILE)
    }

    pub fn data_file_raw(self) -> Self {
        self.autoclear(AUTOCLEAR_RAW_DATA_FILE)
    }

    /// Adds a row to the feature name table; `kind` 0 incompatible, 1 compatible, 2 autoclear.
    pub fn feature_name(mut self, kind: u8, bit: u8, name: &str) -> Self {
        self.feature_names.push((kind, bit, name.to_owned()));
        self
    }

    pub fn unknown_extension(mut self, extension_type: u32, data: &[u8]) -> Self {
        self.unknown_extensions
            .push((extension_type, data.to_vec()));
        self
    }

    /// Entries of the active L1 table, if more than size and steps need.
    pub fn l1_size(mut self, entry_count: u32) -> Self {
        self.l1_size = entry_count;
        self
    }

    /// How many clusters past the end of the file the refcount blocks cover at least, so that
    /// [`Forged::allocate`] finds room; 8 unless told.
    pub fn refcount_headroom(mut self, cluster_count: u64) -> Self {
        self.refcount_headroom_clusters = cluster_count;
        self
    }

    /// Clusters of the refcount table, if more than needed.
    pub fn refcount_table_clusters(mut self, cluster_count: u64) -> Self {
        self.refcount_table_clusters = cluster_count;
        self
    }

    /// A persistent bitmap. `table_entries` repeats as a pattern until the bitmap table has the
    /// length that virtual size and granularity demand.
    pub fn bitmap(
        self,
        name: &str,
        granularity_bits: u8,
        flags: u32,
        table_entries: &[BitmapCluster],
    ) -> Self {
        self.bitmap_with(BitmapRecipe {
            name: name.to_owned(),
            granularity_bits,
            flags,
            extra_data: Vec::new(),
            table_entries: table_entries.to_vec(),
        })
    }

    pub fn bitmap_with(mut self, bitmap: BitmapRecipe) -> Self {
        self.bitmaps.push(bitmap);
        self.autoclear(AUTOCLEAR_BITMAPS)
    }
}

/// Steps. A step on a guest cluster replaces what was mapped there; a table or host cluster that a
/// snapshot still holds is left to it and copied.
impl Forge {
    /// A standard cluster in the next free host cluster (in place if it has one of its own).
    pub fn data(self, guest_cluster: u64) -> Self {
        self.step(Step::Data(guest_cluster))
    }

    /// Reads as zeros and has no host cluster.
    pub fn zero_plain(self, guest_cluster: u64) -> Self {
        self.step(Step::ZeroPlain(guest_cluster))
    }

    /// Reads as zeros and keeps a host cluster for later.
    pub fn zero_allocated(self, guest_cluster: u64) -> Self {
        self.step(Step::ZeroAllocated(guest_cluster))
    }

    /// Extended L2 only. Has a host cluster unless there are only zero bits.
    pub fn subclusters(self, guest_cluster: u64, alloc_mask: u32, zero_mask: u32) -> Self {
        self.step(Step::Subclusters(guest_cluster, alloc_mask, zero_mask))
    }

    /// A compressed cluster of filler, packed behind the previous one to the byte; it crosses into
    /// the next host cluster if that one is still free.
    pub fn compressed(self, guest_cluster: u64, length_bytes: u64) -> Self {
        let label = format!("[compressed cluster {guest_cluster}] ");
        self.compressed_bytes(guest_cluster, &filler(&label, length_bytes))
    }

    /// As [`Forge::compressed`], with the caller's own compressed stream.
    pub fn compressed_bytes(self, guest_cluster: u64, stream: &[u8]) -> Self {
        self.step(Step::Compressed(guest_cluster, stream.to_vec()))
    }

    /// Takes the mapping away; a host cluster nobody else holds becomes free.
    pub fn unmap(self, guest_cluster: u64) -> Self {
        self.step(Step::Unmap(guest_cluster))
    }

    /// Standard clusters from the first L1 entry that lies wholly past the virtual size, where VM
    /// state is kept.
    pub fn vm_state(self, cluster_count: u64) -> Self {
        self.step(Step::VmState(cluster_count))
    }

    /// Leaves free host clusters (refcount 0) in the middle of the file.
    pub fn gap(self, cluster_count: u64) -> Self {
        self.step(Step::Gap(cluster_count))
    }

    /// An internal snapshot of what is mapped now, with the extra data that is usual.
    pub fn snapshot(self, id: &str, name: &str) -> Self {
        self.snapshot_with(SnapshotRecipe::new(id, name))
    }

    pub fn snapshot_with(self, snapshot: SnapshotRecipe) -> Self {
        self.step(Step::Snapshot(snapshot))
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}
