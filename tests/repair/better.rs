//! Better: what a plan may find more often afterwards, and what it does where nothing is found less often.
//!
//! Comes in: forged images with two damages, one of which stays. Goes out: the image repaired as far as it can be. Never
//! here: a plan that is refused because something harmless came of it.

use qfsck::{Code, StageKind};

use super::overlaps::{filled, share, small};
use super::{Repaired, all, repaired};
use crate::support::image_forge::{Forge, Forged, Tree};

const COPIED: u64 = 1 << 63;

fn six_clusters(bits: u32) -> Forge {
    let forge = Forge::new().cluster_bits(bits).size(64 << bits);
    (0..6).fold(forge, Forge::data)
}

fn counts(done: &Repaired, code: Code) -> (u64, u64) {
    let count = |check: &qfsck::Check| check.findings.total_of(code).count;
    (count(&done.plan.before), count(&done.plan.after))
}

/// An entry that leads nowhere: it stays, and with it the doubt who owns what.
fn lose_an_entry(image: &mut Forged) {
    image.put_u64(image.l2_entry(Tree::Active, 40), 1 << 40 | COPIED);
}

#[test]
fn count_of_zero_is_raised_even_where_the_flag_must_stay_clear() {
    for bits in [9, 12, 16] {
        let mut image = six_clusters(bits).build();
        lose_an_entry(&mut image);
        let entry = image.l2_entry(Tree::Active, 2);
        image.put_u64(entry, image.u64_at(entry) & !COPIED);
        image.set_refcount(image.host_cluster(Tree::Active, 2), 0);
        let done = repaired(&image.bytes, &all());
        assert_eq!(counts(&done, Code::RefcountZero), (1, 0));
        assert_eq!(counts(&done, Code::CopiedFlagMissing), (0, 0));
        assert_eq!(counts(&done, Code::L2EntryPastEnd), (1, 1));
    }
}

#[test]
fn overlap_that_stays_is_kept_from_spreading() {
    for bits in [9, 12, 16] {
        let mut image = six_clusters(bits).build();
        // What the entry meant looks leaked now, so nobody knows which of the two to copy.
        let table = image.l1_table(Tree::Active);
        let entry = image.l2_entry(Tree::Active, 2);
        image.put_u64(entry, table | COPIED);
        let done = repaired(&image.bytes, &all());
        assert_eq!(counts(&done, Code::MetadataOverlap), (1, 1));
        let kinds: Vec<StageKind> = done.plan.stages.iter().map(|stage| stage.kind).collect();
        assert!(kinds.contains(&StageKind::RaiseRefcounts), "{kinds:?}");
        assert!(kinds.contains(&StageKind::ClearCopied), "{kinds:?}");
    }
}

#[test]
fn what_luks_keeps_from_being_copied_is_not_offered_as_a_choice() {
    let mut image = filled(small().luks(4), 0..6).build();
    share(&mut image, (Tree::Active, 5), (Tree::Active, 3));
    // The cluster that entry 5 named looks leaked: in other images that is a choice.
    let done = repaired(&image.bytes, &all());
    let of_data = |left: &&qfsck::Withheld| left.code == Code::GuestDataShared;
    let reasons: Vec<_> = done.plan.withheld.iter().filter(of_data).collect();
    assert!(!reasons.is_empty(), "{:#?}", done.plan.withheld);
    let offered = reasons
        .iter()
        .find(|left| left.reason.contains("--accept-loss"));
    assert_eq!(offered, None);
    assert!(
        reasons.iter().all(|left| left.reason.contains("LUKS")),
        "{reasons:#?}"
    );
}
