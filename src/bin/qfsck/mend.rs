//! Planning and applying, watched: what `repair` and `check -r` have in common.
//!
//! Comes in: an image, wishes, and how to show progress. Goes out: a plan, or what applying one came to. Never here: a
//! question, a result on stdout.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qfsck::undo::UndoFile;
use qfsck::{
    Check, Error, Image, Options, Plan, Progress, Receipt, RepairError, RepairFile, RepairOptions,
    Storage, UndoSinkFile,
};

use crate::args::values::ProgressMode;
use crate::isolation::{confined, confined_but_for};
use crate::plan_file::identity;
use crate::progress::{Occupied, Stopped, Watch};
use crate::say;
use crate::way_back::{resume_command, shell_word, undo_command};

/// How a run shows what it does, and how long it may take.
#[derive(Clone, Copy)]
pub(crate) struct Manners {
    pub(crate) progress: ProgressMode,
    pub(crate) quiet: bool,
    pub(crate) budget: Option<Duration>,
}

/// Plans a repair. A signal or the budget stops it; what was planned until then is not to be applied.
pub(crate) fn plan<S: Storage + Send>(
    image: &Image<S>,
    wishes: &RepairOptions,
    options: Options,
    manners: Manners,
) -> Result<(Plan, Option<Stopped>), Error> {
    let progress = Arc::new(Progress::default());
    let watch = Watch::start(
        Arc::clone(&progress),
        manners.progress,
        manners.quiet,
        manners.budget,
    );
    let planned = confined(|| qfsck::plan(image, wishes, options, &progress));
    let stopped = watch.finish();
    let stopped = stopped.or(Watch::is_interrupted().then_some(Stopped::Interrupted));
    Ok((planned?, stopped))
}

/// Why an image is not written to whose name leads elsewhere: its undo file would stand beside another image.
pub(crate) fn moved_away(file: &RepairFile) -> Option<String> {
    match file.image().is_at_its_path() {
        Ok(true) => None,
        Ok(false) => Some(
            "another file has the image's name now, or none; the image was not changed".to_owned(),
        ),
        Err(error) => Some(format!(
            "whether the image still has its name is not known: {error}; the image was not changed"
        )),
    }
}

/// An image that is to be changed, and where its undo file goes.
pub(crate) struct Site<'a> {
    pub(crate) file: &'a mut RepairFile,
    pub(crate) image: &'a Path,
    pub(crate) undo_path: PathBuf,
    pub(crate) options: Options,
    pub(crate) manners: Manners,
}

/// What applying a plan came to.
pub(crate) struct Applied {
    pub(crate) receipt: Result<Receipt, RepairError>,
    /// The image as it is now, read again; `None` where it cannot be opened any more.
    pub(crate) now: Option<Check>,
}

/// Applies a plan and checks the image again. Signals wait until it is done.
pub(crate) fn apply(site: &mut Site<'_>, plan: &Plan) -> Applied {
    let _signals_wait = Occupied::writing();
    let progress = Arc::new(Progress::default());
    let Manners {
        progress: mode,
        quiet,
        ..
    } = site.manners;
    let watch = Watch::start_unstoppable(Arc::clone(&progress), mode, quiet);
    let identity = identity(site.file.image(), site.image);
    let is_created = Cell::new(false);
    let make = || {
        let sink = UndoSinkFile::create(&site.undo_path)?;
        is_created.set(true);
        Ok(sink)
    };
    let (file, options) = (&mut *site.file, site.options);
    let receipt = confined_but_for(make, |undo_file| {
        qfsck::apply(&mut *file, &identity, plan, options, &progress, undo_file)
    })
    .unwrap_or_else(|| {
        let error = io::Error::other("the work came to no end");
        Err(RepairError::UndoFile(error))
    });
    let (file, path) = (&*site.file, site.image);
    let now = confined(|| {
        let image = Image::open(file, path).ok();
        image.map(|image| qfsck::check(&image, options, &progress))
    });
    watch.finish();
    if let Err(error) = &receipt {
        explain(site, plan, error, is_created.get());
    }
    if Watch::is_interrupted() {
        say("qfsck: a signal came while the image was written to; the repair went on to its end");
    }
    Applied { receipt, now }
}

/// Says what went wrong, and how to go on.
fn explain(site: &mut Site<'_>, plan: &Plan, error: &RepairError, is_created: bool) {
    say(&format!("qfsck: {error}"));
    if !is_created {
        return;
    }
    let path = shell_word(&site.undo_path);
    let is_as_it_was = error.is_unchanged() || (error.is_put_back() && is_whole_again(site, plan));
    if is_as_it_was {
        // The image is as it was: what there is of the file would only stand in the way of the next repair.
        let removed = UndoSinkFile::open(&site.undo_path).and_then(|(sink, _)| sink.remove());
        if let Err(error) = removed {
            say(&format!(
                "  {path} is of no use and can be deleted ({error})"
            ));
        }
        return;
    }
    say(&format!(
        "  the undo file is {path}\n  `{}` puts the image back as it was, `{}` does that and repairs it anew",
        undo_command(site.image, &site.undo_path),
        resume_command(site.image, &site.undo_path)
    ));
}

/// Puts back the one thing that only the undo file has. What was overwritten in clusters that nothing uses is nobody's
/// data, but an image that was put back is as it was to the byte.
fn is_whole_again(site: &mut Site<'_>, plan: &Plan) -> bool {
    if !plan.overwrites_unused() {
        return true;
    }
    let Ok((sink, bytes)) = UndoSinkFile::open(&site.undo_path) else {
        return false;
    };
    UndoFile::decode(&bytes).is_ok_and(|file| {
        let storage = &mut *site.file;
        let options = qfsck::UndoOptions::default();
        let undo =
            || qfsck::undo_repair(storage, &file, options, &Progress::default(), || Ok(sink));
        confined(undo).is_ok()
    })
}
