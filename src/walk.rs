//! The walk: visits every structure once and says who refers to what, and what is wrong with the words by themselves.
//!
//! Comes in: an [`Image`](crate::image::Image). Goes out: a [`Survey`] of all metadata and of the L2 tables to read,
//! and, table by table, the references in them; findings; gaps in the coverage. Never here: comparing one structure
//! with another, refcounts included.
//!
//! Rooms, in the order they are walked: `header` (header, extensions), `encryption`, `refcounts` (refcount table),
//! `snapshots` (snapshot table), `mapping` (L1 tables), `bitmaps`; then `l2_table` for what is inside the L2 tables.

pub(crate) mod batch;
pub(crate) mod bitmaps;
mod encryption;
mod header;
pub(crate) mod l2_table;
mod mapping;
pub(crate) mod path;
mod pieces;
mod refcounts;
mod snapshots;
mod stored_parts;

use std::collections::BTreeSet;

use crate::coverage::{Coverage, Gap};
use crate::finding::{Code, Finding, Findings, OwnerKind, Trees};
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::{ClusterRange, Geometry, Header, HostCluster, Place, SnapshotEntry};
use crate::storage::Storage;

/// What a walk leaves behind besides references.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub(crate) findings: Findings,
    pub(crate) coverage: Coverage,
}

impl Notes {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(crate) fn gap(&mut self, gap: Gap) {
        self.coverage.push(gap);
    }

    /// Notes a claim that was refused, with words that are only made if they are kept.
    pub(crate) fn refuse(&mut self, place: Place, detail: impl FnOnce() -> String) {
        let detail = if self.coverage.keeps_more() {
            detail()
        } else {
            String::new()
        };
        self.coverage.push(Gap::refused(place, detail));
    }

    pub(crate) fn append(&mut self, later: Self) {
        self.findings.append(later.findings);
        self.coverage.append(later.coverage);
    }
}

/// What every room of the walk is given.
#[derive(Debug)]
pub(crate) struct Walk<'a, S> {
    pub(crate) image: &'a Image<S>,
    pub(crate) geometry: Geometry,
    pub(crate) progress: &'a Progress,
    /// Length of the external data file, where the user gave one.
    pub(crate) data_file_bytes: Option<u64>,
}

impl<S> Clone for Walk<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Walk<'_, S> {}

/// One structure's claim to clusters that must be its alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) clusters: ClusterRange,
    pub(crate) kind: OwnerKind,
    pub(crate) place: Place,
}

/// An L2 table to read, once, however many L1 entries name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct L2Item {
    pub(crate) cluster: HostCluster,
    /// The index of the first L1 entry that names it: gives the guest range.
    pub(crate) l1_index: u64,
    /// How many L1 entries name it, by tree.
    pub(crate) trees: Trees,
    /// How many active L1 entries that name it have COPIED set.
    pub(crate) active_copied: u64,
    /// L1 entries with another index name it too: it serves two guest ranges.
    pub(crate) is_shared_across_ranges: bool,
}

impl L2Item {
    /// How many references each of its entries stands for.
    pub(crate) fn weight(&self) -> u64 {
        self.trees.active + self.trees.snapshots
    }
}

/// A refcount block that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefcountBlockItem {
    /// Index in the refcount table.
    pub(crate) index: u64,
    pub(crate) cluster: HostCluster,
}

/// Stored refcounts that nobody could read. A count that is not known is not zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnknownCounts {
    /// The refcount table itself could not be read.
    pub(crate) all: bool,
    /// Refcount table entries whose block could not be read.
    pub(crate) blocks: BTreeSet<u64>,
}

/// Everything the small structures say: who claims which clusters, and which tables are still to be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    pub(crate) claims: Vec<Claim>,
    pub(crate) refcount_blocks: Vec<RefcountBlockItem>,
    pub(crate) unknown_counts: UnknownCounts,
    pub(crate) l2_tables: Vec<L2Item>,
    pub(crate) snapshots: Vec<SnapshotEntry>,
    pub(crate) bitmap_names: Vec<Vec<u8>>,
    /// Clusters past the end of the file that L1 entries name as L2 tables, as far as they are kept.
    pub(crate) lost_l2_tables: BTreeSet<HostCluster>,
    /// Tables that the image names were left out, for together they are too long: what they use looks unused.
    pub(crate) is_cut_short: bool,
}

impl Survey {
    /// About what it takes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let claims = size_of_val(self.claims.as_slice());
        let blocks = size_of_val(self.refcount_blocks.as_slice());
        (claims + blocks + size_of_val(self.l2_tables.as_slice())) as u64
    }

    pub(crate) fn claim(&mut self, clusters: ClusterRange, kind: OwnerKind, place: Place) {
        self.claims.push(Claim {
            clusters,
            kind,
            place,
        });
    }
}

/// Walks everything but the insides of L2 tables and refcount blocks.
pub(crate) fn survey<S: Storage>(walk: Walk<'_, S>, notes: &mut Notes) -> Survey {
    let mut survey = Survey::default();
    header::walk_header(walk, &mut survey, notes);
    encryption::walk_encryption_header(walk, &mut survey, notes);
    refcounts::walk_refcount_table(walk, &mut survey, notes);
    snapshots::walk_snapshots(walk, &mut survey, notes);
    mapping::walk_l1_tables(walk, &mut survey, notes);
    bitmaps::walk_bitmaps(walk, &mut survey, notes);
    survey
}

/// Judges the dirty and corrupt bits anew, where nothing but them changed.
pub(crate) fn state_bits_anew(header: &Header, findings: &mut Findings) {
    findings.forget(Code::DirtyBitSet);
    findings.forget(Code::CorruptBitSet);
    header::judge_state_bits(header, findings);
}

/// The header findings that need no cluster size, for images that have none.
pub(crate) fn header_alone<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    header::judge_header_words(image, notes);
}
