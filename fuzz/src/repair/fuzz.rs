//! What of `tests/repair/fuzz.rs` the properties name.

#[path = "../../../tests/repair/fuzz/damage.rs"]
pub(crate) mod damage;
#[path = "../../../tests/repair/fuzz/healthy.rs"]
pub(crate) mod healthy;
#[path = "../../../tests/repair/fuzz/view.rs"]
pub(crate) mod view;
