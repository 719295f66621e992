//! Norms with the token shifts that follow them; and the embedding's.

use super::{Kernel, grouping::Grouping};
use crate::{Op, ValueId};

impl Grouping<'_> {
    pub(super) fn norms(&mut self) {
        for index in 0..self.steps.len() {
            let Some((Op::Norm { group, .. }, x, y)) = self.node(index) else {
                continue;
            };
            let (x, y) = (x[0], y[0]);
            if *group != self.graph.value(y).width {
                continue;
            }
            if let Some(embed) = self.maker.get(&x).copied()
                && matches!(self.node(embed), Some((Op::Embed { .. }, ..)))
            {
                self.join(Kernel::EmbedNorm, vec![embed, index], index, &[y]);
                continue;
            }
            let Some(shift) = self.only_reader(y) else {
                self.shared(index, y);
                continue;
            };
            let Some((Op::TokenShift { .. }, _, mixed)) = self.node(shift) else {
                continue;
            };
            self.join(Kernel::NormShift, vec![index, shift], shift, mixed);
        }
    }

    /// The norm at `index` whose result `y` others than its shift read too: version 6's, with the row before it and the
    /// one mix that is fixed, and version 7a's. It takes the norm's place, before all who read it.
    fn shared(&mut self, index: usize, y: ValueId) {
        let readers = self.readers.get(&y).into_iter().flatten();
        let mut operations = readers.filter_map(|i| Some((*i, self.node(*i)?)));
        let found = operations.find_map(|(shift, (op, _, made))| match op {
            Op::TokenShift { .. } => {
                let outputs = made.iter().copied().chain([y]).collect();
                Some((vec![index, shift], outputs))
            }
            Op::Previous { .. } => {
                let previous = *made.first()?;
                let readers = self.readers.get(&previous)?;
                let (lerp, base) = readers.iter().find_map(|i| match self.node(*i)? {
                    (Op::LerpVector { .. }, of, base) if *of == [y, previous] => {
                        Some((*i, *base.first()?))
                    }
                    _ => None,
                })?;
                Some((vec![index, shift, lerp], vec![base, y, previous]))
            }
            _ => None,
        });
        if let Some((members, outputs)) = found {
            self.join(Kernel::NormShift, members, index, &outputs);
        }
    }
}
