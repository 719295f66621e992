//! The recurrence of RWKV-5 and RWKV-6 with what is around it: version 6's decay before it, and after it the norm of each
//! head and, from version 5.1 on, the gate.

use super::{
    Kernel,
    grouping::{Found, Grouping},
    pairs::{FoundPair, Pair},
};
use crate::{Lora, Op, ValueId, Weight};
use rwkv_kernels::ops::Function;

/// What it reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recurrence6 {
    pub(crate) layer: usize,
    pub(crate) head_size: usize,
    pub(crate) epsilon: f32,
    pub(crate) r: ValueId,
    pub(crate) k: ValueId,
    pub(crate) v: ValueId,
    /// Version 6's pair.
    pub(crate) decay: Option<Pair>,
    pub(crate) gate: Option<ValueId>,
    /// The decay or what version 6's pair adds to, the weight of the current token, the norm's weight and bias.
    pub(crate) vectors: Vec<Weight>,
}

impl Grouping<'_> {
    /// What stands around the recurrence at `index`.
    pub(super) fn recurrence6(&self, index: usize) -> Option<Found> {
        let (
            Op::Wkv6 {
                layer,
                head_size,
                decay,
                bonus,
            },
            inputs,
            outputs,
        ) = self.node(index)?
        else {
            return None;
        };
        let mut members = vec![index];
        let ([r, k, v], pair, decay) = match (inputs, decay) {
            ([r, k, v], Some(decay)) => ([*r, *k, *v], None, *decay),
            ([r, k, v, w], None) => {
                let FoundPair { pair, at, bias } = self.pair(*w, Lora::Decay, Function::Decay6)?;
                members.push(at);
                ([*r, *k, *v], Some(pair), bias?)
            }
            _ => return None,
        };
        let norm = self.only_reader(*outputs.first()?)?;
        let (
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            },
            _,
            normed,
        ) = self.node(norm)?
        else {
            return None;
        };
        members.push(norm);
        // Without a gate, the output projection follows.
        let gate = self.only_reader(*normed.first()?).and_then(|last| {
            let (Op::Multiply, factors, y) = self.node(last)? else {
                return None;
            };
            let gate = factors.iter().copied().find(|f| !normed.contains(f))?;
            Some((last, gate, y))
        });
        members.extend(gate.map(|(last, ..)| last));
        let what = Recurrence6 {
            layer: *layer,
            head_size: *head_size,
            epsilon: *epsilon,
            r,
            k,
            v,
            decay: pair,
            gate: gate.map(|(_, gate, _)| gate),
            vectors: vec![decay, *bonus, *weight, *bias],
        };
        let (at, y) = gate.map_or((norm, normed), |(last, _, y)| (last, y));
        (group == head_size).then(|| Found {
            kernel: Kernel::Recurrence6(Box::new(what)),
            members,
            at,
            outputs: y.to_vec(),
        })
    }
}
