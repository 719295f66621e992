//! Text over an engine: prompts and answers, streamed, with stop strings and chat turns.

use crate::{
    Result,
    tokenizer::{StopStrings, TextDecoder, Tokenizer},
};
use rwkv_sched::{
    Adapter,
    engine::{End, Request, Session, Token, TokenStream},
    sampling::SamplerParams,
};
use std::sync::Arc;

/// A session in text. It keeps what was shown: after an answer that a stop string ended, the session has seen no more than
/// the text before it.
pub struct TextSession {
    session: Session,
    tokenizer: Arc<Tokenizer>,
    /// Text that was shown and is not among the session's tokens: it ended inside one of them.
    unfed: String,
    /// Whether a turn of a chat came before.
    chats: bool,
}

/// How to continue a text.
#[derive(Clone, Debug)]
pub struct TextRequest {
    /// Tokens to generate at most, at least one.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampler: SamplerParams,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// As [`Request::priority`].
    pub priority: i32,
    /// As [`Request::adapters`].
    pub adapters: Vec<(Arc<Adapter>, f32)>,
}

impl Default for TextRequest {
    fn default() -> Self {
        let Request {
            max_tokens,
            sampler,
            priority,
            adapters,
            ..
        } = Request::default();
        Self {
            max_tokens,
            sampler,
            stop: Vec::new(),
            priority,
            adapters,
        }
    }
}

/// What stands around the messages of a chat. The default is that of the World models:
/// `User: …`, an empty line, `Assistant: …`, an empty line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// Before a message.
    pub user: String,
    /// Between a message and its answer.
    pub assistant: String,
    /// Between an answer and the next message.
    pub end: String,
}

impl Default for ChatTemplate {
    fn default() -> Self {
        Self {
            user: "User: ".to_owned(),
            assistant: "\n\nAssistant:".to_owned(),
            end: "\n\n".to_owned(),
        }
    }
}

impl ChatTemplate {
    /// What the model would write where the user's turn begins.
    fn stop(&self) -> String {
        format!("{}{}", self.end, self.user.trim_end())
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextEnd {
    /// The model ended its text.
    EndOfText,
    /// One of the stop strings came, by its place.
    Stop(usize),
    /// There are [`TextRequest::max_tokens`].
    Length,
}

impl TextSession {
    /// A session whose tokens are those of `tokenizer`.
    pub fn new(session: Session, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            session,
            tokenizer,
            unfed: String::new(),
            chats: false,
        }
    }

    /// The session below, to save, load or go back.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Continues the text so far and `prompt`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for a text that the vocabulary does not have, [`Error::Run`](crate::Error::Run) for a request that cannot run.
    pub async fn generate(&mut self, prompt: &str, request: TextRequest) -> Result<TextStream<'_>> {
        let text = format!("{}{prompt}", self.unfed);
        let end_of_text = self.tokenizer.end_of_text();
        let tokens = self
            .session
            .generate(Request {
                prompt: self.tokenizer.encode(text.as_bytes())?,
                max_tokens: request.max_tokens,
                sampler: request.sampler,
                stop_tokens: end_of_text.into_iter().collect(),
                priority: request.priority,
                // Tokens after a stop string have been made by then.
                rewinds: !request.stop.is_empty(),
                adapters: request.adapters,
            })
            .await?;
        Ok(TextStream {
            tokens: Some(tokens),
            decoder: TextDecoder::new(),
            stops: StopStrings::new(&request.stop),
            ends: Vec::new(),
            made: 0,
            shown: String::new(),
            end: None,
            chats: self.chats,
            held: String::new(),
            failed: None,
            session: self,
        })
    }

    /// Says something in a chat; what comes is the answer.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub async fn say(
        &mut self,
        message: &str,
        template: &ChatTemplate,
        mut request: TextRequest,
    ) -> Result<TextStream<'_>> {
        let before = if self.chats {
            template.end.as_str()
        } else {
            ""
        };
        let ChatTemplate {
            user, assistant, ..
        } = template;
        let prompt = format!("{before}{user}{}{assistant}", message.trim());
        request.stop.push(template.stop());
        let mut stream = self.generate(&prompt, request).await?;
        stream.chats = true;
        Ok(stream)
    }

    /// A session that goes on from here by itself.
    ///
    /// # Errors
    /// [`Error::Run`](crate::Error::Run) while an answer is read.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self {
            session: self.session.fork()?,
            tokenizer: self.tokenizer.clone(),
            unfed: self.unfed.clone(),
            chats: self.chats,
        })
    }
}

/// An answer as it comes. Dropping it ends it: the session goes on from the last token that was read.
pub struct TextStream<'s> {
    session: &'s mut TextSession,
    /// Until the end.
    tokens: Option<TokenStream>,
    decoder: TextDecoder,
    stops: StopStrings,
    /// Bytes of text that each token and those before it make.
    ends: Vec<usize>,
    made: usize,
    shown: String,
    end: Option<TextEnd>,
    /// Whether it is a turn of a chat.
    chats: bool,
    /// The last piece, while the session is brought to where it ends, and what went wrong then: whoever drops the wait
    /// for it finds both with the next one.
    held: String,
    failed: Option<crate::Error>,
}

impl TextStream<'_> {
    /// The next piece of text, whole characters and never empty; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<String>> {
        while let Some(tokens) = &mut self.tokens {
            let token = match tokens.next().await {
                Some(Ok(token)) => token,
                Some(Err(error)) => {
                    self.tokens = None;
                    return Some(Err(error.into()));
                }
                None => {
                    self.tokens = None;
                    return None;
                }
            };
            if self.ends.is_empty() {
                // The request has happened from here on, and what was before its prompt is fed.
                self.session.unfed.clear();
                self.session.chats = self.chats;
            }
            let piece = self.take(token);
            self.shown.push_str(&piece);
            self.held = piece;
            if self.end.is_some() {
                self.failed = self.settle().await.err();
            }
            if !self.held.is_empty() {
                break;
            }
        }
        if self.held.is_empty() {
            return self.failed.take().map(Err);
        }
        Some(Ok(std::mem::take(&mut self.held)))
    }

    /// All of the text from here on.
    ///
    /// # Errors
    /// The engine's.
    pub async fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(piece) = self.next().await {
            text.push_str(&piece?);
        }
        Ok(text)
    }

    /// Why it ended, once it has.
    pub fn end(&self) -> Option<&TextEnd> {
        self.end.as_ref()
    }

    /// What a token adds to the text that can be shown.
    fn take(&mut self, token: Token) -> String {
        let bytes = self.session.tokenizer.token(token.id).unwrap_or_default();
        let text = self.decoder.push(bytes);
        self.made += text.len();
        let out = self.stops.push(text);
        let mut shown = out.text.to_owned();
        // The beginning of a character counts, too: it is not text that was shown.
        self.ends.push(self.made + self.decoder.pending());
        if let Some(stop) = out.matched {
            self.end = Some(TextEnd::Stop(stop));
            return shown;
        }
        let Some(end) = token.end else {
            return shown;
        };
        // Nothing more comes: half a character and the beginning of a stop string are text after all.
        let last = self.stops.push(self.decoder.finish());
        shown.push_str(last.text);
        self.end = Some(match (last.matched, end) {
            (Some(stop), _) => TextEnd::Stop(stop),
            (None, End::Stop) => TextEnd::EndOfText,
            (None, End::Length) => TextEnd::Length,
        });
        if last.matched.is_none() {
            shown.push_str(self.stops.finish().text);
        }
        shown
    }

    /// Leaves the session with the text that was shown: tokens that made more of it are taken back, and what they made of
    /// it will be fed with the next prompt.
    async fn settle(&mut self) -> Result<()> {
        self.tokens = None;
        let shown = self.shown.len();
        let ends_text = self.end == Some(TextEnd::EndOfText);
        let whole = match self.end {
            Some(TextEnd::Stop(_)) => self.ends.iter().take_while(|end| **end <= shown).count(),
            _ => self.ends.len() - usize::from(ends_text),
        };
        let kept = whole.checked_sub(1).and_then(|last| self.ends.get(last));
        let fed = kept.copied().unwrap_or(0).min(shown);
        let is_stop = matches!(self.end, Some(TextEnd::Stop(_)));
        self.session.unfed = if is_stop {
            self.shown.get(fed..).unwrap_or_default().to_owned()
        } else {
            String::new()
        };
        let back = self.ends.len() - whole;
        if back > 0 {
            // Whoever stops waiting here has asked for it all the same.
            self.session.session.rollback(back).await?;
        }
        Ok(())
    }
}
