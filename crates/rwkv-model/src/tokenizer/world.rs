//! The World vocabulary inside the program; `assets/world/README.md` describes the packed form.

use std::io::Read;

use flate2::read::ZlibDecoder;

use super::error::TokenizerError;
use super::token_list::TokenList;

const PACKED: &[u8] = include_bytes!("../../assets/world/world_v20230424.zz");

/// All tokens, sorted by bytes.
pub(super) fn unpack() -> Result<TokenList, TokenizerError> {
    let damaged = |reason: String| TokenizerError::Embedded { reason };
    let mut plain = Vec::new();
    // The stream ends in a checksum, so what comes out is what was packed.
    ZlibDecoder::new(PACKED)
        .read_to_end(&mut plain)
        .map_err(|error| damaged(error.to_string()))?;
    tokens(&plain).ok_or_else(|| damaged("it does not hold what it says".to_owned()))
}

fn tokens(plain: &[u8]) -> Option<TokenList> {
    let (count, plain) = plain.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (shared, plain) = plain.split_at_checked(count)?;
    let (own, mut rest) = plain.split_at_checked(count)?;

    // Ids count up by length first, by bytes within one length: in byte order, each length has its own counter.
    let mut next_id = [0; 512];
    let lengths = || {
        shared
            .iter()
            .zip(own)
            .map(|(&shared, &own)| usize::from(shared) + usize::from(own))
    };
    for length in lengths() {
        *next_id.get_mut(length)? += 1;
    }
    let mut id = 1;
    for tokens_of_length in &mut next_id {
        id += std::mem::replace(tokens_of_length, id);
    }

    let mut list = TokenList::default();
    let mut previous = 0;
    for ((&shared, &own), length) in shared.iter().zip(own).zip(lengths()) {
        let (suffix, after) = rest.split_at_checked(usize::from(own))?;
        rest = after;
        let start = list.pool.len();
        let prefix = previous..previous + usize::from(shared);
        if prefix.end > start {
            return None;
        }
        let id = next_id.get_mut(length)?;
        list.push_with(*id, |pool| {
            pool.extend_from_within(prefix);
            pool.extend_from_slice(suffix);
            Ok(())
        })
        .ok()?;
        *id += 1;
        previous = start;
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]

    use proptest::prelude::*;

    use super::super::world_cases::CASES;
    use super::*;
    use crate::tokenizer::Tokenizer;

    /// The same hash over (id, length, bytes) as `assets/world/pack_vocab.py` prints for the vocabulary text.
    #[test]
    fn is_the_vocabulary_text() {
        let world = Tokenizer::world().unwrap();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut count = 0;
        for id in 1..world.vocab_size() as u32 {
            let bytes = world.token(id).unwrap();
            count += 1;
            for &byte in id
                .to_le_bytes()
                .iter()
                .chain(&(bytes.len() as u32).to_le_bytes())
                .chain(bytes)
            {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        assert_eq!((count, hash), (65_529, 0x5051_c955_15da_fe6e));
        assert_eq!(world.vocab_size(), 65_530);
        assert_eq!(
            (world.token(0), world.token(65_530), world.token(u32::MAX)),
            (None, None, None)
        );
        assert_eq!((world.name(), world.end_of_text()), ("world", Some(0)));
    }

    /// The list is taken as sorted and unique without a check.
    #[test]
    fn is_sorted_and_unique() {
        let list = unpack().unwrap();
        assert!(
            list.tokens
                .is_sorted_by(|&a, &b| list.bytes(a) < list.bytes(b))
        );
    }

    #[test]
    fn encodes_as_the_reference() {
        let world = Tokenizer::world().unwrap();
        for &(text, expected) in CASES {
            let ids = world.encode(text).unwrap();
            assert_eq!(ids, expected, "{:?}", String::from_utf8_lossy(text));
            assert_eq!(world.decode(&ids), text);
        }
    }

    #[test]
    fn spaces_and_digits_are_uncounted() {
        let world = Tokenizer::world().unwrap();
        let texts: Vec<_> = world
            .uncounted()
            .map(|id| String::from_utf8_lossy(world.token(id).unwrap()))
            .collect();
        let expected = [
            "\t", " ", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", " \t", "01", "12", "23",
            "34", "45", "56", "67", "78", "89",
        ];
        assert_eq!(texts, expected);
        assert!(!world.is_uncounted(0) && !world.is_uncounted(u32::MAX));
    }

    #[test]
    fn round_trips() {
        let world = Tokenizer::world().unwrap();
        let run = |bytes: &[u8]| {
            let ids = world.encode(bytes).unwrap();
            prop_assert_eq!(world.decode(&ids), bytes);
            Ok(())
        };
        proptest!(|(bytes: Vec<u8>)| run(&bytes)?);
        proptest!(|(text: String)| run(text.as_bytes())?);
        proptest!(|(text in "([ \n\t]{0,40}|[a-z]{1,9}|[一-龥]{1,4}|\\PC){0,60}")| run(text.as_bytes())?);
    }

    /// A damaged asset is an error, whatever it says.
    #[test]
    fn hostile_assets() {
        proptest!(|(count in 0u32..9, body: Vec<u8>)| {
            let _ = tokens(&[&count.to_le_bytes(), body.as_slice()].concat());
        });
        assert!(tokens(&[]).is_none() && tokens(&u32::MAX.to_le_bytes()).is_none());
    }
}
