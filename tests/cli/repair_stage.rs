//! Repairs that are cut short, for the tests of what comes after.
//!
//! Comes in: an image, the name of an undo file, how many writes reach the disk. Goes out: the image and the undo file as
//! a power cut leaves them. Never here: an expectation.

use std::fs;
use std::io;
use std::path::Path;

use qfsck::{
    Identity, Image, Mode, Options, Progress, RepairOptions, Storage, StorageMut, UndoSinkFile,
};

use super::stage::{QFSCK, Said, Stage, has_tools, skip};

/// An image whose disk takes so many writes and no more.
struct Failing {
    bytes: Vec<u8>,
    writes_left: usize,
}

impl Storage for Failing {
    fn length_bytes(&self) -> io::Result<u64> {
        self.bytes.length_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buffer)
    }
}

impl StorageMut for Failing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writes_left = self
            .writes_left
            .checked_sub(1)
            .ok_or(io::ErrorKind::BrokenPipe)?;
        let start = usize::try_from(offset).expect("a small image");
        let end = start + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, length_bytes: u64) -> io::Result<()> {
        self.bytes
            .truncate(usize::try_from(length_bytes).expect("a small image"));
        Ok(())
    }

    fn reserve(&mut self, _length_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins a repair of the image at a path, which is cut after so many writes to it; `false` if it needs no more.
pub(super) fn cut_repair(image: &Path, undo_path: &Path, writes: usize) -> bool {
    let bytes = fs::read(image).expect("the image can be read");
    let opened = Image::open(bytes.as_slice(), image).expect("an image");
    let options = Options::default();
    let progress = Progress::default();
    let wishes = RepairOptions::new(Mode::All);
    let plan = qfsck::plan(&opened, &wishes, options, &progress).expect("a plan");
    assert!(!plan.is_empty(), "there is something to repair");
    let identity = Identity {
        device: 0,
        inode: 0,
        is_block_device: false,
        path: b"image".to_vec(),
    };
    let mut storage = Failing {
        bytes: bytes.clone(),
        writes_left: writes,
    };
    let sink = || UndoSinkFile::create(undo_path);
    let applied = qfsck::apply(&mut storage, &identity, &plan, options, &progress, sink);
    fs::write(image, storage.bytes).expect("the image can be written");
    applied.is_err()
}

/// Runs qfsck with faults injected into its system calls; `None` where that is not possible.
pub(super) fn with_fault(stage: &Stage, fault: &str, arguments: &[&str]) -> Option<Said> {
    if !has_tools(&["strace"]) {
        return None;
    }
    let inject = format!("inject={fault}");
    let tracing = ["-f", "-o", "log", "-e", &inject, QFSCK];
    let said = stage.run("strace", tracing.iter().chain(arguments));
    let log = fs::read_to_string(stage.path("log")).unwrap_or_default();
    if !log.contains("exited with") && !log.contains("killed by") {
        skip(&format!("strace may not trace here: {}", said.err()));
        return None;
    }
    Some(said)
}
