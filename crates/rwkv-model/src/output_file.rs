//! A file that appears under its name only when it is complete.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Bytes that small writes are gathered into.
const BUFFER: usize = 1 << 20;

/// A temporary file beside the one it will become. Dropped before [`finish`](Self::finish), it leaves nothing.
pub struct OutputFile {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
}

impl OutputFile {
    /// A file that will be `path`; a link is followed, what it points to is replaced.
    ///
    /// # Errors
    /// What the operating system says; a path that is there and is no regular file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if target.exists() && !target.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".rwkv-write");
        #[cfg(unix)]
        {
            // As any new file: what the user's umask leaves.
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder(&target))?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER, file),
            target,
        })
    }

    /// Where the bytes go.
    pub fn writer(&mut self) -> &mut BufWriter<NamedTempFile> {
        &mut self.file
    }

    /// Puts the file on the disk and then under its name; says how long it is.
    ///
    /// # Errors
    /// What the operating system says; nothing is left then.
    pub fn finish(self) -> io::Result<u64> {
        let Self { file, target } = self;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        // The name must not be there before the bytes are, even if the machine stops.
        file.as_file().sync_all()?;
        let bytes = file.as_file().metadata()?.len();
        file.persist(&target).map_err(|e| e.error)?;
        // The new name too, where folders can be synchronised.
        if let Ok(folder) = File::open(folder(&target)) {
            let _ = folder.sync_all();
        }
        Ok(bytes)
    }
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Whether both paths are one file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    matches!((std::fs::canonicalize(a), std::fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}
