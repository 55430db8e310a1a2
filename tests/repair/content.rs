//! Content: what a guest sees is the same after every repair.
//!
//! Comes in: the corpus, forged damages, and images made by the real tools. Goes out: figures, or what was lost. Never
//! here: a disk; everything happens in memory, but for what `qemu-img` is asked.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use super::binary::{Bench, IMAGE};
use super::guest::{Guest, Reader, TreeName};
use super::{Repaired, all, try_repaired};
use crate::corpus::cases;
use crate::crash::forged;
use crate::support::image_forge::{Forge, Forged, Tree};

/// What was tried.
#[derive(Debug, Default)]
struct Score {
    images: usize,
    repaired: usize,
    unopened: usize,
    trees: usize,
    clusters: usize,
    broken: Vec<String>,
}

impl Score {
    fn count(&mut self, name: &str, result: Result<Repaired, String>) {
        self.images += 1;
        match result {
            Ok(repaired) => {
                self.repaired += usize::from(!repaired.plan.is_empty());
                self.trees += repaired.before.trees.len();
                self.clusters += repaired.before.defined_count();
            }
            Err(why) if why.starts_with("cannot be opened") => self.unopened += 1,
            Err(why) => self.broken.push(format!("{name}: {why}")),
        }
    }
}

/// Tries images on a few threads.
fn score(images: Vec<(String, Vec<u8>)>) -> Score {
    let left = Mutex::new(images.into_iter());
    let score = Mutex::new(Score::default());
    let work = || loop {
        let next = left.lock().expect("no thread panics").next();
        let Some((name, bytes)) = next else { break };
        let result = try_repaired(&bytes, &all());
        score.lock().expect("no thread panics").count(&name, result);
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    score.into_inner().expect("no thread panicked")
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let read = |case: &PathBuf| {
        let name = case.file_name().unwrap_or_default();
        let bytes = fs::read(case.join("image.qcow2")).expect("an image");
        (name.to_string_lossy().into_owned(), bytes)
    };
    cases().iter().map(read).collect()
}

#[test]
fn repairs_of_the_corpus_keep_what_every_guest_sees() {
    let score = score(corpus());
    println!(
        "{} images, {} repaired, {} that cannot be opened; {} trees with {} guest clusters compared",
        score.images, score.repaired, score.unopened, score.trees, score.clusters
    );
    assert!(score.broken.is_empty(), "{}", score.broken.join("\n"));
    assert!(score.repaired > 30 && score.clusters > 1000, "{score:?}");
}

#[test]
fn repairs_of_forged_damages_keep_what_every_guest_sees() {
    let score = score(forged());
    println!(
        "{} images, {} repaired; {} trees with {} guest clusters compared",
        score.images, score.repaired, score.trees, score.clusters
    );
    assert!(score.broken.is_empty(), "{}", score.broken.join("\n"));
    assert!(score.repaired > 100 && score.clusters > 1000, "{score:?}");
}

#[test]
fn the_reader_sees_what_qemu_img_converts() {
    if !super::has_qemu_img() {
        return;
    }
    let bench = Bench::new();
    let run = |words: &[&str]| {
        let (program, arguments) = words.split_first().expect("a command");
        let mut command = Command::new(program);
        command.args(arguments);
        let ended = bench.run(command);
        assert_eq!(ended.exit, Some(0), "{words:?}: {ended:?}");
    };
    let kinds = [
        "compat=0.10",
        "cluster_size=4096",
        "cluster_size=65536,extended_l2=on",
    ];
    for kind in kinds {
        run(&[
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, IMAGE, "8M",
        ]);
        let first = ["-c", "write -q -P 1 0 3M", "-c", "write -q -P 2 5M 1k"];
        run(&[&["qemu-io", "-f", "qcow2"], first.as_slice(), &[IMAGE]].concat());
        run(&["qemu-img", "snapshot", "-c", "first", IMAGE]);
        let then = ["-c", "write -q -P 3 1M 70k", "-c", "write -q -z 2M 128k"];
        run(&[&["qemu-io", "-f", "qcow2"], then.as_slice(), &[IMAGE]].concat());
        let bytes = bench.image();
        let guest = Guest::of(&bytes);
        let reader = Reader::new(&bytes).expect("an image");
        assert_eq!(
            guest.trees.len(),
            2,
            "{kind}: the active disk and a snapshot"
        );
        for (name, tree) in &guest.trees {
            let of_snapshot = ["-l", "snapshot.name=first"];
            let from = if *name == TreeName::Active {
                &[][..]
            } else {
                &of_snapshot
            };
            let convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"];
            run(&[&convert, from, &[IMAGE, "disk.raw"]].concat());
            let disk = fs::read(bench.path("disk.raw")).expect("a raw disk");
            assert!(
                reader.flat(tree, 8 << 20) == disk,
                "{kind}: {name} reads differently"
            );
        }
    }
}

#[test]
fn the_reader_notices_what_is_lost() {
    let start = || {
        let forge = Forge::new().cluster_bits(12).size(4096 << 12);
        forge.data(0).data(700).snapshot("1", "one").data(0).build()
    };
    let before = Guest::of(&start().bytes);
    let damages: [fn(&mut Forged); 4] = [
        |image| image.put_u64(image.l1_entry(Tree::Active, 0), 0),
        |image| image.put_u64(image.l2_entry(Tree::Active, 0), 1),
        |image| image.put_u32(image.field("nb_snapshots"), 0),
        |image| {
            let data = image.host_offset(Tree::Active, 700).expect("data");
            image.put_u64(data + 8, 12345);
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let mut image = start();
        assert!(before.losses(&Guest::of(&image.bytes)).is_empty());
        damage(&mut image);
        let losses = before.losses(&Guest::of(&image.bytes));
        assert!(!losses.is_empty(), "damage {number} goes unnoticed");
    }
}
