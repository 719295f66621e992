//! RWKV-7's time mix between its projections in one dispatch, against the operations that it is made of.

use crate::{
    activation::{Activation, State, Together},
    batch::{Ragged, SLOTS, Tables, page_of, singles},
    blocks::packed,
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, LoraUp, Matrix, Span,
    ops::{
        Function, StepTile, Wkv7Operands, Wkv7Step, add_vector, bonus, keys7, lerp, matmul,
        multiply, norm, wkv7,
    },
};
use rwkv_mem::{Cols, Rows};

/// A few sums of up to 128 terms one after the other, and exponentials of sums: 1e-6 of the twin's for one operation.
const BOUND: f64 = 1e-5;

const EPSILON: f32 = 64e-5;

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn any_shape(batch in singles(), heads in 1usize..6, quads in 1usize..=32,
                 ranks in prop::array::uniform4(1usize..70), first: bool,
                 format in prop::sample::select(vec![Format::F16, Format::F32]), scale in scale(), seed: u64) {
        compare(&batch, heads, 4 * quads, ranks, first, format, 1, scale, seed);
    }

    /// Heads of published models, ranks without padding, and sizes at the edges of the compiled variants.
    #[test]
    fn usual_shapes(batch in singles(), head_size in prop::sample::select(vec![8usize, 32, 36, 64, 68, 128]),
                    ranks in prop::array::uniform4(1usize..20), first: bool, scale in scale(), seed: u64) {
        compare(&batch, 3, head_size, ranks.map(|r| r * 8), first, Format::F16, 1, scale, seed);
    }
}

/// Spans that read a weight together, the last of them alone, over two pages.
#[test]
fn spans_together() {
    let spans = (0..5).map(|start| Span {
        start,
        length: 1,
        slot: (start * 4 + 3) % SLOTS,
        padding: 0,
    });
    let batch = Ragged {
        spans: spans.collect(),
        cut: 6,
    };
    compare(
        &batch,
        3,
        24,
        [24, 16, 40, 8],
        false,
        Format::F16,
        4,
        1.0,
        4,
    );
}

/// Everything of a step, on the host.
struct Case {
    heads: usize,
    head_size: usize,
    tokens: usize,
    first: bool,
    format: Format,
    r: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    v_first: Vec<f32>,
    /// Decay, rate, gate, and value but for the first layer.
    ranks: Vec<usize>,
    hidden: Vec<Vec<f32>>,
    up: Vec<Vec<u8>>,
    /// Rows of channels, in the kernel's order.
    vectors: Vec<Vec<f32>>,
}

impl Case {
    fn width(&self) -> usize {
        self.heads * self.head_size
    }

    fn matrix(&self, pair: usize) -> Matrix<'_> {
        let (rows, cols) = (Rows(self.width()), Cols(self.ranks[pair]));
        Matrix::new(self.format, rows, cols, &self.up[pair]).unwrap()
    }

    /// `function(up · hidden + bias)` of a pair.
    fn pair(&self, pair: usize, bias: Option<usize>, function: Function) -> Vec<f32> {
        let n = self.tokens * self.width();
        let (mut product, mut y) = (vec![0.0; n], vec![0.0; n]);
        matmul(&self.hidden[pair], &self.matrix(pair), &mut product).unwrap();
        match bias {
            Some(row) => add_vector(&product, &self.vectors[row], &mut y),
            None => y = product,
        }
        y.iter().map(|x| function.apply(*x)).collect()
    }

    /// What comes out, and the states afterwards.
    fn twin(&self, ragged: &Ragged, state: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (width, size) = (self.width(), self.head_size);
        let n = self.tokens * width;
        let w = self.pair(0, Some(0), Function::Decay7);
        let a = self.pair(1, Some(1), Function::Sigmoid);
        let gate = self.pair(2, None, Function::Identity);
        let mut v = self.v.clone();
        if !self.first {
            let t = self.pair(3, Some(7), Function::Sigmoid);
            lerp(&self.v, &self.v_first, &t, &mut v);
        }
        let (mut k, mut kappa) = (vec![0.0; n], vec![0.0; n]);
        let [k_k, k_a, r_k, weight, bias] = [2, 3, 4, 5, 6].map(|i| &self.vectors[i]);
        keys7(&self.k, &a, k_k, k_a, size, &mut k, &mut kappa).unwrap();
        let mut next = state.to_vec();
        let (mut y, mut z) = (vec![0.0; n], vec![0.0; n]);
        let slot = width * size;
        for span in &ragged.spans {
            let at = span.start as usize * width..(span.start as usize + 1) * width;
            let operands = Wkv7Operands {
                r: &self.r[at.clone()],
                w: &w[at.clone()],
                k: &k[at.clone()],
                kappa: &kappa[at.clone()],
                v: &v[at.clone()],
                a: &a[at.clone()],
            };
            let kept = &mut next[span.slot as usize * slot..][..slot];
            wkv7(operands, size, kept, &mut y[at]).unwrap();
        }
        norm(&y, size, weight, bias, EPSILON, &mut z).unwrap();
        bonus(&z, &self.r, &k, &v, r_k, size, &mut y).unwrap();
        multiply(&y, &gate, &mut z);
        (z, next)
    }
}

#[allow(clippy::too_many_arguments, reason = "the axes of one property")]
fn compare(
    ragged: &Ragged,
    heads: usize,
    head_size: usize,
    ranks: [usize; 4],
    first: bool,
    format: Format,
    together: usize,
    scale: f32,
    seed: u64,
) {
    let mut noise = Noise::new(seed);
    let (tokens, width) = (ragged.tokens(), heads * head_size);
    let pairs = if first { 3 } else { 4 };
    let ranks = ranks[..pairs].to_vec();
    let mut rows = |scale| noise.values(tokens * width, scale);
    let (r, k, v, v_first) = (rows(1.0), rows(1.0), rows(scale), rows(scale));
    let hidden = ranks.iter().map(|n| noise.values(tokens * n, 1.0));
    let hidden = hidden.collect();
    let up = ranks
        .iter()
        .map(|n| packed(format, &noise.values(width * n, 0.3)));
    let up = up.collect();
    let case = Case {
        heads,
        head_size,
        tokens,
        first,
        format,
        r,
        k,
        v,
        v_first,
        ranks,
        hidden,
        up,
        vectors: (0..pairs + 4).map(|_| noise.values(width, 1.0)).collect(),
    };
    let slot = width * head_size;
    let state = noise.values(SLOTS as usize * slot, scale);
    let (want, next) = case.twin(ragged, &state);
    // A software adapter takes seconds to compile one of these: a tile each, and another one in the next case.
    let tiles = StepTile::ALL.iter().filter(|t| t.spans == together);
    let tiles = tiles.cycle().skip(usize::try_from(seed % 2).unwrap());
    for (setup, tile) in setups().iter().zip(tiles) {
        if tile.fits(&setup.kernels, head_size) {
            let what = format!("{}, {tile:?}", setup.name);
            run(setup, *tile, &case, ragged, &state, &what, (&want, &next));
        }
    }
}

fn run(
    setup: &Setup,
    tile: StepTile,
    case: &Case,
    ragged: &Ragged,
    state: &[f32],
    what: &str,
    (want, next): (&[f32], &[f32]),
) {
    let (tokens, width) = (case.tokens, case.width());
    let slot = width * case.head_size;
    let batch = Tables::of(setup, ragged);
    let mut upload = setup.upload();
    let matrices: Vec<_> = (0..case.ranks.len())
        .map(|i| {
            GpuMatrix::new(setup.gpu(), "up", &case.matrix(i), case.format, &mut upload).unwrap()
        })
        .collect();
    let up = LoraUp::pack(setup.gpu(), "up", &matrices.iter().collect::<Vec<_>>());
    let up = up.unwrap().unwrap();
    let vectors = case.vectors.concat();
    let vectors = GpuVector::new(setup.gpu(), "vectors", &vectors, &mut upload).unwrap();
    // Not in the kernel's order: any place in the buffer is as good.
    let rkv = [&case.v, &case.r, &case.k].map(|x| (width, x.as_slice()));
    let rkv = Together::new(setup, tokens, &rkv);
    let [v, r, k] = rkv.views()[..] else {
        panic!("three views")
    };
    let hidden = case.ranks.iter().zip(&case.hidden);
    let hidden: Vec<_> = hidden.map(|(n, x)| (*n, x.as_slice())).collect();
    let hidden = Together::new(setup, tokens, &hidden);
    let v_first = Activation::new(setup, tokens, width, &case.v_first);
    let y = Activation::poisoned(setup, tokens, width, 1);
    let pages = ragged.pages();
    let states = pages.map(|page| State::new(setup, page_of(state, page, slot), slot));
    let dispatches = pages.iter().zip(&states).map(|(page, state)| {
        let op = Wkv7Step {
            batch: batch.tables(),
            r,
            k,
            v,
            hidden: &hidden.views(),
            up: &up,
            vectors: &vectors,
            v_first: (!case.first).then(|| v_first.view()),
            head_size: case.head_size,
            epsilon: EPSILON,
            state: state.buffer(),
            page: *page,
            y: y.view(),
        };
        setup.kernels.wkv7_step_tiled(&op, tile).unwrap()
    });
    setup.run(&dispatches.collect::<Vec<_>>());
    check_rms(&format!("y, {what}"), &y.read(), want, BOUND);
    for (page, state) in pages.iter().zip(&states) {
        let next = page_of(next, *page, slot);
        check_rms(&format!("state, {what}"), &state.read(), next, BOUND);
    }
}

/// What the kernel does not take is said beforehand, or is an error.
#[test]
fn unsuited() {
    for (head_size, suits) in [
        (0, false),
        (4, true),
        (6, false),
        (64, true),
        (128, true),
        (132, false),
    ] {
        assert_eq!(Wkv7Step::suits(head_size), suits, "{head_size}");
    }
    let setup = &setups()[0];
    let matrix = |format: Format, rows: usize| {
        let bytes = packed(format, &Noise::new(1).values(rows * 32, 1.0));
        let matrix = Matrix::new(format, Rows(rows), Cols(32), &bytes).unwrap();
        GpuMatrix::new(setup.gpu(), "up", &matrix, format, &mut setup.upload()).unwrap()
    };
    let (half, float) = (matrix(Format::F16, 8), matrix(Format::F32, 8));
    let (quantized, longer) = (matrix(Format::Q8_0, 8), matrix(Format::F16, 12));
    let pack = |matrices: &[&GpuMatrix]| LoraUp::pack(setup.gpu(), "up", matrices);
    assert!(pack(&[&half, &half]).unwrap().is_some());
    assert!(pack(&[&half, &float]).unwrap().is_none());
    assert!(pack(&[&quantized]).unwrap().is_none());
    assert!(pack(&[]).is_err());
    assert!(pack(&[&half, &longer]).is_err());
    assert!(pack(&[&half; 5]).is_err());
}
