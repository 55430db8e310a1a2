//! The comparison: stored against expected, for the clusters that did not settle.
//!
//! Comes in: what the ledger has left, the witness's exact counts, the stored counts. Goes out: findings about refcounts
//! and shared clusters. Never here: a table of the mapping. This is where a leak is decided.

use rayon::prelude::*;

use super::stored::RegionCounts;
use super::witness::Witnessed;
use crate::finding::{Code, Finding, Findings};
use crate::qcow2::{ClusterRange, Geometry, HostCluster, Place};
use crate::refcount_map::{Ledger, region_clusters};
use crate::storage::Storage;
use crate::walk::{Notes, Survey, Walk};

/// What is known of one cluster.
#[derive(Clone, Copy, Debug)]
struct Account {
    cluster: HostCluster,
    /// `None` where the count could not be read.
    stored: Option<u64>,
    expected: u64,
    sharing: Sharing,
}

/// Whether a cluster's users may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// One user, or users that may share.
    Allowed,
    /// Guest data of different guest clusters.
    GuestData,
    /// A structure of the format and something else.
    Metadata,
}

/// Compares every cluster that is suspect or still owes.
pub(super) fn compare<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    witnessed: &Witnessed,
    notes: &mut Notes,
) {
    let regions = ledger.unsettled_regions();
    let parts: Vec<Findings> = regions
        .par_iter()
        .map(|&region| compare_region(walk, survey, ledger, witnessed, region))
        .collect();
    for part in parts {
        notes.findings.append(part);
    }
}

fn compare_region<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    witnessed: &Witnessed,
    region: u64,
) -> Findings {
    let stored = RegionCounts::read(walk, survey, region);
    let mut findings = Findings::default();
    for cluster in region_clusters(region).map(HostCluster) {
        let is_suspect = ledger.suspects().contains(cluster);
        let owed = ledger.owed(cluster);
        if !is_suspect && owed == 0 {
            continue;
        }
        let stored = stored.get(cluster);
        let account = if is_suspect {
            Account {
                cluster,
                stored,
                expected: witnessed.tally.count(cluster),
                sharing: sharing(witnessed, cluster),
            }
        } else {
            Account {
                cluster,
                stored,
                expected: stored.unwrap_or(owed).saturating_sub(owed),
                sharing: Sharing::Allowed,
            }
        };
        judge(walk.geometry, account, &mut findings);
    }
    findings
}

fn sharing(witnessed: &Witnessed, cluster: HostCluster) -> Sharing {
    if !witnessed.tally.has_conflict(cluster) {
        Sharing::Allowed
    } else if witnessed.tally.has_metadata(cluster) {
        Sharing::Metadata
    } else {
        Sharing::GuestData
    }
}

/// Decides what is wrong with one cluster. An overlap takes the place of a refcount that is too low: they are one fault.
fn judge(geometry: Geometry, account: Account, findings: &mut Findings) {
    let expected = account.expected;
    let mut push = |code| {
        findings.push(
            Finding::new(
                code,
                Place::Clusters {
                    start: account.cluster,
                },
            )
            .host(ClusterRange::one(account.cluster))
            .counts(account.stored.unwrap_or(0), expected),
        );
    };
    let is_overlap = match account.sharing {
        Sharing::Allowed => false,
        Sharing::GuestData => {
            push(Code::GuestDataOverlap);
            true
        }
        Sharing::Metadata => {
            push(Code::MetadataOverlap);
            true
        }
    };
    let Some(stored) = account.stored else { return };
    if account.cluster.0 >= geometry.file_clusters() && expected == 0 {
        push(Code::RefcountPastEnd);
    } else if stored > expected {
        push(Code::RefcountLeak);
    } else if is_overlap {
    } else if expected > geometry.refcount_max() {
        push(Code::RefcountOverflow);
    } else if stored == 0 && expected > 0 {
        push(Code::RefcountZero);
    } else if stored < expected {
        push(Code::RefcountTooLow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::Header;

    fn codes(stored: Option<u64>, expected: u64, sharing: Sharing) -> Vec<&'static str> {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        bytes[99] = 3;
        let header = Header::decode(&bytes).expect("a header");
        let geometry = Geometry::new(&header, 1 << 20).expect("cluster_bits in range");
        let mut findings = Findings::default();
        let account = Account {
            cluster: HostCluster(5),
            stored,
            expected,
            sharing,
        };
        judge(geometry, account, &mut findings);
        findings.iter().map(|finding| finding.code.id()).collect()
    }

    #[test]
    fn every_difference_has_one_name() {
        let allowed = Sharing::Allowed;
        assert_eq!(codes(Some(2), 2, allowed), [""; 0]);
        assert_eq!(codes(Some(2), 1, allowed), ["refcount-leak"]);
        assert_eq!(codes(Some(1), 2, allowed), ["refcount-too-low"]);
        assert_eq!(codes(Some(0), 1, allowed), ["refcount-zero"]);
        assert_eq!(codes(Some(255), 256, allowed), ["refcount-overflow"]);
        assert_eq!(codes(None, 1, allowed), [""; 0]);
    }

    #[test]
    fn overlap_takes_the_place_of_a_low_count_but_not_of_a_leak() {
        assert_eq!(
            codes(Some(1), 2, Sharing::GuestData),
            ["guest-data-overlap"]
        );
        assert_eq!(codes(Some(2), 2, Sharing::Metadata), ["metadata-overlap"]);
        assert_eq!(codes(None, 2, Sharing::Metadata), ["metadata-overlap"]);
        assert_eq!(
            codes(Some(3), 2, Sharing::GuestData),
            ["guest-data-overlap", "refcount-leak"]
        );
    }
}
