//! The CPU executor: interprets the logical graph, operation by operation, with the twins of `rwkv-kernels`. Weights
//! are used where they are (a mapped file, say). It is the oracle of the GPU executor.

use crate::{
    Batch, Domain, Error, Executor, Graph, Logits, Model, ModelConfig, Op, Result, ShiftHalf,
    SlotId, State, StateLayout, ValueId, Weight, batch::Tables,
};
use rwkv_kernels::ops::{self, Wkv7Operands};
use std::collections::HashMap;

/// Runs a model on the processor.
pub struct CpuExecutor {
    model: Model,
    name: String,
    layout: StateLayout,
    states: Vec<State>,
    /// Vectors in f32: small, and used by every token.
    vectors: HashMap<Weight, Vec<f32>>,
    /// After which node each value is dropped.
    last_use: Vec<usize>,
}

/// Tokens that share the expansion of a weight row; past this the activations leave the cache.
const CHUNK: usize = 128;

impl CpuExecutor {
    /// An executor with `slots` empty sequences.
    ///
    /// # Errors
    /// [`Error::Weight`] for a vector that cannot be read, [`Error::Config`] for no slots.
    pub fn new(model: &Model, slots: usize) -> Result<Self> {
        if slots == 0 {
            return Err(Error::Config {
                problem: "0 slots".to_owned(),
            });
        }
        let layout = model.state_layout();
        let mut vectors = HashMap::new();
        for weight in model.graph().nodes().iter().flat_map(|n| n.op.vectors()) {
            let len = model
                .weights()
                .matrix(weight)?
                .shape()
                .elements()
                .unwrap_or(0);
            vectors.insert(weight, model.weights().vector(weight, len)?);
        }
        let threads = rayon::current_num_threads();
        Ok(Self {
            name: format!(
                "CPU ({threads} thread{})",
                if threads == 1 { "" } else { "s" }
            ),
            layout,
            states: vec![State::zeros(layout); slots],
            vectors,
            last_use: last_uses(model.graph()),
            model: model.clone(),
        })
    }

    fn slot(&mut self, slot: SlotId) -> Result<&mut State> {
        let slots = self.states.len();
        self.states
            .get_mut(slot.0 as usize)
            .ok_or(Error::SlotRange { slot, slots })
    }
}

/// For each value, the index of the last node that reads it.
fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut last = vec![0; graph.value_count()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for id in node.inputs.iter().chain(&node.outputs) {
            last[id.0] = index;
        }
    }
    if let Some(logits) = graph.logits() {
        last[logits.0] = usize::MAX;
    }
    last
}

impl Executor for CpuExecutor {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn device(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> usize {
        self.states.len()
    }

    fn chunk(&self) -> usize {
        CHUNK
    }

    fn device_bytes(&self) -> u64 {
        let vectors: usize = self.vectors.values().map(|v| v.len() * 4).sum();
        vectors as u64 + self.layout.bytes() * self.states.len() as u64
    }

    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        let tables = batch.tables(self.model.config().vocab, self.states.len())?;
        let graph = self.model.graph();
        let mut step = Step {
            model: &self.model,
            tables: &tables,
            states: &mut self.states,
            vectors: &self.vectors,
            values: vec![None; graph.value_count()],
        };
        for (index, node) in graph.nodes().iter().enumerate() {
            step.node(&node.op, &node.inputs, &node.outputs)?;
            for id in node.inputs.iter().chain(&node.outputs) {
                if self.last_use[id.0] <= index {
                    step.values[id.0] = None;
                }
            }
        }
        let values = graph
            .logits()
            .and_then(|id| step.values[id.0].take())
            .unwrap_or_default();
        Ok(Logits::new(self.model.config().vocab, values))
    }

    fn reset(&mut self, slot: SlotId) -> Result<()> {
        let zeros = State::zeros(self.layout);
        *self.slot(slot)? = zeros;
        Ok(())
    }

    fn state(&mut self, slot: SlotId) -> Result<State> {
        self.slot(slot).cloned()
    }

    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
        state.check(self.layout)?;
        self.slot(slot)?.clone_from(state);
        Ok(())
    }
}

/// One batch on its way through the graph.
struct Step<'a> {
    model: &'a Model,
    tables: &'a Tables,
    states: &'a mut [State],
    vectors: &'a HashMap<Weight, Vec<f32>>,
    values: Vec<Option<Vec<f32>>>,
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

    fn node(&mut self, op: &Op, inputs: &[ValueId], outputs: &[ValueId]) -> Result<()> {
        let shape = self.model.graph().value(outputs[0]);
        let width = shape.width;
        let mut y = vec![0.0; self.rows(shape.domain) * width];
        let x = |i: usize| self.value(inputs[i]);
        let mut second = None;
        match op {
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
                ops::norm(
                    x(0),
                    *group,
                    self.vector(*weight),
                    self.vector(*bias),
                    *epsilon,
                    &mut y,
                )?;
            }
            Op::TokenShift { layer, half, mixes } => {
                self.token_shift(*layer, *half, mixes, inputs[0], outputs);
                return Ok(());
            }
            Op::MatMul { weight } => {
                ops::matmul(x(0), &self.model.weights().matrix(*weight)?, &mut y)?;
            }
            Op::AddVector { vector } => ops::add_vector(x(0), self.vector(*vector), &mut y),
            Op::Apply(function) => {
                for (x, y) in x(0).iter().zip(&mut y) {
                    *y = function.apply(*x);
                }
            }
            Op::Add => ops::add(x(0), x(1), &mut y),
            Op::Multiply => ops::multiply(x(0), x(1), &mut y),
            Op::Lerp => ops::lerp(x(0), x(1), x(2), &mut y),
            Op::Keys7 {
                removal,
                replacement,
                head_size,
            } => {
                let mut kappa = vec![0.0; y.len()];
                let (k_k, k_a) = (self.vector(*removal), self.vector(*replacement));
                ops::keys7(x(0), x(1), k_k, k_a, *head_size, &mut y, &mut kappa)?;
                second = Some(kappa);
            }
            Op::Wkv7 { layer, head_size } => self.wkv7(*layer, *head_size, inputs, &mut y)?,
            Op::Bonus { weight, head_size } => {
                ops::bonus(
                    x(0),
                    x(1),
                    x(2),
                    x(3),
                    self.vector(*weight),
                    *head_size,
                    &mut y,
                )?;
            }
            Op::Select => ops::select(x(0), width, &self.tables.outputs, &mut y),
        }
        self.values[outputs[0].0] = Some(y);
        if let (Some(value), Some(id)) = (second, outputs.get(1)) {
            self.values[id.0] = Some(value);
        }
        Ok(())
    }

    fn token_shift(
        &mut self,
        layer: usize,
        half: ShiftHalf,
        mixes: &[Weight],
        input: ValueId,
        outputs: &[ValueId],
    ) {
        let width = self.model.graph().value(input).width;
        let kept = match half {
            ShiftHalf::Att => 0..width,
            ShiftHalf::Ffn => width..2 * width,
        };
        let x = self.values[input.0].take().unwrap_or_default();
        let mut previous = vec![0.0; x.len()];
        let state = |slot: u32| &self.states[slot as usize].shift[layer][kept.clone()];
        ops::previous_rows(&x, width, &self.tables.spans, state, &mut previous);
        for (mix, id) in mixes.iter().zip(outputs) {
            let mut y = vec![0.0; x.len()];
            ops::mix(&x, &previous, self.vector(*mix), &mut y);
            self.values[id.0] = Some(y);
        }
        for span in &self.tables.spans {
            let last = (span.start + span.length - 1) as usize * width;
            self.states[span.slot as usize].shift[layer][kept.clone()]
                .copy_from_slice(&x[last..last + width]);
        }
        self.values[input.0] = Some(x);
    }

    fn wkv7(
        &mut self,
        layer: usize,
        head_size: usize,
        inputs: &[ValueId],
        y: &mut [f32],
    ) -> Result<()> {
        let width = self.model.config().width;
        for span in &self.tables.spans {
            let rows = span.start as usize * width..(span.start + span.length) as usize * width;
            let value = |i: usize| -> &[f32] {
                &self.values[inputs[i].0].as_deref().unwrap_or(&[])[rows.clone()]
            };
            let operands = Wkv7Operands {
                r: value(0),
                w: value(1),
                k: value(2),
                kappa: value(3),
                v: value(4),
                a: value(5),
            };
            ops::wkv7(
                operands,
                head_size,
                &mut self.states[span.slot as usize].wkv[layer],
                &mut y[rows.clone()],
            )?;
        }
        Ok(())
    }
}
