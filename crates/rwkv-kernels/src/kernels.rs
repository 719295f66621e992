//! What every kernel launch needs: the GPU, the parameter cache, and views of activations.

use crate::{Error, Result, shaders, tuning::Tuning};
use bytemuck::{NoUninit, Pod, Zeroable};
use parking_lot::Mutex;
use rwkv_gpu::{Binding, Buffer, BufferKind, Dispatch, Gpu, Pipeline};
use rwkv_mem::ParamCache;
use std::sync::{Arc, OnceLock};

/// Kernels on one GPU: resolves operations to dispatches. Cloning shares it.
#[derive(Clone)]
pub struct Kernels {
    gpu: Gpu,
    params: ParamCache,
    /// Whether pipelines are only declared.
    declares: bool,
    /// Bound where a kernel variant has a slot that an operation does not use.
    unused: Buffer,
    /// The same for slots that are written.
    unused_output: Buffer,
    /// See [`Kernels::partials`]: few of them, and as many as there may be.
    partials: Arc<[OnceLock<Buffer>; 2]>,
    /// See [`Kernels::shared_inputs`].
    shared: Arc<Mutex<Option<Buffer>>>,
    /// Where that comes from, if not from the GPU.
    scratch: Option<Arc<dyn Scratch>>,
    /// How they cut their work.
    tuning: Arc<Tuning>,
    /// The side of the cooperative matrices that tests emulate.
    #[cfg(test)]
    pub(crate) emulates: Option<u32>,
}

/// Where memory comes from that is used between two dispatches: its owner decides how long it stays.
pub trait Scratch: Send + Sync {
    /// At least `bytes` that nothing else has which is resolved together.
    ///
    /// # Errors
    /// Those of [`Gpu::buffer`].
    fn take(&self, label: &str, bytes: u64) -> rwkv_gpu::Result<Buffer>;
}

/// Slices of outputs that can be put together in [`Kernels::partials`], as in `sparse_matvec.wgsl`.
pub(crate) const PARTIAL_COUNTS: usize = 1024;

/// The override in `wgsl/formats/half.wgsl`; copies of that file have something before it.
const SUBNORMAL_HALVES: &str = "SUBNORMAL_HALVES";

/// Words of partial sums: 32 ranges of 4,096 outputs for 8 tokens, 4 MiB.
pub(crate) const PARTIAL_SUMS: usize = 1 << 20;

/// Words of partial sums at most, where one product asks for more: 8 slices of 65,536 outputs for 16 tokens, 32 MiB.
pub(crate) const MOST_PARTIAL_SUMS: usize = 1 << 23;

/// An activation on the GPU: `rows × width` f32, rows at [`View::stride`].
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where it lies.
    pub buffer: &'a Buffer,
    /// Its first byte.
    pub offset: u64,
    /// Rows.
    pub rows: usize,
    /// Elements a row.
    pub width: usize,
}

impl<'a> View<'a> {
    /// At most `rows` of its rows, from `first` on. Eight rows are a multiple of 256 bytes, which every adapter can bind.
    pub(crate) fn part(&self, first: usize, rows: usize) -> View<'a> {
        View {
            offset: self.offset + (first * Self::stride(self.width) * 4) as u64,
            rows: rows.min(self.rows.saturating_sub(first)),
            ..*self
        }
    }
}

impl View<'_> {
    /// Elements from one row to the next: the width rounded up to 8, so that 16-byte weight loads of every format
    /// meet whole vectors of x. What lies in the padding is undefined.
    pub fn stride(width: usize) -> usize {
        width.checked_next_multiple_of(8).unwrap_or(usize::MAX)
    }

    /// Bytes of `rows` rows.
    pub fn bytes(rows: usize, width: usize) -> u64 {
        let elements = (rows.max(1) as u64).saturating_mul(Self::stride(width) as u64);
        elements.saturating_mul(4)
    }

    /// Bytes from one to the next of several activations of one shape in one buffer.
    pub fn block_bytes(rows: usize, width: usize) -> u64 {
        let bytes = Self::bytes(rows, width);
        bytes.checked_next_multiple_of(256).unwrap_or(u64::MAX)
    }

    pub(crate) fn binding(&self) -> Binding<'_> {
        Binding {
            buffer: self.buffer,
            offset: self.offset,
            size: Some(Self::bytes(self.rows, self.width)),
        }
    }

    /// Several activations of this shape, [`View::block_bytes`] apart.
    pub(crate) fn blocks_binding(&self, count: usize) -> Binding<'_> {
        let last = Self::block_bytes(self.rows, self.width) * (count as u64 - 1);
        Binding {
            buffer: self.buffer,
            offset: self.offset,
            size: Some(last + Self::bytes(self.rows, self.width)),
        }
    }
}

/// A token of a step, as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Token {
    /// What the embedding looks up.
    pub id: u32,
    /// The index of its span.
    pub span: u32,
}

/// A run of tokens of one sequence, as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Span {
    /// Its first row in the activations.
    pub start: u32,
    /// Its rows.
    pub length: u32,
    /// The slot of its state.
    pub slot: u32,
    /// For alignment.
    pub padding: u32,
}

/// The slots that one state buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Page {
    /// The first slot.
    pub first_slot: u32,
    /// How many.
    pub slots: u32,
    /// For alignment.
    pub padding: [u32; 2],
}

impl Page {
    /// `state`, which has so many elements of f32 for each slot.
    ///
    /// # Errors
    /// [`Error::Shape`] where it has fewer.
    pub(crate) fn binding<'a>(
        &self,
        what: &str,
        state: &'a Buffer,
        elements: usize,
    ) -> Result<Binding<'a>> {
        let slots = u64::from(self.slots);
        let needed = (elements as u64).saturating_mul(4).saturating_mul(slots);
        if state.size() < needed {
            let has = state.size();
            let problem = format!("states of {has} bytes, where {slots} slots are {needed}");
            return Err(Error::shape(what, problem));
        }
        Ok(Binding::from(state))
    }
}

/// The tables of a step in GPU memory, and their lengths.
#[derive(Clone, Copy, Debug)]
pub struct BatchTables<'a> {
    /// [`Token`]s, one a row.
    pub tokens: Binding<'a>,
    /// [`Span`]s.
    pub spans: Binding<'a>,
    /// Rows whose logits are wanted, as u32.
    pub outputs: Binding<'a>,
    /// How many spans.
    pub span_count: usize,
}

impl<'a> BatchTables<'a> {
    /// The spans.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are fewer than are said to be.
    pub(crate) fn bound_spans(&self, what: &str) -> Result<Binding<'a>> {
        let Binding { buffer, offset, .. } = self.spans;
        let bytes = self
            .spans
            .size
            .unwrap_or(buffer.size().saturating_sub(offset));
        if bytes / (size_of::<Span>() as u64) < self.span_count as u64 {
            let problem = format!("{} spans in {bytes} bytes", self.span_count);
            return Err(Error::shape(what, problem));
        }
        Ok(self.spans)
    }
}

impl Kernels {
    /// Kernels for `gpu`.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the first small buffer does not fit.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let unused = gpu.buffer(BufferKind::Storage, "unused slot", 256)?;
        let unused_output = gpu.buffer(BufferKind::Storage, "unused output slot", 256)?;
        Ok(Self {
            gpu: gpu.clone(),
            params: ParamCache::new(gpu),
            declares: false,
            unused,
            unused_output,
            partials: Arc::default(),
            shared: Arc::default(),
            scratch: None,
            tuning: Arc::default(),
            #[cfg(test)]
            emulates: None,
        })
    }

    /// The same kernels, whose dispatches may have pipelines that are not compiled: what is to be launched is known before
    /// any of it is compiled, and [`Gpu::compile`] then compiles it side by side.
    #[must_use]
    pub fn declaring(&self) -> Self {
        Self {
            declares: true,
            ..self.clone()
        }
    }

    /// The same, by which dispatches are resolved that are never launched: what they need is [planned](Gpu::planning), and
    /// takes no memory but that of parameters, which others share.
    #[must_use]
    pub fn planning(&self) -> Self {
        Self {
            gpu: self.gpu.planning(),
            partials: Arc::default(),
            shared: Arc::default(),
            ..self.declaring()
        }
    }

    /// The same, which take what a dispatch leaves for the next one from `scratch`.
    #[must_use]
    pub fn with_scratch(&self, scratch: Arc<dyn Scratch>) -> Self {
        Self {
            shared: Arc::default(),
            scratch: Some(scratch),
            ..self.clone()
        }
    }

    pub(crate) fn tuning(&self) -> &Arc<Tuning> {
        &self.tuning
    }

    pub(crate) fn with_tuning(&self, tuning: Tuning) -> Self {
        Self {
            tuning: Arc::new(tuning),
            ..self.clone()
        }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Requests of kernel parameters so far.
    pub fn param_counts(&self) -> rwkv_gpu::CacheCounts {
        self.params.counts()
    }

    /// Blocks of kernel parameters that are kept: a bounded number.
    pub fn params_kept(&self) -> usize {
        self.params.len()
    }

    /// The value of the axis LANES.
    pub(crate) fn lanes(&self) -> &'static str {
        if self.gpu.capabilities().subgroups.is_some() {
            "subgroup"
        } else {
            "plain"
        }
    }

    /// Rows that a workgroup of `threads` handles at least, with the lanes of one row together.
    pub(crate) fn rows_per_workgroup(&self, threads: u32) -> usize {
        let lanes = self.gpu.capabilities().subgroups.map_or(32, |s| s.max);
        (threads / lanes.max(1)).max(1) as usize
    }

    pub(crate) fn unused(&self) -> Binding<'_> {
        Binding::from(&self.unused)
    }

    pub(crate) fn unused_output(&self) -> Binding<'_> {
        Binding::from(&self.unused_output)
    }

    /// Whether a workgroup sees what others stored in [`partials`](Self::partials) before they counted themselves, as
    /// `sparse_matvec.wgsl` explains: where not, no sum may be shared between workgroups.
    pub(crate) fn orders_partials(&self) -> bool {
        matches!(self.gpu.backend(), "vulkan" | "dx12")
    }

    /// Where workgroups of one dispatch leave partial sums for the last of them: [`PARTIAL_COUNTS`] counts that are
    /// zero between dispatches, then at least `words` sums, of [`MOST_PARTIAL_SUMS`]. Made on first use. Dispatches that
    /// bind it run one after the other, because each writes it: so all of them can share one.
    pub(crate) fn partials(&self, words: usize) -> Result<Binding<'_>> {
        let sizes = [PARTIAL_SUMS, MOST_PARTIAL_SUMS];
        let fitting = sizes.into_iter().zip(&*self.partials);
        let Some((size, place)) = fitting.into_iter().find(|(size, _)| words <= *size) else {
            let problem = format!("{words} are more than {MOST_PARTIAL_SUMS}");
            return Err(Error::shape("partial sums", problem));
        };
        if let Some(found) = place.get() {
            return Ok(Binding::from(found));
        }
        let bytes = (PARTIAL_COUNTS + size) as u64 * 4;
        let made = self
            .gpu
            .buffer(BufferKind::Storage, "partial sums", bytes)?;
        // Two threads may make it; the first one stored is kept.
        Ok(Binding::from(place.get_or_init(|| made)))
    }

    /// Bytes of GPU memory that all kernels share, so far; [`MOST_SCRATCH_BYTES`](Self::MOST_SCRATCH_BYTES) of partial sums
    /// at most, and where there is no [`Scratch`] what dispatches leave for the next one.
    pub fn scratch_bytes(&self) -> u64 {
        let partials = self.partials.iter().filter_map(OnceLock::get);
        let partials: u64 = partials.map(Buffer::size).sum();
        let shared = self.shared.lock();
        partials + shared.as_ref().map_or(0, Buffer::size)
    }

    /// Bytes of partial sums that all kernels share, at most.
    pub const MOST_SCRATCH_BYTES: u64 =
        (2 * PARTIAL_COUNTS + PARTIAL_SUMS + MOST_PARTIAL_SUMS) as u64 * 4;

    /// At least `bytes` for what the dispatch after it reads: an input in f16, say. Dispatches that bind it run one after the
    /// other, so all of them can share one; where a larger one is needed, earlier dispatches keep theirs.
    pub(crate) fn shared_inputs(&self, bytes: u64) -> Result<Buffer> {
        let mut place = self.shared.lock();
        if let Some(found) = place.as_ref().filter(|found| found.size() >= bytes) {
            return Ok(found.clone());
        }
        let made = match &self.scratch {
            Some(scratch) => scratch.take("shared inputs", bytes)?,
            None => self
                .gpu
                .buffer(BufferKind::Storage, "shared inputs", bytes)?,
        };
        Ok(place.insert(made).clone())
    }

    pub(crate) fn pipeline(
        &self,
        name: &str,
        constants: &[(&'static str, f64)],
    ) -> Result<Arc<Pipeline>> {
        let shader = shaders::find(name)?;
        #[cfg(test)]
        let shader = match self.emulates {
            Some(_) => crate::ops::emulated(shader),
            None => shader,
        };
        let kept = f64::from(u8::from(self.gpu.keeps_subnormal_halves()));
        let asks = |name: &&&str| name.ends_with(SUBNORMAL_HALVES);
        let answers = shader.overrides.iter().filter(asks);
        let answers = answers.map(|name| (*name, kept));
        let constants: Vec<_> = constants.iter().copied().chain(answers).collect();
        Ok(if self.declares {
            self.gpu.declare(shader, &constants)?
        } else {
            self.gpu.pipeline(shader, &constants)?
        })
    }

    /// A dispatch of `pipeline` over `workgroups` in a flat grid: `params` at slot 0 of group 0, then `bindings`.
    pub(crate) fn dispatch<T: NoUninit>(
        &self,
        pipeline: Arc<Pipeline>,
        params: &T,
        bindings: &[Binding<'_>],
        workgroups: usize,
    ) -> Result<Dispatch> {
        let grid = self.flat_grid(workgroups)?;
        let params = self.params.block(params)?;
        let mut all = vec![params.binding()];
        all.extend_from_slice(bindings);
        let group = self.gpu.bind(&pipeline, 0, &all)?;
        Ok(Dispatch {
            pipeline,
            groups: vec![group],
            grid,
        })
    }

    /// A grid of at least `count` workgroups within the adapter's limit a dimension.
    fn flat_grid(&self, count: usize) -> Result<[u32; 3]> {
        let limit = self.gpu.capabilities().limits.workgroups as usize;
        let y = count.div_ceil(limit).max(1);
        Ok([
            u32_of("workgroups", count.div_ceil(y))?,
            u32_of("workgroups", y)?,
            1,
        ])
    }
}

/// `n` as the kernels' index type.
pub(crate) fn u32_of(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::shape(what, format!("{n} passes 32 bits")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::ops::coop_emulation::kernels;
    use rwkv_gpu::BufferKind;

    /// What is too small for the slots or spans that are said to be in it is refused: no kernel looks.
    #[test]
    fn tables_and_states_that_are_too_small() {
        let kernels = kernels(16);
        let buffer = kernels.gpu().buffer(BufferKind::Storage, "test", 96);
        let buffer = buffer.unwrap();
        let page = |slots| Page {
            first_slot: 7,
            slots,
            padding: [0; 2],
        };
        for (slots, elements, fits) in [
            (3, 8, true),
            (2, 12, true),
            (3, 9, false),
            (4, 8, false),
            (u32::MAX, usize::MAX, false),
        ] {
            let bound = page(slots).binding("test", &buffer, elements);
            assert_eq!(bound.is_ok(), fits, "{slots} of {elements}");
        }
        let whole = Binding::from(&buffer);
        let part = Binding {
            offset: 32,
            size: Some(47),
            ..whole
        };
        for (spans, span_count, fits) in [
            (whole, 6, true),
            (whole, 7, false),
            (part, 2, true),
            (part, 3, false),
            (whole, usize::MAX, false),
        ] {
            let batch = BatchTables {
                tokens: whole,
                spans,
                outputs: whole,
                span_count,
            };
            assert_eq!(batch.bound_spans("test").is_ok(), fits, "{span_count}");
        }
    }
}
