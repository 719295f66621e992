//! One batch on its way through the graph.

use super::{
    rows::{by_rows, by_rows_of_two, part},
    spare::Spare,
};
use crate::{Domain, Model, Op, Result, ShiftHalf, State, ValueId, Weight, Weights, batch::Tables};
use rustc_hash::FxHashMap;
use rwkv_kernels::{
    Simd, Span,
    ops::{self, Decay, Weighs, Wkv4Operands, Wkv6Operands, Wkv7Operands},
    simd,
};
use std::ops::Range;

/// One batch on its way through the graph.
pub(super) struct Step<'a> {
    pub(super) model: &'a Model,
    pub(super) tables: &'a Tables,
    pub(super) states: &'a mut [State],
    pub(super) vectors: &'a FxHashMap<Weight, Vec<f32>>,
    pub(super) values: Vec<Option<Vec<f32>>>,
    pub(super) spare: &'a mut Spare,
    pub(super) simd: Simd,
}

impl Step<'_> {
    fn rows(&self, domain: Domain) -> usize {
        match domain {
            Domain::Tokens => self.tables.tokens.len(),
            Domain::Outputs => self.tables.outputs.len(),
        }
    }

    /// A value that an earlier node made.
    fn value(&self, id: ValueId) -> &[f32] {
        self.values[id.0].as_deref().unwrap_or(&[])
    }

    fn vector(&self, weight: Weight) -> &[f32] {
        self.vectors.get(&weight).map_or(&[], Vec::as_slice)
    }

    /// Lets go of a value that no later node reads.
    pub(super) fn drop(&mut self, id: ValueId) {
        if let Some(value) = self.values[id.0].take() {
            self.spare.give(value);
        }
    }

    /// Computes `outputs` from `inputs`.
    pub(super) fn node(&mut self, op: &Op, inputs: &[ValueId], outputs: &[ValueId]) -> Result<()> {
        match op {
            // It is there.
            Op::Input => return Ok(()),
            Op::TokenShift {
                layer,
                half,
                weighs,
                mixes,
            } => return self.token_shift(*layer, *half, *weighs, mixes, inputs[0], outputs),
            _ => {}
        }
        let shape = self.model.graph().value(outputs[0]);
        let (width, level) = (shape.width, self.simd);
        let mut y = self.spare.take(self.rows(shape.domain) * width);
        let mut second = match op {
            Op::Keys7 { .. } => self.spare.take(y.len()),
            _ => Vec::new(),
        };
        let x = |i: usize| self.value(inputs[i]);
        // Rows of the input, whose width may be another one than the result's.
        let rows = |i: usize, rows: &Range<usize>| {
            part(x(i), self.model.graph().value(inputs[i]).width, rows)
        };
        match op {
            Op::Input | Op::TokenShift { .. } => {}
            Op::Embed { table } => {
                let ids = self.tables.tokens.iter().map(|t| t.id);
                ops::embed(ids, &self.model.weights().matrix(*table)?, &mut y)?;
            }
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            } => {
                let (weight, bias) = (self.vector(*weight), self.vector(*bias));
                by_rows(&mut y, width, |at, y| {
                    simd::norm(level, rows(0, &at)?, *group, weight, bias, *epsilon, y)
                })?;
            }
            Op::Previous { layer, half } => self.previous(*layer, *half, inputs[0], &mut y),
            Op::MatMul { weight } => {
                matmul(level, self.model.weights(), *weight, x(0), &mut y)?;
            }
            Op::AddVector { vector } => {
                let vector = self.vector(*vector);
                by_rows(&mut y, width, |at, y| {
                    ops::add_vector(rows(0, &at)?, vector, y);
                    Ok(())
                })?;
            }
            Op::Apply(function) => by_rows(&mut y, width, |at, y| {
                simd::apply(level, *function, rows(0, &at)?, y);
                Ok(())
            })?,
            Op::Add => by_rows(&mut y, width, |at, y| {
                ops::add(rows(0, &at)?, rows(1, &at)?, y);
                Ok(())
            })?,
            Op::Multiply => by_rows(&mut y, width, |at, y| {
                ops::multiply(rows(0, &at)?, rows(1, &at)?, y);
                Ok(())
            })?,
            Op::Lerp => by_rows(&mut y, width, |at, y| {
                ops::lerp(rows(0, &at)?, rows(1, &at)?, rows(2, &at)?, y);
                Ok(())
            })?,
            Op::LerpVector { vector } => {
                let vector = self.vector(*vector);
                by_rows(&mut y, width, |at, y| {
                    ops::lerp_vector(rows(0, &at)?, rows(1, &at)?, vector, y);
                    Ok(())
                })?;
            }
            Op::TokenMatMul => {
                let inner = self.model.graph().value(inputs[0]).width;
                by_rows(&mut y, width, |at, y| {
                    ops::token_matmul(rows(0, &at)?, rows(1, &at)?, inner, width, y)
                })?;
            }
            Op::Keys7 {
                removal,
                replacement,
                head_size,
            } => {
                let (k_k, k_a) = (self.vector(*removal), self.vector(*replacement));
                by_rows_of_two(&mut y, &mut second, width, |at, y, kappa| {
                    let (k, a) = (rows(0, &at)?, rows(1, &at)?);
                    simd::keys7(level, k, a, k_k, k_a, *head_size, y, kappa)
                })?;
            }
            Op::Wkv4 {
                layer,
                decay,
                bonus,
            } => self.wkv4(*layer, *decay, *bonus, inputs, &mut y)?,
            Op::Wkv6 {
                layer,
                head_size,
                decay,
                bonus,
            } => self.wkv6(*layer, *head_size, *decay, *bonus, inputs, &mut y)?,
            Op::Wkv7 { layer, head_size } => self.wkv7(*layer, *head_size, inputs, &mut y)?,
            Op::Bonus { weight, head_size } => {
                let weight = self.vector(*weight);
                by_rows(&mut y, width, |at, y| {
                    let (x, r, k, v) = (rows(0, &at)?, rows(1, &at)?, rows(2, &at)?, rows(3, &at)?);
                    simd::bonus(level, x, r, k, v, weight, *head_size, y)
                })?;
            }
            Op::Select => ops::select(x(0), width, &self.tables.outputs, &mut y),
        }
        self.values[outputs[0].0] = Some(y);
        if let Some(id) = outputs.get(1) {
            self.values[id.0] = Some(second);
        }
        Ok(())
    }

    fn token_shift(
        &mut self,
        layer: usize,
        half: ShiftHalf,
        weighs: Weighs,
        mixes: &[Weight],
        input: ValueId,
        outputs: &[ValueId],
    ) -> Result<()> {
        let mut previous = self.spare.take(self.value(input).len());
        self.previous(layer, half, input, &mut previous);
        for (mix, id) in mixes.iter().zip(outputs) {
            let mut y = self.spare.take(previous.len());
            let (mix, x) = (self.vector(*mix), self.value(input));
            let width = mix.len();
            by_rows(&mut y, width, |at, y| {
                let (x, previous) = (part(x, width, &at)?, part(&previous, width, &at)?);
                ops::mix(x, previous, weighs, mix, y);
                Ok(())
            })?;
            self.values[id.0] = Some(y);
        }
        self.spare.give(previous);
        Ok(())
    }

    /// The row before each of `input`; the state's vectors are read, then become the spans' last rows.
    fn previous(&mut self, layer: usize, half: ShiftHalf, input: ValueId, previous: &mut [f32]) {
        let width = self.model.graph().value(input).width;
        let kept = match half {
            ShiftHalf::Att => 0..width,
            ShiftHalf::Ffn => width..2 * width,
        };
        let x = self.values[input.0].take().unwrap_or_default();
        let state = |slot: u32| &self.states[slot as usize].shift[layer][kept.clone()];
        ops::previous_rows(&x, width, &self.tables.spans, state, previous);
        for span in &self.tables.spans {
            let last = (span.start + span.length - 1) as usize * width;
            self.states[span.slot as usize].shift[layer][kept.clone()]
                .copy_from_slice(&x[last..last + width]);
        }
        self.values[input.0] = Some(x);
    }

    fn wkv4(
        &mut self,
        layer: usize,
        decay: Weight,
        bonus: Weight,
        inputs: &[ValueId],
        y: &mut [f32],
    ) -> Result<()> {
        self.recurrence(layer, y, |step, span, state, y| {
            let operands = Wkv4Operands {
                k: step.rows_of(inputs[0], span),
                v: step.rows_of(inputs[1], span),
                decay: step.vector(decay),
                bonus: step.vector(bonus),
            };
            Ok(ops::wkv4(operands, state, y)?)
        })
    }

    fn wkv6(
        &mut self,
        layer: usize,
        head_size: usize,
        decay: Option<Weight>,
        bonus: Weight,
        inputs: &[ValueId],
        y: &mut [f32],
    ) -> Result<()> {
        self.recurrence(layer, y, |step, span, state, y| {
            let operands = Wkv6Operands {
                r: step.rows_of(inputs[0], span),
                k: step.rows_of(inputs[1], span),
                v: step.rows_of(inputs[2], span),
                w: match decay {
                    Some(decay) => Decay::Channels(step.vector(decay)),
                    None => Decay::Tokens(step.rows_of(inputs[3], span)),
                },
                u: step.vector(bonus),
            };
            Ok(simd::wkv6(step.simd, operands, head_size, state, y)?)
        })
    }

    fn wkv7(
        &mut self,
        layer: usize,
        head_size: usize,
        inputs: &[ValueId],
        y: &mut [f32],
    ) -> Result<()> {
        self.recurrence(layer, y, |step, span, state, y| {
            let operands = Wkv7Operands {
                r: step.rows_of(inputs[0], span),
                w: step.rows_of(inputs[1], span),
                k: step.rows_of(inputs[2], span),
                kappa: step.rows_of(inputs[3], span),
                v: step.rows_of(inputs[4], span),
                a: step.rows_of(inputs[5], span),
            };
            Ok(simd::wkv7(step.simd, operands, head_size, state, y)?)
        })
    }

    /// Runs `advance` on every span, with its slot's state of `layer` and its rows of `y`.
    fn recurrence(
        &mut self,
        layer: usize,
        y: &mut [f32],
        advance: impl Fn(&Self, &Span, &mut [f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let width = self.model.config().width;
        for span in &self.tables.spans {
            let slot = span.slot as usize;
            let mut state = std::mem::take(&mut self.states[slot].wkv[layer]);
            let rows = span.start as usize * width..(span.start + span.length) as usize * width;
            let result = advance(self, span, &mut state, &mut y[rows]);
            self.states[slot].wkv[layer] = state;
            result?;
        }
        Ok(())
    }

    /// The rows of `span` in a value.
    fn rows_of(&self, id: ValueId, span: &Span) -> &[f32] {
        let width = self.model.graph().value(id).width;
        let rows = span.start as usize * width..(span.start + span.length) as usize * width;
        self.value(id).get(rows).unwrap_or(&[])
    }
}

/// Bytes of rows that are made at a time: they stay in the cache.
const MADE: usize = 1 << 20;

/// `W x` for each token. Of a matrix that does not lie anywhere as it is, a few rows at a time are made.
fn matmul(
    level: Simd,
    weights: &dyn Weights,
    weight: Weight,
    x: &[f32],
    y: &mut [f32],
) -> Result<()> {
    if let Some(sparse) = weights.sparse(weight)? {
        return Ok(ops::csr_matmul(x, &sparse, y)?);
    }
    if weights.is_in_place(weight) {
        return Ok(simd::matmul(level, x, &weights.matrix(weight)?, y)?);
    }
    let (format, shape) = weights.describe(weight)?;
    let (rows, row_bytes) = (shape.rows.0, format.row_bytes(shape.cols.0).unwrap_or(0));
    let tokens = y.len() / rows.max(1);
    let slab = (MADE / row_bytes.max(1)).max(1);
    for first in (0..rows).step_by(slab) {
        let last = rows.min(first + slab);
        let mut part = vec![0.0; tokens * (last - first)];
        weights.with_rows(weight, first..last, &mut |matrix| {
            Ok(simd::matmul(level, x, matrix, &mut part)?)
        })?;
        for (y, part) in y
            .chunks_exact_mut(rows)
            .zip(part.chunks_exact(last - first))
        {
            y[first..last].copy_from_slice(part);
        }
    }
    Ok(())
}
