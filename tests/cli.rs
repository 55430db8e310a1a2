//! The surface and its manners: the real binary, run as people, scripts and strangers run it.
//!
//! In come images of the corpus, a few written here, files that are no images, and other programs that use them (QEMU's
//! own tools where they are installed). Out come exit codes, documents, words, and what was left on the disk.
//!
//! What never happens here: a judgement on what is wrong with an image (`corpus`, `damage` and `oracle` do that), a file
//! of the corpus touched, a process ended that a test did not start, a wait without a limit.
//!
//! A tool that is missing, or something this system does not permit, prints `NOT TESTED …`; with `QFSCK_REQUIRE_ORACLE=1`
//! a missing tool is a failure.
//!
//! | module | what it looks at |
//! |---|---|
//! | `exit_codes` | each code, usage errors, several images |
//! | `documents` | JSON and JSON Lines, `qemu-img`'s keys |
//! | `names` | hostile names, in the image and of the image |
//! | `not_images` | directories, FIFOs, devices, stumps; links; block devices |
//! | `locks` | QEMU and others in the image, before and while it is checked |
//! | `interruption` | signals, budgets, an image that changes, progress |
//! | `streams` | closed, full and colourful outputs; too few threads |
//! | `repair_check` | `check -r`, beside `qemu-img check -r` |
//! | `repair_undo` | names of undo files, repairs that were cut, `repair --resume` |
//! | `repair_vouched` | undo files that nobody can vouch for, dry runs of an undo, links |
//! | `repair_plan` | dry runs, plan files, wishes, signals |
//! | `untrusted` | the gate for uploads: its exit codes, and that it opens nothing an image names |
//! | `audit` | which files an audit finds, how it calls them, what it may use, and that it ends |
//! | `audit_state` | nights: what is skipped, what is not, kills, what is new |
//! | `audit_fleet` | lists, shards, merge, diff: nothing is left out, and reports are the same bytes |
//! | `audit_faults` | an audit among hostile directories, on disks that are full or not mounted |
//! | `audit_report` | the page of a night: what it says, that names stay text, that it stays small |
//! | `audit_browser` | that page in a browser: by day, by night, on paper, with a keyboard, without a network |
//! | `audit_shard_env` | shards whose index an engine gives: no image is left out in silence |
//! | `audit_live` | an audit beside running machines |
//! | `answers` | `owner` and `explain` |
//! | `footprint` | what a run opens, and leaves untouched |
//! | `hostile` | images made to cost as much as can be: memory, time, output, growth |
//! | `hostile_repairs` | images made to cost a repair, or a deep read, more than what is stored gives reason for |
//! | `isolated` | threads that read images have given up their rights |

#![expect(
    clippy::indexing_slicing,
    reason = "a document or an image without the place is a failed test"
)]

mod answers;
mod audit;
mod audit_browser;
mod audit_faults;
mod audit_fleet;
mod audit_live;
mod audit_report;
mod audit_shard_env;
mod audit_state;
mod documents;
mod exit_codes;
mod footprint;
mod hostile;
mod hostile_repairs;
mod interruption;
mod isolated;
mod locks;
mod names;
mod not_images;
mod repair_check;
mod repair_plan;
mod repair_stage;
mod repair_undo;
mod repair_vouched;
mod stage;
mod streams;
mod untrusted;
