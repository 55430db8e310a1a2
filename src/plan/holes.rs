//! Holes of the file, stepped over by whoever looks at places in order.
//!
//! Comes in: byte offsets, none before the one asked about last. Goes out: where the next bytes are stored. Never here: a
//! question to the file system while the last answer still holds; what the bytes mean.

use std::io;

use crate::qcow2::{Geometry, HostCluster, is_zero};
use crate::storage::Storage;

/// So much of a cluster is read first: where it holds anything, most often it begins with it.
const FIRST_BYTES: u64 = 4 << 10;

/// Where the next stored bytes are.
pub(super) struct Holes<'a, S: ?Sized> {
    storage: &'a S,
    /// Nothing but a hole lies between the last offset asked about and this one.
    next_data: u64,
    /// What was looked at last, for the next to use the same memory.
    bytes: Vec<u8>,
}

impl<'a, S: Storage + ?Sized> Holes<'a, S> {
    pub(super) fn new(storage: &'a S) -> Self {
        Self {
            storage,
            next_data: 0,
            bytes: Vec::new(),
        }
    }

    /// Whether anything of a cluster may be stored.
    pub(super) fn is_stored(
        &mut self,
        geometry: Geometry,
        cluster: HostCluster,
    ) -> io::Result<bool> {
        let start = geometry.offset_of(cluster).0;
        Ok(self.next_stored(start)? < start.saturating_add(geometry.cluster_bytes()))
    }

    /// Whether a cluster holds anything but zeros.
    pub(super) fn holds_data(
        &mut self,
        geometry: Geometry,
        cluster: HostCluster,
    ) -> io::Result<bool> {
        if !self.is_stored(geometry, cluster)? {
            return Ok(false);
        }
        let start = geometry.offset_of(cluster).0;
        let first_bytes = geometry.cluster_bytes().min(FIRST_BYTES);
        for piece in [0..first_bytes, first_bytes..geometry.cluster_bytes()] {
            let piece_bytes = usize::try_from(piece.end - piece.start).unwrap_or(0);
            self.bytes.resize(piece_bytes, 0);
            if !self.bytes.is_empty() {
                self.storage.read_at(start + piece.start, &mut self.bytes)?;
            }
            if !is_zero(&self.bytes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first byte from `offset` on that may be stored, `u64::MAX` where none is.
    pub(super) fn next_stored(&mut self, offset: u64) -> io::Result<u64> {
        if self.next_data <= offset {
            let next = self.storage.next_data(offset)?;
            self.next_data = next.unwrap_or(u64::MAX).max(offset);
        }
        Ok(self.next_data)
    }
}
