//! Hostile files: every length, count, offset and byte of a header. The answer is an error, or a file that agrees with
//! itself.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const CONTAINERS: [Container; 3] = [Container::Safetensors, Container::Gguf, Container::Pytorch];

/// GGUF before its counts, GGUF with one tensor and one key, safetensors with 32 bytes of header.
const STARTS: &[&[u8]] = &[
    b"GGUF\x03\0\0\0",
    b"GGUF\x02\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
    b"\x20\0\0\0\0\0\0\0{",
];

/// Opens what should not open; a file that does all the same must agree with itself.
pub(super) fn attack(bytes: Vec<u8>) -> Result<(), FileError> {
    let has = bytes.len() as u64;
    let opened = Checkpoint::from_vec("attacked", bytes);
    match &opened {
        Ok(checkpoint) => read_all(checkpoint),
        Err(error) => {
            let message = error.to_string();
            assert!(
                message.starts_with("attacked: ") && !message.contains(char::is_control),
                "{message:?}"
            );
            assert!(message.len() < 1000, "{message:?}");
            if let FileError::Truncated {
                needs, has: said, ..
            } = error
            {
                assert!(*needs > has && *said == has, "{message}");
            }
        }
    }
    opened.map(drop)
}

proptest! {
    #[test]
    fn flipped_bytes_do_no_harm(
        container in select(&CONTAINERS[..]),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut file, header) = small(container);
        for (at, byte) in flips {
            file[at.index(header)] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = attack(file);
    }

    #[test]
    fn noise_after_a_plausible_start_does_no_harm(
        start in select(STARTS),
        noise in vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..200),
    ) {
        let _ = attack([start, &noise[..]].concat());
    }
}

#[test]
fn a_truncated_file_never_opens() {
    for container in [Container::Safetensors, Container::Gguf] {
        let (file, header) = small(container);
        attack(file.clone()).unwrap();
        // The last tensor ends the file in both: no length is only padding lost.
        let data_end = Checkpoint::from_vec("", file.clone())
            .unwrap()
            .inner
            .tensors
            .values()
            .map(|t| t.range.end)
            .max();
        let data_end = data_end.unwrap();
        for len in 0..file.len() {
            let opened = attack(file[..len].to_vec());
            assert_eq!(
                opened.is_ok(),
                len >= data_end,
                "{container} cut to {len} of {} bytes: {opened:?}",
                file.len()
            );
            if len >= header && len < data_end {
                let Err(FileError::Truncated { needs, .. }) = opened else {
                    panic!("{len}: {opened:?}")
                };
                assert_eq!(
                    needs, data_end as u64,
                    "the length of the whole file is known"
                );
            }
        }
    }
}

#[test]
fn lying_words_do_no_harm() {
    for container in CONTAINERS {
        let (file, header) = small(container);
        for at in 0..header {
            for word in [
                0,
                1,
                31,
                255,
                1 << 31,
                (1 << 32) - 1,
                1 << 60,
                1 << 63,
                u64::MAX - 7,
                u64::MAX,
            ] {
                for width in [4, 8] {
                    let mut lie = file.clone();
                    let end = (at + width).min(lie.len());
                    lie[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
                    let _ = attack(lie);
                }
            }
        }
    }
}

/// The bytes of a GGUF file, field by field.
#[derive(Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn gguf(version: u32, tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn string(mut self, bytes: &[u8]) -> Self {
        self = self.u64(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self = self
            .string(name.as_bytes())
            .u32(u32::try_from(dims.len()).unwrap());
        for &n in dims {
            self = self.u64(n);
        }
        self.u32(kind).u64(offset)
    }

    fn zeros(mut self, len: usize) -> Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }
}

#[test]
fn each_fault_has_its_message() {
    let check = |bytes: Vec<u8>, expected: &str| {
        let message = attack(bytes).map_or_else(|error| error.to_string(), |()| "opens".to_owned());
        assert!(
            message.contains(expected),
            "{message:?} does not say {expected:?}"
        );
    };
    check(Vec::new(), "is empty");
    check(
        b"\x80\x02}q\0.".to_vec(),
        "save it again with PyTorch 1.6 or later",
    );
    check(b"PK\x05\x06\0\0".to_vec(), "an empty zip archive");
    check(
        b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        "git lfs pull",
    );

    check(Raw::gguf(3, 0, 0).0, "opens");
    check(Raw::gguf(2, 0, 0).0, "opens");
    check(Raw::gguf(1, 0, 0).0, "version 1");
    check(Raw::gguf(4, 0, 0).0, "version 4");
    check(Raw::gguf(3u32.swap_bytes(), 0, 0).0, "big-endian");
    check(Raw::gguf(3, 1 << 60, 0).0, "needs");
    check(Raw::gguf(3, 0, u64::MAX).0, "needs");

    let pair = |key: &[u8], kind| Raw::gguf(3, 0, 1).string(key).u32(kind);
    check(pair(b"k", 13).u64(0).0, "unknown type 13");
    check(pair(b"k\xff", 4).u64(0).0, "not UTF-8");
    check(pair(&vec![b'k'; 65_536], 4).u64(0).0, "65536 bytes");
    check(pair(b"k", 7).u32(2).0, "boolean");
    check(pair(b"k", 8).u64(u64::MAX).0, "needs");
    check(pair(b"k", 9).u32(4).u64(1 << 62).0, "needs");
    check(pair(b"k", 9).u32(8).u64(1 << 61).0, "needs");
    // One array in another, without end.
    check(
        (0..9)
            .fold(pair(b"k", 9), |raw, _| raw.u32(9).u64(1))
            .zeros(9)
            .0,
        "nested",
    );
    check(
        Raw::gguf(3, 0, 2)
            .string(b"k")
            .u32(0)
            .zeros(1)
            .string(b"k")
            .u32(0)
            .zeros(1)
            .0,
        "\"k\" twice",
    );
    for (kind, alignment, message) in [
        (4, 64, "opens"),
        (4, 1 << 20, "opens"),
        (4, 48, "is 48"),
        (4, 0, "is 0"),
        (4, 1 << 21, "power"),
        (4, 4, "power"),
        (5, 32, "not an unsigned"),
    ] {
        check(pair(b"general.alignment", kind).u32(alignment).0, message);
    }

    let one = |dims: &[u64], kind, offset| {
        Raw::gguf(3, 1, 0)
            .tensor("t\n", dims, kind, offset)
            .zeros(256)
            .0
    };
    check(one(&[4, 2], 0, 0), "opens");
    check(one(&[], 0, 0), "opens");
    check(one(&[1; 8], 0, 0), "opens");
    check(one(&[1; 9], 0, 0), "9 dimensions");
    check(one(&[0, 1 << 60], 0, 0), "opens");
    check(one(&[0, 1 << 60, 1 << 60], 0, 0), "too large");
    check(one(&[1 << 62, 2], 0, 0), "no whole number of blocks");
    check(one(&[1 << 32, 1 << 32], 0, 0), "too large");
    check(
        one(&[33], 8, 0),
        "tensor \"t\\n\" of shape [33] is no whole number of blocks of q8_0",
    );
    check(one(&[4], 4, 0), "type number 4");
    check(one(&[4], 0, 8), "not a multiple of 32");
    check(one(&[4], 0, 1 << 40), "may be incomplete");
    check(one(&[4], 0, u64::MAX - 31), "may be incomplete");
    let two = |second: &str, offset| {
        Raw::gguf(3, 2, 0)
            .tensor("a", &[16], 0, 0)
            .tensor(second, &[4], 0, offset)
            .zeros(256)
            .0
    };
    check(two("b", 64), "opens");
    check(two("b", 32), "\"b\" lies over another one");
    check(two("b", 0), "over another one");
    check(two("a", 64), "tensor \"a\" is there twice");

    let json = |json: &str, data: usize| {
        [
            &(json.len() as u64).to_le_bytes(),
            json.as_bytes(),
            &vec![0; data],
        ]
        .concat()
    };
    let t = r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    check(json("{}", 0), "opens");
    check(json(t, 8), "opens");
    check(json(t, 7), "may be incomplete");
    check(json(t, 9), "1 bytes follow");
    check(json("{\"t\":", 8), "JSON header is wrong");
    check(
        json(&t.replace("[0,8]", "[8,0]"), 8),
        "JSON header is wrong",
    );
    check(
        json(&t.replace("[0,8]", "[4,12]"), 12),
        "JSON header is wrong",
    );
    check(json(&t.replace("[2]", "[3]"), 8), "JSON header is wrong");
    check(
        json(&t.replace("F32", "\\u001b[31m"), 8),
        "JSON header is wrong",
    );
    check(
        json(
            &t.replace("[2]", "[0,4294967296,4294967296]")
                .replace("[0,8]", "[0,0]"),
            0,
        ),
        "too large",
    );
    check(
        json(&format!("{{\"t\":{}", "[".repeat(100_000)), 0),
        "JSON header is wrong",
    );
    check(
        [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        "header has 1099511627776 bytes",
    );
    check(
        [&100u64.to_le_bytes()[..], b"{}"].concat(),
        "needs 108 bytes, the file has 10",
    );
}
