//! The policy for images from strangers: what a gate for uploads turns away although nothing is wrong with it.
//!
//! Comes in: an image that was checked, and the gate's limits. Goes out: findings of severity
//! [`Policy`](crate::Severity::Policy) in its [`Check`]. Never here: another file opened, whatever the image names; a
//! byte past the first and last few sectors read; a verdict changed, except that what cannot be read is not known.
//!
//! `docs/untrusted.md` argues each rule, beside what other inspectors refuse.

mod signature;

use crate::check::Check;
use crate::coverage::Gap;
use crate::finding::{Code, Finding, escaped};
use crate::image::Image;
use crate::qcow2::{
    CryptMethod, ExtensionKind, Geometry, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2,
    INCOMPATIBLE_KNOWN, Place,
};
use crate::storage::Storage;
use signature::Found;

/// Limits of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyLimits {
    /// The largest virtual disk, in bytes.
    pub virtual_bytes: u64,
    /// How many bytes the guest's data may have for each byte of the file.
    pub expansion: u64,
}

impl Default for PolicyLimits {
    /// 64 TiB, the largest volumes clouds sell; and a hundred, which no file system with real content comes near.
    fn default() -> Self {
        Self {
            virtual_bytes: 64 << 40,
            expansion: 100,
        }
    }
}

/// Adds to a check what a gate for images from strangers has to say of the image.
pub fn judge_policy<S: Storage>(image: &Image<S>, limits: PolicyLimits, check: &mut Check) {
    let mut judge = Judge { image, check };
    judge.file_names();
    judge.features();
    judge.sizes(limits);
    judge.expansion(limits);
    judge.header_remainder();
    judge.signatures();
    check.reconsider(image.geometry().is_some());
}

fn field(name: &'static str) -> Place {
    Place::Header { field: name }
}

struct Judge<'a, S> {
    image: &'a Image<S>,
    check: &'a mut Check,
}

impl<S: Storage> Judge<'_, S> {
    fn push(&mut self, finding: Finding) {
        self.check.findings.push(finding);
    }

    /// The backing file and the external data file: that they are named, and what the names are.
    fn file_names(&mut self) {
        let header = self.image.header();
        if header.backing_file_offset != 0 {
            let place = field("backing_file_offset");
            let mut finding = Finding::new(Code::PolicyBackingFile, place);
            if let Some(name) = self.image.backing_name() {
                finding = finding.detail(format!("\"{}\"", escaped(name)));
                self.protocol(name, place);
            }
            self.push(finding);
        }
        if header.has_data_file() {
            let place = field("incompatible_features");
            let finding = Finding::new(Code::PolicyDataFile, place).word(INCOMPATIBLE_DATA_FILE);
            self.push(finding);
        }
        if header.has_raw_data() {
            self.push(Finding::new(
                Code::PolicyDataFile,
                field("autoclear_features"),
            ));
        }
        // Every name counts: which of two a program goes by is its own business.
        for extension in &self.image.extensions().extensions {
            let place = Place::HeaderExtension {
                offset: extension.offset,
            };
            if extension.kind == ExtensionKind::DataFileName {
                let name = escaped(&extension.data);
                self.push(Finding::new(Code::PolicyDataFile, place).detail(format!("\"{name}\"")));
                self.protocol(&extension.data, place);
            }
        }
    }

    fn protocol(&mut self, name: &[u8], place: Place) {
        if has_protocol(name) {
            let name = escaped(name);
            self.push(Finding::new(Code::PolicyNameProtocol, place).detail(format!("\"{name}\"")));
        }
    }

    fn features(&mut self) {
        let header = self.image.header();
        let unknown = header.incompatible_features & !INCOMPATIBLE_KNOWN;
        let place = field("incompatible_features");
        if unknown != 0 {
            self.push(Finding::new(Code::PolicyFeatureUnknown, place).word(unknown));
        }
        if header.has_extended_l2() {
            let word = INCOMPATIBLE_EXTENDED_L2;
            self.push(Finding::new(Code::PolicyExtendedL2, place).word(word));
        }
        let method = match header.crypt_method() {
            CryptMethod::None => None,
            CryptMethod::Aes => Some("AES"),
            CryptMethod::Luks => Some("LUKS"),
            CryptMethod::Unknown(_) => Some("a method nobody defined"),
        };
        if let Some(method) = method {
            let finding = Finding::new(Code::PolicyEncryption, field("crypt_method"));
            self.push(finding.word(header.crypt_method.into()).detail(method));
        }
        if let Some(pointer) = self
            .image
            .extensions()
            .find(ExtensionKind::EncryptionHeader)
        {
            let place = Place::HeaderExtension {
                offset: pointer.offset,
            };
            self.push(Finding::new(Code::PolicyEncryption, place).detail("a LUKS header"));
        }
    }

    fn sizes(&mut self, limits: PolicyLimits) {
        let limit = limits.virtual_bytes;
        let too_large = |place, bytes: u64| {
            Finding::new(Code::PolicyVirtualSize, place)
                .detail(format!("{bytes} bytes, {limit} are allowed"))
        };
        let size = self.image.header().size;
        if size > limit {
            self.push(too_large(field("size"), size));
        }
        let snapshots = (0_u32..).zip(&self.check.snapshots);
        let large: Vec<Finding> = snapshots
            .filter_map(|(index, snapshot)| Some((index, snapshot.disk_bytes?)))
            .filter(|(_, bytes)| *bytes > limit)
            .map(|(index, bytes)| too_large(Place::SnapshotEntry { index }, bytes))
            .collect();
        for finding in large {
            self.push(finding);
        }
    }

    /// Guest data that the active mapping holds, for each byte there is of the file.
    fn expansion(&mut self, limits: PolicyLimits) {
        let cluster_bytes = self.image.geometry().map_or(0, Geometry::cluster_bytes);
        let clusters = self.check.statistics.allocated_clusters;
        let guest_bytes = clusters.saturating_mul(cluster_bytes);
        let file_bytes = self.image.file_bytes();
        if guest_bytes > file_bytes.saturating_mul(limits.expansion) {
            let detail = format!(
                "{guest_bytes} bytes of guest data in a file of {file_bytes}, {} times are allowed",
                limits.expansion
            );
            self.push(Finding::new(Code::PolicyExpansion, Place::File).detail(detail));
        }
    }

    /// Bytes of the first cluster that are neither header nor extension nor backing file name.
    fn header_remainder(&mut self) {
        // Where the extensions have no end there is no remainder either, and that is a corruption.
        let geometry = self.image.geometry();
        let Some(geometry) = geometry.filter(|_| self.image.extensions().overrun.is_none()) else {
            return;
        };
        let header = self.image.header();
        let from = self.image.extensions().extensions.last().map_or(
            u64::from(header.header_length),
            |last| {
                let bytes = (last.data.len() as u64).next_multiple_of(8);
                last.offset.saturating_add(8).saturating_add(bytes)
            },
        );
        let name_start = header.backing_file_offset;
        let name_end = name_start.saturating_add(header.backing_file_size.into());
        let belongs =
            |at: u64| at < from || (name_start != 0 && (name_start..name_end).contains(&at));
        let strange = (0..geometry.cluster_bytes()).zip(self.image.header_bytes());
        let mut strange = strange.filter(|(at, byte)| **byte != 0 && !belongs(*at));
        if let Some((first, _)) = strange.next() {
            let count = strange.count() + 1;
            let detail = format!("{count} bytes that are not zero, the first at {first:#x}");
            let place = field("remainder");
            self.push(Finding::new(Code::PolicyHeaderRemainder, place).detail(detail));
        }
    }

    fn signatures(&mut self) {
        match signature::find(self.image.storage(), self.image.file_bytes()) {
            Ok(found) => {
                for Found { format, offset } in found {
                    let detail = format!("{format}, by its signature at {offset:#x}");
                    self.push(Finding::new(Code::PolicyPolyglot, Place::File).detail(detail));
                }
            }
            Err(error) => self
                .check
                .coverage
                .push(Gap::unreadable(Place::File, &error)),
        }
    }
}

/// Whether QEMU takes a name for a protocol's rather than a file's: a colon stands in it before any slash.
fn has_protocol(name: &[u8]) -> bool {
    let mut parts = name.split(|&byte| byte == b':' || byte == b'/');
    let head = parts.next().map_or(0, <[u8]>::len);
    head > 0 && name.get(head) == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_the_first_slash_makes_a_protocol() {
        for name in [
            "json:{}",
            "nbd://host/export",
            "fat:rw:/etc",
            "file:a",
            "a:b/c",
        ] {
            assert!(has_protocol(name.as_bytes()), "{name}");
        }
        for name in ["", "base.qcow2", "/var/a:b", "./a:b", "dir/json:x", ":a"] {
            assert!(!has_protocol(name.as_bytes()), "{name}");
        }
    }
}
