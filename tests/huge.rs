//! Files longer than any test can write: the length is claimed, the bytes are not there.
//!
//! Comes in: a forged image and a length. Goes out: reports about clusters far behind the 31st bit. Never here: a real
//! file of that size.

use std::io;
use std::path::Path;

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
