//! `qfsck check -r`: repair one image without a question, then report what a check says of it.
//!
//! Comes in: arguments written for `qemu-img check -r`. Goes out: its words, its keys and its exit codes, and an undo
//! file. Never here: a repair that `qfsck repair` would not make.

use std::io;
use std::path::{Path, PathBuf};

use qfsck::report::{
    CheckDocument, Conditions, ErrorDocument, RepairReport, write_line, write_pretty,
};
use qfsck::{Check, Error, Image, Mode, Options, RepairFile, RepairOptions, Severity};

use crate::args::{CheckArgs, Output, Repair};
use crate::exit::Outcome;
use crate::isolation::{self, confined};
use crate::mend::{self, Manners, Site};
use crate::progress::Stopped;
use crate::repair::NEEDS_UNDO_FILE;
use crate::session::filename;
use crate::way_back::{blocked, interrupted, next_name, shell_word, undo_command};
use crate::{check, finish, print, render, say};

/// Repairs and reports.
pub(crate) fn run(args: &CheckArgs, what: Repair) -> Outcome {
    if let Some(outcome) = check::refuse(args) {
        return outcome;
    }
    // More than one is refused, and the command line asks for one.
    let Some(path) = args.images.first() else {
        return Outcome::Usage;
    };
    fix(args, path, what).unwrap_or_else(|error| {
        say(&format!("qfsck: {error}\n  {}", error.advice()));
        let document = ErrorDocument::new(&filename(path), &error);
        let written = check::write_refusal(args.output, args.quiet, &document);
        Outcome::of_error(&error).max(finish(written))
    })
}

fn fix(args: &CheckArgs, path: &Path, what: Repair) -> Result<Outcome, Error> {
    isolation::start(args.jobs);
    let mut options = check::options(args)?;
    let mut file = RepairFile::open(path)?;
    options.is_block_device = file.image().is_block_device();
    if options.is_block_device && args.undo_file.is_none() {
        return Ok(check::refuse_in(
            args.output,
            args.quiet,
            path,
            (NEEDS_UNDO_FILE, "give --undo-file a path on another disk"),
            Outcome::Usage,
        ));
    }
    let manners = Manners {
        progress: args.progress,
        quiet: args.quiet,
        budget: args.budget,
    };
    let mode = match what {
        Repair::Leaks => Mode::Leaks,
        Repair::All => Mode::All,
    };
    let given = args.undo_file.as_deref();
    let done = mend_one((path, given), &mut file, options, mode, manners)?;
    let image = confined(|| Image::open(&file, path))?;
    let written = done.write(args, path, &image);
    Ok(done.outcome().max(finish(written)))
}

/// What became of one image.
struct Done {
    /// The image as it was.
    before: Check,
    /// The image as it is, where something was written.
    after: Option<Check>,
    stopped: Option<Stopped>,
    report: RepairReport,
    undo_path: Option<PathBuf>,
}

/// Plans and applies; the paths are those of the image and of the undo file, if one is given.
fn mend_one(
    (path, given): (&Path, Option<&Path>),
    file: &mut RepairFile,
    options: Options,
    mode: Mode,
    manners: Manners,
) -> Result<Done, Error> {
    let image = confined(|| Image::open(&*file, path))?;
    let (plan, stopped) = mend::plan(&image, &RepairOptions::new(mode), options, manners)?;
    drop(image);
    let mut done = Done {
        before: plan.before.clone(),
        after: None,
        stopped,
        report: RepairReport::new(mode, &plan.withheld),
        undo_path: None,
    };
    // A clean image has nothing to be kept from: an undo file beside it is told as a check tells it.
    if plan.is_empty() && done.outcome() == Outcome::Clean {
        return Ok(done);
    }
    if let Some(word) = blocked(file.image(), given) {
        done.report = RepairReport::new(mode, &[]);
        return Ok(done.refuse(&word));
    }
    if plan.is_empty() || stopped.is_some() {
        return Ok(done);
    }
    if let Some(word) = mend::moved_away(file) {
        return Ok(done.refuse(&word));
    }
    let undo_path = match next_name(file.image(), given) {
        Ok(undo_path) => undo_path,
        Err(word) => return Ok(done.refuse(&word)),
    };
    let mut site = Site {
        file,
        image: path,
        undo_path,
        options,
        manners,
    };
    let applied = mend::apply(&mut site, &plan);
    done.after = applied.now;
    match applied.receipt {
        Ok(receipt) => {
            done.report.written(receipt, &filename(&site.undo_path));
            done.undo_path = Some(site.undo_path);
        }
        Err(error) => done.report.failed(error.to_string()),
    }
    Ok(done)
}

impl Done {
    fn refuse(mut self, word: &str) -> Self {
        say(&format!("qfsck: {word}"));
        self.report.failed(word.to_owned());
        self
    }

    fn now(&self) -> &Check {
        self.after.as_ref().unwrap_or(&self.before)
    }

    fn outcome(&self) -> Outcome {
        match self.stopped {
            Some(Stopped::Interrupted) => Outcome::Incomplete,
            Some(Stopped::BudgetSpent) => Outcome::Limit,
            None if self.report.has_failed() => Outcome::Incomplete,
            None => Outcome::of_check(self.now()),
        }
    }

    /// How many findings of a severity the repair put right.
    fn fixed(&self, severity: Severity) -> u64 {
        let count = |check: &Check| check.findings.count_of(severity);
        count(&self.before).saturating_sub(count(self.now()))
    }

    fn write(&self, args: &CheckArgs, path: &Path, image: &Image<&RepairFile>) -> io::Result<()> {
        if self.stopped.is_some() {
            say("qfsck: stopped before the plan was made; nothing was changed");
        }
        if args.quiet {
            return Ok(());
        }
        let mut conditions = Conditions::default();
        let interrupted = interrupted(image.storage().image());
        conditions.unreliable.extend(interrupted);
        let (leaks, corruptions) = (self.fixed(Severity::Leak), self.fixed(Severity::Corruption));
        let document = || {
            CheckDocument::new(&filename(path), image, self.now(), &conditions).with_repair(
                &self.report,
                leaks,
                corruptions,
            )
        };
        match args.output {
            Output::Json => print(|to| write_pretty(&document(), to)),
            Output::Jsonl => print(|to| write_line(&document(), to)),
            Output::Human => {
                print(|to| {
                    if leaks + corruptions > 0 {
                        writeln!(
                            to,
                            "The following inconsistencies were found and repaired:\n\n    \
                             {leaks} leaked clusters\n    {corruptions} corruptions\n\n\
                             Double checking the fixed image now..."
                        )?;
                    }
                    render::check(to, path, image, self.now(), &conditions)
                })?;
                self.talk(path);
                Ok(())
            }
        }
    }

    /// What is no result, but good to know.
    fn talk(&self, path: &Path) {
        for (code, count, reason) in self.report.withheld() {
            say(&format!("left as it is: {code} ({count}×): {reason}"));
        }
        if let Some(undo_path) = &self.undo_path {
            say(&format!(
                "to go back: {} (keep {} until you are sure)",
                undo_command(path, undo_path),
                shell_word(undo_path)
            ));
        }
    }
}
