//! `rwkv-cli generate`: continue a text.

use crate::{
    args::{GenerateArgs, SamplerOrderArg},
    interrupt::{EXIT_CODE, Interrupt},
    open,
    prompt_cache::PromptCache,
    usage::UsageError,
};
use anyhow::Result;
use rwkv_model::{
    Tokenizer,
    tokenizer::{StopStrings, TextDecoder},
};
use rwkv_sched::{
    Executor, FedPrompt, Generation, Logits, SlotId, Wanted, prefill,
    sampling::{Sampler, SamplerOrder, SamplerParams},
};
use std::{
    hash::{BuildHasher, RandomState},
    io::{IsTerminal, Write},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

const SLOT: SlotId = SlotId(0);

/// Prompts of at least this many chunks get a progress bar.
const LONG_PROMPT: usize = 2;

pub(crate) fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let params = sampler_params(args);
    let sampler = Sampler::new(params.clone()).map_err(|e| UsageError::error(e.to_string()))?;
    let prompt = prompt(args)?;
    if prompt.is_empty() {
        return Err(UsageError::error(
            "the prompt is empty: give a text to continue",
        ));
    }
    let file = open::model(&args.model)?;
    let tokenizer = file.tokenizer(args.model.tokenizer.as_deref())?;
    let tokens = tokenizer.encode(&prompt)?;
    let (mut executor, key) = open::executor_with_key(&file, &args.device, &args.tuning, 1)?;
    let cache = args
        .prompt_cache
        .and_then(|limit| PromptCache::open(&file, executor.as_ref(), key, limit));
    let interrupt = Interrupt::listen()?;
    let start = Instant::now();
    let mut summary = Summary {
        device: executor.device().to_owned(),
        seed: args.seed.is_none().then_some(params.seed),
        prompt: (tokens.len(), Duration::ZERO),
        known: 0,
        decoded: (0, Duration::ZERO),
        first: None,
    };
    let mut out = std::io::stdout().lock();
    if args.echo {
        out.write_all(&prompt)?;
        out.flush()?;
    }
    let Some(fed) = feed(executor.as_mut(), cache.as_ref(), &tokens, &interrupt)? else {
        return Ok(ExitCode::from(EXIT_CODE));
    };
    (summary.prompt.1, summary.known) = (start.elapsed(), fed.known);
    let after_prompt = match args.save_state {
        Some(_) => Some(executor.state(SLOT)?),
        None => None,
    };
    let uncounted = tokenizer.uncounted().collect();
    let generation = Generation::new(executor.as_mut(), SLOT, sampler, uncounted, &fed.logits)?;
    let stops = StopStrings::new(&args.stop);
    let written = stream(
        generation,
        &tokenizer,
        stops,
        args.max_tokens,
        &interrupt,
        &mut out,
        start,
        &mut summary,
    );
    // A terminal's prompt starts on a line of its own; a file or pipe gets the text alone.
    if std::io::stdout().is_terminal() {
        let _ = writeln!(out);
    }
    let text = written?;
    if let (Some(path), Some(state)) = (&args.save_state, &after_prompt) {
        executor.set_state(SLOT, state)?;
        if !text.printed().is_empty() {
            let chunk = executor.chunk();
            let on = &mut |_, _: &Logits| ControlFlow::Continue(());
            prefill(
                executor.as_mut(),
                SLOT,
                text.printed(),
                chunk,
                Wanted::None,
                on,
            )?;
        }
        file.save_state(&executor.state(SLOT)?, path)?;
    }
    summary.print();
    Ok(if interrupt.pressed() {
        ExitCode::from(EXIT_CODE)
    } else {
        ExitCode::SUCCESS
    })
}

/// The text to continue: the argument, a file, or stdin.
fn prompt(args: &GenerateArgs) -> Result<Vec<u8>> {
    let stdin = Path::new("-");
    match (&args.prompt, &args.file) {
        (None, Some(file)) => open::read_input(file),
        (Some(prompt), _) if prompt != "-" => Ok(prompt.clone().into_bytes()),
        (None, None) if std::io::stdin().is_terminal() => Err(UsageError::error(
            "there is no prompt: give a text to continue, or a file with --file",
        )),
        _ => open::read_input(stdin),
    }
}

fn sampler_params(args: &GenerateArgs) -> SamplerParams {
    SamplerParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        penalty_decay: args.penalty_decay,
        logit_bias: args.logit_bias.clone(),
        // The standard library seeds its hash tables from the system's randomness.
        seed: args
            .seed
            .unwrap_or_else(|| RandomState::new().hash_one(0u8)),
        order: match args.sampler_order {
            SamplerOrderArg::Reference => SamplerOrder::Reference,
            SamplerOrderArg::TemperatureFirst => SamplerOrder::TemperatureFirst,
        },
    }
}

/// Feeds the prompt; `None` when it was interrupted.
fn feed(
    executor: &mut dyn Executor,
    cache: Option<&PromptCache>,
    tokens: &[u32],
    interrupt: &Interrupt,
) -> Result<Option<FedPrompt>> {
    let chunk = executor.chunk();
    let bar = (tokens.len() > LONG_PROMPT * chunk).then(|| {
        let bar = open::progress_bar("prompt {bar:30} {pos}/{len} tokens {per_sec}");
        bar.set_length(tokens.len() as u64);
        bar
    });
    let mut progress = |done: usize| {
        if let Some(bar) = &bar {
            bar.set_position(done as u64);
        }
        if interrupt.pressed() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let fed = if let Some(cache) = cache {
        cache.feed(executor, SLOT, tokens, &mut progress)?
    } else {
        let on = &mut |done, _: &Logits| progress(done);
        let logits = prefill(executor, SLOT, tokens, chunk, Wanted::Last, on)?;
        FedPrompt { logits, known: 0 }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok((!interrupt.pressed()).then_some(fed))
}

/// The continuation so far: its tokens, and how much text each of them and those before it make.
#[derive(Default)]
struct Continuation {
    tokens: Vec<u32>,
    ends: Vec<usize>,
    /// Bytes of text made, and of these printed.
    made: usize,
    printed: usize,
}

impl Continuation {
    /// The tokens whose text was printed to its end.
    fn printed(&self) -> &[u32] {
        let whole = self.ends.iter().take_while(|end| **end <= self.printed);
        &self.tokens[..whole.count()]
    }
}

/// Writes the continuation as it comes.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one loop, each used once"
)]
fn stream(
    generation: Generation<'_>,
    tokenizer: &Tokenizer,
    mut stops: StopStrings,
    max_tokens: usize,
    interrupt: &Interrupt,
    out: &mut impl Write,
    start: Instant,
    summary: &mut Summary,
) -> Result<Continuation> {
    let mut decoder = TextDecoder::new();
    let mut written = Continuation::default();
    let decode_start = Instant::now();
    let mut matched = false;
    let mut failed = None;
    let mut take = |token: u32| {
        summary.decoded = (summary.decoded.0 + 1, decode_start.elapsed());
        summary.first.get_or_insert_with(|| start.elapsed());
        if Some(token) == tokenizer.end_of_text() {
            return ControlFlow::Break(());
        }
        let text = decoder.push(tokenizer.token(token).unwrap_or_default());
        written.made += text.len();
        written.tokens.push(token);
        written.ends.push(written.made);
        let shown = stops.push(text);
        let shows = out
            .write_all(shown.text.as_bytes())
            .and_then(|()| out.flush());
        if let Err(error) = shows {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        written.printed += shown.text.len();
        matched = shown.matched.is_some();
        if matched || interrupt.pressed() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    generation.run_out(max_tokens, &mut take)?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if matched {
        return Ok(written);
    }
    let last = stops.push(decoder.finish());
    out.write_all(last.text.as_bytes())?;
    written.printed += last.text.len();
    if last.matched.is_none() {
        let rest = stops.finish().text;
        out.write_all(rest.as_bytes())?;
        written.printed += rest.len();
    }
    out.flush()?;
    Ok(written)
}

/// What is told at the end.
struct Summary {
    device: String,
    /// If nobody chose it.
    seed: Option<u64>,
    /// Tokens and time.
    prompt: (usize, Duration),
    /// Of these, those that need not be fed.
    known: usize,
    decoded: (usize, Duration),
    /// From the start of the prompt to the first token.
    first: Option<Duration>,
}

impl Summary {
    fn print(&self) {
        let rate = |(tokens, time): (usize, Duration)| tokens as f64 / time.as_secs_f64().max(1e-9);
        // The first token comes from the prompt's logits; each later one costs a step.
        let steps = (self.decoded.0.saturating_sub(1), self.decoded.1);
        eprint!("\n{}: prompt {} tokens", self.device, self.prompt.0);
        if self.known > 0 {
            eprint!(" ({} of them known)", self.known);
        }
        let (tokens, time) = self.prompt;
        eprint!(", {:.1} tokens/s", rate((tokens - self.known, time)));
        if let Some(first) = self.first {
            eprint!("; first token after {:.1} ms", first.as_secs_f64() * 1e3);
        }
        eprint!("; generated {} tokens", self.decoded.0);
        if steps.0 > 0 {
            eprint!(", {:.1} tokens/s", rate(steps));
        }
        match self.seed {
            Some(seed) => eprintln!("; seed {seed}"),
            None => eprintln!(),
        }
    }
}
