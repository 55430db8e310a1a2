//! What may be done to an image, on the evidence.
//!
//! Comes in: an examination. Goes out: a [`Permit`], and what is withheld and why. Never here: an edit.

use rayon::prelude::*;

use super::changes::Withheld;
use super::holes::Holes;
use super::notes::DraftNotes;
use super::remains;
use super::{Mode, RepairOptions};
use crate::check::{Check, Difference, Examination};
use crate::coverage::Complete;
use crate::finding::{Code, Severity};
use crate::qcow2::{Geometry, HostCluster, L2Descriptor, L2Entry, words};
use crate::refcount_map::{ClusterSet, by_word, region_clusters};
use crate::storage::Storage;

/// What a plan may contain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit<'a> {
    /// Raise counts, clear and set COPIED flags.
    pub(super) may_correct: bool,
    /// Lower counts: only with the proof that nothing was left out.
    pub(super) may_lower: Option<Complete<'a>>,
}

/// Findings about pointers past the end of the file, which may have been cut off.
const PAST_END_CODES: [Code; 7] = [
    Code::RefcountTablePastEnd,
    Code::RefcountBlockPastEnd,
    Code::L1TablePastEnd,
    Code::L2TablePastEnd,
    Code::L2EntryPastEnd,
    Code::CompressedPastEnd,
    Code::SnapshotL1PastEnd,
];

/// Whether the file may once have been longer than it is.
pub(super) fn may_be_cut_off<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let findings = &examination.notes.findings;
    PAST_END_CODES
        .iter()
        .any(|&code| findings.total_of(code).count > 0)
}

/// Whether some cluster looks leaked that this repair has not put out of use itself.
pub(super) fn has_leaks<S: Storage>(examination: &Examination<'_, S>, draft: &DraftNotes) -> bool {
    let file_clusters = examination.walk.geometry.file_clusters();
    let is_leaked = |known: Difference| {
        known.expected == 0
            && known.stored > Some(0)
            && known.cluster.0 < file_clusters
            && !draft.released.contains(known.cluster)
    };
    examination.differences().iter().any(is_leaked)
}

/// More leaked clusters than this are not looked through for lost tables, and so not freed.
const MAX_LEAKED_BYTES: u64 = 1 << 38;

/// Words of leaked clusters looked through by one thread at a time, with one look for holes where they lie in the same.
const LOOKED_AT_TOGETHER: usize = 64;
/// Regions whose words are listed at the same time.
const REGIONS_AT_ONCE: usize = 256;

/// Suspects described one by one.
const SHOWN_SUSPECTS: usize = 3;

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
    wishes: &RepairOptions,
    notes: &DraftNotes,
) -> (Permit<'a>, Vec<Withheld>) {
    let findings = &examination.notes.findings;
    let mut withheld = Vec::new();
    let leaks = findings.total_of(Code::RefcountLeak);
    let may_lower = match may_lower(examination, wishes, notes, &mut withheld) {
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
        may_correct: wishes.mode == Mode::All,
        may_lower,
    };
    (permit, withheld)
}

/// A finding about more than counts and flags: while one is open, what looks leaked may be live.
fn is_structural(code: Code) -> bool {
    code.severity() == Severity::Corruption && !COUNT_CODES.contains(&code)
}

/// Says of everything that is still wrong why, once: the last pass that looked at it knows best.
pub(super) fn say_what_is_left(after: &Check, withheld: &mut Vec<Withheld>) {
    let is_left =
        |code: Code| code == Code::LostMappingSuspected || after.findings.total_of(code).count > 0;
    let mut kept: Vec<Withheld> = Vec::new();
    for reason in withheld.drain(..).rev() {
        let is_said = kept
            .iter()
            .any(|known| known.code == reason.code && known.reason == reason.reason);
        if is_left(reason.code) && !is_said {
            kept.push(reason);
        }
    }
    kept.reverse();
    *withheld = kept;
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

/// Everything that was found, left as it is for one reason.
pub(super) fn all(check: &Check, reason: &str) -> Vec<Withheld> {
    let wrong = check.findings.totals();
    let wrong = wrong.filter(|(code, _)| code.severity() > Severity::Notice);
    wrong
        .map(|(code, total)| Withheld {
            code,
            count: total.count,
            reason: reason.to_owned(),
        })
        .collect()
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
    wishes: &RepairOptions,
    draft: &DraftNotes,
    withheld: &mut Vec<Withheld>,
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
    if wishes.mode == Mode::Leaks && notes.findings.count_of(Severity::Corruption) > 0 {
        return Err("the image has errors besides leaks; use --mode all".to_owned());
    }
    if draft.gave_up {
        return Err(
            "references were given up in this repair, and what they meant may be among what looks leaked; look, then \
             repair once more to free it"
                .to_owned(),
        );
    }
    let suspects = suspicious_clusters(examination, draft)?;
    if wishes.accepts(Code::LostMappingSuspected) {
        return Ok(complete);
    }
    if suspects.is_empty() {
        let has_snapshots = examination.walk.image.header().nb_snapshots > 0;
        return match lost_sharers(examination, draft) {
            count if count == 0 || !has_snapshots => Ok(complete),
            count => Err(format!(
                "{count} clusters in use are counted for more trees than lead to them, so a snapshot may have lost entries, \
                 and with them what else looks leaked; --accept-loss {} lowers the counts all the same",
                Code::LostMappingSuspected
            )),
        };
    }
    let reason = describe(&suspects, examination.walk.geometry.cluster_bytes());
    withheld.push(Withheld {
        code: Code::LostMappingSuspected,
        count: suspects.len() as u64,
        reason,
    });
    Err(format!("see {}", Code::LostMappingSuspected))
}

/// How many clusters in use a tree may have lost its reference to: counted for more than use them, beside snapshots.
///
/// What this repair itself leaves counted too often is no evidence.
fn lost_sharers<S: Storage>(examination: &Examination<'_, S>, draft: &DraftNotes) -> usize {
    if draft.doubt().is_none() {
        return 0;
    }
    let differences = examination.differences().iter();
    let is_shared = |known: &Difference| {
        known.expected > 0
            && known.stored > Some(known.expected)
            && !draft.released.contains(known.cluster)
    };
    differences.filter(is_shared).count()
}

/// Whether clusters in use are counted for more than use them: a tree may be lost that used them too.
pub(super) fn has_lost_sharers<S: Storage>(
    examination: &Examination<'_, S>,
    draft: &DraftNotes,
) -> bool {
    lost_sharers(examination, draft) > 0
}

/// Whether a structure is damaged that may hide users of a cluster: then a count of one does not say that it has one owner.
pub(super) fn may_hide_owners<S: Storage>(examination: &Examination<'_, S>) -> bool {
    let mut open = examination.notes.findings.totals().map(|(code, _)| code);
    open.any(is_structural) || examination.notes.coverage.complete().is_none()
}

/// Why some cluster that would be freed may be the only way to live data, if one is.
pub(super) fn suspicion<S: Storage>(
    examination: &Examination<'_, S>,
    draft: &DraftNotes,
) -> Option<String> {
    let cluster_bytes = examination.walk.geometry.cluster_bytes();
    match suspicious_clusters(examination, draft) {
        Ok(suspects) => (!suspects.is_empty()).then(|| describe(&suspects, cluster_bytes)),
        Err(reason) => Some(reason),
    }
}

/// A leaked cluster that may be a table, and how many overcounted clusters it would map.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    cluster: HostCluster,
    named: u64,
}

/// Clusters counted more often than they are used, and those of them that nothing uses.
fn overcounted<S: Storage>(
    examination: &Examination<'_, S>,
    draft: &DraftNotes,
) -> (ClusterSet, ClusterSet) {
    let file_end = examination.walk.geometry.file_clusters();
    let (overcounted, leaked) = (ClusterSet::new(), ClusterSet::new());
    for run in examination.differences().runs() {
        if run.stored <= Some(run.expected) {
            continue;
        }
        overcounted.insert_run(run.clusters);
        let count = file_end.saturating_sub(run.clusters.start.0);
        let (in_file, _) = run.split_at(count);
        if run.expected == 0 {
            for part in by_word(in_file.clusters) {
                let unknown = part.mask & !draft.released.bits_of(part);
                if unknown != 0 {
                    leaked.insert_word(part.first, unknown);
                }
            }
        }
    }
    (overcounted, leaked)
}

/// The clusters whose bits are set in words of 64, each with its first cluster.
fn clusters_of(words: &[(u64, u64)]) -> impl Iterator<Item = HostCluster> {
    words.iter().flat_map(|&(start, mut word)| {
        std::iter::from_fn(move || {
            let bit = u64::from((word != 0).then(|| word.trailing_zeros())?);
            word &= word - 1;
            Some(HostCluster(start + bit))
        })
    })
}

/// The leaked clusters that may be the only way to live data, in order; or why nobody can look.
fn suspicious_clusters<S: Storage>(
    examination: &Examination<'_, S>,
    draft: &DraftNotes,
) -> Result<Vec<Suspect>, String> {
    let geometry = examination.walk.geometry;
    let (overcounted, leaked) = overcounted(examination, draft);
    if leaked.count() > MAX_LEAKED_BYTES / geometry.cluster_bytes() {
        return Err(
            "there are too many leaked clusters to look through for lost tables".to_owned(),
        );
    }
    let named_by_remains = remains::named(examination, &leaked);
    let has_data_file = examination.walk.image.header().has_data_file();
    let cluster_bytes = usize::try_from(geometry.cluster_bytes()).unwrap_or(0);
    let look = |bits: &[(u64, u64)]| {
        let image = examination.walk.image;
        let mut bytes = vec![0; cluster_bytes];
        let mut suspects = Vec::new();
        let mut holes = Holes::new(image.storage());
        for cluster in clusters_of(bits) {
            // Nothing is planned by somebody who was stopped: only the end counts then.
            if examination.walk.progress.is_stopped() {
                break;
            }
            if named_by_remains.contains(cluster) {
                suspects.push(Suspect { cluster, named: 0 });
                continue;
            }
            if !holes.is_stored(geometry, cluster).unwrap_or(true) {
                continue;
            }
            // What cannot be read cannot be proven worthless.
            bytes.fill(0);
            let is_unreadable = image.read_clusters(geometry, cluster, &mut bytes).is_err();
            let named =
                words(&bytes).filter(|&word| names_cluster_of(geometry, word, &overcounted));
            let named = named.count() as u64;
            // In an external data file's tables no offset is one of this file, so nothing can be told by them.
            let may_be_table = (has_data_file && bytes.iter().any(|&byte| byte != 0))
                || reads_as_table(geometry, &bytes)
                || remains::reads_as_list(geometry, &bytes);
            if is_unreadable || named > 0 || may_be_table {
                suspects.push(Suspect { cluster, named });
            }
        }
        suspects
    };
    let mut suspects = Vec::new();
    let regions: Vec<u64> = leaked.regions().collect();
    for regions in regions.chunks(REGIONS_AT_ONCE) {
        let words = regions.iter().flat_map(|&region| {
            let starts = region_clusters(region).step_by(64);
            starts.zip(leaked.words_of(region))
        });
        let words: Vec<(u64, u64)> = words.filter(|(_, word)| *word != 0).collect();
        let found = words.par_chunks(LOOKED_AT_TOGETHER).flat_map_iter(look);
        suspects.par_extend(found);
    }
    if examination.walk.progress.is_stopped() {
        return Err("the planning was stopped".to_owned());
    }
    Ok(suspects)
}

/// Whether every word is one that a mapping table of this image may have, and some are not zero: a lost table, even one
/// whose clusters something else seems to use, or that maps nothing but zeros.
fn reads_as_table(geometry: Geometry, bytes: &[u8]) -> bool {
    let is_plausible = |word: u64| {
        let entry = L2Entry(word);
        match entry.descriptor(geometry) {
            L2Descriptor::Compressed(extent) => geometry
                .admit_extent(extent.offset, extent.bytes())
                .is_ok_and(|clusters| clusters.count <= 2),
            _ if entry.reserved_bits() != 0 => false,
            _ => {
                let offset = entry.standard_offset();
                offset.0 == 0 || geometry.admit(offset).is_ok()
            }
        }
    };
    let all_plausible = |step: usize| {
        let mut some = false;
        // Counts of 64 bits that are all one read like plain zeros.
        let mut is_more_than_counts = geometry.refcount_order() != 6;
        let mut nonzero = words(bytes).step_by(step).filter(|&word| word != 0);
        nonzero.all(|word| {
            some = true;
            is_more_than_counts |= L2Entry(word).standard_offset().0 != 0;
            is_plausible(word)
        }) && some
            && is_more_than_counts
    };
    all_plausible(1) || (geometry.has_extended_l2() && all_plausible(2))
}

/// What is said of leaked clusters that may be the only way to live data.
fn describe(suspects: &[Suspect], cluster_bytes: u64) -> String {
    let shown = suspects.iter().take(SHOWN_SUSPECTS).map(|suspect| {
        let bytes = suspect.named.saturating_mul(cluster_bytes);
        format!(
            "cluster {} names {} of them ({bytes} bytes)",
            suspect.cluster.0, suspect.named
        )
    });
    let more = suspects.len().saturating_sub(SHOWN_SUSPECTS);
    let more = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    format!(
        "leaked clusters that name clusters counted more often than they are used, read as a table throughout, or are named \
         behind the end of one, may be a lost table, snapshot or bitmap: {}{more}; --accept-loss {} frees them and all they name",
        shown.collect::<Vec<_>>().join("; "),
        Code::LostMappingSuspected
    )
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
