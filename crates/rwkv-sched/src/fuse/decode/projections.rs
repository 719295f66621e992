//! The products that read the results of one token shift: the large matrices, and the first halves of low-rank pairs.

use super::{Kernel, grouping::Grouping};
use crate::{ValueId, fuse::Step};

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
