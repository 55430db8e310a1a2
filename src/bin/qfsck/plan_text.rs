//! A plan, for people: stage by stage, then what is left as it is and why.
//!
//! Comes in: a [`Plan`]. Goes out: text. Never here: a decision.

use std::io::{self, Write};

use qfsck::report::stage_purpose;
use qfsck::{Plan, Stage};

use crate::render::{counted, wrapped};

/// Writes a plan.
pub(crate) fn write(to: &mut dyn Write, plan: &Plan) -> io::Result<()> {
    let copied = plan.copied_bytes();
    if plan.is_empty() {
        writeln!(to, "nothing to do")?;
    } else if copied == 0 {
        writeln!(to, "plan (metadata only, no guest data is touched):")?;
    } else {
        let copied = counted(copied, "byte");
        writeln!(
            to,
            "plan ({copied} of guest data are copied to a place of their own, none are overwritten):"
        )?;
    }
    for (number, stage) in (1..).zip(&plan.stages) {
        writeln!(
            to,
            "  {number}. {}: {}",
            stage_purpose(stage.kind),
            extent(stage)
        )?;
        answers(to, stage)?;
    }
    let grown = plan.length_bytes_after.saturating_sub(plan.length_bytes);
    if grown > 0 {
        writeln!(to, "  the file grows by {}", counted(grown, "byte"))?;
    } else if !plan.is_empty() {
        writeln!(to, "  the file keeps its length")?;
    }
    for withheld in &plan.withheld {
        let count = withheld.count;
        writeln!(to, "  left as it is: {} ({count}×)", withheld.code)?;
        wrapped(to, "      ", &withheld.reason)?;
    }
    writeln!(
        to,
        "verdict: {} now, {} afterwards",
        plan.before.verdict.name(),
        plan.after.verdict.name()
    )
}

fn extent(stage: &Stage) -> String {
    let sectors: u64 = stage
        .edits
        .iter()
        .map(|edit| edit.after.len().div_ceil(512) as u64)
        .sum();
    let copied: u64 = stage.copies.iter().map(|copy| copy.bytes).sum();
    let guest_data = if copied > 0 {
        format!(", {} of guest data copied", counted(copied, "byte"))
    } else {
        String::new()
    };
    format!(
        "{} in {}{guest_data}",
        counted(stage.change_count(), "change"),
        counted(sectors, "sector")
    )
}

/// Which findings the changes answer.
fn answers(to: &mut dyn Write, stage: &Stage) -> io::Result<()> {
    let answers: Vec<String> = stage
        .changes
        .iter()
        .map(|(code, count)| format!("{code} ({count}×)"))
        .collect();
    if answers.is_empty() {
        return Ok(());
    }
    wrapped(to, "       for ", &answers.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qfsck::{CopyEdit, Image, Mode, Options, Progress, RepairOptions};

    use super::*;

    /// A plan for an image of the corpus that has one leak.
    fn plan() -> Plan {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = root.join("corpus/100-refcount-leak/image.qcow2");
        let bytes = std::fs::read(&path).expect("the corpus is there");
        let image = Image::open(bytes, &path).expect("an image");
        let wishes = RepairOptions::new(Mode::All);
        qfsck::plan(&image, &wishes, Options::default(), &Progress::default()).expect("a plan")
    }

    fn text(plan: &Plan) -> String {
        let mut text = Vec::new();
        write(&mut text, plan).expect("memory takes it");
        String::from_utf8(text).expect("UTF-8")
    }

    #[test]
    fn only_a_plan_without_copies_says_that_no_guest_data_is_touched() {
        let mut plan = plan();
        let words = "no guest data is touched";
        assert!(text(&plan).contains(words), "{}", text(&plan));
        assert!(text(&plan).contains("keeps its length"));
        let copy = CopyEdit {
            from: 0,
            to: plan.length_bytes,
            bytes: 512,
        };
        plan.stages[0].copies.push(copy);
        plan.length_bytes_after += 1024;
        assert!(!text(&plan).contains(words), "{}", text(&plan));
        assert!(text(&plan).contains("512 bytes of guest data"));
        assert!(text(&plan).contains("the file grows by 1024 bytes"));
    }
}
