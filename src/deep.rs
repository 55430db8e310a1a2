//! The deep read: the data itself, as far as anything can be said of it without a checksum and without a key.
//!
//! Comes in: an image that was checked. Goes out: findings in its [`Check`]: compressed clusters that do not unpack, bytes
//! the disk cannot read, key slots that cannot be right, bitmap bits that stand for nothing. Never here: a judgement on
//! what a guest has written; more memory than a few clusters for each thread and one bounded list; another file.
//!
//! Clusters are read in the order of the disk. Holes the file system knows of are stepped over.

mod bitmap_tails;
mod compressed;
mod decompress;
mod key_slots;
mod readable;
mod spans;

use crate::check::Check;
use crate::coverage::{Gap, GapKind};
use crate::image::Image;
use crate::progress::Progress;
use crate::qcow2::Place;
use crate::storage::Storage;
use crate::walk::batch::{GroupVisitor, read_tables};
use crate::walk::l2_table::{Mapped, Rules};
use crate::walk::{self, L2Item, Notes, Walk};

/// Reads everything an image holds and adds what is wrong with it to a check.
///
/// Where the check has no cluster size to go by, or was stopped, nothing is read; the coverage says so already.
pub fn deep_read<S: Storage>(image: &Image<S>, check: &mut Check, progress: &Progress) {
    let Some(geometry) = image.geometry() else {
        return;
    };
    if check.coverage.is_stopped() {
        return;
    }
    let walk = Walk {
        image,
        geometry,
        progress,
        data_file_bytes: None,
    };
    let lost_before = image.lost_reads();
    // What there is to say of the small structures the check has said, unless they cannot be read any more.
    let mut again = Notes::default();
    let survey = walk::survey(walk, &mut again);
    let mut notes = Notes::default();
    key_slots::judge_key_slots(walk, &mut notes);
    bitmap_tails::judge_bitmap_tails(walk, &mut notes);
    compressed::unpack_all(walk, &survey, &mut notes);
    readable::read_all(walk, &survey, &mut notes);
    if image.header().has_data_file() {
        notes.gap(Gap {
            place: Place::File,
            kind: GapKind::OutOfReach,
            detail: "the external data file was not opened, so its data was not read".to_owned(),
        });
    }
    if progress.is_stopped() {
        notes.gap(Gap::stopped(Place::File));
    }
    check.findings.append(notes.findings);
    check.coverage.append(notes.coverage);
    check.coverage.append_new_failures(again.coverage);
    check.coverage.own_up(&lost_before, image.lost_reads());
    check.reconsider(true);
}

/// Visits every entry of some L2 tables that maps something. Gives what was gathered in each group of tables, in order.
///
/// Tables that cannot be read are a gap of the check already: it has read them all.
fn gather<S, T>(
    walk: Walk<'_, S>,
    tables: &[L2Item],
    each: impl Fn(&mut T, &L2Item, Mapped) + Sync,
) -> Vec<T>
where
    S: Storage,
    T: Default + Send,
{
    let rules = Rules::new(walk);
    let visitors = read_tables(walk, tables, || Visitor {
        rules: &rules,
        each: &each,
        gathered: T::default(),
    });
    let gathered = visitors.into_iter().map(|visitor| visitor.gathered);
    gathered.collect()
}

struct Visitor<'a, T, F> {
    rules: &'a Rules,
    each: &'a F,
    gathered: T,
}

impl<T, F> GroupVisitor<L2Item> for Visitor<'_, T, F>
where
    T: Send,
    F: Fn(&mut T, &L2Item, Mapped) + Sync,
{
    const PASSES_OVER_ZEROS: bool = true;

    fn visit(&mut self, item: &L2Item, bytes: &[u8]) {
        let Self {
            rules,
            each,
            gathered,
        } = self;
        rules.walk_table(item, bytes, None, |mapped| each(gathered, item, mapped));
    }

    fn miss(&mut self, _: &L2Item, _: Gap) {}
}
