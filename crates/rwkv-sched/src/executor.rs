//! What an executor is, and choosing one for a device.

use crate::{
    Adapter, Batch, BlendProgress, Burst, Counted, CpuExecutor, Decoding, Device, ExecutorStats,
    Expected, GpuExecutor, Logits, Model, ModelConfig, OnDrawn, OnTokens, Placement, Quantization,
    Result, SlotId, SparseWeights, SplitExecutor, State, StepTimes, TokenTables, WeightReads,
    decode::{on_the_host, one_after_the_other},
    part::PartExecutor,
};
use rwkv_gpu::Timing;
use rwkv_kernels::Simd;
use std::sync::Arc;

/// Runs a model: keeps a state a slot, and advances slots by batches.
pub trait Executor: Send {
    /// The model's dimensions.
    fn config(&self) -> &ModelConfig;

    /// Where it runs, for people.
    fn device(&self) -> &str;

    /// How many sequences it keeps.
    fn slots(&self) -> usize;

    /// The tokens a prompt is best cut into: more pay off little, and hold more memory. Fewer for a while where memory has not
    /// sufficed.
    fn chunk(&self) -> usize;

    /// Bytes of device memory beyond what the weights' file holds mapped.
    fn device_bytes(&self) -> u64;

    /// Bytes of the blends of adapters that are kept and of those in the making, a part of
    /// [`device_bytes`](Self::device_bytes): see [`LoadOptions::blend_bytes`].
    fn blend_bytes(&self) -> u64;

    /// Advances the batch's slots by its tokens, and returns the wanted logits. A GPU may still be at it when no logits are
    /// wanted; whatever is asked for next comes after.
    ///
    /// # Errors
    /// What [`Batch::tables`] says of a batch that cannot run (nothing has changed then), or a GPU's failure, after
    /// which the states of the batch's slots are undefined.
    fn run(&mut self, batch: &Batch) -> Result<Logits>;

    /// Feeds every sequence its token and samples the next one, `steps` times or until `take`, which is told of every
    /// step's tokens, breaks off. `counted` says which tokens the samplers' penalties count. Afterwards each sequence's
    /// token and sampler are those after the last step that `take` was told of, and its state is that before its token:
    /// what was computed ahead is undone.
    ///
    /// # Errors
    /// What [`run`](Self::run) says, [`crate::Error::Sampling`] for logits that nothing can be chosen from. After an error once steps
    /// were run, the sequences and the states of their slots are undefined.
    fn decode(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: Counted<'_>,
        take: OnTokens<'_>,
    ) -> Result<()> {
        on_the_host(self, sequences, steps, counted, take)
    }

    /// Feeds prompts and [decodes](Self::decode), as if one came after the other; what runs ahead need not wait for the host in
    /// between. Where `take` breaks off, what is told of after that is up to [`Burst::may_stop`]; in the end states are those before
    /// the sequences' tokens in any case.
    ///
    /// # Errors
    /// What [`run`](Self::run) and [`decode`](Self::decode) say; the states of all slots of the burst are undefined then.
    fn burst(&mut self, burst: Burst<'_>, take: OnDrawn<'_>) -> Result<()> {
        one_after_the_other(self, burst, take)
    }

    /// Whether [`decode`](Self::decode) computes ahead of `take`, so that breaking off has a cost.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Whether the tokens of a [`burst`](Self::burst)'s prompts are drawn where their logits are, so that a sequence costs little
    /// more there than in a step of tokens.
    fn draws(&self) -> bool {
        false
    }

    /// Where it can be told what it will likely be asked for next, at any time and from any thread; none where it would not use
    /// that.
    fn expected(&self) -> Option<Expected> {
        None
    }

    /// Devices that a batch goes through one after the other, each with some of the layers: a batch of so many
    /// [chunks](Self::chunk) keeps all of them busy, and is cut by the executor itself.
    fn stages(&self) -> usize {
        1
    }

    /// Devices that each have the whole model and work side by side: slot s is on number s modulo so many. A batch may have
    /// as much for each as suits one of them.
    fn replicas(&self) -> usize {
        1
    }

    /// Makes `slot` a sequence that has seen nothing: it holds the initial state, which is the model's
    /// ([`Model::initial_state`]) unless another one was set.
    ///
    /// # Errors
    /// [`crate::Error::SlotRange`], or a GPU's failure.
    fn reset(&mut self, slot: SlotId) -> Result<()>;

    /// Sets the state that sequences begin with from here on, a tuned one say; `None` is the model's own. Slots keep
    /// what they hold until they are [`reset`](Self::reset).
    ///
    /// # Errors
    /// [`crate::Error::State`] for a state of another model, or a GPU's failure; the initial state stays what it was.
    fn set_initial_state(&mut self, state: Option<&State>) -> Result<()>;

    /// A copy of the state of `slot`.
    ///
    /// # Errors
    /// [`crate::Error::SlotRange`], or a GPU's failure.
    fn state(&mut self, slot: SlotId) -> Result<State>;

    /// Replaces the state of `slot`.
    ///
    /// # Errors
    /// [`crate::Error::SlotRange`], [`crate::Error::State`] for a state of another model, or a GPU's failure.
    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()>;

    /// Computes up to `tensors` of the tensors that the blend changes, at least one, and says how far it is. What runs
    /// in between runs as before: nothing is switched. A few blends are kept, those that were used last, and so are
    /// two unfinished ones, as far as [`LoadOptions::blend_bytes`] allows.
    ///
    /// # Errors
    /// [`crate::Error::Adapter`] for one that does not fit the model, a blend whose values leave F16's range where
    /// [`WeightsDType::F16`] was asked for, or memory that does not suffice. Nothing is left of the blend then, and
    /// what is in use stays in use.
    fn prepare_adapters(
        &mut self,
        blend: &[(Arc<Adapter>, f32)],
        tensors: usize,
    ) -> Result<BlendProgress>;

    /// From here on every batch runs with these adapters at these strengths, and with no others; an empty blend is the
    /// base model. Costs nothing when the blend is ready, and computes what is left of it otherwise. States stay as
    /// they are.
    ///
    /// # Errors
    /// What [`prepare_adapters`](Self::prepare_adapters) says; what is in use stays in use.
    fn set_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()>;

    /// Drops what was [prepared](Self::prepare_adapters) of a blend, unless it is in use.
    ///
    /// # Errors
    /// [`crate::Error::Adapter`] for a strength that makes no sense.
    fn forget_adapters(&mut self, _blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
        Ok(())
    }

    /// Bytes of weights that a step reads.
    fn weight_reads(&self) -> WeightReads;

    /// What it has counted since it was made; nothing where there is nothing to count.
    fn stats(&self) -> ExecutorStats {
        ExecutorStats::default()
    }

    /// From the next step on, takes the times of `timing` by the GPU's clock. Says whether it can.
    ///
    /// # Errors
    /// A GPU's failure.
    fn set_timing(&mut self, _timing: Timing) -> Result<bool> {
        Ok(false)
    }

    /// The times of the steps since it was last asked, each step once; they are kept until then.
    fn take_times(&mut self) -> Vec<StepTimes> {
        Vec::new()
    }
}

/// What F32 and BF16 weights become on the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightsDType {
    /// F16; a value that does not fit is an error.
    #[default]
    F16,
    /// F32.
    F32,
    /// F16, but F32 for a matrix that has a value that does not fit.
    Auto,
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Sequences to keep.
    pub slots: usize,
    /// On the GPU.
    pub weights_dtype: WeightsDType,
    /// What matrices become, on any device; without one they stay as the file has them.
    pub quantization: Option<Quantization>,
    /// Which matrices a GPU keeps as compressed sparse rows. The CPU uses those that the file has so, and the others
    /// where they lie.
    pub sparse: SparseWeights,
    /// Where a GPU's model has its tables of tokens.
    pub token_tables: TokenTables,
    /// Bytes of blends of adapters that are kept beside the model's own weights, so that switching back to one costs
    /// nothing; 4 GiB by default. Those that were used least recently go first. The blend in use, one that was prepared
    /// and waits to be used, and the one that is being computed stay whatever they take: 0 keeps no others. A tensor
    /// may be computed before another blend makes room for it.
    pub blend_bytes: u64,
    /// Whether the logits of a sequence have the same bits whatever else is in its batches and however its prompt is cut:
    /// every sum in one order, which costs speed on a GPU (docs/performance.md). The CPU always does so. Without it, a GPU
    /// that adds floats atomically may give other last bits from run to run.
    pub deterministic: bool,
    /// Whether a GPU's kernels are timed when it first runs a model of these shapes, which takes a few seconds. It is done
    /// only where the results are kept ([`Gpu::cache_file`](rwkv_gpu::Gpu::cache_file)), and never on software adapters;
    /// what is kept is used in any case. See [`GpuExecutor::tune`](crate::GpuExecutor::tune).
    pub tune: bool,
    /// Whether a model is refused before anything is loaded where the GPU is known to have less memory than it needs by
    /// our estimate ([`crate::Error::DoesNotFit`]). Without it, loading goes on until an allocation fails.
    pub check_memory: bool,
    /// Where layers are on several devices: into how many micro-batches a batch is cut, at most a token each, so that the
    /// devices work on several of them at once. Without it, sequences that decode are in as many groups as there are
    /// devices, and prompts are cut by their length.
    pub micro_batches: Option<usize>,
    /// What the CPU computes with: the widest instructions that it has by default; with [`Simd::Twins`] it is the oracle
    /// that everything else is compared with. Logits of different levels differ by the rounding of f32, with K formats by that
    /// of x to 16 bits.
    pub simd: Simd,
}

/// Bytes of blends that are kept, if nobody says otherwise.
const BLEND_BYTES: u64 = 4 << 30;

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            slots: 1,
            weights_dtype: WeightsDType::default(),
            quantization: None,
            sparse: SparseWeights::default(),
            token_tables: TokenTables::default(),
            blend_bytes: BLEND_BYTES,
            deterministic: false,
            tune: true,
            check_memory: true,
            micro_batches: None,
            simd: Simd::detect(),
        }
    }
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// What is being done.
    pub stage: LoadStage,
    /// Bytes of tensors, or rounds of timing, that are done.
    pub done: u64,
    /// The same in all.
    pub total: u64,
}

/// What loading a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadStage {
    /// Brings tensors to where they are used.
    Tensors,
    /// Times kernels.
    Tuning,
}

/// An executor of `model` on `device`.
///
/// # Errors
/// A tensor that is missing, or memory that does not suffice: [`crate::Error::DoesNotFit`] before anything is loaded, where
/// that can be told.
pub fn load(
    model: &Model,
    device: &Device,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Executor>> {
    Ok(load_part(model, device, options, usize::MAX, progress)?)
}

/// An executor of `model` with its layers where `placement` says; `progress` is told of one device after the other.
///
/// # Errors
/// Those of [`load`], and [`crate::Error::Placement`] for a placement of another model.
pub fn load_placed(
    model: &Model,
    placement: &Placement,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Executor>> {
    match placement.stages() {
        [(layers, device)] if layers.len() == model.config().layers => {
            load(model, device, options, progress)
        }
        _ => Ok(Box::new(SplitExecutor::new(
            model, placement, options, progress,
        )?)),
    }
}

/// An executor of a part of a model, whose prompts are cut into chunks of at most `chunk` tokens.
pub(crate) fn load_part(
    model: &Model,
    device: &Device,
    options: &LoadOptions,
    chunk: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn PartExecutor>> {
    Ok(match device {
        Device::Cpu => {
            let executor = match &options.quantization {
                None => CpuExecutor::new(model, options.slots)?,
                Some(quantization) => {
                    let model = model.quantized(quantization, progress)?;
                    CpuExecutor::new(&model, options.slots)?
                }
            };
            let executor = executor.with_blend_bytes(options.blend_bytes);
            Box::new(executor.with_simd(options.simd))
        }
        Device::Gpu(gpu) => {
            let executor = GpuExecutor::with_chunk(model, gpu, options, chunk, progress)?;
            Box::new(executor)
        }
    })
}
