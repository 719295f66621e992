//! Undoing a converter's division by a power of two.
//!
//! llama.cpp's converter divides two matrices of each layer of version 6 by 2^⌊N / rescale⌋, for engines whose residual
//! is f16 and halved as often. Ours is f32 and never halved, so the rows of these matrices are multiplied back when they
//! are asked for: exactly, and in their own format.

use half::{bf16, f16};
use rayon::prelude::*;
use rwkv_kernels::Format;

/// Blocks that a thread multiplies at a time.
const RUN: usize = 1 << 14;

/// Where the f16 factors of a block are: each of its values is linear in them, so that multiplying them multiplies the
/// values exactly. `None` for a format that is not known here.
fn factors(format: Format) -> Option<&'static [usize]> {
    Some(match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        Format::Q4_0
        | Format::Q5_0
        | Format::Q8_0
        | Format::Iq4Nl
        | Format::Int8(_)
        | Format::Nf4(_)
        | Format::Sf4(_) => &[0],
        _ => return None,
    })
}

/// Whether numbers packed as `format` can be multiplied where they are.
pub(super) fn can_multiply(format: Format) -> bool {
    matches!(format, Format::F32 | Format::F16 | Format::Bf16) || factors(format).is_some()
}

/// Makes the values of `bytes`, whole rows packed as `format`, 2^`exponent` times as large, or says what is in the way.
/// Exact, but for numbers that the division has left subnormal.
pub(super) fn multiply(format: Format, bytes: &mut [u8], exponent: u32) -> Result<(), String> {
    let block = format.spec().block_bytes().max(1);
    let fits = bytes
        .par_chunks_mut(block * RUN)
        .all(|run| multiply_run(format, run, exponent));
    if fits {
        return Ok(());
    }
    Err(format!(
        "it is divided by 2^{exponent}, and multiplied back it does not fit {format}"
    ))
}

/// Whether the products fit.
fn multiply_run(format: Format, bytes: &mut [u8], exponent: u32) -> bool {
    let factor = f32::from(u16::try_from(exponent).unwrap_or(u16::MAX)).exp2();
    let half = |bytes: [u8; 2]| {
        let product = f16::from_f32(f16::from_le_bytes(bytes).to_f32() * factor);
        product.is_finite().then(|| product.to_le_bytes())
    };
    let brain = |bytes: [u8; 2]| {
        let product = bf16::from_f32(bf16::from_le_bytes(bytes).to_f32() * factor);
        product.is_finite().then(|| product.to_le_bytes())
    };
    match format {
        Format::F32 => bytes.as_chunks_mut::<4>().0.iter_mut().all(|x| {
            let product = f32::from_le_bytes(*x) * factor;
            *x = product.to_le_bytes();
            product.is_finite()
        }),
        Format::F16 => all(bytes.as_chunks_mut().0, half),
        Format::Bf16 => all(bytes.as_chunks_mut().0, brain),
        blocks => factors(blocks).is_some_and(|places| {
            bytes
                .chunks_exact_mut(blocks.spec().block_bytes().max(2))
                .all(|block| {
                    places.iter().all(|&at| {
                        let factor = block.get_mut(at..).and_then(|b| b.first_chunk_mut());
                        factor.is_some_and(|factor| all(std::slice::from_mut(factor), half))
                    })
                })
        }),
    }
}

/// Replaces every number; `false` where one has no replacement.
fn all(numbers: &mut [[u8; 2]], product: impl Fn([u8; 2]) -> Option<[u8; 2]>) -> bool {
    numbers
        .iter_mut()
        .all(|number| product(*number).map(|p| *number = p).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value becomes exactly as many times as large.
    #[test]
    fn multiplies_exactly() {
        let values: Vec<f32> = (0..256u16).map(|i| f32::from(i % 61) - 23.5).collect();
        for format in Format::ALL {
            let expand = |packed: &[u8]| {
                let mut values = vec![0.0; 256];
                format.spec().dequantize(packed, &mut values);
                values
            };
            let mut packed = vec![0; format.row_bytes(256).unwrap_or(0)];
            format.spec().quantize(&values, &mut packed);
            let before = expand(&packed);
            for exponent in [0u8, 1, 5, 10] {
                let want: Vec<f32> = before
                    .iter()
                    .map(|x| x * f32::from(exponent).exp2())
                    .collect();
                let mut bytes = packed.clone();
                let got = multiply(format, &mut bytes, u32::from(exponent));
                assert_eq!(
                    got.map(|()| expand(&bytes)),
                    Ok(want),
                    "{format}, 2^{exponent}"
                );
            }
            assert!(can_multiply(format), "{format}");
            assert!(multiply(format, &mut packed, u32::MAX).is_err(), "{format}");
        }
    }
}
