//! Rows of matrices that a file has transposed, made as they are asked for.

use rayon::prelude::*;
use rwkv_kernels::Format;

/// Rows that are made together: of 2-byte elements, as many as lie beside each other in a cache line of the file. Made
/// one by one, each row would read a cache line for each of its elements.
const BLOCK: usize = 32;

/// Whether the elements of `format` can change places.
pub(super) fn can_turn(format: Format) -> bool {
    format.spec().block() == 1 && matches!(format.spec().block_bytes(), 2 | 4)
}

/// Fills `out` with rows `first ..` of matrices of `each` rows of `cols`, one below the other, of which `stored` has
/// the transposes, one after the other. Both are packed as `format`, one that [`can_turn`].
pub(super) fn rows(
    format: Format,
    stored: &[u8],
    [each, cols]: [usize; 2],
    first: usize,
    out: &mut [u8],
) {
    match format.spec().block_bytes() {
        2 => gather::<2>(stored, [each, cols], first, out),
        _ => gather::<4>(stored, [each, cols], first, out),
    }
}

fn gather<const BYTES: usize>(
    stored: &[u8],
    [each, cols]: [usize; 2],
    first: usize,
    out: &mut [u8],
) {
    let (stored, out) = (
        stored.as_chunks::<BYTES>().0,
        out.as_chunks_mut::<BYTES>().0,
    );
    // A matrix without elements may say any number of rows.
    if out.is_empty() || each == 0 || cols == 0 {
        return;
    }
    let run = |(index, mut out): (usize, &mut [[u8; BYTES]])| {
        let mut row = first + index * BLOCK;
        // Those that are in one matrix, then those in the next.
        while out.len() >= cols {
            let (matrix, place) = (row / each, row % each);
            let count = (each - place).min(out.len() / cols);
            let (now, later) = out.split_at_mut(count * cols);
            for col in 0..cols {
                let from = (matrix * cols + col) * each + place;
                let elements = stored.get(from..from + count).unwrap_or_default();
                for (row, element) in now.chunks_exact_mut(cols).zip(elements) {
                    if let Some(to) = row.get_mut(col) {
                        *to = *element;
                    }
                }
            }
            (row, out) = (row + count, later);
        }
    };
    out.par_chunks_mut(BLOCK * cols).enumerate().for_each(run);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "tests; sizes are small")]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_element_is_in_its_place(count in 0usize..4, each in 0usize..90, cols in 0usize..40, from in 0.0..=1.0, to in 0.0..=1.0, wide: bool) {
            let format = if wide { Format::F32 } else { Format::F16 };
            prop_assert!(can_turn(format));
            let bytes = format.spec().block_bytes();
            let element = |index: usize| index.to_le_bytes().into_iter().take(bytes);
            let total = count * each;
            let stored: Vec<u8> = (0..total * cols).flat_map(element).collect();
            let place = |share: f64| (share * total as f64).round() as usize;
            let (first, end) = (place(f64::min(from, to)), place(f64::max(from, to)));
            let mut out = vec![0xEE; (end - first) * cols * bytes];
            rows(format, &stored, [each, cols], first, &mut out);
            let want = (first..end).flat_map(|row| (0..cols).map(move |col| {
                (row / each * cols + col) * each + row % each
            }));
            let want: Vec<u8> = want.flat_map(element).collect();
            prop_assert_eq!(out, want);
        }
    }

    #[test]
    fn block_formats_cannot() {
        for format in Format::ALL {
            let plain = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
            assert_eq!(can_turn(format), plain, "{format}");
        }
    }
}
