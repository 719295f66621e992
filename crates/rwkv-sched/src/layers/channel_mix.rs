//! The channel mix of RWKV-4 to RWKV-6: `y = σ(R x_r) ⊙ V relu²(K x_k)`.

use super::block::Block;
use crate::{BlockWeight as B, Graph, Mix, ValueId, Version};
use rwkv_kernels::ops::{Function, Weighs};

pub(super) fn channel_mix(g: &mut Graph, block: &Block<'_>, x: ValueId) -> ValueId {
    let weighs = match block.config.version {
        Version::V6 => Weighs::Previous,
        _ => Weighs::Current,
    };
    let [x_k, x_r] = block.ffn_shift(g, x, weighs, [Mix::Key, Mix::Receptance]);
    let r = block.project(g, x_r, B::FfnReceptance);
    let r = g.apply(Function::Sigmoid, r);
    let k = g.matmul(x_k, block.weight(B::FfnKey), block.config.ffn);
    let k = g.apply(Function::SquaredRelu, k);
    let v = block.project(g, k, B::FfnValue);
    g.multiply(r, v)
}
