//! One image, opened and watched while it is read.
//!
//! Comes in: a path. Goes out: an image, and afterwards whether it stood still. Never here: output.

use std::path::Path;

use qfsck::report::Conditions;
use qfsck::{Error, FileIdentity, Image, ImageFile, Sharing};

/// An open image and the state it was in.
pub(crate) struct Session {
    pub(crate) image: Image<ImageFile>,
    before: Option<FileIdentity>,
    writer_before: Option<String>,
    sharing: Sharing,
}

impl Session {
    /// Opens an image.
    pub(crate) fn open(path: &Path, sharing: Sharing) -> Result<Self, Error> {
        let file = ImageFile::open(path, sharing)?;
        let before = file.identity().ok();
        let writer_before = file.writer();
        let image = Image::open(file, path)?;
        Ok(Self {
            image,
            before,
            writer_before,
            sharing,
        })
    }

    /// Whether what was read can be relied on, now that it is read.
    pub(crate) fn conditions(&self) -> Conditions {
        let file = self.image.storage();
        let mut conditions = Conditions::default();
        let is_same_file = file.identity().ok() == self.before && self.before.is_some();
        let is_same_header = self.image.header_unchanged().unwrap_or(false);
        conditions.changed = !is_same_file || !is_same_header;
        if conditions.changed {
            conditions
                .unreliable
                .push("the image changed while it was read".to_owned());
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
        conditions
    }
}

/// How `-U` asks for an image to be opened.
pub(crate) fn sharing(force_share: bool) -> Sharing {
    if force_share {
        Sharing::Forced
    } else {
        Sharing::Protected
    }
}
