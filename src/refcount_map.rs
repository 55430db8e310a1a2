//! Counts per cluster, for files of any length, shared by all threads.
//!
//! Comes in: stored counts and references, in any order. Goes out: what is left owed, and which clusters do not add
//! up. Never here: I/O, places, findings.
//!
//! Every operation commutes, so the order in which threads arrive cannot matter. Memory follows the regions that are
//! touched, never the length of the file. The representation is private to this room:
//!
//! - [`Ledger`] counts down: stored counts first, then each reference pays one off. A clean image ends at zero, having
//!   touched one bit for each reference.
//! - [`Tally`] counts up, only for the clusters the ledger found suspect.

mod cluster_set;
mod ledger;
mod shared;
mod sparse;
mod tally;

pub(crate) use cluster_set::ClusterSet;
pub(crate) use ledger::{CopiedFlag, Directory, Ledger, Payment, Unsettled};
pub(crate) use tally::{RegionTally, Tally};

use crate::qcow2::{ClusterRange, HostCluster};

/// More clusters than an offset of 56 bits can name, the widest the format has, at the smallest cluster size.
const MAX_CLUSTERS: u64 = 1 << 47;
/// Clusters in a region: 4 KiB of bits.
pub(crate) const REGION_CLUSTERS: u64 = 1 << 15;

/// What a reference uses a cluster for. Two references may share a cluster only if they are of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A structure of the format; shares with nobody, not even its like.
    Metadata,
    /// Compressed data; shares with other compressed data.
    Compressed,
    /// Standard data of this guest cluster; shares only with the same guest cluster of another mapping.
    Guest(u64),
}

impl Identity {
    /// What lies `count` clusters further on in a run is used for.
    fn after(self, count: u64) -> Self {
        match self {
            Self::Guest(cluster) => Self::Guest(cluster.wrapping_add(count)),
            Self::Metadata | Self::Compressed => self,
        }
    }

    /// A small number, 0 standing for "nobody yet".
    ///
    /// Exact for virtual disks of up to four billion clusters (256 TiB at 64 KiB); beyond, guest clusters exactly that
    /// far apart look alike.
    fn number(self) -> u32 {
        const GUESTS: u64 = u32::MAX as u64 - 3;
        match self {
            Self::Metadata => METADATA,
            Self::Compressed => COMPRESSED,
            Self::Guest(cluster) => u32::try_from(cluster % GUESTS).unwrap_or(0) + 3,
        }
    }
}

const NOBODY: u32 = 0;
const METADATA: u32 = 1;
const COMPRESSED: u32 = 2;

/// The region a cluster is in, and its place there.
fn locate(cluster: HostCluster) -> (u64, usize) {
    let slot = usize::try_from(cluster.0 % REGION_CLUSTERS).unwrap_or(0);
    (cluster.0 / REGION_CLUSTERS, slot)
}

/// Part of a run whose clusters' bits lie in one word of 64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WordPart {
    /// The first cluster of the part.
    pub(crate) first: HostCluster,
    /// The bits of the part's clusters.
    pub(crate) mask: u64,
}

impl WordPart {
    /// Runs of clusters whose bits are set, in order.
    pub(crate) fn runs_of(self, bits: u64) -> impl Iterator<Item = ClusterRange> {
        let word_start = self.first.0 - self.first.0 % 64;
        let mut rest = bits & self.mask;
        std::iter::from_fn(move || {
            let start = (rest != 0).then(|| rest.trailing_zeros())?;
            let count = (rest >> start).trailing_ones();
            let taken = (u64::MAX >> (64 - count)) << start;
            rest &= !taken;
            Some(ClusterRange {
                start: HostCluster(word_start + u64::from(start)),
                count: u64::from(count),
            })
        })
    }
}

/// The parts of a run by the words that their bits lie in, in order.
pub(crate) fn by_word(clusters: ClusterRange) -> impl Iterator<Item = WordPart> {
    let mut first = clusters.start.0;
    std::iter::from_fn(move || {
        let left = clusters.end().checked_sub(first).filter(|left| *left > 0)?;
        let count = (64 - first % 64).min(left);
        let part = WordPart {
            first: HostCluster(first),
            mask: (u64::MAX >> (64 - count)) << (first % 64),
        };
        first += count;
        Some(part)
    })
}

/// The region a cluster is in.
pub(crate) fn region_of(cluster: HostCluster) -> u64 {
    cluster.0 / REGION_CLUSTERS
}

/// The clusters of a region.
pub(crate) fn region_clusters(region: u64) -> std::ops::Range<u64> {
    let start = region.saturating_mul(REGION_CLUSTERS);
    start..start.saturating_add(REGION_CLUSTERS)
}
