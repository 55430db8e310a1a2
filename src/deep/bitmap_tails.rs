//! The last bits of each bitmap.
//!
//! Comes in: the bitmap directory. Goes out: a finding for each bitmap with bits set behind the end of the virtual disk.
//! Never here: bitmaps that are not to be believed, or whose table the check has found wrong; a tail read twice; a hole.

use std::collections::BTreeMap;
use std::io;

use crate::coverage::Gap;
use crate::finding::{Code, Finding, escaped};
use crate::qcow2::{
    BitmapDirectoryEntry, BitmapTableEntry, DirectoryDecode, ExtensionKind, HostCluster,
    HostOffset, Place, u64_at,
};
use crate::storage::Storage;
use crate::walk::bitmaps::judge_extension;
use crate::walk::{Notes, Walk};

/// Bytes read at once.
const PIECE_BYTES: u64 = 64 << 10;

/// Bits set in the last clusters, from where their tails start.
type KnownTails = BTreeMap<(HostCluster, u64), io::Result<u64>>;

/// Judges the last cluster of every bitmap.
pub(super) fn judge_bitmap_tails<S: Storage>(walk: Walk<'_, S>, notes: &mut Notes) {
    let extension = walk.image.extensions().find(ExtensionKind::Bitmaps);
    let extension = extension.filter(|_| walk.image.header().has_consistent_bitmaps());
    let Some(Ok(bitmaps)) = extension.map(|extension| judge_extension(walk, extension)) else {
        return;
    };
    let (offset, bytes) = (bitmaps.directory_offset, bitmaps.directory_bytes);
    if walk.geometry.admit_table(offset, bytes).is_err() {
        return;
    }
    let mut directory = vec![0; usize::try_from(bytes).unwrap_or(0)];
    if walk.image.read_into(offset, &mut directory).is_err() {
        return;
    }
    let mut rest = directory.as_slice();
    let mut known = BTreeMap::new();
    for index in 0..bitmaps.bitmap_count {
        let DirectoryDecode::Entry(entry, step) = BitmapDirectoryEntry::decode(rest) else {
            return;
        };
        if !entry.is_in_use() && !walk.progress.is_stopped() {
            judge_tail(walk, index, &entry, &mut known, notes);
        }
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        rest = rest.get(step..).unwrap_or(&[]);
    }
}

fn judge_tail<S: Storage>(
    walk: Walk<'_, S>,
    bitmap: u32,
    entry: &BitmapDirectoryEntry,
    known: &mut KnownTails,
    notes: &mut Notes,
) {
    let Some(granularity) = 1_u64.checked_shl(entry.granularity_bits.into()) else {
        return;
    };
    let bits = walk.image.header().size.div_ceil(granularity);
    let bits_in_cluster = walk.geometry.cluster_bytes() * 8;
    let entries = u64::from(entry.bitmap_table_size);
    let tail_start = bits % bits_in_cluster;
    // A table of another size is a finding of the check; without a rest there is no tail.
    if bits.div_ceil(bits_in_cluster) != entries || tail_start == 0 {
        return;
    }
    let index = entries - 1;
    let place = Place::BitmapTableEntry { bitmap, index };
    let mut word = [0; 8];
    let at = entry.bitmap_table_offset.0.saturating_add(index * 8);
    let is_read = walk.image.read_into(HostOffset(at), &mut word).is_ok();
    let last = BitmapTableEntry(u64_at(&word, 0).unwrap_or(0));
    let data = last.data_offset().filter(|_| is_read);
    let Some(cluster) = data.and_then(|offset| walk.geometry.admit(offset).ok()) else {
        return;
    };
    // Bitmaps of a forged image may all have the same last cluster.
    let read = known
        .entry((cluster, tail_start))
        .or_insert_with(|| count_set_bits(walk, cluster, tail_start));
    match read {
        Err(error) => notes.gap(Gap::unreadable(place, error)),
        Ok(0) => {}
        Ok(count) => notes.push(
            Finding::new(Code::BitmapTailBitsSet, place)
                .detail(format!("bitmap \"{}\": {count} bits", escaped(&entry.name))),
        ),
    }
}

/// How many bits of a cluster are set from `start` on, the lowest bit of a byte being the first.
fn count_set_bits<S: Storage>(
    walk: Walk<'_, S>,
    cluster: HostCluster,
    start: u64,
) -> io::Result<u64> {
    let first = walk.geometry.offset_of(cluster).0;
    let end = first.saturating_add(walk.geometry.cluster_bytes());
    let tail = first.saturating_add(start / 8);
    let mut buffer = Vec::new();
    let (mut count, mut at) = (0, tail);
    while at < end && !walk.progress.is_stopped() {
        // Where the system cannot say, everything may be data.
        let data = walk.image.storage().next_data(at).unwrap_or(Some(at));
        let Some(data) = data.map(|data| data.max(at)).filter(|data| *data < end) else {
            break;
        };
        let bytes = (end - data).min(PIECE_BYTES);
        buffer.resize(usize::try_from(bytes).unwrap_or(0), 0);
        walk.image.read_into(HostOffset(data), &mut buffer)?;
        let within = if data == tail { start % 8 } else { 0 };
        count += set_bits_from(&buffer, within);
        at = data.saturating_add(bytes);
    }
    Ok(count)
}

/// How many bits from `start`, a bit of the first byte, on are set, the lowest bit of a byte being the first.
fn set_bits_from(data: &[u8], start: u64) -> u64 {
    let mut tail = data.iter();
    let first = tail
        .next()
        .map_or(0, |first| (u32::from(*first) >> (start % 8)).count_ones());
    tail.map(|byte| u64::from(byte.count_ones()))
        .sum::<u64>()
        .saturating_add(first.into())
}

#[cfg(test)]
mod tests {
    use super::set_bits_from;

    #[test]
    fn bits_are_counted_from_the_lowest_of_each_byte() {
        let data = [0b1000_0001, 0b0000_0011];
        let counts = [0, 1, 7].map(|start| set_bits_from(&data, start));
        assert_eq!(counts, [4, 3, 3]);
        assert_eq!(set_bits_from(&[], 3), 0);
    }
}
