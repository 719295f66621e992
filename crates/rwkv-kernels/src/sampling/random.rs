//! Random numbers that depend on nothing but a seed and a step, so that a CPU and a GPU draw the same ones.

/// Philox4x32 with 10 rounds, a counter-based generator: four random words for each counter and key.
///
/// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.2.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let (low0, high0) = c0.carrying_mul(0xD251_1F53, 0);
        let (low1, high1) = c2.carrying_mul(0xCD9E_8D57, 0);
        [c0, c1, c2, c3] = [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0];
        // Weyl sequences: the fractions of the golden ratio and of √3.
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// The number in `[0, 1)` that draw number `step` (from 0) of a sampler with this seed uses.
///
/// It is the upper 24 bits of Philox's first word times 2⁻²⁴, which f32 holds exactly. The key is the seed and the
/// counter is `(step, 0, 0)`, both with the low word first.
pub fn uniform(seed: u64, step: u64) -> f32 {
    let [step_low, step_high] = words(step);
    let [word, ..] = philox4x32([step_low, step_high, 0, 0], words(seed));
    (word >> 8) as f32 / 16_777_216.0
}

/// Low word, high word.
fn words(value: u64) -> [u32; 2] {
    [(value & 0xFFFF_FFFF) as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes for philox4x32-10.
    #[test]
    fn known_answers() {
        fn check(counter: [u32; 4], key: [u32; 2], answer: [u32; 4]) {
            assert_eq!(
                philox4x32(counter, key),
                answer,
                "counter {counter:x?}, key {key:x?}"
            );
        }
        check(
            [0; 4],
            [0; 2],
            [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8],
        );
        check(
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD],
        );
        check(
            [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
            [0xA409_3822, 0x299F_31D0],
            [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
        );
    }

    #[test]
    fn every_bit_of_seed_and_step_matters() {
        let bits = |seed, step| uniform(seed, step).to_bits();
        assert_eq!(bits(0, 0), (0x66_27E8_u32 as f32 / 16_777_216.0).to_bits());
        for bit in 0..64 {
            assert_ne!(bits(1 << bit, 0), bits(0, 0), "seed bit {bit}");
            assert_ne!(bits(0, 1 << bit), bits(0, 0), "step bit {bit}");
        }
    }

    #[test]
    fn uniform_fills_the_unit_interval() {
        let mut tenths = [0_u32; 10];
        for step in 0..100_000 {
            let u = uniform(42, step);
            assert!((0.0..1.0).contains(&u));
            tenths[format!("{u:.3}").as_bytes()[2] as usize % 10] += 1;
        }
        // Standard deviation of each count: 95.
        assert!(
            tenths.iter().all(|count| count.abs_diff(10_000) < 500),
            "{tenths:?}"
        );
    }
}
