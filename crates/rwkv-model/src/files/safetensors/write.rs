//! Writing safetensors: a plan first, then the tensors' bytes in its order. (The crate `safetensors` wants each tensor
//! as one slice; a matrix that is encoded on the way is never whole.)

use super::super::body::{Body, Planned, WriteError};
use super::super::elements;
use super::{csr, packed};
use rwkv_kernels::Format;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// The tensors begin at a multiple of this, so that mapped ones are aligned for every use.
const ALIGNMENT: usize = 64;

/// A tensor of the plan.
struct Row {
    name: String,
    format: Format,
    /// As it stands in the file: bytes for what safetensors has no type for.
    dtype: &'static str,
    shape: Vec<usize>,
    /// As the model has it, where that is packed.
    matrix: Option<[usize; 2]>,
    bytes: u64,
}

/// The plan of a safetensors file.
#[derive(Default)]
pub struct SafetensorsWriter {
    texts: BTreeMap<String, String>,
    rows: Vec<Row>,
    /// Matrices of compressed sparse rows, whose parts are among `rows`.
    sparse: Vec<(String, [usize; 2])>,
}

impl SafetensorsWriter {
    /// A file with no metadata and no tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a text of the metadata.
    pub fn set(&mut self, key: &str, text: &str) -> &mut Self {
        self.texts.insert(key.to_owned(), text.to_owned());
        self
    }

    /// Plans the next tensor. Its `format` is F32, F16 or BF16, or for a matrix `Int8`, `NF4` or `SF4`: those become
    /// tensors of bytes, `[rows, bytes of a row]`, described in the metadata.
    ///
    /// To keep every tensor aligned, plan those with larger elements first.
    ///
    /// # Errors
    /// [`WriteError::Tensor`] for a format or shape that cannot be kept, or a name that was planned before.
    pub fn tensor(
        &mut self,
        name: &str,
        format: Format,
        shape: &[usize],
    ) -> Result<&mut Self, WriteError> {
        let wrong = |what: String| WriteError::Tensor {
            tensor: name.to_owned(),
            what,
        };
        let dtype = match format {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            other if packed::is_packed(other) => "U8",
            other => {
                return Err(wrong(format!(
                    "has the format {other}, which safetensors cannot hold"
                )));
            }
        };
        let (stored, matrix) = match (packed::is_packed(format), shape) {
            (false, _) => (shape.to_vec(), None),
            (true, &[rows, cols]) => {
                let row_bytes = format.row_bytes(cols).ok_or_else(|| {
                    wrong(format!("has rows of {cols}, no whole blocks of {format}"))
                })?;
                (vec![rows, row_bytes], Some([rows, cols]))
            }
            (true, _) => {
                return Err(wrong(format!(
                    "of shape {shape:?} is no matrix, and cannot be kept in {format}"
                )));
            }
        };
        self.plan(name, dtype, stored, format, matrix)?;
        Ok(self)
    }

    /// Plans a matrix of compressed sparse rows with so many entries: three tensors, whose bytes come in this order
    /// under [`csr_parts`](Self::csr_parts)' names. Row offsets are U32; columns are U16, or U32 where `wide`; values
    /// are F16. It begins aligned where its elements may have four bytes.
    ///
    /// # Errors
    /// [`WriteError::Tensor`] for a shape that cannot be kept, or a name that was planned before.
    pub fn csr(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        entries: usize,
        wide: bool,
    ) -> Result<&mut Self, WriteError> {
        let offsets = rows
            .checked_add(1)
            .filter(|_| elements(&[rows, cols]).is_some());
        let Some(offsets) = offsets else {
            return Err(WriteError::Tensor {
                tensor: name.to_owned(),
                what: format!("of shape [{rows}, {cols}] is too large"),
            });
        };
        let [first, columns, values] = Self::csr_parts(name);
        let column = if wide { "U32" } else { "U16" };
        // What a part's elements are is of no consequence but for those that are packed.
        self.plan(&first, "U32", vec![offsets], Format::F32, None)?;
        self.plan(&columns, column, vec![entries], Format::F32, None)?;
        self.plan(&values, "F16", vec![entries], Format::F16, None)?;
        self.sparse.push((name.to_owned(), [rows, cols]));
        Ok(self)
    }

    /// The names of a sparse matrix's parts: row offsets, columns, values.
    pub fn csr_parts(name: &str) -> [String; 3] {
        [csr::ROW_OFFSETS, csr::COLUMNS, csr::VALUES].map(|end| format!("{name}{end}"))
    }

    fn plan(
        &mut self,
        name: &str,
        dtype: &'static str,
        shape: Vec<usize>,
        format: Format,
        matrix: Option<[usize; 2]>,
    ) -> Result<(), WriteError> {
        let wrong = |what: String| WriteError::Tensor {
            tensor: name.to_owned(),
            what,
        };
        let planned = |row: &Row| row.name == name;
        if self.rows.iter().any(planned) || self.sparse.iter().any(|(known, _)| known == name) {
            return Err(wrong("is planned twice".to_owned()));
        }
        let element = match dtype {
            "F32" | "U32" => 4,
            "U8" => 1,
            _ => 2,
        };
        let product = |first: u64| {
            let sizes = shape.iter().map(|n| *n as u64);
            sizes.into_iter().try_fold(first, u64::checked_mul)
        };
        let bytes = elements(&shape).and_then(|_| product(element));
        let bytes = bytes.ok_or_else(|| wrong(format!("of shape {shape:?} is too large")))?;
        self.rows.push(Row {
            name: name.to_owned(),
            format,
            dtype,
            shape,
            matrix,
            bytes,
        });
        Ok(())
    }

    /// Writes the header. Give it a [`BufWriter`](std::io::BufWriter) where `out` is a file.
    ///
    /// # Errors
    /// [`WriteError::Io`] when the output fails, [`WriteError::Tensor`] past 2^64 bytes.
    pub fn begin<W: Write>(mut self, mut out: W) -> Result<Body<W>, WriteError> {
        let matrices = self
            .rows
            .iter()
            .filter_map(|row| Some((row.name.as_str(), row.format, row.matrix?)));
        if let Some(description) = packed::describe(matrices) {
            self.texts.insert(packed::KEY.to_owned(), description);
        }
        let sparse = self.sparse.iter();
        if let Some(description) = csr::describe(sparse.map(|(name, s)| (name.as_str(), *s))) {
            self.texts.insert(csr::KEY.to_owned(), description);
        }
        let mut header = Map::new();
        if !self.texts.is_empty() {
            header.insert("__metadata__".to_owned(), json!(self.texts));
        }
        let mut at = 0u64;
        for row in &self.rows {
            let end = at
                .checked_add(row.bytes)
                .ok_or_else(|| WriteError::Tensor {
                    tensor: row.name.clone(),
                    what: "ends past 2^64 bytes".to_owned(),
                })?;
            let entry =
                json!({ "dtype": row.dtype, "shape": row.shape, "data_offsets": [at, end] });
            header.insert(row.name.clone(), entry);
            at = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
        if header.len() as u64 > super::LONGEST {
            return Err(WriteError::Header {
                bytes: header.len() as u64,
                most: super::LONGEST,
            });
        }
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let planned = self.rows.into_iter().map(|row| Planned {
            name: row.name,
            bytes: row.bytes,
        });
        Ok(Body::new(out, planned.collect(), 1))
    }
}
