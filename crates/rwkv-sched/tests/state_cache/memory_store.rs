//! A store in memory, which counts, and fails when it is told to.

use rwkv_sched::{StateStore, Stored};
use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

pub(crate) struct MemoryStore {
    capacity: u64,
    /// In the order of their last use.
    entries: Mutex<Vec<(String, Vec<u8>)>>,
    pub(crate) gets: AtomicU64,
    pub(crate) puts: AtomicU64,
    pub(crate) fails: AtomicBool,
    pub(crate) panics: AtomicBool,
    /// The most bytes that were ever in it.
    pub(crate) most: AtomicU64,
}

impl MemoryStore {
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            entries: Mutex::new(Vec::new()),
            gets: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            fails: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            most: AtomicU64::new(0),
        }
    }

    pub(crate) fn entries(&self) -> MutexGuard<'_, Vec<(String, Vec<u8>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.entries()
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum()
    }

    fn may_fail(&self) -> io::Result<()> {
        assert!(!self.panics.load(SeqCst), "told to panic");
        if self.fails.load(SeqCst) {
            return Err(io::Error::other("told to fail"));
        }
        Ok(())
    }
}

impl StateStore for MemoryStore {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<u64> {
        self.puts.fetch_add(1, SeqCst);
        self.may_fail()?;
        let kept = bytes.to_vec();
        let mut entries = self.entries();
        entries.retain(|(other, _)| other != name);
        entries.push((name.to_owned(), kept));
        drop(entries);
        self.most.fetch_max(self.bytes(), SeqCst);
        Ok(bytes.len() as u64)
    }

    fn get(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        self.gets.fetch_add(1, SeqCst);
        self.may_fail()?;
        let entries = self.entries();
        let found = entries.iter().find(|(other, _)| other == name);
        Ok(found
            .map(|(_, bytes)| bytes.clone())
            .filter(|b| b.len() as u64 <= most))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.may_fail()?;
        self.entries().retain(|(other, _)| other != name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Stored>> {
        self.may_fail()?;
        let stored = |(name, bytes): &(String, Vec<u8>)| Stored {
            name: name.clone(),
            bytes: bytes.len() as u64,
        };
        Ok(self.entries().iter().map(stored).collect())
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }
}
