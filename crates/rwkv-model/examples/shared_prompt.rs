//! A long beginning that prompts share is fed once: the time to the first token of the first prompt, of others and, from the disk,
//! after a restart.
//!
//!     cargo run --release -p rwkv-model --features demo --example shared_prompt -- 26000

use rwkv_model::{DiskStateStore, ModelFile};
use rwkv_sched::{
    CacheKey, StateCache, StateCacheOptions, StateLayout, TokenId,
    engine::{Engine, EngineOptions, PrefixCache, Request},
};
use std::{
    error::Error,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

fn main() -> Result<(), Box<dyn Error>> {
    let tokens = match std::env::args().nth(1) {
        Some(tokens) => tokens.parse()?,
        None => 2000,
    };
    let file = ModelFile::demo()?;
    let tokenizer = file.tokenizer(None)?;
    let story = tokenizer.encode(b"Once upon a time there was a little girl named Lily. ")?;
    let shared: Vec<TokenId> = story.iter().copied().cycle().take(tokens).collect();
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let questions = ["Who?", "When?", "Where?", "Why?", "And then?"];
    let (before, after) = questions.split_at(3);
    for (run, questions) in [("start", before), ("restart", after)] {
        let engine = start(&file, folder.path())?;
        println!("{run}, on {}", engine.device());
        for question in questions {
            let own = tokenizer.encode(question.as_bytes())?;
            let request = Request {
                prompt: [&shared[..], &own].concat(),
                max_tokens: 4,
                ..Request::default()
            };
            let fed = engine.stats().prompt_tokens;
            let took = runtime.block_on(first_token(&engine, request))?;
            let fed = engine.stats().prompt_tokens - fed;
            println!(
                "first token after {:.1} ms, {fed} tokens fed",
                took.as_secs_f64() * 1e3
            );
        }
    }
    Ok(())
}

/// Reads a request to its end; says how long it took to the first token.
async fn first_token(engine: &Engine, request: Request) -> rwkv_sched::Result<Duration> {
    let asked = Instant::now();
    let mut session = engine.session();
    let mut stream = session.generate(request).await?;
    let mut took = None;
    while let Some(token) = stream.next().await {
        token?;
        took.get_or_insert_with(|| asked.elapsed());
    }
    Ok(took.unwrap_or_default())
}

/// An engine whose states outlive it in `folder`.
fn start(file: &ModelFile, folder: &Path) -> Result<Engine, Box<dyn Error>> {
    let model = file.model()?;
    let store = DiskStateStore::open(folder, &file.fingerprint(), 1 << 30)?;
    let layout = StateLayout::of(model.config());
    let states = StateCache::new(layout, StateCacheOptions::default(), Some(Arc::new(store)));
    let key = CacheKey::new(file.fingerprint().as_bytes());
    let options = EngineOptions {
        prefix_cache: Some(PrefixCache::new(Arc::new(states), key)),
        ..EngineOptions::default()
    };
    Ok(Engine::spawn(&model, options)?)
}
