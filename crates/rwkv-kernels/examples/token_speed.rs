//! Times the products of several tokens that read each weight once, beside that of one token.
//!
//! `cargo run --release --example token_speed [-- --only 4096×4096] [--formats f16,q8_0,q4_k] [--tokens 1,2,4,8,16]
//! [--all] [--old]`
//!
//! GB/s are bytes of weights read per second; the last column is the time over that of one token. Each dispatch waits for
//! the one before, as in a model; matrices take turns, as many as pass any cache; times are the GPU's own, the median of
//! seven rounds, after it was busy for 200 ms. After the default shape come the fastest three of a few others, or with
//! `--all` of all candidates; `--old` adds the kernels that are used where these do not suit.

#[allow(dead_code, reason = "each program uses what it needs")]
mod speed;

use rwkv_gpu::Dispatch;
use rwkv_kernels::{
    Format, GpuMatrix, Kernels, Result, View,
    ops::{Function, StreamLinear, TokenShape},
};
use speed::{linear, view};

const PRODUCTS: [(usize, usize); 4] = [(4096, 4096), (16384, 4096), (65536, 4096), (2048, 2048)];

fn main() -> Result<()> {
    let arguments = speed::Arguments::new();
    let Some(gpu) = speed::open()? else {
        return Ok(());
    };
    println!("| product | format | tokens | shape | µs | GB/s | of one |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let bench = Bench {
        kernels: Kernels::new(&gpu)?,
        tokens: arguments.numbers("--tokens", "1,2,4,8,16"),
        all: arguments.flag("--all"),
        old: arguments.flag("--old"),
    };
    let only = arguments.value("--only", "");
    for (rows, cols) in PRODUCTS {
        if format!("{rows}×{cols}").contains(&only) {
            for format in arguments.formats("f16,q8_0,q4_k") {
                bench.product(rows, cols, format)?;
            }
        }
    }
    Ok(())
}

struct Bench {
    kernels: Kernels,
    tokens: Vec<usize>,
    all: bool,
    old: bool,
}

impl Bench {
    fn product(&self, rows: usize, cols: usize, format: Format) -> Result<()> {
        let gpu = self.kernels.gpu();
        let matrices = speed::matrices(gpu, rows, cols, format, usize::MAX)?;
        let most = self.tokens.iter().copied().max().unwrap_or(1);
        let x = speed::numbers(gpu, View::bytes(most, cols), -1.0, 1.0, 2)?;
        let y = speed::numbers(gpu, View::bytes(most, rows), -1.0, 1.0, 2)?;
        let mut one = None;
        for tokens in self.tokens.iter().copied() {
            let mut print = |shape: &str, seconds: f64| {
                if tokens == 1 {
                    one = one.or(Some(seconds));
                }
                println!(
                    "| {rows}×{cols} | {format} | {tokens} | {shape} | {:.2} | {:.0} | {} |",
                    seconds * 1e6,
                    matrices[0].bytes() as f64 / seconds / 1e9,
                    one.map_or_else(String::new, |one| format!("{:.2}", seconds / one)),
                );
            };
            let each = |make: &dyn Fn(&GpuMatrix) -> Result<Vec<Dispatch>>| -> Result<f64> {
                let made = matrices.iter().map(make).collect::<Result<Vec<_>>>()?;
                speed::seconds(gpu, &made.into_iter().flatten().collect::<Vec<_>>())
            };
            if tokens == 1 {
                let seconds = each(&|weight| {
                    let op = StreamLinear {
                        x: view(&x, 1, cols),
                        weight,
                        function: Function::Identity,
                        residual: None,
                        y: view(&y, 1, rows),
                        stores: None,
                    };
                    self.kernels.stream_linear(&op, None)
                })?;
                print("one token's", seconds);
                continue;
            }
            if self.old {
                let seconds = each(&|weight| {
                    self.kernels
                        .linear_shaped(&linear(weight, &x, &y, tokens), None)
                })?;
                print("old", seconds);
            }
            if !self.kernels.stream_tokens_suit(&matrices[0], tokens) {
                continue;
            }
            let default = self.kernels.token_shape(&matrices[0], tokens);
            let time = |shape: TokenShape| {
                each(&|weight| {
                    self.kernels
                        .token_linear(&linear(weight, &x, &y, tokens), Some(shape))
                })
            };
            print(&format!("default: {}", described(default)), time(default)?);
            let mut times = Vec::new();
            for shape in self.shapes(default) {
                times.push((time(shape)?, shape));
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (seconds, shape) in times.into_iter().take(3) {
                print(&described(shape), seconds);
            }
        }
        Ok(())
    }

    fn shapes(&self, default: TokenShape) -> Vec<TokenShape> {
        if self.all {
            return TokenShape::candidates();
        }
        let mut shapes = Vec::new();
        for (threads, lanes, apart, slices) in [
            (256, 8, true, default.slices),
            (256, 4, false, default.slices),
            (256, 16, false, default.slices),
            (256, 16, true, default.slices),
            (256, 32, false, default.slices),
            (256, 8, false, default.slices * 2),
            (256, 8, false, default.slices.div_ceil(2)),
            (256, 8, false, 1),
        ] {
            for (threads, workgroups) in [
                (threads, default.workgroups),
                (threads / 2, 2 * default.workgroups),
                (threads * 2, default.workgroups / 2),
            ] {
                shapes.push(TokenShape {
                    threads,
                    lanes,
                    apart,
                    workgroups,
                    slices,
                });
            }
        }
        shapes
    }
}

fn described(shape: TokenShape) -> String {
    format!(
        "{} threads, {} lanes{}, {} workgroups, {} slices",
        shape.threads,
        shape.lanes,
        if shape.apart { " apart" } else { "" },
        shape.workgroups,
        shape.slices,
    )
}
