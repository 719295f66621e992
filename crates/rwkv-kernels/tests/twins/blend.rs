//! Weights with what adapters change of them: every source format into F16 and F32.

use crate::{
    activation::{Activation, filled},
    batch::Tables,
    blocks::packed,
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::{self, check},
};
use proptest::prelude::*;
use rwkv_gpu::Readback;
use rwkv_kernels::{
    Format, GpuMatrix, LoraUp, Matrix, Span,
    ops::{Blend, Change, Embed, blend},
};
use rwkv_mem::{Cols, Rows};

#[derive(Clone, Debug)]
struct Case {
    source: Format,
    target: Format,
    rows: usize,
    cols: usize,
    rank: usize,
    whole: bool,
    keep: f32,
    /// Rows that one call makes.
    slab: usize,
    scale: f32,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let formats = (
        prop::sample::select(vec![
            Format::F32,
            Format::F16,
            Format::Q8_0,
            Format::Q6K,
            Format::Q3K,
        ]),
        prop::sample::select(vec![Format::F32, Format::F16]),
    );
    let change = (
        prop_oneof![1 => Just(0usize), 4 => 1..=40usize],
        any::<bool>(),
        prop::sample::select(vec![1.0, 1.0, 0.0, 0.5, -0.25]),
    );
    let shape = (1usize..200, 1usize..330, 1usize..200);
    // Larger values leave f16.
    let scale = scale().prop_map(|s| s.min(30.0));
    (formats, shape, change, scale, any::<u64>()).prop_map(
        |((source, target), (rows, cols, slab), (rank, whole, keep), scale, seed)| Case {
            source,
            target,
            rows,
            cols: cols.next_multiple_of(source.spec().block()),
            rank,
            whole,
            keep,
            slab,
            scale,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn blended_weights(case in case()) {
        compare(&case);
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    /// The twin refuses what does not fit, and never panics.
    #[test]
    fn operands_of_any_length(sizes in prop::array::uniform4(0usize..9), rows in 0usize..4, cols in 0usize..4,
                              first in prop_oneof![4 => 0usize..4, 1 => Just(usize::MAX)]) {
        let bytes = vec![0; rows * cols * 4];
        let base = Matrix::new(Format::F32, Rows(rows), Cols(cols), &bytes).unwrap();
        let [a, b, whole, mut y] = sizes.map(|n| vec![0.5; n]);
        let change = Change { keep: 1.0, a: &a, b: &b, whole: &whole };
        let made = y.len() / cols.max(1);
        let rank = a.len() / cols.max(1);
        let fits = y.len() == made * cols
            && a.len() == rank * cols
            && b.len() == made * rank
            && (whole.is_empty() || whole.len() == y.len())
            && first.checked_add(made).is_some_and(|end| end <= rows);
        prop_assert_eq!(blend(&base, first, &change, &mut y).is_ok(), fits);
    }
}

fn compare(case: &Case) {
    let &Case {
        rows, cols, rank, ..
    } = case;
    let mut noise = Noise::new(case.seed);
    let base = packed(case.source, &noise.values(rows * cols, case.scale));
    let base = Matrix::new(case.source, Rows(rows), Cols(cols), &base).unwrap();
    let (a, b) = (
        noise.values(rank * cols, 1.0),
        noise.values(rows * rank, 0.3),
    );
    let whole = if case.whole {
        noise.values(rows * cols, case.scale)
    } else {
        Vec::new()
    };
    let change = Change {
        keep: case.keep,
        a: &a,
        b: &b,
        whole: &whole,
    };
    let mut want = vec![f32::NAN; rows * cols];
    blend(&base, 0, &change, &mut want).unwrap();
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));

    // The sizes of the terms.
    let absolute = |v: &[f32]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let mut terms = vec![0.0; rows * cols];
    for (row, out) in terms.chunks_exact_mut(cols).enumerate() {
        base.expand_row(row, out);
    }
    let terms_base = absolute(&terms);
    let terms_base = Matrix::new(
        Format::F32,
        Rows(rows),
        Cols(cols),
        bytemuck::cast_slice(&terms_base),
    );
    let (a_size, b_size, whole_size) = (absolute(&a), absolute(&b), absolute(&whole));
    let sizes = Change {
        keep: case.keep.abs(),
        a: &a_size,
        b: &b_size,
        whole: &whole_size,
    };
    blend(&terms_base.unwrap(), 0, &sizes, &mut terms).unwrap();

    for setup in setups() {
        let (got, seen) = on_gpu(setup, case, &base, &change);
        // Half a unit in the last place of f16, as a share and below its normal numbers.
        let rounding = |x: f32| match case.target {
            Format::F16 => f64::from(x.abs()) / 1024.0 + 6e-8,
            _ => 0.0,
        };
        check(setup.name, &got, &want, |i| {
            tolerance::SUM * f64::from(terms[i]) + rounding(want[i])
        });
        let most = terms.iter().fold(0.0f32, |m, x| m.max(*x));
        let near = tolerance::SUM * f64::from(most);
        assert!(
            (f64::from(seen) - f64::from(largest)).abs() <= near,
            "{seen}, not {largest}"
        );
    }
}

/// The blended matrix as a kernel reads it, and the largest magnitude.
fn on_gpu(setup: &Setup, case: &Case, base: &Matrix<'_>, change: &Change<'_>) -> (Vec<f32>, f32) {
    let &Case {
        rows, cols, rank, ..
    } = case;
    let mut upload = setup.upload();
    let gpu = setup.gpu();
    let resident = GpuMatrix::new(gpu, "base", base, case.source, &mut upload).unwrap();
    let y = GpuMatrix::zeros(gpu, "blend", base.shape(), case.target).unwrap();
    let largest = filled(gpu, &[7, 0, 7]);
    let a = (rank > 0).then(|| Activation::new(setup, rank, cols, change.a));
    for first in (0..rows).step_by(case.slab) {
        let count = case.slab.min(rows - first);
        // What lies between B and T is never looked at.
        let width = Blend::own_width(rank, cols, case.whole);
        let mut own = vec![f32::NAN; count * width];
        for (row, own) in (first..).zip(own.chunks_exact_mut(width.max(1))) {
            own[..rank].copy_from_slice(&change.b[row * rank..(row + 1) * rank]);
            if case.whole {
                own[width - cols..].copy_from_slice(&change.whole[row * cols..(row + 1) * cols]);
            }
        }
        let own = (width > 0).then(|| Activation::new(setup, count, width, &own));
        let op = Blend {
            base: &resident,
            first,
            rows: count,
            keep: case.keep,
            a: a.as_ref().map(Activation::view),
            own: own.as_ref().map(Activation::view),
            whole: case.whole,
            largest: (&largest, 1),
            y: &y,
        };
        setup.run(&setup.kernels.blend(&op).unwrap());
    }
    let readback = Readback::new(gpu, "test", 12).unwrap();
    let mut recorder = gpu.recorder("test");
    recorder.read(&largest, 0, 12, &readback);
    let submission = recorder.submit().unwrap();
    let words: Vec<u32> = readback
        .view(gpu, &submission, 12, bytemuck::pod_collect_to_vec)
        .unwrap();
    assert_eq!([words[0], words[2]], [7, 7], "neighbours of the largest");
    (rows_of(setup, &y), f32::from_bits(words[1]))
}

/// Every row, through the embedding kernel.
fn rows_of(setup: &Setup, matrix: &GpuMatrix) -> Vec<f32> {
    let (rows, cols) = (matrix.shape().rows.0, matrix.shape().cols.0);
    let ids: Vec<u32> = (0..).take(rows).collect();
    let span = Span {
        start: 0,
        length: u32::try_from(rows).unwrap(),
        slot: 0,
        padding: 0,
    };
    let batch = Tables::new(setup, &ids, &[span], &[0]);
    let y = Activation::poisoned(setup, rows, cols, 1);
    let op = Embed {
        batch: batch.tables(),
        table: matrix,
        y: y.view(),
    };
    setup.run(&setup.kernels.embed(&op).unwrap());
    y.read()
}

/// A blend that leaves f16 says how far it went; one that keeps nothing does not see what was there.
#[test]
fn extremes() {
    let setup = &setups()[0];
    let (rows, cols) = (3, 5);
    let mut values = vec![1.0f32; rows * cols];
    values[7] = f32::INFINITY;
    let bytes = packed(Format::F32, &values);
    let base = Matrix::new(Format::F32, Rows(rows), Cols(cols), &bytes).unwrap();
    let whole = vec![70_000.0; rows * cols];
    let case = Case {
        source: Format::F32,
        target: Format::F32,
        rows,
        cols,
        rank: 0,
        whole: true,
        keep: 0.0,
        slab: 2,
        scale: 1.0,
        seed: 0,
    };
    let change = Change {
        keep: 0.0,
        a: &[],
        b: &[],
        whole: &whole,
    };
    assert_eq!(
        on_gpu(setup, &case, &base, &change),
        (whole.clone(), 70_000.0)
    );
    let mut y = vec![0.0; rows * cols];
    blend(&base, 0, &change, &mut y).unwrap();
    assert_eq!(y, whole);
}

/// Makes `y` twice `base`.
fn double(setup: &Setup, base: &GpuMatrix, y: &GpuMatrix) {
    let op = Blend {
        base,
        first: 0,
        rows: base.shape().rows.0,
        keep: 2.0,
        a: None,
        own: None,
        whole: false,
        largest: (&filled(setup.gpu(), &[0]), 0),
        y,
    };
    setup.run(&setup.kernels.blend(&op).unwrap());
}

/// A result that lies behind another matrix, which stays what it is.
#[test]
fn behind_another_matrix() {
    let setup = &setups()[0];
    let (rows, cols) = (32, 8);
    let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    let bytes = packed(Format::F16, &values);
    let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes).unwrap();
    let mut upload = setup.upload();
    let gpu = setup.gpu();
    let base = GpuMatrix::new(gpu, "base", &matrix, Format::F16, &mut upload).unwrap();
    let pairs = LoraUp::new(gpu, "pairs", Format::F16, rows, &[cols; 2]).unwrap();
    let pairs = pairs.unwrap();
    let [first, second] = [0, 1].map(|index| {
        let mut filled = pairs.filling("pairs", index).unwrap();
        filled.push("pairs", &matrix, &mut upload).unwrap();
        filled.finish().unwrap()
    });
    upload.flush().unwrap();
    double(setup, &base, &second);
    assert_eq!(rows_of(setup, &first), values);
    let twice: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
    assert_eq!(rows_of(setup, &second), twice);
}

/// A table past the smallest binding limits (128 MiB): base and result are cut at other rows.
#[test]
fn parts_of_a_large_matrix() {
    let setup = &setups()[1];
    let (rows, cols) = (17_000, 4096);
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 1000) as f32).collect();
    let bytes = packed(Format::F16, &values);
    let base = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes).unwrap();
    let mut upload = setup.upload();
    let resident = GpuMatrix::new(setup.gpu(), "base", &base, Format::F16, &mut upload).unwrap();
    let y = GpuMatrix::zeros(setup.gpu(), "blend", base.shape(), Format::F32).unwrap();
    double(setup, &resident, &y);
    let ids = [0, 8191, 8192, 16_383, 16_384, 16_999];
    let span = Span {
        start: 0,
        length: 6,
        slot: 0,
        padding: 0,
    };
    let batch = Tables::new(setup, &ids, &[span], &[0]);
    let out = Activation::poisoned(setup, ids.len(), cols, 1);
    let op = Embed {
        batch: batch.tables(),
        table: &y,
        y: out.view(),
    };
    setup.run(&setup.kernels.embed(&op).unwrap());
    let want: Vec<f32> = ids
        .iter()
        .flat_map(|id| &values[*id as usize * cols..(*id as usize + 1) * cols])
        .map(|x| 2.0 * x)
        .collect();
    assert_eq!(out.read(), want);
}
