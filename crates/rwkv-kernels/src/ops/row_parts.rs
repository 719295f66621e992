//! How kernels that give a workgroup to each row share it among their threads.

/// Threads of a workgroup, as in the manifest.
pub(crate) const ROW_THREADS: usize = 256;

/// Units of four channels that a thread may have of a row, as in the manifest.
const PARTS: [usize; 5] = [1, 2, 3, 4, 8];

/// The fewest that make up rows of `width` channels, if any do.
pub(crate) fn parts(width: usize) -> Option<usize> {
    let needed = (width / 4).div_ceil(ROW_THREADS);
    PARTS.into_iter().find(|parts| needed <= *parts)
}
