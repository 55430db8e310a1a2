//! Refcount structures that something else seems to use too.
//!
//! Comes in: an examination. Goes out: whether a conflict is evidence; a smaller table in the header, where
//! that is all it takes. Never here: a change to the structures themselves.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::check::{Difference, Examination};
use crate::finding::{Code, OwnerKind};
use crate::plan::StageKind;
use crate::plan::changes::Patch;
use crate::qcow2::HostCluster;
use crate::storage::Storage;

/// Whether something besides refcount structures uses clusters of theirs, and something looks leaked that it may have
/// meant, by counts that can be believed.
pub(super) fn tells_of_leaks<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let kinds = [OwnerKind::RefcountTable, OwnerKind::RefcountBlock];
    let survey = &examination.survey;
    let claims = survey.claims.iter();
    let of_counts = claims.filter(|claim| kinds.contains(&claim.kind));
    let mut clusters = of_counts.flat_map(|claim| claim.clusters.clusters());
    let findings = &examination.notes.findings;
    if findings.total_of(Code::RefcountBlockShared).count > 0
        || !clusters.any(|cluster| examination.has_conflict(cluster))
    {
        return false;
    }
    let geometry = examination.walk.geometry;
    let index_of = |known: Difference| known.cluster.0 / geometry.refcount_block_entries();
    let blocks = survey.refcount_blocks.iter();
    let contested = blocks.filter(|block| examination.has_conflict(block.cluster));
    let contested: BTreeSet<u64> = contested.map(|block| block.index).collect();
    let differences = examination.differences();
    let is_too_low =
        |known: &Difference| !known.has_conflict && known.stored < Some(known.expected);
    let too_low: BTreeSet<u64> = differences
        .iter()
        .filter(is_too_low)
        .map(index_of)
        .collect();
    differences.iter().any(|known| {
        let index = index_of(known);
        let is_believed = !(contested.contains(&index) && too_low.contains(&index));
        let is_in_file = known.cluster.0 < geometry.file_clusters();
        is_believed && is_in_file && known.stored > Some(known.expected)
    })
}

/// Fewer clusters for a refcount table that lies over something else with what this file does not need of it.
///
/// One field of the header is all that is wrong then; everything else may stay as it is.
pub(super) fn shrunk_table<S: Storage>(
    examination: &Examination<'_, S>,
    because: Code,
) -> Option<Patch> {
    let claim = super::table_claim(examination)?;
    let needed = super::needed_table_clusters(examination);
    let count = super::needed_table_cluster_count(examination);
    let stated = examination.walk.image.header().refcount_table_clusters;
    let is_contested = |mut clusters: Range<u64>| {
        clusters.any(|cluster| examination.has_conflict(HostCluster(cluster)))
    };
    let findings = &examination.notes.findings;
    let codes = [Code::RefcountTableTooLarge, Code::RefcountTablePastEnd];
    let is_too_large = codes.iter().any(|&code| findings.total_of(code).count > 0)
        || is_contested(needed.end..claim.end());
    let is_whole = needed.end - needed.start == count && !is_contested(needed.clone());
    let entries = count * examination.walk.geometry.cluster_bytes() / 8;
    let mut blocks = examination.survey.refcount_blocks.iter();
    let has_blocks = blocks.any(|block| block.index < entries);
    let may_shrink = u64::from(stated) > count && !examination.has_conflict(HostCluster(0));
    let count = u32::try_from(count).ok()?;
    (is_too_large && is_whole && has_blocks && may_shrink).then(|| {
        let stage = StageKind::CorrectEntries;
        Patch::half_word(stage, because, super::TABLE_CLUSTERS_FIELD, count)
    })
}
