//! Reading an image the way a person with a hex dump does.
//!
//! Comes in: bytes and offsets. Goes out: numbers; zero for everything behind the end. Never here: the library's readers.

/// The bytes of an image.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    pub(super) fn len(self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn u8(self, at: u64) -> u64 {
        let index = usize::try_from(at).ok();
        let byte = index.and_then(|index| self.0.get(index));
        byte.map_or(0, |&byte| byte.into())
    }

    pub(super) fn u16(self, at: u64) -> u64 {
        self.number(at, 2)
    }

    pub(super) fn u32(self, at: u64) -> u64 {
        self.number(at, 4)
    }

    pub(super) fn u64(self, at: u64) -> u64 {
        self.number(at, 8)
    }

    fn number(self, at: u64, width: u64) -> u64 {
        (0..width).fold(0, |number, index| {
            number << 8 | self.u8(at.saturating_add(index))
        })
    }

    /// The words of a table that are not zero, with their indices. One that the file ends in goes on with zeros.
    pub(super) fn table(self, offset: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
        let start = usize::try_from(offset.min(self.len())).unwrap_or(0);
        let end = offset.saturating_add(bytes).min(self.len());
        let end = usize::try_from(end).unwrap_or(0);
        let table = self.0.get(start..end).unwrap_or(&[]);
        let words = (0..).zip(table.chunks(8));
        words
            .filter(|(_, word)| word.iter().any(|&byte| byte != 0))
            .map(move |(index, _)| (index, self.u64(offset + index * 8)))
    }

    /// A refcount of `1 << order` bits: the lowest bits first within a byte, the highest byte first above.
    pub(super) fn count(self, block: u64, order: u32, index: u64) -> u64 {
        let bit = index << order;
        if order >= 3 {
            return self.number(block + bit / 8, 1 << (order - 3));
        }
        self.u8(block + bit / 8) >> (bit % 8) & ((1 << (1 << order)) - 1)
    }
}
