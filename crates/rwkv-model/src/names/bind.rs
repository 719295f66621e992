//! Binds the tensors of checkpoints that are not GGUF: the rows of [`original`], under the names of a dialect.

use super::{
    BoundWeights,
    dialect::Dialect,
    original,
    sources::problem,
    table::{Layout, Presence, Row},
};
use crate::files::Checkpoint;
use rwkv_sched::{Affine, BlockWeight as B, Error, Lora, ModelConfig, Version, Weight};

/// Binds every tensor that the graph of `config` can ask for. `turned` says how square low-rank pairs lie, if it is
/// known: see [`Pairs`].
pub(super) fn bind(
    checkpoint: &Checkpoint,
    dialect: Dialect,
    config: &ModelConfig,
    turned: Option<bool>,
) -> Result<BoundWeights, Error> {
    let binding = Binding {
        checkpoint,
        dialect,
        config,
        pairs: Pairs::of(checkpoint, dialect, config, turned),
    };
    let mut weights = BoundWeights::new(checkpoint);
    for row in original::rows(config) {
        binding.row(&mut weights, &row)?;
    }
    Ok(weights)
}

/// Binds `row`, whose tensor is there under `name`.
pub(super) fn bind_row(
    weights: &mut BoundWeights,
    name: &str,
    holds: &[Weight],
    layout: Layout,
    config: &ModelConfig,
) -> Result<(), Error> {
    let Some(&first) = holds.first() else {
        return Ok(());
    };
    let heads = [config.heads(), config.head_size];
    match layout {
        Layout::Flat | Layout::Broadcast | Layout::Heads => weights.vector(first, name),
        Layout::PerHead => repeated(weights, first, name, config, |x| x),
        Layout::Vectors => weights.vectors(holds, name, config.width),
        Layout::Rows => weights.rows(holds, name),
        Layout::Columns => weights.columns(holds, name),
        Layout::Stack => weights.stack(holds, name),
        Layout::ColumnStack => weights.column_stack(holds, name),
        Layout::State => weights.states(first, name, heads, false),
        Layout::TurnedState => weights.states(first, name, heads, true),
    }
}

/// Binds a vector of one value a channel, or of one a head, which is repeated; `function` makes the values.
fn repeated(
    weights: &mut BoundWeights,
    weight: Weight,
    name: &str,
    config: &ModelConfig,
    function: fn(f32) -> f32,
) -> Result<(), Error> {
    let values = weights.values(name)?;
    let times = if values.len() == config.width {
        1
    } else if values.len() == config.heads() {
        config.head_size
    } else {
        let (heads, width) = (config.heads(), config.width);
        let what = format!(
            "{} elements, where one for each of {heads} heads or {width} channels is needed",
            values.len()
        );
        return Err(problem(name, what));
    };
    let values: Vec<f32> = values
        .into_iter()
        .flat_map(|x| std::iter::repeat_n(function(x), times))
        .collect();
    weights.computed(weight, name, &values);
    Ok(())
}

/// Binds a vector of versions 4 to 6 whose values are not simply those of the file: the logarithm of the bonus, and one
/// value a head. Says whether `row` was one.
pub(super) fn bind_special(
    weights: &mut BoundWeights,
    name: &str,
    row: &Row,
    dialect: Dialect,
    config: &ModelConfig,
) -> Result<bool, Error> {
    let Some(&weight) = row.holds.first() else {
        return Ok(false);
    };
    let by_head = || config.head_size > 1 && weights.elements(name) == Some(config.heads());
    match weight {
        Weight::Block(_, B::Bonus) if dialect.is_logarithm(config.version, name) => {
            repeated(weights, weight, name, config, exponential)?;
        }
        Weight::Block(_, B::Bonus | B::Decay) if by_head() => {
            repeated(weights, weight, name, config, |x| x)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Which of version 7's mixes flash-linear-attention stacks, in this order.
const FUSED: [&str; 6] = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];

struct Binding<'a> {
    checkpoint: &'a Checkpoint,
    dialect: Dialect,
    config: &'a ModelConfig,
    pairs: Pairs,
}

impl Binding<'_> {
    fn row(&self, weights: &mut BoundWeights, row: &Row) -> Result<(), Error> {
        let Some(&weight) = row.holds.first() else {
            return Ok(());
        };
        let Some(found) = self.dialect.find(self.checkpoint, &row.name) else {
            return self.absent(weights, row, weight);
        };
        let name = found.name;
        if bind_special(weights, name, row, self.dialect, self.config)? {
            return Ok(());
        }
        let layout = self.layout(row, weight);
        bind_row(weights, name, &row.holds, layout, self.config)
    }

    /// How `row`, whose first tensor is `weight`, lies in this file.
    fn layout(&self, row: &Row, weight: Weight) -> Layout {
        let turned = match weight {
            Weight::Block(_, B::InitialState) => self.pairs.state,
            weight if is_pair(weight) => {
                turned(self.checkpoint, self.dialect, self.config.width, &row.name)
                    .unwrap_or(self.pairs.square)
            }
            _ => false,
        };
        if turned {
            row.layout.turned()
        } else {
            row.layout
        }
    }

    /// What stands for a tensor that the file does not have.
    fn absent(&self, weights: &mut BoundWeights, row: &Row, weight: Weight) -> Result<(), Error> {
        let metadata = self.checkpoint.metadata();
        let no_bias = metadata.bool("config.norm_bias") == Some(false);
        match weight {
            _ if row.presence != Presence::Always => Ok(()),
            Weight::Head if metadata.bool("config.tie_word_embeddings") == Some(true) => {
                let emb = self.dialect.find(self.checkpoint, "emb.weight");
                let name = emb.map_or("emb.weight", |tensor| tensor.name);
                weights.rows(&[weight], name)
            }
            Weight::EmbeddingNorm(Affine::Bias)
            | Weight::OutputNorm(Affine::Bias)
            | Weight::Block(_, B::AttNorm(Affine::Bias) | B::FfnNorm(Affine::Bias))
                if no_bias =>
            {
                let name = format!("{} (left out)", self.expected(row));
                weights.computed(weight, &name, &vec![0.0; self.config.width]);
                Ok(())
            }
            Weight::Block(_, B::AttMix(_)) if self.dialect == Dialect::FlashLinearAttention => {
                self.fused_mix(weights, row, weight)
            }
            _ => Err(self.missing(row)),
        }
    }

    /// One of the mixes that flash-linear-attention's files can have in one tensor.
    fn fused_mix(
        &self,
        weights: &mut BoundWeights,
        row: &Row,
        weight: Weight,
    ) -> Result<(), Error> {
        let mix = FUSED
            .into_iter()
            .enumerate()
            .find(|(_, x)| row.name.ends_with(x));
        let Some((index, x)) = mix else {
            return Err(self.missing(row));
        };
        let fused = row.name.replace(x, "x_x");
        if let Some(found) = self.dialect.find(self.checkpoint, &fused) {
            let part = [index, FUSED.len()];
            return weights.vector_of(weight, found.name, part, self.config.width);
        }
        let names = [self.expected(row), self.dialect.names(&fused).join(" or ")];
        Err(problem(&names.join(" or "), "missing".to_owned()))
    }

    fn missing(&self, row: &Row) -> Error {
        problem(&self.expected(row), "missing".to_owned())
    }

    /// What `row`'s tensor should be called.
    fn expected(&self, row: &Row) -> String {
        self.dialect.names(&row.name).join(" or ")
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "rounded once, to what an f32 can hold"
)]
fn exponential(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// Which way the low-rank pairs lie: as in the checkpoints (`y = x W₁ W₂`, so `[in, out]`), or turned.
///
/// Converters and Hugging Face's layouts disagree, version 7's even under one name. A pair that is not square tells by
/// its shapes: one side is the width. For a square one (the rank is the width), in this order: what the caller says,
/// what the first layers' other pairs are, what is usual under its names (for version 7 under the original ones: as in
/// the checkpoints).
///
/// The converter that turns the pairs turns the initial state too. Hugging Face's layouts do not.
struct Pairs {
    square: bool,
    state: bool,
}

/// Whether `weight` is of a pair of which files disagree; version 7a's own pair is never turned.
pub(super) fn is_pair(weight: Weight) -> bool {
    matches!(weight, Weight::Block(_, B::LoraDown(lora) | B::LoraUp(lora)) if lora != Lora::DeepEmbed)
}

/// Whether the pair that a tensor called `original` is of is turned, if one of the two tells by its shape.
fn turned(checkpoint: &Checkpoint, dialect: Dialect, width: usize, original: &str) -> Option<bool> {
    let stem = original.trim_end_matches(['1', '2']);
    // The first matrix has the say where the two contradict each other; then one does not fit.
    [('1', false), ('2', true)]
        .into_iter()
        .find_map(|(end, second)| {
            // `[C, R]` and `[R, C]` in the checkpoints.
            match dialect.find(checkpoint, &format!("{stem}{end}"))?.shape {
                [.., a, b] if (*a == width) != (*b == width) => Some((*a == width) == second),
                _ => None,
            }
        })
}

impl Pairs {
    fn of(
        checkpoint: &Checkpoint,
        dialect: Dialect,
        config: &ModelConfig,
        said: Option<bool>,
    ) -> Self {
        // The value residual's pair begins in the second layer.
        let first_layers = ModelConfig {
            layers: config.layers.min(2),
            ..config.clone()
        };
        let first = original::rows(&first_layers)
            .filter(|row| row.holds.first().is_some_and(|&w| is_pair(w)))
            .find_map(|row| turned(checkpoint, dialect, config.width, &row.name));
        let usual = dialect.turns_pairs();
        let state = match (dialect, config.version) {
            (_, Version::V5_0 | Version::V5_1 | Version::V5_2) => dialect == Dialect::Converted,
            (Dialect::Original | Dialect::Converted, _) => first.or(said).unwrap_or(usual),
            _ => false,
        };
        Self {
            square: said.or(first).unwrap_or(usual),
            state,
        }
    }
}
