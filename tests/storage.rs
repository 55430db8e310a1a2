//! Storage no file system has: longer than any test can write, counting how often it is read, or far away in part.
//!
//! Comes in: a forged image. Goes out: reports about clusters far behind the 31st bit, how often each L2 table was read,
//! and what was asked for ahead. Never here: a real file, but for what is at hand of one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use qfsck::{Code, Image, ImageFile, Options, Progress, Sharing, Storage, Verdict};

use crate::support::image_forge::{Forge, Tree};

/// Bytes at the start of a file that goes on with a hole.
struct Sparse {
    bytes: Vec<u8>,
    length_bytes: u64,
}

impl Storage for Sparse {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.length_bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buffer)
    }
}

fn check(storage: Sparse) -> qfsck::Check {
    let image = Image::open(storage, Path::new("image")).expect("an image");
    qfsck::check(&image, Options::default(), &Progress::default())
}

#[test]
fn clusters_behind_the_31st_bit_are_counted_like_any_other() {
    for (cluster_bits, far) in [(16, 1_u64 << 39), (9, 1 << 46), (21, 1 << 33)] {
        let size = 64 << cluster_bits;
        let forge = Forge::new().cluster_bits(cluster_bits).size(size);
        let mut image = forge.data(0).data(1).build();
        let length_bytes = (far + 1) << cluster_bits;
        let bytes = image.bytes.clone();
        let clean = check(Sparse {
            bytes,
            length_bytes,
        });
        assert_eq!(clean.verdict, Verdict::Clean, "{cluster_bits}");
        image.put_u64(
            image.l2_entry(Tree::Active, 9),
            (far << cluster_bits) | 1 << 63,
        );
        let bytes = image.bytes.clone();
        let check = check(Sparse {
            bytes,
            length_bytes,
        });
        let found = check
            .findings
            .iter()
            .find(|found| found.code == Code::RefcountZero);
        let host = found
            .and_then(|found| found.host)
            .expect("the far cluster has no count");
        assert_eq!((host.start.0, host.count), (far, 1), "{cluster_bits}");
        assert_eq!(check.statistics.image_end_offset, length_bytes);
    }
}

/// Bytes that remember which clusters were read, and how often.
struct Counting {
    bytes: Vec<u8>,
    cluster_bits: u32,
    reads: Mutex<BTreeMap<u64, u32>>,
}

impl Storage for Counting {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let clusters = offset >> self.cluster_bits..=(end - 1) >> self.cluster_bits;
        let mut reads = self.reads.lock().expect("nobody panics with it");
        for cluster in clusters {
            *reads.entry(cluster).or_default() += 1;
        }
        self.bytes.read_at(offset, buffer)
    }
}

#[test]
fn l2_tables_of_a_clean_image_are_read_once_however_many_snapshots_share_them() {
    let cluster_bits = 9;
    let guests: Vec<u64> = (0..40).map(|index| index * 50).collect();
    let size = 4096 << cluster_bits;
    let forge = Forge::new().cluster_bits(cluster_bits).size(size);
    let forge = guests.iter().fold(forge, |forge, &guest| forge.data(guest));
    let forge = (0..5).fold(forge, |forge, id| {
        forge.snapshot(&id.to_string(), &format!("s{id}"))
    });
    let image = forge.data(0).build();
    let storage = Counting {
        bytes: image.bytes.clone(),
        cluster_bits,
        reads: Mutex::default(),
    };
    let opened = Image::open(&storage, Path::new("image")).expect("an image");
    // With clusters this small the header's read takes in a table.
    storage.reads.lock().expect("nobody panics with it").clear();
    let check = qfsck::check(&opened, Options::default(), &Progress::default());
    assert_eq!(check.verdict, Verdict::Clean);
    let reads = storage.reads.lock().expect("nobody panics with it");
    for &guest in &guests {
        for tree in [Tree::Active, Tree::Snapshot(0)] {
            let table = image.l2_table(tree, guest) >> cluster_bits;
            assert_eq!(
                reads.get(&table),
                Some(&1),
                "{tree:?}, guest cluster {guest}"
            );
        }
    }
}

/// What was done to bytes of which some are at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    AtHand,
    Far,
    Announced,
    Read,
}

/// Bytes that are at hand, but for those at one offset.
struct Shelf {
    bytes: Vec<u8>,
    far: Option<u64>,
    log: Mutex<Vec<(Access, u64)>>,
}

impl Shelf {
    fn note(&self, access: Access, offset: u64) {
        let mut log = self.log.lock().expect("nobody panics with it");
        log.push((access, offset));
    }
}

impl Storage for Shelf {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.note(Access::Read, offset);
        self.bytes.read_at(offset, buffer)
    }

    fn read_at_hand(&self, offset: u64, buffer: &mut [u8]) -> bool {
        if self.far == Some(offset) {
            self.note(Access::Far, offset);
            // Whoever believes this has only himself to blame.
            buffer.fill(0xa5);
            return false;
        }
        self.note(Access::AtHand, offset);
        self.bytes.read_at_hand(offset, buffer)
    }

    fn will_read(&self, offset: u64, _bytes: u64) {
        self.note(Access::Announced, offset);
    }
}

/// The check of an image of 64 L2 tables, none beside another, of which one may be far away; where the tables are, and what
/// was done to them.
fn looked_at(far_index: Option<usize>) -> (qfsck::Check, Vec<u64>, Vec<(Access, u64)>) {
    let cluster_bits = 12;
    let guests: Vec<u64> = (0..64).map(|index| index * 512).collect();
    let forge = Forge::new().cluster_bits(cluster_bits);
    let forge = forge.size((64 * 512) << cluster_bits);
    // Data between the tables keeps them from being read as one.
    let forge = guests.iter().fold(forge, |forge, &guest| {
        (0..3).fold(forge, |forge, more| forge.data(guest + more))
    });
    let image = forge.build();
    let mut tables: Vec<u64> = guests
        .iter()
        .map(|&guest| image.l2_table(Tree::Active, guest))
        .collect();
    tables.sort_unstable();
    let storage = Shelf {
        bytes: image.bytes.clone(),
        far: far_index.and_then(|index| tables.get(index).copied()),
        log: Mutex::default(),
    };
    let opened = Image::open(&storage, Path::new("image")).expect("an image");
    let check = qfsck::check(&opened, Options::default(), &Progress::default());
    let log = storage.log.into_inner().expect("nobody panics with it");
    let of_tables = log
        .into_iter()
        .filter(|(_, offset)| tables.contains(offset))
        .collect();
    (check, tables, of_tables)
}

#[test]
fn tables_at_hand_are_read_without_being_announced() {
    let (check, tables, log) = looked_at(None);
    assert_eq!(check.verdict, Verdict::Clean);
    let is_at_hand = |&(access, _): &(Access, u64)| access == Access::AtHand;
    assert!(log.iter().all(is_at_hand), "{log:?}");
    assert!(log.len() >= tables.len() && log.len() <= tables.len() + 4);
}

#[test]
fn from_the_table_on_that_is_far_all_are_announced_before_it_is_waited_for() {
    let (wanted, ..) = looked_at(None);
    // Some are tried before all others: where one of those is far, everything is announced.
    for (far_index, from) in [(0, 0), (5, 5), (62, 62), (15, 0), (63, 0)] {
        let (check, tables, log) = looked_at(Some(far_index));
        assert_eq!(check, wanted, "table {far_index}");
        let of = |wanted: Access| {
            let wanted = log.iter().filter(move |(access, _)| *access == wanted);
            wanted.map(|&(_, offset)| offset).collect::<Vec<u64>>()
        };
        assert_eq!(of(Access::Announced), tables[from..], "table {far_index}");
        assert_eq!(of(Access::Read), tables[from..], "table {far_index}");
        assert_eq!(of(Access::Far).len(), 1, "tried in a row: {log:?}");
        let announced = log.iter().rposition(|entry| entry.0 == Access::Announced);
        let read = log.iter().position(|entry| entry.0 == Access::Read);
        assert!(announced < read, "table {far_index}: {log:?}");
    }
}

#[test]
fn what_is_at_hand_of_a_file_is_its_bytes_and_never_what_is_behind_its_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let bytes: Vec<u8> = (0..100_000_u32)
        .map(|at| (at * 7 / 3 % 251) as u8)
        .collect();
    fs::write(&path, &bytes).expect("the file can be written");
    let file = ImageFile::open(&path, Sharing::Protected).expect("a file");
    let mut buffer = vec![0; 5000];
    for offset in (0..200_000).step_by(777).chain([u64::MAX, u64::MAX >> 1]) {
        buffer.fill(0xa5);
        if file.read_at_hand(offset, &mut buffer) {
            let start = usize::try_from(offset).expect("a small number");
            assert_eq!(buffer, bytes[start..start + 5000], "{offset}");
        }
    }
}
