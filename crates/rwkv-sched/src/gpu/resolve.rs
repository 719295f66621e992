//! Steps to dispatches: which kernel does what on which buffers.

use super::{
    plan::{Activations, Context},
    resolve_group::mistake,
    rounded::Rounded,
    states::StatePage,
};
use crate::{
    Error, Op, Result, ShiftHalf, ValueId, Weight,
    fuse::{LinearStep, Step, StoredShift},
};
use rwkv_gpu::Dispatch;
use rwkv_kernels::{
    BatchTables, GpuMatrix, GpuVector, View,
    ops::{
        Bonus, CsrLinear, Decay, Embed, Function, HalfRows, Keys7, Linear, Map, Norm, Previous,
        Select, SlicedSum, SparseLinear, SparseTuning, StoreShift, StreamLinear, TokenMatMul,
        TokenShift, Weighs, Wkv4, Wkv6, Wkv7,
    },
};
use std::collections::HashMap;

/// Turns steps into dispatches.
pub(super) struct Resolver<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) activations: &'a Activations,
    pub(super) batch: BatchTables<'a>,
    pub(super) rounded: Rounded,
    /// What the last dispatch adds up, if that is all it does.
    pub(super) sliced: Option<SlicedValue<'a>>,
    /// How many steps read each value.
    pub(super) readers: HashMap<ValueId, usize>,
}

/// A product with its residual or function, added up by the last dispatch unless the next one does it.
pub(super) struct SlicedValue<'a> {
    pub(super) y: ValueId,
    pub(super) residual: Option<View<'a>>,
    pub(super) function: Function,
    pub(super) sum: SlicedSum,
}

impl<'a> Resolver<'a> {
    pub(super) fn matrix(&self, weight: Weight) -> Result<&'a GpuMatrix> {
        self.context
            .weights
            .matrix(weight)
            .ok_or_else(|| self.missing(weight))
    }

    fn vector(&self, weight: Weight) -> Result<&'a GpuVector> {
        self.vectors(&[weight])
    }

    /// Vectors that lie one after the other.
    pub(super) fn vectors(&self, group: &[Weight]) -> Result<&'a GpuVector> {
        let first = group.first().copied().unwrap_or(Weight::Head);
        let vectors = self.context.weights.vectors(group);
        vectors.ok_or_else(|| self.missing(first))
    }

    fn missing(&self, weight: Weight) -> Error {
        missing(self.context, weight)
    }

    /// Adds the dispatches of `step` to `out`.
    pub(super) fn resolve(&mut self, step: &Step, out: &mut Vec<Dispatch>) -> Result<()> {
        let sliced = self.sliced.take();
        match step {
            Step::Linear(step) => self.linear(step, sliced, out),
            Step::Group(group) => self.group(group, sliced, out),
            Step::Node(index) => {
                let node = &self.context.model.graph().nodes()[*index];
                let inputs = node
                    .inputs
                    .iter()
                    .map(|id| self.activations.view(*id))
                    .collect::<Result<Vec<_>>>()?;
                let y = self.activations.view(node.outputs[0])?;
                self.node(&node.op, &inputs, y, out)
            }
        }
    }

    /// A product whose input was rounded to f16 when it was made.
    fn linear_of_halves(
        &mut self,
        step: &LinearStep,
        halves: &HalfRows,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let kernels = self.context.kernels;
        let op = Linear {
            x: halves.stand_in(),
            weight: self.matrix(step.weight)?,
            bias: step.bias.map(|b| self.vector(b)).transpose()?,
            function: step.function,
            residual: step
                .residual
                .map(|r| self.activations.view(r))
                .transpose()?,
            y: self.activations.view(step.y)?,
        };
        let shape = kernels.rounding_shape(&op).ok_or_else(mistake)?;
        out.extend(kernels.coop_linear(&op, halves, shape)?);
        let sum = kernels.sliced_linear(&op, halves, shape)?;
        let residual = step.residual.map(|r| self.activations.view(r));
        self.leave_sliced(step, residual.transpose()?, sum);
        Ok(())
    }

    /// As [`half_rows`](rwkv_kernels::Kernels::half_rows) of a product's input; of slices, if they are that.
    fn round(
        &mut self,
        step: &LinearStep,
        x: View<'_>,
        sliced: Option<SlicedValue<'_>>,
        out: &mut Vec<Dispatch>,
    ) -> Result<HalfRows> {
        if let Some(halves) = self.rounded.get(step.x) {
            return Ok(halves);
        }
        let kernels = self.context.kernels;
        let halves = self.rounded.place(step.x, x.rows, x.width)?;
        // No buffer is both read and written.
        let sliced = sliced.filter(|sliced| sliced.sum.halves().buffer() != halves.buffer());
        if let Some(sliced) = sliced {
            out.pop();
            out.push(kernels.half_rows_of_slices(&sliced.sum, sliced.function, &halves)?);
        } else {
            out.push(kernels.half_rows(&x, &halves)?);
        }
        Ok(halves)
    }

    fn linear(
        &mut self,
        step: &LinearStep,
        sliced: Option<SlicedValue<'_>>,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let kernels = self.context.kernels;
        if let Some(halves) = self.activations.halves(step.x) {
            return self.linear_of_halves(step, &halves, out);
        }
        let x = self.activations.view(step.x)?;
        let y = self.activations.view(step.y)?;
        let residual = step.residual.map(|r| self.activations.view(r));
        let residual = residual.transpose()?;
        let plain = step.bias.is_none();
        // A product may store the shift vector of one page; the other pages', or all, take a dispatch each.
        let mut stores = Vec::new();
        if let Some(stored) = &step.stores {
            for page in self.context.states.pages() {
                stores.push(self.stored(stored, page)?);
            }
        }
        let mut stores = stores.into_iter().peekable();
        let columns = self.context.weights.columns(step.weight);
        // Slices that only this product reads.
        let alone = self.readers.get(&step.x) == Some(&1);
        let input = sliced.filter(|s| alone && s.y == step.x && s.residual.is_none());
        let mut sliced = None;
        if let Some(weight) = columns
            && plain
            && step.function == Function::Identity
        {
            let op = SparseLinear {
                x,
                weight,
                residual,
                y,
                store: stores.next(),
                dense: false,
                tuning: SparseTuning::default(),
            };
            let shape = kernels.coop_column_shape(&op);
            if let (Some(input), Some(shape)) = (input, shape) {
                let halves = self.round(step, x, Some(input), out)?;
                out.extend(kernels.coop_columns(&op, &halves, shape)?);
                sliced = kernels.sliced_columns(&op, Some(&halves))?;
            } else {
                out.extend(kernels.sparse_linear(&op)?);
                sliced = kernels.sliced_columns(&op, None)?;
            }
        } else if let Some(weight) = self.context.weights.sparse(step.weight) {
            out.extend(kernels.csr_linear(&CsrLinear {
                x,
                weight,
                bias: step.bias.map(|b| self.vector(b)).transpose()?,
                function: step.function,
                residual,
                y,
            })?);
        } else if let weight = self.matrix(step.weight)?
            && x.rows == 1
            && plain
            && !self.context.deterministic
            && kernels.stream_linear_suits(weight, false)
        {
            let beside = |store: &StoreShift<'_>| {
                store.x.buffer == x.buffer && kernels.stream_linear_suits(weight, true)
            };
            let op = StreamLinear {
                x,
                weight,
                function: step.function,
                residual,
                y,
                stores: stores.next_if(beside),
            };
            out.extend(kernels.stream_linear(&op, None)?);
        } else {
            let op = Linear {
                x,
                weight: self.matrix(step.weight)?,
                bias: step.bias.map(|b| self.vector(b)).transpose()?,
                function: step.function,
                residual,
                y,
            };
            if self.context.deterministic {
                out.extend(kernels.linear_in_one_order(&op)?);
            } else if let Some(shape) = kernels.rounding_shape(&op) {
                let halves = self.round(step, x, input, out)?;
                out.extend(kernels.coop_linear(&op, &halves, shape)?);
                sliced = kernels.sliced_linear(&op, &halves, shape)?;
            } else {
                out.extend(kernels.linear(&op)?);
            }
        }
        for store in stores {
            out.push(kernels.store_shift(&store)?);
            sliced = None;
        }
        self.leave_sliced(step, residual, sliced);
        Ok(())
    }

    fn leave_sliced(
        &mut self,
        step: &LinearStep,
        residual: Option<View<'a>>,
        sum: Option<SlicedSum>,
    ) {
        self.sliced = sum.map(|sum| SlicedValue {
            y: step.y,
            residual,
            function: step.function,
            sum,
        });
    }

    fn stored(&self, stored: &StoredShift, page: &'a StatePage) -> Result<StoreShift<'a>> {
        Ok(StoreShift {
            batch: self.batch,
            x: self.activations.view(stored.x)?,
            state: page.shift(stored.layer),
            page: page.page(),
            which: half_index(stored.half),
        })
    }

    fn node(&self, op: &Op, x: &[View<'_>], y: View<'_>, out: &mut Vec<Dispatch>) -> Result<()> {
        let (kernels, batch) = (self.context.kernels, self.batch);
        match op {
            // Written by the host before the step.
            Op::Input => {}
            Op::Embed { table } => out.extend(kernels.embed(&Embed {
                batch,
                table: self.matrix(*table)?,
                y,
            })?),
            Op::MatMul { .. } => {
                return Err(Error::Config {
                    problem: "a matrix product that was not fused".to_owned(),
                });
            }
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            } => {
                let (weight, bias) = (self.vector(*weight)?, self.vector(*bias)?);
                out.push(kernels.norm(&Norm {
                    x: x[0],
                    group: *group,
                    weight,
                    bias,
                    epsilon: *epsilon,
                    y,
                })?);
            }
            Op::TokenShift {
                layer,
                half,
                weighs,
                mixes,
            } => self.token_shift(*layer, *half, *weighs, mixes, x[0], y, out)?,
            Op::Previous { layer, half } => {
                let which = half_index(*half);
                for page in self.context.states.pages() {
                    out.push(kernels.previous(&Previous {
                        batch,
                        x: x[0],
                        state: page.shift(*layer),
                        page: page.page(),
                        which,
                        y,
                    })?);
                }
                self.store_shift(*layer, *half, x[0], out)?;
            }
            Op::AddVector { vector } => {
                out.push(kernels.map(Map::AddVector(x[0], self.vector(*vector)?), y)?);
            }
            Op::Apply(function) => out.push(kernels.map(Map::Apply(*function, x[0]), y)?),
            Op::Add => out.push(kernels.map(Map::Add(x[0], x[1]), y)?),
            Op::Multiply => out.push(kernels.map(Map::Multiply(x[0], x[1]), y)?),
            Op::Lerp => out.push(kernels.map(Map::Lerp(x[0], x[1], x[2]), y)?),
            Op::LerpVector { vector } => {
                let map = Map::LerpVector(x[0], x[1], self.vector(*vector)?);
                out.push(kernels.map(map, y)?);
            }
            Op::TokenMatMul => out.push(kernels.token_matmul(&TokenMatMul {
                x: x[0],
                e: x[1],
                y,
            })?),
            Op::Keys7 {
                removal,
                replacement,
                head_size,
            } => {
                let (k_k, k_a) = (self.vector(*removal)?, self.vector(*replacement)?);
                out.push(kernels.keys7(&Keys7 {
                    k: x[0],
                    a: x[1],
                    k_k,
                    k_a,
                    head_size: *head_size,
                    y,
                })?);
            }
            Op::Wkv4 {
                layer,
                decay,
                bonus,
            } => {
                let (decay, bonus) = (self.vector(*decay)?, self.vector(*bonus)?);
                for page in self.context.states.pages() {
                    out.push(kernels.wkv4(&Wkv4 {
                        batch,
                        k: x[0],
                        v: x[1],
                        decay,
                        bonus,
                        state: page.wkv(*layer),
                        page: page.page(),
                        y,
                    })?);
                }
            }
            Op::Wkv6 {
                layer,
                head_size,
                decay,
                bonus,
            } => {
                let w = match decay {
                    Some(decay) => Decay::Channels(self.vector(*decay)?),
                    None => Decay::Tokens(x[3]),
                };
                let u = self.vector(*bonus)?;
                for page in self.context.states.pages() {
                    let op = Wkv6 {
                        batch,
                        r: x[0],
                        w,
                        k: x[1],
                        v: x[2],
                        u,
                        head_size: *head_size,
                        state: page.wkv(*layer),
                        page: page.page(),
                        y,
                    };
                    out.push(if self.context.deterministic {
                        kernels.wkv6_in_one_order(&op)?
                    } else {
                        kernels.wkv6(&op)?
                    });
                }
            }
            Op::Wkv7 { layer, head_size } => {
                for page in self.context.states.pages() {
                    let op = Wkv7 {
                        batch,
                        r: x[0],
                        w: x[1],
                        // The removal key, x[3], follows the replacement key.
                        keys: x[2],
                        v: x[4],
                        a: x[5],
                        head_size: *head_size,
                        state: page.wkv(*layer),
                        page: page.page(),
                        y,
                    };
                    out.push(if self.context.deterministic {
                        kernels.wkv7_in_one_order(&op)?
                    } else {
                        kernels.wkv7(&op)?
                    });
                }
            }
            Op::Bonus { weight, head_size } => {
                let r_k = self.vector(*weight)?;
                out.push(kernels.bonus(&Bonus {
                    x: x[0],
                    r: x[1],
                    k: x[2],
                    v: x[3],
                    r_k,
                    head_size: *head_size,
                    y,
                })?);
            }
            Op::Select => out.push(kernels.select(&Select { batch, x: x[0], y })?),
        }
        Ok(())
    }

    /// Reads the state, then stores the spans' last rows: two dispatches, since a workgroup of the first may run after
    /// another one has finished.
    #[allow(clippy::too_many_arguments, reason = "the fields of one operation")]
    fn token_shift(
        &self,
        layer: usize,
        half: ShiftHalf,
        weighs: Weighs,
        mixes: &[Weight],
        x: View<'_>,
        y: View<'_>,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let mix = self
            .context
            .weights
            .vectors(mixes)
            .ok_or_else(|| self.missing(mixes[0]))?;
        for page in self.context.states.pages() {
            out.push(self.context.kernels.token_shift(&TokenShift {
                batch: self.batch,
                x,
                mix,
                mixes: mixes.len(),
                weighs,
                state: page.shift(layer),
                page: page.page(),
                which: half_index(half),
                y,
            })?);
        }
        self.store_shift(layer, half, x, out)
    }

    /// Keeps the spans' last rows.
    fn store_shift(
        &self,
        layer: usize,
        half: ShiftHalf,
        x: View<'_>,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        for page in self.context.states.pages() {
            out.push(self.context.kernels.store_shift(&StoreShift {
                batch: self.batch,
                x,
                state: page.shift(layer),
                page: page.page(),
                which: half_index(half),
            })?);
        }
        Ok(())
    }
}

/// The place of a shift vector in the state.
pub(super) fn half_index(half: ShiftHalf) -> u32 {
    match half {
        ShiftHalf::Att => 0,
        ShiftHalf::Ffn => 1,
    }
}

/// A tensor that should be there and is not.
pub(super) fn missing(context: &Context<'_>, weight: Weight) -> Error {
    Error::Weight {
        name: context.model.weights().name(weight),
        problem: "not on the GPU".to_owned(),
    }
}
