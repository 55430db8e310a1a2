//! What may be done to an image, on the evidence.
//!
//! Comes in: an examination. Goes out: a [`Permit`], and what is withheld and why. Never here: an edit.

use rayon::prelude::*;

use super::Mode;
use crate::check::Examination;
use crate::coverage::Complete;
use crate::finding::{Code, Severity};
use crate::qcow2::{Geometry, HostCluster, L2Descriptor, L2Entry, words};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;

/// What a plan may contain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit<'a> {
    /// Raise counts, clear and set COPIED flags.
    pub(super) may_correct: bool,
    /// Lower counts: only with the proof that nothing was left out.
    pub(super) may_lower: Option<Complete<'a>>,
}

/// Something that is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// The finding that stays.
    pub code: Code,
    /// How often it was found.
    pub count: u64,
    /// Why nothing is done about it.
    pub reason: String,
}

/// Findings that lowering counts cannot make worse: they are about counts and flags themselves.
const COUNT_CODES: [Code; 6] = [
    Code::RefcountZero,
    Code::RefcountTooLow,
    Code::CopiedFlagMissing,
    Code::CopiedFlagStale,
    Code::CorruptBitSet,
    Code::RefcountLeak,
];

/// Decides what may be done, and says why the rest may not.
pub(super) fn permit<'a, S: Storage>(
    examination: &'a Examination<'_, S>,
    mode: Mode,
) -> (Permit<'a>, Vec<Withheld>) {
    let findings = &examination.notes.findings;
    let mut withheld = Vec::new();
    for (code, total) in findings.totals() {
        let is_left = code.severity() == Severity::Corruption && !COUNT_CODES.contains(&code);
        if is_left {
            withheld.push(Withheld {
                code,
                count: total.count,
                reason: "this version repairs refcounts, COPIED flags and the dirty and corrupt bits only"
                    .to_owned(),
            });
        }
    }
    let leaks = findings.total_of(Code::RefcountLeak);
    let may_lower = match may_lower(examination, mode, &withheld) {
        Ok(complete) => Some(complete),
        Err(reason) => {
            if leaks.count > 0 {
                withheld.push(Withheld {
                    code: Code::RefcountLeak,
                    count: leaks.count,
                    reason,
                });
            }
            None
        }
    };
    let permit = Permit {
        may_correct: mode == Mode::All,
        may_lower,
    };
    (permit, withheld)
}

/// What is withheld where not even the header makes sense.
pub(super) fn unreadable() -> Vec<Withheld> {
    vec![Withheld {
        code: Code::HeaderClusterBitsInvalid,
        count: 1,
        reason: "without a cluster size nothing can be located, so nothing can be repaired"
            .to_owned(),
    }]
}

/// The proof that what looks leaked is leaked, or why it must not be freed.
fn may_lower<'a, S: Storage>(
    examination: &'a Examination<'_, S>,
    mode: Mode,
    withheld: &[Withheld],
) -> Result<Complete<'a>, String> {
    let notes = &examination.notes;
    let complete = notes
        .coverage
        .complete()
        .ok_or("not every table could be read, and what an unread table maps looks leaked")?;
    if let Some(open) = withheld.first() {
        return Err(format!(
            "{} is open, and a damaged structure makes live data look leaked",
            open.code
        ));
    }
    if mode == Mode::Leaks && notes.findings.count_of(Severity::Corruption) > 0 {
        return Err("the image has errors besides leaks; use --mode all".to_owned());
    }
    let lost = lost_tables(examination);
    match lost.first() {
        None => Ok(complete),
        Some(first) => Err(format!(
            "{} of the leaked clusters look like lost L2 tables (the first is cluster {}), so what they map may be \
             live data",
            lost.len(),
            first.0
        )),
    }
}

/// Leaked clusters whose content reads as an L2 table that maps leaked clusters.
fn lost_tables<S: Storage>(examination: &Examination<'_, S>) -> Vec<HostCluster> {
    let geometry = examination.walk.geometry;
    let freed = ClusterSet::new();
    let leaked: Vec<HostCluster> = examination
        .differences()
        .into_iter()
        .filter(|difference| difference.expected == 0 && difference.stored > Some(0))
        .map(|difference| difference.cluster)
        .filter(|cluster| cluster.0 < geometry.file_clusters())
        .collect();
    for &cluster in &leaked {
        freed.insert(cluster);
    }
    let cluster_bytes = usize::try_from(geometry.cluster_bytes()).unwrap_or(0);
    leaked
        .par_iter()
        .copied()
        .filter(|&cluster| {
            let mut bytes = vec![0; cluster_bytes];
            let image = examination.walk.image;
            // What cannot be read cannot be proven worthless.
            image.read_clusters(geometry, cluster, &mut bytes).is_err()
                || looks_like_l2_table(geometry, &bytes, &freed)
        })
        .collect()
}

/// Whether bytes read as an L2 table in which nothing is impossible and something points at a freed cluster.
fn looks_like_l2_table(geometry: Geometry, bytes: &[u8], freed: &ClusterSet) -> bool {
    let step = if geometry.has_extended_l2() { 2 } else { 1 };
    let mut points_at_freed = false;
    for word in words(bytes).step_by(step) {
        let entry = L2Entry(word);
        let host = match entry.descriptor(geometry) {
            _ if entry.reserved_bits() != 0 => return false,
            L2Descriptor::Unallocated if word == 0 => continue,
            L2Descriptor::Unallocated => return false,
            L2Descriptor::Zero { preallocated: None } => continue,
            L2Descriptor::Zero {
                preallocated: Some(offset),
            }
            | L2Descriptor::Standard(offset) => geometry.admit(offset),
            L2Descriptor::Compressed(extent) => geometry
                .admit_extent(extent.offset, extent.bytes())
                .map(|clusters| clusters.start),
        };
        let Ok(host) = host else { return false };
        points_at_freed |= freed.contains(host);
    }
    points_at_freed
}
