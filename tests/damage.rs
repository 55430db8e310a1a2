//! Damage: for every code of the catalog one fault that provokes it, with everything else the fault provokes.
//!
//! Comes in: a recipe for an image that is clean, and one thing to break in it, by name. Goes out: the whole report,
//! held against the lines in the row: the verdict and how much was not walked, then each code with its count and, where
//! clusters have owners, who they are. A row that says more than its fault deserves shows over-reporting as plainly as
//! one that says less. Never here: a file, a thread, a random number (those are `law.rs`).
//!
//! A row's name is the sentence it proves. The rows are grouped as the walk's rooms are.

#![expect(
    clippy::unreadable_literal,
    reason = "words of an image are written as a hex dump shows them"
)]

use std::collections::BTreeSet;
use std::path::Path;

use qfsck::{Check, Code, Finding, Image, Mode, Options, Owner, Progress, RepairOptions};

use crate::support::image_forge::{Forge, Forged};

/// One row: what to forge, what to break, what must be said about it.
struct Damage {
    code: Code,
    forge: fn() -> Forge,
    harm: fn(&mut Forged),
    options: Options,
    report: &'static [&'static str],
}

/// Turns rows into one test each, and collects the codes they are for.
macro_rules! damages {
    ($(
        $(#[$attribute:meta])*
        $sentence:ident: $code:ident {
            forge: $forge:expr,
            harm: $harm:expr,
            $(options: $options:expr,)?
            report: [$($line:literal),* $(,)?],
        }
    )*) => {
        pub(super) const CODES: &[qfsck::Code] = &[$(qfsck::Code::$code),*];

        $(
            #[test]
            $(#[$attribute])*
            fn $sentence() {
                super::Damage {
                    code: qfsck::Code::$code,
                    forge: $forge,
                    harm: $harm,
                    options: [$($options,)? qfsck::Options::default()][0],
                    report: &[$($line),*],
                }
                .is_reported();
            }
        )*
    };
}

mod bitmaps;
mod entries;
mod header;
mod mapping;
mod refcounts;
mod snapshots;

impl Damage {
    fn is_reported(&self) {
        let healthy = (self.forge)().build();
        let before = check(&healthy.bytes, self.options);
        assert_eq!(lines(&before), ["clean"], "before the damage");
        let mut image = (self.forge)().build();
        (self.harm)(&mut image);
        self.assert_repair_keeps(&healthy, &image);
        let after = check(&image.bytes, self.options);
        assert_eq!(lines(&after), self.report, "after the damage");
        let wanted = after.findings.total_of(self.code);
        assert!(wanted.count > 0, "{} is not found", self.code);
    }

    /// No repair lowers a count below what it was before the damage: what was in use then is data that can still be
    /// saved.
    fn assert_repair_keeps(&self, healthy: &Forged, damaged: &Forged) {
        for mode in [Mode::Leaks, Mode::All] {
            let mut repaired = (self.forge)().build();
            repaired.bytes = self.repaired(&damaged.bytes, mode);
            for cluster in 0..healthy.cluster_count() {
                let kept = healthy.refcount(cluster).min(damaged.refcount(cluster));
                let now = repaired.refcount(cluster);
                assert!(now >= kept, "a repair frees cluster {cluster} ({mode:?})");
            }
        }
    }

    /// The bytes of an image after everything that is planned for it.
    fn repaired(&self, bytes: &[u8], mode: Mode) -> Vec<u8> {
        let image = Image::open(bytes, Path::new("forged.qcow2")).expect("the magic is whole");
        let plan = qfsck::plan(
            &image,
            &RepairOptions::new(mode),
            self.options,
            &Progress::default(),
        );
        let plan = plan.expect("memory can be read");
        let mut repaired = bytes.to_vec();
        for edit in plan.stages.iter().flat_map(|stage| &stage.edits) {
            let start = usize::try_from(edit.offset).expect("a small image");
            let place = repaired.get_mut(start..start + edit.before.len());
            place
                .expect("a repair in place")
                .copy_from_slice(&edit.after);
        }
        repaired
    }
}

fn check(bytes: &[u8], options: Options) -> Check {
    let image = Image::open(bytes, Path::new("forged.qcow2")).expect("the magic is whole");
    qfsck::check(&image, options, &Progress::default())
}

/// The report in a few words: verdict and gaps, then a line for each code.
fn lines(check: &Check) -> Vec<String> {
    let gaps = match check.coverage.gap_count() {
        0 => String::new(),
        count => format!(", {count} not walked"),
    };
    let mut lines = vec![format!("{}{gaps}", check.verdict.name())];
    for (code, total) in check.findings.totals() {
        let of_code = check.findings.iter().filter(|finding| finding.code == code);
        let owners: Vec<String> = of_code.filter_map(owners).collect();
        let owners = if owners.is_empty() {
            String::new()
        } else {
            format!(": {}", owners.join("; "))
        };
        lines.push(format!("{code} {}{owners}", total.count));
    }
    lines
}

/// The owners a finding names, by kind, guest range and number of references.
fn owners(finding: &Finding) -> Option<String> {
    let mut shown: Vec<String> = finding.owners.named.iter().map(owner).collect();
    if finding.owners.more > 0 {
        shown.push(format!("{} more", finding.owners.more));
    }
    (!shown.is_empty()).then(|| shown.join(" + "))
}

fn owner(owner: &Owner) -> String {
    let guest = owner
        .guest
        .map_or(String::new(), |guest| format!(" {guest}"));
    let references = owner
        .trees
        .map_or(1, |trees| trees.active + trees.snapshots);
    let times = match references {
        1 => String::new(),
        count => format!(" ×{count}"),
    };
    format!("{}{guest}{times}", owner.kind.name())
}

/// Version 3, 4 KiB clusters (an L2 table maps 2 MiB), 8 MiB virtual.
fn small() -> Forge {
    Forge::new().cluster_bits(12).size(8 << 20)
}

/// A little data in the first L2 table.
fn plain() -> Forge {
    small().data(0).data(1)
}

#[test]
fn every_code_has_a_damage_that_provokes_it() {
    let rows = [
        header::CODES,
        refcounts::CODES,
        mapping::CODES,
        entries::CODES,
        snapshots::CODES,
        bitmaps::CODES,
    ];
    let provoked: BTreeSet<Code> = rows.into_iter().flatten().copied().collect();
    let missing: Vec<&Code> = Code::ALL
        .iter()
        .filter(|code| !provoked.contains(code))
        .collect();
    assert!(missing.is_empty(), "no damage provokes {missing:?}");
}
