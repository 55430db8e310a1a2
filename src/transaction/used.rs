//! Whether anybody used an image since it was repaired, or while its repair was cut short.
//!
//! Comes in: the image and the undo file. Goes out: a digest to keep, or the proof that putting old bytes back damages
//! nothing that came later. Never here: a write.
//!
//! Four things tell, each of something else: sectors the repair touched are as it found or left them; guest data that it
//! copied is as it was, for an undo gives it both its owners again; all other metadata is as the repair found it, seen
//! through the undo file; after a repair that came to its end, length and digest are those it left.

use std::io;
use std::path::Path;

use super::{PIECE_BYTES, RepairError, UndoOptions, length};
use crate::check::metadata_digest;
use crate::error::Error;
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::is_zero;
use crate::storage::Storage;
use crate::undo::{Judgement, SECTOR_BYTES, UndoFile, UndoState};

/// What tells whether anybody has written to the image since a repair: its metadata, and everything the repair appended.
pub(super) fn left_digest<S: Storage>(
    image: &Image<S>,
    original_length_bytes: u64,
    progress: &Progress,
) -> io::Result<u64> {
    let mut sum = metadata_digest(image, progress)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = original_length_bytes;
    while let Some(start) = image.storage().next_data(offset)? {
        let left = usize::try_from(image.file_bytes().saturating_sub(start)).unwrap_or(PIECE_BYTES);
        // Sectors are those of the file, wherever data begins; only the first may be cut, by the original length.
        let before = usize::try_from(start % SECTOR_BYTES as u64).unwrap_or(0);
        let Some(part) = piece
            .get_mut(..left.min(PIECE_BYTES - before))
            .filter(|part| !part.is_empty())
        else {
            break;
        };
        image.storage().read_at(start, part)?;
        let (cut, whole) = part.split_at(part.len().min(SECTOR_BYTES - before));
        let behind = start + cut.len() as u64;
        let sectors = whole.chunks(SECTOR_BYTES);
        let sectors = sectors.zip((behind..).step_by(SECTOR_BYTES));
        for (sector, offset) in std::iter::once((cut, start)).chain(sectors) {
            // Zeros count for nothing, so that holes and written zeros are the same.
            if !is_zero(sector) {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&offset.to_be_bytes());
                hasher.update(sector);
                sum = sum.wrapping_add(u64::from(hasher.finalize()) << 32);
            }
        }
        offset = start + part.len() as u64;
    }
    Ok(sum)
}

/// An image that somebody has written to since the repair is left alone.
///
/// So is one that cannot be read whole any more, unless that is accepted; what can be read must be right all the same.
pub(super) fn refuse_used_image<S: Storage>(
    storage: &S,
    file: &UndoFile<'_>,
    options: UndoOptions,
    progress: &Progress,
) -> Result<(), RepairError> {
    let used = |what: String| Err(RepairError::UsedSince { what });
    let unverified = |what: String| {
        if options.accept_unverified {
            Ok(None)
        } else {
            Err(RepairError::Unverified { what })
        }
    };
    let length_bytes = length(storage)?;
    let original_length_bytes = file.header.original_length_bytes;
    match file.state {
        UndoState::Incomplete => return Err(RepairError::NothingToUndo),
        UndoState::Committed {
            predicted_length_bytes,
        } => {
            let most = predicted_length_bytes.max(original_length_bytes);
            if !(original_length_bytes..=most).contains(&length_bytes) {
                return used(format!("its length is {length_bytes} bytes"));
            }
        }
        UndoState::Finished {
            left_length_bytes,
            digest,
        } => {
            // No repair cuts off what was there; an undo could not put it back either.
            if length_bytes != left_length_bytes || length_bytes < original_length_bytes {
                return used(format!("its length is {length_bytes} bytes"));
            }
            let digest_of = |image: &Image<_>| left_digest(image, original_length_bytes, progress);
            let now = digest_or(storage, digest_of, unverified)?;
            if now.is_some_and(|now| now != digest) {
                return used("its tables differ from how the repair left them".to_owned());
            }
        }
    }
    if let Some(digest) = file.digest_before {
        let before = file.before(storage);
        let digest_of = |image: &Image<_>| metadata_digest(image, progress);
        let now = digest_or(&before, digest_of, unverified)?;
        if now.is_some_and(|now| now != digest) {
            return used(
                "tables that the repair did not touch differ from how it found them".to_owned(),
            );
        }
    }
    let relied_on = file.relied_on.iter().map(|relied| relied.judge(storage));
    for judgement in file.judge(storage).into_iter().chain(relied_on) {
        match judgement {
            Judgement::Foreign { offset } => return used(format!("byte {offset} and following")),
            Judgement::Unreadable { offset } => {
                unverified(format!("byte {offset} and following"))?;
            }
            Judgement::Original | Judgement::Version(_) | Judgement::Mixed => {}
        }
    }
    Ok(())
}

/// A digest of an image, or what `unverified` makes of its being unreadable.
fn digest_or<'s, S: Storage>(
    storage: &'s S,
    digest_of: impl Fn(&Image<&'s S>) -> io::Result<u64>,
    unverified: impl Fn(String) -> Result<Option<u64>, RepairError>,
) -> Result<Option<u64>, RepairError> {
    match Image::open(storage, Path::new("image")) {
        Ok(image) => match digest_of(&image) {
            Ok(digest) => Ok(Some(digest)),
            Err(error) => unverified(error.to_string()),
        },
        Err(Error::Read { offset, source, .. }) => unverified(format!("byte {offset}: {source}")),
        Err(error) => Err(RepairError::Image(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image in a file whose blocks of zeros are holes, or are not.
    struct Dug {
        bytes: Vec<u8>,
        has_holes: bool,
    }

    impl Storage for Dug {
        fn length_bytes(&self) -> io::Result<u64> {
            self.bytes.length_bytes()
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.bytes.read_at(offset, buffer)
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
            let blocks = (0..).step_by(4096).zip(self.bytes.chunks(4096));
            let mut stored = blocks.filter(|(_, block)| !self.has_holes || !is_zero(block));
            let found = stored.find(|(start, _)| offset < start + 4096);
            Ok(found.map(|(start, _)| start.max(offset)))
        }
    }

    #[test]
    fn holes_and_written_zeros_behind_the_original_end_are_the_same_wherever_that_was() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = root.join("corpus/002-v3-plain/image.qcow2");
        let mut bytes = std::fs::read(&path).expect("the corpus is there");
        bytes.resize(2 * PIECE_BYTES + 30_000, 0);
        for at in [
            20_000,
            20_511,
            20_512,
            PIECE_BYTES + 9_000,
            2 * PIECE_BYTES + 29_999,
        ] {
            bytes[at] = 7;
        }
        let digest = |has_holes, length_bytes| {
            let bytes = bytes.clone();
            let image = Image::open(Dug { bytes, has_holes }, &path).expect("an image");
            let digest = left_digest(&image, length_bytes, &Progress::default());
            digest.expect("all of it can be read")
        };
        for length_bytes in [6_656, 6_657, 7_000, 8_191, 20_480, 20_481] {
            let dug = digest(true, length_bytes);
            assert_eq!(dug, digest(false, length_bytes), "{length_bytes}");
        }
        assert_ne!(digest(true, 20_480), digest(true, 20_512));
    }
}
