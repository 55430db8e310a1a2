//! Storage no file system has: longer than any test can write, or counting how often it is read.
//!
//! Comes in: a forged image. Goes out: reports about clusters far behind the 31st bit, and how often each L2 table was
//! read. Never here: a real file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use qfsck::{Code, Image, Options, Progress, Storage, Verdict};

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
