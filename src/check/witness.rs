//! The witness: a second walk, only over suspects, that counts exactly and names who refers to them.
//!
//! Comes in: the clusters that did not add up. Goes out: exact counts, COPIED flags that are wrong, and owners. Never
//! here: a table read when nothing is suspect.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::owner_runs::OwnerRuns;
use super::stored::RegionCounts;
use crate::coverage::Gap;
use crate::finding::{Code, Finding, Findings, Owner, OwnerKind};
use crate::progress::Phase;
use crate::qcow2::{
    ClusterRange, Geometry, GuestRange, HostCluster, HostOffset, L1Entry, Place, Tree, words,
};
use crate::refcount_map::{ClusterSet, Identity, Ledger, Tally};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{Mapped, Rules, Target};
use crate::walk::{Claim, L2Item, Notes, Survey, Walk};

/// Suspects whose owners are named in the same walk that counts them; with more, a further walk names those shown.
const NAMED_AT_ONCE: u64 = 1 << 16;
/// What the witness knows of the suspects.
#[derive(Debug)]
pub(super) struct Witnessed {
    pub(super) tally: Tally,
    pub(super) owners: OwnerRuns,
    /// Whether `owners` has those of every suspect.
    pub(super) has_all_owners: bool,
}

/// Counts the references to every suspect, notes wrong COPIED flags, and names owners if the suspects are few.
pub(super) fn name_suspects<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ledger: &Ledger,
    notes: &mut Notes,
) -> Witnessed {
    let suspects = ledger.suspects();
    let tally = Tally::new(suspects);
    if suspects.is_empty() {
        return Witnessed {
            tally,
            owners: OwnerRuns::default(),
            has_all_owners: true,
        };
    }
    let has_all_owners = suspects.count() <= NAMED_AT_ONCE;
    let named = has_all_owners.then_some(suspects);
    let stored = StoredOnes::read(walk, survey, suspects);
    let purpose = Purpose {
        suspects: Some(suspects),
        named,
        tally: Some(&tally),
        stored: Some(&stored),
    };
    judge_l1_flags(walk, survey, &purpose, notes);
    let owners = walk_again(walk, survey, &purpose, notes);
    Witnessed {
        tally,
        owners,
        has_all_owners,
    }
}

/// Which suspects have a stored count of one, and of which the count is not known.
pub(super) struct StoredOnes {
    one: ClusterSet,
    unknown: ClusterSet,
}

impl StoredOnes {
    fn read<S: Storage>(walk: Walk<'_, S>, survey: &Survey, suspects: &ClusterSet) -> Self {
        let stored = Self {
            one: ClusterSet::new(),
            unknown: ClusterSet::new(),
        };
        let regions: Vec<u64> = suspects.regions().collect();
        regions.par_iter().for_each(|&region| {
            let counts = RegionCounts::read(walk, survey, region);
            for cluster in suspects.clusters_of(region) {
                match counts.get(cluster) {
                    Some(1) => stored.one.insert(cluster),
                    Some(_) => {}
                    None => stored.unknown.insert(cluster),
                }
            }
        });
        stored
    }

    /// The code for a COPIED flag that contradicts the stored count.
    fn judge(&self, cluster: HostCluster, copied: bool) -> Option<Code> {
        match (self.one.contains(cluster), copied) {
            _ if self.unknown.contains(cluster) => None,
            (true, false) => Some(Code::CopiedFlagMissing),
            (false, true) => Some(Code::CopiedFlagStale),
            _ => None,
        }
    }
}

/// What a second walk is for.
#[derive(Clone, Copy, Default)]
pub(super) struct Purpose<'a> {
    /// Whose references count, where a tally is kept.
    pub(super) suspects: Option<&'a ClusterSet>,
    /// Whose owners are named.
    pub(super) named: Option<&'a ClusterSet>,
    pub(super) tally: Option<&'a Tally>,
    /// What COPIED flags are judged by.
    pub(super) stored: Option<&'a StoredOnes>,
}

impl Purpose<'_> {
    fn is_suspect(&self, cluster: HostCluster) -> bool {
        self.suspects.is_some_and(|set| set.contains(cluster))
    }

    /// Counts a reference; says whether its owner is to be named.
    fn note(&self, cluster: HostCluster, weight: u64, identity: Identity) -> bool {
        if let Some(tally) = self.tally.filter(|_| self.is_suspect(cluster)) {
            tally.add(cluster, weight, identity);
        }
        self.named.is_some_and(|set| set.contains(cluster))
    }
}

/// Reads every L2 table again, for one purpose.
pub(super) fn walk_again<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    purpose: &Purpose<'_>,
    notes: &mut Notes,
) -> OwnerRuns {
    let mut owners = OwnerRuns::default();
    for claim in &survey.claims {
        for cluster in claim.clusters.clusters() {
            if purpose.note(cluster, 1, Identity::Metadata) {
                owners.push(claim_owner(claim, cluster));
            }
        }
    }
    let total_bytes = survey.l2_tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Owners, total_bytes);
    let rules = Rules::new(walk);
    let visitors = read_tables(walk, &survey.l2_tables, || Visitor {
        rules: &rules,
        purpose,
        owners: OwnerRuns::default(),
        notes: Notes::default(),
    });
    for visitor in visitors {
        owners.append(visitor.owners);
        notes.append(visitor.notes);
    }
    owners.sort();
    owners
}

fn claim_owner(claim: &Claim, cluster: HostCluster) -> Owner {
    Owner {
        kind: claim.kind,
        place: claim.place,
        trees: None,
        guest: None,
        host: ClusterRange::one(cluster),
    }
}

struct Visitor<'a> {
    rules: &'a Rules,
    purpose: &'a Purpose<'a>,
    owners: OwnerRuns,
    notes: Notes,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        self.note_table(item);
        let rules = self.rules;
        rules.walk_table(item, bytes, None, |mapped| match mapped.target {
            Target::Standard {
                cluster: Ok(cluster),
                copied,
                ..
            } => self.note_standard(item, &mapped, cluster, copied),
            Target::Compressed {
                clusters: Ok(clusters),
                ..
            } => {
                for cluster in clusters.clusters() {
                    if self
                        .purpose
                        .note(cluster, item.weight(), Identity::Compressed)
                    {
                        self.push_owner(item, &mapped, OwnerKind::CompressedData, cluster);
                    }
                }
            }
            Target::Standard { .. } | Target::Compressed { .. } | Target::External { .. } => {}
        });
    }

    fn miss(&mut self, item: &L2Item, _gap: Gap) {
        // The gap was noted when the table was first read.
        self.note_table(item);
    }
}

impl Visitor<'_> {
    fn note_table(&mut self, item: &L2Item) {
        if self
            .purpose
            .note(item.cluster, item.weight(), Identity::Metadata)
        {
            let first = self.rules.geometry.guest_cluster(item.l1_index, 0);
            self.owners.push(Owner {
                kind: OwnerKind::L2Table,
                place: Place::L2Table {
                    cluster: item.cluster,
                },
                trees: Some(item.trees),
                guest: Some(table_guest(self.rules.geometry, first)),
                host: ClusterRange::one(item.cluster),
            });
        }
    }

    fn note_standard(
        &mut self,
        item: &L2Item,
        mapped: &Mapped,
        cluster: HostCluster,
        copied: bool,
    ) {
        let identity = Identity::Guest(mapped.guest_cluster);
        if self.purpose.note(cluster, item.weight(), identity) {
            self.push_owner(item, mapped, OwnerKind::GuestData, cluster);
        }
        let wrong = self
            .purpose
            .stored
            .filter(|_| item.trees.active > 0 && self.purpose.is_suspect(cluster))
            .and_then(|stored| stored.judge(cluster, copied));
        if let Some(code) = wrong {
            let place = Place::L2Entry {
                table: item.cluster,
                index: mapped.index,
            };
            self.notes.push(
                Finding::new(code, place)
                    .host(ClusterRange::one(cluster))
                    .guest(self.rules.geometry.guest_range(mapped.guest_cluster, 1))
                    .count(item.trees.active),
            );
        }
    }

    fn push_owner(
        &mut self,
        item: &L2Item,
        mapped: &Mapped,
        kind: OwnerKind,
        cluster: HostCluster,
    ) {
        self.owners.push(Owner {
            kind,
            place: Place::L2Entry {
                table: item.cluster,
                index: mapped.index,
            },
            trees: Some(item.trees),
            guest: Some(self.rules.geometry.guest_range(mapped.guest_cluster, 1)),
            host: ClusterRange::one(cluster),
        });
    }
}

fn table_guest(geometry: Geometry, first_guest_cluster: u64) -> GuestRange {
    geometry.guest_range(first_guest_cluster, geometry.l2_entries())
}

/// Notes COPIED flags of the active L1 table that contradict the stored counts.
fn judge_l1_flags<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    purpose: &Purpose<'_>,
    notes: &mut Notes,
) {
    let Some(stored) = purpose.stored else { return };
    let is_concerned = |item: &&L2Item| item.trees.active > 0 && purpose.is_suspect(item.cluster);
    let concerned: BTreeMap<HostCluster, &L2Item> = survey
        .l2_tables
        .iter()
        .filter(is_concerned)
        .map(|item| (item.cluster, item))
        .collect();
    if concerned.is_empty() {
        return;
    }
    let mut findings = Findings::default();
    for_each_active_l1_entry(walk, |index, entry| {
        let cluster = entry
            .l2_table_offset()
            .and_then(|offset| walk.geometry.admit(offset).ok());
        let Some(cluster) = cluster.filter(|cluster| concerned.contains_key(cluster)) else {
            return;
        };
        if let Some(code) = stored.judge(cluster, entry.copied()) {
            let place = Place::L1Entry {
                tree: Tree::Active,
                index,
            };
            let first = walk.geometry.guest_cluster(index, 0);
            findings.push(
                Finding::new(code, place)
                    .word(entry.0)
                    .host(ClusterRange::one(cluster))
                    .guest(table_guest(walk.geometry, first)),
            );
        }
    });
    notes.findings.append(findings);
}

fn for_each_active_l1_entry<S: Storage>(walk: Walk<'_, S>, mut each: impl FnMut(u64, L1Entry)) {
    const PIECE_ENTRIES: u64 = 1 << 17;
    let header = walk.image.header();
    let start = header.l1_table_offset;
    let in_file = walk.geometry.file_bytes().saturating_sub(start).div_ceil(8);
    let entries = u64::from(header.l1_size).min(in_file);
    let mut first = 0;
    while first < entries {
        let count = (entries - first).min(PIECE_ENTRIES);
        let mut piece = vec![0; usize::try_from(count * 8).unwrap_or(0)];
        let offset = HostOffset(start + first * 8);
        if walk.image.read_into(offset, &mut piece).is_ok() {
            for (index, word) in (first..).zip(words(&piece)) {
                each(index, L1Entry(word));
            }
        }
        first += count;
    }
}
