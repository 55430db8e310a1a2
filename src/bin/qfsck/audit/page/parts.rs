//! The parts of the page that tell of the fleet: how it stands, what changed, image by image, and what the words mean.
//!
//! Comes in: what was collected. Goes out: HTML. Never here: a row that was not counted.

use std::collections::BTreeSet;

use qfsck::audit::{Change, ChangeKind};
use qfsck::report::{AuditRow, ImageStatus};
use qfsck::{Code, Severity, escaped_path};

use super::fleet::{CHANGES_PER_KIND, Changes, DETAILED, Fleet, LISTED};
use super::host_map::MapOf;
use super::html::{Html, grouped};
use super::{Tone, gravity, meaning};
use crate::render::counted;

/// Width of the bar, in units of its own.
const BAR: u64 = 1000;
/// Where there is anything, it can be seen.
const LEAST: u64 = 6;
/// Codes of one image that are named, here where a record may have any number of them.
const CODES: usize = 40;
/// Characters of a reason.
const REASON_CHARACTERS: usize = 300;
/// Codes named before somebody asks for more.
const FIRST_CODES: usize = 2;

/// How many images stand how.
pub(super) fn standing(html: &mut Html, fleet: &Fleet) {
    let counts: Vec<(ImageStatus, u64)> = ImageStatus::WORST_FIRST
        .into_iter()
        .map(|status| (status, fleet.count_of(|other| other == status)))
        .filter(|(_, count)| *count > 0)
        .collect();
    html.raw("<section aria-labelledby=\"fleet\"><h2 id=\"fleet\">The fleet</h2>\n");
    bar(html, &counts);
    html.raw("<table class=\"narrow\"><caption>Images by how they stand. <span class=\"filter\">What is not ticked is hidden below.</span></caption>\n<thead><tr><th scope=\"col\" class=\"filter\">Show</th><th scope=\"col\">Status</th><th scope=\"col\" class=\"count\">Images</th><th scope=\"col\">Meaning</th></tr></thead>\n<tbody>\n");
    for (status, count) in counts {
        let name = status.name();
        html.raw("<tr><td class=\"filter\"><input type=\"checkbox\" checked id=\"show-");
        html.raw(name).raw("\" aria-label=\"show ").raw(name);
        html.raw("\"></td><th scope=\"row\">").status(status);
        html.raw("</th><td class=\"count\">").number(count);
        html.raw("</td><td class=\"soft\">").raw(meaning(status));
        html.raw("</td></tr>\n");
    }
    html.raw("</tbody></table>\n");
    let summary = fleet.summary();
    html.raw("<p class=\"soft\">");
    html.text(&counted_records(summary.images));
    if summary.carried > 0 {
        html.number(summary.carried);
        html.raw(
            " of them nobody touched since they were last read, so they were not read again. ",
        );
    }
    if summary.leaked_bytes > 0 {
        html.raw("Leaked clusters take up ")
            .bytes(summary.leaked_bytes)
            .raw(". ");
    }
    if let Some(oldest) = summary
        .oldest_verdict_at
        .filter(|at| super::date(*at).is_some())
    {
        html.raw("The oldest verdict is of the night begun ")
            .date(oldest)
            .raw(".");
    }
    html.raw("</p></section>\n");
}

fn counted_records(count: u64) -> String {
    match count {
        1 => "There is one record. ".to_owned(),
        count => format!("There are {} records. ", grouped(count)),
    }
}

/// Shares of the fleet, worst first; the table below it says the same in words.
fn bar(html: &mut Html, counts: &[(ImageStatus, u64)]) {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    if total == 0 {
        return;
    }
    let room = BAR - LEAST * counts.len() as u64;
    html.raw("<svg class=\"bar\" viewBox=\"0 0 1000 20\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
    let mut at = 0;
    for (status, count) in counts {
        let share = u128::from(room) * u128::from(*count) / u128::from(total);
        let width = LEAST + u64::try_from(share).unwrap_or(room);
        html.raw("<rect y=\"0\" height=\"20\" class=\"")
            .raw(Tone::of(*status).class());
        html.raw("\" x=\"").plain(at).raw("\" width=\"");
        html.plain(width.saturating_sub(2)).raw("\"/>");
        at += width;
    }
    html.raw("</svg>\n");
}

/// What differs from the night before.
pub(super) fn changes(html: &mut Html, changes: &Changes) {
    html.raw("<section aria-labelledby=\"changes\"><h2 id=\"changes\">Changes since night ");
    html.plain(changes.before.night).raw("</h2>\n");
    if changes.counts.is_empty() {
        html.raw("<p>Every image stands as it stood then.</p></section>\n");
        return;
    }
    html.raw("<table class=\"changes\"><caption>Compared with night ");
    html.plain(changes.before.night);
    if super::date(changes.before.at).is_some() {
        html.raw(", begun ").date(changes.before.at);
    }
    html.raw(": ");
    let mut between = "";
    for (kind, count) in &changes.counts {
        html.raw(between).number(*count).raw(" ").raw(words(*kind));
        between = ", ";
    }
    html.raw(".</caption>\n<thead><tr><th scope=\"col\">Change</th><th scope=\"col\">From</th><th scope=\"col\">To</th><th scope=\"col\">Image</th></tr></thead>\n<tbody>\n");
    for (kind, kept) in &changes.kept {
        for change in kept {
            one_change(html, change);
        }
        let count = changes.counts.get(kind).copied().unwrap_or(0);
        let more = count.saturating_sub(kept.len() as u64);
        if more > 0 {
            html.raw("<tr><td colspan=\"4\" class=\"soft\">and ")
                .number(more);
            html.raw(" more ").raw(words(*kind));
            html.words(format_args!(" (the first {CHANGES_PER_KIND} are shown)"));
            html.raw("</td></tr>\n");
        }
    }
    html.raw("</tbody></table></section>\n");
}

fn one_change(html: &mut Html, change: &Change) {
    html.raw("<tr><td>").raw(words(change.kind));
    if change.busy_nights > 1 {
        html.words(format_args!(" for {} nights", change.busy_nights));
    }
    for status in [change.before, change.after] {
        html.raw("</td><td>");
        match status {
            Some(status) => html.status(status),
            None => html.raw("<span class=\"soft\">not there</span>"),
        };
    }
    html.raw("</td><th scope=\"row\" class=\"path\">");
    html.text(&escaped_path(&change.name.to_path()));
    html.raw("</th></tr>\n");
}

fn words(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::NewDamage => "newly damaged",
        ChangeKind::Worse => "worse",
        ChangeKind::NewAndDamaged => "new, and damaged",
        ChangeKind::StillBusy => "still in use",
        ChangeKind::Gone => "gone",
        ChangeKind::Healed => "healed",
        ChangeKind::New => "new",
    }
}

/// Image by image, worst first.
pub(super) fn images(html: &mut Html, fleet: &Fleet) {
    html.raw("<section aria-labelledby=\"images\"><h2 id=\"images\">Images, worst first</h2>\n");
    hide_what_is_not_ticked(html);
    let rest: u64 = fleet.listed.len() as u64 + fleet.unlisted.values().sum::<u64>();
    if fleet.detailed.is_empty() {
        html.raw("<p>Every image is clean.</p>\n");
    } else {
        html.raw("<table class=\"images\"><colgroup><col class=\"c1\"><col class=\"c2\"><col></colgroup><caption>");
        html.number(fleet.detailed.len() as u64);
        html.raw(" images with what is known of them.");
        if rest > 0 {
            html.raw(" The other ").number(rest);
            html.raw(" are <a href=\"#rest\">below</a>.");
        }
        html.raw("</caption>\n<thead><tr><th scope=\"col\">Status</th><th scope=\"col\">Image</th><th scope=\"col\">What was found</th></tr></thead>\n<tbody>\n");
        for (number, row) in (1..).zip(fleet.detailed.values()) {
            image(html, number, row, fleet.has_past());
        }
        html.raw("</tbody></table>\n");
    }
    the_rest(html, fleet);
    html.raw("</section>\n");
}

/// A rule for each status: no script is needed to hide what nobody wants to see.
fn hide_what_is_not_ticked(html: &mut Html) {
    html.raw("<style>@media screen{");
    let mut between = "";
    for status in ImageStatus::WORST_FIRST {
        html.raw(between).raw("body:has(#show-").raw(status.name());
        html.raw(":not(:checked)) .s-").raw(status.name());
        between = ",";
    }
    html.raw("{display:none}}</style>\n");
}

fn image(html: &mut Html, number: u64, row: &AuditRow, has_past: bool) {
    html.raw("<tr id=\"i").plain(number).raw("\" class=\"s-");
    html.raw(row.status.name())
        .raw("\"><td>")
        .status(row.status);
    html.raw("</td><th scope=\"row\"><span class=\"path\">");
    html.text(&escaped_path(&row.name.to_path())).raw("</span>");
    if has_past && row.is_newly_damaged() {
        html.raw("<span class=\"new bad\">new</span>");
    }
    html.raw("</th><td><details class=\"found\"><summary>");
    let codes = codes_of(row);
    headline_of(html, row, &codes);
    html.raw("</summary>");
    findings(html, row, &codes);
    facts(html, row);
    html.raw("</details></td></tr>\n");
}

/// Codes of a row that the catalog has, gravest first.
fn codes_of(row: &AuditRow) -> Vec<(Code, u64)> {
    let known = row.findings.iter();
    let mut codes: Vec<(Code, u64)> = known
        .filter_map(|(id, count)| Some((Code::from_id(id)?, *count)))
        .collect();
    codes.sort_by_key(|(code, _)| gravity(*code));
    codes
}

fn headline_of(html: &mut Html, row: &AuditRow, codes: &[(Code, u64)]) {
    let grave = codes
        .iter()
        .filter(|(code, _)| code.severity() != Severity::Notice);
    let grave: Vec<&(Code, u64)> = grave.collect();
    if grave.is_empty() {
        match &row.reason {
            Some(reason) => html.text(&cut(reason)),
            None => html.raw(meaning(row.status)),
        };
    }
    let mut between = "";
    for (code, count) in grave.iter().take(FIRST_CODES) {
        html.raw(between).number(*count).raw("× <code>");
        html.raw(code.id()).raw("</code>");
        between = ", ";
    }
    let more = grave.len().saturating_sub(FIRST_CODES);
    if more > 0 {
        html.text(", ").text(&counted(more as u64, "more kind"));
    }
    if row.busy_nights > 1 {
        html.words(format_args!(", for {} nights", row.busy_nights));
    }
    if row.is_damaged_as_last_read() {
        html.raw(", damaged when last read");
    }
}

fn findings(html: &mut Html, row: &AuditRow, codes: &[(Code, u64)]) {
    if row.findings.is_empty() {
        return;
    }
    html.raw("<ul class=\"codes\">");
    for (code, count) in codes {
        html.raw("<li>").number(*count).raw("× ").code(*code);
        html.raw(" <span class=\"soft\">")
            .raw(code.severity().name());
        html.raw(": ").text(code.title()).raw("</span></li>");
    }
    let strange = row
        .findings
        .iter()
        .filter(|(id, _)| Code::from_id(id).is_none());
    let count = strange.clone().count();
    for (id, count) in strange.take(CODES) {
        html.raw("<li>")
            .number(*count)
            .raw("× <code>")
            .text(&cut(id));
        html.raw("</code> <span class=\"soft\">which this version does not know</span></li>");
    }
    if count > CODES {
        html.raw("<li>and ")
            .number((count - CODES) as u64)
            .raw(" more codes</li>");
    }
    html.raw("</ul>");
}

/// A reason as far as anybody reads it: a record may have been written by a stranger.
fn cut(reason: &str) -> String {
    let mut rest = reason.chars();
    let mut shown: String = rest.by_ref().take(REASON_CHARACTERS).collect();
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

/// What else the record tells.
fn facts(html: &mut Html, row: &AuditRow) {
    html.raw("<dl>");
    if let Some(reason) = &row.reason {
        html.raw("<dt>reason</dt><dd>")
            .text(&cut(reason))
            .raw("</dd>");
    }
    for reason in row.unreliable.iter().take(CODES) {
        html.raw("<dt>unreliable</dt><dd>")
            .text(&cut(reason))
            .raw("</dd>");
    }
    if row.leaked_bytes > 0 {
        html.raw("<dt>leaked</dt><dd>")
            .bytes(row.leaked_bytes)
            .raw("</dd>");
    }
    if row.check_errors > 0 {
        html.raw("<dt>not read</dt><dd>")
            .number(row.check_errors)
            .raw(" parts of it</dd>");
    }
    if let Some(previous) = row.previous {
        html.raw("<dt>before</dt><dd>")
            .raw(previous.name())
            .raw("</dd>");
    }
    html.raw("<dt>last read whole</dt><dd>");
    match row.verdict {
        Some(verdict) => {
            html.raw("night ").plain(verdict.night.night);
            if super::date(verdict.night.at).is_some() {
                html.raw(", ").date(verdict.night.at);
            }
            html.raw(": ").raw(verdict.status.name());
            if row.carried {
                html.raw("; nobody touched it since");
            }
        }
        None => {
            html.raw("never");
        }
    }
    html.raw("</dd><dt>first seen</dt><dd>night ")
        .plain(row.first_night)
        .raw("</dd>");
    if let Some(fingerprint) = row.fingerprint {
        html.raw("<dt>file</dt><dd>")
            .bytes(fingerprint.bytes)
            .raw(" long</dd>");
    }
    if row.other_names > 0 {
        html.raw("<dt>further names</dt><dd>")
            .number(row.other_names)
            .raw("</dd>");
    }
    html.raw("</dl>");
}

/// Images of which only the names are shown, and those that are only counted.
fn the_rest(html: &mut Html, fleet: &Fleet) {
    if fleet.listed.is_empty() {
        return;
    }
    html.raw("<h3 id=\"rest\">The other images, by name</h3>\n");
    for status in ImageStatus::WORST_FIRST {
        let listed = || fleet.listed.iter().filter(|rank| rank.status.0 == status);
        let unlisted = fleet.unlisted.get(&std::cmp::Reverse(status)).copied();
        let unlisted = unlisted.unwrap_or(0);
        let count = listed().count() as u64;
        if count + unlisted == 0 {
            continue;
        }
        html.raw("<details class=\"s-")
            .raw(status.name())
            .raw("\"><summary>");
        html.status(status).raw(": ").number(count + unlisted);
        html.raw("</summary>");
        if unlisted > 0 {
            html.raw("<p>").number(unlisted);
            html.words(format_args!(
                " of them are only counted: after {DETAILED} in detail, the page has room for {LISTED} names."
            ));
            html.raw("</p>");
        }
        html.raw("<ul class=\"rest\">\n");
        for rank in listed() {
            html.raw("<li class=\"path\">")
                .text(&rank.shown())
                .raw("</li>\n");
        }
        html.raw("</ul></details>\n");
    }
}

/// What the codes on the page mean, each once.
pub(super) fn codes(html: &mut Html, fleet: &Fleet, map: Option<&MapOf>) {
    let mut found: BTreeSet<Code> = BTreeSet::new();
    for row in fleet.detailed.values() {
        found.extend(row.findings.keys().filter_map(|id| Code::from_id(id)));
    }
    found.extend(map.into_iter().flat_map(MapOf::codes));
    let mut found: Vec<Code> = found.into_iter().collect();
    found.sort_by_key(|code| gravity(*code));
    html.raw("<section aria-labelledby=\"codes\"><h2 id=\"codes\">What the findings mean</h2>\n");
    if found.is_empty() {
        html.raw("<p>There are none.</p>\n");
    }
    for code in found {
        html.raw("<h3 id=\"code-")
            .raw(code.id())
            .raw("\"><code>")
            .raw(code.id());
        html.raw("</code></h3>\n<p><strong>")
            .raw(code.severity().name())
            .raw(":</strong> ");
        // The catalog is part of the program, but its texts may have a `<` in them.
        html.text(code.title()).raw(".</p>\n<p>").text(code.help());
        html.raw("</p>\n<p><strong>Remedy:</strong> ")
            .text(code.remedy())
            .raw("</p>\n");
    }
    html.raw("</section>\n");
}
