//! Python `str` and `bytes` literals, as `repr` writes them, into bytes.
//!
//! Syntax: The Python Language Reference, "String and Bytes literals"; without prefixes other than `b`, without triple
//! quotes, without `\N{…}`, and with unknown escapes refused instead of kept.

use super::error::LiteralError;

/// What an escape stands for, and which ones exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `\x80` is a code point, written as UTF-8.
    Str,
    /// `\x80` is a byte.
    Bytes,
}

/// Appends the bytes of `'…'` or `"…"` (as UTF-8) or of `b'…'` or `b"…"` to `out`.
pub(super) fn parse(literal: &[u8], out: &mut Vec<u8>) -> Result<(), LiteralError> {
    let (kind, quoted) = match literal {
        [b'b', quoted @ ..] => (Kind::Bytes, quoted),
        quoted => (Kind::Str, quoted),
    };
    let [open @ (b'\'' | b'"'), body @ .., close] = quoted else {
        return Err(LiteralError::Quotes);
    };
    if open != close {
        return Err(LiteralError::Quotes);
    }
    let legal = match kind {
        Kind::Str => std::str::from_utf8(body).is_ok(),
        Kind::Bytes => body.is_ascii(),
    };
    if !legal {
        return Err(LiteralError::RawBytes);
    }
    unescape(body, kind, Some(*open), out)
}

/// Appends the bytes of the inside of a bytes literal to `out`, raw bytes and quotes as they are: how GGUF files write
/// RWKV tokens.
pub(super) fn unescape_bytes(body: &[u8], out: &mut Vec<u8>) -> Result<(), LiteralError> {
    unescape(body, Kind::Bytes, None, out)
}

fn unescape(
    body: &[u8],
    kind: Kind,
    quote: Option<u8>,
    out: &mut Vec<u8>,
) -> Result<(), LiteralError> {
    let before = out.len();
    let mut rest = body;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'\\' {
            let at = out.len() - before;
            let bad = LiteralError::Escape { at };
            let Some(value) = escape(&mut rest, kind) else {
                return Err(bad);
            };
            match kind {
                Kind::Bytes => out.push(u8::try_from(value).map_err(|_| bad)?),
                Kind::Str => {
                    let character = char::from_u32(value).ok_or(bad)?;
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        } else if Some(byte) == quote {
            return Err(LiteralError::Quotes);
        } else {
            out.push(byte);
        }
    }
    Ok(())
}

/// Takes the escape that `rest` stands in, after its backslash; `None` where there is no such escape.
fn escape(rest: &mut &[u8], kind: Kind) -> Option<u32> {
    let (&code, after) = rest.split_first()?;
    let octal = rest
        .iter()
        .take(3)
        .take_while(|digit| (b'0'..=b'7').contains(digit))
        .count();
    if octal > 0 {
        return digits(rest, octal, 8);
    }
    *rest = after;
    match code {
        b'\\' | b'\'' | b'"' => Some(u32::from(code)),
        b'n' => Some(0x0a),
        b'r' => Some(0x0d),
        b't' => Some(0x09),
        b'a' => Some(0x07),
        b'b' => Some(0x08),
        b'f' => Some(0x0c),
        b'v' => Some(0x0b),
        b'x' => digits(rest, 2, 16),
        b'u' if kind == Kind::Str => digits(rest, 4, 16),
        b'U' if kind == Kind::Str => digits(rest, 8, 16),
        _ => None,
    }
}

/// Takes exactly `count` digits, at most 8.
fn digits(rest: &mut &[u8], count: usize, radix: u32) -> Option<u32> {
    let (number, after) = rest.split_at_checked(count)?;
    *rest = after;
    number.iter().try_fold(0, |value, &digit| {
        Some(value * radix + char::from(digit).to_digit(radix)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        let check = |literal: &str, expected: Result<&[u8], LiteralError>| {
            let mut out = Vec::new();
            let result = parse(literal.as_bytes(), &mut out);
            assert_eq!(result.map(|()| out.as_slice()), expected, "{literal}");
        };
        let escape = |at| Err(LiteralError::Escape { at });
        check("''", Ok(b""));
        check("'a'", Ok(b"a"));
        check("\"it's\"", Ok(b"it's"));
        check("' '", Ok(b" "));
        check(r"'\''", Ok(b"'"));
        check(r#"'\"'"#, Ok(b"\""));
        check(r"'\n\r\t\\\a\b\f\v\0'", Ok(b"\n\r\t\\\x07\x08\x0c\x0b\0"));
        check(r"'\x80'", Ok(&[0xc2, 0x80]));
        check(r"b'\x80'", Ok(&[0x80]));
        check(r"'\u4e2d\U0001F600é'", Ok("中😀é".as_bytes()));
        check(r"'\1018\777'", Ok("A8\u{1ff}".as_bytes()));
        check(r"b'\1018\377'", Ok(b"A8\xff"));
        check(r#"b"'""#, Ok(b"'"));
        for bad in [
            "", "'", "b'", "a", "'a\"", "'a'b'", "''''''", "'a' 'b'", "r'a'", "B'a'", " 'a'",
        ] {
            check(bad, Err(LiteralError::Quotes));
        }
        check(r"'\'", escape(0)); // The quote is escaped, nothing closes.
        check(r"'a\x4'", escape(1));
        check(r"'\xg0'", escape(0));
        check(r"'\x+1'", escape(0));
        check(r"'\ud800'", escape(0));
        check(r"'\U00110000'", escape(0));
        check(r"'\UFFFFFFFF'", escape(0));
        check(r"'\N{DASH}'", escape(0));
        check(r"'\q'", escape(0));
        check(r"b'\u0041'", escape(0));
        check(r"b'\400'", escape(0));
        check("b'é'", Err(LiteralError::RawBytes));
        assert_eq!(
            parse(b"'\xff'", &mut Vec::new()),
            Err(LiteralError::RawBytes)
        );
    }
}
