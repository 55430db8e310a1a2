//! Units, one type each, with only the arithmetic that means something.
//!
//! Comes in: plain integers, at the edges. Goes out: quantities that cannot be mixed up. Never here: a shift by
//! `cluster_bits` (that is [`Geometry`](super::Geometry)'s), a check against the file's length.

use std::fmt;

/// A byte offset into the image file as the disk *alleges* it: it may be unaligned, past the end, absurd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// The index of a cluster in the image file. From disk data only [`Geometry::admit`](super::Geometry::admit) makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCluster(pub u64);

/// A byte offset into the virtual disk the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// The index of a cluster in the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestCluster(pub u64);

/// Consecutive clusters of the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterRange {
    /// The first cluster.
    pub start: HostCluster,
    /// How many clusters, at least one in every range a finding carries.
    pub count: u64,
}

/// Consecutive bytes of the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestRange {
    /// The first byte.
    pub start: GuestOffset,
    /// How many bytes.
    pub bytes: u64,
}

impl ClusterRange {
    /// The range of one cluster.
    pub fn one(cluster: HostCluster) -> Self {
        Self {
            start: cluster,
            count: 1,
        }
    }

    /// The first cluster index after the range.
    pub fn end(self) -> u64 {
        self.start.0.saturating_add(self.count)
    }

    /// Every cluster of the range.
    pub fn clusters(self) -> impl Iterator<Item = HostCluster> {
        (self.start.0..self.end()).map(HostCluster)
    }

    /// The same clusters as those of ranges that may overlap, each once, in order, in as few ranges as there can be.
    pub(crate) fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|range, before| {
            let touches = range.start.0 <= before.end();
            if touches {
                before.count = before.end().max(range.end()) - before.start.0;
            }
            touches
        });
        ranges
    }
}

impl GuestRange {
    /// The first byte offset after the range.
    pub fn end(self) -> u64 {
        self.start.0.saturating_add(self.bytes)
    }
}

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start.0, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        let range = |start, count| ClusterRange {
            start: HostCluster(start),
            count,
        };
        let ranges = [(7, 2), (1, 5), (2, 2), (1, 1), (5, 3), (11, 1), (10, 1)];
        let ranges = ranges.map(|(start, count)| range(start, count)).to_vec();
        let merged = ClusterRange::merged(ranges);
        assert_eq!(merged, [range(1, 8), range(10, 2)]);
    }
}
