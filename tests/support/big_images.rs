//! Big images: valid qcow2 images of any size as sparse files, by name.
//!
//! In comes the name of a [`Case`] and a [`Scale`]; out goes a [`Layout`], which knows by arithmetic where everything of
//! the image lies, writes it to a file table by table, and says what a checker must answer. Only metadata are written:
//! data clusters stay holes, so that an image of 10 TiB takes 2 GB of disk and says nothing about any guest.
//!
//! What never happens here: an image in memory (the largest thing held is one word or two for each L2 table), code of
//! the library under test, clock, environment or chance: the same case at the same scale is the same bytes for ever.
//!
//! ```ignore
//! let layout = Case::named("1tib-64k-random").unwrap().layout("1/64".parse().unwrap());
//! layout.write(&File::create("image.qcow2")?)?;
//! ```
//!
//! | file | answers |
//! |---|---|
//! | `case.rs` | which images there are |
//! | `layout.rs` | which host cluster is what |
//! | `history.rs` | which snapshot sees which version of an L2 table |
//! | `write.rs` | what the bytes are |
//! | `permutation.rs` | what "random order" is |

#![allow(
    dead_code,
    unused_imports,
    reason = "tests, benchmarks and the command each use their own part"
)]

// The paths are spelled out so that the file can be included from anywhere with `#[path]`.
#[path = "big_images/case.rs"]
mod case;
#[path = "big_images/history.rs"]
mod history;
#[path = "big_images/layout.rs"]
mod layout;
#[path = "big_images/permutation.rs"]
mod permutation;
#[path = "big_images/write.rs"]
mod write;

pub use case::{CASES, Case, Damage, Fill, Order, Scale, Shape};
pub use layout::{Expected, Layout};
