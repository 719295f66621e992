// The next token of each sequence, as src/sampling/ says: biases and penalties, top-k, top-p, min-p, and the draw. A
// workgroup a row of logits, no sort: a cut-off is searched over the bits of the gaps (those of numbers that are not
// negative are ordered like the numbers), first in a few wide bins that each thread sums for itself, then digit by digit
// in integers, so that the order of additions does not matter. The draw goes by ascending id.
#import scan/$LANES
#import grid
#import batch
#import sampling/random
#import sampling/row
#import sampling/search
#import sampling/cut
#import sampling/pick
#import sampling/penalties

struct Params {
    draws: u32,
    vocabulary: u32,
    // From one row of logits to the next, in vec4s.
    stride: u32,
    // How many settings and memories, biases of all of them, and tokens of the batch.
    slots: u32,
    biases: u32,
    tokens: u32,
    // Words and entries of a sequence's memory.
    memory: u32,
    capacity: u32,
    // Rows and columns of the ring of ids.
    steps: u32,
    columns: u32,
    // 0.
    zero: u32,
}

struct Draw {
    // Which settings and memory; NONE (as any that there is not) for a row that is not to be sampled.
    slot: u32,
    // Where the id goes in the batch's tokens; NONE for nowhere.
    token: u32,
    // Of the ring.
    column: u32,
    padding: u32,
}

struct Settings {
    // 1 / temperature, or 0 for the most probable token.
    inverse: f32,
    // What gaps are multiplied by for top-p.
    filter_inverse: f32,
    // The bits of the widest gap that min-p keeps.
    widest: u32,
    top_p: f32,
    top_k: u32,
    presence: f32,
    frequency: f32,
    decay: f32,
    seed: vec2<u32>,
    // 1 when top-p is a share of what top-k leaves.
    after_top_k: u32,
    first_bias: u32,
    biases: u32,
    padding0: u32,
    padding1: u32,
    padding2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> draws: array<Draw>;
@group(0) @binding(2) var<storage, read> settings: array<Settings>;
// Tokens and the bits of their biases.
@group(0) @binding(3) var<storage, read> biases: array<vec2<u32>>;
// A bit for each token: whether it is counted when it was chosen.
@group(0) @binding(4) var<storage, read> counted: array<u32>;
@group(0) @binding(5) var<storage, read_write> memory: array<u32>;
@group(0) @binding(6) var<storage, read_write> logits: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> tokens: array<Token>;
@group(0) @binding(8) var<storage, read_write> ids: array<u32>;

const NONE: u32 = 0xFFFFFFFFu;
// In the place of an id; the memory keeps it, and the sequence stays as it is from then on.
const BROKEN: u32 = 0xFFFFFFFFu;
const NOTHING_POSSIBLE: u32 = 0xFFFFFFFEu;
const MEMORY_FULL: u32 = 0xFFFFFFFDu;

// Words of a sequence's memory before its entries of three words: token, count, at.
const STEP: u32 = 0u;
const ACCEPTED: u32 = 2u;
const SEEN: u32 = 3u;
const FAILURE: u32 = 4u;
const ENTRIES: u32 = 8u;

// The largest logit that a thread has seen, and the first quad that has it.
struct Best {
    most: f32,
    quad: u32,
    // The largest bits without their sign: above those of infinity for what is no number.
    magnitude: u32,
}

fn better(best: Best, first: u32, raw: array<vec4<u32>, AHEAD>) -> Best {
    var found = best;
    for (var i = 0u; i < AHEAD; i++) {
        let quad = first + i * SIZE;
        let bits = select(vec4(MINUS_INFINITY), raw[i], ids_of(quad) < vec4(params.vocabulary));
        let values = bitcast<vec4<f32>>(bits);
        let magnitudes = bits & vec4(0x7FFFFFFFu);
        let magnitude = max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
        found.magnitude = max(found.magnitude, magnitude);
        let most = max(max(values.x, values.y), max(values.z, values.w));
        // Of the largest only: what is below a subnormal number is not above 0.
        let flushed = bitcast<f32>(flush(bitcast<u32>(most)));
        if flushed > found.most {
            found.most = flushed;
            found.quad = quad;
        }
    }
    return found;
}

// The first of a quad's tokens whose logit is the largest of all.
fn first_of(quad: u32) -> u32 {
    let bits = flush4(logits[row + quad]);
    let ids = ids_of(quad);
    let equal = (bitcast<vec4<f32>>(bits) == vec4(largest)) & (ids < vec4(params.vocabulary));
    let chosen = select(vec4(NONE), ids, equal);
    return min(min(chosen.x, chosen.y), min(chosen.z, chosen.w));
}

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    if item >= params.draws {
        return;
    }
    let draw = draws[item];
    if draw.slot >= params.slots || draw.column >= params.columns {
        return;
    }
    // A local that never changes: that all threads take the same way to a barrier must be plain to a browser's compiler.
    let asked = settings[draw.slot];
    setting = asked;
    row = item * params.stride;
    quads = (params.vocabulary + 3u) / 4u;
    let base = draw.slot * params.memory;
    let accepted = memory[base + ACCEPTED];
    let seen = min(memory[base + SEEN], params.capacity);
    // Asked for here, where nothing waits for them.
    let step = memory[base + STEP];
    let step_high = memory[base + STEP + 1u];
    let failed_before = memory[base + FAILURE];

    // The tokens of one place in their quads at a time: threads that write parts of one vector may undo each other's.
    for (var part = 0u; part < 4u; part++) {
        for (var i = at.thread; i < min(asked.biases, params.biases); i += SIZE) {
            let bias = biases[min(asked.first_bias + i, params.biases - 1u)];
            if bias.x >= params.vocabulary || bias.x % 4u != part {
                continue;
            }
            if bias.y != MINUS_INFINITY {
                shift_logit(bias.x, bitcast<f32>(bias.y));
            } else if (logits[row + bias.x / 4u][part] & EXPONENT) != EXPONENT {
                logits[row + bias.x / 4u][part] = MINUS_INFINITY;
            }
        }
        storageBarrier();
    }
    for (var part = 0u; part < 4u; part++) {
        // Without penalties nothing waits for the memory.
        if asked.presence != 0.0 || asked.frequency != 0.0 {
            for (var i = at.thread; i < seen; i += SIZE) {
                let entry = base + ENTRIES + i * 3u;
                let token = memory[entry];
                if token < params.vocabulary && token % 4u == part {
                    let frequency = product(decayed(entry, accepted), asked.frequency, params.zero);
                    shift_logit(token, -(asked.presence + frequency));
                }
            }
        }
        storageBarrier();
    }

    // Infinity is no constant expression.
    var best = Best(bitcast<f32>(MINUS_INFINITY ^ params.zero), NONE, 0u);
    for (var first = at.thread; first < quads; first += 2u * BLOCK) {
        let near = load(first);
        let far = load(first + BLOCK);
        best = better(better(best, first, near), first + BLOCK, far);
    }
    let broken = best.magnitude > EXPONENT || bitcast<u32>(best.most) == EXPONENT;
    largest = workgroup_max(select(-LARGEST, best.most, best.quad != NONE), at);
    workgroupBarrier();
    if at.thread == 0u {
        atomicStore(&first_place, NONE);
        atomicStore(&last_place, 0u);
    }
    workgroupBarrier();
    if best.quad != NONE && best.most == largest {
        atomicMin(&first_place, first_of(best.quad));
    }
    if broken {
        atomicMax(&last_place, 1u);
    }
    workgroupBarrier();
    var chosen = atomicLoad(&first_place);
    var failure = select(0u, NOTHING_POSSIBLE, chosen == NONE);
    failure = select(failure, BROKEN, atomicLoad(&last_place) != 0u);

    if asked.inverse > 0.0 {
        widest = EXPONENT;
        last_gap = EXPONENT;
        last_id = NONE;
        if asked.after_top_k == 0u && asked.top_p < 1.0 {
            widest = cut(WEIGHT, asked.top_p, at).gap;
        }
        if asked.top_k > 0u && asked.top_k < params.vocabulary {
            let last = cut(COUNT, f32(asked.top_k), at);
            last_gap = last.gap;
            // Not all of those that tie for the last place: the lower ids.
            if last.rest < last.here {
                last_id = pick(TIE, last.rest - 0.5, at);
            }
        }
        if asked.after_top_k != 0u && asked.top_p < 1.0 {
            widest = cut(WEIGHT, asked.top_p, at).gap;
        }
        widest = min(widest, asked.widest);
        let u = uniform_number(asked.seed, vec2<u32>(step, step_high));
        chosen = pick(CHANCE, u, at);
    }

    // The entry of the chosen token.
    workgroupBarrier();
    if at.thread == 0u {
        atomicStore(&first_place, NONE);
    }
    workgroupBarrier();
    for (var i = at.thread; i < seen; i += SIZE) {
        if memory[base + ENTRIES + i * 3u] == chosen {
            atomicMin(&first_place, i);
        }
    }
    workgroupBarrier();
    if at.thread != 0u {
        return;
    }
    var place = atomicLoad(&first_place);
    if place == NONE && seen == params.capacity && failure == 0u {
        failure = MEMORY_FULL;
    }
    if failed_before != 0u {
        failure = failed_before;
    }
    ids[step % params.steps * params.columns + draw.column] = select(chosen, failure, failure != 0u);
    if draw.token < params.tokens {
        tokens[draw.token].id = select(chosen, 0u, failure != 0u);
    }
    if failure != 0u {
        memory[base + FAILURE] = failure;
        return;
    }
    var count = 0.0;
    if place == NONE {
        place = seen;
        memory[base + SEEN] = seen + 1u;
    } else {
        count = decayed(base + ENTRIES + place * 3u, accepted + 1u);
    }
    let counts = (counted[chosen / 32u] >> (chosen % 32u)) & 1u;
    let entry = base + ENTRIES + place * 3u;
    memory[entry] = chosen;
    memory[entry + 1u] = bitcast<u32>(count + f32(counts));
    memory[entry + 2u] = accepted + 1u;
    memory[base + ACCEPTED] = accepted + 1u;
    memory[base + STEP] = step + 1u;
    if step == NONE {
        memory[base + STEP + 1u] = step_high + 1u;
    }
}
