//! The characters that byte-level BPE writes bytes with (GPT-2's `bytes_to_unicode`): every byte has a printable one,
//! so that tokens of arbitrary bytes are JSON strings.
//!
//! Printable Latin-1 bytes stand for themselves; the 68 others are, in their order, the characters from U+0100 on.

/// The byte that a character stands for; `None` for a character that stands for none.
pub(super) fn byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        // 0 to 0x20 are 33 bytes, 0x7f to 0xa0 are 34.
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The character that a byte is written with.
pub(super) fn character(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match byte {
        0..=0x20 => code + 0x100,
        0x7f..=0xa0 => code - 0x7f + 0x121,
        0xad => 0x143,
        _ => code,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes of a token; its UTF-8 where a character in it stands for no byte, as the crate `tokenizers` has it.
pub(super) fn bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_a_byte() {
        let characters: Vec<char> = (0..=255).map(character).collect();
        for (value, &c) in (0..=255).zip(&characters) {
            assert_eq!(byte(c), Some(value), "{c:?}");
        }
        let count = |range: std::ops::RangeInclusive<char>| range.filter_map(byte).count();
        assert_eq!(count('\0'..=char::MAX), 256, "and no other");
        // As GPT-2's vocabulary has them.
        let text: String = b"\0\t\n \x7f\xa0\xad"
            .iter()
            .map(|&b| character(b))
            .collect();
        assert_eq!(text, "ĀĉĊĠġłŃ");
        assert_eq!(bytes("Ġé"), b" \xe9");
        assert_eq!(bytes(" a"), b" a");
    }
}
