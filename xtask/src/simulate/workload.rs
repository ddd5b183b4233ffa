//! Who asks what, and when: made from a seed before anything runs, so that every policy is asked the same.
//!
//! All of it is of our own making. Rates are such that the servers together are busy and not overrun when nothing is
//! wasted; with that the choice of a server matters, and a bad one shows.

use fastrand::Rng;

use super::{
    draw::{exponential, lognormal, poisson},
    prompt::{Piece, mix},
    server::Spec,
};

/// What policies may be tuned on.
pub(crate) const TUNING: &[u64] = &[0x5eed_0001, 0x5eed_0002, 0x5eed_0003];
/// What the figures in the docs come from, and nothing else.
pub(crate) const HELD_OUT: &[u64] = &[0x0dd5_eed1, 0x0dd5_eed2, 0x0dd5_eed3, 0x0dd5_eed4, 0x0dd5_eed5];

/// A story.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) spec: Spec,
    /// One for each server.
    pub(crate) servers: &'static [Nature],
    /// What an operator would write as their weights.
    pub(crate) weights: &'static [u32],
    /// Makes the clients of so many seconds.
    pub(crate) make: fn(&mut Rng, f64) -> Vec<Session>,
}

/// What a server is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Nature {
    Sound,
    /// It does everything at half the rate.
    Slow,
    /// From this share of the time on it answers every request with this status, in a millisecond; its health page is good
    /// all the same.
    Failing {
        status: u16,
        from: f64,
    },
    /// It dies at the first of these shares of the time, with all that it has, and is back at the second.
    Away {
        from: f64,
        to: f64,
    },
}

/// One client: it asks, reads the whole answer, waits, and asks again with all that was said before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Session {
    /// Seconds after the beginning.
    pub(crate) start: f64,
    /// What many sessions begin with.
    pub(crate) system: Option<Piece>,
    /// What tells its texts from those of others.
    pub(crate) id: u64,
    pub(crate) turns: Vec<Turn>,
}

/// A question and its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Turn {
    /// Tokens.
    pub(crate) question: usize,
    /// Tokens.
    pub(crate) answer: usize,
    /// Seconds between the answer and the next question.
    pub(crate) pause: f64,
}

const EQUAL: &[u32] = &[1; 4];

/// All of them.
pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "chat",
        about: "Single questions of 100 to 900 tokens, answers of 50 to 350, at random times.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound; 4],
        weights: EQUAL,
        make: |rng, length| steady_chat(rng, 17.0, length),
    },
    Workload {
        name: "heavy-tail",
        about: "Single questions, log-normal with a median of 500 tokens, up to 16,000; so are the answers.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound; 4],
        weights: EQUAL,
        make: heavy_tail,
    },
    Workload {
        name: "conversations",
        about: "Conversations of some turns, each under one of twelve system prompts, some of which are liked best.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound; 4],
        weights: EQUAL,
        make: conversations,
    },
    Workload {
        name: "agents",
        about: "Agents whose context grows with each tool that they call, up to 40,000 tokens; four kinds of them.",
        spec: Spec::LARGE,
        servers: &[Nature::Sound; 4],
        weights: EQUAL,
        make: agents,
    },
    Workload {
        name: "bursts",
        about: "The chat, in bursts: 15 seconds of more than the servers can do, 30 seconds of almost nothing.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound; 4],
        weights: EQUAL,
        make: bursts,
    },
    Workload {
        name: "slow-backend",
        about: "The chat, with one of four servers at half the rate.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound, Nature::Slow, Nature::Sound, Nature::Sound],
        weights: EQUAL,
        make: |rng, length| steady_chat(rng, 14.0, length),
    },
    Workload {
        name: "unequal",
        about: "The chat, with two of four servers at half the rate, and weights that say so.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound, Nature::Slow, Nature::Sound, Nature::Slow],
        weights: &[2, 1, 2, 1],
        make: |rng, length| steady_chat(rng, 12.0, length),
    },
    Workload {
        name: "failing-500",
        about: "The chat, with one of four servers that breaks and then answers 500 in a millisecond.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound, Nature::Failing { status: 500, from: 0.2 }, Nature::Sound, Nature::Sound],
        weights: EQUAL,
        make: |rng, length| steady_chat(rng, 12.0, length),
    },
    Workload {
        name: "failing-503",
        about: "The chat, with one of four servers that breaks and then answers 503, which is tried again elsewhere.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound, Nature::Failing { status: 503, from: 0.2 }, Nature::Sound, Nature::Sound],
        weights: EQUAL,
        make: |rng, length| steady_chat(rng, 12.0, length),
    },
    Workload {
        name: "comes-back",
        about: "The chat, with one of four servers that dies after a third of the time and is back, empty, at the half.",
        spec: Spec::SMALL,
        servers: &[Nature::Sound, Nature::Away { from: 1.0 / 3.0, to: 0.5 }, Nature::Sound, Nature::Sound],
        weights: EQUAL,
        make: |rng, length| steady_chat(rng, 12.0, length),
    },
];

// === impl Workload ===

impl Workload {
    /// The clients of `length` seconds, in the order in which they come.
    pub(crate) fn sessions(&self, seed: u64, length: f64) -> Vec<Session> {
        // Each story has its own chance, else the same seed would make all of them alike.
        let story = self.name.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        (self.make)(&mut Rng::with_seed(mix(seed ^ story)), length)
    }

    /// What the server at `index` can do.
    pub(crate) fn spec_of(&self, index: usize) -> Spec {
        if self.servers[index] == Nature::Slow { self.spec.at_half_rate() } else { self.spec }
    }
}

fn chat(rng: &mut Rng, starts: Vec<f64>) -> Vec<Session> {
    let one = |start| {
        let turn = Turn { question: rng.usize(100..=900), answer: rng.usize(50..=350), pause: 0.0 };
        Session { start, system: None, id: rng.u64(..), turns: vec![turn] }
    };
    starts.into_iter().map(one).collect()
}

fn steady_chat(rng: &mut Rng, rate: f64, length: f64) -> Vec<Session> {
    let starts = poisson(rng, rate, length);
    chat(rng, starts)
}

fn heavy_tail(rng: &mut Rng, length: f64) -> Vec<Session> {
    let starts = poisson(rng, 9.5, length);
    let one = |start| {
        let turn = Turn {
            question: lognormal(rng, 500.0, 1.2, 16, 16_000),
            answer: lognormal(rng, 150.0, 0.8, 8, 2_000),
            pause: 0.0,
        };
        Session { start, system: None, id: rng.u64(..), turns: vec![turn] }
    };
    starts.into_iter().map(one).collect()
}

fn conversations(rng: &mut Rng, length: f64) -> Vec<Session> {
    let systems = systems(rng, 12, 400, 2_400);
    // The second is asked for half as often as the first, the third a third as often (Zipf).
    let shares: Vec<f64> = (1..=systems.len()).map(|rank| 1.0 / rank as f64).collect();
    let starts = poisson(rng, 1.2, length);
    let one = |start| {
        let system = systems[weighted(rng, &shares)];
        let mut turns = Vec::new();
        // Four of five turns are followed by another: five on average.
        while turns.is_empty() || (rng.f64() < 0.8 && turns.len() < 20) {
            turns.push(Turn {
                question: lognormal(rng, 80.0, 1.0, 4, 3_000),
                answer: lognormal(rng, 180.0, 0.7, 8, 1_500),
                pause: 2.0 + exponential(rng, 15.0),
            });
        }
        Session { start, system: Some(system), id: rng.u64(..), turns }
    };
    starts.into_iter().map(one).collect()
}

fn agents(rng: &mut Rng, length: f64) -> Vec<Session> {
    let systems = systems(rng, 4, 3_000, 8_000);
    let starts = poisson(rng, 0.16, length);
    let one = |start| {
        let mut context = 0;
        let mut turns = Vec::new();
        for _ in 0..rng.usize(8..=30) {
            let turn = Turn {
                question: lognormal(rng, 700.0, 1.0, 20, 8_000),
                answer: lognormal(rng, 120.0, 0.8, 8, 1_500),
                pause: 0.2 + exponential(rng, 2.5),
            };
            context += turn.question + turn.answer;
            if context > 32_000 {
                break;
            }
            turns.push(turn);
        }
        Session { start, system: Some(systems[rng.usize(..systems.len())]), id: rng.u64(..), turns }
    };
    starts.into_iter().map(one).collect()
}

fn bursts(rng: &mut Rng, length: f64) -> Vec<Session> {
    let mut starts = Vec::new();
    let mut at = 0.0;
    while at < length {
        for (rate, seconds) in [(30.0, 15.0), (0.5, 30.0)] {
            let seconds = f64::min(seconds, length - at).max(0.0);
            starts.extend(poisson(rng, rate, seconds).into_iter().map(|start| at + start));
            at += seconds;
        }
    }
    chat(rng, starts)
}

fn systems(rng: &mut Rng, count: usize, least: usize, most: usize) -> Vec<Piece> {
    (0..count).map(|_| Piece { role: "system", id: rng.u64(..), tokens: rng.usize(least..=most) }).collect()
}

/// An index, as often as its share says.
fn weighted(rng: &mut Rng, shares: &[f64]) -> usize {
    let mut left = rng.f64() * shares.iter().sum::<f64>();
    for (at, share) in shares.iter().enumerate() {
        left -= share;
        if left < 0.0 {
            return at;
        }
    }
    shares.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: f64 = 3600.0;

    fn sessions(name: &str) -> Vec<Session> {
        ALL.iter().find(|workload| workload.name == name).unwrap().sessions(7, HOUR)
    }

    fn mean(values: impl IntoIterator<Item = usize>) -> f64 {
        let (mut sum, mut count) = (0, 0);
        for value in values {
            (sum, count) = (sum + value, count + 1);
        }
        sum as f64 / f64::from(count)
    }

    #[track_caller]
    fn near(value: f64, expected: f64, share: f64) {
        assert!((value - expected).abs() <= expected * share, "{value}, and not {expected}");
    }

    #[test]
    fn the_same_seed_is_the_same_and_another_is_not() {
        for workload in ALL {
            let sessions = workload.sessions(1, 100.0);
            assert_eq!(sessions, workload.sessions(1, 100.0));
            assert_ne!(sessions, workload.sessions(2, 100.0), "{}", workload.name);
        }
    }

    #[test]
    fn no_seed_is_for_tuning_and_for_figures() {
        assert!(TUNING.iter().all(|seed| !HELD_OUT.contains(seed)));
    }

    #[test]
    fn everybody_comes_in_order_and_in_time_and_fits_into_every_server() {
        for workload in ALL {
            assert_eq!(workload.servers.len(), workload.weights.len());
            let sessions = workload.sessions(1, HOUR);
            assert!(sessions.is_sorted_by_key(|session| session.start), "{}", workload.name);
            for session in &sessions {
                assert!((0.0..HOUR).contains(&session.start));
                let said: usize = session.turns.iter().map(|turn| turn.question + turn.answer).sum();
                let most = session.system.map_or(0, |system| system.tokens) + said;
                assert!(!session.turns.is_empty() && session.turns.iter().all(|turn| turn.answer > 0));
                assert!(most < workload.spec.blocks * super::super::cache::BLOCK / 2, "{}: {most}", workload.name);
            }
        }
    }

    #[test]
    fn the_chat_has_its_rate_and_its_sizes() {
        let sessions = sessions("chat");
        near(sessions.len() as f64, 17.0 * HOUR, 0.02);
        near(mean(sessions.iter().map(|session| session.turns[0].question)), 500.0, 0.02);
        near(mean(sessions.iter().map(|session| session.turns[0].answer)), 200.0, 0.02);
    }

    #[test]
    fn the_heavy_tail_is_heavy() {
        let mut prompts: Vec<usize> = sessions("heavy-tail").iter().map(|session| session.turns[0].question).collect();
        prompts.sort_unstable();
        let at = |share: f64| prompts[(prompts.len() as f64 * share) as usize] as f64;
        near(at(0.5), 500.0, 0.05);
        // exp(1.2 * 2.326) times the median.
        near(at(0.99), 8_150.0, 0.1);
        let half: usize = prompts.iter().sum::<usize>() / 2;
        let upper: usize = prompts[prompts.len() * 8 / 10..].iter().sum();
        assert!(upper > half, "a fifth of the prompts has more than half of the tokens");
    }

    #[test]
    fn conversations_have_five_turns_and_share_what_they_begin_with() {
        let sessions = sessions("conversations");
        // 1 / 0.2, less what is cut off at twenty.
        near(mean(sessions.iter().map(|session| session.turns.len())), 4.94, 0.05);
        let mut counts = std::collections::BTreeMap::new();
        for session in &sessions {
            *counts.entry(session.system.unwrap().id).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 12);
        // 1 of 1 + 1/2 + ... + 1/12.
        near(f64::from(*counts.values().max().unwrap()) / sessions.len() as f64, 1.0 / 3.103, 0.08);
    }

    #[test]
    fn agents_grow_long() {
        let sessions = sessions("agents");
        let long =
            |session: &&Session| session.turns.iter().map(|turn| turn.question + turn.answer).sum::<usize>() > 15_000;
        let share = sessions.iter().filter(long).count() as f64 / sessions.len() as f64;
        assert!((0.5..0.95).contains(&share), "{share}");
        let ids: std::collections::BTreeSet<u64> = sessions.iter().map(|session| session.id).collect();
        assert_eq!(ids.len(), sessions.len(), "each says something of its own");
    }

    #[test]
    fn bursts_are_bursts() {
        let sessions = sessions("bursts");
        let loud = sessions.iter().filter(|session| session.start % 45.0 < 15.0).count() as f64;
        // 30 * 15 of 30 * 15 + 0.5 * 30.
        near(loud / sessions.len() as f64, 0.968, 0.02);
        near(sessions.len() as f64, HOUR / 45.0 * 465.0, 0.03);
    }
}
