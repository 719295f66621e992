//! Perplexity against its definition, one token at a time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

#[path = "support/checkpoint.rs"]
mod checkpoint;

use checkpoint::{SMALL, open_bytes, safetensors};
use rwkv_kernels::Format;
use rwkv_model::{
    Tokenizer,
    perplexity::{Counted, Perplexity, PerplexityOptions, perplexity},
};
use rwkv_sched::{Batch, CpuExecutor, Executor, SlotId, Wanted};
use std::ops::ControlFlow;

fn executor(slots: usize) -> CpuExecutor {
    let bytes = safetensors(&SMALL.original(5), Format::F32);
    let file = open_bytes("small", bytes).unwrap();
    CpuExecutor::new(&file.model().unwrap(), slots).unwrap()
}

/// Tokens 1 to 39 have as many bytes as their number has digits; 0 has none.
fn tokenizer() -> Tokenizer {
    let lines: Vec<_> = (1..40)
        .map(|id| format!("{id} '{id}' {}", id.to_string().len()))
        .collect();
    Tokenizer::from_vocab_text("numbers", lines.join("\n").as_bytes()).unwrap()
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i + 7 * i) % 40).collect()
}

/// Tokens counted, their bytes, and nats: each chunk from an empty state, each token after all before it in its chunk.
/// The places `first..end` are counted, from a chunk's first token on; `end` may pass the chunk by one.
fn by_definition(
    text: &[u32],
    context: usize,
    chunks: usize,
    first: usize,
    end: usize,
) -> (u64, u64, f64) {
    let (mut counted, mut bytes, mut nats) = (0, 0, 0.0);
    for start in (0..chunks).map(|chunk| chunk * context) {
        let mut executor = executor(1);
        let last = (start + end).min(text.len());
        for (place, pair) in (1..).zip(text[start..last].windows(2)) {
            let batch = Batch::single(SlotId(0), &pair[..1], Wanted::Last);
            let logits = executor.run(&batch).unwrap();
            let row: Vec<f64> = logits
                .last()
                .unwrap()
                .iter()
                .map(|x| f64::from(*x))
                .collect();
            if place >= first {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                nats += sum.ln() - row[pair[1] as usize];
                counted += 1;
                bytes += match pair[1] {
                    0 => 0,
                    1..10 => 1,
                    _ => 2,
                };
            }
        }
    }
    (counted, bytes, nats)
}

fn measure(text: &[u32], slots: usize, options: &PerplexityOptions) -> Perplexity {
    let mut fed = 0;
    let measured = perplexity(
        &mut executor(slots),
        &tokenizer(),
        text,
        options,
        &mut |_, now| {
            assert!(now > fed, "progress rises");
            fed = now;
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert_eq!(fed, options.fed_of(text.len()).unwrap(), "{options:?}");
    measured
}

#[test]
fn as_the_definition() {
    let check = |length, context, chunks: Option<usize>, counted, first| {
        let text = tokens(length);
        let options = PerplexityOptions {
            context,
            chunks,
            counted,
        };
        let want_chunks = (length / context).min(chunks.unwrap_or(usize::MAX));
        let end = match counted {
            Counted::All => context + 1,
            Counted::Llama => context,
        };
        let (tokens, bytes, nats) = by_definition(&text, context, want_chunks, first, end);
        for slots in [1, 2, 5] {
            let got = measure(&text, slots, &options);
            let what = format!("{options:?}, {slots} slots");
            assert_eq!(
                (got.chunks, got.tokens, got.bytes),
                (want_chunks, tokens, bytes),
                "{what}"
            );
            let error = (got.nats - nats).abs() / nats;
            assert!(error < 1e-6, "{what}: {} instead of {nats}", got.nats);
            let mean = nats / tokens as f64;
            assert!(
                (got.perplexity() - mean.exp()).abs() < 1e-4 * mean.exp(),
                "{what}"
            );
            assert!(
                (got.nats_per_byte() * bytes as f64 - got.nats).abs() < 1e-9,
                "{what}"
            );
            assert!(got.standard_error() > 0.0, "{what}");
            assert_eq!(
                measure(&text, slots, &options),
                got,
                "{what}: the same bits"
            );
        }
    };
    check(100, 20, None, Counted::All, 1);
    check(101, 20, None, Counted::All, 1);
    check(119, 20, None, Counted::All, 1);
    check(100, 20, Some(3), Counted::All, 1);
    check(50, 50, None, Counted::All, 1);
    check(40, 2, None, Counted::All, 1);
    check(100, 20, None, Counted::Llama, 11);
    check(90, 9, Some(4), Counted::Llama, 5);
    // More tokens than go through at once.
    check(400, 200, None, Counted::All, 1);
    check(600, 300, None, Counted::Llama, 151);
}

/// What was asked for cannot be measured.
#[test]
fn refused() {
    let check = |text: &[u32], context, counted, want: &str| {
        let options = PerplexityOptions {
            context,
            chunks: None,
            counted,
        };
        let mut go_on = |_: &Perplexity, _| ControlFlow::Continue(());
        let error = perplexity(&mut executor(2), &tokenizer(), text, &options, &mut go_on);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(want) && !error.contains('\n'),
            "{error}, not {want}"
        );
    };
    check(&[], 8, Counted::All, "0 tokens");
    check(&tokens(7), 8, Counted::All, "needs 8 (1 × 8)");
    check(&tokens(15), 8, Counted::Llama, "needs 16 (2 × 8)");
    check(&tokens(15), 1, Counted::All, "at least 2");
    check(&[0, 1, 2, 40], 4, Counted::All, "token 40 is out of range");
    check(
        &[0, 1, 2, 3, 40],
        4,
        Counted::All,
        "token 40 is out of range",
    );
}

/// Every token but the text's first is counted once where the chunks fill the text.
#[test]
fn counts() {
    let check = |length: usize, chunks, counted, want: u64| {
        let options = PerplexityOptions {
            context: 10,
            chunks,
            counted,
        };
        let got = measure(&tokens(length), 3, &options).tokens;
        assert_eq!(got, want, "{length} tokens, {options:?}");
    };
    check(10, None, Counted::All, 9);
    check(11, None, Counted::All, 10);
    check(40, None, Counted::All, 39);
    check(49, None, Counted::All, 40);
    check(40, Some(3), Counted::All, 30);
    check(40, Some(3), Counted::Llama, 12);
    check(40, None, Counted::Llama, 16);
    check(49, None, Counted::Llama, 16);
}

/// Chunks begin with the executor's initial state.
#[test]
fn initial_state() {
    let text = tokens(45);
    let options = PerplexityOptions {
        context: 10,
        ..PerplexityOptions::default()
    };
    let measure = |executor: &mut CpuExecutor| {
        let mut go_on = |_: &Perplexity, _| ControlFlow::Continue(());
        perplexity(executor, &tokenizer(), &text, &options, &mut go_on).unwrap()
    };
    let mut tuned = executor(2);
    tuned
        .run(&Batch::single(SlotId(0), &[3, 1, 4, 15], Wanted::None))
        .unwrap();
    let state = tuned.state(SlotId(0)).unwrap();
    tuned.set_initial_state(Some(&state)).unwrap();
    let got = measure(&mut tuned);
    assert_ne!(got, measure(&mut executor(2)));
    let mut nats = 0.0;
    for start in [0, 10, 20, 30] {
        let mut executor = executor(1);
        executor.set_state(SlotId(0), &state).unwrap();
        let chunk = Batch::single(SlotId(0), &text[start..start + 10], Wanted::All);
        let logits = executor.run(&chunk).unwrap();
        for (row, token) in logits.rows().zip(&text[start + 1..]) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            nats += sum.ln() - f64::from(row[*token as usize]);
        }
    }
    assert!((got.nats - nats).abs() < 1e-4, "{} {nats}", got.nats);
}

/// Breaking off leaves what is done.
#[test]
fn broken_off() {
    let options = PerplexityOptions {
        context: 10,
        ..PerplexityOptions::default()
    };
    let mut steps = 0;
    let mut stop = |_: &Perplexity, _| {
        steps += 1;
        if steps == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let text = tokens(100);
    let measured = perplexity(&mut executor(2), &tokenizer(), &text, &options, &mut stop).unwrap();
    assert_eq!((measured.chunks, measured.tokens), (4, 40));
    assert_eq!(measured.bytes, by_definition(&text, 10, 4, 1, 11).1);
}
