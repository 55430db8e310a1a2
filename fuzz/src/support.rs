//! What of `tests/support/` the properties name.

#[path = "../../tests/support/image_forge.rs"]
pub(crate) mod image_forge;
