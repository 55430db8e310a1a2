//! `qfsck repair` beside `qemu-img check -r`, on a fresh image each time.
//!
//! Comes in: a damaged case. Goes out: what each took, with its syncs and, for qfsck, its undo file. Never here: a number of a
//! repair that left errors; both images are checked by qfsck afterwards.

use std::fs::{self, File};
use std::path::Path;

use crate::arguments::Arguments;
use crate::big_images::{Case, Damage, Layout};
use crate::case_run::{Row, median, name_at};
use crate::measure::{self, Cost};

pub(crate) fn run(case: &Case, arguments: &Arguments) -> Result<Row, String> {
    let layout = case.layout(arguments.scale);
    let mode = match layout.shape.damage {
        Damage::Leaks => "leaks",
        Damage::CopiedMissing | Damage::RefcountTableLost => "all",
        Damage::None => return Err(format!("{} has nothing to repair", case.name)),
    };
    let image = arguments.into.join("repair.qcow2");
    let words = image.to_string_lossy().into_owned();
    let ours = ["repair", "--yes", "--mode", mode, &words];
    let theirs = ["check", "-f", "qcow2", "-r", mode, &words];
    let extents = layout.metadata_extents();
    let (mut qfsck, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        qfsck.push(repaired(
            &layout,
            &image,
            &arguments.qfsck,
            &ours,
            arguments,
        )?);
        peer.push(repaired(
            &layout,
            &image,
            Path::new("qemu-img"),
            &theirs,
            arguments,
        )?);
    }
    Ok(Row {
        name: format!("{}, repaired", name_at(case, arguments.scale)),
        metadata_bytes: extents.iter().map(|(_, length)| length).sum(),
        floor: Cost::default(),
        qfsck: median(&qfsck),
        peer: Some(median(&peer)),
    })
}

/// Builds the image anew, has it repaired, and looks whether errors are left.
fn repaired(
    layout: &Layout,
    image: &Path,
    program: &Path,
    words: &[&str],
    arguments: &Arguments,
) -> Result<Cost, String> {
    let told = |error| format!("{}: {error}", image.display());
    let undo = image.with_extension("qcow2.qfsck-undo");
    let remove = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(told(error)),
        _ => Ok(()),
    };
    fs::create_dir_all(&arguments.into).map_err(told)?;
    remove(&undo)?;
    remove(image)?;
    let file = File::create(image).map_err(told)?;
    layout
        .write(&file)
        .and_then(|()| file.sync_all())
        .map_err(told)?;
    drop(file);
    let cost = measure::program(program, words, Some(arguments.peer_limit))?;
    if cost.was_cut == 0 {
        let check = ["check", "--quiet", &image.to_string_lossy()];
        let left = measure::program(&arguments.qfsck, &check, None)?.exit;
        // Leaks may be left, where a lost table cannot be told from one.
        if left != 0 && left != 3 {
            return Err(format!("{} left errors", program.display()));
        }
    }
    remove(&undo)?;
    remove(image)?;
    Ok(cost)
}
