//! The witness: a second walk, only over suspects, that counts exactly and names who refers to them.
//!
//! Comes in: the clusters that did not add up. Goes out: exact counts, COPIED flags that are wrong, and owners. Never
//! here: a table read when nothing is suspect.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::claimed::for_each_claimed;
use super::owner_runs::OwnerRuns;
use super::stored::RegionCounts;
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding, Findings, Owner, OwnerKind};
use crate::progress::Phase;
use crate::qcow2::{
    ClusterRange, Geometry, GuestRange, HostCluster, HostOffset, L1Entry, Place, Tree, words,
};
use crate::refcount_map::{
    ClusterSet, Identity, Ledger, Tally, WordPart, by_word, region_clusters,
};
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{CompressedEntry, Entries, Mapped, Rules, Run, Target};
use crate::walk::{L2Item, Notes, Survey, Walk};

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
        has_all_owners: has_all_owners && !owners.may_lack_some(),
        owners,
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
            // Nothing is judged by them any more.
            if walk.progress.is_stopped() {
                return;
            }
            let counts = RegionCounts::read(walk, survey, region);
            let words = suspects.words_of(region);
            for (start, word) in region_clusters(region).step_by(64).zip(words) {
                if word == 0 {
                    continue;
                }
                let counts = counts.word(HostCluster(start));
                let sets = [
                    (&stored.one, counts.ones),
                    (&stored.unknown, counts.unknown),
                ];
                for (set, bits) in sets {
                    if bits & word != 0 {
                        set.insert_word(HostCluster(start), bits & word);
                    }
                }
            }
        });
        stored
    }

    /// Those of a part's suspects whose COPIED flag, all alike, contradicts the stored count, and the code for it.
    fn judge_word(&self, part: WordPart, suspects: u64, copied: bool) -> (u64, Code) {
        let known = suspects & !self.unknown.bits_of(part);
        let one = self.one.bits_of(part);
        if copied {
            (known & !one, Code::CopiedFlagStale)
        } else {
            (known & one, Code::CopiedFlagMissing)
        }
    }

    /// The code for a COPIED flag that contradicts the stored count.
    fn judge(&self, cluster: HostCluster, copied: bool) -> Option<Code> {
        let part = by_word(ClusterRange::one(cluster)).next()?;
        let (wrong, code) = self.judge_word(part, part.mask, copied);
        (wrong != 0).then_some(code)
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
    /// Counts a reference; says whether its owner is to be named.
    fn note(&self, cluster: HostCluster, weight: u64, identity: Identity) -> bool {
        if let Some(tally) = self.tally {
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
    walk_tables_again(walk, survey, &survey.l2_tables, purpose, notes)
}

/// Notes the claims, and reads some of the L2 tables again.
pub(super) fn walk_tables_again<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    tables: &[L2Item],
    purpose: &Purpose<'_>,
    notes: &mut Notes,
) -> OwnerRuns {
    let mut owners = OwnerRuns::default();
    note_claims(walk, survey, purpose, &mut owners, notes);
    let total_bytes = tables.len() as u64 * walk.geometry.cluster_bytes();
    walk.progress.begin(Phase::Owners, total_bytes);
    let rules = Rules::new(walk);
    let visitors = read_tables(walk, tables, || Visitor {
        rules: &rules,
        purpose,
        owners: OwnerRuns::default(),
        notes: Notes::default(),
    });
    for visitor in visitors {
        owners.append(visitor.owners);
        notes.findings.append(visitor.notes.findings);
        notes.coverage.append_new_failures(visitor.notes.coverage);
    }
    owners.sort();
    owners
}

/// Counts the claims, and names those who make them.
fn note_claims<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    purpose: &Purpose<'_>,
    owners: &mut OwnerRuns,
    notes: &mut Notes,
) {
    if let Some(tally) = purpose.tally {
        let gap = for_each_claimed(survey, walk.progress, |clusters, depth| {
            tally.add_run(clusters, 1, Identity::Metadata);
            // Those that share it are told apart from the first by coming later.
            if depth > 1 {
                tally.add_run(clusters, depth - 1, Identity::Metadata);
            }
        });
        notes.coverage.push_new_failure(gap);
    }
    let Some(named) = purpose.named else { return };
    for claim in &survey.claims {
        // Owners without names are no gap.
        if walk.progress.is_stopped() {
            return;
        }
        let owner = |host| Owner {
            kind: claim.kind,
            place: claim.place,
            trees: None,
            guest: None,
            host,
        };
        if owners.drops_all_of(claim.place) {
            continue;
        }
        for part in by_word(claim.clusters) {
            for clusters in part.runs_of(named.bits_of(part)) {
                owners.push(owner(clusters));
            }
        }
    }
}

struct Visitor<'a> {
    rules: &'a Rules,
    purpose: &'a Purpose<'a>,
    owners: OwnerRuns,
    notes: Notes,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        self.note_table(item);
        let rules = self.rules;
        rules.walk_runs(
            item,
            bytes,
            None,
            &mut Noting {
                visitor: self,
                item,
            },
        );
    }

    fn miss(&mut self, item: &L2Item, gap: Gap) {
        self.note_table(item);
        // Owners without names are no gap, references that are not counted are one.
        if self.purpose.tally.is_some() || gap.kind != GapKind::Stopped {
            self.notes.gap(gap);
        }
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
}

/// Notes the entries of one table.
struct Noting<'a, 'b> {
    visitor: &'a mut Visitor<'b>,
    item: &'a L2Item,
}

impl Entries for Noting<'_, '_> {
    fn run(&mut self, run: Run) {
        let purpose = self.visitor.purpose;
        if let Some(tally) = purpose.tally {
            let identity = Identity::Guest(run.guest_cluster);
            tally.add_run(run.clusters, self.item.weight(), identity);
        }
        // The code depends on the run's flags alone.
        let mut open: Option<(ClusterRange, Code)> = None;
        for part in by_word(run.clusters) {
            let named = purpose.named.map_or(0, |set| set.bits_of(part));
            for clusters in part.runs_of(named) {
                let guest = self.guest_of(run, clusters);
                self.push_owner(
                    OwnerKind::GuestData,
                    index_of(run, clusters),
                    guest,
                    clusters,
                );
            }
            let suspects = purpose.suspects.map_or(0, |set| set.bits_of(part));
            let stored = purpose
                .stored
                .filter(|_| suspects != 0 && self.item.trees.active > 0);
            let Some(stored) = stored else { continue };
            let (wrong, code) = stored.judge_word(part, suspects, run.copied);
            for clusters in part.runs_of(wrong) {
                match &mut open {
                    Some((known, _)) if known.end() == clusters.start.0 => {
                        known.count += clusters.count;
                    }
                    _ => {
                        let done = open.replace((clusters, code));
                        self.note_flags(run, done);
                    }
                }
            }
        }
        self.note_flags(run, open);
    }

    fn compressed(&mut self, entry: CompressedEntry) {
        let guest = self
            .visitor
            .rules
            .geometry
            .guest_range(entry.guest_cluster, 1);
        for cluster in entry.clusters.clusters() {
            let weight = self.item.weight();
            if self
                .visitor
                .purpose
                .note(cluster, weight, Identity::Compressed)
            {
                let clusters = ClusterRange::one(cluster);
                self.push_owner(OwnerKind::CompressedData, entry.index, guest, clusters);
            }
        }
    }

    fn other(&mut self, mapped: Mapped) {
        match mapped.target {
            Target::Standard {
                cluster: Ok(cluster),
                copied,
                ..
            } => self.run(Run {
                index: mapped.index,
                guest_cluster: mapped.guest_cluster,
                clusters: ClusterRange::one(cluster),
                copied,
            }),
            Target::Compressed {
                extent,
                clusters: Ok(clusters),
            } => self.compressed(CompressedEntry {
                index: mapped.index,
                guest_cluster: mapped.guest_cluster,
                extent,
                clusters,
            }),
            Target::Standard { .. } | Target::Compressed { .. } | Target::External { .. } => {}
        }
    }
}

impl Noting<'_, '_> {
    /// Notes that COPIED flags of part of a run are wrong, if any are.
    fn note_flags(&mut self, run: Run, wrong: Option<(ClusterRange, Code)>) {
        let Some((clusters, code)) = wrong else {
            return;
        };
        let place = Place::L2Entry {
            table: self.item.cluster,
            index: index_of(run, clusters),
        };
        let finding = Finding::new(code, place)
            .host(clusters)
            .guest(self.guest_of(run, clusters))
            .count(self.item.trees.active.saturating_mul(clusters.count));
        self.visitor.notes.push(finding);
    }

    /// The guest clusters of part of a run.
    fn guest_of(&self, run: Run, clusters: ClusterRange) -> GuestRange {
        let first = run
            .guest_cluster
            .saturating_add(clusters.start.0 - run.clusters.start.0);
        self.visitor
            .rules
            .geometry
            .guest_range(first, clusters.count)
    }

    fn push_owner(&mut self, kind: OwnerKind, index: u64, guest: GuestRange, host: ClusterRange) {
        self.visitor.owners.push(Owner {
            kind,
            place: Place::L2Entry {
                table: self.item.cluster,
                index,
            },
            trees: Some(self.item.trees),
            guest: Some(guest),
            host,
        });
    }
}

/// The index of the entry that maps the first cluster of part of a run.
fn index_of(run: Run, clusters: ClusterRange) -> u64 {
    run.index + (clusters.start.0 - run.clusters.start.0)
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
    let (Some(stored), Some(suspects)) = (purpose.stored, purpose.suspects) else {
        return;
    };
    let is_concerned = |item: &&L2Item| item.trees.active > 0 && suspects.contains(item.cluster);
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
    while first < entries && !walk.progress.is_stopped() {
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
