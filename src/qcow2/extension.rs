//! Header extensions, sections "Header extensions" and "String header extensions" of the specification.
//!
//! Comes in: the bytes between the header and the backing file name. Goes out: the extensions in order, and where the
//! area stops making sense, if it does. Never here: the meaning of an extension's content.

use super::bytes::u32_at;

/// What an extension is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtensionKind {
    /// Name of the backing file's format.
    BackingFormat,
    /// Names of feature bits, for messages.
    FeatureNameTable,
    /// The persistent bitmaps.
    Bitmaps,
    /// Where the LUKS header is.
    EncryptionHeader,
    /// Name of the external data file.
    DataFileName,
    /// Anything else; the specification says to keep it and ignore it.
    Unknown(u32),
}

/// One extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// What it is for.
    pub kind: ExtensionKind,
    /// Byte offset of its type field in the file.
    pub offset: u64,
    /// Its data, without padding.
    pub data: Vec<u8>,
}

/// The extension area.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtensionArea {
    /// The extensions that fit, in order.
    pub extensions: Vec<Extension>,
    /// Byte offset of the first extension that runs past the area, with the length it alleges.
    pub overrun: Option<(u64, u32)>,
}

impl ExtensionArea {
    /// The extension of a kind; of several the last, which is the one QEMU goes by.
    pub fn find(&self, kind: ExtensionKind) -> Option<&Extension> {
        self.extensions
            .iter()
            .rfind(|extension| extension.kind == kind)
    }
}

/// Which bitmask of the header a feature bit is in, by the numbers of the feature name table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the header's three bitmasks")]
pub enum FeatureKind {
    Incompatible = 0,
    Compatible = 1,
    Autoclear = 2,
}

/// Bytes of a feature name table entry: kind, bit, and a name padded with zeros.
pub const FEATURE_NAME_ENTRY_BYTES: usize = 48;

/// The name a feature name table gives a bit.
pub fn feature_name(table: &[u8], kind: FeatureKind, bit: u32) -> Option<&[u8]> {
    let entry = table.chunks_exact(FEATURE_NAME_ENTRY_BYTES).find(|entry| {
        entry.first() == Some(&(kind as u8)) && entry.get(1).map(|&b| u32::from(b)) == Some(bit)
    })?;
    let name = entry.get(2..)?;
    name.split(|&byte| byte == 0).next()
}

/// Splits the extension area, which starts at byte `area_offset` of the file.
pub fn decode_extensions(area: &[u8], area_offset: u64) -> ExtensionArea {
    let mut found = ExtensionArea::default();
    let mut rest = area;
    let mut offset = area_offset;
    while let (Some(kind), Some(length)) = (u32_at(rest, 0), u32_at(rest, 4)) {
        let Some(data) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(8..length.checked_add(8)?))
        else {
            found.overrun = Some((offset, length));
            break;
        };
        if kind == 0 {
            break;
        }
        found.extensions.push(Extension {
            kind: ExtensionKind::from_magic(kind),
            offset,
            data: data.to_vec(),
        });
        let step = data.len().next_multiple_of(8) + 8;
        rest = rest.get(step..).unwrap_or(&[]);
        offset += step as u64;
    }
    found
}

impl ExtensionKind {
    fn from_magic(magic: u32) -> Self {
        match magic {
            0xe279_2aca => Self::BackingFormat,
            0x6803_f857 => Self::FeatureNameTable,
            0x2385_2875 => Self::Bitmaps,
            0x0537_be77 => Self::EncryptionHeader,
            0x4441_5441 => Self::DataFileName,
            other => Self::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_padded_to_eight_bytes_and_end_at_type_zero() {
        let mut area = Vec::new();
        area.extend_from_slice(&[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
        area.extend_from_slice(b"raw\0\0\0\0\0");
        area.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 0]);
        area.extend_from_slice(&[0; 8]);
        area.extend_from_slice(&[0, 0, 0, 8, 0, 0, 0, 0]);
        let found = decode_extensions(&area, 104);
        assert_eq!(found.overrun, None);
        assert_eq!(found.extensions.len(), 2);
        assert_eq!(found.extensions[0].data, b"raw");
        assert_eq!(found.extensions[1].kind, ExtensionKind::Unknown(9));
        assert_eq!(found.extensions[1].offset, 120);
    }

    #[test]
    fn extension_longer_than_its_area_is_an_overrun() {
        let found = decode_extensions(&[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff, 0], 72);
        assert_eq!(found.overrun, Some((72, u32::MAX)));
        assert!(found.extensions.is_empty());
    }

    #[test]
    fn end_marker_with_a_length_past_the_area_is_an_overrun() {
        let found = decode_extensions(&[0, 0, 0, 0, 0, 0x10, 0, 0], 104);
        assert_eq!(found.overrun, Some((104, 0x10_0000)));
    }

    #[test]
    fn of_two_extensions_of_a_kind_the_last_counts() {
        let mut area = vec![0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0];
        area.extend([0, 0, 0, 9, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0]);
        let found = decode_extensions(&area, 104);
        let last = found.find(ExtensionKind::Unknown(9)).expect("found");
        assert_eq!(last.data, [2]);
    }
}
