//! The two matrices of a low-rank change, packed as they came.

use rwkv_kernels::Format;
use std::{fmt, sync::Arc};

/// Where packed bytes are: on the heap, in a mapped file.
pub type PackedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A or B of a [`LowRank`](crate::LowRank). Its elements stay packed where they are, and are expanded while a blend is
/// made.
#[derive(Clone)]
pub struct Factor {
    bytes: PackedBytes,
    format: Format,
    len: usize,
    turned: bool,
}

impl Factor {
    /// The matrix whose rows `bytes` has, packed as `format`, one after the other: `len` elements. None where as many
    /// elements make another number of bytes.
    pub fn packed(format: Format, len: usize, bytes: PackedBytes) -> Option<Self> {
        let needed = format.row_bytes(len)?;
        (needed == bytes.as_ref().as_ref().len()).then_some(Self {
            bytes,
            format,
            len,
            turned: false,
        })
    }

    /// Its transpose.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            turned: !self.turned,
            ..self
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements of the `rows` rows, one row after the other.
    pub fn values(&self, rows: usize) -> Vec<f32> {
        let mut stored = vec![0.0; self.len];
        let spec = self.format.spec();
        spec.dequantize(self.bytes.as_ref().as_ref(), &mut stored);
        if !self.turned || rows < 2 {
            return stored;
        }
        let mut values = vec![0.0; self.len];
        let cols = self.len / rows;
        for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            let column = stored.iter().skip(row).step_by(rows);
            for (to, from) in values.iter_mut().zip(column) {
                *to = *from;
            }
        }
        values
    }
}

impl From<Vec<f32>> for Factor {
    fn from(values: Vec<f32>) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self {
            bytes: Arc::new(bytes),
            format: Format::F32,
            len: values.len(),
            turned: false,
        }
    }
}

impl fmt::Debug for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let turned = if self.turned { ", transposed" } else { "" };
        write!(f, "{} elements of {}{turned}", self.len, self.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        #[track_caller]
        fn check(factor: &Factor, rows: usize, want: &[f32]) {
            assert_eq!(factor.values(rows), want, "{factor:?}");
        }
        let plain = Factor::from(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        check(&plain, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        // Of `[2, 3]` as it is stored.
        let turned = plain.clone().transposed();
        check(&turned, 3, &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        check(&turned, 1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        check(&turned, 6, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        check(&turned.transposed(), 2, &plain.values(2));
        check(&Factor::from(Vec::new()).transposed(), 3, &[]);
        let half = |len: usize, bytes: Vec<u8>| Factor::packed(Format::F16, len, Arc::new(bytes));
        assert!(half(2, vec![0; 3]).is_none());
        assert!(half(usize::MAX, vec![0; 4]).is_none());
        let halves = half(2, vec![0, 0x3c, 0, 0xc0]).map(|f| f.values(1));
        assert_eq!(halves, Some(vec![1.0, -2.0]));
    }
}
