//! Products of several segments of a stack with cooperative matrices.

use super::{Activation, kernels, noise};
use crate::{
    Format, GpuMatrix, Kernels, Matrix, View,
    ops::{CoopShape, Function, HalfProjections, HalfRows, Segment, Stack, matmul},
};
use half::f16;
use rwkv_gpu::BufferKind;
use rwkv_mem::{Cols, Rows, Upload};

/// Three inputs, and segments of (rows, input, function) against the twin, in `tile` and these numbers of slices.
#[track_caller]
fn check(
    kernels: &Kernels,
    [tokens, cols]: [usize; 2],
    segments: &[(usize, usize, Function)],
    tile: &str,
    slices: &[usize],
) {
    const BLOCKS: usize = 3;
    let gpu = kernels.gpu();
    let rows: usize = segments.iter().map(|s| s.0).sum();
    let values = noise(rows * cols, 1);
    let mut bytes = vec![0; Format::F16.row_bytes(cols).unwrap() * rows];
    Format::F16.spec().quantize(&values, &mut bytes);
    let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes).unwrap();
    let mut upload = Upload::new(gpu);
    let weights = GpuMatrix::new(gpu, "w", &matrix, Format::F16, &mut upload).unwrap();
    upload.flush().unwrap();

    let scale = |token: usize| [1.0, 2f32.powi(20), 2f32.powi(-30)][token % 3];
    let block = HalfRows::bytes(tokens, cols);
    let made = gpu.buffer(BufferKind::Storage, "halves", block * BLOCKS as u64);
    let buffer = made.unwrap();
    let place = |b: usize| HalfRows::placed(buffer.clone(), block * b as u64, tokens, cols);
    let mut inputs = Vec::new();
    let mut rounding = Vec::new();
    for b in 0..BLOCKS {
        let x = noise(tokens * cols, 2 + u32::try_from(b).unwrap());
        let x = x.iter().enumerate();
        let x: Vec<f32> = x
            .map(|(i, x)| f32::from(f16::from_f32(*x)) * scale(i / cols))
            .collect();
        let view = Activation::new(gpu, tokens, &x);
        rounding.push(kernels.half_rows(&view.view(), &place(b)).unwrap());
        inputs.push((x, view));
    }
    // Results one after the other in one buffer, as rows of it.
    let sizes = segments.iter().map(|s| View::block_bytes(tokens, s.0));
    let total: u64 = sizes.clone().sum();
    let width = usize::try_from(total / 4).unwrap();
    let (mut first_row, mut offset) = (0, 0);
    let mut placed = Vec::new();
    for ((rows, x, function), bytes) in segments.iter().zip(sizes) {
        placed.push(Segment {
            stack: Stack::Weights,
            rows: first_row..first_row + rows,
            x: *x,
            function: *function,
            y_offset: offset,
        });
        first_row += rows;
        offset += bytes;
    }
    let run = |shape: Option<CoopShape>| {
        let y = Activation::new(gpu, 1, &vec![f32::NAN; width]);
        let op = HalfProjections {
            x: &place(0),
            blocks: BLOCKS,
            weights: &weights,
            segments: &placed,
            y: &y.buffer,
        };
        let mut dispatches = rounding.clone();
        dispatches.extend(kernels.half_projections(&op, shape).unwrap());
        (
            kernels.half_projection_shapes(&op),
            y.after(gpu, &dispatches),
        )
    };
    let (shapes, _) = run(None);
    for &slices in slices {
        let shape = shapes
            .iter()
            .find(|s| s.tile.name() == tile && s.slices == slices);
        let (_, got) = run(Some(*shape.unwrap()));
        for segment in &placed {
            let part = &values[segment.rows.start * cols..segment.rows.end * cols];
            let rows = segment.rows.len();
            let mut bytes = vec![0; Format::F16.row_bytes(cols).unwrap() * rows];
            Format::F16.spec().quantize(part, &mut bytes);
            let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes).unwrap();
            let mut want = vec![0.0; tokens * rows];
            matmul(&inputs[segment.x].0, &matrix, &mut want).unwrap();
            let first = usize::try_from(segment.y_offset / 4).unwrap();
            for (i, want) in want.iter().enumerate() {
                let (token, row) = (i / rows, i % rows);
                let got = got[first + token * View::stride(rows) + row];
                // Sums of f16's products in another order; no function here grows faster than its argument.
                let bound = scale(token) * cols as f32 * 1e-6;
                let want = segment.function.apply(*want);
                assert!(
                    (got - want).abs() <= bound.max(1e-6),
                    "{tokens}×{cols}, {segment:?}, {shape:?}: token {token}, row {row}: {got} for {want}"
                );
            }
        }
        assert_eq!(got.len(), run(Some(*shape.unwrap())).1.len());
    }
}

#[test]
fn segments() {
    let kernels = kernels(16);
    let (none, tanh, sigmoid) = (Function::Identity, Function::Tanh, Function::Sigmoid);
    check(
        &kernels,
        [9, 300],
        &[
            (130, 1, none),
            (5, 0, tanh),
            (128, 2, sigmoid),
            (1, 1, none),
        ],
        "16x64x64-4",
        &[1, 2],
    );
    check(
        &kernels,
        [33, 256],
        &[(256, 0, none), (128, 2, tanh)],
        "32x128x64-4",
        &[1, 2],
    );
    // Tiles that would reach past the stack's end.
    check(
        &kernels,
        [20, 256],
        &[(200, 0, none), (40, 2, tanh)],
        "32x128x64-4",
        &[1, 2],
    );
    check(
        &kernels,
        [70, 200],
        &[(70, 2, sigmoid), (9, 1, none), (70, 0, none)],
        "64x64x64-4",
        &[1, 3],
    );
}
