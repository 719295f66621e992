//! Tokens on their way from a file into a [`Tokenizer`](super::Tokenizer): bytes and ids, checked.

use super::error::TokenProblem;

/// The highest id: far above any vocabulary, so that a file with a lying id cannot ask for gigabytes.
pub(super) const MAX_ID: u32 = (1 << 20) - 1;

/// The longest token (World's has 128 bytes): it bounds the work that one byte of text can cost.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

/// All tokens' bytes together, so that offsets into them and trie nodes are u32.
const MAX_POOL_BYTES: usize = 1 << 31;

/// One token: `pool[start..end]` of its list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub id: u32,
    pub start: u32,
    pub end: u32,
}

/// Tokens over one pool of bytes.
#[derive(Default, Debug)]
pub(super) struct TokenList {
    pub pool: Vec<u8>,
    pub tokens: Vec<Token>,
}

impl TokenList {
    /// The bytes of a token of this list.
    pub(super) fn bytes(&self, token: Token) -> &[u8] {
        self.pool
            .get(token.start as usize..token.end as usize)
            .unwrap_or_default()
    }

    /// Adds the token whose bytes `write` appends to the pool.
    pub(super) fn push_with(
        &mut self,
        id: u32,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), TokenProblem>,
    ) -> Result<(), TokenProblem> {
        let start = self.pool.len();
        write(&mut self.pool)?;
        match self.pool.len() - start {
            0 => return Err(TokenProblem::Empty),
            1..=MAX_TOKEN_BYTES => {}
            _ => return Err(TokenProblem::TooLong),
        }
        if self.pool.len() > MAX_POOL_BYTES {
            return Err(TokenProblem::TooMany);
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most MAX_POOL_BYTES")]
        self.tokens.push(Token {
            id,
            start: start as u32,
            end: self.pool.len() as u32,
        });
        Ok(())
    }

    /// Sorts the tokens by bytes. Fails with the place in the list, before sorting, of a token that repeats the id
    /// or the bytes of an earlier one.
    pub(super) fn sort(&mut self) -> Result<(), (usize, TokenProblem)> {
        let mut order: Vec<(u32, usize)> =
            self.tokens.iter().map(|token| token.id).zip(0..).collect();
        order.sort_unstable();
        for pair in order.windows(2) {
            if let [(id, _), (again, place)] = *pair
                && id == again
            {
                return Err((place, TokenProblem::RepeatedId { id }));
            }
        }
        let mut order: Vec<(&[u8], usize, Token)> = self
            .tokens
            .iter()
            .zip(0..)
            .map(|(&token, place)| (self.bytes(token), place, token))
            .collect();
        order.sort_unstable_by_key(|&(bytes, place, _)| (bytes, place));
        for pair in order.windows(2) {
            if let [(bytes, _, first), (again, place, _)] = *pair
                && bytes == again
            {
                return Err((place, TokenProblem::RepeatedText { other: first.id }));
            }
        }
        self.tokens = order.into_iter().map(|(_, _, token)| token).collect();
        Ok(())
    }
}
