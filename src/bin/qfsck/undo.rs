//! `qfsck undo`: the way back.

use std::io;
use std::path::Path;

use qfsck::undo::{UndoFile, UndoState};
use qfsck::{
    Error, ImageFile, Progress, RepairFile, Sharing, Storage, StorageMut, UndoOptions,
    UndoSinkFile, escaped,
};

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
    let options = UndoOptions {
        accept_unverified: args.accept_unverified,
    };
    let refused = |error: Error| format!("{error}\n  {}", error.advice());
    if args.dry_run {
        let image = ImageFile::open(&image_path, Sharing::Protected).map_err(refused)?;
        refuse(undo_path, &file, &image)?;
        confined(|| rehearse(&image, &file, options))?;
        return Ok(format!(
            "{} of {} would be put back; the repair {}",
            counted(sectors, "sector"),
            shell_word(&image_path),
            describe(file.state)
        ));
    }
    let mut storage = RepairFile::open(&image_path).map_err(refused)?;
    refuse(undo_path, &file, storage.image())?;
    let _signals_wait = Occupied::writing();
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

/// What the undo file and those beside it say against it.
fn refuse(undo_path: &Path, file: &UndoFile<'_>, image: &ImageFile) -> Result<(), String> {
    if let Some(word) = cut_off(undo_path, file, image) {
        return Err(word);
    }
    // A later repair that was cut short is taken back before an earlier one.
    let cut = cut_repairs(image, None);
    let is_cut = cut.iter().any(|cut| is_same(cut, undo_path));
    match cut.first() {
        Some(other) if !is_cut => Err(both_ways(image.path(), other)),
        _ => Ok(()),
    }
}

/// Goes as far as an undo goes before it writes: whatever it would refuse, it has refused when it asks for its undo file.
fn rehearse(image: &ImageFile, file: &UndoFile<'_>, options: UndoOptions) -> Result<(), String> {
    let mut would_go_on = false;
    let sink = || -> io::Result<UndoSinkFile> {
        would_go_on = true;
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    };
    let progress = Progress::default();
    match qfsck::undo_repair(&mut LookedAt(image), file, options, &progress, sink) {
        Err(error) if !would_go_on => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// An image that cannot be written to.
struct LookedAt<'a>(&'a ImageFile);

impl Storage for LookedAt<'_> {
    fn length_bytes(&self) -> io::Result<u64> {
        self.0.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.0.next_data(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.allocated_bytes()
    }
}

impl StorageMut for LookedAt<'_> {
    fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn truncate(&mut self, _length_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn reserve(&mut self, _length_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

fn describe(state: UndoState) -> &'static str {
    match state {
        UndoState::Incomplete => "never began",
        UndoState::Committed { .. } => "was cut short",
        UndoState::Finished { .. } => "was finished",
    }
}
