// A workgroup that has some rows of a head's state [value, key] in registers for a whole span: rows need nothing of each
// other. Teams of SHARE threads have ROWS rows each, a thread every SHARE-th vec4 of their keys, so that what it reads of a
// token serves ROWS rows. STAGE tokens at a time are brought to workgroup memory; meanwhile the next ones are on their
// way to registers. HEAD is the head size rounded up: the rows and channels past the end are zero and stay zero.
// Whoever imports this has `params`, `spans`, `v` and `state`, and the VECTORS that are staged of a token, and imports how
// they are brought and staged: recurrence/channels or recurrence/blocks.
#import batch
#import grid
#import dot_onto
#import recurrence/$LANES

const HEAD: u32 = $HEAD;
const ROWS: u32 = $ROWS;
const SHARE: u32 = $TEAM;
const THREADS: u32 = min(u32($THREADS), HEAD * SHARE / ROWS);
// Rows of a workgroup, and workgroups of a head.
const OWN_ROWS: u32 = THREADS / SHARE * ROWS;
const GROUPS: u32 = HEAD / OWN_ROWS;
// Vec4s of a row that a thread has, and of a token's vector.
const QUADS: u32 = HEAD / 4u / SHARE;
const WIDE: u32 = HEAD / 4u;
// Tokens staged at once, a multiple of 4, and fours of them.
const STAGE: u32 = u32($STAGE) / HEAD;
const FOURS: u32 = STAGE / 4u;

alias Tile = array<vec4<f32>, ROWS * QUADS>;

// Of four tokens a row of this workgroup.
var<workgroup> values: array<vec4<f32>, FOURS * OWN_ROWS>;

// A span, and this thread's part of the work on it.
struct Place {
    thread: u32,
    lane: u32,
    part: u32,
    // The head's first channel, and the first element of its state.
    channel: u32,
    base: u32,
    // The workgroup's first row in the head, the team's among those, and the one that this thread answers for.
    first_row: u32,
    team_row: u32,
    own_row: u32,
    // The span's first token, and the one past its end.
    start: u32,
    end: u32,
}

// Where there is nothing to do, the span is empty.
fn place_of(at: Invocation) -> Place {
    var place: Place;
    let item = flat_workgroup(at);
    let head = item / GROUPS % params.heads;
    let index = item / GROUPS / params.heads;
    place.first_row = item % GROUPS * OWN_ROWS;
    if index >= params.spans || place.first_row >= params.head_size {
        return place;
    }
    let span = spans[index];
    if !in_page(params.page, span.slot) {
        return place;
    }
    let size = params.head_size;
    place.thread = thread_of(at);
    place.lane = lane_of(at);
    place.part = place.thread % SHARE;
    place.channel = head * size;
    place.base = ((span.slot - params.page.first_slot) * params.heads + head) * size * size;
    place.team_row = place.thread / SHARE * ROWS;
    place.own_row = place.team_row + place.part / (SHARE / ROWS);
    place.start = span.start;
    place.end = span.start + span.length;
    return place;
}

fn read_state(place: Place) -> Tile {
    let size = params.head_size;
    var s: Tile;
    for (var i = 0u; i < ROWS; i++) {
        let row = place.first_row + place.team_row + i;
        for (var j = 0u; j < QUADS; j++) {
            let key = (place.part + j * SHARE) * 4u;
            let at = place.base + row * size + key;
            if row < size {
                if key < size {
                    s[i * QUADS + j].x = state[at];
                }
                if key + 1u < size {
                    s[i * QUADS + j].y = state[at + 1u];
                }
                if key + 2u < size {
                    s[i * QUADS + j].z = state[at + 2u];
                }
                if key + 3u < size {
                    s[i * QUADS + j].w = state[at + 3u];
                }
            }
        }
    }
    return s;
}

fn write_state(place: Place, tile: Tile) {
    let size = params.head_size;
    var s = tile;
    for (var i = 0u; i < ROWS; i++) {
        let row = place.first_row + place.team_row + i;
        for (var j = 0u; j < QUADS; j++) {
            let key = (place.part + j * SHARE) * 4u;
            let at = place.base + row * size + key;
            if row < size {
                if key < size {
                    state[at] = s[i * QUADS + j].x;
                }
                if key + 1u < size {
                    state[at + 1u] = s[i * QUADS + j].y;
                }
                if key + 2u < size {
                    state[at + 2u] = s[i * QUADS + j].z;
                }
                if key + 3u < size {
                    state[at + 3u] = s[i * QUADS + j].w;
                }
            }
        }
    }
}
