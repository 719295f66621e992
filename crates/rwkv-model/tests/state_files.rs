//! State files: what was saved goes on as if nothing had happened; what is no state of the model is refused.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/pytorch.rs"]
mod pytorch;
mod support;

use checkpoint::{
    SMALL, Small, Tensor, Tensors, gguf, llama_names, open_bytes, safetensors, safetensors_with,
};
use proptest::prelude::*;
use rwkv_kernels::Format;
use rwkv_model::{AdapterFile, ModelFile, StateOrigin, TimeStateOrder, files::Checkpoint};
use rwkv_sched::{
    Batch, Device, Executor, LoadOptions, Simd, SlotId, State, Version, Wanted, WeightsDType, load,
};
use std::path::Path;

const AUTO: TimeStateOrder = TimeStateOrder::Auto;

fn small(seed: u64) -> ModelFile {
    open_bytes(
        "small.model",
        safetensors(&SMALL.original(seed), Format::F32),
    )
    .unwrap()
}

fn executor(file: &ModelFile, device: &Device) -> Box<dyn Executor> {
    let options = LoadOptions {
        slots: 2,
        weights_dtype: WeightsDType::F32,
        // On the CPU: the oracle.
        simd: Simd::Twins,
        ..LoadOptions::default()
    };
    load(&file.model().unwrap(), device, &options, &mut |_| {}).unwrap()
}

fn feed(executor: &mut dyn Executor, slot: u32, tokens: &[u32]) -> Vec<f32> {
    let batch = Batch::single(SlotId(slot), tokens, Wanted::All);
    let logits = executor.run(&batch).unwrap();
    logits.rows().flatten().copied().collect()
}

/// A state with numbers in it.
fn some_state(file: &ModelFile) -> State {
    let mut cpu = executor(file, &Device::Cpu);
    feed(cpu.as_mut(), 0, &[1, 2, 3, 39, 4]);
    cpu.state(SlotId(0)).unwrap()
}

#[test]
fn continues() {
    let file = small(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session.state");
    for device in [Device::Cpu, support::gpu()] {
        let mut first = executor(&file, &device);
        feed(first.as_mut(), 1, &[5, 9, 3, 22]);
        let state = first.state(SlotId(1)).unwrap();
        file.save_state(&state, &path).unwrap();
        let want = feed(first.as_mut(), 1, &[7, 8, 9]);
        let loaded = file.load_state(&path, AUTO).unwrap();
        assert_eq!(loaded.state, state);
        assert_eq!(loaded.origin, StateOrigin::Session { same_model: true });
        let mut second = executor(&file, &device);
        second.set_state(SlotId(0), &loaded.state).unwrap();
        assert_eq!(
            feed(second.as_mut(), 0, &[7, 8, 9]),
            want,
            "{}",
            second.device()
        );
    }
    // Nothing but the file is left.
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["session.state"]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let shapes = [
        "blocks.1.att.wkv",
        "blocks.0.att.shift",
        "blocks.1.ffn.shift",
    ]
    .map(|name| checkpoint.tensor(name).unwrap().shape.to_vec());
    assert_eq!(shapes, [vec![2, 32, 32], vec![64], vec![64]]);
    assert_eq!(checkpoint.metadata().string("rwkv.version"), Some("RWKV-7"));
}

/// Other weights of the same dimensions: a warning. Other dimensions: an error.
#[test]
fn other_models() {
    let (file, other) = (small(1), small(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session.state");
    let state = some_state(&file);
    file.save_state(&state, &path).unwrap();
    assert_eq!(file.fingerprint(), small(1).fingerprint());
    assert_ne!(file.fingerprint(), other.fingerprint());
    let loaded = other.load_state(&path, AUTO).unwrap();
    assert_eq!(loaded.state, state);
    assert_eq!(loaded.origin, StateOrigin::Session { same_model: false });
    let llama = gguf(
        &llama_names(&SMALL.original(1)),
        Format::Q8_0,
        &SMALL.metadata(),
    );
    let llama = open_bytes("small.gguf", llama).unwrap();
    assert_eq!(llama.load_state(&path, AUTO).unwrap().state, state);
    for (small, want) in [
        (
            Small { layers: 3, ..SMALL },
            "rwkv.layers is \"2\", this model's is 3",
        ),
        (Small { width: 96, ..SMALL }, "rwkv.width is \"64\""),
        (
            Small {
                head_size: 64,
                ..SMALL
            },
            "rwkv.head_size is \"32\"",
        ),
    ] {
        let other = open_bytes("other", safetensors(&small.original(1), Format::F32)).unwrap();
        let error = other.load_state(&path, AUTO).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
        let error = other.save_state(&state, &path).unwrap_err().to_string();
        assert!(error.contains("not saved"), "{error}");
    }
}

#[track_caller]
fn refuses(file: &ModelFile, state: &State, path: &Path, want: &str) {
    let error = file.save_state(state, path).unwrap_err().to_string();
    assert!(
        error.contains(want) && !error.contains('\n'),
        "{error}, not {want}"
    );
}

#[test]
fn not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.safetensors");
    std::fs::write(&model, safetensors(&SMALL.original(1), Format::F32)).unwrap();
    let file = ModelFile::open(&model).unwrap();
    let state = some_state(&file);
    refuses(&file, &state, &model, "this is the model");
    refuses(&file, &state, folder.path(), "not a regular file");
    refuses(
        &file,
        &state,
        &folder.path().join("no/such/folder"),
        "cannot write to",
    );
    let mut broken = state.clone();
    broken.wkv[1][3] = f32::NAN;
    refuses(&file, &broken, &folder.path().join("s"), "holds NaN");
    broken.wkv.pop();
    refuses(&file, &broken, &folder.path().join("s"), "2 layers");
    assert!(!folder.path().join("s").exists());
    let there = folder.path().join("there");
    std::fs::write(&there, "before").unwrap();
    file.save_state(&state, &there).unwrap();
    assert_eq!(file.load_state(&there, AUTO).unwrap().state, state);
    #[cfg(unix)]
    {
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&there, &link).unwrap();
        file.save_state(&State::zeros(file.model().unwrap().state_layout()), &link)
            .unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_ne!(file.load_state(&there, AUTO).unwrap().state, state);
    }
}

/// The tensors of a state file.
fn tensors(state: &State) -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], values: &[f32]| {
        let (shape, values) = (shape.to_vec(), values.to_vec());
        tensors.insert(name, Tensor { shape, values });
    };
    for (layer, (wkv, shift)) in state.wkv.iter().zip(&state.shift).enumerate() {
        add(format!("blocks.{layer}.att.wkv"), &[2, 32, 32], wkv);
        add(format!("blocks.{layer}.att.shift"), &[64], &shift[..64]);
        add(format!("blocks.{layer}.ffn.shift"), &[64], &shift[64..]);
    }
    tensors
}

fn from_bytes(file: &ModelFile, bytes: Vec<u8>, order: TimeStateOrder) -> Result<State, String> {
    let checkpoint = Checkpoint::from_vec("a.state", bytes).map_err(|e| e.to_string())?;
    let loaded = file.state_from(&checkpoint, order);
    loaded.map(|l| l.state).map_err(|e| e.to_string())
}

#[test]
fn tuned_states() {
    let file = small(1);
    let wkv = some_state(&file).wkv;
    let mut tuned = Tensors::new();
    for (layer, wkv) in wkv.iter().enumerate() {
        let (shape, values) = (vec![2, 32, 32], wkv.clone());
        tuned.insert(
            format!("blocks.{layer}.att.time_state"),
            Tensor { shape, values },
        );
    }
    let turned = |wkv: &[f32]| -> Vec<f32> {
        (0..wkv.len())
            .map(|at| wkv[at / 1024 * 1024 + at % 32 * 32 + at / 32 % 32])
            .collect()
    };
    for (order, as_written) in [
        (TimeStateOrder::ValueKey, true),
        (TimeStateOrder::KeyValue, false),
        (AUTO, false),
    ] {
        let state = from_bytes(&file, safetensors(&tuned, Format::F32), order).unwrap();
        let want: Vec<Vec<f32>> = wkv
            .iter()
            .map(|wkv| if as_written { wkv.clone() } else { turned(wkv) })
            .collect();
        assert_eq!(state.wkv, want, "{order:?}");
        assert!(state.shift.iter().flatten().all(|x| *x == 0.0));
    }
    let check = |tensors: &Tensors, want: &str| {
        let error = from_bytes(&file, safetensors(tensors, Format::F32), AUTO).unwrap_err();
        assert!(
            error.contains(want) && !error.contains('\n'),
            "{error}, not {want}"
        );
    };
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = tuned.clone();
        tensors.insert(name.to_owned(), Tensor::zeros(shape));
        tensors
    };
    check(
        &with("blocks.2.att.time_state", &[2, 32, 32]),
        "3 layers, where 2 are needed",
    );
    check(
        &with("blocks.1.att.time_state", &[2, 32, 33]),
        "where [2, 32, 32] is needed",
    );
    check(
        &with("blocks.1.att.time_state", &[2048]),
        "where [2, 32, 32] is needed",
    );
    check(
        &with("emb.weight", &[40, 64]),
        "it is a model or an adapter",
    );
    let mut whole = SMALL.original(1);
    whole.extend(tuned.clone());
    check(&whole, "it is a model or an adapter");
    let mut one = tuned.clone();
    one.remove("blocks.0.att.time_state");
    check(&one, "no tensor blocks.0.att.time_state");
    // A dimension of one in front does no harm.
    let mut led = tuned.clone();
    led.get_mut("blocks.0.att.time_state")
        .unwrap()
        .shape
        .insert(0, 1);
    assert!(from_bytes(&file, safetensors(&led, Format::F32), AUTO).is_ok());
}

/// How the matrices of a tuned state lie in each kind of file, alone and beside an adapter, for every version: they are
/// not symmetric.
#[test]
fn orders_of_tuned_states() {
    let turned = |tensors: &Tensors| -> Tensors {
        let turn = |(name, t): (&String, &Tensor)| (name.clone(), t.each_transposed());
        tensors.iter().map(turn).collect()
    };
    for version in [
        Version::V5_0,
        Version::V5_1,
        Version::V5_2,
        Version::V6,
        Version::V7,
        Version::V7a,
    ] {
        let mut model = SMALL.of(version, 3);
        let mut tuned = model.clone();
        tuned.retain(|name, _| name.ends_with("time_state"));
        model.retain(|name, _| !name.ends_with("time_state"));
        let file = open_bytes("small", safetensors(&model, Format::F32)).unwrap();
        let model = file.model().unwrap();
        // As the tensors are written here: [head, value, key].
        let want: Vec<_> = tuned.values().map(|t| t.values.clone()).collect();
        let other_way = turned(&tuned);
        assert!(
            tuned
                .iter()
                .all(|(name, t)| t.values != other_way[name].values)
        );
        let check = |name: &str, bytes: Vec<u8>, order| {
            let checkpoint = Checkpoint::from_vec(name, bytes).unwrap();
            let alone = file.state_from(&checkpoint, order).unwrap();
            assert_eq!(alone.state.wkv, want, "{name}, {version}, {order:?}");
            assert_eq!(alone.origin, StateOrigin::Tuned);
            let adapter = AdapterFile::from_checkpoint_with(&checkpoint, None, &model, order);
            let adapter = adapter.unwrap().initial_state.unwrap();
            assert_eq!(adapter, alone.state, "{name}, {version}, {order:?}");
        };
        let (value_key, key_value) = (TimeStateOrder::ValueKey, TimeStateOrder::KeyValue);
        check("a.pth", pytorch::pytorch(&tuned, Format::F32), AUTO);
        check("a.pth", pytorch::pytorch(&tuned, Format::F32), value_key);
        check(
            "turned.pth",
            pytorch::pytorch(&turned(&tuned), Format::F32),
            key_value,
        );
        let [as_is, turned] = [&tuned, &turned(&tuned)].map(|t| safetensors(t, Format::F32));
        check("a.st", turned.clone(), AUTO);
        check("a.st", turned, key_value);
        check("a.safetensors", as_is, value_key);
        let said = [("rwkv.time_state", "value-key")];
        check(
            "ours.st",
            safetensors_with(&tuned, Format::F32, &said),
            AUTO,
        );
    }
}

#[test]
fn refused() {
    let file = small(1);
    let state = some_state(&file);
    let good = tensors(&state);
    assert_eq!(
        from_bytes(&file, safetensors(&good, Format::F32), AUTO).unwrap(),
        state
    );
    let check = |tensors: &Tensors, want: &str| {
        let error = from_bytes(&file, safetensors(tensors, Format::F32), AUTO).unwrap_err();
        assert!(
            error.starts_with("a.state: ") && !error.contains('\n'),
            "{error}"
        );
        assert!(error.contains(want), "{error}, not {want}");
    };
    for (name, tensor) in &good {
        let mut without = good.clone();
        without.remove(name);
        check(&without, name);
        for axis in 0..tensor.shape.len() {
            let mut other = good.clone();
            other.insert(name.clone(), tensor.grown(axis));
            check(&other, name);
        }
        let mut broken = good.clone();
        broken.get_mut(name).unwrap().values[5] = f32::INFINITY;
        check(&broken, "holds inf");
    }
    let mut more = good.clone();
    more.insert("blocks.2.att.wkv".to_owned(), Tensor::zeros(&[2, 32, 32]));
    check(&more, "7 tensors, where 6 are needed");
    check(&SMALL.original(1), "no state file");
    check(&Tensors::new(), "no state file");
    let llama = gguf(
        &llama_names(&SMALL.original(1)),
        Format::F32,
        &SMALL.metadata(),
    );
    let error = from_bytes(&file, llama, AUTO).unwrap_err();
    assert!(error.contains("no state file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of a state file that were changed or cut: a state that fits, or one line.
    #[test]
    fn hostile_files(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
                     cut in proptest::option::of(any::<prop::sample::Index>())) {
        let file = small(1);
        let mut bytes = safetensors(&tensors(&State::zeros(file.model().unwrap().state_layout())), Format::F32);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in flips {
            bytes[at.index(header)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        match from_bytes(&file, bytes, AUTO) {
            Ok(state) => prop_assert!(state.check(file.model().unwrap().state_layout()).is_ok()),
            Err(error) => prop_assert!(error.starts_with("a.state: ") && !error.contains('\n'), "{error}"),
        }
    }
}
