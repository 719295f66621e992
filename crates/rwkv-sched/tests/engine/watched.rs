//! An executor that does something else about its batches.

use rwkv_sched::{
    Adapter, Batch, BlendProgress, Executor, Logits, ModelConfig, Result, SlotId, State,
    WeightReads,
};
use std::sync::Arc;

/// The methods of an executor that does nothing else about them than its `inner` one: all that it needs, or all but `chunk`.
macro_rules! as_inner {
    () => {
        as_inner!(but chunk);
        fn chunk(&self) -> usize {
            self.inner.chunk()
        }
    };
    (but chunk) => {
        fn config(&self) -> &ModelConfig {
            self.inner.config()
        }
        fn device(&self) -> &str {
            self.inner.device()
        }
        fn slots(&self) -> usize {
            self.inner.slots()
        }
        fn device_bytes(&self) -> u64 {
            self.inner.device_bytes()
        }
        fn blend_bytes(&self) -> u64 {
            self.inner.blend_bytes()
        }
        fn reset(&mut self, slot: SlotId) -> Result<()> {
            self.inner.reset(slot)
        }
        fn set_initial_state(&mut self, state: Option<&State>) -> Result<()> {
            self.inner.set_initial_state(state)
        }
        fn state(&mut self, slot: SlotId) -> Result<State> {
            self.inner.state(slot)
        }
        fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
            self.inner.set_state(slot, state)
        }
        fn prepare_adapters(
            &mut self,
            blend: &[(Arc<Adapter>, f32)],
            tensors: usize,
        ) -> Result<BlendProgress> {
            self.inner.prepare_adapters(blend, tensors)
        }
        fn set_adapters(&mut self, blend: &[(Arc<Adapter>, f32)]) -> Result<()> {
            self.inner.set_adapters(blend)
        }
        fn weight_reads(&self) -> WeightReads {
            self.inner.weight_reads()
        }
    };
}
pub(crate) use as_inner;

type Run = dyn FnMut(&mut dyn Executor, &Batch) -> Result<Logits> + Send;

struct Watched {
    inner: Box<dyn Executor>,
    run: Box<Run>,
}

/// `inner`, whose batches go through `run`.
pub(crate) fn watched(
    inner: Box<dyn Executor>,
    run: impl FnMut(&mut dyn Executor, &Batch) -> Result<Logits> + Send + 'static,
) -> Box<dyn Executor> {
    let run = Box::new(run);
    Box::new(Watched { inner, run })
}

impl Executor for Watched {
    as_inner!();
    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        (self.run)(self.inner.as_mut(), batch)
    }
}
