//! Kernels that add up a product's slices leave what the sum and they leave one after the other.

use super::{Activation, kernels, noise};
use crate::{
    BatchTables, Format, GpuMatrix, GpuVector, Matrix, Page, Span, Token,
    ops::{Function, HalfRows, Linear, NormShiftHalves, Sliced, Weighs},
};
use rwkv_gpu::{Binding, Buffer, BufferKind, Gpu, Readback};
use rwkv_mem::{Cols, Rows, Upload};

fn written<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Buffer {
    let bytes = bytemuck::cast_slice(values);
    let made = gpu.buffer(BufferKind::Storage, "table", bytes.len() as u64);
    let buffer = made.unwrap();
    gpu.write(&buffer, 0, bytes).unwrap();
    buffer
}

#[test]
fn norms_of_slices() {
    const MIXES: usize = 3;
    const EPSILON: f32 = 1e-5;
    let kernels = kernels(16);
    let gpu = kernels.gpu();
    for [tokens, width, cols] in [[9, 76, 600], [17, 1028, 256]] {
        let values = noise(width * cols, 1);
        let mut bytes = vec![0; Format::F16.row_bytes(cols).unwrap() * width];
        Format::F16.spec().quantize(&values, &mut bytes);
        let matrix = Matrix::new(Format::F16, Rows(width), Cols(cols), &bytes).unwrap();
        let mut upload = Upload::new(gpu);
        let weight = GpuMatrix::new(gpu, "w", &matrix, Format::F16, &mut upload).unwrap();
        let mut vector = |count: usize, seed| {
            GpuVector::new(gpu, "vector", &noise(count, seed), &mut upload).unwrap()
        };
        let (norm, bias, mix) = (vector(width, 2), vector(width, 3), vector(MIXES * width, 4));
        upload.flush().unwrap();
        let x = Activation::new(gpu, tokens, &noise(tokens * cols, 5));
        let residual = Activation::new(gpu, tokens, &noise(tokens * width, 6));
        let halves = HalfRows::new(gpu, "halves", tokens, cols).unwrap();
        let count = u32::try_from(tokens).unwrap();
        let spans: Vec<_> = (0..count)
            .map(|start| Span {
                start,
                length: 1,
                slot: count - 1 - start,
                padding: 0,
            })
            .collect();
        let ids: Vec<_> = (0..count).map(|span| Token { id: 0, span }).collect();
        let (ids, spans) = (written(gpu, &ids), written(gpu, &spans));
        let batch = BatchTables {
            tokens: Binding::from(&ids),
            spans: Binding::from(&spans),
            outputs: Binding::from(&ids),
            span_count: tokens,
        };
        let run = |adds: bool| {
            let y = Activation::new(gpu, tokens, &vec![f32::NAN; tokens * width]);
            let state = written(gpu, &noise(tokens * 2 * width, 7));
            let bytes = HalfRows::bytes(tokens, width) * MIXES as u64;
            let mixes = written(gpu, &vec![0u32; usize::try_from(bytes / 4).unwrap()]);
            let mixed = HalfRows::placed(mixes.clone(), 0, tokens, width);
            let op = Linear {
                x: x.view(),
                weight: &weight,
                bias: None,
                function: Function::Identity,
                residual: Some(residual.view()),
                y: y.view(),
            };
            let mut shapes = kernels.coop_shapes(&op).into_iter();
            let shape = shapes.rfind(|s| s.tile.name() == "32x128x64-4");
            let shape = shape.unwrap();
            let mut dispatches = vec![kernels.half_rows(&x.view(), &halves).unwrap()];
            dispatches.extend(kernels.coop_linear(&op, &halves, shape).unwrap());
            let sum = kernels.sliced_linear(&op, &halves, shape).unwrap().unwrap();
            if adds {
                dispatches.pop();
            }
            let norm = NormShiftHalves {
                batch,
                x: if adds { residual.view() } else { y.view() },
                added: adds.then(|| Sliced {
                    sum: &sum,
                    y: y.view(),
                }),
                weight: &norm,
                bias: &bias,
                epsilon: EPSILON,
                mix: &mix,
                mixes: MIXES,
                weighs: Weighs::Previous,
                state: &state,
                page: Page {
                    first_slot: 0,
                    slots: count,
                    padding: [0; 2],
                },
                which: 1,
                y: &mixed,
            };
            dispatches.push(kernels.norm_shift_halves(&norm).unwrap());
            let whole = y.after(gpu, &dispatches);
            let read = |buffer: &Buffer| -> Vec<u32> {
                let readback = Readback::new(gpu, "read", buffer.size()).unwrap();
                let mut recorder = gpu.recorder("read");
                recorder.read(buffer, 0, buffer.size(), &readback);
                let submission = recorder.submit().unwrap();
                let pod = bytemuck::pod_collect_to_vec;
                readback.view(gpu, &submission, buffer.size(), pod).unwrap()
            };
            let whole: Vec<u32> = whole.iter().map(|x| x.to_bits()).collect();
            (whole, read(&state), read(&mixes))
        };
        assert!(run(true) == run(false), "{tokens}×{width}×{cols}");
    }
}

#[test]
fn roundings_of_slices() {
    let kernels = kernels(16);
    let gpu = kernels.gpu();
    for [tokens, width, cols] in [[9, 77, 600], [17, 4100, 128]] {
        let values = noise(width * cols, 1);
        let mut bytes = vec![0; Format::F16.row_bytes(cols).unwrap() * width];
        Format::F16.spec().quantize(&values, &mut bytes);
        let matrix = Matrix::new(Format::F16, Rows(width), Cols(cols), &bytes).unwrap();
        let mut upload = Upload::new(gpu);
        let weight = GpuMatrix::new(gpu, "w", &matrix, Format::F16, &mut upload).unwrap();
        upload.flush().unwrap();
        let x = Activation::new(gpu, tokens, &noise(tokens * cols, 5));
        let halves = HalfRows::new(gpu, "halves", tokens, cols).unwrap();
        let run = |adds: bool| {
            let y = Activation::new(gpu, tokens, &vec![f32::NAN; tokens * width]);
            let bytes = HalfRows::bytes(tokens, width);
            let rounded = written(gpu, &vec![0u32; usize::try_from(bytes / 4).unwrap()]);
            let to = HalfRows::placed(rounded.clone(), 0, tokens, width);
            let op = Linear {
                x: x.view(),
                weight: &weight,
                bias: None,
                function: Function::SquaredRelu,
                residual: None,
                y: y.view(),
            };
            let mut shapes = kernels.coop_shapes(&op).into_iter();
            let shape = shapes.rfind(|s| s.tile.name() == "32x128x64-4").unwrap();
            let mut dispatches = vec![kernels.half_rows(&x.view(), &halves).unwrap()];
            dispatches.extend(kernels.coop_linear(&op, &halves, shape).unwrap());
            let sum = kernels.sliced_linear(&op, &halves, shape).unwrap().unwrap();
            if adds {
                dispatches.pop();
                let rounding = kernels.half_rows_of_slices(&sum, op.function, &to);
                dispatches.push(rounding.unwrap());
            } else {
                dispatches.push(kernels.half_rows(&y.view(), &to).unwrap());
            }
            y.after(gpu, &dispatches);
            let readback = Readback::new(gpu, "read", bytes).unwrap();
            let mut recorder = gpu.recorder("read");
            recorder.read(&rounded, 0, bytes, &readback);
            let submission = recorder.submit().unwrap();
            let pod = bytemuck::pod_collect_to_vec;
            let all: Vec<u32> = readback.view(gpu, &submission, bytes, pod).unwrap();
            all
        };
        assert!(run(true) == run(false), "{tokens}×{width}×{cols}");
    }
}
