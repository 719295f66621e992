//! What is worth timing, the most promising first: a tuner may run out of time.

use super::{Choice, Problem, Tunable};
use crate::ops::{CoopShape, OutputShape, SparseTuning, StepTile, StreamShape, TokenShape};

/// Workgroups for the largest GPUs: two for each of 132 cores, and so on. Smaller GPUs run as many as they have places
/// for.
const TWO_A_CORE: u32 = 264;

impl Problem {
    /// Ways to cut its work, beside the default.
    pub fn candidates(&self) -> Vec<Choice> {
        match self.kernel {
            Tunable::NormProject | Tunable::NormProjectPairs | Tunable::ChannelMix => shapes(&[1]),
            Tunable::StreamMatvec => shapes(&[1, 2, 4]),
            Tunable::StreamTokens | Tunable::StreamTokensPairs => tokens(),
            Tunable::SparseMatvec => sparse(),
            Tunable::Wkv7Step => StepTile::ALL.map(Choice::Step).to_vec(),
            Tunable::Wkv7Output => OutputShape::candidates().map(Choice::Output).collect(),
            Tunable::Matmul | Tunable::MatmulColumns | Tunable::HalfProjections => {
                let shapes = CoopShape::candidates(self.tokens);
                shapes.map(Choice::Coop).collect()
            }
            Tunable::Chunk => chunks(self.tokens),
        }
    }
}

/// Tokens of the shortest chunk that is worth trying: weights are read for each.
const SHORTEST_CHUNK: usize = 256;

/// Halves of the longest chunk, their halves and so on.
fn chunks(longest: usize) -> Vec<Choice> {
    let halves = std::iter::successors(Some(longest / 2), |tokens| Some(tokens / 2));
    let worth = halves.take_while(|tokens| *tokens >= SHORTEST_CHUNK);
    worth.map(Choice::Chunk).collect()
}

/// Threads, and workgroups of all slices; then rows and units under way.
fn shapes(slices: &[u32]) -> Vec<Choice> {
    let sizes = [
        (512, TWO_A_CORE / 2),
        (256, TWO_A_CORE),
        (256, TWO_A_CORE / 2),
        (128, 2 * TWO_A_CORE),
        (128, 0),
        (256, 2 * TWO_A_CORE),
    ];
    let loads = [(1, 4), (1, 2), (2, 2), (2, 1), (4, 1)];
    let mut all = Vec::new();
    for (threads, workgroups) in sizes {
        for (rows, unroll) in loads {
            for &slices in slices {
                // Slices are for rows that are long for their number: with full workgroups.
                if slices == 1 || (threads == 256 && workgroups == TWO_A_CORE) {
                    all.push(Choice::Stream(StreamShape {
                        threads,
                        rows,
                        unroll,
                        split: 1,
                        workgroups: workgroups / slices,
                        slices,
                    }));
                }
            }
        }
    }
    all
}

fn tokens() -> Vec<Choice> {
    let sizes = [
        (256, TWO_A_CORE),
        (128, 2 * TWO_A_CORE),
        (512, TWO_A_CORE / 2),
        (256, TWO_A_CORE / 2),
    ];
    let mut all = Vec::new();
    for (lanes, apart) in [(8, true), (8, false), (16, false), (4, true)] {
        for (threads, workgroups) in sizes {
            // Of one, as many as make x fit.
            for slices in [1, 8] {
                all.push(Choice::Tokens(TokenShape {
                    threads,
                    lanes,
                    apart,
                    workgroups,
                    slices,
                }));
            }
        }
    }
    all
}

fn sparse() -> Vec<Choice> {
    let mut all = Vec::new();
    for threads in [256, 512] {
        for depth in [8, 4] {
            for workgroups in [TWO_A_CORE, 2 * TWO_A_CORE, TWO_A_CORE / 2] {
                for outputs in [128, 64, 256] {
                    all.push(Choice::Sparse(SparseTuning {
                        threads: Some(threads),
                        outputs: Some(outputs),
                        workgroups: Some(workgroups),
                        depth: Some(depth),
                    }));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Each is there once, and there are enough to be worth it and few enough to be timed in seconds.
    #[test]
    fn distinct_and_few() {
        for kernel in [
            Tunable::NormProject,
            Tunable::NormProjectPairs,
            Tunable::StreamMatvec,
            Tunable::StreamTokens,
            Tunable::StreamTokensPairs,
            Tunable::SparseMatvec,
            Tunable::Wkv7Step,
            Tunable::Wkv7Output,
            Tunable::ChannelMix,
            Tunable::Matmul,
            Tunable::MatmulColumns,
            Tunable::HalfProjections,
        ] {
            for tokens in [8, 32, 64, 2048] {
                let problem = Problem {
                    kernel,
                    format: "f16".to_owned(),
                    rows: 4096,
                    cols: 4096,
                    tokens,
                };
                let all = problem.candidates();
                let distinct: HashSet<_> = all.iter().collect();
                assert_eq!(distinct.len(), all.len(), "{kernel:?}");
                assert!((5..=40).contains(&all.len()), "{kernel:?}: {}", all.len());
            }
        }
    }
}
