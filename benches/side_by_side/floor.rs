//! The floor: plain reads of the metadata, in disk order, by one thread that does nothing else.
//!
//! A process of its own, like every program that is measured, but it measures only its reads, not its start.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::big_images::Layout;
use crate::measure::{Cost, ourselves};

/// The first argument of the process that reads.
pub(crate) const VERB: &str = "floor";

/// The most that one call reads.
const PIECE_BYTES: u64 = 256 << 10;

/// Writes down where metadata lie, for [`measure`].
pub(crate) fn note_extents(layout: &Layout, note: &Path) -> Result<(), String> {
    let words = layout
        .metadata_extents()
        .into_iter()
        .flat_map(|(offset, length)| [offset, length]);
    let bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
    fs::write(note, bytes).map_err(|error| format!("{}: {error}", note.display()))
}

/// Reads what is noted, and says what that took.
pub(crate) fn measure(image: &Path, note: &Path) -> Result<Cost, String> {
    ourselves(&[VERB, &image.to_string_lossy(), &note.to_string_lossy()])
}

/// In the process that reads: the image and the note.
pub(crate) fn inside(words: &[String]) -> Result<(), String> {
    let [image, note] = words else {
        return Err("an image and a note are needed".into());
    };
    let note = fs::read(note).map_err(|error| format!("{note}: {error}"))?;
    let (words, _) = note.as_chunks::<8>();
    let (extents, _) = words.as_chunks::<2>();
    let file = File::open(image).map_err(|error| format!("{image}: {error}"))?;
    let mut buffer = vec![1; usize::try_from(PIECE_BYTES).unwrap_or_default()];
    let (mut read_bytes, mut read_calls) = (0, 0);
    let mut cost = Cost::of_this_process(|| {
        for extent in extents {
            let [mut offset, mut left] = extent.map(u64::from_be_bytes);
            while left > 0 {
                let length = left.min(PIECE_BYTES);
                let piece = buffer.get_mut(..usize::try_from(length).unwrap_or_default());
                let piece = piece.ok_or("a piece fits the buffer")?;
                let read = file.read_exact_at(piece, offset);
                read.map_err(|error| format!("{image}: {error}"))?;
                black_box(piece);
                offset += length;
                left -= length;
                read_bytes += length;
                read_calls += 1;
            }
        }
        Ok(())
    })?;
    cost.read_bytes = read_bytes;
    cost.read_calls = read_calls;
    cost.print();
    Ok(())
}
