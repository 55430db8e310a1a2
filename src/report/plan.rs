//! A plan as one JSON document, and the way back from such a document to what was asked for.
//!
//! Comes in: a plan and the image it is of; later, the bytes of a plan file. Goes out: a document; from a file, the wishes
//! it was made with, and whether a plan made anew is the same. Never here: an edit taken from a file. What a file says is
//! only ever compared.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::repair::{WithheldRow, mode_name};
use super::{SCHEMA, TotalRow, hex, total_rows};
use crate::check::Check;
use crate::finding::Code;
use crate::plan::{CopyEdit, Edit, Mode, Overlaps, Plan, RepairOptions, Stage, StageKind};
use crate::transaction::Identity;

/// What a plan file's `kind` says.
const KIND: &str = "repair-plan";
/// Edits of more bytes are shown by their checksums only.
const SHOWN_EDIT_BYTES: usize = 4096;
/// Once so many bytes were shown, further edits are shown by their checksums only.
const SHOWN_BYTES: usize = 4 << 20;

/// A plan, as a JSON document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanDocument {
    schema: u32,
    kind: &'static str,
    program_version: &'static str,
    image: ImageRow,
    options: OptionsRow,
    stages: Vec<StageRow>,
    withheld: Vec<WithheldRow>,
    before: StateRow,
    after: StateRow,
    plan_digest: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageRow {
    filename: String,
    device: u64,
    inode: u64,
    block_device: bool,
    length: u64,
    length_after: u64,
    metadata_digest: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct OptionsRow {
    mode: &'static str,
    overlaps: &'static str,
    accepted_losses: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct StageRow {
    stage: &'static str,
    purpose: &'static str,
    changes: Vec<ChangeRow>,
    edits: Vec<EditRow>,
    copies: Vec<CopyRow>,
}

#[derive(Debug, Serialize)]
struct ChangeRow {
    code: &'static str,
    count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct EditRow {
    offset: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before_crc32: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_crc32: Option<String>,
}

#[derive(Debug, Serialize)]
struct CopyRow {
    from: u64,
    to: u64,
    length: u64,
}

#[derive(Debug, Serialize)]
struct StateRow {
    verdict: &'static str,
    totals: BTreeMap<&'static str, TotalRow>,
}

impl PlanDocument {
    /// The document of a plan for the image with this identity, which was given as `filename`.
    pub fn new(
        filename: &str,
        identity: &Identity,
        metadata_digest: u64,
        wishes: &RepairOptions,
        plan: &Plan,
    ) -> Self {
        let mut shown_bytes = 0;
        Self {
            schema: SCHEMA,
            kind: KIND,
            program_version: env!("CARGO_PKG_VERSION"),
            image: ImageRow {
                filename: filename.to_owned(),
                device: identity.device,
                inode: identity.inode,
                block_device: identity.is_block_device,
                length: plan.length_bytes,
                length_after: plan.length_bytes_after,
                metadata_digest: hex(metadata_digest),
            },
            options: OptionsRow {
                mode: mode_name(wishes.mode),
                overlaps: overlaps_name(wishes.overlaps),
                accepted_losses: wishes
                    .accepted_losses
                    .iter()
                    .map(|code| code.id())
                    .collect(),
            },
            stages: plan
                .stages
                .iter()
                .map(|stage| stage_row(stage, &mut shown_bytes))
                .collect(),
            withheld: plan.withheld.iter().map(WithheldRow::new).collect(),
            before: state_row(&plan.before),
            after: state_row(&plan.after),
            plan_digest: hex(plan_digest(plan)),
        }
    }
}

fn stage_row(stage: &Stage, shown_bytes: &mut usize) -> StageRow {
    let changes = stage.changes.iter().map(|(code, &count)| ChangeRow {
        code: code.id(),
        count,
    });
    let copies = stage.copies.iter().map(|copy| CopyRow {
        from: copy.from,
        to: copy.to,
        length: copy.bytes,
    });
    StageRow {
        stage: stage_name(stage.kind),
        purpose: stage_purpose(stage.kind),
        changes: changes.collect(),
        edits: stage
            .edits
            .iter()
            .map(|edit| edit_row(edit, shown_bytes))
            .collect(),
        copies: copies.collect(),
    }
}

fn edit_row(edit: &Edit, shown_bytes: &mut usize) -> EditRow {
    let length = edit.after.len();
    let is_shown = length <= SHOWN_EDIT_BYTES && *shown_bytes + length <= SHOWN_BYTES;
    if is_shown {
        *shown_bytes += length;
    }
    let digits = |bytes: &[u8]| is_shown.then(|| hex_digits(bytes));
    let checksum = |bytes: &[u8]| (!is_shown).then(|| format!("{:#010x}", crc32fast::hash(bytes)));
    EditRow {
        offset: edit.offset,
        length: length as u64,
        before: digits(&edit.before),
        after: digits(&edit.after),
        before_crc32: checksum(&edit.before),
        after_crc32: checksum(&edit.after),
    }
}

fn hex_digits(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A string takes everything.
        let _written = write!(digits, "{byte:02x}");
    }
    digits
}

fn state_row(check: &Check) -> StateRow {
    StateRow {
        verdict: check.verdict.name(),
        totals: total_rows(check),
    }
}

fn overlaps_name(overlaps: Overlaps) -> &'static str {
    match overlaps {
        Overlaps::Clone => "clone",
        Overlaps::Keep => "keep",
    }
}

fn stage_name(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Guard => "guard",
        StageKind::WriteNew => "write-new",
        StageKind::RaiseRefcounts => "raise-refcounts",
        StageKind::ClearCopied => "clear-copied",
        StageKind::CorrectEntries => "correct-entries",
        StageKind::SuspendBitmaps => "suspend-bitmaps",
        StageKind::SwitchRefcounts => "switch-refcounts",
        StageKind::SwitchPointers => "switch-pointers",
        StageKind::ResumeBitmaps => "resume-bitmaps",
        StageKind::LowerRefcounts => "lower-refcounts",
        StageKind::SetCopied => "set-copied",
        StageKind::ClearState => "clear-state",
    }
}

/// What a stage is for, in words.
pub fn stage_purpose(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Guard => "set the corrupt bit, so that nothing writes to the image meanwhile",
        StageKind::WriteNew => "write new structures and copies where nothing is",
        StageKind::CorrectEntries => "correct entries that stand by themselves",
        StageKind::SuspendBitmaps => "clear the autoclear bit of the bitmaps for the time being",
        StageKind::SwitchRefcounts => "have the header name the new refcount table",
        StageKind::SwitchPointers => "refer to the new structures instead of the old",
        StageKind::ResumeBitmaps => "set the autoclear bit of the bitmaps again",
        StageKind::RaiseRefcounts => "raise refcounts that are too low",
        StageKind::ClearCopied => "clear COPIED flags that let writes through",
        StageKind::LowerRefcounts => "lower refcounts that are too high",
        StageKind::SetCopied => "set missing COPIED flags",
        StageKind::ClearState => {
            "read everything again, then write the final dirty and corrupt bits"
        }
    }
}

/// A number for everything a plan would write: two plans with the same one write the same bytes to the same places.
///
/// It tells accidents apart, not forgeries; a forged plan file gains nothing, because nothing in it is ever written.
pub fn plan_digest(plan: &Plan) -> u64 {
    let mut digest = Digest::default();
    digest.number(plan.length_bytes);
    digest.number(plan.length_bytes_after);
    for stage in &plan.stages {
        digest.text(stage_name(stage.kind));
        digest.number(stage.edits.len() as u64);
        for Edit {
            offset,
            before,
            after,
        } in &stage.edits
        {
            digest.number(*offset);
            digest.bytes(before);
            digest.bytes(after);
        }
        digest.number(stage.copies.len() as u64);
        for &CopyEdit { from, to, bytes } in &stage.copies {
            digest.number(from);
            digest.number(to);
            digest.number(bytes);
        }
    }
    digest.0
}

/// FNV-1a, 64 bits.
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn number(&mut self, number: u64) {
        self.raw(&number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// With the length in front, so that no two sequences run together.
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    fn raw(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Why bytes are not taken for a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPlan {
    /// Not a JSON document, or not one of a plan.
    #[error("is not a plan of qfsck: {0}")]
    NotOne(String),
    /// A plan in a shape this version does not know.
    #[error("is a plan of schema {0}; this qfsck knows schema {SCHEMA}")]
    UnknownSchema(u64),
}

/// Why a plan file does not fit an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanMismatch {
    /// It was made for another file.
    #[error(
        "the plan was made for another file ({filename}, inode {inode} on device {device}), and a copy is another file"
    )]
    OtherImage {
        /// The path it was made for, as the file says.
        filename: String,
        /// Its device.
        device: u64,
        /// Its inode.
        inode: u64,
    },
    /// The metadata is not what it was.
    #[error("the image changed since the plan was made: its {0}")]
    Changed(&'static str),
    /// The plan that would be made now is another.
    #[error("the plan made now is not the one in the file; they differ in {0:?}")]
    OtherPlan(String),
}

/// What a plan file says: what was asked for, and everything that was to be done, for comparison.
#[derive(Clone, Debug)]
pub struct PlanFile {
    wishes: RepairOptions,
    document: Value,
}

impl PlanFile {
    /// Reads a plan file from all of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotAPlan> {
        let document: Value = serde_json::from_slice(bytes)
            .map_err(|_| NotAPlan::NotOne("it is not one JSON document".to_owned()))?;
        if document.get("kind").and_then(Value::as_str) != Some(KIND) {
            return Err(NotAPlan::NotOne(format!("its \"kind\" is not {KIND:?}")));
        }
        match document.get("schema").and_then(Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            schema => return Err(NotAPlan::UnknownSchema(schema.unwrap_or(0))),
        }
        let wishes = document
            .get("options")
            .and_then(wishes)
            .ok_or_else(|| NotAPlan::NotOne("its \"options\" make no sense".to_owned()))?;
        Ok(Self { wishes, document })
    }

    /// What was asked for.
    pub fn wishes(&self) -> &RepairOptions {
        &self.wishes
    }

    /// Holds a plan that was made just now against the file: everything must be the same but the name of the image and
    /// the version of the program.
    pub fn compare(&self, now: &PlanDocument) -> Result<(), PlanMismatch> {
        let number = |key: &str| self.image(key).and_then(Value::as_u64);
        let image = &now.image;
        let is_same_file = number("device") == Some(image.device)
            && number("inode") == Some(image.inode)
            && self.image("block-device").and_then(Value::as_bool) == Some(image.block_device);
        if !is_same_file {
            let filename = self.image("filename").and_then(Value::as_str);
            return Err(PlanMismatch::OtherImage {
                filename: crate::finding::escaped(filename.unwrap_or_default().as_bytes()),
                device: number("device").unwrap_or(0),
                inode: number("inode").unwrap_or(0),
            });
        }
        if number("length") != Some(image.length) {
            return Err(PlanMismatch::Changed("length is another"));
        }
        let digest = self.image("metadata-digest").and_then(Value::as_str);
        if digest != Some(image.metadata_digest.as_str()) {
            return Err(PlanMismatch::Changed("tables are not as they were"));
        }
        let unknown = || PlanMismatch::OtherPlan("everything".to_owned());
        let now = serde_json::to_value(now).map_err(|_| unknown())?;
        let (Some(now), Some(then)) = (now.as_object(), self.document.as_object()) else {
            return Err(unknown());
        };
        let keys = now.keys().chain(then.keys());
        for key in keys.filter(|key| !["program-version", "image"].contains(&key.as_str())) {
            if now.get(key) != then.get(key) {
                let key = crate::finding::escaped(key.as_bytes());
                return Err(PlanMismatch::OtherPlan(key));
            }
        }
        let length_after = now.get("image").and_then(|image| image.get("length-after"));
        if length_after != self.image("length-after") {
            return Err(PlanMismatch::OtherPlan("length-after".to_owned()));
        }
        Ok(())
    }

    fn image(&self, key: &str) -> Option<&Value> {
        self.document.get("image")?.get(key)
    }
}

fn wishes(options: &Value) -> Option<RepairOptions> {
    let word = |key: &str| options.get(key).and_then(Value::as_str);
    let mode = [Mode::Leaks, Mode::All]
        .into_iter()
        .find(|mode| word("mode") == Some(mode_name(*mode)))?;
    let overlaps = [Overlaps::Clone, Overlaps::Keep]
        .into_iter()
        .find(|overlaps| word("overlaps") == Some(overlaps_name(*overlaps)))?;
    let losses = options.get("accepted-losses")?.as_array()?;
    let losses = losses.iter().map(|code| Code::from_id(code.as_str()?));
    Some(RepairOptions {
        mode,
        overlaps,
        accepted_losses: losses.collect::<Option<_>>()?,
    })
}
