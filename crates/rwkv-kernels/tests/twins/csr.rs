//! Products with compressed sparse rows.

use crate::{
    activation::Activation,
    linear::{FUNCTIONS, absolute_terms, expanded},
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_kernels::{
    Csr, CsrColumns, Format, GpuCsr, GpuVector, Matrix,
    ops::{CsrLinear, Function, csr_matmul, matmul},
};
use rwkv_mem::{Cols, Rows};

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
struct Case {
    tokens: usize,
    rows: usize,
    cols: usize,
    /// The share of elements that are not zero.
    density: f32,
    /// Columns of 32 bits where 16 do.
    wide: bool,
    bias: bool,
    residual: bool,
    function: Function,
    /// Whether the matrix comes in parts as small as its longest row.
    parts: bool,
    scale: f32,
    seed: u64,
}

fn case(tokens: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let density = prop_oneof![0.0f32..1.0, Just(0.0), Just(0.02), Just(1.0)];
    (
        (tokens, 1usize..200, 1usize..400, density),
        (
            any::<bool>(),
            any::<bool>(),
            any::<bool>(),
            any::<bool>(),
            prop::sample::select(&FUNCTIONS[..]),
        ),
        (scale(), any::<u64>()),
    )
        .prop_map(
            |(
                (tokens, rows, cols, density),
                (wide, bias, residual, parts, function),
                (scale, seed),
            )| {
                Case {
                    tokens,
                    rows,
                    cols,
                    density,
                    wide,
                    bias,
                    residual,
                    function,
                    parts,
                    scale,
                    seed,
                }
            },
        )
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn up_to_8_tokens(case in case(1usize..=8)) {
        compare(&case, setups());
    }

    #[test]
    fn many_tokens(case in case(9usize..150)) {
        // Subgroups make no difference here.
        compare(&case, [&setups()[1], &setups()[2]]);
    }
}

/// Columns whose numbers do not fit 16 bits. Not the tiled kernel: llvmpipe ends loops after 65,535 rounds of all.
#[test]
fn many_columns() {
    for tokens in [1, 5] {
        let case = Case {
            tokens,
            rows: 3,
            cols: 65_600,
            density: 0.01,
            wide: false,
            bias: false,
            residual: true,
            function: Function::Identity,
            parts: false,
            scale: 1.0,
            seed: 1,
        };
        compare(&case, setups());
    }
}

fn compare<'s>(case: &Case, setups: impl IntoIterator<Item = &'s Setup>) {
    let mut noise = Noise::new(case.seed);
    let (tokens, rows, cols) = (case.tokens, case.rows, case.cols);
    let mut x = noise.values(tokens * cols, case.scale);
    let mut weight = noise.values(rows * cols, 1.0 / (cols as f32).sqrt());
    for w in &mut weight {
        if noise.unit().abs() >= case.density {
            *w = if noise.below(2) == 0 { 0.0 } else { -0.0 };
        }
    }
    let bytes = bytemuck::cast_slice(&weight);
    let dense = Matrix::new(Format::F32, Rows(rows), Cols(cols), bytes).unwrap();
    let mut sparse = Csr::from_dense("weight", &dense, 0.0).unwrap();
    assert_eq!(
        matches!(sparse.columns(), CsrColumns::U32(_)),
        cols > 1 << 16
    );
    if case.wide
        && let CsrColumns::U16(narrow) = sparse.columns()
    {
        let wide = narrow.iter().map(|c| u32::from(*c)).collect();
        sparse = Csr::new(
            "weight",
            Rows(rows),
            Cols(cols),
            sparse.values().to_vec(),
            CsrColumns::U32(wide),
            sparse.row_offsets().to_vec(),
        )
        .unwrap();
    }
    // The values that it holds: rounded to f16.
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        sparse.expand_row(row, out);
    }
    let read = Matrix::new(
        Format::F32,
        Rows(rows),
        Cols(cols),
        bytemuck::cast_slice(&values),
    )
    .unwrap();
    assert_eq!(expanded(&read), values);
    let mut sums = vec![0.0; tokens * rows];
    csr_matmul(&x, &sparse, &mut sums).unwrap();
    let mut by_dense = vec![0.0; tokens * rows];
    matmul(&x, &read, &mut by_dense).unwrap();
    let terms = absolute_terms(&x, &read, tokens);
    check("the twin", &sums, &by_dense, |i| {
        tolerance::SUM * f64::from(terms[i])
    });

    // An input that no entry reads may be anything, up to 8 tokens.
    if tokens <= 8 {
        for input in 0..cols {
            if values.iter().skip(input).step_by(cols).all(|w| *w == 0.0) {
                for token in 0..tokens {
                    x[token * cols + input] = f32::INFINITY;
                }
            }
        }
    }
    let bias = case.bias.then(|| noise.values(rows, 1.0));
    let residual = case
        .residual
        .then(|| noise.values(tokens * rows, case.scale));
    let part = |vector: &Option<Vec<f32>>, i: usize| vector.as_ref().map_or(0.0, |v| v[i]);
    let mut want = Vec::new();
    let mut tolerance = Vec::new();
    for (i, (sum, terms)) in sums.iter().zip(&terms).enumerate() {
        let (bias, residual) = (part(&bias, i % rows), part(&residual, i));
        let value = case.function.apply(sum + bias);
        want.push(value + residual);
        let before = tolerance::SUM * f64::from(terms + bias.abs());
        let slope = match case.function {
            Function::SquaredRelu => 2.0 * f64::from((sum + bias).max(0.0)) + before,
            Function::Silu => 1.1,
            _ => 1.0,
        };
        tolerance.push(
            slope * before
                + tolerance::function(case.function, f64::from(value))
                + tolerance::FEW * f64::from(value.abs() + residual.abs()),
        );
    }
    let longest = (0..rows).map(|row| sparse.row(row).count()).max().unwrap();
    let most = if case.parts {
        (longest.next_multiple_of(8) * sparse.columns().width()).max(24) as u64
    } else {
        u64::MAX
    };
    for setup in setups {
        let mut upload = setup.upload();
        let weight = GpuCsr::in_parts(setup.gpu(), "weight", &sparse, &mut upload, most).unwrap();
        let bias = bias
            .as_ref()
            .map(|b| GpuVector::new(setup.gpu(), "bias", b, &mut upload).unwrap());
        let x = Activation::new(setup, tokens, cols, &x);
        let residual = residual
            .as_ref()
            .map(|r| Activation::new(setup, tokens, rows, r));
        let y = Activation::poisoned(setup, tokens, rows, 1);
        let op = CsrLinear {
            x: x.view(),
            weight: &weight,
            bias: bias.as_ref(),
            function: case.function,
            residual: residual.as_ref().map(Activation::view),
            y: y.view(),
        };
        setup.run(&setup.kernels.csr_linear(&op).unwrap());
        check(setup.name, &y.read(), &want, |i| tolerance[i]);
    }
}

#[test]
fn a_row_past_the_limit() {
    let setup = &setups()[0];
    let values = [1.0f32; 20];
    let matrix = Matrix::new(
        Format::F32,
        Rows(2),
        Cols(10),
        bytemuck::cast_slice(&values),
    )
    .unwrap();
    let sparse = Csr::from_dense("w", &matrix, 0.0).unwrap();
    let mut upload = setup.upload();
    let error = GpuCsr::in_parts(setup.gpu(), "w", &sparse, &mut upload, 31).unwrap_err();
    assert_eq!(
        error.to_string(),
        "w: row 0 has 10 entries, which pass the limit of 31 bytes"
    );
}
