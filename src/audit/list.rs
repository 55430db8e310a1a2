//! The frozen list: which images a night is about, so that many machines can share it and nobody forgets one.
//!
//! Comes in: entries, or the lines of a list. Goes out: the other of the two. Never here: an entry that was added, lost
//! or changed on the way; the first line has a number of all that follow.

use std::io::{self, BufRead, Write};

use super::key::Fnv;
use crate::report::{LIST_KIND, ListEntry, ListHeader, Night, SCHEMA, read_line, write_line};

/// A list, read and found whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// What it says of itself.
    pub header: ListHeader,
    /// The images, by path.
    pub entries: Vec<ListEntry>,
}

/// Why something is no list.
#[derive(Debug, thiserror::Error)]
pub enum NotAList {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("it is not a list of `qfsck audit plan`")]
    Kind,
    /// A newer qfsck made it.
    #[error("it has schema {0}, and this qfsck knows {SCHEMA}")]
    Schema(u32),
    /// A line is broken.
    #[error("line {0} is not an image of a list")]
    Line(u64),
    /// It is not what was written.
    #[error("it was cut or changed since it was made")]
    Changed,
}

/// Writes a list: the first line, then a line for each image, by path, each path once.
pub fn write_list(
    mut entries: Vec<ListEntry>,
    shards: Option<u32>,
    night: Night,
    to: impl Write,
) -> io::Result<ListHeader> {
    entries.sort_by_cached_key(|entry| entry.name.to_bytes());
    entries.dedup_by(|one, other| one.name == other.name);
    let digest = digest_of(&entries, night)?;
    let header = ListHeader {
        schema: SCHEMA,
        kind: LIST_KIND.to_owned(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        id: digest.clone(),
        digest,
        entries: entries.len() as u64,
        shards,
        night,
    };
    write_lines(&header, &entries, to)?;
    Ok(header)
}

/// Writes a part of a list as a list of its own, whose records belong to the whole.
pub fn part_of(whole: &ListHeader, entries: &[ListEntry], to: impl Write) -> io::Result<()> {
    let header = ListHeader {
        digest: digest_of(entries, whole.night)?,
        entries: entries.len() as u64,
        ..whole.clone()
    };
    write_lines(&header, entries, to)
}

fn write_lines(header: &ListHeader, entries: &[ListEntry], mut to: impl Write) -> io::Result<()> {
    write_line(header, &mut to)?;
    for entry in entries {
        write_line(entry, &mut to)?;
    }
    to.flush()
}

fn digest_of(entries: &[ListEntry], night: Night) -> io::Result<String> {
    let mut hash = Fnv::default();
    let mut line = Vec::new();
    write_line(&night, &mut line)?;
    for entry in entries {
        hash.add(&line);
        line.clear();
        write_line(entry, &mut line)?;
    }
    hash.add(&line);
    Ok(format!("{:032x}", hash.0))
}

impl List {
    /// Reads a list, and makes sure that it is whole.
    pub fn read(mut from: impl BufRead) -> Result<Self, NotAList> {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)?;
        let header: ListHeader = read_line(&line).map_err(|_| NotAList::Kind)?;
        if header.kind != LIST_KIND {
            return Err(NotAList::Kind);
        }
        if header.schema != SCHEMA {
            return Err(NotAList::Schema(header.schema));
        }
        let is_number =
            |text: &str| text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        // It becomes the name of a directory.
        if !is_number(&header.id) {
            return Err(NotAList::Changed);
        }
        let mut entries = Vec::new();
        loop {
            line.clear();
            if from.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let number = entries.len() as u64 + 2;
            entries.push(read_line(&line).map_err(|_| NotAList::Line(number))?);
        }
        if digest_of(&entries, header.night)? != header.digest
            || header.entries != entries.len() as u64
        {
            return Err(NotAList::Changed);
        }
        Ok(Self { header, entries })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::report::ImageName;

    const NIGHT: Night = Night { night: 3, at: 99 };

    fn entry(path: &str) -> ListEntry {
        ListEntry {
            name: ImageName::new(Path::new(path)),
            cost: 5,
            other_names: 0,
            since: None,
            full: true,
            lost: false,
            linked: false,
        }
    }

    fn written(paths: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let entries = paths.iter().map(|path| entry(path)).collect();
        write_list(entries, Some(2), NIGHT, &mut bytes).expect("a vector takes it");
        bytes
    }

    #[test]
    fn a_list_is_read_as_it_was_written_whatever_the_order_was() {
        let list = List::read(written(&["b", "a", "b"]).as_slice()).expect("a list");
        let names: Vec<String> = list
            .entries
            .iter()
            .map(|entry| entry.name.shown())
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(written(&["a", "b"]), written(&["b", "a", "b"]));
        assert_eq!(list.header.night, NIGHT);
    }

    #[test]
    fn a_part_of_a_list_belongs_to_the_whole() {
        let whole = List::read(written(&["a", "b", "c"]).as_slice()).expect("a list");
        let mut bytes = Vec::new();
        part_of(&whole.header, &[entry("b")], &mut bytes).expect("a vector takes it");
        let part = List::read(bytes.as_slice()).expect("a list");
        assert_eq!(part.header.id, whole.header.id);
        assert_eq!(part.entries.len(), 1);
    }

    #[test]
    fn a_list_that_was_cut_or_changed_is_refused() {
        let bytes = written(&["a", "b", "c"]);
        let text = String::from_utf8(bytes).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        let kept = [lines[0], lines[1], lines[3]].join("\n");
        assert!(matches!(
            List::read(kept.as_bytes()),
            Err(NotAList::Changed)
        ));
        let cut = &text[..text.len() - 9];
        assert!(matches!(List::read(cut.as_bytes()), Err(NotAList::Line(4))));
        let changed = text.replace("\"cost\":5", "\"cost\":6");
        assert!(matches!(
            List::read(changed.as_bytes()),
            Err(NotAList::Changed)
        ));
        for other in ["", "{}", "\x7fELF", "[1,2]"] {
            assert!(matches!(List::read(other.as_bytes()), Err(NotAList::Kind)));
        }
    }
}
