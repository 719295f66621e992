//! Writing a graph down: one method an operation, so that the layers read like their equations.

use super::{Domain, Graph, Node, Op, ShiftHalf, Value, ValueId};
use crate::Weight;
use rwkv_kernels::ops::{Function, Weighs};

impl Graph {
    fn push(&mut self, op: Op, inputs: &[ValueId], outputs: &[Value]) -> Vec<ValueId> {
        let first = self.values.len();
        self.values.extend_from_slice(outputs);
        let outputs: Vec<_> = (first..self.values.len()).map(ValueId).collect();
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
        });
        outputs
    }

    /// A node with one result.
    fn one(&mut self, op: Op, inputs: &[ValueId], output: Value) -> ValueId {
        let id = ValueId(self.values.len());
        self.push(op, inputs, &[output]);
        id
    }

    /// A node whose one result has the shape of its first input.
    fn like(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let shape = self.value(inputs[0]);
        self.one(op, inputs, shape)
    }

    pub(crate) fn embed(&mut self, table: Weight, width: usize) -> ValueId {
        self.one(
            Op::Embed { table },
            &[],
            Value {
                domain: Domain::Tokens,
                width,
            },
        )
    }

    pub(crate) fn layer_norm(
        &mut self,
        x: ValueId,
        weight: Weight,
        bias: Weight,
        epsilon: f32,
    ) -> ValueId {
        let group = self.value(x).width;
        self.like(
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            },
            &[x],
        )
    }

    pub(crate) fn group_norm(
        &mut self,
        x: ValueId,
        weight: Weight,
        bias: Weight,
        group: usize,
        epsilon: f32,
    ) -> ValueId {
        self.like(
            Op::Norm {
                weight,
                bias,
                group,
                epsilon,
            },
            &[x],
        )
    }

    pub(crate) fn token_shift<const N: usize>(
        &mut self,
        x: ValueId,
        layer: usize,
        half: ShiftHalf,
        weighs: Weighs,
        mixes: [Weight; N],
    ) -> [ValueId; N] {
        let first = self.values.len();
        let shape = self.value(x);
        self.push(
            Op::TokenShift {
                layer,
                half,
                weighs,
                mixes: mixes.to_vec(),
            },
            &[x],
            &[shape; N],
        );
        std::array::from_fn(|i| ValueId(first + i))
    }

    pub(crate) fn previous(&mut self, x: ValueId, layer: usize, half: ShiftHalf) -> ValueId {
        self.like(Op::Previous { layer, half }, &[x])
    }

    pub(crate) fn matmul(&mut self, x: ValueId, weight: Weight, rows: usize) -> ValueId {
        let domain = self.value(x).domain;
        self.one(
            Op::MatMul { weight },
            &[x],
            Value {
                domain,
                width: rows,
            },
        )
    }

    pub(crate) fn add_vector(&mut self, x: ValueId, vector: Weight) -> ValueId {
        self.like(Op::AddVector { vector }, &[x])
    }

    pub(crate) fn apply(&mut self, function: Function, x: ValueId) -> ValueId {
        self.like(Op::Apply(function), &[x])
    }

    pub(crate) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.like(Op::Add, &[a, b])
    }

    pub(crate) fn multiply(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.like(Op::Multiply, &[a, b])
    }

    pub(crate) fn lerp(&mut self, a: ValueId, b: ValueId, t: ValueId) -> ValueId {
        self.like(Op::Lerp, &[a, b, t])
    }

    pub(crate) fn lerp_vector(&mut self, a: ValueId, b: ValueId, vector: Weight) -> ValueId {
        self.like(Op::LerpVector { vector }, &[a, b])
    }

    /// `e` has as many columns for each of `x`'s as the result has.
    pub(crate) fn token_matmul(&mut self, x: ValueId, e: ValueId) -> ValueId {
        let Value { domain, width } = self.value(x);
        let width = self.value(e).width / width.max(1);
        self.one(Op::TokenMatMul, &[x, e], Value { domain, width })
    }

    /// `inputs`: k, v.
    pub(crate) fn wkv4(
        &mut self,
        layer: usize,
        decay: Weight,
        bonus: Weight,
        inputs: [ValueId; 2],
    ) -> ValueId {
        let op = Op::Wkv4 {
            layer,
            decay,
            bonus,
        };
        self.like(op, &inputs)
    }

    /// `inputs`: r, k, v; the decay is a vector, version 5's.
    pub(crate) fn wkv5(
        &mut self,
        layer: usize,
        head_size: usize,
        decay: Weight,
        bonus: Weight,
        inputs: [ValueId; 3],
    ) -> ValueId {
        let op = Op::Wkv6 {
            layer,
            head_size,
            decay: Some(decay),
            bonus,
        };
        self.like(op, &inputs)
    }

    /// `inputs`: r, k, v, w.
    pub(crate) fn wkv6(
        &mut self,
        layer: usize,
        head_size: usize,
        bonus: Weight,
        inputs: [ValueId; 4],
    ) -> ValueId {
        let op = Op::Wkv6 {
            layer,
            head_size,
            decay: None,
            bonus,
        };
        self.like(op, &inputs)
    }

    /// The replacement key and the removal key.
    pub(crate) fn keys7(
        &mut self,
        k: ValueId,
        a: ValueId,
        removal: Weight,
        replacement: Weight,
        head_size: usize,
    ) -> [ValueId; 2] {
        let first = self.values.len();
        let shape = self.value(k);
        self.push(
            Op::Keys7 {
                removal,
                replacement,
                head_size,
            },
            &[k, a],
            &[shape; 2],
        );
        [ValueId(first), ValueId(first + 1)]
    }

    /// `inputs`: r, w, replacement key, removal key, v, a.
    pub(crate) fn wkv7(&mut self, layer: usize, head_size: usize, inputs: [ValueId; 6]) -> ValueId {
        self.like(Op::Wkv7 { layer, head_size }, &inputs)
    }

    /// `inputs`: x, r, k, v.
    pub(crate) fn bonus(
        &mut self,
        weight: Weight,
        head_size: usize,
        inputs: [ValueId; 4],
    ) -> ValueId {
        self.like(Op::Bonus { weight, head_size }, &inputs)
    }

    pub(crate) fn select(&mut self, x: ValueId) -> ValueId {
        let width = self.value(x).width;
        self.one(
            Op::Select,
            &[x],
            Value {
                domain: Domain::Outputs,
                width,
            },
        )
    }

    /// What follows is another layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layers.push(self.nodes.len());
    }

    pub(crate) fn finish(&mut self, logits: ValueId) {
        self.results = vec![logits];
    }
}
