//! Element by element: functions, sums, products and interpolation.

use crate::{Error, GpuVector, Kernels, Result, View, kernels::u32_of, ops::Function};
use bytemuck::NoUninit;
use rwkv_gpu::Dispatch;

/// The twin of [`Map::Add`]: `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        *y = a + b;
    }
}

/// The twin of [`Map::Multiply`]: `y = a ⊙ b`.
pub fn multiply(a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        *y = a * b;
    }
}

/// The twin of [`Map::Lerp`]: `y = a + (b − a) ⊙ t`.
pub fn lerp(a: &[f32], b: &[f32], t: &[f32], y: &mut [f32]) {
    for (((a, b), t), y) in a.iter().zip(b).zip(t).zip(y) {
        *y = a + (b - a) * t;
    }
}

/// The twin of [`Map::AddVector`]: `vector` is added to each row.
pub fn add_vector(a: &[f32], vector: &[f32], y: &mut [f32]) {
    let width = vector.len().max(1);
    for (a, y) in a.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        add(a, vector, y);
    }
}

/// The twin of [`Map::LerpVector`]: `y = a + (b − a) ⊙ weight`, with `weight` one row for all of them.
pub fn lerp_vector(a: &[f32], b: &[f32], weight: &[f32], y: &mut [f32]) {
    let width = weight.len().max(1);
    let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
    for ((a, b), y) in rows.zip(y.chunks_exact_mut(width)) {
        lerp(a, b, weight, y);
    }
}

/// An element-wise operation on the GPU; all operands have the shape of the result.
#[derive(Clone, Copy)]
pub enum Map<'a> {
    /// `f(a)`.
    Apply(Function, View<'a>),
    /// `a + b`.
    Add(View<'a>, View<'a>),
    /// `a ⊙ b`.
    Multiply(View<'a>, View<'a>),
    /// `a ⊙ b + c`: the twins of product and sum, one after the other.
    MultiplyAdd(View<'a>, View<'a>, View<'a>),
    /// `a + (b − a) ⊙ t`.
    Lerp(View<'a>, View<'a>, View<'a>),
    /// The vector is added to each row.
    AddVector(View<'a>, &'a GpuVector),
    /// `a + (b − a) ⊙ w`, with `w` one row for all of them.
    LerpVector(View<'a>, View<'a>, &'a GpuVector),
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    count: u32,
    stride: u32,
    width: u32,
}

/// Threads of a workgroup, as in the WGSL.
const THREADS: usize = 256;

impl Kernels {
    /// The dispatch of `op` into `y`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit, [`Error::Gpu`] when the kernel does not compile.
    pub fn map(&self, op: Map<'_>, y: View<'_>) -> Result<Dispatch> {
        let (code, views, vector) = match op {
            Map::Apply(_, a) => (0.0, [Some(a), None, None], None),
            Map::Add(a, b) => (1.0, [Some(a), Some(b), None], None),
            Map::Multiply(a, b) => (2.0, [Some(a), Some(b), None], None),
            Map::Lerp(a, b, t) => (3.0, [Some(a), Some(b), Some(t)], None),
            Map::AddVector(a, vector) => (4.0, [Some(a), None, None], Some(vector)),
            Map::LerpVector(a, b, vector) => (5.0, [Some(a), Some(b), None], Some(vector)),
            Map::MultiplyAdd(a, b, c) => (6.0, [Some(a), Some(b), Some(c)], None),
        };
        let function = match op {
            Map::Apply(function, _) => function,
            _ => Function::Identity,
        };
        let fit = views
            .iter()
            .flatten()
            .all(|v| v.rows == y.rows && v.width == y.width);
        if !fit || vector.is_some_and(|v| v.len() != y.width) {
            return Err(Error::shape(
                "map",
                format!("operands of another shape than {}×{}", y.rows, y.width),
            ));
        }
        let stride = View::stride(y.width);
        let params = Params {
            count: u32_of("elements", y.rows * stride)?,
            stride: u32_of("stride", stride)?,
            width: u32_of("width", y.width)?,
        };
        let slot = |i: usize| views[i].as_ref().map_or(self.unused(), View::binding);
        let bindings = [
            slot(0),
            slot(1),
            slot(2),
            vector.map_or(self.unused(), GpuVector::binding),
            y.binding(),
        ];
        let pipeline = self.pipeline("map", &[("FUNCTION", code), function.constant()])?;
        self.dispatch(
            pipeline,
            &params,
            &bindings,
            (y.rows * stride).div_ceil(THREADS),
        )
    }
}
