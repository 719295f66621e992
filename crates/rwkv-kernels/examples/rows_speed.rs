//! Times what stands between the products of many tokens, at the shapes of published models: the kernels that leave rows in
//! f16 for cooperative matrices, and the operations that each of them stands for.
//!
//! `cargo run --release --example rows_speed [-- --tokens 32,512,2048] [--spans 1] [--models 0.1B,1.5B,7.2B]`
//!
//! Microseconds of one after the other, by the GPU's clock: the median of seven rounds, after it was busy for 200 ms. With
//! `--spans 0` every token is a sequence of its own. GB/s count what the one kernel has to read and write.

#[allow(dead_code, reason = "each program uses what it needs")]
mod speed;

use rwkv_gpu::{Binding, Buffer, BufferKind, Dispatch, Gpu};
use rwkv_kernels::{
    BatchTables, GpuVector, Kernels, Page, Result, Span, Token, View,
    ops::{
        Bonus, GatedHeadsHalves, HalfRows, Map, Norm, NormShiftHalves, StoreShift, TokenShift,
        Weighs,
    },
};
use rwkv_mem::Upload;
use speed::{Noise, numbers, seconds, view};

const MODELS: [(&str, usize); 3] = [("0.1B", 768), ("1.5B", 2048), ("7.2B", 4096)];
const HEAD_SIZE: usize = 64;
const EPSILON: f32 = 1e-5;

fn main() -> Result<()> {
    let arguments = speed::Arguments::new();
    let Some(gpu) = speed::open()? else {
        return Ok(());
    };
    let models = arguments.value("--models", "0.1B,1.5B,7.2B");
    let spans = arguments.numbers("--spans", "1");
    println!("model  tokens  kernel                  µs   GB/s  apart µs");
    for (name, width) in MODELS {
        if !models.split(',').any(|model| model == name) {
            continue;
        }
        for tokens in arguments.numbers("--tokens", "32,512,2048") {
            let spans = match spans.first() {
                Some(0) | None => tokens,
                Some(n) => *n,
            };
            let bench = Bench::new(&gpu, width, tokens, spans.clamp(1, tokens.max(1)))?;
            for (kernel, mixes) in [("norm_shift_halves 6", 6), ("norm_shift_halves 1", 1)] {
                let (one, apart) = bench.norm_shift(mixes)?;
                let bytes = tokens * width * (4 + 2 * mixes);
                bench.print(name, kernel, bytes, &one, &apart)?;
            }
            let (one, apart) = bench.gated_heads()?;
            let bytes = tokens * width * (5 * 4 + 2);
            bench.print(name, "gated_heads_halves", bytes, &one, &apart)?;
            let halves = HalfRows::new(&gpu, "halves", tokens, width)?;
            let half = bench.kernels.half_rows(&bench.input(0), &halves)?;
            bench.print(name, "half_rows", tokens * width * 6, &[half], &[])?;
        }
    }
    Ok(())
}

/// A count as the kernels have it.
fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Operands of one shape.
struct Bench {
    kernels: Kernels,
    width: usize,
    tokens: usize,
    spans: usize,
    tables: [Buffer; 2],
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    state: Buffer,
    /// Six rows, and one.
    vectors: [GpuVector; 2],
    mixing: [GpuVector; 2],
}

impl Bench {
    fn new(gpu: &Gpu, width: usize, tokens: usize, spans: usize) -> Result<Self> {
        let mut upload = Upload::new(gpu);
        let mut noise = Noise(3);
        let mut vector = |rows: usize| {
            let values: Vec<f32> = (0..rows * width).map(|_| noise.next()).collect();
            GpuVector::new(gpu, "vectors", &values, &mut upload)
        };
        let (vectors, mixing) = ([vector(1)?, vector(3)?], [vector(1)?, vector(6)?]);
        upload.flush()?;
        let (mut all, mut rows) = (Vec::new(), Vec::new());
        for slot in 0..spans {
            let [start, end] = [slot, slot + 1].map(|n| n * tokens / spans);
            let [start, length, slot] = [start, end - start, slot].map(word);
            all.push(Span {
                start,
                length,
                slot,
                padding: 0,
            });
            rows.extend((0..length).map(|_| Token { id: 0, span: slot }));
        }
        let table = |bytes: &[u8]| -> Result<Buffer> {
            let buffer = gpu.buffer(BufferKind::Storage, "batch", bytes.len() as u64)?;
            gpu.write(&buffer, 0, bytes)?;
            Ok(buffer)
        };
        let tables = [
            table(bytemuck::cast_slice(&rows))?,
            table(bytemuck::cast_slice(&all))?,
        ];
        let bytes = View::bytes(tokens, width);
        let inputs = (1..=5).map(|seed| numbers(gpu, bytes, -1.0, 1.0, seed));
        let block = View::block_bytes(tokens, width) * 6;
        let outputs = (0..3).map(|_| gpu.buffer(BufferKind::Storage, "results", block));
        Ok(Self {
            kernels: Kernels::new(gpu)?,
            width,
            tokens,
            spans,
            tables,
            inputs: inputs.collect::<Result<_>>()?,
            outputs: outputs.collect::<rwkv_gpu::Result<_>>()?,
            state: numbers(gpu, (spans * 2 * width * 4) as u64, -1.0, 1.0, 9)?,
            vectors,
            mixing,
        })
    }

    fn batch(&self) -> BatchTables<'_> {
        let [tokens, spans] = &self.tables;
        BatchTables {
            tokens: Binding::from(tokens),
            spans: Binding::from(spans),
            outputs: Binding::from(tokens),
            span_count: self.spans,
        }
    }

    fn page(&self) -> Page {
        Page {
            first_slot: 0,
            slots: word(self.spans),
            padding: [0; 2],
        }
    }

    fn input(&self, index: usize) -> View<'_> {
        view(&self.inputs[index], self.tokens, self.width)
    }

    fn output(&self, index: usize) -> View<'_> {
        view(&self.outputs[index], self.tokens, self.width)
    }

    fn norm(&self, x: View<'_>, group: usize, y: View<'_>) -> Result<Dispatch> {
        self.kernels.norm(&Norm {
            x,
            group,
            weight: &self.vectors[0],
            bias: &self.vectors[0],
            epsilon: EPSILON,
            y,
        })
    }

    /// In one kernel, and apart.
    fn norm_shift(&self, mixes: usize) -> Result<(Vec<Dispatch>, Vec<Dispatch>)> {
        let (kernels, gpu) = (&self.kernels, self.kernels.gpu());
        let bytes = HalfRows::bytes(self.tokens, self.width);
        let buffer = gpu.buffer(BufferKind::Storage, "mixes", bytes * mixes as u64)?;
        let place =
            |m: usize| HalfRows::placed(buffer.clone(), bytes * m as u64, self.tokens, self.width);
        let mix = &self.mixing[usize::from(mixes > 1)];
        let one = kernels.norm_shift_halves(&NormShiftHalves {
            batch: self.batch(),
            x: self.input(0),
            added: None,
            weight: &self.vectors[0],
            bias: &self.vectors[0],
            epsilon: EPSILON,
            mix,
            mixes,
            weighs: Weighs::Previous,
            state: &self.state,
            page: self.page(),
            which: 0,
            y: &place(0),
        })?;
        let normed = self.output(0);
        let mut apart = vec![
            self.norm(self.input(0), self.width, normed)?,
            kernels.token_shift(&TokenShift {
                batch: self.batch(),
                x: normed,
                mix,
                mixes,
                weighs: Weighs::Previous,
                state: &self.state,
                page: self.page(),
                which: 0,
                y: self.output(1),
            })?,
            kernels.store_shift(&StoreShift {
                batch: self.batch(),
                x: normed,
                state: &self.state,
                page: self.page(),
                which: 0,
            })?,
        ];
        for m in 0..mixes {
            let mixed = View {
                offset: View::block_bytes(self.tokens, self.width) * m as u64,
                ..self.output(1)
            };
            apart.push(kernels.half_rows(&mixed, &place(m))?);
        }
        Ok((vec![one], apart))
    }

    /// In one kernel, and apart.
    fn gated_heads(&self) -> Result<(Vec<Dispatch>, Vec<Dispatch>)> {
        let kernels = &self.kernels;
        let halves = HalfRows::new(kernels.gpu(), "halves", self.tokens, self.width)?;
        let [x, r, k, v, gate] = [0, 1, 2, 3, 4].map(|index| self.input(index));
        let one = kernels.gated_heads_halves(&GatedHeadsHalves {
            x,
            r,
            k,
            v,
            gate,
            vectors: &self.vectors[1],
            rows: [0, 1, 2],
            head_size: HEAD_SIZE,
            epsilon: EPSILON,
            y: &halves,
        })?;
        let [normed, with_bonus, gated] = [0, 1, 2].map(|index| self.output(index));
        let apart = vec![
            self.norm(x, HEAD_SIZE, normed)?,
            kernels.bonus(&Bonus {
                x: normed,
                r,
                k,
                v,
                r_k: &self.vectors[0],
                head_size: HEAD_SIZE,
                y: with_bonus,
            })?,
            kernels.map(Map::Multiply(with_bonus, gate), gated)?,
            kernels.half_rows(&gated, &halves)?,
        ];
        Ok((vec![one], apart))
    }

    fn print(
        &self,
        model: &str,
        kernel: &str,
        bytes: usize,
        one: &[Dispatch],
        apart: &[Dispatch],
    ) -> Result<()> {
        let gpu = self.kernels.gpu();
        let took = seconds(gpu, one)?;
        let apart = if apart.is_empty() {
            String::new()
        } else {
            format!("{:9.1}", seconds(gpu, apart)? * apart.len() as f64 * 1e6)
        };
        let (tokens, micros) = (self.tokens, took * 1e6);
        let speed = bytes as f64 / took / 1e9;
        println!("{model:5} {tokens:7}  {kernel:20} {micros:7.1} {speed:6.0} {apart}");
        Ok(())
    }
}
