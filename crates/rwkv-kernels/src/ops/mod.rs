//! The operations: each file has an equation, its plain Rust twin, and the dispatch of its kernel.
//!
//! Twins take activations as dense row-major slices (`rows · width` f32, no padding); kernels take [`View`]s. All
//! arithmetic is f32, sums included.
//!
//! [`View`]: crate::View

mod blend;
mod bonus;
mod channel_mix;
mod column_slice;
mod coop_columns;
#[cfg(test)]
pub(crate) mod coop_emulation;
mod coop_product;
mod coop_tile;
mod csr_linear;
mod embed;
mod embed_norm;
mod function;
mod gated_heads_halves;
mod half_projections;
mod half_rows;
mod heads;
mod keys7;
mod linear;
mod lora_ups;
mod map;
pub(crate) mod matmul;
mod matmul_coop;
mod matvec;
mod mix6;
mod norm;
mod norm_project;
mod norm_shift;
mod norm_shift_halves;
mod pair_ups;
mod projections;
mod recurrence;
mod row_parts;
mod sample;
mod select;

mod sliced;
mod sparse_linear;
mod sparse_tuning;
mod step;
mod stream;
mod stream_linear;
mod stream_tokens;
mod token_matmul;
mod token_products;
mod token_shift;
mod transpose;
mod wkv4;
mod wkv6;
mod wkv6_step;
mod wkv7;
mod wkv7_output;
mod wkv7_step;

pub use blend::{Blend, Change, blend};
pub use bonus::{Bonus, bonus};
pub use channel_mix::{ChannelMix, ChannelValue};
#[cfg(test)]
pub(crate) use coop_emulation::emulated;
pub use coop_tile::{CoopShape, CoopTile};
pub use csr_linear::{CsrLinear, csr_matmul};
pub use embed::{Embed, embed};
pub use embed_norm::EmbedNorm;
pub use function::Function;
pub use gated_heads_halves::GatedHeadsHalves;
pub use half_projections::HalfProjections;
pub use half_rows::{HalfRows, half_row};
pub use keys7::{Keys7, keys7};
pub use linear::Linear;
pub use map::{Map, add, add_vector, lerp, lerp_vector, multiply};
pub use matmul::matmul;
pub use matvec::MatvecShape;
pub use mix6::{MIXES6, Mix6};
pub use norm::{Norm, norm};
pub use norm_project::{MixedProduct, NormProject};
pub use norm_shift::{NormShift, ShiftRows};
pub use norm_shift_halves::NormShiftHalves;
pub use pair_ups::{PairEnd, PairUps};
pub use projections::{MAX_SEGMENTS, Projections, Segment, Stack};
pub use recurrence::{Recurrence, RecurrenceTile};
pub use sample::Sample;
pub use select::{Select, select};
pub use sliced::{Sliced, SlicedSum};
pub use sparse_linear::SparseLinear;
pub use sparse_tuning::SparseTuning;
pub use step::StepTile;
pub use stream::{StreamShape, round_to_16_bits};
pub use stream_linear::StreamLinear;
pub use stream_tokens::TokenShape;
pub use token_matmul::{TokenMatMul, token_matmul};
pub use token_shift::{Previous, StoreShift, TokenShift, Weighs, mix, previous_rows};
pub use transpose::Transpose;
pub use wkv4::{Wkv4, Wkv4Operands, wkv4};
pub use wkv6::{Decay, Wkv6, Wkv6Operands, wkv6};
pub use wkv6_step::Wkv6Step;
pub use wkv7::{Wkv7, Wkv7Operands, wkv7};
pub use wkv7_output::{OutputShape, Wkv7Output};
pub use wkv7_step::{ShiftStore, Wkv7Step};
