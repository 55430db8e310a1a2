//! The path from a guest offset to its host cluster, in the active mapping.
//!
//! Comes in: a guest offset. Goes out: the L1 entry, the L2 entry and what they say. Never here: any other cluster.

use std::io;

use crate::image::Image;
use crate::qcow2::{
    CompressedExtent, GuestOffset, HostOffset, L1Entry, L2Descriptor, L2Entry, Refusal, u64_at,
};
use crate::storage::Storage;

/// Where a guest offset lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPath {
    /// The offset asked about.
    pub guest: GuestOffset,
    /// Index in the active L1 table.
    pub l1_index: u64,
    /// The L1 entry; `None` where the table does not reach so far.
    pub l1_entry: Option<L1Entry>,
    /// Index in the L2 table.
    pub l2_index: u64,
    /// The L2 entry, where there is a table to read.
    pub l2_entry: Option<L2Entry>,
    /// Where the path ends.
    pub target: GuestTarget,
}

/// What a guest offset is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestTarget {
    /// Nothing: reads come from the backing file, or are zeros.
    Unallocated,
    /// Zeros.
    Zero,
    /// This byte of the image file, or of the external data file.
    Host(HostOffset),
    /// Compressed data.
    Compressed(CompressedExtent),
    /// A table or cluster the file cannot have.
    Broken(HostOffset, Refusal),
}

/// Follows a guest offset through the active tables; `None` where the header gives no cluster size.
pub fn guest_path<S: Storage>(
    image: &Image<S>,
    guest: GuestOffset,
) -> io::Result<Option<GuestPath>> {
    let Some(geometry) = image.geometry() else {
        return Ok(None);
    };
    let l1_index = guest.0 / geometry.l1_entry_coverage_bytes();
    let l2_index = guest.0 / geometry.cluster_bytes() % geometry.l2_entries();
    let mut path = GuestPath {
        guest,
        l1_index,
        l1_entry: None,
        l2_index,
        l2_entry: None,
        target: GuestTarget::Unallocated,
    };
    if l1_index >= u64::from(image.header().l1_size) {
        return Ok(Some(path));
    }
    let l1_entry = L1Entry(read_word(
        image,
        image.header().l1_table_offset,
        l1_index * 8,
    )?);
    path.l1_entry = Some(l1_entry);
    let Some(table_offset) = l1_entry.l2_table_offset() else {
        return Ok(Some(path));
    };
    if let Err(refusal) = geometry.admit(table_offset) {
        path.target = GuestTarget::Broken(table_offset, refusal);
        return Ok(Some(path));
    }
    let entry_offset = l2_index * geometry.l2_entry_bytes();
    let l2_entry = L2Entry(read_word(image, table_offset.0, entry_offset)?);
    path.l2_entry = Some(l2_entry);
    let within = guest.0 % geometry.cluster_bytes();
    path.target = match l2_entry.descriptor(geometry) {
        // In an external data file offset 0 is a place, told from nothing by COPIED.
        L2Descriptor::Unallocated if image.header().has_data_file() && l2_entry.copied() => {
            GuestTarget::Host(HostOffset(within))
        }
        L2Descriptor::Unallocated => GuestTarget::Unallocated,
        L2Descriptor::Zero { .. } => GuestTarget::Zero,
        L2Descriptor::Standard(offset) if image.header().has_data_file() => {
            GuestTarget::Host(HostOffset(offset.0 + within))
        }
        L2Descriptor::Standard(offset) => match geometry.admit(offset) {
            Ok(_) => GuestTarget::Host(HostOffset(offset.0 + within)),
            Err(refusal) => GuestTarget::Broken(offset, refusal),
        },
        L2Descriptor::Compressed(extent) => GuestTarget::Compressed(extent),
    };
    Ok(Some(path))
}

fn read_word<S: Storage>(image: &Image<S>, table: u64, entry: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    image.read_into(HostOffset(table.saturating_add(entry)), &mut bytes)?;
    Ok(u64_at(&bytes, 0).unwrap_or(0))
}
