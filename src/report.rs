//! The stable JSON shape of what qfsck says: the only place that names `serde`.
//!
//! Comes in: a [`Check`], an answer about owners, or an [`Error`]. Goes out: one JSON document. Never here: a decision.
//!
//! The top level of a check is a superset of `qemu-img check --output=json`: the same keys, the same meanings, absent
//! when zero exactly as there. `docs/json.md` describes the rest.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use crate::check::{Check, GuestPath, GuestTarget, HostAnswer, Statistics};
use crate::coverage::Coverage;
use crate::error::Error;
use crate::finding::{Finding, Owner, Owners, Severity, escaped};
use crate::image::Image;
use crate::qcow2::{
    CompressionType, CryptMethod, ExtensionKind, Geometry, GuestRange, HostCluster, Place,
    SnapshotEntry, Tree,
};
use crate::storage::Storage;

/// Version of the shape; it grows when a key changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// What surrounds a check: facts about the file rather than about the image in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Why the result may be wrong through no fault of the image; empty for a result to rely on.
    pub unreliable: Vec<String>,
    /// The file changed while it was read.
    pub changed: bool,
}

/// One check as a JSON document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckDocument {
    filename: String,
    format: &'static str,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    schema: u32,
    verdict: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    notices: u64,
    changed_while_read: bool,
    unreliable: Vec<String>,
    totals: BTreeMap<&'static str, TotalRow>,
    findings: Vec<FindingRow>,
    coverage: CoverageRow,
    features: FeatureRow,
}

/// A check that could not be started, as a JSON document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ErrorDocument {
    filename: String,
    format: &'static str,
    check_errors: u64,
    schema: u32,
    verdict: &'static str,
    error: ErrorRow,
}

#[derive(Debug, Serialize)]
struct ErrorRow {
    message: String,
    advice: &'static str,
}

#[derive(Debug, Serialize)]
struct TotalRow {
    severity: &'static str,
    count: u64,
    findings: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct FindingRow {
    code: &'static str,
    severity: &'static str,
    title: &'static str,
    count: u64,
    place: PlaceRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<RangeRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<RangeRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    word: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    owners: Vec<OwnerRow>,
    #[serde(skip_serializing_if = "is_zero")]
    more_owners: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    remedy: &'static str,
}

#[derive(Debug, Serialize)]
struct RangeRow {
    offset: u64,
    length: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PlaceRow {
    structure: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bitmap: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct OwnerRow {
    kind: String,
    place: PlaceRow,
    host: RangeRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<RangeRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_references: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_references: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_snapshot: Option<SnapshotRow>,
}

#[derive(Debug, Serialize)]
struct SnapshotRow {
    index: u32,
    id: String,
    name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CoverageRow {
    complete: bool,
    stopped: bool,
    gap_count: u64,
    gaps: Vec<GapRow>,
}

#[derive(Debug, Serialize)]
struct GapRow {
    kind: &'static str,
    place: PlaceRow,
    detail: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::struct_excessive_bools, reason = "JSON keys, not states")]
struct FeatureRow {
    version: u32,
    virtual_size: u64,
    cluster_size: Option<u64>,
    refcount_bits: u64,
    extended_l2: bool,
    compression_type: String,
    encryption: String,
    dirty: bool,
    corrupt: bool,
    lazy_refcounts: bool,
    snapshots: Vec<SnapshotRow>,
    bitmaps: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_format: Option<String>,
    external_data_file: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    data_file_raw: bool,
}

/// The answer to who owns a host cluster, as a JSON document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostDocument {
    filename: String,
    schema: u32,
    host: RangeRow,
    stored: Option<u64>,
    expected: u64,
    owners: Vec<OwnerRow>,
    #[serde(skip_serializing_if = "is_zero")]
    more_owners: u64,
    coverage: CoverageRow,
}

/// The answer to where a guest offset lives, as a JSON document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestDocument {
    filename: String,
    schema: u32,
    guest_offset: u64,
    l1_index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    l1_entry: Option<String>,
    l2_index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    l2_entry: Option<String>,
    target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed_bytes: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Writes a document over several lines, as `qemu-img` does.
pub fn write_pretty(document: &impl Serialize, mut to: impl io::Write) -> io::Result<()> {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut to, formatter);
    document.serialize(&mut serializer)?;
    to.write_all(b"\n")
}

/// Writes a document on one line.
pub fn write_line(document: &impl Serialize, mut to: impl io::Write) -> io::Result<()> {
    serde_json::to_writer(&mut to, document)?;
    to.write_all(b"\n")
}

impl CheckDocument {
    /// The document of a check of `image`, which was given as `filename`.
    pub fn new<S: Storage>(
        filename: &str,
        image: &Image<S>,
        check: &Check,
        conditions: &Conditions,
    ) -> Self {
        let Statistics {
            image_end_offset,
            total_clusters,
            allocated_clusters,
            fragmented_clusters,
            compressed_clusters,
        } = check.statistics;
        let rows = Rows::new(image, &check.snapshots);
        let totals = check.findings.totals().map(|(code, total)| {
            let row = TotalRow {
                severity: code.severity().name(),
                count: total.count,
                findings: total.findings,
            };
            (code.id(), row)
        });
        Self {
            filename: filename.to_owned(),
            format: "qcow2",
            check_errors: check.coverage.failure_count(),
            image_end_offset,
            total_clusters,
            allocated_clusters,
            fragmented_clusters,
            compressed_clusters,
            corruptions: check.findings.count_of(Severity::Corruption),
            leaks: check.findings.count_of(Severity::Leak),
            schema: SCHEMA,
            verdict: check.verdict.name(),
            notices: check.findings.count_of(Severity::Notice),
            changed_while_read: conditions.changed,
            unreliable: conditions.unreliable.clone(),
            totals: totals.collect(),
            findings: check
                .findings
                .iter()
                .map(|finding| rows.finding(finding))
                .collect(),
            coverage: rows.coverage(&check.coverage),
            features: features(image, check, &rows),
        }
    }
}

impl ErrorDocument {
    /// The document of a check that could not be started.
    pub fn new(filename: &str, error: &Error) -> Self {
        Self {
            filename: filename.to_owned(),
            format: "unknown",
            check_errors: 1,
            schema: SCHEMA,
            verdict: "unreadable",
            error: ErrorRow {
                message: error.to_string(),
                advice: error.advice(),
            },
        }
    }
}

impl HostDocument {
    /// The document of an answer about `image`, which was given as `filename`.
    pub fn new<S: Storage>(filename: &str, image: &Image<S>, answer: &HostAnswer) -> Self {
        let rows = Rows::new(image, &answer.snapshots);
        Self {
            filename: filename.to_owned(),
            schema: SCHEMA,
            host: rows.host(answer.cluster.start, answer.cluster.count),
            stored: answer.stored,
            expected: answer.expected,
            owners: rows.owners(&answer.owners),
            more_owners: answer.owners.more,
            coverage: rows.coverage(&answer.coverage),
        }
    }
}

impl GuestDocument {
    /// The document of a path through an image given as `filename`.
    pub fn new(filename: &str, path: &GuestPath) -> Self {
        let (target, host_offset, compressed_bytes) = match path.target {
            GuestTarget::Unallocated => ("unallocated", None, None),
            GuestTarget::Zero => ("zero", None, None),
            GuestTarget::Host(offset) => ("host", Some(offset.0), None),
            GuestTarget::Compressed(extent) => {
                ("compressed", Some(extent.offset.0), Some(extent.bytes()))
            }
            GuestTarget::Broken(offset, _) => ("broken", Some(offset.0), None),
        };
        Self {
            filename: filename.to_owned(),
            schema: SCHEMA,
            guest_offset: path.guest.0,
            l1_index: path.l1_index,
            l1_entry: path.l1_entry.map(|entry| hex(entry.0)),
            l2_index: path.l2_index,
            l2_entry: path.l2_entry.map(|entry| hex(entry.0)),
            target,
            host_offset,
            compressed_bytes,
        }
    }
}

fn hex(word: u64) -> String {
    format!("{word:#018x}")
}

fn features<S: Storage>(image: &Image<S>, check: &Check, rows: &Rows<'_>) -> FeatureRow {
    let header = &check.header;
    let extension_text = |kind| {
        image
            .extensions()
            .find(kind)
            .map(|extension| escaped(&extension.data))
    };
    let snapshots = (0_u32..).zip(&check.snapshots);
    FeatureRow {
        version: header.version,
        virtual_size: header.size,
        cluster_size: image.geometry().map(Geometry::cluster_bytes),
        refcount_bits: 1_u64.checked_shl(header.refcount_order).unwrap_or(0),
        extended_l2: header.has_extended_l2(),
        compression_type: match header.compression_type() {
            CompressionType::Deflate => "zlib".to_owned(),
            CompressionType::Zstd => "zstd".to_owned(),
            CompressionType::Unknown(number) => format!("unknown ({number})"),
        },
        encryption: match header.crypt_method() {
            CryptMethod::None => "none".to_owned(),
            CryptMethod::Aes => "aes".to_owned(),
            CryptMethod::Luks => "luks".to_owned(),
            CryptMethod::Unknown(number) => format!("unknown ({number})"),
        },
        dirty: header.is_dirty(),
        corrupt: header.is_corrupt(),
        lazy_refcounts: header.compatible_features & crate::qcow2::COMPATIBLE_LAZY_REFCOUNTS != 0,
        snapshots: snapshots
            .take(crate::finding::KEPT_PER_CODE)
            .filter_map(|(index, _)| rows.snapshot(index))
            .collect(),
        bitmaps: check
            .bitmap_names
            .iter()
            .take(crate::finding::KEPT_PER_CODE)
            .map(|name| escaped(name))
            .collect(),
        backing_file: image.backing_name().map(escaped),
        backing_format: extension_text(ExtensionKind::BackingFormat),
        external_data_file: header.has_data_file(),
        data_file: extension_text(ExtensionKind::DataFileName),
        data_file_raw: header.has_raw_data(),
    }
}

/// Turns the library's values into rows, with the cluster size at hand.
struct Rows<'a> {
    cluster_bytes: u64,
    snapshots: &'a [SnapshotEntry],
}

impl<'a> Rows<'a> {
    fn new<S: Storage>(image: &Image<S>, snapshots: &'a [SnapshotEntry]) -> Self {
        Self {
            cluster_bytes: image.geometry().map_or(0, Geometry::cluster_bytes),
            snapshots,
        }
    }

    fn host(&self, start: HostCluster, count: u64) -> RangeRow {
        RangeRow {
            offset: start.0.saturating_mul(self.cluster_bytes),
            length: count.saturating_mul(self.cluster_bytes),
        }
    }

    fn finding(&self, finding: &Finding) -> FindingRow {
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

    fn owners(&self, owners: &Owners) -> Vec<OwnerRow> {
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

    fn snapshot(&self, index: u32) -> Option<SnapshotRow> {
        let entry = self.snapshots.get(usize::try_from(index).ok()?)?;
        Some(SnapshotRow {
            index,
            id: escaped(&entry.id),
            name: escaped(&entry.name),
        })
    }

    fn coverage(&self, coverage: &Coverage) -> CoverageRow {
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
