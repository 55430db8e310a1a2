//! The ledger's promises: nothing depends on the order of payment, or on how payments are put together.
//!
//! Comes in: counts and payments made up here. Goes out: suspects, and what is left owed. Never here: an image.

use super::*;
use fastrand::Rng;

const CLUSTER: HostCluster = HostCluster(77_777);

fn ledger(stored: u64) -> Ledger {
    let mut counts = [0; 64];
    counts[usize::try_from(CLUSTER.0 % 64).expect("small")] = stored;
    let ledger = Ledger::new();
    enter(&ledger, CLUSTER.0 / 64 * 64, &counts);
    ledger
}

fn enter(ledger: &Ledger, first: u64, counts: &[u64; 64]) {
    let ones = (0..)
        .zip(counts)
        .fold(0, |ones, (bit, &count)| ones | u64::from(count == 1) << bit);
    let mut entry = ledger.entry();
    entry.owe_ones(HostCluster(first), ones);
    let counts = counts.map(|count| u16::try_from(count).unwrap_or(u16::MAX));
    entry.owe_larger(HostCluster(first), &counts);
}

fn pay(ledger: &Ledger, weight: u64, identity: Identity, flag: CopiedFlag) {
    ledger.directory().pay(
        CLUSTER,
        Payment {
            weight,
            identity,
            flag,
        },
    );
}

fn is_suspect(ledger: &Ledger) -> bool {
    ledger.close();
    ledger.suspects().contains(CLUSTER)
}

#[test]
fn exact_payment_leaves_nothing() {
    let ledger = ledger(1);
    pay(&ledger, 1, Identity::Guest(5), CopiedFlag::Set);
    assert_eq!(ledger.owed(CLUSTER), 0);
    assert!(!is_suspect(&ledger));
    assert!(ledger.unsettled_regions().is_empty());
}

#[test]
fn unpaid_count_is_left_over() {
    for stored in [3, 126, 127, 128, 255, 32_767] {
        let ledger = ledger(stored);
        pay(&ledger, 1, Identity::Guest(5), CopiedFlag::Clear);
        assert_eq!(ledger.owed(CLUSTER), stored - 1);
        assert!(ledger.suspects().is_empty());
        assert_eq!(ledger.unsettled_regions(), [CLUSTER.0 / REGION_CLUSTERS]);
        assert_eq!(
            ledger.unsettled_clusters(CLUSTER.0 / REGION_CLUSTERS),
            [CLUSTER]
        );
    }
}

#[test]
fn paying_what_is_not_owed_is_suspect_in_any_order() {
    for (stored, weights) in [(2, [2, 1]), (2, [1, 2]), (300, [1, 300]), (300, [300, 1])] {
        let ledger = ledger(stored);
        for weight in weights {
            pay(&ledger, weight, Identity::Guest(5), CopiedFlag::Any);
        }
        assert!(is_suspect(&ledger), "{weights:?}");
    }
    let nothing_stored = Ledger::new();
    pay(&nothing_stored, 1, Identity::Metadata, CopiedFlag::Any);
    assert!(is_suspect(&nothing_stored));
}

#[test]
fn copied_flag_is_judged_against_the_stored_count() {
    for (stored, weight, flag, wrong) in [
        (1, 1, CopiedFlag::Set, false),
        (1, 1, CopiedFlag::Clear, true),
        (2, 2, CopiedFlag::Set, true),
        (2, 2, CopiedFlag::Clear, false),
        (2, 2, CopiedFlag::Any, false),
    ] {
        let ledger = ledger(stored);
        pay(&ledger, weight, Identity::Guest(0), flag);
        assert_eq!(is_suspect(&ledger), wrong, "{stored} {weight} {flag:?}");
    }
}

#[test]
fn shared_clusters_must_be_shared_by_their_like() {
    for (first, second, wrong) in [
        (Identity::Guest(1), Identity::Guest(1), false),
        (Identity::Guest(1), Identity::Guest(2), true),
        (Identity::Compressed, Identity::Compressed, false),
        (Identity::Compressed, Identity::Guest(0), true),
        (Identity::Metadata, Identity::Metadata, true),
        (Identity::Guest(1), Identity::Metadata, true),
    ] {
        for (first, second) in [(first, second), (second, first)] {
            let ledger = ledger(2);
            pay(&ledger, 1, first, CopiedFlag::Any);
            pay(&ledger, 1, second, CopiedFlag::Any);
            assert_eq!(is_suspect(&ledger), wrong, "{first:?} {second:?}");
        }
    }
}

/// Clusters the payments below are for; they begin in one region and end in the next.
const CLUSTERS: u64 = 448;
const FIRST: u64 = REGION_CLUSTERS - 192;

fn some_counts(numbers: &mut Rng) -> Vec<u64> {
    (0..CLUSTERS)
        .map(|_| match numbers.u64(..8) {
            0 => 0,
            1..=4 => 1,
            5 | 6 => 2 + numbers.u64(..4),
            _ => 122 + numbers.u64(..10),
        })
        .collect()
}

fn some_run(numbers: &mut Rng) -> (ClusterRange, Payment) {
    let first = numbers.u64(..CLUSTERS - 1);
    let clusters = ClusterRange {
        start: HostCluster(FIRST + first),
        count: 1 + numbers.u64(..CLUSTERS - first),
    };
    let payment = Payment {
        identity: match numbers.u64(..6) {
            0 => Identity::Compressed,
            1 => Identity::Metadata,
            2 => Identity::Guest(first + 7),
            _ => Identity::Guest(first),
        },
        flag: match numbers.u64(..3) {
            0 => CopiedFlag::Set,
            1 => CopiedFlag::Clear,
            _ => CopiedFlag::Any,
        },
        weight: match numbers.u64(..4) {
            0 | 1 => 1,
            2 => 2,
            _ => 122,
        },
    };
    (clusters, payment)
}

/// The suspects, and what is left owed on the others: on a suspect that depends on the order, and nobody asks.
fn outcome(counts: &[u64], pay: impl Fn(&Directory<'_>)) -> (Vec<HostCluster>, Vec<u64>) {
    let ledger = Ledger::new();
    for (first, counts) in (FIRST..).step_by(64).zip(counts.as_chunks().0) {
        enter(&ledger, first, counts);
    }
    pay(&ledger.directory());
    ledger.close();
    let suspects: Vec<HostCluster> = ledger
        .suspects()
        .regions()
        .flat_map(|region| clusters_of_words(region, ledger.suspects().words_of(region)))
        .collect();
    let left = (FIRST..FIRST + CLUSTERS)
        .map(HostCluster)
        .filter(|cluster| !suspects.contains(cluster))
        .map(|cluster| ledger.owed(cluster))
        .collect();
    (suspects, left)
}

fn pay_runs(ledger: &Directory<'_>, runs: &[(ClusterRange, Payment)]) {
    for &(clusters, payment) in runs {
        ledger.pay_run(clusters, payment);
    }
}

#[test]
fn runs_pay_as_single_clusters_do_in_any_order() {
    for seed in 0..300 {
        let mut numbers = Rng::with_seed(seed);
        let counts = some_counts(&mut numbers);
        let mut runs: Vec<(ClusterRange, Payment)> = (0..numbers.u64(..20))
            .map(|_| some_run(&mut numbers))
            .collect();
        let expected = outcome(&counts, |ledger| {
            for &(clusters, payment) in &runs {
                for (distance, cluster) in (0..).zip(clusters.clusters()) {
                    ledger.pay(cluster, payment.after(distance));
                }
            }
        });
        let in_runs = outcome(&counts, |ledger| pay_runs(ledger, &runs));
        assert_eq!(in_runs, expected, "seed {seed}");
        runs.reverse();
        let in_reverse = outcome(&counts, |ledger| pay_runs(ledger, &runs));
        assert_eq!(in_reverse, expected, "seed {seed}, in reverse");
    }
}

/// Clusters of one count, and the next of another.
const STRETCH: u64 = 20;

#[test]
fn runs_that_pay_for_shared_clusters_are_told_apart_by_their_guests() {
    let count_of = |cluster: u64| match cluster / STRETCH % 6 {
        0 | 2 => 2,
        1 => 3,
        3 => 6,
        4 => 130,
        _ => 200,
    };
    let counts: Vec<u64> = (0..CLUSTERS).map(count_of).collect();
    let pay = |ledger: &Directory<'_>, first: u64, end: u64, weight: u64, guest: u64| {
        let clusters = ClusterRange {
            start: HostCluster(FIRST + first),
            count: end - first,
        };
        let payment = Payment {
            weight,
            identity: Identity::Guest(guest),
            flag: CopiedFlag::Any,
        };
        ledger.pay_run(clusters, payment);
    };
    // Of one stretch, so many clusters at its end are paid for by somebody else.
    let suspects = |strange_stretch: u64, strangers: u64| {
        let (suspects, _) = outcome(&counts, |ledger| {
            pay(ledger, 0, CLUSTERS, 1, 1000);
            for first in (0..CLUSTERS.div_ceil(STRETCH)).map(|stretch| stretch * STRETCH) {
                let end = (first + STRETCH).min(CLUSTERS);
                let is_strange = first == strange_stretch * STRETCH;
                let middle = end - if is_strange { strangers } else { 0 };
                let weight = count_of(first) - 1;
                if middle > first {
                    pay(ledger, first, middle, weight, 1000 + first);
                }
                if middle < end {
                    pay(ledger, middle, end, weight, 1001 + middle);
                }
            }
        });
        suspects
    };
    assert_eq!(suspects(0, 0), []);
    for stretch in 0..CLUSTERS / STRETCH {
        for strangers in [1, 3, STRETCH] {
            let last = HostCluster(FIRST + (stretch + 1) * STRETCH - 1);
            let found = suspects(stretch, strangers);
            assert!(found.contains(&last), "{strangers} of stretch {stretch}");
        }
    }
}

#[test]
fn scattered_clusters_pay_as_any_others() {
    for seed in 0..300 {
        let mut numbers = Rng::with_seed(seed);
        let counts = some_counts(&mut numbers);
        let clusters: [HostCluster; 64] = std::array::from_fn(|_| {
            let cluster = FIRST + numbers.u64(..CLUSTERS);
            HostCluster(if numbers.u64(..8) == 0 { 0 } else { cluster })
        });
        let payment = Payment {
            weight: 1,
            identity: Identity::Guest(seed),
            flag: if seed % 2 == 0 {
                CopiedFlag::Set
            } else {
                CopiedFlag::Any
            },
        };
        let expected = outcome(&counts, |ledger| {
            for (distance, cluster) in (0..).zip(clusters).filter(|(_, cluster)| cluster.0 != 0) {
                ledger.pay(cluster, payment.after(distance));
            }
        });
        let found = outcome(&counts, |ledger| ledger.pay_scattered(&clusters, payment));
        assert_eq!(found, expected, "seed {seed}");
    }
}

#[test]
fn compressed_data_in_eight_clusters_is_paid_as_in_each() {
    for seed in 0..300 {
        let mut numbers = Rng::with_seed(seed);
        let mut counts = some_counts(&mut numbers);
        // One thing that does not come out even throws doubt on the whole region: in every other image all does.
        let comes_out_even = seed % 2 == 0;
        if comes_out_even {
            for count in &mut counts {
                *count = Directory::MAX_BYTE.min(*count);
            }
        }
        let clusters = || (FIRST..).map(HostCluster);
        let mut before = Vec::new();
        let payments: Vec<u64> = clusters()
            .zip(&counts)
            .map(|(cluster, &count)| match numbers.u64(..60) {
                0 if !comes_out_even => numbers.u64(..=Directory::MAX_BYTE),
                1 if !comes_out_even => 0,
                // Somebody was here before, who may be somebody else.
                2..=5 if count > 1 => {
                    let payment = match some_run(&mut numbers) {
                        (_, other) if !comes_out_even => Payment { weight: 1, ..other },
                        _ => Payment::for_compressed(1),
                    };
                    before.push((ClusterRange::one(cluster), payment));
                    (count - 1).min(Directory::MAX_BYTE)
                }
                _ => count.min(Directory::MAX_BYTE),
            })
            .collect();
        let expected = outcome(&counts, |ledger| {
            pay_runs(ledger, &before);
            for (cluster, &count) in clusters().zip(&payments).filter(|(_, count)| **count > 0) {
                ledger.pay(cluster, Payment::for_compressed(count));
            }
        });
        let together = outcome(&counts, |ledger| {
            pay_runs(ledger, &before);
            for (first, counts) in clusters().step_by(8).zip(payments.chunks(8)) {
                let bytes = (0..)
                    .zip(counts)
                    .fold(0, |bytes, (lane, count)| bytes | count << (8 * lane));
                ledger.pay_for_compressed(first, bytes);
            }
        });
        assert_eq!(together, expected, "seed {seed}");
    }
}

#[test]
fn counts_beyond_the_counter_are_left_to_the_tally() {
    assert!(is_suspect(&ledger(70_000)));
}
