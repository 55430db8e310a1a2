//! One image, opened and watched while it is read.
//!
//! Comes in: a path. Goes out: an image, and afterwards whether it stood still. Never here: output.

use std::io;
use std::path::Path;

use qfsck::report::Conditions;
use qfsck::{Check, Error, FileIdentity, Image, ImageFile, Sharing, escaped_path};

use crate::isolation::{Isolation, confined};
use crate::way_back::interrupted;

/// An open image and the state it was in.
pub(crate) struct Session {
    pub(crate) image: Image<ImageFile>,
    before: FileIdentity,
    writer_before: Option<String>,
    sharing: Sharing,
    /// Whether a repair of the image was cut short, in words.
    pub(crate) interrupted: Option<String>,
}

impl Session {
    /// Opens an image. What it says is read in isolation, here and later.
    pub(crate) fn open(path: &Path, sharing: Sharing, isolation: Isolation) -> Result<Self, Error> {
        let file = ImageFile::open(path, sharing)?;
        let before = file.identity().map_err(|source| Error::Read {
            path: path.to_owned(),
            offset: 0,
            source,
        })?;
        let writer_before = file.writer();
        let interrupted = interrupted(&file);
        // Who comes while an image is read without keeping writers out can only be named with all rights.
        isolation.begin(sharing == Sharing::Forced);
        let image = confined(|| Image::open(file, path))?;
        Ok(Self {
            image,
            before,
            writer_before,
            sharing,
            interrupted,
        })
    }

    fn has_changed(&self) -> io::Result<bool> {
        let is_same_file = self.image.storage().identity()? == self.before;
        Ok(!is_same_file || !confined(|| self.image.header_unchanged())?)
    }

    /// As [`conditions`](Self::conditions); a check that ends without knowing whether the image changed is not complete.
    pub(crate) fn conditions_of(&self, check: &mut Check) -> Conditions {
        let (conditions, unknown) = self.look_again();
        if let Some(error) = unknown {
            check.not_seen_again(&error);
        }
        conditions
    }

    /// Whether what was read can be relied on, now that it is read.
    pub(crate) fn conditions(&self) -> Conditions {
        self.look_again().0
    }

    /// The conditions, and why it is not known whether the image changed, if it is not.
    fn look_again(&self) -> (Conditions, Option<io::Error>) {
        let mut unknown = None;
        let file = self.image.storage();
        let mut conditions = Conditions::default();
        match file.is_at_its_path() {
            Ok(true) => {}
            Ok(false) => {
                conditions.changed = true;
                let reason = "another file has the image's name now, or none".to_owned();
                conditions.unreliable.push(reason);
            }
            Err(error) => conditions.unreliable.push(format!(
                "whether the image still has its name is not known: {error}"
            )),
        }
        match self.has_changed() {
            Ok(true) => {
                conditions.changed = true;
                let reason = "the image changed while it was read".to_owned();
                conditions.unreliable.push(reason);
            }
            Ok(false) => {}
            Err(error) => {
                conditions.unreliable.push(format!(
                    "whether the image changed while it was read is not known: {error}"
                ));
                unknown = Some(error);
            }
        }
        let writer = file.writer().or(self.writer_before.clone());
        if let Some(writer) = writer {
            conditions
                .unreliable
                .push(format!("the image is open for writing by {writer}"));
        } else if self.sharing == Sharing::Forced {
            conditions
                .unreliable
                .push("the image was read without keeping writers out (-U)".to_owned());
        }
        if let Some(weakness) = file.lock_weakness() {
            conditions.unreliable.push(weakness.to_owned());
        }
        (conditions, unknown)
    }
}

/// The path as documents name it: as it was given, so that a machine finds the file again, if it is text.
pub(crate) fn filename(path: &Path) -> String {
    path.to_str()
        .map_or_else(|| escaped_path(path), str::to_owned)
}

/// How `-U` asks for an image to be opened.
pub(crate) fn sharing(force_share: bool) -> Sharing {
    if force_share {
        Sharing::Forced
    } else {
        Sharing::Protected
    }
}
