//! An entry's file.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `rwkvse01` |
//! | 4 | CRC-32 of the rest of the header and of the file's name |
//! | 4 | CRC-32 of the content |
//! | 8 | bytes of the content |
//! | 8 | bytes that follow |
//! | | the content, a zstd frame |
//!
//! Integers are little-endian. The name is part of the checksum, so that a file is believed only where it was written.

use std::io;

const MAGIC: [u8; 8] = *b"rwkvse01";

/// Bytes before the content.
pub(crate) const HEADER: usize = 32;

/// Of zstd. What can be compressed in a state are the exponents of its values; higher levels find no more.
const LEVEL: i32 = 1;

/// Why a file is no entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// It begins differently.
    #[error("it was not written by this version of the state store")]
    Foreign,
    /// The header's checksum, or the file's length.
    #[error("its header is damaged, it is shortened, or it was written under another name")]
    Header,
    /// More than can be used.
    #[error("it holds {bytes} bytes, more than the {most} that can be used")]
    TooLarge {
        /// What it says that it holds.
        bytes: u64,
        /// What may be.
        most: u64,
    },
    /// The frame, or the checksum of what is in it.
    #[error("its content is damaged")]
    Content,
}

/// The bytes of an entry's file.
///
/// # Errors
/// What zstd says.
pub(crate) fn pack(name: &str, content: &[u8]) -> io::Result<Vec<u8>> {
    let frame = zstd::bulk::compress(content, LEVEL)?;
    let mut checked = Vec::with_capacity(HEADER - 12);
    checked.extend(crc32fast::hash(content).to_le_bytes());
    checked.extend((content.len() as u64).to_le_bytes());
    checked.extend((frame.len() as u64).to_le_bytes());
    let mut file = Vec::with_capacity(HEADER + frame.len());
    file.extend(MAGIC);
    file.extend(checksum(&checked, name).to_le_bytes());
    file.extend(checked);
    file.extend(frame);
    Ok(file)
}

/// The content of the entry's file called `name`, which is at most `most` bytes. No more is allocated than that.
///
/// # Errors
/// What is wrong with the file.
pub fn unpack(name: &str, file: &[u8], most: u64) -> Result<Vec<u8>, EntryError> {
    let (magic, rest) = file.split_first_chunk().ok_or(EntryError::Foreign)?;
    if *magic != MAGIC {
        return Err(EntryError::Foreign);
    }
    let mut fields = rest;
    let header_sum = u32::from_le_bytes(take(&mut fields)?);
    let content_sum = u32::from_le_bytes(take(&mut fields)?);
    let bytes = u64::from_le_bytes(take(&mut fields)?);
    let frame_bytes = u64::from_le_bytes(take(&mut fields)?);
    let frame = fields;
    let checked = &file[MAGIC.len() + 4..HEADER];
    if checksum(checked, name) != header_sum || frame.len() as u64 != frame_bytes {
        return Err(EntryError::Header);
    }
    if bytes > most {
        return Err(EntryError::TooLarge { bytes, most });
    }
    let capacity = usize::try_from(bytes).map_err(|_| EntryError::Content)?;
    let content = zstd::bulk::decompress(frame, capacity).map_err(|_| EntryError::Content)?;
    if content.len() != capacity || crc32fast::hash(&content) != content_sum {
        return Err(EntryError::Content);
    }
    Ok(content)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], EntryError> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(EntryError::Header)?;
    *bytes = rest;
    Ok(*taken)
}

fn checksum(checked: &[u8], name: &str) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(checked);
    hash.update(name.as_bytes());
    hash.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    const MOST: u64 = 10_000;

    /// A file whose checksums are right, whatever else it says.
    fn forged(content_sum: u32, bytes: u64, frame_bytes: u64, frame: &[u8]) -> Vec<u8> {
        let mut checked = Vec::new();
        checked.extend(content_sum.to_le_bytes());
        checked.extend(bytes.to_le_bytes());
        checked.extend(frame_bytes.to_le_bytes());
        let sum = checksum(&checked, "name").to_le_bytes();
        [&MAGIC[..], &sum, &checked, frame].concat()
    }

    /// Lengths that lie: an error, and no memory for what is not there.
    #[test]
    fn hostile_lengths() {
        let content = vec![0; 5000];
        let sum = crc32fast::hash(&content);
        let frame = zstd::bulk::compress(&content, 1).unwrap();
        let n = frame.len() as u64;
        let unpacked = |bytes, frame_bytes, frame: &[u8], most| {
            unpack("name", &forged(sum, bytes, frame_bytes, frame), most)
        };
        assert_eq!(unpacked(5000, n, &frame, MOST), Ok(content.clone()));
        assert_eq!(unpacked(5000, n, &frame, 5000), Ok(content));
        let most = 4999;
        assert_eq!(
            unpacked(5000, n, &frame, most),
            Err(EntryError::TooLarge { bytes: 5000, most })
        );
        for bytes in [0, 4999, 5001, MOST] {
            assert_eq!(
                unpacked(bytes, n, &frame, MOST),
                Err(EntryError::Content),
                "{bytes}"
            );
        }
        for bytes in [MOST + 1, 1 << 40, u64::MAX] {
            assert_eq!(
                unpacked(bytes, n, &frame, MOST),
                Err(EntryError::TooLarge { bytes, most: MOST })
            );
        }
        for frame_bytes in [0, n - 1, n + 1, 1 << 40, u64::MAX] {
            assert_eq!(
                unpacked(5000, frame_bytes, &frame, MOST),
                Err(EntryError::Header)
            );
        }
        // Two frames, none, and one that is no frame.
        let twice = [&frame[..], &frame].concat();
        assert_eq!(
            unpacked(5000, 2 * n, &twice, MOST),
            Err(EntryError::Content)
        );
        assert_eq!(unpacked(5000, 0, &[], MOST), Err(EntryError::Content));
        assert_eq!(unpacked(5000, 8, &[7; 8], MOST), Err(EntryError::Content));
        // A gigabyte of zeros in some kilobytes, that says so and that does not.
        let bomb = zstd::stream::encode_all(io::Read::take(io::repeat(0), 1 << 30), 1).unwrap();
        let n = bomb.len() as u64;
        assert_eq!(unpacked(5000, n, &bomb, MOST), Err(EntryError::Content));
        assert!(matches!(
            unpacked(1 << 30, n, &bomb, MOST),
            Err(EntryError::TooLarge { .. })
        ));
    }

    /// Every bit of the file counts, and so does every length.
    #[test]
    fn every_bit_and_every_length() {
        let content: Vec<u8> = (0..200u8).map(|n| n / 3).collect();
        let file = pack("name", &content).unwrap();
        assert_eq!(unpack("name", &file, MOST).unwrap(), content);
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                match unpack("name", &damaged, MOST) {
                    // A frame may say the same in other words.
                    Ok(got) => assert!(got == content && at >= HEADER, "bit {bit} of byte {at}"),
                    Err(error) => assert!(at >= MAGIC.len() || error == EntryError::Foreign),
                }
            }
            assert!(unpack("name", &file[..at], MOST).is_err());
        }
        assert_eq!(
            unpack("name", &[&file[..], &[0]].concat(), MOST),
            Err(EntryError::Header)
        );
        assert_eq!(unpack("names", &file, MOST), Err(EntryError::Header));
    }

    proptest! {
        #[test]
        fn round_trip(name in ".*", content in prop::collection::vec(any::<u8>(), 0..2000)) {
            let file = pack(&name, &content).unwrap();
            prop_assert_eq!(unpack(&name, &file, content.len() as u64).unwrap(), content);
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), sum in any::<u32>(), length in any::<u64>()) {
            prop_assert!(unpack("name", &bytes, MOST).is_err());
            let magic = [&MAGIC[..], &bytes].concat();
            prop_assert!(unpack("name", &magic, MOST).is_err());
            let frame = forged(sum, length % MOST, bytes.len() as u64, &bytes);
            prop_assert!(unpack("name", &frame, MOST).is_err() || length % MOST == 0);
        }
    }
}
