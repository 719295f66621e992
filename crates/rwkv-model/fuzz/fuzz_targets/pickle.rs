//! The pickle of a PyTorch checkpoint, in an archive that is right and has two small storages.
#![no_main]

libfuzzer_sys::fuzz_target!(|pickle: &[u8]| {
    let storages = [[0u8; 64]; 2];
    let entries = [
        ("a/data.pkl", pickle),
        ("a/data/0", &storages[0]),
        ("a/data/1", &storages[1]),
    ];
    rwkv_model_fuzz::open(&archive(&entries));
});

/// A zip archive of stored entries: PKWARE's APPNOTE 4.3.7, 4.3.12, 4.3.16, with every field that no reader needs 0.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let short = |n: usize| u16::try_from(n).unwrap().to_le_bytes();
    let long = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    for (name, content) in entries {
        let at = long(file.len());
        let lengths = [
            &long(content.len())[..],
            &long(content.len()),
            &short(name.len()),
        ]
        .concat();
        file.extend(
            [
                b"PK\x03\x04",
                &[0; 14][..],
                &lengths,
                &[0; 2],
                name.as_bytes(),
                content,
            ]
            .concat(),
        );
        directory.extend(
            [
                b"PK\x01\x02",
                &[0; 16][..],
                &lengths,
                &[0; 12],
                &at,
                name.as_bytes(),
            ]
            .concat(),
        );
    }
    let counts = [short(entries.len()), short(entries.len())].concat();
    let place = [long(directory.len()), long(file.len())].concat();
    file.extend(directory);
    file.extend([b"PK\x05\x06", &[0; 4][..], &counts, &place, &[0; 2]].concat());
    file
}
