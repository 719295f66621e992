//! How the products of 2 to 16 tokens are spread over the GPU (`wgsl/stream/token_rows.wgsl`), which a tuner may choose.

use super::stream::Constants;
use crate::{
    GpuMatrix, Kernels,
    kernels::{MOST_PARTIAL_SUMS, PARTIAL_COUNTS},
    tuning::{Problem, Tunable},
};
use rwkv_gpu::Kind;
use serde::{Deserialize, Serialize};

/// The shape of the work of a product of several tokens. What does not fit the adapter or the matrix is brought to what
/// does.
///
/// Outcomes differ between shapes by the order of sums only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenShape {
    /// Threads of a workgroup: a power of two from 32 to 1024.
    pub threads: u32,
    /// Lanes of a team, which makes four rows: a power of two from 4 to the smallest subgroup.
    pub lanes: u32,
    /// Whether neighbouring lanes are of different teams: they then meet the same x, and other rows' weights.
    pub apart: bool,
    /// Workgroups at most, all slices together; 0: one for each block of rows and slice.
    pub workgroups: u32,
    /// Slices that the columns are cut into at least, each for workgroups of its own.
    pub slices: u32,
}

/// A shape that fits products.
#[derive(Clone, Debug)]
pub(crate) struct TokenStream {
    /// Rows of a workgroup's block.
    pub(crate) block_rows: usize,
    /// Groups at most of one workgroup a slice.
    pub(crate) groups: usize,
    pub(crate) slices: usize,
    pub(crate) constants: Constants,
}

/// The tokens that these kernels take.
const FEWEST: usize = 2;
const MOST: usize = 16;

/// Rows that a team makes, as in the WGSL.
const TEAM_ROWS: u32 = 4;

/// Workgroups that keep the largest GPUs busy: two for each core, as registers allow for eight tokens.
const TWO_A_CORE: u32 = 264;

/// Slices at most: more sums to put together cost more than what they spread.
const MOST_SLICES: u32 = 16;

/// What two dependent rounds through memory cost a workgroup, in bytes of weights that it could have read meanwhile: the
/// share of one of [`TWO_A_CORE`] in 4 TB/s, for 1.5 µs.
const MEETING: usize = 24 << 10;

/// What a product is made of, as far as shapes depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenProduct<'a> {
    /// The matrix, or the stack that all but the pairs are in.
    pub(crate) weight: &'a GpuMatrix,
    /// Whether there are F16 rows of a second stack beside.
    pub(crate) pairs: bool,
    /// Rows of all products of the dispatch.
    pub(crate) rows: usize,
    pub(crate) tokens: usize,
}

impl TokenProduct<'_> {
    fn problem(&self) -> Problem {
        let kernel = if self.pairs {
            Tunable::StreamTokensPairs
        } else {
            Tunable::StreamTokens
        };
        Problem {
            rows: self.rows,
            ..Problem::of_matrix(kernel, self.weight, self.tokens)
        }
    }

    fn slots(&self) -> usize {
        self.tokens.next_power_of_two().max(FEWEST)
    }

    /// Columns that slices begin at multiples of: whole units, and whole blocks of integers.
    fn grain(&self) -> usize {
        let layout = self.weight.layout();
        if layout.codes_are_integers() {
            32
        } else {
            layout.unit().max(8)
        }
    }

    /// Bytes of workgroup memory that x of this many columns takes.
    fn staged_bytes(&self, cols: usize) -> usize {
        let one = if self.weight.layout().codes_are_integers() {
            let words = if self.pairs { cols * 4 } else { cols * 2 };
            words + cols / 32 * 12
        } else {
            cols * 4
        };
        self.slots() * one
    }
}

impl TokenShape {
    /// The shapes that are worth measuring.
    pub fn candidates() -> Vec<Self> {
        let mut all = Vec::new();
        for (threads, workgroups) in [
            (128, 2 * TWO_A_CORE),
            (256, TWO_A_CORE / 2),
            (256, TWO_A_CORE),
            (256, 2 * TWO_A_CORE),
            (512, TWO_A_CORE / 2),
        ] {
            for lanes in [4, 8, 16, 32] {
                for apart in [false, true] {
                    for slices in [1, 4, 8, 16] {
                        all.push(Self {
                            threads,
                            lanes,
                            apart,
                            workgroups,
                            slices,
                        });
                    }
                }
            }
        }
        all
    }

    /// What is good where nothing was measured, by reckoning: loads of 128 bytes a row, and as many slices, of `least`
    /// at least, as let the busiest workgroup have least to do.
    fn usual(product: &TokenProduct<'_>, least: usize) -> Self {
        let (cols, layout) = (product.weight.shape().cols.0, product.weight.layout());
        let row_bytes: usize = layout.row_bytes(cols).iter().sum();
        // What the busiest workgroup brings in, as if there were TWO_A_CORE of them.
        let cost = |shape: &Self| {
            let block = (shape.threads / shape.lanes * TEAM_ROWS) as usize;
            let step = layout.unit() * shape.lanes as usize;
            let slices = shape.slices as usize;
            let groups = (shape.workgroups as usize / slices).max(1);
            let rows = product.rows.div_ceil(block).div_ceil(groups) * block;
            let slice = cols.div_ceil(slices).next_multiple_of(step);
            let weights = rows * slice * row_bytes / cols.max(1);
            // x comes from the L2 cache, at about twice the speed.
            let x = product.slots() * slice * 2;
            let sums = if slices > 1 {
                8 * rows * product.tokens
            } else {
                0
            };
            let meeting = if slices > 1 { MEETING } else { 0 };
            (weights + x + sums) * (shape.workgroups / TWO_A_CORE) as usize + meeting
        };
        let least = u32::try_from(least).unwrap_or(1);
        let mut best = Self {
            threads: 256,
            lanes: 8,
            apart: false,
            workgroups: TWO_A_CORE,
            slices: least,
        };
        // Smaller blocks of rows for matrices of few.
        for (threads, lanes, workgroups) in [
            (256, 8, TWO_A_CORE),
            (128, 8, 2 * TWO_A_CORE),
            (128, 16, 2 * TWO_A_CORE),
        ] {
            for slices in least..=MOST_SLICES {
                let shape = Self {
                    threads,
                    lanes,
                    workgroups,
                    slices,
                    ..best
                };
                if cost(&shape) < cost(&best) {
                    best = shape;
                }
            }
        }
        best
    }
}

impl Kernels {
    /// The shape for the product of `tokens` tokens with a matrix like `weight`.
    pub fn token_shape(&self, weight: &GpuMatrix, tokens: usize) -> TokenShape {
        self.token_shape_for(&TokenProduct {
            weight,
            pairs: false,
            rows: weight.shape().rows.0,
            tokens,
        })
    }

    pub(crate) fn token_shape_for(&self, product: &TokenProduct<'_>) -> TokenShape {
        if self.gpu().kind() == Kind::Software {
            return TokenShape {
                threads: 64,
                lanes: 8,
                apart: false,
                workgroups: 8,
                slices: 1,
            };
        }
        let least = product
            .weight
            .shape()
            .cols
            .0
            .div_ceil(self.staged_cols(product).max(1));
        TokenShape::usual(product, least.clamp(1, MOST_SLICES as usize))
    }

    /// Columns whose x fits workgroup memory.
    fn staged_cols(&self, product: &TokenProduct<'_>) -> usize {
        let bytes = self.gpu().capabilities().limits.workgroup_bytes as usize;
        // The count of workgroups that are done, and some room.
        let grain = product.grain();
        bytes.saturating_sub(64) / product.staged_bytes(grain) * grain
    }

    /// Whether the kernels of 2 to 16 tokens multiply `weight` unless a shape is asked for: the adapter is no software one
    /// and has subgroup operations, and rows are whole units. Codes of up to 8 bits then meet x rounded to 16 bits
    /// ([`round_to_16_bits`](super::round_to_16_bits)).
    pub fn stream_tokens_suit(&self, weight: &GpuMatrix, tokens: usize) -> bool {
        self.tokens_suit(&TokenProduct {
            weight,
            pairs: false,
            rows: weight.shape().rows.0,
            tokens,
        })
    }

    pub(crate) fn tokens_suit(&self, product: &TokenProduct<'_>) -> bool {
        // Compiling these kernels takes a processor longer than they save.
        self.gpu().kind() != Kind::Software && self.token_stream(product, None).is_some()
    }

    /// `shape`, or the one that was tuned or else the default one, as far as it fits the adapter and `product`.
    pub(crate) fn token_stream(
        &self,
        product: &TokenProduct<'_>,
        shape: Option<TokenShape>,
    ) -> Option<TokenStream> {
        let tuned = shape.or_else(|| self.token_choice(product.problem()));
        self.token_fitted(
            product,
            tuned.unwrap_or_else(|| self.token_shape_for(product)),
        )
    }

    fn token_fitted(&self, product: &TokenProduct<'_>, shape: TokenShape) -> Option<TokenStream> {
        let lanes = self.gpu().capabilities().subgroups?;
        let limits = &self.gpu().capabilities().limits;
        let layout = product.weight.layout();
        let (cols, unit, grain) = (
            product.weight.shape().cols.0,
            layout.unit(),
            product.grain(),
        );
        let axis = pairs_axis(product.pairs);
        if !(FEWEST..=MOST).contains(&product.tokens)
            || (product.pairs && product.tokens > MOST / 2)
            || lanes.min < 4
            || cols == 0
            || !cols.is_multiple_of(grain)
            || !self.has_stream_kernel(KERNEL, product.weight, axis)
        {
            return None;
        }
        let two = |n: u32, low: u32, high: u32| {
            let power = n.clamp(1, 1 << 16).next_power_of_two();
            power.clamp(low, high.max(low))
        };
        let most_threads = limits.workgroup_invocations.min(1024);
        let threads = two(shape.threads, lanes.max.max(32), most_threads);
        let members = two(shape.lanes, 4, lanes.min.min(32));
        let fit = self.staged_cols(product);
        if fit == 0 {
            return None;
        }
        // As many slices as were asked for, or as make x fit, if there is room for their sums; or chunks of slices.
        let sums = product.tokens * product.rows.max(1);
        let room = if self.orders_partials() {
            MOST_PARTIAL_SUMS / sums
        } else {
            1
        };
        let wanted = (shape.slices as usize).max(cols.div_ceil(fit));
        let slices = wanted.clamp(1, MOST_SLICES as usize).min(room.max(1));
        let slice = cols.div_ceil(slices).next_multiple_of(grain);
        let chunks = slice.div_ceil(fit);
        let chunk = slice.div_ceil(chunks).next_multiple_of(grain);
        let slices = cols.div_ceil(chunks * chunk);
        let most_groups = if slices > 1 {
            PARTIAL_COUNTS
        } else {
            limits.workgroups as usize
        };
        let groups = match shape.workgroups {
            0 => most_groups,
            n => (n as usize / slices).clamp(1, most_groups),
        };
        let exact =
            cols == slices * chunks * chunk && (chunk / unit).is_multiple_of(members as usize);
        let integers = layout.codes_are_integers();
        let pitch = if integers { chunk / 8 } else { chunk / 4 };
        let most_pitch = if product.pairs { chunk / 4 } else { pitch };
        let mut constants: Constants = vec![
            ("WORKGROUP", f64::from(threads)),
            ("TOKENS", product.slots() as f64),
            ("MEMBERS", f64::from(members)),
            ("APART", f64::from(u8::from(shape.apart))),
            ("UNITS", (cols / unit) as f64),
            ("SLICE", (chunk / unit) as f64),
            ("CHUNKS", chunks as f64),
            ("EXACT", f64::from(u8::from(exact))),
            ("SLICES", slices as f64),
            ("COUNTERS", PARTIAL_COUNTS as f64),
            ("X_VECTORS", (product.slots() * most_pitch) as f64),
            ("X_PITCH", pitch as f64),
        ];
        if integers {
            constants.push(("X_BLOCKS", (product.slots() * chunk / 32) as f64));
            constants.push(("BLOCK_PITCH", (chunk / 32) as f64));
        }
        if product.pairs {
            constants.push(("PAIR_UNITS", (cols / 8) as f64));
            constants.push(("PAIR_SLICE", (chunk / 8) as f64));
        }
        constants.extend(layout.constants());
        Some(TokenStream {
            block_rows: (threads / members * TEAM_ROWS) as usize,
            groups,
            slices,
            constants,
        })
    }
}

pub(crate) const KERNEL: &str = "stream_tokens";

/// The value of the axis PAIRS.
pub(crate) fn pairs_axis(pairs: bool) -> &'static str {
    if pairs { "f16" } else { "none" }
}
