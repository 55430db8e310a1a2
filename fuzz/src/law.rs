//! What of `tests/law.rs` the properties name.

#[path = "../../tests/law/bytes.rs"]
mod bytes;
#[path = "../../tests/law/model.rs"]
pub(crate) mod model;
#[path = "../../tests/law/mutate.rs"]
pub(crate) mod mutate;
