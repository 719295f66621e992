// SF4: codes into the quantiles of a Student's t-distribution, scaled to −1 … 1 (src/formats/codebook.rs).
#import formats/codebook

const TABLE = array<f32, 16>(
    -1.0, -0.628, -0.455, -0.334, -0.237, -0.153, -0.075, 0.0,
    0.066, 0.133, 0.205, 0.284, 0.376, 0.491, 0.657, 1.0,
);
