//! Snapshot table.
//!
//! Checks: the table's place, each entry's lengths, names and IDs, and its L1 table's place and size.
//! Collects: the table's claim and the snapshots. Never here: a snapshot's mapping (that is `mapping.rs`).

use std::collections::BTreeMap;
use std::io;

use super::header::is_printable;
use super::{Notes, Survey, Walk};
use crate::coverage::Gap;
use crate::finding::{Code, Finding, OwnerKind, escaped};
use crate::qcow2::{
    HostOffset, MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, Place,
    SNAPSHOT_FIXED_BYTES, SNAPSHOT_V3_EXTRA_BYTES, SnapshotEntry, SnapshotFixed,
};
use crate::storage::Storage;

/// Judges the snapshot table, claims it, and collects its entries.
pub(super) fn walk_snapshots<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let header = walk.image.header();
    let place = Place::SnapshotTable;
    let offset = HostOffset(header.snapshots_offset);
    if header.nb_snapshots == 0 {
        // QEMU looks at the offset even of an empty table.
        if !walk.geometry.is_aligned(offset) {
            notes.push(Finding::new(Code::SnapshotTableUnaligned, place).word(offset.0));
        }
        return;
    }
    if header.has_data_file() {
        notes.push(
            Finding::new(Code::SnapshotsWithDataFile, place)
                .detail(format!("{} snapshots", header.nb_snapshots)),
        );
    }
    if !walk.geometry.is_aligned(offset) {
        notes.push(Finding::new(Code::SnapshotTableUnaligned, place).word(offset.0));
        notes.gap(Gap::refused(place, "no snapshot could be walked"));
        return;
    }
    let mut count = header.nb_snapshots;
    if count > MAX_SNAPSHOTS {
        notes.push(
            Finding::new(Code::SnapshotCountTooLarge, place)
                .word(count.into())
                .detail(format!("nb_snapshots is {count}")),
        );
        notes.gap(Gap::refused(
            place,
            format!("only {MAX_SNAPSHOTS} entries were read"),
        ));
        count = MAX_SNAPSHOTS;
    }
    let table_bytes = read_entries(walk, offset, count, survey, notes);
    claim_table(walk, offset, table_bytes, survey, notes);
    let is_wiped = |entry: &SnapshotEntry| {
        entry.is_blank()
            && entry.offset.saturating_add(SNAPSHOT_FIXED_BYTES) <= walk.geometry.file_bytes()
    };
    if survey.snapshots.iter().any(is_wiped) {
        notes.gap(Gap::refused(
            place,
            "entries of zeros may have been snapshots",
        ));
    }
    judge_names(&survey.snapshots, notes);
}

fn claim_table<S: Storage>(
    walk: Walk<'_, S>,
    offset: HostOffset,
    table_bytes: u64,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    if table_bytes == 0 {
        return;
    }
    let place = Place::SnapshotTable;
    if let Ok(clusters) = walk.geometry.admit_table(offset, table_bytes) {
        survey.claim(clusters, OwnerKind::SnapshotTable, place);
        return;
    }
    if let Some(clusters) = walk.geometry.clip_table(offset, table_bytes) {
        survey.claim(clusters, OwnerKind::SnapshotTable, place);
    }
    notes.push(
        Finding::new(Code::SnapshotTableTruncated, place).detail(format!(
            "{table_bytes} bytes at {offset} reach past the end of the file"
        )),
    );
    notes.gap(Gap::refused(place, "its part past the end reads as zero"));
}

/// Reads the entries one after the other; says how many bytes of table they fill.
fn read_entries<S: Storage>(
    walk: Walk<'_, S>,
    table_offset: HostOffset,
    count: u32,
    survey: &mut Survey,
    notes: &mut Notes,
) -> u64 {
    let mut table_bytes = 0;
    for index in 0..count {
        let place = Place::SnapshotEntry { index };
        let offset = table_offset.0.saturating_add(table_bytes);
        let entry = match read_entry(walk, offset) {
            Ok(entry) => entry,
            Err(error) => {
                notes.gap(Gap::unreadable(place, &error));
                return table_bytes;
            }
        };
        let end = table_bytes.saturating_add(entry.fixed.padded_bytes());
        if entry.fixed.extra_data_size > MAX_SNAPSHOT_EXTRA_BYTES {
            notes.push(
                Finding::new(Code::SnapshotExtraDataTooLarge, place)
                    .detail(format!("{} bytes", entry.fixed.extra_data_size)),
            );
        }
        let Some(entry) = entry.whole.filter(|_| end <= MAX_SNAPSHOT_TABLE_BYTES) else {
            notes.push(Finding::new(Code::SnapshotTableTruncated, place));
            notes.gap(Gap::refused(
                place,
                "this entry and those behind it were not read",
            ));
            return table_bytes;
        };
        table_bytes = end;
        judge_entry(walk, index, &entry, notes);
        survey.snapshots.push(entry);
    }
    table_bytes
}

/// An entry as far as it can be read.
struct ReadEntry {
    fixed: SnapshotFixed,
    /// `None` where its lengths cannot be right or it runs past the end of the file.
    whole: Option<SnapshotEntry>,
}

fn read_entry<S: Storage>(walk: Walk<'_, S>, offset: u64) -> io::Result<ReadEntry> {
    let mut bytes = [0; 40];
    walk.image.read_into(HostOffset(offset), &mut bytes)?;
    let fixed = SnapshotFixed::decode(&bytes)
        .ok_or_else(|| io::Error::other("a snapshot entry's fixed part has 40 bytes"))?;
    let length = fixed.entry_bytes();
    let starts_in_file = offset.saturating_add(SNAPSHOT_FIXED_BYTES) <= walk.geometry.file_bytes();
    let ends_in_file = offset.saturating_add(length) <= walk.geometry.file_bytes();
    // A count too large reads zeros past the end as blank entries; those are kept and reported as phantoms.
    let is_blank = length == SNAPSHOT_FIXED_BYTES;
    let is_readable = is_blank || (starts_in_file && ends_in_file);
    if !is_readable || fixed.extra_data_size > MAX_SNAPSHOT_EXTRA_BYTES * 1024 {
        return Ok(ReadEntry { fixed, whole: None });
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    walk.image.read_into(HostOffset(offset), &mut bytes)?;
    Ok(ReadEntry {
        fixed,
        whole: SnapshotEntry::decode(&bytes, offset),
    })
}

fn judge_entry<S: Storage>(
    walk: Walk<'_, S>,
    index: u32,
    entry: &SnapshotEntry,
    notes: &mut Notes,
) {
    let place = Place::SnapshotEntry { index };
    if entry.is_blank() {
        notes.push(Finding::new(Code::SnapshotPhantom, place));
        return;
    }
    let is_v3 = walk.image.header().version == 3;
    if is_v3 && entry.fixed.extra_data_size < SNAPSHOT_V3_EXTRA_BYTES {
        notes.push(
            Finding::new(Code::SnapshotEntryIncomplete, place).detail(format!(
                "{} bytes of extra data",
                entry.fixed.extra_data_size
            )),
        );
    }
    judge_sizes(walk, place, entry, notes);
}

/// Does the L1 table have room for the disk, and for the VM state behind it?
fn judge_sizes<S: Storage>(
    walk: Walk<'_, S>,
    place: Place,
    entry: &SnapshotEntry,
    notes: &mut Notes,
) {
    let not_walked = |notes: &mut Notes| {
        notes.refuse(place, || {
            "tables behind the last entry were not walked".to_owned()
        });
    };
    let disk_bytes = entry.disk_bytes.unwrap_or(walk.image.header().size);
    let disk_entries = walk.geometry.l1_entries_needed(disk_bytes);
    let have = u64::from(entry.fixed.l1_size);
    if have < disk_entries {
        notes.push(
            Finding::new(Code::SnapshotL1TooSmall, place).detail(format!(
                "{have} entries, {disk_entries} needed for {disk_bytes} bytes"
            )),
        );
        return not_walked(notes);
    }
    let state_entries = walk.geometry.l1_entries_needed(entry.vm_state_bytes);
    if have - disk_entries < state_entries {
        notes.push(
            Finding::new(Code::SnapshotVmStateBeyondL1, place).detail(format!(
                "{} bytes of VM state need {state_entries} entries behind the disk's {disk_entries}, the table has {have}",
                entry.vm_state_bytes
            )),
        );
        not_walked(notes);
    }
}

fn judge_names(snapshots: &[SnapshotEntry], notes: &mut Notes) {
    let mut ids = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (index, entry) in (0_u32..).zip(snapshots) {
        if entry.is_blank() {
            continue;
        }
        let place = Place::SnapshotEntry { index };
        let is_readable =
            !entry.id.is_empty() && is_printable(&entry.id) && is_printable(&entry.name);
        if !is_readable {
            notes.push(
                Finding::new(Code::SnapshotNameUnreadable, place).detail(format!(
                    "ID \"{}\", name \"{}\"",
                    escaped(&entry.id),
                    escaped(&entry.name)
                )),
            );
        }
        if let Some(first) = ids.get(&entry.id) {
            notes.push(
                Finding::new(Code::SnapshotIdDuplicate, place).detail(format!(
                    "ID \"{}\" as snapshot #{first}",
                    escaped(&entry.id)
                )),
            );
        } else {
            ids.insert(&entry.id, index);
        }
        if let Some(first) = names.get(&entry.name) {
            notes.push(
                Finding::new(Code::SnapshotNameDuplicate, place)
                    .detail(format!("\"{}\" as snapshot #{first}", escaped(&entry.name))),
            );
        } else if !entry.name.is_empty() {
            names.insert(&entry.name, index);
        }
    }
}
