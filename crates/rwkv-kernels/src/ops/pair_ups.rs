//! The second halves of RWKV-7's low-rank pairs for prompts, with all that follows them, in one kernel
//! (`wgsl/lora_up_finish.wgsl`): what `matmul` and a function of each, and `lerp` of the value, do one after the other. Those
//! are its twin.

use super::{
    lora_ups::{PairParams, pair_params},
    step::{check_hidden, one_buffer, quads_of},
};
use crate::{
    Error, Format, GpuVector, Kernels, LoraUp, Result, View, kernels::u32_of, lora_up::MOST_PAIRS,
    ops::Function, shaders,
};
use bytemuck::{NoUninit, Pod, Zeroable};
use rwkv_gpu::{Binding, Dispatch};

/// The kernel, first the one that has more columns a step in workgroup memory.
const NAMES: [&str; 2] = ["lora_up_finish/8", "lora_up_finish/4"];
/// Tokens and channels of a workgroup, as in the WGSL.
const TOKENS: usize = 128;
const CHANNELS: usize = 128;
/// Of so many tokens at most, half of a workgroup's or more would be missing: one product after the other is faster then.
const FEW_TOKENS: usize = 64;

/// What becomes of a pair's product.
#[derive(Clone, Copy, Debug)]
pub struct PairEnd<'a> {
    /// The row of the vectors that is added to it.
    pub bias: Option<usize>,
    /// [`Function::Identity`], [`Function::Sigmoid`] or [`Function::Decay7`].
    pub function: Function,
    /// Tokens × channels: `function(up · hidden + bias)`, or what that mixes.
    pub y: View<'a>,
}

/// `y = function(up · hidden + bias)` of each pair.
pub struct PairUps<'a> {
    /// The second matrices, in F16.
    pub up: &'a LoraUp,
    /// Tokens × rank of each, in one buffer.
    pub hidden: &'a [View<'a>],
    /// Rows of channels.
    pub vectors: &'a GpuVector,
    /// How each ends, in the same order; results are in one buffer.
    pub ends: &'a [PairEnd<'a>],
    /// The layer's value and the first layer's, between which the last pair's result is the way.
    pub mixed: Option<[View<'a>; 2]>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EndParams {
    function_code: u32,
    bias: u32,
    has_bias: u32,
    y: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    tokens: u32,
    padding: u32,
    stride: u32,
    mixing: u32,
    pairs: [PairParams; MOST_PAIRS],
    ends: [EndParams; MOST_PAIRS],
}

impl Kernels {
    /// Whether there is a kernel that ends the second matrices `up` of so many tokens, and it is faster than one for each.
    pub fn pair_ups_suit(&self, up: &LoraUp, tokens: usize) -> bool {
        tokens > FEW_TOKENS
            && up.format() == Format::F16
            && up.channels().is_multiple_of(CHANNELS)
            && self.coop_side() == Some(16)
            && self.pair_ups_kernel().is_some()
    }

    fn pair_ups_kernel(&self) -> Option<&'static str> {
        NAMES.into_iter().find(|name| self.pair_ups_fit(name))
    }

    /// Whether the adapter has room for the workgroups of `kernel`.
    fn pair_ups_fit(&self, kernel: &str) -> bool {
        let limits = &self.gpu().capabilities().limits;
        shaders::find(kernel).is_ok_and(|shader| {
            let threads: u32 = shader.workgroup_size.iter().product();
            shader.workgroup_bytes <= limits.workgroup_bytes
                && threads <= limits.workgroup_invocations
        })
    }

    /// The dispatch of `op`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit or [`pair_ups_suit`](Self::pair_ups_suit) says no, [`Error::Gpu`] when the
    /// kernel does not compile.
    pub fn pair_ups(&self, op: &PairUps<'_>) -> Result<Dispatch> {
        self.pair_ups_by(op, self.pair_ups_kernel())
    }

    fn pair_ups_by(&self, op: &PairUps<'_>, kernel: Option<&'static str>) -> Result<Dispatch> {
        let what = "ends of low-rank pairs";
        let channels = op.up.channels();
        let tokens = op.hidden.first().map_or(0, |hidden| hidden.rows);
        check_hidden(what, op.up, op.hidden, tokens)?;
        let shape = (tokens, channels);
        let same = |view: &View<'_>| (view.rows, view.width) == shape;
        let have = op.vectors.len().checked_div(channels).unwrap_or(0);
        let ends_fit = op.ends.iter().all(|end| {
            let known = [Function::Identity, Function::Sigmoid, Function::Decay7];
            same(&end.y) && end.bias.is_none_or(|row| row < have) && known.contains(&end.function)
        });
        let fit = ends_fit
            && op.ends.len() == op.hidden.len()
            && op.mixed.iter().flatten().all(same)
            && self.pair_ups_suit(op.up, tokens);
        let Some(kernel) = kernel.filter(|_| fit) else {
            let problem = format!(
                "{} pairs of {} that end in {} ways, {tokens}×{channels}, {have} vectors; use linear and lerp",
                op.hidden.len(),
                op.up.format(),
                op.ends.len()
            );
            return Err(Error::shape(what, problem));
        };
        let results: Vec<_> = op.ends.iter().map(|end| end.y).collect();
        let (projected, pairs) = pair_params(what, op.up, op.hidden)?;
        let (y, places) = one_buffer(what, &results)?;
        let mut ends = [EndParams::zeroed(); MOST_PAIRS];
        let quads = quads_of(what, &places)?;
        for ((params, end), y) in ends.iter_mut().zip(op.ends).zip(quads) {
            *params = EndParams {
                function_code: end.function.code(),
                bias: u32_of("bias", end.bias.unwrap_or(0) * channels / 4)?,
                has_bias: u32::from(end.bias.is_some()),
                y,
            };
        }
        let mixing = op.mixed.map_or(MOST_PAIRS, |_| op.ends.len() - 1);
        let params = Params {
            tokens: u32_of("tokens", tokens)?,
            padding: 0,
            stride: u32_of("stride", View::stride(channels) / 4)?,
            mixing: u32_of("pair", mixing)?,
            pairs,
            ends,
        };
        let [own, first] = match &op.mixed {
            Some(views) => views.each_ref().map(View::binding),
            None => [self.unused(), self.unused()],
        };
        let pipeline = self.pipeline(kernel, &[])?;
        let bindings: [Binding<'_>; 5] = [projected, op.vectors.binding(), own, first, y];
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, 1)?;
        dispatch.grid = [
            u32_of("channels", channels / CHANNELS)?,
            u32_of("tokens", tokens.div_ceil(TOKENS))?,
            u32_of("pairs", op.hidden.len())?,
        ];
        dispatch.groups.push(op.up.group(self.gpu(), &pipeline)?);
        Ok(dispatch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;
    use crate::ops::{
        coop_emulation::{Activation, kernels, noise, pairs::Pairs},
        lerp,
    };
    use rwkv_mem::Upload;

    /// Part of a tile of tokens, and more than one; ranks that are no whole steps nor whole units; with the value and without.
    #[test]
    fn ends() {
        let kernels = kernels(16);
        let gpu = kernels.gpu();
        for (tokens, channels, ranks) in
            [(70, 256, &[8, 130, 33][..]), (200, 128, &[64, 5, 257, 96])]
        {
            let pairs = Pairs::new(gpu, tokens, channels, ranks);
            let count = ranks.len();
            let biases = noise(3 * channels, 5);
            let mut upload = Upload::new(gpu);
            let vectors = GpuVector::new(gpu, "vectors", &biases, &mut upload).unwrap();
            upload.flush().unwrap();
            let [own, first] = [7, 8].map(|seed| noise(tokens * channels, seed));
            let [own_view, first_view] =
                [&own, &first].map(|values| Activation::new(gpu, tokens, values));
            let ways = [
                (Some(2), Function::Decay7),
                (Some(0), Function::Sigmoid),
                (None, Function::Identity),
                (Some(1), Function::Sigmoid),
            ];
            let made = Activation::new(
                gpu,
                tokens * count,
                &vec![f32::NAN; tokens * count * channels],
            );
            let views: Vec<_> = (0..count)
                .map(|pair| View {
                    offset: pair as u64 * View::bytes(tokens, channels),
                    rows: tokens,
                    ..made.view()
                })
                .collect();
            let ends: Vec<_> = ways
                .iter()
                .zip(&views)
                .map(|((bias, function), y)| PairEnd {
                    bias: *bias,
                    function: *function,
                    y: *y,
                })
                .collect();
            let op = PairUps {
                up: &pairs.up,
                hidden: &pairs.hidden(),
                vectors: &vectors,
                ends: &ends,
                mixed: (count == 4).then(|| [own_view.view(), first_view.view()]),
            };
            let mut want = Vec::new();
            for (pair, (bias, function)) in ways.iter().take(count).enumerate() {
                let mut values = pairs.products[pair].clone();
                for (at, x) in values.iter_mut().enumerate() {
                    let bias = bias.map_or(0.0, |row| biases[row * channels + at % channels]);
                    *x = function.apply(*x + bias);
                }
                if pair == 3 {
                    let way = values.clone();
                    lerp(&own, &first, &way, &mut values);
                }
                want.extend(values);
            }
            // The larger one only where there is room for it.
            let fitting = NAMES.into_iter().filter(|name| kernels.pair_ups_fit(name));
            let mut ran = 0;
            for kernel in fitting {
                let dispatch = kernels.pair_ups_by(&op, Some(kernel)).unwrap();
                let got = made.after(gpu, &[dispatch]);
                for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                    // Sums of up to 257 terms in another order.
                    assert!(
                        (got - want).abs() < 1e-4,
                        "{kernel}, {ranks:?}: {at}: {got} for {want}"
                    );
                }
                ran += 1;
            }
            assert!(ran > 0);
        }
    }

    /// Few tokens, a bias that is not there, another function, and results that are no vec4s apart.
    #[test]
    fn refused() {
        let kernels = kernels(16);
        let gpu = kernels.gpu();
        let (tokens, channels) = (70, 128);
        let mut upload = Upload::new(gpu);
        let vectors = GpuVector::new(gpu, "vectors", &noise(channels, 5), &mut upload).unwrap();
        upload.flush().unwrap();
        let room = 2 * tokens + 1;
        let made = Activation::new(gpu, room, &vec![0.0; room * channels]);
        let refused = |tokens, bias, function, apart: u64| {
            let pairs = Pairs::new(gpu, tokens, channels, &[8, 8]);
            let end = |offset| PairEnd {
                bias,
                function,
                y: View {
                    offset,
                    rows: tokens,
                    ..made.view()
                },
            };
            let op = PairUps {
                up: &pairs.up,
                hidden: &pairs.hidden(),
                vectors: &vectors,
                ends: &[end(0), end(View::bytes(tokens, channels) + apart)],
                mixed: None,
            };
            match kernels.pair_ups(&op) {
                Err(Error::Shape { .. }) => true,
                Err(other) => panic!("{other}"),
                Ok(_) => false,
            }
        };
        let usual = Function::Sigmoid;
        assert!(!refused(tokens, Some(0), usual, 0));
        assert!(!refused(tokens, None, usual, 16));
        assert!(refused(FEW_TOKENS, None, usual, 0));
        assert!(refused(tokens, Some(1), usual, 0));
        assert!(refused(tokens, None, Function::Tanh, 0));
        assert!(refused(tokens, None, usual, 4));
        assert!(refused(tokens, None, usual, 2));
    }
}
