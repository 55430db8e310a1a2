//! What becomes of entries: patches, and reasons for what is left.
//!
//! Comes in: decisions on single entries, of many threads. Goes out: [`Changes`]. Never here: a decision.

use std::collections::BTreeMap;

use crate::finding::{Code, Findings, Severity};
use crate::plan::Withheld;
use crate::plan::changes::Changes;
use crate::plan::changes::Patch;

/// Why an entry is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Obstacle {
    /// The table cannot be read, or has an owner besides.
    Table,
    /// The file ends inside the entry.
    CutOff,
    /// The table does not look like one.
    Implausible,
    /// Nothing says that the table is one.
    NotVouchedFor,
    /// The table need not be so long as to have the entry.
    BeyondDisk,
    /// Another part of the entry cannot be.
    Impossible,
    /// Some cluster is counted more often than it is used.
    LooksLeaked,
    /// Some stored counts are not known.
    CountsUnknown,
    /// The offset is not the guest's, as it is in a data file.
    NotGuestOffset,
    /// Bit 62 may be the one that flipped.
    MayBeStandard,
    /// The counts have no reference to spare for this.
    NotCounted,
    /// Something is lost for good.
    Loss,
    /// The backing file would show where the entry is dropped.
    BackingFile,
    /// A flag that version 2 does not have.
    Version2,
    /// A data file where compressed clusters are.
    DataFile,
}

impl Obstacle {
    /// The reason, for whoever has to decide.
    fn reason(self, code: Code) -> String {
        let reason = match self {
            Self::Table => {
                "the table they are in cannot be read, or something else uses its cluster too"
            }
            Self::CutOff => {
                "the file ends inside them: bring its tail back, or, if that is lost, let the rest read as zeros, with a file that ends \
                 with a whole cluster (`truncate -s %65536`, or whatever the cluster size is)"
            }
            Self::Implausible => {
                "the table does not look like one: restore it, or the pointer to it, as a whole"
            }
            Self::NotVouchedFor => {
                "nothing else in that part of the table says that it is one, and it may be data that a damaged pointer names"
            }
            Self::BeyondDisk => {
                "the virtual disk needs no L1 table as long as that, so they may be data behind the table"
            }
            Self::Impossible => "the rest of the entry is impossible too, so it has to be restored",
            Self::LooksLeaked => {
                return format!(
                    "clusters are counted that nothing uses, and the offset beside the bits may be damaged and have meant \
                     one of them; if it is right, --accept-loss {code} clears the bits, and what looks leaked may be freed"
                );
            }
            Self::CountsUnknown => {
                return format!(
                    "the stored refcounts are not all known, so nothing vouches for the offset beside the bits; if it is \
                     right, --accept-loss {code} clears the bits"
                );
            }
            Self::NotGuestOffset => {
                "the offset beside the bits is not the guest's, so it may be damaged too"
            }
            Self::MayBeStandard => {
                return format!(
                    "without the compressed bit they are sound standard entries, so that bit may be the damage; if the \
                     data decompresses, --accept-loss {code} clears the rest"
                );
            }
            Self::NotCounted => {
                "the clusters of the compressed data are not counted for it, so it may be somebody else's"
            }
            Self::Loss => {
                return format!(
                    "what they meant may still be found; --accept-loss {code} gives it up: {}",
                    loss(code)
                );
            }
            Self::BackingFile => {
                "without the entry, old data of the backing file would show where newer data was"
            }
            Self::Version2 => {
                "QEMU refuses to read them, and nothing in the image says whether zeros are meant or data: for zeros, \
                 `qemu-img amend -o compat=1.1` makes it an image that may have the flag"
            }
            Self::DataFile => "nothing says which of the two files holds compressed data",
        };
        reason.to_owned()
    }
}

/// What is lost where a code is accepted.
fn loss(code: Code) -> &'static str {
    match code {
        Code::L2EntryPastEnd | Code::CompressedPastEnd => {
            "the clusters read as zeros, even should the file's tail come back"
        }
        Code::L2EntryUnaligned => {
            "the clusters read as zeros, and those of the file that were meant may be freed with what is in them"
        }
        Code::L2EntryWithoutOffset => {
            "the guest goes on to see no data there, and the cluster that was meant may be freed with what is in it"
        }
        Code::SubclusterWithoutCluster => {
            "the subclusters read as zeros, and the cluster that was meant may be freed with what is in it"
        }
        Code::L1EntryWithoutOffset | Code::L2TableUnaligned | Code::L2TablePastEnd => {
            "the range reads as unallocated, and what its table mapped may be freed with what is in it"
        }
        _ => "the hint that something else is damaged",
    }
}

/// Patches and reasons, of one table or of many.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) patches: Vec<Patch>,
    left: BTreeMap<(Code, Obstacle), u64>,
}

impl Outcome {
    /// Leaves `count` findings as they are.
    pub(super) fn leave(&mut self, code: Code, obstacle: Obstacle, count: u64) {
        // A notice that stays needs no excuse.
        if count > 0 && code.severity() > Severity::Notice {
            let left = self.left.entry((code, obstacle)).or_insert(0);
            *left = left.saturating_add(count);
        }
    }

    /// Leaves every finding of these codes as it is.
    pub(super) fn leave_all(&mut self, findings: &Findings, codes: &[Code], obstacle: Obstacle) {
        for &code in codes {
            self.leave(code, obstacle, findings.total_of(code).count);
        }
    }

    pub(super) fn append(&mut self, later: Self) {
        self.patches.extend(later.patches);
        for ((code, obstacle), count) in later.left {
            self.leave(code, obstacle, count);
        }
    }

    pub(super) fn into_changes(self) -> Changes {
        let withheld = |((code, obstacle), count): ((Code, Obstacle), u64)| Withheld {
            code,
            count,
            reason: obstacle.reason(code),
        };
        Changes {
            patches: self.patches,
            withheld: self.left.into_iter().map(withheld).collect(),
            ..Changes::default()
        }
    }
}
