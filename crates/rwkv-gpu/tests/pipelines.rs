//! Pipelines are compiled once, side by side, and kept on disk; a file that is not as it was written is left out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use rwkv_gpu::{Binding, Dispatch, Error, Gpu, OpenOptions};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Barrier},
};
use support::{DOUBLE, check_usable, filled, open, shader};

fn open_in(folder: &Path) -> Gpu {
    open(&OpenOptions {
        cache_dir: Some(folder.to_path_buf()),
        ..OpenOptions::default()
    })
}

/// The only file below `folder`.
fn only_file(folder: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(folder.join("pipelines")).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0).unwrap().path()
}

/// Whether pipelines can be kept at all: not on every backend.
fn kept_here() -> bool {
    open(&OpenOptions::default()).capabilities().pipeline_cache
}

/// Pipelines that a run before had kept, among those that were compiled.
fn kept_of(gpu: &Gpu) -> (u64, u64) {
    let counts = gpu.counts();
    (counts.pipelines_kept, counts.pipelines.misses)
}

#[test]
fn kept_for_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = || fs::read_dir(folder.path()).unwrap().count();
    // Nothing is written without a folder, or where nothing was compiled.
    let gpu = open(&OpenOptions::default());
    assert_eq!(gpu.cache_file("tuner", "1"), None);
    check_usable(&gpu);
    gpu.save_pipelines().unwrap();
    drop(open_in(folder.path()));
    assert_eq!(in_folder(), 0);

    let gpu = open_in(folder.path());
    let other = gpu.clone();
    check_usable(&gpu);
    assert_eq!(kept_of(&gpu), (0, 1));
    assert_eq!(gpu.counts().pipeline_cache_bytes, 0);
    let tuner = gpu.cache_file("tuner", "1").unwrap();
    assert!(tuner.starts_with(folder.path().join("tuner")) && !tuner.exists());
    assert_ne!(gpu.cache_file("tuner", "2").unwrap(), tuner);
    drop(gpu);
    assert_eq!(in_folder(), 0, "a clone lives");
    drop(other);
    if !kept_here() {
        assert_eq!(in_folder(), 0);
        return;
    }
    let file = only_file(folder.path());
    let first = fs::read(&file).unwrap();

    let gpu = open_in(folder.path());
    assert!(gpu.counts().pipeline_cache_bytes > 0);
    check_usable(&gpu);
    assert_eq!(kept_of(&gpu), (1, 1));
    // Nothing is new, so nothing is written.
    fs::remove_file(&file).unwrap();
    gpu.save_pipelines().unwrap();
    assert!(!file.exists());
    // Other constants are another pipeline, and both are in the file.
    gpu.pipeline(&DOUBLE, &[("FACTOR", 3.0)]).unwrap();
    assert_eq!(kept_of(&gpu), (1, 2));
    gpu.save_pipelines().unwrap();
    let gpu = open_in(folder.path());
    check_usable(&gpu);
    gpu.pipeline(&DOUBLE, &[("FACTOR", 3.0)]).unwrap();
    assert_eq!(kept_of(&gpu), (2, 2));
    assert!(fs::read(&file).unwrap().len() > first.len());
    // With checks the shader is compiled to something else.
    let checked = open(&OpenOptions {
        checks: true,
        cache_dir: Some(folder.path().to_path_buf()),
        ..OpenOptions::default()
    });
    check_usable(&checked);
    assert_eq!(kept_of(&checked), (0, 1));
}

/// Whatever lies under the file's name, the GPU works, nothing of it is believed, and the next run finds a good file.
#[test]
fn files_that_are_of_no_use() {
    if !kept_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    check_usable(&open_in(folder.path()));
    let file = only_file(folder.path());
    let good = fs::read(&file).unwrap();
    let check = |what: &str, bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let gpu = open_in(folder.path());
        assert_eq!(gpu.counts().pipeline_cache_bytes, 0, "{what}");
        check_usable(&gpu);
        assert_eq!(kept_of(&gpu), (0, 1), "{what}");
        drop(gpu);
        let gpu = open_in(folder.path());
        check_usable(&gpu);
        assert_eq!(kept_of(&gpu), (1, 1), "{what}");
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    check("empty", b"");
    check("text", b"pipelines");
    for at in [0, 8, 12, 20, good.len() / 2, good.len() - 5, good.len() - 1] {
        check(&format!("byte {at}"), &with(at, 0x10));
    }
    for cut in [4, good.len() / 2, good.len() - 1] {
        check(&format!("{cut} bytes"), &good[..cut]);
    }
    check("longer", &[&good[..], b"more"].concat());
    // Intact, but of another adapter, or in another version of the layout.
    for at in [30, 8] {
        let mut foreign = with(at, 1);
        let end = foreign.len() - 4;
        let checksum = crc32fast::hash(&foreign[..end]);
        foreign[end..].copy_from_slice(&checksum.to_le_bytes());
        check("foreign", &foreign);
    }
    // Intact as a file, while what it holds is not what wgpu and the driver gave.
    let mut nonsense = good.clone();
    let end = nonsense.len() - 4;
    nonsense[end - 96..end].fill(0xab);
    let checksum = crc32fast::hash(&nonsense[..end]);
    nonsense[end..].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&file, nonsense).unwrap();
    check_usable(&open_in(folder.path()));
    // No file at all.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let gpu = open_in(folder.path());
    check_usable(&gpu);
    assert!(gpu.save_pipelines().is_err());
}

#[test]
fn folders_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"a file where a folder should be").unwrap();
    let gpu = open_in(&file);
    check_usable(&gpu);
    if kept_here() {
        let error = gpu.save_pipelines().unwrap_err();
        assert!(matches!(error, Error::CacheFile { .. }), "{error}");
        let line = error.to_string();
        assert!(
            line.contains("RWKV_CACHE_DIR") && !line.contains('\n'),
            "{line}"
        );
    }
    check_usable(&gpu);
    drop(gpu);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Processes that save at once leave a good file: that of the last one.
#[test]
fn processes_save_at_once() {
    if !kept_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4)
        .map(|number| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "save_often", "--ignored"])
                .env("TEST_FOLDER", folder.path())
                .env("TEST_NUMBER", number.to_string())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    only_file(folder.path());
    let gpu = open_in(folder.path());
    assert!(gpu.counts().pipeline_cache_bytes > 0);
    for number in 0..4 {
        for round in 0..ROUNDS {
            gpu.pipeline(&DOUBLE, &[("FACTOR", factor(number, round))])
                .unwrap();
        }
    }
    assert!(gpu.counts().pipelines_kept >= u64::from(ROUNDS));
}

const ROUNDS: u32 = 8;

fn factor(number: u32, round: u32) -> f64 {
    f64::from(100 * (number + 1) + round)
}

#[test]
#[ignore = "run by processes_save_at_once"]
fn save_often() {
    let folder = PathBuf::from(std::env::var_os("TEST_FOLDER").unwrap());
    let number = std::env::var("TEST_NUMBER").unwrap().parse().unwrap();
    let gpu = open_in(&folder);
    for round in 0..ROUNDS {
        let factor = [("FACTOR", factor(number, round))];
        gpu.pipeline(&DOUBLE, &factor).unwrap();
        gpu.save_pipelines().unwrap();
        // Whoever wrote it, it is whole.
        let bytes = fs::read(only_file_of_others(&folder)).unwrap();
        let (body, checksum) = bytes.split_last_chunk::<4>().unwrap();
        assert_eq!(crc32fast::hash(body), u32::from_le_bytes(*checksum));
    }
}

/// The file below `folder`, where others may be writing theirs.
fn only_file_of_others(folder: &Path) -> PathBuf {
    fs::read_dir(folder.join("pipelines"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some())
        .unwrap()
}

/// However many threads ask, each pipeline is compiled once; a mistake in one is the error of those who asked for it.
#[test]
fn threads_share_pipelines() {
    static BAD: rwkv_gpu::Shader = shader("bad", "fn main( {", &[]);
    const THREADS: u64 = 8;
    let gpu = open(&OpenOptions::default());
    let start = Barrier::new(8);
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    [3.0, 4.0, 5.0].map(|factor| {
                        assert!(gpu.pipeline(&BAD, &[]).is_err());
                        gpu.pipeline(&DOUBLE, &[("FACTOR", factor)]).unwrap()
                    })
                })
            })
            .collect();
        let made = threads.into_iter().map(|thread| thread.join().unwrap());
        made.collect::<Vec<_>>()
    });
    for others in &made {
        assert!(others.iter().zip(&made[0]).all(|(a, b)| Arc::ptr_eq(a, b)));
    }
    let counts = gpu.counts().pipelines;
    assert_eq!((counts.misses, counts.hits), (4, THREADS * 6 - 4));
    check_usable(&gpu);
}

/// Buffers are bound to a pipeline before it is compiled; launching it then is an error, by whatever way.
#[test]
fn declared_pipelines() {
    let gpu = open(&OpenOptions::default());
    let pipeline = gpu.declare(&DOUBLE, &[]).unwrap();
    let (from, to) = (filled(&gpu, &[1; 4]), filled(&gpu, &[0; 4]));
    let buffers = [Binding::from(&from), Binding::from(&to)];
    let group = gpu.bind(&pipeline, 0, &buffers).unwrap();
    let dispatch = Dispatch {
        pipeline: pipeline.clone(),
        groups: vec![group],
        grid: [1, 1, 1],
    };
    let launch = || {
        let mut recorder = gpu.recorder("test");
        recorder.dispatch([&dispatch]);
        gpu.wait(&recorder.submit()?)
    };
    let timed = |timing| {
        let mut timer = rwkv_gpu::Timer::new(&gpu, timing)?.expect("this test needs timestamps");
        let mut recorder = gpu.recorder("test");
        timer.dispatch(&mut recorder, "step", [&dispatch])
    };
    for result in [
        launch(),
        timed(rwkv_gpu::Timing::Passes),
        timed(rwkv_gpu::Timing::Kernels),
    ] {
        let line = result.unwrap_err().to_string();
        assert!(
            line.contains("double") && line.contains("compiled"),
            "{line}"
        );
    }
    gpu.compile(&pipeline).unwrap();
    launch().unwrap();
    assert_eq!(support::contents(&gpu, &to, 4), [2; 4]);
    timed(rwkv_gpu::Timing::Kernels).unwrap();
    check_usable(&gpu);
}
