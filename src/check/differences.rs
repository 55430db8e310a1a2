//! Clusters that are suspect or miscounted, in runs.
//!
//! Comes in: what the comparison finds, in order. Goes out: the same, cluster by cluster, to a plan. Never here: a list as
//! long as the damage where the damage is all of one kind.

use std::ops::Range;

use crate::finding::Code;
use crate::qcow2::{ClusterRange, HostCluster};

/// A cluster that is suspect or miscounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) cluster: HostCluster,
    /// `None` where the count could not be read.
    pub(crate) stored: Option<u64>,
    pub(crate) expected: u64,
    /// It has users that may not share it.
    pub(crate) has_conflict: bool,
    /// The finding about that, if it has.
    pub(crate) overlap: Option<Code>,
}

/// Such clusters that follow one another and are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DifferenceRun {
    pub(crate) clusters: ClusterRange,
    pub(crate) stored: Option<u64>,
    pub(crate) expected: u64,
    pub(crate) has_conflict: bool,
    pub(crate) overlap: Option<Code>,
}

impl DifferenceRun {
    /// The first so many clusters, at most all of them, and the rest.
    pub(crate) fn split_at(self, count: u64) -> (Self, Self) {
        let count = count.min(self.clusters.count);
        let first = ClusterRange {
            start: self.clusters.start,
            count,
        };
        let rest = ClusterRange {
            start: HostCluster(self.clusters.start.0.saturating_add(count)),
            count: self.clusters.count - count,
        };
        let of = |clusters| Self { clusters, ..self };
        (of(first), of(rest))
    }

    fn of(&self, cluster: HostCluster) -> Difference {
        Difference {
            cluster,
            stored: self.stored,
            expected: self.expected,
            has_conflict: self.has_conflict,
            overlap: self.overlap,
        }
    }
}

/// Every cluster that is suspect or miscounted, in order.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    runs: Vec<DifferenceRun>,
}

impl Differences {
    /// Adds a run that comes after all others.
    pub(super) fn push(&mut self, run: DifferenceRun) {
        if let Some(last) = self.runs.last_mut()
            && last.clusters.end() == run.clusters.start.0
            && *last
                == (DifferenceRun {
                    clusters: last.clusters,
                    ..run
                })
        {
            last.clusters.count += run.clusters.count;
        } else {
            self.runs.push(run);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All of them in runs, in order.
    pub(crate) fn runs(&self) -> &[DifferenceRun] {
        &self.runs
    }

    /// Those of a range of clusters in runs, in order, as far as they lie in the range.
    pub(crate) fn runs_within(&self, range: Range<u64>) -> impl Iterator<Item = DifferenceRun> {
        let first = self
            .runs
            .partition_point(|run| run.clusters.end() <= range.start);
        let runs = self.runs.get(first..).unwrap_or(&[]).iter();
        let (first, end) = (range.start, range.end);
        runs.take_while(move |run| run.clusters.start.0 < end)
            .map(move |run| {
                let start = run.clusters.start.0.max(first);
                let clusters = ClusterRange {
                    start: HostCluster(start),
                    count: run.clusters.end().min(end).saturating_sub(start),
                };
                DifferenceRun { clusters, ..*run }
            })
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Difference> {
        self.within(0..u64::MAX)
    }

    /// Those of a range of clusters, in order.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Difference> {
        self.runs_within(range)
            .flat_map(|run| run.clusters.clusters().map(move |cluster| run.of(cluster)))
    }

    /// What is known of a cluster, if it is one of them.
    pub(crate) fn get(&self, cluster: HostCluster) -> Option<Difference> {
        self.within(cluster.0..cluster.0.saturating_add(1)).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u64, stored: u64) -> DifferenceRun {
        DifferenceRun {
            clusters: ClusterRange {
                start: HostCluster(start),
                count,
            },
            stored: Some(stored),
            expected: 1,
            has_conflict: false,
            overlap: None,
        }
    }

    #[test]
    fn runs_are_told_cluster_by_cluster() {
        let mut all = Differences::default();
        for run in [run(3, 2, 0), run(5, 1, 0), run(6, 1, 2), run(9, 3, 2)] {
            all.push(run);
        }
        assert_eq!(all.runs.len(), 3);
        let told = |range| {
            let told = all.within(range);
            told.map(|known| (known.cluster.0, known.stored.unwrap_or(9)))
                .collect::<Vec<_>>()
        };
        assert_eq!(all.iter().count(), 7);
        assert_eq!(told(4..10), [(4, 0), (5, 0), (6, 2), (9, 2)]);
        assert_eq!(told(7..9), []);
        assert_eq!(all.get(HostCluster(8)), None);
        assert_eq!(
            all.get(HostCluster(11)).map(|known| known.cluster.0),
            Some(11)
        );
    }
}
