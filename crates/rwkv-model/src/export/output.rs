//! A file that appears under its name only when it is complete.

use super::ExportError;
use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Bytes that small writes are gathered into.
const BUFFER: usize = 1 << 20;

/// A temporary file beside the one it will become. Dropped before [`finish`](Self::finish), it leaves nothing.
pub(super) struct OutputFile {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
}

impl OutputFile {
    /// A file that will be `path`; a link is followed, what it points to is replaced.
    pub(super) fn create(path: &Path) -> Result<Self, ExportError> {
        let failed = |source| ExportError::io(path, source);
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if target.exists() && !target.is_file() {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".rwkv-export");
        #[cfg(unix)]
        {
            // As any new file: what the user's umask leaves.
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder(&target)).map_err(failed)?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER, file),
            target,
        })
    }

    /// Where the bytes go.
    pub(super) fn writer(&mut self) -> &mut BufWriter<NamedTempFile> {
        &mut self.file
    }

    /// Puts the file on the disk and then under its name.
    pub(super) fn finish(self) -> Result<u64, ExportError> {
        let Self { file, target } = self;
        let failed = |source| ExportError::io(&target, source);
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        let bytes = file.as_file().metadata().map_err(failed)?.len();
        file.persist(&target).map_err(|e| failed(e.error))?;
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
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    matches!((std::fs::canonicalize(a), std::fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}
