//! The channel mix of one token in one dispatch: `y += x + V f(K mix(norm(x), previous))`, and the state keeps `norm(x)`.

use super::{
    column_slice::Slice,
    stream::{LONG, ONE_A_CORE, Stream, StreamShape, stream_kernel},
};
use crate::{
    BatchTables, Error, GpuColumns, GpuMatrix, GpuVector, Kernels, Page, Result, View,
    gpu_weights::Chunk,
    kernels::u32_of,
    ops::{Function, Weighs},
    tuning::{Problem, Tunable},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Buffer, Dispatch, Kind};
use rwkv_mem::Shape;

/// The value matrix of a channel mix.
#[derive(Clone, Copy, Debug)]
pub enum ChannelValue<'a> {
    /// F16, by columns: those of inputs that are zero are skipped.
    Columns(&'a GpuColumns),
    /// Codes of up to 8 bits, by rows, beside a key of such codes. They multiply what the key makes rounded to 16 bits
    /// ([`round_to_16_bits`](super::round_to_16_bits)), as its codes do the mix.
    Rows(&'a GpuMatrix),
}

impl ChannelValue<'_> {
    fn shape(&self) -> Shape {
        match self {
            Self::Columns(columns) => columns.shape(),
            Self::Rows(rows) => rows.shape(),
        }
    }

    fn chunks(&self) -> &[Chunk] {
        match self {
            Self::Columns(columns) => columns.chunks(),
            Self::Rows(rows) => rows.chunks(),
        }
    }

    /// The value of the kernel's axis.
    fn axis(&self) -> &'static str {
        match self {
            Self::Columns(_) => "columns",
            Self::Rows(rows) => rows.layout().shader(),
        }
    }
}

/// A channel mix of one token on the GPU.
///
/// Workgroups add their sums to `y` as they finish, so its last bits may differ from one run to the next.
pub struct ChannelMix<'a> {
    /// The batch: one span of one token.
    pub batch: BatchTables<'a>,
    /// The residual stream: 1 × columns of the key.
    pub x: View<'a>,
    /// The norm's weight, its bias, and the mix, one after the other.
    pub vectors: &'a GpuVector,
    /// Added to the variance.
    pub epsilon: f32,
    /// What the mix weighs.
    pub weighs: Weighs,
    /// Shift states `[slot, 2, channels]`.
    pub state: &'a Buffer,
    /// The slots in `state`; a token of another slot is left alone.
    pub page: Page,
    /// Which of the two.
    pub which: u32,
    /// The key, in one part.
    pub key: &'a GpuMatrix,
    /// Applied to what the key makes.
    pub function: Function,
    /// The value, in one part: as many outputs as the key has columns, as many inputs as it has rows.
    pub value: ChannelValue<'a>,
    /// 1 × columns of the key, zero before; not the buffer of x.
    pub y: View<'a>,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    page: Page,
    epsilon: f32,
    padding: [u32; 3],
}

/// Eights of x that a thread has at most, as in the WGSL.
const MOST_OWN: usize = 4;

/// What the slice of a workgroup is a multiple of: a block of x that is rounded together.
const SLICE_STEP: usize = 32;

/// Threads of a workgroup up to which there are registers for loads of two steps.
const EARLY_THREADS: usize = 512;

const KERNEL: &str = "channel_mix";

/// How workgroups share the work.
struct Cut {
    stream: Stream,
    /// Rows of the key that a workgroup has.
    own_keys: usize,
    value: ValueCut,
}

/// How a workgroup multiplies the value.
enum ValueCut {
    Columns { threads: usize, teams: usize },
    Rows(Slice),
}

impl Kernels {
    /// Whether [`channel_mix`](Self::channel_mix) can do the products: matrices in one part, whose formats a kernel has
    /// together (a key in F16 or F32 with a value by columns, or codes of up to 8 bits), x fitting a workgroup, and an
    /// adapter that adds floats atomically.
    pub fn channel_mix_suits(&self, key: &GpuMatrix, value: ChannelValue<'_>) -> bool {
        let (of_key, of_value) = (key.shape(), value.shape());
        self.gpu().capabilities().float_atomics
            && self.orders_partials()
            && key.chunks().first().is_some_and(|chunk| chunk.base == 0)
            && key.is_whole()
            && value.chunks().len() == 1
            && of_value.cols.0 == of_key.rows.0
            && of_value.rows.0 == of_key.cols.0
            && of_key.cols.0.is_multiple_of(8)
            && self.has_stream_kernel(KERNEL, key, value.axis())
            && self.channel_mix_cut(key, value, None).is_some()
    }

    /// `shape`, or the one that was tuned or else the default one.
    fn channel_mix_cut(
        &self,
        key: &GpuMatrix,
        value: ChannelValue<'_>,
        shape: Option<StreamShape>,
    ) -> Option<Cut> {
        let problem = || Problem::of_matrix(Tunable::ChannelMix, key, 1);
        let tuned = shape.or_else(|| self.stream_choice(problem()));
        let fitted = |shape| match value {
            ChannelValue::Columns(_) => self.with_columns(key, shape),
            ChannelValue::Rows(value) => self.with_rows(key, value, shape),
        };
        tuned
            .and_then(fitted)
            .or_else(|| fitted(self.channel_mix_shape(key)))
    }

    /// Fewer and larger workgroups than for a product alone: each adds to all of y.
    fn channel_mix_shape(&self, key: &GpuMatrix) -> StreamShape {
        let long = key.shape().cols.0 >= LONG && !key.layout().codes_are_integers();
        let (rows, unroll) = if long { (1, 4) } else { (2, 2) };
        let shape = StreamShape {
            threads: 512,
            rows,
            unroll,
            split: 1,
            workgroups: ONE_A_CORE,
            slices: 1,
        };
        if self.gpu().kind() != Kind::Software {
            return shape;
        }
        // Smaller loops, which compile sooner.
        StreamShape {
            workgroups: u32::try_from(key.shape().rows.0 / 128 + 1).unwrap_or(u32::MAX),
            ..self.stream_shape(key, true)
        }
    }

    /// `shape` with a value by columns.
    fn with_columns(&self, key: &GpuMatrix, shape: StreamShape) -> Option<Cut> {
        let cols = key.shape().cols.0;
        let units = cols / 8;
        // The threads are not known before they fit, and what they share depends on them: so as if they fitted.
        let share = |threads: usize| {
            let column_threads = threads.min(units.max(1));
            (column_threads, threads / column_threads)
        };
        let slots = |threads: usize| share(threads).1 * units * 2;
        let asked = shape.threads.clamp(32, 1024).next_power_of_two() as usize;
        let stream = self.stream(key, StreamShape { slices: 1, ..shape }, slots(asked))?;
        let asked_threads = stream.threads as usize;
        if slots(asked_threads) > slots(asked).max(cols / 4) {
            return None;
        }
        let (threads, teams) = share(asked_threads);
        self.channel_mix_fitted(key, stream, 1, |_| {
            Some((ValueCut::Columns { threads, teams }, 0))
        })
    }

    /// `shape` with a value by rows.
    fn with_rows(&self, key: &GpuMatrix, value: &GpuMatrix, shape: StreamShape) -> Option<Cut> {
        let stream = self.stream(key, StreamShape { slices: 1, ..shape }, 0)?;
        let threads = stream.threads as usize;
        // Two sets of loads are more than the registers of large workgroups hold.
        let early = threads <= EARLY_THREADS;
        self.channel_mix_fitted(key, stream, SLICE_STEP, |own_keys| {
            let slice = self.slice(value, own_keys, value.shape().rows.0, threads, early)?;
            let bytes = slice.bytes;
            Some((ValueCut::Rows(slice), bytes))
        })
    }

    /// The keys of a workgroup, a multiple of `step`; `value` is how it multiplies the value for so many, and the bytes of
    /// workgroup memory that takes.
    fn channel_mix_fitted(
        &self,
        key: &GpuMatrix,
        stream: Stream,
        step: usize,
        value: impl Fn(usize) -> Option<(ValueCut, usize)>,
    ) -> Option<Cut> {
        let (keys, cols) = (key.shape().rows.0, key.shape().cols.0);
        let threads = stream.threads as usize;
        // Blocks are powers of two, as steps are.
        let block = stream.block_rows().max(1).max(step);
        let least = keys.div_ceil(stream.most_workgroups().max(1));
        let own_keys = least.next_multiple_of(block).max(block);
        let (value, bytes) = value(own_keys)?;
        let memory = stream.bytes + own_keys * 12 + bytes;
        let fits = cols / 8 <= threads * MOST_OWN
            && own_keys <= threads
            && memory <= self.gpu().capabilities().limits.workgroup_bytes as usize;
        fits.then_some(Cut {
            stream,
            own_keys,
            value,
        })
    }

    /// The dispatch of `op`, of a chosen shape or the default one.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or the kernel does not suit, [`Error::Gpu`] when it does not compile.
    pub fn channel_mix(&self, op: &ChannelMix<'_>, shape: Option<StreamShape>) -> Result<Dispatch> {
        let (keys, cols) = (op.key.shape().rows.0, op.key.shape().cols.0);
        let row = |view: &View<'_>| view.rows == 1 && view.width == cols;
        let fits = row(&op.x)
            && row(&op.y)
            && op.batch.span_count == 1
            && op.vectors.len() == 3 * cols
            && op.which < 2
            && op.x.buffer != op.y.buffer;
        let suits = self.channel_mix_suits(op.key, op.value);
        let cut = self.channel_mix_cut(op.key, op.value, shape);
        let (true, true, Some(cut), [key], [value]) =
            (fits, suits, cut, op.key.chunks(), op.value.chunks())
        else {
            return Err(Error::shape(
                "channel mix",
                format!(
                    "{}×{} in {} spans, {} vector elements, a {} key and a {} value; use one operation a dispatch",
                    op.x.rows,
                    op.x.width,
                    op.batch.span_count,
                    op.vectors.len(),
                    op.key.shape(),
                    op.value.shape(),
                ),
            ));
        };
        let stream = &cut.stream;
        let mut constants = vec![
            op.function.constant(),
            op.weighs.constant(),
            ("WHICH", f64::from(op.which)),
            ("ONE_SLOT", f64::from(u8::from(op.page.slots == 1))),
            ("EIGHTS_OF_X", (cols / 8) as f64),
            (
                "SUBGROUPS",
                f64::from(stream.threads / self.lane_counts().0),
            ),
            ("OWN", (cols / 8).div_ceil(stream.threads as usize) as f64),
            ("KEYS", keys as f64),
            ("OWN_KEYS", cut.own_keys as f64),
        ];
        match cut.value {
            ValueCut::Columns { threads, teams } => constants.extend([
                ("COLUMN_UNITS", (cols / 8) as f64),
                ("COLUMN_THREADS", threads as f64),
                ("COLUMN_TEAMS", teams as f64),
            ]),
            ValueCut::Rows(slice) => constants.extend(slice.constants),
        }
        constants.extend(&stream.constants);
        let kernel = stream_kernel(KERNEL, op.key, op.value.axis());
        let pipeline = self.pipeline(&kernel, &constants)?;
        let params = Params {
            page: op.page,
            epsilon: op.epsilon,
            padding: [0; 3],
        };
        let bindings = [
            op.batch.bound_spans("channel mix")?,
            op.x.binding(),
            op.vectors.binding(),
            op.page.binding("channel mix", op.state, 2 * cols)?,
            op.y.binding(),
            self.partials(1)?,
        ];
        let workgroups = u32_of("workgroups", keys.div_ceil(cut.own_keys))? as usize;
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, workgroups)?;
        dispatch.groups.push(key.group(self.gpu(), &pipeline)?);
        dispatch
            .groups
            .push(value.group_at(self.gpu(), &pipeline, 2)?);
        Ok(dispatch)
    }
}
