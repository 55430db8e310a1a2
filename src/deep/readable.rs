//! Every allocated byte, read and thrown away: the map of what the disk below cannot read.
//!
//! Comes in: the L2 tables, and claims whose content the check does not look at. Goes out: a finding and a gap for each run
//! of bytes that cannot be read, with the owners. Never here: a hole; a byte twice because several mappings name it;
//! compressed data, which is read where it is unpacked.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use super::gather;
use crate::coverage::Gap;
use crate::finding::{Code, Finding, Owner, OwnerKind, Owners};
use crate::progress::Phase;
use crate::qcow2::{ClusterRange, HostCluster, Place};
use crate::refcount_map::{REGION_CLUSTERS, region_clusters, region_of};
use crate::storage::Storage;
use crate::walk::l2_table::{Mapped, Target};
use crate::walk::{Notes, Survey, Walk};

/// Regions of one window: 4 MiB of bits.
const WINDOW_REGIONS: usize = 1024;
/// Words of bits that a region has.
const REGION_WORDS: u64 = REGION_CLUSTERS / 64;
/// Bytes read at once.
const READ_BYTES: u64 = 1 << 20;
/// Bytes that are tried by themselves where a larger read fails.
const BLOCK_BYTES: u64 = 4096;
/// Reads that are under way together, before what came of them is looked at.
const READS_AT_ONCE: usize = 4096;
/// Unreadable runs that are kept; a disk with more of them has no use for a longer list.
const KEPT_RUNS: usize = 1 << 16;

/// Bytes that cannot be read, and what the system says.
#[derive(Debug)]
struct Run {
    start: u64,
    end: u64,
    error: io::Error,
}

/// Reads every allocated cluster of the file.
pub(super) fn read_all<S: Storage>(walk: Walk<'_, S>, survey: &Survey, notes: &mut Notes) {
    let mut runs = Runs::default();
    let claimed = unread_claims(survey);
    let mut from = HostCluster(0);
    while !walk.progress.is_stopped() {
        let regions = stored_regions(walk, from);
        let Some(&last) = regions.last() else {
            break;
        };
        from = HostCluster(region_clusters(last).end);
        let window = Window::collect(walk, survey, &claimed, regions);
        window.read(walk, &mut runs);
    }
    if runs.more > 0 {
        let detail = format!("{} more places", runs.more);
        notes.gap(Gap::unreadable(Place::File, &io::Error::other(detail)));
    }
    if !runs.kept.is_empty() {
        name(walk, survey, &runs.kept, notes);
    }
}

/// What is claimed for content that the check does not look at, in order.
fn unread_claims(survey: &Survey) -> Vec<ClusterRange> {
    let unread = survey.claims.iter().filter(|claim| {
        matches!(
            claim.kind,
            OwnerKind::EncryptionHeader | OwnerKind::BitmapData
        )
    });
    ClusterRange::merged(unread.map(|claim| claim.clusters).collect())
}

/// The first regions from a cluster on in which anything is stored, as many as a window has.
///
/// All L2 tables are read for each window, so none is wasted on holes: a forged file may be a hole but for a byte here and
/// there. Where the system cannot say, everything may be data.
fn stored_regions<S: Storage>(walk: Walk<'_, S>, mut from: HostCluster) -> Vec<u64> {
    let mut regions = Vec::new();
    while regions.len() < WINDOW_REGIONS && from.0 < walk.geometry.file_clusters() {
        let offset = from.0.saturating_mul(walk.geometry.cluster_bytes());
        match walk.image.storage().next_data(offset) {
            Ok(None) => break,
            Ok(Some(next)) => from = from.max(HostCluster(next >> walk.geometry.cluster_bits())),
            Err(_) => {}
        }
        let region = region_of(from);
        regions.push(region);
        from = HostCluster(region_clusters(region).end);
    }
    regions
}

/// Allocated clusters of some regions, one bit each.
struct Window {
    /// In order.
    regions: Vec<u64>,
    /// As many for each region.
    words: Vec<AtomicU64>,
}

impl Window {
    fn collect<S: Storage>(
        walk: Walk<'_, S>,
        survey: &Survey,
        claimed: &[ClusterRange],
        regions: Vec<u64>,
    ) -> Self {
        let words = regions.iter().flat_map(|_| 0..REGION_WORDS);
        let window = Self {
            words: words.map(|_| AtomicU64::new(0)).collect(),
            regions,
        };
        for &region in &window.regions {
            let Range { start, end } = region_clusters(region);
            let first = claimed.partition_point(|range| range.end() <= start);
            let claimed = claimed.get(first..).unwrap_or(&[]).iter();
            for range in claimed.take_while(|range| range.start.0 < end) {
                let clusters = range.start.0.max(start)..range.end().min(end);
                clusters.for_each(|it| window.insert(HostCluster(it)));
            }
        }
        let total_bytes = survey.l2_tables.len() as u64 * walk.geometry.cluster_bytes();
        walk.progress.begin(Phase::Tables, total_bytes);
        gather(walk, &survey.l2_tables, |(): &mut (), _, mapped| {
            if let Some(cluster) = standard(mapped) {
                window.insert(cluster);
            }
        });
        window
    }

    fn insert(&self, cluster: HostCluster) {
        let region = region_of(cluster);
        // In most files nothing lies between the regions.
        let first = self.regions.first().copied().unwrap_or(0);
        let guess = region.checked_sub(first);
        let guess = guess.and_then(|guess| usize::try_from(guess).ok());
        let index = guess
            .filter(|&guess| self.regions.get(guess) == Some(&region))
            .or_else(|| self.regions.binary_search(&region).ok());
        let slot = cluster.0 % REGION_CLUSTERS;
        let word = index.map(|index| index as u64 * REGION_WORDS + slot / 64);
        let word = word.and_then(|word| self.words.get(usize::try_from(word).ok()?));
        if let Some(word) = word {
            word.fetch_or(1 << (slot % 64), Relaxed);
        }
    }

    /// Runs of allocated clusters, in order.
    fn runs(&self) -> impl Iterator<Item = ClusterRange> + '_ {
        let regions = self.regions.iter();
        let starts = regions.flat_map(|&region| region_clusters(region).step_by(64));
        let bits = starts.zip(&self.words);
        let words = bits.map(|(first, word)| (first, word.load(Relaxed)));
        let used = words.filter(|(_, word)| *word != 0);
        let clusters = used.flat_map(|(first, word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| first + bit)
        });
        let mut clusters = clusters.peekable();
        std::iter::from_fn(move || {
            let start = clusters.next()?;
            let mut count = 1;
            while clusters.next_if_eq(&(start + count)).is_some() {
                count += 1;
            }
            Some(ClusterRange {
                start: HostCluster(start),
                count,
            })
        })
    }

    /// Reads all of it; adds what cannot be read.
    fn read<S: Storage>(&self, walk: Walk<'_, S>, runs: &mut Runs) {
        let words = self.words.iter();
        let clusters: u64 = words
            .map(|word| u64::from(word.load(Relaxed).count_ones()))
            .sum();
        let cluster_bytes = walk.geometry.cluster_bytes();
        walk.progress.begin(Phase::Data, clusters * cluster_bytes);
        let mut pieces = self.runs().flat_map(|run| {
            let start = run.start.0 * cluster_bytes;
            let end = (run.end() * cluster_bytes).min(walk.geometry.file_bytes());
            let step = usize::try_from(READ_BYTES).unwrap_or(usize::MAX);
            (start..end)
                .step_by(step)
                .map(move |piece| (piece, end.min(piece + READ_BYTES)))
        });
        loop {
            let batch: Vec<(u64, u64)> = pieces.by_ref().take(READS_AT_ONCE).collect();
            if batch.is_empty() || walk.progress.is_stopped() {
                return;
            }
            let found: Vec<Vec<Run>> = batch
                .par_iter()
                .map_init(Vec::new, |buffer, &(start, end)| {
                    let found = read_piece(walk, buffer, start, end);
                    walk.progress.advance(end - start);
                    found
                })
                .collect();
            for run in found.into_iter().flatten() {
                runs.push(run);
            }
        }
    }
}

/// The host cluster of an entry that has one of its own in the file.
fn standard(mapped: Mapped) -> Option<HostCluster> {
    match mapped.target {
        Target::Standard { cluster, .. } => cluster.ok(),
        Target::External { .. } | Target::Compressed { .. } => None,
    }
}

/// The runs found so far, in order; a bounded list, and how many more there are.
#[derive(Debug, Default)]
struct Runs {
    kept: Vec<Run>,
    more: u64,
}

impl Runs {
    /// Adds a run, to the last where it goes on from that.
    fn push(&mut self, run: Run) {
        if let Some(last) = self.kept.last_mut()
            && last.end == run.start
            && last.error.kind() == run.error.kind()
        {
            last.end = run.end;
        } else if self.kept.len() < KEPT_RUNS {
            self.kept.push(run);
        } else {
            self.more += 1;
        }
    }
}

/// Reads bytes; where that fails, block by block, to find which of them.
fn read_piece<S: Storage>(
    walk: Walk<'_, S>,
    buffer: &mut Vec<u8>,
    start: u64,
    end: u64,
) -> Vec<Run> {
    let storage = walk.image.storage();
    let mut found = Vec::new();
    // Where the system cannot say, everything may be data.
    let from = storage.next_data(start).unwrap_or(Some(start));
    let Some(from) = from.filter(|from| *from < end && !walk.progress.is_stopped()) else {
        return found;
    };
    let from = from.max(start);
    buffer.resize(usize::try_from(end - from).unwrap_or(0), 0);
    if storage.read_at(from, buffer).is_ok() {
        return found;
    }
    let mut block = from;
    while block < end && !walk.progress.is_stopped() {
        let block_end = end.min((block + 1).next_multiple_of(BLOCK_BYTES));
        let bytes = usize::try_from(block_end - block).unwrap_or(0);
        if let Some(buffer) = buffer.get_mut(..bytes)
            && let Err(error) = storage.read_at(block, buffer)
        {
            found.push(Run {
                start: block,
                end: block_end,
                error,
            });
        }
        block = block_end;
    }
    found
}

/// Notes the runs, with who owns them.
fn name<S: Storage>(walk: Walk<'_, S>, survey: &Survey, runs: &[Run], notes: &mut Notes) {
    let geometry = walk.geometry;
    let ranges: Vec<ClusterRange> = runs
        .iter()
        .map(|run| {
            let start = run.start >> geometry.cluster_bits();
            ClusterRange {
                start: HostCluster(start),
                count: geometry.clusters_for(run.end).saturating_sub(start),
            }
        })
        .collect();
    let mut owners: BTreeMap<usize, Owners> = BTreeMap::new();
    for claim in &survey.claims {
        let meets = ranges.partition_point(|range| range.end() <= claim.clusters.start.0);
        let met = (meets..).zip(ranges.get(meets..).unwrap_or(&[]));
        for (index, range) in met.take_while(|(_, it)| it.start.0 < claim.clusters.end()) {
            let owner = Owner {
                kind: claim.kind,
                place: claim.place,
                trees: None,
                guest: None,
                host: claim.clusters,
            };
            let owner = owner.clipped_to(*range);
            owners.entry(index).or_default().push(owner);
        }
    }
    let of_tables = owners_in_tables(walk, survey, &ranges);
    for (index, more) in of_tables.into_iter().flatten() {
        let owners = owners.entry(index).or_default();
        for owner in more.named {
            owners.push(owner);
        }
        owners.more += more.more;
    }
    for (index, (run, range)) in runs.iter().zip(ranges).enumerate() {
        let place = Place::Clusters { start: range.start };
        let bytes = format!("bytes {:#x}-{:#x}: {}", run.start, run.end, run.error);
        let mut finding = Finding::new(Code::DataUnreadable, place)
            .host(range)
            .count(range.count)
            .detail(bytes);
        finding.owners = owners.remove(&index).unwrap_or_default();
        // Mappings that share it have it at the same place.
        let mut guests = finding.owners.named.iter().map(|owner| owner.guest);
        let first = guests.next().flatten();
        let is_one = finding.owners.more == 0 && guests.all(|guest| guest == first);
        finding.guest = first.filter(|_| is_one);
        notes.push(finding);
        notes.gap(Gap::unreadable(place, &run.error));
    }
}

/// The owners of ranges, by the ranges' numbers, as the L2 tables name them.
fn owners_in_tables<S: Storage>(
    walk: Walk<'_, S>,
    survey: &Survey,
    ranges: &[ClusterRange],
) -> Vec<BTreeMap<usize, Owners>> {
    let geometry = walk.geometry;
    gather(
        walk,
        &survey.l2_tables,
        |found: &mut BTreeMap<usize, Owners>, item, mapped| {
            let Some(cluster) = standard(mapped) else {
                return;
            };
            let index = ranges.partition_point(|range| range.end() <= cluster.0);
            let range = ranges.get(index);
            if range.is_none_or(|range| range.start > cluster) {
                return;
            }
            found.entry(index).or_default().push(Owner {
                kind: OwnerKind::GuestData,
                place: Place::L2Entry {
                    table: item.cluster,
                    index: mapped.index,
                },
                trees: Some(item.trees),
                guest: Some(geometry.guest_range(mapped.guest_cluster, 1)),
                host: ClusterRange::one(cluster),
            });
        },
    )
}
