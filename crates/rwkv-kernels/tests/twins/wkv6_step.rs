//! The time mix of RWKV-5 and RWKV-6 between its projections in one dispatch, against the operations that it is made of.

use crate::{
    activation::{Activation, State, Together},
    batch::{Ragged, SLOTS, Tables, page_of, singles},
    blocks::packed,
    noise::{Noise, scale},
    setup::{cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuVector, LoraUp, Matrix,
    ops::{Decay, Function, Wkv6Operands, Wkv6Step, add_vector, matmul, multiply, norm, wkv6},
};
use rwkv_mem::{Cols, Rows};

/// A few sums of up to 128 terms one after the other, and exponentials of sums: 1e-6 of the twin's for one operation.
const BOUND: f64 = 1e-5;

const EPSILON: f32 = 64e-5;

proptest! {
    #![proptest_config(cases(5))]

    #[test]
    fn any_shape(batch in singles(), heads in 1usize..6, quads in 1usize..=32, rank in 0usize..140, gated: bool,
                 format in prop::sample::select(vec![Format::F16, Format::F32]), scale in scale(), seed: u64) {
        compare(&batch, heads, 4 * quads, rank, gated, format, scale, seed);
    }

    /// Heads of published models, ranks without padding, and sizes at the edges of the compiled variants.
    #[test]
    fn usual_shapes(batch in singles(), head_size in prop::sample::select(vec![8usize, 32, 36, 64, 68, 128]),
                    rank in prop::sample::select(vec![0usize, 64, 128]), scale in scale(), seed: u64) {
        compare(&batch, 3, head_size, rank, true, Format::F16, scale, seed);
    }
}

/// A rank of 0 is RWKV-5: no pair.
#[allow(clippy::too_many_arguments, reason = "the axes of one property")]
fn compare(
    ragged: &Ragged,
    heads: usize,
    head_size: usize,
    rank: usize,
    gated: bool,
    format: Format,
    scale: f32,
    seed: u64,
) {
    let mut noise = Noise::new(seed);
    let (tokens, width) = (ragged.tokens(), heads * head_size);
    let n = tokens * width;
    let [r, k, v, gate] = [1.0, 1.0, scale, 1.0].map(|s| noise.values(n, s));
    let hidden = noise.values(tokens * rank, 1.0);
    let up = packed(format, &noise.values(width * rank, 0.1));
    // From decays of nearly 1 to decays of 0.
    let decay: Vec<f32> = (0..width).map(|_| noise.unit() * 6.0 - 1.0).collect();
    let [u, weight, bias] = [1.0; 3].map(|s| noise.values(width, s));
    let slot = width * head_size;
    let state = noise.values(SLOTS as usize * slot, scale);
    let up = (rank > 0).then(|| Matrix::new(format, Rows(width), Cols(rank), &up).unwrap());

    let mut w = vec![0.0; n];
    if let Some(up) = &up {
        let mut product = vec![0.0; n];
        matmul(&hidden, up, &mut product).unwrap();
        add_vector(&product, &decay, &mut w);
        for w in &mut w {
            *w = Function::Decay6.apply(*w);
        }
    }
    let mut next = state.clone();
    let (mut y, mut want) = (vec![0.0; n], vec![0.0; n]);
    for span in &ragged.spans {
        let at = span.start as usize * width..(span.start as usize + 1) * width;
        let operands = Wkv6Operands {
            r: &r[at.clone()],
            w: if up.is_some() {
                Decay::Tokens(&w[at.clone()])
            } else {
                Decay::Channels(&decay)
            },
            k: &k[at.clone()],
            v: &v[at.clone()],
            u: &u,
        };
        let kept = &mut next[span.slot as usize * slot..][..slot];
        wkv6(operands, head_size, kept, &mut y[at]).unwrap();
    }
    norm(&y, head_size, &weight, &bias, EPSILON, &mut want).unwrap();
    if gated {
        multiply(&want, &gate, &mut y);
        want = y;
    }

    for setup in setups() {
        let batch = Tables::of(setup, ragged);
        let mut upload = setup.upload();
        let lora = up.as_ref().map(|up| {
            let up = std::slice::from_ref(up);
            let up = LoraUp::upload(setup.gpu(), "up", up, format, &mut upload);
            let up = up.unwrap().unwrap();
            (Activation::new(setup, tokens, rank, &hidden), up)
        });
        let vectors = [&decay, &u, &weight, &bias].map(Vec::as_slice).concat();
        let vectors = GpuVector::new(setup.gpu(), "vectors", &vectors, &mut upload).unwrap();
        let rkv = [&k, &v, &r].map(|x| (width, x.as_slice()));
        let rkv = Together::new(setup, tokens, &rkv);
        let [k, v, r] = rkv.views()[..] else {
            panic!("three views")
        };
        let gate = Activation::new(setup, tokens, width, &gate);
        let y = Activation::poisoned(setup, tokens, width, 1);
        let pages = ragged.pages();
        let states = pages.map(|page| State::new(setup, page_of(&state, page, slot), slot));
        let dispatches = pages.iter().zip(&states).map(|(page, state)| {
            let op = Wkv6Step {
                batch: batch.tables(),
                r,
                k,
                v,
                decay: lora.as_ref().map(|(hidden, up)| (hidden.view(), up)),
                vectors: &vectors,
                gate: gated.then(|| gate.view()),
                head_size,
                epsilon: EPSILON,
                state: state.buffer(),
                page: *page,
                y: y.view(),
            };
            setup.kernels.wkv6_step(&op).unwrap()
        });
        setup.run(&dispatches.collect::<Vec<_>>());
        check_rms(&format!("y, {}", setup.name), &y.read(), &want, BOUND);
        for (page, state) in pages.iter().zip(&states) {
            let what = format!("state, {}", setup.name);
            check_rms(&what, &state.read(), page_of(&next, *page, slot), BOUND);
        }
    }
}
