//! What each exchange does, drawn from a seed before any of them begins.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

/// One exchange: what is asked for, how the client behaves, and what a backend does at each attempt.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) id: usize,
    pub(super) ask: Ask,
    pub(super) client: Manner,
    pub(super) attempts: Vec<Fault>,
    /// What a client that speaks no HTTP says.
    pub(super) garbage: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Stream,
    Json,
    /// A body that passes through, so that it can't be sent twice.
    Upload,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Patient,
    /// Waits before each piece that it reads.
    Slow,
    /// Closes its connection at some moment.
    LeavesAfter(Duration),
    /// Breaks it.
    ResetsAfter(Duration),
    /// Leaves when it has read that many pieces.
    LeavesAfterPieces(usize),
    /// Says that it will send no more, which is taken for leaving.
    HalfCloses,
    /// Sends half a head, and leaves or waits.
    HalfHead {
        leaves: bool,
    },
    /// Sends its head and a part of the body, and leaves or waits.
    HalfBody {
        leaves: bool,
    },
    /// Sends what is no HTTP.
    Garbage,
}

/// What a backend does to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A whole answer.
    None,
    /// The same, a few bytes at a time.
    Trickle,
    /// The same, and the connection is closed without a word.
    ClosesAfter,
    ResetBeforeHead,
    CloseBeforeHead,
    StallBeforeHead,
    /// Half a head, then silence.
    HalfHead,
    GarbageHead,
    /// A header of a mebibyte.
    HugeHead,
    Status(u16),
    /// Head, so many pieces, and then this.
    Breaks(usize, Break),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    Reset,
    Close,
    Stall,
    /// A chunk that ends before its size.
    TruncatedChunk,
    BadChunkSize,
}

/// More attempts than these are never made of one exchange: one retry, each sent once more over a fresh connection.
const ATTEMPTS: usize = 4;

// === impl Plan ===

impl Plan {
    /// The plans of one run, the same for the same seed.
    pub(super) fn draw(seed: u64, count: usize) -> Vec<Self> {
        let mut rng = Rng::with_seed(seed);
        (0..count).map(|id| Self::one(id, &mut rng)).collect()
    }

    /// An exchange in which all goes well.
    pub(super) fn clean(id: usize) -> Self {
        Self { id, ask: Ask::Stream, client: Manner::Patient, attempts: vec![Fault::None], garbage: Vec::new() }
    }

    fn one(id: usize, rng: &mut Rng) -> Self {
        let ask = [Ask::Stream, Ask::Stream, Ask::Json, Ask::Upload][rng.usize(..4)];
        let client = Manner::draw(rng);
        let attempts = (0..ATTEMPTS).map(|_| Fault::draw(rng)).collect();
        let garbage = (0..rng.usize(1..2000)).map(|_| rng.u8(..)).collect();
        Self { id, ask, client, attempts, garbage }
    }

    /// What the backend does that is asked for the `attempt`th time.
    pub(super) fn fault(&self, attempt: usize) -> Fault {
        self.attempts[attempt.min(self.attempts.len() - 1)]
    }

    pub(super) fn has(&self, wanted: impl Fn(Fault) -> bool) -> bool {
        self.attempts.iter().any(|fault| wanted(*fault))
    }

    pub(super) fn leaves_in_the_middle(&self) -> bool {
        matches!(self.client, Manner::LeavesAfterPieces(_))
    }

    /// The answer in the pieces that a backend sends, as the client is to see it.
    pub(super) fn pieces(&self) -> Vec<String> {
        let id = self.id;
        if self.ask == Ask::Stream {
            let event = |n| {
                let choice = json!({"index": 0, "delta": {"content": format!("word {n} ")}});
                format!("data: {}\n\n", json!({"id": format!("c{id}"), "choices": [choice]}))
            };
            return (0..1 + id % 7).map(event).chain(["data: [DONE]\n\n".to_owned()]).collect();
        }
        let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9});
        let text = json!({"id": format!("c{id}"), "text": "x".repeat(id % 300), "usage": usage}).to_string();
        let (first, rest) = text.split_at(text.len() / 3);
        let (second, third) = rest.split_at(rest.len() / 2);
        [first, second, third].map(str::to_owned).to_vec()
    }

    /// What a client asks with: its path, the type of its body, and that.
    pub(super) fn request(&self) -> (&'static str, &'static str, Vec<u8>) {
        if self.ask == Ask::Upload {
            let body = vec![b'a' + (self.id % 26) as u8; 20_000];
            return ("/v1/audio/transcriptions", "multipart/form-data; boundary=b", body);
        }
        let message = json!({"role": "user", "content": "Say something, please."});
        let body = json!({"model": "m", "stream": self.ask == Ask::Stream, "messages": [message]});
        ("/v1/chat/completions", "application/json", body.to_string().into_bytes())
    }

    /// An address of its own, by which its access line and its record are known.
    pub(super) fn address(&self) -> String {
        format!("10.1.{}.{}", self.id / 250, 1 + self.id % 250)
    }
}

/// A backend's own words about a status.
pub(super) fn own_error(status: u16) -> Value {
    json!({"error": {"message": format!("the backend says {status}"), "type": "chaos", "code": status}})
}

// === impl Manner ===

impl Manner {
    fn draw(rng: &mut Rng) -> Self {
        let soon = Duration::from_millis(rng.u64(0..60));
        let leaves = rng.bool();
        match rng.u32(..20) {
            0 => Self::LeavesAfter(soon),
            1 => Self::ResetsAfter(soon),
            2 => Self::LeavesAfterPieces(rng.usize(0..4)),
            3 => Self::HalfCloses,
            4 => Self::HalfHead { leaves },
            5 => Self::HalfBody { leaves },
            6 => Self::Garbage,
            7..=9 => Self::Slow,
            _ => Self::Patient,
        }
    }

    /// Whether the head that it sends is one.
    pub(super) fn sends_head(self) -> bool {
        !matches!(self, Self::HalfHead { .. } | Self::Garbage)
    }

    /// Whether it sends all, and waits for all.
    pub(super) fn stays(self) -> bool {
        matches!(self, Self::Patient | Self::Slow)
    }
}

// === impl Fault ===

impl Fault {
    fn draw(rng: &mut Rng) -> Self {
        let pieces = rng.usize(0..4);
        let at = [Break::Reset, Break::Close, Break::TruncatedChunk, Break::BadChunkSize][rng.usize(..4)];
        match rng.u32(..24) {
            0 => Self::ResetBeforeHead,
            1 => Self::CloseBeforeHead,
            // Those that cost a second of time are less likely than others.
            2 if rng.bool() => Self::StallBeforeHead,
            2 => Self::HalfHead,
            3 => Self::GarbageHead,
            4 => Self::HugeHead,
            5 => Self::Status([500, 429][rng.usize(..2)]),
            6 => Self::Status(503),
            7 => Self::Trickle,
            8 | 9 => Self::ClosesAfter,
            10 => Self::Breaks(pieces, Break::Stall),
            11..=14 => Self::Breaks(pieces, at),
            _ => Self::None,
        }
    }

    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::None | Self::Trickle | Self::ClosesAfter)
    }

    pub(super) fn is_silence(self) -> bool {
        matches!(self, Self::StallBeforeHead | Self::HalfHead | Self::Breaks(_, Break::Stall))
    }
}
