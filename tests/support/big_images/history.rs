//! Which snapshot sees which version of an L2 table: the story of a disk with snapshots.
//!
//! After each snapshot the guest rewrites one in twenty L2 tables' worth of its disk, going round. A rewritten table
//! is a new one; of the clusters it maps every other chunk of 16 is new as well and the others stay shared. Tree `i` is
//! snapshot `i`, the last tree is the active one.

/// Clusters that are rewritten together.
pub const CHUNK: u64 = 16;

/// One version of one L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub table: u64,
    /// 0 is the table before the first snapshot.
    pub number: u32,
    /// The first tree that sees it.
    pub first_tree: u32,
    /// How many trees do.
    pub trees: u32,
    /// How many trees see the version after it.
    pub next_trees: u32,
}

/// All versions of all tables, in the order they came to be.
pub fn versions(tables: u64, snapshots: u32) -> Vec<Version> {
    let tree_count = snapshots + 1;
    let mut all: Vec<Version> = (0..tables)
        .map(|table| Version {
            table,
            number: 0,
            first_tree: 0,
            trees: tree_count,
            next_trees: 0,
        })
        .collect();
    let rewritten = (tables / 20).max(1);
    let mut newest: Vec<usize> = (0..all.len()).collect();
    let mut turn = 0;
    for tree in 1..tree_count {
        for _ in 0..rewritten {
            let table = turn % tables;
            turn += 1;
            let before = newest[table as usize];
            all[before].trees = tree - all[before].first_tree;
            newest[table as usize] = all.len();
            all.push(Version {
                table,
                number: all[before].number + 1,
                first_tree: tree,
                trees: tree_count - tree,
                next_trees: 0,
            });
        }
    }
    settle_successors(&mut all, tables);
    all
}

/// Walks backwards, so that the version after one is known when it is met.
fn settle_successors(all: &mut [Version], tables: u64) {
    let mut after = vec![0; tables as usize];
    for version in all.iter_mut().rev() {
        let next = &mut after[version.table as usize];
        version.next_trees = *next;
        *next = version.trees;
    }
}

impl Version {
    /// Whether this version put new clusters into a chunk.
    pub fn rewrites(&self, chunk: u64) -> bool {
        self.number == 0 || (chunk + u64::from(self.number)).is_multiple_of(2)
    }

    /// The number of the version whose clusters this one maps in a chunk.
    pub fn origin(&self, chunk: u64) -> u32 {
        if self.rewrites(chunk) {
            self.number
        } else {
            self.number - 1
        }
    }

    /// How many trees see the clusters that this version put into a chunk: until a later one rewrites the chunk.
    pub fn data_trees(&self, chunk: u64) -> u32 {
        let next_rewrites = (chunk + u64::from(self.number) + 1).is_multiple_of(2);
        if next_rewrites {
            self.trees
        } else {
            self.trees + self.next_trees
        }
    }
}
