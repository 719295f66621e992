//! Where what was compiled and found out is kept for the next run.

use etcetera::BaseStrategy;
use std::path::PathBuf;

/// `RWKV_CACHE_DIR`, else `rwkv` in the platform's cache folder; none, with a warning, for a user without a home. The
/// folder need not be there: it is made when there is something to keep.
pub(crate) fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("RWKV_CACHE_DIR") {
        return Some(folder.into());
    }
    match etcetera::base_strategy::choose_native_strategy() {
        Ok(platform) => Some(platform.cache_dir().join("rwkv")),
        Err(error) => {
            tracing::warn!(
                "nothing is kept for the next run: {error}; RWKV_CACHE_DIR names a folder for it"
            );
            None
        }
    }
}
