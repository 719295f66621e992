//! The layer graphs: one file a version of RWKV, each as its paper has it.

mod block;
mod channel_mix;
mod v4;
mod v5;
mod v6;
mod v7;
mod v7a;

use crate::{BlockWeight as B, Error, Graph, ModelConfig, Op, Result, Version, Weight, Weights};
use block::{AFFINE, Block};

/// The graph of `config`'s version, with every tensor's shape checked.
///
/// # Errors
/// [`Error::Weight`] names the tensor that is missing or has another shape.
pub(crate) fn build(config: &ModelConfig, weights: &dyn Weights) -> Result<Graph> {
    let mut graph = Graph::default();
    let g = &mut graph;
    let [norm, out] = [Weight::EmbeddingNorm, Weight::OutputNorm].map(|n| AFFINE.map(n));
    let x = g.embed(Weight::Embedding, config.width);
    let x0 = g.layer_norm(x, norm[0], norm[1], config.norm_epsilon);
    let mut x = x0;
    let mut v_first = None;
    for layer in 0..config.layers {
        let block = Block {
            config,
            weights,
            layer,
        };
        g.begin_layer();
        let y = block.norm(g, x, B::AttNorm);
        let y = match config.version {
            Version::V4 => v4::time_mix(g, &block, y),
            Version::V5_0 | Version::V5_1 | Version::V5_2 => v5::time_mix(g, &block, y),
            Version::V6 => v6::time_mix(g, &block, y)?,
            Version::V7 | Version::V7a => v7::time_mix(g, &block, y, &mut v_first)?,
        };
        x = g.add(x, y);
        let y = block.norm(g, x, B::FfnNorm);
        let y = match config.version {
            Version::V7 => v7::channel_mix(g, &block, y),
            Version::V7a => v7a::channel_mix(g, &block, y, x0)?,
            _ => channel_mix::channel_mix(g, &block, y),
        };
        x = g.add(x, y);
    }
    // The head is the largest matrix: only wanted rows go through it.
    let x = g.select(x);
    let x = g.layer_norm(x, out[0], out[1], config.norm_epsilon);
    let logits = g.matmul(x, Weight::Head, config.vocab);
    g.finish(logits);
    check(&graph, config, weights)?;
    Ok(graph)
}

/// Checks the shape of every tensor against the operation that reads it.
fn check(graph: &Graph, config: &ModelConfig, weights: &dyn Weights) -> Result<()> {
    for node in graph.nodes() {
        let width = node.outputs.first().map_or(0, |y| graph.value(*y).width);
        let matrix = match node.op {
            Op::Embed { table } => Some((table, config.vocab, width)),
            Op::MatMul { weight } => {
                let x = node.inputs.first().map_or(0, |x| graph.value(*x).width);
                Some((weight, width, x))
            }
            _ => None,
        };
        if let Some((weight, rows, cols)) = matrix {
            let shape = weights.describe(weight)?.1;
            if (shape.rows.0, shape.cols.0) != (rows, cols) {
                let problem = format!("it is {shape} where {rows}×{cols} is needed");
                return Err(refused(weights, weight, problem));
            }
        }
        for weight in node.op.vectors() {
            let shape = weights.describe(weight)?.1;
            if shape.elements() != Some(width) {
                let problem = format!("it has shape {shape} where {width} elements are needed");
                return Err(refused(weights, weight, problem));
            }
        }
    }
    Ok(())
}

fn refused(weights: &dyn Weights, weight: Weight, problem: String) -> Error {
    Error::Weight {
        name: weights.name(weight),
        problem,
    }
}
