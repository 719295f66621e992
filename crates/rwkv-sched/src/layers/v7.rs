//! RWKV-7 "Goose" (Peng et al. 2025, section 4): the names follow the paper's symbols.

use super::block::Block;
use crate::{BlockWeight as B, Graph, Lora, Mix, Result, ValueId};
use rwkv_kernels::ops::{Function, Weighs};

/// `v_first` is the first layer's value, which the later ones mix into theirs.
pub(super) fn time_mix(
    g: &mut Graph,
    block: &Block<'_>,
    x: ValueId,
    v_first: &mut Option<ValueId>,
) -> Result<ValueId> {
    let mixes = [
        Mix::Receptance,
        Mix::Decay,
        Mix::Key,
        Mix::Value,
        Mix::Rate,
        Mix::Gate,
    ];
    let [x_r, x_w, x_k, x_v, x_a, x_g] = block.att_shift(g, x, Weighs::Previous, mixes);
    let r = block.project(g, x_r, B::AttReceptance);
    let k = block.project(g, x_k, B::AttKey);
    let mut v = block.project(g, x_v, B::AttValue);
    let w = block.lora_with_bias(g, x_w, Lora::Decay, Function::Tanh)?;
    let w = g.apply(Function::Decay7, w);
    let a = block.lora_with_bias(g, x_a, Lora::Rate, Function::Identity)?;
    let a = g.apply(Function::Sigmoid, a);
    let gate = block.lora(g, x_g, Lora::Gate, Function::Sigmoid)?;
    match *v_first {
        None => *v_first = Some(v),
        Some(v_first) => {
            let t = block.lora_with_bias(g, x_v, Lora::Value, Function::Identity)?;
            let t = g.apply(Function::Sigmoid, t);
            v = g.lerp(v, v_first, t);
        }
    }
    let head_size = block.config.head_size;
    let [removal, replacement] = [B::RemovalKey, B::ReplacementKey].map(|w| block.weight(w));
    let [k, kappa] = g.keys7(k, a, removal, replacement, head_size);
    let y = g.wkv7(block.layer, head_size, [r, w, k, kappa, v, a]);
    let y = block.group_norm(g, y);
    let y = g.bonus(block.weight(B::Bonus), head_size, [y, r, k, v]);
    let y = g.multiply(y, gate);
    Ok(block.project(g, y, B::AttOutput))
}

pub(super) fn channel_mix(g: &mut Graph, block: &Block<'_>, x: ValueId) -> ValueId {
    let k = key(g, block, x);
    block.project(g, k, B::FfnValue)
}

/// The channel mix's key after its activation.
pub(super) fn key(g: &mut Graph, block: &Block<'_>, x: ValueId) -> ValueId {
    let [x_k] = block.ffn_shift(g, x, Weighs::Previous, [Mix::Key]);
    let k = g.matmul(x_k, block.weight(B::FfnKey), block.config.ffn);
    g.apply(Function::SquaredRelu, k)
}
