//! RWKV-4 "Dove" (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3).

use super::block::Block;
use crate::{BlockWeight as B, Graph, Mix, ValueId};
use rwkv_kernels::ops::{Function, Weighs};

pub(super) fn time_mix(g: &mut Graph, block: &Block<'_>, x: ValueId) -> ValueId {
    let mixes = [Mix::Receptance, Mix::Key, Mix::Value];
    let [x_r, x_k, x_v] = block.att_shift(g, x, Weighs::Current, mixes);
    let r = block.project(g, x_r, B::AttReceptance);
    let r = g.apply(Function::Sigmoid, r);
    let k = block.project(g, x_k, B::AttKey);
    let v = block.project(g, x_v, B::AttValue);
    let [decay, bonus] = [B::Decay, B::Bonus].map(|w| block.weight(w));
    let wkv = g.wkv4(block.layer, decay, bonus, [k, v]);
    let y = g.multiply(r, wkv);
    block.project(g, y, B::AttOutput)
}
