//! The way back: where undo files are, what those left behind mean, and what to do about them.
//!
//! Comes in: the path of an image. Goes out: a name for the next undo file, or why there shall be no repair now. Never
//! here: writing or deleting anything.
//!
//! Beside an image stand `IMAGE.qfsck-undo`, `IMAGE.qfsck-undo.2`, … up to 99. One of a repair that was cut short keeps
//! everything but `undo` and `repair --resume` from the image, whatever its number; one that nobody can vouch for keeps
//! `--resume` from it, too; finished ones only take up names.

use std::ffi::OsString;
use std::fs::symlink_metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use qfsck::undo::{UndoError, UndoFile, UndoState};
use qfsck::{ImageFile, UndoSinkFile, escaped_path};

/// What an undo file's name ends in, but for its number.
const SUFFIX: &str = ".qfsck-undo";
/// Undo files that one image may have beside it.
const MOST_FILES: u32 = 99;
/// A longer undo file is not read whole only to tell whether a repair was cut short.
const MOST_LOOKED_AT_BYTES: u64 = 64 << 20;

/// What stands under the name of an undo file.
enum Standing {
    /// Nothing.
    Free,
    /// The way back from a repair that is done.
    Finished,
    /// What is left of a repair that never began.
    NeverBegan,
    /// The way back from a repair that was cut short.
    Cut {
        /// All of it was read.
        is_proven: bool,
    },
    /// Anything else, and what to do about it, in words: it may be the way back from a repair that was cut short.
    Unvouched(String),
}

/// How much is read to tell what an undo file is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The end, and all of it only where that does not say that the repair is done.
    Glance,
    /// All of it, if it is not too long.
    Whole,
}

/// The name of the undo file with this number beside an image.
fn beside(image: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(image);
    name.push(SUFFIX);
    if number > 1 {
        name.push(format!(".{number}"));
    }
    PathBuf::from(name)
}

/// What the next undo file is named after: not a link to the image, for who comes by another name would not find it.
fn home(image: &Path) -> PathBuf {
    let is_link = symlink_metadata(image).is_ok_and(|found| found.file_type().is_symlink());
    let real = is_link.then(|| std::fs::canonicalize(image).ok()).flatten();
    real.unwrap_or_else(|| image.to_owned())
}

/// All names beside an image that are taken; through a link, also those beside the link, as they were once given.
fn taken(image: &Path) -> impl Iterator<Item = PathBuf> {
    let home = home(image);
    let link = (home != image).then(|| image.to_owned());
    let homes = std::iter::once(home).chain(link);
    homes
        .flat_map(|home| (1..=MOST_FILES).map(move |number| beside(&home, number)))
        .filter(|path| symlink_metadata(path).is_ok())
}

/// Whether an undo file is found without being named.
fn is_found(image: &Path, undo_path: &Path) -> bool {
    image_of(undo_path).is_some_and(|named| named == image || named == home(image))
}

/// The image an undo file is named after.
pub(crate) fn image_of(undo_path: &Path) -> Option<PathBuf> {
    let name = undo_path.as_os_str().as_bytes();
    let unnumbered = name
        .iter()
        .rposition(|&byte| byte == b'.')
        .and_then(|dot| name.split_at_checked(dot))
        .filter(|(_, number)| is_number(number))
        .map_or(name, |(head, _)| head);
    let image = unnumbered.strip_suffix(SUFFIX.as_bytes())?;
    Some(PathBuf::from(OsString::from_vec(image.to_vec())))
}

/// `.2` to `.99`.
fn is_number(text: &[u8]) -> bool {
    matches!(text, [b'.', b'2'..=b'9'] | [b'.', b'1'..=b'9', b'0'..=b'9'])
}

fn standing(path: &Path, image: &ImageFile, depth: Depth) -> Standing {
    match look(path, image, depth) {
        Ok(standing) => standing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Standing::Free,
        Err(error) => Standing::Unvouched(unreadable(path, &error)),
    }
}

fn look(path: &Path, image: &ImageFile, depth: Depth) -> io::Result<Standing> {
    let tail = UndoSinkFile::read_tail(path)?;
    let seems_finished = UndoFile::seems_finished(&tail);
    if depth == Depth::Glance && seems_finished {
        return Ok(Standing::Finished);
    }
    let bytes = match UndoSinkFile::read_at_most(path, MOST_LOOKED_AT_BYTES) {
        // Too long to be proven: its last seals tell, and whoever undoes it reads it whole.
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            if seems_finished {
                return Ok(Standing::Finished);
            } else if UndoFile::may_be_committed(&tail) {
                return Ok(Standing::Cut { is_proven: false });
            }
            UndoSinkFile::read_head(path, MOST_LOOKED_AT_BYTES)?
        }
        bytes => bytes?,
    };
    let file = match UndoFile::decode(&bytes) {
        Ok(file) => file,
        Err(UndoError::NoHeader) => return Ok(Standing::NeverBegan),
        Err(error) => return Ok(Standing::Unvouched(unknown(path, error))),
    };
    Ok(match file.state {
        UndoState::Finished { .. } => Standing::Finished,
        UndoState::Committed { .. } => Standing::Cut { is_proven: true },
        UndoState::Incomplete => {
            cut_off(path, &file, image).map_or(Standing::NeverBegan, Standing::Unvouched)
        }
    })
}

/// Why an undo file without a commit is not of a repair that never began, if so, in words: it was cut off since.
pub(crate) fn cut_off(path: &Path, file: &UndoFile<'_>, image: &ImageFile) -> Option<String> {
    if !file.is_cut_off(image) {
        return None;
    }
    // The same repair may have been made later, with another undo file: that one knows how the image was before.
    let mut others = taken(image.path()).filter(|other| !is_same(other, path));
    let is_explained = others.any(|other| {
        let bytes = UndoSinkFile::read_at_most(&other, MOST_LOOKED_AT_BYTES).unwrap_or_default();
        UndoFile::decode(&bytes).is_ok_and(|later| {
            matches!(later.state, UndoState::Finished { .. })
                && !file.is_cut_off(&later.before(image))
        })
    });
    let what = "is cut off, and the image differs from what it holds";
    (!is_explained).then(|| unvouched_word(path, what, WHOLE_COPY))
}

/// An undo file that the system does not give out, or that others could have made.
fn unreadable(path: &Path, error: &io::Error) -> String {
    let advice = if error.kind() == io::ErrorKind::PermissionDenied {
        "run qfsck as its owner, or look at it and then make it yours alone (chown, chmod 600)"
    } else {
        LOOK_FIRST
    };
    unvouched_word(path, &format!("cannot be read: {error}"), advice)
}

/// Bytes that are not taken for an undo file.
fn unknown(path: &Path, error: UndoError) -> String {
    let advice = match error {
        UndoError::UnknownVersion(_) | UndoError::UnknownFlags(_) => "use the qfsck that made it",
        UndoError::Damaged { .. } => WHOLE_COPY,
        _ => LOOK_FIRST,
    };
    unvouched_word(path, &error.to_string(), advice)
}

const WHOLE_COPY: &str =
    "bring back a whole copy of it; if there is none, copy the image before you move it away";
const LOOK_FIRST: &str = "look at it, and move it away only if it is not of a repair of this image";

fn unvouched_word(path: &Path, what: &str, advice: &str) -> String {
    format!(
        "{} {what}; it may be the way back from a repair that was cut short: {advice}",
        shell_word(path)
    )
}

/// The undo files that are beside this image, and the one given.
fn left_behind(image: &ImageFile, given: Option<&Path>, depth: Depth) -> Vec<(PathBuf, Standing)> {
    let mut left: Vec<(PathBuf, Standing)> = Vec::new();
    for path in taken(image.path()).chain(given.map(Path::to_owned)) {
        if !left.iter().any(|(known, _)| is_same(known, &path)) {
            let standing = standing(&path, image, depth);
            left.push((path, standing));
        }
    }
    left
}

/// The undo files of repairs of this image that were cut short, of those beside it and the one given.
pub(crate) fn cut_repairs(image: &ImageFile, given: Option<&Path>) -> Vec<PathBuf> {
    let left = left_behind(image, given, Depth::Whole).into_iter();
    let cut = left.filter(|(_, standing)| matches!(standing, Standing::Cut { .. }));
    cut.map(|(path, _)| path).collect()
}

/// Why nothing is written to this image, not even to finish a repair that was cut short, if so.
pub(crate) fn unvouched(image: &ImageFile, given: Option<&Path>) -> Option<String> {
    word_of_unvouched(left_behind(image, given, Depth::Whole))
}

fn word_of_unvouched(left: Vec<(PathBuf, Standing)>) -> Option<String> {
    left.into_iter().find_map(|(_, standing)| match standing {
        Standing::Unvouched(word) => Some(word),
        _ => None,
    })
}

/// Whether two paths lead to the same file.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

/// Whether a repair of this image was cut short, or may have been, in words, by the undo files beside it. Little is read
/// for it.
pub(crate) fn interrupted(image: &ImageFile) -> Option<String> {
    obstacle(image, None, Depth::Glance)
}

/// Why nothing but `undo` and `repair --resume` may touch the image, if so.
pub(crate) fn blocked(image: &ImageFile, given: Option<&Path>) -> Option<String> {
    obstacle(image, given, Depth::Whole)
}

fn obstacle(image: &ImageFile, given: Option<&Path>, depth: Depth) -> Option<String> {
    let left = left_behind(image, given, depth);
    let cut = left.iter().find_map(|(path, standing)| match standing {
        Standing::Cut { is_proven: true } => Some(both_ways(image.path(), path)),
        Standing::Cut { is_proven: false } => {
            Some(format!("it seems that {}", both_ways(image.path(), path)))
        }
        _ => None,
    });
    cut.or_else(|| word_of_unvouched(left))
}

/// What to do about a repair that was cut short.
pub(crate) fn both_ways(image: &Path, undo_path: &Path) -> String {
    format!(
        "a repair was cut short; `{}` finishes it, `{}` puts the image back as it was",
        resume_command(image, undo_path),
        undo_command(image, undo_path)
    )
}

/// How a cut repair is finished.
pub(crate) fn resume_command(image: &Path, undo_path: &Path) -> String {
    let image_word = shell_word(image);
    if is_found(image, undo_path) {
        format!("qfsck repair --resume {image_word}")
    } else {
        let undo_word = shell_word(undo_path);
        format!("qfsck repair --resume --undo-file {undo_word} {image_word}")
    }
}

/// How a repair is taken back.
pub(crate) fn undo_command(image: &Path, undo_path: &Path) -> String {
    let undo_word = shell_word(undo_path);
    if is_found(image, undo_path) {
        format!("qfsck undo {undo_word}")
    } else {
        format!("qfsck undo {undo_word} --image {}", shell_word(image))
    }
}

/// Where the undo file of the next repair goes.
pub(crate) fn next_name(image: &ImageFile, given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(path) = given {
        return match in_the_way(image, path) {
            None => Ok(path.to_owned()),
            Some((_, word)) => Err(word),
        };
    }
    let home = home(image.path());
    for number in 1..=MOST_FILES {
        let path = beside(&home, number);
        match in_the_way(image, &path) {
            None => return Ok(path),
            Some((Passable::Yes, _)) => {}
            Some((Passable::No, word)) => return Err(word),
        }
    }
    Err(format!(
        "{MOST_FILES} undo files stand beside {}; delete those that are not needed any more",
        shell_word(&home)
    ))
}

/// Whether the next name may be taken instead.
enum Passable {
    Yes,
    No,
}

/// What an undo file that is already there means, and what to do about it.
fn in_the_way(image: &ImageFile, undo_path: &Path) -> Option<(Passable, String)> {
    let path = shell_word(undo_path);
    Some(match standing(undo_path, image, Depth::Whole) {
        Standing::Free => return None,
        Standing::Finished => (
            Passable::Yes,
            format!(
                "{path} is the way back from an earlier repair; delete it if you no longer need it, or give another \
                 --undo-file"
            ),
        ),
        Standing::NeverBegan => (
            Passable::Yes,
            format!("{path} is of a repair that never began; delete it and try again"),
        ),
        Standing::Cut { .. } => (Passable::No, both_ways(image.path(), undo_path)),
        Standing::Unvouched(word) => (Passable::No, word),
    })
}

/// A path as a shell takes it: whole, printable, and the same path again when it is pasted.
pub(crate) fn shell_word(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let shown = escaped_path(path);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if shown.chars().all(is_plain) {
        shown
    } else if shown.replace("\\\\", "\\").as_bytes() == bytes {
        format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
    } else {
        let quoted = bytes.iter().map(|&byte| match byte {
            b'\\' | b'\'' => format!("\\{}", char::from(byte)),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        });
        format!("$'{}'", quoted.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn shell_words_are_pasted_as_they_are() {
        let word = |bytes: &[u8]| shell_word(OsStr::from_bytes(bytes).as_ref());
        assert_eq!(word(b"/var/lib/disk.qcow2"), "/var/lib/disk.qcow2");
        assert_eq!(word(b"a b'c"), "'a b'\\''c'");
        assert_eq!(word(b"a\\b"), "'a\\b'");
        assert_eq!(word(b"\x1b'\\\xff"), "$'\\x1b\\'\\\\\\xff'");
        assert_eq!(word(&[b'd'; 1000]).len(), 1000);
    }

    #[test]
    fn an_undo_file_is_named_after_its_image_with_or_without_a_number() {
        let image = Path::new("disk.qcow2");
        for number in 1..=MOST_FILES {
            let path = beside(image, number);
            assert_eq!(image_of(&path).as_deref(), Some(image), "{path:?}");
        }
        let others = [
            "disk.qfsck-undo.1",
            "disk.qfsck-undo.02",
            "disk.qfsck-undo.100",
            "disk.qfsck-undo.x",
            "disk.2",
        ];
        for other in others {
            assert_eq!(image_of(Path::new(other)), None, "{other}");
        }
        // An image may itself have such a name.
        let strange = Path::new("disk.qfsck-undo.2.qfsck-undo");
        assert_eq!(
            image_of(strange).as_deref(),
            Some(Path::new("disk.qfsck-undo.2"))
        );
    }
}
