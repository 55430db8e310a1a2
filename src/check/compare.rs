//! The comparison: stored against expected, for the clusters that did not settle.
//!
//! Comes in: what the ledger has left, the witness's exact counts, the stored counts. Goes out: findings about refcounts
//! and shared clusters. Never here: a table of the mapping. This is where a leak is decided.

use rayon::prelude::*;

use super::Examination;
use super::differences::{DifferenceRun, Differences};
use super::stored::{RegionCounts, StoredWord};
use super::witness::Witnessed;
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding, Findings, Severity};
use crate::qcow2::{ClusterRange, Geometry, HostCluster, Place};
use crate::refcount_map::{Ledger, RegionTally, Unsettled};
use crate::storage::Storage;
use crate::walk::{Notes, Survey, Walk};

/// Regions compared at the same time.
const REGIONS_AT_ONCE: usize = 16;

/// What is known of clusters that follow one another and are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    clusters: ClusterRange,
    /// `None` where the count could not be read.
    stored: Option<u64>,
    expected: u64,
    sharing: Sharing,
    /// The first look found it unsettled, the second finds nothing: both cannot be true of the same bytes.
    is_at_odds: bool,
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

    /// Takes in what is known of the next cluster, if it is the same; says whether it did.
    fn absorb(&mut self, next: &Self) -> bool {
        let follows = self.clusters.end() == next.clusters.start.0;
        let alike = Self {
            clusters: self.clusters,
            ..*next
        };
        let is_absorbed = follows && *self == alike;
        self.clusters.count += u64::from(is_absorbed) * next.clusters.count;
        is_absorbed
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
    let judge = Judge::new(walk.geometry, notes);
    let mut contradicts_itself = false;
    // Each part keeps as many findings as all together may: few parts at a time.
    for regions in ledger.unsettled_regions().chunks(REGIONS_AT_ONCE) {
        if walk.progress.is_stopped() {
            let gap = Gap::stopped(Place::File);
            notes.coverage.push_new_failure(Some(gap));
            break;
        }
        let parts: Vec<(Findings, bool)> = regions
            .par_iter()
            .map(|&region| {
                let stored = RegionCounts::read(walk, survey, region);
                compare_region(&judge, &stored, ledger, witnessed, region)
            })
            .collect();
        for (part, is_at_odds) in parts {
            notes.findings.append(part);
            contradicts_itself |= is_at_odds;
        }
    }
    // Beside other damage a cluster can be suspect for more reasons, and nobody takes the image for a clean one.
    if contradicts_itself && notes.findings.count_of(Severity::Corruption) == 0 {
        notes.gap(Gap {
            place: Place::File,
            kind: GapKind::Unreadable,
            detail: "the disk gave other bytes when it was read again".to_owned(),
        });
    }
}

fn compare_region(
    judge: &Judge,
    stored: &RegionCounts,
    ledger: &Ledger,
    witnessed: &Witnessed,
    region: u64,
) -> (Findings, bool) {
    let mut findings = Findings::default();
    let mut is_at_odds = false;
    for_each_account(stored, ledger, witnessed, region, |account| {
        judge.judge(account, &mut findings);
        is_at_odds |= account.is_at_odds;
    });
    (findings, is_at_odds)
}

/// Every cluster of a region that is suspect or still owes, in runs.
fn for_each_account(
    stored: &RegionCounts,
    ledger: &Ledger,
    witnessed: &Witnessed,
    region: u64,
    mut each: impl FnMut(Account),
) {
    let mut open: Option<Account> = None;
    let tally = witnessed.tally.of_region(region);
    let runs = ledger.unsettled_words(region).flat_map(|word| {
        let Unsettled {
            owing_one, suspect, ..
        } = word;
        let singles = tally.singles(word.start).all();
        let unpaid = owing_one & !suspect;
        let counts = if unpaid | singles == 0 {
            StoredWord::default()
        } else {
            stored.word(word.start)
        };
        word.runs([
            // Leaked ones that were paid by nobody are all alike.
            unpaid & counts.ones,
            // So are those with one reference, and the same count.
            singles & counts.zeros,
            singles & counts.ones,
        ])
    });
    for clusters in runs {
        let cluster = clusters.start;
        let stored = stored.get(cluster);
        let (expected, sharing, is_at_odds) = if let Some(count) = tally.count(cluster) {
            let sharing = sharing(witnessed, tally, cluster);
            // A larger count is also looked at again where nothing is known to be wrong with it.
            let is_right = stored == Some(count) && count <= 1 && sharing == Sharing::Allowed;
            (count, sharing, is_right)
        } else {
            let owed = ledger.owed(cluster);
            let expected = stored.unwrap_or(owed).saturating_sub(owed);
            let is_less = stored.is_some_and(|stored| stored < owed);
            (expected, Sharing::Allowed, is_less)
        };
        let account = Account {
            clusters,
            stored,
            expected,
            sharing,
            is_at_odds,
        };
        if open.as_mut().is_some_and(|open| open.absorb(&account)) {
            continue;
        }
        if let Some(done) = open.replace(account) {
            each(done);
        }
    }
    if let Some(done) = open {
        each(done);
    }
}

/// How clusters that did not settle stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) clusters: ClusterRange,
    /// `None` where the count could not be read.
    pub(super) stored: Option<u64>,
    pub(super) expected: u64,
    /// A structure of the format is among its users.
    pub(super) is_metadata: bool,
    /// What is wrong about its users sharing it, and with its count.
    pub(super) codes: [Option<Code>; 2],
}

/// Tells of all such clusters, in order.
pub(super) fn for_each_standing<S: Storage>(
    examination: &Examination<'_, S>,
    mut each: impl FnMut(Standing),
) {
    let Examination {
        walk,
        survey,
        ledger,
        witnessed,
        ..
    } = examination;
    let judge = Judge::new(walk.geometry, &examination.notes);
    for region in ledger.unsettled_regions() {
        if walk.progress.is_stopped() {
            return;
        }
        let stored = RegionCounts::read(*walk, survey, region);
        for_each_account(&stored, ledger, witnessed, region, |account| {
            let mut tell = |clusters: ClusterRange| {
                each(Standing {
                    clusters,
                    stored: account.stored,
                    expected: account.expected,
                    is_metadata: witnessed.tally.has_metadata(clusters.start),
                    codes: judge.codes(clusters.start, account),
                });
            };
            if account.expected == 0 {
                judge.parts(account.clusters).for_each(tell);
            } else {
                let clusters = account.clusters.clusters();
                clusters.map(ClusterRange::one).for_each(&mut tell);
            }
        });
    }
}

/// Every such cluster, in order.
pub(super) fn differences<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    witnessed: &Witnessed,
) -> Differences {
    let mut differences = Differences::default();
    for regions in ledger.unsettled_regions().chunks(REGIONS_AT_ONCE) {
        let parts: Vec<Vec<DifferenceRun>> = regions
            .par_iter()
            .map(|&region| {
                let stored = RegionCounts::read(walk, survey, region);
                let mut part = Vec::new();
                for_each_account(&stored, ledger, witnessed, region, |account| {
                    part.push(DifferenceRun {
                        clusters: account.clusters,
                        stored: account.stored,
                        expected: account.expected,
                        has_conflict: account.sharing != Sharing::Allowed,
                        overlap: account.overlap(),
                    });
                });
                part
            })
            .collect();
        for run in parts.into_iter().flatten() {
            differences.push(run);
        }
    }
    differences
}

fn sharing(witnessed: &Witnessed, tally: RegionTally<'_>, cluster: HostCluster) -> Sharing {
    if !tally.has_conflict(cluster) {
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
    fn new(geometry: Geometry, notes: &Notes) -> Self {
        Self {
            geometry,
            // A table nobody read may refer to anything: what nothing else refers to is then no leak.
            sees_all_references: notes.coverage.failure_count() == 0,
        }
    }

    /// Decides what is wrong with a cluster: about its users sharing it, and with its count.
    ///
    /// An overlap takes the place of a refcount that is too low: they are one fault.
    fn codes(&self, cluster: HostCluster, account: Account) -> [Option<Code>; 2] {
        let overlap = account.overlap();
        let difference = account
            .stored
            .and_then(|stored| self.difference(cluster, stored, account.expected))
            .filter(|&code| overlap.is_none() || code == Code::RefcountLeak);
        [overlap, difference]
    }

    /// Says what is wrong with clusters that are alike.
    fn judge(&self, account: Account, findings: &mut Findings) {
        for clusters in self.parts(account.clusters) {
            for code in self.codes(clusters.start, account).into_iter().flatten() {
                let place = Place::Clusters {
                    start: clusters.start,
                };
                findings.push(
                    Finding::new(code, place)
                        .host(clusters)
                        .counts(account.stored, account.expected)
                        .count(clusters.count),
                );
            }
        }
    }

    /// What of a range is in the file, and what is past its end.
    fn parts(&self, clusters: ClusterRange) -> impl Iterator<Item = ClusterRange> {
        let file_end = self.geometry.file_clusters();
        let middle = file_end.clamp(clusters.start.0, clusters.end());
        let part = |start: u64, end: u64| ClusterRange {
            start: HostCluster(start),
            count: end - start,
        };
        let parts = [part(clusters.start.0, middle), part(middle, clusters.end())];
        parts.into_iter().filter(|part| part.count > 0)
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

    /// A judge of an image of 16 clusters.
    fn judge(sees_all_references: bool) -> Judge {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        bytes[99] = 3;
        let header = Header::decode(&bytes).expect("a header");
        let geometry = Geometry::new(&header, 1 << 20).expect("cluster_bits in range");
        Judge {
            geometry,
            sees_all_references,
        }
    }

    fn codes(stored: Option<u64>, expected: u64, sharing: Sharing) -> Vec<&'static str> {
        codes_if(true, stored, expected, sharing)
    }

    fn codes_if(
        sees_all_references: bool,
        stored: Option<u64>,
        expected: u64,
        sharing: Sharing,
    ) -> Vec<&'static str> {
        let mut findings = Findings::default();
        let account = Account {
            clusters: ClusterRange::one(HostCluster(5)),
            stored,
            expected,
            sharing,
            is_at_odds: false,
        };
        judge(sees_all_references).judge(account, &mut findings);
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
    fn a_run_that_goes_past_the_end_of_the_file_is_parted_there() {
        let mut findings = Findings::default();
        let account = Account {
            clusters: ClusterRange {
                start: HostCluster(14),
                count: 5,
            },
            stored: Some(1),
            expected: 0,
            sharing: Sharing::Allowed,
            is_at_odds: false,
        };
        judge(true).judge(account, &mut findings);
        let found: Vec<_> = findings
            .iter()
            .map(|finding| {
                (
                    finding.code.id(),
                    finding.host.map(|host| (host.start.0, host.count)),
                )
            })
            .collect();
        let expected = [
            ("refcount-past-end", Some((16, 3))),
            ("refcount-leak", Some((14, 2))),
        ];
        assert!(
            found.iter().all(|it| expected.contains(it)) && found.len() == 2,
            "{found:?}"
        );
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
