//! Where a checkpoint's bytes are: mapped from a file, compiled in, or in memory.

use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::FileError;

/// The whole of a file, shared: a clone costs a reference count.
#[derive(Clone)]
pub(super) enum Bytes {
    /// Pages of a file, read when they are touched.
    Mapped(Arc<Mmap>),
    /// Part of the program.
    Static(&'static [u8]),
    /// On the heap.
    Owned(Arc<Vec<u8>>),
}

/// How bytes will be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// They will be read soon.
    Soon,
    /// They have been read, and are of no more use.
    Done,
}

/// Bytes for which the system is asked at a time: Linux looks at no more than a device reads at once.
#[cfg(unix)]
const ASKED: usize = 512 << 10;

impl Bytes {
    /// Tells the system how `range` will be used, from another thread, as it may take its time. What it makes of that is no
    /// concern of anybody who reads.
    #[cfg(unix)]
    pub(super) fn advise(&self, range: Range<usize>, access: Access) {
        use memmap2::{Advice, UncheckedAdvice};
        let Bytes::Mapped(map) = self else { return };
        if range.is_empty() || range.end > map.len() {
            return;
        }
        let map = map.clone();
        rayon::spawn(move || {
            if access == Access::Done {
                // SAFETY: the mapping is of a file and never written, so pages that go come back with what the file has.
                let _ = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
                };
                return;
            }
            for start in range.clone().step_by(ASKED) {
                let len = ASKED.min(range.end - start);
                if map.advise_range(Advice::WillNeed, start, len).is_err() {
                    return;
                }
            }
        });
    }

    /// Systems that cannot be told.
    #[cfg(not(unix))]
    pub(super) fn advise(&self, _: Range<usize>, _: Access) {}

    /// Maps the file at `path`, which messages call `file`.
    pub(super) fn map(path: &Path, file: &str) -> Result<Self, FileError> {
        let error = |source| FileError::from_io(file, source);
        // Asked before opening: to open a pipe is to wait for its writer.
        let about = fs::metadata(path).map_err(error)?;
        if about.is_dir() {
            return Err(FileError::IsDirectory {
                file: file.to_owned(),
            });
        }
        if !about.is_file() {
            return Err(FileError::NotRegular {
                file: file.to_owned(),
            });
        }
        let opened = File::open(path).map_err(error)?;
        // An empty file cannot be mapped on every system.
        if opened.metadata().map_err(error)?.len() == 0 {
            return Err(FileError::Empty {
                file: file.to_owned(),
            });
        }
        // SAFETY: the mapping is private and read-only, and lives as long as every slice of it (`Deref` borrows from
        // the `Arc`). What Rust cannot promise is that no other process writes to the file: `Checkpoint::open` says
        // what happens then. Nothing here relies on a byte to keep the value that it had when it was checked: ranges
        // come from what was parsed, and every later parse of the bytes checks them again.
        let map = unsafe { Mmap::map(&opened) }.map_err(error)?;
        Ok(Self::Mapped(Arc::new(map)))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(Arc::new(bytes))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
