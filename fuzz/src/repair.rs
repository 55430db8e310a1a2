//! What of `tests/repair.rs` the properties name.

pub(crate) mod fuzz;
#[path = "../../tests/repair/guest.rs"]
pub(crate) mod guest;
