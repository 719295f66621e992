//! The tokens of a request on their way to whoever reads them.

use super::{request::Token, worker::Command};
use crate::{Error, Result};
use futures_core::Stream;
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    task::{Context, Poll, Waker},
};

/// What was made and not read yet.
pub(super) struct Outbox {
    /// As many tokens as are made in advance, about.
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Result<Token>>,
    reader: Option<Waker>,
    /// Tokens that the reader took.
    seen: usize,
    /// Nothing more comes.
    done: bool,
    /// Nobody reads any more.
    closed: bool,
    /// The engine waits until there is room.
    blocked: bool,
}

impl Outbox {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity: capacity.max(1),
            inner: Mutex::default(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens that the reader took.
    pub(super) fn seen(&self) -> usize {
        self.inner().seen
    }

    /// Whether nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.inner().closed
    }

    /// How many tokens more should be made.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.inner().items.len())
    }

    /// Whether there is room for more; where there is none, the reader will tell when there is.
    pub(super) fn has_room(&self) -> bool {
        let mut inner = self.inner();
        inner.blocked = inner.items.len() >= self.capacity;
        !inner.blocked
    }
}

/// The end that the engine writes to. When it is dropped before the end, the reader gets [`Error::Stopped`].
pub(super) struct Writer(pub(super) Arc<Outbox>);

impl Writer {
    pub(super) fn write(&self, item: Result<Token>) {
        let mut inner = self.0.inner();
        inner.done |= item.as_ref().map_or(true, |token| token.end.is_some());
        inner.items.push_back(item);
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let done = self.0.inner().done;
        if !done {
            self.write(Err(Error::Stopped));
        }
    }
}

/// The tokens of a request, as they come; the last one says why it is the last. Dropping the stream ends the request at
/// the next step, and the session is where the last token that was read leaves it; a request none of whose tokens was
/// read has not happened.
#[must_use = "a stream that is dropped ends its request"]
pub struct TokenStream {
    outbox: Arc<Outbox>,
    engine: Sender<Command>,
    session: u64,
    job: u64,
}

impl TokenStream {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        engine: Sender<Command>,
        session: u64,
        job: u64,
    ) -> Self {
        Self {
            outbox,
            engine,
            session,
            job,
        }
    }

    /// The next token; `None` after the last one.
    pub async fn next(&mut self) -> Option<Result<Token>> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Token>>> {
        let mut inner = self.outbox.inner();
        let Some(item) = inner.items.pop_front() else {
            if inner.done {
                return Poll::Ready(None);
            }
            inner.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        inner.seen += usize::from(item.is_ok());
        let last = inner.done && inner.items.is_empty();
        let room = inner.blocked && inner.items.len() <= self.outbox.capacity / 2;
        if room {
            inner.blocked = false;
        }
        drop(inner);
        if last {
            self.close();
        } else if room {
            let _ = self.engine.send(Command::Wake);
        }
        Poll::Ready(Some(item))
    }

    /// Tells the engine what was seen, once; only then the session is free for another request.
    fn close(&self) {
        if self.outbox.is_closed() {
            return;
        }
        let _ = self.engine.send(Command::Close {
            session: self.session,
            job: self.job,
            seen: self.outbox.seen(),
        });
        self.outbox.inner().closed = true;
    }
}

impl Stream for TokenStream {
    type Item = Result<Token>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Token>>> {
        self.get_mut().poll(context)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.close();
    }
}
