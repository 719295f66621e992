//! Which state goes first: GreedyDual-Size (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997).
//!
//! An item's rank is `clock + cost / bytes`, taken when it was last used. The one of the lowest rank goes, and the clock
//! moves on to its rank: what is not used falls behind, the sooner the cheaper and the larger it is.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

/// Items with their ranks, and the bytes of all.
pub(super) struct GreedyDual<I> {
    items: HashMap<I, Item>,
    /// By rank, then by last use, so that of equals the one goes that was used longest ago.
    order: BTreeSet<(u128, u64, I)>,
    clock: u128,
    uses: u64,
    /// So wide that no number of items makes it overflow.
    bytes: u128,
}

#[derive(Clone, Copy)]
struct Item {
    cost: u64,
    bytes: u64,
    /// The clock at the last use.
    since: u128,
    /// Which use that was.
    used: u64,
}

impl Item {
    /// In units of 2⁻⁶⁴ of a cost a byte.
    fn rank(&self) -> u128 {
        let worth = (u128::from(self.cost) << 64) / u128::from(self.bytes.max(1));
        self.since.saturating_add(worth)
    }
}

impl<I: Copy + Eq + Hash + Ord> GreedyDual<I> {
    pub(super) fn new() -> Self {
        Self {
            items: HashMap::new(),
            order: BTreeSet::new(),
            clock: 0,
            uses: 0,
            bytes: 0,
        }
    }

    /// Bytes of all items, or the most that there is a number for.
    pub(super) fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }

    pub(super) fn contains(&self, id: I) -> bool {
        self.items.contains_key(&id)
    }

    /// The items, those first that go first.
    pub(super) fn ranked(&self) -> impl DoubleEndedIterator<Item = I> + '_ {
        self.order.iter().map(|(_, _, id)| *id)
    }

    /// Adds an item that is used now, or counts as a use of one that is there.
    pub(super) fn insert(&mut self, id: I, cost: u64, bytes: u64) {
        self.remove(id);
        self.uses += 1;
        let item = Item {
            cost,
            bytes,
            since: self.clock,
            used: self.uses,
        };
        self.add(id, item);
    }

    /// The item is used now.
    pub(super) fn touch(&mut self, id: I) {
        if let Some(item) = self.remove(id) {
            self.insert(id, item.cost, item.bytes);
        }
    }

    /// The item costs something else, and is no younger for it.
    pub(super) fn set_cost(&mut self, id: I, cost: u64) {
        if let Some(item) = self.remove(id) {
            self.add(id, Item { cost, ..item });
        }
    }

    /// The item takes another number of bytes, and is no younger for it.
    pub(super) fn set_bytes(&mut self, id: I, bytes: u64) {
        if let Some(item) = self.remove(id) {
            self.add(id, Item { bytes, ..item });
        }
    }

    /// Takes out the item that is worth least.
    pub(super) fn evict(&mut self) -> Option<I> {
        let (rank, _, id) = *self.order.first()?;
        self.remove(id);
        self.clock = self.clock.max(rank);
        Some(id)
    }

    /// Takes out an item for another reason than that it is worth least.
    pub(super) fn forget(&mut self, id: I) {
        self.remove(id);
    }

    fn add(&mut self, id: I, item: Item) {
        self.bytes += u128::from(item.bytes);
        self.order.insert((item.rank(), item.used, id));
        self.items.insert(id, item);
    }

    fn remove(&mut self, id: I) -> Option<Item> {
        let item = self.items.remove(&id)?;
        self.order.remove(&(item.rank(), item.used, id));
        self.bytes -= u128::from(item.bytes);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn evicted(policy: &mut GreedyDual<u32>) -> Vec<u32> {
        std::iter::from_fn(|| policy.evict()).collect()
    }

    #[test]
    fn what_is_cheap_for_its_size_goes_first() {
        let mut policy = GreedyDual::new();
        policy.insert(1, 1000, 10);
        policy.insert(2, 10, 10);
        policy.insert(3, 500, 1000);
        policy.insert(4, 100, 10);
        assert_eq!(policy.bytes(), 1030);
        assert_eq!(evicted(&mut policy), [3, 2, 4, 1]);
        assert_eq!(policy.bytes(), 0);
    }

    #[test]
    fn of_equals_the_one_used_longest_ago() {
        let mut policy = GreedyDual::new();
        for id in 1..=4 {
            policy.insert(id, 7, 7);
        }
        policy.touch(1);
        policy.touch(3);
        assert_eq!(evicted(&mut policy), [2, 4, 1, 3]);
    }

    /// A dear item that is used no more goes after enough cheap ones that are.
    #[test]
    fn what_is_not_used_ages() {
        let mut policy = GreedyDual::new();
        policy.insert(0, 50, 1);
        for id in 1..=100 {
            policy.insert(id, 1, 1);
            if policy.evict() == Some(0) {
                assert!((40..=60).contains(&id), "gone after {id} rounds");
                return;
            }
        }
        unreachable!("it never went");
    }

    /// A new cost moves an item, and makes it no younger.
    #[test]
    fn costs_change() {
        let mut policy = GreedyDual::new();
        policy.insert(1, 5, 1);
        policy.insert(2, 6, 1);
        policy.set_cost(1, 7);
        assert_eq!(policy.evict(), Some(2));
        policy.insert(3, 1, 1);
        policy.set_cost(1, 8);
        // 3 came when the clock stood at 6.
        assert_eq!(policy.evict(), Some(3));
        policy.set_bytes(1, 100);
        assert_eq!(policy.bytes(), 100);
        assert!(policy.contains(1));
    }

    /// Items that claim more bytes together than there is a number for are counted right again when some of them are gone.
    #[test]
    fn more_than_there_is_a_number_for() {
        let mut policy = GreedyDual::new();
        for id in 0..3 {
            policy.insert(id, 1, u64::MAX - 1);
        }
        policy.insert(3, 1000, 7);
        assert_eq!(policy.bytes(), u64::MAX);
        assert_eq!(policy.evict(), Some(0));
        policy.forget(1);
        assert_eq!(policy.bytes(), u64::MAX);
        policy.set_bytes(2, 5);
        assert_eq!(policy.bytes(), 12);
    }

    proptest! {
        /// The clock never goes back, and bytes add up.
        #[test]
        fn bytes_and_clock(acts in prop::collection::vec((0u32..12, 0u64..1000, 0u64..1000, 0u8..6), 0..200)) {
            let mut policy = GreedyDual::new();
            let mut bytes: HashMap<u32, u64> = HashMap::new();
            let mut clock = 0;
            for (id, cost, size, act) in acts {
                match act {
                    0 | 1 => {
                        policy.insert(id, cost, size);
                        bytes.insert(id, size);
                    }
                    2 => policy.touch(id),
                    3 => policy.set_cost(id, cost),
                    4 => {
                        policy.forget(id);
                        bytes.remove(&id);
                    }
                    _ => {
                        let first = policy.ranked().next();
                        let gone = policy.evict();
                        prop_assert_eq!(gone, first);
                        gone.and_then(|id| bytes.remove(&id));
                    }
                }
                prop_assert!(policy.clock >= clock);
                clock = policy.clock;
                prop_assert_eq!(policy.bytes(), bytes.values().sum::<u64>());
                prop_assert_eq!(policy.ranked().count(), bytes.len());
                for id in 0..12 {
                    prop_assert_eq!(policy.contains(id), bytes.contains_key(&id));
                }
            }
        }
    }
}
