//! Rows by number: the embedding, and the rows whose logits are wanted. Both move values and must be exact: expanding
//! a weight rounds once, in the kernels as in the twins.

use crate::{
    activation::Activation,
    batch::Tables,
    blocks::{extreme, native, packed, weights},
    noise::Noise,
    setup::{Setup, cases, setups},
    tolerance::check,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, Matrix, Span,
    ops::{Embed, Select, embed, select},
};
use rwkv_mem::{Cols, Rows};

/// One span of all tokens.
fn one_span(length: usize) -> [Span; 1] {
    let length = u32::try_from(length).unwrap();
    [Span {
        start: 0,
        length,
        slot: 0,
        padding: 0,
    }]
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn embedding(format in prop::sample::select(native()),
                 tokens in 1usize..40, rows in 1u32..300, cols in 1usize..200, seed: u64) {
        let cols = cols.next_multiple_of(format.spec().block());
        let mut noise = Noise::new(seed);
        let ids: Vec<u32> = (0..tokens).map(|_| noise.below(rows)).collect();
        let bytes = weights(format, rows as usize * cols, 1.0, &mut noise);
        let table = Matrix::new(format, Rows(rows as usize), Cols(cols), &bytes).unwrap();
        for setup in setups() {
            look_up(setup, &ids, &table);
        }
    }

    #[test]
    fn selection(tokens in 1u32..40, count in 1usize..20, width in 1usize..400, seed: u64) {
        let mut noise = Noise::new(seed);
        let x = noise.values(tokens as usize * width, 1.0);
        let rows: Vec<u32> = (0..count).map(|_| noise.below(tokens)).collect();
        let mut want = vec![0.0; count * width];
        select(&x, width, &rows, &mut want);
        for setup in setups() {
            let ids = vec![0; tokens as usize];
            let batch = Tables::new(setup, &ids, &one_span(ids.len()), &rows);
            let x = Activation::new(setup, ids.len(), width, &x);
            let y = Activation::poisoned(setup, count, width, 1);
            let op = Select { batch: batch.tables(), x: x.view(), y: y.view() };
            setup.run([&setup.kernels.select(&op).unwrap()]);
            prop_assert_eq!(&y.read(), &want, "{}", setup.name);
        }
    }
}

fn look_up(setup: &Setup, ids: &[u32], table: &Matrix<'_>) {
    let cols = table.shape().cols.0;
    let mut want = vec![0.0; ids.len() * cols];
    embed(ids.iter().copied(), table, &mut want).unwrap();
    let mut upload = setup.upload();
    let table = GpuMatrix::new(setup.gpu(), "table", table, table.format(), &mut upload).unwrap();
    let batch = Tables::new(setup, ids, &one_span(ids.len()), &[0]);
    let y = Activation::poisoned(setup, ids.len(), cols, 1);
    let op = Embed {
        batch: batch.tables(),
        table: &table,
        y: y.view(),
    };
    setup.run(&setup.kernels.embed(&op).unwrap());
    let what = format!("{}, {}", setup.name, table.format());
    check(&what, &y.read(), &want, |_| 0.0);
}

/// All that the codes and factors of a format can stand for, subnormal and huge factors included.
#[test]
fn every_format() {
    for format in native() {
        for blocks in [1, 2, 3, 5, 12, 33] {
            let mut noise = Noise::new(blocks as u64);
            let (rows, cols) = (7, blocks * format.spec().block());
            let bytes = extreme(format, rows * cols, &mut noise);
            let table = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
            for setup in setups() {
                look_up(setup, &[6, 0, 5, 1, 4, 2, 3], &table);
            }
        }
    }
}

/// More tokens than the 65,535 workgroups of one dimension of a grid.
#[test]
fn a_folded_grid() {
    let ids: Vec<u32> = (0..70_000).map(|i| i % 11).collect();
    let bytes = packed(Format::F16, &Noise::new(1).values(11 * 3, 1.0));
    let table = Matrix::new(Format::F16, Rows(11), Cols(3), &bytes).unwrap();
    for setup in setups() {
        look_up(setup, &ids, &table);
    }
}

/// A table past the smallest binding limits (128 MiB) comes in parts there, each of which fills its own rows.
#[test]
fn parts_of_a_large_table() {
    let (rows, cols) = (9001, 4096);
    let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    let table = Matrix::new(
        Format::F32,
        Rows(rows),
        Cols(cols),
        bytemuck::cast_slice(&values),
    );
    // 128 MiB are 8192 rows.
    look_up(
        &setups()[1],
        &[0, 8191, 8192, 9000, 8190, 8193, 1],
        &table.unwrap(),
    );
}
