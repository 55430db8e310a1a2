//! What a night came to, for people: worst first.
//!
//! Comes in: a tally. Goes out: text. Never here: a decision; a name that was not escaped.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use qfsck::audit::{Change, KEPT_PER_STATUS, Tally};
use qfsck::report::{AuditRow, ImageStatus};
use qfsck::{Code, Severity, escaped, escaped_path};

use super::crew::Muster;
use super::discover::Discovery;
use crate::render::counted;
use crate::say;

/// Paths that could not be looked into, of which each is named.
const SHOWN_REFUSED: usize = 20;
/// Codes of an image that are named.
const SHOWN_CODES: usize = 4;

/// What the summary tells besides the rows.
pub(super) struct Told<'a> {
    pub(super) muster: &'a Muster,
    pub(super) discovery: &'a Discovery,
    pub(super) goes_on: bool,
    pub(super) has_state: bool,
    pub(super) took: Duration,
}

/// Names what could not be looked into: there may be images.
pub(super) fn refused(discovery: &Discovery) {
    for (path, reason) in discovery.refused.iter().take(SHOWN_REFUSED) {
        let reason = escaped_path(reason.as_ref());
        say(&format!(
            "qfsck: cannot look into {}: {reason}",
            escaped_path(path)
        ));
    }
    let more = discovery.refused.len().saturating_sub(SHOWN_REFUSED);
    if more > 0 {
        say(&format!("qfsck: and into {more} more places"));
    }
}

/// Writes the summary of an audit.
pub(super) fn summary(to: &mut dyn Write, tally: &Tally, told: &Told<'_>) -> io::Result<()> {
    let summary = tally.summary();
    groups(to, tally)?;
    let seconds = Duration::from_millis(u64::try_from(told.took.as_millis()).unwrap_or(u64::MAX));
    let night = if told.has_state {
        format!("night {}: ", summary.night)
    } else {
        String::new()
    };
    writeln!(
        to,
        "{night}{} in {}{}",
        counted(summary.images, "image"),
        humantime::format_duration(seconds),
        if told.goes_on {
            ", after an earlier run"
        } else {
            ""
        }
    )?;
    counts(to, tally)?;
    if summary.carried > 0 {
        let carried = summary.carried;
        writeln!(
            to,
            "  {carried} of them not touched since they were last read"
        )?;
    }
    if told.has_state && summary.new_images < summary.images {
        news(to, tally)?;
    }
    limits(to, told)
}

/// What the night is not about.
fn limits(to: &mut dyn Write, told: &Told<'_>) -> io::Result<()> {
    if told.discovery.links > 0 {
        let links = counted(told.discovery.links, "symbolic link");
        writeln!(to, "{links} not followed")?;
    }
    let refused = told.discovery.refused.len();
    if refused > 0 {
        let places = counted(refused as u64, "place");
        writeln!(
            to,
            "{}not looked into:{} {places}, named above",
            bold(),
            end()
        )?;
    }
    if told.muster.unwritten > 0 {
        let records = counted(told.muster.unwritten as u64, "record");
        writeln!(to, "{}not written:{} {records}", bold(), end())?;
    }
    if told.muster.left > 0 {
        let left = counted(told.muster.left as u64, "image");
        let next = if told.has_state {
            "; the next run goes on there"
        } else {
            ""
        };
        writeln!(
            to,
            "{}stopped early:{} {left} not reached{next}",
            bold(),
            end()
        )?;
    }
    Ok(())
}

/// The images that are not clean, by how they stand, worst first.
pub(super) fn groups(to: &mut dyn Write, tally: &Tally) -> io::Result<()> {
    // In the first night of all, everything is new.
    let has_past = tally.summary().new_images < tally.summary().images;
    for status in ImageStatus::WORST_FIRST {
        let rows = tally.kept(status);
        if rows.is_empty() {
            continue;
        }
        let style = style_of(status);
        writeln!(to, "{style}{}{style:#}: {}", status.name(), meaning(status))?;
        for row in rows {
            writeln!(to, "    {}{}", row.name.shown(), remarks(row, has_past))?;
        }
        let more = tally.count(status).saturating_sub(rows.len() as u64);
        if more > 0 {
            writeln!(
                to,
                "    … and {more} more (the first {KEPT_PER_STATUS} are shown)"
            )?;
        }
        writeln!(to)?;
    }
    Ok(())
}

/// How many images stand how, in one line.
pub(super) fn counts(to: &mut dyn Write, tally: &Tally) -> io::Result<()> {
    let parts: Vec<String> = ImageStatus::WORST_FIRST
        .into_iter()
        .filter(|status| tally.count(*status) > 0)
        .map(|status| {
            let style = style_of(status);
            format!("{} {style}{}{style:#}", tally.count(status), status.name())
        })
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    writeln!(to, "  {}", parts.join(", "))?;
    let leaked = tally.summary().leaked_bytes;
    if leaked > 0 {
        writeln!(to, "  {} leaked", indicatif::HumanBytes(leaked))?;
    }
    Ok(())
}

fn news(to: &mut dyn Write, tally: &Tally) -> io::Result<()> {
    let summary = tally.summary();
    let facts = [
        (summary.newly_damaged, "newly damaged"),
        (summary.healed, "healed"),
        (summary.new_images, "new"),
    ];
    let facts: Vec<String> = facts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if facts.is_empty() {
        return writeln!(to, "  since last night: nothing new");
    }
    writeln!(to, "  since last night: {}", facts.join(", "))
}

fn remarks(row: &AuditRow, has_past: bool) -> String {
    let mut facts = Vec::new();
    if has_past && row.is_newly_damaged() {
        facts.push("new".to_owned());
    }
    let mut codes: Vec<(Code, u64)> = row
        .findings
        .iter()
        .filter_map(|(id, count)| Some((Code::from_id(id)?, *count)))
        .filter(|(code, _)| code.severity() != Severity::Notice)
        .collect();
    codes.sort_by_key(|(code, _)| (std::cmp::Reverse(code.severity()), *code));
    let more = codes.len().saturating_sub(SHOWN_CODES);
    for (code, count) in codes.into_iter().take(SHOWN_CODES) {
        facts.push(format!("{count}× {code}"));
    }
    if more > 0 {
        facts.push(format!("{more} more codes"));
    }
    if row.busy_nights > 1 {
        facts.push(format!("for {} nights", row.busy_nights));
    }
    if let Some(verdict) = row.verdict.filter(|_| !row.status.is_verdict()) {
        let nights = row.night.saturating_sub(verdict.night.night);
        let ago = counted(nights, "night");
        facts.push(format!("{} {ago} ago", verdict.status.name()));
    }
    facts.extend(row.reason.as_deref().map(shown_reason));
    facts.extend(row.unreliable.iter().map(|reason| shown_reason(reason)));
    if row.carried {
        facts.push("not touched since".to_owned());
    }
    if facts.is_empty() {
        return String::new();
    }
    format!("  ({})", facts.join(", "))
}

/// A record may have been written by anybody.
fn shown_reason(reason: &str) -> String {
    escaped(reason.as_bytes())
}

fn meaning(status: ImageStatus) -> &'static str {
    match status {
        ImageStatus::DoNotBoot => "the next write may destroy something",
        ImageStatus::Unreadable => "too little could be read to say more",
        ImageStatus::Repairable => "damaged; starting the guest does not make it worse",
        ImageStatus::Unfinished => "given up",
        ImageStatus::NotQcow2 => "named like an image, or was one, and is none",
        ImageStatus::Leaks => "space is lost, the images are safe to boot",
        ImageStatus::Changed => "somebody changed them while they were read",
        ImageStatus::Busy => "in use; nothing is known tonight",
        ImageStatus::Gone => "were there last night",
        ImageStatus::Clean => "no errors",
    }
}

/// One line for an image that stands otherwise than before.
pub(super) fn change(to: &mut dyn Write, change: &Change) -> io::Result<()> {
    let word = |status: Option<ImageStatus>| status.map_or("-", ImageStatus::name);
    let nights = if change.busy_nights > 1 {
        format!("  (for {} nights)", change.busy_nights)
    } else {
        String::new()
    };
    writeln!(
        to,
        "{:<16} {:>11} -> {:<11} {}{nights}",
        change.kind.name(),
        word(change.before),
        word(change.after),
        change.name.shown()
    )
}

fn style_of(status: ImageStatus) -> Style {
    match status {
        ImageStatus::Clean => AnsiColor::Green.on_default().bold(),
        ImageStatus::Gone | ImageStatus::Busy | ImageStatus::Changed => {
            AnsiColor::Cyan.on_default().bold()
        }
        ImageStatus::Leaks | ImageStatus::Repairable | ImageStatus::Unfinished => {
            AnsiColor::Yellow.on_default().bold()
        }
        ImageStatus::NotQcow2 | ImageStatus::Unreadable | ImageStatus::DoNotBoot => {
            AnsiColor::Red.on_default().bold()
        }
    }
}

fn bold() -> Style {
    Style::new().bold()
}

fn end() -> String {
    format!("{:#}", bold())
}
