//! A number for the state of all metadata: two images with the same one have the same tables in the same places.
//!
//! Comes in: an image. Goes out: the sum of the checksums of every metadata cluster, each with its place, so that the
//! order of reading does not matter. Never here: guest data.

use std::collections::BTreeSet;

use super::{Options, walkable};
use crate::coverage::Gap;
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
}

impl GroupVisitor<MetadataCluster> for Visitor {
    fn visit(&mut self, table: &MetadataCluster, bytes: &[u8]) {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&table.0.0.to_be_bytes());
        hasher.update(bytes);
        self.sum = self.sum.wrapping_add(u64::from(hasher.finalize()));
    }

    fn miss(&mut self, table: &MetadataCluster, _gap: Gap) {
        // What cannot be read now must not look like what could be read then.
        self.sum = self.sum.wrapping_add(!table.0.0);
    }
}

/// A number for the state of all metadata of an image; 0 where the header gives no cluster size.
///
/// It tells accidents apart, not forgeries.
pub fn metadata_digest<S: Storage>(image: &Image<S>, progress: &Progress) -> u64 {
    let mut notes = Notes::default();
    let Some(walk) = walkable(image, Options::default(), progress, &mut notes) else {
        return 0;
    };
    let survey = walk::survey(walk, &mut notes);
    let claimed = survey
        .claims
        .iter()
        .flat_map(|claim| claim.clusters.clusters());
    let tables = survey.l2_tables.iter().map(|item| item.cluster);
    let clusters: BTreeSet<HostCluster> = claimed.chain(tables).collect();
    let clusters: Vec<MetadataCluster> = clusters.into_iter().map(MetadataCluster).collect();
    let visitors = read_tables(walk, &clusters, Visitor::default);
    visitors
        .iter()
        .fold(0, |sum, visitor| sum.wrapping_add(visitor.sum))
}
