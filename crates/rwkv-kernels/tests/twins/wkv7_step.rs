//! RWKV-7's time mix between its projections in one dispatch, and for one token with its output projection, against the
//! operations that they are made of.

use crate::{
    activation::{Activation, State, Together},
    batch::{Ragged, SLOTS, Tables, page_of, singles},
    blocks::{packed, weights},
    noise::{Noise, scale},
    setup::{Setup, cases, setups},
    stream::met,
    tolerance::check_rms,
};
use proptest::prelude::*;
use rwkv_kernels::{
    Format, GpuMatrix, GpuVector, LoraUp, Matrix, Span,
    ops::{
        Function, OutputShape, ShiftStore, StepTile, Wkv7Operands, Wkv7Output, Wkv7Step,
        add_vector, bonus, keys7, lerp, matmul, multiply, norm, wkv7,
    },
};
use rwkv_mem::{Cols, Rows};

/// A few sums of up to 128 terms one after the other, and exponentials of sums: 1e-6 of the twin's for one operation.
const BOUND: f64 = 1e-5;

const EPSILON: f32 = 64e-5;

/// The axes of a case.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    head_size: usize,
    /// Decay, rate, gate, and value but for the first layer.
    ranks: [usize; 4],
    first: bool,
    format: Format,
    /// Spans that read a weight together.
    together: usize,
    /// Which shift vector is stored, if any.
    stores: Option<u32>,
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn any_shape(batch in singles(), heads in 1usize..6, quads in 1usize..=32,
                 ranks in prop::array::uniform4(1usize..70), first: bool, stores in prop::option::of(0u32..2),
                 format in prop::sample::select(vec![Format::F16, Format::F32]), scale in scale(), seed: u64) {
        let shape = Shape { heads, head_size: 4 * quads, ranks, first, format, together: 1, stores };
        compare(&batch, shape, scale, seed);
    }

    /// Heads of published models, ranks without padding, and sizes at the edges of the compiled variants.
    #[test]
    fn usual_shapes(batch in singles(), head_size in prop::sample::select(vec![8usize, 32, 36, 64, 68, 128]),
                    ranks in prop::array::uniform4(1usize..20), first: bool, stores in prop::option::of(0u32..2),
                    scale in scale(), seed: u64) {
        let ranks = ranks.map(|r| r * 8);
        let shape = Shape { heads: 3, head_size, ranks, first, format: Format::F16, together: 1, stores };
        compare(&batch, shape, scale, seed);
    }
}

/// Five spans over two pages.
fn five() -> Ragged {
    let spans = (0..5).map(|start| Span {
        start,
        length: 1,
        slot: (start * 4 + 3) % SLOTS,
        padding: 0,
    });
    Ragged {
        spans: spans.collect(),
        cut: 6,
    }
}

/// Ranks whose weights are more than a thread asks for at once, or just all of them; ranks of a fraction of 16 bytes; a
/// pair that is far shorter than the others; spans that read a weight together, the last of them alone.
#[test]
fn ranks() {
    let check = |head_size, ranks, format, together, stores| {
        let (heads, first) = (2, false);
        let shape = Shape {
            heads,
            head_size,
            ranks,
            first,
            format,
            together,
            stores,
        };
        let seed = u64::try_from(head_size + together).unwrap() / 4;
        compare(&five(), shape, 1.0, seed);
    };
    check(64, [128, 128, 480, 96], Format::F16, 1, Some(0));
    check(32, [64, 64, 128, 32], Format::F32, 1, Some(1));
    check(128, [257, 1, 1030, 9], Format::F16, 1, None);
    check(24, [24, 16, 40, 8], Format::F16, 4, None);
    check(128, [130, 65, 300, 1], Format::F32, 4, Some(0));
}

proptest! {
    #![proptest_config(cases(6))]

    /// The time mix of one token with the output projection.
    #[test]
    fn outputs(heads in 1usize..6, head_size in prop::sample::select(vec![8usize, 24, 32, 40, 64, 128]),
               ranks in prop::array::uniform4(1usize..70), first: bool, stores in prop::option::of(0u32..2),
               parts in prop::option::of(1usize..6), slot in 0..SLOTS, cut in 1..SLOTS, scale in scale(), seed: u64) {
        let shape = Shape { heads, head_size, ranks, first, format: Format::F16, together: 1, stores };
        with_output(&Ragged::one(slot, cut), shape, (Format::F16, parts), scale, seed);
    }

    /// The same with packed outputs.
    #[test]
    fn packed_outputs(
        fours in 1usize..3, head_size in prop::sample::select(vec![32usize, 64, 128]),
        ranks in prop::array::uniform4(1usize..70), first: bool,
        output in prop::sample::select(vec![
            Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q4K, Format::Q5K, Format::Q6K,
        ]),
        parts in prop::option::of(1usize..6), slot in 0..SLOTS, cut in 1..SLOTS, seed: u64,
    ) {
        let heads = fours * 256 / head_size;
        let shape = Shape { heads, head_size, ranks, first, format: Format::F16, together: 1, stores: None };
        with_output(&Ragged::one(slot, cut), shape, (output, parts), 1.0, seed);
    }
}

/// Elements that lie so close to the middle of two steps of 16 bits that the kernel and the twin round them apart.
#[test]
fn outputs_between_steps() {
    let shape = Shape {
        heads: 8,
        head_size: 32,
        ranks: [12, 35, 31, 1],
        first: true,
        format: Format::F16,
        together: 1,
        stores: None,
    };
    let seed = 3_575_785_434_481_094_116;
    with_output(&Ragged::one(0, 4), shape, (Format::Q8_0, None), 1.0, seed);
}

/// Rows that are more than all threads make at once, and heads of several workgroups.
#[test]
fn wide_outputs() {
    for (parts, heads) in [(None, 10), (Some(1), 10), (Some(3), 7)] {
        let shape = Shape {
            heads,
            head_size: 64,
            ranks: [64, 64, 128, 32],
            first: false,
            format: Format::F16,
            together: 1,
            stores: Some(0),
        };
        with_output(&Ragged::one(3, 5), shape, (Format::F16, parts), 1.0, 11);
    }
}

fn with_output(
    ragged: &Ragged,
    shape: Shape,
    (format, parts): (Format, Option<usize>),
    scale: f32,
    seed: u64,
) {
    let case = Case::new(ragged, shape, scale, &mut Noise::new(seed));
    let (width, head_size) = (case.width(), case.head_size);
    let mut noise = Noise::new(seed ^ 1);
    let state = noise.values(SLOTS as usize * width * head_size, scale);
    let shift = noise.values(SLOTS as usize * width * 2, scale);
    let weight = if format == Format::F16 {
        packed(format, &noise.values(width * width, 0.1))
    } else {
        weights(format, width * width, 0.1, &mut noise)
    };
    let weight = Matrix::new(format, Rows(width), Cols(width), &weight).unwrap();
    let x = noise.values(width, scale);
    let (made, next) = case.twin(ragged, &state);
    for setup in setups() {
        let gpu = setup.gpu();
        let output = GpuMatrix::new(gpu, "output", &weight, format, &mut setup.upload()).unwrap();
        let output = Output {
            x: &x,
            weight: &output,
            parts,
        };
        let what = format!("{}, {shape:?}, {format}, {parts:?} parts", setup.name);
        let before = (&state[..], &shift[..]);
        // What is rounded has to be the kernel's own: by a last bit of it, an element may be rounded the other way.
        let rounded = if format == Format::F16 {
            made.clone()
        } else {
            let alone =
                |t: &&StepTile| (t.share, t.spans) == (8, 1) && t.fits(&setup.kernels, head_size);
            let Some(tile) = StepTile::ALL.iter().find(alone) else {
                panic!("{what}: no kernel makes it alone");
            };
            let way = Way::Step(*tile);
            let after = after(setup, &way, &case, ragged, before, &what).unwrap();
            check_rms(&format!("what is rounded, {what}"), &after.y, &made, BOUND);
            met(format, &after.y).0
        };
        let mut want = vec![0.0; width];
        matmul(&rounded, &weight, &mut want).unwrap();
        for (want, x) in want.iter_mut().zip(&x) {
            *want += x;
        }
        let way = Way::Output(output);
        run(
            setup,
            &way,
            &case,
            ragged,
            before,
            &what,
            &(want, next.clone()),
        );
    }
}

/// The output projection after a case, on a GPU.
struct Output<'a> {
    x: &'a [f32],
    weight: &'a GpuMatrix,
    parts: Option<usize>,
}

/// Which kernel runs a case.
enum Way<'a> {
    Step(StepTile),
    /// The second matrices by a dispatch of their own; whether the step is for a crowded core.
    Apart(bool),
    Output(Output<'a>),
}

/// Everything of a step, on the host.
struct Case {
    heads: usize,
    head_size: usize,
    tokens: usize,
    first: bool,
    format: Format,
    stores: Option<u32>,
    r: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    v_first: Vec<f32>,
    shifted: Vec<f32>,
    ranks: Vec<usize>,
    hidden: Vec<Vec<f32>>,
    up: Vec<Vec<u8>>,
    /// Rows of channels, in the kernel's order.
    vectors: Vec<Vec<f32>>,
}

impl Case {
    fn new(ragged: &Ragged, shape: Shape, scale: f32, noise: &mut Noise) -> Self {
        let Shape {
            heads,
            head_size,
            first,
            format,
            stores,
            ..
        } = shape;
        let (tokens, width) = (ragged.tokens(), heads * head_size);
        let pairs = if first { 3 } else { 4 };
        let ranks = shape.ranks[..pairs].to_vec();
        let mut rows = |scale| noise.values(tokens * width, scale);
        let (r, k, v, v_first) = (rows(1.0), rows(1.0), rows(scale), rows(scale));
        let shifted = rows(scale);
        let hidden = ranks.iter().map(|n| noise.values(tokens * n, 1.0));
        let hidden = hidden.collect();
        let up = ranks
            .iter()
            .map(|n| packed(format, &noise.values(width * n, 0.3)));
        let up = up.collect();
        Case {
            heads,
            head_size,
            tokens,
            first,
            format,
            stores,
            r,
            k,
            v,
            v_first,
            shifted,
            ranks,
            hidden,
            up,
            vectors: (0..pairs + 4).map(|_| noise.values(width, 1.0)).collect(),
        }
    }

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

fn compare(ragged: &Ragged, shape: Shape, scale: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let case = Case::new(ragged, shape, scale, &mut noise);
    let (width, head_size) = (case.width(), case.head_size);
    let state = noise.values(SLOTS as usize * width * head_size, scale);
    let shift = noise.values(SLOTS as usize * width * 2, scale);
    let want = case.twin(ragged, &state);
    // A software adapter takes seconds to compile one of these: a tile each, and others in the next case.
    for (index, setup) in setups().iter().enumerate() {
        let way = Way::Apart(seed.is_multiple_of(2));
        if shape.format == Format::F16
            && setup.gpu().capabilities().limits.workgroup_bytes >= 32 << 10
        {
            let what = format!("{}, apart, {shape:?}", setup.name);
            let states = (&state[..], &shift[..]);
            run(setup, &way, &case, ragged, states, &what, &want);
        }
        let fits = |t: &&StepTile| t.spans == shape.together && t.fits(&setup.kernels, head_size);
        let tiles: Vec<_> = StepTile::ALL.iter().filter(fits).collect();
        let turn = usize::try_from(seed % 12).unwrap() + index;
        let tile = StepTile {
            // Sometimes few weights at once.
            depth: if turn % 4 == 3 { 3 } else { usize::MAX },
            ..*tiles[turn % tiles.len()]
        };
        let what = format!("{}, {tile:?}, {shape:?}", setup.name);
        run(
            setup,
            &Way::Step(tile),
            &case,
            ragged,
            (&state, &shift),
            &what,
            &want,
        );
    }
}

/// What a step leaves: the result, and of each page the WKV states and the shift vectors.
struct After {
    y: Vec<f32>,
    states: Vec<Vec<f32>>,
    shifts: Vec<Vec<f32>>,
}

/// What a case leaves on a GPU, if the adapter has a kernel for this way.
fn after(
    setup: &Setup,
    way: &Way<'_>,
    case: &Case,
    ragged: &Ragged,
    (state, shift): (&[f32], &[f32]),
    what: &str,
) -> Option<After> {
    let (tokens, width) = (case.tokens, case.width());
    let slot = width * case.head_size;
    let batch = Tables::of(setup, ragged);
    let mut upload = setup.upload();
    let matrices: Vec<_> = (0..case.ranks.len()).map(|i| case.matrix(i)).collect();
    let up = LoraUp::upload(setup.gpu(), "up", &matrices, case.format, &mut upload);
    let up = up.unwrap().unwrap();
    let vectors = case.vectors.concat();
    let vectors = GpuVector::new(setup.gpu(), "vectors", &vectors, &mut upload).unwrap();
    // Not in the kernel's order: any place in the buffer is as good.
    let mut parts: Vec<_> = [&case.v, &case.shifted, &case.r]
        .map(|x| (width, x.as_slice()))
        .into();
    let hidden = case.ranks.iter().zip(&case.hidden);
    parts.extend(hidden.map(|(n, x)| (*n, x.as_slice())));
    parts.push((width, &case.k));
    let projected = Together::new(setup, tokens, &parts);
    let [v, shifted, r, ref hidden @ .., k] = projected.views()[..] else {
        panic!("at least four views")
    };
    let v_first = Activation::new(setup, tokens, width, &case.v_first);
    let y = match way {
        Way::Step(_) | Way::Apart(_) => Activation::poisoned(setup, tokens, width, 1),
        Way::Output(output) => {
            let suits = (setup.kernels).wkv7_output_suits(output.weight, &up, case.head_size);
            let capabilities = setup.gpu().capabilities();
            // A row of a head of 128 has 16 threads in F16.
            let lanes = capabilities.subgroups.map_or(0, |s| s.min as usize);
            let unit = output.weight.format().gpu_layout().unwrap().unit();
            let able =
                capabilities.float_atomics && case.head_size.next_power_of_two() <= unit * lanes;
            assert_eq!(suits, able, "{what}");
            if !suits {
                return None;
            }
            Activation::new(setup, tokens, width, output.x)
        }
    };
    let pages = ragged.pages();
    let states = pages.map(|page| State::new(setup, page_of(state, page, slot), slot));
    let shifts = pages.map(|page| State::new(setup, page_of(shift, page, 2 * width), 2 * width));
    let dispatches = pages
        .iter()
        .zip(&states)
        .zip(&shifts)
        .flat_map(|((page, state), shift)| {
            let op = Wkv7Step {
                batch: batch.tables(),
                r,
                k,
                v,
                hidden,
                up: &up,
                vectors: &vectors,
                v_first: (!case.first).then(|| v_first.view()),
                head_size: case.head_size,
                epsilon: EPSILON,
                state: state.buffer(),
                page: *page,
                stores: case.stores.map(|which| ShiftStore {
                    shifted,
                    state: shift.buffer(),
                    which,
                }),
                y: y.view(),
            };
            match way {
                Way::Step(tile) => vec![setup.kernels.wkv7_step_tiled(&op, *tile).unwrap()],
                Way::Apart(crowded) => setup.kernels.wkv7_steps_apart(&op, *crowded).unwrap(),
                Way::Output(output) => {
                    let op = Wkv7Output {
                        time_mix: op,
                        output: output.weight,
                    };
                    let shape = output.parts.map(|parts| OutputShape { share: 8, parts });
                    vec![setup.kernels.wkv7_output(&op, shape).unwrap()]
                }
            }
        });
    setup.run(&dispatches.collect::<Vec<_>>());
    Some(After {
        y: y.read(),
        states: states.iter().map(State::read).collect(),
        shifts: shifts.iter().map(State::read).collect(),
    })
}

fn run(
    setup: &Setup,
    way: &Way<'_>,
    case: &Case,
    ragged: &Ragged,
    (state, shift): (&[f32], &[f32]),
    what: &str,
    (want, next): &(Vec<f32>, Vec<f32>),
) {
    let Some(after) = after(setup, way, case, ragged, (state, shift), what) else {
        return;
    };
    let width = case.width();
    let slot = width * case.head_size;
    check_rms(&format!("y, {what}"), &after.y, want, BOUND);
    let mut stored = shift.to_vec();
    if let Some(which) = case.stores {
        for span in &ragged.spans {
            let from = span.start as usize * width;
            let to = (span.slot * 2 + which) as usize * width;
            stored[to..to + width].copy_from_slice(&case.shifted[from..from + width]);
        }
    }
    let pages = ragged.pages();
    for ((page, state), shift) in pages.iter().zip(&after.states).zip(&after.shifts) {
        let next = page_of(next, *page, slot);
        check_rms(&format!("state, {what}"), state, next, BOUND);
        assert_eq!(
            shift,
            page_of(&stored, *page, 2 * width),
            "shift state, {what}"
        );
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
    let bytes = packed(Format::F32, &Noise::new(1).values(12 * 32, 1.0));
    let matrix = |rows: usize, cols: usize| {
        Matrix::new(
            Format::F32,
            Rows(rows),
            Cols(cols),
            &bytes[..rows * cols * 4],
        )
        .unwrap()
    };
    let pack = |matrices: &[Matrix<'_>], format: Format| {
        LoraUp::upload(setup.gpu(), "up", matrices, format, &mut setup.upload())
    };
    let (some, longer) = (matrix(8, 32), matrix(12, 32));
    assert!(pack(&[some, some], Format::F16).unwrap().is_some());
    assert!(pack(&[some, some], Format::F32).unwrap().is_some());
    assert!(pack(&[some], Format::Q8_0).unwrap().is_none());
    assert!(pack(&[], Format::F16).is_err());
    assert!(pack(&[some, longer], Format::F16).is_err());
    assert!(pack(&[some; 5], Format::F16).is_err());
}
