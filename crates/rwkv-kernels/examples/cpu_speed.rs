//! How fast the processor multiplies: `cargo run --release -p rwkv-kernels --example cpu_speed [twins] [FORMAT …]`.
//!
//! For each format and shape, each level that the processor has, at 1 token (GB of weights a second) and at
//! 512 (GFLOP a second). Weights of several matrices in turn, so that it is not a small cache that is measured.

use rwkv_kernels::{Format, Matrix, Simd, simd};
use rwkv_mem::{Cols, Rows};
use std::time::{Duration, Instant};

const SHAPES: [(usize, usize); 5] = [
    (768, 768),
    (3072, 768),
    (768, 3072),
    (65_536, 768),
    (4096, 4096),
];

/// Bytes of weights that are read in turn.
const ROTATED: usize = 256 << 20;

fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The time of a call, in seconds, over about `limit`: of the quickest tenth, as other programs take turns with this one.
fn quickest(limit: Duration, mut call: impl FnMut(usize)) -> f64 {
    call(0);
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || start.elapsed() < limit {
        let one = Instant::now();
        call(times.len() + 1);
        times.push(one.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 10]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let twins = names.iter().any(|name| name == "twins");
    names.retain(|name| name != "twins");
    if names.is_empty() {
        names = ["f16", "q8_0", "q4_k"].map(str::to_owned).to_vec();
    }
    println!("{} threads", rayon::current_num_threads());
    let levels = Simd::ALL.into_iter();
    let levels = levels.filter(|l| l.is_available() && (twins || *l != Simd::Twins));
    println!("format      shape  level     1 token  GB/s   512 tokens GFLOP/s");
    for name in names {
        let format = Format::from_name(&name).ok_or("an unknown format")?;
        for (rows, cols) in SHAPES {
            // A few rows, again and again: the searches of the K types take their time.
            let few = noise(16 * cols);
            let row_bytes = format.row_bytes(cols).ok_or("columns that do not fit")?;
            let mut packed = vec![0; 16 * row_bytes];
            format.spec().quantize(&few, &mut packed);
            let matrix_bytes = rows * row_bytes;
            let bytes = packed.repeat(rows / 16);
            let copies: Vec<Vec<u8>> = (0..ROTATED.div_ceil(matrix_bytes).min(64))
                .map(|_| bytes.clone())
                .collect();
            let matrices = copies
                .iter()
                .map(|bytes| Matrix::new(format, Rows(rows), Cols(cols), bytes))
                .collect::<Result<Vec<_>, _>>()?;
            for level in levels.clone() {
                let measure = |tokens: usize, limit| {
                    let x = noise(tokens * cols);
                    let mut y = vec![0.0; tokens * rows];
                    quickest(limit, |i| {
                        let matrix = &matrices[i % matrices.len()];
                        simd::matmul(level, &x, matrix, &mut y).unwrap_or_default();
                    })
                };
                let one = measure(1, Duration::from_millis(300));
                let many = if level == Simd::Twins && rows * cols > 4_000_000 {
                    f64::NAN
                } else {
                    measure(512, Duration::from_millis(500))
                };
                println!(
                    "{name:8} {rows:5}×{cols:<5} {:8} {:8.3} ms {:5.1}  {:9.2} ms {:8.1}",
                    level.to_string(),
                    one * 1e3,
                    matrix_bytes as f64 / one / 1e9,
                    many * 1e3,
                    2.0 * 512.0 * (rows * cols) as f64 / many / 1e9,
                );
            }
        }
    }
    Ok(())
}
