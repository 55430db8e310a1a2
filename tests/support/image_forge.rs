//! The image forge: valid qcow2 images in memory, from a few lines of recipe.
//!
//! In comes a [`Forge`], a recipe of header settings and guest writes in the order they happened.
//! Out goes a [`Forged`]: the bytes of the image and a map of where everything lies in them, so
//! that a test can break one thing by name.
//!
//! What never happens here: no code of the library under test is used, so that both can be wrong
//! separately; nothing is read from disk, clock or environment, so that the same recipe gives the
//! same bytes; and no invalid image is made, a recipe that has no valid image panics. Damage is
//! done afterwards, to the `Forged`.
//!
//! ```ignore
//! let mut image = Forge::new().cluster_bits(12).data(0).snapshot("1", "before").data(0).build();
//! image.set_refcount(image.host_cluster(Tree::Active, 0), 0);
//! ```

#![allow(
    dead_code,
    unused_imports,
    reason = "every test binary, benchmark and fuzz target uses its own part of the forge"
)]

// The paths are spelled out so that the file can be included from anywhere with `#[path]`.
#[path = "image_forge/bitmaps.rs"]
mod bitmaps;
#[path = "image_forge/canvas.rs"]
mod canvas;
#[path = "image_forge/forged.rs"]
mod forged;
#[path = "image_forge/guest.rs"]
mod guest;
#[path = "image_forge/header.rs"]
mod header;
#[path = "image_forge/luks.rs"]
mod luks;
#[path = "image_forge/random.rs"]
mod random;
#[path = "image_forge/recipe.rs"]
mod recipe;
#[path = "image_forge/refcounts.rs"]
mod refcounts;
#[path = "image_forge/rules.rs"]
mod rules;
#[path = "image_forge/snapshots.rs"]
mod snapshots;

pub use bitmaps::{BitmapCluster, BitmapRecipe};
pub use forged::{Forged, Tree};
pub use header::{
    EXTENSION_BACKING_FORMAT, EXTENSION_BITMAPS, EXTENSION_DATA_FILE_NAME, EXTENSION_END,
    EXTENSION_FEATURE_NAMES, EXTENSION_LUKS,
};
pub use random::{Random, has_large_clusters};
pub use snapshots::SnapshotRecipe;

use canvas::Canvas;
use guest::GuestMap;
use luks::LuksArea;

pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
pub const INCOMPATIBLE_COMPRESSION_TYPE: u64 = 1 << 3;
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
pub const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
pub const AUTOCLEAR_RAW_DATA_FILE: u64 = 1 << 1;

/// The recipe of one image. Settings may come in any order; steps (guest writes, snapshots, gaps)
/// happen in the order they are given.
#[derive(Clone, Debug)]
pub struct Forge {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    size: u64,
    header_length: Option<u32>,
    incompatible_features: u64,
    compatible_features: u64,
    autoclear_features: u64,
    compression_type: u8,
    crypt_method: u32,
    luks: Option<LuksArea>,
    backing_file: Option<String>,
    backing_format: Option<String>,
    data_file_name: Option<String>,
    feature_names: Vec<(u8, u8, String)>,
    unknown_extensions: Vec<(u32, Vec<u8>)>,
    l1_size: u32,
    refcount_headroom_clusters: u64,
    refcount_table_clusters: u64,
    bitmaps: Vec<BitmapRecipe>,
    steps: Vec<Step>,
}

/// Something that happens to the image after its creation.
#[derive(Clone, Debug)]
enum Step {
    Data(u64),
    ZeroPlain(u64),
    ZeroAllocated(u64),
    Subclusters(u64, u32, u32),
    Compressed(u64, Vec<u8>),
    Unmap(u64),
    VmState(u64),
    Gap(u64),
    Snapshot(SnapshotRecipe),
}

/// The numbers that everything else is measured with, settled before the first step.
#[derive(Clone, Copy, Debug)]
struct Dimensions {
    cluster_bits: u32,
    cluster_size: u64,
    extended_l2: bool,
    data_file: bool,
    l2_entry_bytes: u64,
    l2_entry_count: u64,
    /// Entries of the active L1 table.
    l1_size: u32,
    /// How many compressed clusters may touch one host cluster before its refcount overflows.
    compressed_share_count: u64,
}

impl Default for Forge {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_bits: 16,
            refcount_order: 4,
            size: 64 << 20,
            header_length: None,
            incompatible_features: 0,
            compatible_features: 0,
            autoclear_features: 0,
            compression_type: 0,
            crypt_method: 0,
            luks: None,
            backing_file: None,
            backing_format: None,
            data_file_name: None,
            feature_names: Vec::new(),
            unknown_extensions: Vec::new(),
            l1_size: 0,
            refcount_headroom_clusters: 8,
            refcount_table_clusters: 1,
            bitmaps: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// From recipe to image.
impl Forge {
    /// A varied valid recipe; the same seed gives the same recipe for ever.
    pub fn random(seed: u64) -> Self {
        random::recipe(seed)
    }

    /// The first guest cluster of VM state, with the settings made so far.
    pub fn vm_state_start(&self) -> u64 {
        self.l1_entries_for_size() * self.l2_entry_count()
    }

    /// Entries a bitmap table must have, with the settings made so far.
    pub fn bitmap_table_size(&self, granularity_bits: u8) -> u64 {
        let bit_count = self.size.div_ceil(1 << granularity_bits);
        bit_count.div_ceil(8).div_ceil(1 << self.cluster_bits)
    }

    /// Builds the image.
    ///
    /// # Panics
    /// If no valid image has these settings.
    pub fn build(self) -> Forged {
        self.assert_legal();
        let dimensions = self.dimensions();
        let mut canvas = Canvas::new(dimensions.cluster_bits);
        let luks = self.luks.as_ref().map(|area| area.write(&mut canvas));
        let mut guest = GuestMap::new(dimensions, &mut canvas);
        for step in self.steps_on_guest_clusters() {
            guest.take(&step, &mut canvas);
        }
        let snapshots = snapshots::write_table(&self, &guest, &mut canvas);
        let bitmaps = bitmaps::write(&self, &mut canvas);

        // Every reference is known now: count, then write the tables whose COPIED flags say what
        // was counted. The refcount structure comes last because it counts itself too.
        guest.count_references(&mut canvas);
        guest.write_tables(&mut canvas);
        let refcounts = refcounts::write(&self, &mut canvas);
        let mut forged = Forged {
            bytes: Vec::new(),
            dimensions,
            header: Default::default(),
            luks,
            guest,
            snapshots,
            bitmaps,
            refcounts,
        };
        forged.header = header::write(&self, &forged, &mut canvas);
        forged.bytes = canvas.bytes;
        forged
    }

    fn dimensions(&self) -> Dimensions {
        let highest = self
            .steps_on_guest_clusters()
            .filter_map(|step| step.guest_cluster())
            .max();
        let l1_for_steps = highest.map_or(0, |cluster| cluster / self.l2_entry_count() + 1);
        let l1_size = self
            .l1_entries_for_size()
            .max(l1_for_steps)
            .max(self.l1_size.into());
        let refcount_max = refcounts::maximum(self.refcount_order);
        let tree_count = 1 + self.snapshot_recipes().count() as u64;
        assert!(
            tree_count <= refcount_max,
            "the refcounts are too narrow for so many snapshots"
        );
        Dimensions {
            cluster_bits: self.cluster_bits,
            cluster_size: 1 << self.cluster_bits,
            extended_l2: self.has(INCOMPATIBLE_EXTENDED_L2),
            data_file: self.has(INCOMPATIBLE_DATA_FILE),
            l2_entry_bytes: self.l2_entry_bytes(),
            l2_entry_count: self.l2_entry_count(),
            l1_size: u32::try_from(l1_size).expect("the L1 table is too large"),
            compressed_share_count: refcount_max / tree_count,
        }
    }

    fn has(&self, incompatible_bit: u64) -> bool {
        self.incompatible_features & incompatible_bit != 0
    }

    fn l2_entry_bytes(&self) -> u64 {
        if self.has(INCOMPATIBLE_EXTENDED_L2) {
            16
        } else {
            8
        }
    }

    fn l2_entry_count(&self) -> u64 {
        (1 << self.cluster_bits) / self.l2_entry_bytes()
    }

    fn l1_entries_for_size(&self) -> u64 {
        self.size
            .div_ceil(1 << self.cluster_bits)
            .div_ceil(self.l2_entry_count())
    }

    fn header_bytes(&self) -> u32 {
        if self.version == 2 {
            72
        } else {
            self.header_length.unwrap_or(112)
        }
    }

    fn snapshot_recipes(&self) -> impl Iterator<Item = &SnapshotRecipe> {
        self.steps.iter().filter_map(|step| match step {
            Step::Snapshot(recipe) => Some(recipe),
            _ => None,
        })
    }

    /// The steps, with VM state spelled out as the guest clusters it occupies.
    fn steps_on_guest_clusters(&self) -> impl Iterator<Item = Step> {
        let first = self.vm_state_start();
        self.steps.iter().flat_map(move |step| match step {
            Step::VmState(count) => (first..first + count).map(Step::Data).collect(),
            other => vec![other.clone()],
        })
    }
}

impl Step {
    fn guest_cluster(&self) -> Option<u64> {
        match *self {
            Self::Data(cluster)
            | Self::ZeroPlain(cluster)
            | Self::ZeroAllocated(cluster)
            | Self::Subclusters(cluster, ..)
            | Self::Compressed(cluster, _)
            | Self::Unmap(cluster) => Some(cluster),
            Self::VmState(_) | Self::Gap(_) | Self::Snapshot(_) => None,
        }
    }
}
