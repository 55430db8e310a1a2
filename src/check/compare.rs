//! The comparison: stored against expected, for the clusters that did not settle.
//!
//! Comes in: what the ledger has left, the witness's exact counts, the stored counts. Goes out: findings about refcounts
//! and shared clusters. Never here: a table of the mapping. This is where a leak is decided.

use rayon::prelude::*;

use super::stored::RegionCounts;
use super::witness::Witnessed;
use crate::finding::{Code, Finding, Findings};
use crate::qcow2::{ClusterRange, Geometry, HostCluster, Place};
use crate::refcount_map::Ledger;
use crate::storage::Storage;
use crate::walk::{Notes, Survey, Walk};

/// Regions compared at the same time.
const REGIONS_AT_ONCE: usize = 16;

/// What is known of one cluster.
#[derive(Clone, Copy, Debug)]
struct Account {
    cluster: HostCluster,
    /// `None` where the count could not be read.
    stored: Option<u64>,
    expected: u64,
    sharing: Sharing,
}

impl Account {
    /// What is wrong about its users sharing it.
    fn overlap(&self) -> Option<Code> {
        match self.sharing {
            Sharing::Allowed => None,
            Sharing::GuestData if self.stored >= Some(self.expected) => Some(Code::GuestDataShared),
            Sharing::GuestData => Some(Code::GuestDataOverlap),
            Sharing::Metadata => Some(Code::MetadataOverlap),
        }
    }
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
    let judge = Judge {
        geometry: walk.geometry,
        // A table nobody read may refer to anything: what nothing else refers to is then no leak.
        sees_all_references: notes.coverage.failure_count() == 0,
    };
    // Each part keeps as many findings as all together may: few parts at a time.
    for regions in ledger.unsettled_regions().chunks(REGIONS_AT_ONCE) {
        let parts: Vec<Findings> = regions
            .par_iter()
            .map(|&region| {
                let stored = RegionCounts::read(walk, survey, region);
                compare_region(&judge, &stored, ledger, witnessed, region)
            })
            .collect();
        for part in parts {
            notes.findings.append(part);
        }
    }
}

fn compare_region(
    judge: &Judge,
    stored: &RegionCounts,
    ledger: &Ledger,
    witnessed: &Witnessed,
    region: u64,
) -> Findings {
    let mut findings = Findings::default();
    for_each_account(stored, ledger, witnessed, region, |account| {
        judge.judge(account, &mut findings);
    });
    findings
}

/// Every cluster of a region that is suspect or still owes.
fn for_each_account(
    stored: &RegionCounts,
    ledger: &Ledger,
    witnessed: &Witnessed,
    region: u64,
    mut each: impl FnMut(Account),
) {
    for cluster in ledger.unsettled_clusters(region) {
        let is_suspect = ledger.suspects().contains(cluster);
        let owed = ledger.owed(cluster);
        let stored = stored.get(cluster);
        let (expected, sharing) = if is_suspect {
            (witnessed.tally.count(cluster), sharing(witnessed, cluster))
        } else {
            let expected = stored.unwrap_or(owed).saturating_sub(owed);
            (expected, Sharing::Allowed)
        };
        each(Account {
            cluster,
            stored,
            expected,
            sharing,
        });
    }
}

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

/// Whether a suspect cluster has users that may not share it.
pub(super) fn has_conflict(witnessed: &Witnessed, cluster: HostCluster) -> bool {
    sharing(witnessed, cluster) != Sharing::Allowed
}

/// Every such cluster, in order.
pub(super) fn differences<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    witnessed: &Witnessed,
) -> Vec<Difference> {
    let regions = ledger.unsettled_regions();
    let parts: Vec<Vec<Difference>> = regions
        .par_iter()
        .map(|&region| {
            let stored = RegionCounts::read(walk, survey, region);
            let mut part = Vec::new();
            for_each_account(&stored, ledger, witnessed, region, |account| {
                part.push(Difference {
                    cluster: account.cluster,
                    stored: account.stored,
                    expected: account.expected,
                    has_conflict: account.sharing != Sharing::Allowed,
                    overlap: account.overlap(),
                });
            });
            part
        })
        .collect();
    parts.concat()
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

/// What every cluster is judged by.
struct Judge {
    geometry: Geometry,
    sees_all_references: bool,
}

impl Judge {
    /// Decides what is wrong with one cluster.
    ///
    /// An overlap takes the place of a refcount that is too low: they are one fault.
    fn judge(&self, account: Account, findings: &mut Findings) {
        let overlap = account.overlap();
        let difference = account
            .stored
            .and_then(|stored| self.difference(account.cluster, stored, account.expected))
            .filter(|&code| overlap.is_none() || code == Code::RefcountLeak);
        for code in [overlap, difference].into_iter().flatten() {
            findings.push(
                Finding::new(
                    code,
                    Place::Clusters {
                        start: account.cluster,
                    },
                )
                .host(ClusterRange::one(account.cluster))
                .counts(account.stored, account.expected),
            );
        }
    }

    /// What a stored count is beside the references.
    fn difference(&self, cluster: HostCluster, stored: u64, expected: u64) -> Option<Code> {
        if stored > expected {
            let is_past_end = cluster.0 >= self.geometry.file_clusters() && expected == 0;
            let code = if is_past_end {
                Code::RefcountPastEnd
            } else {
                Code::RefcountLeak
            };
            return self.sees_all_references.then_some(code);
        }
        if expected > self.geometry.refcount_max() {
            Some(Code::RefcountOverflow)
        } else if stored == expected {
            None
        } else if stored == 0 {
            Some(Code::RefcountZero)
        } else {
            Some(Code::RefcountTooLow)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::Header;

    fn codes(stored: Option<u64>, expected: u64, sharing: Sharing) -> Vec<&'static str> {
        codes_if(true, stored, expected, sharing)
    }

    fn codes_if(
        sees_all_references: bool,
        stored: Option<u64>,
        expected: u64,
        sharing: Sharing,
    ) -> Vec<&'static str> {
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
        let judge = Judge {
            geometry,
            sees_all_references,
        };
        judge.judge(account, &mut findings);
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
        assert_eq!(codes(Some(2), 2, Sharing::GuestData), ["guest-data-shared"]);
        assert_eq!(codes(None, 2, Sharing::GuestData), ["guest-data-overlap"]);
        assert_eq!(codes(Some(2), 2, Sharing::Metadata), ["metadata-overlap"]);
        assert_eq!(codes(None, 2, Sharing::Metadata), ["metadata-overlap"]);
        assert_eq!(
            codes(Some(3), 2, Sharing::GuestData),
            ["guest-data-shared", "refcount-leak"]
        );
    }

    #[test]
    fn nothing_is_called_a_leak_while_tables_are_unread() {
        let allowed = Sharing::Allowed;
        assert_eq!(codes_if(false, Some(2), 1, allowed), [""; 0]);
        assert_eq!(codes_if(false, Some(0), 1, allowed), ["refcount-zero"]);
    }
}
