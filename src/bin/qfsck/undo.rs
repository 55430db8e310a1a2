//! `qfsck undo`: the way back.

use qfsck::undo::{UndoFile, UndoState};
use qfsck::{Progress, RepairFile, UndoOptions, UndoSinkFile, escaped};

use crate::args::UndoArgs;
use crate::exit::Outcome;
use crate::isolation::{self, confined};
use crate::progress::Occupied;
use crate::render::counted;
use crate::say;
use crate::way_back::{both_ways, cut_off, cut_repairs, image_of, is_same, shell_word};

/// Puts back what one repair changed.
pub(crate) fn run(args: &UndoArgs) -> Outcome {
    match undo(args) {
        Ok(word) => {
            say(&word);
            Outcome::Clean
        }
        Err(word) => {
            say(&format!("qfsck: {word}"));
            Outcome::Incomplete
        }
    }
}

fn undo(args: &UndoArgs) -> Result<String, String> {
    isolation::start(None);
    let undo_path = &args.undo_file;
    let cannot = |error: &dyn std::fmt::Display| format!("{}: {error}", shell_word(undo_path));
    let (sink, bytes) = UndoSinkFile::open(undo_path).map_err(|error| cannot(&error))?;
    let file = UndoFile::decode(&bytes).map_err(|error| cannot(&error))?;
    let image_path = args
        .image
        .clone()
        .or_else(|| image_of(undo_path))
        .ok_or_else(|| {
            format!(
                "name the image with --image; the undo file was made for \"{}\"",
                escaped(&file.header.path)
            )
        })?;
    let sectors = file.sector_count();
    if args.dry_run {
        return Ok(format!(
            "{} of {} would be put back; the repair {}",
            counted(sectors, "sector"),
            shell_word(&image_path),
            describe(file.state)
        ));
    }
    let mut storage =
        RepairFile::open(&image_path).map_err(|error| format!("{error}\n  {}", error.advice()))?;
    if let Some(word) = cut_off(undo_path, &file, storage.image()) {
        return Err(word);
    }
    // A later repair that was cut short is taken back before an earlier one.
    let cut = cut_repairs(storage.image(), None);
    let is_cut = cut.iter().any(|cut| is_same(cut, undo_path));
    if let Some(other) = cut.first().filter(|_| !is_cut) {
        return Err(both_ways(&image_path, other));
    }
    let _signals_wait = Occupied::writing();
    let options = UndoOptions {
        accept_unverified: args.accept_unverified,
    };
    let progress = Progress::default();
    confined(|| qfsck::undo_repair(&mut storage, &file, options, &progress, || Ok(sink)))
        .map_err(|error| error.to_string())?;
    drop(storage);
    // The image is as it was: what is left of the undo file would only stand in the way of the next repair.
    let removed = UndoSinkFile::open(undo_path).and_then(|(sink, _)| sink.remove());
    let fate = match removed {
        Ok(()) => "the undo file is removed".to_owned(),
        Err(error) => format!("the undo file can be deleted ({error})"),
    };
    Ok(format!(
        "{} is as it was before the repair: {} put back; {fate}",
        shell_word(&image_path),
        counted(sectors, "sector")
    ))
}

fn describe(state: UndoState) -> &'static str {
    match state {
        UndoState::Incomplete => "never began",
        UndoState::Committed { .. } => "was cut short",
        UndoState::Finished { .. } => "was finished",
    }
}
