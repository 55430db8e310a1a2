//! Which L2 tables have compressed data in which part of the file.
//!
//! Comes in: every compressed entry, once. Goes out: the tables that are to be read again for the next entries in the order
//! of the disk. Never here: an entry; a table left out that may have one of those.

use crate::walk::L2Item;

/// Where the compressed data of one table begins.
#[derive(Clone, Copy, Debug)]
struct Span {
    table: L2Item,
    first_offset: u64,
    last_offset: u64,
    entry_count: usize,
}

/// The spans of tables that have compressed data.
#[derive(Debug, Default)]
pub(super) struct Spans(Vec<Span>);

impl Spans {
    /// Takes note of an entry; those of one table come one after the other.
    pub(super) fn note(&mut self, table: &L2Item, offset: u64) {
        match self.0.last_mut() {
            Some(span) if span.table.cluster == table.cluster => {
                span.first_offset = span.first_offset.min(offset);
                span.last_offset = span.last_offset.max(offset);
                span.entry_count += 1;
            }
            _ => self.0.push(Span {
                table: *table,
                first_offset: offset,
                last_offset: offset,
                entry_count: 1,
            }),
        }
    }

    pub(super) fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    /// Tables, in order, that may have one of the next `count` entries behind those up to an offset; and whether others have
    /// entries behind these.
    pub(super) fn next_tables(&self, done_offset: u64, count: usize) -> (Vec<L2Item>, bool) {
        let open = self.0.iter().filter(|span| span.last_offset >= done_offset);
        let whole = open.clone().filter(|span| span.first_offset > done_offset);
        let mut ends: Vec<(u64, usize)> = whole
            .map(|span| (span.last_offset, span.entry_count))
            .collect();
        ends.sort_unstable();
        // Up to here are as many entries as are wanted.
        let mut found = 0_usize;
        let enough = ends.into_iter().find(|(_, entry_count)| {
            found = found.saturating_add(*entry_count);
            found >= count
        });
        let limit = enough.map_or(u64::MAX, |(last_offset, _)| last_offset);
        let near = open.clone().filter(|span| span.first_offset <= limit);
        let has_more = open.clone().any(|span| span.first_offset > limit);
        (near.map(|span| span.table).collect(), has_more)
    }
}
