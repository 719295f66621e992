//! State files: what a sequence carries, kept in a safetensors file.
//!
//! - `blocks.N.att.wkv`: the recurrence, `[head, value, key]`; version 4's, `[3, C]`.
//! - `blocks.N.att.shift`, `blocks.N.ffn.shift`: the shift vectors, `[C]`.
//!
//! All are f32. The metadata names the version (`rwkv.version`), the dimensions (`rwkv.layers`, `rwkv.width`,
//! `rwkv.head_size`) and the model (`rwkv.model`, see [`ModelFile::fingerprint`]).
//!
//! A file that holds `blocks.N.att.time_state` and nothing else is a tuned state: what training found to begin with.

use crate::{
    Error, ModelFile, Result,
    files::{Checkpoint, Container, SafetensorsWriter, WriteError},
    lora::{stripped, values},
    names::table::transposed,
    output_file::{OutputFile, same_file},
};
use rwkv_kernels::Format;
use rwkv_sched::{ModelConfig, State, StateLayout, Version};
use std::{collections::BTreeMap, io::Write, path::Path};

/// A state from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedState {
    /// The state, which fits the model.
    pub state: State,
    /// Whose it is.
    pub origin: StateOrigin,
}

/// Where a state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateOrigin {
    /// A sequence that was saved.
    Session {
        /// Whether the file says that it was a sequence of this very model. A state of another one of the same
        /// dimensions (a finetuned one, or the same in another quantization) may be wanted, and may be nonsense.
        same_model: bool,
    },
    /// Training.
    Tuned,
}

/// How the matrices of a tuned state lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeStateOrder {
    /// As the kind of file has them. `.pth`: `[head, value, key]` in every version, as training saves them and as our
    /// states are (BlinkDL's demo turns those of version 6 for his package, whose states are `[head, key, value]`).
    /// Safetensors: what the metadata says that our own files have (`rwkv.time_state`), else `[head, key, value]`, as
    /// converters to `.st` write them; nothing else tells whether a file was made by one or only put into another
    /// container, so name the order of such a one.
    #[default]
    Auto,
    /// `[head, value, key]`.
    ValueKey,
    /// `[head, key, value]`.
    KeyValue,
}

/// The metadata of our safetensors files that says how the matrices of a tuned state among its tensors lie.
pub(crate) const ORDER_KEY: &str = "rwkv.time_state";
/// `[head, value, key]`.
pub(crate) const VALUE_KEY: &str = "value-key";

/// Bytes of each end and of the middle of a tensor that a fingerprint looks at.
const SAMPLE: usize = 64;

/// What tells a file's tensors from those of others: see [`ModelFile::fingerprint`].
pub(crate) fn fingerprint(checkpoint: &Checkpoint) -> String {
    let mut hash = crc32fast::Hasher::new();
    for tensor in checkpoint.tensors() {
        hash.update(tensor.name.as_bytes());
        hash.update(tensor.kind.to_string().as_bytes());
        for n in tensor.shape {
            hash.update(&(*n as u64).to_le_bytes());
        }
        let last = tensor.bytes.len().saturating_sub(SAMPLE);
        for from in [0, last / 2, last] {
            let sample = tensor.bytes.iter().skip(from).take(SAMPLE);
            hash.update(&sample.copied().collect::<Vec<_>>());
        }
    }
    format!("{:08x}", hash.finalize())
}

impl ModelFile {
    /// What tells this model from others, as 8 hexadecimal digits: the CRC-32 of every tensor's name, type and shape
    /// and of 64 bytes each of its beginning, middle and end. Cheap, and no proof: the same model in another file
    /// format or quantization has another fingerprint, and one with a few changed weights may have the same.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.checkpoint())
    }

    /// Saves `state` as a state file at `path`, which appears under its name only when it is complete. A link is
    /// followed; what it points to is replaced.
    ///
    /// # Errors
    /// [`Error::State`] for a state of another model or with values that are no numbers, and for a path that is the
    /// model's or no regular file; [`Error::Write`] when the file cannot be written.
    pub fn save_state(&self, state: &State, path: &Path) -> Result<()> {
        let file = path.display().to_string();
        let refuse = |what: String| Error::State {
            file: file.clone(),
            what,
        };
        let config = self.config();
        let layout = StateLayout::of(config);
        state
            .check(layout)
            .map_err(|e| refuse(format!("not saved: {e}")))?;
        let all = state.wkv.iter().chain(&state.shift).flatten();
        if let Some(x) = all.into_iter().find(|x| !x.is_finite()) {
            let what = format!("not saved: the state holds {x}, and the sequence is beyond help");
            return Err(refuse(what));
        }
        let mut tensors = Vec::new();
        for (layer, (wkv, shift)) in state.wkv.iter().zip(&state.shift).enumerate() {
            let (att, ffn) = shift.split_at(config.width.min(shift.len()));
            let [wkv_name, att_name, ffn_name] = names(layer);
            tensors.push((wkv_name, wkv_shape(config, layout), wkv.as_slice()));
            tensors.push((att_name, vec![config.width], att));
            tensors.push((ffn_name, vec![config.width], ffn));
        }
        let unwritten = |e: WriteError| refuse(format!("not saved: {e}"));
        let mut plan = SafetensorsWriter::new();
        for (key, text) in self.state_metadata() {
            plan.set(key, &text);
        }
        for (name, shape, _) in &tensors {
            plan.tensor(name, Format::F32, shape).map_err(unwritten)?;
        }
        let mut body = plan.begin(Vec::new()).map_err(unwritten)?;
        for (name, _, values) in &tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            body.write(name, &bytes).map_err(unwritten)?;
        }
        let bytes = body.finish().map_err(unwritten)?;

        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if same_file(Path::new(self.checkpoint().source()), &target) {
            return Err(refuse(
                "this is the model; save the state elsewhere".to_owned(),
            ));
        }
        if target.exists() && !target.is_file() {
            return Err(refuse(
                "not a regular file; save the state elsewhere".to_owned(),
            ));
        }
        write(&target, &bytes).map_err(|source| Error::Write { file, source })
    }

    /// Loads a state file, or a tuned state, whose matrices lie as `order` says.
    ///
    /// A state of another model is an error when its version or dimensions differ; when only its fingerprint does, it
    /// is loaded, with a warning in the log and in [`LoadedState::origin`].
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read, [`Error::State`] for one that holds no state of this model.
    pub fn load_state(&self, path: &Path, order: TimeStateOrder) -> Result<LoadedState> {
        self.state_from(&Checkpoint::open(path)?, order)
    }

    /// As [`load_state`](Self::load_state), from an opened file.
    ///
    /// # Errors
    /// As [`load_state`](Self::load_state).
    pub fn state_from(
        &self,
        checkpoint: &Checkpoint,
        order: TimeStateOrder,
    ) -> Result<LoadedState> {
        let config = self.config();
        let names: BTreeMap<String, String> = checkpoint
            .names()
            .map(|name| (stripped(name).to_owned(), name.to_owned()))
            .collect();
        let refuse = |what: String| Error::State {
            file: checkpoint.source().to_owned(),
            what,
        };
        let tuned = names.keys().any(|name| is_tuned_state(name));
        let session = names.keys().any(|name| name.ends_with(".att.wkv"));
        if tuned && !session {
            let other = names.keys().find(|name| !is_tuned_state(name));
            if let Some(other) = other {
                let what = format!(
                    "tensor {} beside the tuned state: it is a model or an adapter, not a state file",
                    quoted(other)
                );
                return Err(refuse(what));
            }
            let state = tuned_state(checkpoint, &names, config, order)?;
            return match state {
                Some(state) => Ok(LoadedState {
                    state,
                    origin: StateOrigin::Tuned,
                }),
                None => Err(refuse("no state".to_owned())),
            };
        }
        if !session {
            let what = "no state file: it has neither blocks.0.att.wkv nor blocks.0.att.time_state";
            return Err(refuse(what.to_owned()));
        }
        let metadata = checkpoint.metadata();
        for (key, want) in self.state_metadata() {
            let said = metadata.string(key);
            if key != MODEL
                && let Some(said) = said.filter(|said| *said != want)
            {
                let what = format!(
                    "a state of another model: {key} is {}, this model's is {want}",
                    quoted(said)
                );
                return Err(refuse(what));
            }
        }
        let state = session_state(checkpoint, config).map_err(refuse)?;
        let same_model = metadata.string(MODEL) == Some(&self.fingerprint());
        if !same_model {
            tracing::warn!(
                "{}: a state of another model with the same dimensions as {}; what it continues may make no sense",
                checkpoint.source(),
                self.checkpoint().source()
            );
        }
        Ok(LoadedState {
            state,
            origin: StateOrigin::Session { same_model },
        })
    }

    fn state_metadata(&self) -> [(&'static str, String); 5] {
        let config = self.config();
        [
            ("rwkv.version", config.version.to_string()),
            ("rwkv.layers", config.layers.to_string()),
            ("rwkv.width", config.width.to_string()),
            ("rwkv.head_size", config.head_size.to_string()),
            (MODEL, self.fingerprint()),
        ]
    }
}

const MODEL: &str = "rwkv.model";

/// What a layer's tensors are called: recurrence, shift of the time mix, shift of the channel mix.
fn names(layer: usize) -> [String; 3] {
    ["att.wkv", "att.shift", "ffn.shift"].map(|rest| format!("blocks.{layer}.{rest}"))
}

fn wkv_shape(config: &ModelConfig, layout: StateLayout) -> Vec<usize> {
    match config.version {
        Version::V4 => vec![layout.wkv / config.width.max(1), config.width],
        _ => vec![config.heads(), config.head_size, config.head_size],
    }
}

/// The state of a file that has nothing else.
fn session_state(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<State, String> {
    let layout = StateLayout::of(config);
    let mut state = State::zeros(layout);
    let needed = config.layers * 3;
    let has = checkpoint.names().len();
    let read = |name: &str, shape: &[usize]| {
        let Some(tensor) = checkpoint.get(name) else {
            return Err(format!(
                "a state of another model, or a damaged one: there is no tensor {name}"
            ));
        };
        if tensor.shape != shape {
            return Err(format!(
                "a state of another model: tensor {name} has shape {:?}, where {shape:?} is needed",
                tensor.shape
            ));
        }
        values(&tensor)
    };
    let layers = state.wkv.iter_mut().zip(&mut state.shift).enumerate();
    for (layer, (wkv, shift)) in layers {
        let [wkv_name, att_name, ffn_name] = names(layer);
        *wkv = read(&wkv_name, &wkv_shape(config, layout))?;
        *shift = read(&att_name, &[config.width])?;
        shift.extend(read(&ffn_name, &[config.width])?);
    }
    if has != needed {
        return Err(format!(
            "a state of another model: {has} tensors, where {needed} are needed"
        ));
    }
    match state.check(layout) {
        Ok(()) => Ok(state),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether `name` is that of a layer's tuned state.
pub(crate) fn is_tuned_state(name: &str) -> bool {
    let layer = name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.strip_suffix(".att.time_state"));
    layer.is_some_and(|n| n.parse::<usize>().is_ok())
}

/// The tuned state among the tensors of a file, whose names there `names` has by their original ones; none where there
/// is none. Shift vectors are zeros.
pub(crate) fn tuned_state(
    checkpoint: &Checkpoint,
    names: &BTreeMap<String, String>,
    config: &ModelConfig,
    order: TimeStateOrder,
) -> Result<Option<State>> {
    if !names.keys().any(|name| is_tuned_state(name)) {
        return Ok(None);
    }
    let refuse = |what: String| Error::State {
        file: checkpoint.source().to_owned(),
        what,
    };
    if config.version == Version::V4 {
        return Err(refuse("RWKV-4 has no tuned states".to_owned()));
    }
    let turned = match order {
        TimeStateOrder::Auto => {
            let said = checkpoint.metadata().string(ORDER_KEY);
            checkpoint.container() == Container::Safetensors && said != Some(VALUE_KEY)
        }
        TimeStateOrder::ValueKey => false,
        TimeStateOrder::KeyValue => true,
    };
    let (heads, size) = (config.heads(), config.head_size);
    let mut state = State::zeros(StateLayout::of(config));
    for (layer, wkv) in state.wkv.iter_mut().enumerate() {
        let original = format!("blocks.{layer}.att.time_state");
        let Some(tensor) = names.get(&original).and_then(|name| checkpoint.get(name)) else {
            let what = format!("a tuned state of another model: there is no tensor {original}");
            return Err(refuse(what));
        };
        let want = [heads, size, size];
        let mut shape = tensor.shape;
        while let [1, rest @ ..] = shape
            && rest.len() >= want.len()
        {
            shape = rest;
        }
        if shape != want {
            let what = format!(
                "a tuned state of another model: tensor {original} has shape {:?}, where {want:?} is needed",
                tensor.shape
            );
            return Err(refuse(what));
        }
        let read = values(&tensor).map_err(refuse)?;
        if turned {
            let matrices = read.chunks_exact(size * size);
            *wkv = matrices.flat_map(|m| transposed(m, size)).collect();
        } else {
            *wkv = read;
        }
    }
    let has = names.keys().filter(|name| is_tuned_state(name)).count();
    if has != config.layers {
        let what = format!(
            "a tuned state of another model: {has} layers, where {} are needed",
            config.layers
        );
        return Err(refuse(what));
    }
    Ok(Some(state))
}

/// Writes a file that appears under its name only when it is complete.
fn write(target: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OutputFile::create(target)?;
    file.writer().write_all(bytes)?;
    file.finish()?;
    Ok(())
}

/// Text from a file, fit for one line.
fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(100).collect();
    format!("{cut:?}")
}
