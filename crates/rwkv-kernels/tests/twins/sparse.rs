//! Products with matrices by columns: inputs that are zero are skipped up to 8 tokens, and change nothing above, where
//! cooperative matrices make them if the adapter has any.

use crate::{
    activation::{Activation, State},
    batch::{SLOTS, Tables, page_of},
    blocks::packed,
    linear::absolute_terms,
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::{self, check},
};
use half::f16;
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuColumns, GpuMatrix, Matrix, Page, Span,
    ops::{SparseLinear, SparseTuning, StoreShift, Transpose, matmul},
};
use rwkv_mem::{Cols, Rows, Shape};

#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    rows: usize,
    cols: usize,
    /// The share of inputs that are not zero.
    density: f32,
    residual: bool,
    store: bool,
    dense: bool,
    tuning: SparseTuning,
    /// Inputs of a part of the matrix.
    part: usize,
    scale: f32,
    seed: u64,
}

const PLAIN: Case = Case {
    tokens: 1,
    rows: 100,
    cols: 100,
    density: 0.1,
    residual: true,
    store: true,
    dense: false,
    tuning: TUNING,
    part: usize::MAX,
    scale: 1.0,
    seed: 3,
};

const TUNING: SparseTuning = SparseTuning {
    threads: None,
    outputs: None,
    workgroups: None,
    depth: None,
};

fn case(tokens: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let density = prop_oneof![0.0f32..1.0, Just(0.0), Just(0.03), Just(1.0)];
    let outputs = prop::sample::select(vec![None, Some(16), Some(64), Some(256)]);
    // Of every part of the matrix, so usually several ranges of inputs.
    let workgroups = prop::sample::select(vec![None, Some(1), Some(7), Some(40)]);
    let part = prop::sample::select(vec![64, 128, usize::MAX, usize::MAX]);
    (
        (tokens, 1usize..300, 1usize..700, density),
        (any::<bool>(), any::<bool>(), any::<bool>()),
        (outputs, workgroups, part, scale(), any::<u64>()),
    )
        .prop_map(
            |(
                (tokens, rows, cols, density),
                (residual, store, dense),
                (outputs, workgroups, part, scale, seed),
            )| {
                Case {
                    tokens,
                    rows,
                    cols,
                    density,
                    residual,
                    store,
                    dense,
                    tuning: SparseTuning {
                        outputs,
                        workgroups,
                        ..TUNING
                    },
                    part,
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
        // These pipelines take long to compile; `shares` has the other two ways.
        compare(&case, [&setups()[0], &setups()[3]]);
    }

    #[test]
    fn many_tokens(case in case(9usize..150)) {
        // Subgroups make no difference here.
        compare(&case, [&setups()[1], &setups()[2]]);
    }
}

/// More inputs than a block, ranges that end inside of one, outputs that end inside of a slice, all widths of slices, and
/// workgroups of either size.
#[test]
fn shares() {
    // The tuning as threads, outputs, workgroups and depth.
    for (rows, cols, tokens, density, tuning) in [
        (37, 1024, 1, 1.0, (256, 16, 1, 8)),
        (37, 1025, 1, 1.0, (256, 8, 1, 4)),
        (37, 8195, 1, 0.9, (256, 64, 1, 8)),
        (300, 20_000, 1, 0.0, (256, 256, 30, 8)),
        (300, 20_000, 2, 0.05, (256, 256, 30, 4)),
        (300, 1999, 8, 0.3, (256, 32, 80, 4)),
        (1, 1030, 4, 0.5, (256, 128, 3, 8)),
        // A span's shift has no range of its own.
        (700, 100, 8, 0.5, (256, 256, 9, 4)),
        (257, 40_000, 1, 0.1, (256, 8, 200, 8)),
        (600, 5000, 2, 1.0, (512, 512, 16, 8)),
        (37, 9000, 1, 0.5, (512, 16, 100, 4)),
        // More ranges than are read at once.
        (100, 3201, 1, 0.5, (512, 128, 99, 8)),
    ] {
        let (threads, outputs, workgroups, depth) = tuning;
        let case = Case {
            tokens,
            rows,
            cols,
            density,
            tuning: SparseTuning {
                threads: Some(threads),
                outputs: Some(outputs),
                workgroups: Some(workgroups),
                depth: Some(depth),
            },
            ..PLAIN
        };
        compare(&case, &setups()[1..3]);
    }
}

/// Zeros of both signs, and values with probability `density`.
fn sparse(noise: &mut Noise, n: usize, density: f32, scale: f32) -> Vec<f32> {
    let values = noise.values(n, scale);
    let zero_or = |x: f32| match noise.unit().abs() < density {
        true => x,
        false if noise.below(2) == 0 => 0.0,
        false => -0.0,
    };
    values.into_iter().map(zero_or).collect()
}

fn compare<'s>(case: &Case, setups: impl IntoIterator<Item = &'s Setup>) {
    let mut noise = Noise::new(case.seed);
    let (tokens, rows, cols) = (case.tokens, case.rows, case.cols);
    let x = sparse(&mut noise, tokens * cols, case.density, case.scale);
    let weight = noise.values(rows * cols, 1.0 / (cols as f32).sqrt());
    let weight = packed(Format::F16, &weight);
    let read = Matrix::new(Format::F16, Rows(rows), Cols(cols), &weight).unwrap();
    let residual = case
        .residual
        .then(|| noise.values(tokens * rows, case.scale));
    let shifted = noise.values(tokens * rows, case.scale);

    let mut want = vec![0.0; tokens * rows];
    matmul(&x, &read, &mut want).unwrap();
    let terms = absolute_terms(&x, &read, tokens);
    if let Some(residual) = &residual {
        for (y, residual) in want.iter_mut().zip(residual) {
            *y += residual;
        }
    }

    // What is not read may be anything.
    let mut given = weight.clone();
    if tokens <= 8 && !case.dense {
        for input in 0..cols {
            if x.iter().skip(input).step_by(cols).all(|x| *x == 0.0) {
                for row in 0..rows {
                    let at = (row * cols + input) * 2;
                    given[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
                }
            }
        }
    }
    let given = Matrix::new(Format::F16, Rows(rows), Cols(cols), &given).unwrap();

    // A span of one token each, in slots that go down; the first page has some of them.
    let spans: Vec<Span> = (0..SLOTS)
        .take(tokens)
        .map(|start| Span {
            start,
            length: 1,
            slot: SLOTS - 1 - start,
            padding: 0,
        })
        .collect();
    let page = Page {
        first_slot: 2,
        slots: SLOTS - 2,
        padding: [0; 2],
    };
    let which = u32::from(case.seed.is_multiple_of(2));
    let before = noise.values(SLOTS as usize * 2 * rows, 1.0);
    let mut stored = before.clone();
    if case.store {
        for span in &spans {
            let place = (span.slot * 2 + which) as usize * rows;
            let row = span.start as usize * rows;
            stored[place..place + rows].copy_from_slice(&shifted[row..row + rows]);
        }
    }

    for setup in setups {
        let mut upload = setup.upload();
        let most = case.part.saturating_mul(rows.next_multiple_of(8) * 2) as u64;
        let weight =
            GpuColumns::in_parts(&setup.kernels, "weight", &given, &mut upload, most).unwrap();
        let x = Activation::new(setup, tokens, cols, &x);
        let residual = residual
            .as_ref()
            .map(|r| Activation::new(setup, tokens, rows, r));
        let shifted = Activation::new(setup, tokens, rows, &shifted);
        let state = State::new(setup, page_of(&before, page, 2 * rows), 2 * rows);
        let ids = vec![0; tokens];
        let tables = Tables::new(setup, &ids, &spans, &[0]);
        let run = || {
            let y = Activation::poisoned(setup, tokens, rows, 1);
            let op = SparseLinear {
                x: x.view(),
                weight: &weight,
                residual: residual.as_ref().map(Activation::view),
                y: y.view(),
                store: case.store.then(|| StoreShift {
                    batch: tables.tables(),
                    x: shifted.view(),
                    state: state.buffer(),
                    page,
                    which,
                }),
                dense: case.dense,
                tuning: case.tuning,
            };
            let dispatches = setup.kernels.sparse_linear(&op).unwrap();
            let parts = if case.part < cols {
                cols.div_ceil(case.part)
            } else {
                1
            };
            let stores = usize::from(case.store && tokens > 8);
            // With cooperative matrices x is rounded before, and the slices of a part may be added up apart.
            let coop = setup.kernels.coop_column_shape(&op);
            let most = coop.map_or(parts, |_| 1 + 2 * parts);
            assert!((parts + stores..=most + stores).contains(&dispatches.len()));
            setup.run(&dispatches);
            (y.read(), coop.map_or(tolerance::SUM, |_| tolerance::HALF))
        };
        let (got, bound) = run();
        check(setup.name, &got, &want, |i| {
            bound * f64::from(terms[i]) + tolerance::FEW * f64::from(want[i].abs())
        });
        assert_eq!(got, run().0, "{}: another order of sums", setup.name);
        assert_eq!(
            state.read(),
            page_of(&stored, page, 2 * rows),
            "{}",
            setup.name
        );
    }
}

/// Rows that are on the GPU already, in parts that share 16 bytes of a column, and from the second one on.
#[test]
fn turned_on_the_gpu() {
    for (setup, rows, cols, first) in [
        (&setups()[0], 150, 70, 0),
        (&setups()[1], 23, 200, 3),
        (&setups()[0], 1, 1, 1),
        (&setups()[0], 64, 64, 64),
    ] {
        let mut noise = Noise::new(7);
        let total = first + rows + 2;
        let values = packed(Format::F16, &noise.values(total * cols, 1.0));
        let all = Matrix::new(Format::F16, Rows(total), Cols(cols), &values).unwrap();
        let x = noise.values(cols, 1.0);
        let mut upload = setup.upload();
        let shape = Shape::new(total, cols);
        let turned = GpuColumns::zeros(setup.gpu(), "turned", shape).unwrap();
        for range in [first..first + rows, 0..first, first + rows..total] {
            let some = all.rows(range.clone()).unwrap();
            let most = (cols.next_multiple_of(8) * 2 * 5) as u64;
            let some =
                GpuMatrix::in_parts(setup.gpu(), "rows", &some, Format::F16, &mut upload, most)
                    .unwrap();
            let op = Transpose {
                x: &some,
                first_output: range.start,
                y: &turned,
            };
            setup.run(&setup.kernels.transpose(&op).unwrap());
        }
        let whole = GpuColumns::new(&setup.kernels, "whole", &all, &mut upload).unwrap();
        assert_eq!(whole.bytes(), turned.bytes());
        let x = Activation::new(setup, 1, cols, &x);
        let results = [&whole, &turned].map(|weight| {
            let y = Activation::poisoned(setup, 1, total, 1);
            let op = SparseLinear {
                x: x.view(),
                weight,
                residual: None,
                y: y.view(),
                store: None,
                dense: false,
                tuning: SparseTuning::default(),
            };
            setup.run(&setup.kernels.sparse_linear(&op).unwrap());
            y.read()
        });
        assert_eq!(results[0], results[1]);
    }
}

/// A product of 1000 inputs by 300 outputs and what it is computed from.
struct Product<'s> {
    setup: &'s Setup,
    weight: GpuColumns,
    /// W x in f32, and the absolute sums of its terms.
    want: Vec<f32>,
    terms: Vec<f32>,
}

impl<'s> Product<'s> {
    const ROWS: usize = 300;
    const COLS: usize = 1000;

    fn new(setup: &'s Setup, x: &[f32]) -> Self {
        let values = packed(
            Format::F16,
            &Noise::new(5).values(Self::ROWS * Self::COLS, 0.03),
        );
        let (rows, cols) = (Rows(Self::ROWS), Cols(Self::COLS));
        let matrix = Matrix::new(Format::F16, rows, cols, &values).unwrap();
        let tokens = x.len() / Self::COLS;
        let mut want = vec![0.0; tokens * Self::ROWS];
        matmul(x, &matrix, &mut want).unwrap();
        let mut upload = setup.upload();
        Self {
            setup,
            weight: GpuColumns::new(&setup.kernels, "w", &matrix, &mut upload).unwrap(),
            want,
            terms: absolute_terms(x, &matrix, tokens),
        }
    }

    fn dispatches(
        &self,
        x: &Activation<'_>,
        residual: Option<&Activation<'_>>,
        y: &Activation<'_>,
        dense: bool,
        tuning: SparseTuning,
    ) -> Vec<rwkv_gpu::Dispatch> {
        let op = SparseLinear {
            x: x.view(),
            weight: &self.weight,
            residual: residual.map(Activation::view),
            y: y.view(),
            store: None,
            dense,
            tuning,
        };
        self.setup.kernels.sparse_linear(&op).unwrap()
    }
}

/// Dispatches of one submission, each with ranges of its own number, find the counts at zero, and never add what an
/// earlier one left among the partial sums.
#[test]
fn one_after_another() {
    let ranges = |workgroups, outputs| SparseTuning {
        workgroups: Some(workgroups),
        outputs: Some(outputs),
        ..TUNING
    };
    for setup in &setups()[1..3] {
        let x = sparse(&mut Noise::new(11), Product::COLS, 0.4, 1.0);
        let product = Product::new(setup, &x);
        let x = Activation::new(setup, 1, Product::COLS, &x);
        let nan = Activation::new(setup, 1, Product::COLS, &vec![f32::NAN; Product::COLS]);
        let lost = Activation::poisoned(setup, 1, Product::ROWS, 1);
        let ys = [0; 7].map(|_| Activation::poisoned(setup, 1, Product::ROWS, 1));
        let mut dispatches = Vec::new();
        for (i, y) in ys.iter().enumerate() {
            let earlier = i.checked_sub(1).and_then(|i| ys.get(i));
            // Nothing but NaN in all partial sums that are used later.
            dispatches.extend(product.dispatches(&nan, None, &lost, false, ranges(90, 64)));
            let tuning = ranges([2, 40, 1, 11][i % 4], [256, 64, 128][i % 3]);
            dispatches.extend(product.dispatches(&x, earlier, y, false, tuning));
        }
        let run = || {
            setup.run(&dispatches);
            ys.each_ref().map(Activation::read)
        };
        let got = run();
        for (i, got) in (1u8..).zip(&got) {
            let want: Vec<f32> = product.want.iter().map(|y| y * f32::from(i)).collect();
            check(setup.name, got, &want, |at| {
                let terms = f64::from(product.terms[at]) * f64::from(i);
                tolerance::SUM * terms + tolerance::FEW * f64::from(i) * f64::from(want[at].abs())
            });
        }
        for _ in 0..20 {
            assert_eq!(got, run(), "{}: another order of sums", setup.name);
        }
    }
}

/// With all inputs read, a token's result does not depend on the other tokens; and how many loads are under way never
/// changes one.
#[test]
fn the_same_order() {
    for setup in &setups()[1..2] {
        let values = sparse(&mut Noise::new(17), 3 * Product::COLS, 0.4, 1.0);
        let product = Product::new(setup, &values);
        for (workgroups, outputs) in [(30, 64), (1, 16)] {
            let tuning = SparseTuning {
                workgroups: Some(workgroups),
                outputs: Some(outputs),
                ..TUNING
            };
            let run = |x: &[f32], dense, tuning| {
                let tokens = x.len() / Product::COLS;
                let x = Activation::new(setup, tokens, Product::COLS, x);
                let y = Activation::poisoned(setup, tokens, Product::ROWS, 1);
                setup.run(&product.dispatches(&x, None, &y, dense, tuning));
                y.read()
            };
            let together = run(&values, true, tuning);
            let apart: Vec<f32> = values
                .chunks(Product::COLS)
                .flat_map(|x| run(x, true, tuning))
                .collect();
            assert_eq!(together, apart, "{workgroups} workgroups");
            let depths = [4, 8].map(|depth| {
                let depth = Some(depth);
                run(&values, false, SparseTuning { depth, ..tuning })
            });
            assert_eq!(depths[0], depths[1], "{workgroups} workgroups");
        }
    }
}

/// A value that is not zero, however small or odd, is not skipped.
#[test]
fn odd_inputs() {
    for setup in setups() {
        let values = packed(Format::F16, &[2.0; 8 * 5]);
        let matrix = Matrix::new(Format::F16, Rows(8), Cols(5), &values).unwrap();
        let weight = GpuColumns::new(&setup.kernels, "w", &matrix, &mut setup.upload()).unwrap();
        for (odd, want) in [
            (f32::NAN, f32::NAN),
            (f32::INFINITY, f32::INFINITY),
            (f32::MIN_POSITIVE, f32::MIN_POSITIVE * 2.0),
            (-0.0, 0.0),
        ] {
            let x = Activation::new(setup, 1, 5, &[0.0, -0.0, odd, 0.0, -0.0]);
            let y = Activation::poisoned(setup, 1, 8, 1);
            let op = SparseLinear {
                x: x.view(),
                weight: &weight,
                residual: None,
                y: y.view(),
                store: None,
                dense: false,
                tuning: SparseTuning::default(),
            };
            setup.run(&setup.kernels.sparse_linear(&op).unwrap());
            let same = |y: &f32| y.to_bits() == want.to_bits() || y.is_nan() && want.is_nan();
            assert!(y.read().iter().all(same), "{}: {odd}", setup.name);
        }
    }
}

#[test]
fn refused() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut SparseLinear<'_>), want: &str) {
        let setup = &setups()[0];
        let values = packed(Format::F16, &[1.0; 8 * 4]);
        let matrix = Matrix::new(Format::F16, Rows(8), Cols(4), &values).unwrap();
        let weight = GpuColumns::new(&setup.kernels, "w", &matrix, &mut setup.upload()).unwrap();
        let x = Activation::poisoned(setup, 3, 4, 1);
        let y = Activation::poisoned(setup, 3, 8, 1);
        let mut op = SparseLinear {
            x: x.view(),
            weight: &weight,
            residual: None,
            y: y.view(),
            store: None,
            dense: false,
            tuning: SparseTuning::default(),
        };
        change(&mut op);
        let error = setup.kernels.sparse_linear(&op).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
    check(
        |op| op.x.width = 5,
        "sparse linear: 3×5 by a 8×4 matrix into 3×8, storing 0 channels of 0 spans",
    );
    check(
        |op| op.y.rows = 2,
        "sparse linear: 3×4 by a 8×4 matrix into 2×8, storing 0 channels of 0 spans",
    );
    check(
        |op| op.tuning.outputs = Some(24),
        "sparse linear: a workgroup of 256 threads makes a power of two of outputs, 8 to 256, not 24",
    );
    check(
        |op| op.tuning.threads = Some(1024),
        "sparse linear: 1024 threads a workgroup are not possible on this adapter; take 256",
    );
    check(
        |op| op.tuning.depth = Some(5),
        "sparse linear: a thread has 4 or 8 loads under way, not 5",
    );
    let setup = &setups()[0];
    let values = packed(Format::F16, &[1.0; 8 * 100]);
    let matrix = Matrix::new(Format::F16, Rows(8), Cols(100), &values).unwrap();
    let error =
        GpuColumns::in_parts(&setup.kernels, "w", &matrix, &mut setup.upload(), 1000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "w: 64 columns of 16 bytes pass the limit of 1000; keep this matrix by rows"
    );
}
