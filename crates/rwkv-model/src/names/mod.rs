//! From a file's tensor names to a model's logical ones.

mod gguf;
mod original;
mod sources;

use crate::{
    Error, Result,
    files::{Checkpoint, Container},
};
use rwkv_sched::ModelConfig;
pub(crate) use sources::BoundWeights;

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// BlinkDL's checkpoints.
    Original,
    /// llama.cpp's.
    Gguf,
}

/// Finds out a checkpoint's naming, version and dimensions.
pub(crate) fn detect(checkpoint: &Checkpoint) -> Result<(Naming, ModelConfig)> {
    match checkpoint.container() {
        Container::Gguf => Ok((Naming::Gguf, gguf::config(checkpoint)?)),
        _ => Ok((Naming::Original, original::config(checkpoint)?)),
    }
}

/// Binds every tensor that the graph of `config` can ask for.
pub(crate) fn bind(
    checkpoint: &Checkpoint,
    naming: Naming,
    config: &ModelConfig,
) -> Result<BoundWeights, rwkv_sched::Error> {
    let mut weights = BoundWeights::new(checkpoint);
    match naming {
        Naming::Original => original::bind(&mut weights, config)?,
        Naming::Gguf => gguf::bind(&mut weights, config)?,
    }
    Ok(weights)
}

/// The dimensions of the matrix called `name`.
fn dimensions(checkpoint: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    let tensor = checkpoint.tensor(name)?;
    tensor.shape.try_into().map_err(|_| Error::NotAModel {
        file: checkpoint.source().to_owned(),
        what: format!(
            "tensor {name} has shape {:?}, where a matrix is needed",
            tensor.shape
        ),
    })
}

/// How many layers there are: one more than the largest N of the names `prefix` N `.` …; binding finds out which
/// tensors of them are missing.
fn layers(checkpoint: &Checkpoint, prefix: &str) -> Result<usize> {
    let number = |name: &str| {
        let (number, _) = name.strip_prefix(prefix)?.split_once('.')?;
        number.parse::<usize>().ok()
    };
    let last = checkpoint.names().filter_map(number).max();
    let tensors = checkpoint.names().len();
    match last {
        None => Ok(0),
        Some(last) if last < tensors => Ok(last + 1),
        Some(last) => Err(Error::NotAModel {
            file: checkpoint.source().to_owned(),
            what: format!("it has a tensor of layer {last}, but only {tensors} tensors in all"),
        }),
    }
}

/// A positive number of the metadata, or `default` where there is none.
fn epsilon(checkpoint: &Checkpoint, key: &str, default: f32) -> f32 {
    // Metadata has decimal digits of a number that was an f32.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "epsilons are f32 in every model"
    )]
    checkpoint.metadata().f64(key).map_or(default, |x| x as f32)
}

/// What RWKV's layer norms and group norms add to the variance unless a file says otherwise.
pub(crate) const NORM_EPSILON: f32 = 1e-5;
pub(crate) const GROUP_NORM_EPSILON: f32 = 64e-5;
