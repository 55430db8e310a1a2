//! The page of a night: one file that people look at, without a network and without a script.
//!
//! Comes in: what was collected of a fleet, of the nights before, and of one image's file. Goes out: HTML. Never here: a
//! clock, a file, a fact that the records do not have. The same records give the same bytes.
//!
//! Who is woken by it has three questions, and the first screen answers them: is anything damaged, what is new since last
//! night, what could not be read.

mod fleet;
mod host_map;
mod html;
mod look;
mod parts;
mod trend;

use qfsck::report::{AuditRow, ImageStatus};
use qfsck::{Code, Severity};

pub(super) use self::fleet::{Before, Changes, Fleet};
pub(super) use self::host_map::{MAP_CELLS, MapOf, Mapped, PLACES_PER_CODE};
use self::html::Html;
pub(super) use self::trend::{NIGHTS, Trend};

/// Images that each of the three answers names.
const NAMED_PER_ANSWER: usize = 5;

/// Everything the page tells.
pub(super) struct Page<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) changes: Option<&'a Changes>,
    pub(super) trend: &'a Trend,
    /// What is not on the page, and ought to be said first.
    pub(super) notes: &'a [String],
    pub(super) map: Option<&'a MapOf>,
}

/// What kind of news a status is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Bad,
    Warn,
    Wait,
    Good,
}

impl Tone {
    fn of(status: ImageStatus) -> Self {
        match status {
            ImageStatus::DoNotBoot
            | ImageStatus::Unreadable
            | ImageStatus::Repairable
            | ImageStatus::NotQcow2 => Self::Bad,
            ImageStatus::Leaks => Self::Warn,
            ImageStatus::Unfinished
            | ImageStatus::Changed
            | ImageStatus::Busy
            | ImageStatus::Gone => Self::Wait,
            ImageStatus::Clean => Self::Good,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Warn => "warn",
            Self::Wait => "wait",
            Self::Good => "good",
        }
    }
}

/// Whether an image could not be read tonight.
fn is_unread(status: ImageStatus) -> bool {
    matches!(
        status,
        ImageStatus::Unreadable
            | ImageStatus::Unfinished
            | ImageStatus::Changed
            | ImageStatus::Busy
    )
}

fn meaning(status: ImageStatus) -> &'static str {
    match status {
        ImageStatus::DoNotBoot => {
            "the next write may destroy something, or the image cannot be used"
        }
        ImageStatus::Unreadable => "too little could be read to say more",
        ImageStatus::Repairable => "damaged; starting the guest does not make it worse",
        ImageStatus::Unfinished => "given up; nothing is known tonight",
        ImageStatus::NotQcow2 => "named like an image, or was one, and is none",
        ImageStatus::Leaks => "space is lost; the image is safe to boot",
        ImageStatus::Changed => "changed while it was read; nothing is known tonight",
        ImageStatus::Busy => "in use; nothing is known tonight",
        ImageStatus::Gone => "was there the night before",
        ImageStatus::Clean => "no errors in the metadata",
    }
}

/// A shape for each status, so that no colour is needed to tell them apart.
fn shape(status: ImageStatus) -> &'static str {
    match status {
        ImageStatus::DoNotBoot => "M3 0H7L10 3V7L7 10H3L0 7V3Z",
        ImageStatus::Unreadable => "M0 0H10V10H0Z",
        ImageStatus::Repairable => "M5 0L10 9.5H0Z",
        ImageStatus::NotQcow2 => {
            "M1.5 0L5 3.5L8.5 0L10 1.5L6.5 5L10 8.5L8.5 10L5 6.5L1.5 10L0 8.5L3.5 5L0 1.5Z"
        }
        ImageStatus::Leaks => "M5 0L10 5L5 10L0 5Z",
        ImageStatus::Unfinished => "M0 0H4V10H0ZM6 0H10V10H6Z",
        ImageStatus::Changed => "M0 1H7L10 3L7 5H0ZM10 6H3L0 8L3 10H10Z",
        ImageStatus::Busy => "M0 0L10 5L0 10Z",
        ImageStatus::Gone => "M0 4H10V6H0Z",
        ImageStatus::Clean => "M1 4.5L4 7.5L9 1L10 2L4 10L0 6Z",
    }
}

impl Html {
    /// The shape and the word of a status.
    fn status(&mut self, status: ImageStatus) -> &mut Self {
        self.raw("<span class=\"standing ");
        self.raw(Tone::of(status).class()).raw("\">");
        self.icon(status).raw(status.name()).raw("</span>")
    }

    fn icon(&mut self, status: ImageStatus) -> &mut Self {
        self.raw("<svg class=\"i\" viewBox=\"0 0 10 10\" aria-hidden=\"true\"><path stroke=\"none\" d=\"");
        self.raw(shape(status)).raw("\"/></svg>")
    }

    /// A code, leading to what it means.
    fn code(&mut self, code: Code) -> &mut Self {
        self.raw("<a href=\"#code-").raw(code.id()).raw("\"><code>");
        self.raw(code.id()).raw("</code></a>")
    }

    /// When a night began; nothing where that is not known.
    fn date(&mut self, at: u64) -> &mut Self {
        match date(at) {
            None => self,
            Some((machine, people)) => {
                self.raw("<time datetime=\"").text(&machine).raw("\">");
                self.text(&people).raw("</time>")
            }
        }
    }
}

/// A point in time, for machines and for people; `None` for 0 and for what no calendar has.
fn date(at: u64) -> Option<(String, String)> {
    const LAST: u64 = 253_402_300_799;
    if at == 0 || at > LAST {
        return None;
    }
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(at))?;
    let machine = humantime::format_rfc3339_seconds(time).to_string();
    let people = machine.get(..16)?.replace('T', " ") + " UTC";
    Some((machine, people))
}

fn gravity(code: Code) -> (std::cmp::Reverse<Severity>, Code) {
    (std::cmp::Reverse(code.severity()), code)
}

impl Page<'_> {
    /// The page.
    pub(super) fn write(&self) -> String {
        let mut html = Html::default();
        let fleet = self.fleet;
        html.raw(include_str!("page/head.html"));
        html.text(&fleet.headline()).raw(" · qfsck audit, night ");
        html.plain(fleet.summary().night).raw("</title>\n<style>\n");
        look::write(&mut html);
        html.raw("</style>\n</head>\n<body>\n");
        html.raw("<a class=\"skip\" href=\"#images\">To the images</a>\n");
        self.header(&mut html);
        html.raw("<main>\n");
        for note in self.notes {
            html.raw("<p class=\"note\">").text(note).raw("</p>\n");
        }
        self.answers(&mut html);
        parts::standing(&mut html, fleet);
        if let Some(changes) = self.changes {
            parts::changes(&mut html, changes);
        }
        if let Some(map) = self.map {
            host_map::part(&mut html, map);
        }
        parts::images(&mut html, fleet);
        trend::part(&mut html, self.trend);
        parts::codes(&mut html, fleet, self.map);
        html.raw("</main>\n");
        footer(&mut html, fleet);
        html.raw("</body>\n</html>\n");
        html.into_page()
    }

    fn header(&self, html: &mut Html) {
        let summary = self.fleet.summary();
        html.raw("<header><strong>qfsck audit</strong><span>night ");
        html.plain(summary.night);
        if date(self.fleet.at()).is_some() {
            html.raw(", begun ").date(self.fleet.at());
        }
        html.raw("</span><nav aria-label=\"Parts of this page\">");
        if self.changes.is_some() {
            html.raw("<a href=\"#changes\">changes</a>");
        }
        if self.map.is_some() {
            html.raw("<a href=\"#map\">map</a>");
        }
        html.raw("<a href=\"#images\">images</a><a href=\"#trend\">trend</a>");
        html.raw("<a href=\"#codes\">meanings</a></nav></header>\n<h1>");
        html.text(&self.fleet.headline()).raw("</h1>\n");
    }

    fn answers(&self, html: &mut Html) {
        let fleet = self.fleet;
        html.raw("<div class=\"answers\">\n");
        let damaged = fleet.count_of(ImageStatus::is_damage);
        let before = fleet.summary().damaged_when_last_read;
        let tone = match (damaged, before) {
            (0, 0) => Tone::Good,
            (0, _) => Tone::Wait,
            _ => Tone::Bad,
        };
        answer(html, tone, "Damaged", Some(damaged));
        fleet.name(html, NAMED_PER_ANSWER, damaged, |row| {
            row.status.is_damage()
        });
        if damaged == 0 {
            html.raw("<p>In what could be read, nothing.</p>");
        }
        if before > 0 {
            html.raw("<p>Not read tonight, and damaged when last read: <strong>");
            html.number(before).raw("</strong>.</p>");
        }
        html.raw("</section>\n");
        self.news(html);
        let missing = fleet.missing();
        let unread = fleet.count_of(is_unread).saturating_add(missing);
        let tone = if unread > 0 { Tone::Wait } else { Tone::Good };
        answer(html, tone, "Could not be read", Some(unread));
        fleet.name(html, NAMED_PER_ANSWER, unread - missing, |row| {
            is_unread(row.status)
        });
        if missing > 0 {
            html.raw("<p><strong>").number(missing);
            html.raw("</strong> of them have no record at all: the audit is not complete.</p>");
        }
        let never = fleet.summary().never_read;
        if never > 0 {
            html.raw("<p>Never read whole, in any night: ")
                .number(never)
                .raw(".</p>");
        }
        let damaged = fleet.count_of(|status| status == ImageStatus::Unreadable);
        if damaged > 0 {
            html.raw("<p>").number(damaged).raw(" of them ");
            html.raw(if damaged == 1 { "counts" } else { "count" });
            html.raw(" as damaged as well.</p>");
        }
        if unread == 0 {
            html.raw("<p>Every image was read, or nobody touched it since.</p>");
        }
        html.raw("</section>\n</div>\n");
    }

    fn news(&self, html: &mut Html) {
        let fleet = self.fleet;
        let summary = fleet.summary();
        if !fleet.has_past() {
            answer(html, Tone::Wait, "New since last night", None);
            html.raw("<p>There is no night before: everything is seen for the first time.</p>");
            html.raw("</section>\n");
            return;
        }
        let new = summary.newly_damaged;
        let tone = if new > 0 { Tone::Bad } else { Tone::Good };
        answer(html, tone, "New damage since last night", Some(new));
        fleet.name(html, NAMED_PER_ANSWER, new, AuditRow::is_newly_damaged);
        html.raw("<p>").number(summary.healed).raw(" healed, ");
        html.number(summary.new_images).raw(" new, ");
        html.number(fleet.count_of(|status| status == ImageStatus::Gone));
        html.raw(" gone.");
        if self.changes.is_some() {
            html.raw(" <a href=\"#changes\">All changes</a>");
        }
        html.raw("</p></section>\n");
    }
}

/// Begins one of the three answers.
fn answer(html: &mut Html, tone: Tone, question: &'static str, count: Option<u64>) {
    html.raw("<section class=\"answer ").raw(tone.class());
    html.raw("\"><span class=\"figure\">");
    match count {
        Some(count) => html.number(count),
        None => html.raw("–"),
    };
    html.raw("</span><h2>").raw(question).raw("</h2>");
}

fn footer(html: &mut Html, fleet: &Fleet) {
    html.raw("<footer>\n<p>qcow2 has no checksums for guest data: <em>clean</em> is about metadata, and nobody can say that the data is intact. ");
    html.raw("What an audit does not see is told in <code>docs/audit.md</code>.</p>\n<p>");
    html.raw("This page is one file. It runs no script and asks for nothing from anywhere. ");
    html.raw("It shows at most ").number(fleet::DETAILED as u64);
    html.raw(" images in detail, worst first, and the names of ");
    html.number(fleet::LISTED as u64)
        .raw(" further ones; all are counted.");
    html.raw("</p>\n<p>Looked at by qfsck ");
    let tools: Vec<&str> = fleet.tools().collect();
    html.text(&tools.join(", ")).raw(".</p>\n</footer>\n");
}
