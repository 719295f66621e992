//! Decoding with the sequences in groups that go round: while one group is on its last device, others are on the ones before.
//!
//! A group's next step begins when its tokens are known, whether or not those of the others are. So when the caller stops
//! after a step, all groups but the last may be one step ahead of it. Their states go back to copies that were made on the
//! way, and the tokens since are fed again.

use super::{
    SplitExecutor, Stage,
    pipeline::{self, Ends, Job},
};
use crate::{
    Counted, Decoding, Error, Logits, Model, OnTokens, Result, SlotId, TokenId, Wanted,
    decode::batch, gpu::token_of, part::Drawing,
};
use rayon::prelude::*;
use std::ops::{ControlFlow, Range};

/// Steps between copies of the states.
const BETWEEN_COPIES: usize = 64;

/// Sequences whose tokens one thread chooses.
const CHOSEN_BY_ONE: usize = 2;

/// Groups on their way round.
struct Round<'a> {
    model: &'a Model,
    ends: Ends<'a>,
    groups: &'a [Range<usize>],
    counted: Counted<'a>,
    /// Whether the last device draws tokens.
    drawing: bool,
    /// Whether groups may be ahead of the caller: there are copies of their states.
    ahead: bool,
    /// What was fed to each group at each step.
    fed: Vec<Vec<Vec<TokenId>>>,
}

impl Round<'_> {
    /// Feeds a group its tokens.
    fn feed(&mut self, group: usize, sequences: &[Decoding]) {
        let range = self.groups.get(group).cloned().unwrap_or_default();
        let Some((own, fed)) = sequences.get(range).zip(self.fed.get_mut(group)) else {
            return;
        };
        let step = fed.len();
        fed.push(own.iter().map(|s| s.token).collect());
        let goes_ahead = self.ahead && group + 1 < self.groups.len();
        let copies = goes_ahead && step.is_multiple_of(BETWEEN_COPIES);
        self.ends.give(Job {
            batch: batch(own, Wanted::Last),
            drawing: self.drawing.then_some(group),
            copies: copies.then_some((group, step / BETWEEN_COPIES % 2)),
            ..Job::default()
        });
    }

    /// Takes what a group's step has made, and chooses its tokens.
    fn choose(&mut self, sequences: &mut [Decoding]) -> Result<()> {
        let job = self.ends.take()?;
        let counted = self.counted;
        if self.drawing {
            for (sequence, word) in sequences.iter_mut().zip(&job.drawn) {
                let token = token_of(*word, self.model.config().vocab)?;
                sequence.drew(token, counted);
            }
            return Ok(());
        }
        let logits = Logits::of(self.model, job.carried);
        if logits.len() != sequences.len() {
            return Err(Error::EmptyPrompt);
        }
        let choose = |(sequence, row): (&mut Decoding, &[f32])| -> Result<()> {
            sequence.choose(row, counted).map(drop)
        };
        if sequences.len() > CHOSEN_BY_ONE {
            let rows: Vec<&[f32]> = logits.rows().collect();
            sequences.par_iter_mut().zip(rows).try_for_each(choose)
        } else {
            sequences.iter_mut().zip(logits.rows()).try_for_each(choose)
        }
    }

    /// Goes round until `take` has been told of `steps` steps or breaks off; says how many it was told of, and what was fed.
    fn go(
        mut self,
        sequences: &mut [Decoding],
        steps: usize,
        take: OnTokens<'_>,
    ) -> Result<(usize, Vec<Vec<Vec<TokenId>>>)> {
        let groups = self.groups;
        for group in 0..groups.len() {
            self.feed(group, sequences);
        }
        let mut told = 0;
        while told < steps {
            for (group, range) in groups.iter().enumerate() {
                self.choose(sequences.get_mut(range.clone()).unwrap_or_default())?;
                // The last one has nobody to wait for.
                if self.ahead && group + 1 < groups.len() && told + 1 < steps {
                    self.feed(group, sequences);
                }
            }
            let tokens: Vec<TokenId> = sequences.iter().map(|s| s.token).collect();
            told += 1;
            if take(&tokens) == ControlFlow::Break(()) || told == steps {
                break;
            }
            let waiting = if self.ahead { groups.len() - 1 } else { 0 };
            for group in waiting..groups.len() {
                self.feed(group, sequences);
            }
        }
        self.ends.finish()?;
        Ok((told, self.fed))
    }
}

/// `count` things in `parts` groups of about as many, none of them empty.
fn grouped(count: usize, parts: usize) -> Vec<Range<usize>> {
    let parts = parts.clamp(1, count.max(1));
    let start = |part| part * count / parts;
    (0..parts)
        .map(|part| start(part)..start(part + 1))
        .collect()
}

impl SplitExecutor {
    /// As [`Executor::decode`](crate::Executor::decode), for sequences that can run and at least one step.
    pub(super) fn circulate(
        &mut self,
        sequences: &mut [Decoding],
        steps: usize,
        counted: Counted<'_>,
        take: OnTokens<'_>,
    ) -> Result<()> {
        let groups = grouped(sequences.len(), self.at_once(sequences.len()));
        let made = self.make_ready(sequences, &groups, steps, counted);
        let done = made.and_then(|(drawing, ahead)| {
            let (model, groups) = (&self.model, groups.as_slice());
            pipeline::run(&mut self.stages, groups.len(), |ends| {
                let round = Round {
                    model,
                    ends,
                    groups,
                    counted,
                    drawing,
                    ahead,
                    fed: vec![Vec::new(); groups.len()],
                };
                round.go(sequences, steps, take)
            })
        });
        let undone = done.and_then(|(told, fed)| self.undo(sequences, &groups, told, &fed));
        self.clear_up();
        undone
    }

    /// Lets the last device draw tokens, if it can, and makes room for copies of states; says whether both are there.
    fn make_ready(
        &mut self,
        sequences: &[Decoding],
        groups: &[Range<usize>],
        steps: usize,
        counted: Counted<'_>,
    ) -> Result<(bool, bool)> {
        // Whoever unwound has left theirs.
        for stage in &mut self.stages {
            stage.copies.clear();
        }
        let own = |range: &Range<usize>| sequences.get(range.clone()).unwrap_or_default();
        let of_groups: Vec<&[Decoding]> = groups.iter().map(own).collect();
        let drawing = match self.stages.last_mut() {
            Some(last) => last.executor.prepare_drawing(&Drawing {
                groups: &of_groups,
                steps,
                counted,
            })?,
            None => false,
        };
        let going_ahead = of_groups.split_last().map_or(&[][..], |(_, others)| others);
        let mut ahead = steps > 1;
        for stage in self.stages.iter_mut().filter(|_| steps > 1) {
            for group in going_ahead {
                let slots: Vec<SlotId> = group.iter().map(|s| s.slot).collect();
                let mut room = || stage.executor.state_copies(&slots);
                let [one, other] = [room()?, room()?];
                ahead &= one.is_some() && other.is_some();
                stage.copies.extend(one.zip(other).map(Into::into));
            }
        }
        Ok((drawing, ahead))
    }

    /// Takes back what groups have been fed after the caller's last step.
    fn undo(
        &mut self,
        sequences: &[Decoding],
        groups: &[Range<usize>],
        told: usize,
        fed: &[Vec<Vec<TokenId>>],
    ) -> Result<()> {
        for (group, (range, fed)) in groups.iter().zip(fed).enumerate() {
            if fed.len() <= told {
                continue;
            }
            // The newest copy that is not ahead of the caller: the step ahead may have made the other one.
            let copy = told / BETWEEN_COPIES;
            for stage in &mut self.stages {
                let Stage {
                    executor, copies, ..
                } = stage;
                if let Some(copies) = copies.get(group) {
                    executor.put_back(&copies[copy % 2])?;
                }
            }
            let mut again = sequences.get(range.clone()).unwrap_or_default().to_vec();
            let missing = fed.get(copy * BETWEEN_COPIES..told).unwrap_or_default();
            for tokens in missing {
                for (sequence, token) in again.iter_mut().zip(tokens) {
                    sequence.token = *token;
                }
                self.run_parts(&[batch(&again, Wanted::None)])?;
            }
        }
        Ok(())
    }

    /// Lets go of what only a decoding needs.
    fn clear_up(&mut self) {
        for stage in &mut self.stages {
            stage.copies.clear();
        }
        if let Some(last) = self.stages.last_mut() {
            let nothing = Drawing {
                groups: &[],
                steps: 0,
                counted: &|_| false,
            };
            let cleared = last.executor.prepare_drawing(&nothing);
            debug_assert!(cleared.is_ok(), "letting go needs nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        #[track_caller]
        fn check(count: usize, parts: usize, want: &[usize]) {
            let groups = grouped(count, parts);
            let sizes: Vec<usize> = groups.iter().map(ExactSizeIterator::len).collect();
            assert_eq!(sizes, want);
            assert!(groups.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
        check(256, 2, &[128, 128]);
        check(7, 3, &[2, 2, 3]);
        check(2, 3, &[1, 1]);
        check(1, 1, &[1]);
        check(5, 0, &[5]);
    }
}
