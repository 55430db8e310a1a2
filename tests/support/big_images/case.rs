//! Which images there are: a table of named shapes.

use std::str::FromStr;

use super::layout::Layout;

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// An image by name.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    /// What it stands for, in a line.
    pub title: &'static str,
    /// Measured with a cold page cache.
    pub cold: bool,
    pub shape: Shape,
}

/// What makes one image different from another.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended_l2: bool,
    pub virtual_bytes: u64,
    pub fill: Fill,
    pub order: Order,
    pub snapshots: u32,
    /// A file of this length, with one data cluster at its far end.
    pub tail_bytes: Option<u64>,
    pub damage: Damage,
}

/// Which guest clusters have a host cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Nothing,
    /// Runs of 16 clusters, one somewhere in every 32.
    Half,
    Full,
    /// All, in less than a third of a cluster each, packed without regard to sectors.
    Compressed,
}

/// Where data clusters lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As a guest leaves it that writes its disk from front to back: each L2 table, then its data.
    InOrder,
    /// As a guest leaves it that writes all over its disk: L2 tables early in the file, data clusters anywhere.
    Random,
}

/// What is wrong with the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    None,
    /// Every sixteenth data cluster has lost its L2 entry.
    Leaks,
    /// Every sixteenth L2 entry lacks its COPIED flag.
    CopiedMissing,
    /// The refcount table is all zeros; nothing knows where the refcount blocks are.
    RefcountTableLost,
}

/// By how much an image is smaller than its case says, written `1/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub divisor: u64,
}

impl Scale {
    pub const FULL: Self = Self { divisor: 1 };
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let divisor = if text == "1" {
            Some(1)
        } else {
            text.strip_prefix("1/")
                .and_then(|digits| digits.parse().ok())
        };
        match divisor {
            Some(divisor @ 1..=4096) => Ok(Self { divisor }),
            _ => Err(format!("a scale is 1 or 1/2 to 1/4096, not {text}")),
        }
    }
}

/// What most of them are.
const COMMON: Shape = Shape {
    cluster_bits: 16,
    refcount_order: 4,
    extended_l2: false,
    virtual_bytes: TIB,
    fill: Fill::Full,
    order: Order::InOrder,
    snapshots: 0,
    tail_bytes: None,
    damage: Damage::None,
};

const fn case(name: &'static str, title: &'static str, shape: Shape) -> Case {
    Case {
        name,
        title,
        cold: false,
        shape,
    }
}

/// All of them, in the order they are shown.
pub const CASES: [Case; 21] = [
    Case {
        cold: true,
        ..case(
            "boot-20gib",
            "20 GiB, half full, nothing in the page cache",
            Shape {
                virtual_bytes: 20 * GIB,
                fill: Fill::Half,
                ..COMMON
            },
        )
    },
    case("1tib-64k", "1 TiB, 64 KiB clusters, in order, full", COMMON),
    case(
        "1tib-64k-random",
        "1 TiB, 64 KiB clusters, random host order, full",
        Shape {
            order: Order::Random,
            ..COMMON
        },
    ),
    case(
        "1tib-64k-half",
        "1 TiB, 64 KiB clusters, in order, half full",
        Shape {
            fill: Fill::Half,
            ..COMMON
        },
    ),
    case(
        "1tib-64k-half-random",
        "1 TiB, 64 KiB clusters, random host order, half full",
        Shape {
            fill: Fill::Half,
            order: Order::Random,
            ..COMMON
        },
    ),
    case(
        "10tib-64k",
        "10 TiB, 64 KiB clusters, in order, full",
        Shape {
            virtual_bytes: 10 * TIB,
            ..COMMON
        },
    ),
    case(
        "256gib-4k",
        "256 GiB, 4 KiB clusters, in order, full",
        Shape {
            cluster_bits: 12,
            virtual_bytes: 256 * GIB,
            ..COMMON
        },
    ),
    case(
        "256gib-4k-random",
        "256 GiB, 4 KiB clusters, random host order, full",
        Shape {
            cluster_bits: 12,
            virtual_bytes: 256 * GIB,
            order: Order::Random,
            ..COMMON
        },
    ),
    case(
        "16gib-512b",
        "16 GiB, 512 byte clusters, in order, full",
        Shape {
            cluster_bits: 9,
            virtual_bytes: 16 * GIB,
            ..COMMON
        },
    ),
    case(
        "snapshots-50",
        "200 GiB, 50 snapshots, 5 % of the L2 tables diverge after each",
        Shape {
            virtual_bytes: 200 * GIB,
            snapshots: 50,
            ..COMMON
        },
    ),
    case(
        "snapshots-500",
        "20 GiB, 500 snapshots, 5 % of the L2 tables diverge after each",
        Shape {
            virtual_bytes: 20 * GIB,
            snapshots: 500,
            ..COMMON
        },
    ),
    case(
        "compressed",
        "1 TiB, 64 KiB clusters, all compressed",
        Shape {
            fill: Fill::Compressed,
            ..COMMON
        },
    ),
    case(
        "extended-l2",
        "1 TiB, 64 KiB clusters, extended L2 entries",
        Shape {
            extended_l2: true,
            ..COMMON
        },
    ),
    case(
        "refcount-1-bit",
        "1 TiB, 64 KiB clusters, refcounts of 1 bit",
        Shape {
            refcount_order: 0,
            ..COMMON
        },
    ),
    case(
        "refcount-64-bit",
        "1 TiB, 64 KiB clusters, refcounts of 64 bits",
        Shape {
            refcount_order: 6,
            ..COMMON
        },
    ),
    case(
        "nothing-64tib",
        "64 TiB, nothing allocated",
        Shape {
            virtual_bytes: 64 * TIB,
            fill: Fill::Nothing,
            ..COMMON
        },
    ),
    case(
        "sparse-tail",
        "1 TiB, and one cluster at the end of a file of 16 TiB",
        Shape {
            // One cluster short, which is where the largest file of many file systems ends.
            tail_bytes: Some(16 * TIB - 64 * KIB),
            ..COMMON
        },
    ),
    case(
        "leaks",
        "1 TiB, 1,048,576 leaked clusters, none beside another",
        Shape {
            damage: Damage::Leaks,
            ..COMMON
        },
    ),
    case(
        "copied",
        "1 TiB, 1,048,576 L2 entries without their COPIED flag",
        Shape {
            damage: Damage::CopiedMissing,
            ..COMMON
        },
    ),
    case(
        "refcount-table-lost",
        "256 GiB, the refcount table overwritten with zeros",
        Shape {
            virtual_bytes: 256 * GIB,
            damage: Damage::RefcountTableLost,
            ..COMMON
        },
    ),
    case(
        "leaks-131072",
        "128 GiB, 131,072 leaked clusters",
        Shape {
            virtual_bytes: 128 * GIB,
            damage: Damage::Leaks,
            ..COMMON
        },
    ),
];

impl Case {
    pub fn named(name: &str) -> Option<&'static Self> {
        CASES.iter().find(|case| case.name == name)
    }

    /// The image, with a virtual disk made smaller by the scale; at least one L2 table is left.
    pub fn layout(&self, scale: Scale) -> Layout {
        let mut shape = self.shape;
        shape.virtual_bytes /= scale.divisor;
        shape.tail_bytes = shape.tail_bytes.map(|bytes| bytes / scale.divisor);
        Layout::new(shape)
    }
}
