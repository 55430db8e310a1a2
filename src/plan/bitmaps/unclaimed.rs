//! Bitmaps that nobody has walked: their clusters are counted, and claimed by nobody.
//!
//! Comes in: what their entries name. Goes out: the tables and the directory that nothing needs any more. Never here: a
//! cluster that is counted more than once, or that anything else refers to.

use super::Repair;
use crate::finding::{OwnerKind, Severity};
use crate::plan::changes::Changes;
use crate::qcow2::{BitmapDirectoryEntry, ClusterRange};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;
use crate::walk::bitmaps::walk_bitmap_table;
use crate::walk::{Claim, Notes, Survey};

impl<S: Storage> Repair<'_, '_, S> {
    /// Releases what bitmaps that nobody believed have left behind, as far as it is what it seems.
    ///
    /// Their clusters were never claimed, and may have been used for something else since. A list of offsets may be an L1
    /// table as well as a bitmap's: it is let go only where every cluster it names is counted once, for the bitmap. The
    /// bits themselves say nothing of what they are, so they are looked through like every other leak.
    pub(super) fn release_unclaimed<'c>(
        &self,
        directory: Option<ClusterRange>,
        claims: impl IntoIterator<Item = &'c Claim>,
        changes: &mut Changes,
    ) {
        let claims: Vec<&Claim> = claims.into_iter().collect();
        if claims.is_empty() {
            return;
        }
        let leaked_once = self.leaked_once.get_or_init(|| self.leaked_once());
        let is_leaked = |claim: &Claim| {
            let mut clusters = claim.clusters.clusters();
            clusters.all(|cluster| leaked_once.contains(cluster))
        };
        if !claims.iter().all(|claim| is_leaked(claim)) {
            return;
        }
        let tables = claims.iter();
        let tables = tables.filter(|claim| claim.kind == OwnerKind::BitmapTable);
        let tables = tables.map(|claim| claim.clusters);
        changes.released.extend(self.alone(tables.chain(directory)));
    }

    /// Clusters that are counted once and used by nobody.
    fn leaked_once(&self) -> ClusterSet {
        let clusters = ClusterSet::new();
        let runs = self.examination.differences().runs().iter();
        for run in runs.filter(|run| run.stored == Some(1) && run.expected == 0) {
            clusters.insert_run(run.clusters);
        }
        clusters
    }

    /// The clusters of a bitmap whose entry is wrong in its flags, type, granularity or name, if its table is sound.
    pub(super) fn walk_invalid(
        &self,
        index: u32,
        entry: &BitmapDirectoryEntry,
        budget: &mut u64,
    ) -> Vec<Claim> {
        let (mut survey, mut notes) = (Survey::default(), Notes::default());
        let has_table = entry.bitmap_table_size > 0 && entry.bitmap_table_offset.0 > 0;
        if has_table {
            let walk = self.examination.walk;
            walk_bitmap_table(walk, index, entry, budget, &mut survey, &mut notes);
        }
        let errors = notes.findings.count_of(Severity::Corruption);
        if errors > 0 || notes.coverage.gap_count() > 0 {
            return Vec::new();
        }
        survey.claims
    }
}
