//! Rows: the library's values as the parts of a document.
//!
//! Comes in: findings, owners, gaps, places. Goes out: their JSON shape. Never here: a document's top level.

use serde::Serialize;

use super::{hex, is_zero};
use crate::coverage::Coverage;
use crate::finding::{Finding, Owner, Owners, escaped};
use crate::image::Image;
use crate::qcow2::{Geometry, GuestRange, HostCluster, Place, SnapshotEntry, Tree};
use crate::storage::Storage;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FindingRow {
    pub(super) code: &'static str,
    pub(super) severity: &'static str,
    pub(super) title: &'static str,
    pub(super) count: u64,
    pub(super) place: PlaceRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<RangeRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest: Option<RangeRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stored: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) word: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) owners: Vec<OwnerRow>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) more_owners: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    pub(super) remedy: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct RangeRow {
    pub(super) offset: u64,
    pub(super) length: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct PlaceRow {
    pub(super) structure: &'static str,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) snapshot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bitmap: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct OwnerRow {
    pub(super) kind: String,
    pub(super) place: PlaceRow,
    pub(super) host: RangeRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest: Option<RangeRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) active_references: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) snapshot_references: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_snapshot: Option<SnapshotRow>,
}

#[derive(Debug, Serialize)]
pub(super) struct SnapshotRow {
    pub(super) index: u32,
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CoverageRow {
    pub(super) complete: bool,
    pub(super) stopped: bool,
    pub(super) gap_count: u64,
    pub(super) gaps: Vec<GapRow>,
}

#[derive(Debug, Serialize)]
pub(super) struct GapRow {
    pub(super) kind: &'static str,
    pub(super) place: PlaceRow,
    pub(super) detail: String,
}

/// Turns the library's values into rows, with the cluster size at hand.
pub(super) struct Rows<'a> {
    cluster_bytes: u64,
    snapshots: &'a [SnapshotEntry],
}

impl<'a> Rows<'a> {
    pub(super) fn new<S: Storage>(image: &Image<S>, snapshots: &'a [SnapshotEntry]) -> Self {
        Self {
            cluster_bytes: image.geometry().map_or(0, Geometry::cluster_bytes),
            snapshots,
        }
    }

    pub(super) fn host(&self, start: HostCluster, count: u64) -> RangeRow {
        RangeRow {
            offset: start.0.saturating_mul(self.cluster_bytes),
            length: count.saturating_mul(self.cluster_bytes),
        }
    }

    pub(super) fn finding(&self, finding: &Finding) -> FindingRow {
        FindingRow {
            code: finding.code.id(),
            severity: finding.code.severity().name(),
            title: finding.code.title(),
            count: finding.count,
            place: self.place(finding.place),
            host: finding.host.map(|host| self.host(host.start, host.count)),
            guest: finding.guest.map(guest_row),
            stored: finding.counts.and_then(|counts| counts.stored),
            expected: finding.counts.map(|counts| counts.expected),
            word: finding.word.map(hex),
            owners: self.owners(&finding.owners),
            more_owners: finding.owners.more,
            detail: finding.detail.clone(),
            remedy: finding.code.remedy(),
        }
    }

    pub(super) fn owners(&self, owners: &Owners) -> Vec<OwnerRow> {
        owners.named.iter().map(|owner| self.owner(owner)).collect()
    }

    fn owner(&self, owner: &Owner) -> OwnerRow {
        OwnerRow {
            kind: owner.kind.name().to_lowercase().replace(' ', "-"),
            place: self.place(owner.place),
            host: self.host(owner.host.start, owner.host.count),
            guest: owner.guest.map(guest_row),
            active_references: owner.trees.map(|trees| trees.active),
            snapshot_references: owner.trees.map(|trees| trees.snapshots),
            first_snapshot: owner
                .trees
                .and_then(|trees| trees.first_snapshot)
                .and_then(|index| self.snapshot(index)),
        }
    }

    pub(super) fn snapshot(&self, index: u32) -> Option<SnapshotRow> {
        let entry = self.snapshots.get(usize::try_from(index).ok()?)?;
        Some(SnapshotRow {
            index,
            id: escaped(&entry.id),
            name: escaped(&entry.name),
        })
    }

    pub(super) fn coverage(&self, coverage: &Coverage) -> CoverageRow {
        let gaps = coverage.gaps().iter().map(|gap| GapRow {
            kind: gap.kind.name(),
            place: self.place(gap.place),
            detail: gap.detail.clone(),
        });
        CoverageRow {
            complete: coverage.complete().is_some(),
            stopped: coverage.is_stopped(),
            gap_count: coverage.gap_count(),
            gaps: gaps.collect(),
        }
    }

    fn place(&self, place: Place) -> PlaceRow {
        let mut row = PlaceRow {
            structure: structure(place),
            text: place.to_string(),
            ..PlaceRow::default()
        };
        match place {
            Place::Header { field } => row.field = Some(field),
            Place::HeaderExtension { offset } => row.offset = Some(offset),
            Place::CompressedExtent { offset } => row.offset = Some(offset.0),
            Place::RefcountTableEntry { index } | Place::RefcountBlock { index } => {
                row.index = Some(index);
            }
            Place::L1Table { tree } => row.snapshot = snapshot_of(tree),
            Place::L1Entry { tree, index } => {
                row.snapshot = snapshot_of(tree);
                row.index = Some(index);
            }
            Place::L2Table { cluster } => row.offset = Some(self.offset_of(cluster)),
            Place::L2Entry { table, index } => {
                row.offset = Some(self.offset_of(table));
                row.index = Some(index);
            }
            Place::Clusters { start } => row.offset = Some(self.offset_of(start)),
            Place::SnapshotEntry { index } => row.snapshot = Some(index),
            Place::BitmapEntry { index } => row.bitmap = Some(index),
            Place::BitmapTable { bitmap } => row.bitmap = Some(bitmap),
            Place::BitmapTableEntry { bitmap, index } => {
                row.bitmap = Some(bitmap);
                row.index = Some(index);
            }
            Place::EncryptionHeader
            | Place::RefcountTable
            | Place::SnapshotTable
            | Place::BitmapDirectory
            | Place::File => {}
        }
        row
    }

    fn offset_of(&self, cluster: HostCluster) -> u64 {
        cluster.0.saturating_mul(self.cluster_bytes)
    }
}

fn guest_row(guest: GuestRange) -> RangeRow {
    RangeRow {
        offset: guest.start.0,
        length: guest.bytes,
    }
}

fn snapshot_of(tree: Tree) -> Option<u32> {
    match tree {
        Tree::Active => None,
        Tree::Snapshot(index) => Some(index),
    }
}

fn structure(place: Place) -> &'static str {
    match place {
        Place::Header { .. } => "header",
        Place::HeaderExtension { .. } => "header-extension",
        Place::EncryptionHeader => "encryption-header",
        Place::RefcountTable => "refcount-table",
        Place::RefcountTableEntry { .. } => "refcount-table-entry",
        Place::RefcountBlock { .. } => "refcount-block",
        Place::L1Table { .. } => "l1-table",
        Place::L1Entry { .. } => "l1-entry",
        Place::L2Table { .. } => "l2-table",
        Place::L2Entry { .. } => "l2-entry",
        Place::SnapshotTable => "snapshot-table",
        Place::SnapshotEntry { .. } => "snapshot-entry",
        Place::BitmapDirectory => "bitmap-directory",
        Place::BitmapEntry { .. } => "bitmap-entry",
        Place::BitmapTable { .. } => "bitmap-table",
        Place::BitmapTableEntry { .. } => "bitmap-table-entry",
        Place::Clusters { .. } => "clusters",
        Place::CompressedExtent { .. } => "compressed-extent",
        Place::File => "file",
    }
}
