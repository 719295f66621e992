//! The demo model, compiled in: a 9 M parameter RWKV-7 (assets/demo/README.md).

use crate::{ModelFile, Result, files::Checkpoint};

/// Tensors are read fastest where they are aligned as in a mapped file.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static DEMO: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/demo/demo.gguf"));

impl ModelFile {
    /// The demo model: needs no file.
    ///
    /// # Errors
    /// None, unless the program was built from damaged sources.
    pub fn demo() -> Result<Self> {
        Self::from_checkpoint(
            Checkpoint::from_static("the bundled demo model", &DEMO.0)?,
            None,
        )
    }
}
