//! Searches over arrays of f32, which the compiler makes vector instructions of: those that the processor has.

use super::{
    Simd,
    level::at_level,
    vectors::{Vectors, Work},
};
use crate::formats::{Lanes, Table};

/// What a search needs beside arithmetic.
pub(crate) trait Lookup: Copy {
    /// [`Table::by_cells`] of each of `y`.
    fn nearest(self, table: &Table, y: &Lanes) -> Lanes;

    /// Does a part of a search in a function of its own. What goes through it is in memory: the compiler finds no vectors
    /// in a loop whose results meet later on.
    fn apart(self, work: impl Search);
}

/// A search. Its [`run`](Self::run) must be `#[inline(always)]`.
pub(crate) trait Search {
    /// Does it.
    fn run(self, v: impl Lookup);
}

/// Does `work` with the instructions of `level`. They change the time that it takes, and nothing else.
pub(crate) fn search(level: Simd, work: impl Search) {
    at_level!(level, v => v.run(Vectorised(work)));
    work.run(Plain);
}

struct Vectorised<S>(S);

impl<V: Vectors, S: Search> Work<V> for Vectorised<S> {
    #[inline(always)]
    fn run(self, v: V) {
        self.0.run(v);
    }
}

impl<V: Vectors> Lookup for V {
    #[inline(always)]
    fn nearest(self, table: &Table, y: &Lanes) -> Lanes {
        Vectors::nearest(self, table, y)
    }

    #[inline(always)]
    fn apart(self, work: impl Search) {
        self.run(Vectorised(work));
    }
}

/// No instructions but those of every processor.
#[derive(Clone, Copy)]
struct Plain;

impl Lookup for Plain {
    #[inline(always)]
    fn nearest(self, table: &Table, y: &Lanes) -> Lanes {
        y.map(|y| table.by_cells(y))
    }

    #[inline(never)]
    fn apart(self, work: impl Search) {
        work.run(self);
    }
}
