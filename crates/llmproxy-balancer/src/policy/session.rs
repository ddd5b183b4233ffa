//! All requests of a session to the same backend, as long as that has not too much to do.

use std::{borrow::Cow, ops::Range};

use http::{HeaderMap, HeaderName, header};

use super::{Affinity, Candidate, Choice, Incoming, LeastConnections, Policy, Work};
use crate::config::SessionConfig;

/// The backend that a session's key falls to, by weight: the one that has its cache. It is found in the names of the
/// backends and nothing else, so that it is the same after a restart, and in every proxy before the same backends; one
/// that goes or comes moves its own sessions and no others.
///
/// A backend that has more than its share to do, by a factor, passes a request on to the next one in the session's own
/// order (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016). That order is by weighted
/// rendezvous hashing (Thaler and Ravishankar, 1998; weights as by Schindelhauer and Schomaker, 2005) rather than a ring:
/// there are few backends, and their weights change while they warm up.
///
/// A request without a session goes to the one with the fewest requests.
#[derive(Debug)]
pub struct Session {
    headers: Vec<HeaderName>,
    cookie: Option<String>,
    load_factor: f64,
    others: LeastConnections,
}

/// What a key was found in: the same text in two places is two sessions.
#[derive(Clone, Copy, Debug)]
enum Source {
    Header = 1,
    Cookie,
    User,
    Opening,
}

// === impl Session ===

impl Session {
    /// Finds sessions as `config` says. A name that no header can have is one that no request has.
    pub fn new(config: &SessionConfig) -> Self {
        Self {
            headers: config.headers.iter().filter_map(|name| name.parse().ok()).collect(),
            cookie: config.cookie.clone(),
            load_factor: config.load_factor,
            others: LeastConnections::new(),
        }
    }

    /// The first that is there of a header, the cookie, the user, and the opening of the conversation.
    fn key(&self, request: &Incoming<'_>) -> Option<u64> {
        let headers = &request.head.headers;
        let values = self.headers.iter().filter_map(|name| headers.get(name));
        if let Some(value) = values.map(|value| value.as_bytes().trim_ascii()).find(|value| !value.is_empty()) {
            return Some(hash(Source::Header, &[value]));
        }
        if let Some(value) = self.cookie.as_deref().and_then(|name| cookie(headers, name)) {
            return Some(hash(Source::Cookie, &[value]));
        }
        let call = request.call?;
        if let Some(user) = call.user.as_deref().filter(|user| !user.is_empty()) {
            return Some(hash(Source::User, &[user.as_bytes()]));
        }
        let opening = request.body?.get(call.prompt.as_ref()?.opening.clone())?;
        let model = request.model.unwrap_or_default();
        (!opening.is_empty()).then(|| hash(Source::Opening, &[model.as_bytes(), &without_markers(opening)]))
    }

    /// The first in the order of `key` that is not at its bound, and whether that is the first of all.
    fn place(&self, key: u64, candidates: &[Candidate<'_>]) -> (usize, bool) {
        let (weights, in_flight) = candidates
            .iter()
            .fold((0.0, 0), |(weights, sum), candidate| (weights + candidate.weight, sum + candidate.in_flight));
        // With the request at hand. Whoever is below its bound, by however little, may have one more, so that there is room
        // for all.
        let scale = self.load_factor * (in_flight + 1) as f64;
        let has_room = |candidate: &Candidate<'_>| candidate.in_flight as f64 * weights < scale * candidate.weight;
        let mut first = (f64::INFINITY, 0);
        let mut open = (f64::INFINITY, None);
        for (at, candidate) in candidates.iter().enumerate() {
            let distance = distance(key, candidate);
            if distance < first.0 {
                first = (distance, at);
            }
            if distance < open.0 && has_room(candidate) {
                open = (distance, Some(at));
            }
        }
        let at = open.1.unwrap_or(first.1);
        (at, at == first.1)
    }
}

impl Policy for Session {
    fn affinity(&self, request: &Incoming<'_>) -> Affinity {
        Affinity { session: self.key(request), ..Affinity::default() }
    }

    fn pick(&self, work: &Work, candidates: &[Candidate<'_>]) -> Choice {
        let Some(key) = work.affinity.session else {
            return Choice { reason: "no session; fewest requests".into(), ..self.others.pick(work, candidates) };
        };
        match self.place(key, candidates) {
            (at, true) => Choice::new(at, "its session's"),
            (at, false) => Choice::new(at, "its session's has too much to do; the next"),
        }
    }

    fn forget(&self, index: usize) {
        self.others.forget(index);
    }
}

/// How far `candidate` is from a session: the least of them has it. Of exponential variables with the weights as rates
/// each is the least with the probability of its share, and a change of one weight moves no session between two others.
fn distance(key: u64, candidate: &Candidate<'_>) -> f64 {
    let drawn = scattered(key ^ bytes_hash(START, candidate.backend.name.as_bytes()));
    // Above 0 and below 1.
    let uniform = ((drawn >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    -uniform.ln() / candidate.weight
}

/// The value of the cookie of this name. What is no cookie at all is passed over: it is the client's business.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let value = pair.trim_ascii_start().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.trim_ascii();
        (!value.is_empty()).then_some(value)
    });
    values.next()
}

/// An opening without the marks of what is to be cached: they move on with each turn to the newest messages.
fn without_markers(opening: &[u8]) -> Cow<'_, [u8]> {
    let (mut kept, mut rest) = (Vec::new(), opening);
    while let Some(marker) = marker(rest) {
        kept.extend_from_slice(&rest[..marker.start]);
        rest = &rest[marker.end..];
    }
    if rest.len() == opening.len() {
        return Cow::Borrowed(opening);
    }
    kept.extend_from_slice(rest);
    Cow::Owned(kept)
}

/// Where the first `"cache_control": {..}` is, with the comma that goes with it. Within a string the quotes would be escaped.
fn marker(bytes: &[u8]) -> Option<Range<usize>> {
    const BEFORE: &[u8] = b"\"cache";
    const AFTER: &[u8] = b"_control\"";
    let middles = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'_').map(|(at, _)| at);
    let keys = middles.filter(|at| bytes[..*at].ends_with(BEFORE) && bytes[*at..].starts_with(AFTER));
    { keys }.find_map(|at| {
        let before = bytes[..at - BEFORE.len()].trim_ascii_end();
        let value = bytes[at + AFTER.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let after = match value.strip_prefix(b"null") {
            Some(after) => after,
            None if value.starts_with(b"{") => &value[value.iter().position(|byte| *byte == b'}')? + 1..],
            None => return None,
        };
        if let Some(before) = before.strip_suffix(b",") {
            return Some(before.len()..bytes.len() - after.len());
        }
        let after = after.trim_ascii_start().strip_prefix(b",").map_or(after, <[u8]>::trim_ascii_start);
        Some(before.len()..bytes.len() - after.len())
    })
}

/// Of the parts, each of which is told from the next. The same in every process and every version: sessions should not move
/// with an update.
fn hash(source: Source, parts: &[&[u8]]) -> u64 {
    parts.iter().fold(scattered(START ^ source as u64), |hash, part| bytes_hash(hash, part))
}

/// Any number without a pattern: the golden ratio, as often.
const START: u64 = 0x9e37_79b9_7f4a_7c15;

/// On from `hash`, eight bytes at a time: an opening may be long. Each step keeps two that differ apart.
fn bytes_hash(hash: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: [u8; 8]| {
        let product = (hash ^ u64::from_le_bytes(word)).wrapping_mul(START);
        product ^ (product >> 32)
    };
    let (mut hash, mut words) = (hash, bytes.chunks_exact(8));
    for word in &mut words {
        hash = step(hash, word.try_into().unwrap_or_default());
    }
    let rest = words.remainder();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // What ends in zeros is told from what ends before them.
    scattered(step(hash, last) ^ bytes.len() as u64)
}

/// Scatters bits: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn scattered(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
