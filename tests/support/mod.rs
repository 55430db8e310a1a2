//! What the tests share: the real tools.

pub(crate) mod qemu;
