//! Decoding ahead of the caller is decoding step by step: the same tokens, and the same states wherever the caller stops.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod support;

use rwkv_sched::{
    Decoding, SlotId, Version,
    sampling::{Sampler, SamplerParams},
};
use support::{
    decoding::{by_hand, decoded},
    everywhere,
    random_model::{Dimensions, Packing, Random},
    reset, states,
};

const SLOTS: [u32; 2] = [2, 0];

fn sequences(vocab: usize, random: &mut Random) -> Vec<Decoding> {
    let decoding = |slot| {
        let greedy = random.below(3) == 0;
        let params = SamplerParams {
            temperature: if greedy { 0.0 } else { 0.9 },
            top_k: random.below(9) as u32,
            top_p: 0.3 + random.below(7) as f32 / 10.0,
            presence_penalty: random.below(3) as f32 / 4.0,
            frequency_penalty: random.below(3) as f32 / 4.0,
            logit_bias: vec![(random.below(vocab) as u32, -2.0)],
            seed: random.below(1000) as u64,
            ..SamplerParams::default()
        };
        Decoding {
            slot: SlotId(slot),
            token: random.below(vocab) as u32,
            sampler: Sampler::new(params).unwrap(),
        }
    };
    SLOTS.into_iter().map(decoding).collect()
}

fn check(version: Version, seed: u64) {
    let dimensions = Dimensions {
        version,
        layers: 2,
        heads: 2,
        head_size: 16,
        ffn: 48,
        vocab: 50,
        ranks: [5, 6, 7, 8],
    };
    let model = dimensions.model(Packing::F32, seed);
    for (name, mut executor) in everywhere(&model, 3) {
        let executor = executor.as_mut();
        let mut random = Random::new(seed);
        for (steps, stop) in [
            (9, 9),
            (9, 1),
            (150, 63),
            (150, 64),
            (150, 131),
            (1, 1),
            (0, 0),
        ] {
            let start = sequences(50, &mut random);
            reset(executor);
            let (want, want_states) = by_hand(executor, start.clone(), stop);
            reset(executor);
            let mut all = start;
            let got = decoded(executor, &mut all, (steps, stop)).unwrap();
            let what = format!("{version}, {name}, {stop} of {steps}");
            assert_eq!(got, want, "{what}");
            assert!(states(executor) == want_states, "{what}: other states");
            if let Some(last) = want.last() {
                let pending: Vec<u32> = all.iter().map(|s| s.token).collect();
                assert_eq!(&pending, last, "{what}");
            }
        }
    }
}

#[test]
fn ahead_and_back() {
    check(Version::V7, 1);
    check(Version::V6, 2);
    check(Version::V4, 3);
    check(Version::V5_2, 4);
}
