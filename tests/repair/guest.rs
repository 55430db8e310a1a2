//! What a guest sees: a small reader of its own, written from the specification, that shares no code with the library.
//!
//! Comes in: the bytes of an image. Goes out: for the active disk and every snapshot, what each guest cluster is, as a
//! class with a hash of the bytes it reads; and what of it is lost or different in another image. Never here: refcounts,
//! COPIED flags, a guess. What the specification does not define is a hole, and a hole promises nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What tells a tree from the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TreeName {
    Active,
    /// The number tells snapshots apart that have the same ID and the same name.
    Snapshot {
        id: Vec<u8>,
        name: Vec<u8>,
        number: usize,
    },
}

impl fmt::Display for TreeName {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => to.write_str("the active disk"),
            Self::Snapshot { id, name, number } => write!(
                to,
                "snapshot \"{}\" \"{}\" ({number})",
                id.escape_ascii(),
                name.escape_ascii()
            ),
        }
    }
}

/// What a guest cluster, or a subcluster, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Read from the backing file, or as zeros where there is none.
    Unallocated,
    Zero,
    /// Bytes in the image: where, and a hash of them.
    Data(Place),
    /// Bytes in the external data file, at this offset.
    External(u64),
    /// Compressed: the extent of the raw bytes, and a hash of them.
    Compressed(Place),
    /// One for each of the 32.
    Subclusters(Vec<Class>),
    /// Not well defined.
    Hole,
}

/// Bytes in the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    hash: u64,
    /// With LUKS the place decides what the bytes decrypt to.
    is_tied: bool,
}

/// Wherever they are, the same bytes are the same to a guest, unless they are tied to their place.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        let is_there = !self.is_tied || self.offset == other.offset;
        is_there && self.hash == other.hash && self.bytes == other.bytes
    }
}

impl Eq for Place {}

impl Class {
    /// Whether whatever was well defined here is the same there.
    fn is_kept_by(&self, after: &Self) -> bool {
        match (self, after) {
            (Self::Hole, _) => true,
            (Self::Subclusters(before), after) => before.iter().enumerate().all(|(at, part)| {
                let after = match after {
                    Self::Subclusters(parts) => parts.get(at).unwrap_or(&Self::Hole),
                    Self::Zero | Self::Unallocated => after,
                    _ => &Self::Hole,
                };
                part.is_kept_by(after)
            }),
            (Self::Zero | Self::Unallocated, Self::Subclusters(parts)) => {
                parts.iter().all(|part| part == self)
            }
            _ => self == after,
        }
    }

    fn is_defined(&self) -> bool {
        match self {
            Self::Hole => false,
            Self::Subclusters(parts) => parts.iter().any(Self::is_defined),
            _ => true,
        }
    }
}

/// One tree of tables, as its reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Guest clusters of one L2 table.
    l2_entries: u64,
    /// Every guest cluster that is not simply unallocated; those below an L2 table that is a hole are missing here.
    pub(crate) clusters: BTreeMap<u64, Class>,
    /// L1 entries that lead nowhere defined.
    hole_tables: BTreeSet<u64>,
    /// What else a snapshot is: disk size, size of the VM state, times. Empty for the active disk.
    facts: Vec<u64>,
    /// Entries of the L1 table.
    pub(crate) l1_size: u64,
}

impl Tree {
    fn class(&self, guest: u64) -> &Class {
        if self.hole_tables.contains(&(guest / self.l2_entries)) {
            return &Class::Hole;
        }
        self.clusters.get(&guest).unwrap_or(&Class::Unallocated)
    }

    /// How many guest clusters are well defined and allocated.
    pub(crate) fn defined_count(&self) -> usize {
        let is_defined = |class: &&Class| class.is_defined();
        self.clusters.values().filter(is_defined).count()
    }

    /// Guest clusters that are well defined here and not the same there.
    fn differences(&self, after: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let guests = self.clusters.keys().chain(after.clusters.keys());
        let guests: BTreeSet<u64> = guests.copied().collect();
        for guest in guests {
            let (was, is) = (self.class(guest), after.class(guest));
            if !was.is_kept_by(is) {
                differences.push(format!("guest cluster {guest} was {was:?}, is {is:?}"));
            }
        }
        for table in &after.hole_tables {
            if !self.hole_tables.contains(table) {
                differences.push(format!("the L2 table of L1 entry {table} cannot be read"));
            }
        }
        if self.facts != after.facts {
            let (was, is) = (&self.facts, &after.facts);
            differences.push(format!("the snapshot's facts were {was:?}, are {is:?}"));
        }
        differences
    }
}

/// All that can be read of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guest {
    pub(crate) trees: BTreeMap<TreeName, Tree>,
}

impl Guest {
    /// Reads everything. An image whose header makes no sense has nothing that could be lost.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let Some(image) = Reader::new(bytes) else {
            return Self::default();
        };
        let mut trees = BTreeMap::new();
        if let Some(tree) = image.tree(image.u64(40), image.u32(36).into(), Vec::new()) {
            trees.insert(TreeName::Active, tree);
        }
        for (name, tree) in image.snapshots() {
            trees.insert(name, tree);
        }
        Self { trees }
    }

    /// What was well defined here and is lost or different there. Empty if nothing is.
    ///
    /// A snapshot may have got another ID or name, if nothing else about it changed.
    pub(crate) fn losses(&self, after: &Self) -> Vec<String> {
        let mut losses = Vec::new();
        let renamed: Vec<&Tree> = after
            .trees
            .iter()
            .filter(|(name, _)| !self.trees.contains_key(name))
            .map(|(_, tree)| tree)
            .collect();
        for (name, tree) in &self.trees {
            if let Some(after) = after.trees.get(name) {
                let differences = tree.differences(after);
                let differences = differences
                    .into_iter()
                    .map(|what| format!("{name}: {what}"));
                losses.extend(differences);
            } else if !renamed
                .iter()
                .any(|after| tree.differences(after).is_empty())
            {
                losses.push(format!("{name} is lost"));
            }
        }
        losses
    }

    /// How many guest clusters are well defined and allocated, in all trees.
    pub(crate) fn defined_count(&self) -> usize {
        self.trees.values().map(Tree::defined_count).sum()
    }
}

/// Numbers out of the header, and the bytes.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    cluster_bits: u32,
    version: u32,
    has_data_file: bool,
    has_extended_l2: bool,
    is_luks: bool,
}

const OFFSET_BITS: u64 = 0x00ff_ffff_ffff_fe00;

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        let mut image = Self {
            bytes,
            cluster_bits: 0,
            version: 0,
            has_data_file: false,
            has_extended_l2: false,
            is_luks: false,
        };
        image.cluster_bits = image.u32(20);
        image.version = image.u32(4);
        let features = if image.version == 3 { image.u64(72) } else { 0 };
        image.has_data_file = features & 4 != 0;
        image.has_extended_l2 = features & 16 != 0;
        image.is_luks = image.u32(32) == 2;
        let is_known = bytes.len() >= 72
            && bytes.starts_with(b"QFI\xfb")
            && matches!(image.version, 2 | 3)
            && (9..=21).contains(&image.cluster_bits)
            && features < 32
            && (!image.has_extended_l2 || image.cluster_bits >= 14);
        is_known.then_some(image)
    }

    /// Up to `length` bytes; what is past the end of the file is missing.
    fn part(&self, offset: u64, length: u64) -> &'a [u8] {
        let bound =
            |at: u64| usize::try_from(at).map_or(self.bytes.len(), |at| at.min(self.bytes.len()));
        let end = bound(offset.saturating_add(length));
        self.bytes.get(bound(offset)..end).unwrap_or_default()
    }

    fn number(&self, offset: u64, length: u64) -> u64 {
        let part = self.part(offset, length);
        let present = part.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let missing = length - part.len() as u64;
        present
            .checked_shl(u32::try_from(missing * 8).unwrap_or(64))
            .unwrap_or(0)
    }

    fn u64(&self, offset: u64) -> u64 {
        self.number(offset, 8)
    }

    fn u32(&self, offset: u64) -> u32 {
        u32::try_from(self.number(offset, 4)).unwrap_or(0)
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The last cluster of a file may be cut short; it reads as zeros there.
    fn end(&self) -> u64 {
        (self.bytes.len() as u64).next_multiple_of(self.cluster_bytes())
    }

    fn is_cluster(&self, offset: u64) -> bool {
        offset.is_multiple_of(self.cluster_bytes()) && offset < self.end()
    }

    fn place(&self, offset: u64, length: u64) -> Place {
        let part = self.part(offset, length);
        // FNV-1a over words; the zeros the file may be short of are hashed as zeros.
        let mix = |hash: u64, word: u64| {
            (hash ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(29)
        };
        let (words, rest) = part.as_chunks::<8>();
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        let words = words
            .iter()
            .chain([&last])
            .map(|word| u64::from_be_bytes(*word));
        let hash = (1..)
            .zip(words)
            .fold(0xcbf2_9ce4_8422_2325, |hash, (number, word)| {
                if word == 0 {
                    hash
                } else {
                    mix(hash, mix(number, word))
                }
            });
        Place {
            offset,
            bytes: length,
            hash,
            is_tied: self.is_luks,
        }
    }

    /// A tree of tables, or nothing where its L1 table cannot be there.
    fn tree(&self, l1_offset: u64, l1_size: u64, facts: Vec<u64>) -> Option<Tree> {
        let is_there = l1_size == 0
            || l1_offset != 0
                && self.is_cluster(l1_offset)
                && l1_offset.checked_add(l1_size * 8)? <= self.end();
        if !is_there {
            return None;
        }
        let entry_bytes = if self.has_extended_l2 { 16 } else { 8 };
        let l2_entries = self.cluster_bytes() / entry_bytes;
        let mut tree = Tree {
            l2_entries,
            clusters: BTreeMap::new(),
            hole_tables: BTreeSet::new(),
            facts,
            l1_size,
        };
        for l1_index in 0..l1_size {
            let table = self.u64(l1_offset + l1_index * 8) & OFFSET_BITS;
            if table == 0 {
                continue;
            }
            if !self.is_cluster(table) {
                tree.hole_tables.insert(l1_index);
                continue;
            }
            for l2_index in 0..l2_entries {
                let class = self.class(table + l2_index * entry_bytes);
                if class != Class::Unallocated {
                    tree.clusters
                        .insert(l1_index * l2_entries + l2_index, class);
                }
            }
        }
        Some(tree)
    }

    fn class(&self, entry_offset: u64) -> Class {
        let entry = self.u64(entry_offset);
        if entry >> 62 & 1 == 1 {
            return self.compressed(entry);
        }
        let offset = entry & OFFSET_BITS;
        // Only in a data file is there anything to find at offset 0.
        let is_allocated = offset != 0 || self.has_data_file && entry >> 63 == 1;
        let is_sound = !is_allocated || offset.is_multiple_of(self.cluster_bytes());
        if self.has_extended_l2 {
            return self.subclusters(is_allocated.then_some((offset, is_sound)), entry_offset + 8);
        }
        let reads_as_zero = entry & 1 == 1;
        match (reads_as_zero, is_allocated) {
            (true, _) if self.version == 2 || !is_sound => Class::Hole,
            (true, _) => Class::Zero,
            // The offset of a cluster must be aligned; what another one would read is not defined.
            (false, true) if !is_sound => Class::Hole,
            (false, true) => self.data(offset, self.cluster_bytes()),
            (false, false) => Class::Unallocated,
        }
    }

    fn data(&self, offset: u64, length: u64) -> Class {
        let start = offset & !(self.cluster_bytes() - 1);
        if self.has_data_file {
            Class::External(offset)
        } else if self.is_cluster(start) {
            Class::Data(self.place(offset, length))
        } else {
            Class::Hole
        }
    }

    fn compressed(&self, entry: u64) -> Class {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let descriptor = entry & ((1 << 62) - 1);
        let offset = descriptor & ((1 << offset_bits) - 1);
        let sectors = (descriptor >> offset_bits) + 1;
        let length = sectors * 512 - (offset & 511);
        // Bits from 56 on must be zero: such an offset is past the end of any file.
        let is_there = offset != 0 && offset < self.end() && !self.has_data_file;
        if is_there {
            Class::Compressed(self.place(offset, length))
        } else {
            Class::Hole
        }
    }

    fn subclusters(&self, host: Option<(u64, bool)>, bitmap_offset: u64) -> Class {
        let bitmap = self.u64(bitmap_offset);
        let length = self.cluster_bytes() / 32;
        let parts = (0..32_u64).map(|at| {
            let (is_allocated, is_zero) = (bitmap >> at & 1 == 1, bitmap >> (at + 32) & 1 == 1);
            match (is_allocated, is_zero, host) {
                (true, true, _) | (true, false, None | Some((_, false))) => Class::Hole,
                (true, false, Some((offset, true))) => self.data(offset + at * length, length),
                (false, true, _) => Class::Zero,
                (false, false, _) => Class::Unallocated,
            }
        });
        let parts: Vec<Class> = parts.collect();
        for whole in [Class::Unallocated, Class::Zero, Class::Hole] {
            if parts.iter().all(|part| *part == whole) {
                return whole;
            }
        }
        Class::Subclusters(parts)
    }

    /// Every entry of the snapshot table that has something to read.
    fn snapshots(&self) -> BTreeMap<TreeName, Tree> {
        let mut found = BTreeMap::new();
        let mut at = self.u64(64);
        if at == 0 || !self.is_cluster(at) {
            return found;
        }
        for _ in 0..self.u32(60).min(65_536) {
            let strings = at + 40 + u64::from(self.u32(at + 36));
            let (id_bytes, name_bytes) = (self.number(at + 12, 2), self.number(at + 14, 2));
            let end = strings + id_bytes + name_bytes;
            if end > self.bytes.len() as u64 {
                break;
            }
            let id = self.part(strings, id_bytes).to_vec();
            let name = self.part(strings + id_bytes, name_bytes).to_vec();
            // Behind the table lie other tables, and their words read as entries, too.
            let maps_nothing = self.u64(at) == 0 || self.u32(at + 8) == 0;
            let is_phantom = id.iter().all(|&byte| byte == 0) && maps_nothing;
            let tree = self.tree(self.u64(at), self.u32(at + 8).into(), self.facts(at));
            if let Some(tree) = tree.filter(|_| !is_phantom) {
                let mut number = 0;
                let key = |number| TreeName::Snapshot {
                    id: id.clone(),
                    name: name.clone(),
                    number,
                };
                while found.contains_key(&key(number)) {
                    number += 1;
                }
                found.insert(key(number), tree);
            }
            at = end.next_multiple_of(8);
        }
        found
    }

    /// Size of the VM state, and when the snapshot was taken.
    fn facts(&self, at: u64) -> Vec<u64> {
        let extra_bytes = self.u32(at + 36);
        let vm_state = if extra_bytes >= 8 {
            self.u64(at + 40)
        } else {
            self.u32(at + 32).into()
        };
        vec![vm_state, self.u64(at + 16), self.u64(at + 24)]
    }

    /// The first `length` bytes of a disk without compressed clusters: zeros where nothing is allocated.
    pub(crate) fn flat(&self, tree: &Tree, length: u64) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(length).unwrap_or(0)];
        for (guest, class) in &tree.clusters {
            let start = guest << self.cluster_bits;
            let parts = match class {
                Class::Subclusters(parts) => parts.as_slice(),
                one => std::slice::from_ref(one),
            };
            let part_bytes = self.cluster_bytes() / parts.len() as u64;
            for (at, part) in (start..)
                .step_by(usize::try_from(part_bytes).unwrap_or(1))
                .zip(parts)
            {
                let Class::Data(place) = part else { continue };
                let from = self.part(place.offset, place.bytes);
                let to = usize::try_from(at).ok().and_then(|at| disk.get_mut(at..));
                for (to, from) in to.unwrap_or_default().iter_mut().zip(from) {
                    *to = *from;
                }
            }
        }
        disk
    }
}
