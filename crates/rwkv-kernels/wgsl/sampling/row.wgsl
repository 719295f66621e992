// A row of logits as gaps below its largest, and what each of its tokens counts for.
#import sampling/numbers

// Loads in flight of each thread.
const AHEAD: u32 = 4u;
const BLOCK: u32 = SIZE * AHEAD;
// The gap of what is no token.
const OUTSIDE: u32 = 0x7FFFFFFFu;

// What a token counts for: 1, its weight, 1 if it is as far from the top as the last of top-k, its weight if it is kept.
const COUNT: u32 = 0u;
const WEIGHT: u32 = 1u;
const TIE: u32 = 2u;
const CHANCE: u32 = 3u;

var<private> row: u32;
var<private> quads: u32;
var<private> largest: f32;
var<private> setting: Settings;
// What is kept: gaps up to `widest`, and of top-k's last gap only ids up to `last_id`.
var<private> widest: u32;
var<private> last_gap: u32;
var<private> last_id: u32;

// The logits from quad `first` on, SIZE quads apart. Past the end something, which `gaps_of` masks.
fn load(first: u32) -> array<vec4<u32>, AHEAD> {
    var raw: array<vec4<u32>, AHEAD>;
    for (var i = 0u; i < AHEAD; i++) {
        raw[i] = logits[row + min(first + i * SIZE, quads - 1u)];
    }
    return raw;
}

fn ids_of(quad: u32) -> vec4<u32> {
    return quad * 4u + vec4<u32>(0u, 1u, 2u, 3u);
}

// How far below the largest the logits of a quad are, as bits.
fn gaps_of(quad: u32, raw: vec4<u32>) -> vec4<u32> {
    let gaps = flush4(bitcast<vec4<u32>>(vec4<f32>(largest) - bitcast<vec4<f32>>(flush4(raw))));
    let known = select(gaps, vec4<u32>(EXPONENT), raw == vec4<u32>(MINUS_INFINITY));
    return select(vec4<u32>(OUTSIDE), known, ids_of(quad) < vec4<u32>(params.vocabulary));
}

fn weight(gap: u32, inverse: f32) -> f32 {
    if gap >= EXPONENT {
        return 0.0;
    }
    return exp_of_negative(-(bitcast<f32>(gap) * inverse));
}

fn in_top_k(gap: u32, id: u32) -> bool {
    return gap < last_gap || gap == last_gap && id <= last_id;
}

fn value_of(kind: u32, gap: u32, id: u32) -> f32 {
    switch kind {
        case COUNT: {
            return select(0.0, 1.0, gap <= EXPONENT);
        }
        case WEIGHT: {
            if !in_top_k(gap, id) {
                return 0.0;
            }
            return weight(gap, setting.filter_inverse);
        }
        case TIE: {
            return select(0.0, 1.0, gap == last_gap);
        }
        default: {
            if gap > widest || !in_top_k(gap, id) {
                return 0.0;
            }
            return weight(gap, setting.inverse);
        }
    }
}
