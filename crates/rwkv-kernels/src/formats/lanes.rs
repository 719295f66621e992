//! Numbers of several groups side by side: loops over them become vector instructions.

#![allow(
    clippy::inline_always,
    reason = "searches are compiled for several sets of instructions, with all that is in them"
)]

/// How many are worked on at a time.
pub(crate) const LANES: usize = 16;

/// One number of each group.
pub(crate) type Lanes = [f32; LANES];

/// `f` of every lane.
#[inline(always)]
pub(super) fn lanes(f: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = f(i);
    }
    lanes
}

/// Adds to each lane.
#[inline(always)]
pub(super) fn add(sum: &mut Lanes, x: &Lanes) {
    *sum = lanes(|i| sum[i] + x[i]);
}

/// The lanes of `new` where `condition` holds, and elsewhere those of `old`.
#[inline(always)]
pub(super) fn keep(old: &mut Lanes, new: &Lanes, condition: &[bool; LANES]) {
    *old = lanes(|i| if condition[i] { new[i] } else { old[i] });
}

/// Where `condition` holds.
#[inline(always)]
pub(super) fn holding(condition: impl Fn(usize) -> bool) -> [bool; LANES] {
    let mut holds = [false; LANES];
    for (i, holds) in holds.iter_mut().enumerate() {
        *holds = condition(i);
    }
    holds
}

/// Where `a` is below `b`.
#[inline(always)]
pub(super) fn below(a: &Lanes, b: &Lanes) -> [bool; LANES] {
    holding(|i| a[i] < b[i])
}

/// Lays groups, one after the other in `values` and at most [`LANES`], side by side into `rows`, as many as a group has
/// elements. Lanes without a group are zero.
pub(super) fn lay_side_by_side(values: &[f32], rows: &mut [Lanes]) {
    let groups = values.chunks_exact(rows.len().max(1));
    if groups.len() < LANES {
        rows.fill([0.0; LANES]);
    }
    for (lane, group) in groups.enumerate().take(LANES) {
        for (row, x) in rows.iter_mut().zip(group) {
            row[lane] = *x;
        }
    }
}
