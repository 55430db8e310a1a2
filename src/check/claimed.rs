//! Claims laid over one another: each stretch of clusters once, with how many claim it.
//!
//! Comes in: the claims of the survey, which a forged image may make by the ten thousand for the same long range. Goes out:
//! stretches of clusters, and how deep the claims lie there. Never here: who claims what.

use crate::coverage::Gap;
use crate::progress::Progress;
use crate::qcow2::{ClusterRange, HostCluster, Place};
use crate::walk::Survey;

/// Clusters that claims may have all together to be told one by one: in a sound image no two lie over one another.
const TOLD_SINGLY: u64 = 1 << 22;
/// Clusters of claims so short that putting them together saves nothing.
const SHORT: u64 = 4;

/// Tells of all claimed clusters: stretches, and how many claims each stands for. Returns a gap where it was told to stop.
pub(super) fn for_each_claimed(
    survey: &Survey,
    progress: &Progress,
    mut each: impl FnMut(ClusterRange, u64),
) -> Option<Gap> {
    let claims = survey.claims.iter().map(|claim| claim.clusters);
    if are_told_singly(claims.clone()) {
        let claims = claims.take_while(|_| !progress.is_stopped());
        claims.for_each(|clusters| each(clusters, 1));
    } else {
        let stretches = stretches(claims).take_while(|_| !progress.is_stopped());
        stretches.for_each(|(clusters, depth)| each(clusters, depth));
    }
    progress.is_stopped().then(|| Gap::stopped(Place::File))
}

fn are_told_singly(claims: impl Iterator<Item = ClusterRange>) -> bool {
    let (mut count, mut clusters) = (0_u64, 0_u64);
    for claim in claims {
        count += 1;
        clusters = clusters.saturating_add(claim.count);
    }
    clusters <= TOLD_SINGLY.max(count.saturating_mul(SHORT))
}

/// Stretches that the same number of ranges cover, in order.
pub(crate) fn stretches(
    ranges: impl Iterator<Item = ClusterRange> + Clone,
) -> impl Iterator<Item = (ClusterRange, u64)> {
    let mut starts: Vec<u64> = ranges.clone().map(|range| range.start.0).collect();
    let mut ends: Vec<u64> = ranges.map(ClusterRange::end).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    let mut starts = starts.into_iter().peekable();
    let mut ends = ends.into_iter().peekable();
    let (mut from, mut depth) = (0, 0_u64);
    std::iter::from_fn(move || {
        loop {
            // Every range ends, and none before it starts.
            let &end = ends.peek()?;
            let start = starts.peek().copied().filter(|start| *start < end);
            let stretch = (from, depth);
            if let Some(start) = start {
                starts.next();
                (from, depth) = (start, depth + 1);
            } else {
                ends.next();
                (from, depth) = (end, depth.saturating_sub(1));
            }
            let (start, depth) = stretch;
            if depth > 0 && start < from {
                let clusters = ClusterRange {
                    start: HostCluster(start),
                    count: from - start,
                };
                return Some((clusters, depth));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::GapKind;
    use crate::finding::OwnerKind;

    fn range(start: u64, count: u64) -> ClusterRange {
        ClusterRange {
            start: HostCluster(start),
            count,
        }
    }

    #[test]
    fn stretches_have_as_many_claims_as_lie_over_them() {
        let ranges = [
            range(10, 4),
            range(3, 2),
            range(12, 5),
            range(10, 4),
            range(5, 1),
            range(11, 1),
        ];
        let told: Vec<_> = stretches(ranges.into_iter())
            .map(|(clusters, depth)| (clusters.start.0, clusters.count, depth))
            .collect();
        let expected = [
            (3, 2, 1),
            (5, 1, 1),
            (10, 1, 2),
            (11, 1, 3),
            (12, 2, 3),
            (14, 3, 1),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn who_is_told_to_stop_tells_no_more_and_says_so() {
        for claim in [range(1, 2), range(1, TOLD_SINGLY)] {
            let mut survey = Survey::default();
            for start in 0..3 {
                let clusters = range(start, claim.count);
                survey.claim(clusters, OwnerKind::L1Table, Place::File);
            }
            let (progress, mut all, mut told) = (Progress::default(), 0, 0);
            let gap = for_each_claimed(&survey, &progress, |_, _| all += 1);
            assert_eq!(gap, None);
            let gap = for_each_claimed(&survey, &progress, |_, _| {
                told += 1;
                progress.stop();
            });
            assert!(told == 1 && all > 1);
            assert_eq!(gap.map(|gap| gap.kind), Some(GapKind::Stopped));
        }
    }
}
