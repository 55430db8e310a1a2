//! Plans: what a repair would do to every image of the corpus, rehearsed in memory.
//!
//! Comes in: the corpus. Goes out: nothing, or a plan that makes something worse. Never here: a write to an image.

use std::fs;
use std::path::Path;

use qfsck::{Image, Mode, Options, Plan, Progress};

use crate::corpus::cases;

fn plan_of(bytes: &[u8], mode: Mode) -> Option<Plan> {
    let image = Image::open(bytes.to_vec(), Path::new("image")).ok()?;
    let plan = qfsck::plan(&image, mode, Options::default(), &Progress::default());
    Some(plan.expect("memory can be read"))
}

fn apply(plan: &Plan, bytes: &mut [u8]) {
    for edit in plan.stages.iter().flat_map(|stage| &stage.edits) {
        let start = usize::try_from(edit.offset).expect("small images");
        let place = bytes.get_mut(start..start + edit.before.len());
        let place = place.expect("a repair in place never grows the file");
        assert_eq!(place, edit.before, "an edit finds what it expects");
        place.copy_from_slice(&edit.after);
    }
}

#[test]
fn plans_make_nothing_worse_and_leave_nothing_to_plan() {
    let mut planned = 0;
    for case in cases() {
        for mode in [Mode::Leaks, Mode::All] {
            let mut bytes = fs::read(case.join("image.qcow2")).expect("an image");
            let Some(plan) = plan_of(&bytes, mode) else {
                continue;
            };
            let name = case.display();
            apply(&plan, &mut bytes);
            planned += usize::from(!plan.is_empty());
            let image = Image::open(bytes.clone(), Path::new("image")).expect("still an image");
            let after = qfsck::check(&image, Options::default(), &Progress::default());
            assert_eq!(after, plan.after, "{name}: the rehearsal told the truth");
            let again = plan_of(&bytes, mode).expect("still an image");
            assert!(
                again.is_empty(),
                "{name}: a second repair plans {:?}",
                again.stages
            );
            println!(
                "{} {mode:?}: {} stages, {:?} -> {:?}, withheld {}",
                case.file_name().unwrap_or_default().display(),
                plan.stages.len(),
                plan.before.verdict,
                plan.after.verdict,
                plan.withheld.len(),
            );
        }
    }
    println!("{planned} plans");
    assert!(planned > 40, "only {planned} plans");
}
