//! Text in, text out: the demo model continues a prompt, printed as it comes.
//!
//!     cargo run --release -p rwkv-model --features demo --example generate -- "Once upon a time"

use rwkv_model::{ModelFile, tokenizer::TextDecoder};
use rwkv_sched::{
    Device, Generation, LoadOptions, SlotId, Wanted, load, prefill,
    sampling::{Sampler, SamplerParams},
};
use std::{
    error::Error,
    io::{self, Write},
    ops::ControlFlow,
};

/// Most tokens to print.
const TOKENS: usize = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "Once upon a time".to_owned());
    // `ModelFile::open` reads a file instead.
    let file = ModelFile::demo()?;
    let tokenizer = file.tokenizer(None)?;

    let device = Device::open("auto")?.device;
    let options = LoadOptions::default();
    let mut executor = load(&file.model()?, &device, &options, &mut |_| {})?;
    eprintln!("{}, on {}", file.config().version, executor.device());

    let (slot, chunk) = (SlotId(0), executor.chunk());
    let logits = prefill(
        executor.as_mut(),
        slot,
        &tokenizer.encode(prompt.as_bytes())?,
        chunk,
        Wanted::Last,
        &mut |_, _| ControlFlow::Continue(()),
    )?;
    let sampler = Sampler::new(SamplerParams {
        temperature: 0.7,
        ..SamplerParams::default()
    })?;
    let uncounted = tokenizer.uncounted().collect();
    let generation = Generation::new(executor.as_mut(), slot, sampler, uncounted, &logits)?;

    // Tokens end inside characters: the decoder holds back what is no text yet.
    let mut text = TextDecoder::new();
    let mut out = io::stdout().lock();
    for token in generation.take(TOKENS) {
        let token = token?;
        if Some(token) == tokenizer.end_of_text() {
            break;
        }
        let bytes = tokenizer.token(token).unwrap_or_default();
        write!(out, "{}", text.push(bytes))?;
        out.flush()?;
    }
    writeln!(out, "{}", text.finish())?;
    Ok(())
}
