//! The check: everything an image says about itself, held against the refcounts it stores.
//!
//! Comes in: an [`Image`]. Goes out: a [`Check`]. Never here: writing, printing, a clock.
//!
//! 1. Survey the small structures: header, refcount table, snapshot table, L1 tables, bitmaps (`walk`).
//! 2. Enter the stored refcounts into the ledger (`stored`).
//! 3. Let every reference pay off what it refers to, reading each L2 table once (`settle`).
//! 4. A clean image is done. Otherwise read the tables again, for the suspect clusters only: exact counts, and COPIED
//!    flags (`witness`).
//! 5. Compare what is left with what is stored, and say so in ranges (`compare`), with the owners' names (`owners`).

mod claimed;
mod compare;
mod compressed_references;
mod differences;
mod digest;
mod extents;
mod map;
mod owner_runs;
mod owners;
mod passes;
mod settle;
mod stored;
mod verdict;
mod witness;

pub(crate) use claimed::stretches;
pub(crate) use differences::{Difference, DifferenceRun, Differences};
pub use digest::metadata_digest;
pub use map::{ClusterUse, HostMap, MapCell, check_and_map};
pub use verdict::Verdict;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use self::witness::Witnessed;
use crate::coverage::{Coverage, Gap, GapKind};
use crate::finding::{Code, Finding, Findings, Owners};
use crate::image::Image;
use crate::progress::{Phase, Progress};
use crate::qcow2::{
    ClusterRange, Header, HostCluster, HostOffset, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, Place,
    SnapshotEntry,
};
use crate::refcount_map::{Ledger, REGION_CLUSTERS, region_clusters, region_of};
use crate::storage::Storage;
use crate::walk::{self, Notes, Survey, Walk};

/// File offsets the format can name have 56 bits.
const MAX_FILE_BYTES: u64 = 1 << 56;

/// What to check besides the image itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Length of the external data file, to check the mapping against.
    pub data_file_bytes: Option<u64>,
    /// How many bytes a check should take. With less than it would need, it goes on in several passes over the file; what
    /// damage takes comes on top. `None`: as many as it needs.
    pub max_memory_bytes: Option<u64>,
    /// The storage is a block device: bytes behind the image are somebody else's business.
    pub is_block_device: bool,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// One word a boot hook can act on.
    pub verdict: Verdict,
    /// What is wrong, or worth knowing.
    pub findings: Findings,
    /// What was not looked at.
    pub coverage: Coverage,
    /// The numbers `qemu-img check` prints.
    pub statistics: Statistics,
    /// The image's snapshots, by index of the snapshot table.
    pub snapshots: Vec<SnapshotEntry>,
    /// The names of its bitmaps.
    pub bitmap_names: Vec<Vec<u8>>,
    /// The header, for the features in it.
    pub header: Header,
}

/// Allocation numbers of the active mapping, with `qemu-img check`'s meanings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes up to the end of the last host cluster that is counted or referred to; 0 if the check did not read all.
    pub image_end_offset: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Entries that have a host cluster, compressed ones included.
    pub allocated_clusters: u64,
    /// Entries whose host cluster does not follow the one before, and all compressed ones.
    pub fragmented_clusters: u64,
    /// Compressed entries.
    pub compressed_clusters: u64,
}

impl Check {
    /// Takes note that the image could not be looked at once more in the end: that it stayed the same is then not known.
    pub fn not_seen_again(&mut self, error: &io::Error) {
        let detail = format!("whether the image changed while it was read is not known: {error}");
        self.coverage.push(Gap {
            place: Place::File,
            kind: GapKind::Unreadable,
            detail,
        });
        self.statistics.image_end_offset = 0;
        self.verdict = Verdict::Unreadable;
    }

    /// What a check finds where nothing changed since this one but the dirty and corrupt bits of the header, which no table
    /// is read for. `None` where the header says that more has changed.
    pub(crate) fn with_state_bits(mut self, header: &Header) -> Option<Self> {
        let features = self.header.incompatible_features ^ header.incompatible_features;
        self.header.incompatible_features = header.incompatible_features;
        if features & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) != 0 || self.header != *header {
            return None;
        }
        walk::state_bits_anew(header, &mut self.findings);
        // Only what has a cluster size is checked so far that its tables need not be read again.
        self.reconsider(true);
        Some(self)
    }

    /// Judges anew, after something was added to the findings or the coverage.
    pub(crate) fn reconsider(&mut self, has_geometry: bool) {
        self.verdict = verdict::judge(has_geometry, &self.findings, &self.coverage);
    }
}

/// Checks an image.
pub fn check<S: Storage>(image: &Image<S>, options: Options, progress: &Progress) -> Check {
    match examine(image, options, progress) {
        Ok(examination) => examination.conclude(),
        Err(notes) => conclude(image, *notes, Survey::default(), Statistics::default()),
    }
}

/// Everything a check works out, before it is turned into an answer. A plan starts here.
pub(crate) struct Examination<'a, S> {
    pub(crate) walk: Walk<'a, S>,
    pub(crate) survey: Survey,
    pub(crate) notes: Notes,
    ledger: Ledger,
    witnessed: Witnessed,
    /// Worked out when somebody asks.
    differences: OnceLock<Differences>,
    statistics: Statistics,
    /// The storage is a block device, which cannot grow.
    pub(crate) is_block_device: bool,
    /// How long a plan may make the file.
    pub(crate) max_file_bytes: u64,
    /// Something of the active mapping has no COPIED flag: it has another user, or had one.
    pub(crate) has_unflagged: bool,
}

/// Walks and settles an image; without a cluster size there are only the notes on its header.
pub(crate) fn examine<'a, S: Storage>(
    image: &'a Image<S>,
    options: Options,
    progress: &'a Progress,
) -> Result<Examination<'a, S>, Box<Notes>> {
    let mut notes = Notes::default();
    progress.begin(Phase::Survey, 0);
    let Some(walk) = walkable(image, options, progress, &mut notes) else {
        walk::header_alone(image, &mut notes);
        return Err(Box::new(notes));
    };
    let lost_before = image.lost_reads();
    let mut survey = walk::survey(walk, &mut notes);
    let max_bytes = options.max_memory_bytes.unwrap_or(u64::MAX);
    let max_bytes = max_bytes.saturating_sub(survey.bytes());
    let (ledger, settled) = passes::settle_in_passes(walk, &mut survey, max_bytes, &mut notes);
    let witnessed = witness::name_suspects(walk, &survey, &ledger, &mut notes);
    notes.coverage.own_up(&lost_before, image.lost_reads());
    compare::compare(walk, &survey, &ledger, &witnessed, &mut notes);
    owners::name_owners(walk, &survey, ledger.suspects(), &witnessed, &mut notes);
    let last_cluster = settled.last_cluster;
    if notes.coverage.failure_count() == 0 {
        note_file_end(walk, options, last_cluster, &mut notes);
    }
    if settled.truncated_clusters > 0 {
        notes.push(
            Finding::new(Code::FileTruncated, Place::File).detail(format!(
                "clusters that were there: {}",
                settled.truncated_clusters
            )),
        );
    }
    notes.coverage.own_up(&lost_before, image.lost_reads());
    // Volumes are shrunk to this number: where something was not read, there is none.
    let is_exact = notes.coverage.failure_count() == 0;
    let statistics = Statistics {
        image_end_offset: u64::from(is_exact) * (last_cluster + 1) * walk.geometry.cluster_bytes(),
        total_clusters: walk.geometry.clusters_for(image.header().size / 512 * 512),
        ..settled.statistics
    };
    Ok(Examination {
        walk,
        survey,
        notes,
        ledger,
        witnessed,
        differences: OnceLock::new(),
        statistics,
        is_block_device: options.is_block_device,
        max_file_bytes: u64::MAX,
        has_unflagged: settled.has_unflagged,
    })
}

impl<S: Storage> Examination<'_, S> {
    /// Every cluster that is suspect or miscounted, in order.
    pub(crate) fn differences(&self) -> &Differences {
        self.differences.get_or_init(|| {
            compare::differences(self.walk, &self.survey, &self.ledger, &self.witnessed)
        })
    }

    /// The end of the last cluster that anything refers to or counts; `None` where not everything was read.
    pub(crate) fn image_end(&self) -> Option<HostCluster> {
        let end = HostOffset(self.statistics.image_end_offset);
        (end.0 > 0).then(|| self.walk.geometry.cluster_at(end))
    }

    /// The clusters of the file among these that nothing refers to and that no known count is stored for.
    pub(crate) fn unused_clusters(
        &self,
        clusters: Range<u64>,
    ) -> impl Iterator<Item = HostCluster> {
        let in_file = clusters.start..clusters.end.min(self.walk.geometry.file_clusters());
        let regions = region_of(HostCluster(in_file.start))..in_file.end.div_ceil(REGION_CLUSTERS);
        regions.flat_map(move |region| {
            let stored = stored::RegionCounts::read(self.walk, &self.survey, region);
            let unsettled: BTreeSet<HostCluster> =
                self.ledger.unsettled_clusters(region).into_iter().collect();
            let mut clusters = region_clusters(region);
            clusters.start = clusters.start.max(in_file.start);
            clusters.end = clusters.end.min(in_file.end);
            clusters
                .map(HostCluster)
                .filter(move |cluster| {
                    stored.get(*cluster).unwrap_or(0) == 0 && !unsettled.contains(cluster)
                })
                .collect::<Vec<_>>()
        })
    }

    /// Whether a cluster has users that may not share it.
    pub(crate) fn has_conflict(&self, cluster: HostCluster) -> bool {
        self.ledger.suspects().contains(cluster) && self.witnessed.tally.has_conflict(cluster)
    }

    /// The answer, to be looked at while the examination goes on.
    pub(crate) fn to_check(&self) -> Check {
        let (notes, survey) = (self.notes.clone(), self.survey.clone());
        conclude(self.walk.image, notes, survey, self.statistics)
    }

    /// The answer.
    pub(crate) fn conclude(self) -> Check {
        conclude(self.walk.image, self.notes, self.survey, self.statistics)
    }
}

/// Who refers to the host cluster at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAnswer {
    /// The cluster asked about.
    pub cluster: ClusterRange,
    /// The stored refcount; `None` where it could not be read.
    pub stored: Option<u64>,
    /// References found.
    pub expected: u64,
    /// Everyone who refers to it.
    pub owners: Owners,
    /// What was not looked at on the way.
    pub coverage: Coverage,
    /// The image's snapshots, to name them.
    pub snapshots: Vec<SnapshotEntry>,
}

/// Finds every owner of the host cluster at `offset`; `None` where the file has no such cluster or no cluster size.
pub fn host_owners<S: Storage>(
    image: &Image<S>,
    offset: HostOffset,
    progress: &Progress,
) -> Option<HostAnswer> {
    let mut notes = Notes::default();
    let walk = walkable(image, Options::default(), progress, &mut notes)?;
    if offset.0 >= walk.geometry.file_bytes() {
        return None;
    }
    let cluster = walk.geometry.cluster_at(offset);
    let lost_before = image.lost_reads();
    let survey = walk::survey(walk, &mut notes);
    let stored = stored::stored_count(walk, &survey, cluster);
    let (expected, owners) = owners::owners_of(walk, &survey, cluster, &mut notes);
    notes.coverage.own_up(&lost_before, image.lost_reads());
    Some(HostAnswer {
        cluster: ClusterRange::one(cluster),
        stored,
        expected,
        owners,
        coverage: notes.coverage,
        snapshots: survey.snapshots,
    })
}

pub use crate::walk::path::{GuestPath, GuestTarget, guest_path};

fn walkable<'a, S: Storage>(
    image: &'a Image<S>,
    options: Options,
    progress: &'a Progress,
    notes: &mut Notes,
) -> Option<Walk<'a, S>> {
    let geometry = image.geometry()?;
    if image.file_bytes() > MAX_FILE_BYTES {
        notes.gap(Gap {
            place: Place::File,
            kind: GapKind::WorkLimit,
            detail: "offsets in a qcow2 image have 56 bits; what lies beyond was not checked"
                .to_owned(),
        });
    }
    Some(Walk {
        image,
        geometry,
        progress,
        data_file_bytes: options.data_file_bytes,
    })
}

/// A last cluster that is only partly there belongs to somebody, or was appended by a stranger.
fn note_file_end<S: Storage>(
    walk: Walk<'_, S>,
    options: Options,
    last_cluster: u64,
    notes: &mut Notes,
) {
    let geometry = walk.geometry;
    let tail_bytes = geometry.file_bytes() % geometry.cluster_bytes();
    let tail_cluster = geometry.file_bytes() / geometry.cluster_bytes();
    if options.is_block_device || tail_bytes == 0 || tail_cluster <= last_cluster {
        return;
    }
    let cluster = HostCluster(tail_cluster);
    let unused_bytes = geometry.file_bytes() - (last_cluster + 1) * geometry.cluster_bytes();
    notes.push(
        Finding::new(Code::TrailingBytes, Place::File)
            .host(ClusterRange::one(cluster))
            .detail(format!(
                "{unused_bytes} bytes follow the last cluster in use"
            )),
    );
}

fn conclude<S: Storage>(
    image: &Image<S>,
    notes: Notes,
    survey: Survey,
    statistics: Statistics,
) -> Check {
    Check {
        verdict: verdict::judge(image.geometry().is_some(), &notes.findings, &notes.coverage),
        findings: notes.findings,
        coverage: notes.coverage,
        statistics,
        snapshots: survey.snapshots,
        bitmap_names: survey.bitmap_names,
        header: image.header().clone(),
    }
}
