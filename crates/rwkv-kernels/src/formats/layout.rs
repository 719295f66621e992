//! How the formats lie in GPU buffers.

use super::Format;

/// How a format lies in GPU buffers: parts that are read on their own (quants apart from scales), rows aligned to
/// 16 bytes.
pub trait GpuLayout: Sync {
    /// Elements of a unit: what 16 bytes of the first part hold, and what the kernels step in.
    fn unit(&self) -> usize;

    /// Bytes of each part for one row of `cols` elements, in the order of the kernel's bindings in group 1.
    fn row_bytes(&self, cols: usize) -> Vec<usize>;

    /// Repacks one row from the file's layout: `parts[i]` has `row_bytes(cols)[i]` bytes and is zero beforehand.
    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]);
}

/// The layout of `format`.
pub(super) fn of(format: Format) -> Option<&'static dyn GpuLayout> {
    match format {
        Format::F32 => Some(&Plain { element: 4 }),
        Format::F16 => Some(&Plain { element: 2 }),
        Format::Q8_0 => Some(&Split),
        _ => None,
    }
}

/// Elements in file order, each row padded with zeros to 16 bytes.
struct Plain {
    element: usize,
}

impl GpuLayout for Plain {
    fn unit(&self) -> usize {
        16 / self.element
    }

    fn row_bytes(&self, cols: usize) -> Vec<usize> {
        vec![(cols * self.element).next_multiple_of(16)]
    }

    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]) {
        if let Some(part) = parts.first_mut() {
            part[..row.len()].copy_from_slice(row);
        }
    }
}

/// Q8_0: quants and scales apart: 32 bytes a block in the first part, one f16 a block in the second, so that quants are
/// read 16 bytes at a time.
struct Split;

impl GpuLayout for Split {
    fn unit(&self) -> usize {
        16
    }

    fn row_bytes(&self, cols: usize) -> Vec<usize> {
        let blocks = cols / 32;
        vec![blocks * 32, (blocks * 2).next_multiple_of(16)]
    }

    fn pack_row(&self, row: &[u8], parts: &mut [&mut [u8]]) {
        let [quants, scales] = parts else { return };
        for (i, block) in row.as_chunks::<34>().0.iter().enumerate() {
            scales[i * 2..i * 2 + 2].copy_from_slice(&block[..2]);
            quants[i * 32..(i + 1) * 32].copy_from_slice(&block[2..]);
        }
    }
}
