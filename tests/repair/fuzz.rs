//! Random damage: a repair is never worse than the truth.
//!
//! Comes in: seeds. Each makes a healthy image, which is damaged eight times, by one damage or two, and repaired three
//! times in a row, in changing modes. Goes out: every harm that a repair did, held against the healthy image. Never here: a
//! harm that is forgiven without being counted.
//!
//! `cargo test` takes a fixed set of seeds. `QFSCK_FUZZ_SEEDS=FROM..TO` takes others, `QFSCK_FUZZ_SECONDS=N` goes on from
//! the first of them for as long; both print what they find, harm by harm, with the seeds.
//!
//! What is forgiven, because the truth cannot be known from what is left, and how often:
//!
//! | harm | after one damage | after two |
//! |---|---|---|
//! | guest data freed that nothing names any more: it looks like every other leak | yes | yes |
//! | a cluster of compressed data counted down to what still names it | yes | yes |
//! | a bitmap dropped whose entries are damaged, or whose clusters a guest entry names now | yes | yes |
//! | anything else, where two damages destroy all evidence | never | a few in a thousand |

pub(crate) mod damage;
pub(crate) mod healthy;
mod truth;
pub(crate) mod view;

use std::collections::BTreeMap;
use std::env;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qfsck::{Mode, RepairOptions};

use self::damage::Targets;
use self::truth::{Harm, Truth};
use self::view::View;
use super::planned;
use crate::support::image_forge::Random;

/// Images of a usual run: some half a minute.
const SEEDS: Range<u64> = 0..600;
const DAMAGES_OF_AN_IMAGE: u64 = 8;
/// Refcount tables that point a little past the end of the file are gone around.
const MAX_GROWTH_BYTES: u64 = (16 << 20) + (1 << 20);
/// Harms shown, of each kind.
const SHOWN: usize = 12;
/// Of a thousand images with two damages, so many may suffer a harm that nobody could have told.
const FORGIVEN_PER_THOUSAND: u64 = 4;

/// What was done to how many images.
#[derive(Default)]
struct Tally {
    images: [u64; 2],
    planned: u64,
    /// By how many damages there were, and what harm was done.
    harms: BTreeMap<(usize, Harm), Vec<String>>,
}

impl Tally {
    fn count(&self, damages: usize, harm: Harm) -> u64 {
        self.harms
            .get(&(damages, harm))
            .map_or(0, |all| all.len() as u64)
    }

    fn print(&self) {
        let [one, two] = self.images;
        println!(
            "{one} images with one damage, {two} with two, {} repaired",
            self.planned
        );
        for ((damages, harm), all) in &self.harms {
            println!("{} times {harm:?} after {damages} damages", all.len());
            for what in all.iter().take(SHOWN) {
                println!("    {what}");
            }
        }
    }
}

#[test]
fn random_damage_is_never_made_worse() {
    let (seeds, seconds) = wanted();
    let tally = attacked(seeds, seconds);
    tally.print();
    let forgiven = [Harm::FreedUnnamed, Harm::LoweredUnnamed, Harm::BitmapSpoilt];
    let unforgiven = |damages: usize| {
        let harms = tally.harms.keys().filter(|(count, _)| *count == damages);
        let harms = harms.filter(|(_, harm)| !forgiven.contains(harm));
        harms
            .map(|&(_, harm)| tally.count(damages, harm))
            .sum::<u64>()
    };
    assert_eq!(unforgiven(1), 0, "harm after a single damage");
    let [_, two] = tally.images;
    let limit = two * FORGIVEN_PER_THOUSAND / 1000 + 1;
    assert!(
        unforgiven(2) <= limit,
        "harm after two damages: {}",
        unforgiven(2)
    );
}

/// Which seeds, and for how long at most.
fn wanted() -> (Range<u64>, Option<Duration>) {
    let seconds = env::var("QFSCK_FUZZ_SECONDS").ok();
    let seconds = seconds.map(|it| Duration::from_secs(it.parse().expect("a number of seconds")));
    let Ok(seeds) = env::var("QFSCK_FUZZ_SEEDS") else {
        let end = if seconds.is_some() {
            u64::MAX
        } else {
            SEEDS.end
        };
        return (SEEDS.start..end, seconds);
    };
    let (from, to) = seeds.split_once("..").expect("FROM..TO");
    let from = from.parse().expect("a number");
    (from..to.parse().unwrap_or(u64::MAX), seconds)
}

fn attacked(seeds: Range<u64>, limit: Option<Duration>) -> Tally {
    let start = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let tally = Mutex::new(Tally::default());
    let workers = thread::available_parallelism().map_or(1, Into::into).min(4);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while limit.is_none_or(|limit| start.elapsed() < limit) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    attack(seed, &tally);
                }
            });
        }
    });
    tally.into_inner().expect("no worker panics")
}

/// Damages the image of a seed in several ways, and repairs it each time.
fn attack(seed: u64, tally: &Mutex<Tally>) {
    let mut random = Random::new(seed.wrapping_mul(7919).wrapping_add(13));
    let Some(image) = healthy::image(&mut random, seed) else {
        return;
    };
    let bits = image.u32_at(20);
    let truth = Truth::of(View::new(&image.bytes, bits));
    let targets = Targets::of(&image, &truth.view);
    for _ in 0..DAMAGES_OF_AN_IMAGE {
        let mut damaged = image.bytes.clone();
        let wanted = random.pick(&[1, 1, 2]);
        let done: Vec<String> = (0..wanted)
            .filter_map(|_| targets.damage(&mut damaged, &mut random))
            .collect();
        let modes = random.pick(&[
            [Mode::All, Mode::All, Mode::Leaks],
            [Mode::All, Mode::Leaks, Mode::All],
            [Mode::Leaks, Mode::All, Mode::Leaks],
        ]);
        if done.is_empty() {
            continue;
        }
        let (repaired, mut harms) = repaired_three_times(&damaged, modes);
        if repaired != damaged {
            harms.extend(truth.judge(&damaged, &repaired));
        }
        let mut tally = tally.lock().expect("no worker panics");
        if let Some(count) = tally.images.get_mut(done.len() - 1) {
            *count += 1;
        }
        tally.planned += u64::from(repaired != damaged);
        harms.sort();
        harms.dedup_by_key(|(harm, _)| *harm);
        let version = image.u32_at(4);
        let what = done.join(" & ");
        for (harm, place) in harms {
            let text = format!("seed {seed} v{version} bits {bits} [{what}]: {place}");
            tally
                .harms
                .entry((done.len(), harm))
                .or_default()
                .push(text);
        }
    }
}

/// The bytes after three repairs, and what is wrong with the plans themselves.
fn repaired_three_times(damaged: &[u8], modes: [Mode; 3]) -> (Vec<u8>, Vec<(Harm, String)>) {
    let mut bytes = damaged.to_vec();
    let mut harms = Vec::new();
    for mode in modes {
        let wishes = RepairOptions::new(mode);
        let Ok(plan) = planned(&bytes, &wishes) else {
            break;
        };
        if plan.is_empty() {
            continue;
        }
        let growth = plan.length_bytes_after - plan.length_bytes;
        if growth > MAX_GROWTH_BYTES {
            harms.push((Harm::Grown, format!("by {growth} bytes")));
            break;
        }
        crate::plan::apply(&plan, &mut bytes);
        let again = planned(&bytes, &wishes).expect("it could be opened before");
        if !again.is_empty() {
            let kinds: Vec<_> = again
                .stages
                .iter()
                .map(|it| (it.kind, &it.changes))
                .collect();
            harms.push((Harm::SecondPlan, format!("{mode:?} plans {kinds:?}")));
        }
    }
    (bytes, harms)
}
