//! What the driver made of shaders, kept on disk.
//!
//! The file holds what the driver gave and the list of the pipelines that are in it, so that it is written only when
//! there are new ones. It is of this layout, little-endian, and is read only where every byte is as it was written:
//!
//! ```text
//! "RWKVPIPE"   u32 version   u32 bytes of the key   u32 pipelines   u64 bytes of data
//! key   [u64; pipelines]   data   u32 CRC-32 of all before it
//! ```

use crate::{
    Gpu, Result, Shader,
    cache_folder::{CacheFolder, MOST_BYTES, read_cache_file, write_cache_file},
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, fmt::Write, path::PathBuf};

const MAGIC: &[u8; 8] = b"RWKVPIPE";
const VERSION: u32 = 1;

/// Bytes before the key.
const HEADER: usize = 28;

/// The driver's cache of one device, and the file that it comes from and goes to.
pub(crate) struct PipelineCache {
    raw: wgpu::PipelineCache,
    path: PathBuf,
    key: String,
    bytes_read: u64,
    contents: Mutex<Contents>,
}

/// Pipelines by [`PipelineId`].
#[derive(Default)]
struct Contents {
    /// In the file.
    kept: BTreeSet<PipelineId>,
    /// Compiled, and not in the file.
    new: BTreeSet<PipelineId>,
    /// Writing has failed, and somebody was told.
    failed: bool,
}

/// Checksums of what a pipeline was compiled from.
pub(crate) type PipelineId = u64;

/// The pipeline of `shader`, made with these constants and with checks or without.
pub(crate) fn pipeline_id(
    shader: &Shader,
    constants: &[(&'static str, f64)],
    checks: bool,
) -> PipelineId {
    let mut text = format!("{:?} {checks}", shader.name);
    for (name, value) in constants {
        // Writing to a string cannot fail.
        let _ = write!(text, " {name}={:x}", value.to_bits());
    }
    let source = crc32fast::hash(shader.source.as_bytes());
    u64::from(crc32fast::hash(text.as_bytes())) << 32 | u64::from(source)
}

impl PipelineCache {
    /// The cache of `device`, with what its file holds if that is intact and of this adapter, driver and version of ours.
    /// `create` runs its argument and says whether the device took it.
    pub(crate) fn open(
        folder: &CacheFolder,
        create: impl Fn(&dyn Fn(&wgpu::Device) -> wgpu::PipelineCache) -> Result<wgpu::PipelineCache>,
    ) -> Option<Self> {
        let version = concat!("rwkv-gpu ", env!("CARGO_PKG_VERSION"));
        let key = folder.key(version);
        let path = folder.path("pipelines", version).with_extension("bin");
        let file = read_cache_file(&path);
        let read = file.as_deref().and_then(|file| {
            decode(file, &key)
                .inspect_err(|problem| {
                    tracing::warn!(path = %path.display(), "compiled pipelines are left out: {problem}");
                })
                .ok()
        });
        let with = |data: Option<&[u8]>| {
            create(&|device| {
                // SAFETY: by its checksum `data` is what an earlier run of this program got from this driver for this
                // adapter: the key in the file names both, and wgpu compares the driver's version and device once more.
                unsafe {
                    device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                        label: Some("rwkv"),
                        data,
                        fallback: true,
                    })
                }
            })
            .inspect_err(|e| tracing::warn!(path = %path.display(), "compiled pipelines: {e}"))
        };
        let opened = read.and_then(|(kept, data)| {
            let raw = with(Some(data)).ok()?;
            // A driver that no longer knows its own data begins with an empty cache and says nothing.
            let taken = raw.get_data().map_or(0, |data| data.len());
            if taken < data.len() / 2 {
                tracing::debug!(taken, bytes = data.len(), "the driver left its data out");
                return Some((raw, BTreeSet::new(), 0));
            }
            Some((raw, kept, data.len()))
        });
        let (raw, kept, bytes) = match opened {
            Some(opened) => opened,
            None => (with(None).ok()?, BTreeSet::new(), 0),
        };
        tracing::debug!(path = %path.display(), bytes, pipelines = kept.len(), "compiled pipelines");
        Some(Self {
            raw,
            path,
            key,
            bytes_read: bytes as u64,
            contents: Mutex::new(Contents {
                kept,
                ..Contents::default()
            }),
        })
    }

    pub(crate) fn raw(&self) -> &wgpu::PipelineCache {
        &self.raw
    }

    /// Bytes of the driver's that the file held when it was opened.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// A pipeline has been compiled; says whether the file had it.
    pub(crate) fn compiled(&self, id: PipelineId) -> bool {
        let mut contents = self.contents.lock();
        let known = contents.kept.contains(&id);
        if !known {
            contents.new.insert(id);
        }
        known
    }

    /// Writes the file if there is something new.
    pub(crate) fn save(&self) -> Result<()> {
        let mut contents = self.contents.lock();
        if contents.new.is_empty() {
            return Ok(());
        }
        let Some(data) = self.raw.get_data() else {
            return Ok(());
        };
        let all = &contents.kept | &contents.new;
        let file = encode(&self.key, &all, &data);
        if file.len() as u64 > MOST_BYTES {
            // It would not be read: the next run begins a new one.
            tracing::debug!(bytes = file.len(), "too many compiled pipelines to keep");
            let _ = std::fs::remove_file(&self.path);
            return Ok(());
        }
        let written = write_cache_file(&self.path, &file);
        contents.failed |= written.is_err();
        written?;
        tracing::debug!(path = %self.path.display(), bytes = data.len(), pipelines = all.len(), "compiled pipelines are kept");
        contents.kept = all;
        contents.new.clear();
        Ok(())
    }

    /// As [`save`](Self::save), where nobody can be told but by the log; said once.
    pub(crate) fn save_at_the_end(&self) {
        let told = self.contents.lock().failed;
        match self.save() {
            Err(error) if told => tracing::debug!("compiled pipelines are not kept: {error}"),
            Err(error) => tracing::warn!("compiled pipelines are not kept: {error}"),
            Ok(()) => {}
        }
    }
}

impl Gpu {
    /// Keeps the pipelines that were compiled so far in [`OpenOptions::cache_dir`](crate::OpenOptions::cache_dir), if the
    /// adapter's driver can and if there are any that are not there. It happens by itself when the last clone of this
    /// goes; programs that may be ended in other ways call it when they have compiled what they need.
    ///
    /// Of two programs that save at once the later one's pipelines are kept.
    ///
    /// # Errors
    /// [`Error::CacheFile`](crate::Error::CacheFile) when the file cannot be written; it is as before then.
    pub fn save_pipelines(&self) -> Result<()> {
        self.pipeline_cache().map_or(Ok(()), PipelineCache::save)
    }
}

/// The bytes of a file.
fn encode(key: &str, pipelines: &BTreeSet<PipelineId>, data: &[u8]) -> Vec<u8> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut file = Vec::with_capacity(HEADER + key.len() + pipelines.len() * 8 + data.len() + 4);
    file.extend(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend(count(key.len()));
    file.extend(count(pipelines.len()));
    file.extend((data.len() as u64).to_le_bytes());
    file.extend(key.as_bytes());
    file.extend(pipelines.iter().flat_map(|id| id.to_le_bytes()));
    file.extend(data);
    file.extend(crc32fast::hash(&file).to_le_bytes());
    file
}

/// The pipelines and the data of a file, or why they are of no use here.
fn decode<'a>(file: &'a [u8], key: &str) -> Result<(BTreeSet<PipelineId>, &'a [u8]), &'static str> {
    const DAMAGED: &str = "the file is damaged";
    const FOREIGN: &str = "the file is of another adapter, driver or version";
    let (body, checksum) = file.split_last_chunk::<4>().ok_or(DAMAGED)?;
    let rest = body
        .strip_prefix(MAGIC)
        .ok_or("the file is of another kind")?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(DAMAGED);
    }
    let (version, rest) = rest.split_first_chunk().ok_or(DAMAGED)?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(FOREIGN);
    }
    let (key_bytes, rest) = rest.split_first_chunk().ok_or(DAMAGED)?;
    let (pipelines, rest) = rest.split_first_chunk().ok_or(DAMAGED)?;
    let (data_bytes, rest) = rest.split_first_chunk().ok_or(DAMAGED)?;
    let size = |n: &[u8; 4]| usize::try_from(u32::from_le_bytes(*n)).map_err(|_| DAMAGED);
    let (found, rest) = rest.split_at_checked(size(key_bytes)?).ok_or(DAMAGED)?;
    if found != key.as_bytes() {
        return Err(FOREIGN);
    }
    let list = size(pipelines)?.checked_mul(8).ok_or(DAMAGED)?;
    let (list, data) = rest.split_at_checked(list).ok_or(DAMAGED)?;
    if data.len() as u64 != u64::from_le_bytes(*data_bytes) {
        return Err(DAMAGED);
    }
    let (ids, _) = list.as_chunks();
    Ok((ids.iter().map(|id| u64::from_le_bytes(*id)).collect(), data))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What was written is read; under another key, with any byte changed, cut or lengthened anywhere, nothing is.
        #[test]
        fn intact_or_nothing(
            key in ".{0,40}",
            pipelines in prop::collection::btree_set(any::<u64>(), 0..20),
            data in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            change in 1u8..,
            more in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            let file = encode(&key, &pipelines, &data);
            prop_assert_eq!(decode(&file, &key), Ok((pipelines, &data[..])));
            let other = format!("{key}!");
            prop_assert!(decode(&file, &other).is_err());
            let at = at.index(file.len());
            prop_assert!(decode(&file[..at], &key).is_err());
            let longer = [&file[..], &more].concat();
            // The rest of a checksum may be a checksum, once in 2³² times.
            prop_assert!(decode(&longer, &key).is_err());
            let mut damaged = file;
            damaged[at] ^= change;
            prop_assert!(decode(&damaged, &key).is_err());
        }

        /// Whatever the header says of a file whose checksum fits, nothing is read beyond its end.
        #[test]
        fn headers_that_lie(
            header in prop::collection::vec(any::<u8>(), 20),
            rest in prop::collection::vec(any::<u8>(), 0..100),
            small in any::<bool>(),
        ) {
            let mut file = [MAGIC, &VERSION.to_le_bytes()[..], &header[4..], &rest].concat();
            if small {
                // Sizes that may fit.
                for at in [13, 14, 15, 17, 18, 19, 21, 22, 23, 24, 25, 26, 27] {
                    file[at] = 0;
                }
            }
            let checksum = crc32fast::hash(&file);
            file.extend(checksum.to_le_bytes());
            if let Ok((pipelines, data)) = decode(&file, "") {
                prop_assert!(pipelines.len() * 8 + data.len() <= rest.len());
            }
        }
    }

    #[test]
    fn pipelines_differ() {
        const fn shader(name: &'static str, source: &'static str) -> Shader {
            Shader {
                name,
                source,
                bindings: &[],
                workgroup_size: [1; 3],
                workgroup_bytes: 0,
                overrides: &[],
                requires: &[],
            }
        }
        let (a, b) = (shader("a", "fn main() {}"), shader("b", "fn main() {}"));
        let edited = shader("a", "fn main() { }");
        let ids = [
            pipeline_id(&a, &[], false),
            pipeline_id(&a, &[], true),
            pipeline_id(&b, &[], false),
            pipeline_id(&edited, &[], false),
            pipeline_id(&a, &[("X", 1.0)], false),
            pipeline_id(&a, &[("X", 2.0)], false),
            pipeline_id(&a, &[("X", 1.0), ("Y", 1.0)], false),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
}
