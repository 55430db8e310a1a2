//! The model: a second opinion on reference counts, slow and simple.
//!
//! Comes in: the bytes of an image. Goes out: how many clusters have which fault, from nothing but the specification and
//! the promises in the door comments of the library: every structure claims its clusters, every mapping entry its own,
//! a claim that cannot be right claims nothing, zeros are read behind the end of the file. One map of cluster to users,
//! one loop over it. Never here: a line of the library's code, a thread, a shortcut.

use std::collections::{BTreeMap, BTreeSet};

use qfsck::Code;

use super::bytes::Bytes;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const MIB: u64 = 1 << 20;

/// What a user takes a cluster for, and how many references that is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Metadata(u64),
    Compressed(u64),
    Guest(u64, u64),
}

/// An L2 table, however many L1 entries name it.
#[derive(Default)]
struct L2Table {
    first_l1_index: u64,
    references: u64,
    active: u64,
}

/// What the model makes of an image.
#[derive(Default)]
pub(crate) struct Opinion {
    /// Clusters (or entries) by fault.
    pub(crate) totals: BTreeMap<Code, u64>,
    /// References by cluster.
    pub(crate) references: BTreeMap<u64, u64>,
    /// Clusters that a structure refers to.
    pub(crate) metadata: BTreeSet<u64>,
    /// Where the last cluster ends that is counted or referred to.
    pub(crate) image_end_offset: u64,
    /// Two guest clusters have compressed data in the same place.
    pub(crate) has_extent_overlap: bool,
    /// Why the library is known to differ.
    pub(crate) disputed: BTreeSet<&'static str>,
}

pub(crate) struct Model<'a> {
    file: Bytes<'a>,
    cluster_bits: u32,
    cluster_bytes: u64,
    /// `None` where the header gives no width.
    refcount_order: Option<u32>,
    has_data_file: bool,
    l2_entry_bytes: u64,
    /// Refcount table index to offset of the block, or `None` where the block cannot be read.
    blocks: BTreeMap<u64, Option<u64>>,
    are_counts_unknown: bool,
    users: BTreeMap<u64, Vec<Use>>,
    /// Clusters past the end of the file that entries name.
    lost: BTreeSet<u64>,
    /// COPIED flags of the active mapping: cluster, flag, how many entries.
    flags: Vec<(u64, bool, u64)>,
    /// Compressed data: first byte, last sector, guest cluster.
    extents: BTreeSet<(u64, u64, u64)>,
    opinion: Opinion,
}

impl<'a> Model<'a> {
    /// The opinion on an image, or `None` where the header gives no cluster size.
    pub(crate) fn of(file: &'a [u8]) -> Option<Opinion> {
        let file = Bytes(file);
        let is_v3 = file.u32(4) == 3;
        let cluster_bits = u32::try_from(file.u32(20)).ok()?;
        if !(9..=21).contains(&cluster_bits) {
            return None;
        }
        let incompatible = if is_v3 { file.u64(72) } else { 0 };
        let order = if is_v3 { file.u32(96) } else { 4 };
        let mut model = Self {
            file,
            cluster_bits,
            cluster_bytes: 1 << cluster_bits,
            refcount_order: u32::try_from(order).ok().filter(|&order| order <= 6),
            has_data_file: incompatible & 4 != 0,
            l2_entry_bytes: if incompatible & 16 != 0 { 16 } else { 8 },
            blocks: BTreeMap::new(),
            are_counts_unknown: false,
            users: BTreeMap::new(),
            lost: BTreeSet::new(),
            flags: Vec::new(),
            extents: BTreeSet::new(),
            opinion: Opinion::default(),
        };
        model.take(0, 1, Use::Metadata(1));
        model.walk_refcount_table();
        model.walk_mapping();
        let extensions = model.extensions(is_v3);
        model.walk_luks(extensions.get(&0x0537_be77));
        if is_v3 && file.u64(88) & 1 != 0 {
            model.walk_bitmaps(extensions.get(&0x2385_2875));
        }
        model.compare();
        model.compare_extents();
        Some(model.opinion)
    }

    fn take(&mut self, first_cluster: u64, count: u64, user: Use) {
        for cluster in first_cluster..first_cluster + count {
            self.users.entry(cluster).or_default().push(user);
        }
    }

    /// The cluster of the file an offset is the start of.
    fn cluster(&self, offset: u64) -> Option<u64> {
        let is_good = offset.is_multiple_of(self.cluster_bytes) && offset < self.file.len();
        is_good.then_some(offset >> self.cluster_bits)
    }

    /// Where a table ends at the latest of which nothing is missing.
    fn whole_end(&self) -> u64 {
        self.file.len().next_multiple_of(8)
    }

    /// Where what is counted in clusters ends at the latest: the file may have a part of the last one only.
    fn last_cluster_end(&self) -> u64 {
        self.file.len() + self.cluster_bytes - 1
    }

    /// Claims the clusters of a table; says whether it begins at a cluster boundary and in the file, and ends before
    /// `last_end`.
    ///
    /// Of one that does not, the part in the file counts, if `is_clipped`.
    fn claim_table(&mut self, offset: u64, bytes: u64, last_end: u64, is_clipped: bool) -> bool {
        if !offset.is_multiple_of(self.cluster_bytes) || offset >= self.file.len() {
            return false;
        }
        let ends_in_file = offset.checked_add(bytes).is_some_and(|end| end <= last_end);
        let mut end = offset.saturating_add(bytes);
        if !ends_in_file {
            end = self.file.len();
        }
        if ends_in_file || is_clipped {
            let first = offset >> self.cluster_bits;
            let count = end.div_ceil(self.cluster_bytes) - first;
            self.take(first, count, Use::Metadata(1));
        }
        ends_in_file
    }

    fn walk_refcount_table(&mut self) {
        if self.refcount_order.is_none() {
            self.are_counts_unknown = true;
            return;
        }
        let offset = self.file.u64(48);
        let bytes = (self.file.u32(56) * self.cluster_bytes).min(8 * MIB);
        if bytes == 0 || offset == 0 {
            return;
        }
        if !offset.is_multiple_of(self.cluster_bytes) {
            self.are_counts_unknown = true;
            return;
        }
        self.claim_table(offset, bytes, self.last_cluster_end(), true);
        for (index, word) in self.file.table(offset, bytes) {
            let block = word & !0x1ff;
            if block == 0 {
            } else if !block.is_multiple_of(self.cluster_bytes) {
                self.blocks.insert(index, None);
            } else if let Some(cluster) = self.cluster(block) {
                self.blocks.insert(index, Some(block));
                self.take(cluster, 1, Use::Metadata(1));
            }
        }
    }

    /// All L1 tables, then each L2 table they name once.
    fn walk_mapping(&mut self) {
        let mut tables = BTreeMap::new();
        let active = (self.file.u64(40), self.file.u32(36).min(4 * MIB));
        self.walk_l1(active, true, &mut tables);
        for snapshot in self.snapshots() {
            if snapshot.1 <= 4 * MIB {
                self.walk_l1(snapshot, false, &mut tables);
            }
        }
        for (cluster, table) in tables {
            self.take(cluster, 1, Use::Metadata(table.references));
            self.walk_l2(cluster, &table);
        }
    }

    fn walk_l1(
        &mut self,
        (offset, entries): (u64, u64),
        is_active: bool,
        tables: &mut BTreeMap<u64, L2Table>,
    ) {
        if entries == 0 || !offset.is_multiple_of(self.cluster_bytes) {
            return;
        }
        self.claim_table(offset, entries * 8, self.whole_end(), true);
        for (index, word) in self.file.table(offset, entries * 8) {
            let named = word & OFFSET;
            if let Some(cluster) = self.cluster(named).filter(|_| named != 0) {
                let table = tables.entry(cluster).or_insert_with(|| L2Table {
                    first_l1_index: index,
                    ..L2Table::default()
                });
                table.references += 1;
                if is_active {
                    table.active += 1;
                    self.flags.push((cluster, word & COPIED != 0, 1));
                }
            } else if named.is_multiple_of(self.cluster_bytes) && named != 0 {
                self.lost.insert(named >> self.cluster_bits);
            }
        }
    }

    /// Offset and size of the snapshots' L1 tables; claims the snapshot table on the way.
    fn snapshots(&mut self) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let start = self.file.u64(64);
        let count = self.file.u32(60).min(65_536);
        if !start.is_multiple_of(self.cluster_bytes) {
            return found;
        }
        let mut bytes = 0;
        for _ in 0..count {
            let at = start.saturating_add(bytes);
            let extra = self.file.u32(at.saturating_add(36));
            let length = 40
                + extra
                + self.file.u16(at.saturating_add(12))
                + self.file.u16(at.saturating_add(14));
            let is_in_file = at.saturating_add(length) <= self.file.len();
            let end = bytes + length.next_multiple_of(8);
            // An entry without extra data or names may be read from the zeros behind the end of the file.
            if !(is_in_file || length == 40) || extra > MIB || end > 64 * MIB {
                break;
            }
            found.push((self.file.u64(at), self.file.u32(at.saturating_add(8))));
            bytes = end;
        }
        if bytes > 0 {
            self.claim_table(start, bytes, self.whole_end(), true);
        }
        found
    }

    fn walk_l2(&mut self, cluster: u64, table: &L2Table) {
        let offset = cluster << self.cluster_bits;
        let words: BTreeMap<u64, u64> = self.file.table(offset, self.cluster_bytes).collect();
        let words_per_entry = self.l2_entry_bytes / 8;
        let entries = self.cluster_bytes / self.l2_entry_bytes;
        for index in words
            .keys()
            .map(|at| at / words_per_entry)
            .collect::<BTreeSet<_>>()
        {
            let word_at = |at: u64| words.get(&at).copied().unwrap_or(0);
            let word = word_at(index * words_per_entry);
            let bitmap = match words_per_entry {
                2 => word_at(index * 2 + 1),
                _ => 0,
            };
            let guest = table.first_l1_index * entries + index;
            if word & COMPRESSED == 0 {
                self.walk_standard(word, guest, table);
            } else if !self.has_data_file && bitmap == 0 {
                self.walk_compressed(word, guest, table);
            }
        }
    }

    fn walk_standard(&mut self, word: u64, guest: u64, table: &L2Table) {
        let named = word & OFFSET;
        let copied = word & COPIED != 0;
        if self.has_data_file {
            // Offset 0 of a data file is a place only with COPIED set. Its clusters have no counts, and are all owned.
            if named != 0 && !copied && table.active > 0 {
                self.count(Code::CopiedFlagMissing, table.active);
            }
        } else if named == 0 {
        } else if let Some(cluster) = self.cluster(named) {
            self.take(cluster, 1, Use::Guest(guest, table.references));
            if table.active > 0 {
                self.flags.push((cluster, copied, table.active));
            }
        } else if named.is_multiple_of(self.cluster_bytes) {
            self.lost.insert(named >> self.cluster_bits);
        }
    }

    /// Every cluster from the first byte to the end of the last sector.
    fn walk_compressed(&mut self, word: u64, guest: u64, table: &L2Table) {
        let sector_shift = 70 - self.cluster_bits;
        let offset = word & ((1 << sector_shift) - 1);
        let sectors = ((word & (COMPRESSED - 1)) >> sector_shift) + 1;
        let end = offset / 512 * 512 + sectors * 512;
        let first = offset >> self.cluster_bits;
        let count = end.div_ceil(self.cluster_bytes) - first;
        let file_clusters = self.file.len().div_ceil(self.cluster_bytes);
        self.lost.extend(file_clusters.max(first)..first + count);
        if first >= file_clusters || end >= self.file.len() + self.cluster_bytes {
            return;
        }
        let count = count.min(file_clusters - first);
        self.take(first, count, Use::Compressed(table.references));
        self.extents.insert((offset, end - 512, guest));
    }

    /// The last extension of each type, which is the one QEMU keeps: where its data is, and how long.
    fn extensions(&self, is_v3: bool) -> BTreeMap<u64, (u64, u64)> {
        let mut found = BTreeMap::new();
        let mut at = if is_v3 { self.file.u32(100) } else { 72 };
        let is_too_short = is_v3 && at < 104;
        let backing = self.file.u64(8);
        let cluster_end = self.cluster_bytes.min(self.file.len());
        let end = if backing == 0 {
            cluster_end
        } else {
            cluster_end.min(backing)
        };
        while !is_too_short && at + 8 <= end {
            let (kind, length) = (self.file.u32(at), self.file.u32(at + 4));
            if kind == 0 || at + 8 + length > end {
                break;
            }
            found.insert(kind, (at + 8, length));
            at += 8 + length.next_multiple_of(8);
        }
        found
    }

    fn walk_luks(&mut self, pointer: Option<&(u64, u64)>) {
        if let Some(&(at, 16)) = pointer {
            let (offset, bytes) = (self.file.u64(at), self.file.u64(at + 8));
            let is_luks = self.file.u32(32) == 2;
            let wide = if is_luks {
                bytes.max(self.luks_bytes(offset))
            } else {
                bytes
            };
            let limit = self.file.len() + self.cluster_bytes;
            let fits = |bytes: u64| offset.checked_add(bytes).is_some_and(|end| end < limit);
            let claimed = if fits(wide) { wide } else { bytes };
            if fits(bytes) && claimed > 0 {
                self.claim_table(offset, claimed, self.last_cluster_end(), false);
            }
        }
    }

    /// How far the key slots of a LUKS header reach, by the LUKS1 on-disk format.
    fn luks_bytes(&self, offset: u64) -> u64 {
        let word = |at: u64| self.file.u32(offset.saturating_add(at));
        let has_magic = word(0) == 0x4c55_4b53 && word(4) == 0xbabe_0001;
        let slots = (0..8).map(|slot| 208 + slot * 48);
        let ends = slots.map(|slot| match word(slot + 44) {
            0 => 0,
            stripes => (word(slot + 40) * 512).saturating_add(word(108).saturating_mul(stripes)),
        });
        if has_magic {
            ends.max().unwrap_or(0).max(592)
        } else {
            0
        }
    }

    fn walk_bitmaps(&mut self, extension: Option<&(u64, u64)>) {
        let Some(&(at, 24)) = extension else { return };
        let (count, reserved) = (self.file.u32(at), self.file.u32(at + 4));
        let (bytes, offset) = (self.file.u64(at + 8), self.file.u64(at + 16));
        let is_good =
            (1..=65_535).contains(&count) && reserved == 0 && (1..=65_535 * 1024).contains(&bytes);
        if !is_good || !self.claim_table(offset, bytes, self.whole_end(), false) {
            return;
        }
        let mut entry = offset;
        for _ in 0..count {
            let extra = self.file.u32(entry + 20);
            let name = self.file.u16(entry + 18);
            let next = entry + (24 + extra + name).next_multiple_of(8);
            if entry + 24 > offset + bytes || next > offset + bytes {
                return;
            }
            self.walk_bitmap(entry, name);
            entry = next;
        }
    }

    fn walk_bitmap(&mut self, entry: u64, name_bytes: u64) {
        let (table, size) = (self.file.u64(entry), self.file.u32(entry + 8));
        let (flags, kind) = (self.file.u32(entry + 12), self.file.u8(entry + 16));
        let is_good = table != 0
            && (1..=0x0800_0000).contains(&size)
            && size * self.cluster_bytes <= 512 * MIB
            && flags & !7 == 0
            && kind == 1
            && (9..=31).contains(&self.file.u8(entry + 17))
            && (1..=1023).contains(&name_bytes);
        if !is_good || !self.claim_table(table, size * 8, self.whole_end(), false) {
            return;
        }
        for (_, word) in self.file.table(table, size * 8) {
            let data = word & OFFSET;
            if word & !OFFSET == 0
                && data != 0
                && let Some(cluster) = self.cluster(data)
            {
                self.take(cluster, 1, Use::Metadata(1));
            }
        }
    }

    /// The stored count of a cluster; `None` where nobody can know it.
    fn stored(&self, cluster: u64) -> Option<u64> {
        let order = self.refcount_order.filter(|_| !self.are_counts_unknown)?;
        let per_block = (self.cluster_bytes * 8) >> order;
        match self.blocks.get(&(cluster / per_block)) {
            None => Some(0),
            Some(None) => None,
            Some(Some(block)) => Some(self.file.count(*block, order, cluster % per_block)),
        }
    }

    /// Every cluster with a stored count that is not zero.
    fn counted(&self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let Some(order) = self.refcount_order else {
            return found;
        };
        let per_block = (self.cluster_bytes * 8) >> order;
        for (index, block) in &self.blocks {
            let Some(block) = block else { continue };
            // A file may end in the middle of a block, and even of a count: zeros are read behind it.
            let in_file = self
                .file
                .len()
                .saturating_sub(*block)
                .min(self.cluster_bytes);
            let slots = (in_file * 8).div_ceil(1 << order);
            let nonzero = (0..slots).filter(|&slot| self.file.count(*block, order, slot) != 0);
            found.extend(nonzero.map(|slot| index * per_block + slot));
        }
        found
    }

    fn count(&mut self, code: Code, more: u64) {
        if more > 0 {
            *self.opinion.totals.entry(code).or_default() += more;
        }
    }

    /// Holds the users of every cluster against its stored count.
    fn compare(&mut self) {
        let counted = self.counted();
        let file_clusters = self.file.len().div_ceil(self.cluster_bytes);
        let last_counted = counted.range(..file_clusters).next_back().copied();
        let last_used = self.users.keys().next_back().copied();
        let last = last_counted.max(last_used).unwrap_or(0);
        self.opinion.image_end_offset = (last + 1) * self.cluster_bytes;
        let clusters: BTreeSet<u64> = counted
            .into_iter()
            .chain(self.users.keys().copied())
            .collect();
        for cluster in clusters {
            let users = self.users.remove(&cluster).unwrap_or_default();
            self.opinion.references.insert(cluster, references(&users));
            if users.iter().any(|user| matches!(user, Use::Metadata(_))) {
                self.opinion.metadata.insert(cluster);
            }
            let stored = self.stored(cluster);
            if self.lost.contains(&cluster) {
                // It was there once, if it was counted; how often it is referred to is moot. Counts beyond reason are
                // told all the same.
                let is_possible = stored.is_some_and(|stored| stored <= 0x7fff);
                if !is_possible || !users.is_empty() {
                    self.opinion.disputed.insert("counts past the end");
                }
                continue;
            }
            for code in self.faults(&users, stored, cluster >= file_clusters) {
                self.count(code, 1);
            }
        }
        for (cluster, copied, entries) in std::mem::take(&mut self.flags) {
            match (self.stored(cluster), copied) {
                (Some(1), false) => self.count(Code::CopiedFlagMissing, entries),
                (Some(stored), true) if stored != 1 => self.count(Code::CopiedFlagStale, entries),
                _ => {}
            }
        }
    }

    /// The next extent may begin in the sector one ends in, but not before, nor at the same byte.
    fn compare_extents(&mut self) {
        let mut starts = BTreeSet::new();
        let mut furthest = 0;
        for &(start, last_sector, _) in &self.extents {
            self.opinion.has_extent_overlap |= start < furthest || !starts.insert(start);
            furthest = furthest.max(last_sector);
        }
    }

    fn faults(&self, users: &[Use], stored: Option<u64>, is_past_end: bool) -> Vec<Code> {
        let expected = references(users);
        let is_metadata = |user: &Use| matches!(user, Use::Metadata(_));
        let guests: BTreeSet<Option<u64>> = users
            .iter()
            .map(|user| match *user {
                Use::Guest(guest, _) => Some(guest),
                _ => None,
            })
            .collect();
        let overlap = if users.len() > 1 && users.iter().any(is_metadata) {
            Some(Code::MetadataOverlap)
        } else if guests.len() > 1 && stored >= Some(expected) {
            Some(Code::GuestDataShared)
        } else if guests.len() > 1 {
            Some(Code::GuestDataOverlap)
        } else {
            None
        };
        let width = 1 << self.refcount_order.unwrap_or(6);
        let maximum = u64::MAX >> (64 - width);
        let miscount = match stored {
            None => None,
            Some(stored) if stored > expected && expected == 0 && is_past_end => {
                Some(Code::RefcountPastEnd)
            }
            Some(stored) if stored > expected => Some(Code::RefcountLeak),
            // Users that may not share are one fault, whatever the count.
            _ if overlap.is_some() => None,
            _ if expected > maximum => Some(Code::RefcountOverflow),
            Some(stored) if stored == expected => None,
            Some(0) => Some(Code::RefcountZero),
            Some(_) => Some(Code::RefcountTooLow),
        };
        overlap.into_iter().chain(miscount).collect()
    }
}

fn references(users: &[Use]) -> u64 {
    let counts = users.iter().map(|user| match *user {
        Use::Metadata(count) | Use::Compressed(count) | Use::Guest(_, count) => count,
    });
    counts.sum()
}
