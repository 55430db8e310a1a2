//! Errors: why qfsck could not do its job. They never say that an image is bad; that is a [`Finding`](crate::Finding).
//!
//! Every kind carries the path it is about and says what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::finding::escaped_path;
use crate::qcow2::NotQcow2;

/// Why a check could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path could not be opened.
    #[error("cannot open {}: {source}", escaped_path(path))]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is not a regular file or block device.
    #[error("{} is a {what}, not a disk image", escaped_path(path))]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file is not a qcow2 image of version 2 or 3.
    #[error("{} {}", escaped_path(path), describe_format(*.what))]
    NotQcow2 {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        what: NotQcow2,
    },
    /// Another program uses the image in a way a check must not disturb.
    #[error("{} is in use by {holder}", escaped_path(path))]
    InUse {
        /// The path.
        path: PathBuf,
        /// Who holds which lock, as far as the system tells.
        holder: String,
        /// Whether the image was to be changed, so that nobody else may even read it.
        for_repair: bool,
    },
    /// The file system cannot lock, so a program that has the image open would not be seen.
    #[error(
        "{} is on a file system without locks, so a running virtual machine would not be seen",
        escaped_path(path)
    )]
    NoLocks {
        /// The path.
        path: PathBuf,
    },
    /// The first bytes of the image could not be read.
    #[error("cannot read {} at byte {offset}: {source}", escaped_path(path))]
    Read {
        /// The path.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The path the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Open { path, .. }
            | Self::NotAFile { path, .. }
            | Self::NotQcow2 { path, .. }
            | Self::InUse { path, .. }
            | Self::NoLocks { path }
            | Self::Read { path, .. } => path,
        }
    }

    /// What to do next.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Open { .. } => {
                "check the path and the permissions; a check only needs to read, a repair to write as well"
            }
            Self::NotAFile { .. } => "give the path of an image file or of a block device",
            Self::NotQcow2 { what, .. } => match what {
                NotQcow2::Empty => {
                    "an image cannot be empty; look for the file this was copied from"
                }
                NotQcow2::Magic => {
                    "qfsck checks qcow2 images; if this was one, its first cluster was overwritten"
                }
                NotQcow2::Version(1) => "convert it with `qemu-img convert -f qcow -O qcow2`",
                NotQcow2::Version(_) => "qfsck knows versions 2 and 3",
            },
            Self::InUse {
                for_repair: true, ..
            } => "stop the program; nothing is written to an image that somebody has open",
            Self::InUse { .. } => {
                "stop the program, or read anyway with -U (the result is then unreliable)"
            }
            Self::NoLocks { .. } => "repair a copy of the image on a local disk",
            Self::Read { .. } => {
                "check the disk the image is on; copy the image away with ddrescue"
            }
        }
    }
}

fn describe_format(what: NotQcow2) -> String {
    match what {
        NotQcow2::Empty => "is empty".to_owned(),
        NotQcow2::Magic => "is not a qcow2 image".to_owned(),
        NotQcow2::Version(1) => "is an image of the older qcow format (version 1)".to_owned(),
        NotQcow2::Version(version) => format!("is a qcow image of unknown version {version}"),
    }
}
