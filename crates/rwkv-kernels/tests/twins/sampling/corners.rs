//! What random cases do not meet: no choice, no numbers, extreme numbers, ties, a memory that is full.

use super::{POISON, Sequences, counted};
use crate::{
    activation::{Activation, filled},
    setup::setups,
};
use rwkv_gpu::Binding;
use rwkv_kernels::{
    ops::Sample,
    sampling::{Chosen, Sampler, SamplerOrder, SamplerParams, SamplingError, memory_words},
};

const NEVER: f32 = f32::NEG_INFINITY;

/// One step of one sequence each way, against the twin (errors too).
#[track_caller]
fn check(what: &str, params: SamplerParams, logits: &[f32], expected: Chosen) {
    let mut twin = Sampler::new(params).unwrap();
    let start = twin.clone();
    let answer = match twin.sample(logits) {
        Ok(token) => {
            twin.accept(token, counted(token));
            Chosen::Token(token)
        }
        Err(SamplingError::Logit { .. }) => Chosen::Broken,
        Err(SamplingError::NothingPossible(_)) => Chosen::NothingPossible,
        Err(other) => panic!("{what}: {other}"),
    };
    assert_eq!(answer, expected, "{what}: the twin");
    for setup in setups() {
        let gpu = Sequences::new(setup, logits.len(), 4, std::slice::from_ref(&start));
        gpu.step(logits);
        assert_eq!(gpu.chosen()[0][0], expected, "{what}: {}", setup.name);
        let mut after = start.clone();
        assert!(after.resume(&gpu.memory(0)));
        assert_eq!(
            after.to_memory(4),
            twin.to_memory(4),
            "{what}: {}",
            setup.name
        );
        let token = match expected {
            Chosen::Token(token) => token,
            _ => 0,
        };
        assert_eq!(gpu.tokens(), [token], "{what}: {}", setup.name);
    }
}

fn all() -> SamplerParams {
    SamplerParams {
        top_p: 1.0,
        ..SamplerParams::default()
    }
}

#[test]
fn rows() {
    use Chosen::{Broken, NothingPossible, Token};
    let both = |change: &dyn Fn(&mut SamplerParams)| {
        [SamplerOrder::Reference, SamplerOrder::TemperatureFirst].map(|order| {
            let mut params = SamplerParams { order, ..all() };
            change(&mut params);
            params
        })
    };
    let greedy = || SamplerParams {
        temperature: 0.0,
        ..all()
    };
    for params in [all(), greedy(), SamplerParams::default()] {
        check("one token", params.clone(), &[-7.0], Token(0));
        check(
            "one possible",
            params.clone(),
            &[NEVER, NEVER, -1e30, NEVER, NEVER],
            Token(2),
        );
        check("none", params.clone(), &[NEVER; 5], NothingPossible);
        check("NaN", params.clone(), &[0.0, 1.0, f32::NAN], Broken);
        check("-NaN", params.clone(), &[-f32::NAN, NEVER], Broken);
        check("inf", params.clone(), &[f32::INFINITY, 1.0], Broken);
        check(
            "inf and nothing else",
            params.clone(),
            &[NEVER, f32::INFINITY],
            Broken,
        );
        let mut logits = vec![NEVER; 65_536];
        logits[65_535] = f32::MIN;
        check("the last of 65,536", params.clone(), &logits, Token(65_535));
        let mut banned = params.clone();
        banned.logit_bias = vec![(0, NEVER), (1, NEVER)];
        check("all banned", banned.clone(), &[0.0, 1.0], NothingPossible);
        check(
            "all banned but one",
            banned.clone(),
            &[0.0, 1.0, -9.0],
            Token(2),
        );
        check("NaN banned", banned.clone(), &[0.0, f32::NAN, 1.0], Broken);
        check("inf banned", banned, &[f32::INFINITY, 0.0, 1.0], Broken);
        check(
            "extremes",
            params,
            &[f32::MIN, f32::MAX, f32::MIN],
            Token(1),
        );
    }
    check("greedy ties", greedy(), &[1.0, 2.0, 2.0, 2.0], Token(1));
    check("greedy zeros", greedy(), &[-1.0, -0.0, 0.0], Token(1));
    check(
        "greedy subnormals",
        greedy(),
        &[-1.0, 1e-40, 2e-40, -0.0],
        Token(1),
    );
    check("greedy, equal", greedy(), &[3.0; 1000], Token(0));
    for params in both(&|p| p.top_k = 1) {
        check(
            "k 1 of ties",
            params.clone(),
            &[0.0, 2.0, 2.0, 1.0],
            Token(1),
        );
        check("k 1 of equals", params, &vec![0.5; 70_001], Token(0));
    }
    for params in both(&|p| p.top_p = 0.0) {
        check("p 0", params, &[0.0, 2.0, 1.9, 1.0], Token(1));
    }
    for params in both(&|p| p.min_p = 1.0) {
        check("min-p 1", params, &[0.0, 2.0, 1.9, 1.0], Token(1));
    }
    for params in both(&|p| p.temperature = 1e-45) {
        check("coldest", params, &[0.0, 2.0, 1.999_999_9], Token(1));
    }
}

/// Ties that top-k cuts through, drawn from with many seeds.
#[test]
fn cut_ties() {
    for k in [2, 3, 7, 100, 4999] {
        let samplers: Vec<Sampler> = (0..12)
            .map(|seed| {
                let order = [SamplerOrder::Reference, SamplerOrder::TemperatureFirst][seed % 2];
                let params = SamplerParams {
                    top_k: k,
                    seed: seed as u64,
                    order,
                    ..all()
                };
                Sampler::new(params).unwrap()
            })
            .collect();
        let row: Vec<f32> = (0..5000).map(|id| [1.0, 2.0, 1.0][id % 3]).collect();
        let logits = row.repeat(samplers.len());
        for setup in setups() {
            let gpu = Sequences::new(setup, row.len(), 1, &samplers);
            gpu.step(&logits);
            for (found, sampler) in gpu.chosen()[0].iter().zip(&samplers) {
                let token = sampler.clone().sample(&row).unwrap();
                assert_eq!(*found, Chosen::Token(token), "{}, k {k}", setup.name);
            }
        }
    }
}

/// A sequence that failed stays as it was, also when the next logits are good, and a row without a slot is left alone.
#[test]
fn failures_stay() {
    let sampler = Sampler::new(SamplerParams {
        temperature: 0.0,
        ..all()
    });
    let samplers = vec![sampler.unwrap(); 3];
    for setup in setups() {
        // Row 0 says one token too many, row 1 has a broken logit, row 2 stops.
        let gpu = Sequences::new(setup, 2, 1, &samplers);
        gpu.step(&[9.0, 0.0, 9.0, 0.0, 9.0, 0.0]);
        gpu.skip(2);
        gpu.step(&[9.0, 0.0, f32::NAN, 0.0, 0.0, 9.0]);
        gpu.step(&[0.0, 9.0, 9.0, 0.0, 0.0, 9.0]);
        gpu.step(&[9.0, 0.0, 9.0, 0.0, 0.0, 9.0]);
        let (chosen, first) = (gpu.chosen(), [Chosen::Token(0); 3]);
        let untouched = Chosen::Token(POISON);
        assert_eq!(chosen[0], first, "{}", setup.name);
        assert_eq!(chosen[1], [Chosen::Token(0), Chosen::Broken, untouched]);
        assert_eq!(chosen[2], [Chosen::MemoryFull, untouched, untouched]);
        assert_eq!(chosen[3], [untouched; 3]);
        let counts = |row| {
            let mut sampler = samplers[0].clone();
            assert!(sampler.resume(&gpu.memory(row)));
            (sampler.step(), sampler.counts().len())
        };
        assert_eq!([0, 1, 2].map(counts), [(2, 1), (1, 1), (1, 1)]);
        assert_eq!(gpu.tokens(), [0, 0, 0]);
    }
}

/// The numbers of draws and of accepted tokens pass 32 bits.
#[test]
fn counters_wrap() {
    let mut twin = Sampler::new(all()).unwrap();
    // Token 2 was said twice, one token ago.
    assert!(twin.resume(&[
        u32::MAX,
        7,
        u32::MAX,
        1,
        0,
        0,
        0,
        0,
        2,
        2.0_f32.to_bits(),
        u32::MAX - 1
    ]));
    let logits = [0.0, 0.5, 1.0, 0.25];
    for setup in setups() {
        let mut twin = twin.clone();
        let gpu = Sequences::new(setup, 4, 4, std::slice::from_ref(&twin));
        for row in [3, 0, 1] {
            gpu.step(&logits);
            let token = twin.sample(&logits).unwrap();
            twin.accept(token, counted(token));
            assert_eq!(gpu.chosen()[row], [Chosen::Token(token)], "{}", setup.name);
        }
        assert_eq!(twin.step(), (8 << 32) + 2);
        let mut after = twin.clone();
        assert!(after.resume(&gpu.memory(0)));
        assert_eq!(after.to_memory(4), twin.to_memory(4));
    }
}

/// Buffers that are too small for what a dispatch would touch.
#[test]
fn sizes() {
    let setup = &setups()[0];
    let gpu = setup.gpu();
    let words = |count: usize| filled(gpu, &vec![0; count.max(1)]);
    // Two rows of 40 logits, 2 slots of 3 tokens, a ring of 4 × 2.
    let good = [8, 32, 2, 2, 2 * memory_words(3), 1, 8];
    let check = |sizes: [usize; 7], rows: usize, steps: usize, fits: bool| {
        let [draws, settings, biases, counted, memory, tokens, ids] = sizes.map(words);
        let logits = Activation::new(setup, rows, 40, &vec![0.0; rows * 40]);
        let op = Sample {
            logits: logits.view(),
            draws: Binding::from(&draws),
            settings: Binding::from(&settings),
            biases: Binding::from(&biases),
            counted: Binding::from(&counted),
            memory: Binding::from(&memory),
            capacity: 3,
            tokens: Binding::from(&tokens),
            ids: Binding::from(&ids),
            steps,
            columns: 2,
        };
        let made = setup.kernels.sample(&op);
        assert_eq!(made.is_ok(), fits, "{sizes:?}, {rows} rows, {steps} steps");
    };
    check(good, 2, 4, true);
    check(good, 1, 2, true);
    check(good, 3, 4, false);
    check(good, 2, 3, false);
    check(good, 2, 8, false);
    check(good, 2, 0, false);
    // Nowhere to write ids but the ring is fine; fewer slots are fine as long as there is one.
    for (at, size, fits) in [
        (0, 7, false),
        (1, 16, true),
        (1, 15, false),
        (2, 1, false),
        (3, 1, false),
        (4, memory_words(3), true),
        (4, memory_words(3) - 1, false),
        (6, 7, false),
    ] {
        let mut sizes = good;
        sizes[at] = size;
        check(sizes, 2, 4, fits);
    }
}
