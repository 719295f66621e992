//! States on a disk: a folder with a file for each, shared by models, versions and processes.
//!
//! `FOLDER/MODEL-NAME.state`, where `MODEL` is a checksum of the model's fingerprint and our version. A file appears under
//! its name when it is complete and on the disk. The folder has a lock, held while a file appears or files are removed for
//! want of room, never while a state is written. What is being written counts from the beginning. Writers hold a lock on
//! their temporary files, so that those that nobody holds are known to be left over.

mod entry;

pub use entry::{EntryError, unpack};

use crate::{Error, Result};
use rwkv_sched::{StateStore, Stored};
use std::{
    fs::{self, DirEntry, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};
use tempfile::NamedTempFile;

/// The extension of entries.
const EXTENSION: &str = ".state";
/// What temporary files begin with.
const TEMPORARY: &str = ".rwkv-state-";
/// Whoever holds this file's lock may change what the folder has.
const LOCK: &str = ".lock";

/// A [`StateStore`] in a folder, of which one model's entries are seen. Several stores, in several processes, may have one
/// folder; the bound is that of all of them together, and what was used longest ago goes first.
///
/// Only the user may read the files: states tell what was read.
#[derive(Debug)]
pub struct DiskStateStore {
    folder: PathBuf,
    /// What this model's files begin with.
    prefix: String,
    capacity: u64,
}

impl DiskStateStore {
    /// The store in `folder`, which is made if need be, for the model with this fingerprint
    /// ([`ModelFile::fingerprint`](crate::ModelFile::fingerprint)), with at most `capacity` bytes of files in the folder,
    /// those that are being written included. Removes what killed processes have left.
    ///
    /// # Errors
    /// [`Error::Write`] for a folder that cannot be made.
    pub fn open(folder: &Path, fingerprint: &str, capacity: u64) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder).map_err(|source| Error::Write {
            file: folder.display().to_string(),
            source,
        })?;
        let model = format!("{fingerprint:?} {}", env!("CARGO_PKG_VERSION"));
        let store = Self {
            folder: folder.to_path_buf(),
            prefix: format!("{:08x}-", crc32fast::hash(model.as_bytes())),
            capacity,
        };
        if let Some(lock) = store.lock() {
            store.sweep(&lock);
        }
        Ok(store)
    }

    /// The name of an entry's file.
    fn file(&self, name: &str) -> io::Result<String> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > 160 || !name.bytes().all(plain) {
            let what = format!("{name:?} cannot be the name of a stored state");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(format!("{}{name}{EXTENSION}", self.prefix))
    }

    /// The folder's lock, until it is dropped; none, with a warning, where the file system has no locks.
    fn lock(&self) -> Option<File> {
        let path = self.folder.join(LOCK);
        let open = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let locked = open.and_then(|file| file.lock().map(|()| file));
        let warn = |e: &io::Error| tracing::warn!("{} cannot be locked: {e}", path.display());
        locked.inspect_err(warn).ok()
    }

    /// Removes temporary files that nobody writes any more. Those of others are locked before the folder's lock is given
    /// back.
    fn sweep(&self, _locked: &File) {
        for entry in self.files() {
            if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                continue;
            }
            let left = match File::open(entry.path()).map(|file| file.try_lock()) {
                Ok(Ok(())) => true,
                Ok(Err(TryLockError::WouldBlock | TryLockError::Error(_))) | Err(_) => false,
            };
            if left {
                removed(&entry.path());
            }
        }
    }

    /// The folder's regular files, as far as they can be read.
    fn files(&self) -> Vec<DirEntry> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_file()))
            .collect()
    }

    /// Every model's entries, those used longest ago first.
    fn all(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        for entry in self.files() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(EXTENSION)) else {
                continue;
            };
            // Gone since.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            all.push(Entry {
                used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                file: name.to_owned(),
                bytes: metadata.len(),
            });
        }
        all.sort();
        all
    }

    /// Bytes of temporary files: what others are writing.
    fn being_written(&self) -> u64 {
        let temporary = |entry: &DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(TEMPORARY)
        };
        let files = self.files().into_iter().filter(temporary);
        let sizes = files.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        sizes.fold(0, u64::saturating_add)
    }

    /// A temporary file of `bytes` bytes, for which there is room: what the name `file` has goes first where there is none,
    /// and then what was used longest ago.
    fn reserve(&self, file: &str, bytes: u64) -> io::Result<NamedTempFile> {
        let lock = self.lock();
        let mut all = self.all();
        let entries = all
            .iter()
            .fold(bytes, |sum, entry| sum.saturating_add(entry.bytes));
        // Where there are no locks, what was left over is not to be told from what is being written.
        let mut written = lock.as_ref().map_or(0, |_| self.being_written());
        if entries.saturating_add(written) > self.capacity
            && let Some(lock) = &lock
        {
            self.sweep(lock);
            written = self.being_written();
        }
        if written > 0 && bytes.saturating_add(written) > self.capacity {
            let what = format!("{bytes} bytes, where others are writing {written}");
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let mut total = entries.saturating_add(written);
        all.sort_by_key(|entry| entry.file != file);
        for entry in all {
            if total <= self.capacity {
                break;
            }
            if removed(&self.folder.join(&entry.file)) {
                total -= entry.bytes;
            }
        }
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.folder)?;
        // Others count it from now on.
        temporary.as_file().set_len(bytes)?;
        if lock.is_some() {
            // Nobody else has opened it.
            let _ = temporary.as_file().try_lock();
        }
        Ok(temporary)
    }
}

/// A file that is an entry by its name. The order is that of their last use.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    used: SystemTime,
    file: String,
    bytes: u64,
}

impl StateStore for DiskStateStore {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<u64> {
        let file = self.file(name)?;
        let packed = entry::pack(&file, bytes)?;
        let size = packed.len() as u64;
        if size > self.capacity {
            let what = format!("{size} bytes, where all states may have {}", self.capacity);
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let mut temporary = self.reserve(&file, size)?;
        temporary.write_all(&packed)?;
        // The name must not be there before the bytes are, even if the machine stops.
        temporary.as_file().sync_data()?;
        let lock = self.lock();
        let kept = temporary
            .persist(self.folder.join(&file))
            .map_err(|e| e.error);
        drop(lock);
        kept.map(|_| size)
    }

    fn get(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = self.file(name)?;
        let path = self.folder.join(&file);
        let Some(bytes) = read(&path, most)? else {
            return Ok(None);
        };
        match unpack(&file, &bytes, most) {
            Ok(content) => Ok(Some(content)),
            Err(error) => {
                tracing::warn!("{} is dropped: {error}", path.display());
                removed(&path);
                Ok(None)
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.folder.join(self.file(name)?)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list(&self) -> io::Result<Vec<Stored>> {
        // That it can be read at all.
        fs::read_dir(&self.folder)?;
        let mine = |entry: Entry| {
            let name = entry
                .file
                .strip_prefix(&self.prefix)?
                .strip_suffix(EXTENSION)?;
            // What else has such a name was put there by somebody else.
            self.file(name).ok()?;
            Some(Stored {
                name: name.to_owned(),
                bytes: entry.bytes,
            })
        };
        Ok(self.all().into_iter().filter_map(mine).collect())
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }
}

/// Removes a file, or says in the log why not.
fn removed(path: &Path) -> bool {
    match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!("{} cannot be removed: {error}", path.display());
            false
        }
    }
}

/// A file's bytes; none if it is not there or cannot be an entry of so many bytes.
fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    // Opening a pipe would wait for somebody to write.
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // What cannot be compressed grows by less than this.
    let most = most.saturating_add(most / 128).saturating_add(1024);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(metadata.len().min(most)).unwrap_or(0))?;
    (&mut file).take(most).read_to_end(&mut bytes)?;
    // Not everywhere does a file that is open to be read let its time be set.
    let _ = file.set_modified(SystemTime::now());
    Ok(Some(bytes))
}
