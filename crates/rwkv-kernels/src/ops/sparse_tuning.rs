//! How workgroups share a product that skips inputs: which outputs and which inputs each of them has.

use crate::{
    Error, Result,
    kernels::{PARTIAL_COUNTS, PARTIAL_SUMS},
};
use serde::{Deserialize, Serialize};

/// How workgroups share a product. `None` chooses by shape and adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SparseTuning {
    /// Threads of a workgroup: 256, or 512 where the adapter has as many.
    pub threads: Option<u32>,
    /// Outputs that a workgroup makes, a power of two: 8 to 256, or 16 to 512 with 512 threads. What it reads of a
    /// column at once is twice as many bytes.
    pub outputs: Option<u32>,
    /// Workgroups that are wanted. Where the outputs do not give as many, each part of the inputs gets its own, and
    /// the last one adds their sums up. 1 never cuts the inputs. More are only possible on Vulkan and Direct3D 12,
    /// where the order of what several workgroups write and read is promised.
    pub workgroups: Option<u32>,
    /// 16-byte loads that a thread has under way at once: 4 or 8. The result is the same.
    pub depth: Option<u32>,
}

impl SparseTuning {
    /// What is worth measuring; not every adapter has all of them.
    pub fn candidates() -> Vec<Self> {
        let mut all = Vec::new();
        for threads in [256, 512] {
            for depth in [4, 8] {
                for outputs in [32, 64, 128, 256] {
                    for workgroups in [1, 132, 264, 528] {
                        // One range of wide slices leaves most of a large GPU idle.
                        if workgroups > 1 || outputs <= 64 && depth == 8 {
                            all.push(Self {
                                threads: Some(threads),
                                outputs: Some(outputs),
                                workgroups: Some(workgroups),
                                depth: Some(depth),
                            });
                        }
                    }
                }
            }
        }
        all
    }
}

/// What an adapter can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Able {
    /// 512 threads, and their workgroup memory.
    pub(super) large: bool,
    /// Several ranges: a workgroup sees what another one stored before it counted itself.
    pub(super) ordered: bool,
    /// It is a processor: a workgroup costs much there, and a few are enough.
    pub(super) software: bool,
}

/// What [`SparseTuning`] came to, for a part of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) threads: u32,
    pub(super) depth: u32,
    /// 16-byte units of a column in a slice, and how many slices.
    pub(super) slice: usize,
    pub(super) slices: usize,
    /// Inputs of a range, and how many ranges.
    pub(super) range: usize,
    pub(super) ranges: usize,
}

/// The most tokens, which the partial sums must have room for.
pub(super) const MOST_TOKENS: usize = 8;
/// Workgroups of 256 threads that keep the largest GPUs busy: two for each of about as many cores.
const WORKGROUPS: usize = 264;
/// Workgroups that a matrix would give work to, from which it is large.
const LARGE: usize = 2048;
/// 16-byte units of a slice, at least, where the inputs are cut: 128 bytes, a cache line.
const NARROWEST: usize = 8;
/// Where they are not: the most units of a slice, and how many slices keep the largest GPUs busy, or a processor.
const WIDEST: usize = 8;
const SLICES: usize = 128;
const SOFTWARE_SLICES: usize = 4;
/// Loads of a thread, all inputs read, that a further workgroup is worth.
const LOADS: usize = 8;
/// Partial sums that a thread reads at once in the end, as in the WGSL.
const BATCH: usize = 16;
/// The fewest inputs of a range.
const LEAST: usize = 32;
/// Inputs that are looked at together.
const QUAD: usize = 4;

/// How to share columns of `units` 16-byte units, one for each of `inputs`. The order of a sum's terms follows from all
/// but the depth, so `tokens` may choose that alone.
pub(super) fn cut(
    tuning: SparseTuning,
    able: Able,
    units: usize,
    inputs: usize,
    tokens: usize,
) -> Result<Cut> {
    let refused = |problem: String| Err(Error::shape("sparse linear", problem));
    let threads = match tuning.threads {
        None | Some(256) => 256,
        Some(512) if able.large => 512,
        Some(other) => {
            return refused(format!(
                "{other} threads a workgroup are not possible on this adapter; take 256"
            ));
        }
    };
    let depth = match tuning.depth {
        // Eight tokens' sums leave fewer registers.
        None if tokens > 2 => 4,
        None => 8,
        Some(depth @ (4 | 8)) => depth,
        Some(other) => {
            return refused(format!("a thread has 4 or 8 loads under way, not {other}"));
        }
    };
    // Blocks of inputs are whole numbers of steps through the list then, whatever their size, which keeps the order.
    let (least, most) = (threads / 256, threads / 8);
    let chosen = match tuning.outputs {
        None => None,
        Some(outputs) => {
            let slice = outputs as usize / 8;
            let possible = slice.is_power_of_two() && (least..=most).contains(&slice);
            if !outputs.is_multiple_of(8) || !possible {
                return refused(format!(
                    "a workgroup of {threads} threads makes a power of two of outputs, {} to {threads}, not {outputs}",
                    least * 8
                ));
            }
            Some(slice)
        }
    };
    let wanted = match tuning.workgroups {
        Some(wanted) if wanted > 1 && !able.ordered => {
            return refused(
                "this adapter's graphics interface does not order what several workgroups write; \
                 take 1 workgroup, which never cuts the inputs"
                    .to_owned(),
            );
        }
        Some(wanted) => wanted as usize,
        None if able.ordered && !able.software => {
            let work = units.saturating_mul(inputs) / (threads * LOADS);
            // Of large matrices, twice as many, of narrower slices.
            let busy = if work >= LARGE {
                2 * WORKGROUPS
            } else {
                WORKGROUPS
            };
            work.min(busy * 256 / threads)
        }
        None => 1,
    };
    let ranges_of = |slice: usize| {
        let slices = units.div_ceil(slice).max(1);
        let room = PARTIAL_SUMS / (slices * slice * 8 * MOST_TOKENS);
        let counted = if slices > PARTIAL_COUNTS { 1 } else { room };
        (wanted / slices).min(counted).min(inputs / LEAST).max(1)
    };
    let fits = |slice: &usize| {
        if wanted > 1 {
            // The sums that a thread reads in the end come at once.
            *slice >= NARROWEST && ranges_of(*slice) * slice * 8 <= BATCH * threads
        } else if able.software {
            units / slice >= SOFTWARE_SLICES
        } else {
            *slice <= WIDEST && units / slice >= SLICES
        }
    };
    let fallback = if wanted > 1 { NARROWEST } else { 1 };
    let widest = || [32, 16, 8, 4, 2, 1].into_iter().find(fits);
    let slice = chosen.or_else(widest).unwrap_or(fallback).max(least);
    let range = inputs
        .div_ceil(ranges_of(slice))
        .next_multiple_of(QUAD)
        .max(QUAD);
    Ok(Cut {
        threads: u32::try_from(threads).unwrap_or(256),
        depth,
        slice,
        slices: units.div_ceil(slice),
        range,
        ranges: inputs.div_ceil(range).max(1),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    const ALL: Able = Able {
        large: true,
        ordered: true,
        software: false,
    };

    /// Shapes of models, on a large GPU and where inputs are not cut: slices, their units, ranges.
    #[test]
    fn defaults() {
        #[track_caller]
        fn check(outputs: usize, inputs: usize, able: Able, want: (usize, usize, usize)) {
            let cut = cut(SparseTuning::default(), able, outputs / 8, inputs, 1).unwrap();
            assert_eq!((cut.slices, cut.slice, cut.ranges), want);
        }
        let alone = Able {
            ordered: false,
            ..ALL
        };
        let software = Able {
            software: true,
            ..ALL
        };
        check(768, 3072, ALL, (6, 16, 24));
        check(1024, 4096, ALL, (8, 16, 32));
        check(2048, 8192, ALL, (16, 16, 16));
        check(4096, 16384, ALL, (32, 16, 16));
        check(8, 32, ALL, (1, 1, 1));
        check(768, 3072, alone, (96, 1, 1));
        check(4096, 16384, alone, (128, 4, 1));
        check(768, 3072, software, (6, 16, 1));
    }

    fn tuning() -> impl Strategy<Value = SparseTuning> {
        let maybe = |all: &[u32]| {
            let mut all: Vec<_> = all.iter().map(|n| Some(*n)).collect();
            all.push(None);
            prop::sample::select(all)
        };
        (
            maybe(&[256, 512, 1024]),
            maybe(&[0, 8, 16, 24, 32, 64, 128, 256, 512, u32::MAX]),
            maybe(&[0, 1, 2, 7, 100, 528, u32::MAX]),
            maybe(&[4, 8, 16]),
        )
            .prop_map(|(threads, outputs, workgroups, depth)| SparseTuning {
                threads,
                outputs,
                workgroups,
                depth,
            })
    }

    proptest! {
        /// Every output and input has its workgroup, and all partial sums have their place.
        #[test]
        fn covers(
            tuning in tuning(),
            large in any::<bool>(),
            ordered in any::<bool>(),
            software in any::<bool>(),
            units in 1usize..20_000,
            inputs in 1usize..100_000,
            tokens in 1usize..=8,
        ) {
            let able = Able { large, ordered, software };
            if let Ok(cut) = cut(tuning, able, units, inputs, tokens) {
                prop_assert!(cut.slices * cut.slice >= units && (cut.slices - 1) * cut.slice < units);
                prop_assert!(cut.ranges * cut.range >= inputs && (cut.ranges - 1) * cut.range < inputs);
                prop_assert!(cut.range.is_multiple_of(QUAD));
                prop_assert!(cut.slice.is_power_of_two() && cut.slice * 8 <= cut.threads as usize);
                if cut.ranges > 1 {
                    prop_assert!(ordered && cut.slices <= PARTIAL_COUNTS);
                    let sums = cut.ranges * cut.slices * cut.slice * 8 * MOST_TOKENS;
                    prop_assert!(sums <= PARTIAL_SUMS);
                }
            }
        }

        /// Only the loads under way depend on the tokens.
        #[test]
        fn the_same_for_all_tokens(tuning in tuning(), units in 1usize..2000, inputs in 1usize..20_000) {
            let cuts = [1, 8].map(|tokens| {
                let cut = cut(tuning, ALL, units, inputs, tokens).ok();
                cut.map(|cut| Cut { depth: 0, ..cut })
            });
            prop_assert_eq!(cuts[0], cuts[1]);
        }
    }

    #[test]
    fn candidates_are_possible() {
        for tuning in SparseTuning::candidates() {
            cut(tuning, ALL, 512, 16_384, 1).unwrap();
        }
    }
}
