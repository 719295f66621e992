//! A reader of little-endian fields that never passes the end.

use super::super::error::Fault;

/// A place in a file. Every read is checked against the bytes that are left *before* anything is made of it.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    /// At most `bytes.len()`.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes from the start to here.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let short = Fault::Truncated {
            needs: (self.at as u64).saturating_add(len),
        };
        let Ok(len) = usize::try_from(len) else {
            return Err(short);
        };
        let Some(taken) = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)) else {
            return Err(short);
        };
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let short = Fault::Truncated {
            needs: (self.at as u64).saturating_add(N as u64),
        };
        self.take(N as u64)?.first_chunk().copied().ok_or(short)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A 64-bit count of things that take at least `smallest` bytes each: refused where the rest of the file cannot
    /// hold so many.
    pub(super) fn count(&mut self, smallest: u64) -> Result<usize, Fault> {
        let count = self.u64()?;
        let left = self.bytes.len().saturating_sub(self.at) as u64;
        let short = || Fault::Truncated {
            needs: (self.at as u64).saturating_add(count.saturating_mul(smallest)),
        };
        match count.checked_mul(smallest) {
            Some(least) if least <= left => usize::try_from(count).map_err(|_| short()),
            _ => Err(short()),
        }
    }

    /// A string: a 64-bit length, then that many bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.u64()?;
        self.take(len)
    }
}
