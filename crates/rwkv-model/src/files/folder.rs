//! Which files a path stands for: one file, one with a `config.json` beside it, or the shards of a folder.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::path::{Path, PathBuf};

use super::bytes::Bytes;
use super::error::quoted;
use super::metadata::{Entry, Metadata};
use super::{Checkpoint, Container, Contents, FileError, hugging_face, recognise};
use super::{gguf, pytorch, safetensors};

const CONFIG: &str = "config.json";
const INDEX_END: &str = ".index.json";
/// What a folder may hold, in the order in which Hugging Face's own loader looks.
const KNOWN: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// The endings of files that are taken if there is just one of them.
const ENDINGS: [&str; 4] = ["pth", "safetensors", "st", "gguf"];
/// How many names a message repeats.
const NAMED: usize = 4;

/// One file of a checkpoint, its header read.
pub(super) struct Part {
    container: Container,
    /// The file.
    bytes: Bytes,
    contents: Contents,
}

impl Part {
    fn map(path: &Path) -> Result<Self, FileError> {
        let file = path.display().to_string();
        let bytes = Bytes::map(path, &file)?;
        Self::read(&file, bytes)
    }

    pub(super) fn read(file: &str, bytes: Bytes) -> Result<Self, FileError> {
        if bytes.is_empty() {
            return Err(FileError::Empty {
                file: file.to_owned(),
            });
        }
        let container =
            recognise::recognise(&bytes).map_err(|(found, advice)| FileError::Unrecognised {
                file: file.to_owned(),
                found,
                advice,
            })?;
        let contents = match container {
            Container::Gguf => gguf::read(&bytes),
            Container::Pytorch => pytorch::read(&bytes),
            // No file is a folder.
            Container::Safetensors | Container::HuggingFace => safetensors::read(&bytes),
        };
        let contents = contents.map_err(|fault| fault.of(file, bytes.len() as u64))?;
        Ok(Self {
            container,
            bytes,
            contents,
        })
    }

    /// The checkpoint that this file is by itself.
    pub(super) fn alone(self, source: String) -> Checkpoint {
        let Contents {
            tensors,
            metadata,
            copies,
        } = self.contents;
        let len = self.bytes.len() as u64;
        let metadata = Metadata::new(self.bytes.clone(), metadata);
        let regions = vec![self.bytes, Bytes::from(copies)];
        Checkpoint::new(source, self.container, regions, len, tensors, metadata)
    }

    /// The same with a `config.json`.
    fn configured(mut self, source: String, config: &Path) -> Result<Checkpoint, FileError> {
        self.contents.metadata.extend(read_config(config)?);
        self.container = Container::HuggingFace;
        Ok(self.alone(source))
    }
}

/// Opens whatever is at `path`.
pub(super) fn open(path: &Path) -> Result<Checkpoint, FileError> {
    let source = path.display().to_string();
    if path.is_dir() {
        return open_folder(path, source);
    }
    // The folder of a bare name is empty, and joins well; to list it, it needs a name.
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match path.file_name().and_then(|name| name.to_str()) {
        Some(CONFIG) if path.is_file() => open_folder(folder, folder.display().to_string()),
        Some(name) if name.ends_with(INDEX_END) => open_shards(folder, path, source),
        _ => {
            let part = Part::map(path)?;
            let config = folder.join(CONFIG);
            let needs_config = part.container != Container::Gguf
                && part
                    .contents
                    .tensors
                    .keys()
                    .any(|name| hugging_face::names_it(name));
            if needs_config && config.is_file() {
                part.configured(source, &config)
            } else {
                Ok(part.alone(source))
            }
        }
    }
}

fn open_folder(folder: &Path, source: String) -> Result<Checkpoint, FileError> {
    let config = folder.join(CONFIG);
    let known = KNOWN.iter().map(|name| folder.join(name));
    if let Some(path) = known.into_iter().find(|path| path.is_file()) {
        return if path.to_string_lossy().ends_with(INDEX_END) {
            open_shards(folder, &path, source)
        } else if config.is_file() {
            Part::map(&path)?.configured(source, &config)
        } else {
            open(&path)
        };
    }
    let found = checkpoints_in(folder, &source)?;
    match found.as_slice() {
        [] => Err(FileError::IsDirectory { file: source }),
        [path] => open(path),
        [..] => {
            let names = found.iter().take(NAMED);
            let name =
                |path: &PathBuf| quoted(&path.file_name().unwrap_or_default().to_string_lossy());
            let mut names: Vec<_> = names.map(name).collect();
            if found.len() > NAMED {
                names.push("…".to_owned());
            }
            Err(FileError::Ambiguous {
                file: source,
                names: names.join(", "),
            })
        }
    }
}

/// The files of a folder that end as checkpoints do, sorted.
fn checkpoints_in(folder: &Path, source: &str) -> Result<Vec<PathBuf>, FileError> {
    let error = |reason| FileError::from_io(source, reason);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let ending = path.extension().unwrap_or_default();
        if ENDINGS
            .iter()
            .any(|known| ending.eq_ignore_ascii_case(known))
            && path.is_file()
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Opens all shards that the index names, as one checkpoint.
fn open_shards(folder: &Path, index: &Path, source: String) -> Result<Checkpoint, FileError> {
    let file = index.display().to_string();
    let map = hugging_face::parse_index(&file, &Bytes::map(index, &file)?)?;
    let damaged = |what: String| FileError::Damaged {
        file: file.clone(),
        what,
    };
    let mut regions = Vec::new();
    let mut len = 0;
    let mut tensors = BTreeMap::new();
    let mut metadata = BTreeMap::new();
    // Which regions belong to each shard.
    let mut spans = BTreeMap::new();
    let shards: BTreeSet<_> = map.values().map(String::as_str).collect();
    for shard in shards {
        let part = Part::map(&folder.join(shard))?;
        if part.container == Container::Gguf {
            return Err(damaged(format!(
                "the shard {} is a GGUF file, which needs no index",
                quoted(shard)
            )));
        }
        let first = regions.len();
        spans.insert(shard, first..first + 2);
        for (name, mut tensor) in part.contents.tensors {
            tensor.region += first;
            match tensors.entry(name) {
                btree_map::Entry::Occupied(twice) => {
                    return Err(damaged(format!(
                        "tensor {} is in more than one shard, also in {}",
                        quoted(twice.key()),
                        quoted(shard)
                    )));
                }
                btree_map::Entry::Vacant(free) => free.insert(tensor),
            };
        }
        // What the shards say of themselves is the same in each, as a rule; else the first one is believed.
        for (key, entry) in part.contents.metadata {
            metadata.entry(key).or_insert(entry);
        }
        len += part.bytes.len() as u64;
        regions.push(part.bytes);
        regions.push(Bytes::from(part.contents.copies));
    }
    for (name, shard) in &map {
        // PyTorch's reader takes a prefix of trainers off the names; the index may have it still.
        let tensor = tensors
            .get(name)
            .or_else(|| tensors.get(pytorch::plain_name(name)))
            // The parts of a sparse matrix have become the matrix.
            .or_else(|| tensors.get(safetensors::matrix_of_part(name)?));
        let there = tensor.zip(spans.get(shard.as_str()));
        if there.is_none_or(|(tensor, span)| !span.contains(&tensor.region)) {
            return Err(damaged(format!(
                "the index has tensor {} in {}, where it is not; files of two downloads may be mixed",
                quoted(name),
                quoted(shard)
            )));
        }
    }
    let config = folder.join(CONFIG);
    if config.is_file() {
        metadata.extend(read_config(&config)?);
    }
    // No entry refers to these bytes: only GGUF's do.
    let metadata = Metadata::new(Bytes::from(Vec::new()), metadata);
    Ok(Checkpoint::new(
        source,
        Container::HuggingFace,
        regions,
        len,
        tensors,
        metadata,
    ))
}

fn read_config(path: &Path) -> Result<impl Iterator<Item = (String, Entry)>, FileError> {
    let file = path.display().to_string();
    let config = hugging_face::parse_config(&file, &Bytes::map(path, &file)?)?;
    Ok(config
        .into_iter()
        .map(|(key, text)| (key, Entry::Text(text))))
}
