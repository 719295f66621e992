//! RWKV-6 "Finch" (Peng et al. 2024, "Eagle and Finch", section 4.2).

use super::block::Block;
use crate::{BlockWeight as B, Graph, Lora, Mix, Result, ShiftHalf, ValueId};
use rwkv_kernels::ops::Function;

pub(super) fn time_mix(g: &mut Graph, block: &Block<'_>, x: ValueId) -> Result<ValueId> {
    let previous = g.previous(x, block.layer, ShiftHalf::Att);
    let base = g.lerp_vector(x, previous, block.weight(B::AttMix(Mix::Base)));
    // How much of the previous token is mixed in depends on the data: ddlerp in the paper.
    let ddlerp = |g: &mut Graph, mix: Mix| -> Result<ValueId> {
        let t = block.lora(g, base, Lora::Mix(mix), Function::Tanh)?;
        let t = g.add_vector(t, block.weight(B::AttMix(mix)));
        Ok(g.lerp(x, previous, t))
    };
    let x_w = ddlerp(g, Mix::Decay)?;
    let x_k = ddlerp(g, Mix::Key)?;
    let x_v = ddlerp(g, Mix::Value)?;
    let x_r = ddlerp(g, Mix::Receptance)?;
    let x_g = ddlerp(g, Mix::Gate)?;
    let r = block.project(g, x_r, B::AttReceptance);
    let k = block.project(g, x_k, B::AttKey);
    let v = block.project(g, x_v, B::AttValue);
    let gate = block.project(g, x_g, B::AttGate);
    let gate = g.apply(Function::Silu, gate);
    let w = block.lora_with_bias(g, x_w, Lora::Decay, Function::Tanh)?;
    let w = g.apply(Function::Decay6, w);
    let (head_size, bonus) = (block.config.head_size, block.weight(B::Bonus));
    let y = g.wkv6(block.layer, head_size, bonus, [r, k, v, w]);
    let y = block.group_norm(g, y);
    let y = g.multiply(y, gate);
    Ok(block.project(g, y, B::AttOutput))
}
