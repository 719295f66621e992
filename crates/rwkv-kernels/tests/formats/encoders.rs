//! The encoders' errors beside those of ggml's. `cargo test --test formats encoders -- --nocapture` prints the ratios.

use crate::data;
use rwkv_kernels::Format;
use std::collections::BTreeMap;

/// Our squared error over the reference's may be this. It is below 1 nearly everywhere.
const RATIO: f64 = 1.02;

#[test]
fn errors_within_the_reference() {
    let sets: BTreeMap<_, _> = data::sets().into_iter().collect();
    let mut ratios: BTreeMap<Format, Vec<f64>> = BTreeMap::new();
    let lines = include_str!("reference_errors.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let [set, name, reference] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let (format, reference): (_, f64) = (
            Format::from_name(name).expect(name),
            reference.parse().unwrap(),
        );
        let values = &sets[set];
        let mut blocks = vec![0xa5; format.row_bytes(values.len()).unwrap()];
        format.spec().quantize(values, &mut blocks);
        let mut decoded = vec![f32::NAN; values.len()];
        format.spec().dequantize(&blocks, &mut decoded);
        let error: f64 = (values.iter().zip(&decoded))
            .map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
            .sum();
        assert!(
            error <= RATIO * reference,
            "{set} in {format}: an error of {error:e}, the reference has {reference:e}"
        );
        // The reference overflows where it is infinite.
        if reference > 0.0 && reference.is_finite() {
            ratios.entry(format).or_default().push(error / reference);
        }
    }
    for (format, ratios) in ratios {
        let [least, most] = [f64::min as fn(f64, f64) -> f64, f64::max]
            .map(|pick| ratios.iter().copied().reduce(pick).unwrap());
        println!("{format}: {least:.3} to {most:.3} of the reference's squared error");
    }
}
