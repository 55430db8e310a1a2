//! Signatures of other formats that a file with a qcow2 header can carry.
//!
//! Comes in: the first and last bytes of a file. Goes out: what else it is. Never here: a format whose signature lies in
//! the first four bytes, which are qcow2's own (VMDK, VHDX, QED, LUKS, ELF, gzip and most others), so that no file can
//! be both.
//!
//! A signature counts where programs look for it, whatever the bytes are to the image: a file system's superblock at
//! its place is found by every prober, and whether it lies in guest data is nothing it asks. Signatures of two bytes
//! count only with more that fits, or inside the first sector, where no guest data can be.

use std::io;

use crate::qcow2::{u32_at, u64_at};
use crate::storage::Storage;

/// Another format that the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) format: &'static str,
    /// Where its signature is.
    pub(super) offset: u64,
}

/// Bytes read from the start: the farthest signature is btrfs's.
const HEAD_BYTES: u64 = 72 << 10;
/// Bytes read from the end: the record of a zip archive may have a comment of 64 KiB behind it.
const TAIL_BYTES: u64 = 22 + 0xffff;

/// A signature that is enough by itself.
struct Signature {
    format: &'static str,
    offset: u64,
    magic: &'static [u8],
}

const fn signature(format: &'static str, offset: u64, magic: &'static [u8]) -> Signature {
    Signature {
        format,
        offset,
        magic,
    }
}

const HEAD: &[Signature] = &[
    // The first sector is always the header's own.
    signature("VDI", 64, b"\x7f\x10\xda\xbe"),
    signature("tar", 257, b"ustar"),
    signature("MBR or boot sector", 510, b"\x55\xaa"),
    signature("GPT", 512, b"EFI PART"),
    signature("LVM", 512, b"LABELONE"),
    signature("LVM", 1024, b"LABELONE"),
    signature("LVM", 1536, b"LABELONE"),
    signature("HFS+", 1024, b"H+\0\x04"),
    signature("HFSX", 1024, b"HX\0\x05"),
    signature("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    signature("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    signature("swap", 4086, b"SWAPSPACE2"),
    signature("md RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    signature("LUKS2", 16384, b"SKUL\xba\xbe"),
    signature("LUKS2", 32768, b"SKUL\xba\xbe"),
    signature("LUKS2", 65536, b"SKUL\xba\xbe"),
    signature("JFS", 32768, b"JFS1"),
    signature("ISO 9660", 32769, b"CD001"),
    signature("ISO 9660", 32769, b"CDW02"),
    signature("UDF", 32769, b"BEA01"),
    signature("UDF", 32769, b"NSR02"),
    signature("UDF", 32769, b"NSR03"),
    signature("Btrfs", 65600, b"_BHRfS_M"),
    signature("ReiserFS", 65588, b"ReIsEr"),
];

/// Readers of PDF look for its signature in so many bytes.
const PDF_BYTES: usize = 1024;

/// Finds every other format the file is.
pub(super) fn find(storage: &impl Storage, file_bytes: u64) -> io::Result<Vec<Found>> {
    let head = read(storage, 0, file_bytes.min(HEAD_BYTES))?;
    let tail_start = file_bytes.saturating_sub(TAIL_BYTES);
    let tail = read(storage, tail_start, file_bytes - tail_start)?;
    let mut found = in_head(&head);
    found.extend(in_tail(&tail, tail_start));
    Ok(found)
}

fn read(storage: &impl Storage, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
    storage.read_at(offset, &mut buffer)?;
    Ok(buffer)
}

/// The bytes from `at` on, and none past the end.
fn from(bytes: &[u8], at: u64) -> &[u8] {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    bytes.get(at..).unwrap_or(&[])
}

fn in_head(head: &[u8]) -> Vec<Found> {
    let mut found: Vec<Found> = HEAD
        .iter()
        .filter(|one| from(head, one.offset).starts_with(one.magic))
        .map(|one| Found {
            format: one.format,
            offset: one.offset,
        })
        .collect();
    if is_ext(head) {
        found.push(Found {
            format: "ext2, ext3 or ext4",
            offset: 1080,
        });
    }
    let start = head.get(..PDF_BYTES.min(head.len())).unwrap_or(&[]);
    let pdf = start.windows(5).position(|window| window == b"%PDF-");
    found.extend(pdf.map(|at| Found {
        format: "PDF",
        offset: at as u64,
    }));
    found
}

/// Two bytes of magic, and fields beside them that fit.
fn is_ext(head: &[u8]) -> bool {
    let superblock = from(head, 1024);
    let little_u32 = |at: usize| u32_at(superblock, at).map(u32::swap_bytes);
    let is_some = |at| little_u32(at).is_some_and(|value| value != 0);
    let at_most = |at, limit| little_u32(at).is_some_and(|value| value <= limit);
    from(superblock, 56).starts_with(b"\x53\xef")
        && is_some(0) // inodes
        && is_some(4) // blocks
        && at_most(24, 6) // block size, as a power of two above 1 KiB
        && at_most(76, 1) // revision
}

fn in_tail(tail: &[u8], tail_start: u64) -> Vec<Found> {
    let mut found = Vec::new();
    let end = tail_start.saturating_add(tail.len() as u64);
    let last_sector = from(tail, (tail.len() as u64).saturating_sub(512));
    let sector_offset = end.saturating_sub(512);
    if is_vhd_footer(last_sector) {
        found.push(Found {
            format: "VHD",
            offset: sector_offset,
        });
    }
    // Version 4 and its own length.
    let is_dmg = last_sector.starts_with(b"koly")
        && u32_at(last_sector, 4) == Some(4)
        && u32_at(last_sector, 8) == Some(512);
    if is_dmg {
        found.push(Found {
            format: "DMG",
            offset: sector_offset,
        });
    }
    found.extend(zip_end(tail).map(|at| Found {
        format: "zip",
        offset: tail_start.saturating_add(at as u64),
    }));
    found
}

/// The cookie, and the checksum: the complement of the sum of all other bytes.
fn is_vhd_footer(sector: &[u8]) -> bool {
    const CHECKSUM: std::ops::Range<usize> = 64..68;
    let others = (0..).zip(sector).filter(|(at, _)| !CHECKSUM.contains(at));
    let sum: u32 = others.map(|(_, &byte)| u32::from(byte)).sum();
    sector.len() == 512
        && sector.starts_with(b"conectix")
        && u64_at(sector, 8).is_some()
        && u32_at(sector, CHECKSUM.start) == Some(!sum)
}

/// Where the end record of a zip archive is whose comment ends with the file.
fn zip_end(tail: &[u8]) -> Option<usize> {
    const RECORD_BYTES: usize = 22;
    let comment_bytes = |record: &[u8]| {
        let low = record.get(20).copied()?;
        let high = record.get(21).copied()?;
        Some(usize::from(low) | usize::from(high) << 8)
    };
    let records = tail.windows(RECORD_BYTES).enumerate();
    let mut ends = records.filter(|(at, record)| {
        record.starts_with(b"PK\x05\x06")
            && comment_bytes(record)
                .is_some_and(|comment| at + RECORD_BYTES + comment == tail.len())
    });
    ends.next_back().map(|(at, _)| at)
}

#[cfg(test)]
mod tests;
