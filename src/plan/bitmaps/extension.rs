//! The header extension of the bitmaps: its length and its fields, corrected where the directory says what they were, and
//! its end.
//!
//! Comes in: the extension as it is. Goes out: the extension as it was, proven by the bitmaps it leads to; or the words that
//! take it out of the header. Never here: a guess between two that would both do, a second field corrected at once.

use std::cmp::Reverse;
use std::io;

use super::{Directory, Repair};
use crate::finding::Code;
use crate::image::read_extensions;
use crate::plan::changes::{Changes, Patch};
use crate::plan::{StageKind, Withheld};
use crate::qcow2::{
    BITMAPS_EXTENSION_BYTES, BitmapDirectoryEntry, BitmapsExtension, ClusterRange, DirectoryDecode,
    Extension, ExtensionArea, ExtensionKind, HostCluster, MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAP_NAME_BYTES, MAX_BITMAPS, SECTOR_BYTES, words,
};
use crate::refcount_map::ClusterSet;
use crate::storage::Storage;
use crate::walk::bitmaps::judge_extension;

/// More than a directory entry has that no program gave extra data.
const USUAL_ENTRY_BYTES: u64 = 24 + (MAX_BITMAP_NAME_BYTES as u64).next_multiple_of(8);

impl<S: Storage> Repair<'_, '_, S> {
    /// The extension area as it is with 24 bytes of bitmaps extension, where it has another number now and makes sense
    /// with that one.
    pub(super) fn with_right_length(&self, extension: &Extension) -> Option<ExtensionArea> {
        let length = usize::try_from(BITMAPS_EXTENSION_BYTES).ok()?;
        if extension.data.len() == length {
            return None;
        }
        let image = self.examination.walk.image;
        let mut bytes = image.header_bytes().to_vec();
        let start = usize::try_from(extension.offset).ok()?.checked_add(4)?;
        let field = bytes.get_mut(start..start.checked_add(4)?)?;
        field.copy_from_slice(&BITMAPS_EXTENSION_BYTES.to_be_bytes());
        let area = read_extensions(image.header(), &bytes);
        let found = area.find(ExtensionKind::Bitmaps)?;
        (area.overrun.is_none() && found.offset == extension.offset).then_some(area)
    }

    /// Whether the bitmaps of an extension area are all that they should be.
    pub(super) fn is_sound_area(&self, area: &ExtensionArea) -> io::Result<bool> {
        let extension = area.find(ExtensionKind::Bitmaps);
        let judged = extension.map(|extension| judge_extension(self.examination.walk, extension));
        let Some(Ok(bitmaps)) = judged else {
            return Ok(false);
        };
        let directory = self.read_directory(bitmaps)?;
        let stays = self.stays(&directory);
        Ok(directory.is_whole && stays.iter().all(|&stays| stays))
    }

    /// The extension with one field corrected, if every bitmap is sound with it.
    ///
    /// The count and the size of the directory say the same twice. More bitmaps are tried before fewer: what lies behind
    /// the last one and is sound, and counted, is a bitmap.
    pub(super) fn with_right_fields(
        &self,
        extension: &Extension,
    ) -> io::Result<Option<BitmapsExtension>> {
        let Some(now) = BitmapsExtension::decode(&extension.data) else {
            return Ok(None);
        };
        let candidates = if now.reserved == 0 {
            let by_size = self.measure(now, MAX_BITMAPS, now.directory_bytes)?;
            let by_size = by_size.filter(|(_, bytes)| *bytes == now.directory_bytes);
            let usual_bytes = u64::from(now.bitmap_count).saturating_mul(USUAL_ENTRY_BYTES);
            let by_count = self.measure(now, now.bitmap_count, usual_bytes)?;
            let by_count = by_count.filter(|(count, _)| *count == now.bitmap_count);
            let with_count = by_size.map(|(bitmap_count, _)| BitmapsExtension {
                bitmap_count,
                ..now
            });
            let with_bytes = by_count.map(|(_, directory_bytes)| BitmapsExtension {
                directory_bytes,
                ..now
            });
            [with_count, with_bytes]
        } else {
            [Some(BitmapsExtension { reserved: 0, ..now }), None]
        };
        let mut candidates: Vec<BitmapsExtension> = candidates.into_iter().flatten().collect();
        candidates.sort_by_key(|candidate| Reverse(candidate.bitmap_count));
        for candidate in candidates {
            if candidate != now && self.is_proven(extension, candidate)? {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// How many entries, at most `max_count`, lie whole in the first `max_bytes` of the directory, and how long they are.
    fn measure(
        &self,
        bitmaps: BitmapsExtension,
        max_count: u32,
        max_bytes: u64,
    ) -> io::Result<Option<(u32, u64)>> {
        let walk = self.examination.walk;
        let offset = bitmaps.directory_offset;
        let in_file = walk.geometry.file_bytes().saturating_sub(offset.0);
        let bytes = max_bytes.min(in_file).min(MAX_BITMAP_DIRECTORY_BYTES);
        if bytes == 0 || !walk.geometry.is_aligned(offset) {
            return Ok(None);
        }
        let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
        walk.image.read_into(offset, &mut content)?;
        let mut rest = content.as_slice();
        let (mut count, mut end) = (0, 0);
        while count < max_count {
            let DirectoryDecode::Entry(_, step) = BitmapDirectoryEntry::decode(rest) else {
                break;
            };
            let step_bytes = usize::try_from(step).unwrap_or(usize::MAX);
            rest = rest.get(step_bytes..).unwrap_or(&[]);
            end += step;
            count += 1;
        }
        Ok(Some((count, end)))
    }

    /// Whether every bitmap of a corrected extension is sound, and each of its clusters counted, once, for nothing else.
    fn is_proven(&self, extension: &Extension, candidate: BitmapsExtension) -> io::Result<bool> {
        let data = candidate.encode().map(u64::to_be_bytes).concat();
        let corrected = Extension {
            data,
            ..extension.clone()
        };
        let Ok(bitmaps) = judge_extension(self.examination.walk, &corrected) else {
            return Ok(false);
        };
        let directory = self.read_directory(bitmaps)?;
        let stays = self.stays(&directory);
        let is_sound = directory.is_whole && stays.iter().all(|&stays| stays);
        Ok(is_sound && self.is_counted_once(&directory))
    }

    /// Whether each cluster of the directory and its bitmaps has a count of one, and none of them another user.
    fn is_counted_once(&self, directory: &Directory) -> bool {
        let known = ClusterSet::new();
        let claims = self.examination.survey.claims.iter();
        let of_bitmaps = claims.filter(|claim| super::BITMAP_KINDS.contains(&claim.kind));
        for range in ClusterRange::merged(of_bitmaps.map(|claim| claim.clusters).collect()) {
            known.insert_run(range);
        }
        let differences = self.examination.differences();
        let is_right = |cluster: HostCluster| match differences.get(cluster) {
            Some(difference) => {
                let expected = u64::from(known.contains(cluster));
                difference.stored == Some(1) && difference.expected == expected
            }
            None => known.contains(cluster),
        };
        let seen = ClusterSet::new();
        let bitmaps = directory.listed.iter().flat_map(|bitmap| &bitmap.claims);
        let bitmaps = bitmaps.map(|claim| claim.clusters);
        let mut clusters = bitmaps
            .chain(directory.clusters)
            .flat_map(ClusterRange::clusters);
        clusters.all(|cluster| {
            let is_new = !seen.contains(cluster);
            seen.insert(cluster);
            is_new && is_right(cluster)
        })
    }

    /// The words of the extension that change.
    pub(super) fn correct_fields(
        &self,
        extension: &Extension,
        corrected: BitmapsExtension,
    ) -> Vec<Patch> {
        let stage = StageKind::CorrectEntries;
        let offsets = (extension.offset + 8..).step_by(8);
        let words = offsets.zip(corrected.encode());
        words
            .map(|(offset, word)| Patch::word(stage, self.because(), offset, word))
            .collect()
    }

    /// Ends the life of the extension, where that takes one sector. Elsewhere it stays, and nothing believes it.
    pub(super) fn remove_extension(
        &self,
        area: &ExtensionArea,
        extension: &Extension,
        changes: &mut Changes,
    ) {
        if let Some(patches) = self.removal(area, extension) {
            changes.patches.extend(patches);
            return;
        }
        let reason = "the extension cannot be taken out of the header in one sector; nothing believes it any more, and the next \
            program that writes to the image drops it";
        changes.withheld.push(Withheld {
            code: Code::BitmapsStale,
            count: 1,
            reason: reason.to_owned(),
        });
    }

    /// The words of the extension area that change when the extension goes, if they are all in one sector.
    fn removal(&self, area: &ExtensionArea, extension: &Extension) -> Option<Vec<Patch>> {
        let step = |extension: &Extension| 8 + (extension.data.len() as u64).next_multiple_of(8);
        let start = extension.offset;
        if !start.is_multiple_of(8) || area.overrun.is_some() {
            return None;
        }
        let last = area.extensions.last()?;
        if last.offset == start {
            return Some(self.words_at(start, [0]));
        }
        let end = last.offset + step(last);
        if start / SECTOR_BYTES != (end - 1) / SECTOR_BYTES {
            return None;
        }
        let range =
            |from: u64, to: u64| Some(usize::try_from(from).ok()?..usize::try_from(to).ok()?);
        let header_bytes = self.examination.walk.image.header_bytes();
        let mut later = header_bytes
            .get(range(start + step(extension), end)?)?
            .to_vec();
        // What follows is zero, and so an end marker.
        later.resize(usize::try_from(end - start).ok()?, 0);
        Some(self.words_at(start, words(&later)))
    }
}
