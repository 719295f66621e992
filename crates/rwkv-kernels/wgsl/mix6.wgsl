// The token shift of RWKV-6, whose mixes depend on the data (ddlerp; Peng et al. 2024, "Eagle and Finch", section 4.2):
//   y = x + (previous − x) ⊙ (base + W h)   for five mixes, each with its base, W and h
// A workgroup makes a block of channels of one mix for one token. SHARE threads share a row of W: rows are short, a few
// units of 16 bytes, and neighbours then read what lies together.
#import formats/$FORMAT
#import invocation
#import grid

const MIXES: u32 = 5u;
const SHARE: u32 = 4u;
const CHANNELS: u32 = 64u;
const THREADS: u32 = CHANNELS * SHARE;

struct Mix {
    // The first row of its W, and the first vec4 of its h.
    row: u32,
    hidden: u32,
    padding0: u32,
    padding1: u32,
}

struct Params {
    mixes: array<Mix, 5>,
    tokens: u32,
    width: u32,
    // Columns of W, and the units that hold them.
    rank: u32,
    units: u32,
    // The first elements of x and of the row before it.
    x: u32,
    previous: u32,
    // Between tokens: in elements for x and y, in vec4s for h.
    stride: u32,
    hidden_stride: u32,
    // Between the mixes of y, in elements.
    block: u32,
    padding0: u32,
    padding1: u32,
    padding2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// Both rows.
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> hidden: array<vec4<f32>>;
// A row a mix.
@group(0) @binding(3) var<storage, read> base: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// Whether the last unit of a row may reach past its rank: what lies there in h is not a number of ours.
override RAGGED: bool = false;

// Sums of the threads of a row.
var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let blocks = (params.width + CHANNELS - 1u) / CHANNELS;
    let item = flat_workgroup(at);
    let token = item / (blocks * MIXES);
    if token >= params.tokens {
        return;
    }
    let number = item / blocks % MIXES;
    let first = item % blocks * CHANNELS;
    let mix = params.mixes[number];
    // The first threads have a channel each.
    let channel = first + at.thread;
    let live = at.thread < CHANNELS && channel < params.width;
    let place = token * params.stride + channel;
    var current = 0.0;
    var before = 0.0;
    var weight = 0.0;
    if live {
        current = x[params.x + place];
        before = x[params.previous + place];
        weight = base[number * params.width + channel];
    }
    // Rows past the end repeat the last one.
    let row = mix.row + min(first + at.thread / SHARE, params.width - 1u);
    let h = mix.hidden + token * params.hidden_stride;
    var sum = 0.0;
    for (var unit = at.thread % SHARE; unit < params.units; unit += SHARE) {
        let values = weight_unit(row, unit, params.units);
        for (var p = 0u; p < PARTS; p++) {
            let part = unit * PARTS + p;
            var value = hidden[h + part];
            if RAGGED {
                let column = vec4(4u * part) + vec4(0u, 1u, 2u, 3u);
                value = select(vec4(0.0), value, column < vec4(params.rank));
            }
            sum += dot(values[p], value);
        }
    }
    sums[at.thread] = sum;
    workgroupBarrier();
    if live {
        for (var p = 0u; p < SHARE; p++) {
            weight += sums[at.thread * SHARE + p];
        }
        y[number * params.block + place] = current + (before - current) * weight;
    }
}
