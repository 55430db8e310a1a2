//! Clusters that nothing uses, for what a repair adds.
//!
//! Comes in: an examination. Goes out: clusters, each with the count it is to have. Never here: a cluster that anything
//! refers to or counts, or that a pointer past the end of the file would suddenly reach.
//!
//! A file grows: what looks free inside it may be the only copy of something lost. Where it must not grow, because
//! entries point past its end, and on a block device, which cannot, clusters inside are taken that are neither referred
//! to nor counted and hold nothing but zeros; on a device, those behind the image's end come first, whatever is in them.
//!
//! What a sound image lost is no larger than what is stored of it: all together, a repair adds no more to a file than that.

use std::io;
use std::iter::Peekable;
use std::ops::Range;

use super::holes::Holes;
use crate::check::Examination;
use crate::finding::Code;
use crate::image::Image;
use crate::qcow2::{HostCluster, HostOffset, MAX_REFCOUNT_TABLE_BYTES, RefcountTableEntry, words};
use crate::storage::Storage;

/// A file that stores less than this may grow by this all the same.
const MAX_GROWTH_BYTES: u64 = 64 << 20;
/// The part of the room that only refcount structures get: what is counted needs much less than that to be counted in.
const FOR_COUNTS: u64 = 16;

/// A damaged refcount table may reach this far past the end of the file; new structures go behind it.
const MAX_SKIPPED_BYTES: u64 = 16 << 20;

/// Findings about pointers past the end of the file, which would reach whatever is appended there.
const DANGLING: [Code; 10] = [
    Code::L1TablePastEnd,
    Code::L2TablePastEnd,
    Code::L2EntryPastEnd,
    Code::CompressedPastEnd,
    Code::SnapshotL1PastEnd,
    Code::SnapshotTableTruncated,
    Code::BitmapDirectoryMalformed,
    Code::BitmapTablePastEnd,
    Code::BitmapDataPastEnd,
    Code::EncryptionHeaderPastEnd,
];

type Candidates<'a> = Peekable<Box<dyn Iterator<Item = HostCluster> + 'a>>;

/// How long a plan may make an image's file: every cluster of it can be counted, and every table be there twice, but a few
/// entries that name places far apart cannot make a large file of a small one.
pub(super) fn max_file_bytes<S: Storage>(image: &Image<S>) -> u64 {
    let length_bytes = image.file_bytes();
    // Where the system does not say, everything may be stored.
    let stored = image.storage().allocated_bytes().unwrap_or(length_bytes);
    length_bytes.saturating_add(stored.max(MAX_GROWTH_BYTES))
}

/// Hands out clusters.
pub(super) struct Space<'a> {
    candidates: Candidates<'a>,
    /// Clusters from here on are for refcount structures only.
    end: u64,
    /// Every cluster handed out, with the count it is to have.
    taken: Vec<(HostCluster, u64)>,
}

impl<'a> Space<'a> {
    /// Finds out where there is room, or why there is none.
    pub(super) fn new<S: Storage>(examination: &'a Examination<'_, S>) -> Result<Self, String> {
        let coverage = &examination.notes.coverage;
        if coverage.unreadable_count() > 0 || coverage.is_stopped() {
            return Err(
                "not every table could be read, so nobody knows which clusters are free".to_owned(),
            );
        }
        let geometry = examination.walk.geometry;
        let mut end = u64::MAX;
        let candidates: Box<dyn Iterator<Item = HostCluster> + 'a> = if may_append(examination) {
            let wild = end_of_wild_refcounts(examination)
                .map_err(|error| format!("the refcount table could not be read: {error}"))?;
            let first = geometry.file_clusters().max(wild);
            // The widest offset the format has ends the search.
            let max_bytes = examination.max_file_bytes.min(1 << 56);
            let last = max_bytes >> geometry.cluster_bits();
            end = last - last.saturating_sub(first) / FOR_COUNTS;
            Box::new((first..last).map(HostCluster))
        } else if !examination.is_block_device && has_unknown_counts(examination) {
            // What is not known to be free may be in use, be it empty.
            Box::new(std::iter::empty())
        } else {
            let behind = behind_the_image(examination);
            let elsewhere = behind.clone();
            let blank = examination
                .unused_clusters(1..u64::MAX)
                .filter(move |cluster| !elsewhere.contains(&cluster.0))
                .filter(|&cluster| is_blank(examination, cluster).unwrap_or(false));
            Box::new(behind.map(HostCluster).chain(blank))
        };
        Ok(Self {
            candidates: candidates.peekable(),
            end,
            taken: Vec::new(),
        })
    }

    /// The first of `clusters` neighbouring clusters that each get a refcount of `count`; `None` where there is no room.
    pub(super) fn take(&mut self, clusters: u64, count: u64) -> Option<HostCluster> {
        self.take_before(self.end, clusters, count)
    }

    /// The same for a refcount structure, which has a count of one.
    pub(super) fn take_for_counts(&mut self, clusters: u64) -> Option<HostCluster> {
        self.take_before(u64::MAX, clusters, 1)
    }

    fn take_before(&mut self, end: u64, clusters: u64, count: u64) -> Option<HostCluster> {
        let first = self.next_run(end, clusters)?;
        let range = (first.0..first.0 + clusters).map(HostCluster);
        self.taken.extend(range.map(|cluster| (cluster, count)));
        Some(first)
    }

    /// The first of as many neighbouring clusters as there are counts, one for each.
    pub(super) fn take_counted(&mut self, counts: &[u64]) -> Option<HostCluster> {
        let first = self.next_run(self.end, counts.len() as u64)?;
        let range = (first.0..).map(HostCluster);
        self.taken.extend(range.zip(counts.iter().copied()));
        Some(first)
    }

    fn next_run(&mut self, limit: u64, clusters: u64) -> Option<HostCluster> {
        let candidates = &mut self.candidates;
        let mut next = || candidates.next_if(|cluster| cluster.0 < limit);
        let mut first = next()?;
        let mut end = first.0 + 1;
        while end - first.0 < clusters {
            let next = next()?;
            if next.0 != end {
                first = next;
            }
            end = next.0 + 1;
        }
        Some(first)
    }

    /// Every cluster handed out, with the count it is to have.
    pub(super) fn taken(&self) -> &[(HostCluster, u64)] {
        &self.taken
    }

    /// Takes clusters back that were handed out and will not be used.
    pub(super) fn forget(&mut self, range: Range<u64>) {
        self.taken
            .retain(|(cluster, _)| !range.contains(&cluster.0));
    }
}

/// Whether some stored counts are not those that the image once had.
fn has_unknown_counts<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let unknown = &examination.survey.unknown_counts;
    let findings = &examination.notes.findings;
    let codes = [Code::RefcountTablePastEnd, Code::RefcountBlockPastEnd];
    unknown.all
        || !unknown.blocks.is_empty()
        || codes.iter().any(|&code| findings.total_of(code).count > 0)
}

/// Whether clusters may be appended to the file.
fn may_append<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let findings = &examination.notes.findings;
    let mut dangling = DANGLING.iter();
    !examination.is_block_device && dangling.all(|&code| findings.total_of(code).count == 0)
}

/// Why nothing could be taken.
pub(super) fn no_room<S: Storage>(examination: &Examination<'_, S>) -> String {
    let cluster_bytes = examination.walk.geometry.cluster_bytes();
    if may_append(examination) {
        return format!(
            "what is to be added would make the file grow by more than {} MiB and by more than is stored of it, which no \
             damage to a sound image asks for",
            MAX_GROWTH_BYTES >> 20
        );
    }
    let why = if examination.is_block_device {
        "the device cannot grow; make it larger, or copy the image to a larger one"
    } else {
        "the file must not grow while entries point past its end: those come first"
    };
    format!("no free clusters of {cluster_bytes} bytes were found for what is to be added: {why}")
}

/// The end of what a damaged refcount table names a little past the end of the file: that would read whatever is appended
/// there as refcounts.
fn end_of_wild_refcounts<S: Storage>(examination: &Examination<'_, S>) -> io::Result<u64> {
    let geometry = examination.walk.geometry;
    let header = examination.walk.image.header();
    let start = header.refcount_table_offset;
    let bytes = u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_bytes());
    // No program reads more of it.
    let end = start.saturating_add(bytes.min(MAX_REFCOUNT_TABLE_BYTES));
    let reach = geometry.file_bytes().saturating_add(MAX_SKIPPED_BYTES);
    let is_near = |end: &u64| *end > geometry.file_bytes() && *end < reach;
    let mut ends = vec![end];
    let findings = &examination.notes.findings;
    if findings.total_of(Code::RefcountBlockPastEnd).count > 0 {
        let in_file = geometry.file_bytes().saturating_sub(start).min(end - start);
        let mut table = vec![0; usize::try_from(in_file).unwrap_or(0)];
        let image = examination.walk.image;
        image.read_into(HostOffset(start), &mut table)?;
        let blocks = words(&table).filter_map(|word| {
            let offset = RefcountTableEntry(word).refcount_block_offset()?;
            Some(offset.0.saturating_add(geometry.cluster_bytes()))
        });
        ends.extend(blocks.filter(is_near));
    }
    let last = ends.into_iter().filter(is_near).max();
    Ok(last.map_or(0, |end| geometry.clusters_for(end)))
}

/// Clusters of a device behind everything that is used; of a file there are none.
fn behind_the_image<S: Storage>(examination: &Examination<'_, S>) -> Range<u64> {
    let geometry = examination.walk.geometry;
    let whole_clusters = geometry.file_bytes() >> geometry.cluster_bits();
    let end = examination
        .image_end()
        .filter(|_| examination.is_block_device);
    end.map_or(0..0, |end| end.0..whole_clusters.max(end.0))
}

/// Whether a whole cluster of the file holds nothing but zeros.
fn is_blank<S: Storage>(
    examination: &Examination<'_, S>,
    cluster: HostCluster,
) -> io::Result<bool> {
    let geometry = examination.walk.geometry;
    let start = geometry.offset_of(cluster).0;
    if start.saturating_add(geometry.cluster_bytes()) > geometry.file_bytes() {
        return Ok(false);
    }
    let mut holes = Holes::new(examination.walk.image.storage());
    Ok(!holes.holds_data(geometry, cluster)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_clusters_are_for_refcount_structures_only() {
        let candidates: Box<dyn Iterator<Item = HostCluster>> = Box::new((10..30).map(HostCluster));
        let mut space = Space {
            candidates: candidates.peekable(),
            end: 20,
            taken: Vec::new(),
        };
        assert_eq!(space.take(10, 1), Some(HostCluster(10)));
        assert_eq!(space.take(1, 1), None);
        assert_eq!(space.take_counted(&[1]), None);
        assert_eq!(space.take_for_counts(10), Some(HostCluster(20)));
        assert_eq!(space.take_for_counts(1), None);
        assert_eq!(space.taken().len(), 20);
    }
}
