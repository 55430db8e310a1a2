//! A check, for people: grouped by code, in ranges, with owners, and one verdict line at the end.
//!
//! Comes in: a [`Check`]. Goes out: text. Names from inside an image arrive here escaped. Never here: a decision.

use std::io::{self, Write};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use qfsck::qcow2::{ClusterRange, Geometry, Place, SnapshotEntry};
use qfsck::report::Conditions;
use qfsck::{
    Check, Code, Finding, Image, Owner, OwnerKind, Owners, Severity, Storage, Total, Verdict,
    escaped, escaped_path,
};

/// Findings of one code that are shown; JSON has more.
const SHOWN_PER_CODE: usize = 10;
/// Gaps that are shown.
const SHOWN_GAPS: usize = 10;
/// Width text is wrapped to.
const WIDTH: usize = 100;

/// Writes a check.
pub(crate) fn check<S: Storage>(
    to: &mut dyn Write,
    path: &Path,
    image: &Image<S>,
    check: &Check,
    conditions: &Conditions,
) -> io::Result<()> {
    let names = Names::new(image, &check.snapshots);
    writeln!(to, "{}", escaped_path(path))?;
    let mut codes: Vec<(Code, Total)> = check.findings.totals().collect();
    codes.sort_by_key(|(code, _)| (std::cmp::Reverse(code.severity()), *code));
    for (code, total) in codes {
        let findings = check.findings.iter().filter(|finding| finding.code == code);
        group(to, &names, code, total, &findings.collect::<Vec<_>>())?;
    }
    coverage(to, check)?;
    statistics(to, check, conditions)?;
    for reason in &conditions.unreliable {
        writeln!(to, "{}unreliable:{} {reason}", bold(), reset(bold()))?;
    }
    verdict(to, check, conditions)
}

fn group(
    to: &mut dyn Write,
    names: &Names<'_>,
    code: Code,
    total: Total,
    findings: &[&Finding],
) -> io::Result<()> {
    let style = severity_style(code.severity());
    let times = if total.count > 1 {
        format!(" ({}×)", total.count)
    } else {
        String::new()
    };
    writeln!(
        to,
        "{style}{}{} {}: {}{times}",
        code.severity().name(),
        reset(style),
        code.id(),
        code.title()
    )?;
    for finding in findings.iter().take(SHOWN_PER_CODE) {
        one(to, names, finding)?;
    }
    let shown = findings.len().min(SHOWN_PER_CODE) as u64;
    if total.findings > shown {
        let more = total.findings - shown;
        writeln!(
            to,
            "    … and {more} more places; --output json lists up to 1000"
        )?;
    }
    if code.severity() != Severity::Notice {
        wrapped(to, "    → ", code.remedy())?;
    }
    Ok(())
}

fn one(to: &mut dyn Write, names: &Names<'_>, finding: &Finding) -> io::Result<()> {
    writeln!(to, "    {}", facts(names, finding))?;
    owners(to, names, &finding.owners)
}

/// Where a finding is, and what is known of it.
pub(crate) fn facts(names: &Names<'_>, finding: &Finding) -> String {
    let mut facts = vec![names.place(finding)];
    if let Some(counts) = finding.counts {
        let stored = counts
            .stored
            .map_or_else(|| "unknown".to_owned(), |stored| stored.to_string());
        facts.push(format!("stored {stored}, expected {}", counts.expected));
    }
    if finding.count > 1 && finding.host.is_none() {
        facts.push(format!("{}×", finding.count));
    }
    if let Some(word) = finding.word {
        facts.push(format!("{word:#018x}"));
    }
    if let Some(guest) = finding.guest {
        facts.push(format!("guest {guest}"));
    }
    facts.extend(finding.detail.clone());
    facts.join(", ")
}

fn owners(to: &mut dyn Write, names: &Names<'_>, owners: &Owners) -> io::Result<()> {
    for owner in &owners.named {
        writeln!(to, "        used by {}", names.owner(owner))?;
    }
    if owners.more > 0 {
        writeln!(to, "        and {} more", owners.more)?;
    }
    Ok(())
}

fn coverage(to: &mut dyn Write, check: &Check) -> io::Result<()> {
    if check.coverage.complete().is_some() {
        return Ok(());
    }
    writeln!(
        to,
        "{}not covered{} ({}):",
        bold(),
        reset(bold()),
        check.coverage.gap_count()
    )?;
    for gap in check.coverage.gaps().iter().take(SHOWN_GAPS) {
        writeln!(to, "    {}: {}", gap.place, gap.detail)?;
    }
    let shown = check.coverage.gaps().len().min(SHOWN_GAPS) as u64;
    if check.coverage.gap_count() > shown {
        writeln!(to, "    … and {} more", check.coverage.gap_count() - shown)?;
    }
    Ok(())
}

/// The line `qemu-img check` prints, in its words.
fn statistics(to: &mut dyn Write, check: &Check, conditions: &Conditions) -> io::Result<()> {
    let numbers = &check.statistics;
    if numbers.total_clusters > 0 && numbers.allocated_clusters > 0 {
        writeln!(
            to,
            "{}/{} = {}% allocated, {}% fragmented, {}% compressed clusters",
            numbers.allocated_clusters,
            numbers.total_clusters,
            percent(numbers.allocated_clusters, numbers.total_clusters),
            percent(numbers.fragmented_clusters, numbers.allocated_clusters),
            percent(numbers.compressed_clusters, numbers.allocated_clusters),
        )?;
    }
    let image_end_offset = conditions.image_end_offset(check);
    if image_end_offset > 0 {
        writeln!(to, "Image end offset: {image_end_offset}")?;
    }
    Ok(())
}

/// A share in percent, rounded as C's `%.2f` does.
#[expect(
    clippy::cast_precision_loss,
    reason = "two decimals are shown, and qemu-img loses the same"
)]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}", part as f64 * 100.0 / whole.max(1) as f64)
}

fn verdict(to: &mut dyn Write, check: &Check, conditions: &Conditions) -> io::Result<()> {
    let word = conditions.verdict(check);
    let style = match word {
        Verdict::Clean => AnsiColor::Green.on_default().bold(),
        Verdict::Leaks | Verdict::Repairable => AnsiColor::Yellow.on_default().bold(),
        Verdict::DoNotBoot | Verdict::Unreadable => AnsiColor::Red.on_default().bold(),
    };
    let covered = if conditions.changed {
        "the image changed while it was read"
    } else if check.coverage.complete().is_some() {
        "all metadata was read"
    } else {
        "not all metadata could be read"
    };
    let findings = &check.findings;
    let counts = match (
        findings.count_of(Severity::Corruption),
        findings.count_of(Severity::Leak),
    ) {
        (0, 0) if check.coverage.complete().is_none() => "no errors in what was read".to_owned(),
        (0, 0) => "no errors".to_owned(),
        (corruptions, 0) => counted(corruptions, "corruption"),
        (0, leaks) => counted(leaks, "leaked cluster"),
        (corruptions, leaks) => format!(
            "{}, {}",
            counted(corruptions, "corruption"),
            counted(leaks, "leaked cluster")
        ),
    };
    let policy = match findings.count_of(Severity::Policy) {
        0 => String::new(),
        count => format!(", {count} against the policy for untrusted images"),
    };
    let meaning = match word {
        Verdict::Clean => "; guest data has no checksums and was not judged",
        Verdict::Leaks if check.header.is_dirty() => {
            "; opened for writing, QEMU frees what looks leaked without asking"
        }
        Verdict::Leaks => "; space is lost, the image is safe to boot",
        Verdict::Repairable => "; booting does not make it worse",
        Verdict::DoNotBoot => "; keep everything from writing to this image",
        Verdict::Unreadable => "; too little is known to say more",
    };
    writeln!(
        to,
        "verdict: {style}{}{}: {counts}{policy}, {covered}{meaning}",
        word.name(),
        reset(style)
    )
}

/// `1 corruption`, `2 corruptions`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Writes text wrapped to the width, the first line after `lead`, the others below it.
pub(crate) fn wrapped(to: &mut dyn Write, lead: &str, text: &str) -> io::Result<()> {
    let indent = " ".repeat(lead.chars().count());
    let mut line = String::from(lead);
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(to, "{line}")?;
            line.clone_from(&indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    writeln!(to, "{line}")
}

/// Turns clusters, places and owners into words, with the cluster size and the snapshots' names at hand.
pub(crate) struct Names<'a> {
    cluster_bytes: u64,
    snapshots: &'a [SnapshotEntry],
}

impl<'a> Names<'a> {
    pub(crate) fn new<S: Storage>(image: &Image<S>, snapshots: &'a [SnapshotEntry]) -> Self {
        Self {
            cluster_bytes: image.geometry().map_or(0, Geometry::cluster_bytes),
            snapshots,
        }
    }

    /// `cluster 5 (0x50000)` or `clusters 5-8 (0x50000-0x90000)`.
    pub(crate) fn clusters(&self, range: ClusterRange) -> String {
        let start = range.start.0;
        let offset = start.saturating_mul(self.cluster_bytes);
        if range.count == 1 {
            return format!("cluster {start} ({offset:#x})");
        }
        let end = range.end().saturating_mul(self.cluster_bytes);
        format!(
            "clusters {start}-{} ({offset:#x}-{end:#x})",
            range.end() - 1
        )
    }

    fn place(&self, finding: &Finding) -> String {
        match (finding.place, finding.host) {
            (Place::Clusters { .. }, Some(host)) => self.clusters(host),
            (Place::SnapshotEntry { index }, _) => match self.snapshot(index) {
                Some(name) => format!("snapshot #{index} {name}"),
                None => finding.place.to_string(),
            },
            (place, _) => place.to_string(),
        }
    }

    /// `guest data 0x0-0x10000 (active mapping; entry 3 of the L2 table in cluster 4)`.
    pub(crate) fn owner(&self, owner: &Owner) -> String {
        let guest = owner
            .guest
            .map(|guest| format!(" {guest}"))
            .unwrap_or_default();
        let trees = self.trees(owner);
        match owner.kind {
            OwnerKind::GuestData | OwnerKind::CompressedData => {
                format!("{}{guest} ({trees}; {})", owner.kind.name(), owner.place)
            }
            OwnerKind::L2Table => format!("the L2 table of guest{guest} ({trees})"),
            OwnerKind::Header => "the header".to_owned(),
            OwnerKind::BitmapData
            | OwnerKind::RefcountTable
            | OwnerKind::RefcountBlock
            | OwnerKind::L1Table
            | OwnerKind::SnapshotTable
            | OwnerKind::BitmapDirectory
            | OwnerKind::BitmapTable
            | OwnerKind::EncryptionHeader => self.structure(owner),
        }
    }

    fn structure(&self, owner: &Owner) -> String {
        let name = match owner.place {
            Place::L1Table {
                tree: qfsck::qcow2::Tree::Snapshot(index),
            } => self.snapshot(index),
            _ => None,
        };
        let name = name.map(|name| format!(" {name}")).unwrap_or_default();
        if owner.kind == OwnerKind::BitmapData {
            return format!("bitmap data, {}", owner.place);
        }
        format!("the {}{name}", owner.place)
    }

    fn trees(&self, owner: &Owner) -> String {
        let Some(trees) = owner.trees else {
            return String::new();
        };
        let first = trees
            .first_snapshot
            .map(|index| {
                let name = self.snapshot(index).unwrap_or_default();
                format!("snapshot #{index} {name}")
            })
            .unwrap_or_default();
        let snapshots = match trees.snapshots {
            0 => None,
            1 => Some(first),
            more => Some(format!("{first} and {} more", more - 1)),
        };
        let active = (trees.active > 0).then(|| "active mapping".to_owned());
        [active, snapshots]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" and ")
    }

    fn snapshot(&self, index: u32) -> Option<String> {
        let entry = self.snapshots.get(usize::try_from(index).ok()?)?;
        Some(format!(
            "\"{}\" (ID {})",
            escaped(&entry.name),
            escaped(&entry.id)
        ))
    }
}

fn bold() -> Style {
    Style::new().bold()
}

fn severity_style(severity: Severity) -> Style {
    match severity {
        Severity::Notice => AnsiColor::Cyan.on_default(),
        Severity::Policy => AnsiColor::Magenta.on_default().bold(),
        Severity::Leak => AnsiColor::Yellow.on_default().bold(),
        Severity::Corruption => AnsiColor::Red.on_default().bold(),
    }
}

fn reset(style: Style) -> String {
    format!("{style:#}")
}
