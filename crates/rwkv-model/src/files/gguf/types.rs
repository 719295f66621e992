//! ggml's tensor types.

use rwkv_kernels::Format;

use super::super::TensorType;

/// A tensor type, as GGUF files number them (`ggml_type`).
#[derive(Clone, Copy, Debug)]
pub(super) struct GgmlType {
    /// Its number in a file.
    pub(super) id: u32,
    /// Its name in lower case, which is also that of our [`Format`] where we have one.
    pub(super) name: &'static str,
    /// Elements a block.
    pub(super) block: u64,
    /// Bytes a block.
    pub(super) block_bytes: u64,
}

const fn row(id: u32, name: &'static str, block: u64, block_bytes: u64) -> GgmlType {
    GgmlType {
        id,
        name,
        block,
        block_bytes,
    }
}

/// The types whose size is known. The missing numbers were given up by ggml, and stand in no current file.
pub(super) const TYPES: [GgmlType; 34] = [
    row(0, "f32", 1, 4),
    row(1, "f16", 1, 2),
    row(2, "q4_0", 32, 18),
    row(3, "q4_1", 32, 20),
    row(6, "q5_0", 32, 22),
    row(7, "q5_1", 32, 24),
    row(8, "q8_0", 32, 34),
    // As C has it: 32 bytes and two f16. An intermediate that no file should hold; gguf-py still has its old size, 40.
    row(9, "q8_1", 32, 36),
    row(10, "q2_k", 256, 84),
    row(11, "q3_k", 256, 110),
    row(12, "q4_k", 256, 144),
    row(13, "q5_k", 256, 176),
    row(14, "q6_k", 256, 210),
    row(15, "q8_k", 256, 292),
    row(16, "iq2_xxs", 256, 66),
    row(17, "iq2_xs", 256, 74),
    row(18, "iq3_xxs", 256, 98),
    row(19, "iq1_s", 256, 50),
    row(20, "iq4_nl", 32, 18),
    row(21, "iq3_s", 256, 110),
    row(22, "iq2_s", 256, 82),
    row(23, "iq4_xs", 256, 136),
    row(24, "i8", 1, 1),
    row(25, "i16", 1, 2),
    row(26, "i32", 1, 4),
    row(27, "i64", 1, 8),
    row(28, "f64", 1, 8),
    row(29, "iq1_m", 256, 56),
    row(30, "bf16", 1, 2),
    row(34, "tq1_0", 256, 54),
    row(35, "tq2_0", 256, 66),
    row(39, "mxfp4", 32, 17),
    row(40, "nvfp4", 64, 36),
    row(41, "q1_0", 128, 18),
];

impl GgmlType {
    /// The type that a file calls `id`.
    pub(super) fn from_id(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|row| row.id == id)
    }

    /// The type called as `kind` is.
    pub(super) fn of(kind: TensorType) -> Option<&'static Self> {
        let name = match kind {
            TensorType::Format(format) => format.spec().name(),
            TensorType::Other(name) => name,
            TensorType::Csr => return None,
        };
        TYPES.iter().find(|row| row.name == name)
    }

    /// Our word for it: a format wherever the kernels know one of this name.
    pub(super) fn kind(&self) -> TensorType {
        Format::from_name(self.name).map_or(TensorType::Other(self.name), TensorType::Format)
    }

    /// Bytes of a tensor whose rows have `cols` elements, or `None` where a row is no whole number of blocks, or the
    /// size overflows.
    pub(super) fn bytes(&self, rows: u64, cols: u64) -> Option<u64> {
        let blocks = cols
            .is_multiple_of(self.block)
            .then_some(cols / self.block)?;
        blocks.checked_mul(self.block_bytes)?.checked_mul(rows)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn formats_have_the_sizes_of_their_ggml_types() {
        for row in &TYPES {
            assert_eq!(
                GgmlType::from_id(row.id).unwrap().name,
                row.name,
                "two rows have number {}",
                row.id
            );
            assert_eq!(
                GgmlType::of(row.kind()).unwrap().id,
                row.id,
                "{} is found by its name",
                row.name
            );
            if let TensorType::Format(format) = row.kind() {
                let (block, bytes) = (
                    format.spec().block() as u64,
                    format.spec().block_bytes() as u64,
                );
                assert_eq!((block, bytes), (row.block, row.block_bytes), "{}", row.name);
            }
        }
        let ours =
            |format: &Format| matches!(format, Format::Int8(_) | Format::Nf4(_) | Format::Sf4(_));
        assert!(
            Format::ALL
                .iter()
                .all(|&format| ours(&format) != GgmlType::of(format.into()).is_some())
        );
    }
}
