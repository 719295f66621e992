//! Several products in one dispatch, against one product at a time.

use crate::{
    activation::{Activation, POISON, filled, read},
    blocks::{native, weights},
    linear::{FUNCTIONS, absolute_terms},
    noise::Noise,
    setup::{cases, setups},
    stream::{integers, met},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Error, Format, GpuMatrix, Matrix, View,
    ops::{Function, MatvecShape, Projections, Segment, Stack, TokenShape, matmul},
};
use rwkv_mem::{Cols, Rows};

/// Which kernel makes products.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The matrix-vector kernel.
    Old(MatvecShape),
    /// Whatever is chosen.
    Chosen,
    /// The one of several tokens, if it suits.
    Tokens(TokenShape),
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) format: Format,
    pub(crate) tokens: usize,
    pub(crate) cols: usize,
    /// Rows of the members of the two stacks.
    pub(crate) members: Vec<usize>,
    pub(crate) pairs: Vec<usize>,
    pub(crate) blocks: usize,
    pub(crate) way: Way,
    pub(crate) seed: u64,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (
        prop::sample::select(native()),
        (1usize..=8, 1usize..400),
        prop::collection::vec(1usize..70, 1..=4),
        prop::collection::vec(1usize..40, 0..=4),
        1usize..=4,
        prop::sample::select(MatvecShape::candidates()).prop_map(Way::Old),
        any::<u64>(),
    )
        .prop_map(
            |(format, (tokens, cols), members, pairs, blocks, way, seed)| Case {
                format,
                tokens,
                cols: cols.next_multiple_of(format.spec().block()),
                members,
                pairs,
                blocks,
                way,
                seed,
            },
        )
}

proptest! {
    #![proptest_config(cases(5))]

    #[test]
    fn random(case in case()) {
        compare(&case);
    }
}

/// x in several pieces of workgroup memory, in a format whose rows end in half a unit of F16.
#[test]
fn long_rows() {
    compare(&Case {
        format: Format::F32,
        tokens: 2,
        cols: 5004,
        members: vec![5, 3],
        pairs: vec![7],
        blocks: 2,
        way: Way::Old(MatvecShape {
            threads: 128,
            split: 2,
            rows: 2,
            unroll: 2,
            staged: true,
            workgroups: 0,
        }),
        seed: 3,
    });
}

/// More tokens than go beside pairs.
#[test]
fn sixteen_tokens() {
    for (format, tokens, cols) in [(Format::F16, 16, 200), (Format::Q8_0, 9, 320)] {
        compare(&Case {
            format,
            tokens,
            cols,
            members: vec![5, 30, 70],
            pairs: vec![],
            blocks: 3,
            way: Way::Tokens(TokenShape {
                threads: 64,
                lanes: 8,
                apart: false,
                workgroups: 4,
                slices: 2,
            }),
            seed: 3,
        });
    }
}

/// What a segment is: its part of a stack, and what it should be.
struct Wanted {
    segment: Segment,
    exact: (Vec<f32>, Vec<f64>),
    /// With x rounded to 16 bits.
    rounded: (Vec<f32>, Vec<f64>),
}

pub(crate) fn compare(case: &Case) {
    let mut noise = Noise::new(case.seed);
    let (tokens, cols) = (case.tokens, case.cols);
    let x = noise.values(case.blocks * tokens * cols, 1.0);
    let size = 1.0 / (cols as f32).sqrt();
    let mut files = Vec::new();
    for (stack, format, members) in [
        (Stack::Weights, case.format, &case.members),
        (Stack::Pairs, Format::F16, &case.pairs),
    ] {
        for rows in members {
            let bytes = weights(format, rows * cols, size, &mut noise);
            files.push((stack, format, *rows, bytes));
        }
    }
    let matrix = |(_, format, rows, bytes): &'_ (Stack, Format, usize, Vec<u8>)| {
        (*format, *rows, bytes.clone())
    };
    let mut wanted = Vec::new();
    let mut first = [0, 0];
    // Some words before each result, as other activations would lie there.
    let mut words = 64;
    for file in &files {
        let (format, rows, bytes) = matrix(file);
        let weight = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
        let block = noise.below(u32::try_from(case.blocks).unwrap()) as usize;
        let input = &x[block * tokens * cols..][..tokens * cols];
        let function = FUNCTIONS[noise.below(7) as usize];
        let expectation = |input: &[f32], steps: &[f32]| {
            let mut sums = vec![0.0; tokens * rows];
            matmul(input, &weight, &mut sums).unwrap();
            let terms = absolute_terms(input, &weight, tokens);
            let flips = absolute_terms(steps, &weight, tokens);
            let values: Vec<f32> = sums.iter().map(|s| function.apply(*s)).collect();
            let tolerance = (0..sums.len()).map(|i| {
                // A division may be off in its last place, and then one in a hundred rounds to the other side.
                let before = tolerance::SUM * f64::from(terms[i]) + 0.05 * f64::from(flips[i]);
                let slope = match function {
                    Function::SquaredRelu => 2.0 * f64::from(sums[i].max(0.0)) + before,
                    Function::Silu => 1.1,
                    _ => 1.0,
                };
                slope * before + tolerance::function(function, f64::from(values[i]))
            });
            let tolerance = tolerance.collect();
            (values, tolerance)
        };
        let exact = expectation(input, &vec![0.0; input.len()]);
        let rounded = if integers(format) && cols.is_multiple_of(32) {
            let (input, steps) = met(format, input);
            expectation(&input, &steps)
        } else {
            exact.clone()
        };
        let start = &mut first[usize::from(file.0 == Stack::Pairs)];
        let segment = Segment {
            stack: file.0,
            rows: *start..*start + rows,
            x: block,
            function,
            y_offset: words as u64 * 4,
        };
        *start += rows;
        words += tokens * View::stride(rows) + noise.below(9) as usize;
        wanted.push(Wanted {
            segment,
            exact,
            rounded,
        });
    }
    let segments: Vec<_> = wanted.iter().map(|w| w.segment.clone()).collect();
    for setup in setups() {
        let gpu = setup.gpu();
        let mut upload = setup.upload();
        let mut stack = |which: Stack, format| {
            let members: Vec<_> = files
                .iter()
                .filter(|f| f.0 == which)
                .map(|f| Matrix::new(f.1, Rows(f.2), Cols(cols), &f.3).unwrap())
                .collect();
            (!members.is_empty())
                .then(|| GpuMatrix::stack(gpu, "stack", &members, format, &mut upload).unwrap())
        };
        let weights = stack(Stack::Weights, case.format).unwrap();
        let pairs = stack(Stack::Pairs, Format::F16);
        let x = Activation::new(setup, tokens, cols, &x);
        let y = filled(gpu, &vec![POISON; words + 64]);
        let op = Projections {
            x: x.view(),
            blocks: case.blocks,
            weights: &weights,
            pairs: pairs.as_ref(),
            segments: &segments,
            y: &y,
        };
        let suits = setup.kernels.token_projections_suit(&op);
        let (dispatch, streamed) = match case.way {
            Way::Old(shape) => (setup.kernels.projections(&op, Some(shape)), false),
            Way::Chosen => (setup.kernels.projections(&op, None), suits),
            Way::Tokens(shape) => (setup.kernels.token_projections(&op, Some(shape)), true),
        };
        let dispatch = match (dispatch, case.way) {
            (Err(Error::Shape { .. }), Way::Tokens(_)) => {
                let ragged = !cols.is_multiple_of(32);
                let subgroups = setup.gpu().capabilities().subgroups.is_some();
                assert!(!subgroups || ragged || tokens < 2, "{case:?} is refused");
                continue;
            }
            (dispatch, _) => dispatch.unwrap(),
        };
        setup.run([&dispatch]);
        let got = read(gpu, &y);
        let mut written = vec![false; got.len()];
        for (number, want) in wanted.iter().enumerate() {
            let rows = want.segment.rows.len();
            let start = usize::try_from(want.segment.y_offset / 4).unwrap();
            let places: Vec<_> = (0..tokens * rows)
                .map(|i| start + i / rows * View::stride(rows) + i % rows)
                .collect();
            let values: Vec<_> = places.iter().map(|p| f32::from_bits(got[*p])).collect();
            for place in places {
                written[place] = true;
            }
            let what = format!("{}, segment {number} of {case:?}", setup.name);
            let (expected, tolerance) = if streamed { &want.rounded } else { &want.exact };
            check(&what, &values, expected, |i| tolerance[i]);
        }
        for (word, written) in got.iter().zip(written) {
            assert!(written || *word == POISON, "a word between was written");
        }
    }
}
