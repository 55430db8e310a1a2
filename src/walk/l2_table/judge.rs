//! What is wrong with the entries of an L2 table by themselves.
//!
//! Comes in: an entry, or how many of a table's entries are what. Goes out: findings and gaps. Never here: another entry,
//! another table, a refcount.

use super::chunk::Entry;
use super::{TableContext, TableTally, Target};
use crate::coverage::Gap;
use crate::finding::{Code, Finding};
use crate::qcow2::{ClusterRange, GuestRange, HostOffset, Place, Refusal};
use crate::walk::Notes;
use crate::walk::batch::Table;

/// Impossible entries a table must have before it is called implausible.
const IMPLAUSIBLE_ENTRIES: u64 = 16;

impl TableContext<'_> {
    /// Notes what a table's entries amount to together.
    pub(super) fn judge_whole(&self, tally: &TableTally, notes: &mut Notes) {
        let TableTally {
            used,
            impossible,
            refused,
        } = *tally;
        if refused > 0 {
            let what = if refused == 1 { "entry" } else { "entries" };
            notes.gap(Gap::refused(
                self.item.place(),
                format!("{refused} {what} cannot be what was meant"),
            ));
        }
        if impossible >= IMPLAUSIBLE_ENTRIES && impossible * 2 > used {
            let geometry = self.rules.geometry;
            let first = self.first_guest_cluster;
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

    pub(super) fn guest_cluster(&self, entry: Entry) -> u64 {
        self.first_guest_cluster.saturating_add(entry.index)
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
    pub(super) fn judge(&self, entry: Entry, notes: &mut Notes) -> bool {
        if entry.word.reserved_bits() != 0 {
            notes.push(self.finding(Code::L2EntryReservedBits, entry));
        }
        let mut is_refused = false;
        if self.rules.geometry.has_extended_l2() {
            is_refused = self.judge_subclusters(entry, notes);
        } else if self.rules.version == 2 && !entry.word.is_compressed() && entry.word.zero_flag() {
            notes.push(self.finding(Code::ZeroFlagInV2, entry));
        }
        let is_active = self.item.trees.active > 0;
        if is_active && self.guest_cluster(entry) >= self.rules.virtual_clusters {
            notes.push(self.finding(Code::MappingPastVirtualSize, entry));
        }
        is_refused
            | if entry.word.is_compressed() {
                self.judge_compressed(entry, notes)
            } else {
                self.judge_standard(entry, notes)
            }
    }

    fn judge_standard(&self, entry: Entry, notes: &mut Notes) -> bool {
        let Some(target) = self.rules.target(entry) else {
            // Offset 0 is a place in an external data file.
            let has_lost_offset = entry.word.copied() && !self.rules.has_data_file;
            if has_lost_offset {
                notes.push(self.finding(Code::L2EntryWithoutOffset, entry));
            }
            return has_lost_offset;
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
            Target::External { offset } => self.judge_external(entry, offset, notes),
            Target::Standard { copied, .. } => {
                if copied && self.item.trees.active == 0 && self.rules.are_all_users_known {
                    notes.push(self.finding(Code::CopiedFlagInactive, entry));
                }
                false
            }
            Target::Compressed { .. } => false,
        }
    }

    fn judge_external(&self, entry: Entry, offset: HostOffset, notes: &mut Notes) -> bool {
        let guest = self.guest(entry);
        // Then it may well be a cluster of this file.
        let is_elsewhere = offset.0 != guest.start.0;
        if is_elsewhere {
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
        is_elsewhere
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
        let Some(Target::Compressed { extent, clusters }) = self.rules.target(entry) else {
            return false;
        };
        let is_cut = clusters.is_err() || self.rules.geometry.is_extent_cut(extent.end());
        if is_cut {
            notes.push(self.finding(Code::CompressedPastEnd, entry));
        }
        is_cut
    }

    /// The same for the bitmap of subclusters.
    fn judge_subclusters(&self, entry: Entry, notes: &mut Notes) -> bool {
        if entry.word.is_compressed() {
            return false;
        }
        if entry.word.zero_flag() {
            notes.push(self.finding(Code::ExtendedL2ZeroFlag, entry));
        }
        let allocated = entry.bitmap.allocated();
        let has_cluster = self.rules.target(entry).is_some();
        let has_lost_cluster = !has_cluster && allocated != 0;
        if has_lost_cluster {
            notes.push(self.finding(Code::SubclusterWithoutCluster, entry));
        } else if allocated & entry.bitmap.zero() != 0 {
            notes.push(self.finding(Code::SubclusterAllocatedAndZero, entry));
        }
        has_lost_cluster
    }
}
