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
