//! Which kind of file this is, by its first bytes: names are changed too easily to be believed.

use super::Container;

/// A kind of file that people take for a checkpoint, and what to tell them.
struct Lookalike {
    /// The first bytes, in lower case where they are text.
    magic: &'static [u8],
    /// Whether the bytes are text: then case and white space before them do not matter.
    text: bool,
    /// What the file is, with its article.
    found: &'static str,
    /// What to do.
    advice: &'static str,
}

const fn binary(magic: &'static [u8], found: &'static str, advice: &'static str) -> Lookalike {
    Lookalike {
        magic,
        text: false,
        found,
        advice,
    }
}

const fn text(magic: &'static [u8], found: &'static str, advice: &'static str) -> Lookalike {
    Lookalike {
        magic,
        text: true,
        found,
        advice,
    }
}

const OLD_PYTORCH: &str = "load it and save it again with PyTorch 1.6 or later, which writes zip archives, or convert it to \
                           safetensors";
const OLD_GGML: &str = "convert the original checkpoint again, to GGUF";
const UNPACK: &str = "unpack it first";
const DOWNLOAD: &str = "the server sent this instead of the file: download it again, and check that the link is direct";

/// The first row that matches wins.
const LOOKALIKES: [Lookalike; 17] = [
    binary(
        b"PK\x05\x06",
        "an empty zip archive",
        "download or save the checkpoint again",
    ),
    // A pickled integer, PyTorch's own magic number before it used zip archives.
    binary(
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
        "an old PyTorch checkpoint",
        OLD_PYTORCH,
    ),
    binary(
        b"\x80\x02",
        "a Python pickle, as old .pth files are",
        OLD_PYTORCH,
    ),
    binary(b"FUGG", "a byte-swapped GGUF file", OLD_GGML),
    binary(b"lmgg", "a ggml file older than GGUF", OLD_GGML),
    binary(
        b"fmgg",
        "a ggml file older than GGUF, as rwkv.cpp writes",
        OLD_GGML,
    ),
    binary(b"tjgg", "a ggml file older than GGUF", OLD_GGML),
    binary(b"\x1f\x8b", "a gzip file", UNPACK),
    binary(b"\x28\xb5\x2f\xfd", "a zstd file", UNPACK),
    binary(b"\xfd7zXZ\0", "an xz file", UNPACK),
    binary(b"7z\xbc\xaf\x27\x1c", "a 7-zip archive", UNPACK),
    text(
        b"version https://git-lfs",
        "a Git LFS pointer",
        "fetch the file that it stands for with `git lfs pull`",
    ),
    text(b"<!doctype html", "an HTML page", DOWNLOAD),
    text(b"<html", "an HTML page", DOWNLOAD),
    text(
        b"<?xml",
        "an XML page, such as a storage server's error",
        DOWNLOAD,
    ),
    text(
        b"{",
        "JSON text",
        "give the path of the weights that lie beside it",
    ),
    text(
        b"[",
        "JSON text",
        "give the path of the weights that lie beside it",
    ),
];

/// The container that `bytes` begin, or what they are instead and what to do: `(found, advice)`.
pub(super) fn recognise(bytes: &[u8]) -> Result<Container, (&'static str, &'static str)> {
    if bytes.starts_with(b"GGUF") {
        return Ok(Container::Gguf);
    }
    // A zip archive; whether PyTorch made it, its directory tells.
    if bytes.starts_with(b"PK\x03\x04") {
        return Ok(Container::Pytorch);
    }
    // Eight bytes of header length, then JSON. Text in the place of the length would be a number past 2^56.
    if bytes.get(6..9) == Some(b"\0\0{") {
        return Ok(Container::Safetensors);
    }
    let words = bytes
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(bytes)
        .trim_ascii_start();
    let matches = |row: &&Lookalike| {
        let from = if row.text { words } else { bytes };
        from.get(..row.magic.len()).is_some_and(|start| {
            if row.text {
                start.eq_ignore_ascii_case(row.magic)
            } else {
                start == row.magic
            }
        })
    };
    match LOOKALIKES.iter().find(matches) {
        Some(row) => Err((row.found, row.advice)),
        None => Err((
            "a file of a kind that is not known",
            "check that the path is that of the model's weights",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests")]

    use super::*;

    #[test]
    fn files_are_known_by_their_content() {
        let check = |bytes: &[u8], expected: Result<Container, &str>| {
            let got = recognise(bytes).map_err(|(found, _)| found);
            match (got, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected),
                (Err(got), Err(part)) => {
                    assert!(got.contains(part), "{got:?} does not speak of {part:?}");
                }
                (got, expected) => panic!(
                    "{:?} is {got:?}, not {expected:?}",
                    bytes.escape_ascii().to_string()
                ),
            }
        };
        check(b"GGUF\x03\0\0\0", Ok(Container::Gguf));
        check(b"\x40\0\0\0\0\0\0\0{\"a\":", Ok(Container::Safetensors));
        // A length whose first byte is that of `{`.
        check(b"\x7b\0\0\0\0\0\0\0{\"a\":", Ok(Container::Safetensors));
        check(b"PK\x03\x04\x14\0", Ok(Container::Pytorch));
        check(b"PK\x05\x06\0\0", Err("empty zip"));
        check(
            b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
            Err("old PyTorch"),
        );
        check(b"\x80\x02}q\0", Err("pickle"));
        check(b"fmgg\x65\0\0\0", Err("rwkv.cpp"));
        check(
            b"version https://git-lfs.github.com/spec/v1\noid",
            Err("Git LFS"),
        );
        check(b"\n<!DOCTYPE html>", Err("HTML"));
        check(b"<HTML><head>", Err("HTML"));
        check(b"<?xml version=\"1.0\"?><Error>", Err("XML"));
        check(b"\xef\xbb\xbf {\"weight_map\": {}}", Err("JSON"));
        check(b"{\"a\": {\"b\": 1}}", Err("JSON"));
        check(b"G", Err("not known"));
        check(b"once upon a time", Err("not known"));
    }
}
