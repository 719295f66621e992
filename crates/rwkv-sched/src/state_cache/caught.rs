//! A store whose panics are errors, as the others are: who waits for a thread that has panicked would wait for ever.

use super::{StateStore, Stored};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// A store that says what it cannot do.
pub(super) struct Caught(pub(super) Arc<dyn StateStore>);

/// What `call` makes. A store that has panicked is asked again like any other: nothing of ours was changed meanwhile.
fn caught<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(io::Error::other("the store has panicked")))
}

impl StateStore for Caught {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<u64> {
        caught(|| self.0.put(name, bytes))
    }

    fn get(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        caught(|| self.0.get(name, most))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        caught(|| self.0.remove(name))
    }

    fn list(&self) -> io::Result<Vec<Stored>> {
        caught(|| self.0.list())
    }

    fn capacity(&self) -> u64 {
        let capacity = caught(|| Ok(self.0.capacity()));
        capacity.unwrap_or(0)
    }
}
