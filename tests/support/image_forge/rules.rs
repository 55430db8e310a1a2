//! Which recipes have a valid image. A broken rule panics: it is a mistake in the test.

use super::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA_FILE, Forge, INCOMPATIBLE_COMPRESSION_TYPE,
    INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2, Step,
};

impl Forge {
    pub(super) fn assert_legal(&self) {
        self.assert_version_is_legal();
        self.assert_features_are_legal();
        for step in &self.steps {
            self.assert_step_is_legal(step);
        }
    }

    fn assert_version_is_legal(&self) {
        assert!((2..=3).contains(&self.version), "version 2 or 3");
        assert!(
            (9..=21).contains(&self.cluster_bits),
            "cluster_bits 9 to 21"
        );
        assert!(self.refcount_order <= 6, "refcount_order 0 to 6");
        if self.version == 2 {
            let features =
                self.incompatible_features | self.compatible_features | self.autoclear_features;
            assert!(features == 0, "version 2 has no features");
            assert!(self.refcount_order == 4, "version 2 has 16 bit refcounts");
            assert!(
                self.header_length.is_none(),
                "version 2 has a header of 72 bytes"
            );
        } else {
            let header_bytes = self.header_bytes();
            assert!(
                header_bytes >= 104 && header_bytes.is_multiple_of(8),
                "header_length 104, 112, ..."
            );
            assert!(
                self.compression_type == 0 || header_bytes > 104,
                "no compression_type field"
            );
        }
    }

    fn assert_features_are_legal(&self) {
        assert!(
            self.incompatible_features < 1 << 5,
            "unknown incompatible features are not valid"
        );
        assert!(
            self.has(INCOMPATIBLE_COMPRESSION_TYPE) == (self.compression_type != 0),
            "compression_type and its incompatible bit go together"
        );
        let extended_l2 = self.has(INCOMPATIBLE_EXTENDED_L2);
        assert!(
            !extended_l2 || self.cluster_bits >= 14,
            "extended L2 needs clusters of 16 KiB"
        );
        let raw = self.autoclear_features & AUTOCLEAR_RAW_DATA_FILE != 0;
        assert!(
            !raw || self.has(INCOMPATIBLE_DATA_FILE),
            "raw data without a data file"
        );
        assert!(
            !raw || self.backing_file.is_none(),
            "raw data with a backing file"
        );
        assert!(
            (self.crypt_method == 2) == self.luks.is_some(),
            "crypt_method 2 comes with luks()"
        );
        let bitmaps_bit = self.autoclear_features & AUTOCLEAR_BITMAPS != 0;
        assert!(
            bitmaps_bit != self.bitmaps.is_empty(),
            "the bitmaps bit comes with bitmap()"
        );
    }

    fn assert_step_is_legal(&self, step: &Step) {
        let data_file = self.has(INCOMPATIBLE_DATA_FILE);
        match step {
            Step::ZeroPlain(_) | Step::ZeroAllocated(_) => {
                assert!(self.version >= 3, "version 2 has no zero clusters");
            }
            Step::Subclusters(_, alloc_mask, zero_mask) => {
                assert!(
                    self.has(INCOMPATIBLE_EXTENDED_L2),
                    "subclusters need extended L2"
                );
                assert!(
                    alloc_mask & zero_mask == 0,
                    "a subcluster is allocated or zero"
                );
            }
            Step::Compressed(_, stream) => {
                let legal = 1..=1_usize << self.cluster_bits;
                assert!(
                    legal.contains(&stream.len()),
                    "1 byte to 1 cluster of compressed data"
                );
                assert!(!data_file, "compressed with a data file");
            }
            Step::Snapshot(_) => assert!(!data_file, "snapshots with a data file"),
            Step::VmState(_) => assert!(!data_file, "VM state with a data file"),
            Step::Data(_) | Step::Unmap(_) | Step::Gap(_) => {}
        }
    }
}
