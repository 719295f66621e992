//! What a prefix's state is called in a store.

use super::key::PrefixId;
use std::{fmt, str::FromStr};

/// `KEY-TOKENS-BEYOND-PREFIX`: enough to find the state again and to weigh it, so that an index is made from names alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StoredName {
    /// The key's tag, 16 hexadecimal digits.
    pub(super) tag: u64,
    /// Tokens that the state has seen.
    pub(super) tokens: usize,
    /// Tokens beyond the longest shorter prefix that was kept when this one was written.
    pub(super) beyond: usize,
    /// The prefix, 64 hexadecimal digits.
    pub(super) id: PrefixId,
}

impl fmt::Display for StoredName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}-", self.tag, self.tokens, self.beyond)?;
        self.id
            .0
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Not a name that a cache has written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ForeignName;

impl FromStr for StoredName {
    type Err = ForeignName;

    fn from_str(text: &str) -> Result<Self, ForeignName> {
        let parts: Vec<_> = text.split('-').collect();
        let &[tag, tokens, beyond, id] = parts.as_slice() else {
            return Err(ForeignName);
        };
        if id.len() != 64 || !id.is_ascii() {
            return Err(ForeignName);
        }
        let mut bytes = [0; 32];
        for (n, byte) in bytes.iter_mut().enumerate() {
            let digits = id.get(2 * n..2 * n + 2).ok_or(ForeignName)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| ForeignName)?;
        }
        let name = Self {
            tag: u64::from_str_radix(tag, 16).map_err(|_| ForeignName)?,
            tokens: tokens.parse().map_err(|_| ForeignName)?,
            beyond: beyond.parse().map_err(|_| ForeignName)?,
            id: PrefixId(bytes),
        };
        // A number can be written in several ways; a name only in one.
        let sound = name.to_string() == text && (1..=name.tokens).contains(&name.beyond);
        if sound { Ok(name) } else { Err(ForeignName) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(tag in any::<u64>(), tokens in 1usize.., beyond in any::<prop::sample::Index>(), id in any::<[u8; 32]>()) {
            let name = StoredName { tag, tokens, beyond: 1 + beyond.index(tokens), id: PrefixId(id) };
            let text = name.to_string();
            prop_assert!(text.len() <= 160);
            prop_assert!(text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'-'));
            prop_assert_eq!(text.parse(), Ok(name));
            for wrong in [text.to_uppercase() + "-", format!("+{text}"), text[1..].to_owned(), format!("{text}0")] {
                prop_assert_eq!(wrong.parse::<StoredName>(), Err(ForeignName));
            }
        }

        #[test]
        fn foreign(text in any::<String>()) {
            prop_assert_eq!(text.parse::<StoredName>(), Err(ForeignName));
        }
    }

    #[test]
    fn nonsense() {
        let id = "ab".repeat(32);
        assert!(
            format!("0000000000000001-5-5-{id}")
                .parse::<StoredName>()
                .is_ok()
        );
        for text in [
            format!("0000000000000001-5-6-{id}"),
            format!("0000000000000001-0-0-{id}"),
            format!("0000000000000001-05-5-{id}"),
            format!("0000000000000001-5-{id}"),
            format!("1-5-5-{id}"),
            format!("0000000000000001-99999999999999999999-5-{id}"),
            format!("0000000000000001-5-5-{}", "é".repeat(32)),
        ] {
            assert_eq!(text.parse::<StoredName>(), Err(ForeignName), "{text}");
        }
    }
}
