//! The inner loops, without any disk: `cargo bench --bench inner_loops`.
//!
//! Comes in: words made up here, and the benchmark's images with their metadata in memory. Goes out: time for each entry.
//! Never here: a file that is read while the clock runs; `side_by_side` does that.

#![expect(
    clippy::expect_used,
    reason = "a benchmark stops where its image cannot be made"
)]

#[path = "../tests/support/big_images.rs"]
#[expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "the images are shared with the tests; they stop where a shape makes no sense"
)]
mod big_images;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use qfsck::qcow2::{L2Entry, counts_by_64};
use qfsck::{Image, Options, Progress, Storage};

use big_images::{Case, Scale};

fn main() {
    divan::main();
}

/// Metadata in memory, zeros elsewhere.
struct Metadata {
    extents: BTreeMap<u64, Vec<u8>>,
    length_bytes: u64,
}

impl Storage for Metadata {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.length_bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        let before = self.extents.range(..end).rev();
        for (start, bytes) in
            before.take_while(|(start, bytes)| **start + bytes.len() as u64 > offset)
        {
            let (from, to) = (offset.max(*start), end.min(start + bytes.len() as u64));
            let place = |whole: u64| usize::try_from(whole).expect("a length in memory");
            let source = bytes.get(place(from - start)..place(to - start));
            let target = buffer.get_mut(place(from - offset)..place(to - offset));
            target
                .expect("inside")
                .copy_from_slice(source.expect("inside"));
        }
        Ok(())
    }
}

/// A case with its metadata read, and how many data clusters it has.
fn loaded(name: &str, divisor: u64) -> (Image<Metadata>, u64) {
    let layout = Case::named(name).expect("a case").layout(Scale { divisor });
    let file = tempfile::tempfile().expect("a file");
    layout.write(&file).expect("the image can be written");
    let read = |(offset, length): (u64, u64)| {
        let mut bytes = vec![0; usize::try_from(length).expect("a length in memory")];
        file.read_exact_at(&mut bytes, offset)
            .expect("it was written");
        (offset, bytes)
    };
    let extents = layout.metadata_extents().into_iter().map(read).collect();
    let expected = layout.expected();
    let storage = Metadata {
        extents,
        length_bytes: expected.file_bytes,
    };
    let image = Image::open(storage, Path::new("image.qcow2")).expect("an image");
    (image, expected.data_clusters)
}

/// Tally and compare: whole checks, with nothing left but the work of the processor.
#[divan::bench(args = [
    "1tib-64k", "1tib-64k-random", "1tib-64k-half", "256gib-4k-random", "compressed", "extended-l2", "refcount-1-bit",
    "refcount-64-bit", "leaks", "copied", "refcount-table-lost",
])]
fn check(bencher: Bencher<'_, '_>, name: &str) {
    let (image, clusters) = loaded(name, 64);
    let bencher = bencher.counter(ItemsCount::new(clusters));
    bencher.bench_local(|| qfsck::check(&image, Options::default(), &Progress::default()));
}

/// Tally with weights: one disk, seen by many snapshots.
#[divan::bench(args = ["snapshots-50", "snapshots-500"])]
fn check_snapshots(bencher: Bencher<'_, '_>, name: &str) {
    let (image, clusters) = loaded(name, 8);
    let bencher = bencher.counter(ItemsCount::new(clusters));
    bencher.bench_local(|| qfsck::check(&image, Options::default(), &Progress::default()));
}

/// L2 entries to descriptors.
#[divan::bench(args = ["1tib-64k", "compressed"])]
fn decode_l2(bencher: Bencher<'_, '_>, name: &str) {
    let (image, _) = loaded(name, 2048);
    let geometry = image.geometry().expect("a valid header");
    let layout = Case::named(name)
        .expect("a case")
        .layout(Scale { divisor: 2048 });
    let table = layout.table_cluster(layout.groups.first().expect("an L2 table"));
    let mut bytes = vec![0; usize::try_from(layout.cluster_bytes).expect("a length in memory")];
    let read = image
        .storage()
        .read_at(table * layout.cluster_bytes, &mut bytes);
    read.expect("it is in memory");
    let bencher = bencher.counter(ItemsCount::new(bytes.len() / 8));
    bencher.bench_local(|| {
        let (words, _) = bytes.as_chunks::<8>();
        for word in words {
            let entry = L2Entry(u64::from_be_bytes(*black_box(word)));
            black_box(entry.descriptor(geometry));
        }
    });
}

/// Refcount blocks of every width to counts.
#[divan::bench(args = 0..=6)]
fn decode_refcounts(bencher: Bencher<'_, '_>, order: u32) {
    let block = vec![0x55_u8; 1 << 16];
    let bencher = bencher.counter(ItemsCount::new((block.len() * 8) >> order));
    bencher.bench_local(|| {
        let mut sum = 0_u64;
        for counts in counts_by_64(black_box(&block), order) {
            let larger = counts
                .larger
                .iter()
                .flatten()
                .copied()
                .map(u64::from)
                .sum::<u64>();
            sum = sum.wrapping_add(counts.ones ^ larger);
        }
        sum
    });
}
