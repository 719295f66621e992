//! What the host does while a burst is on its way, in which order: the GPU has something to do before the host makes anything ready
//! that can wait, and nothing is recorded in advance while the GPU waits.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use rwkv_sched::{
    Batch, BatchShape, Burst, Decoding, Executor, GpuExecutor, SlotId, TokenId, Version, Wanted,
    WeightsDType,
    sampling::{Sampler, SamplerParams},
};
use std::{
    fmt::Debug,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};
use support::{
    gpus, on_gpu,
    random_model::{Dimensions, Packing},
    span,
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Submitted,
    /// Waited for, and read.
    Read,
    /// A step that nobody has asked for.
    Recorded,
    /// The caller has tokens.
    Told,
}

/// Notes the events of an executor's log.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Message<'a>(&'a Events);

impl tracing::field::Visit for Message<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        let event = match (field.name(), format!("{value:?}").as_str()) {
            ("message", "submitted") => Event::Submitted,
            ("message", "read") => Event::Read,
            ("message", "recorded in advance") => Event::Recorded,
            _ => return,
        };
        self.0.push(event);
    }
}

impl<S: tracing::Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut Message(self));
    }
}

fn sequences(slots: &[u32]) -> Vec<Decoding> {
    let one = |slot: &u32| Decoding {
        slot: SlotId(*slot),
        token: 5,
        sampler: Sampler::new(SamplerParams::default()).unwrap(),
    };
    slots.iter().map(one).collect()
}

/// The events of a burst, in which the executor is told of a shape after each of these numbers of tokens.
fn events(
    executor: &mut GpuExecutor,
    prompts: &Batch,
    steps: usize,
    tell: &[(usize, BatchShape)],
) -> Vec<Event> {
    let events = Events::default();
    let expected = executor.expected().unwrap();
    let mut told = 0;
    let take = &mut |_: &[Option<TokenId>]| {
        events.push(Event::Told);
        told += 1;
        if let Some((_, shape)) = tell.iter().find(|(after, _)| *after == told) {
            expected.tell(Some(*shape));
        }
        ControlFlow::Continue(())
    };
    let mut sequences = sequences(&[0, 1, 2]);
    let burst = Burst {
        prompts,
        sequences: &mut sequences,
        going_on: 3,
        steps,
        counted: &|_| true,
        may_stop: false,
    };
    let subscriber = tracing_subscriber::registry().with(events.clone());
    tracing::subscriber::with_default(subscriber, || executor.burst(burst, take).unwrap());
    events.take()
}

#[test]
fn the_gpu_does_not_wait() {
    let dimensions = Dimensions {
        version: Version::V7,
        layers: 2,
        heads: 2,
        head_size: 32,
        ffn: 96,
        vocab: 90,
        ranks: [8, 8, 8, 8],
    };
    let model = dimensions.model(Packing::F32, 3);
    let mut executor = on_gpu(&model, 4, &gpus()[0].gpu, WeightsDType::F32);
    let ends = Batch {
        spans: vec![
            span(1, &[7; 11], Wanted::Last),
            span(3, &[8; 5], Wanted::None),
        ],
    };
    let unseen = |tokens| BatchShape {
        tokens,
        spans: 1,
        outputs: 1,
    };
    for (prompts, steps) in [(ends, 7), (Batch::default(), 8)] {
        // Plans and guesses.
        for _ in 0..4 {
            events(&mut executor, &prompts, steps, &[]);
        }
        let tokens = if prompts.spans.is_empty() { 41 } else { 31 };
        let tell = [(1, unseen(tokens)), (8, unseen(tokens + 20))];
        let events = events(&mut executor, &prompts, steps, &tell);
        let at = |event| events.iter().position(|e| *e == event).unwrap();
        let last = |event| events.iter().rposition(|e| *e == event).unwrap();
        assert_eq!(events[0], Event::Submitted, "{events:?}");
        assert_eq!(events.iter().filter(|e| **e == Event::Told).count(), 8);
        // The chunk, the first draw and steps that decode are all there before anything is waited for.
        let before = events[..at(Event::Read)].iter();
        let before = before.filter(|e| **e == Event::Submitted).count();
        assert!(before >= 4, "{events:?}");
        let (mut submitted, mut read) = (0, 0);
        for event in &events {
            match event {
                Event::Submitted => submitted += 1,
                // Of the chunk alone nothing is read.
                Event::Read => read += 1,
                Event::Recorded => assert!(submitted - 1 > read || read == 0, "{events:?}"),
                Event::Told => {}
            }
        }
        // What was told after the first token is recorded while the next ones are made, what came after the last is not.
        let recorded = last(Event::Recorded);
        assert!(recorded > at(Event::Told), "{events:?}");
        assert!(recorded < last(Event::Read), "{events:?}");
    }
}
