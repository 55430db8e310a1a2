//! One compressed cluster.
//!
//! Comes in: the bytes of an extent, and room for one cluster. Goes out: whether they make a cluster, by the rules of the
//! program that will read them. Never here: more output than a cluster and one block; trust in a length the data gives.
//!
//! | | deflate | zstd |
//! |---|---|---|
//! | too short, or not a stream | cannot be read | cannot be read |
//! | goes on after the cluster is full, or breaks off there | can be read, and is odd | cannot be read |
//! | something else behind the end | belongs to the next extent, or to nobody | as deflate |
//! | several frames | there are none | can be read, if together they fill the cluster |
//!
//! The zstd decoder here forgives a few things that libzstd does not, such as bits left over in a stream of literals. Then a
//! cluster passes that QEMU cannot read; one that QEMU can read never fails.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::qcow2::u32_at;

/// What is wrong with a compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Defect {
    /// It cannot be read: why.
    Invalid(&'static str),
    /// It can be read, but does not end with its cluster: how.
    Overrun(&'static str),
}

const NOT_A_STREAM: &str = "the data is not what the compression type says";
const TOO_SHORT: &str = "the data ends before the cluster is full";
const CUT_OFF: &str = "the data runs past the sectors the entry gives it";
const TOO_LONG: &str = "the data holds more than a cluster";

/// A window larger than this is refused by every reader that streams.
const MAX_WINDOW_BYTES: u64 = 1 << 27;
/// The window a frame is read with: no match in a cluster reaches farther back, no block is larger.
const OWN_WINDOW: u8 = 11 << 3;

/// Decoders that are used again and again by one thread.
pub(super) struct Unpacker {
    deflate: Box<DecompressorOxide>,
    zstd: FrameDecoder,
    /// A cluster and one byte, which nothing may be written to.
    output: Vec<u8>,
    /// What the last extent was read of, as far as that matters for the work it was.
    read_bytes: usize,
}

impl Unpacker {
    /// Room for clusters of `cluster_bytes`.
    pub(super) fn new(cluster_bytes: usize) -> Self {
        Self {
            deflate: Box::default(),
            zstd: FrameDecoder::new(),
            output: vec![0; cluster_bytes.saturating_add(1)],
            read_bytes: 0,
        }
    }

    /// How many bytes of the last extent were looked at to unpack it.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes as u64
    }

    /// Whether the bytes of an extent begin with a deflate stream of exactly one cluster.
    pub(super) fn inflate(&mut self, input: &[u8]) -> Result<(), Defect> {
        let cluster_bytes = self.output.len() - 1;
        self.deflate.init();
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, read, written) =
            decompress(&mut self.deflate, input, &mut self.output, 0, flags);
        self.read_bytes = read;
        match status {
            TINFLStatus::Done if written == cluster_bytes => Ok(()),
            TINFLStatus::Done if written < cluster_bytes => Err(Defect::Invalid(TOO_SHORT)),
            TINFLStatus::Done | TINFLStatus::HasMoreOutput => Err(Defect::Overrun(TOO_LONG)),
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput
                if written >= cluster_bytes =>
            {
                Err(Defect::Overrun(CUT_OFF))
            }
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => {
                Err(Defect::Invalid(CUT_OFF))
            }
            // What breaks after the byte too many is never looked at.
            _ if written > cluster_bytes => Err(Defect::Overrun(TOO_LONG)),
            _ => Err(Defect::Invalid(NOT_A_STREAM)),
        }
    }

    /// Whether the bytes of an extent begin with zstd frames of exactly one cluster. `input` is written to.
    pub(super) fn unzstd(&mut self, input: &mut [u8]) -> Result<(), Defect> {
        let mut missing = (self.output.len() - 1) as u64;
        let mut rest = input;
        self.read_bytes = 0;
        while missing > 0 {
            let frame = FrameStart::decode(rest)?;
            if let FrameStart::Skippable { bytes } = frame {
                rest = rest.get_mut(bytes..).ok_or(Defect::Invalid(CUT_OFF))?;
                self.read_bytes += bytes;
                continue;
            }
            frame.shrink_window(rest)?;
            let has_length = matches!(
                frame,
                FrameStart::Data {
                    has_length: true,
                    ..
                }
            );
            let before = self.read_bytes;
            // Where a frame breaks is not told: it may be at its end.
            self.read_bytes += rest.len();
            let (read, written) = self.unzstd_frame(rest, missing, has_length)?;
            self.read_bytes = before + read;
            missing -= written;
            rest = rest.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads one frame of at most `limit` bytes; gives the bytes read and written.
    fn unzstd_frame(
        &mut self,
        input: &[u8],
        limit: u64,
        has_length: bool,
    ) -> Result<(usize, u64), Defect> {
        let frame = &mut self.zstd;
        let mut rest = input;
        let invalid = |rest: &[u8]| {
            // Where nothing is left, more may have made it whole.
            let is_cut = rest.is_empty();
            Defect::Invalid(if is_cut { CUT_OFF } else { NOT_A_STREAM })
        };
        if frame.reset(&mut rest).is_err() {
            return Err(invalid(rest));
        }
        if frame.content_size() > limit {
            return Err(Defect::Invalid(TOO_LONG));
        }
        let limit_bytes = usize::try_from(limit).unwrap_or(usize::MAX);
        // Stops with the first block that is too much.
        let strategy = BlockDecodingStrategy::UptoBytes(limit_bytes.saturating_add(1));
        if frame.decode_blocks(&mut rest, strategy).is_err() {
            return Err(invalid(rest));
        }
        let written = frame.can_collect() as u64;
        if !frame.is_finished() || written > limit {
            return Err(Defect::Invalid(TOO_LONG));
        }
        if has_length && frame.content_size() != written {
            return Err(Defect::Invalid(NOT_A_STREAM));
        }
        // The checksum is of what was taken out.
        let room = self.output.get_mut(..limit_bytes).unwrap_or_default();
        let taken = std::io::Read::read(frame, room).map_err(|_| invalid(rest))?;
        let stored = frame.get_checksum_from_data();
        if stored.is_some() && stored != frame.get_calculated_checksum() {
            return Err(Defect::Invalid(NOT_A_STREAM));
        }
        Ok((input.len() - rest.len(), taken as u64))
    }
}

/// The first bytes of a zstd frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameStart {
    /// Data; `window` is the byte that gives its size, where there is one; `has_length` if the frame says how long it is.
    Data {
        window: Option<u8>,
        has_length: bool,
    },
    /// To be stepped over.
    Skippable { bytes: usize },
}

impl FrameStart {
    fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        const DATA: u32 = 0x28b5_2ffd;
        const SKIPPABLE: u32 = 0x184d_2a50;
        let magic = u32_at(bytes, 0).ok_or(Defect::Invalid(TOO_SHORT))?;
        if magic == DATA {
            let descriptor = bytes.get(4).ok_or(Defect::Invalid(CUT_OFF))?;
            let is_single_segment = descriptor & 0x20 != 0;
            let window = bytes.get(5).filter(|_| !is_single_segment).copied();
            if descriptor & 0x08 != 0 {
                return Err(Defect::Invalid(NOT_A_STREAM));
            }
            let has_length = is_single_segment || descriptor >> 6 != 0;
            return Ok(Self::Data { window, has_length });
        }
        if magic.swap_bytes() & !0xf == SKIPPABLE {
            let length = u32_at(bytes, 4).ok_or(Defect::Invalid(CUT_OFF))?;
            let length = usize::try_from(length.swap_bytes()).unwrap_or(usize::MAX);
            let bytes = length.saturating_add(8);
            return Ok(Self::Skippable { bytes });
        }
        Err(Defect::Invalid(NOT_A_STREAM))
    }

    /// Refuses a window nobody would read, and makes a large one small: a decoder sets aside what the frame says.
    fn shrink_window(self, frame: &mut [u8]) -> Result<(), Defect> {
        let Self::Data {
            window: Some(window),
            ..
        } = self
        else {
            return Ok(());
        };
        let base = 1_u64 << (10 + (window >> 3));
        let bytes = base + base / 8 * u64::from(window & 7);
        if bytes > MAX_WINDOW_BYTES {
            return Err(Defect::Invalid(NOT_A_STREAM));
        }
        if let Some(byte) = frame.get_mut(5) {
            *byte = window.min(OWN_WINDOW);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
