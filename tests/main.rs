//! All tests that need more than one file: one binary, and this is its table of contents.
//!
//! | module | what holds |
//! |---|---|
//! | `corpus` | every image in `corpus/` is reported as recorded |
//! | `damage` | one forged damage for each code, with everything it provokes |
//! | `law` | what is true of every image: same report at any number of threads, agreement with a naive model |
//! | `properties` | what is true of any bytes, shared with the fuzz targets in `fuzz/` |
//! | `compatibility` | where `qemu-img check` says something else is what the document says |
//! | `policy` | what a gate for images from strangers turns away, and what passes |
//! | `deep` | compressed data, key slots, bitmap tails, unreadable ranges, beside what QEMU can read |
//! | `faults` | whatever read fails, or lies, a check ends and says what it did not see |
//! | `storage` | more than 2^31 clusters; each L2 table is read once |
//! | `json` | every key of the JSON is documented |
//! | `plan` | what a repair would do to every image of the corpus |
//! | `repair` | repairs keep what a guest sees, and undo gives back every byte: in memory, killed, with failing disks |
//! | `crash` | no power cut makes an image worse, and undo comes back from every state |
//! | `oracle` | agreement with `qemu-img check` to the digit, over images made by the real tools |
//! | `cli` | exit codes, JSON, locks, signals, hostile names, files that are no images |
//! | `big_images` | the images of the benchmark are valid, or damaged exactly as their names say |
//! | `tidy` | the rules of the house |

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test stops where it fails, and says what it did"
)]

mod big_images;
mod cli;
mod compatibility;
mod corpus;
mod crash;
mod damage;
mod deep;
mod faults;
mod json;
mod law;
mod oracle;
mod plan;
mod policy;
mod properties;
mod repair;
mod storage;
mod support;
mod tidy;
