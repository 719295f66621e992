// The second matrices of up to four low-rank pairs, for one channel a row of threads: Σ up[channel] ⊙ hidden. All pairs
// are one run of units, which the threads of a row share; several units are on their way at once, since a workgroup has
// a processor to itself and little else to hide the memory's latency with.

// One pair; without, it has no units.
struct Pair {
    // Units of the pairs before it.
    start: u32,
    rank: u32,
    // The first unit of its matrix, and units a row.
    weight: u32,
    units: u32,
    // The first vec4 of its hidden vectors, and those between tokens.
    hidden: u32,
    stride: u32,
    padding0: u32,
    padding1: u32,
}

// Tokens that read a weight together.
const SPANS: u32 = $SPANS;

// Units on their way at once.
const AHEAD: u32 = 4u;

// Whether the last unit of a pair may reach past its rank: what lies there in the hidden vectors is not a number of ours.
override RAGGED: bool = false;

fn pair_of(unit: u32) -> u32 {
    return u32(unit >= params.pairs[1].start) + u32(unit >= params.pairs[2].start) + u32(unit >= params.pairs[3].start);
}

// This thread's part of the four products for the tokens in `rows`.
fn up_projections(channel: u32, part: u32, rows: array<u32, SPANS>) -> array<vec4<f32>, SPANS> {
    var row_of = rows;
    var sums: array<vec4<f32>, SPANS>;
    for (var first = part; first < params.units; first += SHARE * AHEAD) {
        var weights_ahead: array<array<vec4<f32>, PARTS>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            let unit = min(first + i * SHARE, params.units - 1u);
            let pair = params.pairs[pair_of(unit)];
            weights_ahead[i] = weight_unit(0u, pair.weight + channel * pair.units + unit - pair.start, 0u);
        }
        for (var i = 0u; i < AHEAD; i++) {
            let unit = min(first + i * SHARE, params.units - 1u);
            let number = pair_of(unit);
            let pair = params.pairs[number];
            let place = (unit - pair.start) * PARTS;
            // Past the last unit there is no pair.
            let chosen = vec4(select(4u, number, first + i * SHARE < params.units)) == vec4(0u, 1u, 2u, 3u);
            for (var n = 0u; n < SPANS; n++) {
                var product = 0.0;
                for (var p = 0u; p < PARTS; p++) {
                    var value = hidden[pair.hidden + row_of[n] * pair.stride + place + p];
                    if RAGGED {
                        let column = vec4((place + p) * 4u) + vec4(0u, 1u, 2u, 3u);
                        value = select(vec4(0.0), value, column < vec4(pair.rank));
                    }
                    product += dot(weights_ahead[i][p], value);
                }
                sums[n] += select(vec4(0.0), vec4(product), chosen);
            }
        }
    }
    return sums;
}
