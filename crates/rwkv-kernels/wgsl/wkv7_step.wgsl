// RWKV-7's time mix between its projections in a step in which every span is one token. A workgroup a head and SPANS spans.
#import step/wkv7

@group(0) @binding(7) var<storage, read_write> y: array<f32>;

fn emit(token: u32, head: u32, row: u32, value: f32) {
    y[token * STRIDE + head * HEAD_SIZE + row] = value;
}

// A head has one workgroup for a span.
fn state_read() {}

fn count_reader(head: u32, thread: u32) {}

fn keeps_state(head: u32, thread: u32) -> bool {
    return true;
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let item = flat_workgroup(at);
    time_mix(thread_of(at), item % HEADS, item / HEADS * SPANS);
}
