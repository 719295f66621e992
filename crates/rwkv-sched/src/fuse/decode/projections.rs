//! The products that read the results of one token shift: the large matrices, and the first halves of low-rank pairs.

use super::{Kernel, grouping::Grouping};
use crate::{
    ValueId, Weight,
    fuse::{Group, Step},
};

impl Grouping<'_> {
    pub(super) fn projections(&mut self) {
        for index in 0..self.steps.len() {
            let Some(Step::Group(shift)) = &self.steps[index] else {
                continue;
            };
            if !matches!(shift.kernel, Kernel::NormShift | Kernel::Mix6(_)) {
                continue;
            }
            let mut members: Vec<usize> = shift
                .outputs
                .iter()
                .filter_map(|y| self.readers.get(y))
                .flatten()
                .copied()
                .filter(|i| {
                    self.linear(*i)
                        .is_some_and(|l| l.residual.is_none() && l.bias.is_none())
                })
                .collect();
            members.sort_unstable();
            members.dedup();
            let outputs: Vec<ValueId> = members
                .iter()
                .filter_map(|i| self.linear(*i).map(|l| l.y))
                .collect();
            if let (Some(first), true) = (members.first().copied(), members.len() > 1) {
                self.join(Kernel::Project, members, first, &outputs);
            }
        }
    }
}

impl Group {
    /// The group's products in two groups: those that `first` is true of, and the others.
    pub(crate) fn products_apart(&self, first: impl Fn(Weight) -> bool) -> [Group; 2] {
        [true, false].map(|which| {
            let products = self.products().filter(|p| first(p.weight) == which);
            let products: Vec<_> = products.cloned().collect();
            let mut inputs: Vec<ValueId> = products.iter().map(|p| p.x).collect();
            inputs.sort_unstable();
            inputs.dedup();
            Group {
                kernel: self.kernel.clone(),
                inputs,
                outputs: products.iter().map(|p| p.y).collect(),
                parts: products.into_iter().map(Step::Linear).collect(),
            }
        })
    }
}
