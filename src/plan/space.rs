//! Clusters that nothing uses, for what a repair adds.
//!
//! Comes in: an examination. Goes out: clusters, each with the count it is to have. Never here: a cluster that anything
//! refers to or counts, or that a pointer past the end of the file would suddenly reach.

use crate::check::Examination;
use crate::qcow2::HostCluster;
use crate::storage::Storage;

/// Hands out clusters.
pub(super) struct Space {
    next: u64,
    /// Every cluster handed out, with the count it is to have.
    pub(super) taken: Vec<(HostCluster, u64)>,
}

impl Space {
    /// Finds out where there is room, or why there is none.
    pub(super) fn new<S: Storage>(examination: &Examination<'_, S>) -> Result<Self, String> {
        Ok(Self {
            next: examination.walk.geometry.file_clusters(),
            taken: Vec::new(),
        })
    }

    /// The first of `clusters` neighbouring clusters that each get a refcount of `count`; `None` where there is no room.
    pub(super) fn take(&mut self, clusters: u64, count: u64) -> Option<HostCluster> {
        let first = HostCluster(self.next);
        self.next += clusters;
        let range = first.0..self.next;
        self.taken
            .extend(range.map(|cluster| (HostCluster(cluster), count)));
        Some(first)
    }
}
