//! Checkpoints as they were trained, read the way web-rwkv's converted files are.

use anyhow::{Result, bail};
use half::f16;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::borrow::Cow;
use web_rwkv::runtime::loader::{Reader, ReaderTensor};

/// A checkpoint with the original names as web-rwkv wants to read it: all f16, low-rank pairs as `[out, in]`.
pub(crate) struct Checkpoint<'a> {
    file: SafeTensors<'a>,
    width: usize,
}

impl<'a> Checkpoint<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)?;
        let width = match file.tensor("emb.weight")?.shape() {
            [_, width] => *width,
            shape => bail!("emb.weight has the shape {shape:?}, not [vocabulary, width]"),
        };
        Ok(Self { file, width })
    }

    /// Whether the tensor lies as `[in, out]`, which files made by web-rwkv's own script have turned already. Nothing
    /// tells where the rank is the width: then it is taken as an original checkpoint's.
    fn turned(&self, name: &str, shape: &[usize]) -> bool {
        let Some((_, name)) = name.rsplit_once(".att.") else {
            return false;
        };
        match (name, shape) {
            ("w1" | "a1" | "g1" | "v1", [input, _]) => *input == self.width,
            ("w2" | "a2" | "g2" | "v2", [_, output]) => *output == self.width,
            _ => false,
        }
    }
}

impl Reader for Checkpoint<'_> {
    fn names(&self) -> Vec<&str> {
        Reader::names(&self.file)
    }

    fn contains(&self, name: &str) -> bool {
        Reader::contains(&self.file, name)
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, SafeTensorError> {
        let mut shape = self.file.tensor(name)?.shape().to_vec();
        if self.turned(name, &shape) {
            shape.reverse();
        }
        Ok(shape)
    }

    fn tensor(&self, name: &str) -> Result<ReaderTensor<'_>, SafeTensorError> {
        let (dtype, mut shape, mut data) = Reader::tensor(&self.file, name)?;
        let halves = |convert: fn(&[u8]) -> f16, size| -> Cow<'_, [u8]> {
            let halves = data
                .chunks_exact(size)
                .flat_map(|x| convert(x).to_le_bytes());
            Cow::Owned(halves.collect())
        };
        match dtype {
            Dtype::F16 => {}
            Dtype::BF16 => {
                data = halves(|x| f16::from_f32(f32::from_le_bytes([0, 0, x[0], x[1]])), 2);
            }
            Dtype::F32 => {
                data = halves(
                    |x| f16::from_f32(f32::from_le_bytes([x[0], x[1], x[2], x[3]])),
                    4,
                );
            }
            // web-rwkv refuses all that is not f16.
            _ => return Ok((dtype, shape, data)),
        }
        if self.turned(name, &shape) {
            let (rows, columns) = (shape[0], shape[1]);
            let turned = (0..columns).flat_map(|c| (0..rows).map(move |r| 2 * (r * columns + c)));
            data = Cow::Owned(turned.flat_map(|at| [data[at], data[at + 1]]).collect());
            shape.reverse();
        }
        Ok((Dtype::F16, shape, data))
    }
}
