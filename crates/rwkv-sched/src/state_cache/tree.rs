//! A radix tree over token ids: prefixes share what they have in common.

use crate::TokenId;
use std::collections::BTreeMap;

/// A node, for as long as it has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(usize);

const ROOT: usize = 0;

/// Values at prefixes. Tokens that several prefixes begin with are kept once.
pub(super) struct PrefixTree<T> {
    /// The root, and what the root leads to; places in `free` hold nothing.
    nodes: Vec<Node<T>>,
    free: Vec<usize>,
    /// Tokens of all edges.
    tokens: usize,
}

struct Node<T> {
    parent: usize,
    /// The tokens from the parent to here: at least one, but for the root.
    edge: Vec<TokenId>,
    /// Tokens from the root to here.
    depth: usize,
    /// By the first token of their edges.
    children: BTreeMap<TokenId, usize>,
    value: Option<T>,
}

/// What lies along some tokens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Path<T> {
    /// How many of the tokens are in the tree.
    pub(super) shared: usize,
    /// The values at prefixes of the tokens, the shortest first.
    pub(super) values: Vec<T>,
    /// Nodes that were looked at.
    pub(super) visits: u64,
}

impl<T: Copy> PrefixTree<T> {
    pub(super) fn new() -> Self {
        let root = Node {
            parent: ROOT,
            edge: Vec::new(),
            depth: 0,
            children: BTreeMap::new(),
            value: None,
        };
        Self {
            nodes: vec![root],
            free: Vec::new(),
            tokens: 0,
        }
    }

    /// Tokens that it keeps.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() - self.free.len() == 1
    }

    /// What lies along `tokens`.
    pub(super) fn path(&self, tokens: &[TokenId]) -> Path<T> {
        let mut path = Path {
            shared: 0,
            values: Vec::new(),
            visits: 0,
        };
        let mut at = ROOT;
        loop {
            let node = &self.nodes[at];
            path.visits += 1;
            path.values.extend(node.value);
            let Some((child, common)) = self.step(at, &tokens[path.shared..]) else {
                return path;
            };
            path.shared += common;
            if common < self.nodes[child].edge.len() {
                return path;
            }
            at = child;
        }
    }

    /// The child that `rest` leads to, and how many tokens its edge has in common with `rest`.
    fn step(&self, at: usize, rest: &[TokenId]) -> Option<(usize, usize)> {
        let child = *self.nodes[at].children.get(rest.first()?)?;
        let edge = &self.nodes[child].edge;
        let same = edge.iter().zip(rest).take_while(|(a, b)| a == b).count();
        Some((child, same))
    }

    /// The value after exactly `tokens`.
    pub(super) fn get(&self, tokens: &[TokenId]) -> Option<T> {
        let mut at = ROOT;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (child, common) = self.step(at, rest)?;
            if common < self.nodes[child].edge.len() {
                return None;
            }
            rest = &rest[common..];
            at = child;
        }
        self.nodes[at].value
    }

    /// Puts `value` after `tokens`, instead of what was there.
    pub(super) fn insert(&mut self, tokens: &[TokenId], value: T) -> NodeId {
        let mut at = ROOT;
        let mut rest = tokens;
        while let Some(first) = rest.first() {
            let Some((child, common)) = self.step(at, rest) else {
                let child = self.add(at, rest.to_vec());
                self.nodes[at].children.insert(*first, child);
                self.tokens += rest.len();
                at = child;
                break;
            };
            at = if common < self.nodes[child].edge.len() {
                self.split(child, common)
            } else {
                child
            };
            rest = &rest[common..];
        }
        self.nodes[at].value = Some(value);
        NodeId(at)
    }

    fn add(&mut self, parent: usize, edge: Vec<TokenId>) -> usize {
        let node = Node {
            parent,
            depth: self.nodes[parent].depth + edge.len(),
            edge,
            children: BTreeMap::new(),
            value: None,
        };
        if let Some(at) = self.free.pop() {
            self.nodes[at] = node;
            at
        } else {
            self.nodes.push(node);
            self.nodes.len() - 1
        }
    }

    /// Puts a node into the edge to `child`, after `common` of its tokens; at least one is left.
    fn split(&mut self, child: usize, common: usize) -> usize {
        let parent = self.nodes[child].parent;
        let below = self.nodes[child].edge.split_off(common);
        let above = std::mem::replace(&mut self.nodes[child].edge, below);
        let (upper, lower) = (above[0], self.nodes[child].edge[0]);
        let middle = self.add(parent, above);
        self.nodes[parent].children.insert(upper, middle);
        self.nodes[middle].children.insert(lower, child);
        self.nodes[child].parent = middle;
        middle
    }

    /// Takes the value of `node`, and the tokens that no other value needs.
    pub(super) fn remove(&mut self, NodeId(node): NodeId) {
        self.nodes[node].value = None;
        let mut at = node;
        while at != ROOT && self.nodes[at].value.is_none() {
            let parent = self.nodes[at].parent;
            match self.nodes[at].children.len() {
                0 => {
                    let edge = std::mem::take(&mut self.nodes[at].edge);
                    self.tokens -= edge.len();
                    self.nodes[parent].children.remove(&edge[0]);
                    self.free.push(at);
                    at = parent;
                }
                1 => return self.join(at),
                _ => return,
            }
        }
    }

    /// Takes a node out that has no value and one child.
    fn join(&mut self, at: usize) {
        let Some((_, child)) = self.nodes[at].children.pop_first() else {
            return;
        };
        let parent = self.nodes[at].parent;
        let mut edge = std::mem::take(&mut self.nodes[at].edge);
        edge.append(&mut self.nodes[child].edge);
        self.nodes[parent].children.insert(edge[0], child);
        self.nodes[child].edge = edge;
        self.nodes[child].parent = parent;
        self.free.push(at);
    }

    /// The value at the longest prefix of `node`'s that has one.
    pub(super) fn above(&self, NodeId(node): NodeId) -> Option<T> {
        let mut at = node;
        while at != ROOT {
            at = self.nodes[at].parent;
            if let Some(value) = self.nodes[at].value {
                return Some(value);
            }
        }
        None
    }

    /// The values for which `node`'s is the one [`above`](Self::above).
    pub(super) fn below(&self, NodeId(node): NodeId) -> Vec<T> {
        let mut found = Vec::new();
        let mut open: Vec<_> = self.nodes[node].children.values().copied().collect();
        while let Some(at) = open.pop() {
            match self.nodes[at].value {
                Some(value) => found.push(value),
                None => open.extend(self.nodes[at].children.values()),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl<T: Copy> PrefixTree<T> {
        /// What holds of every tree.
        fn check(&self) {
            let mut tokens = 0;
            let mut reached = 0;
            let mut open = vec![ROOT];
            while let Some(at) = open.pop() {
                reached += 1;
                let node = &self.nodes[at];
                tokens += node.edge.len();
                assert!(at == ROOT || node.value.is_some() || node.children.len() > 1);
                for (first, child) in &node.children {
                    let below = &self.nodes[*child];
                    assert_eq!(below.edge.first(), Some(first));
                    assert_eq!(below.parent, at);
                    assert_eq!(below.depth, node.depth + below.edge.len());
                    open.push(*child);
                }
            }
            assert_eq!(tokens, self.tokens);
            assert_eq!(reached, self.nodes.len() - self.free.len());
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Insert(Vec<TokenId>),
        Remove(usize),
        Look(Vec<TokenId>),
    }

    fn tokens() -> impl Strategy<Value = Vec<TokenId>> {
        // Few different tokens and runs of them, so that prefixes are shared.
        prop::collection::vec((0u32..3, 1usize..4), 0..8)
            .prop_map(|runs| runs.iter().flat_map(|(t, n)| vec![*t; *n]).collect())
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => tokens().prop_map(Act::Insert),
            2 => any::<usize>().prop_map(Act::Remove),
            4 => tokens().prop_map(Act::Look),
        ]
    }

    fn common(a: &[TokenId], b: &[TokenId]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    proptest! {
        /// The tree does what a plain map of whole prefixes does.
        #[test]
        fn as_a_map(acts in prop::collection::vec(act(), 1..120)) {
            let mut tree = PrefixTree::new();
            let mut map: BTreeMap<Vec<TokenId>, (usize, NodeId)> = BTreeMap::new();
            for (n, act) in acts.into_iter().enumerate() {
                match act {
                    Act::Insert(tokens) => {
                        let node = tree.insert(&tokens, n);
                        map.insert(tokens, (n, node));
                    }
                    Act::Remove(which) => {
                        if map.is_empty() {
                            continue;
                        }
                        let tokens = map.keys().nth(which % map.len()).cloned().unwrap_or_default();
                        if let Some((_, node)) = map.remove(&tokens) {
                            tree.remove(node);
                        }
                    }
                    Act::Look(tokens) => {
                        let path = tree.path(&tokens);
                        let want: Vec<_> = map
                            .iter()
                            .filter(|(prefix, _)| tokens.starts_with(prefix))
                            .map(|(_, (value, _))| *value)
                            .collect();
                        prop_assert_eq!(path.values, want);
                        let shared = map.keys().map(|p| common(p, &tokens)).max();
                        prop_assert_eq!(path.shared, shared.unwrap_or(0));
                        prop_assert_eq!(tree.get(&tokens), map.get(&tokens).map(|(v, _)| *v));
                    }
                }
                tree.check();
                for (tokens, (value, node)) in &map {
                    prop_assert_eq!(tree.get(tokens), Some(*value));
                    let above = map
                        .iter()
                        .filter(|(p, _)| p.len() < tokens.len() && tokens.starts_with(p))
                        .max_by_key(|(p, _)| p.len());
                    prop_assert_eq!(tree.above(*node), above.map(|(_, (v, _))| *v));
                    let mut below = tree.below(*node);
                    below.sort_unstable();
                    let mut want: Vec<_> = map
                        .values()
                        .filter(|(_, other)| tree.above(*other) == Some(*value))
                        .map(|(v, _)| *v)
                        .collect();
                    want.sort_unstable();
                    prop_assert_eq!(below, want);
                }
            }
            for (_, node) in map.into_values() {
                tree.remove(node);
            }
            tree.check();
            prop_assert!(tree.is_empty());
            prop_assert_eq!(tree.tokens(), 0);
        }
    }
}
