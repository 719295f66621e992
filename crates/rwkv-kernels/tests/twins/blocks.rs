//! Random weights in every format: bytes as they come, so that every code and every scale of scales occurs, with
//! factors of a chosen size.

use crate::noise::Noise;
use half::f16;
use rwkv_kernels::Format;

/// The formats that the kernels read.
pub(crate) fn native() -> Vec<Format> {
    let read = |f: &Format| f.gpu_layout().is_some();
    Format::ALL.into_iter().filter(read).collect()
}

/// `values` in `format`.
pub(crate) fn packed(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
    format.spec().quantize(values, &mut bytes);
    bytes
}

/// `n` weights of about `size` in `format`.
pub(crate) fn weights(format: Format, n: usize, size: f32, noise: &mut Noise) -> Vec<u8> {
    let Some((_, largest)) = factors(format) else {
        return packed(format, &noise.values(n, size));
    };
    blocks(format, n, noise, |noise| {
        f16::from_f32(noise.unit() * 2.0 * size / largest)
    })
}

/// `n` weights in a format of blocks, whose factors may be any f16 that is a number: zero, subnormal, huge.
pub(crate) fn extreme(format: Format, n: usize, noise: &mut Noise) -> Vec<u8> {
    if factors(format).is_none() {
        return packed(format, &noise.values(n, 1.0));
    }
    blocks(format, n, noise, |noise| {
        let magnitude = match noise.below(4) {
            // Subnormal.
            0 => noise.below(0x400),
            _ => noise.below(0x7c00),
        };
        f16::from_bits(u16::try_from(magnitude | noise.below(2) << 15).unwrap())
    })
}

fn blocks(
    format: Format,
    n: usize,
    noise: &mut Noise,
    mut factor: impl FnMut(&mut Noise) -> f16,
) -> Vec<u8> {
    let (places, _) = factors(format).unwrap();
    let mut bytes: Vec<u8> = (0..format.row_bytes(n).unwrap())
        .map(|_| u8::try_from(noise.below(256)).unwrap())
        .collect();
    for block in bytes.chunks_exact_mut(format.spec().block_bytes()) {
        for place in places {
            block[*place..place + 2].copy_from_slice(&factor(noise).to_le_bytes());
        }
    }
    bytes
}

/// Where a block has its f16 factors, and about the largest number that they are multiplied by.
fn factors(format: Format) -> Option<(&'static [usize], f32)> {
    Some(match format {
        Format::Q4_0 => (&[0], 8.0),
        Format::Q4_1 => (&[0, 2], 16.0),
        Format::Q5_0 => (&[0], 16.0),
        Format::Q5_1 => (&[0, 2], 32.0),
        Format::Q8_0 | Format::Int8(_) | Format::Iq4Nl => (&[0], 128.0),
        Format::Q2K => (&[80, 82], 48.0),
        Format::Q3K => (&[108], 128.0),
        Format::Q4K => (&[0, 2], 1024.0),
        Format::Q5K => (&[0, 2], 2048.0),
        Format::Q6K => (&[208], 4096.0),
        Format::Nf4(_) | Format::Sf4(_) => (&[0], 1.0),
        _ => return None,
    })
}
