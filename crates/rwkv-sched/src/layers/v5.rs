//! RWKV-5 "Eagle" (Peng et al. 2024, "Eagle and Finch", section 4.1). Versions 5.0 and 5.1 have one decay and bonus a
//! head, which their tensors repeat for each channel; 5.0 has no gate.

use super::block::Block;
use crate::{BlockWeight as B, Graph, Mix, ValueId, Version};
use rwkv_kernels::ops::{Function, Weighs};

pub(super) fn time_mix(g: &mut Graph, block: &Block<'_>, x: ValueId) -> ValueId {
    let [r, k, v] = [Mix::Receptance, Mix::Key, Mix::Value];
    let ([x_r, x_k, x_v], x_g) = if block.config.version == Version::V5_0 {
        (block.att_shift(g, x, Weighs::Current, [r, k, v]), None)
    } else {
        let mixes = [r, k, v, Mix::Gate];
        let [x_r, x_k, x_v, x_g] = block.att_shift(g, x, Weighs::Current, mixes);
        ([x_r, x_k, x_v], Some(x_g))
    };
    let r = block.project(g, x_r, B::AttReceptance);
    let k = block.project(g, x_k, B::AttKey);
    let v = block.project(g, x_v, B::AttValue);
    let gate = x_g.map(|x_g| {
        let gate = block.project(g, x_g, B::AttGate);
        g.apply(Function::Silu, gate)
    });
    let [decay, bonus] = [B::Decay, B::Bonus].map(|w| block.weight(w));
    let y = g.wkv5(block.layer, block.config.head_size, decay, bonus, [r, k, v]);
    let mut y = block.group_norm(g, y);
    if let Some(gate) = gate {
        y = g.multiply(y, gate);
    }
    block.project(g, y, B::AttOutput)
}
