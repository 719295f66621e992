//! Text over an engine, with the demo model on the CPU: the text of the tokens that a session makes, and no more of them
//! in the session than was shown.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use rwkv_model::{
    ChatTemplate, ModelFile, TextEnd, TextRequest, TextSession, Tokenizer, files::Checkpoint,
};
use rwkv_sched::{
    CpuExecutor, TokenId,
    engine::{Engine, EngineOptions, Request},
    sampling::SamplerParams,
};
use std::{path::Path, sync::Arc};

const PROMPT: &str = "Once upon a time";
const TOKENS: usize = 40;

fn start() -> (Engine, Arc<Tokenizer>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/demo.gguf");
    let file = ModelFile::from_checkpoint(Checkpoint::open(&path).unwrap(), Some(&path)).unwrap();
    let executor = CpuExecutor::new(&file.model().unwrap(), 2).unwrap();
    let engine = Engine::with_executor(Box::new(executor), EngineOptions::default()).unwrap();
    (engine, Arc::new(file.tokenizer(None).unwrap()))
}

fn greedy() -> SamplerParams {
    SamplerParams {
        temperature: 0.0,
        ..SamplerParams::default()
    }
}

fn asked(stop: &[&str]) -> TextRequest {
    TextRequest {
        max_tokens: TOKENS,
        sampler: greedy(),
        stop: stop.iter().map(ToString::to_string).collect(),
        ..TextRequest::default()
    }
}

/// The tokens that an engine makes of these.
async fn tokens(engine: &Engine, tokenizer: &Tokenizer, prompt: &[TokenId]) -> Vec<TokenId> {
    let request = Request {
        prompt: prompt.to_vec(),
        max_tokens: TOKENS,
        sampler: greedy(),
        stop_tokens: tokenizer.end_of_text().into_iter().collect(),
        ..Request::default()
    };
    let mut session = engine.session();
    let mut stream = session.generate(request).await.unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = stream.next().await {
        tokens.push(token.unwrap().id);
    }
    tokens
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

#[test]
fn the_text_of_the_tokens() {
    let (engine, tokenizer) = start();
    block_on(async {
        let prompt = tokenizer.encode(PROMPT.as_bytes()).unwrap();
        let made = tokens(&engine, &tokenizer, &prompt).await;
        let want = String::from_utf8(tokenizer.decode(&made)).unwrap();
        let mut session = TextSession::new(engine.session(), tokenizer.clone());
        let mut stream = session.generate(PROMPT, asked(&[])).await.unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = stream.next().await {
            pieces.push(piece.unwrap());
        }
        assert_eq!(stream.end(), Some(&TextEnd::Length));
        assert!(pieces.len() > TOKENS / 2, "it comes in pieces: {pieces:?}");
        assert_eq!(pieces.concat(), want);
    });
}

/// Wherever a stop string begins, inside a token too, the session goes on from the text before it.
#[test]
fn stop_strings_leave_what_was_shown() {
    let (engine, tokenizer) = start();
    block_on(async {
        let prompt = tokenizer.encode(PROMPT.as_bytes()).unwrap();
        let made = tokens(&engine, &tokenizer, &prompt).await;
        let text = String::from_utf8(tokenizer.decode(&made)).unwrap();
        let mut inside = 0;
        for start in 3..30 {
            let stop = &text[start..start + 5];
            let shown = &text[..text.find(stop).unwrap()];
            let mut session = TextSession::new(engine.session(), tokenizer.clone());
            let mut stream = session.generate(PROMPT, asked(&[stop])).await.unwrap();
            assert_eq!(stream.text().await.unwrap(), shown);
            assert_eq!(stream.end(), Some(&TextEnd::Stop(0)));
            // The tokens that were shown whole, and what is left of the text before the next prompt.
            let mut whole = prompt.clone();
            let mut length = 0;
            for token in &made {
                let bytes = tokenizer.token(*token).unwrap().len();
                if length + bytes > shown.len() {
                    break;
                }
                length += bytes;
                whole.push(*token);
            }
            inside += usize::from(length < shown.len());
            let next = format!("{} And then", &shown[length..]);
            whole.extend(tokenizer.encode(next.as_bytes()).unwrap());
            let want = tokens(&engine, &tokenizer, &whole).await;
            let want = String::from_utf8(tokenizer.decode(&want)).unwrap();
            let mut stream = session.generate(" And then", asked(&[])).await.unwrap();
            assert_eq!(stream.text().await.unwrap(), want, "after {shown:?}");
        }
        assert!(inside > 5, "{inside} of them begin inside a token");
    });
}

/// What was left of a text before a stop string is fed once, also if the answer after it is left early, or never begun.
#[test]
fn what_is_left_is_fed_once() {
    let (engine, tokenizer) = start();
    block_on(async {
        let mut whole = tokenizer.encode(PROMPT.as_bytes()).unwrap();
        let made = tokens(&engine, &tokenizer, &whole).await;
        // A stop string in the middle of a token.
        let long = |token: &&TokenId| {
            tokenizer
                .token(**token)
                .is_some_and(|bytes| bytes.len() > 3)
        };
        let at = made.iter().skip(3).position(|token| long(&token)).unwrap() + 3;
        let bytes = tokenizer.token(made[at]).unwrap();
        let (left, stop) = std::str::from_utf8(bytes).unwrap().split_at(2);
        let before = String::from_utf8(tokenizer.decode(&made[..at])).unwrap();
        assert!(!before.contains(stop), "{stop:?} comes too early");
        let mut session = TextSession::new(engine.session(), tokenizer.clone());
        let mut stream = session.generate(PROMPT, asked(&[stop])).await.unwrap();
        assert_eq!(stream.text().await.unwrap(), format!("{before}{left}"));
        // Nothing was read of this one, one token of the next.
        drop(session.generate(" But", asked(&[])).await.unwrap());
        whole.extend(&made[..at]);
        whole.extend(tokenizer.encode(format!("{left} And").as_bytes()).unwrap());
        let first = tokens(&engine, &tokenizer, &whole).await[0];
        let mut stream = session.generate(" And", asked(&[])).await.unwrap();
        let piece = stream.next().await.unwrap().unwrap();
        assert_eq!(piece.as_bytes(), tokenizer.token(first).unwrap());
        drop(stream);
        whole.push(first);
        whole.extend(tokenizer.encode(b" so on").unwrap());
        let want = tokens(&engine, &tokenizer, &whole).await;
        let mut stream = session.generate(" so on", asked(&[])).await.unwrap();
        let text = stream.text().await.unwrap();
        assert_eq!(text.as_bytes(), tokenizer.decode(&want));
    });
}

#[test]
fn turns_of_a_chat() {
    let (engine, tokenizer) = start();
    block_on(async {
        let template = ChatTemplate::default();
        let mut chat = TextSession::new(engine.session(), tokenizer.clone());
        let mut all = Vec::new();
        for (number, message) in ["Hello there", " Tell me more.\n"].iter().enumerate() {
            let mut stream = chat.say(message, &template, asked(&[])).await.unwrap();
            let answer = stream.text().await.unwrap();
            assert_eq!(stream.end(), Some(&TextEnd::Length));
            let before = if number == 0 { "" } else { "\n\n" };
            let prompt = format!("{before}User: {}\n\nAssistant:", message.trim());
            all.extend(tokenizer.encode(prompt.as_bytes()).unwrap());
            let made = tokens(&engine, &tokenizer, &all).await;
            let want = String::from_utf8_lossy(&tokenizer.decode(&made)).into_owned();
            assert_eq!(answer, want);
            all.extend(made);
        }
        // A fork goes on by itself.
        let mut fork = chat.fork().unwrap();
        let [one, other] = [&mut chat, &mut fork];
        let mut answers = Vec::new();
        for session in [one, other] {
            let mut stream = session.say("And?", &template, asked(&[])).await.unwrap();
            answers.push(stream.text().await.unwrap());
        }
        assert_eq!(answers[0], answers[1]);
    });
}
