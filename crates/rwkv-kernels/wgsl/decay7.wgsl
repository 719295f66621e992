// The decay of RWKV-7: exp(-e^(-1/2) sigmoid(x)).
#import sigmoid

// -e^(-1/2)
const LOWEST_DECAY: f32 = -0.6065306597126334;

fn decay7(x: f32) -> f32 {
    return exp(LOWEST_DECAY * sigmoid(x));
}
