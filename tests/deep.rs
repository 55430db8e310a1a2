//! The deep read: what it finds in forged images, on disks that cannot read, and beside what QEMU can read.
//!
//! Comes in: images with something wrong in the data rather than in the tables. Goes out: codes, guest ranges, owners; and
//! for images of the real tools, the guest clusters `qemu-io` cannot read. Never here: the order of streams inside a
//! cluster (`src/deep/decompress/tests.rs`).

#![expect(
    clippy::indexing_slicing,
    reason = "an image without the place is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use qfsck::{
    Check, Code, Finding, GapKind, Image, Options, OwnerKind, Progress, Storage, Verdict, deep_read,
};
use tempfile::TempDir;

use crate::support::image_forge::{BitmapCluster, Forge, Forged, Random, Tree};
use crate::support::qemu;

/// What the damage to images of the real tools is drawn from.
const SEED: u64 = 0x6465_6570;

/// Codes that only a deep read finds.
pub(crate) const CODES: &[Code] = &[
    Code::CompressedDataInvalid,
    Code::CompressedDataOverrun,
    Code::DataUnreadable,
    Code::EncryptionKeySlotInvalid,
    Code::BitmapTailBitsSet,
];

fn deep<S: Storage>(storage: S) -> Check {
    let image = Image::open(storage, Path::new("image.qcow2")).expect("the magic is whole");
    let progress = Progress::default();
    let mut check = qfsck::check(&image, Options::default(), &progress);
    deep_read(&image, &mut check, &progress);
    check
}

fn found(check: &Check, code: Code) -> Vec<&Finding> {
    let findings = check.findings.iter();
    findings.filter(|finding| finding.code == code).collect()
}

fn deep_codes(check: &Check) -> Vec<Code> {
    let totals = check.findings.totals().map(|(code, _)| code);
    totals.filter(|code| CODES.contains(code)).collect()
}

/// A deflate stream of stored blocks.
fn stored(bytes: &[u8], is_ended: bool) -> Vec<u8> {
    let mut stream = Vec::new();
    let blocks = bytes.chunks(0xffff);
    let last = blocks.len() - 1;
    for (index, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).expect("a small block");
        stream.push(u8::from(index == last && is_ended));
        stream.extend(length.swap_bytes().to_be_bytes());
        stream.extend((!length).swap_bytes().to_be_bytes());
        stream.extend(block);
    }
    stream
}

/// A deflate stream of so many equal bytes, well packed.
fn packed(length: usize) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec(&vec![b'x'; length], 6)
}

fn small() -> Forge {
    Forge::new().cluster_bits(12).size(8 << 20)
}

/// Good compressed data at guest clusters 0 to 3, plain data at 4 and 5.
fn with_compressed() -> Forge {
    let forge = (0..4).fold(small(), |forge, cluster| {
        forge.compressed_bytes(cluster, &packed(4096))
    });
    forge.data(4).data(5)
}

#[test]
fn what_unpacks_is_clean() {
    let image = with_compressed().build();
    let check = deep(image.bytes.as_slice());
    assert_eq!(check.findings.totals().count(), 0);
    assert_eq!(check.verdict, Verdict::Clean);
    assert!(check.coverage.complete().is_some());
}

#[test]
fn what_does_not_unpack_is_named_by_its_guest_range_and_its_neighbours_are_not() {
    let image = with_compressed()
        .compressed_bytes(10, &packed(4095))
        .compressed_bytes(11, b"\xff\xff\xff\xff")
        .compressed_bytes(12, b"\xff\xff\xff\xfe")
        .compressed_bytes(13, &packed(4096))
        .build();
    let check = deep(image.bytes.as_slice());
    let bad: Vec<(u64, u64, u64)> = found(&check, Code::CompressedDataInvalid)
        .iter()
        .map(|finding| {
            let guest = finding.guest.expect("a guest range");
            (guest.start.0 / 4096, guest.bytes / 4096, finding.count)
        })
        .collect();
    assert_eq!(bad, [(10, 1, 1), (11, 2, 2)]);
    assert_eq!(check.verdict, Verdict::Repairable);
    assert_eq!(deep_codes(&check), [Code::CompressedDataInvalid]);
}

#[test]
fn what_goes_on_after_its_cluster_can_be_read_and_is_a_notice() {
    let image = with_compressed()
        .compressed_bytes(10, &packed(4097))
        .compressed_bytes(12, &stored(&[1; 4090], false)[..4095])
        .build();
    let check = deep(image.bytes.as_slice());
    assert_eq!(
        found(&check, Code::CompressedDataOverrun).len(),
        1,
        "{check:?}"
    );
    assert_eq!(found(&check, Code::CompressedDataInvalid).len(), 1);
}

#[test]
fn a_cluster_shared_with_snapshots_is_unpacked_once_and_counted_for_each() {
    let image = small()
        .compressed_bytes(7, b"\xff\xff\xff\xff")
        .snapshot("1", "one")
        .snapshot("2", "two")
        .data(8)
        .build();
    let check = deep(image.bytes.as_slice());
    let total = check.findings.total_of(Code::CompressedDataInvalid);
    assert_eq!(total.count, 3, "the active mapping and two snapshots");
}

#[test]
fn bits_behind_the_end_of_the_disk_are_found_in_the_last_cluster_only() {
    let with_bitmap = || {
        let forge = small().data(0);
        forge.bitmap("daily", 9, 0, &[BitmapCluster::Data])
    };
    let healthy = with_bitmap().build();
    assert_eq!(deep_codes(&deep(healthy.bytes.as_slice())), []);
    // 8 MiB of 512 bytes are 16,384 bits: half a cluster.
    let data = healthy.bitmap_data(0, 0).expect("it has data");
    for (at, count) in [(2048, 1), (4095, 1), (2047, 0), (0, 0)] {
        let mut image = with_bitmap().build();
        image.put_u8(data + at, 0x80);
        let check = deep(image.bytes.as_slice());
        let total = check.findings.total_of(Code::BitmapTailBitsSet);
        assert_eq!(total.count, count, "byte {at}");
        assert_eq!(check.verdict, Verdict::Clean);
    }
}

/// A disk with places that cannot be read.
struct Failing {
    bytes: Vec<u8>,
    bad: Vec<Range<u64>>,
}

impl Storage for Failing {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let meets = |bad: &Range<u64>| bad.start < end && offset < bad.end;
        if self.bad.iter().any(meets) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.bytes.read_at(offset, buffer)
    }
}

#[test]
fn what_the_disk_cannot_read_is_mapped_with_its_owners() {
    let forge = (0..12).fold(Forge::new().cluster_bits(16), Forge::data);
    let image = forge.snapshot("1", "before").data(3).build();
    let at = |guest| image.host_offset(Tree::Active, guest).expect("data");
    let (two, three, shared) = (at(2), at(3), at(5));
    let failing = Failing {
        bytes: image.bytes.clone(),
        bad: vec![
            two + 4096..two + 8192,
            three..three + 512,
            shared..shared + 1,
        ],
    };
    let check = deep(failing);
    let mut runs: Vec<(u64, String)> = found(&check, Code::DataUnreadable)
        .iter()
        .map(|finding| {
            let guest = finding.guest.expect("one place");
            let owners = &finding.owners.named;
            assert!(
                owners
                    .iter()
                    .all(|owner| owner.kind == OwnerKind::GuestData)
            );
            // What the snapshot shares has its table and the active one.
            let is_shared = guest.start.0 >> 16 != 3;
            assert_eq!(owners.len(), 1 + usize::from(is_shared));
            let detail = finding.detail.clone().expect("the bytes");
            (guest.start.0 >> 16, detail)
        })
        .collect();
    runs.sort();
    let wanted = [(2, two + 4096), (3, three), (5, shared)].map(|(guest, start)| {
        let error = io::Error::from_raw_os_error(5);
        (
            guest,
            format!("bytes {start:#x}-{:#x}: {error}", start + 4096),
        )
    });
    assert_eq!(runs, wanted);
    assert_eq!(check.coverage.unreadable_count(), 3);
    assert_eq!(check.verdict, Verdict::Unreadable);
}

#[test]
fn neighbouring_unreadable_clusters_are_one_run_with_all_owners() {
    let forge = (0..40).fold(Forge::new().cluster_bits(12), Forge::data);
    let image = forge.build();
    let first = image.host_offset(Tree::Active, 10).expect("data");
    let failing = Failing {
        bytes: image.bytes.clone(),
        bad: std::iter::once(first..first + 8 * 4096).collect(),
    };
    let check = deep(failing);
    let runs = found(&check, Code::DataUnreadable);
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].count, 8);
    let guest = runs[0].guest.expect("one run of the guest's");
    assert_eq!((guest.start.0, guest.bytes), (10 * 4096, 8 * 4096));
}

#[test]
fn compressed_data_that_cannot_be_read_is_unreadable_and_not_invalid() {
    let image = with_compressed().build();
    let entry = image.u64_at(image.l2_entry(Tree::Active, 1));
    let offset = entry & ((1 << 57) - 1);
    let failing = Failing {
        bytes: image.bytes.clone(),
        bad: std::iter::once(offset..offset + 1).collect(),
    };
    let check = deep(failing);
    assert!(!found(&check, Code::DataUnreadable).is_empty());
    assert!(found(&check, Code::CompressedDataInvalid).is_empty());
    assert_eq!(check.verdict, Verdict::Unreadable);
}

/// A file with holes, that counts what is read of it.
struct Sparse {
    bytes: Vec<u8>,
    data: Range<u64>,
    read: std::sync::atomic::AtomicU64,
}

impl Storage for Sparse {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset >= self.data.end {
            let order = std::sync::atomic::Ordering::Relaxed;
            self.read.fetch_add(buffer.len() as u64, order);
        }
        self.bytes.read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.data.end).then_some(offset))
    }
}

#[test]
fn holes_are_not_read() {
    let forge = (0..64).fold(Forge::new().cluster_bits(16), Forge::data);
    let image = forge.build();
    let last_table = (0..64)
        .map(|guest| image.host_offset(Tree::Active, guest).expect("data"))
        .max()
        .expect("data");
    // All behind the first half of the data is a hole, but for tables; they lie in front, or are few.
    let sparse = Sparse {
        data: 0..last_table / 2,
        bytes: image.bytes.clone(),
        read: 0.into(),
    };
    let storage = &sparse;
    deep(storage);
    let read = sparse.read.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read <= 16 << 16, "{read} bytes of a hole were read");
}

#[test]
fn data_in_another_file_is_not_called_clean_by_a_deep_read() {
    let forge = Forge::new().data_file(Some("data.raw"));
    let image = forge.data(0).data(9000).build();
    let opened = Image::open(image.bytes.as_slice(), Path::new("image")).expect("an image");
    let check = qfsck::check(&opened, Options::default(), &Progress::default());
    assert_eq!(check.verdict, Verdict::Clean);
    let check = deep(image.bytes.as_slice());
    assert_eq!(check.verdict, Verdict::Unreadable);
    let kinds: Vec<_> = check.coverage.gaps().iter().map(|gap| gap.kind).collect();
    assert_eq!(kinds, [GapKind::OutOfReach]);
}

/// A disk that counts what is read of it.
struct Counting {
    bytes: Vec<u8>,
    read: std::sync::atomic::AtomicU64,
}

impl Storage for Counting {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let order = std::sync::atomic::Ordering::Relaxed;
        self.read.fetch_add(buffer.len() as u64, order);
        self.bytes.read_at(offset, buffer)
    }
}

/// An image with a whole table of entries for compressed data at offsets of one's choice, and how much was read of it.
fn with_entries(word: impl Fn(u64) -> u64) -> (Check, u64) {
    let forge = Forge::new().cluster_bits(16).size(1 << 30);
    let mut noise = Random::new(SEED);
    let stream: Vec<u8> = (0..60_000)
        .map(|_| noise.next_u64().to_be_bytes()[0])
        .collect();
    let forge = forge.compressed_bytes(0, &stream);
    let mut image = (8192..8200).fold(forge, Forge::data).build();
    let base = image.u64_at(image.l2_entry(Tree::Active, 0)) & ((1 << 54) - 1);
    for guest in 0..8192 {
        let entry = image.l2_entry(Tree::Active, guest);
        image.put_u64(entry, 1 << 62 | (base + word(guest)));
    }
    let counting = Counting {
        bytes: image.bytes,
        read: 0.into(),
    };
    let check = deep(&counting);
    (check, counting.read.into_inner())
}

#[test]
fn entries_that_name_the_same_bytes_over_and_over_are_no_endless_work() {
    // 8192 extents of 64 KiB, each a byte farther on than the one before: 512 MiB in a file of less than one.
    let (check, read) = with_entries(|guest| 127 << 54 | guest);
    assert!(read < 80 << 20, "{read} bytes were read");
    assert_eq!(check.verdict, Verdict::Unreadable);
    let kinds: Vec<_> = check.coverage.gaps().iter().map(|gap| gap.kind).collect();
    assert_eq!(kinds, [GapKind::WorkLimit]);
    // One extent, named by all, is one piece of work.
    let (check, read) = with_entries(|_| 127 << 54);
    assert!(read < 8 << 20, "{read} bytes were read");
    assert_eq!(check.coverage.gap_count(), 0);
    assert_eq!(
        check.findings.total_of(Code::CompressedDataInvalid).count,
        8192
    );
}

#[test]
fn many_small_streams_in_each_sector_are_all_unpacked() {
    let forge = Forge::new().cluster_bits(9).size(64 << 20);
    let good = packed(512);
    let forge = (0..100_000).fold(forge, |forge, guest| forge.compressed_bytes(guest, &good));
    let image = forge.compressed_bytes(100_000, b"\xff\xff\xff\xff").build();
    let check = deep(image.bytes.as_slice());
    assert_eq!(check.coverage.gap_count(), 0);
    assert_eq!(
        check.findings.total_of(Code::CompressedDataInvalid).count,
        1
    );
}

#[test]
fn a_stopped_deep_read_says_so() {
    let image = with_compressed().build();
    let image = Image::open(image.bytes.as_slice(), Path::new("image")).expect("an image");
    let progress = Progress::default();
    let mut check = qfsck::check(&image, Options::default(), &progress);
    progress.stop();
    deep_read(&image, &mut check, &progress);
    assert!(check.coverage.is_stopped());
    assert_eq!(check.verdict, Verdict::Unreadable);
}

#[test]
fn reports_are_equal_at_any_number_of_threads() {
    for seed in 0..40 {
        let image = Forged::random(seed);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("threads can be had");
            pool.install(|| deep(image.bytes.as_slice()))
        };
        assert!(with(1) == with(4), "seed {seed}");
    }
}

/// What `qemu-img` writes of a disk of its own, compressed.
fn compressed_by_qemu(dir: &Path, cluster_bits: u32, kind: &str) -> Vec<u8> {
    let mut random = Random::new(u64::from(cluster_bits));
    let cluster = 1_usize << cluster_bits;
    let clusters = (4 << 20 >> cluster_bits).clamp(3, 400);
    let mut raw = Vec::new();
    for index in 0..clusters {
        let line = format!("cluster {index} {} ", random.next_u64());
        let kind = random.below(4);
        let mut content: Vec<u8> = match kind {
            // What does not pack is stored as it is.
            0 => (0..cluster)
                .map(|_| random.next_u64().to_be_bytes()[0])
                .collect(),
            1 => vec![b'x'; cluster],
            _ => line.bytes().cycle().take(cluster).collect(),
        };
        content[0] = 1;
        raw.extend(content);
    }
    fs::write(dir.join("disk.raw"), raw).expect("a disk can be written");
    let options = format!("cluster_size={cluster},compression_type={kind}");
    let arguments = [
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        &options,
        "disk.raw",
        "disk.qcow2",
    ];
    let made = Command::new("qemu-img")
        .args(arguments)
        .current_dir(dir)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("qemu-img can be run").success(), "{options}");
    fs::read(dir.join("disk.qcow2")).expect("an image")
}

/// Small clusters share sectors, and threads write them in any order.
#[test]
fn what_many_threads_of_qemu_img_compress_is_clean() {
    if qemu::tools().is_none() {
        return;
    }
    let dir = TempDir::new().expect("a directory");
    let mut random = Random::new(SEED);
    let mut raw = vec![0; 64 << 20];
    for cluster in raw.chunks_mut(64 << 10) {
        let length = [3, 20, 200, 2000][usize::try_from(random.below(4)).unwrap_or(0)];
        for byte in &mut cluster[..length] {
            *byte = random.next_u64().to_be_bytes()[0];
        }
    }
    fs::write(dir.path().join("disk.raw"), raw).expect("a disk can be written");
    let flags = ["-c", "-W", "-m", "16"];
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args(flags);
    command.args(["disk.raw", "disk.qcow2"]).current_dir(&dir);
    assert!(command.status().expect("qemu-img can be run").success());
    let image = fs::read(dir.path().join("disk.qcow2")).expect("an image");
    let check = deep(image.as_slice());
    assert_eq!(check.verdict, Verdict::Clean, "{:?}", check.findings);
    assert_eq!(check.statistics.compressed_clusters, 1024);
}

/// The guest clusters qemu-io cannot read.
fn unreadable_for_qemu(dir: &Path, bytes: &[u8], cluster_bits: u32) -> BTreeSet<u64> {
    fs::write(dir.join("bad.qcow2"), bytes).expect("an image can be written");
    let header = Image::open(bytes, Path::new("bad")).expect("an image");
    let clusters = header.header().size >> cluster_bits;
    let mut command = Command::new("qemu-io");
    command.args(["-r", "-f", "qcow2"]).current_dir(dir);
    for cluster in 0..clusters {
        let read = format!("read {} {}", cluster << cluster_bits, 1 << cluster_bits);
        command.args(["-c", &read]);
    }
    let output = command
        .arg("bad.qcow2")
        .output()
        .expect("qemu-io can be run");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Vec<bool> = said
        .lines()
        .filter(|line| line.starts_with("read "))
        .map(|line| line.starts_with("read failed"))
        .collect();
    assert_eq!(answers.len() as u64, clusters, "{said}");
    (0..)
        .zip(answers)
        .filter_map(|(cluster, failed)| failed.then_some(cluster))
        .collect()
}

fn invalid_clusters(check: &Check, cluster_bits: u32) -> BTreeSet<u64> {
    let ranges = found(check, Code::CompressedDataInvalid);
    let ranges = ranges.iter().filter_map(|finding| finding.guest);
    ranges
        .flat_map(|guest| guest.start.0 >> cluster_bits..guest.end() >> cluster_bits)
        .collect()
}

#[test]
fn the_guest_clusters_that_fail_are_those_qemu_cannot_read() {
    let Some(tools) = qemu::tools() else { return };
    let (mut images, mut failed, mut notices, mut forgiven) = (0, 0, 0, 0);
    for kind in ["zlib", "zstd"] {
        for cluster_bits in [9, 12, 14, 16, 18, 21] {
            let dir = TempDir::new().expect("a directory can be made");
            let bytes = compressed_by_qemu(dir.path(), cluster_bits, kind);
            let check = deep(bytes.as_slice());
            assert!(check.statistics.compressed_clusters > 0);
            assert_eq!(deep_codes(&check), [], "{kind}, 2^{cluster_bits}");
            let entries = compressed_entries(&bytes, cluster_bits);
            let mut random = Random::new(u64::from(cluster_bits) ^ SEED);
            for round in 0..6 {
                let mut bad = bytes.clone();
                for _ in 0..3 {
                    let (entry, offset, length) = random.pick(&entries);
                    if round == 5 {
                        // Sectors too few: the stream ends after its extent.
                        let at = usize::try_from(entry).expect("small");
                        let shift = 62 - (cluster_bits - 8);
                        let word = u64::from_be_bytes(bad[at..at + 8].try_into().expect("8"));
                        let word = word & !((0x3fff_ffff_ffff_ffff >> shift) << shift);
                        bad[at..at + 8].copy_from_slice(&word.to_be_bytes());
                    } else {
                        let at = offset + random.below(length);
                        let at = usize::try_from(at).expect("small").min(bad.len() - 1);
                        bad[at] ^= 1 << random.below(8);
                    }
                }
                let check = deep(bad.as_slice());
                let ours = invalid_clusters(&check, cluster_bits);
                let theirs = unreadable_for_qemu(dir.path(), &bad, cluster_bits);
                let case = format!("{kind}, 2^{cluster_bits}, round {round}: {ours:?}, {theirs:?}");
                assert!(ours.is_subset(&theirs), "{case}");
                // The zstd decoder forgives a little that libzstd does not.
                assert!(kind == "zstd" || ours == theirs, "{case}");
                forgiven += theirs.len() - ours.len();
                images += 1;
                failed += ours.len();
                notices += found(&check, Code::CompressedDataOverrun).len();
            }
        }
    }
    println!(
        "deep: {images} damaged images, {failed} clusters neither qfsck nor QEMU {} reads, {notices} overruns, {forgiven} that only QEMU refuses",
        tools.version
    );
    assert!(failed > 20, "too little was damaged");
    assert!(forgiven * 10 <= failed, "{forgiven} of {failed} are missed");
}

/// Compressed entries of the first L2 tables: where the entry is, where its data begins, and its bytes.
fn compressed_entries(bytes: &[u8], cluster_bits: u32) -> Vec<(u64, u64, u64)> {
    let word = |at: u64| {
        let at = usize::try_from(at).expect("small");
        u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
    };
    let (l1, count) = (word(40), word(32) & 0xffff_ffff);
    let mut entries = Vec::new();
    for table in (0..count).map(|index| word(l1 + index * 8) & 0x00ff_ffff_ffff_fe00) {
        for at in (table..table + (1 << cluster_bits)).step_by(8) {
            if table == 0 || at + 8 > bytes.len() as u64 || word(at) >> 62 != 1 {
                continue;
            }
            let shift = 62 - (cluster_bits - 8);
            let descriptor = word(at) & ((1 << 62) - 1);
            let offset = descriptor & ((1 << shift) - 1);
            let length = ((descriptor >> shift) + 1) * 512 - offset % 512;
            entries.push((at, offset, length));
        }
    }
    entries
}

#[test]
fn key_slots_that_qemu_refuses_are_named() {
    if qemu::tools().is_none() {
        return;
    }
    let dir = TempDir::new().expect("a directory can be made");
    let secret = ["--object", "secret,id=key,data=open-sesame"];
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .args(secret)
        .args([
            "-o",
            "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
        ])
        .args(["disk.qcow2", "1M"])
        .current_dir(dir.path())
        .status();
    assert!(made.expect("qemu-img can be run").success());
    let healthy = fs::read(dir.path().join("disk.qcow2")).expect("an image");
    assert_eq!(deep_codes(&deep(healthy.as_slice())), []);
    let luks = healthy
        .windows(6)
        .position(|window| window == b"LUKS\xba\xbe")
        .expect("a LUKS header");
    let slot = |index: usize, field: usize| luks + 208 + index * 48 + field;
    let refused = |bytes: &[u8]| {
        fs::write(dir.path().join("bad.qcow2"), bytes).expect("an image can be written");
        let image = "driver=qcow2,file.filename=bad.qcow2,encrypt.key-secret=key";
        let opened = Command::new("qemu-io")
            .args(secret)
            .args(["-r", "--image-opts", image, "-c", "read 0 512"])
            .current_dir(dir.path())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status();
        !opened.expect("qemu-io can be run").success()
    };
    assert!(!refused(&healthy), "the key fits");
    let damages: [(usize, u32, &str); 7] = [
        (slot(3, 0), 0x1234, "a state nobody knows"),
        (slot(0, 0), 0, "a used slot without a state"),
        (slot(5, 40), 0, "material in the header"),
        (slot(5, 40), 1 << 20, "material past the area"),
        (slot(7, 44), 4001, "another number of stripes"),
        (slot(6, 44), 0, "no stripes"),
        (slot(2, 40), 8, "material over that of another slot"),
    ];
    for (at, value, what) in damages {
        let mut bad = healthy.clone();
        bad[at..at + 4].copy_from_slice(&value.to_be_bytes());
        assert!(refused(&bad), "QEMU opens an image with {what}");
        let check = deep(bad.as_slice());
        let codes = deep_codes(&check);
        assert_eq!(codes, [Code::EncryptionKeySlotInvalid], "{what}");
        assert_eq!(check.verdict, Verdict::DoNotBoot, "{what}");
    }
}
