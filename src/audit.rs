//! The audit: many images, every one accounted for, night after night. It never repairs.
//!
//! Comes in: what was seen of each image tonight, and its row of the night before. Goes out: tonight's row, who does which
//! part of the work, what a night came to, what differs between two. Never here: a file, a clock, a thread; those are the
//! binary's, so that everything here is the same however the work was divided.

mod diff;
mod judge;
mod key;
mod list;
mod metrics;
mod shard;
mod tally;

pub use self::diff::{Change, ChangeKind, diff};
pub use self::judge::{Seen, carried, is_done, is_due, is_overdue, judge};
pub use self::key::ImageKey;
pub use self::list::{List, NotAList, part_of, write_list};
pub use self::metrics::{metrics, metrics_of_image};
pub use self::shard::{MOST_SHARDS, Shard, ShardError};
pub use self::tally::{KEPT_PER_STATUS, Tally};
