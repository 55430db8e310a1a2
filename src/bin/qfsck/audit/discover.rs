//! Which files are images: found by their first bytes.
//!
//! Comes in: roots. Goes out: images by path, each file once, and what could not be looked into. Never here: opening a
//! FIFO, a device or a socket that was come upon, following a symbolic link; a root a person names may be one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ignore::overrides::{Override, OverrideBuilder};
use ignore::{WalkBuilder, WalkState};
use nix::fcntl::OFlag;
use qfsck::report::{AuditRow, ImageStatus, Night};

use super::args::SearchArgs;
use crate::progress::Watch;

/// The first bytes of an image.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Files that list what to leave out.
const IGNORE_FILE: &str = ".qfsckignore";
/// A list of what to leave out that is longer is none.
const MOST_IGNORE_BYTES: u64 = 1 << 20;
/// Links that are followed to find out where a directory was that is not there.
const MOST_LINKS: usize = 40;

/// What is known of the place an image is to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing that matters.
    Usual,
    /// The directory is not there, or has nothing any more, as one whose disk is not mounted.
    Lost,
    /// It is a symbolic link, or below one: links are not followed, so nothing there is opened.
    Linked,
}

/// An image, or a file that should be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Bytes of it on the disk.
    pub(crate) cost: u64,
    /// Further names of the same file that were come upon.
    pub(crate) other_names: u64,
}

/// What a search came to.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    /// By path.
    pub(crate) images: Vec<Found>,
    /// What could not be looked into, and why.
    pub(crate) refused: Vec<(PathBuf, String)>,
    /// Roots, as absolute paths, that could be searched.
    pub(crate) roots: Vec<PathBuf>,
    /// Roots, as absolute paths, that could not.
    pub(crate) lost: BTreeSet<PathBuf>,
    /// What could not be looked into; what is below may be there all the same.
    hidden: BTreeSet<PathBuf>,
    /// Symbolic links that were not followed.
    pub(crate) links: u64,
    /// A signal ended the search.
    pub(crate) is_stopped: bool,
}

/// Searches all roots.
pub(crate) fn discover(roots: &[PathBuf], search: &SearchArgs) -> Result<Discovery, String> {
    let mut discovery = Discovery::default();
    let mut files = BTreeMap::new();
    for root in roots {
        let found = fs::canonicalize(root).and_then(|path| Ok((fs::metadata(&path)?, path)));
        match found {
            Ok((metadata, path)) if metadata.is_dir() => {
                search_below(&path, search, &mut discovery, &mut files)?;
                discovery.roots.push(path);
            }
            // What a person names is looked at whatever its first bytes are.
            Ok((metadata, path)) if is_image_store(&metadata) => {
                note(&mut files, path.clone(), &metadata);
                discovery.roots.push(path);
            }
            Ok(_) => {
                let reason = "neither a directory, nor a regular file, nor a block device";
                discovery.refused.push((root.clone(), reason.to_owned()));
            }
            Err(error) => {
                discovery.refused.push((root.clone(), error.to_string()));
                discovery.lost.extend(where_it_was(root));
            }
        }
    }
    discovery.images = by_path(files);
    discovery.refused.sort();
    let hidden = discovery.refused.iter();
    discovery.hidden = hidden.map(|(path, _)| path.clone()).collect();
    Ok(discovery)
}

/// The path a root had when it was there: no link is left in it.
fn where_it_was(root: &Path) -> Option<PathBuf> {
    let mut path = std::path::absolute(root).ok()?;
    for _ in 0..MOST_LINKS {
        let parent = path.parent()?.to_owned();
        let Ok(target) = fs::read_link(&path) else {
            return parent.ancestors().find_map(|above| {
                let real = fs::canonicalize(above).ok()?;
                Some(real.join(path.strip_prefix(above).ok()?))
            });
        };
        path = parent.join(target);
    }
    None
}

/// What is to be done about an image that has a record and was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfound {
    /// Nothing: this audit is not about it.
    Elsewhere,
    /// Its record goes: it is left out of the search, was found under another name, or it was told that it is gone.
    Forgotten,
    /// It is to be looked at: it may be gone, or its first bytes are. Where its directory is not there or has nothing any
    /// more, that is not how an image goes.
    Expected(Place),
}

impl Discovery {
    /// Judges an image that has a record and was not found. Where its directory looks as if a disk were not mounted, that
    /// is noted as something that could not be looked into.
    pub(crate) fn judge(&mut self, row: &AuditRow, night: Night) -> Unfound {
        let path = row.name.to_path();
        let is_below = |places: &BTreeSet<PathBuf>| {
            let mut above = path.ancestors();
            above.any(|above| places.contains(above))
        };
        if is_below(&self.lost) {
            return Unfound::Expected(Place::Lost);
        }
        let Some(root) = self.roots.iter().find(|root| path.starts_with(root)) else {
            return Unfound::Elsewhere;
        };
        let was_told = row.status == ImageStatus::Gone && row.night < night.night;
        if is_behind_link(&path, root) {
            return if was_told {
                Unfound::Forgotten
            } else {
                Unfound::Expected(Place::Linked)
            };
        }
        let is_absent = path
            .symlink_metadata()
            .is_err_and(|error| is_absence(error.kind()));
        if is_absent {
            if was_told {
                return Unfound::Forgotten;
            }
            let Some(emptied) = self.emptied(&path) else {
                return Unfound::Expected(Place::Usual);
            };
            self.lost.insert(emptied.clone());
            let reason = "there were images, and there is none any more: is its disk mounted?";
            self.refused.push((emptied, reason.to_owned()));
            return Unfound::Expected(Place::Lost);
        }
        // What is below a directory that could not be read is there all the same.
        let is_left_out = !is_below(&self.hidden) && begins_as_image(&path).unwrap_or(false);
        if is_left_out {
            Unfound::Forgotten
        } else {
            Unfound::Expected(Place::Usual)
        }
    }

    /// The directory that lost an image together with everything else, as the place of a disk that is not mounted has: it
    /// is empty, or it is a root without an image.
    fn emptied(&self, path: &Path) -> Option<PathBuf> {
        let directory = path.ancestors().skip(1).find(|above| above.is_dir())?;
        let is_empty = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty {
            return Some(directory.to_owned());
        }
        let mut roots = self.roots.iter().filter(|root| path.starts_with(root));
        let has_images = |root: &Path| {
            // With a line at its end it is right before what is in it.
            let first = root.join("");
            let before = |image: &Found| image.path.as_os_str() < first.as_os_str();
            let place = self.images.partition_point(before);
            let next = self.images.get(place);
            next.is_some_and(|image| image.path.starts_with(root))
        };
        let root = roots.find(|root| root.is_dir() && !has_images(root));
        root.cloned()
    }
}

/// Whether a path is a symbolic link or leads through one. A root has none, so what was once found below it had none.
fn is_behind_link(path: &Path, root: &Path) -> bool {
    let mut below = path.ancestors().take_while(|above| *above != root);
    below.any(Path::is_symlink)
}

/// The names of a list, as images: whatever is there, or is not.
pub(crate) fn named(paths: Vec<PathBuf>) -> Discovery {
    let mut files = BTreeMap::new();
    let mut absent = Vec::new();
    for path in paths {
        let path = std::path::absolute(&path).unwrap_or(path);
        match fs::metadata(&path) {
            Ok(metadata) => note(&mut files, path, &metadata),
            Err(_) => absent.push(Found {
                path,
                cost: 0,
                other_names: 0,
            }),
        }
    }
    let mut images = by_path(files);
    images.extend(absent);
    images.sort_by(|one, other| one.path.as_os_str().cmp(other.path.as_os_str()));
    images.dedup_by(|one, other| one.path == other.path);
    Discovery {
        images,
        ..Discovery::default()
    }
}

/// Files with their names and what they take up: a file with two names is one image.
type Files = BTreeMap<FileKey, (BTreeSet<PathBuf>, u64)>;

/// What tells files apart: device and inode; and the path, where a file has one name alone. Some file systems give two
/// files one number.
type FileKey = (u64, u64, Option<PathBuf>);

fn by_path(files: Files) -> Vec<Found> {
    let image = |(names, cost): (BTreeSet<PathBuf>, u64)| {
        let other_names = (names.len() as u64).saturating_sub(1);
        // The first by name, whatever the order they were come upon.
        let first = |one: &PathBuf, other: &PathBuf| one.as_os_str().cmp(other.as_os_str());
        let path = names.into_iter().min_by(first)?;
        Some(Found {
            path,
            cost,
            other_names,
        })
    };
    let mut images: Vec<Found> = files.into_values().filter_map(image).collect();
    images.sort_by(|one, other| one.path.as_os_str().cmp(other.path.as_os_str()));
    images
}

fn is_image_store(metadata: &Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_block_device()
}

fn note(files: &mut Files, path: PathBuf, metadata: &Metadata) {
    let key = if metadata.file_type().is_block_device() {
        (metadata.rdev(), 0, None)
    } else {
        let alone = (metadata.nlink() == 1).then(|| path.clone());
        (metadata.dev(), metadata.ino(), alone)
    };
    let cost = metadata.blocks().saturating_mul(512);
    let (names, _) = files.entry(key).or_insert_with(|| (BTreeSet::new(), cost));
    let _is_new = names.insert(path);
}

/// What one thread of the search came upon.
enum Met {
    Image(PathBuf, Metadata),
    Refused(PathBuf, String),
    /// A directory whose list of what to leave out is not to be opened.
    BadIgnoreFile(PathBuf),
    Link,
}

fn search_below(
    root: &Path,
    search: &SearchArgs,
    discovery: &mut Discovery,
    files: &mut Files,
) -> Result<(), String> {
    let mut excluded = OverrideBuilder::new(root);
    for pattern in &search.exclude {
        // There, `!` in front means that a match is left out.
        let line = pattern
            .strip_prefix('!')
            .map_or_else(|| format!("!{pattern}"), str::to_owned);
        excluded.add(&line).map_err(|error| error.to_string())?;
    }
    let excluded = excluded.build().map_err(|error| error.to_string())?;
    let obeys = !search.no_ignore_files;
    let mut places = vec![(root.to_owned(), obeys && !has_bad_ignore_file(root))];
    if obeys && has_bad_ignore_file(root) {
        discovery.refused.push(bad_ignore_file(root));
    }
    while let Some((place, obeys)) = places.pop() {
        let excluded = excluded.clone();
        for met in walk(&place, excluded, obeys, search.one_file_system) {
            match met {
                Met::Image(path, metadata) => note(files, path, &metadata),
                Met::Refused(path, reason) => discovery.refused.push((path, reason)),
                Met::BadIgnoreFile(path) => {
                    discovery.refused.push(bad_ignore_file(&path));
                    // It is searched for all that.
                    places.push((path, false));
                }
                Met::Link => discovery.links += 1,
            }
        }
        discovery.is_stopped |= Watch::is_interrupted();
    }
    Ok(())
}

/// Searches one place.
fn walk(
    place: &Path,
    excluded: Override,
    obeys: bool,
    one_file_system: bool,
) -> std::sync::mpsc::Receiver<Met> {
    let (tell, hear) = std::sync::mpsc::channel();
    let mut walk = WalkBuilder::new(place);
    walk.standard_filters(false)
        .follow_links(false)
        .same_file_system(one_file_system)
        .overrides(excluded);
    if obeys {
        walk.add_custom_ignore_filename(IGNORE_FILE);
        let tell = tell.clone();
        walk.filter_entry(move |entry| {
            let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir());
            let is_bad = is_directory && has_bad_ignore_file(entry.path());
            if is_bad {
                // The receiver outlives the search.
                let _told = tell.send(Met::BadIgnoreFile(entry.path().to_owned()));
            }
            !is_bad
        });
    }
    walk.build_parallel().run(|| {
        let tell = tell.clone();
        let place = place.to_owned();
        Box::new(move |entry| {
            if Watch::is_interrupted() {
                return WalkState::Quit;
            }
            for met in meet(entry, &place) {
                let _told = tell.send(met);
            }
            WalkState::Continue
        })
    });
    hear
}

/// Whether the list of what to leave out in a directory is no plain short file: a FIFO would be waited for without end,
/// and a link may lead anywhere.
fn has_bad_ignore_file(directory: &Path) -> bool {
    match fs::symlink_metadata(directory.join(IGNORE_FILE)) {
        Ok(metadata) => !metadata.is_file() || metadata.len() > MOST_IGNORE_BYTES,
        Err(_) => false,
    }
}

fn bad_ignore_file(directory: &Path) -> (PathBuf, String) {
    let reason = "it is no short plain file; nothing is left out because of it";
    (directory.join(IGNORE_FILE), reason.to_owned())
}

fn meet(entry: Result<ignore::DirEntry, ignore::Error>, root: &Path) -> Vec<Met> {
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => {
            // What vanished meanwhile is not there.
            let reason = error.io_error();
            if reason.is_some_and(|error| error.kind() == io::ErrorKind::NotFound) {
                return Vec::new();
            }
            let reason = reason.map_or_else(|| error.to_string(), ToString::to_string);
            let place = place_of(&error).unwrap_or(root).to_owned();
            return vec![Met::Refused(place, reason)];
        }
    };
    let mut met = Vec::new();
    if let Some(error) = entry.error() {
        met.push(Met::Refused(entry.path().to_owned(), error.to_string()));
    }
    let Some(kind) = entry.file_type() else {
        return met;
    };
    if kind.is_symlink() {
        met.push(Met::Link);
    }
    if !kind.is_file() {
        return met;
    }
    let path = entry.into_path();
    match look_into(&path) {
        Ok(Some(metadata)) => met.push(Met::Image(path, metadata)),
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => met.push(Met::Refused(path, error.to_string())),
    }
    met
}

/// Where something went wrong.
fn place_of(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            place_of(err)
        }
        _ => None,
    }
}

/// Whether a regular file is an image, or is named like one.
fn look_into(path: &Path) -> io::Result<Option<Metadata>> {
    let is_named = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
    let (metadata, starts) = match first_bytes(path) {
        Ok(first) => first,
        // It is known to be one, so it gets a record, which says the same.
        Err(error) if is_named && error.kind() != io::ErrorKind::NotFound => {
            return fs::symlink_metadata(path).map(Some);
        }
        Err(error) => return Err(error),
    };
    Ok((metadata.is_file() && (starts || is_named)).then_some(metadata))
}

/// Whether an error says that there is no such file.
pub(crate) fn is_absence(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a file begins as an image does.
pub(crate) fn begins_as_image(path: &Path) -> io::Result<bool> {
    first_bytes(path).map(|(_, starts)| starts)
}

fn first_bytes(path: &Path) -> io::Result<(Metadata, bool)> {
    let mut file = open(path)?;
    // It may have become something else since the directory was read.
    let metadata = file.metadata()?;
    let mut bytes = [0; MAGIC.len()];
    if !metadata.is_file() {
        return Ok((metadata, false));
    }
    let starts = match file.read_exact(&mut bytes) {
        Ok(()) => bytes == MAGIC,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    Ok((metadata, starts))
}

fn open(path: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}
