//! Descriptors of compressed data, a chunk of them at a time.
//!
//! Comes in: the words of a chunk. Goes out: runs of extents that follow one another in the file, and how many of them touch
//! each cluster. Never here: a chunk with anything else in it, a finding.
//!
//! Writers put one extent where the one before ended, so that most chunks are one run. Of each extent a few bits say all that
//! is needed then: whether the next one follows, and whether one of the two begins another cluster.

use super::chunk::{CHUNK, bits_of};
use crate::qcow2::{CompressedExtent, Geometry, HostCluster, L2Entry, SECTOR_BYTES};

/// A chunk that is nothing but descriptors of compressed data in the file.
pub(crate) struct CompressedChunk<'a> {
    geometry: Geometry,
    /// Of the first entry.
    guest_cluster: u64,
    words: &'a [u64; CHUNK],
    /// A bit for each extent: the next one begins in its last sector, but not where it began, or right behind it.
    followed: u64,
    /// A bit for each: it ends in the cluster after the one it begins in.
    crossing: u64,
    /// A bit for each that is followed: the next one begins in the cluster after the one it ends in.
    filling: u64,
}

/// Extents of guest clusters that follow one another, each of which begins in the last sector of the one before, or right
/// behind it.
pub(crate) struct CompressedRun<'a> {
    geometry: Geometry,
    /// Of the first extent.
    pub(crate) guest_cluster: u64,
    /// One for each extent, at least one.
    words: &'a [u64],
    /// Those of the chunk, from the first extent on.
    crossing: u64,
    filling: u64,
}

impl<'a> CompressedChunk<'a> {
    /// `None` where an entry is another, has something wrong with it, or touches more clusters than honest data do.
    pub(super) fn new(
        geometry: Geometry,
        guest_cluster: u64,
        words: &'a [u64; CHUNK],
    ) -> Option<Self> {
        // Most chunks that are anything else begin with it.
        if !L2Entry(words[0]).is_compressed() {
            return None;
        }
        let codes = codes(geometry, words)?;
        let marked = |mark| marked(&codes, mark);
        let [followed, begins, ends] = [FOLLOWED, BEGINS_ODD, ENDS_ODD].map(marked);
        Some(Self {
            geometry,
            guest_cluster,
            words,
            followed,
            // Of neighbouring clusters one is odd.
            crossing: begins ^ ends,
            filling: (ends ^ begins >> 1) & followed,
        })
    }

    /// Its extents in runs, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = CompressedRun<'a>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let count = 1 + self.followed.checked_shr(at)?.trailing_ones();
            let (first, end) = (at as usize, (at + count) as usize);
            let run = CompressedRun {
                geometry: self.geometry,
                guest_cluster: self.guest_cluster.saturating_add(u64::from(at)),
                words: self.words.get(first..end)?,
                crossing: self.crossing >> at,
                filling: self.filling >> at,
            };
            at += count;
            Some(run)
        })
    }
}

/// Bits of the code of an extent: the next one follows; the number of the cluster it begins in is odd; that of the one its
/// last sector is in.
const FOLLOWED: u32 = 0;
const BEGINS_ODD: u32 = 1;
const ENDS_ODD: u32 = 2;

/// The codes of a chunk's extents: those of each eighth in one word, the first in its lowest byte. `None` where something is
/// no extent, or reaches beyond the file's whole sectors or further than into the next cluster.
///
/// Without a branch or a comparison for each, so that it is done with vectors.
fn codes(geometry: Geometry, words: &[u64; CHUNK]) -> Option<[u64; 8]> {
    let cluster_bits = geometry.cluster_bits();
    let cluster_bytes = geometry.cluster_bytes();
    let last_allowed = geometry.whole_sector_bytes().checked_sub(SECTOR_BYTES)?;
    let extent_of = |word| L2Entry(word).extent_if_compressed(geometry);
    // The one behind them all is nothing that follows.
    let mut starts = [0; CHUNK + 1];
    for (start, &word) in starts.iter_mut().zip(words) {
        *start = extent_of(word).offset.0;
    }
    let nexts = starts.iter().skip(1);
    let mut singly = [0; CHUNK];
    let (mut all, mut any, mut any_last) = (u64::MAX, 0, 0);
    for (code, ((&word, &start), &next)) in
        singly.iter_mut().zip(words.iter().zip(&starts).zip(nexts))
    {
        let last_sector = extent_of(word).last_sector_offset().0;
        all &= word;
        any |= word;
        any_last |= last_sector;
        // As `is_followed`: offsets have 62 bits, and what is below zero the highest.
        let distance = next.wrapping_sub(last_sector);
        let is_apart = distance | SECTOR_BYTES.wrapping_sub(distance);
        let follows = (start.wrapping_sub(next) & !is_apart) >> 63;
        let odd = start & cluster_bytes | (last_sector & cluster_bytes) << 1;
        *code = odd >> (cluster_bits - BEGINS_ODD) | follows << FOLLOWED;
    }
    if !L2Entry(all).is_compressed() || L2Entry(any).copied() {
        return None;
    }
    // One that is longer than a cluster may touch three.
    let is_long = |word| (extent_of(word).sectors - 1) * SECTOR_BYTES > cluster_bytes;
    let is_far = |word| extent_of(word).last_sector_offset().0 > last_allowed;
    // The bits of all together are no less than those of any.
    let may_be_odd = is_long(any) || any_last > last_allowed;
    if may_be_odd && words.iter().any(|&word| is_long(word) || is_far(word)) {
        return None;
    }
    let mut codes = [0_u64; 8];
    for eight in singly.as_chunks::<8>().0.iter().rev() {
        for (codes, code) in codes.iter_mut().zip(eight) {
            *codes = *codes << 8 | code;
        }
    }
    Some(codes)
}

/// A bit for each extent whose code has a mark.
fn marked(codes: &[u64; 8], mark: u32) -> u64 {
    const LOWEST: u64 = 0x0101_0101_0101_0101;
    (0..).zip(codes).fold(0, |marked, (lane, codes)| {
        marked | (codes >> mark & LOWEST) << lane
    })
}

/// Whether an extent may begin at `next` with nothing between it and one that begins at `start`.
pub(crate) fn is_followed(start: u64, last_sector: u64, next: u64) -> bool {
    // An offset before the last sector wraps around, to a distance no two extents have.
    (next > start) & (next.wrapping_sub(last_sector) <= SECTOR_BYTES)
}

impl CompressedRun<'_> {
    /// Its extents, in order.
    pub(crate) fn extents(
        &self,
    ) -> impl ExactSizeIterator<Item = CompressedExtent> + DoubleEndedIterator {
        let extents = self.words.iter();
        extents.map(|word| L2Entry(*word).extent_if_compressed(self.geometry))
    }

    /// How many extents it has.
    pub(crate) fn count(&self) -> u64 {
        self.words.len() as u64
    }

    /// Calls `each` for every cluster its extents touch, in order, with how many of them do; returns the last cluster.
    #[inline]
    pub(crate) fn for_each_cluster(&self, mut each: impl FnMut(HostCluster, u64)) -> HostCluster {
        let first = self.extents().next().map(|extent| extent.offset);
        let mut cluster = first.map_or(HostCluster(0), |first| self.geometry.cluster_at(first));
        let (mut from, count) = (0, self.count());
        let in_run = u64::MAX >> (64 - count.clamp(1, 64));
        for at in bits_of((self.crossing | self.filling) & in_run) {
            let next = at as u64 + 1;
            each(cluster, next - from);
            cluster.0 += 1;
            let crosses = self.crossing >> at & 1;
            // One that crosses over touches the next cluster, too.
            from = next - crosses;
            if crosses & self.filling >> at != 0 {
                each(cluster, 1);
                cluster.0 += 1;
                from = next;
            }
        }
        each(cluster, count - from);
        cluster
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::qcow2::Header;

    const COMPRESSED: u64 = 1 << 62;
    const FILE_BYTES: u64 = 1 << 40;

    fn geometry(cluster_bits: u8) -> Geometry {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = cluster_bits;
        let header = Header::decode(&bytes).expect("a header");
        Geometry::new(&header, FILE_BYTES).expect("cluster_bits in range")
    }

    fn word(geometry: Geometry, start: u64, bytes: u64) -> u64 {
        let more_sectors = (start + bytes - 1) / SECTOR_BYTES - start / SECTOR_BYTES;
        COMPRESSED | more_sectors << (62 - (geometry.cluster_bits() - 8)) | start
    }

    /// A chunk of data of any size, most of which follows what is before it, in one of the ways it may or nearly may.
    fn chunk(geometry: Geometry, random: &mut fastrand::Rng) -> [u64; CHUNK] {
        let most = geometry.cluster_bytes();
        let largest = random.u64(1..=most);
        let is_regular = random.bool();
        let mut at = random.u64(0..8 * most);
        [(); CHUNK].map(|()| {
            let bytes = random.u64(1..=largest);
            let word = word(geometry, at, bytes);
            at += bytes;
            if !is_regular {
                at = match random.u8(..40) {
                    0 => at + random.u64(..2 * SECTOR_BYTES),
                    1 => at.saturating_sub(random.u64(..2 * SECTOR_BYTES)),
                    2 => at.next_multiple_of(most),
                    3 => at.next_multiple_of(SECTOR_BYTES) + SECTOR_BYTES * random.u64(..2),
                    4 => random.u64(0..8 * most),
                    _ => at,
                };
            }
            word
        })
    }

    #[test]
    fn runs_are_the_extents_one_by_one_and_touch_the_clusters_these_touch() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut whole, mut filled) = (0, 0);
        for _ in 0..20_000 {
            let geometry = geometry(random.u8(9..=21));
            let words = chunk(geometry, &mut random);
            let chunk = CompressedChunk::new(geometry, 1000, &words).expect("sound");
            let extents = words.map(|word| L2Entry(word).extent_if_compressed(geometry));
            let (mut told, mut guest_cluster) = (Vec::new(), 1000);
            for run in chunk.runs() {
                assert_eq!(run.guest_cluster, guest_cluster);
                guest_cluster += run.count();
                let members: Vec<CompressedExtent> = run.extents().collect();
                let pairs = members.iter().zip(members.iter().skip(1));
                for (one, next) in pairs {
                    let last_sector = one.last_sector_offset().0;
                    assert!(is_followed(one.offset.0, last_sector, next.offset.0));
                }
                if let (Some(before), Some(first)) = (told.last(), members.first()) {
                    let before: &CompressedExtent = before;
                    let last_sector = before.last_sector_offset().0;
                    assert!(!is_followed(before.offset.0, last_sector, first.offset.0));
                }
                let (mut expected, mut counted) = (BTreeMap::new(), BTreeMap::new());
                for extent in &members {
                    let first = geometry.cluster_at(extent.offset).0;
                    let last = geometry.cluster_at(extent.last_sector_offset()).0;
                    (first..=last).for_each(|cluster| *expected.entry(cluster).or_insert(0) += 1);
                }
                let last = run.for_each_cluster(|cluster, count| {
                    assert_eq!(counted.insert(cluster.0, count), None);
                });
                assert_eq!(counted, expected, "{members:?}");
                assert_eq!(counted.keys().last(), Some(&last.0));
                told.extend(members);
            }
            assert_eq!(told, extents);
            whole += u32::from(chunk.runs().count() == 1);
            filled += (chunk.crossing & chunk.filling).count_ones();
        }
        assert!(
            whole > 5000 && filled > 300,
            "{whole} whole, {filled} filled"
        );
    }

    #[test]
    fn a_chunk_with_anything_else_in_it_is_none() {
        // Clusters of 512 bytes have no room for more sectors than two.
        for cluster_bits in 10..=21 {
            let geometry = geometry(cluster_bits);
            let cluster_bytes = geometry.cluster_bytes();
            let sound = word(geometry, FILE_BYTES - SECTOR_BYTES, 1);
            let copied = 1 << 63 | sound;
            let past_end = word(geometry, FILE_BYTES - SECTOR_BYTES, SECTOR_BYTES + 1);
            // It begins in one cluster, and ends behind the next.
            let too_long = word(geometry, cluster_bytes - 1, cluster_bytes + 2);
            let as_long_as_can_be = word(geometry, cluster_bytes - 1, cluster_bytes + 1);
            let is_taken = |word, at: usize| {
                let mut words = [sound; CHUNK];
                words[at] = word;
                CompressedChunk::new(geometry, 0, &words).is_some()
            };
            for at in [0, 31, 63] {
                assert!(is_taken(sound, at) && is_taken(as_long_as_can_be, at));
                for odd in [0, 0x5_0000, 1 << 63 | 0x5_0000, copied, past_end, too_long] {
                    assert!(!is_taken(odd, at), "{odd:#x} at {at}, 2^{cluster_bits}");
                }
            }
        }
    }
}
