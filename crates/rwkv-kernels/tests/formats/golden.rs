//! What blocks expand to, bit for bit. `make_golden.py` wrote the files.

use rwkv_kernels::Format;

#[test]
fn blocks_expand_as_in_ggml() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats/golden");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "blocks") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let format = Format::from_name(name).expect(name);
        let blocks = std::fs::read(&path).unwrap();
        let want = std::fs::read(path.with_extension("values")).unwrap();
        let want: Vec<f32> = (want.as_chunks::<4>().0.iter())
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        assert_eq!(format.row_bytes(want.len()), Some(blocks.len()), "{name}");
        let mut got = vec![f32::NAN; want.len()];
        format.spec().dequantize(&blocks, &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(
                got.to_bits(),
                want.to_bits(),
                "{name}, element {i}: {got} instead of {want}"
            );
        }
        checked += 1;
    }
    assert_eq!(checked, 13);
}
