//! Reading many cluster-sized tables in the order of the disk, in large pieces, on all cores.
//!
//! Comes in: tables sorted by cluster. Goes out: each table's bytes to a visitor, and one result for each fixed group of
//! tables, in order, whatever the number of threads. Never here: what the bytes mean.

use std::sync::Mutex;

use rayon::prelude::*;

use super::Walk;
use super::stored_parts::{are_read_by_parts, read_stored};
use crate::coverage::Gap;
use crate::qcow2::{HostCluster, Place, is_zero};
use crate::storage::Storage;

/// Neighbouring tables are read together up to this many bytes.
/// What is read stays in the processor's cache until it is looked at.
const BATCH_BYTES: u64 = 256 << 10;
/// Bytes between two tables that are read along rather than stepped over: what a page of memory brings along anyway.
const GAP_BYTES: u64 = 4 << 10;
/// Bytes of tables one group holds; a group is what one thread does at a time.
///
/// All of it is asked for before the first byte is waited for: a disk far away is kept busy by a few threads. Only where
/// some of it turns out to be at hand, nothing is asked for before a table is not.
const GROUP_BYTES: u64 = 8 << 20;

/// How many tables of a group are tried to tell whether it is at hand, and how much of each: the shortest table.
const SAMPLES: usize = 4;
const SAMPLE_BYTES: usize = 512;

/// Something of one cluster to read.
pub(crate) trait Table: Sync {
    /// Where it is.
    fn cluster(&self) -> HostCluster;
    /// What to call it where it cannot be read.
    fn place(&self) -> Place;
}

/// What becomes of the tables of one group.
pub(crate) trait GroupVisitor<T>: Send {
    /// There is nothing in zeros to look at: where a table or the end of one lies in a hole of the file, no bytes are given
    /// for that.
    const PASSES_OVER_ZEROS: bool = false;
    /// A table's bytes.
    fn visit(&mut self, table: &T, bytes: &[u8]);
    /// A table that was not read.
    fn miss(&mut self, table: &T, gap: Gap);
}

/// Reads all tables, which are sorted by cluster, and returns the visitors of all groups in order.
pub(crate) fn read_tables<S, T, V>(
    walk: Walk<'_, S>,
    tables: &[T],
    make: impl Fn() -> V + Sync,
) -> Vec<V>
where
    S: Storage,
    T: Table,
    V: GroupVisitor<T>,
{
    let per_group = usize::try_from(GROUP_BYTES / walk.geometry.cluster_bytes()).unwrap_or(1);
    // What one thread knows of a hole, the next need not find out.
    let known = Mutex::new(Hole::default());
    tables
        .par_chunks(per_group.max(1))
        .map_init(Reader::default, |reader, group| {
            let mut visitor = make();
            reader.begin_group(walk, group, &known);
            let mut rest = batches(walk, group);
            loop {
                let ahead = rest.clone();
                let Some(batch) = rest.next() else {
                    break;
                };
                reader.read_batch(walk, batch, ahead, &mut visitor);
            }
            reader.tell(&known);
            visitor
        })
        .collect()
}

/// A group cut into what is read at once.
fn batches<'a, S, T: Table>(
    walk: Walk<'a, S>,
    group: &'a [T],
) -> impl Iterator<Item = &'a [T]> + Clone {
    let mut rest = group;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (batch, more) = rest.split_at(batch_length(walk, rest));
        rest = more;
        Some(batch)
    })
}

/// How many of the first tables lie close enough together to be read at once.
fn batch_length<S>(walk: Walk<'_, S>, tables: &[impl Table]) -> usize {
    let cluster_bytes = walk.geometry.cluster_bytes();
    let Some(first) = tables.first() else {
        return 0;
    };
    let mut previous = first.cluster().0;
    let close = tables.iter().take_while(|table| {
        let cluster = table.cluster().0;
        let skipped_bytes = cluster
            .saturating_sub(previous + 1)
            .saturating_mul(cluster_bytes);
        let batch_bytes = (cluster - first.cluster().0 + 1).saturating_mul(cluster_bytes);
        previous = cluster;
        skipped_bytes <= GAP_BYTES && batch_bytes <= BATCH_BYTES
    });
    close.count().max(1)
}

/// What one thread reads with.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
    hole: Hole,
    /// Something of this group is far away, so all that is still to come of it was announced.
    is_announced: bool,
}

impl Reader {
    fn begin_group<S: Storage>(
        &mut self,
        walk: Walk<'_, S>,
        group: &[impl Table],
        known: &Mutex<Hole>,
    ) {
        self.hole.is_asked_in_vain = false;
        self.meet(walk, group, known);
        self.is_announced = false;
        // Of tables read by their parts nobody knows yet what there is to try.
        if are_read_by_parts(walk.geometry) || !Self::looks_at_hand(walk, group) {
            self.announce_all(walk, batches(walk, group));
        }
    }

    /// Tries a few tables. The last comes first: what is next to something that was read may have come along with it.
    fn looks_at_hand<S: Storage>(walk: Walk<'_, S>, group: &[impl Table]) -> bool {
        let mut start = [0; SAMPLE_BYTES];
        (0..SAMPLES).all(|sample| {
            let behind = group.len() * sample / SAMPLES;
            let table = group.iter().nth_back(behind);
            table.is_some_and(|table| {
                let offset = walk.geometry.offset_of(table.cluster()).0;
                walk.image.storage().read_at_hand(offset, &mut start)
            })
        })
    }

    fn announce_all<'t, S: Storage, T: Table + 't>(
        &mut self,
        walk: Walk<'_, S>,
        batches: impl Iterator<Item = &'t [T]>,
    ) {
        self.is_announced = true;
        for batch in batches.take_while(|_| !walk.progress.is_stopped()) {
            self.announce(walk, batch);
        }
    }

    /// Looks whether a group begins in a hole that another thread knows of.
    fn meet<S: Storage>(&mut self, walk: Walk<'_, S>, group: &[impl Table], known: &Mutex<Hole>) {
        let first = group.first().map_or(HostCluster(0), Table::cluster);
        let start = walk.geometry.offset_of(first).0;
        // A lock is only poisoned by a panic, which ends the run.
        if !self.hole.has(start, start)
            && let Ok(known) = known.lock()
            && known.has(start, start)
        {
            (self.hole.start, self.hole.end) = (known.start, known.end);
        }
    }

    /// Tells the others of a hole.
    fn tell(&self, known: &Mutex<Hole>) {
        if self.hole.end > self.hole.start
            && let Ok(mut known) = known.lock()
        {
            (known.start, known.end) = (self.hole.start, self.hole.end);
        }
    }

    /// Tells the storage that a batch is read soon.
    fn announce<S: Storage>(&self, walk: Walk<'_, S>, batch: &[impl Table]) {
        if let (Some(first), Some(last)) = (batch.first(), batch.last()) {
            let start = walk.geometry.offset_of(first.cluster()).0;
            let end = walk.geometry.offset_of(last.cluster()).0 + walk.geometry.cluster_bytes();
            if self.hole.has(start, end) {
                return;
            }
            let storage = walk.image.storage();
            if are_read_by_parts(walk.geometry) {
                let stored = storage.next_data(start).unwrap_or(Some(start));
                if let Some(stored) = stored.filter(|stored| *stored < end) {
                    storage.will_read(stored, (end - stored).min(BATCH_BYTES));
                }
            } else {
                storage.will_read(start, end - start);
            }
        }
    }

    /// Reads a batch, or says which of its tables cannot be read. `ahead` are the batches from this one on.
    fn read_batch<'t, S: Storage, T: Table + 't, V: GroupVisitor<T>>(
        &mut self,
        walk: Walk<'_, S>,
        batch: &[T],
        ahead: impl Iterator<Item = &'t [T]>,
        visitor: &mut V,
    ) {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return;
        };
        if walk.progress.is_stopped() {
            for table in batch {
                visitor.miss(table, Gap::stopped(table.place()));
            }
            return;
        }
        let start = first.cluster();
        let whole_bytes = batch.len() as u64 * walk.geometry.cluster_bytes();
        let offset = walk.geometry.offset_of(start).0;
        let end = walk.geometry.offset_of(last.cluster()).0 + walk.geometry.cluster_bytes();
        if V::PASSES_OVER_ZEROS && self.hole.has(offset, end) {
            for table in batch {
                visitor.visit(table, &[]);
            }
            return walk.progress.advance(whole_bytes);
        }
        let cluster_bytes = usize::try_from(walk.geometry.cluster_bytes()).unwrap_or(0);
        let clusters = usize::try_from(last.cluster().0 - start.0 + 1).unwrap_or(0);
        self.buffer.resize(clusters * cluster_bytes, 0);
        let is_by_parts = V::PASSES_OVER_ZEROS && are_read_by_parts(walk.geometry);
        let filled = self.fill(walk, start, is_by_parts, ahead);
        for table in batch {
            let index = usize::try_from(table.cluster().0 - start.0).unwrap_or(0);
            let table_start = index * cluster_bytes;
            // What cannot be read with the others is read whole.
            let stored = filled.map(|filled| filled.saturating_sub(table_start));
            let length = stored.map_or(cluster_bytes, |stored| stored.min(cluster_bytes));
            let span = table_start..table_start + length;
            let Some(bytes) = self.buffer.get_mut(span) else {
                continue;
            };
            // A failed batch is read again table by table, so that one bad sector costs one table.
            let retried = if filled.is_some() {
                Ok(())
            } else {
                walk.image
                    .read_clusters(walk.geometry, table.cluster(), bytes)
            };
            match retried {
                Ok(()) => visitor.visit(table, bytes),
                Err(error) => visitor.miss(table, Gap::unreadable(table.place(), &error)),
            }
        }
        walk.progress.advance(whole_bytes);
    }

    /// Fills the buffer with clusters from `first` on, or knows that they are zero; gives how many bytes are filled: behind
    /// them are only zeros, which are left out where they lie in a hole and the tables are read by their parts. `None` where
    /// that failed.
    fn fill<'t, S: Storage, T: Table + 't>(
        &mut self,
        walk: Walk<'_, S>,
        first: HostCluster,
        is_by_parts: bool,
        ahead: impl Iterator<Item = &'t [T]>,
    ) -> Option<usize> {
        let start = walk.geometry.offset_of(first).0;
        let end = start.saturating_add(self.buffer.len() as u64);
        if self.hole.has(start, end) {
            self.buffer.fill(0);
            return Some(self.buffer.len());
        }
        let (image, geometry) = (walk.image, walk.geometry);
        let filled = if is_by_parts {
            read_stored(image.storage(), start, &mut self.buffer).ok()?
        } else if self.is_at_hand(walk, start, ahead) {
            self.buffer.len()
        } else {
            let read = image.attempt_clusters(geometry, first, &mut self.buffer);
            read.ok()?;
            self.buffer.len()
        };
        if !self.hole.is_asked_in_vain && self.buffer.get(..filled).is_some_and(is_zero) {
            self.hole.look_on(image.storage(), end);
        }
        Some(filled)
    }

    /// Fills the buffer where nobody has to wait for that; says whether it did. The first table that is far away has all that
    /// is still to come announced, and none of it is tried any more.
    fn is_at_hand<'t, S: Storage, T: Table + 't>(
        &mut self,
        walk: Walk<'_, S>,
        offset: u64,
        ahead: impl Iterator<Item = &'t [T]>,
    ) -> bool {
        if self.is_announced {
            return false;
        }
        if walk.image.storage().read_at_hand(offset, &mut self.buffer) {
            return true;
        }
        self.announce_all(walk, ahead);
        false
    }
}

/// What is known of the hole of the file the last tables were in. Most images have no tables in holes, and nobody is asked
/// about them; a forged one may have millions.
#[derive(Default)]
struct Hole {
    /// Everything from here to the end reads as zero.
    start: u64,
    end: u64,
    /// Zeros that were read turned out to be stored ones: nobody is asked again in this group.
    is_asked_in_vain: bool,
}

impl Hole {
    /// Whether these bytes are known to be zero.
    fn has(&self, start: u64, end: u64) -> bool {
        (self.start..=self.end).contains(&start) && end <= self.end
    }

    fn look_on(&mut self, storage: &impl Storage, from: u64) {
        let next = storage.next_data(from).map(|next| next.unwrap_or(u64::MAX));
        // Where the system cannot say, everything may be data.
        (self.start, self.end) = (from, next.unwrap_or(from));
        self.is_asked_in_vain = self.end <= from;
    }
}
