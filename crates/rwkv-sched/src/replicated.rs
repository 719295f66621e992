//! A model on several devices that each have all of it, and share the sequences.

use crate::{
    Adapter, Batch, BlendProgress, Counted, Decoding, Error, Executor, ExecutorStats, LoadOptions,
    LoadProgress, Logits, Model, ModelConfig, OnTokens, Placement, Result, SlotId, State,
    StepTimes, TokenId, Wanted, WeightReads, load_placed,
};
use rwkv_gpu::Timing;
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::Builder,
};

/// Runs a model on several replicas side by side: slot s is on number s modulo their count, so that sequences with slots
/// one after the other are spread evenly.
pub struct ReplicatedExecutor {
    replicas: Vec<Box<dyn Executor>>,
    name: String,
    slots: usize,
    /// What sequences begin with, where it is not what the model says.
    initial: Option<State>,
}

/// Adapters with their strengths.
type Blend = [(Arc<Adapter>, f32)];

/// What a replica has of a batch.
#[derive(Default)]
struct Share {
    batch: Batch,
    /// Rows of logits that are wanted of each span.
    rows: Vec<usize>,
}

/// What a replica has of a decoding.
#[derive(Default)]
struct Part {
    sequences: Vec<Decoding>,
    /// Where they are among all.
    places: Vec<usize>,
}

impl ReplicatedExecutor {
    /// Loads `model` once for each placement, for `options.slots` sequences on all together.
    ///
    /// # Errors
    /// [`Error::Placement`] for no placements, and what [`load_placed`] says.
    pub fn load(
        model: &Model,
        placements: &[Placement],
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let each = LoadOptions {
            slots: options.slots.div_ceil(placements.len().max(1)),
            ..options.clone()
        };
        let replicas = placements
            .iter()
            .map(|placement| load_placed(model, placement, &each, progress))
            .collect::<Result<_>>()?;
        let mut all = Self::new(replicas)?;
        all.slots = options.slots;
        Ok(all)
    }

    /// Of executors of the same model, with as many slots as the smallest has times their number.
    ///
    /// # Errors
    /// [`Error::Placement`] for none, or for models of other dimensions.
    pub fn new(replicas: Vec<Box<dyn Executor>>) -> Result<Self> {
        let refused = |problem: &str| Error::Placement {
            problem: problem.to_owned(),
        };
        let config = replicas.first().map(|first| first.config());
        let config = config.ok_or_else(|| refused("there is no device"))?;
        if replicas.iter().any(|replica| replica.config() != config) {
            return Err(refused("the replicas are not of one model"));
        }
        let names: Vec<&str> = replicas.iter().map(|replica| replica.device()).collect();
        let least = replicas.iter().map(|replica| replica.slots()).min();
        Ok(Self {
            name: format!("{} replicas: {}", names.len(), names.join(" | ")),
            slots: least.unwrap_or(0) * replicas.len(),
            replicas,
            initial: None,
        })
    }

    /// The replica that has a slot, and the slot's number there.
    fn home(&self, slot: SlotId) -> (usize, SlotId) {
        let count = u32::try_from(self.replicas.len()).unwrap_or(u32::MAX);
        let (replica, place) = (slot.0 % count, slot.0 / count);
        (replica as usize, SlotId(place))
    }

    /// The replica that has a slot, to ask it for that.
    fn at(&mut self, slot: SlotId) -> Result<(&mut dyn Executor, SlotId)> {
        let (replica, place) = self.home(slot);
        let slots = self.slots;
        let there = (slot.0 as usize) < slots;
        let replica = self.replicas.get_mut(replica).filter(|_| there);
        let replica = replica.ok_or(Error::SlotRange { slot, slots })?;
        Ok((replica.as_mut(), place))
    }

    /// What each replica has of a batch that can run.
    fn shares(&self, batch: &Batch) -> Vec<Share> {
        let mut shares: Vec<Share> = self.replicas.iter().map(|_| Share::default()).collect();
        for span in &batch.spans {
            let (replica, slot) = self.home(span.slot);
            if let Some(share) = shares.get_mut(replica) {
                share.rows.push(rows_of(span.wanted, span.tokens.len()));
                let span = span.clone();
                share.batch.spans.push(crate::BatchSpan { slot, ..span });
            }
        }
        shares
    }

    /// Sets what sequences begin with on every replica.
    fn begin_with(&mut self, state: Option<&State>) -> Result<()> {
        let mut replicas = self.replicas.iter_mut();
        replicas.try_for_each(|replica| replica.set_initial_state(state))
    }
}

/// Rows of logits of a span.
fn rows_of(wanted: Wanted, tokens: usize) -> usize {
    match wanted {
        Wanted::None => 0,
        Wanted::Last => 1,
        Wanted::All => tokens,
    }
}

/// Runs what a replica has of a batch, in as many steps as suit it.
fn run_share(replica: &mut dyn Executor, batch: &Batch) -> Result<Logits> {
    let most = replica.chunk().max(replica.slots());
    // One of several devices cuts it itself.
    if replica.stages() > 1 || batch.tokens() <= most {
        return replica.run(batch);
    }
    let mut logits = Logits::default();
    for part in batch.cut(batch.tokens().div_ceil(most)) {
        logits.append(replica.run(&part)?);
    }
    Ok(logits)
}

/// Does `work` with each replica that has some, all at once, and `meanwhile` beside them; the first error, if any.
fn side_by_side<W: Send, T: Send>(
    replicas: &mut [Box<dyn Executor>],
    works: Vec<Option<W>>,
    work: impl Fn(&mut dyn Executor, W) -> Result<T> + Sync,
    meanwhile: impl FnOnce(),
) -> Result<Vec<Option<T>>> {
    let work = &work;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (replica, own) in replicas.iter_mut().zip(works) {
            let spawned = own.map(|own| {
                let thread = Builder::new().name("rwkv replica".to_owned());
                thread.spawn_scoped(scope, move || work(replica.as_mut(), own))
            });
            threads.push(spawned);
        }
        meanwhile();
        let ended = threads.into_iter().map(|thread| {
            Some(match thread? {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(stopped())),
                Err(error) => Err(Error::Config {
                    problem: format!("no thread for a replica: {error}"),
                }),
            })
        });
        // All of them are waited for before an error is told.
        let ended: Vec<Option<Result<T>>> = ended.collect();
        ended.into_iter().map(Option::transpose).collect()
    })
}

fn stopped() -> Error {
    Error::Config {
        problem: "a replica's thread has ended: this is a mistake in this program".to_owned(),
    }
}

/// The caller's ends: where a replica's sequences are among all, its tokens, and whether it is to go on.
type Line<'a> = (&'a [usize], Receiver<Vec<TokenId>>, Sender<ControlFlow<()>>);

/// One replica's ends of the two channels by which it keeps step with the others: its tokens, and whether to go on.
type Lines = (Sender<Vec<TokenId>>, Receiver<ControlFlow<()>>);

/// Tells the caller of every step of all replicas, until it breaks off or one of them fails.
fn keep_step(lines: &[Line<'_>], (count, steps): (usize, usize), take: OnTokens<'_>) {
    for _ in 0..steps {
        let mut tokens = vec![0; count];
        for (places, made, _) in lines {
            // One that has failed tells nothing more: the others stop when nobody answers.
            let Ok(made) = made.recv() else {
                return;
            };
            for (place, token) in places.iter().zip(made) {
                if let Some(to) = tokens.get_mut(*place) {
                    *to = token;
                }
            }
        }
        let flow = take(&tokens);
        for (_, _, verdict) in lines {
            let _ = verdict.send(flow);
        }
        if flow.is_break() {
            return;
        }
    }
}

impl Executor for ReplicatedExecutor {
    fn config(&self) -> &ModelConfig {
        // There is one at least.
        self.replicas[0].config()
    }

    fn device(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn chunk(&self) -> usize {
        let chunks = self.replicas.iter().map(|replica| replica.chunk());
        chunks.min().unwrap_or(1)
    }

    fn device_bytes(&self) -> u64 {
        let bytes = self.replicas.iter().map(|replica| replica.device_bytes());
        bytes.sum()
    }

    fn blend_bytes(&self) -> u64 {
        let bytes = self.replicas.iter().map(|replica| replica.blend_bytes());
        bytes.sum()
    }

    fn run(&mut self, batch: &Batch) -> Result<Logits> {
        // What cannot run is refused before any replica has changed a state.
        batch.tables(self.config().vocab, self.slots)?;
        let shares = self.shares(batch);
        let works = shares.iter().map(|share| {
            let some = !share.batch.spans.is_empty();
            some.then_some(&share.batch)
        });
        let works = works.collect();
        let made = side_by_side(&mut self.replicas, works, run_share, || ())?;
        // Row by row in the order of the batch's spans.
        let mut sources: Vec<_> = shares
            .iter()
            .zip(&made)
            .map(|(share, logits)| {
                let rows = logits.iter().flat_map(Logits::rows);
                (share.rows.iter(), rows)
            })
            .collect();
        let mut all = Logits::default();
        for span in &batch.spans {
            let (replica, _) = self.home(span.slot);
            if let Some((counts, rows)) = sources.get_mut(replica) {
                let count = counts.next().copied().unwrap_or(0);
                rows.take(count).for_each(|row| all.push(row));
            }
        }
        Ok(all)
    }

    fn decode(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: Counted<'_>,
        take: OnTokens<'_>,
    ) -> Result<()> {
        if steps == 0 {
            return Ok(());
        }
        let first = crate::decode::batch(sequences, Wanted::Last);
        first.tables(self.config().vocab, self.slots)?;
        let mut parts: Vec<Part> = self.replicas.iter().map(|_| Part::default()).collect();
        for (place, sequence) in sequences.iter().enumerate() {
            let (replica, slot) = self.home(sequence.slot);
            if let Some(part) = parts.get_mut(replica) {
                let sequence = sequence.clone();
                part.sequences.push(Decoding { slot, ..sequence });
                part.places.push(place);
            }
        }
        let count = sequences.len();
        let mut lines = Vec::new();
        let mut works = Vec::new();
        for Part { sequences, places } in &mut parts {
            let some = !sequences.is_empty();
            works.push(some.then(|| {
                let (tell, told) = channel();
                let (answer, answered) = channel();
                lines.push((places.as_slice(), told, answer));
                (sequences, (tell, answered))
            }));
        }
        let decode = |replica: &mut dyn Executor, (own, lines): (&mut Vec<Decoding>, Lines)| {
            let (tell, answered) = lines;
            replica.decode(own, steps, counted, &mut |tokens| {
                let told = tell.send(tokens.to_vec()).ok();
                let answer = told.and_then(|()| answered.recv().ok());
                answer.unwrap_or(ControlFlow::Break(()))
            })
        };
        let done = side_by_side(&mut self.replicas, works, decode, || {
            keep_step(&lines, (count, steps), take);
            // Who waits for an answer stops.
            drop(lines);
        });
        for part in parts {
            for (place, own) in part.places.into_iter().zip(part.sequences) {
                if let Some(sequence) = sequences.get_mut(place) {
                    (sequence.token, sequence.sampler) = (own.token, own.sampler);
                }
            }
        }
        done.map(drop)
    }

    fn runs_ahead(&self) -> bool {
        self.replicas.iter().any(|replica| replica.runs_ahead())
    }

    fn stages(&self) -> usize {
        let stages = self.replicas.iter().map(|replica| replica.stages());
        stages.max().unwrap_or(1)
    }

    fn replicas(&self) -> usize {
        self.replicas.len()
    }

    fn reset(&mut self, slot: SlotId) -> Result<()> {
        let (replica, slot) = self.at(slot)?;
        replica.reset(slot)
    }

    fn set_initial_state(&mut self, state: Option<&State>) -> Result<()> {
        if let Err(error) = self.begin_with(state) {
            // The caller is told of the first failure.
            let before = self.initial.clone();
            let _ = self.begin_with(before.as_ref());
            return Err(error);
        }
        self.initial = state.cloned();
        Ok(())
    }

    fn state(&mut self, slot: SlotId) -> Result<State> {
        let (replica, slot) = self.at(slot)?;
        replica.state(slot)
    }

    fn set_state(&mut self, slot: SlotId, state: &State) -> Result<()> {
        let (replica, slot) = self.at(slot)?;
        replica.set_state(slot, state)
    }

    fn prepare_adapters(&mut self, blend: &Blend, tensors: usize) -> Result<BlendProgress> {
        let mut all = BlendProgress { done: 0, total: 0 };
        let mut prepare = || -> Result<()> {
            // All of them together no more than one would.
            let each = tensors.div_ceil(self.replicas.len().max(1));
            for replica in &mut self.replicas {
                let progress = replica.prepare_adapters(blend, each)?;
                all.done += progress.done;
                all.total += progress.total;
            }
            Ok(())
        };
        match prepare() {
            Ok(()) => Ok(all),
            Err(error) => {
                // One that fails has dropped what it had; the others may have theirs. What fails here has failed before.
                let _ = self.forget_adapters(blend);
                Err(error)
            }
        }
    }

    fn set_adapters(&mut self, blend: &Blend) -> Result<()> {
        // On all before any of them switches.
        self.prepare_adapters(blend, usize::MAX)?;
        let mut replicas = self.replicas.iter_mut();
        replicas.try_for_each(|replica| replica.set_adapters(blend))
    }

    fn forget_adapters(&mut self, blend: &Blend) -> Result<()> {
        let mut replicas = self.replicas.iter_mut();
        replicas.try_for_each(|replica| replica.forget_adapters(blend))
    }

    /// A step reads the weights of all.
    fn weight_reads(&self) -> WeightReads {
        let reads = self.replicas.iter().map(|replica| replica.weight_reads());
        let one = reads.clone().next().unwrap_or_default();
        WeightReads {
            token: one.token,
            ..reads.sum()
        }
    }

    fn stats(&self) -> ExecutorStats {
        let stats = self.replicas.iter().map(|replica| replica.stats());
        stats.reduce(ExecutorStats::beside).unwrap_or_default()
    }

    fn set_timing(&mut self, timing: Timing) -> Result<bool> {
        let mut any = false;
        for replica in &mut self.replicas {
            any |= replica.set_timing(timing)?;
        }
        Ok(any)
    }

    /// Of each step what the replica had to do that was at it the longest.
    fn take_times(&mut self) -> Vec<StepTimes> {
        let times = self.replicas.iter_mut().map(|r| r.take_times());
        let longest = times.reduce(|mut steps, others| {
            steps.resize(steps.len().max(others.len()), StepTimes::default());
            for (step, other) in steps.iter_mut().zip(others) {
                if other.seconds() > step.seconds() {
                    *step = other;
                }
            }
            steps
        });
        longest.unwrap_or_default()
    }
}
