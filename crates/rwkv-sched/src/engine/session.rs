//! A sequence of tokens that goes on from request to request.

use super::{
    Shared,
    blend::Blend,
    job::{Goal, Job, Making, Prefix},
    outbox::{Outbox, TokenStream, Writer},
    request::Request,
    worker::Command,
};
use crate::{
    Adapter, Error, Result, State, TokenId,
    sampling::{Sampler, SamplingError},
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError, oneshot};

/// A sequence of tokens that goes on from request to request, one request at a time. Its state lies in a slot of the
/// executor while it runs, and on the host when others need the slot. Dropping it ends what it waits for, but not a stream
/// of tokens.
pub struct Session {
    engine: Arc<Shared>,
    id: u64,
    /// Where the last stream's tokens go.
    stream: Option<Arc<Outbox>>,
}

impl Session {
    pub(super) fn new(engine: Arc<Shared>) -> Self {
        let id = engine.ids.fetch_add(1, Relaxed);
        Self {
            engine,
            id,
            stream: None,
        }
    }

    /// Feeds the request's prompt and generates tokens. Waits until the engine takes the request in: as many may wait for
    /// slots as [`EngineOptions::queue`](super::EngineOptions::queue) says.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Stopped`], [`Error::TokenRange`], [`Error::Request`], [`Error::Sampling`] or
    /// [`Error::Adapter`] for what cannot run. What happens later is told by the stream: [`Error::EmptyPrompt`] where there
    /// is no token to go on from, [`Error::Step`] or the executor's own errors.
    pub async fn generate(&mut self, request: Request) -> Result<TokenStream> {
        let (blend, making) = self.check(&request)?;
        let place = self.engine.place().await?;
        self.send(request, blend, making, place)
    }

    /// The same, without waiting.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate), and [`Error::QueueFull`].
    pub fn try_generate(&mut self, request: Request) -> Result<TokenStream> {
        let (blend, making) = self.check(&request)?;
        let place = self.engine.try_place()?;
        self.send(request, blend, making, place)
    }

    /// Feeds tokens. If it is dropped before it is done, nothing has been fed.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Stopped`], [`Error::TokenRange`], [`Error::Adapter`], or the executor's.
    pub async fn feed(
        &mut self,
        tokens: &[TokenId],
        adapters: &[(Arc<Adapter>, f32)],
    ) -> Result<()> {
        self.check_idle()?;
        self.engine.check_tokens(tokens)?;
        let blend = Blend::new(adapters)?;
        let place = self.engine.place().await?;
        let (reply, answer) = oneshot::channel();
        let asked = self.run(blend, tokens.to_vec(), Goal::Feed(reply), 0, place)?;
        self.answer(asked, answer).await
    }

    /// The state after all tokens of the session. It waits for a slot only where some of them have not been fed.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Stopped`], or the executor's.
    pub async fn save(&mut self) -> Result<Arc<State>> {
        self.check_idle()?;
        let place = self.engine.place().await?;
        let (reply, answer) = oneshot::channel();
        let asked = self.run(Blend::default(), Vec::new(), Goal::Save(reply), 0, place)?;
        self.answer(asked, answer).await
    }

    /// Makes it a session that begins with `state`, also where nobody waits for it.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Stopped`], or [`Error::State`] for a state of another model.
    pub async fn load(&mut self, state: Arc<State>) -> Result<()> {
        self.check_idle()?;
        state.check(self.engine.layout)?;
        let (reply, answer) = oneshot::channel();
        let session = self.id;
        self.engine.send(Command::Load {
            session,
            state,
            reply,
        })?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// A session that goes on from here by itself. Both share what they have seen and its states. Each call makes one, which the
    /// engine keeps until it is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`] or [`Error::Stopped`].
    pub fn fork(&self) -> Result<Self> {
        self.check_idle()?;
        let fork = Self::new(self.engine.clone());
        let (from, to) = (self.id, fork.id);
        self.engine.send(Command::Fork { from, to })?;
        Ok(fork)
    }

    /// Goes back by so many of its tokens, those of prompts and generated ones. It can go back to any position since the
    /// oldest state that it keeps, by feeding again what comes after the last state before it. Kept are the states at
    /// intervals of [`EngineOptions::checkpoint_every`](super::EngineOptions::checkpoint_every) tokens, the last
    /// [`EngineOptions::checkpoints`](super::EngineOptions::checkpoints) of them and of those that left their slots; so a
    /// session of fewer tokens can go back to its beginning.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Stopped`], or [`Error::Rollback`] for more tokens than that.
    pub async fn rollback(&mut self, tokens: usize) -> Result<()> {
        self.check_idle()?;
        let (reply, answer) = oneshot::channel();
        let session = self.id;
        self.engine.send(Command::Rollback {
            session,
            tokens,
            reply,
        })?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    fn check_idle(&self) -> Result<()> {
        match &self.stream {
            Some(stream) if !stream.is_closed() => Err(Error::Busy),
            _ => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(Blend, Sampler)> {
        self.check_idle()?;
        self.engine.check_tokens(&request.prompt)?;
        if request.max_tokens == 0 {
            let problem = "0 tokens to generate: feed the prompt instead".to_owned();
            return Err(Error::Request { problem });
        }
        let vocabulary = self.engine.config.vocab;
        let biases = &request.sampler.logit_bias;
        if let Some(&(token, _)) = biases.iter().find(|(t, _)| *t as usize >= vocabulary) {
            return Err(SamplingError::BiasOutsideVocabulary { token, vocabulary }.into());
        }
        let sampler = Sampler::new(request.sampler.clone())?;
        Ok((Blend::new(&request.adapters)?, sampler))
    }

    fn send(
        &mut self,
        request: Request,
        blend: Blend,
        sampler: Sampler,
        place: OwnedSemaphorePermit,
    ) -> Result<TokenStream> {
        let outbox = Outbox::new(self.engine.ahead);
        let mut stops = request.stop_tokens;
        stops.sort_unstable();
        let making = Making {
            sampler,
            made: 0,
            most: request.max_tokens,
            stops,
            rewinds: request.rewinds,
            writer: Writer(outbox.clone()),
        };
        let goal = Goal::Generate(making);
        let asked = self.run(blend, request.prompt, goal, request.priority, place)?;
        self.stream = Some(outbox.clone());
        Ok(asked.into_stream(outbox))
    }

    fn run(
        &self,
        blend: Blend,
        prompt: Vec<TokenId>,
        goal: Goal,
        priority: i32,
        place: OwnedSemaphorePermit,
    ) -> Result<Asked> {
        let id = self.engine.ids.fetch_add(1, Relaxed);
        let job = Job {
            id,
            session: self.id,
            priority,
            arrived: Instant::now(),
            place: Some(place),
            blend,
            prompt,
            goal,
            level: i64::from(priority),
            alone: 0,
            prefix: Prefix::default(),
        };
        self.engine.send(Command::Run(Box::new(job)))?;
        Ok(Asked {
            engine: self.engine.clone(),
            session: self.id,
            job: Some(id),
            seen: 0,
        })
    }

    async fn answer<T>(&self, mut asked: Asked, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let answer = answer.await.unwrap_or(Err(Error::Stopped));
        asked.seen = usize::from(answer.is_ok());
        answer
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let session = self.id;
        let _ = self.engine.send(Command::Forget { session });
    }
}

/// A job that was sent; it is over when this is dropped.
struct Asked {
    engine: Arc<Shared>,
    session: u64,
    job: Option<u64>,
    seen: usize,
}

impl Asked {
    /// From here on the stream says when it is over.
    fn into_stream(mut self, outbox: Arc<Outbox>) -> TokenStream {
        let job = self.job.take().unwrap_or_default();
        TokenStream::new(outbox, self.engine.commands.clone(), self.session, job)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(job) = self.job {
            let _ = self.engine.send(Command::Close {
                session: self.session,
                job,
                seen: self.seen,
            });
        }
    }
}

impl Shared {
    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Stopped)
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = self.queue.clone().acquire_owned().await;
        place.map_err(|_| Error::Stopped)
    }

    fn try_place(&self) -> Result<OwnedSemaphorePermit> {
        self.queue.clone().try_acquire_owned().map_err(|e| match e {
            TryAcquireError::NoPermits => Error::QueueFull {
                waiting: self.queued,
            },
            TryAcquireError::Closed => Error::Stopped,
        })
    }

    fn check_tokens(&self, tokens: &[TokenId]) -> Result<()> {
        let vocab = self.config.vocab;
        match tokens.iter().find(|token| **token as usize >= vocab) {
            Some(&token) => Err(Error::TokenRange { token, vocab }),
            None => Ok(()),
        }
    }
}
