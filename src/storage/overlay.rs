//! Storage with changed sectors on top: the image as it would be.
//!
//! Comes in: storage, and sectors that differ. Goes out: reads that see them. Never here: a write to the storage below.

use std::collections::BTreeMap;
use std::io;

use super::Storage;

const SECTOR: usize = 512;

/// An image with sectors that differ, kept in memory.
#[derive(Debug)]
pub struct Overlay<S> {
    below: S,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    /// Where the last byte laid over it ends.
    end: u64,
}

impl<S: Storage> Overlay<S> {
    /// Nothing differs yet.
    pub fn new(below: S) -> Self {
        Self {
            below,
            sectors: BTreeMap::new(),
            end: 0,
        }
    }

    /// Lays bytes over the storage; `offset` is a multiple of 512, and only the last sector may be cut short.
    ///
    /// Bytes past the end of the storage make the image longer.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.extend_to(offset + bytes.len() as u64);
        for (index, part) in (offset / SECTOR as u64..).zip(bytes.chunks(SECTOR)) {
            let mut sector = [0; SECTOR];
            if let Some(target) = sector.get_mut(..part.len()) {
                target.copy_from_slice(part);
            }
            self.sectors.insert(index, sector);
        }
    }

    /// Makes the image reach to `end` at least; what is not written reads as zero.
    pub fn extend_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }
}

impl<S: Storage> Storage for Overlay<S> {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.below.length_bytes()?.max(self.end))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset, buffer)?;
        let end = offset.saturating_add(buffer.len() as u64);
        let first = offset / SECTOR as u64;
        let last = end.div_ceil(SECTOR as u64);
        for (&index, sector) in self.sectors.range(first..last) {
            let sector_start = index * SECTOR as u64;
            let from = offset.max(sector_start);
            let to = end.min(sector_start + SECTOR as u64);
            let within = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(0);
            let source = sector.get(within(from, sector_start)..within(to, sector_start));
            let target = buffer.get_mut(within(from, offset)..within(to, offset));
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let laid = self.sectors.range(offset / SECTOR as u64..).next();
        let laid = laid.map(|(&index, _)| (index * SECTOR as u64).max(offset));
        Ok(match (self.below.next_data(offset)?, laid) {
            (Some(below), Some(laid)) => Some(below.min(laid)),
            (below, laid) => below.or(laid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_see_changed_sectors_at_any_offset() {
        let mut overlay = Overlay::new(vec![1_u8; 2000]);
        overlay.write(512, &[2; 512]);
        for (offset, length) in [
            (0_u64, 2000_usize),
            (500, 30),
            (511, 2),
            (512, 512),
            (600, 1),
            (1023, 2),
        ] {
            let mut buffer = vec![9; length];
            overlay
                .read_at(offset, &mut buffer)
                .expect("memory can be read");
            for (position, &byte) in (offset..).zip(&buffer) {
                let wanted = if (512..1024).contains(&position) {
                    2
                } else {
                    1
                };
                assert_eq!(byte, wanted, "byte {position} of a read at {offset}");
            }
        }
    }
}
