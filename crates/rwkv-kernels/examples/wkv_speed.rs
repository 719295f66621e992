//! Times the recurrence over chunks of prompts.
//!
//! `cargo run --release --example wkv_speed [-- --versions 7,6] [--heads 12,32,64] [--tokens 128,512,2048] [--sequences 1,8]
//! [--head-sizes 64] [--all]`
//!
//! Tokens are those of one sequence; all sequences have as many. Each dispatch waits for the one before, as in a model;
//! times are the GPU's own, the median of seven rounds, after it was busy for 200 ms. After the usual way to cut the work
//! and the one whose sums have one order come the fastest four of the others where a prompt is longest, or with `--all` all
//! of them everywhere.

#[allow(dead_code, reason = "each program uses what it needs")]
mod speed;

use rwkv_gpu::{Binding, Buffer, BufferKind, Dispatch};
use rwkv_kernels::{
    BatchTables, GpuVector, Kernels, Page, Result, Span, View,
    ops::{Decay, Recurrence, RecurrenceTile, Wkv6, Wkv7},
};
use rwkv_mem::Upload;
use speed::view;
use std::io::Write;

fn main() -> Result<()> {
    let arguments = speed::Arguments::new();
    let Some(gpu) = speed::open()? else {
        return Ok(());
    };
    println!("| version | heads | sequences | tokens | cut | µs | µs a token |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let kernels = Kernels::new(&gpu)?;
    for head_size in arguments.numbers("--head-sizes", "64") {
        for heads in arguments.numbers("--heads", "12,32,64") {
            for sequences in arguments.numbers("--sequences", "1,8") {
                let lengths = arguments.numbers("--tokens", "128,512,2048");
                let longest = lengths.iter().copied().max();
                for tokens in lengths {
                    let bench = Bench::new(&kernels, heads, head_size, sequences, tokens)?;
                    for version in arguments.numbers("--versions", "7,6") {
                        let others = match arguments.flag("--all") {
                            true => usize::MAX,
                            false if longest == Some(tokens) => 4,
                            false => 0,
                        };
                        bench.run(version, others)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// One shape, with noise for activations and states.
struct Bench<'a> {
    kernels: &'a Kernels,
    heads: usize,
    head_size: usize,
    sequences: usize,
    tokens: usize,
    /// Activations, all of one shape: receptance, decay, keys, value, rate.
    activations: [Buffer; 5],
    /// What version 6 weighs the current token by.
    weights: GpuVector,
    spans: Buffer,
    state: Buffer,
    y: Buffer,
}

impl<'a> Bench<'a> {
    fn new(
        kernels: &'a Kernels,
        heads: usize,
        head_size: usize,
        sequences: usize,
        tokens: usize,
    ) -> Result<Self> {
        let gpu = kernels.gpu();
        let width = heads * head_size;
        let bytes = View::block_bytes(sequences * tokens, width);
        let mut seed = 0;
        let mut noise = |bytes: u64, from: f32, to: f32| {
            seed += 1;
            speed::numbers(gpu, bytes, from, to, seed)
        };
        // A removal key of length 1, about: the state stays in bounds. It follows the replacement key.
        let long = 1.7 / (head_size as f32).sqrt();
        let activations = [
            noise(bytes, -1.0, 1.0)?,
            noise(bytes, 0.6, 1.0)?,
            noise(2 * bytes, -long, long)?,
            noise(bytes, -1.0, 1.0)?,
            noise(bytes, 0.0, 1.0)?,
        ];
        let mut upload = Upload::new(gpu);
        let weights = GpuVector::new(gpu, "weights", &vec![0.3; width], &mut upload)?;
        upload.flush()?;
        let state = noise((sequences * width * head_size * 4) as u64, -1.0, 1.0)?;
        let [count, length] = [sequences, tokens].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let spans = (0..count).map(|slot| Span {
            start: slot * length,
            length,
            slot,
            padding: 0,
        });
        let spans: Vec<_> = spans.collect();
        let table = gpu.buffer(BufferKind::Storage, "spans", size_of_val(&*spans) as u64)?;
        gpu.write(&table, 0, bytemuck::cast_slice(&spans))?;
        Ok(Self {
            kernels,
            heads,
            head_size,
            sequences,
            tokens,
            activations,
            weights,
            spans: table,
            state,
            y: gpu.buffer(BufferKind::Storage, "result", bytes)?,
        })
    }

    fn run(&self, version: usize, others: usize) -> Result<()> {
        let states = self.sequences * self.heads;
        let time = |tile| speed::seconds(self.kernels.gpu(), &[self.dispatch(version, tile)?]);
        let of = if version == 7 {
            Recurrence::Wkv7
        } else {
            Recurrence::Wkv6
        };
        let usual = RecurrenceTile::usual(of, self.kernels, states, self.head_size);
        let one_order = RecurrenceTile::in_one_order(of, self.kernels, self.head_size);
        self.print(version, "usual: ", usual, time(usual)?);
        self.print(version, "one order: ", one_order, time(one_order)?);
        if others > 0 {
            let mut times = Vec::new();
            for tile in RecurrenceTile::candidates() {
                if tile.fits(of, self.kernels, self.head_size) {
                    times.push((time(tile)?, tile));
                }
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (seconds, tile) in times.into_iter().take(others) {
                self.print(version, "", tile, seconds);
            }
        }
        Ok(())
    }

    fn print(&self, version: usize, name: &str, tile: RecurrenceTile, seconds: f64) {
        let heads = if self.head_size == 64 {
            self.heads.to_string()
        } else {
            format!("{} of {}", self.heads, self.head_size)
        };
        println!(
            "| {version} | {heads} | {} | {} | {name}{} rows a team of {}, {} threads, stage {}, block {} | {:.1} | {:.3} |",
            self.sequences,
            self.tokens,
            tile.rows,
            tile.team,
            tile.threads,
            tile.stage,
            tile.block,
            seconds * 1e6,
            seconds * 1e6 / self.tokens as f64,
        );
        // What is there is there when a later cut takes too long.
        let _ = std::io::stdout().flush();
    }

    fn dispatch(&self, version: usize, tile: RecurrenceTile) -> Result<Dispatch> {
        let (rows, width) = (self.sequences * self.tokens, self.heads * self.head_size);
        let view = |buffer| view(buffer, rows, width);
        let [r, w, keys, v, a] = self.activations.each_ref().map(view);
        let batch = BatchTables {
            tokens: Binding::from(&self.spans),
            spans: Binding::from(&self.spans),
            outputs: Binding::from(&self.spans),
            span_count: self.sequences,
        };
        let page = Page {
            first_slot: 0,
            slots: u32::try_from(self.sequences).unwrap_or(u32::MAX),
            padding: [0; 2],
        };
        if version == 6 {
            let op = Wkv6 {
                batch,
                r,
                w: Decay::Tokens(w),
                k: keys,
                v,
                u: &self.weights,
                head_size: self.head_size,
                state: &self.state,
                page,
                y: view(&self.y),
            };
            return self.kernels.wkv6_tiled(&op, tile);
        }
        let op = Wkv7 {
            batch,
            r,
            w,
            keys,
            v,
            a,
            head_size: self.head_size,
            state: &self.state,
            page,
            y: view(&self.y),
        };
        self.kernels.wkv7_tiled(&op, tile)
    }
}
