//! Builds an image and runs everything on it in turn.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::arguments::Arguments;
use crate::big_images::{Case, Expected, Scale};
use crate::floor;
use crate::measure::{self, Cost};

/// What a case took: the median of several runs, number by number.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) metadata_bytes: u64,
    pub(crate) floor: Cost,
    pub(crate) qfsck: Cost,
    /// `None` where there is no `qemu-img`.
    pub(crate) peer: Option<Cost>,
}

/// Files that go when the case is done.
struct Files {
    image: PathBuf,
    note: PathBuf,
    keep_image: bool,
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.keep_image {
            // Nothing depends on it.
            drop(fs::remove_file(&self.image));
        }
        drop(fs::remove_file(&self.note));
    }
}

pub(crate) fn run(case: &Case, arguments: &Arguments) -> Result<Row, String> {
    let layout = case.layout(arguments.scale);
    let name = name_at(case, arguments.scale);
    let stem = arguments.into.join(name.replace([' ', '/'], "-"));
    let files = Files {
        image: stem.with_extension("qcow2"),
        note: stem.with_extension("extents"),
        keep_image: arguments.keep,
    };
    let told = |error| format!("{}: {error}", files.image.display());
    fs::create_dir_all(&arguments.into).map_err(told)?;
    let image = File::create(&files.image).map_err(told)?;
    layout
        .write(&image)
        .and_then(|()| image.sync_all())
        .map_err(told)?;
    floor::note_extents(&layout, &files.note)?;
    let extents = layout.metadata_extents();
    let expected = layout.expected();
    drop(layout);

    let mut costs = Costs::default();
    let before = || {
        if case.cold {
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            return posix_fadvise(&image, 0, 0, advice).map_err(|error| told(error.into()));
        }
        Ok(())
    };
    // Not counted: it warms the cache.
    floor::measure(&files.image, &files.note)?;
    for _ in 0..arguments.runs {
        before()?;
        costs.floor.push(floor::measure(&files.image, &files.note)?);
        before()?;
        costs.qfsck.push(qfsck(&files.image, arguments, &expected)?);
        // A peer that was cut once would be again.
        if costs.peer.iter().all(|cost: &Cost| cost.was_cut == 0) {
            before()?;
            costs.peer.extend(peer(&files.image, arguments, &expected)?);
        }
    }
    Ok(Row {
        name,
        metadata_bytes: extents.iter().map(|(_, length)| length).sum(),
        floor: median(&costs.floor),
        qfsck: median(&costs.qfsck),
        peer: (!costs.peer.is_empty()).then(|| median(&costs.peer)),
    })
}

/// What a case is called at a scale.
pub(crate) fn name_at(case: &Case, scale: Scale) -> String {
    match scale.divisor {
        1 => case.name.to_owned(),
        divisor => format!("{} at 1/{divisor}", case.name),
    }
}

#[derive(Default)]
struct Costs {
    floor: Vec<Cost>,
    qfsck: Vec<Cost>,
    peer: Vec<Cost>,
}

pub(crate) fn qfsck(
    image: &Path,
    arguments: &Arguments,
    expected: &Expected,
) -> Result<Cost, String> {
    let image = image.to_string_lossy();
    let more = arguments.more_for_qfsck.iter().map(String::as_str);
    let words: Vec<&str> = ["check"].into_iter().chain(more).chain([&*image]).collect();
    let cost = measure::program(&arguments.qfsck, &words, None)?;
    agrees("qfsck", &cost, expected)
}

fn peer(image: &Path, arguments: &Arguments, expected: &Expected) -> Result<Option<Cost>, String> {
    let program = Path::new("qemu-img");
    if measure::program(program, &["--version"], None).is_err() {
        return Ok(None);
    }
    let words = ["check", "-f", "qcow2", &image.to_string_lossy()];
    let cost = measure::program(program, &words, Some(arguments.peer_limit))?;
    if cost.was_cut == 1 {
        return Ok(Some(cost));
    }
    agrees("qemu-img", &cost, expected).map(Some)
}

/// A fast wrong answer is none.
fn agrees(who: &str, cost: &Cost, expected: &Expected) -> Result<Cost, String> {
    let exit = match expected {
        Expected {
            corruptions: 1.., ..
        } => 2,
        Expected { leaks: 1.., .. } => 3,
        _ => 0,
    };
    if cost.exit == exit {
        Ok(*cost)
    } else {
        let found = cost.exit;
        Err(format!(
            "{who} ended with status {found}, and {exit} is right"
        ))
    }
}

pub(crate) fn median(costs: &[Cost]) -> Cost {
    let middle = |of: fn(&Cost) -> u64| {
        let mut all: Vec<u64> = costs.iter().map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    // A run that was cut says more than those before it that were not.
    let Some(last) = costs.last().filter(|last| last.was_cut == 1) else {
        return Cost {
            wall_us: middle(|cost| cost.wall_us),
            // The sum is what is shown, so it is the sum that has a median.
            user_us: middle(Cost::cpu_us),
            system_us: 0,
            peak_bytes: middle(|cost| cost.peak_bytes),
            read_bytes: middle(|cost| cost.read_bytes),
            read_calls: middle(|cost| cost.read_calls),
            context_switches: middle(|cost| cost.context_switches),
            exit: 0,
            was_cut: 0,
        };
    };
    *last
}
