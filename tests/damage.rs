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

use qfsck::qcow2::{refcount_at, set_refcount_at};
use qfsck::{Check, Code, Finding, Image, Mode, Options, Owner, Progress, RepairOptions, Severity};

use crate::plan::apply;
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
            let repaired = self.repaired(&damaged.bytes, mode);
            let mut moved = structures(&damaged.bytes);
            moved.extend(structures(&healthy.bytes));
            // A bitmap that is dropped gives its clusters back: all it costs is a full backup.
            let of_bitmaps = bitmap_clusters(healthy);
            for cluster in (0..healthy.cluster_count()).filter(|it| !of_bitmaps.contains(it)) {
                let damaged = if repaired == damaged.bytes {
                    stored_count(&damaged.bytes, cluster)
                } else {
                    damaged.refcount(cluster)
                };
                let kept = healthy.refcount(cluster).min(damaged);
                let now = stored_count(&repaired, cluster);
                // What the refcounts were in is all that a repair may put out of use. A table that served two guest ranges
                // serves one when the other has a copy.
                let has_copy = self.code == Code::L2TableShared && now > 0;
                let is_kept = now >= kept || moved.contains(&cluster) || has_copy;
                assert!(is_kept, "a repair frees cluster {cluster} ({mode:?})");
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
        apply(&plan, &mut repaired);
        repaired
    }
}

/// The number of `length` bytes at `offset`; zero past the end.
fn number_at(bytes: &[u8], offset: u64, length: usize) -> u64 {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let field = bytes.get(start..start.saturating_add(length));
    let field = field.unwrap_or_default().iter();
    field.fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The refcount of a cluster, by the header, the refcount table and the refcount block of these bytes.
fn stored_count(bytes: &[u8], cluster: u64) -> u64 {
    let (cluster_bits, order) = cluster_bits_and_order(bytes);
    let per_block = (8_u64 << cluster_bits) >> order;
    let table = number_at(bytes, 48, 8);
    let block = number_at(bytes, table + cluster / per_block * 8, 8) & !511;
    let start = usize::try_from(block).unwrap_or(usize::MAX);
    let length = 1_usize << cluster_bits;
    let block = (start > 0).then(|| bytes.get(start..start.saturating_add(length)));
    let index = usize::try_from(cluster % per_block).expect("a small block");
    block
        .flatten()
        .map_or(0, |block| refcount_at(block, order, index))
}

/// Lowers every count that is too high, as if what a damaged pointer meant had been freed.
pub(crate) fn without_leaks(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let (cluster_bits, order) = cluster_bits_and_order(&bytes);
    let per_block = (8_u64 << cluster_bits) >> order;
    let check = check(&bytes, Options::default());
    let leaks = check
        .findings
        .iter()
        .filter(|finding| finding.code == Code::RefcountLeak);
    for leak in leaks {
        let (host, counts) = (leak.host.expect("a place"), leak.counts.expect("counts"));
        for cluster in host.clusters() {
            let table = number_at(&bytes, 48, 8);
            let block = number_at(&bytes, table + cluster.0 / per_block * 8, 8) & !511;
            let start = usize::try_from(block).expect("small images");
            let block = bytes.get_mut(start..start + (1 << cluster_bits));
            let index = usize::try_from(cluster.0 % per_block).expect("a small block");
            set_refcount_at(block.expect("in the file"), order, index, counts.expected);
        }
    }
    bytes
}

fn cluster_bits_and_order(bytes: &[u8]) -> (u64, u32) {
    let order = match number_at(bytes, 4, 4) {
        2 => 4,
        _ => u32::try_from(number_at(bytes, 96, 4)).unwrap_or(4),
    };
    (number_at(bytes, 20, 4).clamp(9, 21), order.min(6))
}

/// The clusters of the refcount table and the refcount blocks.
fn structures(bytes: &[u8]) -> BTreeSet<u64> {
    let (cluster_bits, _) = cluster_bits_and_order(bytes);
    let table = number_at(bytes, 48, 8);
    let end = table + (number_at(bytes, 56, 4).min(4096) << cluster_bits);
    let blocks = (table..end).step_by(8);
    let blocks = blocks.map(|entry| number_at(bytes, entry, 8) >> cluster_bits);
    (table >> cluster_bits..end >> cluster_bits)
        .chain(blocks)
        .collect()
}

/// The clusters of the bitmaps: directory, tables and data.
fn bitmap_clusters(image: &Forged) -> BTreeSet<u64> {
    let mut offsets = BTreeSet::new();
    for bitmap in 0..image.bitmap_count() {
        offsets.extend([image.bitmap_directory(), image.bitmap_table(bitmap)]);
        let entries = image.u32_at(image.bitmap_field(bitmap, "bitmap_table_size"));
        let entries = usize::try_from(entries).expect("a small table");
        offsets.extend((0..entries).filter_map(|entry| image.bitmap_data(bitmap, entry)));
    }
    let cluster_size = image.cluster_size();
    offsets.iter().map(|offset| offset / cluster_size).collect()
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
        // Only a repair looks for these (`plan`).
        .filter(|code| **code != Code::LostMappingSuspected)
        // Only a gate, or a deep read, looks for these (`policy`, `deep`).
        .filter(|code| code.severity() != Severity::Policy && !crate::deep::CODES.contains(code))
        .collect();
    assert!(missing.is_empty(), "no damage provokes {missing:?}");
}
