//! The model of the tests of several devices: as small as can be, with layers enough for all of them.

use super::random_model::Dimensions;
use rwkv_sched::Version;

pub(crate) const LAYERS: usize = 4;
pub(crate) const VOCAB: usize = 61;

pub(crate) fn small(version: Version) -> Dimensions {
    Dimensions {
        version,
        layers: LAYERS,
        heads: 2,
        head_size: 16,
        ffn: 52,
        vocab: VOCAB,
        ranks: [5, 6, 7, 8],
    }
}
