//! The store of states on a disk: attacked, killed, shared by threads and processes, and below the state cache.
#![allow(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; small numbers"
)]

use proptest::prelude::*;
use rwkv_model::DiskStateStore;
use rwkv_sched::{
    CacheKey, State, StateCache, StateCacheOptions, StateLayout, StateStore, TokenId,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

const PLENTY: u64 = 1 << 30;
/// Names the folder to a process that a test starts.
const FOLDER: &str = "RWKV_TEST_STATE_STORE";

fn open(folder: &Path) -> DiskStateStore {
    DiskStateStore::open(folder, "0123abcd", PLENTY).expect("a folder that can be made")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The files of entries.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder)
        .expect("a folder")
        .map(|e| e.expect("a file").path());
    let mut entries: Vec<_> = files
        .filter(|p| p.extension().is_some_and(|e| e == "state"))
        .collect();
    entries.sort();
    entries
}

fn bytes_in(folder: &Path) -> u64 {
    let sizes = entries(folder)
        .into_iter()
        .filter_map(|p| Some(p.metadata().ok()?.len()));
    sizes.sum()
}

fn temporary_files(folder: &Path) -> usize {
    let files = fs::read_dir(folder).expect("a folder").flatten();
    let names = files.map(|e| e.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with(".rwkv-state-"))
        .count()
}

/// Bytes that cannot be compressed, a different stream for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Starts this test again, in a process of its own that finds `folder` in its environment.
fn child(test: &str, folder: &Path) -> Child {
    let program = std::env::current_exe().expect("this program");
    Command::new(program)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process")
}

/// The folder, if this process is such a child.
fn given_folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < Duration::from_mins(10),
            "{what}: nothing after ten minutes"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8, Vec<u8>),
    Get(u8),
    Remove(u8),
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let bytes = prop::collection::vec(0u8..4, 0..400);
    prop_oneof![
        3 => (0u8..6, bytes).prop_map(|(name, bytes)| Act::Put(name, bytes)),
        3 => (0u8..6).prop_map(Act::Get),
        1 => (0u8..6).prop_map(Act::Remove),
        1 => Just(Act::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A store with room for all is a map.
    #[test]
    fn as_a_map(acts in prop::collection::vec(act(), 0..40)) {
        let folder = folder();
        let mut store = open(folder.path());
        let mut map = BTreeMap::new();
        for act in acts {
            match act {
                Act::Put(name, bytes) => {
                    let name = format!("n-{name}");
                    prop_assert!(store.put(&name, &bytes)? > 0);
                    map.insert(name, bytes);
                }
                Act::Get(name) => {
                    let name = format!("n-{name}");
                    let found = store.get(&name, 400)?;
                    prop_assert_eq!(found.as_ref(), map.get(&name));
                }
                Act::Remove(name) => {
                    let name = format!("n-{name}");
                    store.remove(&name)?;
                    map.remove(&name);
                }
                Act::Reopen => store = open(folder.path()),
            }
            let mut listed = store.list()?;
            let total: u64 = listed.iter().map(|e| e.bytes).sum();
            prop_assert_eq!(total, bytes_in(folder.path()));
            listed.sort_by(|a, b| a.name.cmp(&b.name));
            let names: Vec<_> = listed.into_iter().map(|e| e.name).collect();
            prop_assert_eq!(names, map.keys().cloned().collect::<Vec<_>>());
        }
        prop_assert_eq!(temporary_files(folder.path()), 0);
    }
}

#[test]
fn names() {
    let folder = folder();
    let store = open(&folder.path().join("deep/er"));
    let long = "a".repeat(161);
    for name in [
        "", "../x", "a/b", "a\\b", ".", "A", "a.b", "a b", "é", "a\0", "a_b", &long,
    ] {
        assert!(store.put(name, b"x").is_err(), "{name:?}");
        assert!(store.get(name, 10).is_err(), "{name:?}");
        assert!(store.remove(name).is_err(), "{name:?}");
    }
    assert!(store.list().is_ok_and(|all| all.is_empty()));
    let longest = "0".repeat(160);
    for name in ["a", "-", "0-9", &longest] {
        assert!(store.put(name, name.as_bytes()).is_ok(), "{name:?}");
        assert_eq!(
            store.get(name, 200).ok().flatten().as_deref(),
            Some(name.as_bytes())
        );
    }
}

/// A model sees its own entries; the bound is that of all.
#[test]
fn models_share_the_room() {
    let folder = folder();
    let open = |model| DiskStateStore::open(folder.path(), model, 5_000).expect("a store");
    let (a, b) = (open("aaaaaaaa"), open("bbbbbbbb"));
    for n in 0..4 {
        a.put(&format!("{n}"), &noise(n, 1_000)).expect("room");
        age(folder.path());
    }
    assert_eq!(a.list().expect("a list").len(), 4);
    assert!(b.list().expect("a list").is_empty());
    assert_eq!(b.get("0", 2_000).ok(), Some(None));
    // What was read is not the oldest any more.
    assert!(a.get("0", 2_000).is_ok_and(|found| found.is_some()));
    age(folder.path());
    b.put("0", &noise(9, 2_000)).expect("room");
    let left: Vec<_> = a
        .list()
        .expect("a list")
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(left, ["3", "0"], "1 and 2 had waited longest");
    assert!(bytes_in(folder.path()) <= 5_000);
    let refused = b
        .put("1", &noise(1, 5_000))
        .expect_err("more than there may be");
    assert!(refused.to_string().contains("5000"), "{refused}");
    assert_eq!(b.list().expect("a list").len(), 1);
}

/// More than clocks are set by.
const LONG_AGO: Duration = Duration::from_hours(1);

/// Makes all entries older, so that what comes now is newer whatever the clock's steps are.
fn age(folder: &Path) {
    for path in entries(folder) {
        let file = File::options().write(true).open(path).expect("an entry");
        let used = file.metadata().and_then(|m| m.modified()).expect("a time");
        file.set_modified(used - LONG_AGO)
            .expect("a time that can be set");
    }
}

/// Whatever is wrong with a file: nothing is found, and the file is gone.
#[test]
fn damaged_files() {
    let folder = folder();
    let store = open(folder.path());
    let content = noise(1, 60);
    let whole = {
        store.put("a", &content).expect("room");
        fs::read(&entries(folder.path())[0]).expect("an entry")
    };
    let path = entries(folder.path())[0].clone();
    let mut same = 0;
    let mut attack = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).expect("a file");
        match store.get("a", 60).expect("no error of the system") {
            // A frame may say the same in other words.
            Some(found) => {
                assert_eq!(found, content, "{what}");
                same += 1;
            }
            None => assert!(!path.exists(), "{what} was left"),
        }
    };
    for at in 0..whole.len() {
        attack(&whole[..at], &format!("cut at {at}"));
        for flip in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            attack(&bytes, &format!("byte {at} changed by {flip}"));
        }
    }
    attack(&[&whole[..], b"x"].concat(), "lengthened");
    attack(&noise(2, 5_000), "noise");
    attack(&[], "empty");
    assert!(same < 10, "{same} changes were not noticed");
    // A sparse file of many gigabytes is not read.
    let large = File::create(&path).expect("a file");
    large.set_len(1 << 40).expect("a sparse file");
    assert_eq!(store.get("a", 60).ok(), Some(None));
    assert!(!path.exists());
    // An entry that was renamed, and one that is longer than can be used.
    store.put("b", &content).expect("room");
    fs::rename(&entries(folder.path())[0], &path).expect("a file");
    assert_eq!(store.get("a", 60).ok(), Some(None));
    store.put("a", &content).expect("room");
    assert_eq!(store.get("a", 59).ok(), Some(None));
}

/// What stands where an entry should is an error, and hangs nobody.
#[test]
fn no_regular_files() {
    let folder = folder();
    let store = open(folder.path());
    store.put("a", b"x").expect("room");
    let path = entries(folder.path())[0].clone();
    fs::remove_file(&path).expect("an entry");
    fs::create_dir(&path).expect("a folder");
    assert!(store.get("a", 10).is_err());
    assert!(store.put("a", b"x").is_err());
    assert!(store.list().is_ok_and(|all| all.is_empty()));
    assert_eq!(temporary_files(folder.path()), 0);
    fs::remove_dir(&path).expect("a folder");
    #[cfg(unix)]
    {
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        assert!(store.get("a", 10).is_err());
        assert!(store.list().is_ok_and(|all| all.is_empty()));
    }
    // The folder is gone, and a file stands in its place.
    let gone = folder.path().join("gone");
    let store = open(&gone);
    fs::remove_dir_all(&gone).expect("a folder");
    assert!(store.put("a", b"x").is_err());
    assert!(store.list().is_err());
    assert_eq!(store.get("a", 10).ok(), Some(None));
    fs::write(&gone, b"").expect("a file");
    let error = DiskStateStore::open(&gone, "m", 1).expect_err("no folder");
    assert!(error.to_string().contains("gone"), "{error}");
}

/// Leftovers go, what is being written stays, and what is not ours is left alone.
#[test]
fn leftovers() {
    let folder = folder();
    let temporary = |name: &str| folder.path().join(format!(".rwkv-state-{name}"));
    fs::write(temporary("left"), b"half").expect("a file");
    fs::write(folder.path().join("notes.txt"), b"mine").expect("a file");
    let written = File::create(temporary("written")).expect("a file");
    written.lock().expect("a lock");
    let store = open(folder.path());
    assert!(!temporary("left").exists());
    assert!(temporary("written").exists());
    drop(written);
    store.put("a", b"x").expect("room");
    open(folder.path());
    assert_eq!(temporary_files(folder.path()), 0);
    assert_eq!(
        fs::read(folder.path().join("notes.txt")).expect("a file"),
        b"mine"
    );
    assert_eq!(store.list().expect("a list").len(), 1);
}

/// What is being written takes of the room that all have: entries go for it, and where it leaves too little nothing else is
/// written. What nobody writes any more does not count.
#[test]
fn what_is_being_written_counts() {
    let folder = folder();
    let store = DiskStateStore::open(folder.path(), "m", 8_000).expect("a store");
    for n in 0..4 {
        store.put(&format!("{n}"), &noise(n, 1_500)).expect("room");
        age(folder.path());
    }
    let path = folder.path().join(".rwkv-state-other");
    let other = File::create(&path).expect("a file");
    other.set_len(3_000).expect("a length");
    other.lock().expect("a lock");
    let names = || {
        let all = store.list().expect("a list").into_iter();
        all.map(|e| e.name).collect::<Vec<_>>()
    };
    store.put("4", &noise(4, 1_500)).expect("room");
    assert_eq!(names(), ["2", "3", "4"]);
    age(folder.path());
    // What is replaced is not needed, and so makes room first.
    store.put("3", &noise(3, 1_500)).expect("room");
    assert_eq!(names(), ["2", "4", "3"]);
    other.set_len(7_000).expect("a length");
    let refused = store.put("5", &noise(5, 1_500)).expect_err("no room");
    assert!(refused.to_string().contains("7000"), "{refused}");
    assert_eq!(names(), ["2", "4", "3"], "nothing goes for what is refused");
    assert_eq!(temporary_files(folder.path()), 1);
    drop(other);
    store.put("5", &noise(5, 1_500)).expect("room");
    assert_eq!(names(), ["2", "4", "3", "5"]);
    assert!(!path.exists());
}

#[cfg(unix)]
#[test]
fn only_the_user_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let states = folder.path().join("states");
    open(&states).put("a", b"x").expect("room");
    let mode = |path: &Path| path.metadata().expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&states), 0o700);
    assert_eq!(mode(&entries(&states)[0]), 0o600);
}

/// Puts, reads and removes entries in a folder that others use too, and checks what it reads.
fn use_folder(folder: &Path, seed: u64, capacity: u64, acts: u64) {
    let store = DiskStateStore::open(folder, "shared", capacity).expect("a store");
    for n in 0..acts {
        let which = (n * 7 + seed * 3) % 10;
        let name = format!("{which}");
        match (n + seed) % 6 {
            0..3 => {
                let put = store.put(&name, &noise(which, 3_000 + which as usize));
                assert!(put.is_ok(), "{put:?}");
            }
            3 if n % 4 == 0 => store.remove(&name).expect("removed"),
            _ => {
                let found = store.get(&name, 4_000).expect("no error");
                if let Some(found) = found {
                    assert_eq!(found, noise(which, 3_000 + which as usize));
                }
            }
        }
        let bytes: u64 = store.list().expect("a list").iter().map(|e| e.bytes).sum();
        assert!(bytes <= capacity, "{bytes}");
    }
}

#[test]
fn threads_on_one_folder() {
    let folder = folder();
    thread::scope(|scope| {
        let path = folder.path();
        let threads: Vec<_> = (0..4)
            .map(|seed| scope.spawn(move || use_folder(path, seed, 20_000, 60)))
            .collect();
        // No file appears meanwhile, none that is being written either.
        while threads.iter().any(|thread| !thread.is_finished()) {
            let lock = File::create(path.join(".lock")).expect("a file");
            lock.lock().expect("a lock");
            let files = fs::read_dir(path).expect("a folder").flatten();
            let sizes = files.filter_map(|e| Some(e.metadata().ok()?.len()));
            let bytes: u64 = sizes.sum();
            assert!(bytes <= 20_000, "{bytes}");
        }
    });
    assert!(bytes_in(folder.path()) <= 20_000);
    assert_eq!(temporary_files(folder.path()), 0);
}

#[test]
fn processes_on_one_folder() {
    if let Some(folder) = given_folder() {
        return use_folder(&folder, u64::from(std::process::id()), 20_000, 100);
    }
    let folder = folder();
    let mut children: Vec<_> = (0..3)
        .map(|_| child("processes_on_one_folder", folder.path()))
        .collect();
    use_folder(folder.path(), 0, 20_000, 100);
    for child in &mut children {
        assert!(child.wait().expect("a process").success());
    }
    assert!(bytes_in(folder.path()) <= 20_000);
    assert_eq!(temporary_files(folder.path()), 0);
}

/// 200 KiB a state.
const LAYOUT: StateLayout = StateLayout {
    layers: 2,
    wkv: 25_000,
    shift: 600,
};

fn state(tokens: &[TokenId]) -> Arc<State> {
    let mut state = State::zeros(LAYOUT);
    let values = state.wkv.iter_mut().chain(&mut state.shift).flatten();
    for (n, x) in values.enumerate() {
        let token = tokens[n % tokens.len()] as usize + tokens.len();
        *x = ((n * 31 + token * 17) % 1_009) as f32 / 7.0 - 70.0;
    }
    Arc::new(state)
}

fn cache(folder: &Path, memory: u64, background: bool) -> StateCache {
    let options = StateCacheOptions {
        memory_bytes: memory,
        background,
        ..StateCacheOptions::default()
    };
    StateCache::new(LAYOUT, options, Some(Arc::new(open(folder))))
}

fn prompt(n: u32) -> Vec<TokenId> {
    (0..50 + n % 7).map(|i| (i * 31 + n) % 1_000).collect()
}

/// A process that is killed while it writes leaves states that can be read, and none that is wrong.
#[test]
fn killed_while_writing() {
    let key = CacheKey::new(b"model");
    if let Some(folder) = given_folder() {
        let cache = cache(&folder, 0, true);
        for n in (0..).take(1_000_000) {
            let tokens = prompt(n);
            cache.insert(key, &tokens, state(&tokens)).expect("a state");
            while cache.stats().queue_bytes > 4 * LAYOUT.bytes() {
                thread::sleep(Duration::from_micros(100));
            }
        }
        return;
    }
    let folder = folder();
    let mut half_written = 0;
    // Killed at any moment, and at last in the middle of a write.
    for round in 1..=9 {
        let before = entries(folder.path()).len();
        let mut child = child("killed_while_writing", folder.path());
        wait_until("a child that writes", || {
            // From the second on, entries of the first are written once more or found.
            entries(folder.path()).len() > before + 2
                || round > 1 && temporary_files(folder.path()) > 0
        });
        thread::sleep(Duration::from_micros(700 * (round % 8)));
        // Who is writing cannot end that without the folder's lock.
        let mut held = None;
        if round == 9 {
            wait_until("a child in the middle of a write", || {
                let lock = File::create(folder.path().join(".lock")).expect("a file");
                lock.lock().expect("a lock");
                held = (temporary_files(folder.path()) > 0).then_some(lock);
                held.is_some()
            });
        }
        // SIGKILL, where there are signals.
        child.kill().expect("a process");
        child.wait().expect("a process");
        drop(held);
        half_written += temporary_files(folder.path());

        let cache = cache(folder.path(), 1 << 30, false);
        assert_eq!(temporary_files(folder.path()), 0, "what was left is swept");
        let stats = cache.stats();
        assert!(stats.entries > 0);
        let mut hits = 0;
        for n in 0..stats.entries as u32 + 20 {
            let tokens = prompt(n);
            let request = [&tokens[..], &[1]].concat();
            if let Some(hit) = cache.lookup(key, &request) {
                assert_eq!(hit.state, state(&request[..hit.tokens]));
                hits += 1;
            }
        }
        assert_eq!(hits, stats.entries, "each that is there can be read");
        assert_eq!(cache.stats().unreadable, 0);
    }
    assert!(half_written > 0);
}

/// A cache that is dropped leaves everything for the next one, in another process too.
#[test]
fn a_restart_finds_the_prefix() {
    let key = CacheKey::new(b"model").with(b"adapter");
    let tokens: Vec<TokenId> = (0..2_000).map(|n| n * n % 777).collect();
    if let Some(folder) = given_folder() {
        let cache = cache(&folder, 1 << 30, true);
        for at in [500, 1_000, 1_999] {
            cache
                .insert(key, &tokens[..at], state(&tokens[..at]))
                .expect("a state");
        }
        return;
    }
    let folder = folder();
    let mut child = child("a_restart_finds_the_prefix", folder.path());
    assert!(child.wait().expect("a process").success());
    assert_eq!(entries(folder.path()).len(), 3);
    let found = |request: &[TokenId]| {
        let cache = cache(folder.path(), 1 << 30, true);
        let hit = cache.lookup(key, request)?;
        assert_eq!(hit.state, state(&request[..hit.tokens]));
        Some(hit.tokens)
    };
    assert_eq!(found(&tokens), Some(1_999));
    assert_eq!(found(&tokens[..1_500]), Some(1_000));
    assert_eq!(found(&tokens[..500]), None);
    let other = cache(folder.path(), 1 << 30, true);
    assert!(other.lookup(CacheKey::new(b"model"), &tokens).is_none());
    // One is damaged: the next shorter one is taken.
    let longest = entries(folder.path())
        .into_iter()
        .find(|path| path.to_string_lossy().contains("-1999-"))
        .expect("an entry");
    let mut bytes = fs::read(&longest).expect("an entry");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&longest, bytes).expect("an entry");
    assert_eq!(found(&tokens), Some(1_000));
    assert!(!longest.exists());
}

/// The order of a list is that of use.
#[test]
fn listed_by_use() {
    let folder = folder();
    let store = open(folder.path());
    for name in ["a", "b", "c"] {
        store.put(name, b"x").expect("room");
        age(folder.path());
    }
    store.get("a", 9).expect("no error");
    let names: Vec<_> = store
        .list()
        .expect("a list")
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["b", "c", "a"]);
    let newest = entries(folder.path())[0].metadata();
    let used = newest.and_then(|m| m.modified()).expect("a time");
    // Read now, and neither before nor in times to come.
    let now = SystemTime::now();
    assert!(now - LONG_AGO / 2 < used && used < now + LONG_AGO / 2);
}
