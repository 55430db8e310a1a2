//! The whole check, over any bytes and over forged images that were changed where their tables are.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qfsck_fuzz::check(input));
