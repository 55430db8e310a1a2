//! One realistic damage, at random: a field that is wrong, a sector that is lost or stale, a cluster with another's
//! content, a file that is cut off, a header from before the last snapshot.
//!
//! Comes in: the bytes of a forged image, and the map of where everything lies in them. Goes out: the damaged bytes and
//! what was done, in words. Never here: a damage that no disk and no program makes.

use std::collections::BTreeMap;

use super::view::{COPIED, Kind, View};
use crate::support::image_forge::{Forged, Random, Tree};

const SECTOR: u64 = 512;
/// Fields of L1 tables, refcount tables and extensions beyond these are left alone.
const MAX_L1_ENTRIES: u64 = 6;
const MAX_EXTENSION_BYTES: u64 = 24;

/// A number in the image that may be damaged.
struct Field {
    name: String,
    offset: u64,
    bytes: u64,
}

/// Where an image can be damaged.
pub(crate) struct Targets<'a> {
    image: &'a Forged,
    /// By name without numbers, so that each kind of field is hit as often as another.
    fields: BTreeMap<String, Vec<Field>>,
    /// Clusters of metadata, by kind.
    metadata: BTreeMap<Kind, Vec<u64>>,
}

impl<'a> Targets<'a> {
    pub(crate) fn of(image: &'a Forged, truth: &View<'_>) -> Self {
        let mut fields: BTreeMap<String, Vec<Field>> = BTreeMap::new();
        for (name, offset, bytes) in every_field(image) {
            let class = name.chars().filter(|it| !it.is_ascii_digit()).collect();
            fields.entry(class).or_default().push(Field {
                name,
                offset,
                bytes,
            });
        }
        let mut metadata: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
        for (kind, cluster) in truth.references().into_values() {
            let known = metadata.entry(kind).or_default();
            if !kind.is_guest_data() && !known.contains(&cluster) {
                known.push(cluster);
            }
        }
        metadata.retain(|_, clusters| !clusters.is_empty());
        Self {
            image,
            fields,
            metadata,
        }
    }

    /// Does one damage, and says what; or nothing, where chance hit nothing.
    pub(crate) fn damage(&self, bytes: &mut Vec<u8>, random: &mut Random) -> Option<String> {
        match random.below(20) {
            0..=9 => self.change_field(bytes, random),
            10..=12 => self.lose_sector(bytes, random),
            13 => self.fill_sector(bytes, random),
            14..=15 => self.lose_words(bytes, random),
            16 => self.misplace_sector(bytes, random),
            17 => self.misplace_cluster(bytes, random),
            18 => Some(self.truncate(bytes, random)),
            _ => self.forget_snapshot(bytes),
        }
    }

    fn change_field(&self, bytes: &mut [u8], random: &mut Random) -> Option<String> {
        let of_class = pick(self.fields.values(), random)?;
        let field = pick(of_class.iter(), random)?;
        let place = slice(bytes, field.offset, field.bytes)?;
        let was = place
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let bits = field.bytes * 8;
        let mask = u64::MAX >> (64 - bits);
        let is = match random.below(6) {
            0..=2 => was ^ 1 << random.below(bits),
            3 => 0,
            4 if bits == 64 => {
                let cluster = random.below(self.image.cluster_count() + 1);
                (cluster * self.image.cluster_size()) | (was & COPIED)
            }
            4 => was.wrapping_sub(1) & mask,
            _ if random.chance(50) => was ^ 1 << random.below(bits) ^ 1 << random.below(bits),
            _ => was.wrapping_add(1) & mask,
        };
        let new = is.to_be_bytes();
        let start = new.len() - place.len();
        place.copy_from_slice(new.get(start..)?);
        Some(format!("{} {was:#x}->{is:#x}", field.name))
    }

    /// A sector of metadata that has anything in it, and not the first of the header.
    fn sector(&self, bytes: &[u8], random: &mut Random) -> Option<(u64, Kind)> {
        for _ in 0..50 {
            let (&kind, clusters) = pick(self.metadata.iter(), random)?;
            let cluster = *pick(clusters.iter(), random)?;
            let size = self.image.cluster_size();
            let offset = cluster * size + random.below(size / SECTOR) * SECTOR;
            let start = usize::try_from(offset).ok()?;
            let sector = bytes.get(start..start + 512);
            let has_content = sector.is_some_and(|it| it.iter().any(|&byte| byte != 0));
            if has_content && offset > 0 {
                return Some((offset, kind));
            }
        }
        None
    }

    fn lose_sector(&self, bytes: &mut [u8], random: &mut Random) -> Option<String> {
        let (offset, kind) = self.sector(bytes, random)?;
        slice(bytes, offset, SECTOR)?.fill(0);
        Some(format!("zeros in sector {offset:#x} of {kind:?}"))
    }

    fn fill_sector(&self, bytes: &mut [u8], random: &mut Random) -> Option<String> {
        let (offset, kind) = self.sector(bytes, random)?;
        let pattern = random.pick(&[Some(0xff), Some(0x55), None]);
        for byte in slice(bytes, offset, SECTOR)? {
            *byte = pattern.unwrap_or_else(|| random.next_u64().to_be_bytes()[7]);
        }
        Some(format!(
            "garbage {pattern:?} in sector {offset:#x} of {kind:?}"
        ))
    }

    /// A run of words goes back to the zeros it once was.
    fn lose_words(&self, bytes: &mut [u8], random: &mut Random) -> Option<String> {
        let (offset, kind) = self.sector(bytes, random)?;
        let from = random.below(64);
        let count = 1 + random.below(64 - from);
        slice(bytes, offset + from * 8, count * 8)?.fill(0);
        Some(format!(
            "stale words {from}+{count} in sector {offset:#x} of {kind:?}"
        ))
    }

    fn misplace_sector(&self, bytes: &mut [u8], random: &mut Random) -> Option<String> {
        let (to, kind) = self.sector(bytes, random)?;
        let (from, of) = self.sector(bytes, random)?;
        let content = slice(bytes, from, SECTOR)?.to_vec();
        slice(bytes, to, SECTOR)?.copy_from_slice(&content);
        Some(format!(
            "sector {to:#x} of {kind:?} has {from:#x} of {of:?}"
        ))
    }

    fn misplace_cluster(&self, bytes: &mut [u8], random: &mut Random) -> Option<String> {
        let (kind, clusters) = pick(self.metadata.iter(), random)?;
        let to = *pick(clusters.iter(), random)?;
        let from = random.below(self.image.cluster_count());
        let size = self.image.cluster_size();
        if to == 0 {
            return None;
        }
        let content = slice(bytes, from * size, size)?.to_vec();
        slice(bytes, to * size, size)?.copy_from_slice(&content);
        Some(format!("cluster {to} ({kind:?}) has content of {from}"))
    }

    fn truncate(&self, bytes: &mut Vec<u8>, random: &mut Random) -> String {
        let was = bytes.len() as u64;
        let size = self.image.cluster_size();
        let shortest = 600.min(was);
        let is = match random.below(3) {
            0 => was.saturating_sub(random.below(size * 3)).max(shortest),
            1 => ((was / size).saturating_sub(random.below(4)) * size).max(shortest),
            _ => shortest + random.below((was - shortest).max(1)),
        };
        bytes.truncate(usize::try_from(is).unwrap_or(bytes.len()));
        format!("truncated {was:#x}->{is:#x}")
    }

    /// The header's sector from before the last snapshot was made.
    fn forget_snapshot(&self, bytes: &mut [u8]) -> Option<String> {
        let count = self.image.snapshot_count().checked_sub(1)?;
        let field = self.image.field("nb_snapshots");
        let number = u32::try_from(count).ok()?;
        slice(bytes, field, 4)?.copy_from_slice(&number.to_be_bytes());
        if count == 0 {
            slice(bytes, self.image.field("snapshots_offset"), 8)?.fill(0);
        }
        Some(format!("stale header: {count} snapshots"))
    }
}

fn pick<T>(mut choices: impl ExactSizeIterator<Item = T>, random: &mut Random) -> Option<T> {
    let count = choices.len() as u64;
    if count == 0 {
        return None;
    }
    choices.nth(usize::try_from(random.below(count)).ok()?)
}

fn slice(bytes: &mut [u8], offset: u64, length: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get_mut(start..end)
}

/// Name, offset and bytes of every field that is worth damaging.
fn every_field(image: &Forged) -> Vec<(String, u64, u64)> {
    let mut fields = Vec::new();
    header_fields(image, &mut fields);
    mapping_fields(image, &mut fields);
    snapshot_fields(image, &mut fields);
    refcount_fields(image, &mut fields);
    bitmap_fields(image, &mut fields);
    for &(kind, offset) in image.extensions() {
        fields.push((format!("extension {kind:x} type"), offset, 4));
        fields.push((format!("extension {kind:x} length"), offset + 4, 4));
        let length = u64::from(image.u32_at(offset + 4)).min(MAX_EXTENSION_BYTES);
        // Letters keep the words of an extension apart from each other.
        for (word, letter) in (0..length / 8).zip(["a", "b", "c"]) {
            let name = format!("extension {kind:x} word {letter}");
            fields.push((name, offset + 8 + word * 8, 8));
        }
    }
    fields
}

fn header_fields(image: &Forged, fields: &mut Vec<(String, u64, u64)>) {
    let always = [
        ("l1_size", 4),
        ("l1_table_offset", 8),
        ("refcount_table_offset", 8),
        ("refcount_table_clusters", 4),
        ("nb_snapshots", 4),
        ("snapshots_offset", 8),
        ("size", 8),
        ("crypt_method", 4),
        ("cluster_bits", 4),
    ];
    let later = [
        ("incompatible_features", 8),
        ("autoclear_features", 8),
        ("refcount_order", 4),
        ("header_length", 4),
    ];
    let is_v3 = image.u32_at(4) == 3;
    let later = later.into_iter().filter(|_| is_v3);
    for (name, bytes) in always.into_iter().chain(later) {
        fields.push((format!("header {name}"), image.field(name), bytes));
    }
}

fn mapping_fields(image: &Forged, fields: &mut Vec<(String, u64, u64)>) {
    let snapshots = (0..image.snapshot_count()).map(Tree::Snapshot);
    for tree in std::iter::once(Tree::Active).chain(snapshots) {
        for index in 0..u64::from(image.l1_size(tree)).min(MAX_L1_ENTRIES) {
            fields.push((
                format!("{tree:?} L1[{index}]"),
                image.l1_entry(tree, index),
                8,
            ));
        }
        for guest in image.mapped_guest_clusters(tree) {
            fields.push((
                format!("{tree:?} L2[{guest}]"),
                image.l2_entry(tree, guest),
                8,
            ));
        }
    }
}

fn snapshot_fields(image: &Forged, fields: &mut Vec<(String, u64, u64)>) {
    let names = [
        ("l1_table_offset", 8),
        ("l1_size", 4),
        ("id_size", 2),
        ("name_size", 2),
        ("vm_state_size", 4),
        ("extra_data_size", 4),
        ("id", 1),
        ("disk_size", 8),
    ];
    for index in 0..image.snapshot_count() {
        let extra_bytes = image.u32_at(image.snapshot_field(index, "extra_data_size"));
        for (name, bytes) in names {
            if name != "disk_size" || extra_bytes >= 16 {
                let offset = image.snapshot_field(index, name);
                fields.push((format!("snapshot {index} {name}"), offset, bytes));
            }
        }
    }
}

fn refcount_fields(image: &Forged, fields: &mut Vec<(String, u64, u64)>) {
    for (index, _) in image.refcount_blocks() {
        let offset = image.refcount_table_entry(index);
        fields.push((format!("refcount table [{index}]"), offset, 8));
    }
    for cluster in (0..image.cluster_count()).filter(|&cluster| image.refcount(cluster) > 0) {
        let offset = image.refcount_entry(cluster);
        fields.push((format!("count [{cluster}]"), offset, 1));
    }
}

fn bitmap_fields(image: &Forged, fields: &mut Vec<(String, u64, u64)>) {
    let names = [
        ("bitmap_table_offset", 8),
        ("bitmap_table_size", 4),
        ("flags", 4),
        ("name_size", 2),
        ("extra_data_size", 4),
        ("granularity_bits", 1),
    ];
    for index in 0..image.bitmap_count() {
        for (name, bytes) in names {
            let offset = image.bitmap_field(index, name);
            fields.push((format!("bitmap {index} {name}"), offset, bytes));
        }
        let offset = image.bitmap_table_entry(index, 0);
        fields.push((format!("bitmap {index} table entry"), offset, 8));
    }
}
