//! Plan files, over any bytes: one that says anything else than the plan made now is not taken for it.
//!
//! Comes in: an input. Goes out: nothing, or a forgery that was accepted. Never here: planning itself; that is the business
//! of `repair`.

use std::path::Path;
use std::sync::OnceLock;

use qfsck::report::{PlanDocument, PlanFile, write_pretty};
use qfsck::{Image, Mode, Options, Progress, RepairOptions};
use serde_json::Value;

use super::Bounds;
use super::given::Given;
use super::repair::document;
use crate::support::image_forge::Random;

/// How many plans are made to be changed.
const PLANS: u64 = 32;
/// Longer plans say the same more often.
const MAX_PLAN_BYTES: usize = 6 << 10;
/// Changes of one plan.
const MAX_CHANGES: usize = 6;

/// Plan files are read and compared.
pub(crate) fn holds(input: &[u8], bounds: &impl Bounds) {
    if input.first() == Some(&b'{') {
        read(input, known(input.len() as u64 % PLANS), bounds);
        return;
    }
    let mut random = Random::from_tape(input);
    let known = known(random.below(PLANS));
    let mut text = known.text.clone();
    let mut changes = 0;
    while random.has_tape() && changes < MAX_CHANGES {
        change(&mut text, &mut random);
        changes += 1;
    }
    let is_taken = read(&text, known, bounds);
    assert!(is_taken || text != known.text, "the very plan is refused");
}

/// Whether the file is taken for the plan; one that says something else must not be.
fn read(text: &[u8], known: &Known, bounds: &impl Bounds) -> bool {
    bounds.hold(text.len().max(known.text.len()), || {
        let Ok(file) = PlanFile::decode(text) else {
            return false;
        };
        let is_taken = file.compare(&known.document).is_ok();
        if is_taken {
            let said: Value = serde_json::from_slice(text).expect("it was taken");
            assert_eq!(what_counts(said), what_counts(known.value.clone()));
        }
        is_taken
    })
}

/// All but the program's version, the file's name, and what nobody has defined of the image.
fn what_counts(mut document: Value) -> Value {
    if let Some(all) = document.as_object_mut() {
        all.remove("program-version");
        if let Some(image) = all.get_mut("image").and_then(Value::as_object_mut) {
            let counts = [
                "device",
                "inode",
                "block-device",
                "length",
                "length-after",
                "metadata-digest",
            ];
            image.retain(|key, _| counts.contains(&key.as_str()));
        }
    }
    document
}

/// A byte becomes another, is left out or doubled, or a piece stands where another stood.
fn change(text: &mut Vec<u8>, random: &mut Random) {
    if text.is_empty() {
        return;
    }
    let at = random.below((text.len() as u64).min(1 << 16)) as usize;
    match random.below(6) {
        0 => text[at] = random.next_u64() as u8,
        // Most of a plan is digits.
        1 => text[at] = random.pick(b"0123456789abcdef\",:[]{}-+.eE\\ ntu"),
        2 => {
            text.remove(at);
        }
        3 => text.insert(at, text[at]),
        4 => text.truncate(at),
        _ => {
            let from = random.below((text.len() as u64).min(1 << 16)) as usize;
            let count = random.below(64) as usize;
            let piece: Vec<u8> = text[from..].iter().take(count).copied().collect();
            let end = (at + piece.len()).min(text.len());
            text.splice(at..end, piece);
        }
    }
}

/// A plan as a document and as text.
struct Known {
    document: PlanDocument,
    text: Vec<u8>,
    value: Value,
}

fn known(number: u64) -> &'static Known {
    static ALL: [OnceLock<Known>; PLANS as usize] = [const { OnceLock::new() }; PLANS as usize];
    ALL[number as usize].get_or_init(|| {
        // Until the damage is such that something is planned.
        let mut random = Random::new(number);
        loop {
            let input: Vec<u8> = (0..24).map(|_| random.next_u64() as u8).collect();
            let bytes = Given::of(&input).bytes;
            let wishes = RepairOptions::new(Mode::All);
            let Ok(image) = Image::open(bytes.as_slice(), Path::new("input")) else {
                continue;
            };
            let plan = qfsck::plan(&image, &wishes, Options::default(), &Progress::default())
                .expect("memory can be read");
            if plan.is_empty() {
                continue;
            }
            let document = document(&bytes, &wishes, &plan);
            let mut text = Vec::new();
            write_pretty(&document, &mut text).expect("memory takes it");
            if text.len() > MAX_PLAN_BYTES {
                continue;
            }
            let value = serde_json::from_slice(&text).expect("it is JSON");
            return Known {
                document,
                text,
                value,
            };
        }
    })
}
