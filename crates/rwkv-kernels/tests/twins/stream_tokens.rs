//! Products of 2 to 16 tokens that read each weight once: one at a time, several of one dispatch, in slices whose sums
//! meet and in chunks one after the other.

use crate::{
    blocks::native,
    linear::{self, Way},
    projections,
    setup::{cases, setups},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format,
    ops::{Function, TokenShape},
};
use std::collections::HashSet;

fn shapes() -> impl Strategy<Value = TokenShape> {
    let all = TokenShape::candidates()
        .into_iter()
        .map(|shape| TokenShape {
            // Fewer workgroups than blocks of rows.
            workgroups: shape.slices * 2,
            ..shape
        });
    prop::sample::select(all.collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn random_products(
        case in linear::case(2usize..=16),
        format in prop::sample::select(native()),
        shape in prop::option::of(shapes()),
        units in 1usize..40,
    ) {
        let way = shape.map_or(Way::Chosen, Way::Tokens);
        let cols = (units * 32).next_multiple_of(format.spec().block());
        let residual = case.residual && !case.bias;
        let case = linear::Case { source: format, format, cols, residual, way, ..case };
        linear::compare(&case, setups());
    }
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn random_projections(case in projections::case(), shape in prop::option::of(shapes())) {
        let way = shape.map_or(projections::Way::Chosen, projections::Way::Tokens);
        let cols = case.cols.next_multiple_of(32);
        let cols = cols.next_multiple_of(case.format.spec().block());
        projections::compare(&projections::Case { cols, way, ..case });
    }
}

/// Each layout, with each number of lanes and tokens.
#[test]
fn every_layout() {
    let lanes = [4, 8, 16, 32];
    let mut seen = HashSet::new();
    let new = |f: &Format| seen.insert(f.gpu_layout().unwrap().shader());
    for (at, format) in native().into_iter().filter(new).enumerate() {
        let case = linear::Case {
            source: format,
            format,
            tokens: [2, 3, 8, 16][at % 4],
            rows: 70,
            cols: 512,
            bias: at % 3 == 1,
            residual: at % 3 == 2,
            function: Function::SquaredRelu,
            scale: 1.0,
            way: Way::Tokens(TokenShape {
                threads: 64,
                lanes: lanes[(at + at / 4) % 4],
                apart: at % 2 == 0,
                workgroups: 4,
                slices: [1, 2, 3][at % 3],
            }),
            seed: 5,
        };
        linear::compare(&case, [&setups()[at % 2]]);
    }
}

/// x in more pieces than there may be slices, with a last piece that is shorter.
#[test]
fn long_rows() {
    for (format, tokens, cols) in [(Format::F16, 16, 9008), (Format::Q8_0, 5, 40_992)] {
        let case = linear::Case {
            source: format,
            format,
            tokens,
            rows: 9,
            cols,
            bias: false,
            residual: true,
            function: Function::Identity,
            scale: 1.0,
            way: Way::Tokens(TokenShape {
                threads: 64,
                lanes: 8,
                apart: false,
                workgroups: 3,
                slices: 2,
            }),
            seed: 7,
        };
        linear::compare(&case, [&setups()[1]]);
    }
}

/// As many slices' sums as the usual buffer does not hold.
#[test]
fn many_sums() {
    let case = linear::Case {
        source: Format::F16,
        format: Format::F16,
        tokens: 16,
        rows: 40_000,
        cols: 64,
        bias: true,
        residual: false,
        function: Function::Identity,
        scale: 1.0,
        way: Way::Tokens(TokenShape {
            threads: 64,
            lanes: 8,
            apart: false,
            workgroups: 8,
            slices: 2,
        }),
        seed: 3,
    };
    linear::compare(&case, [&setups()[1]]);
}
