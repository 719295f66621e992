//! Every way of spreading a matrix-vector product gives the same product; members of a stack are matrices.

use crate::{
    activation::Activation,
    blocks::weights,
    linear::absolute_terms,
    noise::Noise,
    setup::setups,
    tolerance::{self, check},
};
use rwkv_kernels::{
    Format, GpuMatrix, Matrix, MatrixUpload,
    ops::{Function, Linear, MatvecShape, matmul},
};
use rwkv_mem::{Cols, Rows, Shape};

/// Some candidates, each with the next of some formats, numbers of tokens and ways to run. (Pipelines take long to
/// compile on a processor; the properties of the fused kernels draw from all candidates.)
#[test]
fn candidates() {
    let formats = [
        Format::F16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4K,
        Format::Q6K,
        Format::Q2K,
    ];
    for (at, shape) in MatvecShape::candidates().into_iter().step_by(5).enumerate() {
        let format = formats[at % formats.len()];
        let cols = if format == Format::F16 { 1037 } else { 1024 };
        let workgroups = if at % 3 == 0 { 2 } else { 0 };
        let shape = MatvecShape {
            workgroups,
            ..shape
        };
        compare(format, shape, 1 + at % 4, 45, cols, at);
    }
}

/// x in several pieces of workgroup memory.
#[test]
fn long_rows() {
    let shape = MatvecShape {
        threads: 256,
        split: 2,
        rows: 2,
        unroll: 2,
        staged: true,
        workgroups: 1,
    };
    compare(Format::Q4_0, shape, 3, 70, 8192, 0);
    compare(Format::F16, shape, 2, 70, 9003, 1);
}

fn compare(
    format: Format,
    shape: MatvecShape,
    tokens: usize,
    rows: usize,
    cols: usize,
    setup: usize,
) {
    let setup = &setups()[setup % 4];
    let mut noise = Noise::new(7);
    let bytes = weights(format, rows * cols, 0.1, &mut noise);
    let matrix = Matrix::new(format, Rows(rows), Cols(cols), &bytes).unwrap();
    let x = noise.values(tokens * cols, 1.0);
    let mut want = vec![0.0; tokens * rows];
    matmul(&x, &matrix, &mut want).unwrap();
    let terms = absolute_terms(&x, &matrix, tokens);
    let weight =
        GpuMatrix::new(setup.gpu(), "weight", &matrix, format, &mut setup.upload()).unwrap();
    let x = Activation::new(setup, tokens, cols, &x);
    let y = Activation::poisoned(setup, tokens, rows, 1);
    let op = Linear {
        x: x.view(),
        weight: &weight,
        bias: None,
        function: Function::Identity,
        residual: None,
        y: y.view(),
    };
    setup.run(&setup.kernels.linear_shaped(&op, Some(shape)).unwrap());
    let what = format!("{}, {format}, {shape:?}", setup.name);
    check(&what, &y.read(), &want, |i| {
        tolerance::SUM * f64::from(terms[i])
    });
}

/// Views of a stack in one part and in several, for few tokens and for many.
#[test]
fn members_of_a_stack() {
    let setup = &setups()[1];
    let cols = 256;
    let mut noise = Noise::new(2);
    let members =
        [5usize, 1, 12].map(|rows| (rows, weights(Format::Q4K, rows * cols, 0.1, &mut noise)));
    let members = members
        .each_ref()
        .map(|(rows, bytes)| Matrix::new(Format::Q4K, Rows(*rows), Cols(cols), bytes).unwrap());
    for most in [u64::MAX, 128 * 7] {
        let mut upload = setup.upload();
        let shape = Shape {
            rows: Rows(18),
            cols: Cols(cols),
        };
        let mut made = MatrixUpload::new(setup.gpu(), "stack", shape, Format::Q4K, most).unwrap();
        for member in &members {
            made.push("member", member, &mut upload).unwrap();
        }
        assert!(made.push("one more", &members[1], &mut upload).is_err());
        let stack = made.finish().unwrap();
        assert_eq!(stack.is_whole(), most == u64::MAX);
        assert!(stack.view(3..19).is_err());
        let mut first = 0;
        for member in &members {
            let rows = member.shape().rows.0;
            let view = stack.view(first..first + rows).unwrap();
            first += rows;
            for tokens in [2, 11] {
                let x = noise.values(tokens * cols, 1.0);
                let mut want = vec![0.0; tokens * rows];
                matmul(&x, member, &mut want).unwrap();
                let terms = absolute_terms(&x, member, tokens);
                let x = Activation::new(setup, tokens, cols, &x);
                let y = Activation::poisoned(setup, tokens, rows, 1);
                let op = Linear {
                    x: x.view(),
                    weight: &view,
                    bias: None,
                    function: Function::Identity,
                    residual: None,
                    y: y.view(),
                };
                setup.run(&setup.kernels.linear_shaped(&op, None).unwrap());
                check("a member", &y.read(), &want, |i| {
                    tolerance::SUM * f64::from(terms[i])
                });
            }
        }
    }
}
