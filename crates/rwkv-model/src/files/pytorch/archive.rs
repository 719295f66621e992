//! The directory of a zip archive: which entry lies where.
//!
//! Source: PKWARE's APPNOTE, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end records) and
//! 4.5.3 (zip64 extra field). Only what PyTorch writes is read: one disk, stored entries, zip64 where needed. Entries
//! may not lie over each other, so that what all of them hold together is no more than the file.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::error::{Fault, quoted};

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";

/// Bytes of each record, without names, extra fields and comments.
const LOCAL_BYTES: u64 = 30;
const ENTRY_BYTES: u64 = 46;
const END_BYTES: usize = 22;
const END_64_BYTES: u64 = 56;
const LOCATOR_64_BYTES: usize = 20;

/// The longest comment after the end record.
const LONGEST_COMMENT: usize = 65_535;
/// The longest directory that we read, in bytes. Checkpoints have about 100 bytes for each tensor.
const LONGEST: u64 = 16 << 20;
/// What a 32-bit field holds where the zip64 extra field has the number.
const IN_EXTRA: u64 = 0xFFFF_FFFF;
const ZIP64_EXTRA: u16 = 1;
/// General purpose flag: the entry is encrypted.
const ENCRYPTED: u16 = 1;

/// A zip archive, with its directory read and checked.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    /// By name, which need not be UTF-8.
    entries: BTreeMap<&'a [u8], Entry>,
}

/// An entry of the directory.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Of its local header.
    at: u64,
    /// Bytes of its content, as it is stored.
    len: u64,
    /// Where the next entry begins, or the directory.
    limit: u64,
    /// How it is compressed, 0 for not at all.
    method: u16,
    encrypted: bool,
}

impl<'a> Archive<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        let directory = find_directory(bytes)?;
        let mut entries = BTreeMap::new();
        let mut at = directory.start;
        for _ in 0..directory.count {
            let (name, entry, next) = read_entry(bytes, at, directory.end)?;
            at = next;
            if entries.insert(name, entry).is_some() {
                return Err(damaged(format!(
                    "the zip entry {} is there twice",
                    text(name)
                )));
            }
        }
        // By place, each one's local header and content are in front of the next.
        let mut by_place: Vec<_> = entries.iter_mut().collect();
        by_place.sort_by_key(|(_, entry)| entry.at);
        let mut limit = directory.start;
        for (name, entry) in by_place.into_iter().rev() {
            let end = entry
                .at
                .saturating_add(LOCAL_BYTES + name.len() as u64)
                .saturating_add(entry.len);
            if end > limit {
                return Err(damaged(format!(
                    "the zip entry {} of {} bytes lies over another one, or past the end",
                    text(name),
                    entry.len
                )));
            }
            entry.limit = limit;
            limit = entry.at;
        }
        Ok(Self { bytes, entries })
    }

    /// All entries, sorted by name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a [u8], Entry)> {
        self.entries.iter().map(|(name, entry)| (*name, *entry))
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// Where in the file the content of `entry` is, which messages call `name`.
    pub(super) fn locate(&self, name: &[u8], entry: Entry) -> Result<Range<usize>, Fault> {
        if entry.method != 0 || entry.encrypted {
            let how = if entry.encrypted {
                "encrypted"
            } else {
                "compressed"
            };
            return Err(Fault::Unsupported(format!(
                "the zip entry {} is {how}, so it cannot be memory-mapped; unpack the archive and pack it again \
                 without compression (zip -0), or save the checkpoint again with PyTorch",
                text(name)
            )));
        }
        // Written apart from the directory: the lengths of its name and extra field may differ from those there.
        let local = Record::at(self.bytes, entry.at, LOCAL, "a local header")?;
        let header = LOCAL_BYTES + u64::from(local.u16(26)?) + u64::from(local.u16(28)?);
        let start = entry.at + header;
        let end = start
            .checked_add(entry.len)
            .filter(|end| *end <= entry.limit);
        let range =
            end.and_then(|end| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?));
        range.ok_or_else(|| {
            damaged(format!(
                "the zip entry {} reaches into the next one",
                text(name)
            ))
        })
    }

    /// The content of `entry`, which messages call `name`.
    pub(super) fn content(&self, name: &[u8], entry: Entry) -> Result<&'a [u8], Fault> {
        let range = self.locate(name, entry)?;
        self.bytes
            .get(range)
            .ok_or_else(|| damaged("a zip entry lies past the end".to_owned()))
    }
}

/// Where the directory is, within the file.
struct Directory {
    start: u64,
    end: u64,
    count: u64,
}

fn find_directory(bytes: &[u8]) -> Result<Directory, Fault> {
    // Backwards from the end: a comment may follow the record, and says how long it is.
    let first = bytes.len().saturating_sub(END_BYTES + LONGEST_COMMENT);
    let last = bytes.len().saturating_sub(END_BYTES);
    let ends = |at: &usize| {
        let record = bytes.get(*at..).filter(|rest| rest.starts_with(&END))?;
        let comment = field(record, 20).map(u16::from_le_bytes)?;
        (record.len() == END_BYTES + usize::from(comment)).then_some(*at)
    };
    let end_at = (first..=last).rev().find_map(|at| ends(&at)).ok_or_else(|| {
        damaged(
            "the directory at the end of the zip archive is missing, as in a download that broke off"
                .to_owned(),
        )
    })?;
    let end = Record::at(bytes, end_at as u64, END, "the end record")?;
    let locator = end_at.checked_sub(LOCATOR_64_BYTES).filter(|at| {
        bytes
            .get(*at..)
            .is_some_and(|rest| rest.starts_with(&LOCATOR_64))
    });
    let (disks, count, len, start, limit) = if let Some(at) = locator {
        let locator = Record::at(bytes, at as u64, LOCATOR_64, "the zip64 locator")?;
        let at = locator.u64(8)?;
        let end = Record::at(bytes, at, END_64, "the zip64 end record")?;
        let disks = [locator.u32(4)?, end.u32(16)?, end.u32(20)?];
        let counts = [end.u64(24)?, end.u64(32)?];
        if at.saturating_add(END_64_BYTES) > end_at as u64 || counts[0] != counts[1] {
            return Err(damaged(
                "the zip64 end record contradicts itself".to_owned(),
            ));
        }
        (disks, counts[1], end.u64(40)?, end.u64(48)?, at)
    } else {
        let disks = [end.u16(4)?.into(), end.u16(6)?.into(), 0];
        let counts = [end.u16(8)?, end.u16(10)?];
        if counts[0] != counts[1] {
            return Err(damaged(
                "the end record of the zip archive contradicts itself".to_owned(),
            ));
        }
        let (len, start) = (end.u32(12)?.into(), end.u32(16)?.into());
        (disks, counts[1].into(), len, start, end_at as u64)
    };
    if disks != [0; 3] {
        return Err(Fault::Unsupported(
            "this is one part of a zip archive of several; join them first".to_owned(),
        ));
    }
    if len > LONGEST {
        return Err(damaged(format!(
            "the zip archive has a directory of {len} bytes, more than {LONGEST}"
        )));
    }
    let end = start.saturating_add(len);
    if end > limit || count.saturating_mul(ENTRY_BYTES) > len {
        return Err(damaged(format!(
            "the zip archive has no room for a directory of {count} entries in {len} bytes at {start}"
        )));
    }
    Ok(Directory { start, end, count })
}

/// The entry at `at` of a directory that ends at `end`: its name, its place, and where the next one is.
fn read_entry(bytes: &[u8], at: u64, end: u64) -> Result<(&[u8], Entry, u64), Fault> {
    let record = Record::at(bytes, at, ENTRY, "an entry of the directory")?;
    let lens = [record.u16(28)?, record.u16(30)?, record.u16(32)?].map(usize::from);
    let [name_len, extra_len, comment_len] = lens;
    let next = at + ENTRY_BYTES + lens.iter().sum::<usize>() as u64;
    if next > end {
        return Err(damaged(
            "an entry of the zip directory reaches past its end".to_owned(),
        ));
    }
    let name = record.slice(46, name_len)?;
    let extra = record.slice(46 + name_len, extra_len)?;
    record.slice(46 + name_len + extra_len, comment_len)?;

    let (mut packed, mut len, mut place) = (
        u64::from(record.u32(20)?),
        u64::from(record.u32(24)?),
        u64::from(record.u32(42)?),
    );
    // The extra field has only those numbers that did not fit, in this order.
    let mut wide = zip64_field(extra);
    for number in [&mut len, &mut packed, &mut place] {
        if *number == IN_EXTRA
            && let Some((first, rest)) = wide.and_then(<[u8]>::split_first_chunk)
        {
            *number = u64::from_le_bytes(*first);
            wide = Some(rest);
        }
    }
    let method = record.u16(10)?;
    if method == 0 && packed != len {
        return Err(damaged(format!(
            "the zip entry {} has {packed} bytes and {len} bytes",
            text(name)
        )));
    }
    let entry = Entry {
        at: place,
        len: packed,
        limit: 0,
        method,
        encrypted: record.u16(8)? & ENCRYPTED != 0,
    };
    Ok((name, entry, next))
}

/// The zip64 part of an extra field: a chain of number, length, content.
fn zip64_field(mut extra: &[u8]) -> Option<&[u8]> {
    loop {
        let (id, rest) = extra
            .split_first_chunk()
            .map(|(id, rest)| (u16::from_le_bytes(*id), rest))?;
        let (len, rest) = rest
            .split_first_chunk()
            .map(|(len, rest)| (u16::from_le_bytes(*len), rest))?;
        let (content, rest) = rest.split_at_checked(len.into())?;
        if id == ZIP64_EXTRA {
            return Some(content);
        }
        extra = rest;
    }
}

/// The rest of the file from a record on, which begins with the right letters.
struct Record<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8], at: u64, magic: [u8; 4], what: &'static str) -> Result<Self, Fault> {
        let found = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
        match found.filter(|rest| rest.starts_with(&magic)) {
            Some(bytes) => Ok(Self { bytes, what }),
            None => Err(damaged(format!(
                "the zip archive should have {what} at {at}, and has not"
            ))),
        }
    }

    fn u16(&self, at: usize) -> Result<u16, Fault> {
        self.field(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Fault> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Fault> {
        self.field(at).map(u64::from_le_bytes)
    }

    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], Fault> {
        field(self.bytes, at).ok_or_else(|| self.short())
    }

    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], Fault> {
        let found = self.bytes.get(at..).and_then(|rest| rest.get(..len));
        found.ok_or_else(|| self.short())
    }

    fn short(&self) -> Fault {
        damaged(format!("the zip archive ends inside {}", self.what))
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A name of the archive, for a message.
pub(super) fn text(name: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(name))
}

fn damaged(what: String) -> Fault {
    Fault::Damaged(what)
}
