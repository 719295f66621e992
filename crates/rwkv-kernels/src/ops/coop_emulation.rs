//! Tests of the products with cooperative matrices on adapters that have none: the kernels as they are, but for their
//! matrices. A matrix A or B is where it lies in workgroup memory; of sums each lane has its elements, and multiplies rows
//! by columns one element after the other.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

pub(in crate::ops) mod pairs;
mod sliced;
mod stacks;

use crate::{
    Format, GpuColumns, GpuMatrix, Kernels, Matrix, View,
    ops::{CoopShape, Function, HalfRows, Linear, SparseLinear, SparseTuning, matmul},
};
use half::f16;
use proptest::prelude::*;
use rwkv_gpu::{
    Buffer, BufferKind, Dispatch, Gpu, OpenOptions, Readback, Requirement, Selector, Shader,
    list_adapters,
};
use rwkv_mem::{Cols, Rows, Upload};
use std::{
    collections::HashMap,
    env,
    sync::{Mutex, OnceLock, PoisonError},
};

/// What stands for matrices. `UNIT_OF_TILES` elements have a place in a tile, where `WITHIN_X` and `WITHIN_W` find one.
const MATRICES: &str = "
struct Placed { at: u32, pitch: u32, rows: bool }
struct Sums { elements: array<f32, SIDE * SIDE / LANES> }
var<private> own: u32;
// Read from memory, so that drivers do not repeat loops for minutes.
var<private> side: u32;

fn load_rows(at: u32, pitch: u32) -> Placed {
    return Placed(at * UNIT_OF_TILES, pitch * UNIT_OF_TILES, true);
}
fn load_columns(at: u32, pitch: u32) -> Placed {
    return Placed(at * UNIT_OF_TILES, pitch * UNIT_OF_TILES, false);
}
fn place_in(matrix: Placed, row: u32, column: u32) -> u32 {
    return matrix.at + select(row + column * matrix.pitch, row * matrix.pitch + column, matrix.rows);
}
fn multiply_add(a: Placed, b: Placed, sums: Sums) -> Sums {
    var all = sums;
    for (var e = 0u; e < side * side / LANES; e++) {
        let element = own + e * LANES;
        for (var k = 0u; k < side; k++) {
            let in_x = place_in(a, element / SIDE, k);
            let in_w = place_in(b, k, element % SIDE);
            all.elements[e] += f32(x_tile[in_x / UNIT_OF_TILES]WITHIN_X) * f32(w_tile[in_w / UNIT_OF_TILES]WITHIN_W);
        }
    }
    return all;
}
fn store_in_TARGET(stored: Sums, at: u32, pitch: u32) {
    for (var e = 0u; e < side * side / LANES; e++) {
        let element = own + e * LANES;
        TARGET[at + element / SIDE * pitch + element % SIDE] = stored.elements[e];
    }
}
";

/// `shader` without cooperative matrices and subgroups, if it has any.
pub(crate) fn emulated(shader: &'static Shader) -> &'static Shader {
    static MADE: OnceLock<Mutex<HashMap<&str, &'static Shader>>> = OnceLock::new();
    if !shader.requires.contains(&Requirement::CooperativeMatrix) {
        return shader;
    }
    let made = MADE.get_or_init(Mutex::default);
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(shader.name).or_insert_with(|| {
        Box::leak(Box::new(Shader {
            source: Box::leak(rewritten(shader.source).into_boxed_str()),
            requires: &[Requirement::F16],
            ..*shader
        }))
    })
}

fn rewritten(source: &str) -> String {
    let mut out = String::new();
    for line in source.lines() {
        let from = ["&x_tile[", "&w_tile["];
        let tile = from.iter().find_map(|tile| line.trim().strip_prefix(tile));
        match tile {
            Some(place) => out.push_str(&place.replace("],", ",")),
            None if line.contains("@builtin(subgroup_") => {}
            None => out.push_str(line),
        }
        out.push('\n');
    }
    let target = if source.contains("&sums[") {
        "sums"
    } else {
        "stage"
    };
    let mut replaced = |from: &str, to: &str| {
        assert!(out.contains(from), "the kernel has no `{from}`");
        out = out.replace(from, to);
    };
    let side = if source.contains("coop_mat8x8") {
        "8x8"
    } else {
        "16x16"
    };
    replaced("enable wgpu_cooperative_matrix;", "");
    replaced(&format!("coopLoadT<coop_mat{side}<f16, A>>("), "load_rows(");
    let by_rows = format!("coopLoad<coop_mat{side}<f16, B>>(");
    if source.contains(&by_rows) {
        replaced(&by_rows, "load_columns(");
    } else {
        replaced(&format!("coopLoadT<coop_mat{side}<f16, B>>("), "load_rows(");
    }
    replaced(&format!("coop_mat{side}<f32, C>"), "Sums");
    replaced("coopMultiplyAdd(", "multiply_add(");
    replaced("coopStoreT(", &format!("store_in_{target}("));
    if target == "sums" {
        replaced("&sums[place_00]", "place_00");
        for (i, j) in (0..64).map(|n| (n / 8, n % 8)) {
            out = out.replace(&format!("&sums[place_{i}{j}]"), &format!("place_{i}{j}"));
        }
    } else {
        replaced("&stage[staged]", "staged");
    }
    let main = out.find("fn main(").unwrap();
    let body = main + out[main..].find(") {").unwrap() + 3;
    let stride = if source.contains("x_stride") {
        "x_stride"
    } else {
        "stride"
    };
    let begin = format!(
        "\n    let subgroup = thread / LANES;\n    let lane = thread % LANES;\n    own = lane;\n    side = min(SIDE, params.{stride});"
    );
    out.insert_str(body, &begin);
    let scalar = source.contains("var<workgroup> x_tile: array<f16");
    let (unit, within) = if scalar {
        ("1u", ["", ""])
    } else {
        ("4u", ["[in_x % 4u]", "[in_w % 4u]"])
    };
    out + &MATRICES
        .replace("UNIT_OF_TILES", unit)
        .replace("WITHIN_X", within[0])
        .replace("WITHIN_W", within[1])
        .replace("TARGET", target)
}

/// The adapter that `RWKV_DEVICE` names, or the first one, be it a processor.
pub(crate) fn kernels(side: u32) -> Kernels {
    let named = env::var("RWKV_DEVICE").ok().map(|d| d.parse().unwrap());
    let selector = named.unwrap_or_else(|| {
        let adapters = list_adapters();
        let usable = adapters.iter().find(|a| a.refused.is_none());
        let none =
            || panic!("this test needs a GPU adapter; Mesa's lavapipe is one for any processor");
        Selector::Index(usable.unwrap_or_else(none).index)
    });
    let options = OpenOptions {
        checks: false,
        ..OpenOptions::default()
    };
    let mut kernels = Kernels::new(&Gpu::open(&selector, &options).unwrap()).unwrap();
    kernels.emulates = Some(side);
    kernels
}

/// From −1 to 1.
pub(super) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from_bits(0x3f80_0000 | state >> 9) * 2.0 - 3.0
    };
    (0..count).map(|_| next()).collect()
}

pub(super) struct Activation {
    pub(super) buffer: Buffer,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Activation {
    pub(super) fn new(gpu: &Gpu, rows: usize, values: &[f32]) -> Self {
        let width = values.len() / rows;
        let stride = View::stride(width);
        let bytes = View::bytes(rows, width);
        let buffer = gpu
            .buffer(BufferKind::Storage, "activation", bytes)
            .unwrap();
        let mut padded = vec![f32::NAN; rows * stride];
        for (row, values) in padded
            .chunks_exact_mut(stride)
            .zip(values.chunks_exact(width))
        {
            row[..width].copy_from_slice(values);
        }
        gpu.write(&buffer, 0, bytemuck::cast_slice(&padded))
            .unwrap();
        Self {
            buffer,
            rows,
            width,
        }
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            buffer: &self.buffer,
            offset: 0,
            rows: self.rows,
            width: self.width,
        }
    }

    /// Its values after `dispatches`.
    pub(super) fn after(&self, gpu: &Gpu, dispatches: &[Dispatch]) -> Vec<f32> {
        let bytes = View::bytes(self.rows, self.width);
        let readback = Readback::new(gpu, "read", bytes).unwrap();
        let mut recorder = gpu.recorder("emulated");
        recorder.dispatch(dispatches);
        recorder.read(&self.buffer, 0, bytes, &readback);
        let submission = recorder.submit().unwrap();
        let all: Vec<f32> = readback
            .view(gpu, &submission, bytes, bytemuck::pod_collect_to_vec)
            .unwrap();
        let rows = all.chunks_exact(View::stride(self.width));
        rows.flat_map(|row| row[..self.width].to_vec()).collect()
    }
}

/// How a matrix lies.
#[derive(Clone, Copy, Debug)]
enum Lies {
    ByRows(Format),
    /// In parts of so many inputs.
    ByColumns(usize),
}

/// Products against the twin, in `tile` and these numbers of slices.
#[track_caller]
fn check(
    kernels: &Kernels,
    lies: Lies,
    [tokens, rows, cols]: [usize; 3],
    tile: &str,
    slices: &[usize],
) {
    let gpu = kernels.gpu();
    let values = noise(rows * cols, 1);
    let format = match lies {
        Lies::ByRows(format) => format,
        Lies::ByColumns(_) => Format::F16,
    };
    let mut bytes = vec![0; format.row_bytes(cols).unwrap() * rows];
    let row_bytes = bytes.len() / rows;
    for (values, bytes) in values
        .chunks_exact(cols)
        .zip(bytes.chunks_exact_mut(row_bytes))
    {
        format.spec().quantize(values, bytes);
    }
    let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
    // As f16 has them, times a power of two for each row that f16 could not hold.
    let scale = |i: usize| [1.0, 2f32.powi(20), 2f32.powi(-30)][i / cols % 3];
    let x: Vec<f32> = noise(tokens * cols, 2)
        .iter()
        .enumerate()
        .map(|(i, x)| f32::from(f16::from_f32(*x)) * scale(i))
        .collect();
    let residual = noise(tokens * rows, 3);
    let mut want = vec![0.0; tokens * rows];
    matmul(&x, &matrix, &mut want).unwrap();

    let mut upload = Upload::new(gpu);
    let (by_rows, by_columns) = match lies {
        Lies::ByRows(_) => {
            let made = GpuMatrix::new(gpu, "w", &matrix, format, &mut upload).unwrap();
            (Some(made), None)
        }
        Lies::ByColumns(part) => {
            let most = part.saturating_mul(rows.next_multiple_of(8) * 2) as u64;
            let made = GpuColumns::in_parts(kernels, "w", &matrix, &mut upload, most).unwrap();
            (None, Some(made))
        }
    };
    upload.flush().unwrap();
    let halves = HalfRows::new(gpu, "halves", tokens, cols).unwrap();
    let on_gpu = Activation::new(gpu, tokens, &x);
    let kept = Activation::new(gpu, tokens, &residual);
    let nothing = vec![f32::NAN; tokens * rows];
    let run = |shape: Option<CoopShape>| -> (Vec<CoopShape>, Vec<f32>) {
        let y = Activation::new(gpu, tokens, &nothing);
        let (x, residual) = (on_gpu.view(), Some(kept.view()));
        let mut dispatches = vec![kernels.half_rows(&x, &halves).unwrap()];
        let shapes = if let Some(weight) = &by_rows {
            let op = Linear {
                x,
                weight,
                bias: None,
                function: Function::Identity,
                residual,
                y: y.view(),
            };
            if let Some(shape) = shape {
                dispatches.extend(kernels.coop_linear(&op, &halves, shape).unwrap());
            }
            kernels.coop_shapes(&op)
        } else {
            let op = SparseLinear {
                x,
                weight: by_columns.as_ref().unwrap(),
                residual,
                y: y.view(),
                store: None,
                dense: false,
                tuning: SparseTuning::default(),
            };
            if let Some(shape) = shape {
                dispatches.extend(kernels.coop_columns(&op, &halves, shape).unwrap());
            }
            kernels.coop_column_shapes(&op)
        };
        (shapes, y.after(gpu, &dispatches))
    };
    let (shapes, _) = run(None);
    let near = |got: &[f32], what: &dyn std::fmt::Debug| {
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let scale = scale(i / rows * cols);
            let bound = scale * cols as f32 * if format == Format::F16 { 1e-6 } else { 1e-3 };
            let want = want + residual[i];
            assert!(
                (got - want).abs() <= bound.max(1e-6),
                "{lies:?}, {tokens}×{rows}×{cols}, {what:?}: token {}, row {}: {got} for {want}",
                i / rows,
                i % rows
            );
        }
    };
    let shapes: Vec<_> = shapes
        .into_iter()
        .filter(|s| s.tile.name() == tile && slices.contains(&s.slices))
        .collect();
    assert!(shapes.len() >= slices.len(), "{shapes:?}");
    for shape in shapes {
        let (_, got) = run(Some(shape));
        near(&got, &shape);
        assert_eq!(got, run(Some(shape)).1, "{shape:?} twice");
    }
}

/// Ragged in all three, whole, and in parts.
#[test]
fn sixteens() {
    let kernels = kernels(16);
    let whole = Lies::ByColumns(usize::MAX);
    for (lies, shape, tile, slices) in [
        (whole, [9, 130, 600], "16x64x64-4", &[1, 2][..]),
        (Lies::ByColumns(192), [40, 77, 650], "32x128x64-4", &[3]),
        (whole, [64, 128, 512], "64x64x64-4", &[1, 8]),
        (
            Lies::ByRows(Format::F16),
            [35, 140, 600],
            "32x128x64-4",
            &[1, 2],
        ),
        (
            Lies::ByRows(Format::F16),
            [9, 70, 300],
            "16x64x64-4",
            &[1, 2],
        ),
        (
            Lies::ByRows(Format::Q8_0),
            [33, 70, 640],
            "32x64x64-4",
            &[2],
        ),
    ] {
        check(&kernels, lies, shape, tile, slices);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_shape(
        [tokens, rows, cols] in [9usize..70, 1usize..200, 1usize..700],
        columns in any::<bool>(),
        part in prop::sample::select(vec![64usize, 320, usize::MAX]),
        tile in prop::sample::select(vec!["64x64x64-4", "32x128x64-4", "16x64x64-4"]),
    ) {
        let lies = if columns {
            Lies::ByColumns(part)
        } else {
            Lies::ByRows(Format::F16)
        };
        let slices: &[usize] = if cols > 64 { &[1, 2] } else { &[1] };
        check(&kernels(16), lies, [tokens, rows, cols], tile, slices);
    }
}

#[test]
fn eights() {
    let kernels = kernels(8);
    let tile = "64x64x32-8x8";
    check(&kernels, Lies::ByColumns(128), [70, 77, 200], tile, &[1, 2]);
    check(
        &kernels,
        Lies::ByRows(Format::F16),
        [70, 77, 200],
        tile,
        &[1],
    );
}
