//! Every decoder, over any bytes.
//!
//! Comes in: bytes. Goes out: nothing, or the decoder that broke its promise. Never here: a structure that has to be found
//! through another; that is the business of `check`.

use std::path::Path;

use qfsck::qcow2::{
    BitmapDirectoryEntry, BitmapTableEntry, BitmapsExtension, DirectoryDecode, FeatureKind,
    Geometry, GuestOffset, Header, HostOffset, L1Entry, L2Descriptor, L2Entry, LuksHeader,
    LuksKeySlot, RefcountTableEntry, Refusal, SnapshotEntry, SnapshotFixed, SubclusterBitmap,
    decode_extensions, feature_name, luks_payload_start, refcount_at, set_refcount_at, words,
};
use qfsck::report::PlanFile;
use qfsck::undo::UndoFile;
use qfsck::{Image, escaped, guest_path};

use super::Bounds;

/// Entries of tables that are decoded: more are more of the same.
const MOST_ENTRIES: usize = 512;

/// Every decoder takes the bytes.
pub(crate) fn holds(input: &[u8], bounds: &impl Bounds) {
    bounds.hold(input.len(), || {
        header(input);
        extensions(input);
        entries(input);
        counts(input);
        snapshots(input);
        bitmaps(input);
        encryption(input);
        let _file = UndoFile::decode(input);
        let _plan = PlanFile::decode(input);
        let shown = escaped(input);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    });
}

fn header(input: &[u8]) {
    let Ok(header) = Header::decode(input) else {
        assert!(Image::open(input, Path::new("input")).is_err());
        return;
    };
    let image = Image::open(input, Path::new("input")).expect("there is a header");
    assert_eq!(&header, image.header());
    assert!(image.header_unchanged().expect("memory can be read"));
    let _name = image.backing_name();
    for offset in [0, 1 << 16, header.size, u64::MAX] {
        let path = guest_path(&image, GuestOffset(offset)).expect("memory can be read");
        assert_eq!(path.is_some(), image.geometry().is_some());
    }
}

fn extensions(input: &[u8]) {
    let area = decode_extensions(input, 112);
    let mut at = 112;
    for extension in &area.extensions {
        assert_eq!(extension.offset, at);
        at += 8 + (extension.data.len() as u64).next_multiple_of(8);
        assert!(extension.offset + 8 + extension.data.len() as u64 <= 112 + input.len() as u64);
        assert!(area.find(extension.kind).is_some());
    }
    for kind in [
        FeatureKind::Incompatible,
        FeatureKind::Compatible,
        FeatureKind::Autoclear,
    ] {
        let name = feature_name(input, kind, u32::from(input.first().copied().unwrap_or(0)));
        assert!(name.is_none_or(|name| name.len() <= 46));
    }
}

/// The geometry the bytes give, or one made of the first few.
fn geometry(input: &[u8]) -> Option<Geometry> {
    let file_bytes = words(input).last().unwrap_or(0);
    if let Ok(header) = Header::decode(input) {
        return Geometry::new(&header, file_bytes);
    }
    let byte = |at: usize| input.get(at).copied().unwrap_or(0);
    let mut template = [0; 112];
    template[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    template[23] = 9 + byte(0) % 13;
    template[79] = byte(1) & 16;
    template[99] = byte(2) % 7;
    Geometry::new(&Header::decode(&template).ok()?, file_bytes)
}

fn entries(input: &[u8]) {
    let Some(geometry) = geometry(input) else {
        return;
    };
    let mut length = 1;
    for word in words(input).take(MOST_ENTRIES) {
        offset(geometry, HostOffset(word), length);
        length = word;
        let entry = L1Entry(word);
        let table = entry.l2_table_offset().unwrap_or(HostOffset(0));
        assert_eq!(entry.moved_to(table, entry.copied()), entry);
        let block = RefcountTableEntry(word).refcount_block_offset();
        let block = block.unwrap_or(HostOffset(0)).0;
        assert_eq!(block | RefcountTableEntry(word).reserved_bits(), word);
        let bitmap = BitmapTableEntry(word);
        let data = bitmap.data_offset().unwrap_or(HostOffset(0)).0;
        assert_eq!((data | bitmap.reserved_bits()) & !1, word & !1);
        let parts = SubclusterBitmap(word);
        assert_eq!(parts.zero() << 32 | parts.allocated(), word);
        mapping(geometry, L2Entry(word), length);
    }
}

/// What is admitted lies in the file.
fn offset(geometry: Geometry, offset: HostOffset, length: u64) {
    let end_of_file = geometry.file_clusters();
    match geometry.admit(offset) {
        Ok(cluster) => {
            assert_eq!(geometry.offset_of(cluster), offset);
            assert!(offset.0 < geometry.file_bytes() && cluster.0 < end_of_file);
        }
        Err(Refusal::Unaligned) => assert!(!geometry.is_aligned(offset)),
        Err(_) => assert!(offset.0 >= geometry.file_bytes()),
    }
    let table = geometry.admit_table(offset, length);
    let extent = geometry.admit_extent(offset, length);
    for range in [table, extent].into_iter().flatten() {
        assert!(range.start.0.checked_add(range.count).is_some());
        assert!(range.end() <= end_of_file + 1, "{range:?} of {end_of_file}");
    }
    if let Some(range) = geometry.clip_table(offset, length) {
        assert!(range.end() <= end_of_file, "{range:?} of {end_of_file}");
    }
    let _range = geometry.guest_range(geometry.guest_cluster(offset.0, length), length);
    let _needed = geometry.l1_entries_needed(length);
}

fn mapping(geometry: Geometry, entry: L2Entry, other: u64) {
    let standard = entry.standard_offset();
    let _odd = entry.0 & L2Entry::odd_bits(geometry);
    if let L2Descriptor::Compressed(extent) = entry.descriptor(geometry) {
        assert!(entry.is_compressed() && extent.sectors > 0);
        assert!(extent.last_sector_offset().0 >= extent.offset.0 / 512 * 512);
        assert!(extent.bytes() > 0);
        if let Some(moved) = entry.compressed_moved_to(HostOffset(other), geometry) {
            let moved = match moved.descriptor(geometry) {
                L2Descriptor::Compressed(there) => Some((there.offset.0, there.sectors)),
                _ => None,
            };
            assert_eq!(moved, Some((other, extent.sectors)));
        }
    } else {
        assert!(!entry.is_compressed());
        assert_eq!(entry.moved_to(standard, entry.copied()), entry);
    }
}

/// Every count that is read and set again gives the block.
fn counts(input: &[u8]) {
    let block = &input[..(input.len() / 8 * 8).min(MOST_ENTRIES)];
    for order in 0..=6 {
        let mut copy = vec![0; block.len()];
        for index in 0..(block.len() * 8) >> order {
            let count = refcount_at(block, order, index);
            set_refcount_at(&mut copy, order, index, count);
        }
        assert!(copy == block, "counts of order {order}");
    }
}

fn snapshots(input: &[u8]) {
    let Some(fixed) = SnapshotFixed::decode(input) else {
        return;
    };
    assert_eq!(fixed.encode(), &input[..40]);
    assert!(fixed.padded_bytes() >= fixed.entry_bytes());
    let Some(entry) = SnapshotEntry::decode(input, 0) else {
        assert!(fixed.entry_bytes() > input.len() as u64);
        return;
    };
    let end = fixed.entry_bytes() as usize;
    let extra = &input[40..40 + fixed.extra_data_size as usize];
    let encoded = entry.encode(extra, &entry.id).expect("it was so long");
    assert!(encoded.starts_with(&input[..end]), "encoded otherwise");
    assert_eq!(encoded.len() as u64, fixed.padded_bytes());
    let _blank = entry.is_blank();
}

fn bitmaps(input: &[u8]) {
    let data = &input[..input.len().min(24)];
    if let Some(extension) = BitmapsExtension::decode(data) {
        assert_eq!(extension.encode().map(u64::to_be_bytes).concat(), data);
    }
    let mut rest = input;
    while let DirectoryDecode::Entry(entry, step) = BitmapDirectoryEntry::decode(rest) {
        assert!(step >= 24 + entry.name.len() as u64 && step <= rest.len() as u64);
        let _flags = (
            entry.is_in_use(),
            entry.allows_extra_data(),
            entry.unknown_flags(),
        );
        rest = &rest[step as usize..];
    }
}

fn encryption(input: &[u8]) {
    let _start = luks_payload_start(input);
    for slot in LuksKeySlot::decode_all(input) {
        assert!(slot.end >= slot.start);
    }
    if let Some(header) = LuksHeader::decode(input) {
        assert!(header.bytes() >= 592);
    }
}
