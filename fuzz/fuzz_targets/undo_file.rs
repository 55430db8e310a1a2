//! Undo files: damaged ones, and such as somebody forged who can compute checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qfsck_fuzz::undo_file(input));
