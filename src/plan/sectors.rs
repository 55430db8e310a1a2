//! From patches of single counts and flags to whole sectors, stage by stage.
//!
//! Comes in: patches, in any order. Goes out: stages of edits that name what must be there before and after. Never here:
//! why a patch is made. A sector is what a disk writes whole or not at all.

use std::collections::BTreeMap;
use std::io;

use super::changes::{Fresh, FreshCopy, Patch};
use super::{CopyEdit, Edit, Stage, StageKind};
use crate::finding::Code;
use crate::qcow2::put_bits;
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
        stages.count(StageKind::WriteNew, new.because);
    }
    for copy in copies {
        stages.of(StageKind::WriteNew).copies.push(CopyEdit {
            from: copy.from.0 * cluster_bytes,
            to: copy.to.0 * cluster_bytes,
            bytes: cluster_bytes,
        });
        stages.count(StageKind::WriteNew, copy.because);
    }
    patches.sort_by_key(|patch| (sector_of(patch), patch.stage));
    for of_sector in patches.chunk_by(|left, right| sector_of(left) == sector_of(right)) {
        let Some(first) = of_sector.first() else {
            continue;
        };
        let offset = sector_of(first) * SECTOR as u64;
        let mut now = read_sector(storage, offset, length_bytes)?;
        for of_stage in of_sector.chunk_by(|left, right| left.stage == right.stage) {
            let before = now.clone();
            for patch in of_stage {
                let was = now.clone();
                apply(patch, &mut now);
                if now != was {
                    stages.count(patch.stage, patch.because);
                }
            }
            if let Some(patch) = of_stage.first().filter(|_| now != before) {
                stages.of(patch.stage).push(offset, &before, &now);
            }
        }
    }
    Ok(stages.0.into_values().collect())
}

fn sector_of(patch: &Patch) -> u64 {
    patch.offset / SECTOR as u64
}

fn apply(patch: &Patch, sector: &mut [u8]) {
    let start = usize::try_from(patch.offset % SECTOR as u64).unwrap_or(0);
    if let Some(bytes) = sector.get_mut(start..start + patch.bytes) {
        put_bits(bytes, patch.mask, patch.value);
    }
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

    fn count(&mut self, kind: StageKind, because: Code) {
        *self.of(kind).changes.entry(because).or_insert(0) += 1;
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
