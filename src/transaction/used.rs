//! Whether anybody used an image since it was repaired, or while its repair was cut short.
//!
//! Comes in: the image and the undo file. Goes out: a digest to keep, or the proof that putting old bytes back damages
//! nothing that came later. Never here: a write.
//!
//! Three things tell, each of something else: sectors the repair touched are as it found or left them; all other metadata
//! is as the repair found it, seen through the undo file; after a repair that came to its end, length and digest are those
//! it left.

use std::io;
use std::path::Path;

use super::{PIECE_BYTES, RepairError, length, read_failed};
use crate::check::metadata_digest;
use crate::image::Image;
use crate::progress::Progress;
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
        let Some(part) = piece
            .get_mut(..left.min(PIECE_BYTES))
            .filter(|part| !part.is_empty())
        else {
            break;
        };
        image.storage().read_at(start, part)?;
        for (sector, offset) in part
            .chunks(SECTOR_BYTES)
            .zip((start..).step_by(SECTOR_BYTES))
        {
            // Zeros count for nothing, so that holes and written zeros are the same.
            if sector.iter().any(|&byte| byte != 0) {
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
pub(super) fn refuse_used_image<S: Storage>(
    storage: &S,
    file: &UndoFile<'_>,
    progress: &Progress,
) -> Result<(), RepairError> {
    let used = |what: String| Err(RepairError::UsedSince { what });
    let length_bytes = length(storage)?;
    match file.state {
        UndoState::Incomplete => return Err(RepairError::NothingToUndo),
        UndoState::Committed {
            predicted_length_bytes,
        } => {
            let original = file.header.original_length_bytes;
            if !(original..=predicted_length_bytes.max(original)).contains(&length_bytes) {
                return used(format!("its length is {length_bytes} bytes"));
            }
        }
        UndoState::Finished {
            left_length_bytes,
            digest,
        } => {
            if length_bytes != left_length_bytes {
                return used(format!("its length is {length_bytes} bytes"));
            }
            let image = Image::open(storage, Path::new("image")).map_err(RepairError::Image)?;
            let original = file.header.original_length_bytes;
            let now = left_digest(&image, original, progress).map_err(read_failed)?;
            if now != digest {
                return used("its tables differ from how the repair left them".to_owned());
            }
        }
    }
    if let Some(digest) = file.digest_before {
        let before = file.before(storage);
        let image = Image::open(&before, Path::new("image")).map_err(RepairError::Image)?;
        let now = metadata_digest(&image, progress).map_err(read_failed)?;
        if now != digest {
            return used(
                "tables that the repair did not touch differ from how it found them".to_owned(),
            );
        }
    }
    let judgements = file.judge(storage).map_err(read_failed)?;
    for judgement in judgements {
        if let Judgement::Foreign { offset } = judgement {
            return used(format!("byte {offset} and following"));
        }
    }
    Ok(())
}
