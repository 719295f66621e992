//! What the kernels of a decode step cost at the shapes of published models: microseconds a dispatch, in a chain of
//! dispatches that wait for each other, over so many copies of weights and states that no cache holds them.
//!
//! `cargo run --release --example step_speed [MODEL…] [--spans N,…] [--tune] [--all]`: one sequence or as many as said;
//! layer norm and token shift, and the recurrence as it is cut by default; with `--tune` as it may be cut (threads of a
//! workgroup in heads of 64, spans together, units of weights that a thread asks for at once), with `--all` the other
//! kernels too.
//! `RWKV_DEVICE` picks an adapter by index. The embedding's rows alone stay in the caches.

use rwkv_gpu::{
    AdapterSummary, Binding, Buffer, BufferKind, Dispatch, Gpu, Kind, OpenOptions, Selector,
    list_adapters,
};
use rwkv_kernels::{
    BatchTables, Format, GpuMatrix, GpuVector, Kernels, LoraUp, Matrix, Page, Result, Span, Token,
    View,
    ops::{EmbedNorm, NormShift, ShiftRows, StepTile, Weighs, Wkv6Step, Wkv7Step},
};
use rwkv_mem::{Cols, Rows, Upload};
use std::time::{Duration, Instant};

const HEAD_SIZE: usize = 64;
const VOCAB: usize = 2048;
const EPSILON: f32 = 64e-5;

/// Bytes that the copies of a dispatch's weights and states make together: several times the largest cache.
const FOOTPRINT: usize = 256 << 20;

/// Dispatches of the short chain; the long one has twice as many, and the difference is what is told.
const CHAIN: usize = 512;

/// A published model: its channels, and the ranks of version 7's decay, rate, gate and value and of version 6's decay.
struct Shape {
    name: &'static str,
    width: usize,
    ranks: [usize; 4],
    rank_6: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "0.1B",
        width: 768,
        ranks: [64, 64, 128, 32],
        rank_6: 64,
    },
    Shape {
        name: "1.5B",
        width: 2048,
        ranks: [96, 96, 256, 64],
        rank_6: 64,
    },
    Shape {
        name: "7.2B",
        width: 4096,
        ranks: [128, 128, 480, 96],
        rank_6: 128,
    },
];

fn main() -> Result<()> {
    let adapters = list_adapters();
    let chosen = std::env::var("RWKV_DEVICE").ok();
    let fast = |a: &&AdapterSummary| a.refused.is_none() && a.kind != Kind::Software;
    let found = adapters.iter().find(fast).map(|a| a.index);
    let Some(index) = chosen.and_then(|d| d.parse().ok()).or(found) else {
        println!(
            "there is no GPU adapter here, or a software one, whose speed says nothing: name it in RWKV_DEVICE"
        );
        return Ok(());
    };
    let gpu = Gpu::open(&Selector::Index(index), &OpenOptions::from_env()?)?;
    println!("{}", gpu.name());
    println!("kernel                        model  spans  µs a dispatch    GB/s");
    let kernels = Kernels::new(&gpu)?;
    let mut wanted = Wanted {
        models: Vec::new(),
        spans: vec![1],
        tune: false,
        all: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--tune" => wanted.tune = true,
            "--all" => wanted.all = true,
            "--spans" => {
                let list = arguments.next().unwrap_or_default();
                wanted.spans = list.split(',').filter_map(|n| n.parse().ok()).collect();
            }
            _ => wanted.models.push(argument),
        }
    }
    for shape in &SHAPES {
        if wanted.models.is_empty() || wanted.models.iter().any(|m| m == shape.name) {
            for spans in &wanted.spans {
                Bench::new(&kernels, shape, *spans)?.run(&wanted)?;
            }
        }
    }
    Ok(())
}

/// What the command line asks for.
struct Wanted {
    /// None for all.
    models: Vec<String>,
    spans: Vec<usize>,
    tune: bool,
    all: bool,
}

/// The depths that are tried.
const DEPTHS: [usize; 3] = [4, 8, usize::MAX];

/// One shape and number of spans.
struct Bench<'a> {
    kernels: &'a Kernels,
    shape: &'a Shape,
    spans: usize,
    numbers: Vec<f32>,
    upload: Upload,
    tables: Tables,
}

/// The batch on the GPU.
struct Tables {
    tokens: Buffer,
    spans: Buffer,
    count: usize,
}

impl Tables {
    fn batch(&self) -> BatchTables<'_> {
        BatchTables {
            tokens: Binding::from(&self.tokens),
            spans: Binding::from(&self.spans),
            outputs: Binding::from(&self.tokens),
            span_count: self.count,
        }
    }
}

impl<'a> Bench<'a> {
    fn new(kernels: &'a Kernels, shape: &'a Shape, spans: usize) -> Result<Self> {
        // Marsaglia's xorshift, as numbers from −1 to 1.
        let mut state = 1u32;
        let mut number = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / (1u32 << 31) as f32 - 1.0
        };
        let numbers = (0..shape.width.max(VOCAB) * 4096).map(|_| number());
        let count = u32::try_from(spans).unwrap_or(u32::MAX);
        let tokens = (0..count).map(|i| Token {
            id: i * 37 % 1999,
            span: i,
        });
        let table = (0..count).map(|i| Span {
            start: i,
            length: 1,
            slot: i,
            padding: 0,
        });
        let gpu = kernels.gpu();
        Ok(Self {
            kernels,
            shape,
            spans,
            numbers: numbers.collect(),
            upload: Upload::new(gpu),
            tables: Tables {
                tokens: filled(gpu, bytemuck::cast_slice(&tokens.collect::<Vec<_>>()))?,
                spans: filled(gpu, bytemuck::cast_slice(&table.collect::<Vec<_>>()))?,
                count: spans,
            },
        })
    }

    fn run(&mut self, wanted: &Wanted) -> Result<()> {
        if wanted.all {
            self.embed_norm()?;
            self.wkv6_step()?;
        }
        self.norm_shift()?;
        let heads = self.shape.width / HEAD_SIZE;
        let default = StepTile::for_wkv7(self.kernels, self.spans, heads, HEAD_SIZE);
        self.wkv7_step("wkv7_step", default)?;
        let fits = |t: &StepTile| t.fits(self.kernels, HEAD_SIZE) && t.spans <= self.spans;
        let tiles: Vec<_> = StepTile::ALL.into_iter().filter(fits).collect();
        for tile in tiles.into_iter().filter(|_| wanted.tune) {
            for depth in DEPTHS {
                let what = match depth {
                    usize::MAX => "all".to_owned(),
                    depth => depth.to_string(),
                };
                let name = format!(
                    "  {} threads, {} spans, {what}",
                    tile.threads(HEAD_SIZE)?,
                    tile.spans
                );
                self.wkv7_step(&name, StepTile { depth, ..tile })?;
            }
        }
        Ok(())
    }

    fn page(&self) -> Page {
        Page {
            first_slot: 0,
            slots: u32::try_from(self.spans).unwrap_or(u32::MAX),
            padding: [0; 2],
        }
    }

    fn vector(&mut self, rows: usize) -> Result<GpuVector> {
        let values = &self.numbers[..rows * self.shape.width];
        GpuVector::new(self.kernels.gpu(), "vector", values, &mut self.upload)
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Result<GpuMatrix> {
        let mut bytes = vec![0; rows * cols * 2];
        Format::F16
            .spec()
            .quantize(&self.numbers[..rows * cols], &mut bytes);
        let matrix = Matrix::new(Format::F16, Rows(rows), Cols(cols), &bytes)?;
        let gpu = self.kernels.gpu();
        GpuMatrix::new(gpu, "matrix", &matrix, Format::F16, &mut self.upload)
    }

    /// The second matrices of low-rank pairs.
    fn ups(&mut self, rows: usize, ranks: &[usize]) -> Result<LoraUp> {
        let most = ranks.iter().max().map_or(0, |rank| rows * rank);
        let bytes = vec![0x38; most * 2];
        let matrices = ranks
            .iter()
            .map(|rank| {
                Matrix::new(
                    Format::F16,
                    Rows(rows),
                    Cols(*rank),
                    &bytes[..rows * rank * 2],
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let gpu = self.kernels.gpu();
        let up = LoraUp::upload(gpu, "up", &matrices, Format::F16, &mut self.upload)?;
        up.ok_or_else(|| rwkv_kernels::Error::Shape {
            what: "up".to_owned(),
            problem: "not packed".to_owned(),
        })
    }

    /// `blocks` activations of `width` of random numbers.
    fn activations(&self, blocks: usize, width: usize) -> Result<Buffer> {
        let bytes = View::block_bytes(self.spans, width) * blocks as u64;
        let elements = usize::try_from(bytes / 4).unwrap_or(0);
        let values = self.numbers.iter().cycle().take(elements);
        let values: Vec<f32> = values.copied().collect();
        filled(self.kernels.gpu(), bytemuck::cast_slice(&values))
    }

    fn view<'b>(&self, buffer: &'b Buffer, block: usize, width: usize) -> View<'b> {
        View {
            buffer,
            offset: View::block_bytes(self.spans, width) * block as u64,
            rows: self.spans,
            width,
        }
    }

    fn state(&self, elements: usize) -> Result<Buffer> {
        let values = self.numbers.iter().cycle().take(elements * self.spans);
        let values: Vec<f32> = values.copied().collect();
        filled(self.kernels.gpu(), bytemuck::cast_slice(&values))
    }

    /// Dispatches that each read `bytes` of their own; `make` makes one with buffers of its own.
    fn measure(
        &mut self,
        name: &str,
        bytes: usize,
        mut make: impl FnMut(&mut Self) -> Result<Dispatch>,
    ) -> Result<()> {
        let copies = (FOOTPRINT / bytes.max(1)).clamp(2, 2 * CHAIN);
        let dispatches = (0..copies)
            .map(|_| make(self))
            .collect::<Result<Vec<_>>>()?;
        self.upload.flush()?;
        let gpu = self.kernels.gpu();
        let time = |count: usize| -> Result<Duration> {
            let mut times = Vec::new();
            for _ in 0..7 {
                let mut recorder = gpu.recorder("chain");
                recorder.dispatch(dispatches.iter().cycle().take(count));
                let start = Instant::now();
                let submission = recorder.submit()?;
                gpu.wait(&submission)?;
                times.push(start.elapsed());
            }
            // The first warm up.
            times.sort_unstable();
            Ok(times[times.len() / 2])
        };
        let (short, long) = (time(CHAIN)?, time(2 * CHAIN)?);
        let seconds = long.saturating_sub(short).as_secs_f64() / CHAIN as f64;
        println!(
            "{name:28}  {:5}  {:5}  {:13.2}  {:6.0}",
            self.shape.name,
            self.spans,
            seconds * 1e6,
            bytes as f64 / seconds / 1e9
        );
        Ok(())
    }

    fn embed_norm(&mut self) -> Result<()> {
        let width = self.shape.width;
        let y = self.activations(1, width)?;
        let table = self.matrix(VOCAB, width)?;
        let (weight, bias) = (self.vector(1)?, self.vector(1)?);
        let bytes = self.spans * width * 6;
        let name = "embed_norm f16";
        self.measure(name, bytes, |bench| {
            let op = EmbedNorm {
                batch: bench.tables.batch(),
                table: &table,
                weight: &weight,
                bias: &bias,
                epsilon: EPSILON,
                y: bench.view(&y, 0, width),
            };
            // The table fits one binding.
            Ok(bench.kernels.embed_norm(&op)?.remove(0))
        })
    }

    fn norm_shift(&mut self) -> Result<()> {
        let width = self.shape.width;
        let x = self.activations(1, width)?;
        let y = self.activations(6, width)?;
        let bytes = (8 + self.spans * 9) * width * 4;
        self.measure("norm_shift, 6 mixes", bytes, |bench| {
            let (weight, bias, mix) = (bench.vector(1)?, bench.vector(1)?, bench.vector(6)?);
            let op = NormShift {
                batch: bench.tables.batch(),
                x: bench.view(&x, 0, width),
                weight: &weight,
                bias: &bias,
                epsilon: EPSILON,
                mix: Some(&mix),
                mixes: 6,
                weighs: Weighs::Previous,
                rows: ShiftRows::None,
                state: &bench.state(2 * width)?,
                page: bench.page(),
                which: 0,
                y: bench.view(&y, 0, width),
            };
            bench.kernels.norm_shift(&op)
        })
    }

    fn wkv7_step(&mut self, name: &str, tile: StepTile) -> Result<()> {
        let Shape { width, ranks, .. } = *self.shape;
        let first = self.activations(1, width)?;
        let y = self.activations(1, width)?;
        // Receptance, key, value, and a block each for the hidden vectors, which are narrower.
        let projected = self.activations(7, width)?;
        let units: usize = ranks.iter().sum();
        let bytes = width * (units * 2 + 32 + self.spans * (HEAD_SIZE * 8 + 20));
        self.measure(name, bytes, |bench| {
            let up = bench.ups(width, &ranks)?;
            let vectors = bench.vector(8)?;
            let views: Vec<_> = (3..)
                .zip(ranks)
                .map(|(block, rank)| View {
                    width: rank,
                    ..bench.view(&projected, block, width)
                })
                .collect();
            let op = Wkv7Step {
                batch: bench.tables.batch(),
                r: bench.view(&projected, 0, width),
                k: bench.view(&projected, 1, width),
                v: bench.view(&projected, 2, width),
                hidden: &views,
                up: &up,
                vectors: &vectors,
                v_first: Some(bench.view(&first, 0, width)),
                head_size: HEAD_SIZE,
                epsilon: EPSILON,
                state: &bench.state(width * HEAD_SIZE)?,
                page: bench.page(),
                stores: None,
                y: bench.view(&y, 0, width),
            };
            bench.kernels.wkv7_step_tiled(&op, tile)
        })
    }

    fn wkv6_step(&mut self) -> Result<()> {
        let Shape { width, rank_6, .. } = *self.shape;
        let rkv = self.activations(3, width)?;
        let gate = self.activations(1, width)?;
        let y = self.activations(1, width)?;
        let hidden = self.activations(1, rank_6)?;
        let bytes = width * (rank_6 * 2 + 16 + self.spans * (HEAD_SIZE * 8 + 20));
        self.measure("wkv6_step", bytes, |bench| {
            let up = bench.ups(width, &[rank_6])?;
            let vectors = bench.vector(4)?;
            let op = Wkv6Step {
                batch: bench.tables.batch(),
                r: bench.view(&rkv, 0, width),
                k: bench.view(&rkv, 1, width),
                v: bench.view(&rkv, 2, width),
                decay: Some((bench.view(&hidden, 0, rank_6), &up)),
                vectors: &vectors,
                gate: Some(bench.view(&gate, 0, width)),
                head_size: HEAD_SIZE,
                epsilon: EPSILON,
                state: &bench.state(width * HEAD_SIZE)?,
                page: bench.page(),
                y: bench.view(&y, 0, width),
            };
            bench.kernels.wkv6_step(&op)
        })
    }
}

fn filled(gpu: &Gpu, bytes: &[u8]) -> Result<Buffer> {
    let buffer = gpu.buffer(BufferKind::Storage, "bench", bytes.len() as u64)?;
    gpu.write(&buffer, 0, bytes)?;
    Ok(buffer)
}
