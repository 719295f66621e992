//! Models of made-up weights, in the shapes of published ones, for measuring without a file.

use rwkv_model::export::{ExportError, SyntheticSpec, SyntheticWeights};
use rwkv_sched::{Model, Result};
use std::sync::Arc;

/// The model that `spec` describes, such as `v7:24x2048`. Its tensors are made, in F16, when they are asked for.
///
/// # Errors
/// Dimensions that make no model.
pub fn synthetic(spec: &SyntheticSpec) -> Result<Model> {
    let weights = SyntheticWeights::new(spec);
    Model::new(weights.config().clone(), Arc::new(weights))
}

/// The RWKV-7 of `layers` × `width` with `vocab` tokens.
///
/// # Errors
/// Dimensions that make no model.
pub fn spec_v7(shape: &str, vocab: usize) -> Result<SyntheticSpec, ExportError> {
    format!("v7:{shape}:vocab={vocab}").parse()
}
