//! What an audit writes down and reads again: the frozen list, one record for each image, the night, the summary.
//!
//! Comes in: rows, or lines of JSON. Goes out: the other of the two; a line that is no row is an error with words. Never
//! here: a decision about an image, a file.
//!
//! A row is what does not depend on who looked, when in the night, and how often: reports are made of rows, and are the
//! same bytes however the work was divided. What does depend on it is in [`AuditRun`], which only records have.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::finding::escaped_path;
use crate::storage::path_of_bytes;

/// How an image stands, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageStatus {
    /// Nothing is wrong.
    Clean,
    /// It was there the night before and is not any more.
    Gone,
    /// Another program has it open for writing: nothing is known tonight.
    Busy,
    /// It changed while it was read: nothing is known tonight.
    Changed,
    /// Only space is lost.
    Leaks,
    /// It is named like an image, or was one, and is not one that can be checked.
    NotQcow2,
    /// A limit of the audit, or a defect of qfsck, ended the check.
    Unfinished,
    /// Something is wrong that starting the guest does not make worse.
    Repairable,
    /// Too little could be read to say more.
    Unreadable,
    /// The next write may destroy something, or the image cannot be used as it is.
    DoNotBoot,
}

impl ImageStatus {
    /// All of them, worst first.
    pub const WORST_FIRST: [Self; 10] = [
        Self::DoNotBoot,
        Self::Unreadable,
        Self::Repairable,
        Self::Unfinished,
        Self::NotQcow2,
        Self::Leaks,
        Self::Changed,
        Self::Busy,
        Self::Gone,
        Self::Clean,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Gone => "gone",
            Self::Busy => "busy",
            Self::Changed => "changed",
            Self::Leaks => "leaks",
            Self::NotQcow2 => "not-qcow2",
            Self::Unfinished => "unfinished",
            Self::Repairable => "repairable",
            Self::Unreadable => "unreadable",
            Self::DoNotBoot => "do-not-boot",
        }
    }

    /// Whether it tells how the metadata of an image is, all of which was read.
    pub fn is_verdict(self) -> bool {
        matches!(
            self,
            Self::Clean | Self::Leaks | Self::Repairable | Self::DoNotBoot
        )
    }

    /// Whether somebody else was in the image.
    pub fn is_in_use(self) -> bool {
        matches!(self, Self::Busy | Self::Changed)
    }

    /// Whether somebody should look at it: it is damaged, or nobody can tell.
    pub fn is_damage(self) -> bool {
        matches!(
            self,
            Self::DoNotBoot | Self::Unreadable | Self::Repairable | Self::NotQcow2
        )
    }
}

/// The name of an image, whatever bytes it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageName {
    /// The path; where it is not text, escaped.
    image: String,
    /// The bytes of a path that is not text, as hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_bytes: Option<String>,
}

impl ImageName {
    /// The name of a path.
    pub fn new(path: &Path) -> Self {
        if let Some(text) = path.to_str() {
            return Self {
                image: text.to_owned(),
                image_bytes: None,
            };
        }
        let mut digits = String::new();
        for byte in path.as_os_str().as_encoded_bytes() {
            // A string takes everything.
            let _written = write!(digits, "{byte:02x}");
        }
        Self {
            image: escaped_path(path),
            image_bytes: Some(digits),
        }
    }

    /// The path, byte for byte.
    pub fn to_path(&self) -> PathBuf {
        path_of_bytes(&self.to_bytes())
    }

    /// The bytes of the path.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Some(digits) = &self.image_bytes else {
            return self.image.clone().into_bytes();
        };
        let pairs = digits.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or(""), 16);
        pairs.map(|pair| byte(pair).unwrap_or(b'?')).collect()
    }

    /// The path, fit to be shown.
    pub fn shown(&self) -> String {
        escaped_path(&self.to_path())
    }
}

/// What tells an image that nobody touched since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fingerprint {
    /// Length of the file.
    pub bytes: u64,
    /// Time of the last change of the content, in nanoseconds since the Epoch.
    pub modified_ns: i64,
    /// Time of the last change of the inode, in nanoseconds since the Epoch.
    pub changed_ns: i64,
    /// Number of the inode.
    pub inode: u64,
    /// CRC-32 of the first 4096 bytes.
    pub header_crc: u32,
}

/// A pass over all images, and when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Night {
    /// Its number: one more than that of the night before.
    pub night: u64,
    /// When it began, in seconds since the Epoch.
    pub at: u64,
}

/// The last time all metadata of an image was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LastVerdict {
    /// What was found.
    pub status: ImageStatus,
    /// In which night.
    #[serde(flatten)]
    pub night: Night,
}

/// How one image stood in one night.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditRow {
    /// Which image.
    #[serde(flatten)]
    pub name: ImageName,
    /// How it stands.
    pub status: ImageStatus,
    /// Why there is no verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Reasons not to rely on how it stands, such as a repair that was cut short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreliable: Vec<String>,
    /// Corruptions found.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub corruptions: u64,
    /// Leaked clusters.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub leaks: u64,
    /// Bytes that leaked clusters take up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub leaked_bytes: u64,
    /// What is worth knowing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub notices: u64,
    /// What could not be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub check_errors: u64,
    /// How often each code was found.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub findings: BTreeMap<String, u64>,
    /// The file's, before it was read; a block device has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Further names of the same file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub other_names: u64,
    /// Nights in a row in which somebody else was in it, this one included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub busy_nights: u64,
    /// How it stood the last time before this night that anybody could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<ImageStatus>,
    /// The number of the night it was first seen in.
    pub first_night: u64,
    /// The last time it was read whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<LastVerdict>,
    /// Nobody touched the file since, so it was not read again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub carried: bool,
    /// The number of the night.
    pub night: u64,
    /// The version of qfsck that looked.
    pub tool: String,
}

impl AuditRow {
    /// Whether an image is damaged and was not when it was last looked at. What was never seen before counts.
    pub fn is_newly_damaged(&self) -> bool {
        self.status.is_damage() && !self.previous.is_some_and(ImageStatus::is_damage)
    }

    /// Whether nothing could be learnt of an image, and what is known from before is that it is damaged: starting a guest
    /// does not mend its image.
    pub fn is_damaged_as_last_read(&self) -> bool {
        let is_open = self.status.is_in_use() || self.status == ImageStatus::Unfinished;
        let was_none = self.previous == Some(ImageStatus::NotQcow2);
        is_open && (was_none || self.verdict.is_some_and(|last| last.status.is_damage()))
    }
}

/// What only the record of an image knows: it differs from run to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditRun {
    /// The host that looked.
    pub host: String,
    /// How long it took.
    pub milliseconds: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Reads.
    pub reads: u64,
    /// How often the image was looked at in this night.
    pub checks: u64,
    /// The file system has no locks, so a writer that writes nothing would not be seen.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_locks: bool,
}

/// The record of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditRecord {
    /// Version of the shape.
    pub schema: u32,
    /// How the image stands.
    #[serde(flatten)]
    pub row: AuditRow,
    /// How that was found out.
    pub run: AuditRun,
}

/// What the `kind` of a list says.
pub const LIST_KIND: &str = "audit-list";

/// The first line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListHeader {
    /// Version of the shape.
    pub schema: u32,
    /// That it is a list.
    pub kind: String,
    /// The version of qfsck that froze it.
    pub tool: String,
    /// The list it is, or is a part of: a number of all its entries.
    pub id: String,
    /// A number of the entries that follow.
    pub digest: String,
    /// How many there are.
    pub entries: u64,
    /// How many shards it is divided into, if that is laid down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// The night it is for.
    #[serde(flatten)]
    pub night: Night,
}

/// One image of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListEntry {
    /// Which image.
    #[serde(flatten)]
    pub name: ImageName,
    /// Bytes of the file that are on the disk: large ones take longer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cost: u64,
    /// Further names of the same file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub other_names: u64,
    /// How it stood in the night before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Box<AuditRow>>,
    /// Its turn to be read whether somebody touched it or not.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full: bool,
    /// Its directory was not there, or had nothing any more, as one whose disk is not mounted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lost: bool,
    /// It is a symbolic link now, or below one, and links are not followed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub linked: bool,
}

/// Where a state stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NightMark {
    /// Version of the shape.
    pub schema: u32,
    /// The last night that was begun.
    #[serde(flatten)]
    pub night: Night,
    /// Whether every image has a record in it.
    pub finished: bool,
}

/// What a night came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditSummary {
    /// Version of the shape.
    pub schema: u32,
    /// The number of the night.
    pub night: u64,
    /// When it began, in seconds since the Epoch.
    pub at: u64,
    /// Images that have a record.
    pub images: u64,
    /// Images that have none.
    pub missing: u64,
    /// Images by how they stand.
    pub status: BTreeMap<String, u64>,
    /// Images that nobody touched, so that they were not read again.
    pub carried: u64,
    /// Images that are damaged and were not the night before.
    pub newly_damaged: u64,
    /// Images that were damaged the night before and are not.
    pub healed: u64,
    /// Images seen for the first time.
    pub new_images: u64,
    /// The most nights in a row that somebody was in an image.
    pub most_busy_nights: u64,
    /// Images that are in use or were given up, and were damaged when they were last read.
    #[serde(default)]
    pub damaged_when_last_read: u64,
    /// Images that were never read whole.
    pub never_read: u64,
    /// Bytes that leaked clusters take up.
    pub leaked_bytes: u64,
    /// How often each code was found.
    pub findings: BTreeMap<String, u64>,
    /// When the image that was not read for the longest time was read, in seconds since the Epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_verdict_at: Option<u64>,
}

/// Reads one line of JSON.
pub fn read_line<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(line)?)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_false(fact: &bool) -> bool {
    !*fact
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_survives_as_a_name() {
        let hostile: [&[u8]; 5] = [
            b"plain.qcow2",
            b"new\nline \x1b[31m\\x41",
            b"\xff\xfe not text \n",
            "zero\u{200b}width".as_bytes(),
            b"",
        ];
        for bytes in hostile {
            let name = ImageName::new(&path_of_bytes(bytes));
            let mut line = Vec::new();
            super::super::write_line(&name, &mut line).expect("a vector takes it");
            assert_eq!(
                line.iter().position(|byte| *byte == b'\n'),
                Some(line.len() - 1)
            );
            let read: ImageName = read_line(&line).expect("what was written can be read");
            assert_eq!(read.to_bytes(), bytes);
        }
    }

    #[test]
    fn statuses_are_listed_worst_first_and_named_as_in_json() {
        let mut sorted = ImageStatus::WORST_FIRST;
        sorted.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(sorted, ImageStatus::WORST_FIRST);
        for status in ImageStatus::WORST_FIRST {
            let text = serde_json::to_string(&status).expect("a word");
            assert_eq!(text, format!("\"{}\"", status.name()));
        }
    }
}
