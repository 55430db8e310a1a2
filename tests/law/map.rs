//! The map of host clusters, held against the check it belongs to and against the model.
//!
//! Comes in: an image, the model's opinion on it, its check. Goes out: where the map says something else. Never here: how a
//! map is shown.

use std::path::Path;

use qfsck::{Check, ClusterUse, Code, HostMap, Image, Options, Progress, check_and_map};

use super::model::Opinion;

/// Where the map says something else than the check or the model.
pub(super) fn differences(bytes: &[u8], opinion: &Opinion, check: &Check) -> Vec<String> {
    let of = |max_cells, max_memory_bytes| {
        let options = Options {
            max_memory_bytes,
            ..Options::default()
        };
        map(bytes, max_cells, options, check)
    };
    let maps = (of(1 << 16, None), of(1 << 16, Some(1)), of(7, None));
    let (Ok(fine), Ok(in_passes), Ok(coarse)) = maps else {
        return vec!["map: no map, or another check".to_owned()];
    };
    let mut found = Vec::new();
    let mut expect = |what: &str, is_so: bool| {
        if !is_so {
            found.push(format!("map: {what}: {:?}", fine.total()));
        }
    };
    expect(
        "seven cells hold what many hold",
        fine.total() == coarse.total(),
    );
    expect("any number of passes draws one map", fine == in_passes);
    expect("there are no more than seven", coarse.cells.len() <= 7);
    let clusters = (bytes.len() as u64).div_ceil(fine.cluster_bytes);
    let count = |used| fine.total().count(used);
    let sum: u64 = ClusterUse::WORST_FIRST.into_iter().map(count).sum();
    expect("each cluster is counted once", sum == clusters);

    // The map ends where the file does; a structure may be claimed beyond.
    let total = |codes: &[Code]| -> u64 {
        let findings = check.findings.iter();
        let hosts = findings
            .filter(|finding| codes.contains(&finding.code))
            .filter_map(|finding| finding.host);
        hosts
            .map(|host| host.end().min(clusters).saturating_sub(host.start.0))
            .sum()
    };
    let overlaps = total(&[
        Code::MetadataOverlap,
        Code::GuestDataOverlap,
        Code::GuestDataShared,
    ]);
    expect("overlaps", count(ClusterUse::Overlap) == overlaps);
    let low = total(&[
        Code::RefcountZero,
        Code::RefcountTooLow,
        Code::RefcountOverflow,
    ]);
    expect(
        "counts that are too low",
        count(ClusterUse::Undercounted) == low,
    );
    // A cluster with two faults shows the worse one.
    let leaks = total(&[Code::RefcountLeak]);
    let leak = count(ClusterUse::Leak);
    expect("leaks", leak <= leaks && leak + overlaps >= leaks);

    expect_of_model(&fine, opinion, &mut expect);
    found
}

/// The map, if it comes with the same check.
fn map(bytes: &[u8], max_cells: u64, options: Options, check: &Check) -> Result<HostMap, ()> {
    let image = Image::open(bytes, Path::new("forged.qcow2")).map_err(drop)?;
    let progress = Progress::default();
    let (other, map) = check_and_map(&image, options, max_cells, &progress);
    map.filter(|_| other == *check).ok_or(())
}

/// What the model has to say of it. Where a cluster has a fault, the map shows that rather than its use.
fn expect_of_model(map: &HostMap, opinion: &Opinion, expect: &mut impl FnMut(&str, bool)) {
    let count = |used| map.total().count(used);
    let clusters = map.file_clusters;
    let faults = [
        ClusterUse::Overlap,
        ClusterUse::Undercounted,
        ClusterUse::Leak,
        ClusterUse::Unknown,
    ];
    let hidden: u64 = faults.into_iter().map(count).sum();
    let metadata = count(ClusterUse::Metadata);
    let shown = metadata + count(ClusterUse::Data);
    let in_file = opinion.references.range(..clusters);
    let used = in_file.filter(|(_, references)| **references > 0).count() as u64;
    let structures = opinion.metadata.range(..clusters).count() as u64;
    expect("what is used", shown <= used && shown + hidden >= used);
    let is_so = metadata <= structures && metadata + hidden >= structures;
    expect("structures", is_so);
}
