// Something to time.
var<workgroup> sum: atomic<u32>;

@compute @workgroup_size(64)
fn main() {
    atomicAdd(&sum, 1u);
}
