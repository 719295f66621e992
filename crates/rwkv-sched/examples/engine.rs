//! Many sessions on one executor: twenty of them share four slots, one is cancelled, one forks.
//!
//!     cargo run --release -p rwkv-sched --example engine

mod tiny;

use rwkv_sched::{
    CpuExecutor, Result, TokenId,
    engine::{Engine, EngineOptions, Request, TokenStream},
    sampling::SamplerParams,
};

fn main() -> Result<()> {
    let model = tiny::random_model()?;
    // `Engine::spawn` chooses a device.
    let executor = Box::new(CpuExecutor::new(&model, 4)?);
    let engine = Engine::with_executor(executor, EngineOptions::default())?;
    // Any runtime will do: the engine has a thread of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| rwkv_sched::Error::Request {
        problem: format!("there is no runtime: {error}"),
    })?;
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for number in 0..20 {
            let mut session = engine.session();
            tasks.push(tokio::spawn(async move {
                let stream = session.generate(request(number)).await?;
                read(stream, 12).await
            }));
        }
        for (number, task) in tasks.into_iter().enumerate() {
            if let Ok(tokens) = task.await {
                println!("{number}: {:?}", tokens?);
            }
        }

        let mut session = engine.session();
        // The stream is dropped after three tokens: the session goes on from there.
        let stream = session.generate(request(1)).await?;
        println!("three: {:?}", read(stream, 3).await?);
        let mut fork = session.fork()?;
        for (name, session, seed) in [("one", &mut session, 1), ("other", &mut fork, 2)] {
            let stream = session.generate(request(seed)).await?;
            println!("{name}: {:?}", read(stream, 8).await?);
        }
        let stats = engine.stats();
        println!(
            "{} tokens in {} steps, {:.1} sequences each",
            stats.tokens,
            stats.token_steps,
            stats.mean_batch()
        );
        engine.shutdown().await;
        Ok(())
    })
}

fn request(seed: u64) -> Request {
    Request {
        prompt: vec![3, 14, 15, 92, 65],
        max_tokens: 12,
        sampler: SamplerParams {
            seed,
            ..SamplerParams::default()
        },
        ..Request::default()
    }
}

/// The first `count` tokens.
async fn read(mut stream: TokenStream, count: usize) -> Result<Vec<TokenId>> {
    let mut tokens = Vec::new();
    while tokens.len() < count
        && let Some(token) = stream.next().await
    {
        tokens.push(token?.id);
    }
    Ok(tokens)
}
