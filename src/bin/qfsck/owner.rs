//! `qfsck owner`: who is there, and where is it.

use std::io::{self, Write};

use qfsck::qcow2::{GuestOffset, HostOffset, Refusal};
use qfsck::report::{ErrorDocument, GuestDocument, HostDocument, write_line, write_pretty};
use qfsck::{Error, GuestPath, GuestTarget, HostAnswer, Progress, escaped_path};

use crate::args::{Output, OwnerArgs};
use crate::check::{refuse_in, write_refusal};
use crate::exit::Outcome;
use crate::isolation::{Isolation, confined};
use crate::render::{Names, counted};
use crate::session::{Session, filename, sharing};
use crate::{finish, print, say};

/// Answers one question about one image.
pub(crate) fn run(args: &OwnerArgs) -> Outcome {
    let isolation = Isolation {
        jobs: None,
        opens_more: false,
    };
    let session = match Session::open(&args.image, sharing(args.force_share), isolation) {
        Ok(session) => session,
        Err(error) => return refuse(args, &error),
    };
    if session.image.geometry().is_none() {
        let why = "the header has no usable cluster size, so nothing can be located";
        return no_answer(args, why, REPAIR_FIRST, Outcome::Incomplete);
    }
    let outcome = if args.guest {
        guest(args, &session)
    } else {
        host(args, &session)
    };
    let conditions = session.conditions();
    for reason in &conditions.unreliable {
        say(&format!("qfsck: unreliable: {reason}"));
    }
    if conditions.changed {
        return outcome.max(Outcome::Changed);
    }
    outcome
}

/// Says why there is no answer, in a document if one was asked for.
fn refuse(args: &OwnerArgs, error: &Error) -> Outcome {
    say(&format!("qfsck: {error}\n  {}", error.advice()));
    let document = ErrorDocument::new(&filename(&args.image), error);
    finish(write_refusal(args.output, false, &document)).max(Outcome::of_error(error))
}

/// Says why a question has no answer, in a document if one was asked for.
fn no_answer(args: &OwnerArgs, why: &str, advice: &'static str, outcome: Outcome) -> Outcome {
    refuse_in(args.output, false, &args.image, (why, advice), outcome)
}

/// What to do about an image that is too damaged for an answer.
const REPAIR_FIRST: &str = "`qfsck check` says what is wrong with the image";

fn host(args: &OwnerArgs, session: &Session) -> Outcome {
    let offset = HostOffset(args.offset);
    let answer = confined(|| qfsck::host_owners(&session.image, offset, &Progress::default()));
    let Some(answer) = answer else {
        let why = format!(
            "{} has no cluster at {offset}: the file is {:#x} bytes long",
            escaped_path(&args.image),
            session.image.file_bytes()
        );
        return no_answer(args, &why, "give an offset within the file", Outcome::Usage);
    };
    let filename = filename(&args.image);
    let document = || HostDocument::new(&filename, &session.image, &answer);
    let written = match args.output {
        Output::Human => print(|to| write_host(to, session, &answer)),
        Output::Json => print(|to| write_pretty(&document(), to)),
        Output::Jsonl => print(|to| write_line(&document(), to)),
    };
    if answer.coverage.failure_count() > 0 {
        return finish(written).max(Outcome::Incomplete);
    }
    finish(written)
}

fn write_host(to: &mut dyn Write, session: &Session, answer: &HostAnswer) -> io::Result<()> {
    let names = Names::new(&session.image, &answer.snapshots);
    let stored = answer
        .stored
        .map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    writeln!(
        to,
        "{}: refcount {stored}, {}",
        names.clusters(answer.cluster),
        counted(answer.expected, "reference")
    )?;
    for owner in &answer.owners.named {
        writeln!(to, "    {}", names.owner(owner))?;
    }
    if answer.owners.more > 0 {
        writeln!(to, "    and {} more", answer.owners.more)?;
    }
    if answer.expected == 0 {
        writeln!(to, "    nothing refers to it")?;
    }
    for gap in answer.coverage.gaps() {
        writeln!(to, "not looked at: {}: {}", gap.place, gap.detail)?;
    }
    Ok(())
}

fn guest(args: &OwnerArgs, session: &Session) -> Outcome {
    let path = confined(|| qfsck::guest_path(&session.image, GuestOffset(args.offset)));
    let path = match path {
        Ok(Some(path)) => path,
        Ok(None) => {
            let why = "the L1 table cannot be located";
            return no_answer(args, why, REPAIR_FIRST, Outcome::Incomplete);
        }
        Err(source) => {
            let error = Error::Read {
                path: args.image.clone(),
                offset: args.offset,
                source,
            };
            return refuse(args, &error);
        }
    };
    let filename = filename(&args.image);
    let written = match args.output {
        Output::Human => print(|to| write_guest(to, session, &path)),
        Output::Json => print(|to| write_pretty(&GuestDocument::new(&filename, &path), to)),
        Output::Jsonl => print(|to| write_line(&GuestDocument::new(&filename, &path), to)),
    };
    finish(written)
}

fn write_guest(to: &mut dyn Write, session: &Session, path: &GuestPath) -> io::Result<()> {
    writeln!(to, "guest offset {:#x}", path.guest.0)?;
    let disk_bytes = session.image.header().size;
    if path.guest.0 >= disk_bytes {
        writeln!(
            to,
            "    past the end of the virtual disk, {disk_bytes:#x} bytes; only VM state can be there"
        )?;
    }
    match path.l1_entry {
        None => writeln!(
            to,
            "    L1 entry {}: past the end of the L1 table",
            path.l1_index
        )?,
        Some(entry) => writeln!(to, "    L1 entry {}: {:#018x}", path.l1_index, entry.0)?,
    }
    if let Some(entry) = path.l2_entry {
        writeln!(to, "    L2 entry {}: {:#018x}", path.l2_index, entry.0)?;
    }
    let place = if session.image.header().has_data_file() {
        "the external data file"
    } else {
        "the image file"
    };
    match path.target {
        GuestTarget::Unallocated => {
            writeln!(
                to,
                "    not allocated: reads come from the backing file, or are zeros"
            )
        }
        GuestTarget::Zero => writeln!(to, "    reads as zeros"),
        GuestTarget::Host(offset) => writeln!(to, "    at {offset} of {place}"),
        GuestTarget::Compressed(extent) => writeln!(
            to,
            "    compressed, in {} bytes at {} of {place}",
            extent.bytes(),
            extent.offset
        ),
        GuestTarget::Broken(offset, Refusal::Unaligned) => {
            writeln!(to, "    broken: {offset} is not at a cluster boundary")
        }
        GuestTarget::Broken(offset, Refusal::PastEnd) => {
            writeln!(to, "    broken: {offset} is past the end of the file")
        }
    }
}
