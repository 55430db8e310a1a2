//! A night in the text format of Prometheus, for the node exporter's textfile collector.
//!
//! Comes in: a summary, and when it was done. Goes out: text. Never here: the path of an image as a label, unless somebody
//! asked: thousands of time series are what such a system dies of.

use std::fmt::Write;

use crate::finding::Code;
use crate::report::{AuditRow, AuditSummary, ImageStatus};

/// The metrics of a night that was completed at `completed_at` seconds since the Epoch.
pub fn metrics(summary: &AuditSummary, completed_at: u64, duration_seconds: f64) -> String {
    let mut text = String::new();
    family(&mut text, "qfsck_images", "Images by how they stand.");
    for status in ImageStatus::WORST_FIRST {
        let count = summary.status.get(status.name()).copied().unwrap_or(0);
        let name = status.name();
        sample(
            &mut text,
            "qfsck_images",
            &format!("{{status=\"{name}\"}}"),
            count,
        );
    }
    family(&mut text, "qfsck_findings", "Findings by code.");
    for code in Code::ALL {
        if let Some(count) = summary.findings.get(code.id()) {
            sample(
                &mut text,
                "qfsck_findings",
                &format!("{{code=\"{code}\"}}"),
                *count,
            );
        }
    }
    for (name, help, value) in numbers(summary, completed_at) {
        family(&mut text, name, help);
        sample(&mut text, name, "", value);
    }
    family(
        &mut text,
        "qfsck_audit_duration_seconds",
        "How long the last audit took.",
    );
    line(
        &mut text,
        format_args!("qfsck_audit_duration_seconds {duration_seconds:.3}"),
    );
    text
}

/// Name, meaning and value of what is one number.
fn numbers(summary: &AuditSummary, completed_at: u64) -> [(&'static str, &'static str, u64); 10] {
    let age = summary
        .oldest_verdict_at
        .map_or(0, |at| completed_at.saturating_sub(at));
    [
        (
            "qfsck_leaked_bytes",
            "Bytes that leaked clusters take up.",
            summary.leaked_bytes,
        ),
        (
            "qfsck_missing",
            "Images that have no record of this night.",
            summary.missing,
        ),
        (
            "qfsck_carried",
            "Images not read again because nobody touched them.",
            summary.carried,
        ),
        (
            "qfsck_newly_damaged",
            "Images damaged since the night before.",
            summary.newly_damaged,
        ),
        (
            "qfsck_healed",
            "Images that are not damaged any more.",
            summary.healed,
        ),
        (
            "qfsck_damaged_when_last_read",
            "Images in use or given up that were damaged when they were last read.",
            summary.damaged_when_last_read,
        ),
        (
            "qfsck_never_read",
            "Images that were never read whole.",
            summary.never_read,
        ),
        (
            "qfsck_most_busy_nights",
            "The most nights in a row that an image was in use.",
            summary.most_busy_nights,
        ),
        (
            "qfsck_oldest_verdict_age_seconds",
            "Time since the image that waits longest was read.",
            age,
        ),
        (
            "qfsck_audit_completed_timestamp_seconds",
            "When the last audit was completed.",
            completed_at,
        ),
    ]
}

/// The head of the metric that has a sample for each image.
pub fn metrics_of_image(row: Option<&AuditRow>) -> String {
    let mut text = String::new();
    let name = "qfsck_image_status";
    match row {
        None => family(
            &mut text,
            name,
            "How each image stands: 0 clean, more is worse.",
        ),
        Some(row) => {
            let worse = ImageStatus::WORST_FIRST.iter().rev();
            let rank = worse.take_while(|status| **status != row.status).count() as u64;
            // The path is shown escaped; the format wants its backslashes and quotes escaped once more.
            let path = row.name.shown().replace('\\', "\\\\").replace('"', "\\\"");
            let status = row.status.name();
            sample(
                &mut text,
                name,
                &format!("{{image=\"{path}\",status=\"{status}\"}}"),
                rank,
            );
        }
    }
    text
}

fn family(text: &mut String, name: &str, help: &str) {
    line(text, format_args!("# HELP {name} {help}"));
    line(text, format_args!("# TYPE {name} gauge"));
}

fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
    line(text, format_args!("{name}{labels} {value}"));
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _written = writeln!(text, "{what}");
}
