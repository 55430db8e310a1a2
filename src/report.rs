//! The stable JSON shape of what qfsck says: the only room that names `serde`.
//!
//! Comes in: a [`Check`], an answer about owners, or an [`Error`]. Goes out: one JSON document. Never here: a decision.
//!
//! The top level of a check is a superset of `qemu-img check --output=json`: the same keys, the same meanings, absent
//! when zero exactly as there. `docs/json.md` describes the rest.

mod audit;
mod plan;
mod repair;
mod rows;

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

pub use self::audit::{
    AuditRecord, AuditRow, AuditRun, AuditSummary, Fingerprint, ImageName, ImageStatus, LIST_KIND,
    LastVerdict, ListEntry, ListHeader, Night, NightMark, read_line,
};
pub use self::plan::{NotAPlan, PlanDocument, PlanFile, PlanMismatch, plan_digest, stage_purpose};
pub use self::repair::RepairReport;
use self::rows::{CoverageRow, FindingRow, OwnerRow, RangeRow, Rows, SnapshotRow};
use crate::check::{Check, GuestPath, GuestTarget, HostAnswer, Statistics, Verdict};
use crate::error::Error;
use crate::finding::{Severity, escaped, is_deceptive};
use crate::image::Image;
use crate::qcow2::{CompressionType, CryptMethod, ExtensionKind, Geometry};
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

impl Conditions {
    /// The word to act on: nothing is known about an image that changed under the reader.
    pub fn verdict(&self, check: &Check) -> Verdict {
        if self.changed {
            Verdict::Unreadable
        } else {
            check.verdict
        }
    }

    /// Bytes up to the end of the last cluster in use; 0 where it cannot be relied on.
    pub fn image_end_offset(&self, check: &Check) -> u64 {
        u64::from(!self.changed) * check.statistics.image_end_offset
    }
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
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    schema: u32,
    verdict: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    notices: u64,
    #[serde(skip_serializing_if = "is_zero")]
    policy_findings: u64,
    changed_while_read: bool,
    unreliable: Vec<String>,
    totals: BTreeMap<&'static str, TotalRow>,
    findings: Vec<FindingRow>,
    coverage: CoverageRow,
    features: FeatureRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<RepairReport>,
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
    let mut bytes = Vec::new();
    document.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes, formatter,
    ))?;
    to.write_all(&printable(&bytes))
}

/// Writes a document on one line.
pub fn write_line(document: &impl Serialize, mut to: impl io::Write) -> io::Result<()> {
    to.write_all(&printable(&serde_json::to_vec(document)?))
}

/// The document and a line end, without a character that acts on a terminal: file names are kept as they are, and JSON
/// lets most of those pass. Outside of strings a document is plain ASCII, so every such character may be spelled out.
fn printable(document: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(document.len() + 1);
    for character in String::from_utf8_lossy(document).chars() {
        let mut units = [0; 2];
        if character > '~' && is_deceptive(character) {
            for unit in character.encode_utf16(&mut units) {
                shown.extend(format!("\\u{unit:04x}").bytes());
            }
        } else {
            shown.extend(character.encode_utf8(&mut [0; 4]).bytes());
        }
    }
    shown.push(b'\n');
    shown
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
            total_clusters,
            allocated_clusters,
            fragmented_clusters,
            compressed_clusters,
            ..
        } = check.statistics;
        let rows = Rows::new(image, &check.snapshots);
        Self {
            filename: filename.to_owned(),
            format: "qcow2",
            check_errors: check.coverage.failure_count(),
            image_end_offset: conditions.image_end_offset(check),
            total_clusters,
            allocated_clusters,
            fragmented_clusters,
            compressed_clusters,
            corruptions: check.findings.count_of(Severity::Corruption),
            leaks: check.findings.count_of(Severity::Leak),
            corruptions_fixed: 0,
            leaks_fixed: 0,
            schema: SCHEMA,
            verdict: conditions.verdict(check).name(),
            notices: check.findings.count_of(Severity::Notice),
            policy_findings: check.findings.count_of(Severity::Policy),
            changed_while_read: conditions.changed,
            unreliable: conditions.unreliable.clone(),
            totals: total_rows(check),
            findings: check
                .findings
                .iter()
                .map(|finding| rows.finding(finding))
                .collect(),
            coverage: rows.coverage(&check.coverage),
            features: features(image, check, &rows),
            repair: None,
        }
    }

    /// The document of a check after a repair: with what that did, and how much less is wrong than before.
    #[must_use]
    pub fn with_repair(
        mut self,
        report: &RepairReport,
        leaks_fixed: u64,
        corruptions_fixed: u64,
    ) -> Self {
        self.leaks_fixed = leaks_fixed;
        self.corruptions_fixed = corruptions_fixed;
        self.repair = Some(report.clone());
        self
    }
}

impl ErrorDocument {
    /// The document of a check that could not be started.
    pub fn new(filename: &str, error: &Error) -> Self {
        Self::of(filename, error.to_string(), error.advice())
    }

    /// The document of a question that has no answer, for a reason that is no [`Error`].
    pub fn of(filename: &str, message: String, advice: &'static str) -> Self {
        Self {
            filename: filename.to_owned(),
            format: "unknown",
            check_errors: 1,
            schema: SCHEMA,
            verdict: "unreadable",
            error: ErrorRow { message, advice },
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

fn total_rows(check: &Check) -> BTreeMap<&'static str, TotalRow> {
    let totals = check.findings.totals().map(|(code, total)| {
        let row = TotalRow {
            severity: code.severity().name(),
            count: total.count,
            findings: total.findings,
        };
        (code.id(), row)
    });
    totals.collect()
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
