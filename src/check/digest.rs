//! A number for the state of all metadata: two images with the same one have the same tables in the same places.
//!
//! Comes in: an image. Goes out: the sum of the checksums of every metadata cluster, each with its place, so that the
//! order of reading does not matter. Never here: guest data.

use std::collections::BTreeSet;
use std::io;

use super::{Options, walkable};
use crate::coverage::{Coverage, Gap, GapKind};
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::{HostCluster, Place};
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
    fn visit(&mut self, table: &MetadataCluster, bytes: &[u8]) {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&table.0.0.to_be_bytes());
        hasher.update(bytes);
        self.sum = self.sum.wrapping_add(u64::from(hasher.finalize()));
    }

    fn miss(&mut self, _table: &MetadataCluster, gap: Gap) {
        self.coverage.push(gap);
    }
}

/// A number for the state of all metadata of an image; 0 where the header gives no cluster size.
///
/// It tells accidents apart, not forgeries. What cannot be read has none: the next time it may be readable.
pub fn metadata_digest<S: Storage>(image: &Image<S>, progress: &Progress) -> io::Result<u64> {
    let mut notes = Notes::default();
    let walk = walkable(image, Options::default(), progress, &mut notes);
    let mut sum = 0_u64;
    if let Some(walk) = walk {
        let survey = walk::survey(walk, &mut notes);
        let claimed = survey
            .claims
            .iter()
            .flat_map(|claim| claim.clusters.clusters());
        let tables = survey.l2_tables.iter().map(|item| item.cluster);
        let clusters: BTreeSet<HostCluster> = claimed.chain(tables).collect();
        let clusters: Vec<MetadataCluster> = clusters.into_iter().map(MetadataCluster).collect();
        for visitor in read_tables(walk, &clusters, Visitor::default) {
            sum = sum.wrapping_add(visitor.sum);
            notes.coverage.append(visitor.coverage);
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
