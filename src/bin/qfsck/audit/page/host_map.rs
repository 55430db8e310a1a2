//! The map of one image: what its host clusters are used for, as a picture and in words.
//!
//! Comes in: a map of a bounded number of cells, and the check it was drawn with. Goes out: HTML. Never here: a cell that
//! only its colour tells from another.

use std::path::PathBuf;

use qfsck::{Check, ClusterUse, Code, HostMap, MapCell, escaped_path};

use super::gravity;
use super::html::{Html, grouped};

/// Cells of the largest map: 64 rows of 64.
pub(in super::super) const MAP_CELLS: u64 = 64 * 64;
/// Side of a cell in the picture.
const CELL: u64 = 10;
/// Rows that each have their offset beside them.
const NAMED_ROWS: u64 = 16;
/// Stretches of the file that are listed.
const STRETCHES: usize = 100;
/// Findings of each code that are listed.
pub(in super::super) const PLACES_PER_CODE: usize = 20;
/// Gaps that are listed.
const GAPS: usize = 20;

/// The image that was asked for.
pub(in super::super) struct MapOf {
    pub(in super::super) path: PathBuf,
    pub(in super::super) result: Result<Box<Mapped>, String>,
}

/// An image that was checked.
pub(in super::super) struct Mapped {
    pub(in super::super) check: Check,
    pub(in super::super) verdict: &'static str,
    /// `None` where there is no cluster size, or the check was stopped.
    pub(in super::super) map: Option<HostMap>,
    /// Why the result may be wrong through no fault of the image.
    pub(in super::super) unreliable: Vec<String>,
    /// What is wrong where, as `qfsck check` says it.
    pub(in super::super) findings: Vec<(Code, String)>,
}

impl MapOf {
    /// The codes that were found.
    pub(super) fn codes(&self) -> impl Iterator<Item = Code> {
        let mapped = self.result.iter();
        mapped.flat_map(|mapped| mapped.check.findings.totals().map(|(code, _)| code))
    }
}

/// Writes the part of the page.
pub(super) fn part(html: &mut Html, of: &MapOf) {
    html.raw("<section aria-labelledby=\"map\"><h2 id=\"map\">Map of one image</h2>\n<p><span class=\"path\">");
    html.text(&escaped_path(&of.path)).raw("</span></p>\n");
    match &of.result {
        Err(why) => {
            html.raw("<p class=\"note\">There is no map: ")
                .text(why)
                .raw("</p>\n");
        }
        Ok(mapped) => mapped.write(html),
    }
    html.raw("</section>\n");
}

impl Mapped {
    fn write(&self, html: &mut Html) {
        for reason in &self.unreliable {
            html.raw("<p class=\"note\">Not to be relied on: ")
                .text(reason)
                .raw("</p>\n");
        }
        html.raw("<p>Checked for this page, it is <strong>")
            .raw(self.verdict);
        html.raw("</strong>. ");
        match &self.map {
            None => {
                html.raw("Without a cluster size, or after a check that was stopped, there is no map.</p>\n");
            }
            Some(map) => {
                html.raw("The file has ")
                    .number(map.file_clusters)
                    .raw(" clusters of ");
                html.bytes(map.cluster_bytes).raw("; each cell stands for ");
                if map.cell_clusters == 1 {
                    html.raw("one");
                } else {
                    html.number(map.cell_clusters)
                        .raw(" of them, and shows the worst that is in it");
                }
                html.raw(".</p>\n");
                legend(html, map);
                picture(html, map);
                stretches(html, map);
            }
        }
        self.findings(html);
        self.gaps(html);
    }

    fn findings(&self, html: &mut Html) {
        let mut totals: Vec<(Code, u64)> = self
            .check
            .findings
            .totals()
            .map(|(code, total)| (code, total.findings))
            .collect();
        totals.sort_by_key(|(code, _)| gravity(*code));
        html.raw("<h3>What was found in it</h3>\n");
        if totals.is_empty() {
            html.raw("<p>Nothing.</p>\n");
        }
        for (code, total) in totals {
            html.raw("<details class=\"found\" open><summary>")
                .number(total)
                .raw("× <code>");
            html.raw(code.id())
                .raw("</code></summary><p>")
                .code(code)
                .raw(": ");
            html.text(code.title()).raw("</p><ul class=\"codes\">");
            let places = self.findings.iter().filter(|(found, _)| *found == code);
            let mut shown = 0;
            for (_, place) in places {
                html.raw("<li class=\"offset\">").text(place).raw("</li>");
                shown += 1;
            }
            if total > shown {
                html.raw("<li>and ").number(total - shown);
                html.raw(
                    " more places; <code>qfsck check --output json</code> lists up to 1,000</li>",
                );
            }
            html.raw("</ul></details>\n");
        }
    }

    fn gaps(&self, html: &mut Html) {
        let coverage = &self.check.coverage;
        if coverage.gap_count() == 0 {
            return;
        }
        html.raw("<h3>What could not be looked at in it</h3>\n<ul class=\"codes\">");
        for gap in coverage.gaps().iter().take(GAPS) {
            html.raw("<li>")
                .words(format_args!("{}: {}", gap.place, gap.detail))
                .raw("</li>");
        }
        let more = coverage.gap_count().saturating_sub(GAPS as u64);
        if more > 0 {
            html.raw("<li>and ").number(more).raw(" more</li>");
        }
        html.raw("</ul>\n");
    }
}

fn means(used: ClusterUse) -> &'static str {
    match used {
        ClusterUse::Overlap => "used by several that may not share it",
        ClusterUse::Undercounted => "in use, but counted too low: a write may take it for free",
        ClusterUse::Leak => "counted higher than it is used: space is lost",
        ClusterUse::Unknown => "its count, or a table that may refer to it, could not be read",
        ClusterUse::Metadata => "structures of the format",
        ClusterUse::Data => "guest data and VM state",
        ClusterUse::Free => "used by nobody",
    }
}

/// The mark on the ground of a cell, so that nobody needs its colour.
struct Mark {
    class: &'static str,
    /// Where it begins in the cell, and the half that is added to that.
    from: [u64; 2],
    half: &'static str,
    path: &'static str,
}

impl Mark {
    fn of(used: ClusterUse) -> Option<Self> {
        let (class, from, half, path) = match used {
            ClusterUse::Overlap => ("mark", [2, 2], ".5", "l5 5m0-5l-5 5"),
            ClusterUse::Undercounted => ("mark", [5, 2], "", "v4m0 1v1.3"),
            ClusterUse::Leak => ("scratch", [1, 8], ".5", "l7-7m-7 3l3-3m1 7l3-3"),
            ClusterUse::Unknown => ("stroke", [2, 5], "", "h6m-3-3v6"),
            ClusterUse::Metadata => ("mark", [2, 3], ".5", "h5m-5 3h5"),
            ClusterUse::Data | ClusterUse::Free => return None,
        };
        Some(Self {
            class,
            from,
            half,
            path,
        })
    }
}

/// Draws so many cells side by side.
fn cells_of(html: &mut Html, used: ClusterUse, [left, top]: [u64; 2], count: u64) {
    html.raw("<path class=\"u-").raw(used.name()).raw("\" d=\"");
    for cell in 0..count {
        html.raw("M").plain(left + cell * CELL).raw(".5 ");
        html.plain(top).raw(".5h9v9h-9z");
    }
    html.raw("\"/>");
    let Some(mark) = Mark::of(used) else { return };
    let [x, y] = mark.from;
    html.raw("<path class=\"").raw(mark.class).raw("\" d=\"");
    for cell in 0..count {
        html.raw("M").plain(left + cell * CELL + x).raw(mark.half);
        html.raw(" ").plain(top + y).raw(mark.half).raw(mark.path);
    }
    html.raw("\"/>");
}

fn legend(html: &mut Html, map: &HostMap) {
    let total = map.total();
    html.raw("<table class=\"narrow\"><caption>Clusters of the file, each counted once, as the worst that it is</caption>\n<thead><tr><th scope=\"col\">Use</th><th scope=\"col\" class=\"count\">Clusters</th><th scope=\"col\" class=\"count\">Bytes</th><th scope=\"col\">Meaning</th></tr></thead>\n<tbody>\n");
    for used in ClusterUse::WORST_FIRST {
        let count = total.count(used);
        html.raw("<tr><th scope=\"row\" class=\"standing\"><svg class=\"key\" viewBox=\"0 0 10 10\" aria-hidden=\"true\">");
        cells_of(html, used, [0, 0], 1);
        html.raw("</svg>")
            .raw(used.name())
            .raw("</th><td class=\"count\">")
            .number(count);
        html.raw("</td><td class=\"count\">")
            .bytes(count.saturating_mul(map.cluster_bytes));
        html.raw("</td><td class=\"soft\">")
            .raw(means(used))
            .raw("</td></tr>\n");
    }
    html.raw("</tbody></table>\n");
}

/// How a map of so many cells is laid out.
struct Layout {
    /// Cells of a row.
    columns: u64,
    /// Side of a cell on the screen.
    size: u64,
    /// Room for the offsets on the left, whole cells.
    left: u64,
    /// Brings the offsets to one size on the screen.
    labels: &'static str,
}

impl Layout {
    fn of(cells: u64) -> Self {
        let (columns, size, left, labels) = match cells {
            0..=64 => (16, 26, 50, "labels-16"),
            65..=512 => (32, 16, 70, "labels-32"),
            _ => (64, 11, 100, "labels-64"),
        };
        Self {
            columns,
            size,
            left,
            labels,
        }
    }
}

fn picture(html: &mut Html, map: &HostMap) {
    let cells = map.cells.len() as u64;
    let Layout {
        columns,
        size,
        left,
        labels,
    } = Layout::of(cells);
    let rows = cells.div_ceil(columns);
    let (width, height) = (left + columns * CELL, rows * CELL);
    html.raw("<svg class=\"map ")
        .raw(labels)
        .raw("\" role=\"img\" aria-labelledby=\"map-title\" width=\"");
    html.plain(width * size / CELL)
        .raw("\" viewBox=\"0 -2 ")
        .plain(width)
        .raw(" ");
    html.plain(height + 3).raw("\"><title id=\"map-title\">Map of the host clusters, row by row from the start of the file. The tables beside it say the same in words.</title>\n");
    let named_every = rows.div_ceil(NAMED_ROWS).max(1);
    let in_row = usize::try_from(columns).unwrap_or(1);
    for (row, cells) in (0_u64..).zip(map.cells.chunks(in_row)) {
        let first = row * columns;
        if row % named_every == 0 {
            html.raw("<text class=\"offset\" text-anchor=\"end\" x=\"")
                .plain(left - 5);
            html.raw("\" y=\"").plain(row * CELL + 7).raw("\">");
            html.text(&offset(map, first)).raw("</text>\n");
        }
        for run in runs(cells) {
            html.raw("<g><title>");
            html.text(&offset(map, first + run.start)).raw(": ");
            html.text(&contents(&run.cell)).raw("</title>");
            let at = [left + run.start * CELL, row * CELL];
            cells_of(html, run.cell.worst(), at, run.count);
            html.raw("</g>\n");
        }
    }
    html.raw("</svg>\n");
}

/// The host offset where a cell begins.
fn offset(map: &HostMap, cell: u64) -> String {
    let cluster = cell.saturating_mul(map.cell_clusters);
    format!("{:#x}", cluster.saturating_mul(map.cluster_bytes))
}

/// `3 data, 1 leak`.
fn contents(cell: &MapCell) -> String {
    let uses = ClusterUse::WORST_FIRST.into_iter();
    let parts: Vec<String> = uses
        .filter(|used| cell.count(*used) > 0)
        .map(|used| format!("{} {}", grouped(cell.count(used)), used.name()))
        .collect();
    parts.join(", ")
}

/// Cells that follow one another and show the same.
struct Run {
    start: u64,
    count: u64,
    cell: MapCell,
}

fn runs(cells: &[MapCell]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, cell) in (0_u64..).zip(cells) {
        match runs.last_mut() {
            Some(run) if run.cell.worst() == cell.worst() => {
                run.count += 1;
                run.cell.add(cell);
            }
            _ => runs.push(Run {
                start: index,
                count: 1,
                cell: *cell,
            }),
        }
    }
    runs
}

/// Where something is wrong, in words.
fn stretches(html: &mut Html, map: &HostMap) {
    let wrong: Vec<Run> = runs(&map.cells)
        .into_iter()
        .filter(|run| run.cell.worst().is_wrong())
        .collect();
    if wrong.is_empty() {
        return;
    }
    html.raw("<table><caption>Where something is wrong, by host offset");
    if wrong.len() > STRETCHES {
        html.raw("; the first ")
            .number(STRETCHES as u64)
            .raw(" of ");
        html.number(wrong.len() as u64).raw(" stretches");
    }
    html.raw("</caption>\n<thead><tr><th scope=\"col\">From</th><th scope=\"col\">To</th><th scope=\"col\">Worst</th><th scope=\"col\">Clusters</th></tr></thead>\n<tbody>\n");
    for run in wrong.iter().take(STRETCHES) {
        html.raw("<tr><td class=\"offset\">")
            .text(&offset(map, run.start));
        html.raw("</td><td class=\"offset\">")
            .text(&offset(map, run.start + run.count));
        html.raw("</td><td>")
            .raw(run.cell.worst().name())
            .raw("</td><td>");
        html.text(&contents(&run.cell)).raw("</td></tr>\n");
    }
    html.raw("</tbody></table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_never_has_more_cells_than_its_rows_hold() {
        for cells in [1, 64, 65, 512, 513, MAP_CELLS] {
            let columns = Layout::of(cells).columns;
            assert!(cells.div_ceil(columns) <= 64, "{cells}");
        }
    }
}
