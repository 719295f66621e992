//! RWKV-7a: RWKV-7 with DeepEmbed, whose channel mix is weighed by what a matrix of each token's own makes of x. There
//! is no paper; the names are those of the published tensors.

use super::{block::Block, v7};
use crate::{BlockWeight as B, Graph, Lora, Result, ValueId};

/// `x0` is the normed embedding. The matrix of a token is `s_emb[token] + s_emb_x x0`; the second part is computed here
/// rather than added to the table, so that the table stays as it is in the file.
pub(super) fn channel_mix(
    g: &mut Graph,
    block: &Block<'_>,
    x: ValueId,
    x0: ValueId,
) -> Result<ValueId> {
    let rank = block.rank(Lora::DeepEmbed)?;
    let elements = rank.saturating_mul(rank);
    let s_emb = g.embed(block.weight(B::FfnEmbedding), elements);
    let e = g.matmul(x0, block.weight(B::FfnEmbeddingUp), elements);
    let e = g.add(s_emb, e);
    // x is not shifted here.
    let h = g.matmul(x, block.weight(B::LoraDown(Lora::DeepEmbed)), rank);
    let ss = g.token_matmul(h, e);
    let s2 = block.weight(B::LoraUp(Lora::DeepEmbed));
    let weight = g.matmul(ss, s2, block.config.ffn);
    let weight = g.add_vector(weight, block.weight(B::LoraBias(Lora::DeepEmbed)));
    let k = v7::key(g, block, x);
    let k = g.multiply(k, weight);
    Ok(block.project(g, k, B::FfnValue))
}
