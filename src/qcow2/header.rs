//! The image header, section "Header" of the specification, with its additional fields.
//!
//! Comes in: the first bytes of a file. Goes out: a [`Header`] for anything with the magic and version 2 or 3, however
//! absurd its numbers; [`NotQcow2`] for everything else. Never here: a verdict on those numbers (`walk/header.rs`).

use super::bytes::{bits, u32_at, u64_at};

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Length of a version 2 header in bytes.
pub const V2_HEADER_BYTES: u64 = 72;
/// Shortest version 3 header in bytes.
pub const V3_HEADER_BYTES: u64 = 104;
/// Longest backing file name in bytes.
pub const MAX_BACKING_NAME_BYTES: u32 = 1023;

/// Incompatible feature bit 0: refcounts may be inconsistent.
pub const INCOMPATIBLE_DIRTY: u64 = bits(0, 0);
/// Incompatible feature bit 1: the image must not be written to.
pub const INCOMPATIBLE_CORRUPT: u64 = bits(1, 1);
/// Incompatible feature bit 2: guest clusters are in an external data file.
pub const INCOMPATIBLE_DATA_FILE: u64 = bits(2, 2);
/// Incompatible feature bit 3: `compression_type` is not deflate.
pub const INCOMPATIBLE_COMPRESSION: u64 = bits(3, 3);
/// Incompatible feature bit 4: L2 entries are 128 bits wide.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = bits(4, 4);
/// All incompatible feature bits the specification defines.
pub const INCOMPATIBLE_KNOWN: u64 = bits(0, 4);
/// Compatible feature bit 0: lazy refcounts.
pub const COMPATIBLE_LAZY_REFCOUNTS: u64 = bits(0, 0);
/// All compatible feature bits the specification defines.
pub const COMPATIBLE_KNOWN: u64 = bits(0, 0);
/// Autoclear feature bit 0: the bitmaps extension is consistent.
pub const AUTOCLEAR_BITMAPS: u64 = bits(0, 0);
/// Autoclear feature bit 1: the external data file is a raw image by itself.
pub const AUTOCLEAR_RAW_DATA: u64 = bits(1, 1);
/// All autoclear feature bits the specification defines.
pub const AUTOCLEAR_KNOWN: u64 = bits(0, 1);

/// What a file without a usable qcow2 header is instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotQcow2 {
    /// No byte at all.
    Empty,
    /// Some other magic, or none.
    Magic,
    /// The magic, with a version that is not 2 or 3.
    Version(u32),
}

/// The encryption of guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not encrypted.
    None,
    /// The legacy AES-CBC method.
    Aes,
    /// LUKS, with its header inside the image.
    Luks,
    /// A number the specification does not define.
    Unknown(u32),
}

/// The compression of compressed clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate.
    Deflate,
    /// Zstandard.
    Zstd,
    /// A number the specification does not define.
    Unknown(u8),
}

/// The header's fields as they stand on disk; names are the specification's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the specification's table, name by name"
)]
pub struct Header {
    pub version: u32,
    pub backing_file_offset: u64,
    pub backing_file_size: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt_method: u32,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    /// Zero in version 2, as are the two other bitmasks.
    pub incompatible_features: u64,
    pub compatible_features: u64,
    pub autoclear_features: u64,
    /// 4 in version 2.
    pub refcount_order: u32,
    /// 72 in version 2.
    pub header_length: u32,
    /// Zero where `header_length` does not reach it.
    pub compression_type: u8,
}

impl Header {
    /// Reads the header from the start of a file; bytes past the end of `bytes` read as zero.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotQcow2> {
        if bytes.is_empty() {
            return Err(NotQcow2::Empty);
        }
        if u32_at(bytes, 0) != Some(MAGIC) {
            return Err(NotQcow2::Magic);
        }
        let u32_at = |at| u32_at(bytes, at).unwrap_or(0);
        let u64_at = |at| u64_at(bytes, at).unwrap_or(0);
        let version = u32_at(4);
        if !(2..=3).contains(&version) {
            return Err(NotQcow2::Version(version));
        }
        let is_v3 = version == 3;
        let v3_u64 = |at| if is_v3 { u64_at(at) } else { 0 };
        let header_length = if is_v3 { u32_at(100) } else { 72 };
        let compression_type = if header_length > 104 {
            bytes.get(104).copied().unwrap_or(0)
        } else {
            0
        };
        Ok(Self {
            version,
            backing_file_offset: u64_at(8),
            backing_file_size: u32_at(16),
            cluster_bits: u32_at(20),
            size: u64_at(24),
            crypt_method: u32_at(32),
            l1_size: u32_at(36),
            l1_table_offset: u64_at(40),
            refcount_table_offset: u64_at(48),
            refcount_table_clusters: u32_at(56),
            nb_snapshots: u32_at(60),
            snapshots_offset: u64_at(64),
            incompatible_features: v3_u64(72),
            compatible_features: v3_u64(80),
            autoclear_features: v3_u64(88),
            refcount_order: if is_v3 { u32_at(96) } else { 4 },
            header_length,
            compression_type,
        })
    }

    /// Refcounts may be out of date: the image was not closed cleanly.
    pub fn is_dirty(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DIRTY != 0
    }

    /// A writer found damage and forbade further writing.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_CORRUPT != 0
    }

    /// Guest clusters are in an external data file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DATA_FILE != 0
    }

    /// The external data file claims to be a raw image by itself.
    pub fn has_raw_data(&self) -> bool {
        self.autoclear_features & AUTOCLEAR_RAW_DATA != 0
    }

    /// L2 entries carry a subcluster bitmap.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// The bitmaps extension's data may be believed.
    pub fn has_consistent_bitmaps(&self) -> bool {
        self.autoclear_features & AUTOCLEAR_BITMAPS != 0
    }

    /// The encryption method, named.
    pub fn crypt_method(&self) -> CryptMethod {
        match self.crypt_method {
            0 => CryptMethod::None,
            1 => CryptMethod::Aes,
            2 => CryptMethod::Luks,
            other => CryptMethod::Unknown(other),
        }
    }

    /// The compression type, named.
    pub fn compression_type(&self) -> CompressionType {
        match self.compression_type {
            0 => CompressionType::Deflate,
            1 => CompressionType::Zstd,
            other => CompressionType::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_qcow2_is_told_apart() {
        assert_eq!(Header::decode(&[]), Err(NotQcow2::Empty));
        assert_eq!(Header::decode(b"KDMV"), Err(NotQcow2::Magic));
        assert_eq!(
            Header::decode(b"QFI\xfb\0\0\0\x01"),
            Err(NotQcow2::Version(1))
        );
    }

    #[test]
    fn version_2_has_the_fixed_values_of_the_specification() {
        let mut bytes = vec![0xff_u8; 128];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
        let header = Header::decode(&bytes).expect("a version 2 header");
        assert_eq!(header.incompatible_features, 0);
        assert_eq!(header.refcount_order, 4);
        assert_eq!(header.header_length, 72);
        assert_eq!(header.compression_type, 0);
    }

    #[test]
    fn compression_type_is_absent_below_header_length_105() {
        let mut bytes = vec![0_u8; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[103] = 104;
        bytes[104] = 1;
        let read = |bytes: &[u8]| Header::decode(bytes).expect("a header").compression_type;
        assert_eq!(read(&bytes), 0);
        bytes[103] = 112;
        assert_eq!(read(&bytes), 1);
    }
}
