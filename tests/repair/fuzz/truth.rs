//! What a repair did, held against the truth: the image before it was damaged.
//!
//! Comes in: the image healthy, damaged and repaired. Goes out: every [`Harm`] that the repair did. Never here: harm that
//! the damage did, or that undoes itself.
//!
//! What a cluster is needed for is told by the healthy image, path by path. A path that the damage left alone and the
//! repair leads elsewhere needs its cluster no longer: what it leads to then is compared as guest content. A path that is
//! damaged still needs what it led to, for whoever restores it.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{COPIED, Kind, OFFSET_BITS, References, View};
use crate::repair::guest::Guest;

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Harm {
    /// A cluster that is needed has a count of zero, and had one.
    Freed,
    /// The same, where nothing in the damaged image names the cluster any more: a leak like any other. Nobody can tell.
    FreedUnnamed,
    /// A cluster has a smaller count than it is needed for, and had a larger one.
    Lowered,
    /// The same for compressed data, where nothing in the damaged image names the cluster that often any more.
    LoweredUnnamed,
    /// COPIED is set on a cluster that something else needs too.
    CopiedSet,
    /// Other bytes are in a cluster of guest data, or in a table that nothing leads to.
    Overwritten,
    /// Guest content of a tree that could be read is lost or different.
    GuestChanged,
    /// A bitmap that the directory still lists is gone, though nothing of it was damaged.
    BitmapDropped,
    /// The same for one whose directory, table or bits are damaged, or that a guest's entry leads into.
    BitmapSpoilt,
    /// The repair wants to go on where it ended.
    SecondPlan,
    /// The file has grown by more than a repair can need.
    Grown,
}

/// A healthy image, and what can be said of it once for all damages.
pub(super) struct Truth<'a> {
    pub(super) view: View<'a>,
    references: References,
    /// Names of the trees that are there.
    trees: BTreeSet<String>,
}

impl<'a> Truth<'a> {
    pub(super) fn of(view: View<'a>) -> Self {
        let guest = Guest::of(view.bytes);
        Self {
            view,
            references: view.references(),
            trees: guest.trees.keys().map(ToString::to_string).collect(),
        }
    }

    /// All harm that was done between the damaged bytes and the repaired ones.
    pub(super) fn judge(&self, damaged: &[u8], repaired: &[u8]) -> Vec<(Harm, String)> {
        let bits = self.view.cluster_bits;
        let comparison = Comparison {
            truth: self,
            damaged: View::new(damaged, bits),
            repaired: View::new(repaired, bits),
            damaged_references: View::new(damaged, bits).references(),
            repaired_references: View::new(repaired, bits).references(),
        };
        let mut harms = self.changed_content(damaged, repaired);
        // With another cluster size or refcount width the bytes mean something else.
        if comparison.damaged.u32(20) == u64::from(bits) {
            comparison.judge_clusters(&mut harms);
            comparison.judge_bitmaps(&mut harms);
        }
        harms
    }

    /// Content of trees that are there in truth; what garbage reads as is nobody's.
    fn changed_content(&self, damaged: &[u8], repaired: &[u8]) -> Vec<(Harm, String)> {
        let losses = Guest::of(damaged).losses(&Guest::of(repaired));
        let is_real = |loss: &String| self.trees.iter().any(|name| loss.starts_with(name));
        let real = losses.into_iter().filter(is_real);
        real.map(|loss| (Harm::GuestChanged, loss)).collect()
    }
}

struct Comparison<'a> {
    truth: &'a Truth<'a>,
    damaged: View<'a>,
    repaired: View<'a>,
    damaged_references: References,
    repaired_references: References,
}

/// How a cluster is needed in truth, and used in the damaged image.
#[derive(Clone, Copy)]
struct Need {
    kind: Kind,
    /// How many paths need it.
    count: u64,
    /// How many of them lead to it in the damaged image.
    still: u64,
}

impl Comparison<'_> {
    fn needs(&self) -> BTreeMap<u64, Need> {
        let mut needs: BTreeMap<u64, Need> = BTreeMap::new();
        for (path, &(kind, cluster)) in &self.truth.references {
            let leads_there = |references: &References| {
                references.get(path).is_some_and(|&(_, to)| to == cluster)
            };
            let was = leads_there(&self.damaged_references);
            if !kind.is_live() || (was && !leads_there(&self.repaired_references)) {
                continue;
            }
            let need = needs.entry(cluster).or_insert(Need {
                kind,
                count: 0,
                still: 0,
            });
            need.count += 1;
            need.still += u64::from(was);
        }
        needs
    }

    fn judge_clusters(&self, harms: &mut Vec<(Harm, String)>) {
        let order = self.truth.view.refcount_order();
        let has_counts = [self.damaged, self.repaired]
            .iter()
            .all(|view| view.refcount_order() == order);
        let used: BTreeSet<u64> = self.damaged_references.values().map(|it| it.1).collect();
        let needs = self.needs();
        for (&cluster, need) in &needs {
            // What was cut off is not the repair's business.
            if cluster >= self.damaged.cluster_count() {
                continue;
            }
            let mut harm = |harm: Harm, what: String| {
                let Need { kind, count, still } = need;
                let text =
                    format!("cluster {cluster} ({kind:?}, needed {count}, used {still}): {what}");
                harms.push((harm, text));
            };
            if has_counts && let Some((kind, what)) = self.judge_count(cluster, *need) {
                harm(kind, what);
            }
            let is_changed = !self
                .repaired
                .cluster(cluster)
                .starts_with(self.damaged.cluster(cluster));
            let is_kept = need.kind.is_guest_data() || !used.contains(&cluster);
            if is_changed && is_kept {
                harm(Harm::Overwritten, "other bytes".to_owned());
            }
        }
        self.judge_flags(&needs, harms);
    }

    fn judge_count(&self, cluster: u64, need: Need) -> Option<(Harm, String)> {
        let was = self.damaged.stored_count(cluster);
        let is = self.repaired.stored_count(cluster)?;
        let content = self.damaged.cluster(cluster);
        let is_blank = content.iter().all(|&byte| byte == 0);
        let floor = was.unwrap_or(u64::from(!is_blank)).min(need.count);
        if is >= floor {
            return None;
        }
        let what = format!("count {was:?} -> {is}");
        if is > 0 {
            let is_unnamed = need.kind == Kind::Compressed && need.still <= is;
            let harm = if is_unnamed {
                Harm::LoweredUnnamed
            } else {
                Harm::Lowered
            };
            return Some((harm, what));
        }
        let is_intact = self.truth.view.cluster(cluster).starts_with(content);
        let is_worthless = is_blank || !is_intact;
        let is_unnamed = need.kind.is_guest_data() && need.still == 0 && !self.is_named(cluster);
        // An empty table that is still led to is no less a table.
        if is_worthless && need.still == 0 && !need.kind.is_guest_data() {
            return None;
        }
        let harm = if is_unnamed {
            Harm::FreedUnnamed
        } else {
            Harm::Freed
        };
        Some((harm, what))
    }

    /// Whether a table of the healthy image still names a cluster, in the damaged one.
    fn is_named(&self, cluster: u64) -> bool {
        let tables = self.truth.references.values();
        let tables = tables.filter(|(kind, _)| kind.is_live() && !kind.is_guest_data());
        let tables: BTreeSet<u64> = tables.map(|&(_, cluster)| cluster).collect();
        let bits = self.damaged.cluster_bits;
        let mut words = self.damaged.words_naming(cluster);
        words.any(|offset| tables.contains(&(offset >> bits)))
    }

    /// COPIED flags that are set now and were not, on what more than one path needs.
    fn judge_flags(&self, needs: &BTreeMap<u64, Need>, harms: &mut Vec<(Harm, String)>) {
        for (offset, cluster) in self.repaired.copied_entries() {
            let was = self.damaged.u64(offset);
            let is = self.repaired.u64(offset);
            let is_new = was & COPIED == 0 && was & OFFSET_BITS == is & OFFSET_BITS;
            let need = needs.get(&cluster).map_or(0, |need| need.count);
            if is_new && need >= 2 {
                let stored = self.damaged.stored_count(cluster);
                let what = format!("word {offset:#x}, cluster {cluster}, count was {stored:?}");
                harms.push((Harm::CopiedSet, what));
            }
        }
    }

    fn judge_bitmaps(&self, harms: &mut Vec<(Harm, String)>) {
        let names = (self.truth.view.bitmap_names(), self.damaged.bitmap_names());
        let (Some(were), Some(listed)) = names else {
            return;
        };
        let left = self.repaired.bitmap_names().unwrap_or_default();
        let lost = were.iter().filter(|name| !left.contains(name));
        let harm = if self.is_bitmap_spoilt() {
            Harm::BitmapSpoilt
        } else {
            Harm::BitmapDropped
        };
        for name in lost.filter(|name| listed.contains(name)) {
            harms.push((harm, name.escape_ascii().to_string()));
        }
    }

    /// Whether clusters of bitmaps have other content than in truth, or something leads into them.
    fn is_bitmap_spoilt(&self) -> bool {
        let used: BTreeSet<u64> = self.damaged_references.values().map(|it| it.1).collect();
        let truth = self.truth.view;
        let mut clusters = truth.bitmap_clusters().into_iter();
        clusters.any(|cluster| {
            used.contains(&cluster) || truth.cluster(cluster) != self.damaged.cluster(cluster)
        })
    }
}
