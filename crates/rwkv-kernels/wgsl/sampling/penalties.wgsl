// Biases and penalties, and how counts decay.
#import sampling/numbers

// Adds to a logit unless it is infinite or NaN; what is finite stays finite.
fn shift_logit(id: u32, by: f32) {
    let raw = flush(logits[row + id / 4u][id % 4u]);
    if (raw & EXPONENT) != EXPONENT {
        let sum = clamp(bitcast<f32>(raw) + by, -LARGEST, LARGEST);
        logits[row + id / 4u][id % 4u] = bitcast<u32>(sum);
    }
}

// The count of an entry after all tokens up to number `now`.
fn decayed(entry: u32, now: u32) -> f32 {
    let factor = power(setting.decay, now - memory[entry + 2u]);
    return bitcast<f32>(flush(bitcast<u32>(product(bitcast<f32>(memory[entry + 1u]), factor, params.zero))));
}
