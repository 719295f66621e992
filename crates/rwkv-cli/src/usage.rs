//! Mistakes in how the program was called.

/// A flag or argument that cannot be used: exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl UsageError {
    /// An error with this message, for `?`.
    pub(crate) fn error(message: impl Into<String>) -> anyhow::Error {
        Self(message.into()).into()
    }
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
