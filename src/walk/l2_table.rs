//! L2 tables.
//!
//! Checks: each entry's reserved bits, alignment, range and flags by themselves. Collects: what each entry maps.
//! Never here: a refcount, another entry, another table.

use super::batch::Table;
use super::{L2Item, Notes, Walk};
use crate::coverage::Gap;
use crate::finding::{Code, Finding};
use crate::qcow2::{
    ClusterRange, CompressedExtent, Geometry, GuestRange, HostCluster, HostOffset, L2Descriptor,
    L2Entry, Place, Refusal, SubclusterBitmap, words,
};

/// Impossible entries a table must have before it is called implausible.
const IMPLAUSIBLE_ENTRIES: u64 = 16;

impl Table for L2Item {
    fn cluster(&self) -> HostCluster {
        self.cluster
    }

    fn place(&self) -> Place {
        Place::L2Table {
            cluster: self.cluster,
        }
    }
}

/// What of the header an entry is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) geometry: Geometry,
    version: u32,
    has_data_file: bool,
    /// Bits that are clear in an ordinary entry: all but COPIED and an aligned offset.
    odd_bits: u64,
    virtual_clusters: u64,
    data_file_bytes: Option<u64>,
}

/// What an entry maps its guest cluster to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A host cluster of its own, or why it cannot be that.
    Standard {
        offset: HostOffset,
        cluster: Result<HostCluster, Refusal>,
        copied: bool,
    },
    /// A cluster of the external data file, which has no refcounts.
    External { offset: HostOffset },
    /// Part of the clusters an extent touches, or why it cannot be that.
    Compressed {
        extent: CompressedExtent,
        clusters: Result<ClusterRange, Refusal>,
    },
}

/// An entry that maps something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    pub(crate) index: u64,
    pub(crate) guest_cluster: u64,
    pub(crate) target: Target,
}

#[derive(Clone, Copy)]
struct Entry {
    index: u64,
    word: L2Entry,
    bitmap: SubclusterBitmap,
}

/// How many of a table's entries are what.
#[derive(Default)]
struct TableTally {
    used: u64,
    /// Cannot be followed, or have reserved bits set.
    impossible: u64,
    /// Cannot be followed.
    refused: u64,
}

impl TableTally {
    fn add(&mut self, entry: Entry, is_refused: bool) {
        self.refused += u64::from(is_refused);
        self.impossible += u64::from(is_refused || entry.word.reserved_bits() != 0);
    }
}

/// One table, with what every finding in it has in common.
struct TableContext<'a> {
    rules: &'a Rules,
    item: &'a L2Item,
}

impl Rules {
    pub(crate) fn new<S: crate::storage::Storage>(walk: Walk<'_, S>) -> Self {
        let header = walk.image.header();
        Self {
            geometry: walk.geometry,
            version: header.version,
            has_data_file: header.has_data_file(),
            odd_bits: L2Entry::odd_bits(walk.geometry),
            virtual_clusters: walk.geometry.clusters_for(header.size),
            data_file_bytes: walk.data_file_bytes,
        }
    }

    /// Calls `each` for every entry of a table that maps something, and notes what is wrong with its entries by
    /// themselves if `notes` are to be taken.
    pub(crate) fn walk_table(
        &self,
        item: &L2Item,
        bytes: &[u8],
        mut notes: Option<&mut Notes>,
        mut each: impl FnMut(Mapped),
    ) {
        let context = TableContext { rules: self, item };
        let first = self.geometry.guest_cluster(item.l1_index, 0);
        let is_inside = first.saturating_add(self.geometry.l2_entries()) <= self.virtual_clusters;
        let is_active = item.trees.active > 0;
        let mut tally = TableTally::default();
        for_each_entry(self.geometry, bytes, |entry| {
            tally.used += 1;
            let guest_cluster = first.saturating_add(entry.index);
            // Nearly every entry of nearly every image: one comparison of masks, and nothing to note.
            let is_unremarkable = is_inside && (is_active || !entry.word.copied());
            let target = match self.ordinary(entry) {
                Some(target) if is_unremarkable => Some(target),
                _ => {
                    if let Some(notes) = notes.as_deref_mut() {
                        tally.add(entry, context.judge(entry, notes));
                    }
                    self.target(entry)
                }
            };
            if let Some(target) = target {
                each(Mapped {
                    index: entry.index,
                    guest_cluster,
                    target,
                });
            }
        });
        if let Some(notes) = notes {
            context.judge_whole(&tally, notes);
        }
    }

    /// The target of an entry in which nothing can be wrong: a standard descriptor of an aligned cluster of the file.
    fn ordinary(&self, entry: Entry) -> Option<Target> {
        let offset = entry.word.standard_offset();
        let has_odd_bits = entry.word.0 & self.odd_bits != 0;
        let has_odd_subclusters = entry.bitmap.allocated() & entry.bitmap.zero() != 0;
        let is_in_file = offset.0 != 0 && offset.0 < self.geometry.file_bytes();
        if has_odd_bits || has_odd_subclusters || !is_in_file || self.has_data_file {
            return None;
        }
        Some(Target::Standard {
            offset,
            cluster: Ok(self.geometry.cluster_at(offset)),
            copied: entry.word.copied(),
        })
    }

    fn target(&self, entry: Entry) -> Option<Target> {
        let copied = entry.word.copied();
        match entry.word.descriptor(self.geometry) {
            // An external data file's first cluster is at offset 0; COPIED tells it from an unallocated one.
            L2Descriptor::Unallocated if self.has_data_file && copied => Some(Target::External {
                offset: HostOffset(0),
            }),
            L2Descriptor::Unallocated | L2Descriptor::Zero { preallocated: None } => None,
            L2Descriptor::Standard(offset)
            | L2Descriptor::Zero {
                preallocated: Some(offset),
            } if self.has_data_file => Some(Target::External { offset }),
            L2Descriptor::Standard(offset)
            | L2Descriptor::Zero {
                preallocated: Some(offset),
            } => Some(Target::Standard {
                offset,
                cluster: self.geometry.admit(offset),
                copied,
            }),
            // Nothing says what these mean; they claim nothing.
            L2Descriptor::Compressed(_) if self.has_data_file || entry.bitmap.0 != 0 => None,
            L2Descriptor::Compressed(extent) => Some(Target::Compressed {
                extent,
                clusters: self.geometry.admit_extent(extent.offset, extent.bytes()),
            }),
        }
    }
}

/// Calls `each` for every entry of a table that is not all zero.
fn for_each_entry(geometry: Geometry, bytes: &[u8], mut each: impl FnMut(Entry)) {
    if geometry.has_extended_l2() {
        let mut pairs = words(bytes);
        let mut index = 0;
        while let (Some(word), Some(bitmap)) = (pairs.next(), pairs.next()) {
            if word | bitmap != 0 {
                each(Entry {
                    index,
                    word: L2Entry(word),
                    bitmap: SubclusterBitmap(bitmap),
                });
            }
            index += 1;
        }
        return;
    }
    for (index, word) in (0_u64..).zip(words(bytes)) {
        if word != 0 {
            each(Entry {
                index,
                word: L2Entry(word),
                bitmap: SubclusterBitmap(0),
            });
        }
    }
}

impl TableContext<'_> {
    /// Notes what a table's entries amount to together.
    fn judge_whole(&self, tally: &TableTally, notes: &mut Notes) {
        let TableTally {
            used,
            impossible,
            refused,
        } = *tally;
        if refused > 0 {
            let what = if refused == 1 {
                "entry was"
            } else {
                "entries were"
            };
            notes.gap(Gap::refused(
                self.item.place(),
                format!("{refused} impossible {what} not followed"),
            ));
        }
        if impossible >= IMPLAUSIBLE_ENTRIES && impossible * 2 > used {
            let geometry = self.rules.geometry;
            let first = geometry.guest_cluster(self.item.l1_index, 0);
            notes.push(
                Finding::new(Code::L2TableImplausible, self.item.place())
                    .host(ClusterRange::one(self.item.cluster))
                    .guest(geometry.guest_range(first, geometry.l2_entries()))
                    .detail(format!(
                        "{impossible} of the {used} entries in use are impossible"
                    )),
            );
        }
    }

    fn guest_cluster(&self, entry: Entry) -> u64 {
        self.rules
            .geometry
            .guest_cluster(self.item.l1_index, entry.index)
    }

    fn guest(&self, entry: Entry) -> GuestRange {
        self.rules
            .geometry
            .guest_range(self.guest_cluster(entry), 1)
    }

    fn place(&self, entry: Entry) -> Place {
        Place::L2Entry {
            table: self.item.cluster,
            index: entry.index,
        }
    }

    /// A finding at an entry, counted once for each L1 entry that names the table.
    fn finding(&self, code: Code, entry: Entry) -> Finding {
        Finding::new(code, self.place(entry))
            .word(entry.word.0)
            .guest(self.guest(entry))
            .count(self.item.weight())
    }

    /// Notes what is wrong with one entry; says whether it cannot be followed.
    fn judge(&self, entry: Entry, notes: &mut Notes) -> bool {
        if entry.word.reserved_bits() != 0 {
            notes.push(self.finding(Code::L2EntryReservedBits, entry));
        }
        if self.rules.geometry.has_extended_l2() {
            self.judge_subclusters(entry, notes);
        } else if self.rules.version == 2 && !entry.word.is_compressed() && entry.word.zero_flag() {
            notes.push(self.finding(Code::ZeroFlagInV2, entry));
        }
        let is_active = self.item.trees.active > 0;
        if is_active && self.guest_cluster(entry) >= self.rules.virtual_clusters {
            notes.push(self.finding(Code::MappingPastVirtualSize, entry));
        }
        if entry.word.is_compressed() {
            self.judge_compressed(entry, notes)
        } else {
            self.judge_standard(entry, notes)
        }
    }

    fn judge_standard(&self, entry: Entry, notes: &mut Notes) -> bool {
        let Some(target) = self.rules.target(entry) else {
            // Offset 0 is a place in an external data file.
            if entry.word.copied() && !self.rules.has_data_file {
                notes.push(self.finding(Code::L2EntryWithoutOffset, entry));
            }
            return false;
        };
        match target {
            Target::Standard {
                cluster: Err(refusal),
                ..
            } => {
                let code = match refusal {
                    Refusal::Unaligned => Code::L2EntryUnaligned,
                    Refusal::PastEnd => Code::L2EntryPastEnd,
                };
                notes.push(self.finding(code, entry));
                true
            }
            Target::External { offset } => {
                self.judge_external(entry, offset, notes);
                false
            }
            Target::Standard { copied, .. } => {
                if copied && self.item.trees.active == 0 {
                    notes.push(self.finding(Code::CopiedFlagInactive, entry));
                }
                false
            }
            Target::Compressed { .. } => false,
        }
    }

    fn judge_external(&self, entry: Entry, offset: HostOffset, notes: &mut Notes) {
        let guest = self.guest(entry);
        if offset.0 != guest.start.0 {
            notes.push(
                self.finding(Code::DataFileOffsetMismatch, entry)
                    .detail("the data file offset should be the guest offset"),
            );
        }
        if self
            .rules
            .data_file_bytes
            .is_some_and(|bytes| offset.0 >= bytes)
        {
            notes.push(self.finding(Code::DataFilePastEnd, entry));
        }
        if self.item.trees.active > 0 && !entry.word.copied() {
            notes.push(
                self.finding(Code::CopiedFlagMissing, entry)
                    .count(self.item.trees.active),
            );
        }
    }

    fn judge_compressed(&self, entry: Entry, notes: &mut Notes) -> bool {
        if entry.word.copied() {
            notes.push(self.finding(Code::CompressedCopied, entry));
        }
        if self.rules.has_data_file {
            notes.push(self.finding(Code::CompressedWithDataFile, entry));
            return true;
        }
        if entry.bitmap.0 != 0 {
            notes.push(self.finding(Code::CompressedWithSubclusters, entry));
            return true;
        }
        if let Some(Target::Compressed {
            clusters: Err(_), ..
        }) = self.rules.target(entry)
        {
            notes.push(self.finding(Code::CompressedPastEnd, entry));
            return true;
        }
        false
    }

    fn judge_subclusters(&self, entry: Entry, notes: &mut Notes) {
        if entry.word.is_compressed() {
            return;
        }
        if entry.word.zero_flag() {
            notes.push(self.finding(Code::ExtendedL2ZeroFlag, entry));
        }
        let allocated = entry.bitmap.allocated();
        let has_cluster = self.rules.target(entry).is_some();
        if !has_cluster && allocated != 0 {
            notes.push(self.finding(Code::SubclusterWithoutCluster, entry));
        } else if allocated & entry.bitmap.zero() != 0 {
            notes.push(self.finding(Code::SubclusterAllocatedAndZero, entry));
        }
    }
}
