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

struct Visitor {
    cluster_bytes: usize,
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
        // The number is of the bytes, wherever the file system has holes among them.
        let mut rest = self.cluster_bytes.saturating_sub(bytes.len());
        while let Some(zeros) = ZEROS.get(..rest.min(ZEROS.len())).filter(|_| rest > 0) {
            hasher.update(zeros);
            rest -= zeros.len();
        }
        self.sum = self.sum.wrapping_add(u64::from(hasher.finalize()));
    }

    fn miss(&mut self, _table: &MetadataCluster, gap: Gap) {
        self.coverage.push(gap);
    }
}

/// What the end of a cluster that lies in a hole is.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
/// Clusters looked at together.
const AT_ONCE: usize = 1 << 16;
/// So many clusters in a row are worth a question about holes.
const LONG: u64 = 64;

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
        let ranges = ClusterRange::merged(claimed.chain(tables).collect());
        let mut clusters = stored(image.storage(), walk.geometry.cluster_bytes(), ranges);
        loop {
            let piece = clusters.by_ref().take(AT_ONCE).map(MetadataCluster);
            let piece: Vec<MetadataCluster> = piece.collect();
            if piece.is_empty() || progress.is_stopped() {
                break;
            }
            let make = || Visitor {
                cluster_bytes: usize::try_from(walk.geometry.cluster_bytes()).unwrap_or(0),
                sum: 0,
                coverage: Coverage::default(),
            };
            for visitor in read_tables(walk, &piece, make) {
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

/// The clusters of these ranges that may be other than zero: a long range may nearly all of it lie in a hole.
fn stored<S: Storage>(
    storage: &S,
    cluster_bytes: u64,
    ranges: Vec<ClusterRange>,
) -> impl Iterator<Item = HostCluster> {
    let first_stored = move |from: u64| match storage.next_data(from.saturating_mul(cluster_bytes))
    {
        Ok(Some(data)) => data / cluster_bytes,
        Ok(None) => u64::MAX,
        // What the system cannot say, reading does.
        Err(_) => from,
    };
    ranges.into_iter().flat_map(move |range| {
        let (mut next, end) = (range.start.0, range.end());
        std::iter::from_fn(move || {
            if end.saturating_sub(next) >= LONG {
                next = next.max(first_stored(next));
            }
            let start = next.min(end);
            next = start.saturating_add(LONG).min(end);
            (start < end).then_some(start..next)
        })
        .flatten()
        .map(HostCluster)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zeros, but for one byte.
    struct Sparse {
        data: u64,
    }

    impl Storage for Sparse {
        fn length_bytes(&self) -> io::Result<u64> {
            Ok(1 << 60)
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            for (byte, offset) in buffer.iter_mut().zip(offset..) {
                *byte = u8::from(offset == self.data);
            }
            Ok(())
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
            Ok((offset <= self.data).then_some(self.data))
        }
    }

    #[test]
    fn holes_of_long_ranges_cost_nothing() {
        let range = |start, count| ClusterRange {
            start: HostCluster(start),
            count,
        };
        let storage = Sparse { data: 512 << 40 };
        let ranges = vec![range(0, LONG - 1), range(1 << 10, 1 << 50)];
        let told: Vec<u64> = stored(&storage, 512, ranges)
            .map(|cluster| cluster.0)
            .collect();
        let first = 0..LONG - 1;
        let second = 1 << 40..(1 << 40) + LONG;
        assert_eq!(told, first.chain(second).collect::<Vec<_>>());
    }
}
