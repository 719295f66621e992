//! What the kernels share that do a head's whole time mix in steps in which every span is one token.

use super::heads::compiled_head;
use crate::{Error, Kernels, LoraUp, Result, View, kernels::u32_of};
use bytemuck::{Pod, Zeroable};
use rwkv_gpu::Binding;

/// How the work of a step's kernel is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepTile {
    /// Threads that share a row of the state in heads of up to 64: 4 or 8; half of them in larger heads.
    pub share: usize,
    /// Spans that read a weight together: 1, or 4 where no rank is ragged.
    pub spans: usize,
}

impl StepTile {
    /// Every tile.
    pub const ALL: [Self; 4] = [
        Self { share: 4, spans: 1 },
        Self { share: 8, spans: 1 },
        Self { share: 4, spans: 4 },
        Self { share: 8, spans: 4 },
    ];

    /// Threads of a workgroup for heads of up to 128.
    ///
    /// # Errors
    /// [`Error::Shape`] for a larger head.
    pub fn threads(self, head_size: usize) -> Result<usize> {
        Ok(compiled_head("step", head_size)?.min(64) * self.share)
    }

    /// Whether an adapter's workgroups can be as large as this needs.
    pub fn fits(self, kernels: &Kernels, head_size: usize) -> bool {
        let limit = kernels.gpu().capabilities().limits.workgroup_invocations;
        self.threads(head_size)
            .is_ok_and(|threads| threads <= limit as usize)
    }
}

/// What a head must be for these kernels: whole vec4s, and no larger than 128.
pub(super) fn head_suits(head_size: usize) -> bool {
    head_size > 0 && head_size.is_multiple_of(4) && compiled_head("step", head_size).is_ok()
}

/// A low-rank pair, as the kernels have it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Pair {
    start: u32,
    rank: u32,
    weight: u32,
    units: u32,
    hidden: u32,
    stride: u32,
    padding: [u32; 2],
}

/// No pair: it starts past the last unit.
const NO_PAIR: Pair = Pair {
    start: u32::MAX,
    rank: 0,
    weight: 0,
    units: 0,
    hidden: 0,
    stride: 0,
    padding: [0; 2],
};

/// The pairs of a step, as its parameters and bindings have them.
pub(super) struct Pairs<'a> {
    pub(super) table: [Pair; 4],
    /// Units of all of them.
    pub(super) units: u32,
    /// The hidden vectors of all of them.
    pub(super) hidden: Binding<'a>,
    /// The kernel's constant RAGGED.
    pub(super) ragged: bool,
}

impl<'a> Pairs<'a> {
    /// The pairs with second matrices `up` and these hidden vectors, in the same order and in one buffer.
    pub(super) fn new(what: &str, up: &LoraUp, hidden: &[View<'a>], rows: usize) -> Result<Self> {
        let fit = up.parts().len() == hidden.len()
            && up
                .parts()
                .iter()
                .zip(hidden)
                .all(|(part, view)| view.width == part.rank && view.rows == rows);
        if !fit {
            let ranks: Vec<_> = up.ranks().collect();
            let widths: Vec<_> = hidden.iter().map(|v| (v.rows, v.width)).collect();
            return Err(Error::shape(
                what,
                format!("hidden vectors of {widths:?} for {rows} tokens and ranks {ranks:?}"),
            ));
        }
        let (binding, places) = one_buffer(what, hidden)?;
        let mut pairs = [NO_PAIR; 4];
        let mut units = 0;
        for (((pair, part), view), place) in
            pairs.iter_mut().zip(up.parts()).zip(hidden).zip(places)
        {
            if !place.is_multiple_of(4) {
                let problem = "hidden vectors that do not begin at a multiple of 16 bytes";
                return Err(Error::shape(what, problem));
            }
            *pair = Pair {
                start: units,
                rank: u32_of("rank", part.rank)?,
                weight: part.first,
                units: part.units,
                hidden: place / 4,
                stride: u32_of("stride", View::stride(view.width) / 4)?,
                padding: [0; 2],
            };
            units = units
                .checked_add(part.units)
                .ok_or_else(|| Error::shape(what, "ranks that pass 32 bits"))?;
        }
        Ok(Self {
            table: pairs,
            units,
            hidden: binding,
            ragged: up.ragged(),
        })
    }

    /// No pairs; `unused` is bound.
    pub(super) fn none(unused: Binding<'a>) -> Self {
        Self {
            table: [NO_PAIR; 4],
            units: 0,
            hidden: unused,
            ragged: false,
        }
    }
}

/// One binding of several views of one buffer, and the first element of each in it.
pub(super) fn one_buffer<'a>(what: &str, views: &[View<'a>]) -> Result<(Binding<'a>, Vec<u32>)> {
    let together = views
        .first()
        .filter(|first| views.iter().all(|v| v.buffer == first.buffer));
    let Some(first) = together else {
        return Err(Error::shape(what, "views of several buffers"));
    };
    let start = views.iter().map(|v| v.offset).min().unwrap_or(0);
    let end = views
        .iter()
        .map(|v| v.offset + View::bytes(v.rows, v.width))
        .max()
        .unwrap_or(0);
    let places = views
        .iter()
        .map(|v| {
            u32_of(
                "offset",
                usize::try_from((v.offset - start) / 4).unwrap_or(usize::MAX),
            )
        })
        .collect::<Result<_>>()?;
    let binding = Binding {
        buffer: first.buffer,
        offset: start,
        size: Some(end - start),
    };
    Ok((binding, places))
}
