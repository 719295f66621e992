//! What the kernels share that do a head's whole time mix in steps in which every span is one token.

use super::heads::compiled_head;
use crate::{
    Error, Format, Kernels, LoraUp, Result, View, kernels::u32_of, lora_up::MOST_PAIRS, shaders,
};
use bytemuck::NoUninit;
use rwkv_gpu::{Binding, Buffer, Dispatch, Shader};
use serde::{Deserialize, Serialize};

/// How the work of a step's kernel is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StepTile {
    /// Threads that share a row of the state in heads of up to 64: 4, 8 or 16; half of them in larger heads.
    pub share: usize,
    /// Spans that read a weight together: 1 or 4.
    pub spans: usize,
    /// Weights of 16 bytes that a thread has on their way at once, at most; kernels have their own limits too.
    pub depth: usize,
}

impl StepTile {
    /// Every tile, with all the weights on their way that its registers hold.
    pub const ALL: [Self; 5] = [
        Self::new(4, 1),
        Self::new(8, 1),
        Self::new(16, 1),
        Self::new(4, 4),
        Self::new(8, 4),
    ];

    pub(super) const fn new(share: usize, spans: usize) -> Self {
        Self {
            share,
            spans,
            depth: usize::MAX,
        }
    }

    /// Threads of a workgroup for heads of up to 128.
    ///
    /// # Errors
    /// [`Error::Shape`] for a larger head.
    pub fn threads(self, head_size: usize) -> Result<usize> {
        Ok(compiled_head("step", head_size)?.min(64) * self.share)
    }

    /// Whether there is such a kernel, and an adapter's workgroups can be as large as it needs.
    pub fn fits(self, kernels: &Kernels, head_size: usize) -> bool {
        let limits = &kernels.gpu().capabilities().limits;
        let fits = |threads: usize, shader: &Shader| {
            threads <= limits.workgroup_invocations as usize
                && shader.workgroup_bytes <= limits.workgroup_bytes
        };
        // F16 stages more than F32.
        let shader = self.shader(kernels, "wkv7_step", "f16", head_size, None);
        match (self.threads(head_size), shader) {
            (Ok(threads), Ok(shader)) => self.depth > 0 && fits(threads, shader),
            _ => false,
        }
    }

    /// Threads that share a row of the state in heads of `head_size`.
    fn threads_a_row(self, head_size: usize) -> Result<usize> {
        Ok(self.threads(head_size)? / compiled_head("step", head_size)?)
    }

    /// The variant of `kernel` for this tile; `output` is the layout of the output projection, if it does that too.
    pub(super) fn shader(
        self,
        kernels: &Kernels,
        kernel: &str,
        format: &str,
        head_size: usize,
        output: Option<&str>,
    ) -> Result<&'static Shader> {
        let head = compiled_head(kernel, head_size)?;
        let threads = self.threads(head_size)?;
        let row = self.threads_a_row(head_size)?;
        let Self { share, spans, .. } = self;
        let lanes = row_lanes(kernels, row, threads);
        let name = format!("{kernel}/{format}/{head}/{share}/{spans}/{lanes}");
        shaders::find(&match output {
            Some(output) => format!("{name}/{output}"),
            None => name,
        })
    }
}

/// How `row` threads that share a row meet: as lanes of one subgroup, if no subgroup is partly empty.
pub(super) fn row_lanes(kernels: &Kernels, row: usize, threads: usize) -> &'static str {
    let subgroups = kernels.gpu().capabilities().subgroups;
    let together = subgroups
        .is_some_and(|s| s.min as usize >= row && threads.is_multiple_of(s.max.max(1) as usize));
    if together { "subgroup" } else { "plain" }
}

/// What a head must be for these kernels: whole vec4s, and no larger than 128.
pub(super) fn head_suits(head_size: usize) -> bool {
    head_size > 0 && head_size.is_multiple_of(4) && compiled_head("step", head_size).is_ok()
}

/// A step's kernel for one model, and its grid.
pub(super) struct StepKernel<'a> {
    pub(super) kernel: &'static str,
    pub(super) tile: StepTile,
    pub(super) heads: usize,
    pub(super) head_size: usize,
    pub(super) spans: usize,
    /// Workgroups that a head has for the same spans.
    pub(super) parts: usize,
    pub(super) ups: Ups<'a>,
    /// The layout of the output projection, if the kernel does that too.
    pub(super) output: Option<&'static str>,
}

/// Where the products of the pairs' second matrices come from.
#[derive(Clone, Copy)]
pub(super) enum Ups<'a> {
    /// There are no pairs.
    None,
    /// The kernel multiplies by these.
    Weights(&'a LoraUp),
    /// Another kernel has left them here.
    Ready(&'a Buffer),
}

impl<'a> Ups<'a> {
    fn weights(self) -> Option<&'a LoraUp> {
        match self {
            Self::Weights(up) => Some(up),
            _ => None,
        }
    }

    /// The value of the kernel's axis FORMAT.
    fn format(self) -> String {
        match self {
            Self::None => Format::F32.to_string(),
            Self::Weights(up) => up.format().to_string(),
            Self::Ready(_) => "ready".to_owned(),
        }
    }
}

impl StepKernel<'_> {
    /// The dispatch, with constants of its own besides those that all have.
    pub(super) fn dispatch<T: NoUninit>(
        &self,
        kernels: &Kernels,
        constants: &[(&'static str, f64)],
        params: &T,
        bindings: &[Binding<'_>],
    ) -> Result<Dispatch> {
        let shader = self.shader(kernels)?;
        self.run(kernels, shader, constants, params, bindings)
    }

    /// The variant of the kernel.
    pub(super) fn shader(&self, kernels: &Kernels) -> Result<&'static Shader> {
        let format = self.ups.format();
        self.tile
            .shader(kernels, self.kernel, &format, self.head_size, self.output)
    }

    /// The dispatch of another kernel that binds the same.
    pub(super) fn run<T: NoUninit>(
        &self,
        kernels: &Kernels,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
        params: &T,
        bindings: &[Binding<'_>],
    ) -> Result<Dispatch> {
        let workgroups = self.spans.div_ceil(self.tile.spans) * self.heads * self.parts;
        // A grid in one dimension has no workgroups to spare.
        let exact = workgroups <= kernels.gpu().capabilities().limits.workgroups as usize
            && self.tile.spans == 1;
        let mut all = vec![
            ("HEADS", self.heads as f64),
            ("HEAD_SIZE", self.head_size as f64),
            ("EXACT", f64::from(u8::from(exact))),
        ];
        if !matches!(self.ups, Ups::Ready(_)) {
            all.push(("AHEAD", self.ahead()? as f64));
        }
        if let Some(up) = self.ups.weights() {
            let names = ["RANK_0", "RANK_1", "RANK_2", "RANK_3"];
            all.extend(names.into_iter().zip(up.ranks().map(|r| r as f64)));
        }
        all.extend_from_slice(constants);
        let pipeline = kernels.gpu().pipeline(shader, &all)?;
        let mut dispatch = kernels.dispatch(pipeline.clone(), params, bindings, workgroups)?;
        dispatch.groups.push(match self.ups {
            Ups::Weights(up) => up.group(kernels.gpu(), &pipeline)?,
            Ups::Ready(made) => kernels.gpu().bind(&pipeline, 1, &[Binding::from(made)])?,
            Ups::None => kernels.gpu().bind(&pipeline, 1, &[kernels.unused()])?,
        });
        Ok(dispatch)
    }

    /// Weights that a thread asks for at once: all of its row, or equal parts.
    fn ahead(&self) -> Result<usize> {
        let row = self.tile.threads_a_row(self.head_size)?;
        let threads = self.tile.threads(self.head_size)?;
        // As in the WGSL.
        let compiled = (8192 / threads).min(128 / row) / self.tile.spans;
        let depth = self.tile.depth.min(compiled).max(1);
        let units = |up: &LoraUp| {
            up.ranks()
                .map(|rank| rank.div_ceil(up.unit()).div_ceil(row))
                .sum()
        };
        let steps: usize = self.ups.weights().map_or(0, units);
        Ok(steps.div_ceil(steps.div_ceil(depth).max(1)).max(1))
    }
}

/// Whether `hidden` are what the second matrices `up` multiply for `rows` tokens, in the same order.
///
/// # Errors
/// [`Error::Shape`] if not.
pub(super) fn check_hidden(
    what: &str,
    up: &LoraUp,
    hidden: &[View<'_>],
    rows: usize,
) -> Result<()> {
    let widths = hidden.iter().map(|v| v.width);
    if up.ranks().eq(widths) && hidden.iter().all(|v| v.rows == rows) {
        return Ok(());
    }
    let ranks: Vec<_> = up.ranks().collect();
    let shapes: Vec<_> = hidden.iter().map(|v| (v.rows, v.width)).collect();
    let problem = format!("hidden vectors of {shapes:?} for {rows} tokens and ranks {ranks:?}");
    Err(Error::shape(what, problem))
}

/// The first vec4s of views whose first elements are `places` of one buffer.
///
/// # Errors
/// [`Error::Shape`] where one lies at no multiple of 16 bytes.
pub(super) fn quads_of(what: &str, places: &[u32]) -> Result<[u32; MOST_PAIRS]> {
    let mut quads = [0; MOST_PAIRS];
    for (quad, place) in quads.iter_mut().zip(places) {
        if !place.is_multiple_of(4) {
            let problem = "views that do not begin at a multiple of 16 bytes";
            return Err(Error::shape(what, problem));
        }
        *quad = place / 4;
    }
    Ok(quads)
}

/// One binding of several views of one buffer, and the first element of each in it.
///
/// # Errors
/// [`Error::Shape`] for views of several buffers, or of parts of elements.
pub(super) fn one_buffer<'a>(what: &str, views: &[View<'a>]) -> Result<(Binding<'a>, Vec<u32>)> {
    let together = views
        .first()
        .filter(|first| views.iter().all(|v| v.buffer == first.buffer));
    let Some(first) = together else {
        return Err(Error::shape(what, "views of several buffers"));
    };
    let start = views.iter().map(|v| v.offset).min().unwrap_or(0);
    if !views.iter().all(|v| (v.offset - start).is_multiple_of(4)) {
        return Err(Error::shape(what, "views that begin within an element"));
    }
    let end_of = |v: &View<'_>| v.offset.saturating_add(View::bytes(v.rows, v.width));
    let end = views.iter().map(end_of).max().unwrap_or(0);
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
