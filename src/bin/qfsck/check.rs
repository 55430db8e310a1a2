//! `qfsck check`: image after image.

use std::io;
use std::path::Path;
use std::sync::Arc;

use qfsck::report::{CheckDocument, Conditions, ErrorDocument, write_line, write_pretty};
use qfsck::{
    Check, Error, Image, ImageFile, Options, PolicyLimits, Progress, Severity, deep_read,
    file_length_bytes, judge_policy,
};

use crate::args::{CheckArgs, FailOn, Output};
use crate::exit::Outcome;
use crate::isolation::{Isolation, confined};
use crate::progress::{Stopped, Watch};
use crate::session::{Session, filename, sharing};
use crate::{finish, is_unread, memory, print, render, say};

/// Checks every image; the gravest outcome is the answer.
pub(crate) fn run(args: &CheckArgs) -> Outcome {
    if let Some(outcome) = refuse(args) {
        return outcome;
    }
    let mut worst = Outcome::Clean;
    for (index, path) in args.images.iter().enumerate() {
        let progress = Arc::new(Progress::default());
        let watch = Watch::start(
            Arc::clone(&progress),
            args.progress,
            args.quiet,
            args.budget,
        );
        let answer = check_one(path, args, &progress, watch);
        worst = worst.max(answer.outcome);
        let written = if args.quiet {
            Ok(())
        } else {
            answer.write(args, path, index > 0)
        };
        if let Err(error) = written {
            say(&format!("qfsck: cannot write the result: {error}"));
            return Outcome::Incomplete.max(worst);
        }
        let unchecked = args.images.len() - index - 1;
        let why = if Watch::is_interrupted() {
            "stopped by a signal"
        } else if is_unread() {
            "nobody reads the result any more"
        } else {
            continue;
        };
        if unchecked > 0 {
            say(&format!(
                "qfsck: {why}; not checked: {unchecked} more of {} images",
                args.images.len()
            ));
            return Outcome::Incomplete.max(worst);
        }
    }
    worst
}

/// What cannot be done whatever the images are.
pub(crate) fn refuse(args: &CheckArgs) -> Option<Outcome> {
    if args.repair.is_some() && args.force_share {
        say(
            "qfsck: -U reads while another program writes, -r must keep every other program out: give one of them",
        );
        return Some(Outcome::Usage);
    }
    if args.repair.is_some() && args.images.len() > 1 {
        say(
            "qfsck: -r repairs one image: each has an undo file and an answer of its own; repair them one by one",
        );
        return Some(Outcome::Usage);
    }
    if args.fail_on.contains(&FailOn::Policy) && !args.untrusted {
        say(
            "qfsck: --fail-on policy never fails without --untrusted, which looks for it: give both",
        );
        return Some(Outcome::Usage);
    }
    if args.images.len() > 1 && args.output == Output::Json {
        say("qfsck: --output json is one document, for one image; use --output jsonl for several");
        return Some(Outcome::Usage);
    }
    if args.images.len() > 1 && args.data_file.is_some() {
        say("qfsck: --data-file belongs to one image; check the images one by one");
        return Some(Outcome::Usage);
    }
    if let Some(format) = args.format.as_deref().filter(|&format| format != "qcow2") {
        return Some(refuse_format(args, format));
    }
    None
}

/// What another format comes to: as many documents as images, and one line of talk.
fn refuse_format(args: &CheckArgs, format: &str) -> Outcome {
    let message = format!("format {format:?} has no check here");
    let advice = "qfsck checks qcow2 images";
    say(&format!("qfsck: {message}; {advice}"));
    for path in &args.images {
        let document = ErrorDocument::of(&filename(path), message.clone(), advice);
        let written = write_refusal(args.output, args.quiet, &document);
        if let outcome @ Outcome::Incomplete = finish(written) {
            return outcome;
        }
    }
    Outcome::NotQcow2
}

/// Says why there is no answer, in a document as well if one was asked for.
pub(crate) fn refuse_in(
    output: Output,
    quiet: bool,
    path: &Path,
    (message, advice): (&str, &'static str),
    outcome: Outcome,
) -> Outcome {
    say(&format!("qfsck: {message}"));
    let document = ErrorDocument::of(&filename(path), message.to_owned(), advice);
    finish(write_refusal(output, quiet, &document)).max(outcome)
}

/// Writes why there is no answer, where a document was asked for.
pub(crate) fn write_refusal(
    output: Output,
    quiet: bool,
    document: &ErrorDocument,
) -> io::Result<()> {
    match output {
        _ if quiet => Ok(()),
        Output::Human => Ok(()),
        Output::Json => print(|to| write_pretty(document, to)),
        Output::Jsonl => print(|to| write_line(document, to)),
    }
}

/// A check, and what became of it.
struct Answer {
    outcome: Outcome,
    result: Result<Box<Finished>, Error>,
}

struct Finished {
    image: Image<ImageFile>,
    check: Check,
    conditions: Conditions,
}

fn check_one(path: &Path, args: &CheckArgs, progress: &Progress, watch: Watch) -> Answer {
    let session = options(args).and_then(|options| {
        let isolation = Isolation {
            jobs: args.jobs,
            opens_more: args.images.len() > 1,
        };
        let session = Session::open(path, sharing(args.force_share), isolation);
        session.map(|session| (session, options))
    });
    let (session, mut options) = match session {
        Ok(session) => session,
        Err(error) => {
            watch.finish();
            say(&format!("qfsck: {error}\n  {}", error.advice()));
            return Answer {
                outcome: Outcome::of_error(&error),
                result: Err(error),
            };
        }
    };
    options.is_block_device = session.image.storage().is_block_device();
    let mut check = confined(|| {
        let mut check = qfsck::check(&session.image, options, progress);
        if args.deep {
            deep_read(&session.image, &mut check, progress);
        }
        if args.untrusted {
            judge_policy(&session.image, limits(args), &mut check);
        }
        check
    });
    let mut conditions = session.conditions_of(&mut check);
    conditions.unreliable.extend(session.interrupted.clone());
    let stopped = watch.finish();
    let outcome = match stopped {
        Some(Stopped::Interrupted) if check.coverage.is_stopped() => Outcome::Incomplete,
        Some(Stopped::BudgetSpent) if check.coverage.is_stopped() => Outcome::Limit,
        _ if conditions.changed => Outcome::Changed,
        _ if fails(&check, &args.fail_on) => Outcome::Corrupt,
        _ => Outcome::of_check(&check),
    };
    Answer {
        outcome,
        result: Ok(Box::new(Finished {
            image: session.image,
            check,
            conditions,
        })),
    }
}

/// The gate's limits, as far as they were given.
fn limits(args: &CheckArgs) -> PolicyLimits {
    let usual = PolicyLimits::default();
    PolicyLimits {
        virtual_bytes: args.max_virtual_size.unwrap_or(usual.virtual_bytes),
        expansion: args.max_expansion.unwrap_or(usual.expansion),
    }
}

/// Whether something was found that `--fail-on` names.
fn fails(check: &Check, wanted: &[FailOn]) -> bool {
    let severities = wanted.iter().map(|what| match what {
        FailOn::Notice => Severity::Notice,
        FailOn::Policy => Severity::Policy,
        FailOn::Leak => Severity::Leak,
    });
    let mut counts = severities.map(|severity| check.findings.count_of(severity));
    counts.any(|count| count > 0)
}

/// What to check besides the image itself.
pub(crate) fn options(args: &CheckArgs) -> Result<Options, Error> {
    let data_file_bytes = args
        .data_file
        .as_deref()
        .map(file_length_bytes)
        .transpose()?;
    Ok(Options {
        data_file_bytes,
        max_memory_bytes: args.max_memory.or_else(memory::quarter),
        ..Options::default()
    })
}

impl Answer {
    fn write(&self, args: &CheckArgs, path: &Path, is_further: bool) -> io::Result<()> {
        let filename = filename(path);
        match (&self.result, args.output) {
            (Ok(done), Output::Human) => print(|to| {
                if is_further {
                    writeln!(to)?;
                }
                render::check(to, path, &done.image, &done.check, &done.conditions)
            }),
            (Err(_), Output::Human) => Ok(()),
            (Ok(done), Output::Json) => print(|to| {
                let (image, check) = (&done.image, &done.check);
                write_pretty(
                    &CheckDocument::new(&filename, image, check, &done.conditions),
                    to,
                )
            }),
            (Ok(done), Output::Jsonl) => print(|to| {
                let (image, check) = (&done.image, &done.check);
                write_line(
                    &CheckDocument::new(&filename, image, check, &done.conditions),
                    to,
                )
            }),
            (Err(error), Output::Json | Output::Jsonl) => {
                let document = ErrorDocument::new(&filename, error);
                write_refusal(args.output, false, &document)
            }
        }
    }
}
