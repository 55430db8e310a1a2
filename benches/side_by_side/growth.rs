//! How the cost of a check grows: the same image, each time twice as large, with twice as many snapshots, or twice the damage.
//!
//! Comes in: nothing but where to build. Goes out: a table of CPU time and peak memory, and the exponent of each: 1 says that
//! doubling doubles the cost, 0 that it costs nothing. Never here: `qemu-img`.

use std::fs::{self, File};

use crate::arguments::Arguments;
use crate::big_images::{Case, Scale, Shape};
use crate::case_run::qfsck;
use crate::measure::Cost;
use crate::table;

/// Each step doubles what the one before had.
const STEPS: u32 = 4;
/// Of so many runs, the cheapest says what the work costs; the others say what else the machine did.
const RUNS: usize = 5;

/// What is doubled, and what the image of a step looks like.
struct Series {
    what: &'static str,
    case: &'static str,
    shape: fn(Shape, u32) -> Shape,
}

/// Half as large for each step before the last.
fn smaller(shape: Shape, step: u32) -> Shape {
    Shape {
        virtual_bytes: shape.virtual_bytes >> (STEPS - 1 - step),
        ..shape
    }
}

fn fewer_snapshots(shape: Shape, step: u32) -> Shape {
    Shape {
        snapshots: 400 >> (STEPS - 1 - step),
        ..shape
    }
}

const SERIES: [Series; 8] = [
    Series {
        what: "clusters, in order",
        case: "1tib-64k",
        shape: smaller,
    },
    Series {
        what: "clusters, random host order",
        case: "1tib-64k-random",
        shape: smaller,
    },
    Series {
        what: "clusters of 4 KiB",
        case: "256gib-4k",
        shape: smaller,
    },
    Series {
        what: "compressed clusters",
        case: "compressed",
        shape: smaller,
    },
    Series {
        what: "snapshots",
        case: "snapshots-500",
        shape: fewer_snapshots,
    },
    Series {
        what: "clusters and leaks",
        case: "leaks",
        shape: smaller,
    },
    Series {
        what: "clusters and wrong flags",
        case: "copied",
        shape: smaller,
    },
    Series {
        what: "clusters that lost their count",
        case: "refcount-table-lost",
        shape: smaller,
    },
];

/// Measures every series and returns the table, as text or for a document.
pub(crate) fn run(arguments: &Arguments) -> Result<String, String> {
    let mut rows = vec![
        [
            "what doubles",
            "metadata",
            "CPU",
            "exponent",
            "peak",
            "exponent",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for series in &SERIES {
        eprintln!("{}", series.what);
        let case = Case::named(series.case).ok_or("a series is of a case there is")?;
        let mut costs = Vec::new();
        for step in 0..STEPS {
            let case = Case {
                shape: (series.shape)(case.shape, step),
                ..*case
            };
            costs.push(cheapest(&case, arguments)?);
        }
        rows.push(cells(series.what, &costs));
    }
    Ok(table::aligned(&rows, arguments.markdown))
}

/// The least that a check of an image took, and how many bytes of metadata it has.
fn cheapest(case: &Case, arguments: &Arguments) -> Result<(u64, Cost), String> {
    let path = arguments.into.join("growth.qcow2");
    let told = |error| format!("{}: {error}", path.display());
    let layout = case.layout(Scale::FULL);
    fs::create_dir_all(&arguments.into).map_err(told)?;
    let image = File::create(&path).map_err(told)?;
    layout.write(&image).map_err(told)?;
    let extents = layout.metadata_extents();
    let metadata_bytes = extents.iter().map(|(_, length)| length).sum();
    let mut best: Option<Cost> = None;
    for _ in 0..RUNS {
        let cost = qfsck(&path, arguments, &layout.expected())?;
        let least = |of: fn(&Cost) -> u64| best.as_ref().map_or(of(&cost), of).min(of(&cost));
        best = Some(Cost {
            user_us: least(Cost::cpu_us),
            system_us: 0,
            peak_bytes: least(|cost| cost.peak_bytes),
            ..cost
        });
    }
    drop(fs::remove_file(&path));
    Ok((metadata_bytes, best.unwrap_or_default()))
}

fn cells(what: &str, costs: &[(u64, Cost)]) -> Vec<String> {
    let all = |text: &dyn Fn(&(u64, Cost)) -> String| {
        let texts: Vec<String> = costs.iter().map(text).collect();
        texts.join(", ")
    };
    let exponent = |of: &dyn Fn(&(u64, Cost)) -> u64| {
        let ends = costs.first().zip(costs.last());
        ends.map_or("–".into(), |(first, last)| {
            exponent(of(first), of(last), costs.len())
        })
    };
    vec![
        what.to_owned(),
        all(&|(metadata_bytes, _)| table::bytes(*metadata_bytes)),
        all(&|(_, cost)| table::duration(cost.cpu_us())),
        exponent(&|(_, cost)| cost.cpu_us()),
        all(&|(_, cost)| table::bytes(cost.peak_bytes)),
        exponent(&|(_, cost)| cost.peak_bytes),
    ]
}

/// By which power of two the cost grows with each doubling.
fn exponent(first: u64, last: u64, steps: usize) -> String {
    if first == 0 || steps < 2 {
        return "–".into();
    }
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let power = (last as f64 / first as f64).log2() / (steps - 1) as f64;
    format!("{power:.2}")
}
