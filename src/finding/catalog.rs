//! The catalog: one row for each kind of finding, and nowhere else a word about what a kind means.
//!
//! A row gives the published code (never reused, never renamed), how grave it is, whether starting a virtual machine
//! on the image can make things worse, a title, the cause and risk, and the remedy. `docs/findings.md` and
//! `qfsck explain` are printed from these rows.

use std::fmt;

use super::severity::{Boot, Severity};

macro_rules! catalog {
    ($($variant:ident $id:literal $severity:ident $boot:ident $title:literal $help:literal $remedy:literal)*) => {
        /// A kind of finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the catalog.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The published name, kebab case: structure, then what is wrong.
            pub fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }

            /// How grave it is.
            pub fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// Whether running a guest can make it worse.
            pub fn boot(self) -> Boot {
                match self { $(Self::$variant => Boot::$boot,)* }
            }

            /// One line.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// Where it comes from, and what it endangers.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }

            /// What to do about it.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)* }
            }
        }
    };
}

impl Code {
    /// The code with this published name.
    pub fn from_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.id() == id)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

catalog! {
HeaderClusterBitsInvalid "header-cluster-bits-invalid" Corruption Unsafe
    "the header's cluster size is not one the format has"
    "cluster_bits must be 9 to 21 (512 bytes to 2 MiB). Without a cluster size nothing else in the image can be located, so nothing else was checked. A header overwritten by something else looks like this."
    "Restore the first cluster from a backup, or find the cluster size from the tables' spacing with an expert's help. Keep a copy of the image first."
HeaderRefcountOrderInvalid "header-refcount-order-invalid" Corruption Unsafe
    "the header's refcount width is not one the format has"
    "refcount_order must be 0 to 6 (1 to 64 bits). The stored refcounts cannot be read, so they were not compared; the mapping was walked all the same."
    "Restore the header field; 4 (16 bits) is the default nearly every image uses."
HeaderLengthInvalid "header-length-invalid" Corruption Unsafe
    "the header's own length is impossible"
    "A version 3 header is at least 104 bytes long and lies within the first cluster. Where it ends decides where the header extensions begin, so they were not read."
    "Restore the header field; 104 and 112 are the lengths in use."
HeaderLengthUnaligned "header-length-unaligned" Notice Safe
    "the header's length is not a multiple of 8"
    "The specification asks for a multiple of 8. QEMU accepts other lengths and reads the extensions from there."
    "None needed; a rewrite of the header by QEMU settles it."
HeaderPaddingNonzero "header-padding-nonzero" Notice Safe
    "bytes of the header that must be zero are not"
    "Bytes 105 to 111 are padding, kept zero so that a later field may live there. A program that knows such a field would read this as its value."
    "None needed unless the writer of these bytes is unknown."
HeaderFieldUnknown "header-field-unknown" Notice Safe
    "the header has fields this version does not know"
    "The header is longer than the known fields and the rest is not zero: a newer program wrote it. Such fields may be ignored, but must be kept."
    "None needed; qfsck keeps them as they are."
IncompatibleFeatureUnknown "incompatible-feature-unknown" Corruption Unsafe
    "an incompatible feature bit is set that nobody defined"
    "Programs must refuse such an image, because the bit may change what every table means. If a newer program wrote it, use that program; otherwise a bit of the header has flipped. The tables were walked as if the bit were clear, and the coverage says so."
    "Find out which program wrote the image. If none did, clear the bit."
CompatibleFeatureUnknown "compatible-feature-unknown" Notice Safe
    "a compatible feature bit is set that nobody defined"
    "Such bits may be ignored."
    "None needed."
AutoclearFeatureUnknown "autoclear-feature-unknown" Notice Safe
    "an autoclear feature bit is set that nobody defined"
    "A program that does not know the bit clears it before it writes. With some versions of QEMU, `qemu-img check -r` on such an image drops all internal snapshots."
    "Do not run `qemu-img check -r` on this image while it has snapshots."
DirtyBitSet "dirty-bit-set" Notice Safe
    "the image was not closed cleanly"
    "With lazy refcounts, or after a crash, refcounts may lag behind the tables. QEMU repairs them without asking when it next opens the image for writing, trusting every table it finds."
    "If other findings stand beside this one, repair them before the image is opened for writing."
CorruptBitSet "corrupt-bit-set" Corruption Unsafe
    "a writer found damage and forbade further writing"
    "QEMU sets this bit when a write would have hit metadata, and `qfsck repair` while it writes. QEMU will not open the image for writing until the bit is cleared; reading still works."
    "If a `qfsck repair` of the image was cut short, its undo file is the way back: look for it first, beside the image, beside links to it, and where `--undo-file` put it. Else look at the other findings; clear the bit only when a check finds the tables consistent."
CompressionTypeMismatch "compression-type-mismatch" Corruption Unsafe
    "the compression type and its feature bit contradict each other"
    "The compression type bit must be set exactly when the type is not deflate. QEMU refuses to open the image."
    "Restore the bit or the field, whichever is wrong; `file` or a test decompression of one cluster tells."
CompressionTypeUnknown "compression-type-unknown" Corruption Unsafe
    "the compression type is not one the format has"
    "Known types are 0 (deflate) and 1 (zstd). Compressed clusters cannot be read."
    "Restore the header field."
ExtendedL2ClusterTooSmall "extended-l2-cluster-too-small" Corruption Unsafe
    "extended L2 entries need clusters of at least 16 KiB"
    "Subclusters would be smaller than a sector. QEMU refuses to open the image; either the feature bit or the cluster size is damaged."
    "Restore the header field that is wrong."
VirtualSizeUnaligned "virtual-size-unaligned" Notice Safe
    "the virtual size is not a multiple of 512"
    "QEMU rounds it down, and writes the rounded size back whenever it rewrites the header."
    "None needed if the guest does not use the last partial sector."
VirtualSizeTooLarge "virtual-size-too-large" Corruption Unsafe
    "the virtual size is larger than any L1 table can map"
    "An L1 table has at most 32 MiB. The size field is damaged, or the image was made by a program with other limits."
    "Restore the size; `qemu-img info` of an older copy tells it."
BackingNameOutOfBounds "backing-name-out-of-bounds" Corruption Unsafe
    "the backing file name does not fit into the first cluster"
    "The name must lie in the first cluster and have at most 1023 bytes. QEMU refuses to open the image."
    "Restore the two header fields, or rebase the image on its backing file anew."
BackingNameUnprintable "backing-name-unprintable" Notice Safe
    "the backing file name has characters that do not print"
    "Control characters or broken UTF-8 in a file name are rare on purpose."
    "Check the name before you trust it."
BackingFormatMissing "backing-format-missing" Notice Safe
    "the backing file's format is not recorded"
    "Programs then guess the format from the content; a guest that can write a qcow2 header into a raw backing file can make them read other files of the host."
    "`qemu-img rebase -u -F FORMAT -b NAME IMAGE` records it."
BackingFormatInvalid "backing-format-invalid" Corruption Unsafe
    "the backing format name is too long"
    "QEMU accepts at most 15 bytes and refuses to open the image otherwise."
    "Restore the extension, or rebase with an explicit format."
BackingWithRawData "backing-with-raw-data" Notice Safe
    "a raw external data file and a backing file exclude each other"
    "A raw data file must be readable without the qcow2 metadata, so nothing may come from a backing file."
    "Decide which of the two is meant."
ExtensionOverrun "extension-overrun" Corruption Unsafe
    "a header extension runs past the extension area"
    "Its length field is damaged, or something else was written there. It and those behind it were not read, so bitmaps, encryption header or file names may be missing from this report."
    "Restore the extension area from a backup of the first cluster."
ExtensionDuplicate "extension-duplicate" Notice Safe
    "a header extension appears twice"
    "Each type may appear once. The last was used, as QEMU does."
    "None needed unless the two differ."
FeatureNameTableMalformed "feature-name-table-malformed" Notice Safe
    "the feature name table is not a list of 48-byte entries"
    "It only serves messages."
    "None needed."
CryptMethodUnknown "crypt-method-unknown" Corruption Unsafe
    "the encryption method is not one the format has"
    "Known methods are 0 (none), 1 (AES) and 2 (LUKS). No program can open the image."
    "Restore the header field."
EncryptionHeaderMissing "encryption-header-missing" Corruption Unsafe
    "the image says LUKS but names no LUKS header"
    "Without its header the data cannot be decrypted. The header may still be in the file: look for its magic, `LUKS\\xba\\xbe`, at a cluster boundary."
    "Restore the header extension from a backup of the first cluster."
EncryptionHeaderUnexpected "encryption-header-unexpected" Corruption Unsafe
    "the image names a LUKS header but is not LUKS encrypted"
    "QEMU refuses to open the image. Either crypt_method or the extension is wrong."
    "Restore crypt_method (2 for LUKS) if the data is encrypted."
EncryptionHeaderMalformed "encryption-header-malformed" Corruption Unsafe
    "the LUKS header cannot be what it should be"
    "Its pointer has the wrong length or alignment, or the magic is missing where it points. Without the key slots in it the data is lost, whatever the key."
    "Restore the LUKS header from a backup (`cryptsetup luksHeaderBackup`). Write nothing to the image before."
EncryptionHeaderPastEnd "encryption-header-past-end" Corruption Unsafe
    "the LUKS header lies past the end of the file"
    "The file was truncated or the pointer is damaged."
    "Restore the file's tail or the pointer."
DataFileNameMissing "data-file-name-missing" Notice Safe
    "the image needs an external data file but does not name it"
    "The name must then be given when the image is opened."
    "`qemu-img amend -o data_file=NAME` records it."
DataFileNameUnexpected "data-file-name-unexpected" Notice Safe
    "the image names an external data file but does not use one"
    "Harmless, unless the data file feature bit was lost: then the guest's data would be looked for in the wrong file."
    "Compare with how the image was made."
RawDataWithoutDataFile "raw-data-without-data-file" Corruption Unsafe
    "the raw external data bit is set without an external data file"
    "QEMU refuses to open the image; one of the two bits is wrong."
    "Restore the data file bit if there is a data file, else clear the raw bit."
DataFileOffsetMismatch "data-file-offset-mismatch" Corruption Unsafe
    "a guest cluster is not at its own offset in the external data file"
    "In an external data file every cluster lies at its guest offset. With the raw bit, other programs read the file as a plain disk and would see other data than the guest."
    "Compare both places in the data file before choosing one."
DataFilePastEnd "data-file-past-end" Notice Safe
    "guest clusters lie past the end of the external data file"
    "Reads there give zeros or fail. The data file is too short, or another file than the image's."
    "Check that this is the image's data file."
RefcountTableUnaligned "refcount-table-unaligned" Corruption Unsafe
    "the refcount table's offset is not at a cluster boundary"
    "QEMU refuses to open the image. No stored refcount could be read, so none was compared."
    "Restore the header field or rebuild the refcounts."
RefcountTableTooLarge "refcount-table-too-large" Corruption Unsafe
    "the refcount table is larger than the 8 MiB QEMU accepts"
    "The header's refcount_table_clusters is damaged. Only the first 8 MiB were read."
    "Restore the header field or rebuild the refcounts."
RefcountTableMissing "refcount-table-missing" Corruption Unsafe
    "the image has no refcount table"
    "refcount_table_clusters is 0, or its offset is. All stored refcounts then read as zero, and the next write would land on live data; QEMU refuses to open the image."
    "Rebuild the refcounts."
RefcountTablePastEnd "refcount-table-past-end" Corruption Unsafe
    "the refcount table reaches past the end of the file"
    "The file was truncated or the header is damaged. Entries past the end read as zero."
    "Restore the file's tail, or rebuild the refcounts."
RefcountTableEntryReservedBits "refcount-table-entry-reserved-bits" Corruption Safe
    "reserved bits are set in a refcount table entry"
    "QEMU ignores them in use. Some versions of `qemu-img check -r` set the corrupt bit over this and never repair it."
    "Clear the bits."
RefcountBlockUnaligned "refcount-block-unaligned" Corruption Unsafe
    "a refcount block's offset is not at a cluster boundary"
    "The counts it held could not be read and were not compared. QEMU marks the image corrupt when it needs them."
    "Restore the entry or rebuild this block from the references."
RefcountBlockPastEnd "refcount-block-past-end" Corruption Unsafe
    "a refcount block lies past the end of the file"
    "The counts it held could not be read and read as zero. `qemu-img check -r all` would grow the file to that offset."
    "Restore the entry or rebuild this block from the references."
RefcountBlockShared "refcount-block-shared" Corruption Unsafe
    "two refcount table entries name the same refcount block"
    "A count written for one range of clusters changes another's, so allocation hands out clusters in use."
    "Rebuild a block of its own for one of the entries."
RefcountZero "refcount-zero" Corruption Unsafe
    "clusters in use have refcount zero"
    "Something refers to these clusters, but the refcounts call them free. The next allocation may take them, and what they hold is overwritten."
    "Do not open the image for writing. Raise the refcounts."
RefcountTooLow "refcount-too-low" Corruption Unsafe
    "clusters have fewer counts than references"
    "Once the counted references are dropped (a snapshot deleted, a cluster rewritten), the cluster is freed while something still refers to it."
    "Raise the refcounts, and look at the owners: they may not be meant to share."
RefcountOverflow "refcount-overflow" Corruption Unsafe
    "clusters have more references than the refcount width can count"
    "The refcounts of this image are too narrow for its snapshots. Deleting one can free data others use."
    "Convert the image to one with wider refcounts (`-o refcount_bits=16`)."
RefcountLeak "refcount-leak" Leak Safe
    "clusters are counted more often than they are used"
    "Space is lost, no data is; where something else still uses the cluster, every write to it makes a needless copy. Crashes leave leaks behind. But where a table was lost, live data looks leaked too: leaks are only leaks when nothing else is wrong."
    "Lower the refcounts, once no other finding is open."
RefcountPastEnd "refcount-past-end" Notice Safe
    "refcounts are stored for clusters past the end of the file"
    "The clusters do not exist and nothing refers to them. The allocator will step over them. After a truncation they tell how long the file was."
    "None needed; zero them to gain the numbers back."
L1TableUnaligned "l1-table-unaligned" Corruption Unsafe
    "the active L1 table's offset is not at a cluster boundary"
    "QEMU refuses to open the image. The guest's mapping could not be walked: everything below it looks unused in this report, and must not be freed."
    "Restore the header field."
L1TableTooLarge "l1-table-too-large" Corruption Unsafe
    "the active L1 table is larger than the 32 MiB QEMU accepts"
    "The header's l1_size is damaged. Only the first 32 MiB were walked."
    "Restore the header field."
L1TableTooSmall "l1-table-too-small" Corruption Unsafe
    "the active L1 table is too small for the virtual size"
    "QEMU refuses to open the image. Either l1_size or the size is damaged; with too small an l1_size the tables behind it look unused in this report, and must not be freed."
    "Restore the header field that is wrong."
L1TablePastEnd "l1-table-past-end" Corruption Unsafe
    "the active L1 table reaches past the end of the file"
    "The file was truncated or the header is damaged. Entries past the end read as zero, as if nothing were allocated there."
    "Restore the file's tail, or the header field."
L1EntryReservedBits "l1-entry-reserved-bits" Corruption Safe
    "reserved bits are set in an L1 entry"
    "QEMU ignores them in use and reports them in a check. A bit has flipped; the offset beside it may have suffered too."
    "Clear the bits if the L2 table is the right one."
L1EntryWithoutOffset "l1-entry-without-offset" Corruption Unsafe
    "an L1 entry has bits set but names no L2 table"
    "With COPIED set and offset 0 a writer takes the header for an L2 table and writes into it. The offset may have been lost, and with it a table's worth of guest data."
    "Restore the offset; a lost L2 table shows as leaked clusters."
L2TableUnaligned "l2-table-unaligned" Corruption Unsafe
    "an L1 entry names an L2 table that is not at a cluster boundary"
    "The table was not read, and what it maps looks unused in this report: it must not be freed. QEMU marks the image corrupt when the guest touches this range."
    "Restore the entry; one flipped bit away may be the true table."
L2TablePastEnd "l2-table-past-end" Corruption Unsafe
    "an L1 entry names an L2 table past the end of the file"
    "The file was truncated or the entry is damaged. What the table maps looks unused in this report: it must not be freed."
    "Restore the file's tail, or the entry."
L2TableShared "l2-table-shared" Corruption Safe
    "one L2 table serves two ranges of a mapping"
    "Two L1 entries with different indices name it, so two guest ranges show the same data. While its refcount is one and COPIED is set, which other findings tell, a write to one range changes the other; counted for both, it is copied first."
    "Decide which range it belongs to; give the other a copy."
L2TableImplausible "l2-table-implausible" Notice Safe
    "a cluster used as an L2 table does not look like one"
    "Most of its entries are impossible, so it was probably overwritten, or the pointer to it is wrong. Findings about its entries are then follow-ups of this one."
    "Restore the table or the pointer; do not repair entry by entry."
L2EntryReservedBits "l2-entry-reserved-bits" Corruption Safe
    "reserved bits are set in L2 entries"
    "QEMU ignores them in use and reports them in a check. The offset beside them was taken as it is."
    "Clear the bits if the host cluster is the right one."
L2EntryUnaligned "l2-entry-unaligned" Corruption Unsafe
    "L2 entries name host clusters that are not at a cluster boundary"
    "The guest cannot read these clusters; QEMU marks the image corrupt when it tries. The clusters they meant look leaked, and must not be freed."
    "Restore the entry; one flipped bit away may be a cluster that looks leaked."
L2EntryPastEnd "l2-entry-past-end" Corruption Unsafe
    "L2 entries name host clusters past the end of the file"
    "The file was truncated or the entries are damaged. The guest reads zeros or errors there, and once the file grows, somebody else's data."
    "Restore the file's tail. If it is gone for good, the guest ranges below are what was lost."
L2EntryWithoutOffset "l2-entry-without-offset" Corruption Safe
    "L2 entries have COPIED set but name no host cluster"
    "The specification allows this only with an external data file. The guest sees an unallocated or zero cluster; an offset may have been lost, and then its cluster looks leaked."
    "Restore the offset; if the guest's data is whole there, clear the flag."
ZeroFlagInV2 "zero-flag-in-v2" Corruption Unsafe
    "a version 2 image has clusters flagged as zero"
    "Version 2 has no such flag. The guest gets read errors there, and a write marks the image corrupt."
    "Upgrade the image (`qemu-img amend -o compat=1.1`) if the flags are meant, else clear them."
SubclusterAllocatedAndZero "subcluster-allocated-and-zero" Corruption Unsafe
    "subclusters are marked both allocated and zero"
    "The two exclude each other; QEMU marks the image corrupt when it reads them."
    "A repair keeps the data and clears the zero marks: nothing is destroyed, but where zeros were meant the guest then sees what lay in the host cluster. If in doubt, have the guest write these ranges anew."
SubclusterWithoutCluster "subcluster-without-cluster" Corruption Unsafe
    "subclusters are marked allocated where there is no host cluster"
    "QEMU marks the image corrupt when it reads them. The host cluster's offset was lost, or the bitmap is damaged."
    "Restore the offset, or clear the allocation bits."
ExtendedL2ZeroFlag "extended-l2-zero-flag" Notice Safe
    "bit 0 is set in extended L2 entries, where it means nothing"
    "With extended L2 entries zeros are per subcluster and bit 0 is reserved. Programs ignore it."
    "Clear the bit."
CompressedCopied "compressed-copied" Corruption Safe
    "compressed clusters have COPIED set"
    "Compressed clusters are never written in place, so the flag must be clear."
    "Clear the flag."
CompressedPastEnd "compressed-past-end" Corruption Unsafe
    "compressed data lies past the end of the file"
    "The file was truncated or the entries are damaged. The guest gets errors there."
    "Restore the file's tail, or the entry."
CompressedWithSubclusters "compressed-with-subclusters" Corruption Unsafe
    "compressed clusters have a subcluster bitmap"
    "The bitmap is reserved there. QEMU reads the data all the same, but its check does not count the clusters: they look leaked, `qemu-img check -r` frees them, and the next write destroys the data."
    "Clear the bitmap if the compressed data is good."
CompressedWithDataFile "compressed-with-data-file" Corruption Unsafe
    "compressed clusters in an image with an external data file"
    "The two exclude each other: nothing says which file holds the compressed data."
    "Restore the entries."
CompressedExtentOverlap "compressed-extent-overlap" Corruption Safe
    "compressed data of two guest clusters overlaps"
    "Compressed data may only share the sector one ends and the next begins in. One of the two guest ranges reads wrong, or one entry claims more sectors than it uses."
    "Read both ranges (`qemu-io -c 'read …'`); restore what does not decompress."
MappingPastVirtualSize "mapping-past-virtual-size" Notice Safe
    "clusters are allocated past the end of the virtual disk"
    "The guest cannot reach them. VM state is kept there while it is saved; otherwise they are left over, from an interrupted save or a resize."
    "None needed; the space is lost until the image is converted."
CopiedFlagMissing "copied-flag-missing" Corruption Safe
    "the COPIED flag is clear where the refcount is one"
    "A write then copies a cluster it could write in place: slower, and the old one is freed. Nothing is lost."
    "Set the flag."
CopiedFlagStale "copied-flag-stale" Corruption Unsafe
    "the COPIED flag is set where the refcount is not one"
    "A write goes to the cluster in place, and through to whatever else uses it: a snapshot's data changes."
    "Clear the flag, before anything writes to the image."
CopiedFlagInactive "copied-flag-inactive" Notice Safe
    "the COPIED flag is set in an L2 table that only snapshots use"
    "The flag only counts in tables of the active mapping; QEMU sets it anew when the snapshot is loaded."
    "None needed."
MetadataOverlap "metadata-overlap" Corruption Unsafe
    "a cluster is used both as metadata and for something else"
    "A write to one owner destroys the other. If one owner is guest data, the guest reads and writes the image's own tables."
    "Stop using the image. The metadata keeps the cluster; the other owner's content is doubtful."
GuestDataOverlap "guest-data-overlap" Corruption Unsafe
    "one host cluster serves two different guest ranges"
    "Within a mapping every guest cluster has its own host cluster, and snapshots share one only for the same guest range. A write to one range changes the other."
    "Give each a copy; which of them owns the content only the guest's file system can tell."
GuestDataShared "guest-data-shared" Corruption Safe
    "one host cluster serves two different guest ranges, and is counted for both"
    "Within a mapping every guest cluster has its own host cluster. The count agrees with the references, so a write copies the cluster first and harms nobody; but until then both ranges read the same, which can be right for one of them only. `qemu-img check -r all` makes this of an overlap it calls repaired."
    "Find out by the guest's file system which range owns the content; restore the other."
SnapshotTableUnaligned "snapshot-table-unaligned" Corruption Unsafe
    "the snapshot table's offset is not at a cluster boundary"
    "QEMU refuses to open the image. No snapshot could be walked: their data looks leaked, and must not be freed."
    "Restore the header field."
SnapshotCountTooLarge "snapshot-count-too-large" Corruption Unsafe
    "the header counts more snapshots than the 65,536 QEMU accepts"
    "The count is damaged. Entries were read as far as they go."
    "Restore the header field to the number of entries that make sense."
SnapshotTableTruncated "snapshot-table-truncated" Corruption Unsafe
    "the snapshot table ends before its last entry does"
    "The count in the header is too large, an entry's length fields are damaged, or the file was truncated. Snapshots behind it could not be walked: their data looks leaked, and must not be freed."
    "Restore the snapshot table or the count."
SnapshotExtraDataTooLarge "snapshot-extra-data-too-large" Corruption Unsafe
    "a snapshot's extra data is larger than the 1 KiB QEMU accepts"
    "QEMU refuses to open the image. The entry's length field is damaged, or a newer program wrote it."
    "Restore the field."
SnapshotEntryIncomplete "snapshot-entry-incomplete" Corruption Safe
    "a snapshot entry lacks the extra data version 3 demands"
    "VM state size and virtual disk size must be there in 64 bits. QEMU works on with what it can derive."
    "Rewrite the snapshot table with the fields filled in."
SnapshotPhantom "snapshot-phantom" Corruption Safe
    "the snapshot count includes entries that are all zero"
    "The header counts more snapshots than the table holds, so zeros behind the table read as snapshots without a name. `qemu-img check -r all` would make them real."
    "Lower the count in the header to the entries that have content."
SnapshotIdDuplicate "snapshot-id-duplicate" Notice Safe
    "two snapshots have the same ID"
    "Programs find the first of them; the other cannot be reached by its ID."
    "Give one a new ID."
SnapshotNameDuplicate "snapshot-name-duplicate" Notice Safe
    "two snapshots have the same name"
    "Programs find the first of them by name. QEMU allows it."
    "Use the ID to tell them apart."
SnapshotNameUnreadable "snapshot-name-unreadable" Notice Safe
    "a snapshot's ID or name is empty or does not print"
    "Control characters, broken UTF-8, or an empty ID make it hard to name the snapshot in a command."
    "None needed unless the snapshot table looks damaged otherwise."
SnapshotL1Unaligned "snapshot-l1-unaligned" Corruption Unsafe
    "a snapshot's L1 table is not at a cluster boundary"
    "The snapshot could not be walked: its data looks leaked, and must not be freed."
    "Restore the snapshot's entry."
SnapshotL1TooLarge "snapshot-l1-too-large" Corruption Unsafe
    "a snapshot's L1 table is larger than the 32 MiB QEMU accepts"
    "The entry's l1_size is damaged. The table was not walked, so its data looks leaked, and must not be freed."
    "Restore the snapshot's entry."
SnapshotL1PastEnd "snapshot-l1-past-end" Corruption Unsafe
    "a snapshot's L1 table reaches past the end of the file"
    "The file was truncated or the entry is damaged. Entries past the end read as zero."
    "Restore the file's tail, or the entry."
SnapshotL1TooSmall "snapshot-l1-too-small" Corruption Safe
    "a snapshot's L1 table is too small for its virtual size"
    "The snapshot cannot be loaded whole; its l1_size or disk size is damaged, and what lies behind it looks leaked."
    "Restore the snapshot's entry."
SnapshotVmStateBeyondL1 "snapshot-vm-state-beyond-l1" Corruption Safe
    "a snapshot's VM state does not fit into its L1 table"
    "The VM state lies behind the virtual disk in the snapshot's mapping, and the table ends before it does. The snapshot can be reverted to, but not resumed."
    "None without the lost part; the disk content of the snapshot is not concerned."
SnapshotsWithDataFile "snapshots-with-data-file" Corruption Unsafe
    "internal snapshots in an image with an external data file"
    "The two exclude each other: clusters of a data file are not counted, so nothing protects a snapshot's data from being overwritten."
    "Treat the snapshots as lost; copy out what is needed first."
BitmapsExtensionMalformed "bitmaps-extension-malformed" Corruption Unsafe
    "the bitmaps extension cannot be right"
    "Its length, reserved field, count, or directory size or offset is impossible. QEMU refuses to open the image. The bitmaps were not walked, so their clusters look leaked."
    "Restore the extension, or give the bitmaps up: clear autoclear bit 0."
BitmapsAutoclearWithoutExtension "bitmaps-autoclear-without-extension" Notice Safe
    "the bitmaps feature bit is set but there are no bitmaps"
    "The specification calls it an error; QEMU ignores it. The extension may have been lost, and its clusters leaked."
    "None needed if there were no bitmaps."
BitmapsStale "bitmaps-stale" Notice Safe
    "the bitmaps were left behind by a writer that does not know them"
    "The autoclear bit is off, so their content must not be believed. The next writer drops them; until then their clusters count as leaked."
    "Take a full backup instead of an incremental one; then remove the bitmaps."
BitmapDirectoryMalformed "bitmap-directory-malformed" Corruption Unsafe
    "the bitmap directory does not hold the entries it should"
    "It ends inside an entry, holds more or fewer than the extension says, or lies outside the file. QEMU refuses to open the image. Bitmaps behind the break were not walked."
    "Restore the directory, or give the bitmaps up: clear autoclear bit 0."
BitmapEntryInvalid "bitmap-entry-invalid" Corruption Unsafe
    "a bitmap's directory entry has impossible values"
    "Table offset or size, type, granularity, flags or name length is out of range. QEMU refuses to open the whole image over it."
    "Drop this bitmap; the others can stay."
BitmapNameDuplicate "bitmap-name-duplicate" Corruption Unsafe
    "two bitmaps have the same name"
    "Names must be unique. QEMU refuses to open the image."
    "Which of them is right nobody can tell: drop both, and take a full backup instead of an incremental one."
BitmapExtraData "bitmap-extra-data" Notice Safe
    "a bitmap carries extra data nobody defined, or the flag that allows it"
    "The specification allows both; QEMU refuses to open such an image."
    "Open it with the program that wrote it."
BitmapTableSizeWrong "bitmap-table-size-wrong" Corruption Unsafe
    "a bitmap's table does not fit the virtual disk"
    "It has more or fewer entries than the disk needs at the bitmap's granularity. QEMU refuses to open the image."
    "Drop this bitmap, and take a full backup instead of an incremental one."
BitmapTablePastEnd "bitmap-table-past-end" Corruption Unsafe
    "a bitmap's table lies past the end of the file"
    "The file was truncated or the entry is damaged. The bitmap was not walked."
    "Drop this bitmap, and take a full backup instead of an incremental one."
BitmapTableEntryInvalid "bitmap-table-entry-invalid" Corruption Unsafe
    "entries of a bitmap's table have reserved bits set or are not at a cluster boundary"
    "QEMU refuses to open the image. The entries were not followed."
    "Drop this bitmap, and take a full backup instead of an incremental one."
BitmapDataPastEnd "bitmap-data-past-end" Corruption Safe
    "a bitmap's data lies past the end of the file"
    "It reads as if nothing had changed, so an incremental backup would miss data. `qemu-img check -r` stores it back as valid."
    "Drop this bitmap, and take a full backup instead of an incremental one."
BitmapInUse "bitmap-in-use" Notice Safe
    "a bitmap was not saved when its writer stopped"
    "Its content must not be believed. QEMU keeps it as inconsistent until it is removed."
    "Remove it (`qemu-img bitmap --remove`), and take a full backup instead of an incremental one."
FileTruncated "file-truncated" Notice Safe
    "the file looks cut off"
    "Clusters past the end of the file are both referred to and counted, so they were there once. A copy that stopped early or a full disk does this."
    "Find the whole file before anything else; nothing inside the image can bring the tail back."
LostMappingSuspected "lost-mapping-suspected" Notice Safe
    "leaked clusters may be a lost table"
    "A repair looks into what it would free. These clusters hold words that read as pointers to clusters which are counted but not used: a table, snapshot or bitmap that nothing names any more, and with it the only way to its data."
    "Nothing is freed. If the data behind it is missed, find the table's place again; if nothing is missed, `qfsck repair --accept-loss lost-mapping-suspected` frees it."
TrailingBytes "trailing-bytes" Notice Safe
    "the file ends with part of a cluster that nothing uses"
    "A cluster that was freed before it was ever written whole looks like this, and so does something appended by another program."
    "None needed."
CompressedDataInvalid "compressed-data-invalid" Corruption Safe
    "compressed clusters cannot be decompressed"
    "Their data is not what the compression type says, ends before the cluster is full, or runs past the sectors the entry gives it. The guest gets an input/output error there."
    "Restore these guest ranges from a backup; `qemu-img convert` stops at the first of them."
CompressedDataOverrun "compressed-data-overrun" Notice Safe
    "compressed data does not end where its cluster does"
    "The deflate stream fills the cluster and goes on, or breaks off. QEMU ignores what follows, so the guest can read the cluster; but no writer makes such data."
    "Compare the guest range with a backup."
DataUnreadable "data-unreadable" Corruption Unsafe
    "the disk below cannot read part of the image"
    "The system gave an error for these bytes of the file. Every error costs a failing disk life, and a write may be the last."
    "Copy the image to another disk first (`ddrescue`), and work on the copy. The guest ranges named are what is lost if no read succeeds."
EncryptionKeySlotInvalid "encryption-key-slot-invalid" Corruption Unsafe
    "the LUKS header's key slots cannot be what they should be"
    "A slot's state is neither used nor unused, its key material lies outside the area in front of the data, or two slots overlap. QEMU refuses to open the image; and a key whose material is lost opens nothing."
    "Restore the LUKS header from a backup (`cryptsetup luksHeaderBackup`). Write nothing to the image before."
BitmapTailBitsSet "bitmap-tail-bits-set" Notice Safe
    "a bitmap has bits set past the end of the virtual disk"
    "The last cluster of a bitmap's data ends with bits that stand for nothing, and must be zero. Something else wrote there, or the bitmap belongs to a larger disk."
    "Do not trust the bitmap: remove it, and take a full backup instead of an incremental one."
PolicyBackingFile "policy-backing-file" Policy Safe
    "the image names a backing file"
    "Whoever opens the image opens that file too, and lets the guest read it: a file of the host, another tenant's disk, or a network address. `qemu-img check`, `info` and `convert` open it as well."
    "Turn the image away; its owner can flatten it (`qemu-img convert`) where the backing file is."
PolicyDataFile "policy-data-file" Policy Safe
    "the image names an external data file"
    "Whoever opens the image reads and writes the guest's data in that file: any file of the host that the program may open. The feature bit, the name and the raw bit each count."
    "Turn the image away; its owner can convert it to one file."
PolicyNameProtocol "policy-name-protocol" Policy Safe
    "a file name in the image is a protocol's"
    "A name with a colon before its first slash is no file for QEMU but an address (`nbd:`, `ssh:`, `fat:`) or a whole description of a device (`json:`): opening the image makes connections, or opens files past every check of the path."
    "Turn the image away. No honest image from outside has such a name."
PolicyFeatureUnknown "policy-feature-unknown" Policy Safe
    "the image has an incompatible feature nobody defined"
    "Nobody can say what it makes a program do. The bit may also change what all other tables mean, so that what was checked is not what will be used."
    "Turn the image away."
PolicyExtendedL2 "policy-extended-l2" Policy Safe
    "the image has extended L2 entries"
    "The feature is a proper one, of QEMU 5.2 and later. OpenStack's inspector does not know it and refuses the image, so a gate before such a service refuses it too."
    "`qemu-img convert -o extended_l2=off` makes an image that is accepted."
PolicyEncryption "policy-encryption" Policy Safe
    "the image is encrypted"
    "Nobody without the key can look at what is inside, and a program that opens the image asks for one. An encryption method or a pointer to a LUKS header each count."
    "Turn the image away unless encrypted images are expected; its owner can convert it to one in clear."
PolicyVirtualSize "policy-virtual-size" Policy Safe
    "the virtual disk, or a snapshot's, is larger than allowed"
    "A file of a few kilobytes can say that it is a disk of exabytes. Programs that set the space aside, or write zeros, fill the host's disk."
    "Turn the image away, or allow the size with `--max-virtual-size`."
PolicyPolyglot "policy-polyglot" Policy Safe
    "the file is one of another format as well"
    "It carries the signature of another format where programs look for it. What inspects the file as one format and uses it as another has inspected nothing."
    "Turn the image away. `qemu-img convert -f qcow2 -O qcow2` makes an image without what is hidden beside it."
PolicyHeaderRemainder "policy-header-remainder" Policy Safe
    "the first cluster holds bytes that belong to nothing"
    "Behind the header, its extensions and the backing file name the first cluster is zero in every image a known program writes. Other content there is hidden, or is the beginning of another format."
    "Turn the image away. `qemu-img convert -f qcow2 -O qcow2` makes an image without it."
PolicyExpansion "policy-expansion" Policy Safe
    "the image grows too much when it is unpacked"
    "Compressed clusters hold many times their size. Converted, or copied to a raw volume, this image takes more space for each byte uploaded than allowed."
    "Turn the image away, or allow the ratio with `--max-expansion`."
}

#[cfg(test)]
mod tests;
