//! From patches of counts and flags to whole sectors, stage by stage.
//!
//! Comes in: patches, in any order. Goes out: stages of edits that name what must be there before and after. Never here:
//! why a patch is made. A sector is what a disk writes whole or not at all.

use std::collections::BTreeMap;
use std::io;

use super::changes::{Fresh, FreshCopy, Patch};
use super::{CopyEdit, Edit, Stage, StageKind};
use crate::finding::Code;
use crate::storage::Storage;

/// Bytes in a sector.
const SECTOR: usize = 512;
/// Neighbouring sectors of a stage become one edit of at most this many bytes.
const MAX_EDIT_BYTES: usize = 1 << 20;

/// Lays changes out as stages of whole sectors; a patch that changes nothing makes no edit.
///
/// A file may end inside a sector; a patch's edit then ends there too, so that no patch grows the file by accident. Only
/// fresh clusters and copies do.
pub(super) fn lay_out(
    storage: &impl Storage,
    mut patches: Vec<Patch>,
    fresh: Vec<Fresh>,
    copies: &[FreshCopy],
    cluster_bytes: u64,
) -> io::Result<Vec<Stage>> {
    let length_bytes = storage.length_bytes()?;
    let mut stages = Stages::default();
    for new in fresh {
        let offset = new.cluster.0 * cluster_bytes;
        let offsets = (offset..).step_by(MAX_EDIT_BYTES);
        for (offset, after) in offsets.zip(new.bytes.chunks(MAX_EDIT_BYTES)) {
            let in_file = length_bytes.saturating_sub(offset).min(after.len() as u64);
            let mut before = vec![0; usize::try_from(in_file).unwrap_or(0)];
            storage.read_at(offset, &mut before)?;
            stages.of(StageKind::WriteNew).push(offset, &before, after);
        }
        stages.count(StageKind::WriteNew, new.because, 1);
    }
    for copy in copies {
        stages.of(StageKind::WriteNew).copies.push(CopyEdit {
            from: copy.from.0 * cluster_bytes,
            to: copy.to.0 * cluster_bytes,
            bytes: cluster_bytes,
        });
        stages.count(StageKind::WriteNew, copy.because, 1);
    }
    patches.sort_by_key(|patch| (patch.sector(), patch.stage));
    for of_sector in patches.chunk_by(|left, right| left.sector() == right.sector()) {
        let Some(first) = of_sector.first() else {
            continue;
        };
        let offset = first.sector() * SECTOR as u64;
        let mut now = read_sector(storage, offset, length_bytes)?;
        for of_stage in of_sector.chunk_by(|left, right| left.stage == right.stage) {
            let before = now.clone();
            for patch in of_stage {
                let changed = patch.apply(&mut now);
                if changed > 0 {
                    stages.count(patch.stage, patch.because, changed);
                }
            }
            if let Some(patch) = of_stage.first().filter(|_| now != before) {
                stages.of(patch.stage).push(offset, &before, &now);
            }
        }
    }
    Ok(stages.0.into_values().collect())
}

/// Stages in the making, by kind.
#[derive(Default)]
struct Stages(BTreeMap<StageKind, Stage>);

impl Stages {
    fn of(&mut self, kind: StageKind) -> &mut Stage {
        self.0.entry(kind).or_insert_with(|| Stage {
            kind,
            edits: Vec::new(),
            copies: Vec::new(),
            changes: BTreeMap::new(),
        })
    }

    fn count(&mut self, kind: StageKind, because: Code, changed: u64) {
        *self.of(kind).changes.entry(because).or_insert(0) += changed;
    }
}

/// Reads a sector, as far as the file has it.
fn read_sector(storage: &impl Storage, offset: u64, length_bytes: u64) -> io::Result<Vec<u8>> {
    let in_file = length_bytes.saturating_sub(offset).min(SECTOR as u64);
    let mut sector = vec![0; usize::try_from(in_file).unwrap_or(SECTOR)];
    storage.read_at(offset, &mut sector)?;
    Ok(sector)
}

impl Stage {
    /// Adds a sector, to the last edit if it follows it.
    fn push(&mut self, offset: u64, before: &[u8], after: &[u8]) {
        if let Some(last) = self.edits.last_mut()
            && last.offset + last.after.len() as u64 == offset
            && last.after.len() < MAX_EDIT_BYTES
            && last.after.len().is_multiple_of(SECTOR)
            && last.before.len() == last.after.len()
        {
            last.before.extend_from_slice(before);
            last.after.extend_from_slice(after);
            return;
        }
        self.edits.push(Edit {
            offset,
            before: before.to_vec(),
            after: after.to_vec(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BECAUSE: Code = Code::RefcountZero;

    #[test]
    #[expect(clippy::cast_possible_truncation, reason = "any bytes will do")]
    fn neighbouring_counts_in_one_patch_are_changed_and_counted_one_by_one() {
        for order in 0..=6 {
            let storage: Vec<u8> = (0..2048_u32).map(|at| (at * 7 / 3) as u8).collect();
            let (mut one_by_one, mut together) = (Vec::new(), Vec::new());
            let in_sector = 4096_u64 >> order;
            let odd = in_sector / 3..in_sector + 5;
            for (index, count) in odd.map(|index| (index, u64::from(index % 16 == 3))) {
                let patch =
                    Patch::refcount(StageKind::LowerRefcounts, BECAUSE, 512, order, index, count);
                one_by_one.push(patch);
                patch.add_to(&mut together);
            }
            assert!(
                together.len() * 2 < one_by_one.len() || order == 6,
                "order {order}"
            );
            let laid = |patches| {
                lay_out(&storage, patches, Vec::new(), &[], 512).expect("memory can be read")
            };
            assert_eq!(laid(together), laid(one_by_one), "order {order}");
        }
    }

    #[test]
    fn stages_of_one_sector_build_on_each_other() {
        let storage = vec![0_u8; 2048];
        let patches = vec![
            Patch::refcount(StageKind::LowerRefcounts, BECAUSE, 512, 4, 1, 7),
            Patch::refcount(StageKind::RaiseRefcounts, BECAUSE, 512, 4, 0, 9),
            Patch::refcount(StageKind::RaiseRefcounts, BECAUSE, 1024, 4, 0, 9),
        ];
        let stages = lay_out(&storage, patches, Vec::new(), &[], 512).expect("memory can be read");
        assert_eq!(stages.len(), 2);
        assert_eq!(stages[0].kind, StageKind::RaiseRefcounts);
        assert_eq!(
            stages[0].edits.len(),
            1,
            "neighbouring sectors are one edit"
        );
        assert_eq!(stages[0].edits[0].after.len(), 1024);
        assert_eq!(stages[1].edits[0].before[1], 9);
        assert_eq!(stages[1].edits[0].after[3], 7);
    }
}
