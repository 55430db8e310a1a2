//! Header and extensions.
//!
//! Checks: every header field against the format's limits, feature bits against each other, extensions against their
//! area, file names against theirs. Collects: the claim of the header cluster.
//! Never here: following a table.

use super::{Notes, Survey, Walk};
use crate::coverage::{Gap, GapKind};
use crate::finding::{Code, Finding, Findings, OwnerKind, escaped};
use crate::image::Image;
use crate::qcow2::{
    AUTOCLEAR_KNOWN, COMPATIBLE_KNOWN, ClusterRange, CompressionType, ExtensionKind,
    FEATURE_NAME_ENTRY_BYTES, FeatureKind, Geometry, Header, HostCluster, INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_KNOWN, MAX_BACKING_NAME_BYTES, MAX_CLUSTER_BITS, MAX_L1_TABLE_BYTES,
    MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS, MIN_EXTENDED_L2_CLUSTER_BITS, Place, SECTOR_BYTES,
    V3_HEADER_BYTES, feature_name,
};
use crate::storage::Storage;

/// Longest backing format name QEMU accepts, in bytes.
const MAX_BACKING_FORMAT_BYTES: usize = 15;

fn field(name: &'static str) -> Place {
    Place::Header { field: name }
}

/// Judges the header and its extensions and claims their clusters.
pub(super) fn walk_header<S: Storage>(walk: Walk<'_, S>, survey: &mut Survey, notes: &mut Notes) {
    survey.claim(
        ClusterRange::one(HostCluster(0)),
        OwnerKind::Header,
        field("magic"),
    );
    judge_header_words(walk.image, notes);
    judge_virtual_size(walk, notes);
}

/// Judges what needs no cluster size.
pub(super) fn judge_header_words<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    let header = image.header();
    judge_sizes(header, notes);
    judge_header_length(image, notes);
    judge_features(image, notes);
    judge_compression(header, notes);
    judge_backing_file(image, notes);
    judge_extensions(image, notes);
    judge_data_file(image, notes);
}

fn judge_sizes(header: &Header, notes: &mut Notes) {
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&header.cluster_bits) {
        let place = field("cluster_bits");
        notes.push(
            Finding::new(Code::HeaderClusterBitsInvalid, place).word(header.cluster_bits.into()),
        );
        notes.gap(Gap::refused(
            place,
            "without a cluster size no table can be located",
        ));
    } else if header.has_extended_l2() && header.cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS {
        notes.push(
            Finding::new(Code::ExtendedL2ClusterTooSmall, field("cluster_bits"))
                .word(header.cluster_bits.into()),
        );
    }
    if header.refcount_order > MAX_REFCOUNT_ORDER {
        let place = field("refcount_order");
        notes.push(
            Finding::new(Code::HeaderRefcountOrderInvalid, place)
                .word(header.refcount_order.into()),
        );
        notes.gap(Gap::refused(place, "the stored refcounts cannot be read"));
    }
}

fn judge_header_length<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    let header = image.header();
    if header.version == 2 {
        return;
    }
    let length = u64::from(header.header_length);
    let place = field("header_length");
    let cluster_bytes = image.geometry().map_or(u64::MAX, Geometry::cluster_bytes);
    if !(V3_HEADER_BYTES..=cluster_bytes).contains(&length) {
        notes.push(Finding::new(Code::HeaderLengthInvalid, place).word(length));
        notes.gap(Gap::refused(
            place,
            "the header extensions cannot be located",
        ));
        return;
    }
    if !length.is_multiple_of(8) {
        notes.push(Finding::new(Code::HeaderLengthUnaligned, place).word(length));
    }
    let is_nonzero = |from: u64, to: u64| {
        let range = usize::try_from(from)
            .ok()
            .zip(usize::try_from(to.min(length)).ok());
        range
            .and_then(|(from, to)| image.header_bytes().get(from..to))
            .is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0))
    };
    if is_nonzero(105, 112) {
        notes.push(Finding::new(Code::HeaderPaddingNonzero, field("padding")));
    }
    if is_nonzero(112, length) {
        notes.push(
            Finding::new(Code::HeaderFieldUnknown, field("additional fields"))
                .detail(format!("the header is {length} bytes long")),
        );
    }
}

/// Judges the bits that say how the image was left. Nothing else of a check depends on them.
pub(super) fn judge_state_bits(header: &Header, findings: &mut Findings) {
    let place = field("incompatible_features");
    if header.is_dirty() {
        findings.push(Finding::new(Code::DirtyBitSet, place));
    }
    if header.is_corrupt() {
        findings.push(Finding::new(Code::CorruptBitSet, place));
    }
}

fn judge_features<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    let header = image.header();
    let unknown = |code, kind, bits: u64, place| {
        (bits != 0).then(|| {
            Finding::new(code, place)
                .word(bits)
                .detail(bit_names(image, kind, bits))
        })
    };
    let place = field("incompatible_features");
    let bits = header.incompatible_features & !INCOMPATIBLE_KNOWN;
    let code = Code::IncompatibleFeatureUnknown;
    if let Some(finding) = unknown(code, FeatureKind::Incompatible, bits, place) {
        notes.push(finding);
        notes.gap(Gap {
            place,
            kind: GapKind::UnknownMeaning,
            detail: "tables were read as if the unknown bits were clear".to_owned(),
        });
    }
    judge_state_bits(header, &mut notes.findings);
    let place = field("compatible_features");
    let bits = header.compatible_features & !COMPATIBLE_KNOWN;
    let code = Code::CompatibleFeatureUnknown;
    if let Some(finding) = unknown(code, FeatureKind::Compatible, bits, place) {
        notes.push(finding);
    }
    let place = field("autoclear_features");
    let bits = header.autoclear_features & !AUTOCLEAR_KNOWN;
    let code = Code::AutoclearFeatureUnknown;
    if let Some(finding) = unknown(code, FeatureKind::Autoclear, bits, place) {
        notes.push(finding);
    }
}

/// The set bits by number, and by the name the image itself gives them.
fn bit_names<S: Storage>(image: &Image<S>, kind: FeatureKind, bits: u64) -> String {
    let table = image.extensions().find(ExtensionKind::FeatureNameTable);
    let named = (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| {
        let name = table.and_then(|table| feature_name(&table.data, kind, bit));
        match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("bit {bit} \"{}\"", escaped(name)),
            None => format!("bit {bit}"),
        }
    });
    named.collect::<Vec<_>>().join(", ")
}

fn judge_compression(header: &Header, notes: &mut Notes) {
    let place = field("compression_type");
    let bit_set = header.incompatible_features & INCOMPATIBLE_COMPRESSION != 0;
    let word = u64::from(header.compression_type);
    if bit_set != (header.compression_type() != CompressionType::Deflate) {
        notes.push(Finding::new(Code::CompressionTypeMismatch, place).word(word));
    } else if let CompressionType::Unknown(_) = header.compression_type() {
        notes.push(Finding::new(Code::CompressionTypeUnknown, place).word(word));
    }
}

fn judge_backing_file<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    let header = image.header();
    if header.backing_file_offset == 0 {
        return;
    }
    let place = field("backing_file_offset");
    let end = header
        .backing_file_offset
        .saturating_add(header.backing_file_size.into());
    let limit = image.geometry().map_or(u64::MAX, Geometry::cluster_bytes);
    if header.backing_file_size > MAX_BACKING_NAME_BYTES || end > limit {
        notes.push(
            Finding::new(Code::BackingNameOutOfBounds, place)
                .word(header.backing_file_offset)
                .detail(format!(
                    "{} bytes at {:#x}",
                    header.backing_file_size, header.backing_file_offset
                )),
        );
        return;
    }
    let name = image.backing_name().unwrap_or(&[]);
    if !is_printable(name) {
        notes.push(
            Finding::new(Code::BackingNameUnprintable, place)
                .detail(format!("\"{}\"", escaped(name))),
        );
    }
    match image.extensions().find(ExtensionKind::BackingFormat) {
        None => notes.push(Finding::new(Code::BackingFormatMissing, place)),
        Some(format) if format.data.len() > MAX_BACKING_FORMAT_BYTES => notes.push(
            Finding::new(
                Code::BackingFormatInvalid,
                Place::HeaderExtension {
                    offset: format.offset,
                },
            )
            .detail(format!("{} bytes", format.data.len())),
        ),
        Some(_) => {}
    }
    if header.has_raw_data() && header.has_data_file() {
        notes.push(Finding::new(Code::BackingWithRawData, place));
    }
}

/// Text that is UTF-8 and shows as it is.
pub(super) fn is_printable(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| !text.chars().any(char::is_control))
}

fn judge_extensions<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    let area = image.extensions();
    if let Some((offset, length)) = area.overrun {
        let place = Place::HeaderExtension { offset };
        notes.push(
            Finding::new(Code::ExtensionOverrun, place).detail(format!("it claims {length} bytes")),
        );
        notes.gap(Gap::refused(
            place,
            "this extension and those behind it were not read",
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    for extension in &area.extensions {
        let place = Place::HeaderExtension {
            offset: extension.offset,
        };
        if !seen.insert(extension.kind) {
            notes.push(Finding::new(Code::ExtensionDuplicate, place));
        }
        let is_table = extension.kind == ExtensionKind::FeatureNameTable;
        if is_table
            && !extension
                .data
                .len()
                .is_multiple_of(FEATURE_NAME_ENTRY_BYTES)
        {
            notes.push(
                Finding::new(Code::FeatureNameTableMalformed, place)
                    .detail(format!("{} bytes", extension.data.len())),
            );
        }
    }
}

fn judge_data_file<S: Storage>(image: &Image<S>, notes: &mut Notes) {
    let header = image.header();
    let named = image.extensions().find(ExtensionKind::DataFileName);
    match (header.has_data_file(), named) {
        (true, None) => notes.push(Finding::new(
            Code::DataFileNameMissing,
            field("incompatible_features"),
        )),
        (false, Some(extension)) => notes.push(Finding::new(
            Code::DataFileNameUnexpected,
            Place::HeaderExtension {
                offset: extension.offset,
            },
        )),
        _ => {}
    }
    if header.has_raw_data() && !header.has_data_file() {
        notes.push(Finding::new(
            Code::RawDataWithoutDataFile,
            field("autoclear_features"),
        ));
    }
}

fn judge_virtual_size<S: Storage>(walk: Walk<'_, S>, notes: &mut Notes) {
    let size = walk.image.header().size;
    let needed = walk.geometry.l1_entries_needed(size);
    if needed > MAX_L1_TABLE_BYTES / 8 {
        notes.push(Finding::new(Code::VirtualSizeTooLarge, field("size")).word(size));
    } else if !size.is_multiple_of(SECTOR_BYTES) {
        notes.push(Finding::new(Code::VirtualSizeUnaligned, field("size")).word(size));
    }
}
