//! The second matrices of a layer's low-rank pairs for many tokens, before the recurrence that uses what they make: each is
//! [`matmul`](super::matmul()) of a pair's hidden vectors (`wgsl/lora_up.wgsl`), where the adapter has cooperative matrices
//! of those vectors in F16 (`wgsl/lora_up_coop.wgsl`).

use super::step::{check_hidden, one_buffer, quads_of};
use crate::{
    Error, Format, Kernels, LoraUp, Result, View, kernels::u32_of, lora_up::MOST_PAIRS, shaders,
};
use bytemuck::{NoUninit, Pod, Zeroable};
use rwkv_gpu::{Binding, Buffer, Dispatch};

/// Channels, tokens of a workgroup, and tokens between those of a thread, as in the WGSL.
const CHANNELS: usize = 64;
const TOKENS: usize = 32;
const APART: usize = 8;
/// Up to so many tokens cooperative matrices are slower: the 7.2B's layers decode 8 sequences in 6 % less time without them,
/// 32 in as much, 128 in 3 % more (H200, 2026-11).
const FEW_TOKENS: usize = 16;
/// What is multiplied.
pub(super) struct LoraUps<'a> {
    /// The second matrices, in F16.
    pub(super) up: &'a LoraUp,
    /// Tokens × rank of each, in one buffer.
    pub(super) hidden: &'a [View<'a>],
}

/// Where the products are: for each pair tokens × channels in f32, as an activation, with room for whole tiles of tokens.
pub(super) struct UpsPlace {
    buffer: Buffer,
    elements: usize,
}

impl UpsPlace {
    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Elements from one pair's to the next.
    pub(super) fn block(&self) -> Result<u32> {
        u32_of("products of low-rank pairs", self.elements)
    }
}

/// A pair, as in `wgsl/lora_up/pairs.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct PairParams {
    hidden: u32,
    rank: u32,
    first: u32,
    units: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    tokens: u32,
    channels: u32,
    stride: u32,
    block: u32,
    pairs: [PairParams; MOST_PAIRS],
}

/// The binding of all `hidden` vectors, and where each and the matrix lie that it meets.
pub(super) fn pair_params<'a>(
    what: &str,
    up: &LoraUp,
    hidden: &[View<'a>],
) -> Result<(Binding<'a>, [PairParams; MOST_PAIRS])> {
    let (projected, places) = one_buffer(what, hidden)?;
    let quads = quads_of(what, &places)?;
    let mut pairs = [PairParams::zeroed(); MOST_PAIRS];
    let parts = up.ranks().zip(up.places());
    for ((pair, (rank, (first, units))), hidden) in pairs.iter_mut().zip(parts).zip(quads) {
        *pair = PairParams {
            hidden,
            rank: u32_of("rank", rank)?,
            first,
            units,
        };
    }
    Ok((projected, pairs))
}

impl Kernels {
    /// Whether there is a kernel for the second matrices `up` of many tokens.
    pub fn lora_ups_suit(&self, up: &LoraUp) -> bool {
        let limits = &self.gpu().capabilities().limits;
        up.format() == Format::F16
            && shaders::find("lora_up")
                .is_ok_and(|shader| shader.workgroup_bytes <= limits.workgroup_bytes)
    }

    /// Whether cooperative matrices make the products: of whole tiles of channels, and of more than a few tokens.
    fn ups_by_coop(&self, tokens: usize, channels: usize) -> bool {
        let limits = &self.gpu().capabilities().limits;
        let there = shaders::find("lora_up_coop")
            .is_ok_and(|shader| shader.workgroup_bytes <= limits.workgroup_bytes);
        let suits = tokens > FEW_TOKENS && channels.is_multiple_of(CHANNELS);
        there && self.coop_side() == Some(16) && suits
    }

    /// The dispatch of all products of `op`, and where they are until the next such dispatch.
    pub(super) fn lora_ups(&self, op: &LoraUps<'_>) -> Result<(Dispatch, UpsPlace)> {
        let what = "second halves of low-rank pairs";
        let tokens = op.hidden.first().map_or(0, |hidden| hidden.rows);
        check_hidden(what, op.up, op.hidden, tokens)?;
        if tokens == 0 || !self.lora_ups_suit(op.up) {
            let problem = format!("{} for {tokens} tokens", op.up.format());
            return Err(Error::shape(what, problem));
        }
        let (projected, pairs) = pair_params(what, op.up, op.hidden)?;
        let channels = op.up.channels();
        let stride = View::stride(channels);
        let count = op.hidden.len();
        let elements = tokens.next_multiple_of(TOKENS) * stride;
        let place = UpsPlace {
            buffer: self.shared_inputs((count * elements * 4) as u64)?,
            elements,
        };
        let params = Params {
            tokens: u32_of("tokens", tokens)?,
            channels: u32_of("channels", channels)?,
            stride: u32_of("stride", stride)?,
            block: place.block()?,
            pairs,
        };
        let pipeline = if self.ups_by_coop(tokens, channels) {
            self.pipeline("lora_up_coop", &[])?
        } else {
            let groups = tokens.min(TOKENS).div_ceil(APART);
            self.pipeline("lora_up", &[("GROUPS", groups as f64)])?
        };
        let bindings = [projected, Binding::from(&place.buffer)];
        let mut dispatch = self.dispatch(pipeline.clone(), &params, &bindings, 1)?;
        dispatch.grid = [
            u32_of("channels", channels.div_ceil(CHANNELS))?,
            u32_of("tokens", tokens.div_ceil(TOKENS))?,
            u32_of("pairs", count)?,
        ];
        dispatch.groups.push(op.up.group(self.gpu(), &pipeline)?);
        Ok((dispatch, place))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::ops::coop_emulation::{Activation, kernels, pairs::Pairs};

    /// More tokens than a workgroup has, ranks that are no whole steps nor whole units, and channels of part of a tile, which
    /// cooperative matrices leave to the other kernel.
    #[test]
    fn products() {
        let kernels = kernels(16);
        let gpu = kernels.gpu();
        for (tokens, channels, ranks) in [
            (3, 8, &[8, 130][..]),
            (20, 68, &[5, 64, 257]),
            (75, 130, &[128, 33, 480, 96]),
            (16, 64, &[8, 130]),
            (17, 64, &[8, 130]),
            (75, 192, &[128, 33, 480, 96]),
        ] {
            let by_coop = kernels.ups_by_coop(tokens, channels);
            assert_eq!(by_coop, channels % 64 == 0 && tokens > 16);
            let pairs = Pairs::new(gpu, tokens, channels, ranks);
            let op = LoraUps {
                up: &pairs.up,
                hidden: &pairs.hidden(),
            };
            let (dispatch, place) = kernels.lora_ups(&op).unwrap();
            let padded = tokens.next_multiple_of(TOKENS);
            let rows = padded * ranks.len();
            let made = Activation {
                buffer: place.buffer().clone(),
                rows,
                width: channels,
            };
            let got = made.after(gpu, &[dispatch]);
            let got: Vec<f32> = got
                .chunks_exact(padded * channels)
                .flat_map(|pair| pair[..tokens * channels].to_vec())
                .collect();
            for (i, want) in pairs.products.concat().iter().enumerate() {
                // Sums of up to 480 terms in another order.
                let (got, bound) = (got[i], 1e-4);
                assert!(
                    (got - want).abs() < bound,
                    "{tokens} tokens, {channels} channels, {ranks:?}: {i}: {got} for {want}"
                );
            }
        }
    }
}
