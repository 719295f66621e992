//! Values that are compared by address: equal values intern to the same one.

use dashmap::DashMap;
use std::{
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
#[derive(Debug)]
pub struct Interner<T: Eq + Hash> {
    table: DashMap<Arc<T>, ()>,
}

impl<T: Eq + Hash> Default for Interner<T> {
    fn default() -> Self {
        Self {
            table: DashMap::new(),
        }
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// The one handle of `value`.
    pub fn intern(&self, value: T) -> Interned<T> {
        let entry = self.table.entry(Arc::new(value));
        Interned(entry.or_insert(()).key().clone())
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
        self.table.retain(|value, ()| Arc::strong_count(value) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Handles are equal exactly when values are, however often and in whatever order they were interned.
        #[test]
        fn equal_values_share_a_handle(values in prop::collection::vec(0u8..20, 1..60)) {
            let table = Interner::default();
            let handles: Vec<_> = values.iter().map(|v| table.intern(*v)).collect();
            for (a, x) in values.iter().zip(&handles) {
                prop_assert_eq!(a, &**x);
                for (b, y) in values.iter().zip(&handles) {
                    prop_assert_eq!(a == b, x == y);
                }
            }
            let distinct: std::collections::HashSet<_> = values.iter().collect();
            prop_assert_eq!(table.len(), distinct.len());
            drop(handles);
            table.trim();
            prop_assert!(table.is_empty());
        }
    }
}
