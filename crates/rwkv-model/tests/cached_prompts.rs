//! Prompts that an engine saw before, with the demo model on the CPU and a store on a disk: after a restart too.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use rwkv_model::{DiskStateStore, ModelFile, files::Checkpoint};
use rwkv_sched::{
    CacheKey, CpuExecutor, Error, Executor, SlotId, Spacing, StateCache, StateCacheOptions,
    StateLayout, TokenId, Wanted,
    engine::{Engine, EngineOptions, EngineStats, PrefixCache, Request},
    feed_prompt, prefill,
    sampling::SamplerParams,
};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

const SHARED: usize = 700;

/// Tokens that both prompts begin with, and one of their own.
fn prompt(last: TokenId) -> Vec<TokenId> {
    let shared = (0..SHARED).map(|n| TokenId::try_from(n * n % 250 + 1).unwrap());
    shared.chain([last]).collect()
}

fn demo() -> ModelFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/demo.gguf");
    ModelFile::from_checkpoint(Checkpoint::open(&path).unwrap(), Some(&path)).unwrap()
}

fn cache(file: &ModelFile, folder: &Path) -> (StateCache, CacheKey) {
    let store = DiskStateStore::open(folder, &file.fingerprint(), 1 << 30).unwrap();
    let layout = StateLayout::of(file.model().unwrap().config());
    let states = StateCache::new(layout, StateCacheOptions::default(), Some(Arc::new(store)));
    (states, CacheKey::new(file.fingerprint().as_bytes()))
}

/// Starts an engine with what `folder` has, asks for one prompt after the other, and stops it.
fn run(folder: Option<&Path>, prompts: &[Vec<TokenId>]) -> (Vec<Vec<TokenId>>, EngineStats) {
    let file = demo();
    let model = file.model().unwrap();
    let prefix_cache = folder.map(|folder| {
        let (states, key) = cache(&file, folder);
        PrefixCache::new(Arc::new(states), key)
    });
    let options = EngineOptions {
        prefix_cache,
        ..EngineOptions::default()
    };
    let executor = CpuExecutor::new(&model, 2).unwrap();
    let engine = Engine::with_executor(Box::new(executor), options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let tokens = runtime.unwrap().block_on(async {
        let mut all = Vec::new();
        for prompt in prompts {
            let request = Request {
                prompt: prompt.clone(),
                max_tokens: 12,
                sampler: SamplerParams {
                    temperature: 0.0,
                    ..SamplerParams::default()
                },
                ..Request::default()
            };
            let mut session = engine.session();
            let mut stream = session.generate(request).await.unwrap();
            let mut tokens = Vec::new();
            while let Some(token) = stream.next().await {
                tokens.push(token.unwrap().id);
            }
            all.push(tokens);
        }
        all
    });
    (tokens, engine.stats())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    all.filter(|p| p.extension().is_some_and(|e| e == "state"))
        .collect()
}

#[test]
fn a_restart_feeds_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = [5, 6].map(prompt);
    let (want, _) = run(None, &prompts);
    let (got, first) = run(Some(folder.path()), &prompts);
    assert_eq!(got, want);
    // The last token of the first prompt is where they differ: the state before it serves both.
    assert_eq!(first.prompt_tokens, SHARED as u64 + 2, "{first:?}");
    assert_eq!((first.cache_hits, first.cache_reads), (1, 0));

    let (got, second) = run(Some(folder.path()), &prompts);
    assert_eq!(got, want);
    assert_eq!(second.prompt_tokens, 2, "{second:?}");
    assert_eq!((second.cache_hits, second.cache_reads), (2, 1));

    // All is damaged: the prompt is fed again, and its states are there the next time.
    for path in files(folder.path()) {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }
    let (got, damaged) = run(Some(folder.path()), &prompts);
    assert_eq!(got, want);
    assert_eq!((damaged.cache_reads, damaged.failed), (0, 0));
    assert_eq!(damaged.prompt_tokens, SHARED as u64 + 2, "{damaged:?}");
    let (got, again) = run(Some(folder.path()), &prompts);
    assert_eq!(got, want);
    assert_eq!(again.prompt_tokens, 2, "{again:?}");
}

/// A prompt without an engine: the logits are those of all of it, whatever the cache knew, and progress is told in its tokens.
#[test]
fn one_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let file = demo();
    let model = file.model().unwrap();
    let slot = SlotId(0);
    let feed = |tokens: &[TokenId], stop_at: usize| {
        let mut executor = CpuExecutor::new(&model, 1).unwrap();
        let (states, key) = cache(&file, folder.path());
        let mut told = Vec::new();
        let fed = feed_prompt(
            &mut executor,
            slot,
            tokens,
            (&states, key),
            Spacing::default(),
            &mut |seen| {
                told.push(seen);
                if seen >= stop_at {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        );
        (fed, told, executor.state(slot).unwrap())
    };
    let want = |tokens: &[TokenId]| {
        let mut executor = CpuExecutor::new(&model, 1).unwrap();
        let on = &mut |_, _: &_| ControlFlow::Continue(());
        let logits = prefill(&mut executor, slot, tokens, 4096, Wanted::Last, on).unwrap();
        (logits, executor.state(slot).unwrap())
    };
    // Broken off: what was fed to the first state that is kept is known then.
    let long = prompt(5);
    let (fed, told, _) = feed(&long, 1);
    assert_eq!((fed.unwrap().known, told), (0, vec![256]));
    for (last, known) in [(5, 0), (5, SHARED), (6, SHARED)] {
        let tokens = prompt(last);
        let (fed, told, state) = feed(&tokens, usize::MAX);
        let fed = fed.unwrap();
        assert_eq!(fed.known, known);
        assert!(
            told.is_sorted() && told.last() == Some(&tokens.len()),
            "{told:?}"
        );
        // The CPU's sums have one order.
        let (logits, after) = want(&tokens);
        assert_eq!((fed.logits, state), (logits, after));
    }
    // A short one keeps nothing.
    let before = files(folder.path()).len();
    assert_eq!(feed(&[1, 2, 3], usize::MAX).0.unwrap().known, 0);
    assert_eq!(files(folder.path()).len(), before);
    assert!(matches!(feed(&[], usize::MAX).0, Err(Error::EmptyPrompt)));
    // Found before anything runs, wherever it is.
    let (refused, told, _) = feed(&[prompt(5), vec![9999]].concat(), usize::MAX);
    assert!(matches!(refused, Err(Error::TokenRange { .. })) && told.is_empty());
    let mut executor = CpuExecutor::new(&model, 1).unwrap();
    let other = StateLayout {
        layers: 1,
        ..StateLayout::of(model.config())
    };
    let other = StateCache::new(other, StateCacheOptions::default(), None);
    let cache = (&other, CacheKey::new(b""));
    let on = &mut |_| ControlFlow::Continue(());
    let refused = feed_prompt(&mut executor, slot, &[1, 2], cache, Spacing::default(), on);
    assert!(matches!(refused, Err(Error::State { .. })));
}
