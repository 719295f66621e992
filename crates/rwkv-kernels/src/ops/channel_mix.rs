//! The channel mix of one token in one dispatch: `y += x + V f(K mix(norm(x), previous))`, and the state keeps `norm(x)`.

use super::stream::{Stream, StreamShape};
use crate::{
    BatchTables, Error, GpuColumns, GpuMatrix, GpuVector, Kernels, Page, Result, View,
    kernels::u32_of,
    ops::{Function, Weighs},
    shaders,
    tuning::{Problem, Tunable},
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch, Kind};

/// A channel mix of one token on the GPU. Inputs of the value that are zero are skipped.
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
    pub value: &'a GpuColumns,
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

/// Workgroups for the largest GPUs.
const ONE_A_CORE: u32 = 132;

fn kernel(key: &GpuMatrix) -> String {
    format!("channel_mix/{}/float", key.layout().shader())
}

/// How a workgroup shares the value's columns, and how many of the key's rows it has.
struct Cut {
    stream: Stream,
    own_keys: usize,
    column_threads: usize,
    column_teams: usize,
}

impl Kernels {
    /// Whether [`channel_mix`](Self::channel_mix) can do the products: matrices in one part, the key in F16 or F32, x
    /// fitting a workgroup, and an adapter that adds floats atomically.
    pub fn channel_mix_suits(&self, key: &GpuMatrix, value: &GpuColumns) -> bool {
        let (of_key, of_value) = (key.shape(), value.shape());
        self.gpu().capabilities().float_atomics
            && self.orders_partials()
            && key.is_whole()
            && value.chunks().len() == 1
            && of_value.cols.0 == of_key.rows.0
            && of_value.rows.0 == of_key.cols.0
            && of_key.cols.0.is_multiple_of(8)
            && shaders::find(&kernel(key)).is_ok()
            && self.channel_mix_cut(key, None).is_some()
    }

    /// `shape`, or the one that was tuned or else the default one.
    fn channel_mix_cut(&self, key: &GpuMatrix, shape: Option<StreamShape>) -> Option<Cut> {
        let problem = || Problem::of_matrix(Tunable::ChannelMix, key, 1);
        let tuned = shape.or_else(|| self.stream_choice(problem()));
        let usual = || self.channel_mix_fitted(key, self.channel_mix_shape(key));
        tuned
            .and_then(|shape| self.channel_mix_fitted(key, shape))
            .or_else(usual)
    }

    /// Fewer and larger workgroups than for a product alone: each adds to all of y.
    fn channel_mix_shape(&self, key: &GpuMatrix) -> StreamShape {
        let shape = StreamShape {
            threads: 512,
            rows: 2,
            unroll: 2,
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

    fn channel_mix_fitted(&self, key: &GpuMatrix, shape: StreamShape) -> Option<Cut> {
        let (keys, cols) = (key.shape().rows.0, key.shape().cols.0);
        let shape = StreamShape { slices: 1, ..shape };
        let units = cols / 8;
        // The threads are not known before they fit, and what they share depends on them: so as if they fitted.
        let share = |threads: usize| {
            let column_threads = threads.min(units.max(1));
            (column_threads, threads / column_threads)
        };
        let slots = |threads: usize| share(threads).1 * units * 2;
        let asked = shape.threads.clamp(32, 1024).next_power_of_two() as usize;
        let stream = self.stream(key, shape, slots(asked))?;
        let threads = stream.threads as usize;
        if slots(threads) > slots(asked).max(cols / 4) || units > threads * MOST_OWN {
            return None;
        }
        let block = stream.block_rows().max(1);
        let least = keys.div_ceil(stream.most_workgroups().max(1));
        let own_keys = least.next_multiple_of(block).max(block);
        let memory = stream.bytes + own_keys * 12;
        let fits = own_keys <= threads
            && memory <= self.gpu().capabilities().limits.workgroup_bytes as usize;
        let (column_threads, column_teams) = share(threads);
        fits.then_some(Cut {
            stream,
            own_keys,
            column_threads,
            column_teams,
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
        let cut = self.channel_mix_cut(op.key, shape);
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
            ("COLUMN_UNITS", op.value.units() as f64),
            ("COLUMN_THREADS", cut.column_threads as f64),
            ("COLUMN_TEAMS", cut.column_teams as f64),
        ];
        constants.extend(&stream.constants);
        let pipeline = self.pipeline(&kernel(op.key), &constants)?;
        let params = Params {
            page: op.page,
            epsilon: op.epsilon,
            padding: [0; 3],
        };
        let bindings = [
            op.batch.spans,
            op.x.binding(),
            op.vectors.binding(),
            Binding::from(op.state),
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
