//! Adapter files: low-rank pairs and whole tensors for [`Adapter`], and the tuned state that may be among them.
//!
//! Tensors are named after the weight that they change, as BlinkDL's checkpoints call it, with or without what training
//! frameworks put before and after (`base_model.model.`, `.default`, `.weight`):
//!
//! - `blocks.N.att.key.lora_A [r, in]` and `.lora_B [out, r]`; converted files have `.lora.0 [in, r]` and `.lora.1
//!   [out, r]`; of the embedding, `emb.lora_A [r, vocabulary]` and `emb.lora_B [channels, r]`, whose product is added
//!   transposed.
//! - `blocks.N.att.key.alpha`, or `lora_alpha` or `alpha` of the file's metadata, or `lora_alpha` of an
//!   `adapter_config.json` beside the file, in this order: the pair's scale is then `alpha / r`, else 1.
//! - A weight's own name: a whole tensor, which replaces the weight at strength 1.
//! - `blocks.N.att.time_state`: see [`ModelFile::load_state`](crate::ModelFile::load_state).

use crate::{
    Error, Result, TimeStateOrder,
    adapter_config::AdapterConfig,
    files::{Checkpoint, Container, TensorView},
    names::partial,
    state_file::{fingerprint, is_tuned_state, tuned_state},
};
use rwkv_sched::{Adapter, Factor, LowRank, Model, State, Weight, Weights};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// What an adapter file holds.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    /// The changes to the model's weights; it is called as its file is, and its fingerprint is that of the file's tensors
    /// (as [`ModelFile::fingerprint`](crate::ModelFile::fingerprint)) and of the scale.
    pub adapter: Arc<Adapter>,
    /// The tuned state, if there is one: what sequences begin with.
    pub initial_state: Option<State>,
}

/// What frameworks put before names.
const PREFIXES: [&str; 4] = ["base_model.model.", "_forward_module.", "module.", "model."];

/// What a tensor is to the weight that it is named after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// `[r, in]`.
    A,
    /// `[out, r]`.
    B,
    /// `[in, r]`, or left as `[r, in]`.
    TurnedA,
    /// `[r, vocabulary]` and `[channels, r]` of the embedding.
    EmbeddingA,
    EmbeddingB,
    Alpha,
}

const PARTS: [(&str, Part); 8] = [
    (".lora_A", Part::A),
    (".lora_B", Part::B),
    (".lora.0", Part::TurnedA),
    (".lora.1", Part::B),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".alpha", Part::Alpha),
    (".lora_alpha", Part::Alpha),
];

/// The parts of one weight's low-rank change.
#[derive(Default)]
struct Pair<'a> {
    a: Option<(Part, TensorView<'a>)>,
    b: Option<(Part, TensorView<'a>)>,
    alpha: Option<TensorView<'a>>,
}

impl AdapterFile {
    /// Opens an adapter file, or the folder that PEFT saved one in (`adapter_model.safetensors`), and checks that it
    /// fits `model`.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read; [`Error::Adapter`] for one whose tensors are not the model's, in
    /// name or in shape, and for a configuration beside it that cannot be read. Nothing is left out silently.
    pub fn open(path: &Path, model: &Model) -> Result<Self> {
        Self::open_with(path, model, TimeStateOrder::default())
    }

    /// As [`open`](Self::open), with how the matrices of a tuned state in it lie.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, model: &Model, order: TimeStateOrder) -> Result<Self> {
        let inside = path.join("adapter_model.safetensors");
        let path = if inside.is_file() { &inside } else { path };
        let checkpoint = Checkpoint::open(path)?;
        let config = path.with_file_name("adapter_config.json");
        let text = match std::fs::metadata(&config) {
            Ok(about) if about.is_file() => read_config(&config, about.len())?,
            _ => None,
        };
        let text = text.as_deref();
        Self::from_checkpoint_with(&checkpoint, text, model, order)
    }

    /// The adapter in an opened file; `config` is the text of its `adapter_config.json`, if it has one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        config: Option<&[u8]>,
        model: &Model,
    ) -> Result<Self> {
        Self::from_checkpoint_with(checkpoint, config, model, TimeStateOrder::default())
    }

    /// As [`from_checkpoint`](Self::from_checkpoint), with how the matrices of a tuned state in it lie.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_checkpoint_with(
        checkpoint: &Checkpoint,
        config: Option<&[u8]>,
        model: &Model,
        order: TimeStateOrder,
    ) -> Result<Self> {
        let file = checkpoint.source();
        let refuse = |what: String| Error::Adapter {
            file: file.to_owned(),
            what,
        };
        let fits = |error| match error {
            rwkv_sched::Error::Adapter { problem, .. } => refuse(problem),
            source => Error::Model {
                file: file.to_owned(),
                source,
            },
        };
        if checkpoint.container() == Container::Gguf {
            let what = "a GGUF file; adapters are read from .pth and safetensors files".to_owned();
            return Err(refuse(what));
        }
        let mut config = match config {
            Some(text) => AdapterConfig::parse(text)
                .map_err(|e| refuse(format!("its adapter_config.json: {}", one_line(&e))))?,
            None => AdapterConfig::default(),
        };
        let metadata = checkpoint.metadata();
        if let Some(alpha) = metadata.f64("lora_alpha").or(metadata.f64("alpha")) {
            #[allow(clippy::cast_possible_truncation, reason = "the scale is f32")]
            let alpha = alpha as f32;
            config.alpha = Some(alpha);
        }

        let mut sorted = Sorted::default();
        for tensor in checkpoint.tensors() {
            sorted.add(tensor).map_err(refuse)?;
        }
        let fingerprint = format!("{} {config:?}", fingerprint(checkpoint));
        let mut adapter = Adapter::new(file).with_fingerprint(fingerprint);
        for (stem, pair) in &sorted.pairs {
            let Some(weight) = partial::matrix_called(stem) else {
                sorted.unknown.push(format!("{stem}.…"));
                continue;
            };
            let change = pair
                .low_rank(checkpoint, weight, config, model)
                .map_err(|what| refuse(format!("the low-rank change of {stem}: {what}")))?;
            adapter.add_low_rank(weight, change);
        }
        let (weights, bound) =
            partial::bind_present(checkpoint, model, &sorted.whole).map_err(fits)?;
        let weights: Arc<dyn Weights> = Arc::new(weights);
        for (weight, name) in bound {
            adapter.add_whole(weight, &weights);
            sorted.whole.remove(&name);
        }
        let version = model.config().version;
        let left = sorted.whole.into_iter();
        let left = left.filter(|(original, _)| !partial::is_dummy(original, version));
        sorted.unknown.extend(left.map(|(_, name)| name));
        if let Some(first) = sorted.unknown.first() {
            let more = match sorted.unknown.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let first: String = first.chars().take(100).collect();
            let what = format!(
                "tensor {first:?}{more} changes nothing that this {version} model has; the adapter is another model's, \
                 or of a kind that is not supported"
            );
            return Err(refuse(what));
        }
        adapter.check(model).map_err(fits)?;
        let initial_state = tuned_state(checkpoint, &sorted.states, model.config(), order)?;
        if adapter.is_empty() && initial_state.is_none() {
            return Err(refuse("it holds no tensors".to_owned()));
        }
        Ok(Self {
            adapter: Arc::new(adapter),
            initial_state,
        })
    }
}

/// The tensors of a file by what they are for.
#[derive(Default)]
struct Sorted<'a> {
    pairs: BTreeMap<&'a str, Pair<'a>>,
    /// What the file calls a tensor, by its original name.
    whole: BTreeMap<String, String>,
    /// The same of tuned states.
    states: BTreeMap<String, String>,
    unknown: Vec<String>,
}

impl<'a> Sorted<'a> {
    fn add(&mut self, tensor: TensorView<'a>) -> Result<(), String> {
        let name = stripped(tensor.name);
        let again = || format!("two tensors for {:?}", tensor.name);
        let Some((stem, part)) = split(name) else {
            let original = name.replace(".base_layer.", ".");
            let state = is_tuned_state(&original);
            let place = if state {
                &mut self.states
            } else {
                &mut self.whole
            };
            let before = place.insert(original, tensor.name.to_owned());
            return before.map_or(Ok(()), |_| Err(again()));
        };
        let pair = self.pairs.entry(stem).or_default();
        let taken = match part {
            Part::A | Part::TurnedA | Part::EmbeddingA => pair.a.replace((part, tensor)).is_some(),
            Part::B | Part::EmbeddingB => pair.b.replace((part, tensor)).is_some(),
            Part::Alpha => pair.alpha.replace(tensor).is_some(),
        };
        if taken { Err(again()) } else { Ok(()) }
    }
}

/// A name without what frameworks put before it.
pub(crate) fn stripped(mut name: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|p| name.strip_prefix(p)) {
        name = rest;
    }
    name
}

/// The weight that a tensor of a low-rank change is named after, without `.weight`.
fn split(name: &str) -> Option<(&str, Part)> {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let name = name.strip_suffix(".default").unwrap_or(name);
    let (stem, part) = PARTS
        .iter()
        .find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)))?;
    Some((stem.strip_suffix(".weight").unwrap_or(stem), part))
}

impl Pair<'_> {
    /// The change, whose sizes fit each other; its matrices stay in `checkpoint`.
    fn low_rank(
        &self,
        checkpoint: &Checkpoint,
        weight: Weight,
        mut config: AdapterConfig,
        model: &Model,
    ) -> Result<LowRank, String> {
        let (Some((a_part, a)), Some((b_part, b))) = (&self.a, &self.b) else {
            let missing = if self.a.is_none() { "A" } else { "B" };
            return Err(format!("its matrix {missing} is missing"));
        };
        let (mut a, mut b) = (Side::of(checkpoint, a)?, Side::of(checkpoint, b)?);
        if let Some(alpha) = &self.alpha {
            let values = values(alpha)?;
            let [alpha] = values[..] else {
                return Err(format!("its alpha has {} elements", values.len()));
            };
            config.alpha = Some(alpha);
        }
        let shape = match model.weights().describe(weight) {
            Ok((_, shape)) if model.tensors().contains(&weight) => shape,
            _ => {
                let version = model.config().version;
                return Err(format!("this {version} model has no such matrix"));
            }
        };
        let (rows, cols) = (shape.rows.0, shape.cols.0);
        // Trained as a lookup of A's columns: B A is the transpose of what is added.
        let lookup = *a_part == Part::EmbeddingA
            || *b_part == Part::EmbeddingB
            || (weight == Weight::Embedding
                && rows != cols
                && *a_part == Part::A
                && [a.cols, b.rows] == [rows, cols]);
        if lookup {
            (a, b) = (b.transposed(), a.transposed());
        }
        // A converter that leaves A as it was calls it the same.
        if *a_part == Part::TurnedA && (a.rows == cols || a.cols != cols) {
            a = a.transposed();
        }
        if a.cols != cols || b.rows != rows || a.rows != b.cols || a.rows == 0 {
            return Err(format!(
                "A is {}×{} and B is {}×{}, which make no change of the model's matrix, {shape}",
                a.rows, a.cols, b.rows, b.cols
            ));
        }
        let scale = config.scale(a.rows);
        if !scale.is_finite() {
            return Err(format!("its scale is {scale}"));
        }
        Ok(LowRank {
            rank: a.rows,
            a: a.factor,
            b: b.factor,
            scale,
        })
    }
}

/// A or B, in its file.
struct Side {
    rows: usize,
    cols: usize,
    factor: Factor,
}

impl Side {
    /// The matrix `tensor` of `checkpoint`, all of whose elements are finite.
    fn of(checkpoint: &Checkpoint, tensor: &TensorView<'_>) -> Result<Self, String> {
        let mut shape = tensor.shape;
        while let [1, rest @ ..] = shape
            && rest.len() >= 2
        {
            shape = rest;
        }
        let [rows, cols] = *shape else {
            return Err(format!(
                "tensor {:?} has shape {:?}, where a matrix is needed",
                tensor.name, tensor.shape
            ));
        };
        each_value(tensor, &mut |_| {})?;
        let bytes = Arc::new(InFile {
            checkpoint: checkpoint.clone(),
            name: tensor.name.to_owned(),
        });
        let factor = tensor.format().ok().zip(rows.checked_mul(cols));
        let factor = factor
            .and_then(|(format, elements)| Factor::packed(format, elements, bytes))
            .ok_or_else(|| format!("tensor {:?} cannot be read as a matrix", tensor.name))?;
        Ok(Self { rows, cols, factor })
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            factor: self.factor.transposed(),
        }
    }
}

/// The bytes of a tensor of a file, for as long as they are wanted.
struct InFile {
    checkpoint: Checkpoint,
    name: String,
}

impl AsRef<[u8]> for InFile {
    fn as_ref(&self) -> &[u8] {
        self.checkpoint.get(&self.name).map_or(&[], |t| t.bytes)
    }
}

/// Blocks that are expanded at a time.
const RUN: usize = 1 << 12;

/// Hands over the elements of a tensor, some at a time, all of them finite.
fn each_value(tensor: &TensorView<'_>, take: &mut dyn FnMut(&[f32])) -> Result<(), String> {
    let name = tensor.name;
    let format = tensor
        .format()
        .map_err(|_| format!("tensor {name:?} has type {}", tensor.kind))?;
    let spec = format.spec();
    let block = spec.block_bytes().max(1);
    let mut values = vec![0.0; RUN * spec.block()];
    for run in tensor.bytes.chunks(RUN * block) {
        let values = values.get_mut(..run.len() / block * spec.block());
        let values = values.unwrap_or_default();
        spec.dequantize(run, values);
        if let Some(x) = values.iter().find(|x| !x.is_finite()) {
            return Err(format!("tensor {name:?} holds {x}; the file is damaged"));
        }
        take(values);
    }
    Ok(())
}

/// The elements of a tensor, all of them finite.
pub(crate) fn values(tensor: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let mut all = Vec::new();
    each_value(tensor, &mut |some| all.extend_from_slice(some))?;
    Ok(all)
}

/// The longest configuration that is read: they have a few kilobytes.
const LONGEST: u64 = 1 << 20;

fn read_config(path: &Path, bytes: u64) -> Result<Option<Vec<u8>>> {
    let refuse = |what: String| Error::Adapter {
        file: path.display().to_string(),
        what,
    };
    if bytes > LONGEST {
        return Err(refuse(format!(
            "{bytes} bytes are no adapter's configuration; move it away"
        )));
    }
    let text = std::fs::read(path).map_err(|e| refuse(format!("cannot be read: {e}")))?;
    Ok(Some(text))
}

/// Text from a file in one line.
fn one_line(text: &str) -> String {
    let cut: String = text.chars().take(200).collect();
    cut.escape_debug().to_string().replace("\\\"", "\"")
}
