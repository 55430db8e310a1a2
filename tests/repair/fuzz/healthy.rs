//! Healthy images, at random: what is damaged, and the truth that a repair is held against.
//!
//! Comes in: a source of random numbers. Goes out: a forged image of at most a megabyte. Never here: damage.

use crate::support::image_forge::{BitmapCluster, Forge, Forged, Random, SnapshotRecipe};

const MAX_BYTES: usize = 1 << 20;

/// An image, or nothing where chance made one that is too large to be damaged often.
pub(crate) fn image(random: &mut Random, seed: u64) -> Option<Forged> {
    if random.chance(25) {
        let image = Forged::random(seed);
        return (image.bytes.len() < MAX_BYTES).then_some(image);
    }
    let bits = random.pick(&[9_u32, 9, 10, 12, 12, 14]);
    let is_v2 = random.chance(20);
    let forge = Forge::new().cluster_bits(bits);
    let forge = if is_v2 {
        forge.version(2)
    } else {
        forge.refcount_order(random.pick(&[1, 2, 3, 4, 4, 4, 5, 6]))
    };
    let per_table = (1_u64 << bits) / 8;
    let size = random.pick(&[per_table / 2, per_table, per_table * 2, per_table * 3]);
    let size = size.max(20);
    let forge = forge.size(size << bits).refcount_headroom(random.below(12));
    let forge = with_guest_writes(forge, random, size, bits, is_v2);
    let forge = with_snapshots(forge, random, size, bits, is_v2);
    let forge = if !is_v2 && random.chance(30) {
        with_bitmaps(forge, random)
    } else {
        forge
    };
    Some(forge.build())
}

fn with_guest_writes(
    mut forge: Forge,
    random: &mut Random,
    size: u64,
    bits: u32,
    is_v2: bool,
) -> Forge {
    let writes = 4 + random.below(20);
    let is_scattered = random.chance(40);
    let mut guest = 0;
    for _ in 0..writes {
        guest = if is_scattered {
            random.below(size)
        } else {
            (guest + 1) % size
        };
        forge = match random.below(12) {
            0 if !is_v2 => forge.zero_allocated(guest),
            1 => forge.compressed(guest, 1 + random.below(1 << bits)),
            2 if !is_v2 => forge.zero_plain(guest),
            _ => forge.data(guest),
        };
    }
    forge
}

fn with_snapshots(
    mut forge: Forge,
    random: &mut Random,
    size: u64,
    bits: u32,
    is_v2: bool,
) -> Forge {
    for number in 1..=random.pick(&[0_u64, 1, 1, 1, 2]) {
        let id = number.to_string();
        forge = if random.chance(25) && !is_v2 {
            let mut recipe = SnapshotRecipe::new(&id, "vm");
            recipe.vm_state_bytes = (2 << bits) - 7;
            let first = forge.vm_state_start();
            let forge = forge.vm_state(2).snapshot_with(recipe);
            forge.unmap(first).unmap(first + 1)
        } else {
            forge.snapshot(&id, "snap")
        };
        if random.chance(60) {
            for _ in 0..=random.below(5) {
                forge = forge.data(random.below(size));
            }
        }
    }
    forge
}

fn with_bitmaps(forge: Forge, random: &mut Random) -> Forge {
    let fits = |bits: &u8| forge.bitmap_table_size(*bits) <= 4;
    let bits = (9..=31).find(fits).unwrap_or(31);
    let kinds = [
        BitmapCluster::Data,
        BitmapCluster::Data,
        BitmapCluster::AllOne,
    ];
    let flags = random.pick(&[0, 2]);
    let clusters = [BitmapCluster::Data, random.pick(&kinds)];
    let forge = forge.bitmap("b0", bits, flags, &clusters);
    if random.chance(40) {
        return forge.bitmap("b1", bits, 0, &[BitmapCluster::Data]);
    }
    forge
}
