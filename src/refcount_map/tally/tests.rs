//! Counts, identities and conflicts of suspects, beside a list.
//!
//! Comes in: references in runs and one by one. Goes out: what the tally says of them. Never here: an image.

use super::*;
use fastrand::Rng;

fn suspects(clusters: &[u64]) -> ClusterSet {
    let set = ClusterSet::new();
    for &cluster in clusters {
        set.insert(HostCluster(cluster));
    }
    set
}

#[test]
fn counts_are_exact_beyond_the_small_counter() {
    let cluster = HostCluster(40_000);
    let tally = Tally::new(&suspects(&[39_999, 40_000, 40_064]));
    for _ in 0..3 {
        tally.add(cluster, 40_000, Identity::Guest(1));
    }
    tally.add(cluster, 1 << 40, Identity::Guest(1));
    assert_eq!(tally.count(cluster), 120_000 + (1 << 40));
    assert_eq!(tally.count(HostCluster(40_001)), 0);
    assert!(!tally.has_conflict(cluster));
}

#[test]
fn a_run_counts_for_its_suspects_and_for_nobody_else() {
    let asked = [30_000, 32_703, 32_704, 32_767, 32_768, 32_900, 70_000];
    let (runs, singles) = (Tally::new(&suspects(&asked)), Tally::new(&suspects(&asked)));
    let run = ClusterRange {
        start: HostCluster(32_703),
        count: 197,
    };
    runs.add_run(run, 2, Identity::Guest(7));
    for (cluster, guest_cluster) in run.clusters().zip(7..) {
        singles.add(cluster, 2, Identity::Guest(guest_cluster));
    }
    let counts = |tally: &Tally| asked.map(|cluster| tally.count(HostCluster(cluster)));
    assert_eq!(counts(&runs), [0, 2, 2, 2, 2, 0, 0]);
    assert_eq!(counts(&singles), counts(&runs));
    runs.add(HostCluster(32_768), 1, Identity::Guest(7 + 65));
    assert!(!runs.has_conflict(HostCluster(32_768)));
    runs.add(HostCluster(32_768), 1, Identity::Guest(7));
    assert!(runs.has_conflict(HostCluster(32_768)));
}

/// What somebody would say who keeps a list.
#[derive(Clone, Default)]
struct Listed {
    count: u64,
    identities: Vec<Identity>,
}

impl Listed {
    fn has_conflict(&self) -> bool {
        let first = self.identities.first();
        let differs = self.identities.iter().any(|other| Some(other) != first);
        differs || (self.identities.len() > 1 && first == Some(&Identity::Metadata))
    }
}

const FIRST: u64 = 32_600;
const CLUSTERS: u64 = 300;

/// Suspects, and references to them and their neighbours.
fn some_case(seed: u64) -> (Vec<u64>, Vec<(ClusterRange, u64, Identity)>) {
    let mut numbers = Rng::with_seed(seed);
    let mut below = |limit: u64| numbers.u64(..limit);
    let asked = (FIRST..FIRST + CLUSTERS).filter(|_| below(3) > 0);
    let asked = asked.collect();
    let references = (0..below(12)).map(|_| {
        let start = below(CLUSTERS);
        let clusters = ClusterRange {
            start: HostCluster(FIRST + start),
            count: 1 + below(CLUSTERS - start),
        };
        let identity = match below(8) {
            0 => Identity::Metadata,
            1 => Identity::Compressed,
            2 => Identity::Guest(below(4)),
            // Mostly where its neighbours would be.
            _ => Identity::Guest(start),
        };
        (clusters, 1 + below(5) / 4, identity)
    });
    let references = references.collect();
    (asked, references)
}

#[test]
fn bits_and_counters_together_say_what_a_list_says() {
    for seed in 0..400 {
        let (asked, references) = some_case(seed);
        let tally = Tally::new(&suspects(&asked));
        let mut listed: BTreeMap<u64, Listed> = BTreeMap::new();
        for (clusters, weight, identity) in references {
            tally.add_run(clusters, weight, identity);
            for cluster in clusters.clusters() {
                let one = listed.entry(cluster.0).or_default();
                one.count += weight;
                let identity = identity.after(cluster.0 - clusters.start.0);
                one.identities.push(identity);
            }
        }
        for cluster in (FIRST..FIRST + CLUSTERS).map(HostCluster) {
            let is_asked = asked.contains(&cluster.0);
            let listed = listed.get(&cluster.0).filter(|_| is_asked);
            let one = listed.cloned().unwrap_or_default();
            expect_as_listed(&tally, cluster, is_asked, &one, seed);
        }
    }
}

fn expect_as_listed(tally: &Tally, cluster: HostCluster, is_asked: bool, one: &Listed, seed: u64) {
    let of_region = tally.of_region(locate(cluster).0);
    let about = format!("seed {seed}, {cluster:?}");
    let expected = is_asked.then_some(one.count);
    assert_eq!(of_region.count(cluster), expected, "{about}");
    assert_eq!(tally.has_conflict(cluster), one.has_conflict(), "{about}");
    let has_metadata = one.identities.contains(&Identity::Metadata);
    assert_eq!(tally.has_metadata(cluster), has_metadata, "{about}");
    let bit = cluster.0 % 64;
    let singles = of_region.singles(HostCluster(cluster.0 - bit));
    let is_single = singles.all() >> bit & 1 != 0;
    assert!(!is_single || expected == Some(1), "{about}");
    let mut guests = singles.guests.iter();
    if let Some(guest) = guests.find(|guest| guest.bits >> bit & 1 != 0) {
        let guest_cluster = guest.first_guest_cluster.wrapping_add(bit);
        assert_eq!(one.identities, [Identity::Guest(guest_cluster)], "{about}");
    } else if is_single {
        assert_eq!(one.identities, [Identity::Metadata], "{about}");
    }
}

#[test]
fn guest_data_with_a_table_in_between_is_counted_by_bits_alone() {
    let tally = Tally::new(&suspects(&(100..200).collect::<Vec<_>>()));
    let run = |start: u64, end: u64| ClusterRange {
        start: HostCluster(start),
        count: end - start,
    };
    tally.add_run(run(100, 150), 1, Identity::Guest(7));
    tally.add(HostCluster(150), 1, Identity::Metadata);
    tally.add_run(run(151, 200), 1, Identity::Guest(57));
    let singles = tally.of_region(0).singles(HostCluster(128));
    let guests = singles.guests;
    let guests = guests.map(|guest| (guest.bits.count_ones(), guest.first_guest_cluster));
    assert_eq!((guests, singles.metadata), ([(22, 35), (41, 34)], 1 << 22));
    let mut regions = tally.regions.values();
    assert!(regions.all(|suspects| suspects.region().counters.get().is_none()));
}

#[test]
fn conflicts_and_metadata_are_remembered() {
    let cluster = HostCluster(3);
    let tally = Tally::new(&suspects(&[3]));
    tally.add(cluster, 1, Identity::Guest(1));
    assert!(!tally.has_metadata(cluster));
    tally.add(cluster, 1, Identity::Metadata);
    assert!(tally.has_metadata(cluster) && tally.has_conflict(cluster));
}

#[test]
fn suspects_that_nothing_refers_to_take_a_bit_each() {
    let suspects = ClusterSet::new();
    suspects.insert_run(ClusterRange {
        start: HostCluster(0),
        count: 100_000,
    });
    let tally = Tally::new(&suspects);
    tally.add(HostCluster(40_000), 1, Identity::Guest(7));
    let made: Vec<u64> = tally
        .regions
        .iter()
        .filter(|(_, suspects)| suspects.region.get().is_some())
        .map(|(&region, _)| region)
        .collect();
    assert_eq!(made, [1]);
    assert_eq!(tally.count(HostCluster(40_000)), 1);
    assert_eq!(tally.count(HostCluster(5)), 0);
    assert_eq!(tally.of_region(0).count(HostCluster(5)), Some(0));
    assert_eq!(tally.of_region(3).count(HostCluster(100_001)), None);
    assert!(!tally.has_conflict(HostCluster(5)));
}
