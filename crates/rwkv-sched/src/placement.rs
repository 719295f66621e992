//! Which layers run where.

use crate::{Device, Error, Result};
use rwkv_gpu::Gpu;
use std::ops::Range;

/// Which layers of a model run on which device: each layer on one. What comes before the first layer (the embedding) is
/// where that is, and what comes after the last one (the head) where that is.
#[derive(Clone, Debug)]
pub struct Placement {
    stages: Vec<(Range<usize>, Device)>,
}

impl Placement {
    /// The layers 0 to `layers` − 1 on these devices, in this order.
    ///
    /// # Errors
    /// [`Error::Placement`] where the ranges leave a layer out, name one twice or one that the model does not have, or are
    /// empty.
    pub fn new(
        layers: usize,
        stages: impl IntoIterator<Item = (Range<usize>, Device)>,
    ) -> Result<Self> {
        let stages: Vec<_> = stages.into_iter().collect();
        let refused = |problem: String| Err(Error::Placement { problem });
        let mut next = 0;
        for (range, _) in &stages {
            let Range { start, end } = *range;
            if start >= end {
                return refused(format!("layers {start}..{end} are none"));
            }
            if start != next {
                return refused(format!(
                    "layers {start}..{end} do not follow the first {next}"
                ));
            }
            next = end;
        }
        if next != layers {
            return refused(format!("the model has {layers} layers, not {next}"));
        }
        Ok(Self { stages })
    }

    /// The first `on_gpu` of `layers` layers on `gpu`, the others on the CPU.
    ///
    /// # Errors
    /// [`Error::Placement`] for more layers than there are.
    pub fn first_on_gpu(layers: usize, on_gpu: usize, gpu: Gpu) -> Result<Self> {
        if on_gpu > layers {
            let problem = format!("the model has {layers} layers, not {on_gpu}");
            return Err(Error::Placement { problem });
        }
        let stages = [(0..on_gpu, Device::Gpu(gpu)), (on_gpu..layers, Device::Cpu)];
        Self::new(
            layers,
            stages.into_iter().filter(|(range, _)| !range.is_empty()),
        )
    }

    /// Layers and their devices, in order.
    pub fn stages(&self) -> &[(Range<usize>, Device)] {
        &self.stages
    }

    /// Layers in all.
    pub fn layers(&self) -> usize {
        self.stages.last().map_or(0, |(range, _)| range.end)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests")]

    use super::*;

    #[test]
    fn every_layer_once_and_in_order() {
        #[track_caller]
        fn check(layers: usize, ranges: &[(usize, usize)], wrong: Option<&str>) {
            let stages = ranges.iter().map(|&(start, end)| (start..end, Device::Cpu));
            match (Placement::new(layers, stages), wrong) {
                (Ok(placement), None) => assert_eq!(placement.layers(), layers),
                (Err(error), Some(part)) => {
                    let text = error.to_string();
                    assert!(text.contains(part) && !text.contains('\n'), "{text}");
                }
                (other, _) => panic!("{other:?}"),
            }
        }
        check(3, &[(0, 3)], None);
        check(3, &[(0, 1), (1, 3)], None);
        check(3, &[(0, 1), (1, 2), (2, 3)], None);
        check(3, &[], Some("3 layers, not 0"));
        check(3, &[(0, 2)], Some("3 layers, not 2"));
        check(3, &[(0, 4)], Some("3 layers, not 4"));
        check(3, &[(1, 3)], Some("1..3 do not follow the first 0"));
        check(3, &[(0, 1), (2, 3)], Some("2..3 do not follow the first 1"));
        check(3, &[(0, 2), (1, 3)], Some("1..3 do not follow the first 2"));
        check(3, &[(1, 3), (0, 1)], Some("do not follow"));
        check(3, &[(0, 0), (0, 3)], Some("0..0 are none"));
        check(3, &[(0, 3), (3, 3)], Some("3..3 are none"));
        check(3, &[(2, 0)], Some("2..0 are none"));
    }
}
