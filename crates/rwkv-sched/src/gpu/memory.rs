//! How much device memory a model will take, told before it is loaded.

use super::{
    choose,
    layout::{Layout, last_uses},
    plans::prompt,
    resident::{resident_format, vector_groups},
};
use crate::{
    BatchShape, Chosen, Domain, Graph, LoadOptions, Model, Node, Op, Result, SparseWeights, Value,
    ValueId, Weight, Weights, WeightsDType,
    fuse::{Step, fuse, fuse_decode},
};
use rwkv_gpu::Kind;
use rwkv_kernels::{Format, GpuCsr, Kernels, View, ops::HalfRows};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

/// Bytes of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The tensors, as they will lie there.
    pub weights: u64,
    /// One sequence's state.
    pub state: u64,
    /// Activations of a chunk of a prompt on a large GPU, about, and what kernels share besides: see
    /// [`activations_of`](Self::activations_of).
    pub activations: u64,
}

/// The lengths that a prompt's chunk may have. Products gain up to 2,048 tokens, and each of the hundreds of dispatches of
/// a chunk costs some microseconds whatever its length.
const CHUNKS: [usize; 4] = [2048, 1024, 512, 256];

/// Multiplications of a chunk at most, on a GPU with memory and cooperative matrices of its own, and on others: a second
/// of the slowest, long before a driver takes a GPU for hung. A caller that breaks off waits for two of them at most: the next
/// one is recorded while the GPU has one.
const FAST_WORK: u64 = 16_000_000_000_000;
const SLOW_WORK: u64 = FAST_WORK / 8;

/// Bytes of activations of a chunk at most, but for the shortest.
const CHUNK_BYTES: u64 = 1 << 30;

/// Tokens that a prompt of `model` is cut into on the GPU of `kernels`.
pub(super) fn chunk(model: &Model, kernels: &Kernels) -> usize {
    let have = kernels.gpu().capabilities();
    let fast = match kernels.gpu().kind() {
        Kind::Software => return shortest(),
        Kind::Integrated => false,
        _ => kernels.has_coop(),
    };
    let work = if fast { FAST_WORK } else { SLOW_WORK };
    let binding = have.limits.binding_bytes.min(have.limits.buffer_bytes);
    chunk_within(model, work, binding)
}

/// The longest chunk of at most `work` multiplications, whose values can be bound in `binding` bytes.
fn chunk_within(model: &Model, work: u64, binding: u64) -> usize {
    let products = model.graph().nodes().iter().map(|n| products(model, n));
    let products = total(products);
    let fits = |tokens: &usize| {
        products.saturating_mul(*tokens as u64) <= work
            && largest_value(model, *tokens) <= binding
            && DeviceMemory::activations_of(model, *tokens, false) <= CHUNK_BYTES
    };
    CHUNKS.into_iter().find(fits).unwrap_or_else(shortest)
}

fn shortest() -> usize {
    CHUNKS.into_iter().min().unwrap_or(1)
}

/// Multiplications of a node for each token.
fn products(model: &Model, node: &Node) -> u64 {
    match node.op {
        Op::MatMul { weight } => {
            let Ok((_, shape)) = model.weights().describe(weight) else {
                return 0;
            };
            let elements = shape.elements();
            elements.map_or(u64::MAX, |elements| elements as u64)
        }
        _ => 0,
    }
}

/// Bytes of the largest values that lie together.
fn largest_value(model: &Model, tokens: usize) -> u64 {
    let graph = model.graph();
    let node = |node: &Node| -> u64 {
        let values = node.outputs.iter().map(|id| graph.value(*id));
        total(values.map(|value| bytes_of(value, prompt(tokens))))
    };
    graph.nodes().iter().map(node).max().unwrap_or(0)
}

impl DeviceMemory {
    /// What `model` takes with one sequence; its tables of tokens are counted unless they are to stay on the host
    /// ([`LoadOptions::token_tables`]).
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a tensor that cannot be read, [`crate::Error::Quantization`] for layers that the
    /// model does not have.
    pub fn estimate(model: &Model, options: &LoadOptions) -> Result<Self> {
        let model = options.token_tables.first(model);
        let chosen = match &options.quantization {
            Some(quantization) => quantization.choose_all(&model)?,
            None => HashMap::new(),
        };
        Self::with_chosen(&model, &chosen, options.weights_dtype)
    }

    /// The same where it is known what the matrices become ([`Quantization::choose_all`]): choosing may take longer than
    /// loading.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a tensor that cannot be read.
    ///
    /// [`Quantization::choose_all`]: crate::Quantization::choose_all
    pub fn with_chosen(
        model: &Model,
        chosen: &HashMap<Weight, Chosen>,
        weights_dtype: WeightsDType,
    ) -> Result<Self> {
        Ok(Self {
            weights: weights(model, chosen, weights_dtype)?,
            state: model.state_layout().bytes(),
            activations: Self::activations_of(
                model,
                chunk_within(model, FAST_WORK, u64::MAX),
                true,
            ),
        })
    }

    /// Activations of a batch of `tokens` tokens of one sequence, about, `rounding` the inputs of products to f16 as GPUs do
    /// that have cooperative matrices; and at most what kernels share: partial sums.
    pub fn activations_of(model: &Model, tokens: usize, rounding: bool) -> u64 {
        let buffers = plan_buffers(model, prompt(tokens), rounding);
        total(buffers).saturating_add(Kernels::MOST_SCRATCH_BYTES)
    }

    /// All of it.
    pub fn total(self) -> u64 {
        total([self.weights, self.state, self.activations])
    }
}

/// Bytes of each buffer that a plan takes, about.
fn plan_buffers(model: &Model, shape: BatchShape, rounding: bool) -> Vec<u64> {
    let graph = model.graph();
    let mut chosen = choose::Chosen {
        steps: fuse(graph),
        ..choose::Chosen::default()
    };
    if rounding {
        chosen.halves = read_by_products(graph);
    }
    let last_use = last_uses(graph, shape, &chosen.steps);
    let mut buffers = Layout::new(graph, shape, &chosen, &last_use).buffers;
    if rounding {
        buffers.extend(rounded(graph, shape, &chosen, &last_use));
    }
    buffers
}

/// Bytes of the buffers that plans for `shapes` share, about.
pub(super) fn shared(model: &Model, shapes: &[BatchShape], rounding: bool) -> u64 {
    let plans = shapes.iter();
    in_common(plans.map(|shape| plan_buffers(model, *shape, rounding)))
}

/// Bytes of the buffers that suffice for each of several plans, from those that each takes: the largest of all, the largest
/// of the second largest and so on.
pub(super) fn in_common(plans: impl IntoIterator<Item = Vec<u64>>) -> u64 {
    let mut largest: Vec<u64> = Vec::new();
    for mut buffers in plans {
        buffers.sort_unstable_by_key(|bytes| Reverse(*bytes));
        largest.resize(largest.len().max(buffers.len()), 0);
        for (most, bytes) in largest.iter_mut().zip(buffers) {
            *most = bytes.max(*most);
        }
    }
    total(largest)
}

/// The sum, or the most that there is a number for: sizes are what a file claims.
fn total(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// Bytes of the tensors of `model` as they will lie there, `chosen` re-encoded.
pub(super) fn weights(
    model: &Model,
    chosen: &HashMap<Weight, Chosen>,
    dtype: WeightsDType,
) -> Result<u64> {
    let weights = model.weights();
    let matrix = |weight: Weight| -> Result<(Format, u64)> {
        let shape = weights.describe(weight)?.1;
        let format = resident_format(weights, weight, chosen.get(&weight).copied(), dtype)?;
        let row = match format.gpu_layout() {
            Some(layout) => {
                let parts = layout.row_bytes(shape.cols.0).into_iter();
                total(parts.map(|bytes| bytes as u64))
            }
            None => format.row_bytes(shape.cols.0).unwrap_or(0) as u64,
        };
        Ok((format, row.saturating_mul(shape.rows.0 as u64)))
    };
    let mut seen = HashSet::new();
    let mut bytes = 0u64;
    for weight in model.graph().nodes().iter().filter_map(|n| n.op.matrix()) {
        if !seen.insert(weight) {
            continue;
        }
        // Zeros in a dense matrix are found only while it is loaded.
        let taken = match stored_entries(weights, weight, chosen.get(&weight)) {
            Some(entries) => GpuCsr::about(weights.describe(weight)?.1, entries),
            None => matrix(weight)?.1,
        };
        bytes = bytes.saturating_add(taken);
    }
    let steps = fuse_decode(model.graph());
    for weight in vector_groups(model, &steps).into_iter().flatten() {
        let shape = weights.describe(weight)?.1;
        let elements = shape.elements().unwrap_or(0) as u64;
        bytes = bytes.saturating_add(elements.saturating_mul(4));
    }
    Ok(bytes)
}

/// Entries of a matrix that will lie as the compressed rows that its file has.
fn stored_entries(weights: &dyn Weights, weight: Weight, chosen: Option<&Chosen>) -> Option<u64> {
    let shape = weights.describe(weight).ok()?.1;
    let entries = weights.entries(weight)?;
    let most = SparseWeights::default().below(weight)? * shape.elements()? as f64;
    let half = chosen.is_none_or(|c| c.format == Format::F16);
    (half && (entries as f64) < most).then_some(entries)
}

/// Mixes that only products read, and which are made in f16 therefore.
fn read_by_products(graph: &Graph) -> HashSet<ValueId> {
    let shifts = graph
        .nodes()
        .iter()
        .filter(|n| matches!(n.op, Op::TokenShift { .. }));
    let mut values: HashSet<ValueId> = shifts.flat_map(|n| n.outputs.iter().copied()).collect();
    for node in graph
        .nodes()
        .iter()
        .filter(|n| !matches!(n.op, Op::MatMul { .. }))
    {
        for id in &node.inputs {
            values.remove(id);
        }
    }
    for id in graph.results() {
        values.remove(id);
    }
    values
}

/// Bytes of each buffer for inputs of products that are rounded beside what they are in f32: as many of each size as there
/// are at a time.
fn rounded(
    graph: &Graph,
    shape: BatchShape,
    chosen: &choose::Chosen,
    last_use: &HashMap<ValueId, usize>,
) -> Vec<u64> {
    let bytes = |id: ValueId| {
        let value = graph.value(id);
        HalfRows::bytes(rows_of(value, shape), value.width)
    };
    let mut alive: HashSet<ValueId> = HashSet::new();
    let mut most: HashMap<u64, usize> = HashMap::new();
    for (index, step) in chosen.steps.iter().enumerate() {
        if let Step::Linear(step) = step
            && !chosen.halves.contains(&step.x)
            && alive.insert(step.x)
        {
            let size = bytes(step.x);
            let count = alive.iter().filter(|id| bytes(**id) == size).count();
            let most = most.entry(size).or_default();
            *most = count.max(*most);
        }
        alive.retain(|id| last_use.get(id) != Some(&index));
    }
    let of_size = most.into_iter();
    of_size
        .flat_map(|(size, count)| std::iter::repeat_n(size, count))
        .collect()
}

/// Bytes of what other parts of the model read of this one.
pub(super) fn results(model: &Model, shape: BatchShape) -> u64 {
    let graph = model.graph();
    let results = graph.results().iter().map(|id| graph.value(*id));
    let crossing = results.filter(|value| value.domain == Domain::Tokens);
    total(crossing.map(|value| bytes_of(value, shape)))
}

fn rows_of(value: Value, shape: BatchShape) -> usize {
    match value.domain {
        Domain::Tokens => shape.tokens,
        Domain::Outputs => shape.outputs,
    }
}

fn bytes_of(value: Value, shape: BatchShape) -> u64 {
    View::block_bytes(rows_of(value, shape), value.width)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{BlockWeight as B, InMemoryWeights, Lora, ModelConfig, TokenTables, Version};
    use rwkv_kernels::Matrix;
    use rwkv_mem::Shape;
    use std::sync::Arc;

    /// Tensors of the right shapes, without their values.
    struct Shapes(ModelConfig, InMemoryWeights);

    impl Weights for Shapes {
        fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
            self.1.matrix(weight)
        }

        fn name(&self, weight: Weight) -> String {
            self.1.name(weight)
        }

        fn describe(&self, weight: Weight) -> Result<(Format, Shape)> {
            let (width, ffn, rank) = (self.0.width, self.0.ffn, self.0.width / 32);
            let (rows, cols) = match weight {
                Weight::Embedding | Weight::Head => (self.0.vocab, width),
                Weight::Block(_, block) => match block {
                    B::FfnEmbedding => (self.0.vocab, rank * rank),
                    B::FfnEmbeddingUp => (rank * rank, width),
                    B::LoraUp(Lora::DeepEmbed) => (ffn, rank),
                    B::LoraBias(Lora::DeepEmbed) => (1, ffn),
                    B::LoraDown(_) => (rank, width),
                    B::LoraUp(_) => (width, rank),
                    B::FfnKey => (ffn, width),
                    B::FfnValue => (width, ffn),
                    B::AttReceptance | B::AttKey | B::AttValue | B::AttOutput => (width, width),
                    _ => (1, width),
                },
                _ => (1, width),
            };
            Ok((Format::F16, Shape::new(rows, cols)))
        }
    }

    fn model(layers: usize, width: usize) -> Model {
        model_of(Version::V7, layers, width)
    }

    fn model_of(version: Version, layers: usize, width: usize) -> Model {
        let config = ModelConfig {
            version,
            layers,
            width,
            head_size: 64,
            ffn: 4 * width,
            vocab: 65_536,
            norm_epsilon: 1e-5,
            group_norm_epsilon: 64e-5,
        };
        let weights = Shapes(config.clone(), InMemoryWeights::default());
        Model::new(config, Arc::new(weights)).unwrap()
    }

    /// Where it is not known what fits, matrices of tokens stay on the host from more than 1 GiB on; 32 MiB a layer here.
    #[test]
    fn tables_of_which_nobody_knows_whether_they_fit() {
        let left = |tables: TokenTables, version, layers| {
            let model = model_of(version, layers, 512);
            let placed = tables.unasked(&model).unwrap();
            placed.host_tables().len()
        };
        assert_eq!(left(TokenTables::Auto, Version::V7a, 32), 0);
        assert_eq!(left(TokenTables::Auto, Version::V7a, 33), 33);
        assert_eq!(left(TokenTables::Auto, Version::V7, 33), 0);
        assert_eq!(left(TokenTables::Device, Version::V7a, 33), 0);
        assert_eq!(left(TokenTables::Host, Version::V7a, 2), 3);
        assert_eq!(left(TokenTables::Host, Version::V7, 2), 1);
    }

    /// Shapes that no memory holds make no number wrong.
    #[test]
    fn sizes_without_end() {
        let model = model(3, 1 << 57);
        let memory = DeviceMemory::estimate(&model, &LoadOptions::default()).unwrap();
        assert_eq!((memory.weights, memory.total()), (u64::MAX, u64::MAX));
        assert_eq!(memory.activations, u64::MAX);
        assert_eq!(chunk_within(&model, FAST_WORK, u64::MAX - 1), shortest());
        let shapes = [prompt(usize::MAX), prompt(256)];
        assert_eq!(shared(&model, &shapes, true), u64::MAX);
    }

    /// The chunks of published models, and that what they take is moderate.
    #[test]
    fn chunks() {
        let (small, medium, large) = (model(12, 768), model(24, 2048), model(32, 4096));
        let check = |model: &Model, work: u64, binding: u64, chunk: usize| {
            let got = chunk_within(model, work, binding);
            assert_eq!(got, chunk);
        };
        let everything = u64::MAX;
        for model in [&small, &medium, &large] {
            check(model, FAST_WORK, everything, 2048);
            check(model, 0, everything, 256);
            check(model, FAST_WORK, 0, 256);
        }
        check(&small, SLOW_WORK, everything, 2048);
        check(&medium, SLOW_WORK, everything, 1024);
        check(&large, SLOW_WORK, everything, 256);
        // What WebGPU promises of a binding.
        check(&large, FAST_WORK, 128 << 20, 1024);
        let megabytes = |model: &Model| DeviceMemory::activations_of(model, 2048, true) >> 20;
        let all = [&small, &medium, &large].map(megabytes);
        assert_eq!(all, [136, 302, 567]);
    }
}
