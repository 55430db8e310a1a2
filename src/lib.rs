//! qfsck: an offline integrity checker and repair tool for QEMU qcow2 disk images.
//!
//! This file is the map. The verbs: [`ImageFile::open`] and [`Image::open`] open, [`check`] checks, [`host_owners`] and
//! [`guest_path`] answer who owns what, [`check_and_map`] draws a map of the file; [`deep_read`] reads the data too, [`judge_policy`] says what
//! a gate turns away; [`audit`] accounts for many images; [`plan`] describes a repair, [`apply`] does it and [`undo_repair`] takes it back;
//! [`report`] turns answers into the stable JSON shape.
//!
//! The library returns values. It never prints, prompts, exits, or reads a clock or configuration: the same bytes give
//! the same report, at any number of threads.
//!
//! ```
//! use std::path::Path;
//!
//! let bytes = std::fs::read("corpus/002-v3-plain/image.qcow2")?;
//! let image = qfsck::Image::open(bytes, Path::new("image.qcow2"))?;
//! let check = qfsck::check(&image, qfsck::Options::default(), &qfsck::Progress::default());
//! assert_eq!(check.verdict, qfsck::Verdict::Clean);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod audit;
mod check;
mod coverage;
mod deep;
mod error;
mod finding;
mod image;
mod plan;
mod policy;
mod progress;
pub mod qcow2;
mod refcount_map;
pub mod report;
mod storage;
mod transaction;
pub mod undo;
mod walk;

pub use check::{
    Check, ClusterUse, GuestPath, GuestTarget, HostAnswer, HostMap, MapCell, Options, Statistics,
    Verdict, check, check_and_map, guest_path, host_owners, metadata_digest,
};
pub use coverage::{Complete, Coverage, Gap, GapKind};
pub use deep::deep_read;
pub use error::Error;
pub use finding::{
    Boot, Code, Counts, Finding, Findings, KEPT_OWNERS, KEPT_PER_CODE, Owner, OwnerKind, Owners,
    Severity, Total, Trees, escaped, escaped_path,
};
pub use image::Image;
pub use plan::{
    CopyEdit, Edit, Mode, Overlaps, Plan, RepairOptions, Stage, StageKind, Withheld, plan,
};
pub use policy::{PolicyLimits, judge_policy};
pub use progress::{Phase, Progress};
pub use storage::{
    FileIdentity, FileStamp, ImageFile, Overlay, RepairFile, Sharing, Storage, StorageMut,
    UndoSink, UndoSinkFile, file_length_bytes, path_of_bytes,
};
pub use transaction::{
    Identity, Receipt, RepairError, UndoOptions, apply, punch_freed, undo_repair,
};
