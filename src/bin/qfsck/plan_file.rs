//! Plan files: written once, read with a bound, and only ever compared.
//!
//! Comes in: a plan and a path, or a path. Goes out: a file, or what a file says. Never here: replacing a file that is
//! there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use qfsck::report::{PlanDocument, PlanFile, write_pretty};
use qfsck::{Error, Identity, Image, ImageFile, Plan, Progress, RepairOptions, metadata_digest};

use crate::exit::Outcome;
use crate::isolation::confined;
use crate::session::filename;
use crate::way_back::shell_word;
use crate::{finish, print, say};

/// Longer files are neither written nor read.
const MOST_BYTES: u64 = 64 << 20;
/// Stands for stdin and stdout.
const DASH: &str = "-";

/// Whether a plan goes to stdout, or comes from stdin.
pub(crate) fn is_dash(path: &Path) -> bool {
    path == Path::new(DASH)
}

/// Which file an image is. Numbers that the system does not tell are zero, for which there is no file.
pub(crate) fn identity(file: &ImageFile, path: &Path) -> Identity {
    let (device, inode) = file.device_and_inode().unwrap_or_default();
    let path = path.as_os_str().as_bytes();
    Identity {
        device,
        inode,
        is_block_device: file.is_block_device(),
        path: path.get(..4096).unwrap_or(path).to_vec(),
    }
}

/// The document of a plan made for an open image.
pub(crate) fn document(
    file: &ImageFile,
    path: &Path,
    wishes: &RepairOptions,
    plan: &Plan,
) -> Result<PlanDocument, Error> {
    let identity = identity(file, path);
    let digest = confined(|| {
        let image = Image::open(file, path)?;
        metadata_digest(&image, &Progress::default()).map_err(|source| Error::Read {
            path: path.to_owned(),
            offset: 0,
            source,
        })
    })?;
    Ok(PlanDocument::new(
        &filename(path),
        &identity,
        digest,
        wishes,
        plan,
    ))
}

/// Writes a plan to a new file, or to stdout.
pub(crate) fn write(to: &Path, document: &PlanDocument) -> Outcome {
    if is_dash(to) {
        return finish(print(|to| write_pretty(document, to)));
    }
    match write_new(to, document) {
        Ok(()) => {
            say(&format!(
                "the plan is in {}; `qfsck repair --apply` does it, as long as the image is as it is now",
                shell_word(to)
            ));
            Outcome::Clean
        }
        Err(error) => {
            say(&format!("qfsck: cannot write {}: {error}", shell_word(to)));
            Outcome::Incomplete
        }
    }
}

fn write_new(path: &Path, document: &PlanDocument) -> io::Result<()> {
    let mut bytes = Vec::new();
    write_pretty(document, &mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the plan is larger than a plan file may be (64 MiB)",
        ));
    }
    // Never over anything: a mistaken path may be that of an image.
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path);
    let mut file = new?;
    file.write_all(&bytes)?;
    file.sync_all()
}

/// Reads a plan file, or stdin.
pub(crate) fn read(from: &Path) -> Result<PlanFile, Outcome> {
    let bytes = read_bounded(from).map_err(|error| {
        say(&format!(
            "qfsck: cannot read the plan {}: {error}",
            shell_word(from)
        ));
        Outcome::Incomplete
    })?;
    PlanFile::decode(&bytes).map_err(|error| {
        say(&format!(
            "qfsck: {} {error}\n  `qfsck repair --plan FILE IMAGE` writes one",
            shell_word(from)
        ));
        Outcome::Usage
    })
}

fn read_bounded(from: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if is_dash(from) {
        io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        // Looked at before it is opened: opening a FIFO would wait.
        if !std::fs::metadata(from)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        let file = File::open(from)?;
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than a plan file may be (64 MiB)",
        ));
    }
    Ok(bytes)
}
