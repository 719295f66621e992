//! Groups of steps to dispatches: which kernel does all of a group.

use super::{
    resident::is_pair,
    resolve::{Resolver, SlicedValue, half_index, missing},
    states::StatePage,
};
use crate::{
    Error, Op, Result, Weight,
    fuse::{
        GatedHeads, Group, Kernel, Mix6, MultiplyAdd, PairUps, Recurrence4, Recurrence6,
        Recurrence7, StoredShift,
    },
};
use rwkv_gpu::Dispatch;
use rwkv_kernels::{
    View,
    ops::{
        self, EmbedNorm, GatedHeadsHalves, HalfProjections, HalfRows, Map, NormShift,
        NormShiftHalves, PairEnd, Projections, Segment, ShiftRows, ShiftStore, Sliced, Stack,
        Weighs, Wkv4, Wkv6Step, Wkv7Step,
    },
};

impl Resolver<'_> {
    /// Adds the dispatches of `group` to `out`, whose last one adds up what is `sliced`.
    pub(super) fn group(
        &self,
        group: &Group,
        sliced: Option<SlicedValue<'_>>,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        match &group.kernel {
            Kernel::EmbedNorm => self.embed_norm(group, out),
            Kernel::NormShift => self.norm_shift(group, sliced, out),
            Kernel::Project => self.project(group, out),
            Kernel::NormProjects { clears } => self.norm_projects(group, *clears, out),
            Kernel::ChannelMix { y } => self.channel_mix(group, *y, out),
            Kernel::Mix6(what) => self.mix6(group, what, out),
            Kernel::Recurrence4(what) => self.recurrence4(group, what, out),
            Kernel::Recurrence6(what) => self.recurrence6(group, what, out),
            Kernel::Recurrence7(what) => self.recurrence7(group, what, out),
            Kernel::RecurrenceOutput7 { what, x } => self.recurrence_output7(group, what, *x, out),
            Kernel::MultiplyAdd(what) => self.multiply_add(group, what, out),
            Kernel::GatedHeads(what) => self.gated_heads(group, what, out),
            Kernel::PairUps(what) => self.pair_ups(group, what, out),
        }
    }

    /// The operations of `group` that stand in it as they are.
    fn operations(&self, group: &Group) -> Vec<&Op> {
        let nodes = group.nodes(self.context.model.graph());
        nodes.map(|n| &n.op).collect()
    }

    fn input(&self, group: &Group) -> Result<View<'_>> {
        let x = group.inputs.first().ok_or_else(mistake)?;
        self.activations.view(*x)
    }

    fn output(&self, group: &Group) -> Result<View<'_>> {
        let y = group.outputs.first().ok_or_else(mistake)?;
        self.activations.view(*y)
    }

    fn embed_norm(&self, group: &Group, out: &mut Vec<Dispatch>) -> Result<()> {
        let [
            Op::Embed { table },
            Op::Norm {
                weight,
                bias,
                epsilon,
                ..
            },
        ] = self.operations(group)[..]
        else {
            return Err(mistake());
        };
        out.extend(self.context.kernels.embed_norm(&EmbedNorm {
            batch: self.batch,
            table: self.matrix(*table)?,
            weight: self.vectors(&[*weight])?,
            bias: self.vectors(&[*bias])?,
            epsilon: *epsilon,
            y: self.output(group)?,
        })?);
        Ok(())
    }

    fn norm_shift(
        &self,
        group: &Group,
        sliced: Option<SlicedValue<'_>>,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let operations = self.operations(group);
        let [
            Op::Norm {
                weight,
                bias,
                epsilon,
                ..
            },
            shift @ ..,
        ] = &operations[..]
        else {
            return Err(mistake());
        };
        let (layer, half, weighs, mixes): (_, _, _, &[Weight]) = match shift {
            [
                Op::TokenShift {
                    layer,
                    half,
                    weighs,
                    mixes,
                },
            ] => (*layer, *half, *weighs, mixes),
            [Op::Previous { layer, half }, Op::LerpVector { vector }] => {
                let mixes = std::slice::from_ref(vector);
                (*layer, *half, Weighs::Previous, mixes)
            }
            _ => return Err(mistake()),
        };
        let first = group.outputs.first().ok_or_else(mistake)?;
        if let Some(first) = self.activations.halves(*first) {
            let x = self.input(group)?;
            let sliced = sliced.filter(|sliced| self.adds_slices(group, sliced, x, &first));
            let added = sliced.as_ref().and_then(|sliced| {
                let sum = &sliced.sum;
                Some((sliced.residual?, Sliced { sum, y: x }))
            });
            if added.is_some() {
                out.pop();
            }
            for page in self.context.states.pages() {
                out.push(self.context.kernels.norm_shift_halves(&NormShiftHalves {
                    batch: self.batch,
                    x: added.map_or(x, |(residual, _)| residual),
                    added: added.map(|(_, added)| added),
                    weight: self.vectors(&[*weight])?,
                    bias: self.vectors(&[*bias])?,
                    epsilon: *epsilon,
                    mix: self.vectors(mixes)?,
                    mixes: mixes.len(),
                    weighs,
                    state: page.shift(layer),
                    page: page.page(),
                    which: half_index(half),
                    y: &first,
                })?);
            }
            return Ok(());
        }
        let rows = match group.outputs.len().saturating_sub(mixes.len()) {
            0 => ShiftRows::None,
            1 => ShiftRows::Normed,
            _ => ShiftRows::NormedAndPrevious,
        };
        for page in self.context.states.pages() {
            out.push(self.context.kernels.norm_shift(&NormShift {
                batch: self.batch,
                x: self.input(group)?,
                weight: self.vectors(&[*weight])?,
                bias: self.vectors(&[*bias])?,
                epsilon: *epsilon,
                mix: Some(self.vectors(mixes)?),
                mixes: mixes.len(),
                weighs,
                rows,
                state: page.shift(layer),
                page: page.page(),
                which: half_index(half),
                y: self.output(group)?,
            })?);
        }
        Ok(())
    }

    /// Whether the kernel of a norm can add up what is `sliced` into its `x`, and leave its mixes in `y`.
    fn adds_slices(
        &self,
        group: &Group,
        sliced: &SlicedValue<'_>,
        x: View<'_>,
        y: &HalfRows,
    ) -> bool {
        let Some(residual) = sliced.residual else {
            return false;
        };
        let read = [residual.buffer, sliced.sum.halves().buffer()];
        let written = [x.buffer, y.buffer()];
        group.inputs.first() == Some(&sliced.y)
            && self.batch.span_count == x.rows
            && self.context.states.pages().len() == 1
            && self.context.kernels.norm_adds_slices(x.width)
            // No buffer is both read and written.
            && written.iter().all(|buffer| !read.contains(buffer))
            && x.buffer != y.buffer()
    }

    /// The products of one token shift; its results lie one after the other, and so do theirs.
    fn project(&self, group: &Group, out: &mut Vec<Dispatch>) -> Result<()> {
        let halves = group.products().map(|p| self.activations.halves(p.x));
        if let Some(places) = halves.collect::<Option<Vec<_>>>() {
            return self.project_halves(group, &places, out);
        }
        let places = group.products().map(|p| self.activations.view(p.x));
        let places = places.collect::<Result<Vec<_>>>()?;
        let first = places
            .iter()
            .min_by_key(|p| p.offset)
            .copied()
            .ok_or_else(mistake)?;
        let block = View::block_bytes(first.rows, first.width);
        let (mut weights, mut pairs) = (None, None);
        // Pairs beside large matrices are a stack of their own.
        let beside = group.products().any(|p| !is_pair(p.weight));
        let mut segments = Vec::new();
        let mut blocks = 0;
        for (product, place) in group.products().zip(&places) {
            let lacks = || missing(self.context, product.weight);
            let stack = self
                .context
                .weights
                .stack(product.weight)
                .ok_or_else(lacks)?;
            let kind = if beside && is_pair(product.weight) {
                pairs = Some(&stack.matrix);
                Stack::Pairs
            } else {
                weights = Some(&stack.matrix);
                Stack::Weights
            };
            let x = usize::try_from((place.offset - first.offset) / block).unwrap_or(usize::MAX);
            blocks = blocks.max(x.saturating_add(1));
            segments.push(Segment {
                stack: kind,
                rows: stack.rows(product.weight).ok_or_else(lacks)?,
                x,
                function: product.function,
                y_offset: self.activations.view(product.y)?.offset,
            });
        }
        let projections = Projections {
            x: first,
            blocks,
            weights: weights.ok_or_else(mistake)?,
            pairs,
            segments: &segments,
            y: self.output(group)?.buffer,
        };
        out.push(self.context.kernels.projections(&projections, None)?);
        Ok(())
    }

    /// As [`project`](Self::project), of inputs in f16.
    fn project_halves(
        &self,
        group: &Group,
        places: &[HalfRows],
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let first = places.iter().min_by_key(|place| place.offset());
        let first = first.ok_or_else(mistake)?;
        let block = HalfRows::bytes(first.rows(), first.width());
        let mut weights = None;
        let (mut segments, mut blocks) = (Vec::new(), 0);
        for (product, place) in group.products().zip(places) {
            let lacks = || missing(self.context, product.weight);
            let stack = self.context.weights.stack(product.weight);
            let stack = stack.ok_or_else(lacks)?;
            weights = Some(&stack.matrix);
            let x = usize::try_from((place.offset() - first.offset()) / block);
            let x = x.unwrap_or(usize::MAX);
            blocks = blocks.max(x.saturating_add(1));
            segments.push(Segment {
                stack: Stack::Weights,
                rows: stack.rows(product.weight).ok_or_else(lacks)?,
                x,
                function: product.function,
                y_offset: self.activations.view(product.y)?.offset,
            });
        }
        let op = HalfProjections {
            x: first,
            blocks,
            weights: weights.ok_or_else(mistake)?,
            segments: &segments,
            y: self.output(group)?.buffer,
        };
        out.extend(self.context.kernels.half_projections(&op, None)?);
        Ok(())
    }

    fn mix6(&self, group: &Group, what: &Mix6, out: &mut Vec<Dispatch>) -> Result<()> {
        let ups = what.ups();
        let stack = ups.first().and_then(|up| self.context.weights.stack(*up));
        let stack = stack.ok_or_else(mistake)?;
        let (mut rows, mut hidden) = (Vec::new(), Vec::new());
        for pair in &what.pairs {
            rows.push(stack.rows(pair.up).ok_or_else(mistake)?.start);
            hidden.push(self.activations.view(pair.hidden)?);
        }
        out.push(self.context.kernels.mix6(&ops::Mix6 {
            x: self.activations.view(what.x)?,
            previous: self.activations.view(what.previous)?,
            hidden: hidden.try_into().map_err(|_| mistake())?,
            up: &stack.matrix,
            rows: rows.try_into().map_err(|_| mistake())?,
            base: self.vectors(&what.vectors)?,
            y: self.output(group)?,
        })?);
        Ok(())
    }

    fn recurrence4(
        &self,
        group: &Group,
        what: &Recurrence4,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let gate = self.activations.view(what.gate)?;
        for page in self.context.states.pages() {
            let op = Wkv4 {
                batch: self.batch,
                k: self.activations.view(what.k)?,
                v: self.activations.view(what.v)?,
                decay: self.vectors(&[what.decay])?,
                bonus: self.vectors(&[what.bonus])?,
                state: page.wkv(what.layer),
                page: page.page(),
                y: self.output(group)?,
            };
            out.push(self.context.kernels.wkv4_gated(&op, gate)?);
        }
        Ok(())
    }

    fn recurrence6(
        &self,
        group: &Group,
        what: &Recurrence6,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let decay = match &what.decay {
            None => None,
            Some(pair) => {
                let up = self.context.weights.base.pairs(&[pair.up]);
                let up = up.ok_or_else(mistake)?;
                Some((self.activations.view(pair.hidden)?, up))
            }
        };
        let gate = what.gate.map(|gate| self.activations.view(gate));
        let gate = gate.transpose()?;
        for page in self.context.states.pages() {
            out.push(self.context.kernels.wkv6_step(&Wkv6Step {
                batch: self.batch,
                r: self.activations.view(what.r)?,
                k: self.activations.view(what.k)?,
                v: self.activations.view(what.v)?,
                decay,
                vectors: self.vectors(&what.vectors)?,
                gate,
                head_size: what.head_size,
                epsilon: what.epsilon,
                state: page.wkv(what.layer),
                page: page.page(),
                y: self.output(group)?,
            })?);
        }
        Ok(())
    }

    fn gated_heads(&self, group: &Group, what: &GatedHeads, out: &mut Vec<Dispatch>) -> Result<()> {
        let y = group.outputs.first().ok_or_else(mistake)?;
        let y = self.activations.halves(*y).ok_or_else(mistake)?;
        let dispatch = self.context.kernels.gated_heads_halves(&GatedHeadsHalves {
            x: self.activations.view(what.x)?,
            r: self.activations.view(what.r)?,
            k: self.activations.view(what.k)?,
            v: self.activations.view(what.v)?,
            gate: self.activations.view(what.gate)?,
            vectors: self.vectors(&what.vectors)?,
            rows: what.rows,
            head_size: what.head_size,
            epsilon: what.epsilon,
            y: &y,
        })?;
        out.push(dispatch);
        Ok(())
    }

    fn pair_ups(&self, group: &Group, what: &PairUps, out: &mut Vec<Dispatch>) -> Result<()> {
        let (mut hidden, mut ends) = (Vec::new(), Vec::new());
        for end in &what.ends {
            hidden.push(self.activations.view(end.pair.hidden)?);
            ends.push(PairEnd {
                bias: end.bias,
                function: end.function,
                y: self.activations.view(end.y)?,
            });
        }
        let mixed = what.mixed.map(|[own, first]| {
            let views = [self.activations.view(own)?, self.activations.view(first)?];
            Ok::<_, Error>(views)
        });
        let ups = group.packed_pairs().unwrap_or_default();
        out.push(self.context.kernels.pair_ups(&ops::PairUps {
            up: self.context.weights.base.pairs(&ups).ok_or_else(mistake)?,
            hidden: &hidden,
            vectors: self.vectors(&what.vectors)?,
            ends: &ends,
            mixed: mixed.transpose()?,
        })?);
        Ok(())
    }

    fn multiply_add(
        &self,
        group: &Group,
        what: &MultiplyAdd,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let [a, b, c] = [what.a, what.b, what.c].map(|id| self.activations.view(id));
        let map = Map::MultiplyAdd(a?, b?, c?);
        out.push(self.context.kernels.map(map, self.output(group)?)?);
        Ok(())
    }

    fn recurrence7(
        &self,
        group: &Group,
        what: &Recurrence7,
        out: &mut Vec<Dispatch>,
    ) -> Result<()> {
        let hidden = self.hidden7(what)?;
        for page in self.context.states.pages() {
            let op = self.time_mix7(group, what, &hidden, page, self.output(group)?)?;
            out.extend(self.context.kernels.wkv7_steps(&op)?);
        }
        Ok(())
    }

    /// The inner vectors of a recurrence's pairs.
    pub(super) fn hidden7(&self, what: &Recurrence7) -> Result<Vec<View<'_>>> {
        what.pairs()
            .map(|pair| self.activations.view(pair.hidden))
            .collect()
    }

    /// A recurrence with everything around it, for the slots of a page.
    pub(super) fn time_mix7<'s>(
        &'s self,
        group: &Group,
        what: &Recurrence7,
        hidden: &'s [View<'s>],
        page: &'s StatePage,
        y: View<'s>,
    ) -> Result<Wkv7Step<'s>> {
        let ups = group.packed_pairs().unwrap_or_default();
        let v_first = what.value.as_ref();
        let v_first = v_first.map(|(_, first)| self.activations.view(*first));
        let stored = |stored: &StoredShift| {
            Ok::<_, Error>(ShiftStore {
                shifted: self.activations.view(stored.x)?,
                state: page.shift(stored.layer),
                which: half_index(stored.half),
            })
        };
        Ok(Wkv7Step {
            batch: self.batch,
            r: self.activations.view(what.r)?,
            k: self.activations.view(what.k)?,
            v: self.activations.view(what.v)?,
            hidden,
            up: self.context.weights.base.pairs(&ups).ok_or_else(mistake)?,
            vectors: self.vectors(&what.vectors)?,
            v_first: v_first.transpose()?,
            head_size: what.head_size,
            epsilon: what.epsilon,
            state: page.wkv(what.layer),
            page: page.page(),
            stores: what.stores.as_ref().map(stored).transpose()?,
            y,
        })
    }
}

pub(super) fn mistake() -> Error {
    Error::Config {
        problem: "a group of steps that is not what it says: this is a mistake in this program"
            .to_owned(),
    }
}
