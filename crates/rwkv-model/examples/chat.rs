//! A chat with the demo model, which answers in the manner of old plays whatever is said; the messages are arguments, or those below.
//!
//!     cargo run --release -p rwkv-model --features demo --example chat -- "Tell me a story." "And then?"

use rwkv_model::{ChatTemplate, ModelFile, TextRequest, TextSession};
use rwkv_sched::{
    engine::{Engine, EngineOptions},
    sampling::SamplerParams,
};
use std::{
    error::Error,
    io::{self, Write},
    sync::Arc,
};

const MESSAGES: [&str; 2] = ["Tell me a story about a cat.", "And then?"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut messages: Vec<String> = std::env::args().skip(1).collect();
    if messages.is_empty() {
        messages = MESSAGES.map(str::to_owned).to_vec();
    }
    // `ModelFile::open` reads a file instead.
    let file = ModelFile::demo()?;
    let tokenizer = Arc::new(file.tokenizer(None)?);
    let options = EngineOptions {
        uncounted: tokenizer.uncounted().collect(),
        ..EngineOptions::default()
    };
    let engine = Engine::spawn(&file.model()?, options)?;
    eprintln!("{}, on {}", file.config().version, engine.device());

    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let mut chat = TextSession::new(engine.session(), tokenizer);
        let template = ChatTemplate::default();
        let mut out = io::stdout();
        for message in messages {
            writeln!(out, "> {message}")?;
            let request = TextRequest {
                max_tokens: 60,
                sampler: SamplerParams {
                    temperature: 0.7,
                    ..SamplerParams::default()
                },
                ..TextRequest::default()
            };
            let mut answer = chat.say(&message, &template, request).await?;
            while let Some(piece) = answer.next().await {
                write!(out, "{}", piece?)?;
                out.flush()?;
            }
            writeln!(out)?;
        }
        engine.shutdown().await;
        Ok(())
    })
}
