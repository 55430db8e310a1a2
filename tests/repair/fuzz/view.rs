//! Who uses which cluster, and what is stored about it: a reader of its own, that looks at whatever bytes it is given.
//!
//! Comes in: the bytes of an image, healthy or damaged, and its cluster size. Goes out: stored counts, references by the
//! path that leads to them, names. Never here: an opinion, a panic, code of the library under test.

use std::collections::BTreeMap;
use std::ops::Range;

pub(crate) const OFFSET_BITS: u64 = 0x00ff_ffff_ffff_fe00;
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// No entry of a table has one of these set, unless it is compressed.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// More of a table is not walked: damage makes them endless.
const MAX_ENTRIES: u64 = 1 << 14;
const MAX_SNAPSHOTS: u64 = 64;
const MAX_BITMAPS: u64 = 64;
const BITMAPS_EXTENSION: u64 = 0x2385_2875;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Header,
    RefcountTable,
    RefcountBlock,
    L1Table,
    SnapshotTable,
    L2Table,
    Data,
    Compressed,
}

impl Kind {
    /// Whether guest content is lost when the cluster is.
    pub(crate) fn is_live(self) -> bool {
        !matches!(
            self,
            Self::Header | Self::RefcountTable | Self::RefcountBlock
        )
    }

    pub(crate) fn is_guest_data(self) -> bool {
        matches!(self, Self::Data | Self::Compressed)
    }
}

/// How a reference is reached: the same in every version of an image. Tree 0 is the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    Structure {
        kind: Kind,
        nth: u64,
    },
    L1 {
        tree: usize,
        nth: u64,
    },
    L2 {
        tree: usize,
        l1_index: u64,
    },
    Guest {
        tree: usize,
        l1_index: u64,
        l2_index: u64,
        nth: u64,
    },
}

/// References by path, each to one cluster.
pub(crate) type References = BTreeMap<Path, (Kind, u64)>;

/// An image as bytes. What is past its end reads as zero.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) cluster_bits: u32,
}

impl<'a> View<'a> {
    pub(crate) fn new(bytes: &'a [u8], cluster_bits: u32) -> Self {
        Self {
            bytes,
            cluster_bits,
        }
    }

    pub(crate) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn cluster_count(&self) -> u64 {
        self.length().div_ceil(self.cluster_bytes())
    }

    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn byte(&self, offset: u64) -> u64 {
        let at = usize::try_from(offset).ok();
        at.and_then(|at| self.bytes.get(at))
            .map_or(0, |&byte| byte.into())
    }

    fn number(&self, offset: u64, bytes: u64) -> u64 {
        let offsets = (0..bytes).map(|at| offset.saturating_add(at));
        offsets.fold(0, |sum, at| sum << 8 | self.byte(at))
    }

    pub(crate) fn u64(&self, offset: u64) -> u64 {
        self.number(offset, 8)
    }

    pub(crate) fn u32(&self, offset: u64) -> u64 {
        self.number(offset, 4)
    }

    fn u16(&self, offset: u64) -> u64 {
        self.number(offset, 2)
    }

    fn is_v3(&self) -> bool {
        self.u32(4) == 3
    }

    fn has_feature(&self, bit: u32) -> bool {
        self.is_v3() && self.u64(72) >> bit & 1 == 1
    }

    pub(crate) fn refcount_order(&self) -> u64 {
        if self.is_v3() { self.u32(96) } else { 4 }
    }

    pub(crate) fn cluster_of(&self, offset: u64) -> Option<u64> {
        let is_sound =
            offset != 0 && offset.is_multiple_of(self.cluster_bytes()) && offset < self.length();
        is_sound.then_some(offset >> self.cluster_bits)
    }

    /// The bytes of a cluster, as far as the file has them.
    pub(crate) fn cluster(&self, cluster: u64) -> &'a [u8] {
        let bound = |offset: u64| usize::try_from(offset.min(self.length())).unwrap_or(0);
        let start = cluster.saturating_mul(self.cluster_bytes());
        let end = start.saturating_add(self.cluster_bytes());
        self.bytes.get(bound(start)..bound(end)).unwrap_or_default()
    }

    /// The stored count of a cluster; nothing where nobody can say.
    pub(crate) fn stored_count(&self, cluster: u64) -> Option<u64> {
        let order = u32::try_from(self.refcount_order())
            .ok()
            .filter(|&order| order <= 6)?;
        let per_block = (self.cluster_bytes() * 8) >> order;
        let table = self.u64(48);
        self.cluster_of(table)?;
        let index = cluster / per_block;
        if index >= self.u32(56) * self.cluster_bytes() / 8 {
            return Some(0);
        }
        let block = self.u64(table + index * 8) & !0x1ff;
        if block == 0 {
            return Some(0);
        }
        self.cluster_of(block)?;
        let bit = (cluster % per_block) << order;
        let at = block + bit / 8;
        Some(if order < 3 {
            self.byte(at) >> (bit % 8) & ((1 << (1 << order)) - 1)
        } else {
            self.number(at, 1 << (order - 3))
        })
    }

    /// Bytes of the entry of the snapshot table at `at`, and of the entry up to its name.
    fn snapshot_lengths(&self, at: u64) -> (u64, u64) {
        let to_id = 40 + self.u32(at + 36);
        let to_end = to_id + self.u16(at + 12) + self.u16(at + 14);
        (to_end.next_multiple_of(8), to_id)
    }

    /// Where the entries of the snapshot table begin.
    fn snapshot_entries(&self) -> Vec<u64> {
        let mut entries = Vec::new();
        let mut at = self.u64(64);
        if self.cluster_of(at).is_none() {
            return entries;
        }
        for _ in 0..self.u32(60).min(MAX_SNAPSHOTS) {
            let (bytes, _) = self.snapshot_lengths(at);
            if at + bytes > self.length() {
                break;
            }
            entries.push(at);
            at += bytes;
        }
        entries
    }

    /// Where each tree's L1 table is, and how many entries it has.
    fn trees(&self) -> Vec<(u64, u64)> {
        let active = (self.u64(40), self.u32(36));
        let entries = self.snapshot_entries().into_iter();
        let snapshots = entries.map(|at| (self.u64(at), self.u32(at + 8)));
        std::iter::once(active).chain(snapshots).collect()
    }

    /// Clusters that `bytes` bytes from `offset` on touch, in the file.
    fn clusters(&self, offset: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = offset.saturating_add(bytes).min(self.length());
        let range = offset >> self.cluster_bits..end.div_ceil(self.cluster_bytes());
        (0..).zip(range)
    }

    /// Every reference there is.
    pub(crate) fn references(&self) -> References {
        let mut all = References::new();
        all.insert(
            Path::Structure {
                kind: Kind::Header,
                nth: 0,
            },
            (Kind::Header, 0),
        );
        self.add_refcounts(&mut all);
        let entries = self.snapshot_entries();
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            let end = last + self.snapshot_lengths(*last).0;
            self.add_structure(&mut all, Kind::SnapshotTable, *first, end - first);
        }
        for (tree, (offset, entries)) in self.trees().into_iter().enumerate() {
            self.add_tree(&mut all, tree, offset, entries.min(MAX_ENTRIES));
        }
        all
    }

    fn add_structure(&self, all: &mut References, kind: Kind, offset: u64, bytes: u64) {
        for (nth, cluster) in self.clusters(offset, bytes) {
            all.insert(Path::Structure { kind, nth }, (kind, cluster));
        }
    }

    fn add_refcounts(&self, all: &mut References) {
        let table = self.u64(48);
        if self.cluster_of(table).is_none() {
            return;
        }
        let bytes = (self.u32(56) * self.cluster_bytes()).min(MAX_ENTRIES * 8);
        self.add_structure(all, Kind::RefcountTable, table, bytes);
        for nth in 0..bytes / 8 {
            let kind = Kind::RefcountBlock;
            let block = self.cluster_of(self.u64(table + nth * 8) & !0x1ff);
            if let Some(block) = block {
                all.insert(Path::Structure { kind, nth }, (kind, block));
            }
        }
    }

    fn add_tree(&self, all: &mut References, tree: usize, offset: u64, entries: u64) {
        if self.cluster_of(offset).is_none() {
            return;
        }
        for (nth, cluster) in self.clusters(offset, entries * 8) {
            all.insert(Path::L1 { tree, nth }, (Kind::L1Table, cluster));
        }
        for l1_index in 0..entries {
            let table = self.u64(offset + l1_index * 8) & OFFSET_BITS;
            if let Some(cluster) = self.cluster_of(table) {
                all.insert(Path::L2 { tree, l1_index }, (Kind::L2Table, cluster));
                self.add_table(all, tree, l1_index, table);
            }
        }
    }

    fn add_table(&self, all: &mut References, tree: usize, l1_index: u64, table: u64) {
        if self.has_feature(2) {
            return;
        }
        for l2_index in 0..self.cluster_bytes() / self.entry_bytes() {
            let entry = self.u64(table + l2_index * self.entry_bytes());
            for (nth, (kind, cluster)) in (0..).zip(self.named_by(entry)) {
                let path = Path::Guest {
                    tree,
                    l1_index,
                    l2_index,
                    nth,
                };
                all.insert(path, (kind, cluster));
            }
        }
    }

    pub(crate) fn entry_bytes(&self) -> u64 {
        if self.has_feature(4) { 16 } else { 8 }
    }

    /// The clusters that an L2 entry names.
    fn named_by(&self, entry: u64) -> Vec<(Kind, u64)> {
        if entry & COMPRESSED == 0 {
            let cluster = self.cluster_of(entry & OFFSET_BITS);
            return cluster
                .map(|cluster| (Kind::Data, cluster))
                .into_iter()
                .collect();
        }
        let offset_bits = 70 - self.cluster_bits;
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
        let bytes = (offset / 512 + sectors) * 512 - offset;
        let clusters = self.clusters(offset, bytes);
        clusters
            .map(|(_, cluster)| (Kind::Compressed, cluster))
            .collect()
    }

    /// Where words lie that may be pointers to a cluster.
    pub(crate) fn words_naming(&self, cluster: u64) -> impl Iterator<Item = u64> {
        let named = cluster << self.cluster_bits;
        let offsets = (0..self.length()).step_by(8);
        offsets.filter(move |&offset| {
            let word = self.u64(offset);
            word & OFFSET_BITS == named && word & RESERVED == 0
        })
    }

    /// Entries of the active mapping with COPIED set, and the cluster each names.
    pub(crate) fn copied_entries(&self) -> Vec<(u64, u64)> {
        let (offset, entries) = (self.u64(40), self.u32(36).min(MAX_ENTRIES));
        let mut found = Vec::new();
        if self.cluster_of(offset).is_none() {
            return found;
        }
        let mut look = |at: u64| {
            let word = self.u64(at);
            let cluster = self.cluster_of(word & OFFSET_BITS);
            if word & COPIED != 0 && word & COMPRESSED == 0 {
                found.extend(cluster.map(|cluster| (at, cluster)));
            }
            cluster
        };
        for l1_index in 0..entries {
            let Some(table) = look(offset + l1_index * 8) else {
                continue;
            };
            let table = table << self.cluster_bits;
            for l2_index in 0..self.cluster_bytes() / self.entry_bytes() {
                look(table + l2_index * self.entry_bytes());
            }
        }
        found
    }

    /// Where the directory of the bitmaps that count is, and how many they are.
    fn bitmap_directory(&self) -> Option<(u64, u64)> {
        if !self.is_v3() || self.u64(88) & 1 == 0 {
            return None;
        }
        let mut at = self.u32(100);
        while at + 8 <= self.cluster_bytes() {
            match self.u32(at) {
                0 => return None,
                BITMAPS_EXTENSION => {
                    let count = self.u32(at + 8).min(MAX_BITMAPS);
                    self.cluster_of(self.u64(at + 24))?;
                    return Some((self.u64(at + 24), count));
                }
                _ => at += 8 + self.u32(at + 4).next_multiple_of(8),
            }
        }
        None
    }

    /// Where the entries of the directory begin, and where the name of each is.
    fn bitmap_entries(&self) -> Option<Vec<(u64, Range<u64>)>> {
        let (mut at, count) = self.bitmap_directory()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let start = at + 24 + self.u32(at + 20);
            let end = start + self.u16(at + 18);
            entries.push((at, start..end));
            at = end.next_multiple_of(8);
        }
        Some(entries)
    }

    /// The names of the bitmaps that count, where they can be read.
    pub(crate) fn bitmap_names(&self) -> Option<Vec<Vec<u8>>> {
        let names = self.bitmap_entries()?.into_iter().map(|(_, name)| {
            let start = usize::try_from(name.start).ok()?;
            let end = usize::try_from(name.end).ok()?;
            Some(self.bytes.get(start..end)?.to_vec())
        });
        names.collect()
    }

    /// Every cluster of the directory, the tables and the bits of bitmaps.
    pub(crate) fn bitmap_clusters(&self) -> Vec<u64> {
        let mut found = Vec::new();
        let (Some((start, _)), Some(entries)) = (self.bitmap_directory(), self.bitmap_entries())
        else {
            return found;
        };
        let end = entries.last().map_or(start, |(_, name)| name.end);
        found.extend(
            self.clusters(start, end - start)
                .map(|(_, cluster)| cluster),
        );
        for (at, _) in entries {
            let (table, size) = (self.u64(at), self.u32(at + 8).min(MAX_ENTRIES));
            found.extend(self.clusters(table, size * 8).map(|(_, cluster)| cluster));
            let words = (0..size).map(|index| self.u64(table + index * 8) & OFFSET_BITS);
            found.extend(words.filter_map(|word| self.cluster_of(word)));
        }
        found
    }
}
