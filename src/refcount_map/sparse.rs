//! A table of regions that come into being when they are first touched.
//!
//! Four levels, so that a set that is hardly touched costs a few KiB, whatever the length of the file. Never here: what
//! a region holds.

use std::sync::OnceLock;

const FANOUT_BITS: u32 = 8;
const FANOUT: usize = 1 << FANOUT_BITS;

type Slots<T> = Box<[OnceLock<Box<T>>]>;

/// Regions of `T` by index.
#[derive(Debug)]
pub(super) struct Sparse<T> {
    root: Slots<Slots<Slots<Slots<T>>>>,
}

fn slots<T>(count: usize) -> Slots<T> {
    (0..count).map(|_| OnceLock::new()).collect()
}

/// The slots on the way to a region, from the root down.
fn split(region: u64) -> [usize; 4] {
    let part = |shift: u32| usize::try_from(region >> shift).unwrap_or(usize::MAX);
    [
        part(3 * FANOUT_BITS),
        part(2 * FANOUT_BITS) % FANOUT,
        part(FANOUT_BITS) % FANOUT,
        part(0) % FANOUT,
    ]
}

fn inner<T>(slots: &[OnceLock<Box<Slots<T>>>], at: usize) -> Option<&Slots<T>> {
    let slot = slots.get(at)?;
    Some(slot.get_or_init(|| Box::new(self::slots(FANOUT))))
}

fn touched<T>(slot: &OnceLock<Box<Slots<T>>>) -> &[OnceLock<Box<T>>] {
    slot.get().map_or(&[], |boxed| &***boxed)
}

impl<T> Sparse<T> {
    /// Room for regions `0..region_count`.
    pub(super) fn new(region_count: u64) -> Self {
        let [top, ..] = split(region_count);
        Self {
            root: slots(top + 1),
        }
    }

    /// The region, if it was ever touched.
    pub(super) fn get(&self, region: u64) -> Option<&T> {
        let [top, upper, lower, leaf] = split(region);
        let uppers = self.root.get(top)?.get()?;
        let lowers = uppers.get(upper)?.get()?;
        let leaves = lowers.get(lower)?.get()?;
        leaves.get(leaf)?.get().map(|boxed| &**boxed)
    }

    /// The region, made by `make` if need be; `None` only for an index beyond the room.
    pub(super) fn get_or_make(&self, region: u64, make: impl FnOnce() -> T) -> Option<&T> {
        let [top, upper, lower, leaf] = split(region);
        let leaves = inner(inner(inner(&self.root, top)?, upper)?, lower)?;
        Some(leaves.get(leaf)?.get_or_init(|| Box::new(make())))
    }

    /// Every region that was touched, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let numbered = |base: u64| (base << FANOUT_BITS)..;
        (0_u64..).zip(&self.root).flat_map(move |(top, slot)| {
            numbered(top)
                .zip(touched(slot))
                .flat_map(move |(upper, slot)| {
                    numbered(upper)
                        .zip(touched(slot))
                        .flat_map(move |(lower, slot)| {
                            let leaves = numbered(lower).zip(touched(slot));
                            leaves
                                .filter_map(|(leaf, slot)| slot.get().map(|boxed| (leaf, &**boxed)))
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
        let sparse = Sparse::<u64>::new(1 << 33);
        for region in [1 << 32, 5, 1 << 20, 1023, 1024] {
            assert_eq!(sparse.get(region), None);
            assert_eq!(sparse.get_or_make(region, || region), Some(&region));
            assert_eq!(sparse.get_or_make(region, || 0), Some(&region));
        }
        let order: Vec<u64> = sparse.iter().map(|(index, _)| index).collect();
        assert_eq!(order, [5, 1023, 1024, 1 << 20, 1 << 32]);
        assert!(sparse.iter().all(|(index, &value)| index == value));
        assert_eq!(sparse.get_or_make(u64::MAX, || 0), None);
    }
}
