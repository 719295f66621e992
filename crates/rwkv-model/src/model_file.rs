//! A model as one thing: checkpoint, dimensions, tokenizer.

use crate::{
    Error, Result, Tokenizer,
    files::{Checkpoint, TensorType},
    names::{self, Naming},
};
use rwkv_sched::{Model, ModelConfig, Weights};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A checkpoint whose version and dimensions are known.
#[derive(Clone)]
pub struct ModelFile {
    checkpoint: Checkpoint,
    naming: Naming,
    config: ModelConfig,
    options: OpenOptions,
    path: Option<PathBuf>,
}

/// The metadata in which a file that we quantized keeps what each matrix lost: JSON, errors by name.
pub(crate) const ERRORS_KEY: &str = "rwkv.packed.errors";

/// What a caller knows of a checkpoint that its file does not say, or says wrongly.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpenOptions {
    /// What the group norm after the recurrence adds to the variance, instead of what the file says or is usual.
    pub group_norm_epsilon: Option<f32>,
    /// How square low-rank pairs lie (rank = width, which no shape tells): `true` as `[out, in]`, as some converters of
    /// version 7's `.st` files leave them; `false` as in the original checkpoints. Pairs that are not square tell
    /// themselves.
    pub turned_pairs: Option<bool>,
}

/// A tensor of a file, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSummary {
    /// Its name in the file.
    pub name: String,
    /// How its elements are packed.
    pub kind: TensorType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
    /// How many elements of a sparse matrix the file has; the others are zero.
    pub entries: Option<u64>,
}

impl ModelFile {
    /// Opens a checkpoint: maps the file, and reads version and dimensions from its tensors.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read, [`Error::NotAModel`] and [`Error::Unsupported`] for one that
    /// holds something else.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OpenOptions::default())
    }

    /// As [`open`](Self::open), with what the caller knows better than the file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, options: OpenOptions) -> Result<Self> {
        Self::from_checkpoint_with(Checkpoint::open(path)?, Some(path), options)
    }

    /// A model from an opened checkpoint; `path` is where to look for a vocabulary beside it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_checkpoint(checkpoint: Checkpoint, path: Option<&Path>) -> Result<Self> {
        Self::from_checkpoint_with(checkpoint, path, OpenOptions::default())
    }

    /// As [`from_checkpoint`](Self::from_checkpoint), with what the caller knows better than the file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_checkpoint_with(
        checkpoint: Checkpoint,
        path: Option<&Path>,
        options: OpenOptions,
    ) -> Result<Self> {
        let (naming, mut config) = names::detect(&checkpoint)?;
        if let Some(epsilon) = options.group_norm_epsilon {
            config.group_norm_epsilon = epsilon;
        }
        config.validate().map_err(|source| Error::Model {
            file: checkpoint.source().to_owned(),
            source,
        })?;
        Ok(Self {
            checkpoint,
            naming,
            config,
            options,
            path: path.map(Path::to_path_buf),
        })
    }

    /// The file.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.checkpoint
            .tensors()
            .map(|t| t.shape.iter().map(|n| *n as u64).product::<u64>())
            .fold(0, u64::saturating_add)
    }

    /// Every tensor of the file.
    pub fn tensors(&self) -> Vec<TensorSummary> {
        self.checkpoint
            .tensors()
            .map(|t| TensorSummary {
                name: t.name.to_owned(),
                kind: t.kind,
                shape: t.shape.to_vec(),
                bytes: t.len_bytes(),
                entries: t.csr.map(|csr| csr.entries()),
            })
            .collect()
    }

    /// What each matrix lost when this file was quantized, relative to its root mean square, where the file says.
    pub fn encoding_errors(&self) -> BTreeMap<String, f64> {
        let text = self.checkpoint.metadata().string(ERRORS_KEY);
        text.and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    /// The tensors under their logical names, most of them in the mapped file.
    ///
    /// # Errors
    /// [`Error::Model`] names a tensor that is missing or cannot be read.
    pub fn weights(&self) -> Result<Arc<dyn Weights>> {
        let turned = self.options.turned_pairs;
        let weights = names::bind(&self.checkpoint, self.naming, &self.config, turned)
            .map_err(|source| self.in_file(source))?;
        Ok(Arc::new(weights))
    }

    /// The model, with its tensors in the mapped file.
    ///
    /// # Errors
    /// [`Error::Model`] names a tensor that is missing or does not fit.
    pub fn model(&self) -> Result<Model> {
        Model::new(self.config.clone(), self.weights()?).map_err(|source| self.in_file(source))
    }

    fn in_file(&self, source: rwkv_sched::Error) -> Error {
        let file = self.checkpoint.source().to_owned();
        Error::Model { file, source }
    }

    /// The tokenizer: `choice` (`world`, `bytes`, a vocabulary file or a `tokenizer.json`), or the one inside the file,
    /// or a `tokenizer.json` or `*vocab*.txt` beside it, or the one that a vocabulary of this size goes with.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a vocabulary that cannot be read, [`Error::TokenizerTooLarge`] for one of another
    /// model, [`Error::NoTokenizer`] when nothing fits.
    pub fn tokenizer(&self, choice: Option<&str>) -> Result<Tokenizer> {
        let tokenizer = match choice {
            Some("world") => Tokenizer::world()?,
            Some("bytes") => Tokenizer::bytes(),
            Some(file) => Tokenizer::from_file(Path::new(file))?,
            None => self.own_tokenizer()?,
        };
        // The World vocabulary numbers its tokens from 1, and models have rows from 65,529 on.
        if tokenizer.vocab_size() > self.config.vocab + 1 {
            return Err(Error::TokenizerTooLarge {
                tokenizer: tokenizer.name().to_owned(),
                tokens: tokenizer.vocab_size(),
                file: self.checkpoint.source().to_owned(),
                vocab: self.config.vocab,
            });
        }
        Ok(tokenizer)
    }

    fn own_tokenizer(&self) -> Result<Tokenizer> {
        let metadata = self.checkpoint.metadata();
        if metadata.string("tokenizer.ggml.model") == Some("rwkv")
            && let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")
        {
            let types = metadata
                .integers("tokenizer.ggml.token_type")
                .unwrap_or_default();
            return Tokenizer::from_gguf_tokens(tokens, &types).map_err(|source| {
                Error::Vocabulary {
                    file: self.checkpoint.source().to_owned(),
                    source,
                }
            });
        }
        if let Some(file) = self.vocabulary_beside() {
            return Ok(Tokenizer::from_file(&file)?);
        }
        match self.config.vocab {
            65_529..=65_536 => Ok(Tokenizer::world()?),
            256 => Ok(Tokenizer::bytes()),
            vocab => Err(Error::NoTokenizer {
                file: self.checkpoint.source().to_owned(),
                vocab,
            }),
        }
    }

    /// `tokenizer.json` beside the file, or the first `*vocab*.txt` by name. A model that is a folder has them inside.
    fn vocabulary_beside(&self) -> Option<PathBuf> {
        let path = self.path.as_deref()?;
        let folder = if path.is_dir() { path } else { path.parent()? };
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let json = folder.join("tokenizer.json");
        if json.is_file() {
            return Some(json);
        }
        let mut found: Vec<_> = std::fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .to_lowercase();
                let text = path
                    .extension()
                    .is_some_and(|e| e.eq_ignore_ascii_case("txt"));
                text && name.contains("vocab") && path.is_file()
            })
            .collect();
        found.sort();
        found.into_iter().next()
    }
}
