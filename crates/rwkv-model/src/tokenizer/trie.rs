//! Longest match at the beginning of a text.
//!
//! Nodes are numbered breadth first, so the children of a node are consecutive: three flat arrays hold the whole trie
//! (9 bytes a node; World has 116,079).

use std::ops::Range;

use super::token_list::TokenList;

/// In place of an id: no token ends at this node.
const NO_TOKEN: u32 = u32::MAX;

/// A trie over token bytes; node 0 is the root.
#[derive(Clone, Debug)]
pub(super) struct Trie {
    /// By node: the byte that leads to it. Sorted among the children of one node.
    labels: Vec<u8>,
    /// By node: the token that ends there, or [`NO_TOKEN`].
    ids: Vec<u32>,
    /// By node, and one more: its first child; the next node's first child is the end of its own.
    first_child: Vec<u32>,
}

impl Trie {
    /// `list` is sorted by bytes and has no empty and no equal tokens.
    pub(super) fn new(list: &TokenList) -> Self {
        debug_assert!(list.tokens.is_sorted_by_key(|&token| list.bytes(token)));
        let mut trie = Self {
            labels: vec![0],
            ids: Vec::new(),
            first_child: Vec::new(),
        };
        // The nodes of one depth, each as the tokens that begin with its bytes.
        let mut level: Vec<Range<usize>> = std::iter::once(0..list.tokens.len()).collect();
        let mut depth = 0;
        while !level.is_empty() {
            let mut next_level = Vec::new();
            for node in level {
                let mut tokens = list.tokens.get(node.clone()).unwrap_or_default();
                let mut id = NO_TOKEN;
                // A token that ends here sorts before those that go on.
                if let Some((&token, longer)) = tokens.split_first()
                    && list.bytes(token).len() == depth
                {
                    id = token.id;
                    tokens = longer;
                }
                trie.ids.push(id);
                trie.first_child.push(trie.node_count());
                let mut start = node.end - tokens.len();
                let byte_at_depth = |token| list.bytes(token).get(depth).copied();
                while let Some(byte) = tokens.first().and_then(|&token| byte_at_depth(token)) {
                    let count = tokens
                        .iter()
                        .take_while(|&&token| byte_at_depth(token) == Some(byte))
                        .count();
                    trie.labels.push(byte);
                    next_level.push(start..start + count);
                    start += count;
                    tokens = tokens.get(count..).unwrap_or_default();
                }
            }
            level = next_level;
            depth += 1;
        }
        trie.first_child.push(trie.node_count());
        trie
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "a node a byte of the pool, which TokenList keeps below 2^31"
    )]
    fn node_count(&self) -> u32 {
        self.labels.len() as u32
    }

    /// The longest token that `text` begins with: its id and its length in bytes, at least 1.
    pub(super) fn longest_match(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = 0;
        let mut longest = None;
        for (&byte, length) in text.iter().zip(1..) {
            let Some(child) = self.child(node, byte) else {
                break;
            };
            node = child;
            match self.ids.get(node) {
                Some(&NO_TOKEN) | None => {}
                Some(&id) => longest = Some((id, length)),
            }
        }
        longest
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let &[start, end] = self.first_child.get(node..node + 2)? else {
            return None;
        };
        let labels = self.labels.get(start as usize..end as usize)?;
        // The root of a vocabulary that has all bytes needs no search.
        let place = if labels.len() == 256 {
            usize::from(byte)
        } else {
            labels.binary_search(&byte).ok()?
        };
        Some(start as usize + place)
    }
}
