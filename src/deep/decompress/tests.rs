//! Streams made by hand, and the defects each has.

use super::*;

const NONE: Result<(), Defect> = Ok(());

/// A deflate block that is stored as it is.
fn stored(bytes: &[u8], is_last: bool) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a small block");
    let mut block = vec![u8::from(is_last)];
    block.extend(length.swap_bytes().to_be_bytes());
    block.extend((!length).swap_bytes().to_be_bytes());
    block.extend(bytes);
    block
}

/// A zstd block that is stored as it is.
fn raw(bytes: &[u8], is_last: bool) -> Vec<u8> {
    let header = u32::try_from(bytes.len()).expect("a small block") << 3 | u32::from(is_last);
    let mut block = header.swap_bytes().to_be_bytes()[..3].to_vec();
    block.extend(bytes);
    block
}

/// A zstd block of one byte many times.
fn repeated(count: u32, is_last: bool) -> Vec<u8> {
    let header = count << 3 | 1 << 1 | u32::from(is_last);
    let mut block = header.swap_bytes().to_be_bytes()[..3].to_vec();
    block.push(b'x');
    block
}

/// A frame with a window and no length; the window byte is the format's.
fn frame(window: u8, blocks: &[u8]) -> Vec<u8> {
    let mut frame = b"\x28\xb5\x2f\xfd\0".to_vec();
    frame.push(window);
    frame.extend(blocks);
    frame
}

fn unzstd(cluster_bytes: usize, mut input: Vec<u8>) -> Result<(), Defect> {
    Unpacker::new(cluster_bytes).unzstd(&mut input)
}

#[test]
fn a_deflate_stream_of_one_cluster_unpacks_whatever_follows_it() {
    let mut unpacker = Unpacker::new(512);
    let stream = stored(&[7; 512], true);
    assert_eq!(unpacker.inflate(&stream), NONE);
    assert_eq!(unpacker.inflate(&[stream, vec![0xff; 300]].concat()), NONE);
    let halves = [stored(&[7; 256], false), stored(&[7; 256], true)];
    assert_eq!(unpacker.inflate(&halves.concat()), NONE);
}

#[test]
fn a_deflate_stream_of_another_length_is_told_apart() {
    let mut unpacker = Unpacker::new(512);
    let short = stored(&[7; 511], true);
    assert_eq!(unpacker.inflate(&short), Err(Defect::Invalid(TOO_SHORT)));
    for length in [513, 514, 4000] {
        let long = stored(&vec![7; length], true);
        assert_eq!(unpacker.inflate(&long), Err(Defect::Overrun(TOO_LONG)));
    }
    let unended = stored(&[7; 512], false);
    assert_eq!(unpacker.inflate(&unended), Err(Defect::Overrun(CUT_OFF)));
    let cut = &stored(&[7; 512], true)[..400];
    assert_eq!(unpacker.inflate(cut), Err(Defect::Invalid(CUT_OFF)));
    assert_eq!(unpacker.inflate(&[]), Err(Defect::Invalid(CUT_OFF)));
    assert_eq!(
        unpacker.inflate(&[0xff; 64]),
        Err(Defect::Invalid(NOT_A_STREAM))
    );
    // What one stream left behind is no part of the next.
    assert_eq!(unpacker.inflate(&stored(&[7; 512], true)), NONE);
}

#[test]
fn zstd_frames_fill_a_cluster_together() {
    let one = frame(0, &raw(&[7; 512], true));
    assert_eq!(unzstd(512, one.clone()), NONE);
    assert_eq!(unzstd(1024, [one.clone(), one.clone()].concat()), NONE);
    let skippable = b"\x53\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let with_gap = [skippable.clone(), one.clone(), skippable, one.clone()].concat();
    assert_eq!(unzstd(1024, with_gap), NONE);
    assert_eq!(unzstd(512, [one, vec![0xff; 99]].concat()), NONE);
}

#[test]
fn zstd_frames_of_another_length_are_told_apart() {
    let one = frame(0, &raw(&[7; 512], true));
    assert_eq!(
        unzstd(513, one.clone()),
        Err(Defect::Invalid(TOO_SHORT)),
        "nothing follows"
    );
    assert_eq!(
        unzstd(513, [one.clone(), vec![0; 99]].concat()),
        Err(Defect::Invalid(NOT_A_STREAM)),
        "zeros follow"
    );
    assert_eq!(unzstd(511, one.clone()), Err(Defect::Invalid(TOO_LONG)));
    let unended = frame(0, &raw(&[7; 512], false));
    assert_eq!(unzstd(512, unended), Err(Defect::Invalid(CUT_OFF)));
    for length in 1..one.len() {
        let cut = one[..length].to_vec();
        assert!(unzstd(512, cut).is_err(), "{length} bytes");
    }
}

#[test]
fn a_small_frame_that_unpacks_to_gigabytes_is_left_at_the_first_block_too_many() {
    let mut blocks = Vec::new();
    for _ in 0..200_000 {
        blocks.extend(repeated(128 << 10, false));
    }
    let bomb = frame(0x38, &blocks);
    assert_eq!(unzstd(64 << 10, bomb), Err(Defect::Invalid(TOO_LONG)));
}

#[test]
fn a_window_is_never_set_aside_as_the_frame_says() {
    // 128 MiB is read with a small window; beyond it nobody reads.
    let blocks = raw(&[7; 512], true);
    assert_eq!(unzstd(512, frame(17 << 3, &blocks)), NONE);
    let too_large = Err(Defect::Invalid(NOT_A_STREAM));
    assert_eq!(unzstd(512, frame(17 << 3 | 1, &blocks)), too_large);
    assert_eq!(unzstd(512, frame(0xff, &blocks)), too_large);
    // A length of 2^60 in the frame's own words.
    let mut huge = b"\x28\xb5\x2f\xfd\xe0\0\0\0\0\0\0\0\x10".to_vec();
    huge.extend(raw(&[7; 512], true));
    assert!(unzstd(512, huge).is_err());
}

#[test]
fn a_wrong_checksum_is_no_cluster() {
    let with = |sum: [u8; 4]| {
        let mut frame = b"\x28\xb5\x2f\xfd\x04\0".to_vec();
        frame.extend(raw(&[0; 512], true));
        frame.extend(sum);
        unzstd(512, frame)
    };
    assert_eq!(with([0; 4]), Err(Defect::Invalid(NOT_A_STREAM)));
}

#[test]
fn a_frame_has_the_length_it_says_and_no_reserved_bit() {
    // One segment of a length given in two bytes, less 256.
    let with = |descriptor: u8, length: u16| {
        let mut frame = b"\x28\xb5\x2f\xfd".to_vec();
        frame.push(descriptor);
        frame.extend((length - 256).swap_bytes().to_be_bytes());
        frame.extend(raw(&[0; 512], true));
        unzstd(512, frame)
    };
    assert_eq!(with(0x60, 512), NONE);
    assert_eq!(with(0x68, 512), Err(Defect::Invalid(NOT_A_STREAM)));
    assert!(with(0x60, 511).is_err());
    assert!(with(0x60, 513).is_err());
}
