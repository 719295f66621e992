// NF4: codes into the quantiles of a normal distribution, scaled to −1 … 1 (src/formats/codebook.rs).
#import formats/codebook

const TABLE = array<f32, 16>(
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
);
