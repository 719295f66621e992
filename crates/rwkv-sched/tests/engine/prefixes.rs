//! Prompts that begin as others did: fewer tokens to feed, and no other tokens to get.

use super::{
    VOCAB, adapters::adapter, all, alone::Alone, block_on, cpu, engine, model, request,
    support::random_model::Random, until,
};
use rwkv_sched::{
    Adapter, CacheKey, Error, Model, Spacing, State, StateCache, StateCacheOptions, StateLayout,
    StateStore, Stored, TokenId,
    engine::{Engine, EngineOptions, PrefixCache},
};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// A store in memory, which nothing is read from while a test holds `gate`.
#[derive(Default)]
struct Store {
    entries: Mutex<BTreeMap<String, Vec<u8>>>,
    gate: Mutex<()>,
    /// Whether reading and writing panics.
    panics: AtomicBool,
}

impl StateStore for Store {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<u64> {
        assert!(!self.panics.load(SeqCst), "told to panic");
        let mut entries = self.entries.lock().unwrap();
        entries.insert(name.to_owned(), bytes.to_vec());
        Ok(bytes.len() as u64)
    }

    fn get(&self, name: &str, _: u64) -> io::Result<Option<Vec<u8>>> {
        assert!(!self.panics.load(SeqCst), "told to panic");
        drop(self.gate.lock().unwrap());
        Ok(self.entries.lock().unwrap().get(name).cloned())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.entries.lock().unwrap().remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Stored>> {
        let entries = self.entries.lock().unwrap();
        let stored = entries.iter().map(|(name, bytes)| Stored {
            name: name.clone(),
            bytes: bytes.len() as u64,
        });
        Ok(stored.collect())
    }

    fn capacity(&self) -> u64 {
        1 << 30
    }
}

fn states(model: &Model, memory_bytes: u64, store: Option<&Arc<Store>>) -> Arc<StateCache> {
    let options = StateCacheOptions {
        memory_bytes,
        ..StateCacheOptions::default()
    };
    let store = store.map(|store| store.clone() as Arc<dyn StateStore>);
    Arc::new(StateCache::new(
        StateLayout::of(model.config()),
        options,
        store,
    ))
}

fn with(states: &Arc<StateCache>, grain: usize) -> EngineOptions {
    EngineOptions {
        prefix_cache: Some(PrefixCache {
            states: states.clone(),
            model: CacheKey::new(b"model"),
            spacing: Spacing { grain, most: 24 },
        }),
        ..EngineOptions::default()
    }
}

/// An engine whose cache has a store, as after a start.
fn started(model: &Model, store: &Arc<Store>) -> (Engine, Arc<StateCache>) {
    let states = states(model, 1 << 30, Some(store));
    (engine(model, 2, with(&states, 16)), states)
}

async fn tokens(engine: &Engine, prompt: &[TokenId]) -> Vec<TokenId> {
    all(engine
        .session()
        .generate(request(prompt, 8, 1))
        .await
        .unwrap())
    .await
}

/// The same, without an engine.
fn alone(model: &Model, prompt: &[TokenId]) -> Vec<TokenId> {
    let asked = request(prompt, 8, 1);
    Alone::default().generate(cpu(model, 1).as_mut(), &asked, usize::MAX)
}

/// What a request of these tokens fed.
fn fed(engine: &Engine, prompt: &[TokenId], want: &[TokenId]) -> u64 {
    let before = engine.stats().prompt_tokens;
    assert_eq!(block_on(tokens(engine, prompt)), want);
    engine.stats().prompt_tokens - before
}

/// A prompt of 26,000 tokens that others begin with too.
#[test]
fn a_long_prefix_is_fed_once() {
    let model = model(7);
    let grain = Spacing::default().grain;
    let states = states(&model, 1 << 30, None);
    let engine = engine(&model, 2, with(&states, grain));
    let shared = Random::new(1).tokens(26_000, VOCAB);
    let prompts: Vec<Vec<u32>> = (0..4)
        .map(|tail| [&shared[..], &[tail; 20]].concat())
        .collect();
    let want: Vec<_> = prompts.iter().map(|p| alone(&model, p)).collect();
    assert_eq!(fed(&engine, &prompts[0], &want[0]), 26_020);
    // The same once more: one token is left.
    assert_eq!(fed(&engine, &prompts[0], &want[0]), 1);
    // Where another one will leave it is not known before the first one does.
    let second = fed(&engine, &prompts[1], &want[1]);
    assert!((20..=20 + 2 * grain as u64).contains(&second), "{second}");
    assert_eq!(fed(&engine, &prompts[2], &want[2]), 20);
    assert_eq!(fed(&engine, &prompts[3], &want[3]), 20);
    let stats = engine.stats();
    assert_eq!((stats.cache_lookups, stats.cache_hits), (5, 4), "{stats:?}");
    assert_eq!(stats.cache_reads, 0);
    let fed = stats.cached_tokens + stats.prompt_tokens;
    assert_eq!(fed, 5 * 26_020, "{stats:?}");
    // A checkpoint costs a step, and few are made.
    assert!(stats.chunks < 5 * 24 + 13, "{stats:?}");
}

/// Short prompts cost no more steps than without a cache.
#[test]
fn short_prompts_are_not_cut() {
    let model = model(7);
    let states = states(&model, 1 << 30, None);
    let engine = engine(&model, 2, with(&states, 256));
    let prompt = Random::new(1).tokens(255, VOCAB);
    assert_eq!(fed(&engine, &prompt, &alone(&model, &prompt)), 255);
    assert_eq!(engine.stats().chunks, 1);
    assert_eq!(engine.stats().states_read, 0);
    assert_eq!(states.stats().entries, 0);
}

/// While one request's state is read others go on, and requests that end then leave nothing behind.
#[test]
fn reading_stops_nobody() {
    let model = model(8);
    let store = Arc::new(Store::default());
    let long = Random::new(2).tokens(500, VOCAB);
    {
        let (engine, _states) = started(&model, &store);
        block_on(tokens(&engine, &long));
    }
    assert!(store.entries.lock().unwrap().len() > 3);

    let (engine, states) = started(&model, &store);
    let closed = store.gate.lock().unwrap();
    block_on(async {
        let mut session = engine.session();
        let asked = request(&long, 8, 1);
        let stream = session.generate(asked).await.unwrap();
        until(&engine, |s| s.running == 1 && s.cache_lookups == 1).await;
        for number in 0..5 {
            let short = [number, 4, 5];
            assert_eq!(tokens(&engine, &short).await, alone(&model, &short));
        }
        let mut other = engine.session();
        drop(other.generate(request(&long, 8, 1)).await.unwrap());
        let quick = other.generate(request(&[1, 2], 8, 1)).await.unwrap();
        assert_eq!(all(quick).await, alone(&model, &[1, 2]));
        assert_eq!(engine.stats().cache_reads, 0);
        drop(closed);
        assert_eq!(all(stream).await, alone(&model, &long));
    });
    let stats = engine.stats();
    assert_eq!(stats.cached_tokens, 499, "{stats:?}");
    assert!(stats.cache_reads >= 1, "{stats:?}");
    // Now it is in memory.
    assert_eq!(fed(&engine, &long, &alone(&model, &long)), 1);
    assert_eq!(states.stats().unreadable, 0);
}

/// An engine that is stopped while a state is read ends its requests as any other.
#[test]
fn stopping_while_reading() {
    let model = model(8);
    let store = Arc::new(Store::default());
    let long = Random::new(2).tokens(500, VOCAB);
    {
        let (engine, _states) = started(&model, &store);
        block_on(tokens(&engine, &long));
    }
    let (engine, states) = started(&model, &store);
    let closed = store.gate.lock().unwrap();
    block_on(async {
        let mut session = engine.session();
        let mut stream = session.generate(request(&long, 8, 1)).await.unwrap();
        until(&engine, |s| s.running == 1 && s.cache_lookups == 1).await;
        drop(closed);
        engine.shutdown().await;
        // It may have been quicker.
        while let Some(token) = stream.next().await {
            if let Err(error) = token {
                assert!(matches!(error, Error::Stopped), "{error}");
            }
        }
    });
    assert_eq!(Arc::strong_count(&states), 1, "nobody reads any more");
}

/// A store that panics costs what it was to keep: requests get their tokens, and engine and cache end.
#[test]
fn a_store_that_panics() {
    let model = model(8);
    let store = Arc::new(Store::default());
    let long = Random::new(2).tokens(500, VOCAB);
    let want = alone(&model, &long);
    {
        let (engine, _states) = started(&model, &store);
        assert_eq!(block_on(tokens(&engine, &long)), want);
    }
    let stored = store.entries.lock().unwrap().len();
    assert!(stored > 0);
    {
        let (engine, states) = started(&model, &store);
        store.panics.store(true, SeqCst);
        assert_eq!(fed(&engine, &long, &want), 500, "nothing can be read");
        states.flush();
        drop(engine);
        assert_eq!(Arc::strong_count(&states), 1);
    }
    assert!(store.entries.lock().unwrap().len() <= stored);
}

/// What cannot be read is fed again.
#[test]
fn damaged_states_cost_time_alone() {
    let model = model(9);
    let store = Arc::new(Store::default());
    let long = Random::new(3).tokens(500, VOCAB);
    {
        let (engine, _states) = started(&model, &store);
        block_on(tokens(&engine, &long));
    }
    let want = alone(&model, &long);
    // The longest alone; then all of them.
    for damaged in [1, usize::MAX] {
        let by_length = |name: &str| -> usize {
            let numbers = name.split('-').filter_map(|part| part.parse().ok());
            numbers.filter(|n| *n < 500).max().unwrap_or(0)
        };
        let mut entries = store.entries.lock().unwrap();
        let mut names: Vec<String> = entries.keys().cloned().collect();
        names.sort_by_key(|name| std::cmp::Reverse(by_length(name)));
        for name in names.into_iter().take(damaged) {
            entries.get_mut(&name).unwrap()[10] ^= 1;
        }
        drop(entries);
        let (engine, states) = started(&model, &store);
        let tokens = fed(&engine, &long, &want);
        if damaged == 1 {
            assert!((2..=50).contains(&tokens), "{tokens}");
        } else {
            assert_eq!(tokens, 500);
        }
        assert!(states.stats().unreadable > 0);
        assert_eq!(engine.stats().failed, 0);
        assert_eq!(fed(&engine, &long, &want), 1, "it was kept again");
    }
}

/// States are met by those alone who would come to them too.
#[test]
fn what_made_a_state_counts() {
    let model = model(10);
    let states = states(&model, 1 << 30, None);
    let prompt = Random::new(4).tokens(300, VOCAB);
    let named = |seed, name: &str| Arc::new(adapter(&model, seed).with_fingerprint(name));
    let a = named(1, "a");
    let blends: [Vec<(Arc<Adapter>, f32)>; 5] = [
        vec![],
        vec![(a.clone(), 1.0)],
        vec![(a.clone(), 0.5)],
        vec![(named(2, "b"), 1.0)],
        vec![(a, 1.0), (named(2, "b"), 1.0)],
    ];
    let ask = |engine: &Engine, blend: &[(Arc<Adapter>, f32)], base: Option<Arc<State>>| {
        block_on(async {
            let mut session = engine.session();
            if let Some(state) = base {
                session.load(state).await.unwrap();
            }
            let mut asked = request(&prompt, 8, 1);
            asked.adapters = blend.to_vec();
            let before = engine.stats().prompt_tokens;
            let tokens = all(session.generate(asked).await.unwrap()).await;
            (tokens, engine.stats().prompt_tokens - before)
        })
    };
    let plain = engine(&model, 2, EngineOptions::default());
    let cached = engine(&model, 2, with(&states, 16));
    for feeds in [300, 1] {
        for blend in &blends {
            let (want, _) = ask(&plain, blend, None);
            assert_eq!(ask(&cached, blend, None), (want, feeds), "{blend:?}");
        }
    }
    // The same file in another process, so to say.
    let again = [(named(1, "a"), 0.5)];
    assert_eq!(ask(&cached, &again, None).1, 1);
    let kept = states.stats().entries;
    let unnamed = [(Arc::new(adapter(&model, 1)), 1.0)];
    let other = Alone {
        base: None,
        tokens: vec![1, 2, 3],
    };
    let other = Arc::new(other.state(cpu(&model, 1).as_mut()));
    for _ in 0..2 {
        let (want, _) = ask(&plain, &unnamed, None);
        assert_eq!(ask(&cached, &unnamed, None), (want, 300));
        let (want, _) = ask(&plain, &[], Some(other.clone()));
        assert_eq!(ask(&cached, &[], Some(other.clone())), (want, 300));
    }
    assert_eq!(states.stats().entries, kept);
    // An executor whose sequences begin with another state.
    let tuned = |options| {
        let mut executor = cpu(&model, 2);
        executor.set_initial_state(Some(&other)).unwrap();
        Engine::with_executor(executor, options).unwrap()
    };
    let (plain, cached) = (tuned(EngineOptions::default()), tuned(with(&states, 16)));
    for feeds in [300, 1] {
        let (want, _) = ask(&plain, &[], None);
        assert_eq!(ask(&cached, &[], None), (want, feeds));
    }
    let narrow = StateLayout {
        layers: 1,
        ..StateLayout::of(model.config())
    };
    let narrow = Arc::new(StateCache::new(narrow, StateCacheOptions::default(), None));
    let refused = Engine::with_executor(cpu(&model, 1), with(&narrow, 16));
    assert!(matches!(refused, Err(Error::State { .. })));
}

/// Many prompts with common beginnings and little room: whatever goes, tokens stay.
#[test]
fn little_room_changes_no_token() {
    let model = model(11);
    let state = StateLayout::of(model.config()).bytes();
    let store = Arc::new(Store::default());
    let mut random = Random::new(5);
    let stem = random.tokens(400, VOCAB);
    let prompts: Vec<Vec<TokenId>> = (0..24)
        .map(|_| {
            let mut prompt = stem[..=random.below(400)].to_vec();
            prompt.extend(random.prompt(60, VOCAB));
            prompt
        })
        .collect();
    let want: Vec<_> = prompts.iter().map(|p| alone(&model, p)).collect();
    for (memory, store) in [
        (2 * state, None),
        (0, None),
        (2 * state, Some(&store)),
        (0, Some(&store)),
    ] {
        let states = states(&model, memory, store);
        let engine = engine(&model, 3, with(&states, 16));
        let got = block_on(async {
            let mut tasks = Vec::new();
            for prompt in &prompts {
                let mut session = engine.session();
                let stream = session.generate(request(prompt, 8, 1)).await.unwrap();
                tasks.push((session, tokio::spawn(all(stream))));
            }
            let mut got = Vec::new();
            for (_session, task) in tasks {
                got.push(task.await.unwrap());
            }
            got
        });
        assert_eq!(got, want, "{memory} bytes");
        let stats = engine.stats();
        assert_eq!((stats.failed, stats.cancelled), (0, 0));
        if memory > 0 {
            // Others may have taken the room meanwhile, but not when nobody asks in between.
            for _ in 0..2 {
                assert_eq!(block_on(tokens(&engine, &prompts[0])), want[0]);
            }
            assert!(engine.stats().cache_hits > stats.cache_hits);
        }
        assert!(states.stats().memory_bytes <= memory);
    }
}

/// Each state that is kept is the one after its tokens.
#[test]
fn kept_states_are_right() {
    let model = model(12);
    let states = states(&model, 1 << 30, None);
    let engine = engine(&model, 2, with(&states, 16));
    let prompt = Random::new(6).tokens(200, VOCAB);
    block_on(tokens(&engine, &prompt));
    let initial = Alone::default().state(cpu(&model, 1).as_mut());
    let key = CacheKey::new(b"model")
        .with(engine.device().as_bytes())
        .with_initial_state(&initial);
    let mut found = BTreeMap::new();
    for length in 1..=prompt.len() {
        if let Some(hit) = states.lookup(key, &prompt[..length]) {
            found.insert(hit.tokens, hit.state);
        }
    }
    assert_eq!(found.len(), states.stats().entries);
    assert!(found.contains_key(&199) && found.contains_key(&16));
    for (tokens, state) in found {
        let alone = Alone {
            base: None,
            tokens: prompt[..tokens].to_vec(),
        };
        assert_eq!(*state, alone.state(cpu(&model, 1).as_mut()), "{tokens}");
    }
}
