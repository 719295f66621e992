// Products as they are: f32 of each pair, tokens × channels.
#import lora_up/pairs

struct Params {
    tokens: u32,
    channels: u32,
    // Elements from one token's results to the next, and from one pair's to the next.
    stride: u32,
    block: u32,
    pairs: array<Pair, 4>,
}

@group(0) @binding(0) var<uniform> params: Params;
