//! One coordinate system for claims and complaints: which entry of which structure.
//!
//! Comes in: indices. Goes out: a [`Place`] that orders and prints itself. Never here: a name taken from an image.

use std::fmt;

use super::{HostCluster, HostOffset};

/// A mapping of the virtual disk: the one the guest sees, or that of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// The mapping in use.
    Active,
    /// The mapping of the snapshot at this index of the snapshot table, counted from 0.
    Snapshot(u32),
}

/// Where in an image something is. Places order as a reader would list them.
///
/// An L2 table is named by its own cluster, not by its many owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the variants are the specification's structures, the fields their indices"
)]
pub enum Place {
    Header {
        field: &'static str,
    },
    HeaderExtension {
        offset: u64,
    },
    EncryptionHeader,
    RefcountTable,
    RefcountTableEntry {
        index: u64,
    },
    /// The refcount block of this refcount table entry.
    RefcountBlock {
        index: u64,
    },
    L1Table {
        tree: Tree,
    },
    L1Entry {
        tree: Tree,
        index: u64,
    },
    L2Table {
        cluster: HostCluster,
    },
    L2Entry {
        table: HostCluster,
        index: u64,
    },
    SnapshotTable,
    SnapshotEntry {
        index: u32,
    },
    BitmapDirectory,
    BitmapEntry {
        index: u32,
    },
    BitmapTable {
        bitmap: u32,
    },
    BitmapTableEntry {
        bitmap: u32,
        index: u64,
    },
    /// Host clusters, where the finding is about their refcounts or owners.
    Clusters {
        start: HostCluster,
    },
    /// Compressed data.
    CompressedExtent {
        offset: HostOffset,
    },
    /// The file as a whole.
    File,
}

impl Place {
    /// Whether two places are entries of one L2 table, or neither is an entry of one.
    pub(crate) fn is_in_table_of(self, other: Self) -> bool {
        let table = |place| match place {
            Self::L2Entry { table, .. } => Some(table),
            _ => None,
        };
        table(self) == table(other)
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => write!(f, "active"),
            Self::Snapshot(index) => write!(f, "snapshot #{index}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header { field } => write!(f, "header field {field}"),
            Self::HeaderExtension { offset } => write!(f, "header extension at {offset:#x}"),
            Self::EncryptionHeader => write!(f, "encryption header"),
            Self::RefcountTable => write!(f, "refcount table"),
            Self::RefcountTableEntry { index } => write!(f, "refcount table entry {index}"),
            Self::RefcountBlock { index } => write!(f, "refcount block {index}"),
            Self::L1Table { tree } => write!(f, "{tree} L1 table"),
            Self::L1Entry { tree, index } => write!(f, "{tree} L1 entry {index}"),
            Self::L2Table { cluster } => write!(f, "L2 table in cluster {}", cluster.0),
            Self::L2Entry { table, index } => {
                write!(f, "entry {index} of the L2 table in cluster {}", table.0)
            }
            Self::SnapshotTable => write!(f, "snapshot table"),
            Self::SnapshotEntry { index } => write!(f, "snapshot #{index}"),
            Self::BitmapDirectory => write!(f, "bitmap directory"),
            Self::BitmapEntry { index } => write!(f, "bitmap #{index}"),
            Self::BitmapTable { bitmap } => write!(f, "table of bitmap #{bitmap}"),
            Self::BitmapTableEntry { bitmap, index } => {
                write!(f, "entry {index} of the table of bitmap #{bitmap}")
            }
            Self::Clusters { start } => write!(f, "cluster {}", start.0),
            Self::CompressedExtent { offset } => write!(f, "compressed data at {offset}"),
            Self::File => write!(f, "file"),
        }
    }
}
