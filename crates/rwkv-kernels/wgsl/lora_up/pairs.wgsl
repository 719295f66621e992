// The low-rank pairs whose second matrices are multiplied, and their hidden vectors. Whoever imports this has `params` with
// the `pairs` and `tokens`, and defines the TOKENS of a workgroup and the UNITS of eight that a step has of a row.
struct Pair {
    // The first vec4 of its hidden vectors, elements of one, the first unit of its matrix, and units of a row.
    hidden: u32,
    rank: u32,
    first: u32,
    units: u32,
}

@group(0) @binding(1) var<storage, read> projected: array<vec4<f32>>;

const TOKENS: u32 = $TOKENS;
const UNITS: u32 = $UNITS;

// The part of a hidden vector that a thread brings, zero past the rank: what lies there is not a number of ours.
fn fetch_x(pair: Pair, first_token: u32, unit: u32, item: u32) -> vec4<f32> {
    let token = min(first_token + item / (2u * UNITS), params.tokens - 1u);
    let quad = unit * 2u + item % (2u * UNITS);
    let stride = (pair.rank + 7u) / 8u * 2u;
    let value = projected[pair.hidden + token * stride + min(quad, stride - 1u)];
    return select(vec4(0.0), value, vec4(quad * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(pair.rank));
}
