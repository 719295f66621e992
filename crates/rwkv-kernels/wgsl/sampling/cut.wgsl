// The gap where top-k or top-p ends.
#import sampling/row
#import sampling/search

const DIGITS: u32 = 256u;
// Gaps that are kept in workgroup memory once so few are left.
const HELD: u32 = 1024u;

// 64 bits each.
var<workgroup> digits_low: array<atomic<u32>, DIGITS>;
var<workgroup> digits_high: array<atomic<u32>, DIGITS>;
var<workgroup> held: array<u32, HELD>;
var<workgroup> held_count: atomic<u32>;

// Where the wide bin starts.
fn bin_start(bin: u32) -> u32 {
    let starts = array<f32, 4>(0.0, 1.0, 3.0, 7.0);
    return select(bitcast<u32>(starts[min(bin, 3u)]), EXPONENT + 1u, bin > 3u);
}

fn bin_of(gap: u32) -> u32 {
    return u32(gap >= bitcast<u32>(1.0)) + u32(gap >= bitcast<u32>(3.0)) + u32(gap >= bitcast<u32>(7.0));
}

// Adds to the digit of a gap: fixed point, 2³¹ for the weight 1 / scale.
fn add_digit(kind: u32, gap: u32, low: u32, shift: u32, scale: f32) {
    var fixed = 0x80000000u;
    if kind == WEIGHT {
        fixed = u32(min(weight(gap, setting.filter_inverse) * scale * 2147483648.0, 4294967040.0));
    }
    let digit = (gap - low) >> shift;
    let old = atomicAdd(&digits_low[digit], fixed);
    if old + fixed < old {
        atomicAdd(&digits_high[digit], 1u);
    }
}

struct Cut {
    gap: u32,
    // How far into the tokens with this gap the goal lies, and how much they are together.
    rest: f32,
    here: f32,
}

// The gap at which the sum of values down the ranking reaches `goal`, for weights a share of their total.
fn cut(kind: u32, goal: f32, at: Invocation) -> Cut {
    for (var i = 0u; i < COLUMNS; i++) {
        columns[i * SIZE + at.thread] = 0.0;
    }
    for (var first = at.thread; first < quads; first += BLOCK) {
        let raw = load(first);
        for (var i = 0u; i < AHEAD; i++) {
            let quad = first + i * SIZE;
            let gaps = gaps_of(quad, raw[i]);
            for (var lane = 0u; lane < 4u; lane++) {
                columns[bin_of(gaps[lane]) * SIZE + at.thread] += value_of(kind, gaps[lane], quad * 4u + lane);
            }
        }
    }
    workgroupBarrier();
    let part = column_part(at);
    let scan = workgroup_scan(part, at);
    var rest = select(goal, goal * scan.y, kind == WEIGHT);
    let bin = search(part, scan.x, rest, false, at).rank / (SIZE / COLUMNS);
    rest -= before_column(bin, scan.x, part, at);

    var low = bin_start(bin);
    var high = bin_start(bin + 1u);
    // The weights of a bin may be tiny: as large a power of two as keeps them below 1.
    var scale = 1.0;
    if kind == WEIGHT {
        let exponent = min(bitcast<f32>(low) * setting.filter_inverse * 1.4426950408889634, 126.0);
        scale = bitcast<f32>((u32(exponent) + 127u) << 23u);
    }
    rest *= scale;
    var here = 0.0;
    var holds = false;
    // 31 bits of a gap are four digits at most.
    for (var round = 0u; round < 4u; round++) {
        let shift = max(32u - countLeadingZeros(high - low - 1u), 8u) - 8u;
        holds = round > 1u && (holds || atomicLoad(&held_count) <= HELD);
        workgroupBarrier();
        if at.thread < DIGITS {
            atomicStore(&digits_low[at.thread], 0u);
            atomicStore(&digits_high[at.thread], 0u);
        }
        if at.thread == 0u && !holds {
            atomicStore(&held_count, 0u);
        }
        workgroupBarrier();
        if holds {
            for (var i = at.thread; i < min(atomicLoad(&held_count), HELD); i += SIZE) {
                if held[i] >= low && held[i] < high {
                    add_digit(kind, held[i], low, shift, scale);
                }
            }
        } else {
            for (var first = at.thread; first < quads; first += BLOCK) {
                let raw = load(first);
                for (var i = 0u; i < AHEAD; i++) {
                    let quad = first + i * SIZE;
                    let gaps = gaps_of(quad, raw[i]);
                    for (var lane = 0u; lane < 4u; lane++) {
                        let gap = gaps[lane];
                        if gap < low || gap >= high || kind == WEIGHT && !in_top_k(gap, quad * 4u + lane) {
                            continue;
                        }
                        add_digit(kind, gap, low, shift, scale);
                        // In the first round too many tokens would queue up at the counter.
                        if round > 0u {
                            let place = atomicAdd(&held_count, 1u);
                            if place < HELD {
                                held[place] = gap;
                            }
                        }
                    }
                }
            }
        }
        workgroupBarrier();
        let rank = rank_of(at);
        var value = 0.0;
        if rank < DIGITS {
            value = f32(atomicLoad(&digits_high[rank])) * 2.0 + f32(atomicLoad(&digits_low[rank])) / 2147483648.0;
        }
        let found = search(value, workgroup_scan(value, at).x, rest, false, at);
        low += found.rank << shift;
        high = min(high, low + (1u << shift));
        rest -= found.before;
        here = found.value;
    }
    // All threads have the same, which a compiler can only see of what one of them has shared.
    if at.thread == 0u {
        shared_sums = vec2<f32>(rest, here);
        shared_place = low;
    }
    let sums = workgroupUniformLoad(&shared_sums);
    return Cut(workgroupUniformLoad(&shared_place), sums.x, sums.y);
}
