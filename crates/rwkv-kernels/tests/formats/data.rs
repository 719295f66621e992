//! What encoders are tried on. `make_reference_errors.py` makes the same.

use half::f16;

/// Values a synthetic set.
const VALUES: usize = 8192;

/// Where `rows.f16` comes from, 4096 values each.
const MATRICES: [&str; 8] = [
    "emb.weight",
    "blocks.0.att.receptance.weight",
    "blocks.2.att.key.weight",
    "blocks.3.att.value.weight",
    "blocks.5.att.output.weight",
    "blocks.4.ffn.key.weight",
    "blocks.7.ffn.value.weight",
    "head.weight",
];

/// `n` numbers in 0 … 1 by splitmix64 from `seed`.
fn uniform(seed: u64, n: usize) -> impl Iterator<Item = f64> {
    (1..=n as u64).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    })
}

/// Close to normal: sums of 12 uniform numbers.
fn gaussian(seed: u64) -> Vec<f64> {
    let draws: Vec<f64> = uniform(seed, 12 * VALUES).collect();
    draws
        .chunks_exact(12)
        .map(|draws| draws.iter().sum::<f64>() - 6.0)
        .collect()
}

fn laplace(seed: u64) -> Vec<f64> {
    let draws: Vec<f64> = uniform(seed, 2 * VALUES).collect();
    draws
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[size, sign]| (1.0 - size).ln() * if *sign < 0.5 { -1.0 } else { 1.0 })
        .collect()
}

/// `chosen` where a draw passes `limit`, else `other`.
fn by_chance(limit: f64, other: &[f64], chosen: &[f64]) -> Vec<f64> {
    uniform(100, VALUES)
        .zip(other.iter().zip(chosen))
        .map(|(draw, (other, chosen))| if draw < limit { *other } else { *chosen })
        .collect()
}

/// Every set with its name.
pub(crate) fn sets() -> Vec<(&'static str, Vec<f32>)> {
    let times = |factor: f64, values: Vec<f64>| -> Vec<f64> {
        values.into_iter().map(|x| factor * x).collect()
    };
    let constant = gaussian(6);
    let mixed = gaussian(5);
    let synthetic = [
        ("gaussian", times(0.05, gaussian(1))),
        ("laplace", times(0.05, laplace(2))),
        (
            "uniform",
            uniform(3, VALUES).map(|u| 0.2 * u - 0.1).collect(),
        ),
        (
            "sparse",
            by_chance(0.9, &vec![0.0; VALUES], &times(0.05, gaussian(4))),
        ),
        (
            "outliers",
            by_chance(0.99, &times(0.02, mixed.clone()), &times(0.6, mixed)),
        ),
        (
            "constant",
            (0..VALUES).map(|i| 0.1 * constant[i / 256]).collect(),
        ),
        ("zeros", vec![0.0; VALUES]),
        ("tiny", times(1e-6, gaussian(7))),
        ("large", times(1e4, gaussian(8))),
        ("offset", uniform(9, VALUES).map(|u| 5.0 + u).collect()),
        (
            "negative",
            gaussian(10).iter().map(|x| -(0.05 * x).abs()).collect(),
        ),
    ];
    #[allow(clippy::cast_possible_truncation, reason = "f32 is what is encoded")]
    let synthetic = synthetic
        .into_iter()
        .map(|(name, values)| (name, values.into_iter().map(|x| x as f32).collect()));
    let rows: Vec<f32> = include_bytes!("rows.f16")
        .as_chunks::<2>()
        .0
        .iter()
        .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
        .collect();
    let real = MATRICES.into_iter().zip(rows.chunks_exact(4096));
    synthetic
        .chain(real.map(|(name, rows)| (name, rows.to_vec())))
        .collect()
}
