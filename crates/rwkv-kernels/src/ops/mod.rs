//! The operations: each file has an equation, its plain Rust twin, and the dispatch of its kernel.
//!
//! Twins take activations as dense row-major slices (`rows · width` f32, no padding); kernels take [`View`]s. All
//! arithmetic is f32, sums included.
//!
//! [`View`]: crate::View

mod bonus;
mod embed;
mod function;
mod keys7;
mod linear;
mod map;
mod norm;
mod select;
mod token_shift;
mod wkv7;

pub use bonus::{Bonus, bonus};
pub use embed::{Embed, embed};
pub use function::Function;
pub use keys7::{Keys7, keys7};
pub use linear::{Linear, matmul};
pub use map::{Map, add, add_vector, lerp, multiply};
pub use norm::{Norm, norm};
pub use select::{Select, select};
pub use token_shift::{StoreShift, TokenShift, mix, previous_rows};
pub use wkv7::{Wkv7, Wkv7Operands, wkv7};
