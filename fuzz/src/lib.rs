//! The properties of the tests, measured.
//!
//! Comes in: an input of a fuzzer. Goes out: nothing, or a panic that says which promise is broken: one of the properties
//! (`tests/properties/`), or a bound. Never here: a property of its own.

#![allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "the modules are the tests', which use more of them and have other lints"
)]

mod law;
#[path = "../../tests/properties/mod.rs"]
mod properties;
mod repair;
mod support;

use std::sync::Once;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use peak_alloc::PeakAlloc;

use properties::Bounds;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const MEBIBYTE: usize = 1 << 20;
/// What the work on an input may take beyond the input.
const MAX_MEMORY_BYTES: usize = 64 * MEBIBYTE;
/// What it may take of a processor, for each mebibyte of input that is begun.
const MAX_TIME: Duration = Duration::from_secs(1);

/// Time of the processor, so that a busy machine makes no difference.
fn used_time() -> Duration {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock_gettime(clock).expect("Linux has it").into()
}

/// Holds memory and time against the bounds.
struct Measured;

impl Bounds for Measured {
    fn hold<T>(&self, input_bytes: usize, work: impl FnOnce() -> T) -> T {
        MEMORY.reset_peak_usage();
        let memory_before = MEMORY.current_usage();
        let time_before = used_time();
        let result = work();
        let time = used_time().saturating_sub(time_before);
        let memory = MEMORY.peak_usage().saturating_sub(memory_before);
        assert!(
            memory <= MAX_MEMORY_BYTES,
            "{memory} bytes of memory for an input of {input_bytes}"
        );
        let mebibytes = u32::try_from(input_bytes.div_ceil(MEBIBYTE)).unwrap_or(u32::MAX);
        assert!(
            time <= MAX_TIME * mebibytes.max(1),
            "{time:?} for an input of {input_bytes} bytes"
        );
        result
    }
}

/// All work on the thread of the fuzzer: it sees what is covered, and the clock is that thread's.
fn use_one_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        pool.use_current_thread()
            .build_global()
            .expect("nobody has started threads");
    });
}

macro_rules! targets {
    ($($name:ident: $module:ident,)*) => {$(
        #[doc = concat!("See `tests/properties/", stringify!($module), ".rs`.")]
        pub fn $name(input: &[u8]) {
            use_one_thread();
            properties::$module::holds(input, &Measured);
        }
    )*};
}

targets! {
    parse: parse,
    check: check,
    repair: repair,
    undo_file: undo_file,
    json: plan_json,
}
