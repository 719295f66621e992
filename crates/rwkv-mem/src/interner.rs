//! Values that are compared by address: equal values intern to the same one.
//!
//! The table is bounded: of the values that nobody holds a handle of it keeps those that are asked for most. A value that
//! somebody holds stays, so that an equal one finds it.

use quick_cache::{
    DefaultHashBuilder, Lifecycle, UnitWeighter,
    sync::{Cache, GuardResult},
};
use std::{
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// A shared value; comparing and hashing look at its address, so a map keyed by it costs the same whatever its size.
#[derive(Debug)]
pub struct Interned<T>(Arc<T>);

impl<T> Clone for Interned<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> PartialEq for Interned<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for Interned<T> {}

impl<T> Hash for Interned<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl<T> Deref for Interned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// The table of interned values. Handles of different tables never compare equal.
pub struct Interner<T: Eq + Hash> {
    /// Each value twice, as what is looked up and as what is found.
    table: Cache<Arc<T>, Arc<T>, UnitWeighter, DefaultHashBuilder, KeepHeld>,
}

/// Which values may not go.
#[derive(Clone, Copy, Debug)]
struct KeepHeld;

/// References to a value that the table itself has.
const OWN: usize = 2;

/// Values that nobody holds a handle of and that are kept, unless said otherwise.
const KEPT: usize = 1024;

impl<T> Lifecycle<Arc<T>, Arc<T>> for KeepHeld {
    type RequestState = ();

    /// Handles are made under the lock under which values go, so a value that has none gets none meanwhile.
    fn is_pinned(&self, key: &Arc<T>, _: &Arc<T>) -> bool {
        Arc::strong_count(key) > OWN
    }
}

impl<T: Eq + Hash> Default for Interner<T> {
    /// A table that keeps up to 1024 values that nobody holds.
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// A table that keeps about `values` values that nobody holds a handle of, one at least.
    pub fn keeping(values: usize) -> Self {
        let values = values.max(1);
        let hasher = DefaultHashBuilder::default();
        let weight = values as u64;
        Self {
            table: Cache::with(values, weight, UnitWeighter, hasher, KeepHeld),
        }
    }

    /// The one handle of `value`.
    pub fn intern(&self, value: T) -> Interned<T> {
        if let Some(found) = self.table.get(&value) {
            return Interned(found);
        }
        let value = Arc::new(value);
        let found = match self.table.get_value_or_guard(&value, None) {
            GuardResult::Value(found) => found,
            GuardResult::Guard(guard) => {
                // It is not there only if everything was cleared meanwhile, which nobody does.
                let _ = guard.insert(value.clone());
                value
            }
            // Without a limit of time there is none.
            GuardResult::Timeout => value,
        };
        Interned(found)
    }

    /// Values held.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Drops the values that nobody holds a handle of.
    pub fn trim(&self) {
        self.table.retain(|value, _| Arc::strong_count(value) > OWN);
    }
}

impl<T: Eq + Hash> fmt::Debug for Interner<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interner")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    proptest! {
        /// Handles are equal exactly when values are, however often and in whatever order they were interned.
        #[test]
        fn equal_values_share_a_handle(
            values in prop::collection::vec(0u8..200, 1..300),
            kept in prop::sample::select(vec![0usize, 1, 20, 1000]),
        ) {
            let table = Interner::keeping(kept);
            let handles: Vec<_> = values.iter().map(|v| table.intern(*v)).collect();
            let mut first: HashMap<u8, &Interned<u8>> = HashMap::new();
            for (value, handle) in values.iter().zip(&handles) {
                prop_assert_eq!(value, &**handle);
                prop_assert_eq!(*first.entry(*value).or_insert(handle), handle);
            }
            let distinct: HashSet<_> = handles.iter().collect();
            prop_assert_eq!(distinct.len(), first.len());
            // Held values are kept, however few others would be.
            prop_assert_eq!(table.len(), first.len());
            table.trim();
            prop_assert_eq!(table.len(), first.len());
            drop(handles);
            table.trim();
            prop_assert!(table.is_empty());
        }

        /// Interning what is interned changes nothing, from eight threads too, while others' values come and go.
        #[test]
        fn threads_get_the_same_handles(
            values in prop::collection::vec(0u16..40, 1..60),
            kept in prop::sample::select(vec![1usize, 8, 1000]),
        ) {
            let table = Interner::keeping(kept);
            let all: Vec<Vec<_>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8u16).map(|thread| {
                    let (table, values) = (&table, &values);
                    scope.spawn(move || {
                        let mut handles = Vec::new();
                        for value in values {
                            handles.push(table.intern(*value));
                            table.intern(1000 * (thread + 1) + value);
                            if value % 16 == thread {
                                table.trim();
                            }
                        }
                        handles
                    })
                }).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for handles in &all {
                prop_assert_eq!(handles, &all[0]);
            }
        }
    }

    /// Values that nobody holds do not pile up, and those that are asked for again and again stay.
    #[test]
    fn what_is_not_held_is_bounded() {
        let table = Interner::keeping(64);
        let often = |table: &Interner<u32>| (0..16).map(|i| table.intern(i)).collect::<Vec<_>>();
        let addresses = |all: &[Interned<u32>]| -> Vec<_> {
            all.iter().map(|handle| Arc::as_ptr(&handle.0)).collect()
        };
        let first = addresses(&often(&table));
        for i in 100..20_000 {
            table.intern(i);
            if i % 8 == 0 {
                assert_eq!(addresses(&often(&table)), first);
            }
            assert!(table.len() <= 64);
        }
    }
}
