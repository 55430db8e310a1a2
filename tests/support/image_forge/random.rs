//! Random recipes: every feature of the forge, mixed by a seed. Images stay small, because
//! property tests want many of them.

use super::{BitmapCluster, Forge, SnapshotRecipe, refcounts};

/// Splitmix64: small, well mixed, and the same on every machine for ever. Before it comes a tape, if there is one.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    /// Choices somebody else made, the next one last.
    tape: Vec<u8>,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            tape: Vec::new(),
        }
    }

    /// Takes its choices from these bytes as long as there are any.
    pub fn from_tape(bytes: &[u8]) -> Self {
        Self {
            state: 0,
            tape: bytes.iter().rev().copied().collect(),
        }
    }

    /// Whether bytes of the tape are left.
    pub fn has_tape(&self) -> bool {
        !self.tape.is_empty()
    }

    /// What is left of the tape; at most so many bytes.
    pub fn take_tape(&mut self, most_bytes: usize) -> Vec<u8> {
        let kept = self.tape.len().saturating_sub(most_bytes);
        let mut taken = self.tape.split_off(kept);
        taken.reverse();
        taken
    }

    pub fn next_u64(&mut self) -> u64 {
        if self.has_tape() {
            let taken = self.take_tape(8);
            return taken
                .iter()
                .fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // No more of the tape than it takes, so that its bytes mean the same after one of them has changed.
        if self.has_tape() && bound <= 1 << 16 {
            let taken = self.take_tape(if bound <= 1 << 8 { 1 } else { 2 });
            let number = taken
                .iter()
                .fold(0, |word, &byte| word << 8 | u64::from(byte));
            return number % bound;
        }
        self.next_u64() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

pub(super) fn recipe(seed: u64) -> Forge {
    let mut random = Random::new(seed);
    let forge = with_shape(&mut random);
    let forge = with_header_details(forge, &mut random);
    let forge = with_files_and_keys(forge, &mut random);
    let forge = with_guest_content(forge, &mut random);
    with_bitmaps(forge, &mut random)
}

/// Whether the image of a seed has clusters of more than 16 KiB, and so several hundred kilobytes.
pub fn has_large_clusters(seed: u64) -> bool {
    with_shape(&mut Random::new(seed)).cluster_bits > 14
}

/// Version, sizes and widths. Large clusters are rare: they cost time, not insight.
fn with_shape(random: &mut Random) -> Forge {
    let cluster_bits = match random.below(20) {
        0 => 21,
        1 => 17 + random.below(4) as u32,
        2..=7 => 14 + random.below(3) as u32,
        8..=13 => 9,
        _ => 10 + random.below(4) as u32,
    };
    let mut forge = Forge::new().cluster_bits(cluster_bits);
    if random.chance(15) {
        forge = forge.version(2);
    } else {
        forge = forge.refcount_order(random.below(7) as u32);
        if cluster_bits >= 14 && random.chance(40) {
            forge = forge.extended_l2();
        }
    }
    // Up to three and a half L2 tables, ending anywhere within a cluster.
    let table_reach_sectors = forge.l2_entry_count() << (cluster_bits - 9);
    let size_sectors = 1 + random.below(table_reach_sectors * 7 / 2);
    forge.size(size_sectors * 512)
}

fn with_header_details(mut forge: Forge, random: &mut Random) -> Forge {
    if random.chance(20) {
        forge = forge.unknown_extension(0x7573_6572, b"kept as it is");
    }
    if random.chance(15) {
        let needed = forge.l1_entries_for_size() as u32;
        forge = forge.l1_size(needed + random.below(80) as u32);
    }
    if random.chance(15) {
        forge = forge.refcount_table_clusters(1 + random.below(3));
    }
    forge = forge.refcount_headroom(random.below(12));
    if forge.version == 2 {
        return forge;
    }
    if random.chance(10) {
        forge = forge.dirty();
    }
    if random.chance(10) {
        forge = forge.corrupt();
    }
    if random.chance(30) {
        forge = forge.lazy_refcounts();
    }
    if random.chance(10) {
        forge = forge.compatible(1 << 40).autoclear(1 << 17);
    }
    if random.chance(30) {
        forge = forge
            .feature_name(0, 0, "dirty bit")
            .feature_name(1, 0, "lazy refcounts");
    }
    if random.chance(25) {
        forge.compression_type(1)
    } else {
        let header_length = random.pick(&[104, 112, 112, 120, 136]);
        forge.header_length(header_length)
    }
}

/// Backing file, data file and encryption, which exclude some others.
fn with_files_and_keys(mut forge: Forge, random: &mut Random) -> Forge {
    if forge.version == 3 && random.chance(12) {
        forge = forge.data_file(Some("data.raw"));
        if random.chance(50) {
            return forge.data_file_raw();
        }
    }
    if random.chance(25) {
        forge = forge.backing_file("backing.raw");
        if random.chance(70) {
            forge = forge.backing_format("raw");
        }
    }
    match random.below(10) {
        0 => forge.crypt_method(1),
        1 => forge.luks(2 + random.below(3)),
        _ => forge,
    }
}

fn with_guest_content(mut forge: Forge, random: &mut Random) -> Forge {
    let step_count = match forge.cluster_bits {
        0..=12 => random.below(60),
        13..=16 => random.below(25),
        _ => random.below(8),
    };
    let refcount_max = refcounts::maximum(forge.refcount_order);
    let snapshot_max = if forge.has(super::INCOMPATIBLE_DATA_FILE) {
        0
    } else {
        3.min(refcount_max - 1)
    };
    let mut snapshot_count = 0;
    let mut guest = 0;
    for _ in 0..step_count {
        let disk_clusters = forge.size.div_ceil(1 << forge.cluster_bits);
        let next = if random.chance(60) {
            guest + 1
        } else {
            random.next_u64()
        };
        guest = next % disk_clusters;
        if snapshot_count < snapshot_max && random.chance(12) {
            snapshot_count += 1;
            forge = with_snapshot(forge, snapshot_count, random);
        } else if random.chance(6) {
            // Long enough, at times, to leave a refcount block out; a megabyte at most.
            let per_block = refcounts::block_entry_count(forge.cluster_bits, forge.refcount_order);
            let longest = (per_block * 3).min((1 << 20) >> forge.cluster_bits) + 3;
            forge = forge.gap(1 + random.below(longest));
        } else {
            forge = with_guest_cluster(forge, guest, random);
        }
    }
    forge
}

fn with_guest_cluster(forge: Forge, guest: u64, random: &mut Random) -> Forge {
    match random.below(10) {
        0 if forge.version == 3 => forge.zero_plain(guest),
        1 if forge.version == 3 => forge.zero_allocated(guest),
        2..=4 if !forge.has(super::INCOMPATIBLE_DATA_FILE) => {
            let cluster_size = 1 << forge.cluster_bits;
            forge.compressed(guest, 1 + random.below(cluster_size))
        }
        5..=7 if forge.has(super::INCOMPATIBLE_EXTENDED_L2) => {
            let alloc_mask = random.next_u64() as u32;
            forge.subclusters(guest, alloc_mask, random.next_u64() as u32 & !alloc_mask)
        }
        8 => forge.unmap(guest),
        _ => forge.data(guest),
    }
}

/// A snapshot, every third with VM state, which the active tree lets go of afterwards.
fn with_snapshot(mut forge: Forge, number: u64, random: &mut Random) -> Forge {
    let mut snapshot =
        SnapshotRecipe::new(&number.to_string(), &format!("random snapshot {number}"));
    if forge.version == 3 {
        snapshot.extra_data_bytes = Some(random.pick(&[16, 24, 24, 40]));
    }
    if !random.chance(33) {
        return forge.snapshot_with(snapshot);
    }
    let cluster_count = 1 + random.below(3);
    snapshot.vm_state_bytes = (cluster_count << forge.cluster_bits) - 7;
    forge = forge.vm_state(cluster_count).snapshot_with(snapshot);
    let first = forge.vm_state_start();
    (first..first + cluster_count).fold(forge, Forge::unmap)
}

/// Bitmaps with a table of a few entries at most.
fn with_bitmaps(mut forge: Forge, random: &mut Random) -> Forge {
    if forge.version == 2 || !random.chance(30) {
        return forge;
    }
    for number in 0..1 + random.below(3) {
        let finest = (9..=31)
            .find(|&bits| forge.bitmap_table_size(bits) <= 4)
            .unwrap_or(31);
        let granularity_bits = finest + random.below(u64::from(32 - finest)) as u8;
        let kinds = [
            BitmapCluster::AllZero,
            BitmapCluster::AllOne,
            BitmapCluster::Data,
        ];
        let entries = [
            random.pick(&kinds),
            random.pick(&kinds),
            random.pick(&kinds),
        ];
        let flags = random.pick(&[0, 1, 2, 3]);
        forge = forge.bitmap(
            &format!("bitmap {number}"),
            granularity_bits,
            flags,
            &entries,
        );
    }
    forge
}
