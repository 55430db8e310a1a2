//! Content: what a guest sees is the same after every repair.
//!
//! Comes in: the corpus, forged damages, and images made by the real tools. Goes out: figures, or what was lost. Never
//! here: a disk; everything happens in memory, but for what `qemu-img` is asked.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use super::{Repaired, all, try_repaired};
use crate::corpus::cases;
use crate::crash::forged;

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
