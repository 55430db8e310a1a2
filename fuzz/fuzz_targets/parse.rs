//! Every decoder, over any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qfsck_fuzz::parse(input));
