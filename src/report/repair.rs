//! What a repair did, as part of a document.
//!
//! Comes in: wishes, reasons, a receipt or a failure. Goes out: their JSON shape. Never here: the check that follows.

use serde::Serialize;

use crate::plan::{Mode, Withheld};
use crate::transaction::Receipt;

/// What `check -r` did beside checking.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RepairReport {
    mode: &'static str,
    sectors_written: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    undo_file: Option<String>,
    withheld: Vec<WithheldRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct WithheldRow {
    code: &'static str,
    count: u64,
    reason: String,
}

impl RepairReport {
    /// Nothing is written yet.
    pub fn new(mode: Mode, withheld: &[Withheld]) -> Self {
        Self {
            mode: mode_name(mode),
            sectors_written: 0,
            undo_file: None,
            withheld: withheld.iter().map(WithheldRow::new).collect(),
            failure: None,
        }
    }

    /// The repair is done, and can be taken back with this undo file.
    pub fn written(&mut self, receipt: Receipt, undo_file: &str) {
        self.sectors_written = receipt.sectors_written;
        self.undo_file = Some(undo_file.to_owned());
    }

    /// The repair was not begun, or not finished.
    pub fn failed(&mut self, why: String) {
        self.failure = Some(why);
    }

    /// Whether the repair was not begun, or not finished.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What is left as it is: the finding's code, how often, and why.
    pub fn withheld(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.withheld
            .iter()
            .map(|row| (row.code, row.count, row.reason.as_str()))
    }
}

impl WithheldRow {
    pub(super) fn new(withheld: &Withheld) -> Self {
        Self {
            code: withheld.code.id(),
            count: withheld.count,
            reason: withheld.reason.clone(),
        }
    }
}

pub(super) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Leaks => "leaks",
        Mode::All => "all",
    }
}
