//! The trend: what the last nights came to, as a picture and as a table.
//!
//! Comes in: summaries of nights. Goes out: HTML. Never here: a night that has no summary.

use std::collections::BTreeMap;

use qfsck::report::{AuditSummary, ImageStatus};

use super::html::Html;
use super::{Tone, is_unread};

/// Nights that are shown, the last ones.
pub(in super::super) const NIGHTS: usize = 60;
/// Width of all nights in the picture, and its height.
const WIDTH: u64 = 840;
const HEIGHT: u64 = 120;
/// Width of one night, at least and at most.
const STEPS: [u64; 2] = [14, 28];
/// Room for the numbers on the left.
const LEFT: u64 = 48;
/// From one named night to the next.
const NAMED_EVERY: u64 = 7;

/// The nights that are known.
#[derive(Debug, Default)]
pub(in super::super) struct Trend {
    nights: BTreeMap<u64, AuditSummary>,
    earlier: u64,
}

/// What is drawn of one night.
#[derive(Clone, Copy)]
struct Column {
    damaged: u64,
    unread: u64,
    leaks: u64,
}

impl Trend {
    /// Of nights before which there are some that nobody has to look at.
    pub(in super::super) fn after(earlier: u64) -> Self {
        Self {
            nights: BTreeMap::new(),
            earlier,
        }
    }

    /// Takes a night in; of many, the last ones stay.
    pub(in super::super) fn add(&mut self, summary: AuditSummary) {
        self.nights.insert(summary.night, summary);
        if self.nights.len() > NIGHTS {
            self.nights.pop_first();
            self.earlier += 1;
        }
    }
}

impl Column {
    fn of(summary: &AuditSummary) -> Self {
        let count = |which: fn(ImageStatus) -> bool| {
            let statuses = ImageStatus::WORST_FIRST.into_iter();
            let counts = statuses.filter(|status| which(*status));
            let counts = counts.filter_map(|status| summary.status.get(status.name()));
            counts.fold(0_u64, |sum, count| sum.saturating_add(*count))
        };
        Self {
            damaged: count(ImageStatus::is_damage),
            // What counts as damage is in that part of the column.
            unread: count(|status| is_unread(status) && !status.is_damage())
                .saturating_add(summary.missing),
            leaks: count(|status| status == ImageStatus::Leaks),
        }
    }

    fn height(self) -> u64 {
        let height = self.damaged.saturating_add(self.unread);
        height.saturating_add(self.leaks)
    }
}

/// Writes the trend.
pub(super) fn part(html: &mut Html, trend: &Trend) {
    html.raw("<section aria-labelledby=\"trend\"><h2 id=\"trend\">The last nights</h2>\n");
    if trend.nights.len() < 2 {
        html.raw("<p>There is one night so far, and no trend.</p></section>\n");
        return;
    }
    let columns: Vec<(&AuditSummary, Column)> = trend
        .nights
        .values()
        .map(|summary| (summary, Column::of(summary)))
        .collect();
    let top = columns.iter().map(|(_, column)| column.height()).max();
    picture(html, &columns, top.unwrap_or(0).max(1));
    table(html, trend, &columns);
    html.raw("</section>\n");
}

/// `part` of `whole` in units of the picture; what is there can be seen.
fn scaled(part: u64, whole: u64) -> u64 {
    let scaled = u128::from(HEIGHT) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(scaled)
        .unwrap_or(HEIGHT)
        .max(u64::from(part > 0) * 2)
}

fn picture(html: &mut Html, columns: &[(&AuditSummary, Column)], top: u64) {
    let nights = columns.len() as u64;
    let [least, most] = STEPS;
    let step = (WIDTH / nights.max(1)).clamp(least, most);
    let width = LEFT + nights * step + 10;
    html.raw("<svg class=\"trend\" role=\"img\" aria-labelledby=\"trend-title\" width=\"");
    html.plain(width)
        .raw("\" viewBox=\"0 -12 ")
        .plain(width)
        .raw(" ")
        .plain(HEIGHT + 44);
    html.raw("\"><title id=\"trend-title\">Images that are damaged, could not be read, or have leaks, night by night. The table below has the numbers.</title>\n");
    html.raw("<defs><pattern id=\"t-hatch\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path class=\"hatch\" d=\"M0 0V4\"/></pattern></defs>\n");
    html.raw("<path class=\"axis\" d=\"M")
        .plain(LEFT)
        .raw(" ")
        .plain(HEIGHT)
        .raw("H");
    html.plain(width)
        .raw("M")
        .plain(LEFT)
        .raw(" 0H")
        .plain(width)
        .raw("\"/>\n");
    for (at, number) in [(4, top), (HEIGHT + 4, 0)] {
        html.raw("<text text-anchor=\"end\" x=\"")
            .plain(LEFT - 6)
            .raw("\" y=\"");
        html.plain(at).raw("\">").number(number).raw("</text>\n");
    }
    draw(html, columns, step, top);
    html.raw("</svg>\n");
    legend(html);
}

fn draw(html: &mut Html, columns: &[(&AuditSummary, Column)], step: u64, top: u64) {
    let mut named = None;
    for (index, (summary, column)) in (0_u64..).zip(columns) {
        let x = LEFT + index * step + 2;
        html.raw("<g><title>night ").plain(summary.night).raw(": ");
        html.number(column.damaged)
            .raw(" damaged, ")
            .number(column.unread);
        html.raw(" not read, ")
            .number(column.leaks)
            .raw(" with leaks</title>");
        let mut y = HEIGHT;
        let parts = [
            (column.damaged, Tone::Bad),
            (column.unread, Tone::Wait),
            (column.leaks, Tone::Warn),
        ];
        for (count, tone) in parts {
            let height = scaled(count, top).min(y);
            y -= height;
            if height > 0 {
                block(html, [x, y, step - 3, height], tone);
            }
        }
        html.raw("</g>\n");
        let is_due = named.is_none_or(|last: u64| index >= last + NAMED_EVERY);
        if is_due {
            named = Some(index);
            html.raw("<text x=\"")
                .plain(x)
                .raw("\" y=\"")
                .plain(HEIGHT + 14);
            html.raw("\">").plain(summary.night).raw("</text>\n");
        }
    }
}

fn legend(html: &mut Html) {
    let legend = [
        (Tone::Bad, "damaged"),
        (Tone::Wait, "not read (striped)"),
        (Tone::Warn, "leaks (hollow)"),
    ];
    html.raw("<p class=\"soft\">");
    for (tone, word) in legend {
        html.raw("<svg class=\"key trend\" style=\"display:inline;margin:0 .4em 0 0\" viewBox=\"0 0 11 11\" aria-hidden=\"true\">");
        block(html, [0, 0, 11, 11], tone);
        html.raw("</svg>").raw(word).raw(" &ensp; ");
    }
    html.raw("</p>\n");
}

/// A part of a column: full, striped, or hollow.
fn block(html: &mut Html, [x, y, width, height]: [u64; 4], tone: Tone) {
    let rect = |html: &mut Html, begin: &'static str| {
        html.raw(begin)
            .raw("\" width=\"")
            .plain(width)
            .raw("\" x=\"")
            .plain(x);
        html.raw("\" y=\"")
            .plain(y)
            .raw("\" height=\"")
            .plain(height)
            .raw("\"/>");
    };
    html.raw("<rect class=\"").raw(tone.class());
    rect(html, "");
    match tone {
        Tone::Wait => rect(html, "<rect style=\"fill:url(#t-hatch)"),
        Tone::Warn if height > 4 => {
            html.raw("<rect class=\"hollow\" width=\"")
                .plain(width.saturating_sub(4))
                .raw("\" x=\"")
                .plain(x + 2);
            html.raw("\" y=\"")
                .plain(y + 2)
                .raw("\" height=\"")
                .plain(height - 4)
                .raw("\"/>");
        }
        Tone::Bad | Tone::Warn | Tone::Good => {}
    }
}

fn table(html: &mut Html, trend: &Trend, columns: &[(&AuditSummary, Column)]) {
    html.raw("<details><summary>The numbers of ")
        .number(columns.len() as u64);
    html.raw(" nights</summary>\n<table><caption>The last night first.");
    if trend.earlier > 0 {
        html.raw(" ")
            .number(trend.earlier)
            .raw(" earlier nights are not shown.");
    }
    html.raw("</caption>\n<thead><tr><th scope=\"col\">Night</th><th scope=\"col\">Begun</th>");
    for title in [
        "Images",
        "Damaged",
        "New damage",
        "Healed",
        "Not read",
        "With leaks",
        "Leaked",
    ] {
        html.raw("<th scope=\"col\" class=\"count\">")
            .raw(title)
            .raw("</th>");
    }
    html.raw("</tr></thead>\n<tbody>\n");
    for (summary, column) in columns.iter().rev() {
        html.raw("<tr><th scope=\"row\">")
            .plain(summary.night)
            .raw("</th><td>");
        html.date(summary.at).raw("</td>");
        for count in [
            summary.images,
            column.damaged,
            summary.newly_damaged,
            summary.healed,
            column.unread,
            column.leaks,
        ] {
            html.raw("<td class=\"count\">").number(count).raw("</td>");
        }
        html.raw("<td class=\"count\">")
            .bytes(summary.leaked_bytes)
            .raw("</td></tr>\n");
    }
    html.raw("</tbody></table></details>\n");
}
