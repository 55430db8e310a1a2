//! Persistent bitmaps.
//!
//! Checks: the extension, the directory's entries and names, each table's place, size and words.
//! Collects: the claims of the directory, the tables and their data, where the bitmaps are to be believed.
//! Never here: the bits themselves.

use std::collections::BTreeMap;

use super::pieces::{entries_walked, for_each_piece};
use super::{Notes, Survey, Walk};
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding, OwnerKind, escaped};
use crate::qcow2::{
    BitmapDirectoryEntry, BitmapTableEntry, BitmapsExtension, ClusterRange, DirectoryDecode,
    Extension, ExtensionKind, MAX_BITMAP_DATA_BYTES, MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAP_NAME_BYTES, MAX_BITMAP_TABLE_ENTRIES, MAX_BITMAPS, Place, Refusal, words,
};
use crate::storage::Storage;

/// Bitmap table entries walked in one image before qfsck calls it a trap.
const MAX_TABLE_ENTRIES_WALKED: u64 = 1 << 24;
/// Of those, entries that tables lying over one another may have together, beyond twice the entries there are. Sound
/// tables have places of their own.
const MAX_ENTRIES_OVERLAPPING: u64 = 1 << 15;
/// QEMU's range of bitmap granularities, as powers of two.
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// The only bitmap type there is: dirty tracking.
const DIRTY_TRACKING: u8 = 1;

/// Judges the bitmaps and claims their clusters.
pub(super) fn walk_bitmaps<S: Storage>(walk: Walk<'_, S>, survey: &mut Survey, notes: &mut Notes) {
    let header = walk.image.header();
    let extension = walk.image.extensions().find(ExtensionKind::Bitmaps);
    let Some(extension) = extension else {
        if header.has_consistent_bitmaps() {
            notes.push(Finding::new(
                Code::BitmapsAutoclearWithoutExtension,
                Place::Header {
                    field: "autoclear_features",
                },
            ));
        }
        return;
    };
    let place = Place::HeaderExtension {
        offset: extension.offset,
    };
    if !header.has_consistent_bitmaps() {
        notes.push(Finding::new(Code::BitmapsStale, place));
        // QEMU looks at the length even of an extension it is going to drop.
        if BitmapsExtension::decode(&extension.data).is_none() {
            let detail = format!("it has {} bytes instead of 24", extension.data.len());
            notes.push(Finding::new(Code::BitmapsExtensionMalformed, place).detail(detail));
        }
        return;
    }
    match judge_extension(walk, extension) {
        Err(detail) => {
            notes.push(Finding::new(Code::BitmapsExtensionMalformed, place).detail(detail));
            notes.gap(Gap::refused(place, "no bitmap could be walked"));
        }
        Ok(bitmaps) => walk_directory(walk, bitmaps, survey, notes),
    }
}

/// The extension's fields, or what is impossible about them.
pub(crate) fn judge_extension<S: Storage>(
    walk: Walk<'_, S>,
    extension: &Extension,
) -> Result<BitmapsExtension, String> {
    let bitmaps = BitmapsExtension::decode(&extension.data)
        .ok_or_else(|| format!("it has {} bytes instead of 24", extension.data.len()))?;
    if bitmaps.reserved != 0 {
        return Err("its reserved field is not zero".to_owned());
    }
    if !(1..=MAX_BITMAPS).contains(&bitmaps.bitmap_count) {
        return Err(format!("it counts {} bitmaps", bitmaps.bitmap_count));
    }
    if !walk.geometry.is_aligned(bitmaps.directory_offset) {
        return Err(format!(
            "the directory at {} is not at a cluster boundary",
            bitmaps.directory_offset
        ));
    }
    if bitmaps.directory_bytes == 0 || bitmaps.directory_bytes > MAX_BITMAP_DIRECTORY_BYTES {
        return Err(format!(
            "the directory has {} bytes",
            bitmaps.directory_bytes
        ));
    }
    Ok(bitmaps)
}

fn walk_directory<S: Storage>(
    walk: Walk<'_, S>,
    bitmaps: BitmapsExtension,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let place = Place::BitmapDirectory;
    let malformed = |notes: &mut Notes, detail: String| {
        notes.push(Finding::new(Code::BitmapDirectoryMalformed, place).detail(detail));
        notes.gap(Gap::refused(
            place,
            "bitmaps behind the break were not walked",
        ));
    };
    let offset = bitmaps.directory_offset;
    let bytes = bitmaps.directory_bytes;
    let Ok(clusters) = walk.geometry.admit_table(offset, bytes) else {
        return malformed(
            notes,
            format!("{bytes} bytes at {offset} are not in the file"),
        );
    };
    survey.claim(clusters, OwnerKind::BitmapDirectory, place);
    let mut directory = vec![0; usize::try_from(bytes).unwrap_or(0)];
    if let Err(error) = walk.image.read_into(offset, &mut directory) {
        notes.gap(Gap::unreadable(place, &error));
        return;
    }
    let mut rest = directory.as_slice();
    let mut names = BTreeMap::new();
    let mut budget = table_entries_walked(walk, rest, bitmaps.bitmap_count);
    let mut found: u32 = 0;
    while !rest.is_empty() && found < bitmaps.bitmap_count {
        let DirectoryDecode::Entry(entry, step) = BitmapDirectoryEntry::decode(rest) else {
            return malformed(notes, format!("it ends inside entry {found}"));
        };
        walk_bitmap(walk, found, &entry, &mut budget, survey, notes);
        judge_name(found, &entry.name, &mut names, notes);
        survey.bitmap_names.push(entry.name);
        rest = rest
            .get(usize::try_from(step).unwrap_or(0)..)
            .unwrap_or(&[]);
        found += 1;
    }
    if found < bitmaps.bitmap_count {
        malformed(
            notes,
            format!("it holds {found} of {} bitmaps", bitmaps.bitmap_count),
        );
    } else if !rest.is_empty() {
        malformed(
            notes,
            format!("{} bytes follow the last bitmap", rest.len()),
        );
    }
}

/// How many entries of all tables are walked at most.
pub(crate) fn table_entries_walked<S: Storage>(
    walk: Walk<'_, S>,
    mut rest: &[u8],
    count: u32,
) -> u64 {
    let mut tables = Vec::new();
    for _ in 0..count {
        let DirectoryDecode::Entry(entry, step) = BitmapDirectoryEntry::decode(rest) else {
            break;
        };
        let bytes = u64::from(entry.bitmap_table_size) * 8;
        tables.extend(walk.geometry.clip_table(entry.bitmap_table_offset, bytes));
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        rest = rest.get(step..).unwrap_or(&[]);
    }
    entries_walked(
        walk.geometry,
        tables,
        MAX_ENTRIES_OVERLAPPING,
        MAX_TABLE_ENTRIES_WALKED,
    )
}

fn judge_name(index: u32, name: &[u8], names: &mut BTreeMap<Vec<u8>, u32>, notes: &mut Notes) {
    let place = Place::BitmapEntry { index };
    if let Some(first) = names.get(name) {
        notes.push(
            Finding::new(Code::BitmapNameDuplicate, place)
                .detail(format!("\"{}\" as bitmap #{first}", escaped(name))),
        );
    } else {
        names.insert(name.to_vec(), index);
    }
}

/// What is out of range in an entry, in QEMU's terms; an entry like this makes the whole image unopenable.
fn invalid_entry<S: Storage>(walk: Walk<'_, S>, entry: &BitmapDirectoryEntry) -> Option<String> {
    let data_bytes = u64::from(entry.bitmap_table_size) * walk.geometry.cluster_bytes();
    let problems = [
        (entry.bitmap_table_size == 0, "its table has no entries"),
        (entry.bitmap_table_offset.0 == 0, "its table has no offset"),
        (
            !walk.geometry.is_aligned(entry.bitmap_table_offset),
            "its table is not at a cluster boundary",
        ),
        (
            entry.bitmap_table_size > MAX_BITMAP_TABLE_ENTRIES
                || data_bytes > MAX_BITMAP_DATA_BYTES,
            "its table is too large",
        ),
        (
            !GRANULARITY_BITS.contains(&entry.granularity_bits),
            "its granularity is out of range",
        ),
        (entry.unknown_flags() != 0, "it has unknown flags"),
        (entry.bitmap_type != DIRTY_TRACKING, "its type is unknown"),
        (
            entry.name.is_empty() || entry.name.len() > usize::from(MAX_BITMAP_NAME_BYTES),
            "its name is empty or too long",
        ),
    ];
    let what: Vec<&str> = problems
        .iter()
        .filter_map(|(is_wrong, what)| is_wrong.then_some(*what))
        .collect();
    (!what.is_empty()).then(|| format!("bitmap \"{}\": {}", escaped(&entry.name), what.join(", ")))
}

/// Judges one bitmap by itself, and claims its clusters.
pub(crate) fn walk_bitmap<S: Storage>(
    walk: Walk<'_, S>,
    index: u32,
    entry: &BitmapDirectoryEntry,
    budget: &mut u64,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let place = Place::BitmapEntry { index };
    let name = escaped(&entry.name);
    if let Some(detail) = invalid_entry(walk, entry) {
        notes.push(Finding::new(Code::BitmapEntryInvalid, place).detail(detail));
        notes.gap(Gap::refused(place, "this bitmap was not walked"));
        return;
    }
    if entry.extra_data_size != 0 || entry.allows_extra_data() {
        notes.push(Finding::new(Code::BitmapExtraData, place).detail(format!(
            "bitmap \"{name}\": {} bytes",
            entry.extra_data_size
        )));
    }
    if entry.is_in_use() {
        notes.push(Finding::new(Code::BitmapInUse, place).detail(format!("bitmap \"{name}\"")));
    } else {
        let needed = table_entries_needed(walk, entry);
        if needed != u64::from(entry.bitmap_table_size) {
            notes.push(
                Finding::new(Code::BitmapTableSizeWrong, place).detail(format!(
                    "bitmap \"{name}\": {} entries, {needed} needed",
                    entry.bitmap_table_size
                )),
            );
        }
        if needed > u64::from(entry.bitmap_table_size) {
            notes.refuse(place, || {
                "what is behind the last entry of its table was not claimed".to_owned()
            });
        }
    }
    walk_bitmap_table(walk, index, entry, budget, survey, notes);
}

/// Entries a table has that covers the virtual disk, one bit for each granule.
fn table_entries_needed<S: Storage>(walk: Walk<'_, S>, entry: &BitmapDirectoryEntry) -> u64 {
    let granularity = 1_u64 << entry.granularity_bits;
    let data_bytes = walk.image.header().size.div_ceil(granularity).div_ceil(8);
    walk.geometry.clusters_for(data_bytes)
}

/// Claims a bitmap's table and all it names.
pub(crate) fn walk_bitmap_table<S: Storage>(
    walk: Walk<'_, S>,
    bitmap: u32,
    entry: &BitmapDirectoryEntry,
    budget: &mut u64,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let place = Place::BitmapTable { bitmap };
    let offset = entry.bitmap_table_offset;
    let bytes = u64::from(entry.bitmap_table_size) * 8;
    let Ok(clusters) = walk.geometry.admit_table(offset, bytes) else {
        notes.push(
            Finding::new(Code::BitmapTablePastEnd, place)
                .detail(format!("{bytes} bytes at {offset}")),
        );
        notes.gap(Gap::refused(place, "this bitmap was not walked"));
        return;
    };
    if walk.progress.is_stopped() {
        notes.gap(Gap::stopped(place));
        return;
    }
    let entries = u64::from(entry.bitmap_table_size);
    let Some(left) = budget.checked_sub(entries) else {
        survey.is_cut_short = true;
        notes.gap(Gap {
            place,
            kind: GapKind::WorkLimit,
            detail: "with it the image has more bitmap table entries than are walked".to_owned(),
        });
        return;
    };
    *budget = left;
    survey.claim(clusters, OwnerKind::BitmapTable, place);
    for_each_piece(walk, offset, bytes, |done, piece| {
        if walk.progress.is_stopped() {
            notes.gap(Gap::stopped(place));
            return false;
        }
        match piece {
            Err(error) => {
                notes.gap(Gap::unreadable(place, &error));
                false
            }
            Ok(piece) => {
                for (index, word) in (done / 8..).zip(words(piece)) {
                    walk_table_entry(walk, bitmap, index, BitmapTableEntry(word), survey, notes);
                }
                true
            }
        }
    });
}

fn walk_table_entry<S: Storage>(
    walk: Walk<'_, S>,
    bitmap: u32,
    index: u64,
    entry: BitmapTableEntry,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let place = Place::BitmapTableEntry { bitmap, index };
    let mut refuse = |code| {
        notes.push(Finding::new(code, place).word(entry.0));
        notes.refuse(place, || {
            "this part of the bitmap was not claimed".to_owned()
        });
    };
    if entry.reserved_bits() != 0 {
        return refuse(Code::BitmapTableEntryInvalid);
    }
    let Some(offset) = entry.data_offset() else {
        return;
    };
    match walk.geometry.admit(offset) {
        Err(Refusal::Unaligned) => refuse(Code::BitmapTableEntryInvalid),
        Err(Refusal::PastEnd) => refuse(Code::BitmapDataPastEnd),
        Ok(cluster) => {
            survey.claim(ClusterRange::one(cluster), OwnerKind::BitmapData, place);
        }
    }
}
