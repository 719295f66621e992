//! Low-rank pairs for the tests of the kernels that multiply their second matrices.

use super::noise;
use crate::{Format, LoraUp, Matrix, View, ops::matmul};
use half::f16;
use rwkv_gpu::{Buffer, BufferKind, Gpu};
use rwkv_mem::{Cols, Rows, Upload};

/// Second matrices and hidden vectors that f16 holds exactly: nothing is rounded but sums.
pub(in crate::ops) struct Pairs {
    pub(in crate::ops) up: LoraUp,
    /// The products, pair by pair.
    pub(in crate::ops) products: Vec<Vec<f32>>,
    hidden: Buffer,
    /// The rank of each, and where its hidden vectors begin.
    places: Vec<(usize, u64)>,
    tokens: usize,
}

impl Pairs {
    pub(in crate::ops) fn new(gpu: &Gpu, tokens: usize, channels: usize, ranks: &[usize]) -> Self {
        let mut upload = Upload::new(gpu);
        let (mut packed, mut products) = (Vec::new(), Vec::new());
        // One after the other in one buffer, with numbers between them that are none.
        let (mut all, mut places) = (Vec::new(), Vec::new());
        for (rank, seed) in ranks.iter().zip(1..) {
            let mut bytes = vec![0; Format::F16.row_bytes(*rank).unwrap() * channels];
            let values = noise(channels * rank, seed);
            Format::F16.spec().quantize(&values, &mut bytes);
            let matrix = Matrix::new(Format::F16, Rows(channels), Cols(*rank), &bytes);
            let x = noise(tokens * rank, seed + 9);
            let x: Vec<f32> = x.iter().map(|x| f16::from_f32(*x).into()).collect();
            let mut y = vec![0.0; tokens * channels];
            matmul(&x, &matrix.unwrap(), &mut y).unwrap();
            products.push(y);
            packed.push((*rank, bytes));
            places.push((*rank, all.len() as u64 * 4));
            for row in x.chunks_exact(*rank) {
                all.extend_from_slice(row);
                all.resize(all.len() + View::stride(*rank) - rank, f32::NAN);
            }
            all.resize(all.len().next_multiple_of(64), f32::NAN);
        }
        let matrices = packed.iter().map(|(rank, bytes)| {
            Matrix::new(Format::F16, Rows(channels), Cols(*rank), bytes).unwrap()
        });
        let matrices: Vec<_> = matrices.collect();
        let up = LoraUp::upload(gpu, "up", &matrices, Format::F16, &mut upload);
        upload.flush().unwrap();
        let bytes = all.len() as u64 * 4;
        let hidden = gpu.buffer(BufferKind::Storage, "hidden", bytes).unwrap();
        gpu.write(&hidden, 0, bytemuck::cast_slice(&all)).unwrap();
        Self {
            up: up.unwrap().unwrap(),
            products,
            hidden,
            places,
            tokens,
        }
    }

    /// The hidden vectors of each.
    pub(in crate::ops) fn hidden(&self) -> Vec<View<'_>> {
        let views = self.places.iter().map(|(rank, offset)| View {
            buffer: &self.hidden,
            offset: *offset,
            rows: self.tokens,
            width: *rank,
        });
        views.collect()
    }
}
