// Functions of one value. Where ACTIVATION says which, it is constant when the pipeline compiles, and only one branch
// remains.
#import decay6
#import decay7
#import sigmoid

override ACTIVATION: u32 = 0u;

// Drivers make tanh from exponentials, which cancel close to zero (llvmpipe of Mesa 22.3: 1e-4 relative at 2e-4), so
// its Taylor series up to x^11 serves below 0.4, where the next term is less than f32's rounding. Past ±10 tanh is ±1
// in f32, and some drivers' tanh overflows there.
fn accurate_tanh(x: f32) -> f32 {
    let square = x * x;
    var series = -1382.0 / 155925.0;
    series = series * square + 62.0 / 2835.0;
    series = series * square - 17.0 / 315.0;
    series = series * square + 2.0 / 15.0;
    series = series * square - 1.0 / 3.0;
    return select(tanh(clamp(x, -10.0, 10.0)), x + x * square * series, abs(x) < 0.4);
}

fn activate(x: f32) -> f32 {
    return apply_function(ACTIVATION, x);
}

fn apply_function(code: u32, x: f32) -> f32 {
    switch code {
        case 1u: {
            return accurate_tanh(x);
        }
        case 2u: {
            return sigmoid(x);
        }
        case 3u: {
            let positive = max(x, 0.0);
            return positive * positive;
        }
        case 4u: {
            return decay7(x);
        }
        case 5u: {
            return decay6(x);
        }
        case 6u: {
            // SiLU.
            return x * sigmoid(x);
        }
        default: {
            return x;
        }
    }
}
