//! Each signature is found at its place, and nothing is found where there is none.

use super::*;

fn blank() -> Vec<u8> {
    vec![0; 256 << 10]
}

fn formats(bytes: &Vec<u8>) -> Vec<(&'static str, u64)> {
    let found = find(bytes, bytes.len() as u64).expect("memory can be read");
    let pairs = found.iter().map(|found| (found.format, found.offset));
    pairs.collect()
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn vhd_footer() -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix\0\0\0\x02");
    let sum: u32 = footer.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut footer, 64, &(!sum).to_be_bytes());
    footer
}

#[test]
fn nothing_is_found_in_zeros_or_in_a_file_of_no_length() {
    assert_eq!(formats(&blank()), []);
    for length in [0, 1, 22, 72, 511, 512, 513, 1024, 32768, 65535] {
        assert_eq!(formats(&vec![0; length]), [], "{length}");
    }
}

#[test]
fn every_signature_is_found_at_its_place_and_not_beside_it() {
    for one in HEAD {
        let at = usize::try_from(one.offset).expect("near the start");
        let mut bytes = blank();
        put(&mut bytes, at, one.magic);
        assert_eq!(formats(&bytes), [(one.format, one.offset)]);
        let mut bytes = blank();
        put(&mut bytes, at + 7, one.magic);
        assert_eq!(formats(&bytes), [], "{} off its place", one.format);
        // All but the last byte of it.
        let mut bytes = blank();
        put(&mut bytes, at, &one.magic[..one.magic.len() - 1]);
        assert_eq!(formats(&bytes), [], "half of {}", one.format);
    }
}

#[test]
fn two_bytes_of_ext_need_a_superblock_around_them() {
    let mut bytes = blank();
    put(&mut bytes, 1080, b"\x53\xef");
    assert_eq!(formats(&bytes), []);
    put(&mut bytes, 1024, &[16, 0, 0, 0, 64, 0, 0, 0]);
    assert_eq!(formats(&bytes), [("ext2, ext3 or ext4", 1080)]);
    put(&mut bytes, 1048, &[7]);
    assert_eq!(formats(&bytes), []);
}

#[test]
fn a_pdf_may_begin_anywhere_in_the_first_kilobyte() {
    let mut bytes = blank();
    put(&mut bytes, 700, b"%PDF-1.7");
    assert_eq!(formats(&bytes), [("PDF", 700)]);
    let mut bytes = blank();
    put(&mut bytes, 1020, b"%PDF-1.7");
    assert_eq!(formats(&bytes), []);
}

#[test]
fn a_vhd_footer_needs_its_checksum_and_the_end_of_the_file() {
    let mut bytes = blank();
    bytes.extend(vhd_footer());
    assert_eq!(formats(&bytes), [("VHD", 256 << 10)]);
    let last = bytes.len() - 1;
    bytes[last] = 1;
    assert_eq!(formats(&bytes), []);
    let mut bytes = blank();
    bytes.extend(vhd_footer());
    bytes.extend([0; 512]);
    assert_eq!(formats(&bytes), []);
}

#[test]
fn a_dmg_trailer_says_its_version_and_its_length() {
    let mut bytes = blank();
    let at = bytes.len() - 512;
    put(&mut bytes, at, b"koly\0\0\0\x04\0\0\x02\0");
    assert_eq!(formats(&bytes), [("DMG", at as u64)]);
    bytes[at + 7] = 5;
    assert_eq!(formats(&bytes), []);
}

#[test]
fn a_zip_archive_ends_with_its_comment_at_the_end_of_the_file() {
    let mut record = vec![0; 22];
    put(&mut record, 0, b"PK\x05\x06");
    for comment in [0_u16, 3, 0xffff] {
        let mut bytes = blank();
        let at = bytes.len() as u64;
        put(&mut record, 20, &comment.swap_bytes().to_be_bytes());
        bytes.extend(&record);
        bytes.resize(bytes.len() + usize::from(comment), b'x');
        assert_eq!(formats(&bytes), [("zip", at)]);
        bytes.push(0);
        assert_eq!(formats(&bytes), [], "something follows the comment");
    }
}
