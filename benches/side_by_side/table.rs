//! The numbers for people: how many times less qfsck takes, and what both took.

use crate::case_run::Row;
use crate::measure::Cost;

const RATIOS: [&str; 8] = [
    "case",
    "wall",
    "CPU",
    "peak memory",
    "bytes read",
    "read calls",
    "CPU, of the floor",
    "wall, of the floor",
];

const ABSOLUTES: [&str; 10] = [
    "case",
    "metadata",
    "floor: wall / CPU",
    "qfsck: wall / CPU",
    "peak",
    "read / calls",
    "qemu-img: wall / CPU",
    "peak",
    "read / calls",
    "context switches: qfsck / qemu-img",
];

/// Two tables with their columns under each other.
pub(crate) fn plain(rows: &[Row]) -> String {
    let (ratios, absolutes) = cells(rows);
    let [ratios, absolutes] = [ratios, absolutes].map(|table| aligned(&table, false));
    format!("qemu-img check takes so many times what qfsck check takes:\n{ratios}\n{absolutes}")
}

/// Two tables for a document.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let (ratios, absolutes) = cells(rows);
    let [ratios, absolutes] = [ratios, absolutes].map(|table| aligned(&table, true));
    format!("{ratios}\n{absolutes}")
}

type Table = Vec<Vec<String>>;

fn cells(rows: &[Row]) -> (Table, Table) {
    let head = |titles: &[&str]| titles.iter().map(ToString::to_string).collect();
    let mut ratios = vec![head(&RATIOS)];
    let mut absolutes = vec![head(&ABSOLUTES)];
    for row in rows {
        ratios.push(ratio_cells(row));
        absolutes.push(absolute_cells(row));
    }
    (ratios, absolutes)
}

fn ratio_cells(row: &Row) -> Vec<String> {
    let Row { floor, qfsck, .. } = row;
    let of_peer = |number: fn(&Cost) -> u64| {
        row.peer.map_or("–".into(), |peer| {
            let bound = if peer.was_cut == 1 { "> " } else { "" };
            format!("{bound}{}", times(number(&peer), number(qfsck)))
        })
    };
    vec![
        row.name.clone(),
        of_peer(|cost| cost.wall_us),
        of_peer(Cost::cpu_us),
        of_peer(|cost| cost.peak_bytes),
        of_peer(|cost| cost.read_bytes),
        of_peer(|cost| cost.read_calls),
        times(qfsck.cpu_us(), floor.cpu_us()),
        times(qfsck.wall_us, floor.wall_us),
    ]
}

fn absolute_cells(row: &Row) -> Vec<String> {
    let Row { floor, qfsck, .. } = row;
    let durations =
        |cost: &Cost| format!("{} / {}", duration(cost.wall_us), duration(cost.cpu_us()));
    let reads = |cost: &Cost| format!("{} / {}", bytes(cost.read_bytes), grouped(cost.read_calls));
    let of_peer = |text: &dyn Fn(&Cost) -> String| {
        row.peer.map_or("–".into(), |peer| {
            let bound = if peer.was_cut == 1 { "> " } else { "" };
            format!("{bound}{}", text(&peer))
        })
    };
    let switches = |cost: &Cost| grouped(cost.context_switches);
    vec![
        row.name.clone(),
        bytes(row.metadata_bytes),
        durations(floor),
        durations(qfsck),
        bytes(qfsck.peak_bytes),
        reads(qfsck),
        of_peer(&durations),
        of_peer(&|cost| bytes(cost.peak_bytes)),
        of_peer(&reads),
        format!("{} / {}", switches(qfsck), of_peer(&switches)),
    ]
}

/// `many` in terms of `one`.
fn times(many: u64, one: u64) -> String {
    if one == 0 {
        return "–".into();
    }
    let tenths = (u128::from(many) * 10 + u128::from(one) / 2) / u128::from(one);
    let whole = u64::try_from(tenths / 10).unwrap_or(u64::MAX);
    if tenths < 100 {
        format!("{whole}.{}×", tenths % 10)
    } else {
        format!("{}×", grouped(whole))
    }
}

/// A number with three digits of a unit.
fn three_digits(number: u64, unit: u64, name: &str) -> String {
    let thousandths = u128::from(number) * 1000 / u128::from(unit);
    let (whole, rest) = (thousandths / 1000, thousandths % 1000);
    match whole {
        100.. => format!("{whole} {name}"),
        10.. => format!("{whole}.{} {name}", rest / 100),
        _ => format!("{whole}.{:02} {name}", rest / 10),
    }
}

pub(crate) fn duration(micros: u64) -> String {
    match micros {
        1_000_000.. => three_digits(micros, 1_000_000, "s"),
        _ => three_digits(micros, 1000, "ms"),
    }
}

pub(crate) fn bytes(count: u64) -> String {
    match count {
        1_000_000_000.. => three_digits(count, 1_000_000_000, "GB"),
        1_000_000.. => three_digits(count, 1_000_000, "MB"),
        _ => three_digits(count, 1000, "kB"),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table with its columns under each other, as text or for a document.
pub(crate) fn aligned(table: &Table, is_markdown: bool) -> String {
    let between = if is_markdown { " | " } else { "  " };
    let width_of = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for (number, row) in table.iter().enumerate() {
        let padded = row.iter().enumerate().map(|(column, cell)| {
            let width = width_of(column);
            // Names to the left, numbers to the right.
            if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        let line = padded.collect::<Vec<_>>().join(between);
        let (open, close) = if is_markdown {
            ("| ", " |\n")
        } else {
            ("", "\n")
        };
        text.extend([open, &line, close]);
        if number == 0 && is_markdown {
            text += "|---|";
            text += &"---:|".repeat(row.len().saturating_sub(1));
            text.push('\n');
        }
    }
    text
}
