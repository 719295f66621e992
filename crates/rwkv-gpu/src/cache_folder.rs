//! The folder that outlives a program: what was found out about a GPU, a file for each adapter and driver.
//!
//! `FOLDER/KIND/ADAPTER-DRIVER-CHECKSUM`. The names are for people; the checksum is of everything that tells one adapter
//! with its driver from another, and of the version of what the file holds. Files appear under their names whole, so that
//! programs that run side by side never see half of one.

use crate::{Error, Gpu, Result};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Larger files are not ours: a model's pipelines take some megabytes.
pub(crate) const MOST_BYTES: u64 = 256 << 20;

/// Characters that the names in a file's name may take.
const NAME: usize = 100;

/// Where one adapter's files lie.
#[derive(Debug)]
pub(crate) struct CacheFolder {
    folder: PathBuf,
    /// What a person calls the adapter and its driver.
    name: String,
    /// What tells it from every other.
    identity: String,
}

impl CacheFolder {
    pub(crate) fn new(folder: &Path, adapter: &wgpu::AdapterInfo) -> Self {
        let wgpu::AdapterInfo {
            name,
            vendor,
            device,
            driver,
            driver_info,
            backend,
            ..
        } = adapter;
        Self {
            folder: folder.to_path_buf(),
            name: format!("{name} {driver} {driver_info}"),
            identity: format!(
                "{name:?} {vendor:04x}:{device:04x} {driver:?} {driver_info:?} {}",
                backend.to_str()
            ),
        }
    }

    /// What a file of this version belongs to, in full.
    pub(crate) fn key(&self, version: &str) -> String {
        format!("{} {version:?}", self.identity)
    }

    /// Where it lies, without an extension.
    pub(crate) fn path(&self, kind: &str, version: &str) -> PathBuf {
        let checksum = crc32fast::hash(self.key(version).as_bytes());
        let file = format!("{}-{checksum:08x}", plain(&self.name));
        self.folder.join(plain(kind)).join(file)
    }
}

/// `text` in letters, digits and single hyphens, which every file system takes.
fn plain(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let mut plain = words.join("-").to_ascii_lowercase();
    plain.truncate(NAME);
    plain
}

impl Gpu {
    /// Where to keep what was found out about this adapter with this driver (a folder for each `kind`, such as `tuner`);
    /// another `version` of what found it out has another file. The path has no extension, and need not be there yet.
    /// None without [`OpenOptions::cache_dir`](crate::OpenOptions::cache_dir).
    pub fn cache_file(&self, kind: &str, version: &str) -> Option<PathBuf> {
        self.cache_folder().map(|cache| cache.path(kind, version))
    }
}

/// A file that [`write_cache_file`] wrote, or none: what is missing, cannot be read or is larger than 256 MiB is logged,
/// and is to be found out again.
pub fn read_cache_file(path: &Path) -> Option<Vec<u8>> {
    match read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), "nothing is cached yet");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), "a cache file is left out: {error}");
            None
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for somebody to write.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path)?
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if read as u64 > MOST_BYTES {
        return Err(io::Error::other("it is larger than 256 MiB"));
    }
    Ok(bytes)
}

/// Puts `bytes` under `path`, whose folder is made if need be: all of them or, when it fails, what was there before. Only
/// the user may read or write the file.
///
/// # Errors
/// [`Error::CacheFile`] with the operating system's words.
pub fn write_cache_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes).map_err(|source| Error::CacheFile {
        path: path.to_path_buf(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".rwkv-write")
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    // Not forced to the disk: a file that a power cut has emptied is found out, and made again.
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    fn adapter(name: &str, driver: &str) -> wgpu::AdapterInfo {
        wgpu::AdapterInfo {
            name: name.to_owned(),
            driver: driver.to_owned(),
            ..wgpu::AdapterInfo::new(wgpu::DeviceType::Other, wgpu::Backend::Vulkan)
        }
    }

    #[test]
    fn names() {
        let path = |name, driver, kind, version| {
            CacheFolder::new(Path::new("c"), &adapter(name, driver)).path(kind, version)
        };
        let one = path("NVIDIA H200", "580.82", "tuner", "1");
        let shown = one.to_str().unwrap();
        assert!(shown.starts_with("c/tuner/nvidia-h200-580-82-"), "{shown}");
        let others = [
            path("NVIDIA H200", "580.83", "tuner", "1"),
            path("NVIDIA H200", "580.82", "tuner", "2"),
            path("NVIDIA H200", "580.82", "pipelines", "1"),
            // The same letters, cut elsewhere.
            path("NVIDIA H200 580", ".82", "tuner", "1"),
            path("NVIDIA-H200", "580.82", "tuner", "1"),
        ];
        assert!(others.iter().all(|other| *other != one));
        assert_eq!(one, path("NVIDIA H200", "580.82", "tuner", "1"));
    }

    proptest! {
        /// Whatever a driver calls itself, the file lies in the folder of its kind.
        #[test]
        fn any_name(name in any::<String>(), kind in any::<String>(), version in any::<String>()) {
            let path = CacheFolder::new(Path::new("c"), &adapter(&name, "")).path(&kind, &version);
            prop_assert!(path.starts_with("c"));
            let file = path.file_name().unwrap().to_str().unwrap();
            prop_assert!(file.len() < 128 && file.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
            prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            prop_assert!(path.extension().is_none());
        }
    }

    #[test]
    fn files_are_whole_or_as_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file");
        assert_eq!(read_cache_file(&path), None);
        for bytes in [&b"one"[..], b"", b"another"] {
            write_cache_file(&path, bytes).unwrap();
            assert_eq!(read_cache_file(&path).unwrap(), bytes);
        }
        // A folder stands where a file should, and the other way round.
        for wrong in [folder.path().join("deep"), path.join("below")] {
            let error = write_cache_file(&wrong, b"x").unwrap_err().to_string();
            assert!(
                error.contains(wrong.to_str().unwrap()) && !error.contains('\n'),
                "{error}"
            );
            assert_eq!(read_cache_file(&wrong), None);
        }
        assert_eq!(read_cache_file(&path).unwrap(), b"another");
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "no temporary file is left");
    }
}
