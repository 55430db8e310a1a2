//! `qfsck repair`: plan, show, ask, apply; or look only; or finish what was cut short.
//!
//! Comes in: arguments. Goes out: a plan on stdout, the talk on stderr, an exit code. Never here: what is planned, how it
//! is applied.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use qfsck::report::PlanFile;
use qfsck::undo::UndoFile;
use qfsck::{
    Check, Code, Error, Image, ImageFile, Mode, Options, Overlaps, Plan, Progress, Receipt,
    RepairFile, RepairOptions, Sharing, UndoSinkFile,
};

use crate::args::{OverlapsArg, RepairArgs, RepairMode};
use crate::exit::Outcome;
use crate::isolation::{self, confined};
use crate::mend::{self, Manners, Site};
use crate::progress::{Occupied, Watch};
use crate::render::counted;
use crate::way_back::{
    blocked, cut_repairs, interrupted, next_name, shell_word, undo_command, unvouched,
};
use crate::{finish, plan_file, plan_text, print, say};

/// What a block device is told.
pub(crate) const NEEDS_UNDO_FILE: &str =
    "a block device needs --undo-file, on a disk that survives a power cut";

/// Plans a repair of one image, and applies it if asked to.
pub(crate) fn run(args: &RepairArgs) -> Outcome {
    isolation::start(None);
    let expected = match args.apply.as_deref().map(plan_file::read).transpose() {
        Ok(expected) => expected,
        Err(outcome) => return outcome,
    };
    let wishes = expected
        .as_ref()
        .map_or_else(|| wishes(args), |file| file.wishes().clone());
    let job = Job {
        args,
        wishes,
        expected,
    };
    let outcome = if args.dry_run || args.plan.is_some() {
        job.look()
    } else {
        job.repair()
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("qfsck: {error}\n  {}", error.advice()));
        Outcome::of_error(&error)
    })
}

fn wishes(args: &RepairArgs) -> RepairOptions {
    RepairOptions {
        mode: match args.mode {
            RepairMode::Leaks => Mode::Leaks,
            RepairMode::All => Mode::All,
        },
        overlaps: match args.overlaps {
            OverlapsArg::Clone => Overlaps::Clone,
            OverlapsArg::Keep => Overlaps::Keep,
        },
        accepted_losses: args.accept_loss.iter().copied().collect(),
    }
}

/// What is to be done.
struct Job<'a> {
    args: &'a RepairArgs,
    wishes: RepairOptions,
    /// The plan that was looked at, if there is one: no other is applied.
    expected: Option<PlanFile>,
}

/// A plan that may be gone on with, or how it ended.
type Planned = Result<Plan, Outcome>;

impl Job<'_> {
    fn image(&self) -> &Path {
        &self.args.image
    }

    fn manners(&self) -> Manners {
        Manners {
            progress: self.args.progress,
            quiet: false,
            budget: None,
        }
    }

    /// A dry run, or a plan for later.
    fn look(&self) -> Result<Outcome, Error> {
        let file = ImageFile::open(self.image(), Sharing::Protected)?;
        if let Some(word) = interrupted(&file) {
            say(&format!("qfsck: {word}"));
        }
        let plan = match self.planned(&file)? {
            Ok(plan) => plan,
            Err(outcome) => return Ok(outcome),
        };
        if let Some(to) = &self.args.plan {
            let document = plan_file::document(&file, self.image(), &self.wishes, &plan)?;
            let written = plan_file::write(to, &document);
            if written != Outcome::Clean {
                return Ok(written);
            }
        }
        Ok(Outcome::of_check(&plan.before))
    }

    /// Plans, compares with what was looked at, and shows. A plan that nobody can read is not applied.
    fn planned(&self, file: &ImageFile) -> Result<Planned, Error> {
        let image = confined(|| Image::open(file, self.image()))?;
        let options = options(file);
        let (plan, stopped) = mend::plan(&image, &self.wishes, options, self.manners())?;
        drop(image);
        if stopped.is_some() {
            return Ok(Err(stopped_before_writing()));
        }
        if let Some(expected) = &self.expected {
            let document = plan_file::document(file, self.image(), &self.wishes, &plan)?;
            if let Err(mismatch) = expected.compare(&document) {
                say(&format!(
                    "qfsck: {mismatch}\n  the image was not changed; look at a new plan with `qfsck repair --plan`"
                ));
                return Ok(Err(Outcome::Changed));
            }
        }
        self.say_what_was_not_needed(&plan.before);
        if !self.args.plan.as_deref().is_some_and(plan_file::is_dash) {
            let shown = finish(print(|to| plan_text::write(to, &plan)));
            if shown != Outcome::Clean {
                return Ok(Err(shown));
            }
        }
        Ok(Ok(plan))
    }

    fn say_what_was_not_needed(&self, before: &Check) {
        let is_found = |code: Code| before.findings.total_of(code).count > 0;
        for code in &self.wishes.accepted_losses {
            let is_needed = match code {
                // A repair turns the first into the second.
                Code::GuestDataShared => is_found(*code) || is_found(Code::GuestDataOverlap),
                _ => is_found(*code),
            };
            if !is_needed {
                say(&format!(
                    "qfsck: --accept-loss {code} makes no difference: the image has no such finding"
                ));
            }
        }
    }

    fn repair(&self) -> Result<Outcome, Error> {
        let given = self.args.undo_file.as_deref();
        let mut file = RepairFile::open(self.image())?;
        if file.image().is_block_device() && given.is_none() {
            say(&format!("qfsck: {NEEDS_UNDO_FILE}"));
            return Ok(Outcome::Usage);
        }
        if let Err(outcome) = self.deal_with_cut_repairs(&mut file) {
            return Ok(outcome);
        }
        let plan = match self.planned(file.image())? {
            Ok(plan) => plan,
            Err(outcome) => return Ok(outcome),
        };
        if plan.is_empty() {
            return Ok(Outcome::of_check(&plan.before));
        }
        let undo_path = match next_name(file.image(), given) {
            Ok(undo_path) => undo_path,
            Err(word) => {
                say(&format!("qfsck: {word}"));
                return Ok(Outcome::Incomplete);
            }
        };
        self.warn_of_punch(&plan);
        if !self.is_wanted() {
            say("qfsck: nothing was changed");
            return Ok(Outcome::of_check(&plan.before));
        }
        if Watch::is_interrupted() {
            return Ok(stopped_before_writing());
        }
        if let Some(word) = mend::moved_away(&file) {
            say(&format!("qfsck: {word}"));
            return Ok(Outcome::Changed);
        }
        let options = options(file.image());
        let mut site = Site {
            file: &mut file,
            image: self.image(),
            undo_path,
            options,
            manners: self.manners(),
        };
        let applied = mend::apply(&mut site, &plan);
        let Ok(receipt) = applied.receipt else {
            return Ok(Outcome::Incomplete);
        };
        say(&format!(
            "repaired: {} written, read back and checked\n\
             to go back: {} (keep the file until you are sure)",
            counted(receipt.sectors_written, "sector"),
            undo_command(self.image(), &site.undo_path)
        ));
        if self.args.punch {
            punch(site.file, &plan, receipt);
        }
        Ok(applied
            .now
            .map_or(Outcome::Incomplete, |now| Outcome::of_check(&now)))
    }

    /// Wherever the new undo file is to go: a repair that was cut short comes first.
    fn deal_with_cut_repairs(&self, file: &mut RepairFile) -> Result<(), Outcome> {
        let given = self.args.undo_file.as_deref();
        let word = if !self.args.resume {
            blocked(file.image(), given)
        } else if self.may_ask() {
            put_back(file, given).err()
        } else {
            return Err(Outcome::Incomplete);
        };
        word.map_or(Ok(()), |word| {
            say(&format!("qfsck: {word}"));
            Err(Outcome::Incomplete)
        })
    }

    fn warn_of_punch(&self, plan: &Plan) {
        if self.args.punch && !plan.freed.is_empty() {
            say(&format!(
                "--punch: {} in leaked clusters are given back to the file system; `qfsck undo` cannot bring them back",
                counted(plan.freed_bytes(), "byte")
            ));
        }
    }

    /// Whether there is somebody to ask, or nobody needs to be asked.
    fn may_ask(&self) -> bool {
        let may_ask = self.args.yes || (io::stdin().is_terminal() && io::stderr().is_terminal());
        if !may_ask {
            say("qfsck: add --yes to apply this without a question, or --dry-run to only look");
        }
        may_ask
    }

    /// Asks on a terminal; elsewhere the answer is no.
    fn is_wanted(&self) -> bool {
        if self.args.yes || !self.may_ask() {
            return self.args.yes;
        }
        let _signals_end_the_program = Occupied::asking();
        // A terminal that cannot be written to cannot be asked.
        let _asked = write!(io::stderr(), "Apply this plan? [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    }
}

/// The repair is done: where no holes can be made, nothing is wrong with the image.
fn punch(file: &mut RepairFile, plan: &Plan, receipt: Receipt) {
    if plan.freed.is_empty() {
        say("--punch: nothing was freed, so nothing is given back");
        return;
    }
    let _signals_wait = Occupied::writing();
    match qfsck::punch_freed(file, plan, receipt) {
        Ok(bytes) => say(&format!("{} given back", counted(bytes, "byte"))),
        Err(error) => say(&format!(
            "qfsck: --punch: not all of it could be given back: {error}; the repair is done all the same"
        )),
    }
}

fn stopped_before_writing() -> Outcome {
    say("qfsck: stopped by a signal before anything was written; nothing was changed");
    Outcome::Incomplete
}

fn options(file: &ImageFile) -> Options {
    Options {
        is_block_device: file.is_block_device(),
        ..Options::default()
    }
}

/// Puts back what a repair left half done, and removes its undo file: after that, the image is as it was before.
///
/// A cut before the file is gone leaves a file that says "cut short" beside an image that is as it was, or on the way to
/// it: the next `--resume` or `undo` goes on. A cut after it leaves the image as it was, and nothing else.
fn put_back(file: &mut RepairFile, given: Option<&Path>) -> Result<(), String> {
    if let Some(word) = unvouched(file.image(), given) {
        return Err(word);
    }
    let cut = cut_repairs(file.image(), given);
    let undo_path = match cut.as_slice() {
        [] => {
            say("no repair of this image was cut short; this is an ordinary repair");
            return Ok(());
        }
        [undo_path] => undo_path,
        [first, second, ..] => {
            return Err(format!(
                "{} and {} both are of repairs that were cut short; take back the later one with `qfsck undo` first",
                shell_word(first),
                shell_word(second)
            ));
        }
    };
    let word = shell_word(undo_path);
    let cannot = |error: &dyn std::fmt::Display| format!("{word}: {error}");
    let (sink, bytes) = UndoSinkFile::open(undo_path).map_err(|error| cannot(&error))?;
    let undo = UndoFile::decode(&bytes).map_err(|error| cannot(&error))?;
    let _signals_wait = Occupied::writing();
    let options = qfsck::UndoOptions::default();
    confined(|| qfsck::undo_repair(file, &undo, options, &Progress::default(), || Ok(sink)))
        .map_err(|error| cannot(&error))?;
    let removed = UndoSinkFile::open(undo_path).and_then(|(sink, _)| sink.remove());
    removed.map_err(|error| {
        format!("the image is as it was, but {word} cannot be removed: {error}")
    })?;
    let sectors = undo.sector_count();
    say(&format!(
        "the repair that was cut short is taken back ({} put back), and made anew",
        counted(sectors, "sector")
    ));
    Ok(())
}
