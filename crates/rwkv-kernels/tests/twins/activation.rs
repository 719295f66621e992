//! Activations and states in GPU memory, surrounded and padded with NaN.

use crate::setup::Setup;
use rwkv_gpu::{Buffer, BufferKind, Gpu, Readback};
use rwkv_kernels::View;

/// A NaN that no kernel computes.
pub(crate) const POISON: u32 = 0x7fc0_dead;

/// Activations of one shape, [`View::block_bytes`] apart, with poison before, after and in the padding.
pub(crate) struct Activation<'g> {
    gpu: &'g Gpu,
    buffer: Buffer,
    rows: usize,
    width: usize,
    blocks: usize,
    /// Words of poison on both sides: whatever offset the adapter can bind.
    guard: usize,
}

impl<'g> Activation<'g> {
    /// `values`, `rows · width` for each of the `blocks`.
    pub(crate) fn new(setup: &'g Setup, rows: usize, width: usize, values: &[f32]) -> Self {
        let blocks = values.len() / (rows * width);
        let made = Self::poisoned(setup, rows, width, blocks);
        let mut words = vec![POISON; made.words()];
        let places = made.places();
        assert_eq!(places.len(), values.len());
        for (place, value) in places.iter().zip(values) {
            words[*place] = value.to_bits();
        }
        made.gpu
            .write(&made.buffer, 0, bytemuck::cast_slice(&words))
            .unwrap();
        made
    }

    /// Nothing but poison, for a kernel to write.
    pub(crate) fn poisoned(setup: &'g Setup, rows: usize, width: usize, blocks: usize) -> Self {
        let gpu = setup.gpu();
        let alignment = gpu.capabilities().limits.offset_alignment.max(256);
        let guard = usize::try_from(alignment).unwrap() / 4;
        let mut made = Self {
            gpu,
            buffer: gpu.buffer(BufferKind::Storage, "activation", 4).unwrap(),
            rows,
            width,
            blocks,
            guard,
        };
        let words = vec![POISON; made.words()];
        made.buffer = filled(gpu, &words);
        made
    }

    /// What the kernels take: the first block.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            buffer: &self.buffer,
            offset: (self.guard * 4) as u64,
            rows: self.rows,
            width: self.width,
        }
    }

    /// The values of all blocks without the padding, after checking that the surroundings are as they were.
    #[track_caller]
    pub(crate) fn read(&self) -> Vec<f32> {
        let words = read(self.gpu, &self.buffer);
        let end = words.len() - self.guard;
        for (place, word) in words.iter().enumerate() {
            if place < self.guard || place >= end {
                assert_eq!(
                    *word, POISON,
                    "word {place} outside of the view was written"
                );
            }
        }
        self.places()
            .iter()
            .map(|place| f32::from_bits(words[*place]))
            .collect()
    }

    fn words(&self) -> usize {
        let last = View::block_bytes(self.rows, self.width) * (self.blocks as u64 - 1);
        let bytes = last + View::bytes(self.rows, self.width);
        usize::try_from(bytes).unwrap() / 4 + 2 * self.guard
    }

    /// Where each value lies.
    fn places(&self) -> Vec<usize> {
        let block = usize::try_from(View::block_bytes(self.rows, self.width)).unwrap() / 4;
        let mut places = Vec::new();
        for b in 0..self.blocks {
            for row in 0..self.rows {
                let start = self.guard + b * block + row * View::stride(self.width);
                places.extend(start..start + self.width);
            }
        }
        places
    }
}

/// Activations of several widths in one buffer, with poison in between.
pub(crate) struct Together {
    buffer: Buffer,
    rows: usize,
    /// First byte and width of each.
    places: Vec<(u64, usize)>,
}

impl Together {
    /// `parts`: the width of each and its values, `rows · width`.
    pub(crate) fn new(setup: &Setup, rows: usize, parts: &[(usize, &[f32])]) -> Self {
        let mut places = Vec::new();
        let mut words = Vec::new();
        for (width, values) in parts {
            assert_eq!(values.len(), rows * width);
            places.push(((words.len() * 4) as u64, *width));
            for row in values.chunks_exact((*width).max(1)) {
                words.extend(row.iter().map(|x| x.to_bits()));
                words.resize(words.len() + View::stride(*width) - width, POISON);
            }
            words.resize(words.len().next_multiple_of(64), POISON);
        }
        Self {
            buffer: filled(setup.gpu(), &words),
            rows,
            places,
        }
    }

    pub(crate) fn views(&self) -> Vec<View<'_>> {
        let view = |(offset, width): &(u64, usize)| View {
            buffer: &self.buffer,
            offset: *offset,
            rows: self.rows,
            width: *width,
        };
        self.places.iter().map(view).collect()
    }
}

/// A page of state: `values`, then one more slot of `slot` elements that nobody may touch.
pub(crate) struct State<'g> {
    gpu: &'g Gpu,
    buffer: Buffer,
    len: usize,
}

impl<'g> State<'g> {
    pub(crate) fn new(setup: &'g Setup, values: &[f32], slot: usize) -> Self {
        let mut words: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
        words.resize(values.len() + slot, POISON);
        Self {
            gpu: setup.gpu(),
            buffer: filled(setup.gpu(), &words),
            len: values.len(),
        }
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The values, after checking that the slot past them is as it was.
    #[track_caller]
    pub(crate) fn read(&self) -> Vec<f32> {
        let words = read(self.gpu, &self.buffer);
        assert!(
            words[self.len..].iter().all(|w| *w == POISON),
            "a slot outside of the page was written"
        );
        words[..self.len]
            .iter()
            .map(|w| f32::from_bits(*w))
            .collect()
    }
}

/// A buffer that holds `words`.
pub(crate) fn filled(gpu: &Gpu, words: &[u32]) -> Buffer {
    let buffer = gpu
        .buffer(BufferKind::Storage, "test", size_of_val(words) as u64)
        .unwrap();
    gpu.write(&buffer, 0, bytemuck::cast_slice(words)).unwrap();
    buffer
}

/// The words of a buffer.
pub(crate) fn read(gpu: &Gpu, buffer: &Buffer) -> Vec<u32> {
    let readback = Readback::new(gpu, "test", buffer.size()).unwrap();
    let mut recorder = gpu.recorder("test");
    recorder.read(buffer, 0, buffer.size(), &readback);
    let submission = recorder.submit().unwrap();
    readback
        .view(gpu, &submission, buffer.size(), |bytes| {
            bytemuck::pod_collect_to_vec(bytes)
        })
        .unwrap()
}
