//! Damage to the header, its extensions, and what they point to outside the tables.

use super::{plain, small};
use crate::support::image_forge::{
    AUTOCLEAR_RAW_DATA_FILE, EXTENSION_BACKING_FORMAT, EXTENSION_DATA_FILE_NAME,
    EXTENSION_FEATURE_NAMES, EXTENSION_LUKS, Forge, Forged, INCOMPATIBLE_COMPRESSION_TYPE,
    INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2,
};

/// A name of an extension nobody defined.
const STRANGE_EXTENSION: u32 = 0x73747261;

fn with_backing() -> Forge {
    plain().backing_file("base.raw").backing_format("raw")
}

fn with_data_file() -> Forge {
    small().data_file(Some("data.raw")).data(0).data(1)
}

fn with_luks() -> Forge {
    plain().luks(2)
}

/// Sets bits in a 64-bit header field.
fn set_bits(image: &mut Forged, field: &str, bits: u64) {
    let at = image.field(field);
    let word = image.u64_at(at);
    image.put_u64(at, word | bits);
}

damages! {
    cluster_bits_of_eight_leave_nothing_to_measure_with: HeaderClusterBitsInvalid {
        forge: plain,
        harm: |image| image.put_u32(image.field("cluster_bits"), 8),
        report: [
            "unreadable, 1 not walked",
            "header-cluster-bits-invalid 1",
        ],
    }
    cluster_bits_of_twenty_two_are_too_many: HeaderClusterBitsInvalid {
        forge: plain,
        harm: |image| image.put_u32(image.field("cluster_bits"), 22),
        report: [
            "unreadable, 1 not walked",
            "header-cluster-bits-invalid 1",
        ],
    }
    refcount_order_of_seven_hides_all_stored_counts: HeaderRefcountOrderInvalid {
        forge: plain,
        harm: |image| image.put_u32(image.field("refcount_order"), 7),
        report: [
            "do-not-boot, 1 not walked",
            "header-refcount-order-invalid 1",
        ],
    }
    header_shorter_than_version_3_has_it: HeaderLengthInvalid {
        forge: plain,
        harm: |image| image.put_u32(image.field("header_length"), 96),
        report: [
            "do-not-boot, 1 not walked",
            "header-length-invalid 1",
        ],
    }
    header_longer_than_its_cluster: HeaderLengthInvalid {
        forge: plain,
        harm: |image| image.put_u32(image.field("header_length"), 0x1001),
        report: [
            "do-not-boot, 1 not walked",
            "header-length-invalid 1",
        ],
    }
    header_length_of_109_is_unaligned: HeaderLengthUnaligned {
        forge: plain,
        harm: |image| image.put_u32(image.field("header_length"), 109),
        report: [
            "clean",
            "header-length-unaligned 1",
        ],
    }
    padding_behind_the_compression_type_is_not_zero: HeaderPaddingNonzero {
        forge: plain,
        harm: |image| image.put_u8(image.field("padding"), 1),
        report: [
            "clean",
            "header-padding-nonzero 1",
        ],
    }
    header_fields_of_a_later_version_are_noticed: HeaderFieldUnknown {
        forge: plain,
        harm: |image| {
            image.put_u32(image.field("header_length"), 120);
            image.put_u64(112, 1);
        },
        report: [
            "clean",
            "header-field-unknown 1",
        ],
    }
    incompatible_bit_nobody_defined: IncompatibleFeatureUnknown {
        forge: plain,
        harm: |image| set_bits(image, "incompatible_features", 1 << 5),
        report: [
            "do-not-boot, 1 not walked",
            "incompatible-feature-unknown 1",
        ],
    }
    compatible_bit_nobody_defined: CompatibleFeatureUnknown {
        forge: plain,
        harm: |image| set_bits(image, "compatible_features", 1 << 1),
        report: [
            "clean",
            "compatible-feature-unknown 1",
        ],
    }
    autoclear_bit_nobody_defined: AutoclearFeatureUnknown {
        forge: plain,
        harm: |image| set_bits(image, "autoclear_features", 1 << 2),
        report: [
            "clean",
            "autoclear-feature-unknown 1",
        ],
    }
    dirty_bit_is_a_notice: DirtyBitSet {
        forge: plain,
        harm: |image| set_bits(image, "incompatible_features", INCOMPATIBLE_DIRTY),
        report: [
            "clean",
            "dirty-bit-set 1",
        ],
    }
    corrupt_bit_forbids_booting: CorruptBitSet {
        forge: plain,
        harm: |image| set_bits(image, "incompatible_features", INCOMPATIBLE_CORRUPT),
        report: [
            "do-not-boot",
            "corrupt-bit-set 1",
        ],
    }
    compression_type_without_its_bit: CompressionTypeMismatch {
        forge: plain,
        harm: |image| image.put_u8(image.field("compression_type"), 1),
        report: [
            "do-not-boot",
            "compression-type-mismatch 1",
        ],
    }
    compression_bit_without_a_type: CompressionTypeMismatch {
        forge: plain,
        harm: |image| set_bits(image, "incompatible_features", INCOMPATIBLE_COMPRESSION_TYPE),
        report: [
            "do-not-boot",
            "compression-type-mismatch 1",
        ],
    }
    compression_type_two_does_not_exist: CompressionTypeUnknown {
        forge: || plain().compression_type(1),
        harm: |image| image.put_u8(image.field("compression_type"), 2),
        report: [
            "do-not-boot",
            "compression-type-unknown 1",
        ],
    }
    extended_l2_bit_in_an_image_of_small_clusters: ExtendedL2ClusterTooSmall {
        forge: || small().size(1 << 20),
        harm: |image| set_bits(image, "incompatible_features", INCOMPATIBLE_EXTENDED_L2),
        report: [
            "do-not-boot",
            "extended-l2-cluster-too-small 1",
        ],
    }
    virtual_size_ends_within_a_sector: VirtualSizeUnaligned {
        forge: plain,
        harm: |image| image.put_u64(image.field("size"), (8 << 20) - 100),
        report: [
            "clean",
            "virtual-size-unaligned 1",
        ],
    }
    // Two true sentences about one field: no table can map the size, and this one does not.
    virtual_size_beyond_all_l1_tables: VirtualSizeTooLarge {
        forge: plain,
        harm: |image| image.put_u64(image.field("size"), 1 << 62),
        report: [
            "do-not-boot, 1 not walked",
            "virtual-size-too-large 1",
            "l1-table-too-small 1",
        ],
    }
    backing_name_of_1024_bytes: BackingNameOutOfBounds {
        forge: with_backing,
        harm: |image| image.put_u32(image.field("backing_file_size"), 1024),
        report: [
            "do-not-boot",
            "backing-name-out-of-bounds 1",
        ],
    }
    backing_name_behind_the_first_cluster: BackingNameOutOfBounds {
        forge: with_backing,
        harm: |image| image.put_u64(image.field("backing_file_offset"), 0xffd),
        report: [
            "do-not-boot",
            "backing-name-out-of-bounds 1",
        ],
    }
    backing_name_rings_a_bell: BackingNameUnprintable {
        forge: with_backing,
        harm: |image| image.put_u8(image.backing_file_name(), 0x07),
        report: [
            "clean",
            "backing-name-unprintable 1",
        ],
    }
    backing_format_is_not_recorded: BackingFormatMissing {
        forge: with_backing,
        harm: |image| image.put_u32(image.extension(EXTENSION_BACKING_FORMAT), STRANGE_EXTENSION),
        report: [
            "clean",
            "backing-format-missing 1",
        ],
    }
    backing_format_of_sixteen_bytes: BackingFormatInvalid {
        forge: || plain().backing_file("base").backing_format("fifteen letters"),
        harm: |image| image.put_u32(image.extension(EXTENSION_BACKING_FORMAT) + 4, 16),
        report: [
            "do-not-boot",
            "backing-format-invalid 1",
        ],
    }
    raw_data_file_beside_a_backing_file: BackingWithRawData {
        forge: || with_data_file().backing_file("base.raw").backing_format("raw"),
        harm: |image| set_bits(image, "autoclear_features", AUTOCLEAR_RAW_DATA_FILE),
        report: [
            "clean",
            "backing-with-raw-data 1",
        ],
    }
    extension_longer_than_the_first_cluster: ExtensionOverrun {
        forge: || plain().unknown_extension(STRANGE_EXTENSION, b"kept"),
        harm: |image| image.put_u32(image.extension(STRANGE_EXTENSION) + 4, 0x1000),
        report: [
            "do-not-boot, 1 not walked",
            "extension-overrun 1",
        ],
    }
    extension_type_appears_twice: ExtensionDuplicate {
        forge: || plain().unknown_extension(STRANGE_EXTENSION, b"one").unknown_extension(7, b"two"),
        harm: |image| image.put_u32(image.extension(7), STRANGE_EXTENSION),
        report: [
            "clean",
            "extension-duplicate 1",
        ],
    }
    feature_name_table_of_47_bytes: FeatureNameTableMalformed {
        forge: || plain().feature_name(0, 0, "dirty bit"),
        harm: |image| image.put_u32(image.extension(EXTENSION_FEATURE_NAMES) + 4, 47),
        report: [
            "clean",
            "feature-name-table-malformed 1",
        ],
    }
    encryption_method_three_does_not_exist: CryptMethodUnknown {
        forge: plain,
        harm: |image| image.put_u32(image.field("crypt_method"), 3),
        report: [
            "do-not-boot",
            "crypt-method-unknown 1",
        ],
    }
    luks_method_without_any_pointer_to_a_luks_header: EncryptionHeaderMissing {
        forge: plain,
        harm: |image| image.put_u32(image.field("crypt_method"), 2),
        report: [
            "do-not-boot, 1 not walked",
            "encryption-header-missing 1",
        ],
    }
    lost_pointer_to_the_luks_header_makes_it_look_leaked: EncryptionHeaderMissing {
        forge: with_luks,
        harm: |image| image.put_u32(image.extension(EXTENSION_LUKS), STRANGE_EXTENSION),
        report: [
            "do-not-boot, 1 not walked",
            "encryption-header-missing 1",
            "refcount-leak 2",
        ],
    }
    luks_header_in_an_image_that_is_not_encrypted: EncryptionHeaderUnexpected {
        forge: with_luks,
        harm: |image| image.put_u32(image.field("crypt_method"), 0),
        report: [
            "do-not-boot",
            "encryption-header-unexpected 1",
        ],
    }
    luks_header_without_its_magic: EncryptionHeaderMalformed {
        forge: with_luks,
        harm: |image| image.put_u8(image.luks_area().expect("LUKS").0, b'X'),
        report: [
            "do-not-boot",
            "encryption-header-malformed 1",
        ],
    }
    luks_pointer_off_the_cluster_boundary: EncryptionHeaderMalformed {
        forge: with_luks,
        harm: |image| {
            let at = image.extension(EXTENSION_LUKS) + 8;
            image.put_u64(at, image.u64_at(at) + 512);
        },
        report: [
            "do-not-boot, 1 not walked",
            "encryption-header-malformed 1",
            "refcount-leak 2",
        ],
    }
    luks_header_past_the_end_of_the_file: EncryptionHeaderPastEnd {
        forge: with_luks,
        harm: |image| {
            let end = image.cluster_count() * image.cluster_size();
            image.put_u64(image.extension(EXTENSION_LUKS) + 8, end);
        },
        report: [
            "do-not-boot, 1 not walked",
            "encryption-header-past-end 1",
            "refcount-leak 2",
        ],
    }
    data_file_without_a_name: DataFileNameMissing {
        forge: with_data_file,
        harm: |image| image.put_u32(image.extension(EXTENSION_DATA_FILE_NAME), STRANGE_EXTENSION),
        report: [
            "clean",
            "data-file-name-missing 1",
        ],
    }
    data_file_name_without_a_data_file: DataFileNameUnexpected {
        forge: || plain().unknown_extension(STRANGE_EXTENSION, b"data.raw"),
        harm: |image| image.put_u32(image.extension(STRANGE_EXTENSION), EXTENSION_DATA_FILE_NAME),
        report: [
            "clean",
            "data-file-name-unexpected 1",
        ],
    }
    raw_data_bit_without_a_data_file: RawDataWithoutDataFile {
        forge: plain,
        harm: |image| set_bits(image, "autoclear_features", AUTOCLEAR_RAW_DATA_FILE),
        report: [
            "do-not-boot",
            "raw-data-without-data-file 1",
        ],
    }
}
