//! Power cuts: every state a disk can be in while a repair or an undo is under way.
//!
//! Comes in: damaged images, forged and from the corpus. Goes out: counts of states tried, or the state that is worse
//! than the image was before. Never here: a real disk; writes and syncs are recorded, and every subset of the sectors
//! written since the last sync may have arrived.
//!
//! "Worse" is a matter of sets, not of counts: no cluster may become one that the next write could destroy (in use with
//! refcount zero, fewer counts than references, COPIED set where it is shared) that was not one before.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;
use qfsck::qcow2::{ClusterRange, words};
use qfsck::undo::UndoFile;
use qfsck::{
    Code, Identity, Image, Mode, Options, Plan, Progress, Receipt, RepairError, RepairOptions,
    StageKind, Storage, StorageMut,
};

use crate::corpus::cases;
use crate::repair::{MemorySink, refcounts};
use crate::support::image_forge::{Forge, Forged, Tree};
use crate::support::sample::sampled;

const SECTOR: usize = 512;

/// What a disk is told.
#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Truncate(usize),
    Sync,
}

/// Writes into a file, which grows if it has to.
fn write(file: &mut Vec<u8>, start: usize, bytes: &[u8]) {
    let end = start + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file.get_mut(start..end)
        .expect("just made")
        .copy_from_slice(bytes);
}

/// An image in memory that remembers what it was told, and can fail at the n-th write or sync.
#[derive(Clone, Debug)]
struct Recording {
    bytes: Vec<u8>,
    log: Vec<Op>,
    /// Writes and syncs until one fails.
    fails_after: Option<usize>,
    /// Leave syncs out of the log, as if they did nothing: the control that the harness bites.
    ignores_syncs: bool,
}

impl Recording {
    fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            log: Vec::new(),
            fails_after: None,
            ignores_syncs: false,
        }
    }

    fn count_down(&mut self) -> io::Result<()> {
        match &mut self.fails_after {
            Some(0) => Err(io::Error::other("the disk is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Storage for Recording {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buffer)
    }
}

impl StorageMut for Recording {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.count_down()?;
        let start = usize::try_from(offset).expect("small images");
        write(&mut self.bytes, start, bytes);
        self.log.push(Op::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        self.count_down()?;
        let length = usize::try_from(length_bytes).expect("small images");
        self.bytes.truncate(length);
        self.log.push(Op::Truncate(length));
        Ok(())
    }

    fn reserve(&mut self, _length_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.count_down()?;
        if !self.ignores_syncs {
            self.log.push(Op::Sync);
        }
        Ok(())
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        device: 1,
        inode: 2,
        is_block_device: false,
        path: b"image".to_vec(),
    }
}

fn plan_of(disk: &Recording) -> Plan {
    let image = Image::open(disk, Path::new("image")).expect("an image");
    let plan = qfsck::plan(
        &image,
        &RepairOptions::new(Mode::All),
        Options::default(),
        &Progress::default(),
    );
    plan.expect("memory can be read")
}

fn repair(disk: &mut Recording, plan: &Plan, sink: &MemorySink) -> Result<Receipt, RepairError> {
    let sink = || Ok(sink.clone());
    qfsck::apply(
        disk,
        &identity(),
        plan,
        Options::default(),
        &Progress::default(),
        sink,
    )
}

fn undo(disk: &mut Recording, undo_file: &[u8]) -> Result<Receipt, RepairError> {
    let sink = MemorySink(Rc::new(RefCell::new(undo_file.to_vec())));
    let file = UndoFile::decode(undo_file).expect("an undo file as it was written");
    qfsck::undo_repair(
        disk,
        &file,
        qfsck::UndoOptions::default(),
        &Progress::default(),
        || Ok(sink),
    )
}

/// Clusters the next write could destroy something through, by kind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hazards {
    uncounted: BTreeSet<u64>,
    undercounted: BTreeSet<u64>,
    written_through: BTreeSet<u64>,
    /// The dirty or the corrupt bit keeps programs from trusting the counts.
    pub(crate) is_marked: bool,
}

impl Hazards {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let image = Image::open(bytes.to_vec(), Path::new("image")).expect("still an image");
        let check = qfsck::check(&image, Options::default(), &Progress::default());
        let clusters = |codes: &[Code]| {
            let found = check.findings.iter();
            let found = found.filter(|finding| codes.contains(&finding.code));
            let hosts = found.filter_map(|finding| finding.host);
            let clusters = hosts.flat_map(ClusterRange::clusters);
            clusters.map(|cluster| cluster.0).collect()
        };
        let mut hazards = Self {
            uncounted: clusters(&[Code::RefcountZero]),
            undercounted: clusters(&[Code::RefcountZero, Code::RefcountTooLow]),
            written_through: clusters(&[
                Code::RefcountZero,
                Code::RefcountTooLow,
                Code::CopiedFlagStale,
                Code::GuestDataOverlap,
                Code::MetadataOverlap,
            ]),
            is_marked: check.header.is_dirty() || check.header.is_corrupt(),
        };
        // The part of a refcount table past the end of the file is in use without a count, whether or not the file
        // reaches that far.
        let cluster_bytes = 1 << check.header.cluster_bits;
        let table = check.header.refcount_table_offset;
        let table_bytes = u64::from(check.header.refcount_table_clusters) * cluster_bytes;
        let in_file = (bytes.len() as u64).next_multiple_of(cluster_bytes);
        let past_end = (table + table_bytes.min(8 << 20)).min(in_file + (16 << 20));
        let tail = in_file.max(table) / cluster_bytes..past_end / cluster_bytes;
        // So is a refcount block there that the table names.
        let start = usize::try_from(table).unwrap_or(usize::MAX);
        let words = words(bytes.get(start..).unwrap_or_default());
        let blocks = words.take(usize::try_from(table_bytes.min(8 << 20) / 8).expect("small"));
        let blocks = blocks.map(|word| word & !511);
        let lost = blocks.filter(|block| *block >= in_file && block % cluster_bytes == 0);
        for cluster in tail.chain(lost.map(|block| block / cluster_bytes)) {
            hazards.uncounted.insert(cluster);
            hazards.undercounted.insert(cluster);
            hazards.written_through.insert(cluster);
        }
        hazards
    }

    pub(crate) fn is_no_worse_than(&self, before: &Self) -> bool {
        let is_safe = self.undercounted.is_empty() && self.written_through.is_empty();
        let keeps_its_mark = !before.is_marked || self.is_marked || is_safe;
        keeps_its_mark
            && self.uncounted.is_subset(&before.uncounted)
            && self.undercounted.is_subset(&before.undercounted)
            && self.written_through.is_subset(&before.written_through)
    }
}

/// What may arrive by itself, or not: a sector, or a truncation.
#[derive(Clone, Debug)]
enum Arrival {
    Sector(u64, Vec<u8>),
    Truncate(usize),
}

/// What is on its way between two syncs.
fn epochs(log: &[Op]) -> Vec<Vec<Arrival>> {
    let mut epochs = vec![Vec::new()];
    for op in log {
        match op {
            Op::Sync => epochs.push(Vec::new()),
            Op::Truncate(length) => {
                let epoch = epochs.last_mut().expect("never empty");
                epoch.push(Arrival::Truncate(*length));
            }
            Op::Write(offset, bytes) => {
                let offsets = (*offset..).step_by(SECTOR);
                let sectors = offsets.zip(bytes.chunks(SECTOR));
                let sectors =
                    sectors.map(|(offset, bytes)| Arrival::Sector(offset, bytes.to_vec()));
                epochs.last_mut().expect("never empty").extend(sectors);
            }
        }
    }
    epochs
}

/// Which sectors of an epoch may have arrived: all subsets of up to 10, else prefixes, all but one, one, and 200 at random.
fn subsets(count: usize, random: &mut Rng) -> Vec<Vec<bool>> {
    if count <= 10 {
        return (0..1_u32 << count)
            .map(|bits| (0..count).map(|bit| bits >> bit & 1 == 1).collect())
            .collect();
    }
    let mut all = Vec::new();
    for pivot in 0..=count {
        all.push((0..count).map(|at| at < pivot).collect());
        all.push((0..count).map(|at| at != pivot).collect());
        all.push((0..count).map(|at| at == pivot).collect());
    }
    for _ in 0..200 {
        all.push((0..count).map(|_| random.bool()).collect());
    }
    all
}

fn lay(file: &mut Vec<u8>, epoch: &[Arrival], arrived: &[bool]) {
    for (arrival, _) in epoch.iter().zip(arrived).filter(|(_, arrived)| **arrived) {
        match arrival {
            Arrival::Sector(offset, sector) => {
                write(
                    file,
                    usize::try_from(*offset).expect("small images"),
                    sector,
                );
            }
            Arrival::Truncate(length) => file.truncate(*length),
        }
    }
}

/// What was tried, and what was found wrong.
#[derive(Debug, Default)]
pub(crate) struct Score {
    pub(crate) images: usize,
    pub(crate) states: usize,
    pub(crate) worse: Vec<String>,
    pub(crate) undo_mismatches: Vec<String>,
    second_crashes: usize,
    undo_states: usize,
    worse_in_undo: Vec<String>,
}

/// Repairs an image, cuts the power everywhere, and goes back from every state.
pub(crate) fn try_image(name: &str, start: &[u8], ignores_syncs: bool, score: &mut Score) {
    let mut disk = Recording::new(start);
    disk.ignores_syncs = ignores_syncs;
    let sink = MemorySink::default();
    let plan = plan_of(&disk);
    repair(&mut disk, &plan, &sink).expect("memory does not fail");
    if plan.is_empty() {
        return;
    }
    score.images += 1;
    let undo_file = committed(&sink.0.borrow());
    let before = Hazards::of(start);
    let mut random = Rng::with_seed(start.len() as u64);
    let mut base = start.to_vec();
    for (number, epoch) in epochs(&disk.log).into_iter().enumerate() {
        for arrived in subsets(epoch.len(), &mut random) {
            let mut state = base.clone();
            lay(&mut state, &epoch, &arrived);
            score.states += 1;
            if !Hazards::of(&state).is_no_worse_than(&before) {
                score.worse.push(format!("{name}, epoch {number}"));
            }
            let tries_again = score.states.is_multiple_of(8);
            let again = tries_again.then_some(&before);
            if !ignores_syncs && !undoes(&state, &undo_file, start, again, score) {
                score
                    .undo_mismatches
                    .push(format!("{name}, epoch {number}"));
            }
        }
        let all = vec![true; epoch.len()];
        lay(&mut base, &epoch, &all);
    }
    let finished = sink.0.borrow().clone();
    let mut disk = Recording::new(&base);
    let undone = undo(&mut disk, &finished);
    if undone.is_err() || disk.bytes != start {
        score.undo_mismatches.push(format!("{name}, when finished"));
    }
    let cuts = cuts(&base, &disk.log, usize::MAX);
    for (epoch, state) in cuts {
        score.undo_states += 1;
        if !Hazards::of(&state).is_no_worse_than(&before) {
            score.worse_in_undo.push(format!("{name}, epoch {epoch}"));
        }
    }
}

/// Every state a disk can be in while what is in the log is done to a file, up to so many of an epoch, with its number.
fn cuts(start: &[u8], log: &[Op], most: usize) -> Vec<(usize, Vec<u8>)> {
    let mut random = Rng::with_seed(start.len() as u64);
    let mut base = start.to_vec();
    let mut states = Vec::new();
    for (number, epoch) in epochs(log).into_iter().enumerate() {
        for arrived in subsets(epoch.len(), &mut random).into_iter().take(most) {
            let mut state = base.clone();
            lay(&mut state, &epoch, &arrived);
            states.push((number, state));
        }
        lay(&mut base, &epoch, &vec![true; epoch.len()]);
    }
    states
}

/// Calls `each` for every state a disk can be in while an image is repaired, with whether it is no worse than before.
pub(crate) fn for_each_cut(start: &[u8], mut each: impl FnMut(&[u8], bool)) {
    let mut disk = Recording::new(start);
    let plan = plan_of(&disk);
    repair(&mut disk, &plan, &MemorySink::default()).expect("memory does not fail");
    let before = Hazards::of(start);
    let mut random = Rng::with_seed(start.len() as u64);
    let mut base = start.to_vec();
    for epoch in epochs(&disk.log) {
        for arrived in subsets(epoch.len(), &mut random) {
            let mut state = base.clone();
            lay(&mut state, &epoch, &arrived);
            each(&state, Hazards::of(&state).is_no_worse_than(&before));
        }
        lay(&mut base, &epoch, &vec![true; epoch.len()]);
    }
}

/// The undo file as it was while the image was written to: without its last seal.
fn committed(file: &[u8]) -> Vec<u8> {
    let mut cut = file.to_vec();
    let seal = cut.len() - SECTOR;
    cut.get_mut(seal..).expect("at least a sector").fill(0);
    cut
}

/// Goes back from a crash state, and if it is said what was wrong before, again from crashes inside that.
fn undoes(
    state: &[u8],
    undo_file: &[u8],
    start: &[u8],
    again: Option<&Hazards>,
    score: &mut Score,
) -> bool {
    let mut disk = Recording::new(state);
    if undo(&mut disk, undo_file).is_err() || disk.bytes != start {
        return false;
    }
    let Some(before) = again else {
        return true;
    };
    let mut base = state.to_vec();
    for epoch in epochs(&disk.log) {
        let half: Vec<bool> = (0..epoch.len()).map(|at| at % 2 == 0).collect();
        let mut second = base.clone();
        lay(&mut second, &epoch, &half);
        score.second_crashes += 1;
        if !Hazards::of(&second).is_no_worse_than(before) {
            score.worse_in_undo.push("a second crash".to_owned());
        }
        let mut disk = Recording::new(&second);
        if undo(&mut disk, undo_file).is_err() || disk.bytes != start {
            return false;
        }
        let all = vec![true; epoch.len()];
        lay(&mut base, &epoch, &all);
    }
    true
}

/// Forged images over versions, cluster sizes and widths, each broken in its own way.
pub(crate) fn forged() -> Vec<(String, Vec<u8>)> {
    let mut images = Vec::new();
    for (version, order) in [(2, 4), (3, 2), (3, 3), (3, 4), (3, 6)] {
        for cluster_bits in [9, 12, 16] {
            for (what, damage) in DAMAGES {
                let size = 4096_u64 << cluster_bits;
                let forge = Forge::new().version(version).cluster_bits(cluster_bits);
                let forge = forge.refcount_order(order).size(size);
                let forge = (0..6)
                    .fold(forge, Forge::data)
                    .snapshot("1", "one")
                    .data(2)
                    .data(9);
                let forge = FAR.into_iter().fold(forge, Forge::data);
                let mut image = forge.build();
                damage(&mut image);
                let name = format!("v{version} {cluster_bits} {order} {what}");
                images.push((name, image.bytes));
            }
        }
    }
    images
}

fn some_forged() -> Vec<(String, Vec<u8>)> {
    sampled("damaged images", forged(), 4)
}

/// Images whose refcount structures have to be built anew.
fn rebuilt() -> Vec<(String, Vec<u8>)> {
    let kinds = refcounts::DAMAGES.into_iter();
    let damaged = kinds.flat_map(|(what, damage)| {
        refcounts::images()
            .into_iter()
            .map(move |(name, mut image)| {
                damage(&mut image);
                (format!("{name} {what}"), image.bytes)
            })
    });
    damaged.collect()
}

type Damage = fn(&mut Forged);

/// Guest clusters far apart: with small clusters each has an L2 table of its own.
const FAR: [u64; 16] = [
    100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1500, 1600,
];

fn set_dirty(image: &mut Forged) {
    if image.u32_at(4) == 3 {
        let field = image.field("incompatible_features");
        image.put_u64(field, image.u64_at(field) | 1);
    }
}

const DAMAGES: [(&str, Damage); 11] = [
    ("dirty, uncounted", |image| {
        for guest in [2, 9, 100, 900] {
            let cluster = image.host_cluster(Tree::Active, guest);
            image.set_refcount(cluster, 0);
        }
        set_dirty(image);
    }),
    ("many flags and counts, dirty", |image| {
        for (index, guest) in (0_u64..).zip(FAR) {
            let cluster = image.host_cluster(Tree::Active, guest);
            let entry = image.l2_entry(Tree::Active, guest);
            if index % 2 == 0 {
                image.put_u64(entry, image.u64_at(entry) & !(1 << 63));
            } else {
                image.set_refcount(cluster, index % 4);
            }
        }
        set_dirty(image);
    }),
    ("leak", |image| {
        image.allocate(1);
        image.allocate(2);
    }),
    ("zero", |image| {
        for cluster in [
            image.host_cluster(Tree::Active, 2),
            image.host_cluster(Tree::Active, 9),
        ] {
            image.set_refcount(cluster, 0);
        }
    }),
    ("low", |image| {
        for guest in [0, 1, 3] {
            let cluster = image.host_cluster(Tree::Active, guest);
            image.set_refcount(cluster, 1);
        }
    }),
    ("high", |image| {
        for guest in [0, 9] {
            let cluster = image.host_cluster(Tree::Active, guest);
            image.set_refcount(cluster, 7);
        }
    }),
    ("copied set where shared", |image| {
        let entry = image.l2_entry(Tree::Active, 0);
        image.put_u64(entry, image.u64_at(entry) | 1 << 63);
    }),
    ("copied clear where alone", |image| {
        let entry = image.l2_entry(Tree::Active, 9);
        image.put_u64(entry, image.u64_at(entry) & !(1 << 63));
    }),
    ("one count, two owners, COPIED", |image| {
        let cluster = image.host_cluster(Tree::Active, 0);
        image.set_refcount(cluster, 1);
        let entry = image.l2_entry(Tree::Active, 0);
        image.put_u64(entry, image.u64_at(entry) | 1 << 63);
    }),
    ("tables uncounted", |image| {
        let table = image.l2_table(Tree::Active, 0) / image.cluster_size();
        image.set_refcount(table, 0);
        image.set_refcount(0, 0);
    }),
    ("all at once", |image| {
        image.allocate(1);
        let (shared, alone) = (
            image.host_cluster(Tree::Active, 1),
            image.host_cluster(Tree::Active, 9),
        );
        image.set_refcount(shared, 1);
        image.set_refcount(alone, 0);
        let entry = image.l2_entry(Tree::Active, 1);
        image.put_u64(entry, image.u64_at(entry) | 1 << 63);
        let cluster = image.host_cluster(Tree::Active, 2);
        image.set_refcount(cluster, 5);
    }),
];

#[test]
fn no_power_cut_makes_an_image_worse_and_undo_comes_back_from_all() {
    let mut score = Score::default();
    for (name, bytes) in some_forged() {
        try_image(&name, &bytes, false, &mut score);
    }
    for (name, bytes) in sampled("rebuilt images", rebuilt(), 13) {
        try_image(&name, &bytes, false, &mut score);
    }
    for case in cases() {
        let bytes = fs::read(case.join("image.qcow2")).expect("an image");
        if Image::open(bytes.clone(), Path::new("image")).is_ok() {
            try_image(&case.display().to_string(), &bytes, false, &mut score);
        }
    }
    println!(
        "{} images, {} crash states, {} worse, {} undo mismatches, {} second crashes inside undo, {} crash states of the \
         undo, {} worse",
        score.images,
        score.states,
        score.worse.len(),
        score.undo_mismatches.len(),
        score.second_crashes,
        score.undo_states,
        score.worse_in_undo.len()
    );
    assert!(score.worse_in_undo.is_empty(), "{:#?}", score.worse_in_undo);
    assert!(score.worse.is_empty(), "{:#?}", score.worse);
    assert!(
        score.undo_mismatches.is_empty(),
        "{:#?}",
        score.undo_mismatches
    );
    assert!(score.images >= 100 && score.states >= 5000, "{score:?}");
}

#[test]
fn without_syncs_the_same_repair_can_make_images_worse() {
    let mut score = Score::default();
    for (name, bytes) in some_forged() {
        try_image(&name, &bytes, true, &mut score);
    }
    println!(
        "control without syncs: {} states, {} worse",
        score.states,
        score.worse.len()
    );
    assert!(!score.worse.is_empty(), "the harness does not bite");
}

#[test]
fn failing_disk_leaves_an_image_that_undo_puts_back() {
    let mut faults = 0;
    for (name, start) in forged().into_iter().step_by(7) {
        let plan = plan_of(&Recording::new(&start));
        for fails_after in 0.. {
            let mut disk = Recording::new(&start);
            disk.fails_after = Some(fails_after);
            let sink = MemorySink::default();
            if repair(&mut disk, &plan, &sink).is_ok() {
                break;
            }
            faults += 1;
            disk.fails_after = None;
            let file = sink.0.borrow().clone();
            undo(&mut disk, &file).expect("undo after a failed repair");
            assert_eq!(disk.bytes, start, "{name}, failing after {fails_after}");
        }
    }
    println!("{faults} failing writes and syncs");
    assert!(faults > 50, "only {faults} faults");
}

#[test]
fn undo_refuses_an_image_that_was_used_since() {
    let (_, start) = forged().swap_remove(1);
    let mut disk = Recording::new(&start);
    let sink = MemorySink::default();
    let plan = plan_of(&disk);
    repair(&mut disk, &plan, &sink).expect("memory does not fail");
    let file = sink.0.borrow().clone();
    let repaired = disk.bytes.clone();
    // A guest wrote: some table differs from how the repair left it.
    let image = Image::open(repaired.clone(), Path::new("image")).expect("an image");
    let l1 = usize::try_from(image.header().l1_table_offset).expect("a small image");
    *disk.bytes.get_mut(l1 + 3).expect("the L1 table") ^= 1;
    let used = disk.bytes.clone();
    let refused = undo(&mut disk, &file);
    assert!(
        matches!(refused, Err(RepairError::UsedSince { .. })),
        "{refused:?}"
    );
    assert_eq!(disk.bytes, used, "a refused undo writes nothing");
}

/// A log without its n-th sync.
fn without_sync(log: &[Op], number: usize) -> Vec<Op> {
    let mut syncs = 0;
    let is_kept = |op: &&Op| {
        let is_sync = matches!(op, Op::Sync);
        syncs += usize::from(is_sync);
        !is_sync || syncs != number + 1
    };
    log.iter().filter(is_kept).cloned().collect()
}

#[test]
fn one_sync_left_out_lets_a_power_cut_make_images_worse() {
    let mut worse: BTreeMap<StageKind, usize> = BTreeMap::new();
    let rebuilt = rebuilt().into_iter().step_by(23);
    for (_, start) in forged().into_iter().step_by(6).chain(rebuilt) {
        let mut disk = Recording::new(&start);
        let plan = plan_of(&disk);
        repair(&mut disk, &plan, &MemorySink::default()).expect("memory does not fail");
        let before = Hazards::of(&start);
        // The last stage only clears bits, and after it nothing is written.
        for (number, stages) in plan.stages.windows(2).enumerate() {
            let mut random = Rng::with_seed(number as u64);
            let mut base = start.clone();
            for epoch in epochs(&without_sync(&disk.log, number)) {
                for arrived in subsets(epoch.len(), &mut random).into_iter().take(300) {
                    let mut state = base.clone();
                    lay(&mut state, &epoch, &arrived);
                    let is_worse = !Hazards::of(&state).is_no_worse_than(&before);
                    let kind = stages.first().expect("of two").kind;
                    *worse.entry(kind).or_default() += usize::from(is_worse);
                }
                lay(&mut base, &epoch, &vec![true; epoch.len()]);
            }
        }
    }
    println!("worse states without the sync after each kind of stage: {worse:?}");
    for kind in [StageKind::WriteNew, StageKind::RaiseRefcounts] {
        let is_needed = worse.get(&kind) > Some(&0);
        assert!(is_needed, "{kind:?} needs no sync: {worse:?}");
    }
}

#[test]
fn one_sync_of_an_undo_left_out_lets_a_power_cut_make_images_worse() {
    let (mut worse, mut versions) = (0, BTreeSet::new());
    let rebuilt = rebuilt().into_iter().step_by(23);
    for (_, start) in forged().into_iter().step_by(6).chain(rebuilt) {
        let mut disk = Recording::new(&start);
        let plan = plan_of(&disk);
        let sink = MemorySink::default();
        repair(&mut disk, &plan, &sink).expect("memory does not fail");
        if plan.is_empty() {
            continue;
        }
        let finished = sink.0.borrow().clone();
        let repaired = disk.bytes;
        let mut disk = Recording::new(&repaired);
        undo(&mut disk, &finished).expect("nobody used it");
        let before = Hazards::of(&start);
        for number in 1..plan.stages.len() {
            let log = without_sync(&disk.log, number - 1);
            for (_, state) in cuts(&repaired, &log, 300) {
                if !Hazards::of(&state).is_no_worse_than(&before) {
                    worse += 1;
                    versions.insert(start.get(7).copied());
                }
            }
        }
    }
    println!("worse states without one sync of an undo: {worse}");
    assert_eq!(versions.len(), 2, "no sync is needed: {worse}");
}

#[test]
fn no_power_cut_makes_an_image_worse_while_a_repair_is_put_back_that_is_not_as_rehearsed() {
    let mut states = 0;
    let rebuilt = rebuilt().into_iter().step_by(11);
    let images: Vec<_> = forged().into_iter().step_by(9).chain(rebuilt).collect();
    for (name, start) in sampled("images whose repair is put back", images, 4) {
        let mut disk = Recording::new(&start);
        let mut plan = plan_of(&disk);
        // Somebody else's rehearsal.
        plan.after = plan.before.clone();
        let before = Hazards::of(&start);
        let refused = repair(&mut disk, &plan, &MemorySink::default());
        if refused.is_ok() {
            continue;
        }
        assert!(
            matches!(refused, Err(RepairError::NotAsRehearsed)),
            "{name}: {refused:?}"
        );
        assert!(disk.bytes == start, "{name}: it is not put back");
        for (epoch, state) in cuts(&start, &disk.log, 300) {
            states += 1;
            let is_worse = !Hazards::of(&state).is_no_worse_than(&before);
            assert!(!is_worse, "{name}, epoch {epoch}");
        }
    }
    println!("{states} crash states of repairs that are put back");
    assert!(states > 500, "{states}");
}
