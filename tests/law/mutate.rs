//! Mutations: an image, one to three fields of its metadata changed.
//!
//! Comes in: a forged image and a source of numbers. Goes out: damaged bytes, and what was done in words. The mutator
//! picks a structure first and then a field in it, so that a header of twenty fields is hit as often as a thousand L2
//! entries. Never here: the contents of guest clusters, unless a change of the length cuts them off.

use crate::support::image_forge::{Forged, Random, Tree};

const HEADER_FIELDS: [(&str, u64); 18] = [
    ("backing_file_offset", 8),
    ("backing_file_size", 4),
    ("cluster_bits", 4),
    ("size", 8),
    ("crypt_method", 4),
    ("l1_size", 4),
    ("l1_table_offset", 8),
    ("refcount_table_offset", 8),
    ("refcount_table_clusters", 4),
    ("nb_snapshots", 4),
    ("snapshots_offset", 8),
    ("incompatible_features", 8),
    ("compatible_features", 8),
    ("autoclear_features", 8),
    ("refcount_order", 4),
    ("header_length", 4),
    ("compression_type", 1),
    ("padding", 4),
];
const SNAPSHOT_FIELDS: [(&str, u64); 7] = [
    ("l1_table_offset", 8),
    ("l1_size", 4),
    ("id_size", 2),
    ("name_size", 2),
    ("vm_state_size", 4),
    ("extra_data_size", 4),
    ("id", 1),
];
const BITMAP_FIELDS: [(&str, u64); 8] = [
    ("bitmap_table_offset", 8),
    ("bitmap_table_size", 4),
    ("flags", 4),
    ("type", 1),
    ("granularity_bits", 1),
    ("name_size", 2),
    ("extra_data_size", 4),
    ("name", 1),
];

/// Something to change: where, and how wide.
#[derive(Clone, Copy)]
struct Field {
    offset: u64,
    bytes: u64,
}

/// A structure's name and its fields.
type Structure = (&'static str, Vec<Field>);

/// Every structure of the image that has fields.
fn structures(image: &Forged, version: u32) -> Vec<Structure> {
    let mut all = vec![
        ("header", header_fields(image, version)),
        ("extensions", extension_fields(image)),
        ("L1 tables", l1_entries(image)),
        ("L2 tables", l2_entries(image)),
        ("refcount table", refcount_table_entries(image)),
        ("refcount blocks", refcounts(image)),
        ("snapshot table", snapshot_fields(image)),
        ("bitmaps", bitmap_fields(image)),
    ];
    all.retain(|(_, fields)| !fields.is_empty());
    all
}

fn header_fields(image: &Forged, version: u32) -> Vec<Field> {
    let known = if version == 2 {
        11
    } else {
        HEADER_FIELDS.len()
    };
    let header_bytes = image.extensions().first().map_or(0, |(_, offset)| *offset);
    let fields = HEADER_FIELDS.iter().take(known);
    let long_enough = fields
        .filter(|(name, _)| header_bytes > 104 || !matches!(*name, "compression_type" | "padding"));
    long_enough
        .map(|&(name, bytes)| Field {
            offset: image.field(name),
            bytes,
        })
        .collect()
}

/// Types, lengths, and the first words of the data.
fn extension_fields(image: &Forged) -> Vec<Field> {
    let mut fields = Vec::new();
    for &(_, offset) in image.extensions() {
        fields.extend([0, 4].map(|at| Field {
            offset: offset + at,
            bytes: 4,
        }));
        let data_bytes = u64::from(image.u32_at(offset + 4).min(24));
        fields.extend((0..data_bytes / 8).map(|word| Field {
            offset: offset + 8 + word * 8,
            bytes: 8,
        }));
    }
    fields
}

fn trees(image: &Forged) -> impl Iterator<Item = Tree> {
    let snapshots = (0..image.snapshot_count()).map(Tree::Snapshot);
    std::iter::once(Tree::Active).chain(snapshots)
}

fn words(offsets: impl Iterator<Item = u64>) -> Vec<Field> {
    offsets.map(|offset| Field { offset, bytes: 8 }).collect()
}

fn l1_entries(image: &Forged) -> Vec<Field> {
    let entries = trees(image).flat_map(|tree| {
        let count = u64::from(image.l1_size(tree)).min(8);
        (0..count).map(move |index| image.l1_entry(tree, index))
    });
    words(entries)
}

/// The entries in use and their neighbours, and the words behind them (subcluster bitmaps, where there are any).
fn l2_entries(image: &Forged) -> Vec<Field> {
    let entries = trees(image).flat_map(|tree| {
        let mapped = image.mapped_guest_clusters(tree);
        mapped.into_iter().flat_map(move |guest| {
            let entry = image.l2_entry(tree, guest);
            let is_last = (entry + 8).is_multiple_of(image.cluster_size());
            [entry, if is_last { entry } else { entry + 8 }]
        })
    });
    words(entries)
}

fn refcount_table_entries(image: &Forged) -> Vec<Field> {
    let used = image
        .refcount_blocks()
        .map(|(index, _)| image.refcount_table_entry(index));
    let last = image.refcount_blocks().map(|(index, _)| index).max();
    let next = last.unwrap_or(0) + 1;
    let has_next = (next * 8) < image.cluster_size();
    words(used.chain(has_next.then(|| image.refcount_table_entry(next))))
}

/// The counts of every cluster of the file, and of one behind it.
fn refcounts(image: &Forged) -> Vec<Field> {
    let blocks: Vec<u64> = image.refcount_blocks().map(|(_, offset)| offset).collect();
    let counted = (0..image.cluster_count()).filter(|&cluster| image.refcount(cluster) > 0);
    let mut fields: Vec<Field> = counted
        .map(|cluster| Field {
            offset: image.refcount_entry(cluster),
            bytes: 1,
        })
        .collect();
    fields.extend(words(blocks.into_iter()));
    fields
}

fn snapshot_fields(image: &Forged) -> Vec<Field> {
    let entries = (0..image.snapshot_count()).flat_map(|index| {
        SNAPSHOT_FIELDS.map(|(name, bytes)| Field {
            offset: image.snapshot_field(index, name),
            bytes,
        })
    });
    entries.collect()
}

fn bitmap_fields(image: &Forged) -> Vec<Field> {
    let entries = (0..image.bitmap_count()).flat_map(|index| {
        let table = Field {
            offset: image.bitmap_table_entry(index, 0),
            bytes: 8,
        };
        let fields = BITMAP_FIELDS.map(|(name, bytes)| Field {
            offset: image.bitmap_field(index, name),
            bytes,
        });
        fields.into_iter().chain([table, table])
    });
    entries.collect()
}

/// What the random mutations of an image are made from.
pub(crate) struct Mutator<'a> {
    image: &'a Forged,
    structures: Vec<Structure>,
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(image: &'a Forged) -> Self {
        let version = image.u32_at(4);
        Self {
            image,
            structures: structures(image, version),
        }
    }

    /// One damaged copy, and what was done to it.
    pub(crate) fn mutate(&self, random: &mut Random) -> (Vec<u8>, String) {
        let mut bytes = self.image.bytes.clone();
        let mut done = Vec::new();
        for _ in 0..random.pick(&[1, 1, 1, 2, 3]) {
            done.push(self.change(&mut bytes, random));
        }
        (bytes, done.join(", "))
    }

    /// Changes one thing, and says what.
    pub(crate) fn change(&self, bytes: &mut Vec<u8>, random: &mut Random) -> String {
        if random.chance(8) {
            self.change_length(bytes, random)
        } else {
            self.change_field(bytes, random)
        }
    }

    fn change_field(&self, bytes: &mut [u8], random: &mut Random) -> String {
        let (name, fields) = &self.structures[random.below(self.structures.len() as u64) as usize];
        let field = fields[random.below(fields.len() as u64) as usize];
        let start = field.offset as usize;
        let Some(place) = bytes.get_mut(start..start + field.bytes as usize) else {
            return format!("nothing in the {name}: it is cut off");
        };
        let before = place
            .iter()
            .fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
        let (how, after) = self.changed(before, field.bytes * 8, random);
        let all = after.to_be_bytes();
        place.copy_from_slice(&all[8 - field.bytes as usize..]);
        format!("{how} in the {name} at {start:#x}: {before:#x} to {after:#x}")
    }

    fn changed(&self, word: u64, bits: u64, random: &mut Random) -> (&'static str, u64) {
        let cluster = random.below(self.image.cluster_count() + 2) * self.image.cluster_size();
        let flags = random.pick(&[0, 1 << 63, word & 0xc000_0000_0000_0001]);
        match random.below(8) {
            0..=2 => ("bit flipped", word ^ 1 << random.below(bits)),
            3 => ("random word", random.next_u64()),
            4 => ("small number", random.below(20)),
            5 => (
                "step",
                word.wrapping_add(random.pick(&[1, u64::MAX, 512, 0x1000])),
            ),
            _ => ("other cluster", cluster | flags),
        }
    }

    fn change_length(&self, bytes: &mut Vec<u8>, random: &mut Random) -> String {
        let before = bytes.len() as u64;
        let cluster_size = self.image.cluster_size();
        let after = match random.below(4) {
            0 => before + random.below(2 * cluster_size.min(4096)),
            1 => before.saturating_sub(random.below(2 * cluster_size)),
            2 => random.below(before / cluster_size + 1) * cluster_size,
            _ => random.below(before + 1),
        };
        // What is left has a header.
        let after = after.max(112);
        bytes.resize(after as usize, 0);
        format!("length {before:#x} to {after:#x}")
    }
}
