//! RWKV-7 "Goose" (Peng et al. 2025, section 4): the names follow the paper's symbols.

use super::Shapes;
use crate::{
    Affine, BlockWeight as B, Graph, Lora, Mix, ModelConfig, Result, ShiftHalf, ValueId, Weight,
};
use rwkv_kernels::ops::Function;

/// All layers: `x ← x + time_mix(norm(x))`, `x ← x + channel_mix(norm(x))`.
pub(super) fn layers(
    g: &mut Graph,
    config: &ModelConfig,
    shapes: &Shapes<'_>,
    mut x: ValueId,
) -> Result<ValueId> {
    let mut v_first = None;
    for layer in 0..config.layers {
        let block = Block { config, layer };
        block.check(shapes)?;
        let y = block.norm(g, x, B::AttNorm);
        let y = block.time_mix(g, y, &mut v_first, shapes)?;
        x = g.add(x, y);
        let y = block.norm(g, x, B::FfnNorm);
        let y = block.channel_mix(g, y);
        x = g.add(x, y);
    }
    Ok(x)
}

/// One layer.
struct Block<'a> {
    config: &'a ModelConfig,
    layer: usize,
}

impl Block<'_> {
    fn weight(&self, weight: B) -> Weight {
        Weight::Block(self.layer, weight)
    }

    fn norm(&self, g: &mut Graph, x: ValueId, norm: fn(Affine) -> B) -> ValueId {
        let [weight, bias] = [Affine::Weight, Affine::Bias].map(|a| self.weight(norm(a)));
        g.layer_norm(x, weight, bias, self.config.norm_epsilon)
    }

    fn time_mix(
        &self,
        g: &mut Graph,
        x: ValueId,
        v_first: &mut Option<ValueId>,
        shapes: &Shapes<'_>,
    ) -> Result<ValueId> {
        let ModelConfig {
            width, head_size, ..
        } = *self.config;
        let mixes = [
            Mix::Receptance,
            Mix::Decay,
            Mix::Key,
            Mix::Value,
            Mix::Rate,
            Mix::Gate,
        ];
        let [x_r, x_w, x_k, x_v, x_a, x_g] = g.token_shift(
            x,
            self.layer,
            ShiftHalf::Att,
            mixes.map(|m| self.weight(B::AttMix(m))),
        );
        let r = g.matmul(x_r, self.weight(B::AttReceptance), width);
        let k = g.matmul(x_k, self.weight(B::AttKey), width);
        let mut v = g.matmul(x_v, self.weight(B::AttValue), width);
        let [w, a, gate] = [
            (x_w, Lora::Decay, Function::Tanh),
            (x_a, Lora::Rate, Function::Identity),
            (x_g, Lora::Gate, Function::Sigmoid),
        ]
        .map(|(x, lora, inner)| self.lora(g, x, lora, inner, shapes));
        let (w, a, gate) = (w?, a?, gate?);
        let w = g.apply(Function::Decay7, w);
        let a = g.apply(Function::Sigmoid, a);
        match *v_first {
            None => *v_first = Some(v),
            Some(v_first) => {
                let t = self.lora(g, x_v, Lora::Value, Function::Identity, shapes)?;
                let t = g.apply(Function::Sigmoid, t);
                v = g.lerp(v, v_first, t);
            }
        }
        let [k, kappa] = g.keys7(
            k,
            a,
            self.weight(B::RemovalKey),
            self.weight(B::ReplacementKey),
            head_size,
        );
        let y = g.wkv7(self.layer, head_size, [r, w, k, kappa, v, a]);
        let [weight, bias] = [Affine::Weight, Affine::Bias].map(|a| self.weight(B::GroupNorm(a)));
        let y = g.group_norm(y, weight, bias, head_size, self.config.group_norm_epsilon);
        let y = g.bonus(self.weight(B::Bonus), head_size, [y, r, k, v]);
        let y = g.multiply(y, gate);
        Ok(g.matmul(y, self.weight(B::AttOutput), width))
    }

    /// `up · inner(down · x) + bias`; the gate has no bias.
    fn lora(
        &self,
        g: &mut Graph,
        x: ValueId,
        lora: Lora,
        inner: Function,
        shapes: &Shapes<'_>,
    ) -> Result<ValueId> {
        let (down, up) = (self.weight(B::LoraDown(lora)), self.weight(B::LoraUp(lora)));
        let (width, rank) = (self.config.width, shapes.rank(down)?);
        shapes.matrix(down, rank, width)?;
        shapes.matrix(up, width, rank)?;
        let mut h = g.matmul(x, down, rank);
        if inner != Function::Identity {
            h = g.apply(inner, h);
        }
        let y = g.matmul(h, up, width);
        if lora == Lora::Gate {
            return Ok(y);
        }
        let bias = self.weight(B::LoraBias(lora));
        shapes.vectors(&[bias], width)?;
        Ok(g.add_vector(y, bias))
    }

    fn channel_mix(&self, g: &mut Graph, x: ValueId) -> ValueId {
        let [x_k] = g.token_shift(
            x,
            self.layer,
            ShiftHalf::Ffn,
            [self.weight(B::FfnMix(Mix::Key))],
        );
        let k = g.matmul(x_k, self.weight(B::FfnKey), self.config.ffn);
        let k = g.apply(Function::SquaredRelu, k);
        g.matmul(k, self.weight(B::FfnValue), self.config.width)
    }

    /// Checks the shapes of the tensors that every layer has.
    fn check(&self, shapes: &Shapes<'_>) -> Result<()> {
        let ModelConfig { width, ffn, .. } = *self.config;
        for square in [B::AttReceptance, B::AttKey, B::AttValue, B::AttOutput] {
            shapes.matrix(self.weight(square), width, width)?;
        }
        shapes.matrix(self.weight(B::FfnKey), ffn, width)?;
        shapes.matrix(self.weight(B::FfnValue), width, ffn)?;
        let norms = [B::AttNorm, B::FfnNorm, B::GroupNorm]
            .into_iter()
            .flat_map(|n| [n(Affine::Weight), n(Affine::Bias)]);
        let mixes = [
            Mix::Receptance,
            Mix::Decay,
            Mix::Key,
            Mix::Value,
            Mix::Rate,
            Mix::Gate,
        ]
        .map(B::AttMix);
        let rest = [
            B::RemovalKey,
            B::ReplacementKey,
            B::Bonus,
            B::FfnMix(Mix::Key),
        ];
        let vectors: Vec<_> = norms
            .chain(mixes)
            .chain(rest)
            .map(|w| self.weight(w))
            .collect();
        shapes.vectors(&vectors, width)
    }
}
