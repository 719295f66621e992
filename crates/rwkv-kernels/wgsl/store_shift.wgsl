// The last row of each span becomes what the state keeps for its next token.
#import batch
#import invocation
#import grid

struct Params {
    page: Page,
    spans: u32,
    width: u32,
    stride: u32,
    which: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> state: array<f32>;

const SIZE: u32 = 128u;

@compute @workgroup_size(SIZE)
fn main(at: Invocation) {
    let blocks = (params.width + SIZE - 1u) / SIZE;
    let item = flat_workgroup(at);
    let channel = item % blocks * SIZE + at.thread;
    if item / blocks >= params.spans || channel >= params.width {
        return;
    }
    let span = spans[item / blocks];
    // A span without tokens has no last row.
    if span.length == 0u || !in_page(params.page, span.slot) {
        return;
    }
    state[((span.slot - params.page.first_slot) * 2u + params.which) * params.width + channel] =
        x[(span.start + span.length - 1u) * params.stride + channel];
}
