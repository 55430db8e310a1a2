//! Who does which images: shard `i` of `n`, worked out alike by everybody from the same list.
//!
//! Comes in: entries, and `i/n`. Goes out: the entries of that shard. Never here: a guess at `n`. An engine that is asked
//! to run some shards again counts fewer of them; with `n` taken from there, images would be left out in silence.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::str::FromStr;

use super::key::ImageKey;
use crate::report::ListEntry;

/// More parts than anybody has machines for: what is asked for beyond is a slip, and would take memory.
pub const MOST_SHARDS: u32 = 1_000_000;

/// One of so many parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    count: u32,
}

/// Why something is no shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// It is not written so.
    #[error("give a shard as i/n, the first being 0/n")]
    Unreadable,
    /// There are too many parts.
    #[error("more than {MOST_SHARDS} shards")]
    TooMany,
    /// There is no such part.
    #[error("there is no shard {index} of {count}: the first is 0, the last {last}", last = count.saturating_sub(1))]
    OutOfRange {
        /// The one asked for.
        index: u32,
        /// How many there are.
        count: u32,
    },
}

impl Shard {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Part `index` of `count`, counted from 0.
    pub fn new(index: u32, count: u32) -> Result<Self, ShardError> {
        if count > MOST_SHARDS {
            return Err(ShardError::TooMany);
        }
        if index >= count {
            return Err(ShardError::OutOfRange { index, count });
        }
        Ok(Self { index, count })
    }

    /// Which one it is.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Picks this shard's entries, by their keys alone: entries that are added to a list move no other one.
    pub fn pick(self, entries: Vec<ListEntry>) -> Vec<ListEntry> {
        let is_ours = |entry: &ListEntry| {
            ImageKey::new(&entry.name).remainder(u64::from(self.count)) == u64::from(self.index)
        };
        entries.into_iter().filter(is_ours).collect()
    }

    /// Picks this shard's entries so that all shards have about as much to read: the largest first, each to the shard that
    /// has least so far.
    pub fn pick_balanced(self, entries: Vec<ListEntry>) -> Vec<ListEntry> {
        let mut order: Vec<(u64, ImageKey, usize)> = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.cost, ImageKey::new(&entry.name), index))
            .collect();
        order.sort_unstable_by_key(|&(cost, key, index)| (Reverse(cost), key, index));
        let mut loads: BinaryHeap<Reverse<(u64, u32)>> =
            (0..self.count).map(|shard| Reverse((0, shard))).collect();
        let mut ours = BTreeSet::new();
        for (cost, _, index) in order {
            let Some(Reverse((load, shard))) = loads.pop() else {
                continue;
            };
            if shard == self.index {
                ours.insert(index);
            }
            // Even an image without data takes its time to open.
            loads.push(Reverse((
                load.saturating_add(cost).saturating_add(1 << 20),
                shard,
            )));
        }
        let entries = entries.into_iter().enumerate();
        entries
            .filter(|(index, _)| ours.contains(index))
            .map(|(_, entry)| entry)
            .collect()
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let (index, count) = text.split_once('/').ok_or(ShardError::Unreadable)?;
        let number = |text: &str| text.parse().map_err(|_| ShardError::Unreadable);
        Self::new(number(index)?, number(count)?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::report::ImageName;

    fn entries(count: u64) -> Vec<ListEntry> {
        let entry = |number: u64| ListEntry {
            name: ImageName::new(Path::new(&format!("/images/vm-{number:04}.qcow2"))),
            cost: (number * 7919) % 1000 * 4096,
            other_names: 0,
            since: None,
            full: false,
            lost: false,
            linked: false,
        };
        (0..count).map(entry).collect()
    }

    #[test]
    fn every_entry_is_in_exactly_one_shard() {
        let all = entries(300);
        for count in 1..=100 {
            for pick in [Shard::pick, Shard::pick_balanced] {
                let mut picked: Vec<ListEntry> = Vec::new();
                for index in 0..count {
                    let shard = Shard::new(index, count).expect("there is such a shard");
                    picked.extend(pick(shard, all.clone()));
                }
                picked.sort_by_key(|entry| entry.name.to_bytes());
                assert_eq!(picked, all, "{count} shards");
            }
        }
    }

    #[test]
    fn images_that_are_added_move_no_other_one() {
        let shard = Shard::new(3, 7).expect("there is such a shard");
        let few = shard.pick(entries(100));
        let many = shard.pick(entries(200));
        assert!(few.iter().all(|entry| many.contains(entry)));
        assert!(few.len() > 5, "{} of 100 in one of 7", few.len());
    }

    #[test]
    fn balanced_shards_have_about_as_much_to_read() {
        let load = |index| {
            let shard = Shard::new(index, 4).expect("there is such a shard");
            let picked = shard.pick_balanced(entries(400));
            picked.iter().map(|entry| entry.cost).sum::<u64>()
        };
        let loads: Vec<u64> = (0..4).map(load).collect();
        let most = loads.iter().max().expect("four");
        let least = loads.iter().min().expect("four");
        assert!(most - least < most / 20, "{loads:?}");
    }

    #[test]
    fn a_shard_that_is_none_is_refused() {
        for text in [
            "",
            "3",
            "3/3",
            "4/3",
            "-1/3",
            "1/0",
            "a/b",
            "1/3/5",
            "0/1000001",
        ] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/3".parse(), Shard::new(2, 3));
    }
}
