//! A table of regions that come into being when they are first touched.
//!
//! Three levels, so that the largest file the format can address costs a few MiB before anything is touched. Never
//! here: what a region holds.

use std::sync::OnceLock;

const FANOUT_BITS: u32 = 10;
const FANOUT: usize = 1 << FANOUT_BITS;

type Slots<T> = Box<[OnceLock<Box<T>>]>;

/// Regions of `T` by index.
#[derive(Debug)]
pub(super) struct Sparse<T> {
    root: Slots<Slots<Slots<T>>>,
}

fn slots<T>(count: usize) -> Slots<T> {
    (0..count).map(|_| OnceLock::new()).collect()
}

fn split(region: u64) -> (usize, usize, usize) {
    let part = |shift: u32| usize::try_from(region >> shift).unwrap_or(usize::MAX);
    (
        part(2 * FANOUT_BITS),
        part(FANOUT_BITS) % FANOUT,
        part(0) % FANOUT,
    )
}

impl<T> Sparse<T> {
    /// Room for regions `0..region_count`.
    pub(super) fn new(region_count: u64) -> Self {
        let (top, _, _) = split(region_count);
        Self {
            root: slots(top + 1),
        }
    }

    /// The region, if it was ever touched.
    pub(super) fn get(&self, region: u64) -> Option<&T> {
        let (top, middle, leaf) = split(region);
        let middle = self.root.get(top)?.get()?.get(middle)?.get()?;
        middle.get(leaf)?.get().map(|boxed| &**boxed)
    }

    /// The region, made by `make` if need be; `None` only for an index beyond the room.
    pub(super) fn get_or_make(&self, region: u64, make: impl FnOnce() -> T) -> Option<&T> {
        let (top, middle, leaf) = split(region);
        let middles = self.root.get(top)?.get_or_init(|| Box::new(slots(FANOUT)));
        let leaves = middles.get(middle)?.get_or_init(|| Box::new(slots(FANOUT)));
        let region = leaves.get(leaf)?.get_or_init(|| Box::new(make()));
        Some(region)
    }

    /// Every region that was touched, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (0_u64..).zip(&self.root).flat_map(|(top, slot)| {
            let middles = slot.get().map_or(&[][..], |boxed| &***boxed);
            (0_u64..).zip(middles).flat_map(move |(middle, slot)| {
                let leaves = slot.get().map_or(&[][..], |boxed| &***boxed);
                (0_u64..).zip(leaves).filter_map(move |(leaf, slot)| {
                    let index = (top << (2 * FANOUT_BITS)) | (middle << FANOUT_BITS) | leaf;
                    slot.get().map(|boxed| (index, &**boxed))
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Sparse;

    #[test]
    fn untouched_regions_do_not_exist_and_touched_ones_come_in_order() {
        let sparse = Sparse::<u64>::new(1 << 39);
        for region in [1 << 38, 5, 1 << 20, 1023, 1024] {
            assert_eq!(sparse.get(region), None);
            assert_eq!(sparse.get_or_make(region, || region), Some(&region));
            assert_eq!(sparse.get_or_make(region, || 0), Some(&region));
        }
        let order: Vec<u64> = sparse.iter().map(|(index, _)| index).collect();
        assert_eq!(order, [5, 1023, 1024, 1 << 20, 1 << 38]);
        assert!(sparse.iter().all(|(index, &value)| index == value));
        assert_eq!(sparse.get_or_make(u64::MAX, || 0), None);
    }
}
