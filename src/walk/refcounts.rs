//! Refcount table.
//!
//! Checks: the table's place and size, its entries' reserved bits, alignment and range, and no block named twice.
//! Collects: the claims of the table and its blocks, and the blocks that can be read.
//! Never here: a count (that is `check/stored.rs`); more counts than are stored, because entries name the same block
//! over and over.

use std::collections::BTreeMap;

use super::{Notes, RefcountBlockItem, Survey, Walk};
use crate::coverage::Gap;
use crate::finding::{Code, Finding, OwnerKind};
use crate::qcow2::{
    ClusterRange, HostCluster, HostOffset, MAX_REFCOUNT_ORDER, MAX_REFCOUNT_TABLE_BYTES, Place,
    RefcountTableEntry, Refusal, words,
};
use crate::storage::Storage;

/// Counts of blocks that are named again which are believed all the same, beyond as many as there are in all blocks.
const REPEATED_COUNTS: u64 = 1 << 22;

/// Judges the refcount table and claims it and its blocks.
pub(super) fn walk_refcount_table<S: Storage>(
    walk: Walk<'_, S>,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let header = walk.image.header();
    if header.refcount_order > MAX_REFCOUNT_ORDER {
        survey.unknown_counts.all = true;
        return;
    }
    let offset = HostOffset(header.refcount_table_offset);
    let mut bytes = u64::from(header.refcount_table_clusters) * walk.geometry.cluster_bytes();
    let place = Place::RefcountTable;
    if bytes == 0 || offset.0 == 0 {
        notes.push(
            Finding::new(Code::RefcountTableMissing, place).detail(format!(
                "refcount_table_clusters is {}, refcount_table_offset {offset}",
                header.refcount_table_clusters
            )),
        );
        return;
    }
    if bytes > MAX_REFCOUNT_TABLE_BYTES {
        notes.push(
            Finding::new(Code::RefcountTableTooLarge, place).detail(format!("{bytes} bytes")),
        );
        notes.gap(Gap::refused(place, "only the first 8 MiB were read"));
        bytes = MAX_REFCOUNT_TABLE_BYTES;
    }
    match walk.geometry.admit_clusters(offset, bytes) {
        Err(Refusal::Unaligned) => {
            notes.push(Finding::new(Code::RefcountTableUnaligned, place).word(offset.0));
            notes.gap(Gap::refused(
                place,
                "the stored refcounts cannot be located",
            ));
            survey.unknown_counts.all = true;
            return;
        }
        Err(Refusal::PastEnd) => {
            notes.push(
                Finding::new(Code::RefcountTablePastEnd, place)
                    .detail(format!("{bytes} bytes at {offset}")),
            );
            notes.gap(Gap::refused(place, "its part past the end reads as zero"));
            if let Some(clusters) = walk.geometry.clip_table(offset, bytes) {
                survey.claim(clusters, OwnerKind::RefcountTable, place);
            }
        }
        Ok(clusters) => survey.claim(clusters, OwnerKind::RefcountTable, place),
    }
    walk_entries(walk, offset, bytes, survey, notes);
}

fn walk_entries<S: Storage>(
    walk: Walk<'_, S>,
    table_offset: HostOffset,
    bytes: u64,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    // At most 8 MiB, and no more than the file holds.
    let bytes = bytes.min(walk.geometry.word_bytes_from(table_offset));
    let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
    if let Err(error) = walk.image.read_into(table_offset, &mut table) {
        notes.gap(Gap::unreadable(Place::RefcountTable, &error));
        survey.unknown_counts.all = true;
        return;
    }
    let mut users = Users::default();
    for (index, word) in (0_u64..).zip(words(&table)) {
        if word != 0 {
            walk_entry(walk, index, word, &mut users, survey, notes);
        }
    }
    refuse_repetition(walk, users, survey, notes);
}

/// Which entries name which blocks.
#[derive(Default)]
struct Users {
    /// The first entry to name each.
    first: BTreeMap<HostCluster, u64>,
    /// Entries that name a block which one before them names, in order.
    repeated: Vec<u64>,
}

/// Leaves out the counts of entries that name blocks of entries before them, where there are more than damage explains.
///
/// A block of a few bytes may otherwise be the counts of any number of clusters. No block is sound that two entries name,
/// so what it says of the clusters of the last of thousands is as good as unknown.
fn refuse_repetition<S>(
    walk: Walk<'_, S>,
    mut users: Users,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let believed = REPEATED_COUNTS / walk.geometry.refcount_block_entries();
    let believed = usize::try_from(believed).unwrap_or(usize::MAX);
    let believed = believed.saturating_add(users.first.len());
    if users.repeated.len() <= believed {
        return;
    }
    let refused = users.repeated.split_off(believed);
    let is_refused = |block: &RefcountBlockItem| refused.binary_search(&block.index).is_ok();
    survey.refcount_blocks.retain(|block| !is_refused(block));
    notes.gap(Gap::refused(
        Place::RefcountTable,
        format!(
            "{} of its entries name blocks that others name, too, more of them than is believed: what they count is not known",
            refused.len()
        ),
    ));
    survey.unknown_counts.blocks.extend(refused);
}

fn walk_entry<S: Storage>(
    walk: Walk<'_, S>,
    index: u64,
    word: u64,
    users: &mut Users,
    survey: &mut Survey,
    notes: &mut Notes,
) {
    let entry = RefcountTableEntry(word);
    let place = Place::RefcountTableEntry { index };
    if entry.reserved_bits() != 0 {
        notes.push(Finding::new(Code::RefcountTableEntryReservedBits, place).word(word));
    }
    let Some(offset) = entry.refcount_block_offset() else {
        return;
    };
    let cluster = match walk.geometry.admit(offset) {
        Ok(cluster) => cluster,
        Err(refusal) => {
            let code = match refusal {
                Refusal::Unaligned => {
                    survey.unknown_counts.blocks.insert(index);
                    Code::RefcountBlockUnaligned
                }
                // Reads past the end give zeros, for every program that opens the image.
                Refusal::PastEnd => Code::RefcountBlockPastEnd,
            };
            notes.push(Finding::new(code, place).word(word));
            notes.gap(Gap::refused(
                place,
                format!("a refcount block at {offset} was not read"),
            ));
            return;
        }
    };
    survey.claim(
        ClusterRange::one(cluster),
        OwnerKind::RefcountBlock,
        Place::RefcountBlock { index },
    );
    if let Some(first) = users.first.get(&cluster) {
        notes.push(
            Finding::new(Code::RefcountBlockShared, place)
                .word(word)
                .host(ClusterRange::one(cluster))
                .detail(format!("entry {first} names the same block")),
        );
        users.repeated.push(index);
    } else {
        users.first.insert(cluster, index);
    }
    survey
        .refcount_blocks
        .push(RefcountBlockItem { index, cluster });
}
