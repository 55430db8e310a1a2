//! What a pass wants changed, and what it leaves.
//!
//! Comes in: values. Goes out: [`Changes`]: patches of words, content for new clusters, copies, and reasons. Never here: an
//! examination, or how a change is laid out on the disk.

use super::StageKind;
use crate::check::{DifferenceRun, Differences};
use crate::finding::Code;
use crate::qcow2::{ClusterRange, HostCluster, SECTOR_BYTES, count_field, put_bits};

/// What one pass wants changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Words of structures that are there.
    pub(super) patches: Vec<Patch>,
    /// Content of clusters that nothing uses so far.
    pub(super) fresh: Vec<Fresh>,
    /// Guest data that gets a place of its own.
    pub(super) copies: Vec<FreshCopy>,
    /// Clusters that nothing uses any more when the pass is done.
    pub(super) released: Vec<ClusterRange>,
    /// Clusters whose count goes to zero.
    pub(super) freed: Ranges,
    /// Somebody's acceptance of a loss is what some of this rests on.
    pub(super) gave_up: bool,
    /// What the pass leaves as it is, and why.
    pub(super) withheld: Vec<Withheld>,
}

/// Clusters that mostly follow one another.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<ClusterRange>);

impl Ranges {
    pub(super) fn iter(&self) -> impl Iterator<Item = ClusterRange> {
        self.0.iter().copied()
    }
}

impl FromIterator<ClusterRange> for Ranges {
    fn from_iter<I: IntoIterator<Item = ClusterRange>>(clusters: I) -> Self {
        let mut ranges: Vec<ClusterRange> = Vec::new();
        for range in clusters {
            match ranges.last_mut() {
                Some(last) if last.end() == range.start.0 => last.count += range.count,
                _ => ranges.push(range),
            }
        }
        Self(ranges)
    }
}

/// Counts that one cluster after another is to have, `None` where that is not known; those that are alike are kept once.
#[derive(Debug, Default)]
pub(super) struct PlannedCounts(Vec<(Option<u64>, u64)>);

impl PlannedCounts {
    /// Adds the count of the next so many clusters.
    pub(super) fn push(&mut self, count: Option<u64>, clusters: u64) {
        match self.0.last_mut() {
            Some((last, length)) if *last == count => *length += clusters,
            _ => self.0.push((count, clusters)),
        }
    }

    /// The differences they were planned for, in runs that all get one count.
    pub(super) fn beside<'a>(
        &'a self,
        differences: &'a Differences,
    ) -> impl Iterator<Item = (DifferenceRun, Option<u64>)> {
        let mut runs = differences.runs().iter().copied();
        let mut counts = self.0.iter().copied();
        let mut rest: Option<DifferenceRun> = None;
        let mut alike = (None, 0);
        std::iter::from_fn(move || {
            let run = rest.take().or_else(|| runs.next())?;
            if alike.1 == 0 {
                alike = counts.next()?;
            }
            let (part, more) = run.split_at(alike.1);
            alike.1 -= part.clusters.count;
            rest = Some(more).filter(|more| more.clusters.count > 0);
            Some((part, alike.0))
        })
    }
}

/// A cluster that nothing uses so far, and what goes into it.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) cluster: HostCluster,
    /// A whole cluster, or a multiple of them.
    pub(super) bytes: Vec<u8>,
    pub(super) because: Code,
}

/// A cluster that nothing uses so far, and whose content it gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreshCopy {
    pub(super) from: HostCluster,
    pub(super) to: HostCluster,
    pub(super) because: Code,
}

/// Bits to change, within one sector: those of a number, or of neighbouring counts that all get the same value.
///
/// There may be millions, so it is kept small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) stage: StageKind,
    /// The finding it answers.
    pub(super) because: Code,
    /// Byte offset in the file: of the number, or of the sector that the `Counts` are in.
    offset: u64,
    value: u64,
    field: Field,
}

/// Which bits a patch changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// All bits of a big-endian number of so many bytes: 1, 2, 4 or 8.
    Number { bytes: u8 },
    /// The highest bit of a 64-bit number.
    HighestBit,
    /// Counts of `1 << order` bits: the first, and how many, counted from the start of the sector that `offset` is in.
    Counts { order: u8, first: u16, count: u16 },
}

impl Patch {
    /// A patch of a whole 64-bit number: a header field, or an entry of a table.
    pub(super) fn word(stage: StageKind, because: Code, offset: u64, value: u64) -> Self {
        Self::number(stage, because, (offset, 8), value)
    }

    /// A patch of a whole 32-bit number.
    pub(super) fn half_word(stage: StageKind, because: Code, offset: u64, value: u32) -> Self {
        Self::number(stage, because, (offset, 4), u64::from(value))
    }

    /// A patch of a single byte.
    pub(super) fn byte(stage: StageKind, because: Code, offset: u64, value: u8) -> Self {
        Self::number(stage, because, (offset, 1), u64::from(value))
    }

    fn number(stage: StageKind, because: Code, (offset, bytes): (u64, u8), value: u64) -> Self {
        Self {
            stage,
            because,
            offset,
            value,
            field: Field::Number { bytes },
        }
    }

    /// A patch of the refcount at `index` of the block at `block_offset`.
    pub(super) fn refcount(
        stage: StageKind,
        because: Code,
        block_offset: u64,
        order: u32,
        index: u64,
        count: u64,
    ) -> Self {
        // Blocks are whole sectors, and sectors have whole counts.
        let in_sector = (SECTOR_BYTES * 8) >> order;
        Self {
            stage,
            because,
            offset: block_offset + index / in_sector * SECTOR_BYTES,
            value: count,
            field: Field::Counts {
                order: u8::try_from(order).unwrap_or(u8::MAX),
                first: u16::try_from(index % in_sector).unwrap_or(0),
                count: 1,
            },
        }
    }

    /// A patch of the COPIED flag of the L1 or L2 entry at `offset`.
    pub(super) fn copied_flag(stage: StageKind, because: Code, offset: u64, copied: bool) -> Self {
        Self {
            stage,
            because,
            offset,
            value: u64::from(copied) << 63,
            field: Field::HighestBit,
        }
    }

    /// The sector it is in, by number.
    pub(super) fn sector(&self) -> u64 {
        self.offset / SECTOR_BYTES
    }

    /// Adds it to others, as a part of the last of them where it goes on with the same counts.
    pub(super) fn add_to(self, patches: &mut Vec<Self>) {
        if !patches.last_mut().is_some_and(|last| last.absorb(&self)) {
            patches.push(self);
        }
    }

    fn absorb(&mut self, next: &Self) -> bool {
        let Self { field: now, .. } = *self;
        let (
            Field::Counts {
                order,
                first,
                count,
            },
            Field::Counts {
                first: next_first,
                count: more,
                ..
            },
        ) = (now, next.field)
        else {
            return false;
        };
        let is_next = next_first == first + count
            && *self
                == Self {
                    field: now,
                    ..*next
                };
        if is_next {
            self.field = Field::Counts {
                order,
                first,
                count: count + more,
            };
        }
        is_next
    }

    /// Changes its bits in the sector it is in; returns how many numbers or counts that changed.
    pub(super) fn apply(&self, sector: &mut [u8]) -> u64 {
        let start = usize::try_from(self.offset % SECTOR_BYTES).unwrap_or(0);
        match self.field {
            Field::Number { bytes } => put(sector, start, usize::from(bytes), u64::MAX, self.value),
            Field::HighestBit => put(sector, start, 8, 1 << 63, self.value),
            Field::Counts {
                order,
                first,
                count,
            } => {
                let indices = u64::from(first)..u64::from(first) + u64::from(count);
                let changed = indices.map(|index| {
                    let field = count_field(u32::from(order), index);
                    let start = usize::try_from(field.byte_offset).unwrap_or(usize::MAX);
                    let value = self.value << field.shift;
                    put(sector, start, field.bytes, field.mask, value)
                });
                changed.sum()
            }
        }
    }
}

/// Changes the bits of `mask` in a number of a sector; returns how many numbers that changed. What lies behind the end of
/// the file is not there to be changed.
fn put(sector: &mut [u8], start: usize, length: usize, mask: u64, value: u64) -> u64 {
    let Some(bytes) = sector.get_mut(start..start.saturating_add(length)) else {
        return 0;
    };
    let mut was = [0; 8];
    let was = was.get_mut(..length).unwrap_or_default();
    was.copy_from_slice(bytes);
    put_bits(bytes, mask, value);
    u64::from(bytes != was)
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
