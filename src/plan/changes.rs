//! What a pass wants changed, and what it leaves.
//!
//! Comes in: values. Goes out: [`Changes`]: patches of words, content for new clusters, copies, and reasons. Never here: an
//! examination, or how a change is laid out on the disk.

use super::StageKind;
use crate::finding::Code;
use crate::qcow2::{ClusterRange, HostCluster, count_field};

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

impl FromIterator<HostCluster> for Ranges {
    fn from_iter<I: IntoIterator<Item = HostCluster>>(clusters: I) -> Self {
        let mut ranges: Vec<ClusterRange> = Vec::new();
        for cluster in clusters {
            match ranges.last_mut() {
                Some(last) if last.end() == cluster.0 => last.count += 1,
                _ => ranges.push(ClusterRange::one(cluster)),
            }
        }
        Self(ranges)
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

/// Bits to change, within one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) stage: StageKind,
    /// The finding it answers.
    pub(super) because: Code,
    /// Byte offset in the file, a multiple of `bytes`.
    pub(super) offset: u64,
    /// How many bytes the big-endian number has: 1, 2, 4 or 8.
    pub(super) bytes: usize,
    /// The bits of it that change.
    pub(super) mask: u64,
    /// Their new value.
    pub(super) value: u64,
}

impl Patch {
    /// A patch of a whole 64-bit number: a header field, or an entry of a table.
    pub(super) fn word(stage: StageKind, because: Code, offset: u64, value: u64) -> Self {
        Self {
            stage,
            because,
            offset,
            bytes: 8,
            mask: u64::MAX,
            value,
        }
    }

    /// A patch of a whole 32-bit number.
    pub(super) fn half_word(stage: StageKind, because: Code, offset: u64, value: u32) -> Self {
        Self {
            stage,
            because,
            offset,
            bytes: 4,
            mask: u64::from(u32::MAX),
            value: u64::from(value),
        }
    }

    /// A patch of a single byte.
    pub(super) fn byte(stage: StageKind, because: Code, offset: u64, value: u8) -> Self {
        Self {
            stage,
            because,
            offset,
            bytes: 1,
            mask: u64::from(u8::MAX),
            value: u64::from(value),
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
        let field = count_field(order, index);
        Self {
            stage,
            because,
            offset: block_offset + field.byte_offset,
            bytes: field.bytes,
            mask: field.mask,
            value: count << field.shift,
        }
    }

    /// A patch of the COPIED flag of the L1 or L2 entry at `offset`.
    pub(super) fn copied_flag(stage: StageKind, because: Code, offset: u64, copied: bool) -> Self {
        Self {
            stage,
            because,
            offset,
            bytes: 8,
            mask: 1 << 63,
            value: u64::from(copied) << 63,
        }
    }
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
