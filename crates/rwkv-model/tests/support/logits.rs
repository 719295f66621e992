//! What a model file makes of some tokens.

use rwkv_model::ModelFile;
use rwkv_sched::{Batch, CpuExecutor, Executor, SlotId, Wanted};

/// The CPU executor's logits of some tokens.
pub(crate) fn logits(file: &ModelFile) -> Vec<f32> {
    let mut executor = CpuExecutor::new(&file.model().unwrap(), 1).unwrap();
    let vocab = executor.config().vocab as u32;
    let tokens: Vec<u32> = (0..50).map(|i| i * i % vocab).collect();
    let logits = executor
        .run(&Batch::single(SlotId(0), &tokens, Wanted::All))
        .unwrap();
    logits.rows().flatten().copied().collect()
}
