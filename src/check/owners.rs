//! Owners: who refers to the clusters that findings show.
//!
//! Comes in: findings without owners. Goes out: findings with them. Never here: counting, judging.

use super::witness::{Purpose, Witnessed, walk_again};
use crate::finding::{Code, Finding, Owners};
use crate::qcow2::{ClusterRange, HostCluster};
use crate::refcount_map::{ClusterSet, Tally};
use crate::storage::Storage;
use crate::walk::{Notes, Survey, Walk};

/// Clusters of one finding whose owners are named, where not all were named already.
const NAMED_PER_FINDING: u64 = 256;

/// Names the owners in the findings that are shown.
pub(super) fn name_owners<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    suspects: &ClusterSet,
    witnessed: &Witnessed,
    notes: &mut Notes,
) {
    let shown = ClusterSet::new();
    let mut are_all_named = witnessed.has_all_owners;
    for finding in notes
        .findings
        .kept_mut()
        .filter(|found| wants_owners(found))
    {
        for cluster in first_clusters(finding) {
            shown.insert(cluster);
            are_all_named &= suspects.contains(cluster);
        }
    }
    if shown.is_empty() {
        return;
    }
    let again;
    let owners = if are_all_named {
        &witnessed.owners
    } else {
        let purpose = Purpose {
            named: Some(&shown),
            ..Purpose::default()
        };
        again = walk_again(walk, survey, &purpose, notes);
        &again
    };
    for finding in notes
        .findings
        .kept_mut()
        .filter(|found| wants_owners(found))
    {
        let (Some(host), Some(counts)) = (finding.host, finding.counts) else {
            continue;
        };
        finding.owners = owners.of(host);
        if host.count == 1 {
            finding.owners.count_rest(counts.expected);
        } else if host.count > NAMED_PER_FINDING && !are_all_named {
            finding.detail = Some(format!(
                "the owners of the first {NAMED_PER_FINDING} clusters are named"
            ));
        }
    }
}

/// Everyone who refers to one cluster, and how often.
pub(super) fn owners_of<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    cluster: HostCluster,
    notes: &mut Notes,
) -> (u64, Owners) {
    let asked = ClusterSet::new();
    asked.insert(cluster);
    let tally = Tally::new(&asked);
    let purpose = Purpose {
        suspects: Some(&asked),
        named: Some(&asked),
        tally: Some(&tally),
        ..Purpose::default()
    };
    let runs = walk_again(walk, survey, &purpose, notes);
    let expected = tally.count(cluster);
    let mut owners = runs.of(ClusterRange::one(cluster));
    owners.count_rest(expected);
    (expected, owners)
}

fn wants_owners(finding: &Finding) -> bool {
    matches!(
        finding.code,
        Code::RefcountZero
            | Code::RefcountTooLow
            | Code::RefcountOverflow
            | Code::RefcountLeak
            | Code::MetadataOverlap
            | Code::GuestDataOverlap
            | Code::GuestDataShared
    ) && finding.counts.is_some_and(|counts| counts.expected > 0)
}

fn first_clusters(finding: &Finding) -> impl Iterator<Item = HostCluster> {
    let first = finding.host.map(|host| ClusterRange {
        count: host.count.min(NAMED_PER_FINDING),
        ..host
    });
    first.into_iter().flat_map(ClusterRange::clusters)
}
