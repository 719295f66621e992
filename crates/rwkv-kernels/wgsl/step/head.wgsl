// A workgroup of a head in a step in which every span is one token: SHARE threads a row of the state, each with every
// SHARE-th vec4 of it in registers. HEAD is the head size rounded up: the rows and channels past the end are zero.
// A head of 128 has half the threads a row, so that no workgroup is larger than that of a head of 64.
// Whoever imports this has `params.spans`.
//
// What never changes for a model is an override, so that the addresses of all that does not depend on the batch are there
// at once: a workgroup has a processor to itself, and each load that waits for another one costs the memory's latency.
#import step/$LANES

const HEAD: u32 = $HEAD;
#ifdef ROWS_4
// A thread has parts of four rows, which 4 threads share, or 8 in heads of 128.
const SHARE: u32 = max(HEAD / 16u, 4u);
const THREADS: u32 = HEAD / 4u * SHARE;
#else
const THREADS: u32 = min(HEAD, 64u) * $SHARE;
const SHARE: u32 = THREADS / HEAD;
#endif
// Vec4s of a row that a thread has.
const QUADS: u32 = HEAD / 4u / SHARE;

override HEADS: u32 = 1u;
// A multiple of 4.
override HEAD_SIZE: u32 = 4u;
// Channels, and elements from one row of activations to the next.
override WIDTH: u32 = HEADS * HEAD_SIZE;
override STRIDE: u32 = (WIDTH + 7u) / 8u * 8u;
// Whether the grid has no workgroups or spans past the end.
override EXACT: bool = false;

// A thread's place: the row, and which of those that share it.
struct Place {
    row: u32,
    part: u32,
}

fn place_of(thread: u32) -> Place {
    return Place(thread / SHARE, thread % SHARE);
}

// By row, what is normed.
var<workgroup> head_values: array<f32, HEAD>;

// Where a channel's vec4 lies: those of channels 4 i of all i, then of 4 i + 1 and so on, so that threads with one vec4 of
// a row each do not meet in a bank.
fn channel_place(channel: u32) -> u32 {
    return channel % 4u * (HEAD / 4u) + channel / 4u;
}

// The vec4s of a state before `row` of `head` of the slot that is `index`-th in its page.
fn state_row(index: u32, head: u32, row: u32) -> u32 {
    return ((index * HEADS + head) * HEAD_SIZE + row) * (HEAD_SIZE / 4u);
}

// The row of a span's token, which has its number; spans past the end repeat the last one.
fn token_of(span: u32) -> u32 {
    if EXACT {
        return span;
    }
    return min(span, params.spans - 1u);
}
