//! An image: storage, the header found in it, and the sizes that follow.
//!
//! Comes in: storage. Goes out: an [`Image`] for anything with a qcow2 header, however damaged, and typed reads.
//! Never here: judging what was read. Only what is not qcow2 at all is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::coverage::LostReads;
use crate::error::Error;
use crate::qcow2::{
    ExtensionArea, Geometry, Header, HostCluster, HostOffset, V2_HEADER_BYTES, V3_HEADER_BYTES,
    decode_extensions,
};
use crate::storage::Storage;

/// The largest first cluster; more of a header is never read.
const MAX_HEADER_BYTES: u64 = 2 << 20;

/// An image opened for reading.
#[derive(Debug)]
pub struct Image<S> {
    path: PathBuf,
    storage: S,
    file_bytes: u64,
    header: Header,
    header_bytes: Vec<u8>,
    extensions: ExtensionArea,
    geometry: Option<Geometry>,
    lost: Mutex<LostReads>,
}

impl<S: Storage> Image<S> {
    /// Reads the header and its extensions. `path` is only named in errors.
    pub fn open(storage: S, path: &Path) -> Result<Self, Error> {
        let read_error = |source| Error::Read {
            path: path.to_owned(),
            offset: 0,
            source,
        };
        let file_bytes = storage.length_bytes().map_err(read_error)?;
        let header_bytes = read_header_cluster(&storage, file_bytes).map_err(read_error)?;
        let header = Header::decode(&header_bytes).map_err(|what| Error::NotQcow2 {
            path: path.to_owned(),
            what,
        })?;
        let extensions = read_extensions(&header, &header_bytes);
        let geometry = Geometry::new(&header, file_bytes);
        Ok(Self {
            path: path.to_owned(),
            storage,
            file_bytes,
            header,
            header_bytes,
            extensions,
            geometry,
            lost: Mutex::default(),
        })
    }

    /// Where the image was said to be, to be named in errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The first cluster as it was read, as far as the file has it.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    /// The header extensions.
    pub fn extensions(&self) -> &ExtensionArea {
        &self.extensions
    }

    /// The sizes, or `None` where the header gives no cluster size to measure with.
    pub fn geometry(&self) -> Option<Geometry> {
        self.geometry
    }

    /// Length of the file when the image was opened.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What the image is read from.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The backing file name's bytes, where the header places one inside the first cluster.
    pub fn backing_name(&self) -> Option<&[u8]> {
        if self.header.backing_file_offset == 0 {
            return None;
        }
        let start = usize::try_from(self.header.backing_file_offset).ok()?;
        let length = usize::try_from(self.header.backing_file_size).ok()?;
        self.header_bytes.get(start..start.checked_add(length)?)
    }

    /// Reads bytes from `offset` on; bytes past the end read as zero.
    pub(crate) fn read_into(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.storage.read_at(offset.0, buffer);
        if let Err(error) = &read
            // A lock is only poisoned by a panic, which ends the run.
            && let Ok(mut lost) = self.lost.lock()
        {
            lost.count += 1;
            lost.last = Some((offset, error.to_string()));
        }
        read
    }

    /// What reading has failed so far. Whoever draws conclusions from what it read looks here at the end: a failure that
    /// nobody minded at its place must not look like an answer.
    pub(crate) fn lost_reads(&self) -> LostReads {
        self.lost
            .lock()
            .map(|lost| lost.clone())
            .unwrap_or_default()
    }

    /// Reads clusters from `first` on.
    pub(crate) fn read_clusters(
        &self,
        geometry: Geometry,
        first: HostCluster,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        self.read_into(geometry.offset_of(first), buffer)
    }

    /// Reads clusters from `first` on, where a failure is no loss: they are then read again, one by one.
    pub(crate) fn attempt_clusters(
        &self,
        geometry: Geometry,
        first: HostCluster,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        self.storage.read_at(geometry.offset_of(first).0, buffer)
    }

    /// Whether the header on disk is still the one this image was opened with.
    pub fn header_unchanged(&self) -> io::Result<bool> {
        let now = read_header_cluster(&self.storage, self.storage.length_bytes()?)?;
        Ok(now == self.header_bytes)
    }
}

/// Reads as much as a header can need: the first cluster, where the header gives its size.
fn read_header_cluster(storage: &impl Storage, file_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = read_start(storage, file_bytes.min(4096))?;
    if let Ok(header) = Header::decode(&bytes)
        && let Some(geometry) = Geometry::new(&header, file_bytes)
        && geometry.cluster_bytes() > 4096
    {
        let wanted = geometry.cluster_bytes().min(MAX_HEADER_BYTES);
        bytes = read_start(storage, file_bytes.min(wanted))?;
    }
    Ok(bytes)
}

fn read_start(storage: &impl Storage, length_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length_bytes).unwrap_or(0)];
    storage.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Splits the area between the header and the backing file name (or the end of the first cluster).
pub(crate) fn read_extensions(header: &Header, header_bytes: &[u8]) -> ExtensionArea {
    let start = u64::from(header.header_length);
    let shortest = if header.version == 2 {
        V2_HEADER_BYTES
    } else {
        V3_HEADER_BYTES
    };
    if start < shortest {
        return ExtensionArea::default();
    }
    let cluster_bytes = 1_u64.checked_shl(header.cluster_bits).unwrap_or(0);
    let end = match header.backing_file_offset {
        0 => cluster_bytes,
        offset => offset.min(cluster_bytes),
    };
    let area = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    area.map(|(start, end)| start..end.min(header_bytes.len()))
        .and_then(|area| header_bytes.get(area))
        .map_or_else(ExtensionArea::default, |area| {
            decode_extensions(area, start)
        })
}
