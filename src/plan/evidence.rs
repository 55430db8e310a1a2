//! What may be done to an image, on the evidence.
//!
//! Comes in: an examination. Goes out: a [`Permit`], and what is withheld and why. Never here: an edit.

use rayon::prelude::*;

use super::Mode;
use super::draft::DraftNotes;
use crate::check::{Check, Examination};
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

/// More leaked clusters than this are not looked through for lost tables, and so not freed.
const MAX_LEAKED_BYTES: u64 = 1 << 38;

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
    notes: &DraftNotes,
) -> (Permit<'a>, Vec<Withheld>) {
    let findings = &examination.notes.findings;
    let mut withheld = Vec::new();
    let leaks = findings.total_of(Code::RefcountLeak);
    let may_lower = match may_lower(examination, mode, notes) {
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

/// A finding about more than counts and flags: while one is open, what looks leaked may be live.
fn is_structural(code: Code) -> bool {
    code.severity() == Severity::Corruption && !COUNT_CODES.contains(&code)
}

/// Says of everything that is still wrong why, where no pass has said so.
pub(super) fn say_what_is_left(after: &Check, withheld: &mut Vec<Withheld>) {
    for (code, total) in after.findings.totals() {
        let is_said = withheld.iter().any(|known| known.code == code);
        if code.severity() > Severity::Notice && !is_said {
            withheld.push(Withheld {
                code,
                count: total.count,
                reason: "it cannot be put right without knowing more than the image says"
                    .to_owned(),
            });
        }
    }
}

/// What forbids writing anything: bits whose meaning nobody here knows.
pub(super) fn forbidden<S: Storage>(examination: &Examination<'_, S>) -> Option<Withheld> {
    let findings = &examination.notes.findings;
    let codes = [
        (
            Code::IncompatibleFeatureUnknown,
            "the bit may change what the tables mean, so nothing is written",
        ),
        (
            Code::AutoclearFeatureUnknown,
            "whoever writes to the image has to drop what the bit stands for, so nothing is written",
        ),
    ];
    codes.into_iter().find_map(|(code, reason)| {
        let count = findings.total_of(code).count;
        (count > 0).then(|| Withheld {
            code,
            count,
            reason: reason.to_owned(),
        })
    })
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
    draft: &DraftNotes,
) -> Result<Complete<'a>, String> {
    let notes = &examination.notes;
    let complete = notes
        .coverage
        .complete()
        .ok_or("not every table could be read, and what an unread table maps looks leaked")?;
    let mut open = notes.findings.totals().map(|(code, _)| code);
    if let Some(open) = open.find(|code| is_structural(*code)) {
        return Err(format!(
            "{open} is open, and a damaged structure makes live data look leaked"
        ));
    }
    if mode == Mode::Leaks && notes.findings.count_of(Severity::Corruption) > 0 {
        return Err("the image has errors besides leaks; use --mode all".to_owned());
    }
    match suspicious_cluster(examination, draft) {
        None => Ok(complete),
        Some(reason) => Err(reason),
    }
}

/// Why some cluster that would be freed may be the only way to live data, if one is.
fn suspicious_cluster<S: Storage>(
    examination: &Examination<'_, S>,
    draft: &DraftNotes,
) -> Option<String> {
    let geometry = examination.walk.geometry;
    let overcounted = ClusterSet::new();
    let mut leaked = Vec::new();
    for difference in examination.differences() {
        if difference.stored > Some(difference.expected) {
            overcounted.insert(difference.cluster);
            let is_in_file = difference.cluster.0 < geometry.file_clusters();
            let is_known = draft.released.contains(difference.cluster);
            if difference.expected == 0 && is_in_file && !is_known {
                leaked.push(difference.cluster);
            }
        }
    }
    if leaked.len() as u64 > MAX_LEAKED_BYTES / geometry.cluster_bytes() {
        return Some(
            "there are too many leaked clusters to look through for lost tables".to_owned(),
        );
    }
    let has_data_file = examination.walk.image.header().has_data_file();
    let cluster_bytes = usize::try_from(geometry.cluster_bytes()).unwrap_or(0);
    let first = leaked.par_iter().copied().find_first(|&cluster| {
        let mut bytes = vec![0; cluster_bytes];
        let image = examination.walk.image;
        // What cannot be read cannot be proven worthless.
        if image.read_clusters(geometry, cluster, &mut bytes).is_err() {
            return true;
        }
        let names_overcounted =
            words(&bytes).any(|word| names_cluster_of(geometry, word, &overcounted));
        // In an external data file's tables no offset is one of this file, so nothing can be told by them.
        names_overcounted || (has_data_file && bytes.iter().any(|&byte| byte != 0))
    })?;
    Some(format!(
        "cluster {} would be freed, but may be a lost table, snapshot or bitmap: it names clusters that are counted more \
         often than they are used",
        first.0
    ))
}

/// Whether a word, read as any pointer the format has, names a cluster of the set.
///
/// One such word is enough: a lost table may itself be damaged, and guest data hardly ever reads as a pointer to just
/// those clusters. L1 and L2 entries, refcount and bitmap table entries and the offsets in snapshot and bitmap directory
/// entries all lie at multiples of eight bytes.
fn names_cluster_of(geometry: Geometry, word: u64, set: &ClusterSet) -> bool {
    let is_in_set = |cluster: HostCluster| set.contains(cluster);
    let entry = L2Entry(word);
    let standard = entry.standard_offset();
    let names_standard = standard.0 != 0
        && entry.reserved_bits() == 0
        && geometry.admit(standard).is_ok_and(is_in_set);
    let names_compressed = match entry.descriptor(geometry) {
        L2Descriptor::Compressed(extent) => geometry
            .admit_extent(extent.offset, extent.bytes())
            .is_ok_and(|clusters| clusters.count <= 2 && clusters.clusters().any(is_in_set)),
        L2Descriptor::Standard(_) | L2Descriptor::Zero { .. } | L2Descriptor::Unallocated => false,
    };
    (names_standard && !entry.is_compressed()) || names_compressed
}
