//! Hostile PyTorch files: archives that lie, pickles that would run programs, and pickles that would fill the memory.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::attack::attack;
use super::pth::{PLAIN, Pickle, archive, write, zip};
use super::pytorch::looks;
use super::*;

/// What the message about `bytes` must say, or `opens`.
fn check(bytes: Vec<u8>, expected: &str) {
    let message = attack(bytes).map_or_else(|error| error.to_string(), |()| "opens".to_owned());
    assert!(
        message.contains(expected),
        "{message:?} does not say {expected:?}"
    );
}

/// An archive whose pickle is these instructions.
fn pickled(instructions: &[u8]) -> Vec<u8> {
    archive(Pickle::new().op(instructions).end(), &[])
}

/// An archive with one tensor of two rows of three f32, whose arguments are what `args` adds after `(`.
fn one(args: impl Fn(Pickle) -> Pickle) -> Vec<u8> {
    let pickle = Pickle::new()
        .op(b"}")
        .text("t\n")
        .global("torch._utils", "_rebuild_tensor_v2")
        .op(b"(");
    archive(args(pickle).op(b"tRs").end(), &[&[7; 24]])
}

fn placed(first: i64, sizes: &[i64], strides: &[i64]) -> Vec<u8> {
    one(|p| {
        p.storage("FloatStorage", "0", 6)
            .place(first, sizes, strides)
    })
}

#[test]
fn pickles_run_nothing() {
    let call = |module: &str, name: &str| {
        archive(
            Pickle::new()
                .global(module, name)
                .text("rm -rf /")
                .op(b"\x85R")
                .end(),
            &[],
        )
    };
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("__builtin__", "eval"),
        ("builtins", "exec"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "FloatStorage\0"),
        ("", ""),
    ] {
        let error = attack(call(module, name)).unwrap_err();
        assert!(
            matches!(&error, FileError::Forbidden { global, .. } if *global == format!("{module}.{name}")),
            "{error}"
        );
    }
    check(call("os", "system"), "\"os.system\"");
    // Named only, in a value that nothing looks at.
    check(pickled(b"}q\0(K\x01cos\nsystem\nuh\0"), "\"os.system\"");
    check(call(&"o".repeat(1 << 20), "system"), "refused");
    // The ways of other protocols to the same end.
    check(pickled(b"(S'rm -rf /'\nios\nsystem\n"), "instruction 0x53");
    check(pickled(b"(ios\nsystem\n"), "instruction 0x69");
    check(
        pickled(b"X\x02\0\0\0osX\x06\0\0\0system\x93"),
        "instruction 0x93",
    );
    check(pickled(b"\x82\x01"), "instruction 0x82");
    check(archive(b"\x80\x04}.".to_vec(), &[]), "protocol 4");
    // What is allowed does not nest without end.
    let nested = (0..10_000).fold(Pickle::new(), |p, _| {
        p.global("torch._tensor", "_rebuild_from_type_v2")
    });
    check(
        archive(nested.op(b"N").op(&b"N\x87R".repeat(100)).end(), &[]),
        "no",
    );
    check(
        one(|p| {
            p.op(b"0")
                .global("torch._tensor", "_rebuild_from_type_v2")
                .op(b"N(tt")
        }),
        "",
    );
}

#[test]
fn pickles_are_checked() {
    check(pickled(b"}"), "opens");
    check(pickled(b"]"), "no dictionary");
    check(pickled(b"K\x05"), "no dictionary");
    check(pickled(b""), "takes a value where there is none");
    check(archive(Vec::new(), &[]), "ends in the middle");
    check(archive(b"\x80\x02}".to_vec(), &[]), "ends in the middle");
    check(pickled(b"X\xff\xff\xff\xff"), "ends in the middle");
    check(pickled(b"X\x01\0\0\0\xff"), "not UTF-8");
    check(pickled(b"ctorch"), "ends in the middle");
    check(pickled(b"h\x05"), "did not keep");
    check(pickled(b"j\xff\xff\xff\xff"), "did not keep");
    check(pickled(b"}r\xff\xff\xff\xffj\xff\xff\xff\xff"), "opens");
    check(pickled(b"}(K\x01u"), "a key has no value");
    check(pickled(b"]K\x01K\x01s"), "no dictionary");
    check(pickled(b"}K\x01a"), "no list");
    check(pickled(b"t"), "no beginning");
    check(pickled(b"}(0"), "takes a value where there is none");
    check(pickled(b"K\x01)R"), "no function");
    check(pickled(b"ctorch\nSize\n]R"), "something else than a tuple");
    check(pickled(b"ctorch\nSize\n)R"), "do not fit");
    check(pickled(b"ctorch\nfloat32\n)R"), "do not fit");
    check(pickled(b"K\x01}b"), "has none");
    // Numbers of all lengths.
    check(
        pickled(b"}(\x8a\0N\x8a\x08\xff\xff\xff\xff\xff\xff\xff\xffN\x8a\xff"),
        "ends in the middle",
    );
    check(
        pickled(&[b"}X\x01\0\0\0a\x8a\x0a", &[1; 10][..], b"s"].concat()),
        "opens",
    );
    // A dictionary and a list that contain themselves.
    check(
        pickled(b"}q\0X\x01\0\0\0ah\0s"),
        "dictionaries of dictionaries",
    );
    check(pickled(b"}X\x01\0\0\0a]q\0h\0as"), "opens");
    check(pickled(b"}X\x01\0\0\0a}s"), "dictionaries of dictionaries");
    check(
        pickled(b"}X\x09\0\0\0_strategyK\x01s"),
        "converted for another program",
    );
    check(
        pickled(b"}X\x0a\0\0\0state_dict}X\x09\0\0\0_strategyK\x01ss"),
        "converted for another program",
    );
}

#[test]
fn pickles_take_bounded_time_and_memory() {
    let check = |instructions: &[u8], expected: &str| {
        // An instruction looks at what it takes off the stack, and who reads the dictionary at each pair a few times.
        let most = 4 * instructions.len() as u64;
        looks::at_most(most, || check(pickled(instructions), expected));
    };
    // Tuples and lists that double, and would have 2^10000 items if anyone counted.
    check(
        &[b"}X\x01\0\0\0a)", &b"q\0h\0\x86".repeat(10_000)[..], b"s"].concat(),
        "opens",
    );
    check(
        &[b"}X\x01\0\0\0a]", &b"q\0h\0\x86".repeat(10_000)[..], b"s"].concat(),
        "opens",
    );
    check(&b"(".repeat(1 << 20), "nested deeper than 256");
    check(&[&b"]"[..], &b"\x85".repeat(1 << 20)].concat(), "values");
    check(&b"]".repeat(1 << 20), "values");
    check(&b"]0".repeat(1 << 20), "more than 524288 values");
    check(
        &[&b"}q\0"[..], &b"h\0".repeat(1 << 20)].concat(),
        "on its stack",
    );
    check(
        &[&b"}"[..], &vec![b'q'; 1 << 24]].concat(),
        "more than 8388608",
    );
    // What lies below on the stack costs nothing.
    check(
        &[
            b"]".repeat(1 << 16),
            b"q\0".repeat(1 << 16),
            b"0".repeat((1 << 16) - 1),
        ]
        .concat(),
        "no dictionary",
    );
    // One long text, mentioned under a hundred thousand keys.
    let long = "x".repeat(1 << 20);
    let keys = (0..100_000).fold(
        Pickle(Vec::new()).op(b"}").text(&long).op(b"q\x000"),
        |p, n| p.text(&format!("{n}")).op(b"h\0s"),
    );
    let checkpoint = Checkpoint::from_vec("", pickled(&keys.0)).unwrap();
    assert_eq!(checkpoint.metadata().keys().len(), 0);
    let keys = (0..100_000).fold(
        Pickle(Vec::new()).op(b"}").text("y").op(b"q\x000"),
        |p, n| p.text(&format!("{n}")).op(b"h\0s"),
    );
    let checkpoint = Checkpoint::from_vec("", pickled(&keys.0)).unwrap();
    assert_eq!(checkpoint.metadata().keys().len(), 1024);
    // Memo places far apart.
    let far = (0..100_000u32).fold(Pickle(Vec::new()).op(b"}"), |p, n| {
        p.op(b"r")
            .op(&(n.wrapping_mul(2_654_435_761)).to_le_bytes())
    });
    check(&far.0, "opens");
}

#[test]
fn tensors_are_checked() {
    check(placed(0, &[2, 3], &[3, 1]), "opens");
    check(placed(0, &[3, 2], &[1, 3]), "opens");
    check(placed(5, &[1, 1, 1], &[9, 9, 9]), "opens");
    check(placed(0, &[], &[]), "opens");
    check(placed(1 << 60, &[0], &[1]), "opens");
    check(
        placed(1, &[2, 3], &[3, 1]),
        "tensor \"t\\n\" lies outside of its storage",
    );
    check(placed(0, &[2, 3], &[4, 1]), "outside of its storage");
    check(placed(6, &[1], &[1]), "outside of its storage");
    check(placed(0, &[2, 3], &[i64::MAX, 1]), "outside of its storage");
    check(
        placed(i64::MAX, &[2], &[i64::MAX]),
        "outside of its storage",
    );
    check(placed(0, &[i64::MAX, 1], &[0, 1]), "outside of its storage");
    check(placed(0, &[1 << 40], &[0]), "repeats its elements");
    check(placed(0, &[2, 6], &[0, 1]), "repeats its elements");
    check(placed(0, &[1 << 40, 1 << 40], &[0, 0]), "too large");
    check(placed(0, &[0, 1 << 40, 1 << 40], &[0, 0, 0]), "too large");
    check(placed(0, &[-1], &[1]), "sizes that are not");
    check(placed(0, &[1], &[-1]), "strides that are not");
    check(placed(-1, &[1], &[1]), "no number of its storage");
    check(placed(0, &[1; 9], &[1; 9]), "sizes that are not up to 8");
    check(placed(0, &[1, 1], &[1]), "one stride for each");
    let stored =
        |class: &str, key: &str, count| one(|p| p.storage(class, key, count).place(0, &[1], &[1]));
    check(stored("FloatStorage", "0", 6), "opens");
    check(stored("ByteStorage", "0", 24), "opens");
    check(
        stored("FloatStorage", "0", 7),
        "28 bytes, of which the archive has 24",
    );
    check(stored("FloatStorage", "0", i64::MAX), "too large");
    check(stored("FloatStorage", "0", -1), "does not say");
    check(
        stored("FloatStorage", "1", 6),
        "\"1\", which is not in the archive",
    );
    check(stored("FloatStorage", "../data/0", 6), "not in the archive");
    check(
        stored("FloatStorage", &"0".repeat(1 << 20), 6),
        "not in the archive",
    );
    check(stored("Size", "0", 6), "does not say");
    check(one(|p| p), "not made of a storage");
    check(one(|p| p.op(b"NNNNNN")), "has no storage");
    check(one(|p| p.op(b")Q").place(0, &[1], &[1])), "has no storage");
    let conjugated = |p: Pickle| {
        p.storage("FloatStorage", "0", 6)
            .place(0, &[1], &[1])
            .op(b"}X\x04\0\0\0conj\x88s")
    };
    check(one(conjugated), "resolve_conj");
    // Names that are no text, or come twice, also without their prefix.
    let tensor = |p: Pickle| {
        p.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .storage("FloatStorage", "0", 6)
            .place(0, &[1], &[1])
            .op(b"tRs")
    };
    let under = |p: Pickle| archive(tensor(p).end(), &[&[7; 24]]);
    check(under(Pickle::new().op(b"}K\x01")), "has no name");
    check(
        under(tensor(Pickle::new().op(b"}").text("a")).text("a")),
        "twice",
    );
    check(
        under(tensor(Pickle::new().op(b"}").text("a")).text("_forward_module.a")),
        "twice",
    );
    check(
        under(Pickle::new().op(b"}").text(&"n".repeat(65_536))),
        "65536 bytes",
    );

    // Many tensors that share a storage, each to be copied: together no more than the file.
    let many = |count: usize| {
        let strided = |p: Pickle, n: usize| {
            p.text(&n.to_string())
                .global("torch._utils", "_rebuild_tensor_v2")
                .op(b"(")
                .storage("FloatStorage", "0", 1 << 18)
                .place(0, &[512, 512], &[1, 512])
                .op(b"tRs")
        };
        let pickle = (0..count).fold(Pickle::new().op(b"}"), strided);
        archive(pickle.end(), &[&vec![0; 1 << 20]])
    };
    check(many(1), "opens");
    check(many(2), "one of too many whose elements are not in order");
    check(many(2000), "copied into memory; save the checkpoint again");
}

#[test]
fn archives_are_checked() {
    let files = |names: &[(&str, &[u8])]| {
        let entries: Vec<_> = names
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect();
        zip(&entries, false, 1)
    };
    let pickle = &b"\x80\x02}."[..];
    check(files(&[("data.pkl", pickle)]), "opens");
    check(files(&[("x/data.pkl", pickle)]), "opens");
    check(files(&[]), "an empty zip archive");
    check(files(&[("x/data.pk", pickle)]), "without data.pkl");
    check(files(&[("x/mydata.pkl", pickle)]), "without data.pkl");
    check(
        files(&[("x/data.pkl", pickle), ("y/data.pkl", pickle)]),
        "more than one",
    );
    check(
        files(&[("x/data.pkl", pickle), ("x/data.pkl", pickle)]),
        "twice",
    );
    check(
        files(&[("x/data.pkl", pickle), ("x/constants.pkl", pickle)]),
        "TorchScript",
    );
    let ordered = |order: &[u8]| files(&[("x/data.pkl", pickle), ("x/byteorder", order)]);
    check(ordered(b"little"), "opens");
    check(ordered(b"big"), "big-endian");
    check(ordered(b"middle"), "neither");

    // One byte or word of a good file changed, found by what is before it.
    let good = files(&[("x/data.pkl", pickle), ("x/version", b"3\n")]);
    let change = |record: &[u8], offset: usize, bytes: &[u8]| {
        let at = good.windows(4).position(|window| window == record).unwrap() + offset;
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let (local, entry, end) = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06");
    check(good.clone(), "opens");
    check(change(entry, 8, &[1]), "is encrypted");
    check(change(entry, 10, &[8]), "\"x/data.pkl\" is compressed");
    // A bomb: a few bytes that would become 4 GB.
    let mut bomb = change(entry, 10, &[8]);
    let at = good.windows(4).position(|window| window == entry).unwrap() + 24;
    bomb[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    check(bomb, "is compressed");
    check(change(entry, 20, &[5]), "has 5 bytes and 4 bytes");
    check(
        change(entry, 20, &[0xf0, 0, 0, 0, 0xf0]),
        "lies over another one",
    );
    check(change(entry, 20, &[0xff; 8]), "lies over another one");
    check(change(entry, 28, &[0xff, 0xff]), "past its end");
    check(change(entry, 42, &[0xff; 4]), "lies over another one");
    check(change(entry, 42, &[1]), "a local header at 1,");
    let mut twice = good.clone();
    let at = good.windows(4).rposition(|window| window == entry).unwrap() + 42;
    twice[at..at + 4].fill(0);
    check(twice, "lies over another one");
    check(
        change(entry, 0, b"PK\x01\x03"),
        "an entry of the directory at",
    );
    check(change(local, 0, b"PK\x03\x04"), "opens");
    check(change(local, 26, &[0xff]), "reaches into the next one");
    check(change(local, 28, &[9]), "reaches into the next one");
    check(change(end, 4, &[1]), "one part of a zip archive");
    check(change(end, 8, &[1]), "contradicts itself");
    check(
        change(end, 8, &[9, 0, 9, 0]),
        "no room for a directory of 9 entries",
    );
    check(change(end, 12, &[0xff; 4]), "more than 16777216");
    check(change(end, 16, &[0xff; 4]), "no room for a directory");
    check(
        change(end, 20, &[1]),
        "directory at the end of the zip archive is missing",
    );
    check([&good[..], b"x"].concat(), "is missing");
    let mut commented = change(end, 20, &[2]);
    commented.extend(b"hi");
    check(commented, "opens");
}

#[test]
fn zip64_records_are_checked() {
    let entries = [("x/data.pkl".to_owned(), b"\x80\x02}.".to_vec())];
    let good = zip(&entries, true, 1);
    check(good.clone(), "opens");
    let change = |record: &[u8], offset: usize, number: u64| {
        let at = good
            .windows(record.len())
            .position(|window| window == record)
            .unwrap()
            + offset;
        let mut changed = good.clone();
        changed[at..at + 8].copy_from_slice(&number.to_le_bytes());
        changed
    };
    let (end, locator, extra) = (b"PK\x06\x06", b"PK\x06\x07", b"FB\0\0\x01\0");
    for number in [1 << 20, 1 << 60, u64::MAX - 45, u64::MAX] {
        check(
            change(locator, 8, number),
            "should have the zip64 end record",
        );
        check(change(end, 24, number), "contradicts itself");
        check(change(end, 40, number), "directory of");
        check(change(end, 48, number), "no room");
        check(change(extra, 8, number), "bytes and");
        check(change(extra, 24, number), "lies over another one");
        for at in 0..good.len() - 8 {
            let mut lie = good.clone();
            lie[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let _ = attack(lie);
        }
    }
}

#[test]
fn a_truncated_archive_never_opens() {
    for zip64 in [false, true] {
        let tensors = planned();
        let file = write(&tensors, &pth::Style { zip64, ..PLAIN });
        attack(file.clone()).unwrap();
        for len in 0..file.len() {
            attack(file[..len].to_vec()).unwrap_err();
        }
    }
}

/// Two tensors, one of them empty.
fn planned() -> BTreeMap<String, Planned> {
    BTreeMap::from([
        (
            "a".to_owned(),
            (Format::F32.into(), vec![2, 2], vec![1; 16]),
        ),
        ("b".to_owned(), (Format::Bf16.into(), vec![0], Vec::new())),
    ])
}

/// Instructions, whole ones and pieces, of which pickles are shuffled.
const PIECES: &[&[u8]] = &[
    b"(", b")", b"]", b"}", b"t", b"u", b"s", b"a", b"e", b"R", b"b", b"Q", b"0", b"1", b"N", b"q\0", b"q\x01", b"h\0",
    b"h\x01", b"\x85", b"\x86", b"\x87", b"\x81", b"K\0", b"K\x01", b"K\x03", b"\x8a\x01\xff", b"X\x01\0\0\0a",
    b"X\x07\0\0\0storage", b"X\x01\0\0\x000", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n", b"G\0\0\0\0\0\0\0\0", b"X\x0a\0\0\0state_dict",
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\0\0\0\0K\x06tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\0\0\0\0K\x06tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89}tR",
];

proptest! {
    #[test]
    fn shuffled_pickles_do_no_harm(pieces in vec(select(PIECES), 0..60)) {
        let pickle = Pickle::new().op(b"}").op(&pieces.concat()).end();
        let _ = attack(archive(pickle, &[&[7; 24]]));
    }

    #[test]
    fn strange_strides_do_no_harm(
        first in 0i64..8,
        dims in vec((0i64..5, prop_oneof![0i64..8, Just(i64::MAX), Just(1 << 61)]), 0..4),
    ) {
        let (sizes, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
        let _ = attack(placed(first, &sizes, &strides));
    }
}
