//! The buffers of values that no node reads any more, for the values of later nodes and steps.

/// Buffers that lie ready. A batch of another shape has others, so that no more is kept than a step needs.
#[derive(Default)]
pub(super) struct Spare {
    buffers: Vec<Vec<f32>>,
    shape: [usize; 2],
}

impl Spare {
    /// The next step is of so many tokens and outputs.
    pub(super) fn begin(&mut self, shape: [usize; 2]) {
        if self.shape != shape {
            self.buffers.clear();
            self.shape = shape;
        }
    }

    /// A buffer of `len`; what is in it means nothing.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let found = self.buffers.iter().rposition(|x| x.len() == len);
        let mut buffer = found.map_or_else(|| vec![0.0; len], |i| self.buffers.swap_remove(i));
        if cfg!(debug_assertions) {
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buffer: Vec<f32>) {
        self.buffers.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_while_the_shape_stays() {
        let mut spare = Spare::default();
        spare.begin([1, 1]);
        let (short, long) = (spare.take(3), spare.take(5));
        let (first, last) = (short.as_ptr(), long.as_ptr());
        spare.give(short);
        spare.give(long);
        spare.begin([1, 1]);
        let long = spare.take(5);
        assert_eq!(long.as_ptr(), last);
        assert_eq!(spare.take(4).len(), 4);
        assert_eq!(spare.buffers.len(), 1);
        assert_eq!(spare.buffers[0].as_ptr(), first);
        spare.begin([2, 1]);
        assert!(spare.buffers.is_empty(), "buffers of another shape stay");
    }
}
