//! Writing models: quantized, converted, or made up.
//!
//! A file is planned first (names, shapes, formats), then its tensors are streamed: a slab of rows at a time is encoded
//! on all threads and written, so that memory stays flat whatever the model's size. It appears under its name when it
//! is complete, and not at all otherwise.
//!
//! The container follows from the output's name: `.gguf`, or `.safetensors` or `.st` with the names of the original
//! checkpoints. What the files hold is described in `docs/formats.md`.

mod error;
mod llama;
mod plan;
mod stream;
mod synthetic;
mod vocabulary;

pub use error::ExportError;
pub use synthetic::{SyntheticSpec, SyntheticWeights};

use crate::{
    Error, ModelFile, OpenOptions, Result, Tokenizer,
    files::{Container, Metadata},
    names, output_file,
};
use rwkv_sched::{
    ModelConfig, Packing, PruneRatio, PrunedWeights, Quantization, Weight, WeightType, Weights,
};
use std::{ops::ControlFlow, path::Path};

/// How far writing is, in bytes of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Told from time to time; `Break` stops, and leaves nothing.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// A file that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its length.
    pub bytes: u64,
    /// Its tensors, in their order.
    pub tensors: Vec<WrittenTensor>,
}

/// A tensor of a file that was written.
#[derive(Clone, Debug)]
pub struct WrittenTensor {
    /// Its name.
    pub name: String,
    /// Its format.
    pub format: rwkv_kernels::Format,
    /// How many elements it keeps, where it is a matrix of compressed sparse rows; these are F16.
    pub entries: Option<u64>,
    /// Bytes in the file.
    pub bytes: u64,
    /// What packing it lost, relative to its root mean square, where a choice was measured.
    pub error: Option<f64>,
}

/// A model to be written.
struct Export<'a> {
    config: &'a ModelConfig,
    weights: &'a dyn Weights,
    quantization: Option<&'a Quantization>,
    /// Whether matrices were pruned, so that zeros are looked for in them.
    prunes: bool,
    /// For people.
    name: String,
    /// Of the file that this is made of, if that is GGUF.
    source: Option<&'a Metadata>,
    /// Written if there is one; else the source's is copied.
    tokenizer: Option<Tokenizer>,
}

/// Writes the model at `input` to `output` with its matrices as `quantization` says: a `.gguf` file for ggml's types, a
/// `.safetensors` or `.st` for `int8`, `nf4` and `sf4`, either for `f16`. Matrices outside of its layers keep their
/// formats, as [`convert`] keeps them. Quantizing a file that is quantized already adds the errors of both.
///
/// `tokenizer` is as for [`ModelFile::tokenizer`], and only for GGUF.
///
/// # Errors
/// Those of opening the model, and [`Error::Export`].
pub fn quantize(
    input: &Path,
    output: &Path,
    quantization: &Quantization,
    tokenizer: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Written> {
    let options = OpenOptions::default();
    quantize_with(
        input,
        options,
        output,
        quantization,
        None,
        tokenizer,
        progress,
    )
}

/// As [`quantize`], with what the caller knows better than the file, and perhaps pruned first.
///
/// `prune` is the share of elements that become zero in each matrix that the quantization changes, the smallest by
/// magnitude, but for the embedding and the head. In a safetensors file a matrix of which less than [`rwkv_sched::STORED_BELOW`] is
/// left is written as compressed sparse rows of F16, where that takes fewer bytes than its type would; other matrices,
/// and all of a GGUF file, have their type, with zeros.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_with(
    input: &Path,
    options: OpenOptions,
    output: &Path,
    quantization: &Quantization,
    prune: Option<PruneRatio>,
    tokenizer: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Written> {
    let how = Some((quantization, prune));
    rewrite(input, options, output, how, tokenizer, progress)
}

/// Writes the model at `input` to `output`, each tensor in the format that it has where `output`'s container can hold
/// that, else in F16.
///
/// `tokenizer` is as for [`ModelFile::tokenizer`], and only for GGUF.
///
/// # Errors
/// Those of opening the model, and [`Error::Export`].
pub fn convert(
    input: &Path,
    output: &Path,
    tokenizer: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Written> {
    convert_with(input, OpenOptions::default(), output, tokenizer, progress)
}

/// As [`convert`], with what the caller knows better than the file.
///
/// # Errors
/// As [`convert`].
pub fn convert_with(
    input: &Path,
    options: OpenOptions,
    output: &Path,
    tokenizer: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Written> {
    rewrite(input, options, output, None, tokenizer, progress)
}

fn rewrite(
    input: &Path,
    options: OpenOptions,
    output: &Path,
    how: Option<(&Quantization, Option<PruneRatio>)>,
    tokenizer: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Written> {
    let quantization = how.map(|(quantization, _)| quantization);
    let container = container_of(output)?;
    if let Some(quantization) = quantization {
        check_container(quantization, container)?;
    }
    if output_file::same_file(input, output) {
        return Err(ExportError::SameFile {
            file: output.display().to_string(),
        }
        .into());
    }
    let gguf = container == Container::Gguf;
    if tokenizer.is_some() && !gguf {
        return Err(ExportError::NoVocabulary.into());
    }
    let file = ModelFile::open_with(input, options)?;
    check_architecture(file.config(), container)?;
    let model = file.model()?;
    let checkpoint = file.checkpoint();
    let source = (checkpoint.container() == Container::Gguf).then(|| checkpoint.metadata());
    let has_vocabulary =
        source.is_some_and(|metadata| metadata.get("tokenizer.ggml.model").is_some());
    let tokenizer = match (gguf, tokenizer) {
        (true, Some(_)) => Some(file.tokenizer(tokenizer)?),
        (true, None) if !has_vocabulary => Some(file.tokenizer(None)?),
        _ => None,
    };
    if let Some(tokenizer) = &tokenizer
        && !tokenizer.is_longest_match()
    {
        let tokenizer = tokenizer.name().to_owned();
        return Err(ExportError::OtherTokenizer { tokenizer }.into());
    }
    let pruned;
    let weights = match how {
        Some((quantization, Some(ratio))) => {
            let mut tensors = model.tensors();
            tensors.retain(|weight| quantization.packing(*weight).is_some());
            pruned = PrunedWeights::new(file.weights()?, &tensors, ratio);
            &pruned
        }
        _ => model.weights(),
    };
    let export = Export {
        config: file.config(),
        weights,
        quantization,
        prunes: how.is_some_and(|(_, prune)| prune.is_some()),
        name: stem(input),
        source,
        tokenizer,
    };
    export
        .write(output, container, progress)
        .map_err(|error| match error {
            ExportError::Tensor(source) => Error::Model {
                file: checkpoint.source().to_owned(),
                source,
            },
            other => other.into(),
        })
}

/// Writes a model of made-up weights: what it computes means nothing, at the speed of a real one. A `.gguf` file gets a
/// vocabulary if there is one of the model's size.
///
/// # Errors
/// [`Error::Export`].
pub fn synthesize(
    spec: &SyntheticSpec,
    output: &Path,
    progress: OnProgress<'_>,
) -> Result<Written> {
    let container = container_of(output)?;
    let weights = SyntheticWeights::new(spec);
    let config = weights.config();
    check_architecture(config, container)?;
    let tokenizer = match (container, config.vocab) {
        (Container::Gguf, 65_529..=65_536) => Some(Tokenizer::world()?),
        (Container::Gguf, 256) => Some(Tokenizer::bytes()),
        _ => None,
    };
    let export = Export {
        config,
        weights: &weights,
        quantization: None,
        prunes: false,
        name: format!("synthetic {spec}"),
        source: None,
        tokenizer,
    };
    Ok(export.write(output, container, progress)?)
}

/// The container that a name asks for.
fn container_of(output: &Path) -> Result<Container, ExportError> {
    let extension = output.extension().unwrap_or_default().to_string_lossy();
    match extension.to_lowercase().as_str() {
        "gguf" => Ok(Container::Gguf),
        "safetensors" | "st" => Ok(Container::Safetensors),
        _ => Err(ExportError::Extension {
            file: output.display().to_string(),
        }),
    }
}

fn check_container(quantization: &Quantization, container: Container) -> Result<(), ExportError> {
    let weight_type = quantization.weight_type();
    let (name, advice) = match (container, is_ggml(weight_type), weight_type.name()) {
        (_, _, "f16") | (Container::Gguf, true, _) | (Container::Safetensors, false, _) => {
            return Ok(());
        }
        (Container::Gguf, _, _) => (
            "GGUF",
            "write a .safetensors file, or choose a type such as q8_0",
        ),
        _ => (
            "safetensors",
            "write a .gguf file, or choose int8, nf4, sf4 or f16",
        ),
    };
    Err(ExportError::WrongContainer {
        weight_type: weight_type.to_string(),
        container: name,
        advice,
    })
}

/// Whether all formats of a weight type are ggml's.
fn is_ggml(weight_type: WeightType) -> bool {
    let body = weight_type.packing(Weight::Embedding);
    matches!(body, Some(Packing::Format(_)))
}

fn check_architecture(config: &ModelConfig, container: Container) -> Result<(), ExportError> {
    let version = config.version;
    if container == Container::Gguf && names::gguf::architecture(version).is_none() {
        return Err(ExportError::NoArchitecture { version });
    }
    Ok(())
}

/// A file's name without its end.
fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
