//! A model's weights in GPU memory.

use super::compress::{Compression, choose, compress};
use crate::{
    BlockWeight as B, Chosen, LoadOptions, LoadProgress, LoadStage, Model, Op, Result, Weight,
    Weights, WeightsDType,
    fuse::{Group, Kernel, Step},
    quantization::packed_bytes,
};
use rwkv_kernels::{
    Format, GpuColumns, GpuCsr, GpuMatrix, GpuVector, Kernels, LoraUp, MatrixUpload,
};
use rwkv_mem::{Cols, Rows, Shape, Upload};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// Matrices and vectors by name. What a kernel reads together lies together: vectors one after the other, matrices of
/// one stack one below the other.
pub(super) struct ResidentWeights {
    /// Those of stacks and pairs are views of them.
    matrices: HashMap<Weight, GpuMatrix>,
    stacks: Vec<WeightStack>,
    /// Matrices whose inputs are mostly zeros, input by input.
    columns: HashMap<Weight, GpuColumns>,
    /// Matrices with few elements that are not zero.
    sparse: HashMap<Weight, GpuCsr>,
    /// The second halves of a layer's low-rank pairs, one after the other.
    pairs: HashMap<Vec<Weight>, LoraUp>,
    vectors: HashMap<Vec<Weight>, GpuVector>,
    groups: Vec<Vec<Weight>>,
}

/// Matrices one below the other.
pub(super) struct WeightStack {
    pub(super) matrix: GpuMatrix,
    members: HashMap<Weight, Range<usize>>,
}

impl WeightStack {
    /// The rows of `weight`, if it is in this stack.
    pub(super) fn rows(&self, weight: Weight) -> Option<Range<usize>> {
        self.members.get(&weight).cloned()
    }
}

impl ResidentWeights {
    /// Uploads every tensor of `model`'s graph; `steps` says what is read together.
    pub(super) fn upload(
        model: &Model,
        kernels: &Kernels,
        steps: &[Step],
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let weights = model.weights();
        if let Some(quantization) = &options.quantization {
            quantization.check(model.config().layers)?;
        }
        let mut total = 0u64;
        for weight in model.tensors() {
            total = total.saturating_add(packed_bytes(weights.describe(weight)?));
        }
        let mut loader = Loader {
            weights,
            kernels,
            options,
            upload: Upload::new(kernels.gpu()),
            compressed: HashMap::new(),
            resident: Self {
                matrices: HashMap::new(),
                stacks: Vec::new(),
                columns: HashMap::new(),
                sparse: HashMap::new(),
                pairs: HashMap::new(),
                vectors: HashMap::new(),
                groups: vector_groups(model, steps),
            },
        };
        let stacks = stacks(steps);
        let pairs: Vec<Vec<Weight>> = groups(steps).filter_map(Group::packed_pairs).collect();
        let mut ahead = Ahead::new(weights, model.tensors())?;
        let mut done = 0u64;
        for node in model.graph().nodes() {
            ahead.ask(done);
            if let Some(weight) = node.op.matrix()
                && !loader.has(weight)
            {
                let mut members = Vec::new();
                for stack in stacks
                    .iter()
                    .filter(|stack| stack.members.contains(&weight))
                {
                    if loader.stack(&stack.members, stack.joined)? {
                        members.clone_from(&stack.members);
                        break;
                    }
                }
                let ups = pairs.iter().find(|ups| ups.contains(&weight));
                if let Some(ups) = ups.filter(|_| members.is_empty())
                    && loader.pairs(ups)?
                {
                    members.clone_from(ups);
                }
                if members.is_empty() {
                    loader.single(weight)?;
                    members.push(weight);
                }
                for member in members {
                    done = done.saturating_add(packed_bytes(weights.describe(member)?));
                    weights.wont_need(member);
                }
            }
            for weight in node.op.vectors() {
                done = done.saturating_add(packed_bytes(weights.describe(weight)?));
            }
            progress(LoadProgress {
                stage: LoadStage::Tensors,
                done: done.min(total),
                total,
            });
        }
        loader.vectors()?;
        loader.upload.flush()?;
        Ok(loader.resident)
    }

    pub(super) fn matrix(&self, weight: Weight) -> Option<&GpuMatrix> {
        self.matrices.get(&weight)
    }

    /// A matrix that lies input by input.
    pub(super) fn columns(&self, weight: Weight) -> Option<&GpuColumns> {
        self.columns.get(&weight)
    }

    /// A matrix that lies as compressed sparse rows.
    pub(super) fn sparse(&self, weight: Weight) -> Option<&GpuCsr> {
        self.sparse.get(&weight)
    }

    /// The stack that `weight` is in.
    pub(super) fn stack(&self, weight: Weight) -> Option<&WeightStack> {
        self.stacks.iter().find(|s| s.members.contains_key(&weight))
    }

    /// The second halves `group` of low-rank pairs, one after the other.
    pub(super) fn pairs(&self, group: &[Weight]) -> Option<&LoraUp> {
        self.pairs.get(group)
    }

    /// The vectors `group`, one after the other.
    pub(super) fn vectors(&self, group: &[Weight]) -> Option<&GpuVector> {
        self.vectors.get(group)
    }

    /// The groups of vectors that kernels read together.
    pub(super) fn vector_groups(&self) -> &[Vec<Weight>] {
        &self.groups
    }

    /// Bytes of one matrix, wherever it lies.
    pub(super) fn matrix_bytes(&self, weight: Weight) -> u64 {
        let columns = self.columns(weight).map(GpuColumns::bytes);
        let columns = columns.or_else(|| self.sparse(weight).map(GpuCsr::bytes));
        let alone = || self.matrix(weight).map(GpuMatrix::bytes);
        let stacked = || {
            let stack = self.stack(weight)?;
            let rows = stack.rows(weight)?.len() as u64;
            Some(stack.matrix.bytes() / stack.matrix.shape().rows.0.max(1) as u64 * rows)
        };
        columns.or_else(stacked).or_else(alone).unwrap_or(0)
    }

    pub(super) fn bytes(&self) -> u64 {
        let stacked: HashSet<Weight> = self
            .stacks
            .iter()
            .flat_map(|s| s.members.keys())
            .copied()
            .collect();
        let alone = self.matrices.iter().filter(|(w, _)| !stacked.contains(w));
        let matrices: u64 = alone.map(|(_, m)| m.bytes()).sum();
        let stacks: u64 = self.stacks.iter().map(|s| s.matrix.bytes()).sum();
        let columns: u64 = self.columns.values().map(GpuColumns::bytes).sum();
        let sparse: u64 = self.sparse.values().map(GpuCsr::bytes).sum();
        let vectors: u64 = self.vectors.values().map(GpuVector::bytes).sum();
        matrices + stacks + columns + sparse + vectors
    }
}

/// Asks for tensors before they are read, so that a file that is not in memory is read while others are repacked.
struct Ahead<'a> {
    weights: &'a dyn Weights,
    /// Those that were not asked for, and where each begins when all lie one after the other.
    later: std::vec::IntoIter<(Weight, u64)>,
}

impl<'a> Ahead<'a> {
    /// Bytes that are asked for before they are read.
    const BYTES: u64 = 256 << 20;

    fn new(weights: &'a dyn Weights, tensors: Vec<Weight>) -> Result<Self> {
        let mut start = 0u64;
        let mut later = Vec::with_capacity(tensors.len());
        for weight in tensors {
            later.push((weight, start));
            start = start.saturating_add(packed_bytes(weights.describe(weight)?));
        }
        Ok(Self {
            weights,
            later: later.into_iter(),
        })
    }

    /// Asks for what is near, when `done` bytes have been read.
    fn ask(&mut self, done: u64) {
        while let Some(&(weight, start)) = self.later.as_slice().first()
            && start <= done.saturating_add(Self::BYTES)
        {
            self.weights.will_need(weight);
            self.later.next();
        }
    }
}

/// Uploads tensor by tensor.
struct Loader<'a> {
    weights: &'a dyn Weights,
    kernels: &'a Kernels,
    options: &'a LoadOptions,
    upload: Upload,
    /// How each matrix that was looked at becomes compressed sparse rows, or that it does not.
    compressed: HashMap<Weight, Option<Compression>>,
    resident: ResidentWeights,
}

impl Loader<'_> {
    fn has(&self, weight: Weight) -> bool {
        let resident = &self.resident;
        resident.matrices.contains_key(&weight)
            || resident.columns.contains_key(&weight)
            || resident.sparse.contains_key(&weight)
    }

    fn format(&self, weight: Weight) -> Result<Format> {
        let chosen = match &self.options.quantization {
            Some(quantization) => quantization.choose(self.weights, weight)?,
            None => None,
        };
        resident_format(self.weights, weight, chosen, self.options.weights_dtype)
    }

    /// Whether a failure is one that F32 helps against, and F32 is allowed.
    fn widens<T>(&self, result: &Result<T>) -> bool {
        use crate::Error::Kernel;
        self.options.weights_dtype == WeightsDType::Auto
            && matches!(result, Err(Kernel(rwkv_kernels::Error::OutsideF16 { .. })))
    }

    /// One matrix on its own.
    fn single(&mut self, weight: Weight) -> Result<()> {
        if self.is_sparse(weight)? {
            let result = self.compress(weight);
            if self.widens(&result) {
                return self.by_rows(weight, Format::F32);
            }
            return result;
        }
        let format = self.format(weight)?;
        // Which inputs are zero together depends on the batch, and so would the order of sums.
        let by_columns = format == Format::F16
            && matches!(weight, Weight::Block(_, B::FfnValue))
            && !self.options.deterministic;
        let result = if by_columns {
            self.by_columns(weight)
        } else {
            self.by_rows(weight, format)
        };
        if self.widens(&result) {
            return self.by_rows(weight, Format::F32);
        }
        result
    }

    /// Whether `weight` becomes compressed sparse rows; found out once.
    fn is_sparse(&mut self, weight: Weight) -> Result<bool> {
        if let Some(known) = self.compressed.get(&weight) {
            return Ok(known.is_some());
        }
        let found = choose(self.weights, weight, self.options)?;
        let is = found.is_some();
        self.compressed.insert(weight, found);
        Ok(is)
    }

    fn compress(&mut self, weight: Weight) -> Result<()> {
        if let Some(Some(how)) = self.compressed.get(&weight) {
            let gpu = self.kernels.gpu();
            let matrix = compress(gpu, self.weights, weight, how, &mut self.upload)?;
            self.resident.sparse.insert(weight, matrix);
        }
        Ok(())
    }

    fn by_rows(&mut self, weight: Weight, format: Format) -> Result<()> {
        let shape = self.weights.describe(weight)?.1;
        let matrix = self.fill(&[weight], shape, format)?;
        self.resident.matrices.insert(weight, matrix);
        Ok(())
    }

    fn by_columns(&mut self, weight: Weight) -> Result<()> {
        let (name, shape) = (self.weights.name(weight), self.weights.describe(weight)?.1);
        let (kernels, upload) = (self.kernels, &mut self.upload);
        let columns = GpuColumns::zeros(kernels.gpu(), &name, shape)?;
        for rows in slabs(self.weights, weight)? {
            let first = rows.start;
            self.weights.with_rows(weight, rows, &mut |matrix| {
                Ok(columns.fill(kernels, &name, matrix, first, upload)?)
            })?;
        }
        self.resident.columns.insert(weight, columns);
        Ok(())
    }

    /// All of `members` in one stack, unless they differ in format or width, or are `joined` of two stacks and not F16 in
    /// one part; says whether.
    fn stack(&mut self, members: &[Weight], joined: bool) -> Result<bool> {
        for &member in members {
            if self.is_sparse(member)? {
                return Ok(false);
            }
        }
        let mut rows = 0;
        let mut same = HashSet::new();
        let mut places = HashMap::new();
        for &member in members {
            let shape = self.weights.describe(member)?.1;
            same.insert((self.format(member)?, shape.cols.0));
            places.insert(member, rows..rows + shape.rows.0);
            rows += shape.rows.0;
        }
        let mut same = same.into_iter();
        let (Some((format, cols)), None) = (same.next(), same.next()) else {
            return Ok(false);
        };
        let limits = &self.kernels.gpu().capabilities().limits;
        let most = limits.binding_bytes.min(limits.buffer_bytes);
        let row = Format::F16.row_bytes(cols).unwrap_or(0) as u64;
        let bytes = row.saturating_mul(rows as u64);
        if joined && (format != Format::F16 || bytes > most) {
            return Ok(false);
        }
        let shape = Shape {
            rows: Rows(rows),
            cols: Cols(cols),
        };
        let made = self.fill(members, shape, format);
        if self.widens(&made) {
            return Ok(false);
        }
        let matrix = made?;
        for (member, rows) in &places {
            let view = matrix.view(rows.clone())?;
            self.resident.matrices.insert(*member, view);
        }
        let members = places;
        self.resident.stacks.push(WeightStack { matrix, members });
        Ok(true)
    }

    /// `members` one below the other.
    fn fill(&mut self, members: &[Weight], shape: Shape, format: Format) -> Result<GpuMatrix> {
        let gpu = self.kernels.gpu();
        let name = members
            .first()
            .map(|w| self.weights.name(*w))
            .unwrap_or_default();
        self.push(
            members,
            MatrixUpload::new(gpu, &name, shape, format, u64::MAX)?,
        )
    }

    /// All rows of `members`, one below the other, in the memory of `stack`.
    fn push(&mut self, members: &[Weight], mut stack: MatrixUpload) -> Result<GpuMatrix> {
        for &member in members {
            let (name, upload) = (self.weights.name(member), &mut self.upload);
            for rows in slabs(self.weights, member)? {
                self.weights.with_rows(member, rows, &mut |matrix| {
                    Ok(stack.push(&name, matrix, upload)?)
                })?;
            }
        }
        Ok(stack.finish()?)
    }

    fn vectors(&mut self) -> Result<()> {
        for group in self.resident.groups.clone() {
            let mut values = Vec::new();
            for &weight in &group {
                let len = self.weights.describe(weight)?.1.elements().unwrap_or(0);
                values.extend(self.weights.vector(weight, len)?);
            }
            let name = group
                .first()
                .map(|w| self.weights.name(*w))
                .unwrap_or_default();
            let vector = GpuVector::new(self.kernels.gpu(), &name, &values, &mut self.upload)?;
            self.resident.vectors.insert(group, vector);
        }
        Ok(())
    }

    /// The second halves `ups` of low-rank pairs one after the other, if kernels can read them like that; says whether.
    fn pairs(&mut self, ups: &[Weight]) -> Result<bool> {
        let (mut formats, mut ranks) = (HashSet::new(), Vec::new());
        let mut channels = 0;
        for &up in ups {
            if self.has(up) || self.is_sparse(up)? {
                return Ok(false);
            }
            let shape = self.weights.describe(up)?.1;
            formats.insert(self.format(up)?);
            ranks.push(shape.cols.0);
            channels = shape.rows.0;
        }
        let mut formats = formats.into_iter();
        let (Some(format), None, Some(first)) = (formats.next(), formats.next(), ups.first())
        else {
            return Ok(false);
        };
        let name = self.weights.name(*first);
        let made = LoraUp::new(self.kernels.gpu(), &name, format, channels, &ranks)?;
        let Some(made) = made else {
            return Ok(false);
        };
        let mut matrices = Vec::new();
        for (index, &up) in ups.iter().enumerate() {
            let room = made.filling(&self.weights.name(up), index)?;
            let filled = self.push(&[up], room);
            if self.widens(&filled) {
                return Ok(false);
            }
            matrices.push((up, filled?));
        }
        self.resident.matrices.extend(matrices);
        self.resident.pairs.insert(ups.to_vec(), made);
        Ok(true)
    }
}

/// Bytes of rows, as F32, that are made at once where a tensor does not lie in memory as it is.
const SLAB: usize = 8 << 20;

/// All rows of a tensor, in as many pieces as keep memory flat.
fn slabs(weights: &dyn Weights, weight: Weight) -> Result<impl Iterator<Item = Range<usize>>> {
    let shape = weights.describe(weight)?.1;
    let rows = shape.rows.0;
    let slab = if weights.is_in_place(weight) {
        rows.max(1)
    } else {
        (SLAB / (shape.cols.0 * 4).max(1))
            .max(1)
            .next_multiple_of(GpuColumns::OUTPUTS)
    };
    Ok((0..rows)
        .step_by(slab)
        .map(move |first| first..rows.min(first + slab)))
}

pub(super) fn groups(steps: &[Step]) -> impl Iterator<Item = &Group> {
    steps.iter().filter_map(|step| match step {
        Step::Group(group) => Some(&**group),
        _ => None,
    })
}

/// Matrices that may lie one below the other.
struct Stacked {
    members: Vec<Weight>,
    /// Whether it is two of the others in one.
    joined: bool,
}

/// What kernels read together, the best first: the large matrices of projections and the first halves of low-rank pairs,
/// both in one stack if they are F16; and the second halves of those that version 6 mixes with.
fn stacks(steps: &[Step]) -> Vec<Stacked> {
    let apart = |members| Stacked {
        members,
        joined: false,
    };
    let split = |group: &Group| match &group.kernel {
        Kernel::Project => {
            let weights = group.products().map(|product| product.weight);
            let (pairs, large): (Vec<_>, Vec<_>) = weights.partition(|w| is_pair(*w));
            let both = !large.is_empty() && !pairs.is_empty();
            let joined = both.then(|| Stacked {
                members: [&large[..], &pairs[..]].concat(),
                joined: true,
            });
            joined
                .into_iter()
                .chain([large, pairs].map(apart))
                .collect()
        }
        Kernel::Mix6(what) => vec![apart(what.ups().to_vec())],
        _ => Vec::new(),
    };
    let all = groups(steps).flat_map(split);
    all.filter(|stack| !stack.members.is_empty()).collect()
}

/// Whether a matrix is the first half of a low-rank pair.
pub(super) fn is_pair(weight: Weight) -> bool {
    matches!(weight, Weight::Block(_, B::LoraDown(_)))
}

/// The vectors of each operation, as its kernel binds them, and those of the groups of `steps`.
pub(super) fn vector_groups(model: &Model, steps: &[Step]) -> Vec<Vec<Weight>> {
    let graph = model.graph();
    let operations = graph.nodes().iter().flat_map(|n| operation_vectors(&n.op));
    let fused = groups(steps).filter_map(|group| group.vectors(graph));
    let mut seen = HashSet::new();
    let all = operations.chain(fused);
    all.filter(|group| seen.insert(group.clone())).collect()
}

/// The vectors of an operation, as its kernel binds them.
pub(super) fn operation_vectors(op: &Op) -> Vec<Vec<Weight>> {
    match op {
        Op::TokenShift { mixes, .. } => vec![mixes.clone()],
        other => other.vectors().into_iter().map(|w| vec![w]).collect(),
    }
}

/// The format on the GPU of a matrix: what a quantization has chosen, else as in its file, but for F32 and BF16.
pub(super) fn resident_format(
    weights: &dyn Weights,
    weight: Weight,
    chosen: Option<Chosen>,
    dtype: WeightsDType,
) -> Result<Format> {
    if let Some(chosen) = chosen {
        return Ok(chosen.format);
    }
    Ok(match (weights.describe(weight)?.0, dtype) {
        (Format::F32 | Format::Bf16, WeightsDType::F32) => Format::F32,
        (Format::F32 | Format::Bf16, WeightsDType::F16 | WeightsDType::Auto) => Format::F16,
        (other, _) => other,
    })
}
