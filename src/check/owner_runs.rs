//! Owners by host cluster, in runs.
//!
//! Comes in: one owner after another, as tables are read. Goes out: the owners of a range. Never here: who asks for them.

use crate::finding::{Owner, Owners};
use crate::qcow2::{ClusterRange, Place};

/// Runs of owners one group of tables may contribute.
pub(super) const RUNS_PER_GROUP: usize = 1 << 14;

/// Owners by host cluster, in runs.
#[derive(Debug, Default)]
pub(super) struct OwnerRuns {
    runs: Vec<Owner>,
    /// Clusters in the longest run, to know where to begin looking.
    longest: u64,
    /// Some group has contributed all it may, and perhaps had more.
    may_lack_some: bool,
}

impl OwnerRuns {
    /// Adds an owner of one more cluster; beyond a bound it is dropped, and only the counts tell of it.
    pub(super) fn push(&mut self, owner: Owner) {
        if self.runs.last_mut().is_some_and(|run| run.absorb(&owner)) {
            return;
        }
        if self.runs.len() < RUNS_PER_GROUP {
            self.runs.push(owner);
        }
        self.may_lack_some |= self.runs.len() == RUNS_PER_GROUP;
    }

    /// Whether owners may have been dropped: which ones depends on who else was asked about.
    pub(super) fn may_lack_some(&self) -> bool {
        self.may_lack_some
    }

    /// Whether nothing that is at this place will be kept.
    pub(super) fn drops_all_of(&self, place: Place) -> bool {
        let is_last = self.runs.last().is_some_and(|run| run.place == place);
        self.runs.len() >= RUNS_PER_GROUP && !is_last
    }

    /// Adds the owners another group of tables has found.
    pub(super) fn append(&mut self, later: Self) {
        self.runs.extend(later.runs);
        self.may_lack_some |= later.may_lack_some;
    }

    /// Makes ready for questions.
    pub(super) fn sort(&mut self) {
        self.runs.sort_by_key(|run| run.host.start);
        let lengths = self.runs.iter().map(|run| run.host.count);
        self.longest = lengths.max().unwrap_or(0);
    }

    /// The owners of a range, clipped to it.
    pub(super) fn of(&self, range: ClusterRange) -> Owners {
        let mut owners = Owners::default();
        let earliest = range.start.0.saturating_sub(self.longest);
        let first = self.runs.partition_point(|run| run.host.start.0 < earliest);
        let candidates = self.runs.get(first..).unwrap_or(&[]).iter();
        for run in candidates.take_while(|run| run.host.start.0 < range.end()) {
            if run.host.end() > range.start.0 {
                owners.push(run.clipped_to(range));
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::OwnerKind;
    use crate::qcow2::HostCluster;

    #[test]
    fn a_group_with_as_many_runs_as_it_may_have_says_that_some_may_be_missing() {
        let mut group = OwnerRuns::default();
        let push = |group: &mut OwnerRuns, number| {
            group.push(Owner {
                kind: OwnerKind::GuestData,
                place: Place::File,
                trees: None,
                guest: None,
                host: ClusterRange::one(HostCluster(2 * number)),
            });
        };
        for number in 1..RUNS_PER_GROUP as u64 {
            push(&mut group, number);
        }
        assert!(!group.may_lack_some());
        push(&mut group, RUNS_PER_GROUP as u64);
        let mut all = OwnerRuns::default();
        all.append(group);
        push(&mut all, 1 << 20);
        assert!(all.may_lack_some() && all.runs.len() == RUNS_PER_GROUP);
    }
}
