//! The format's dictionary: bytes ⇄ words ⇄ descriptors, with the names of the specification.
//!
//! Comes in: bytes somebody else has read. Goes out: values that say what the bytes mean, and the defects each value
//! carries by itself. Never here: I/O, judging one structure by another, a panic for any bit pattern.
//!
//! The specification is `docs/interop/qcow2.rst` of the QEMU sources; each file names the section it renders.

mod bitmap;
mod bytes;
mod extension;
mod geometry;
mod header;
mod l1;
mod l2;
mod luks;
mod place;
mod refcount;
mod snapshot;
mod units;

pub use bitmap::{
    BITMAP_DIRECTORY_ENTRY_BYTES, BITMAPS_EXTENSION_BYTES, BitmapDirectoryEntry, BitmapTableEntry,
    BitmapsExtension, DirectoryDecode, MAX_BITMAP_DATA_BYTES, MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAP_NAME_BYTES, MAX_BITMAP_TABLE_ENTRIES, MAX_BITMAPS,
};
pub(crate) use bytes::is_zero;
pub use bytes::{u16_at, u32_at, u64_at, words};
pub use extension::{
    Extension, ExtensionArea, ExtensionKind, FEATURE_NAME_ENTRY_BYTES, FeatureKind,
    decode_extensions, feature_name,
};
pub use geometry::{
    Geometry, MAX_CLUSTER_BITS, MAX_L1_TABLE_BYTES, MAX_REFCOUNT_ORDER, MAX_REFCOUNT_TABLE_BYTES,
    MIN_CLUSTER_BITS, MIN_EXTENDED_L2_CLUSTER_BITS, Refusal, SECTOR_BYTES,
};
pub use header::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_KNOWN, AUTOCLEAR_RAW_DATA, COMPATIBLE_KNOWN,
    COMPATIBLE_LAZY_REFCOUNTS, CompressionType, CryptMethod, Header, INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2,
    INCOMPATIBLE_KNOWN, MAGIC, MAX_BACKING_NAME_BYTES, NotQcow2, V2_HEADER_BYTES, V3_HEADER_BYTES,
};
pub use l1::L1Entry;
pub use l2::{CompressedExtent, L2Descriptor, L2Entry, SubclusterBitmap};
pub use luks::{
    LUKS_HEADER_BYTES, LUKS_SLOT_UNUSED, LUKS_SLOT_USED, LUKS_STRIPES, LuksHeader, LuksKeySlot,
    luks_payload_start,
};
pub use place::{Place, Tree};
pub use refcount::{
    CountField, Counts64, RefcountTableEntry, count_field, counts_by_64, put_bits, refcount_at,
    set_refcount_at, set_refcounts,
};
pub use snapshot::{
    MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, SNAPSHOT_FIXED_BYTES,
    SNAPSHOT_V3_EXTRA_BYTES, SnapshotEntry, SnapshotFixed, encode_snapshot_extra,
};
pub use units::{ClusterRange, GuestCluster, GuestOffset, GuestRange, HostCluster, HostOffset};
