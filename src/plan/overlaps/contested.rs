//! Who uses the clusters that have users who may not share them.
//!
//! Comes in: an examination. Goes out: a [`Case`] for each such cluster, with all its users, up to a bound. Never here:
//! deciding who moves.

use std::collections::BTreeMap;

use super::MAX_REFERENCES;
use crate::check::Examination;
use crate::coverage::Gap;
use crate::finding::{Code, OwnerKind};
use crate::qcow2::{ClusterRange, Geometry, HostCluster, HostOffset, L2Entry, Place, u64_at};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{Mapped, Rules, Target};
use crate::walk::{L2Item, Survey};

/// All contested clusters.
pub(super) struct Contested {
    /// Each of them, looked at or not. Nothing is written there.
    clusters: ClusterSet,
    /// Those that are looked at.
    pub(super) cases: BTreeMap<HostCluster, Case>,
    /// How many more there are.
    pub(super) beyond: BTreeMap<Code, u64>,
}

/// A contested cluster, and everybody who uses it.
pub(super) struct Case {
    /// The finding about it.
    pub(super) code: Code,
    /// Structures of the format.
    pub(super) structures: Vec<Structure>,
    /// Compressed descriptors, by guest cluster.
    pub(super) packed: Vec<Packed>,
    /// Standard descriptors, by guest cluster.
    pub(super) guests: Vec<Guest>,
}

/// A structure of the format that a cluster belongs to.
#[derive(Clone, Copy)]
pub(super) struct Structure {
    pub(super) kind: OwnerKind,
    pub(super) place: Place,
    /// Its first cluster.
    pub(super) start: HostCluster,
}

/// An L2 entry that names a cluster.
#[derive(Clone, Copy)]
pub(super) struct Guest {
    /// The guest cluster it maps.
    pub(super) index: u64,
    /// The L2 table's cluster.
    pub(super) table: HostCluster,
    /// Where the entry is in the file, in bytes.
    pub(super) entry_offset: u64,
    pub(super) entry: L2Entry,
    /// How many L1 entries name the table.
    pub(super) weight: u64,
    pub(super) is_active: bool,
    /// The table serves other guest ranges too.
    pub(super) is_ambiguous: bool,
}

/// An L2 entry that names compressed data which lies in a cluster, if only in part.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    pub(super) guest: Guest,
    /// All clusters it lies in.
    pub(super) clusters: ClusterRange,
    /// Where it begins.
    pub(super) offset: HostOffset,
}

impl Contested {
    /// Finds every user; `None` where a table could not be read any more.
    pub(super) fn gather<S: Storage>(examination: &Examination<'_, S>) -> Option<Self> {
        let mut contested = Self::choose(examination);
        let survey = &examination.survey;
        contested.add_structures(survey);
        if contested.cases.is_empty() {
            return Some(contested);
        }
        let rules = Rules::new(examination.walk);
        let visitors = read_tables(examination.walk, &survey.l2_tables, || Visitor {
            rules: &rules,
            contested: &contested,
            guests: Vec::new(),
            compressed: Vec::new(),
            has_missed: false,
        });
        if visitors.iter().any(|visitor| visitor.has_missed) {
            return None;
        }
        let found: Vec<_> = visitors
            .into_iter()
            .map(|visitor| (visitor.guests, visitor.compressed))
            .collect();
        for (guests, compressed) in found {
            for (cluster, guest) in guests {
                if let Some(case) = contested.cases.get_mut(&cluster) {
                    case.guests.push(guest);
                }
            }
            for (cluster, packed) in compressed {
                if let Some(case) = contested.cases.get_mut(&cluster) {
                    case.packed.push(packed);
                }
            }
        }
        for case in contested.cases.values_mut() {
            case.guests
                .sort_by_key(|guest| (guest.index, guest.entry_offset));
            case.packed
                .sort_by_key(|packed| (packed.guest.index, packed.guest.entry_offset));
        }
        Some(contested)
    }

    /// The first contested clusters, as many as have no more references than are looked at.
    fn choose<S: Storage>(examination: &Examination<'_, S>) -> Self {
        let mut contested = Self {
            clusters: ClusterSet::new(),
            cases: BTreeMap::new(),
            beyond: BTreeMap::new(),
        };
        let mut references = 0_u64;
        for difference in examination.differences().iter() {
            let Some(code) = difference.overlap else {
                continue;
            };
            contested.clusters.insert(difference.cluster);
            references = references.saturating_add(difference.expected);
            if references > MAX_REFERENCES {
                *contested.beyond.entry(code).or_default() += 1;
                continue;
            }
            let case = Case {
                code,
                structures: Vec::new(),
                packed: Vec::new(),
                guests: Vec::new(),
            };
            contested.cases.insert(difference.cluster, case);
        }
        contested
    }

    fn add_structures(&mut self, survey: &Survey) {
        for claim in &survey.claims {
            let structure = Structure {
                kind: claim.kind,
                place: claim.place,
                start: claim.clusters.start,
            };
            // Forged claims may be long and many, but all cases together have no more users than are looked at.
            let clusters = claim.clusters.start..HostCluster(claim.clusters.end());
            for (_, case) in self.cases.range_mut(clusters) {
                case.structures.push(structure);
            }
        }
        for item in &survey.l2_tables {
            let structure = Structure {
                kind: OwnerKind::L2Table,
                place: Place::L2Table {
                    cluster: item.cluster,
                },
                start: item.cluster,
            };
            if self.contains(item.cluster)
                && let Some(case) = self.cases.get_mut(&item.cluster)
            {
                case.structures.push(structure);
            }
        }
    }

    /// Whether a cluster has users who may not share it.
    pub(super) fn contains(&self, cluster: HostCluster) -> bool {
        self.clusters.contains(cluster)
    }

    fn is_case(&self, cluster: HostCluster) -> bool {
        self.contains(cluster) && self.cases.contains_key(&cluster)
    }
}

struct Visitor<'a> {
    rules: &'a Rules,
    contested: &'a Contested,
    guests: Vec<(HostCluster, Guest)>,
    compressed: Vec<(HostCluster, Packed)>,
    has_missed: bool,
}

impl GroupVisitor<L2Item> for Visitor<'_> {
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        let rules = self.rules;
        rules.walk_table(item, bytes, None, |mapped| match mapped.target {
            Target::Standard {
                cluster: Ok(cluster),
                ..
            } if self.contested.is_case(cluster) => {
                let guest = guest(rules.geometry, item, bytes, &mapped);
                self.guests.push((cluster, guest));
            }
            Target::Compressed {
                clusters: Ok(clusters),
                extent,
            } => {
                let cases = clusters
                    .clusters()
                    .filter(|cluster| self.contested.is_case(*cluster));
                let packed = |cluster| {
                    let guest = guest(rules.geometry, item, bytes, &mapped);
                    let offset = extent.offset;
                    (
                        cluster,
                        Packed {
                            guest,
                            clusters,
                            offset,
                        },
                    )
                };
                self.compressed.extend(cases.map(packed));
            }
            Target::Standard { .. } | Target::Compressed { .. } | Target::External { .. } => {}
        });
    }

    fn miss(&mut self, _item: &L2Item, _gap: Gap) {
        self.has_missed = true;
    }
}

fn guest(geometry: Geometry, item: &L2Item, bytes: &[u8], mapped: &Mapped) -> Guest {
    let within = mapped.index * geometry.l2_entry_bytes();
    let word = usize::try_from(within)
        .ok()
        .and_then(|within| u64_at(bytes, within));
    Guest {
        index: mapped.guest_cluster,
        table: item.cluster,
        entry_offset: geometry.offset_of(item.cluster).0 + within,
        entry: L2Entry(word.unwrap_or(0)),
        weight: item.weight(),
        is_active: item.trees.active > 0,
        is_ambiguous: item.is_shared_across_ranges,
    }
}
