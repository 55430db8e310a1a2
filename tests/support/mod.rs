//! What the tests share: the image forge, big images, and the real tools.

#[expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "big images are also built by the benchmark; they stop where a shape makes no sense"
)]
pub(crate) mod big_images;
#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    clippy::default_trait_access,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::range_plus_one,
    clippy::unreachable,
    reason = "the forge is also built on its own; it stops where a recipe makes no sense"
)]
pub(crate) mod image_forge;
#[expect(unreachable_pub, reason = "shared by tests only")]
pub(crate) mod needs;
pub(crate) mod qemu;
#[expect(unreachable_pub, reason = "shared by tests only")]
pub(crate) mod sample;
