//! Whether a model fits the memory of a GPU, asked before anything of it is there.
//!
//! What is compared is the least that a model runs with: prompts in the shortest chunks. Where there is room for longer
//! ones when the model is loaded, prompts are cut into those. Memory for prompts is taken when they come.

use super::{
    memory,
    plans::{SMALL, prompt},
};
use crate::{
    BatchShape, BlockWeight, Chosen, Error, LoadOptions, Model, Quantization, Result, Weight,
    WeightType, token_tables,
};
use rwkv_gpu::{Gpu, GpuMemory};
use rwkv_kernels::Kernels;
use std::{collections::HashMap, fmt, ops::Range};

/// What a model needs of a GPU's memory, what there is, and what would fit instead. Bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The GPU.
    pub adapter: String,
    /// The layers that were to lie there, where they are not all.
    pub part: Option<Range<usize>>,
    /// The tensors, as they would lie there.
    pub weights: u64,
    /// Tables of tokens that were to stay on the host, as they lie there.
    pub host_tables: u64,
    /// Sequences that were asked for.
    pub slots: usize,
    /// Their states.
    pub states: u64,
    /// The least of activations and of what kernels share.
    pub activations: u64,
    /// What the GPU has.
    pub available: u64,
    /// Whether that is what a limit leaves, and not what the driver says.
    pub limited: bool,
    /// The most precise weight type whose matrices would fit, and all that the model needs then.
    pub quantization: Option<(WeightType, u64)>,
    /// How many of the model's first layers would fit, if any; the others could be on the CPU.
    pub fewer_layers: Option<usize>,
    /// How many sequences would fit, if any.
    pub fewer_slots: Option<usize>,
}

/// Weight types to offer, the most precise first.
const OFFERED: [&str; 6] = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"];

/// Parameters of kernels, tables of batches and what results are read back through.
const SMALL_BUFFERS: u64 = 512 << 10;

impl Shortfall {
    /// All that the model needs.
    pub fn needed(&self) -> u64 {
        self.weights
            .saturating_add(self.states)
            .saturating_add(self.activations)
    }

    /// How much more than there is.
    pub fn missing(&self) -> u64 {
        self.needed().saturating_sub(self.available)
    }
}

/// `model` with its tables of tokens where it fits what `gpu` has, as far as that is known.
///
/// # Errors
/// [`Error::DoesNotFit`], or a tensor that cannot be described.
pub(super) fn check(model: &Model, gpu: &Gpu, options: &LoadOptions) -> Result<Model> {
    if gpu.memory().available().is_none() {
        return options.token_tables.unasked(model);
    }
    let placed = options.token_tables.placed(model);
    let needs: Vec<Need<'_>> = placed
        .iter()
        .map(|model| Need::of(model, gpu, options))
        .collect::<Result<_>>()?;
    let needed = |need: &Need<'_>| need.total(need.weights, options.slots);
    let mut memory = gpu.memory();
    if memory.available() < needs.first().map(needed) {
        // A model that was dropped just now may still have its memory.
        gpu.finish()?;
        memory = gpu.memory();
    }
    let Some(available) = memory.available() else {
        return options.token_tables.unasked(model);
    };
    if let Some(need) = needs.iter().find(|need| needed(need) <= available) {
        let (needed, host_tables) = (needed(need), need.host_tables);
        tracing::debug!(needed, available, host_tables, "memory");
        return Ok(need.model.clone());
    }
    let Some(need) = needs.iter().min_by_key(|need| needed(need)) else {
        return Ok(model.clone());
    };
    Err(Error::DoesNotFit(Box::new(
        need.shortfall(gpu, options, memory)?,
    )))
}

impl Need<'_> {
    /// What is said where there is less than this.
    fn shortfall(&self, gpu: &Gpu, options: &LoadOptions, memory: GpuMemory) -> Result<Shortfall> {
        let available = memory.available().unwrap_or(0);
        let fits = |weights: u64, slots: usize| self.total(weights, slots) <= available;
        let mut quantization = None;
        for name in OFFERED {
            let weight_type: WeightType = name.parse()?;
            let weights = self.weights_as(&Quantization::from(weight_type), options)?;
            if weights < self.weights && fits(weights, options.slots) {
                quantization = Some((weight_type, self.total(weights, options.slots)));
                break;
            }
        }
        let layers = self.model.layers();
        let first_fit = |layers: usize| {
            let part = self.model.part(0..layers);
            let mut placed = options.token_tables.placed(&part).into_iter();
            placed.any(|part| {
                let need = Need::of(&part, gpu, options);
                need.is_ok_and(|need| need.total(need.weights, options.slots) <= available)
            })
        };
        let fewer_layers = if layers.start == 0 {
            most(layers.end, first_fit)
        } else {
            None
        };
        Ok(Shortfall {
            adapter: gpu.name().to_owned(),
            part: (!self.model.is_whole()).then_some(layers),
            weights: self.weights,
            host_tables: self.host_tables,
            slots: options.slots,
            states: self.states(options.slots),
            activations: self.activations(options.slots),
            available,
            limited: memory.is_limited(),
            quantization,
            fewer_layers,
            fewer_slots: most(options.slots, |slots| fits(self.weights, slots)),
        })
    }
}

/// The largest number from 1 to below `end` that `fits`, where every smaller one does too.
fn most(end: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, end.max(1));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low).filter(|slots| *slots > 0)
}

/// What a model needs, by its parts.
struct Need<'a> {
    model: &'a Model,
    /// Whether inputs of products are rounded to f16.
    rounding: bool,
    weights: u64,
    /// What stays on the host.
    host_tables: u64,
    /// One sequence's state.
    state: u64,
    /// States that lie there beside those of the sequences: what they begin with, where the model says.
    initial_states: u64,
}

impl<'a> Need<'a> {
    fn of(model: &'a Model, gpu: &Gpu, options: &LoadOptions) -> Result<Self> {
        let mut layers = model.layers().map(|layer| {
            let weight = Weight::Block(layer, BlockWeight::InitialState);
            model.weights().has(weight)
        });
        let tuned = layers.any(|has| has);
        let mut need = Self {
            model,
            rounding: !gpu.capabilities().cooperative_matrices.is_empty(),
            weights: 0,
            host_tables: token_tables::host_bytes(model)?,
            state: model.state_layout().bytes(),
            initial_states: u64::from(tuned),
        };
        need.weights = match &options.quantization {
            None => memory::weights(model, &HashMap::new(), options.weights_dtype)?,
            Some(quantization) => need.weights_as(quantization, options)?,
        };
        Ok(need)
    }

    /// Bytes of the weights, quantized.
    fn weights_as(&self, quantization: &Quantization, options: &LoadOptions) -> Result<u64> {
        let chosen: HashMap<Weight, Chosen> = quantization.largest(self.model)?;
        memory::weights(self.model, &chosen, options.weights_dtype)
    }

    /// The states of `slots` sequences, and what they begin with.
    fn states(&self, slots: usize) -> u64 {
        self.state
            .saturating_mul((slots as u64).saturating_add(self.initial_states))
    }

    /// A step of one token for each of `slots` sequences, and the shortest chunk of a prompt.
    fn activations(&self, slots: usize) -> u64 {
        let decode = BatchShape {
            tokens: slots,
            spans: slots,
            outputs: slots,
        }
        .padded();
        let shapes = [decode, prompt(SMALL)];
        // The pool's sizes are a fifth larger at most, and half of that on average.
        let plans = memory::shared(self.model, &shapes, self.rounding);
        let plans = plans.saturating_add(plans / 8);
        // What another part reads comes back in two buffers, in turns; logits count as small.
        let results = shapes.map(|shape| memory::results(self.model, shape));
        let results = results.into_iter().max().filter(|bytes| *bytes > 0);
        let results = results.map_or(0, |bytes| 2 * bytes.next_power_of_two());
        plans.saturating_add(Kernels::MOST_SCRATCH_BYTES + SMALL_BUFFERS + results)
    }

    fn total(&self, weights: u64, slots: usize) -> u64 {
        weights
            .saturating_add(self.states(slots))
            .saturating_add(self.activations(slots))
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, weights) = (Bytes(self.needed()), Bytes(self.weights));
        match &self.part {
            None => f.write_str("the model needs ")?,
            Some(part) if part.len() == 1 => write!(f, "layer {} needs ", part.start)?,
            Some(part) => write!(
                f,
                "layers {}-{} need ",
                part.start,
                part.end.saturating_sub(1)
            )?,
        }
        write!(f, "{needed} of GPU memory (weights {weights}")?;
        if self.host_tables > 0 {
            let tables = Bytes(self.host_tables);
            write!(f, " besides {tables} of tables on the host")?;
        }
        f.write_str(", ")?;
        match self.slots {
            1 => write!(f, "one state {}", Bytes(self.states))?,
            slots => write!(f, "{slots} states {}", Bytes(self.states))?,
        }
        let activations = Bytes(self.activations);
        write!(f, ", activations {activations} at least), but ")?;
        let available = Bytes(self.available);
        if self.limited {
            write!(f, "--gpu-memory leaves {available}")?;
        } else {
            write!(f, "{} has {available} free", self.adapter)?;
        }
        let missing = Bytes(self.missing());
        write!(f, ", {missing} too little; what would fit: ")?;
        if let Some((weight_type, needed)) = &self.quantization {
            write!(f, "--quant {weight_type} ({}), ", Bytes(*needed))?;
        }
        if let Some(layers) = self.fewer_layers {
            write!(f, "--gpu-layers {layers}, ")?;
        }
        if let Some(slots) = self.fewer_slots {
            write!(f, "{slots} sequences at a time, ")?;
        }
        let fewer = self.fewer_layers.or(self.fewer_slots);
        if self.quantization.is_some() || fewer.is_some() {
            f.write_str("or ")?;
        }
        f.write_str("--device cpu")
    }
}

/// Bytes for people, in units of 1024.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match UNITS.into_iter().find(|(_, bits)| self.0 >> bits > 0) {
            Some((unit, bits)) => write!(f, "{:.2} {unit}", self.0 as f64 / (1u64 << bits) as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sizes() {
        #[track_caller]
        fn check(bytes: u64, want: &str) {
            assert_eq!(Bytes(bytes).to_string(), want);
        }
        check(0, "0 bytes");
        check(1023, "1023 bytes");
        check(1024, "1.00 KiB");
        check(1536 << 10, "1.50 MiB");
        check(5 << 30, "5.00 GiB");
        check(u64::MAX, "16777216.00 TiB");
    }

    #[test]
    fn fewer() {
        #[track_caller]
        fn check(end: usize, largest: usize, want: Option<usize>) {
            assert_eq!(most(end, |slots| slots <= largest), want);
        }
        check(0, 5, None);
        check(1, 0, None);
        check(1, 5, None);
        check(8, 0, None);
        check(8, 1, Some(1));
        check(8, 6, Some(6));
        check(8, 7, Some(7));
        check(usize::MAX, 12_345, Some(12_345));
    }

    /// One line, whatever fits instead.
    #[test]
    fn said() {
        let shortfall = Shortfall {
            adapter: "A100".to_owned(),
            part: None,
            weights: 3 << 30,
            host_tables: 0,
            slots: 1,
            states: 8 << 20,
            activations: 120 << 20,
            available: 2 << 30,
            limited: false,
            quantization: None,
            fewer_layers: None,
            fewer_slots: None,
        };
        assert_eq!(
            shortfall.to_string(),
            "the model needs 3.12 GiB of GPU memory (weights 3.00 GiB, one state 8.00 MiB, activations 120.00 MiB at \
             least), but A100 has 2.00 GiB free, 1.12 GiB too little; what would fit: --device cpu"
        );
        let offers = Shortfall {
            host_tables: 300 << 20,
            slots: 4,
            limited: true,
            quantization: Some(("q4_k".parse().unwrap(), 1 << 30)),
            fewer_layers: Some(20),
            fewer_slots: Some(2),
            part: Some(0..24),
            ..shortfall
        };
        let text = offers.to_string();
        let end = "what would fit: --quant q4_k (1.00 GiB), --gpu-layers 20, 2 sequences at a time, or --device cpu";
        assert!(text.ends_with(end), "{text}");
        let start = "layers 0-23 need 3.12 GiB of GPU memory (weights 3.00 GiB besides 300.00 MiB of tables on the host, 4";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("4 states 8.00 MiB"), "{text}");
        assert!(text.contains("but --gpu-memory leaves 2.00 GiB,"), "{text}");
    }
}
