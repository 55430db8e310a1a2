//! What a night came to: rows are counted, and the worst are kept to be shown.
//!
//! Comes in: rows, in any order. Goes out: a summary. Never here: memory that
//! grows with the number of images.

use std::collections::BTreeMap;

use crate::report::{AuditRow, AuditSummary, ImageStatus, Night, SCHEMA};

/// Rows of one status that are kept to be shown; all are counted.
pub const KEPT_PER_STATUS: usize = 20;

/// Rows, counted.
#[derive(Clone, Debug)]
pub struct Tally {
    summary: AuditSummary,
    kept: BTreeMap<ImageStatus, Vec<AuditRow>>,
}

impl Tally {
    /// Of a night of which nothing is known yet.
    pub fn new(night: Night) -> Self {
        Self {
            summary: AuditSummary {
                schema: SCHEMA,
                night: night.night,
                at: night.at,
                ..AuditSummary::default()
            },
            kept: BTreeMap::new(),
        }
    }

    /// Counts an image.
    pub fn add(&mut self, row: &AuditRow) {
        let summary = &mut self.summary;
        summary.images += 1;
        *summary
            .status
            .entry(row.status.name().to_owned())
            .or_default() += 1;
        summary.carried += u64::from(row.carried);
        summary.newly_damaged += u64::from(row.is_newly_damaged());
        summary.healed += u64::from(is_healed(row));
        summary.damaged_when_last_read += u64::from(row.is_damaged_as_last_read());
        summary.new_images += u64::from(row.first_night == row.night);
        summary.most_busy_nights = summary.most_busy_nights.max(row.busy_nights);
        summary.leaked_bytes = summary.leaked_bytes.saturating_add(row.leaked_bytes);
        for (code, count) in &row.findings {
            let total = summary.findings.entry(code.clone()).or_default();
            *total = total.saturating_add(*count);
        }
        if row.status != ImageStatus::Gone {
            match row.verdict {
                Some(verdict) => {
                    let oldest = summary.oldest_verdict_at.get_or_insert(verdict.night.at);
                    *oldest = verdict.night.at.min(*oldest);
                }
                None => summary.never_read += 1,
            }
        }
        if row.status != ImageStatus::Clean {
            let kept = self.kept.entry(row.status).or_default();
            let place = kept.partition_point(|known| known.name.to_bytes() < row.name.to_bytes());
            if place < KEPT_PER_STATUS {
                kept.insert(place, row.clone());
                kept.truncate(KEPT_PER_STATUS);
            }
        }
    }

    /// Counts an image that has no record.
    pub fn miss(&mut self) {
        self.summary.missing += 1;
    }

    /// What it came to.
    pub fn summary(&self) -> &AuditSummary {
        &self.summary
    }

    /// How many images stand so.
    pub fn count(&self, status: ImageStatus) -> u64 {
        let count = self.summary.status.get(status.name());
        count.copied().unwrap_or(0)
    }

    /// The first images that stand so; of clean ones, none.
    pub fn kept(&self, status: ImageStatus) -> &[AuditRow] {
        self.kept.get(&status).map_or(&[], Vec::as_slice)
    }
}

fn is_healed(row: &AuditRow) -> bool {
    let is_whole = matches!(row.status, ImageStatus::Clean | ImageStatus::Leaks);
    is_whole && row.previous.is_some_and(ImageStatus::is_damage)
}
