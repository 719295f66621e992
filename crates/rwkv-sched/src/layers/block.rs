//! One layer, and the pieces of it that several versions have.

use super::refused;
use crate::{
    Affine, BlockWeight as B, Graph, Lora, Mix, ModelConfig, Result, ShiftHalf, ValueId, Weight,
    Weights,
};
use rwkv_kernels::ops::{Function, Weighs};

/// Both vectors of a norm.
pub(super) const AFFINE: [Affine; 2] = [Affine::Weight, Affine::Bias];

/// One layer: its number and its tensors.
pub(super) struct Block<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a dyn Weights,
    pub(super) layer: usize,
}

impl Block<'_> {
    pub(super) fn weight(&self, weight: B) -> Weight {
        Weight::Block(self.layer, weight)
    }

    /// A layer norm.
    pub(super) fn norm(&self, g: &mut Graph, x: ValueId, norm: fn(Affine) -> B) -> ValueId {
        let [weight, bias] = AFFINE.map(|a| self.weight(norm(a)));
        g.layer_norm(x, weight, bias, self.config.norm_epsilon)
    }

    /// The norm of each head after the recurrence.
    pub(super) fn group_norm(&self, g: &mut Graph, x: ValueId) -> ValueId {
        let [weight, bias] = AFFINE.map(|a| self.weight(B::GroupNorm(a)));
        let ModelConfig {
            head_size,
            group_norm_epsilon,
            ..
        } = *self.config;
        g.group_norm(x, weight, bias, head_size, group_norm_epsilon)
    }

    /// x mixed with the token before it, once a mix, for the time mix.
    pub(super) fn att_shift<const N: usize>(
        &self,
        g: &mut Graph,
        x: ValueId,
        weighs: Weighs,
        mixes: [Mix; N],
    ) -> [ValueId; N] {
        let mixes = mixes.map(|m| self.weight(B::AttMix(m)));
        g.token_shift(x, self.layer, ShiftHalf::Att, weighs, mixes)
    }

    /// The same for the channel mix.
    pub(super) fn ffn_shift<const N: usize>(
        &self,
        g: &mut Graph,
        x: ValueId,
        weighs: Weighs,
        mixes: [Mix; N],
    ) -> [ValueId; N] {
        let mixes = mixes.map(|m| self.weight(B::FfnMix(m)));
        g.token_shift(x, self.layer, ShiftHalf::Ffn, weighs, mixes)
    }

    /// `W x` for a `W` of `[C, in]`.
    pub(super) fn project(&self, g: &mut Graph, x: ValueId, weight: B) -> ValueId {
        g.matmul(x, self.weight(weight), self.config.width)
    }

    /// `up · inner(down · x)`.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a pair that is missing or has rank 0.
    pub(super) fn lora(
        &self,
        g: &mut Graph,
        x: ValueId,
        lora: Lora,
        inner: Function,
    ) -> Result<ValueId> {
        let mut h = g.matmul(x, self.weight(B::LoraDown(lora)), self.rank(lora)?);
        if inner != Function::Identity {
            h = g.apply(inner, h);
        }
        Ok(self.project(g, h, B::LoraUp(lora)))
    }

    /// `up · inner(down · x) + bias`.
    ///
    /// # Errors
    /// As [`Self::lora`].
    pub(super) fn lora_with_bias(
        &self,
        g: &mut Graph,
        x: ValueId,
        lora: Lora,
        inner: Function,
    ) -> Result<ValueId> {
        let y = self.lora(g, x, lora, inner)?;
        Ok(g.add_vector(y, self.weight(B::LoraBias(lora))))
    }

    /// The rank of a low-rank pair, at least 1: the rows of its first matrix.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] for a pair that is missing or has rank 0.
    pub(super) fn rank(&self, lora: Lora) -> Result<usize> {
        let down = self.weight(B::LoraDown(lora));
        let shape = self.weights.describe(down)?.1;
        match shape.rows.0 {
            0 => {
                let problem = format!("it is {shape}, a pair of rank 0");
                Err(refused(self.weights, down, problem))
            }
            rank => Ok(rank),
        }
    }
}
