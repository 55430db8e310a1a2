//! Check, plan, apply, check, undo: never worse, and every byte comes back.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qfsck_fuzz::repair(input));
