// Functions of one value. ACTIVATION is constant when the pipeline compiles, so only one branch remains.
override ACTIVATION: u32 = 0u;

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

fn activate(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: {
            // Past ±10 tanh is ±1 in f32, and some drivers' tanh overflows there.
            return tanh(clamp(x, -10.0, 10.0));
        }
        case 2u: {
            return sigmoid(x);
        }
        case 3u: {
            let positive = max(x, 0.0);
            return positive * positive;
        }
        case 4u: {
            // RWKV-7's decay: exp(-e^(-1/2) sigmoid(x)).
            return exp(-0.6065306597126334 * sigmoid(x));
        }
        default: {
            return x;
        }
    }
}
