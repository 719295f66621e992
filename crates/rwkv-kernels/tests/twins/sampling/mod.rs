//! Sampling: the kernel chooses the tokens that the twin does, for the same logits, settings and seeds.

mod corners;
mod rounding;
mod sequences;

use crate::{
    activation::{Activation, filled, read},
    setup::Setup,
};
use rwkv_gpu::{Binding, Buffer};
use rwkv_kernels::{
    Token,
    ops::Sample,
    sampling::{
        Chosen, Draw, DrawSettings, NONE, Sampler, SamplerParams, bias_words, counted_words,
        memory_words,
    },
};

/// Rows of the ring.
const STEPS: usize = 4;
const POISON: u32 = 0xDEAD_BEEF;

/// Which tokens are counted.
fn counted(token: u32) -> bool {
    !token.is_multiple_of(3)
}

/// Sequences on the GPU: row r of the logits is slot n − 1 − r, token r + 1 and column r.
struct Sequences<'s> {
    setup: &'s Setup,
    vocabulary: usize,
    capacity: usize,
    count: usize,
    draws: Buffer,
    settings: Buffer,
    biases: Buffer,
    counted: Buffer,
    memory: Buffer,
    tokens: Buffer,
    ids: Buffer,
}

impl<'s> Sequences<'s> {
    /// One sequence for each sampler, going on where it is.
    fn new(setup: &'s Setup, vocabulary: usize, capacity: usize, samplers: &[Sampler]) -> Self {
        let gpu = setup.gpu();
        let count = samplers.len();
        let number = |n: usize| u32::try_from(n).unwrap();
        let draws: Vec<Draw> = (0..count)
            .map(|row| Draw {
                slot: number(count - 1 - row),
                token: number(row + 1),
                column: number(row),
                padding: 0,
            })
            .collect();
        let (mut settings, mut memory) = (Vec::new(), Vec::new());
        let mut biases = vec![[0; 2]];
        for sampler in samplers.iter().rev() {
            let params: &SamplerParams = sampler.params();
            settings.push(DrawSettings::new(params, vocabulary, number(biases.len())).unwrap());
            biases.extend(bias_words(params));
            memory.extend(sampler.to_memory(capacity).unwrap());
            memory.resize(memory_words(capacity) * settings.len(), POISON);
        }
        let words = counted_words(vocabulary, counted);
        let tokens = vec![POISON; 2 * (count + 2)];
        Self {
            setup,
            vocabulary,
            capacity,
            count,
            draws: filled(gpu, bytemuck::cast_slice(&draws)),
            settings: filled(gpu, bytemuck::cast_slice(&settings)),
            biases: filled(gpu, bytemuck::cast_slice(&biases)),
            counted: filled(gpu, &words),
            memory: filled(gpu, &memory),
            tokens: filled(gpu, &tokens),
            ids: filled(gpu, &vec![POISON; STEPS * count]),
        }
    }

    /// One token more for each sequence; row after row of logits.
    fn step(&self, logits: &[f32]) {
        let logits = Activation::new(self.setup, self.count, self.vocabulary, logits);
        let op = Sample {
            logits: logits.view(),
            draws: Binding::from(&self.draws),
            settings: Binding::from(&self.settings),
            biases: Binding::from(&self.biases),
            counted: Binding::from(&self.counted),
            memory: Binding::from(&self.memory),
            capacity: self.capacity,
            tokens: Binding::from(&self.tokens),
            ids: Binding::from(&self.ids),
            steps: STEPS,
            columns: self.count,
        };
        self.setup.run([&self.setup.kernels.sample(&op).unwrap()]);
        // Checks what lies around the logits.
        logits.read();
    }

    /// Leaves a row alone from now on.
    fn skip(&self, row: usize) {
        let gpu = self.setup.gpu();
        let slot = NONE.to_le_bytes();
        let at = (row * size_of::<Draw>()) as u64;
        gpu.write(&self.draws, at, &slot).unwrap();
    }

    /// The ring: for each step what each row chose.
    fn chosen(&self) -> Vec<Vec<Chosen>> {
        let ids = read(self.setup.gpu(), &self.ids);
        ids.chunks(self.count)
            .map(|row| row.iter().map(|id| Chosen::from(*id)).collect())
            .collect()
    }

    /// The ids in the batch's tokens, after checking that nothing else was written there.
    fn tokens(&self) -> Vec<u32> {
        let words = read(self.setup.gpu(), &self.tokens);
        let tokens: Vec<Token> = bytemuck::pod_collect_to_vec(&words);
        assert!(tokens.iter().all(|token| token.span == POISON));
        assert!(tokens[0].id == POISON && tokens[self.count + 1].id == POISON);
        tokens[1..=self.count]
            .iter()
            .map(|token| token.id)
            .collect()
    }

    /// The memory of a row's sequence.
    fn memory(&self, row: usize) -> Vec<u32> {
        let words = read(self.setup.gpu(), &self.memory);
        let size = memory_words(self.capacity);
        words[(self.count - 1 - row) * size..][..size].to_vec()
    }
}
