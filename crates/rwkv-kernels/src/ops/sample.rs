//! Sampling: the next token of each sequence from its logits. The twin is [`Sampler`](crate::sampling::Sampler).

use crate::{
    Error, Kernels, Result, Token, View,
    kernels::u32_of,
    sampling::{Draw, DrawSettings, memory_words},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Dispatch, Pipeline};
use std::sync::Arc;

/// Sampling on the GPU. Whatever differs between steps and sequences lies in buffers, so one dispatch serves them all.
///
/// Each row of logits is changed in place: biased and penalised. Its sequence's memory then has the chosen token as
/// one more that was accepted, and its step has advanced by 1.
pub struct Sample<'a> {
    /// Rows × vocabulary.
    pub logits: View<'a>,
    /// A [`Draw`] for each row; no two of them may share a slot.
    pub draws: Binding<'a>,
    /// A [`DrawSettings`] for each slot.
    pub settings: Binding<'a>,
    /// The biases of all slots, from [`bias_words`](crate::sampling::bias_words); at least one, be it unused.
    pub biases: Binding<'a>,
    /// Which tokens are counted, from [`counted_words`](crate::sampling::counted_words).
    pub counted: Binding<'a>,
    /// For each slot [`memory_words`] words, from [`Sampler::to_memory`](crate::sampling::Sampler::to_memory) or, for
    /// a sequence that has said nothing, zeros.
    pub memory: Binding<'a>,
    /// How many different tokens a sequence can say: the vocabulary, or the most tokens it can generate.
    pub capacity: usize,
    /// The [`Token`]s of the next step.
    pub tokens: Binding<'a>,
    /// The ring of chosen ids ([`Chosen`](crate::sampling::Chosen)), `steps × columns` words. A sequence's draw
    /// number n goes to row n modulo `steps`.
    pub ids: Binding<'a>,
    /// Rows of the ring; a power of two, so that it goes on where 2³² draws wrap.
    pub steps: usize,
    /// Columns of the ring.
    pub columns: usize,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    draws: u32,
    vocabulary: u32,
    stride: u32,
    slots: u32,
    biases: u32,
    tokens: u32,
    memory: u32,
    capacity: u32,
    steps: u32,
    columns: u32,
    zero: u32,
}

/// Counts of tokens are f32 in the kernel.
const LARGEST_VOCABULARY: usize = 1 << 24;

/// From this vocabulary on a workgroup has 1024 threads, where the adapter has them and this much workgroup memory.
const WIDE_VOCABULARY: usize = 16 << 10;
const WIDE_BYTES: u32 = 28 << 10;

impl Kernels {
    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn sample(&self, op: &Sample<'_>) -> Result<Dispatch> {
        let View { rows, width, .. } = op.logits;
        let memory = memory_words(op.capacity);
        let slots = (elements(op.settings, size_of::<DrawSettings>())?)
            .min(elements(op.memory, memory.saturating_mul(4))?);
        let biases = elements(op.biases, 8)?;
        let fits = width > 0
            && width < LARGEST_VOCABULARY
            && slots > 0
            && biases > 0
            && op.steps.is_power_of_two()
            && elements(op.draws, size_of::<Draw>())? >= rows
            && elements(op.counted, 4)? >= width.div_ceil(32)
            && elements(op.ids, 4)? >= op.steps.saturating_mul(op.columns);
        if !fits {
            return Err(Error::shape(
                "sample",
                format!(
                    "{rows} rows of {width} logits, {slots} slots of {} tokens, a ring of {} × {}",
                    op.capacity, op.steps, op.columns
                ),
            ));
        }
        // Every index is below the slots' words.
        u32_of("words of memory", slots.saturating_mul(memory))?;
        let params = Params {
            draws: u32_of("rows", rows)?,
            vocabulary: u32_of("logits", width)?,
            stride: u32_of("stride", View::stride(width) / 4)?,
            slots: u32_of("slots", slots)?,
            biases: u32_of("biases", biases)?,
            tokens: u32_of("tokens", elements(op.tokens, size_of::<Token>())?)?,
            memory: u32_of("memory", memory)?,
            capacity: u32_of("capacity", op.capacity)?,
            steps: u32_of("steps", op.steps)?,
            columns: u32_of("columns", op.columns)?,
            zero: 0,
        };
        let pipeline = self.sample_pipeline(width)?;
        let bindings = [
            op.draws,
            op.settings,
            op.biases,
            op.counted,
            op.memory,
            op.logits.binding(),
            op.tokens,
            op.ids,
        ];
        self.dispatch(pipeline, &params, &bindings, rows)
    }

    /// The pipeline that samples from this many logits, for those who compile ahead.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the kernel does not compile.
    pub fn sample_pipeline(&self, vocabulary: usize) -> Result<Arc<Pipeline>> {
        let limits = self.gpu().capabilities().limits;
        let wide = vocabulary >= WIDE_VOCABULARY
            && limits.workgroup_invocations >= 1024
            && limits.workgroup_bytes >= WIDE_BYTES;
        let size = if wide { 1024 } else { 256 };
        self.pipeline(&format!("sample/{size}/{}", self.lanes()), &[])
    }
}

/// How many elements of `bytes` bytes a binding has.
fn elements(binding: Binding<'_>, bytes: usize) -> Result<usize> {
    let rest = binding.buffer.size().saturating_sub(binding.offset);
    let size = binding.size.unwrap_or(rest).min(rest);
    usize::try_from(size)
        .map(|size| size / bytes.max(1))
        .map_err(|_| Error::shape("sample", "a buffer passes this machine's memory".to_owned()))
}
