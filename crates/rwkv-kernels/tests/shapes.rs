//! Twins refuse operands that do not fit each other, and never panic.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use rwkv_kernels::{
    Csr, Format, Matrix,
    ops::{
        Decay, Wkv4Operands, Wkv6Operands, Wkv7Operands, bonus, csr_matmul, embed, keys7, matmul,
        norm, token_matmul, wkv4, wkv6, wkv7,
    },
};
use rwkv_mem::{Cols, Rows};

/// Lengths that fit often enough: multiples of `unit`.
fn lengths() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1usize..4).prop_flat_map(|unit| {
        let length =
            prop_oneof![4 => Just(unit * 2), 2 => Just(unit), 1 => Just(0), 1 => 0usize..7];
        prop::collection::vec(length.prop_map(|n| vec![0.5; n]), 8)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn operands_of_any_length(mut v in lengths(), size in 0usize..5, rows in 0usize..4, ids in prop::collection::vec(0u32..5, 0..3)) {
        let (mut y, mut z) = (v.pop().unwrap(), v.pop().unwrap());
        let [a, b, c, d, e, f] = <[Vec<f32>; 6]>::try_from(v).unwrap();
        let same = |all: &[&Vec<f32>]| all.iter().all(|v| v.len() == all[0].len());
        let split = |width: usize| size > 0 && width > 0 && width.is_multiple_of(size);

        let fits = same(&[&a, &y]) && same(&[&b, &c]) && split(b.len()) && a.len().is_multiple_of(b.len());
        prop_assert_eq!(norm(&a, size, &b, &c, 1e-5, &mut y).is_ok(), fits, "norm");

        let fits = same(&[&a, &b, &c, &d, &y]) && split(e.len()) && a.len().is_multiple_of(e.len());
        prop_assert_eq!(bonus(&a, &b, &c, &d, &e, size, &mut y).is_ok(), fits, "bonus");

        let fits = same(&[&a, &b, &y, &z]) && same(&[&c, &d]) && split(c.len()) && a.len().is_multiple_of(c.len());
        prop_assert_eq!(keys7(&a, &b, &c, &d, size, &mut y, &mut z).is_ok(), fits, "keys");

        let operands = Wkv7Operands { r: &a, w: &b, k: &c, kappa: &d, v: &e, a: &f };
        let width = z.len().checked_div(size).unwrap_or(0);
        let heads = split(width) && z.len() == width * size && y.len().is_multiple_of(width);
        let fits = heads && same(&[&a, &b, &c, &d, &e, &f, &y]);
        prop_assert_eq!(wkv7(operands, size, &mut z, &mut y).is_ok(), fits, "wkv7");

        let fits = heads && same(&[&a, &b, &c, &y]);
        let operands = Wkv6Operands { r: &a, w: Decay::Channels(&d), k: &b, v: &c, u: &e };
        let vectors = d.len() == width && e.len() == width;
        prop_assert_eq!(wkv6(operands, size, &mut z, &mut y).is_ok(), fits && vectors, "wkv6, a decay a channel");
        let operands = Wkv6Operands { w: Decay::Tokens(&d), ..operands };
        let vectors = d.len() == y.len() && e.len() == width;
        prop_assert_eq!(wkv6(operands, size, &mut z, &mut y).is_ok(), fits && vectors, "wkv6");

        let operands = Wkv4Operands { k: &a, v: &b, decay: &c, bonus: &d };
        let fits = same(&[&a, &b, &y]) && same(&[&c, &d]) && !c.is_empty() && z.len() == 3 * c.len()
            && y.len().is_multiple_of(c.len());
        prop_assert_eq!(wkv4(operands, &mut z, &mut y).is_ok(), fits, "wkv4");

        let tokens = a.len().checked_div(size).unwrap_or(0);
        let fits = size * rows > 0 && a.len() == tokens * size && b.len() == tokens * size * rows && y.len() == tokens * rows;
        prop_assert_eq!(token_matmul(&a, &b, size, rows, &mut y).is_ok(), fits, "token matmul");

        let weights = vec![0; rows * size * 4];
        let matrix = Matrix::new(Format::F32, Rows(rows), Cols(size), &weights).unwrap();
        let tokens = a.len() / size.max(1);
        let fits = a.len() == tokens * size && y.len() == tokens * rows;
        prop_assert_eq!(matmul(&a, &matrix, &mut y).is_ok(), fits, "matmul");
        let sparse = Csr::from_dense("w", &matrix, 0.0).unwrap();
        prop_assert_eq!(csr_matmul(&a, &sparse, &mut y).is_ok(), fits, "sparse matmul");

        let known = size == 0 || ids.iter().all(|id| (*id as usize) < rows);
        let fits = y.len() == ids.len() * size && known;
        prop_assert_eq!(embed(ids.iter().copied(), &matrix, &mut y).is_ok(), fits, "embed");
    }
}
