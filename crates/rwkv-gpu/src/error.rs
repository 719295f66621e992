//! What can go wrong between a program and its GPU.

/// An error of this crate: one line that says what was being done, to what, and what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No adapter fits the selection.
    #[error("no usable GPU for device `{}`: {}; `rwkv-cli devices` lists what there is, `--device cpu` needs no GPU",
        .wanted.escape_debug(), reasons_line(.refused))]
    NoAdapter {
        /// The selection as it was written.
        wanted: String,
        /// Each adapter that was looked at, and why it was refused.
        refused: Vec<(String, String)>,
    },

    /// The driver refused to open the adapter.
    #[error(
        "cannot open the GPU {adapter}: {reason}; try another one with --device, or --device cpu"
    )]
    OpenFailed {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        reason: String,
    },

    /// An allocation did not fit.
    #[error("out of GPU memory: {what}{}", out_of_memory(*.bytes, *.in_use, *.limit))]
    OutOfMemory {
        /// What was being created.
        what: String,
        /// Its bytes, where it is a buffer.
        bytes: Option<u64>,
        /// Bytes of the buffers that were alive.
        in_use: u64,
        /// The limit that was set, where it and not the driver refused.
        limit: Option<u64>,
    },

    /// A buffer or a binding is larger than the adapter allows.
    #[error("{what} needs {bytes} bytes, but the adapter's {limit} is {allowed}")]
    OverLimit {
        /// What is too large.
        what: String,
        /// Its size in bytes.
        bytes: u64,
        /// The limit's name.
        limit: &'static str,
        /// The limit in bytes.
        allowed: u64,
    },

    /// wgpu or the driver rejected an operation: a mistake in this program.
    #[error("the GPU driver rejected {what}: {message}")]
    Rejected {
        /// What was being done: the kernel, the buffer or the submission.
        what: String,
        /// The driver's words, on one line.
        message: String,
    },

    /// A shader needs something that the adapter lacks.
    #[error("kernel {shader} needs {feature}, which {adapter} lacks")]
    Unsupported {
        /// The shader's name.
        shader: String,
        /// The missing feature.
        feature: &'static str,
        /// The adapter's name.
        adapter: String,
    },

    /// The device is gone: the driver was reset, or ran out of memory where that cannot be survived.
    #[error("the GPU was lost: {reason}; open it again to go on")]
    Lost {
        /// The driver's words.
        reason: String,
    },

    /// A file of the cache could not be written.
    #[error("cannot write the cache file {}: {source}; set RWKV_CACHE_DIR to a folder that can be written", .path.display())]
    CacheFile {
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },

    /// A value of an environment variable or flag that is not understood.
    #[error("`{}` in {name}: {}", .value.escape_debug(), one_line(.problem))]
    BadSetting {
        /// The variable or flag.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn reasons_line(refused: &[(String, String)]) -> String {
    if refused.is_empty() {
        return "no Vulkan, Metal, DX12 or GL driver was found".to_owned();
    }
    let reasons: Vec<_> = refused
        .iter()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    reasons.join("; ")
}

fn out_of_memory(bytes: Option<u64>, in_use: u64, limit: Option<u64>) -> String {
    let wanted = bytes.map_or(String::new(), |bytes| format!(" needs {bytes} bytes"));
    match limit {
        Some(limit) => format!(
            "{wanted} where {in_use} are in use of the {limit} of --gpu-memory; allow more, or take a smaller model, --quant or --device cpu"
        ),
        None => format!(
            "{wanted} where {in_use} are in use by this program, and the driver has no more; close other programs that use the GPU, or take a smaller model, --quant or --device cpu"
        ),
    }
}

/// wgpu's messages have several lines; ours have one.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
