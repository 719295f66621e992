//! The mixes of RWKV-6 that depend on the data in one dispatch, against the operations that they are made of.

use crate::{
    activation::{Activation, Together},
    blocks::packed,
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, Matrix, View,
    ops::{MIXES6, Mix6, add_vector, lerp, matmul},
};
use rwkv_mem::{Cols, Rows};

/// Sums of up to 140 terms in two orders, of which what they are added to takes nothing away.
const BOUND: f64 = 4e-6;

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn any_shape(tokens in 1usize..12, width in 1usize..300, rank in 1usize..140, scale in scale(), seed: u64,
                 format in prop::sample::select(vec![Format::F16, Format::F32])) {
        compare(tokens, width, rank, format, scale, seed);
    }
}

/// Widths and ranks of the published models.
#[test]
fn published() {
    for (tokens, width, rank) in [(1, 2048, 32), (8, 2560, 32), (2, 4096, 64)] {
        compare(tokens, width, rank, Format::F16, 1.0, 7);
    }
}

fn compare(tokens: usize, width: usize, rank: usize, format: Format, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let n = tokens * width;
    let [x, previous] = [scale; 2].map(|s| noise.values(n, s));
    let hidden: Vec<_> = (0..MIXES6)
        .map(|_| noise.values(tokens * rank, 1.0))
        .collect();
    let base = noise.values(MIXES6 * width, 1.0);
    let files: Vec<_> = (0..MIXES6)
        .map(|_| packed(format, &noise.values(width * rank, 0.1)))
        .collect();
    let matrices: Vec<_> = files
        .iter()
        .map(|bytes| Matrix::new(format, Rows(width), Cols(rank), bytes).unwrap())
        .collect();

    let mut want = Vec::new();
    for ((up, hidden), base) in matrices.iter().zip(&hidden).zip(base.chunks_exact(width)) {
        let [mut product, mut weight, mut y] = [(); 3].map(|()| vec![0.0; n]);
        matmul(hidden, up, &mut product).unwrap();
        add_vector(&product, base, &mut weight);
        lerp(&x, &previous, &weight, &mut y);
        want.extend(y);
    }

    for setup in setups() {
        let mut upload = setup.upload();
        // The stack has them in another order than the mixes, with a matrix of others before.
        let order = [2, 0, 4, 1, 3];
        let mut members = vec![Matrix::new(format, Rows(width), Cols(rank), &files[0]).unwrap()];
        for number in order {
            let bytes = &files[number];
            members.push(Matrix::new(format, Rows(width), Cols(rank), bytes).unwrap());
        }
        let up = GpuMatrix::stack(setup.gpu(), "up", &members, format, &mut upload).unwrap();
        let up = up.view(width..(1 + MIXES6) * width).unwrap();
        let rows =
            std::array::from_fn(|number| order.iter().position(|n| *n == number).unwrap() * width);
        let base = GpuVector::new(setup.gpu(), "base", &base, &mut upload).unwrap();
        let both = [&previous, &x].map(|x| (width, x.as_slice()));
        let both = Together::new(setup, tokens, &both);
        let parts: Vec<_> = hidden.iter().map(|h| (rank, h.as_slice())).collect();
        let parts = Together::new(setup, tokens, &parts);
        let views: Vec<View<'_>> = parts.views();
        let y = Activation::poisoned(setup, tokens, width, MIXES6);
        let op = Mix6 {
            x: both.views()[1],
            previous: both.views()[0],
            hidden: views.try_into().unwrap(),
            up: &up,
            rows,
            base: &base,
            y: y.view(),
        };
        setup.run([&setup.kernels.mix6(&op).unwrap()]);
        check_rms(
            &format!("{}, {format}", setup.name),
            &y.read(),
            &want,
            BOUND,
        );
    }
}

/// What does not fit is refused.
#[test]
fn refused() {
    let setup = &setups()[0];
    let mut upload = setup.upload();
    let (tokens, width, rank) = (2, 8, 4);
    let bytes = packed(Format::F16, &vec![0.5; MIXES6 * width * rank]);
    let matrix = Matrix::new(Format::F16, Rows(MIXES6 * width), Cols(rank), &bytes).unwrap();
    let up = GpuMatrix::new(setup.gpu(), "up", &matrix, Format::F16, &mut upload).unwrap();
    let base = vec![0.5; MIXES6 * width];
    let base = GpuVector::new(setup.gpu(), "base", &base, &mut upload).unwrap();
    let x = vec![1.0; tokens * width];
    let both = Together::new(setup, tokens, &[(width, &x), (width, &x)]);
    let elsewhere = Activation::new(setup, tokens, width, &x);
    let hidden = vec![1.0; tokens * rank];
    let hidden = Together::new(setup, tokens, &[(rank, hidden.as_slice()); MIXES6]);
    let y = Activation::poisoned(setup, tokens, width, MIXES6);
    let op = || Mix6 {
        x: both.views()[0],
        previous: both.views()[1],
        hidden: hidden.views().try_into().unwrap(),
        up: &up,
        rows: std::array::from_fn(|number| number * width),
        base: &base,
        y: y.view(),
    };
    let check = |fits: bool, op: Mix6<'_>| {
        assert_eq!(setup.kernels.mix6(&op).is_ok(), fits);
    };
    check(true, op());
    let elsewhere = elsewhere.view();
    check(
        false,
        Mix6 {
            x: elsewhere,
            ..op()
        },
    );
    check(
        false,
        Mix6 {
            previous: View { width: 9, ..op().x },
            ..op()
        },
    );
    check(
        false,
        Mix6 {
            y: View { rows: 3, ..op().y },
            ..op()
        },
    );
    for row in [1, usize::MAX] {
        let rows = [
            0,
            width,
            2 * width,
            3 * width,
            (4 * width).saturating_add(row),
        ];
        check(false, Mix6 { rows, ..op() });
    }
    let hidden = |change: fn(&mut View<'_>)| {
        let mut hidden = op().hidden;
        change(&mut hidden[3]);
        hidden
    };
    check(
        false,
        Mix6 {
            hidden: hidden(|h| h.width += 1),
            ..op()
        },
    );
    check(
        false,
        Mix6 {
            hidden: hidden(|h| h.rows -= 1),
            ..op()
        },
    );
    check(
        false,
        Mix6 {
            hidden: hidden(|h| h.offset += 4),
            ..op()
        },
    );
}
