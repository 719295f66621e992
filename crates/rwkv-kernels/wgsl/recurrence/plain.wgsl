// Without subgroup operations: a thread has all keys of its row, and nobody to add up with.
#import invocation

fn thread_of(at: Invocation) -> u32 {
    return at.thread;
}

fn lane_of(at: Invocation) -> u32 {
    return 0u;
}

fn row_sum(values: array<f32, ROWS>, part: u32) -> f32 {
    return values[0];
}

fn of_row(value: f32, row: u32, lane: u32) -> f32 {
    return value;
}
