//! A number for the state of all metadata: two images with the same one have the same tables in the same places.
//!
//! Comes in: an image. Goes out: the sum of the checksums of every metadata cluster, each with its place, so that the
//! order of reading does not matter; clusters of zeros add nothing, so that holes need no reading. Never here: guest data; a
//! list of clusters as long as an image says.

use std::io;

use super::{Options, walkable};
use crate::coverage::{Coverage, Gap, GapKind};
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::{ClusterRange, HostCluster, Place};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, Table, read_tables};
use crate::walk::{self, Notes};

struct MetadataCluster(HostCluster);

impl Table for MetadataCluster {
    fn cluster(&self) -> HostCluster {
        self.0
    }

    fn place(&self) -> Place {
        Place::Clusters { start: self.0 }
    }
}

#[derive(Default)]
struct Visitor {
    sum: u64,
    coverage: Coverage,
}

impl GroupVisitor<MetadataCluster> for Visitor {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, table: &MetadataCluster, bytes: &[u8]) {
        if bytes.iter().all(|&byte| byte == 0) {
            return;
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&table.0.0.to_be_bytes());
        hasher.update(bytes);
        self.sum = self.sum.wrapping_add(u64::from(hasher.finalize()));
    }

    fn miss(&mut self, _table: &MetadataCluster, gap: Gap) {
        self.coverage.push(gap);
    }
}

/// Clusters looked at together.
const AT_ONCE: usize = 1 << 16;

/// A number for the state of all metadata of an image; 0 where the header gives no cluster size.
///
/// It tells accidents apart, not forgeries. What cannot be read has none: the next time it may be readable.
pub fn metadata_digest<S: Storage>(image: &Image<S>, progress: &Progress) -> io::Result<u64> {
    let mut notes = Notes::default();
    let walk = walkable(image, Options::default(), progress, &mut notes);
    let mut sum = 0_u64;
    if let Some(walk) = walk {
        let survey = walk::survey(walk, &mut notes);
        let claimed = survey.claims.iter().map(|claim| claim.clusters);
        let tables = survey.l2_tables.iter();
        let tables = tables.map(|item| ClusterRange::one(item.cluster));
        let mut clusters = each_once(claimed.chain(tables).collect());
        loop {
            let piece = clusters.by_ref().take(AT_ONCE).map(MetadataCluster);
            let piece: Vec<MetadataCluster> = piece.collect();
            if piece.is_empty() || progress.is_stopped() {
                break;
            }
            for visitor in read_tables(walk, &piece, Visitor::default) {
                sum = sum.wrapping_add(visitor.sum);
                notes.coverage.append(visitor.coverage);
            }
        }
    }
    let missed = notes.coverage.unreadable_count();
    if missed > 0 || notes.coverage.is_stopped() {
        let mut gaps = notes.coverage.gaps().iter();
        let first = gaps.find(|gap| gap.kind == GapKind::Unreadable);
        return Err(io::Error::other(first.map_or_else(
            || "metadata cannot be read".to_owned(),
            |gap| format!("{}: {}", gap.place, gap.detail),
        )));
    }
    Ok(sum)
}

/// The clusters of ranges that may overlap, in order, each once.
fn each_once(mut ranges: Vec<ClusterRange>) -> impl Iterator<Item = HostCluster> {
    ranges.sort_unstable_by_key(|range| (range.start, range.count));
    let mut done = 0;
    ranges.into_iter().flat_map(move |range| {
        let start = range.start.0.max(done);
        done = done.max(range.end());
        (start..range.end()).map(HostCluster)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_ranges_that_overlap_are_told_once() {
        let range = |start, count| ClusterRange {
            start: HostCluster(start),
            count,
        };
        let ranges = vec![
            range(7, 2),
            range(1, 5),
            range(2, 2),
            range(1, 1),
            range(5, 3),
        ];
        let told: Vec<u64> = each_once(ranges).map(|cluster| cluster.0).collect();
        assert_eq!(told, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
