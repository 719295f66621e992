//! Where states go that memory has no room for.

use std::io;

/// Keeps opaque bytes by name, for longer than the process if it can: a folder of files (`rwkv-model`'s
/// `DiskStateStore`), a database. Called from several threads at once; several processes may have one store.
///
/// Names are 1 to 160 lower-case letters, digits and hyphens. What was put may be gone later: a store may make room by
/// itself, and what it finds damaged it drops. What it gives is what was put, whole.
///
/// Errors are ordinary: the cache logs them and goes on without the entry.
pub trait StateStore: Send + Sync {
    /// Keeps `bytes` under `name`, instead of what was there, and says how many bytes that takes. All or nothing, also
    /// when the process is killed.
    ///
    /// # Errors
    /// What the operating system says, or that the bytes have no room.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<u64>;

    /// What lies under `name`; none where there is nothing, or nothing that can be trusted. `most` is the most bytes
    /// that the caller can use: an entry that claims more is not read.
    ///
    /// # Errors
    /// What the operating system says.
    fn get(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>>;

    /// Forgets what lies under `name`, if anything does.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// What there is, those that were put or read longest ago first. Reads no entry.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self) -> io::Result<Vec<Stored>>;

    /// Bytes that all entries may take together.
    fn capacity(&self) -> u64;
}

/// An entry of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Bytes that it takes in the store.
    pub bytes: u64,
}
