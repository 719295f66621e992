//! What both writers share: the tensors' bytes, streamed in the order of a plan.

use super::error::quoted;
use std::io::{self, Write};

/// Why a checkpoint cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output failed.
    #[error("writing a checkpoint: {0}")]
    Io(#[from] io::Error),
    /// The names and shapes take more room than readers allow.
    #[error("writing a checkpoint: the header has {bytes} bytes, more than {most}")]
    Header {
        /// Bytes of the header.
        bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// A metadata key was set to something that the format does not allow.
    #[error("writing a checkpoint: metadata {} {what}", quoted(.key))]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A tensor was planned or written that the format, or the plan, does not allow.
    #[error("writing a checkpoint: tensor {} {what}", quoted(.tensor))]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A tensor that will be written.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// Writes zeros from `at` to the next multiple of `alignment`.
pub(super) fn pad(out: &mut impl Write, at: u64, alignment: u64) -> io::Result<()> {
    let missing = at.next_multiple_of(alignment) - at;
    io::copy(&mut io::Read::take(io::repeat(0), missing), out).map(drop)
}

/// The second half of writing a checkpoint: the tensors' bytes. Dropping it before [`finish`](Self::finish) leaves a
/// truncated file behind.
pub struct Body<W> {
    out: W,
    /// Those after the current one.
    tensors: std::vec::IntoIter<Planned>,
    current: Option<Planned>,
    /// Bytes of the current one that are written.
    written: u64,
    alignment: u64,
}

impl<W: Write> Body<W> {
    /// The tensors after a header that is written; each begins at a multiple of `alignment`.
    pub(super) fn new(out: W, tensors: Vec<Planned>, alignment: u64) -> Self {
        let mut tensors = tensors.into_iter();
        let current = tensors.next();
        Self {
            out,
            tensors,
            current,
            written: 0,
            alignment,
        }
    }

    /// Writes the next `bytes` of `tensor`, the whole or a piece. Tensors come in the order of the plan; one of no
    /// bytes may be left out.
    ///
    /// # Errors
    /// [`WriteError::Tensor`] for bytes that the plan does not have there, [`WriteError::Io`] when the output fails.
    pub fn write(&mut self, tensor: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let wrong = |what: String| WriteError::Tensor {
            tensor: tensor.to_owned(),
            what,
        };
        self.advance(Some(tensor))?;
        let Some(current) = self
            .current
            .as_ref()
            .filter(|current| current.name == tensor)
        else {
            return match &self.current {
                None => Err(wrong("was not planned, or comes too late".to_owned())),
                Some(current) => Err(wrong(format!(
                    "comes where the plan has {}",
                    quoted(&current.name)
                ))),
            };
        };
        let left = current.bytes - self.written;
        if bytes.len() as u64 > left {
            return Err(wrong(format!(
                "got {} bytes where {left} of {} are left",
                bytes.len(),
                current.bytes
            )));
        }
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Checks that every tensor is complete, writes the last padding, flushes, and gives the output back.
    ///
    /// # Errors
    /// [`WriteError::Tensor`] for one that is not complete, [`WriteError::Io`] when the output fails.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.advance(None)?;
        if let Some(Planned { name, bytes }) = self.current {
            let what = format!("has {} of its {bytes} bytes", self.written);
            return Err(WriteError::Tensor { tensor: name, what });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Goes past tensors that are complete, up to the one called `wanted`.
    fn advance(&mut self, wanted: Option<&str>) -> io::Result<()> {
        while let Some(current) = self
            .current
            .take_if(|current| current.bytes == self.written)
        {
            if wanted == Some(&current.name) {
                // More of a tensor that has everything: `write` will count the bytes.
                self.current = Some(current);
                break;
            }
            pad(&mut self.out, self.written, self.alignment)?;
            self.current = self.tensors.next();
            self.written = 0;
        }
        Ok(())
    }
}
