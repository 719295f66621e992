//! What the encoders write, to the bit, on every processor. A search that is made to find other codes is pinned anew, and the
//! changelog says what that costs.
//! `cargo test --test formats pinned -- --nocapture` prints the lines of `pinned.txt`.

use crate::data;
use rwkv_kernels::Format;
use std::fmt::Write;

/// FNV-1a.
fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// All bits that there are, and most sizes in one block.
fn hostile() -> Vec<f32> {
    let bits = |i: u32| i.wrapping_mul(0x9E37_79B9).rotate_left(13) ^ i.wrapping_mul(0x85EB_CA6B);
    (0..8192).map(|i| f32::from_bits(bits(i))).collect()
}

/// Magnitudes about the edges of what halves hold, with zeros of both signs.
fn edges() -> Vec<f32> {
    let size = |i: u32| [6e-8f32, 1e-7, 3e-5, 1e-3, 6e4, 7e4, 2e6, 1e12][(i / 256 % 8) as usize];
    let part = |i: u32| (i.wrapping_mul(0x9E37_79B9) >> 24).cast_signed() as f32 / 255.0 - 0.4;
    (0..8192)
        .map(|i: u32| match i.wrapping_mul(0x85EB_CA6B) >> 28 {
            0 => 0.0,
            1 => -0.0,
            _ => part(i) * size(i),
        })
        .collect()
}

/// The formats that are searched for; the others round.
fn packed() -> impl Iterator<Item = Format> {
    let floats = [Format::F32, Format::F16, Format::Bf16];
    Format::ALL.into_iter().filter(move |f| !floats.contains(f))
}

fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut blocks = vec![0xa5; format.row_bytes(values.len()).unwrap()];
    format.spec().quantize(values, &mut blocks);
    blocks
}

#[test]
fn bits_are_pinned() {
    // Logarithms may differ between platforms.
    let sets = data::sets()
        .into_iter()
        .filter(|(name, _)| *name != "laplace");
    let mut sets: Vec<Vec<f32>> = sets.map(|(_, values)| values).collect();
    sets.extend([hostile(), edges()]);
    let mut found = String::new();
    for format in packed() {
        let all = sets
            .iter()
            .fold(EMPTY, |all, values| hash(all, &encode(format, values)));
        writeln!(found, "{format} {all:016x}").unwrap();
    }
    println!("{found}");
    assert_eq!(found, include_str!("pinned.txt"));
}

/// A block is encoded alike wherever it is, and whatever is encoded with it.
#[test]
fn blocks_do_not_depend_on_others() {
    let sets = data::sets();
    let values: Vec<f32> = (sets.iter())
        .flat_map(|(_, values)| &values[..256])
        .chain(&hostile()[..512])
        .copied()
        .collect();
    for format in packed() {
        let spec = format.spec();
        let whole = encode(format, &values);
        for blocks in [1, 3, 5, 17] {
            let cut = values.chunks(blocks * spec.block().max(32));
            let cut: Vec<u8> = cut.flat_map(|values| encode(format, values)).collect();
            assert!(cut == whole, "{format}, {blocks} blocks at a time");
        }
    }
}
