//! The layer graphs: one file a version of RWKV, each as its paper has it.

mod v7;

use crate::{Affine, Error, Graph, ModelConfig, Result, Version, Weight, Weights};

/// The graph of `config`'s version, with every tensor's shape checked.
///
/// # Errors
/// [`Error::Weight`] names the tensor that is missing or has another shape.
pub(crate) fn build(config: &ModelConfig, weights: &dyn Weights) -> Result<Graph> {
    let shapes = Shapes { weights };
    let mut graph = Graph::default();
    let (norm, out) = (
        [Affine::Weight, Affine::Bias].map(Weight::EmbeddingNorm),
        [Affine::Weight, Affine::Bias].map(Weight::OutputNorm),
    );
    shapes.matrix(Weight::Embedding, config.vocab, config.width)?;
    shapes.vectors(&[norm, out].concat(), config.width)?;
    shapes.matrix(Weight::Head, config.vocab, config.width)?;
    let x = graph.embed(Weight::Embedding, config.width);
    let mut x = graph.layer_norm(x, norm[0], norm[1], config.norm_epsilon);
    x = match config.version {
        Version::V7 => v7::layers(&mut graph, config, &shapes, x)?,
        other => {
            let problem = format!("{other} is not supported yet");
            return Err(Error::Config { problem });
        }
    };
    // The head is the largest matrix: only wanted rows go through it.
    let x = graph.select(x);
    let x = graph.layer_norm(x, out[0], out[1], config.norm_epsilon);
    let logits = graph.matmul(x, Weight::Head, config.vocab);
    graph.finish(logits);
    Ok(graph)
}

/// Looks at the shapes of tensors while a graph is built.
struct Shapes<'a> {
    weights: &'a dyn Weights,
}

impl Shapes<'_> {
    /// Checks that `weight` is `rows × cols`.
    fn matrix(&self, weight: Weight, rows: usize, cols: usize) -> Result<()> {
        let shape = self.weights.matrix(weight)?.shape();
        if (shape.rows.0, shape.cols.0) == (rows, cols) {
            return Ok(());
        }
        let problem = format!("it is {shape} where {rows}×{cols} is needed");
        Err(Error::Weight {
            name: self.weights.name(weight),
            problem,
        })
    }

    /// Checks that each of `weights` has `len` elements.
    fn vectors(&self, weights: &[Weight], len: usize) -> Result<()> {
        for &weight in weights {
            let shape = self.weights.matrix(weight)?.shape();
            if shape.elements() != Some(len) {
                let problem = format!("it has shape {shape} where {len} elements are needed");
                return Err(Error::Weight {
                    name: self.weights.name(weight),
                    problem,
                });
            }
        }
        Ok(())
    }

    /// The rank of a low-rank pair, at least 1: the rows of its first matrix.
    fn rank(&self, down: Weight) -> Result<usize> {
        let shape = self.weights.matrix(down)?.shape();
        if shape.rows.0 == 0 {
            return Err(Error::Weight {
                name: self.weights.name(down),
                problem: format!("it is {shape}, a pair of rank 0"),
            });
        }
        Ok(shape.rows.0)
    }
}
