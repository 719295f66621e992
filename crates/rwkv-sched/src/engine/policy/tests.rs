//! The policy over simulated time: nothing here runs a model.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::unchecked_time_subtraction,
    reason = "tests fail by panicking; numbers are small"
)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A request of a simulation.
#[derive(Clone, Debug)]
struct Asked {
    at: Duration,
    priority: i32,
    prompt: usize,
    tokens: usize,
    blend: u64,
}

/// How it fared.
#[derive(Clone, Copy, Debug, Default)]
struct Fared {
    first: Option<Duration>,
    done: Option<Duration>,
    /// The longest time between two of its tokens, and the most chunks of prompts in it.
    gap: Duration,
    chunks: usize,
}

struct Job {
    asked: Asked,
    left: usize,
    made: usize,
    level: i64,
    runs: bool,
    last: Duration,
    chunks: usize,
}

const TOKEN: Duration = Duration::from_millis(4);
const PROMPT_TOKEN: Duration = Duration::from_micros(20);

/// Runs the policy until all is done, or for `end`.
fn simulate(policy: &Policy, slots: usize, asked: &[Asked], end: Duration) -> Vec<Fared> {
    let mut fared = vec![Fared::default(); asked.len()];
    let mut coming: Vec<(usize, &Asked)> = asked.iter().enumerate().collect();
    coming.sort_by_key(|(_, a)| Reverse(a.at));
    let mut jobs: BTreeMap<u64, Job> = BTreeMap::new();
    let (mut now, mut turns, mut times) = (Duration::ZERO, Turns::default(), Times::default());
    while now < end && !(coming.is_empty() && jobs.is_empty()) {
        while coming.last().is_some_and(|(_, a)| a.at <= now) {
            let (number, asked) = coming.pop().unwrap();
            let job = Job {
                asked: asked.clone(),
                left: asked.prompt,
                made: 0,
                level: 0,
                runs: false,
                last: now,
                chunks: 0,
            };
            jobs.insert(number as u64, job);
        }
        let views = |jobs: &BTreeMap<u64, Job>| -> (Vec<Running>, Vec<Waiting>) {
            let (mut running, mut waiting) = (Vec::new(), Vec::new());
            for (&id, job) in jobs {
                let (priority, waited) = (job.asked.priority, now - job.asked.at);
                if job.runs {
                    let work = match job.left {
                        0 => Work::Token,
                        left => Work::Prompt { left, most: left },
                    };
                    running.push(Running {
                        replica: 0,
                        id,
                        priority,
                        earned: job.level,
                        waited,
                        work,
                        beside: job.made + 1 < job.asked.tokens,
                        blend: job.asked.blend,
                    });
                } else {
                    let tokens = job.left;
                    waiting.push(Waiting {
                        id,
                        priority,
                        waited,
                        tokens,
                    });
                }
            }
            (running, waiting)
        };
        let (running, waiting) = views(&jobs);
        for change in policy.admit(slots, &running, &waiting, &mut turns) {
            match change {
                Change::Pause(id) => jobs.get_mut(&id).unwrap().runs = false,
                Change::Start { id, level } => {
                    let job = jobs.get_mut(&id).unwrap();
                    assert!(!job.runs);
                    (job.runs, job.level) = (true, level);
                }
            }
        }
        let (running, _) = views(&jobs);
        assert!(running.len() <= slots);
        let step = policy.next(&running, &turns, times);
        turns.took(&step);
        match (step.prompts, step.tokens) {
            (Some(_), Some(_)) => panic!("prompts and tokens"),
            (None, None) => match coming.last() {
                Some((_, next)) => now = now.max(next.at),
                None => assert!(jobs.is_empty(), "nothing runs, and {} wait", jobs.len()),
            },
            (Some(prompts), None) => {
                let Prompts {
                    blend,
                    parts,
                    beside,
                } = prompts;
                let tokens: usize = parts.iter().map(|(_, count)| count).sum();
                assert!(tokens <= policy.chunk);
                times.chunk = PROMPT_TOKEN * u32::try_from(tokens).unwrap();
                times.prompt_token = PROMPT_TOKEN;
                now += times.chunk;
                for (id, count) in parts {
                    assert!(count > 0);
                    let job = jobs.get_mut(&id).unwrap();
                    assert_eq!(job.asked.blend, blend);
                    job.left -= count;
                    if job.left == 0 {
                        job.last = now;
                        fared[id as usize].first = Some(now);
                        job.chunks = 0;
                    }
                }
                for job in jobs.values_mut().filter(|job| job.left == 0) {
                    job.chunks += usize::from(job.last != now);
                }
                for id in beside {
                    let job = jobs.get_mut(&id).unwrap();
                    assert_eq!((job.asked.blend, job.left), (blend, 0));
                    let fared = &mut fared[id as usize];
                    fared.gap = fared.gap.max(now - job.last);
                    fared.chunks = fared.chunks.max(job.chunks);
                    (job.last, job.chunks) = (now, 0);
                    job.made += 1;
                    assert!(job.made < job.asked.tokens);
                }
            }
            (None, Some(Tokens { blend, ids, steps })) => {
                assert!(steps > 0 && steps <= policy.burst_steps);
                times.token = TOKEN;
                for _ in 0..steps {
                    now += TOKEN;
                    for id in &ids {
                        let Some(job) = jobs.get_mut(id) else {
                            continue;
                        };
                        assert_eq!(job.asked.blend, blend);
                        let fared = &mut fared[*id as usize];
                        fared.gap = fared.gap.max(now - job.last);
                        fared.chunks = fared.chunks.max(job.chunks);
                        (job.last, job.chunks) = (now, 0);
                        job.made += 1;
                        if job.made >= job.asked.tokens {
                            fared.done = Some(now);
                            jobs.remove(id);
                        }
                    }
                }
            }
        }
    }
    fared
}

fn asked(at_ms: u64, prompt: usize, tokens: usize) -> Asked {
    Asked {
        at: Duration::from_millis(at_ms),
        priority: 0,
        prompt,
        tokens,
        blend: 0,
    }
}

const LONG: Duration = Duration::from_secs(100_000);

#[test]
fn a_flood_of_long_prompts_does_not_starve_short_ones() {
    // Twice what can be fed: 40,000 tokens of prompts in 400 ms.
    let flood = (0..200).map(|n| asked(n * 400, 40_000, 20));
    let short = (0..20).map(|n| asked(n * 1000 + 5000, 60, 20));
    let all: Vec<Asked> = flood.chain(short).collect();
    let fared = simulate(&Policy::default(), 16, &all, LONG);
    let waits = (200..220).map(|n| fared[n].first.unwrap() - all[n].at);
    let longest = waits.max().unwrap();
    // Two chunks and what goes on between them, where slots are free.
    assert!(longest < Duration::from_millis(300), "{longest:?}");
    assert!(fared.iter().all(|f| f.done.is_some()));
}

#[test]
fn a_flood_of_short_prompts_does_not_starve_a_long_one() {
    let flood = (0..4000).map(|n| asked(n * 10, 600, 1));
    let all: Vec<Asked> = [asked(100, 20_000, 1)].into_iter().chain(flood).collect();
    let fared = simulate(&Policy::default(), 8, &all, LONG);
    let wait = fared[0].first.unwrap() - all[0].at;
    // Half of each chunk is its own once it is the oldest: 400 ms of work, twice, and what is decoded between.
    assert!(wait < Duration::from_secs(5), "{wait:?}");
}

#[test]
fn low_priorities_come_to_their_turn() {
    let mut all: Vec<Asked> = (0..3000)
        .map(|n| Asked {
            priority: 2,
            ..asked(n * 60, 500, 10)
        })
        .collect();
    all.push(Asked {
        priority: -2,
        ..asked(0, 500, 400)
    });
    let policy = Policy::default();
    let fared = simulate(&policy, 1, &all, LONG);
    let lowest = fared.last().unwrap();
    // Until then it has what the others leave, a sixth; after four levels by ageing it keeps its slot, and its 400 tokens
    // take 1.6 s at most.
    let done = lowest.done.unwrap();
    assert!(done > policy.ageing * 3, "{done:?}");
    assert!(done < policy.ageing * 5, "{done:?}");
}

#[track_caller]
fn check(policy: &Policy, slots: usize, running: &[Running], waiting: &[Waiting], want: &[Change]) {
    let got = policy.admit(slots, running, waiting, &mut Turns::default());
    assert_eq!(got, want);
}

#[test]
fn whoever_gets_a_slot() {
    let policy = Policy::default();
    let waiting = |id, priority, seconds, tokens| Waiting {
        id,
        priority,
        waited: Duration::from_secs(seconds),
        tokens,
    };
    let running = |id, priority, earned, work| Running {
        replica: 0,
        id,
        priority,
        earned,
        waited: Duration::ZERO,
        work,
        beside: true,
        blend: 0,
    };
    let start = |id, level| Change::Start { id, level };
    // By age, then by shortness, by turns.
    let three = [
        waiting(1, 0, 0, 9),
        waiting(2, 0, 0, 5),
        waiting(3, 0, 0, 2),
    ];
    check(&policy, 2, &[], &three, &[start(1, 0), start(3, 0)]);
    // A higher priority drives out, a higher age does not.
    let busy = [running(1, 0, 0, Work::Token)];
    check(&policy, 1, &busy, &[waiting(2, 0, 60, 5)], &[]);
    let high = [waiting(2, 1, 0, 5)];
    check(&policy, 1, &busy, &high, &[Change::Pause(1), start(2, 1)]);
    check(&policy, 1, &[running(1, 0, 1, Work::Token)], &high, &[]);
    // Whose reader does not read gives way to anybody.
    let blocked = [running(1, 5, 5, Work::Blocked)];
    let any = [waiting(2, -1, 0, 5)];
    check(
        &policy,
        1,
        &blocked,
        &any,
        &[Change::Pause(1), start(2, -1)],
    );
    check(&policy, 1, &blocked, &[], &[]);
    // Long prompts leave a slot.
    let long: Vec<Waiting> = (0..4).map(|id| waiting(id, 0, 0, 9999)).collect();
    let got = policy.admit(4, &[], &long, &mut Turns::default());
    assert_eq!(got.len(), 3);
}

/// However many prompts there are, and however long: a token is late by a few steps at most.
#[test]
fn a_chunk_takes_no_longer_than_a_few_steps() {
    let prompts = (0..400).map(|n| asked(n * 20, 3000, 30));
    let all: Vec<Asked> = prompts.collect();
    let longest = |chunk_steps| {
        let policy = Policy {
            chunk_beside: 4000,
            chunk: 4000,
            chunk_steps,
            ..Policy::default()
        };
        let fared = simulate(&policy, 16, &all, LONG);
        fared.iter().map(|fared| fared.gap).max().unwrap()
    };
    // The chunk, and the step that makes the token.
    assert_eq!([3, 7].map(longest), [4, 8].map(|steps| TOKEN * steps));
    assert!(longest(0) <= PROMPT_TOKEN * 128 + TOKEN);
    assert!(longest(u32::MAX) > TOKEN * 10);
}

fn any_asked() -> impl Strategy<Value = Asked> {
    (0..3000u64, -1..2i32, 1..5000usize, 1..60usize, 0..3u64).prop_map(
        |(at, priority, prompt, tokens, blend)| Asked {
            priority,
            blend,
            ..asked(at, prompt, tokens)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// All requests are done; a sequence that keeps its slot waits for one chunk of prompts at most between two tokens;
    /// and what runs is as the views said, which the simulation asserts.
    #[test]
    fn everybody_is_served(
        all in prop::collection::vec(any_asked(), 1..60),
        slots in 1..20usize,
        chunk in 1..3000usize,
        beside in 1..3000usize,
        burst_steps in 1..70usize,
    ) {
        let policy = Policy { chunk, chunk_beside: beside, burst_steps, ..Policy::default() };
        // Nobody is driven out.
        let all: Vec<Asked> = all.into_iter().map(|a| Asked { priority: 0, ..a }).collect();
        for fared in simulate(&policy, slots, &all, LONG) {
            prop_assert!(fared.done.is_some());
            prop_assert!(fared.chunks <= 1, "{fared:?}");
        }
    }

    #[test]
    fn everybody_is_served_by_priority(
        all in prop::collection::vec(any_asked(), 1..60),
        slots in 1..6usize,
    ) {
        for fared in simulate(&Policy::default(), slots, &all, LONG) {
            prop_assert!(fared.done.is_some());
        }
    }
}

/// Nobody gives way to somebody weaker, or to whom there is no room for: else two would take turns at each step.
#[test]
fn who_gives_way() {
    let policy = Policy::default();
    let long = Work::Prompt {
        left: 4 * policy.chunk,
        most: policy.chunk,
    };
    let running = |longs: usize, weakest: (u64, i32)| -> Vec<Running> {
        let running = (0..8u64).map(|id| Running {
            replica: 0,
            id,
            priority: if id == weakest.0 { weakest.1 } else { 0 },
            earned: 0,
            waited: Duration::ZERO,
            work: if (id as usize) < longs {
                long
            } else {
                Work::Token
            },
            beside: true,
            blend: 0,
        });
        running.collect()
    };
    let waits = |id, priority, tokens| Waiting {
        id,
        priority,
        waited: Duration::ZERO,
        tokens,
    };
    let prompt = 4 * policy.chunk;
    let check = |running: &[Running], waiting: &[Waiting], want: &[(u64, u64)]| {
        let changes = policy.admit(8, running, waiting, &mut Turns::default());
        let mut got = Vec::new();
        for pair in changes.chunks(2) {
            match pair {
                [Change::Pause(out), Change::Start { id, .. }] => got.push((*out, *id)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, want);
    };
    // Six long prompts are as many as may be.
    let (strong, weak) = (waits(100, 5, prompt), waits(101, -1, 1));
    check(&running(6, (7, 0)), &[strong.clone(), weak.clone()], &[]);
    check(
        &running(5, (7, 0)),
        &[strong.clone(), weak.clone()],
        &[(7, 100)],
    );
    // The place of a long prompt that goes is free.
    check(
        &running(6, (2, -1)),
        &[strong.clone(), weak.clone()],
        &[(2, 100)],
    );
    check(
        &running(6, (7, 0)),
        &[waits(102, 1, 1), strong],
        &[(7, 102)],
    );
    check(&running(6, (7, 0)), &[weak], &[]);
}

/// Each replica has a chunk of its own prompts.
#[test]
fn a_chunk_for_each_replica() {
    let policy = Policy {
        chunk: 100,
        ..Policy::default()
    };
    let prompt = |id, left, replica| Running {
        replica,
        id,
        priority: 0,
        earned: 0,
        waited: Duration::ZERO,
        work: Work::Prompt { left, most: left },
        beside: true,
        blend: 0,
    };
    let running = [
        prompt(1, 500, 0),
        prompt(2, 30, 0),
        prompt(3, 90, 1),
        prompt(4, 70, 2),
        prompt(5, 70, 2),
    ];
    let step = policy.next(&running, &Turns::default(), Times::default());
    let Some(Prompts { parts, .. }) = step.prompts else {
        panic!("{step:?}");
    };
    let of = |ids: &[u64]| -> usize {
        let own = parts.iter().filter(|(id, _)| ids.contains(id));
        own.map(|(_, tokens)| tokens).sum()
    };
    assert_eq!([of(&[1, 2]), of(&[3]), of(&[4, 5])], [100, 90, 100]);
}
