//! The JSON of a plan: changed, it is another plan.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qfsck_fuzz::json(input));
