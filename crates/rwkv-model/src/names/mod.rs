//! From a file's tensor names to a model's logical ones.
//!
//! Two tables say how files hold logical tensors, one row a tensor of the file: [`original::rows`] and [`gguf::rows`].
//! Binding walks them, and so can whoever writes files. Other [`dialect`]s are the original table under other names.

mod bind;
mod dialect;
pub(crate) mod gguf;
pub(crate) mod original;
pub(crate) mod partial;
mod rescaled;
mod sources;
mod sparse;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod turned;
mod version;

use crate::{
    Error, Result,
    files::{Checkpoint, Container},
};
use dialect::Dialect;
use rwkv_sched::ModelConfig;
pub(crate) use sources::BoundWeights;

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// BlinkDL's, or a dialect of them, whatever the container.
    Original(Dialect),
    /// llama.cpp's.
    Gguf,
}

/// Finds out a checkpoint's naming, version and dimensions.
pub(crate) fn detect(checkpoint: &Checkpoint) -> Result<(Naming, ModelConfig)> {
    if checkpoint.container() == Container::Gguf {
        return Ok((Naming::Gguf, gguf::config(checkpoint)?));
    }
    let dialect = Dialect::detect(checkpoint)?;
    let config = version::config(checkpoint, dialect)?;
    Ok((Naming::Original(dialect), config))
}

/// Binds every tensor that the graph of `config` can ask for. `turned_pairs` says how square low-rank pairs lie where
/// names and other pairs do not.
pub(crate) fn bind(
    checkpoint: &Checkpoint,
    naming: Naming,
    config: &ModelConfig,
    turned_pairs: Option<bool>,
) -> Result<BoundWeights, rwkv_sched::Error> {
    match naming {
        Naming::Original(dialect) => bind::bind(checkpoint, dialect, config, turned_pairs),
        Naming::Gguf => gguf::bind(checkpoint, config),
    }
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
