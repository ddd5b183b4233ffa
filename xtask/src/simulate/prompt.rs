//! What is in a request: the text that the proxy gets, and the blocks that a server makes of it.

use bytes::Bytes;
use llmproxy_core::Prompt;

use super::cache::BLOCK;

/// Bytes of text for each token: what English comes to.
const BYTES: usize = 4;

/// A piece of a conversation. The same piece is the same text, wherever it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) role: &'static str,
    pub(crate) id: u64,
    pub(crate) tokens: usize,
}

/// The hash of each whole block of these pieces, one after the other: of its own tokens and all before them.
pub(crate) fn hashes(pieces: &[Piece]) -> Vec<u64> {
    let (mut hashes, mut chain, mut filled) = (Vec::new(), 0, 0);
    for piece in pieces {
        let mut at = 0;
        while at < piece.tokens {
            let part = (BLOCK - filled).min(piece.tokens - at);
            chain = mix(chain ^ mix(piece.id ^ mix((at * BLOCK + part) as u64)));
            (at, filled) = (at + part, filled + part);
            if filled == BLOCK {
                hashes.push(chain);
                filled = 0;
            }
        }
    }
    hashes
}

/// The request that a client sends for these pieces.
pub(crate) fn body(pieces: &[Piece]) -> Bytes {
    let tokens: usize = pieces.iter().map(|piece| piece.tokens).sum();
    let mut body = Vec::with_capacity(tokens * BYTES + pieces.len() * 40 + 60);
    body.extend_from_slice(br#"{"model":"m","stream":true,"messages":["#);
    for (at, piece) in pieces.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(br#"{"role":""#);
        body.extend_from_slice(piece.role.as_bytes());
        body.extend_from_slice(br#"","content":""#);
        let mut state = piece.id;
        for _ in 0..piece.tokens {
            state = mix(state);
            let letter = |shift: u32| b'a' + (state >> shift) as u8 % 26;
            body.extend_from_slice(&[letter(0), letter(8), letter(16), b' ']);
        }
        body.extend_from_slice(br#""}"#);
    }
    body.extend_from_slice(b"]}");
    body.into()
}

/// Where the prompt stands in such a request, as the proxy finds it.
pub(crate) fn found(body: &[u8]) -> Option<Prompt> {
    let find = |what: &[u8], from: usize| {
        let at = body[from..].windows(what.len()).position(|bytes| bytes == what)?;
        Some(from + at)
    };
    let text = find(b"[", 0)?..body.len() - 1;
    // No text has a quote in it.
    let user = find(br#"{"role":"user""#, text.start)?;
    let opening = text.start + 1..find(b"}", user)? + 1;
    Some(Prompt { before: [None, None], text, opening })
}

/// Scatters bits: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(of: &[(u64, usize)]) -> Vec<Piece> {
        of.iter().map(|(id, tokens)| Piece { role: "user", id: *id, tokens: *tokens }).collect()
    }

    fn shared(a: &[u64], b: &[u64]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn whole_blocks_have_hashes_and_the_rest_has_none() {
        assert!(hashes(&pieces(&[(1, 15)])).is_empty());
        assert_eq!(hashes(&pieces(&[(1, 15), (2, 1)])).len(), 1);
        assert_eq!(hashes(&pieces(&[(1, 100), (2, 100)])).len(), 12);
    }

    #[test]
    fn the_next_turn_has_the_blocks_of_this_one_and_another_conversation_has_not() {
        let first = hashes(&pieces(&[(1, 100), (2, 60)]));
        let next = hashes(&pieces(&[(1, 100), (2, 60), (3, 200)]));
        let other = hashes(&pieces(&[(1, 100), (4, 60), (3, 200)]));
        assert_eq!([shared(&first, &next), shared(&next, &other)], [10, 6]);
        assert_eq!(shared(&hashes(&pieces(&[(2, 60)])), &next[6..]), 0, "the same text elsewhere is another block");
    }

    #[test]
    fn the_opening_ends_with_the_user_s_first_message() {
        let system = Piece { role: "system", ..pieces(&[(1, 30)])[0] };
        let said = [system, pieces(&[(2, 8)])[0], pieces(&[(3, 8)])[0]];
        let [first, later] = [&said[..2], &said].map(body);
        let [a, b] = [&first, &later].map(|body| found(body).unwrap());
        assert_eq!(first[a.opening.clone()], later[b.opening]);
        assert_eq!(a.opening, a.text.start + 1..a.text.end - 1, "nothing else was said yet");
        assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&later[b.text]).is_ok_and(|all| all.len() == 3));
    }

    #[test]
    fn a_body_is_the_api_s_and_its_leading_bytes_are_those_of_the_turn_before() {
        let first = body(&pieces(&[(1, 100), (2, 60)]));
        let next = body(&pieces(&[(1, 100), (2, 60), (3, 200)]));
        let read: serde_json::Value = serde_json::from_slice(&next).unwrap();
        assert_eq!(read["messages"][2]["content"].as_str().unwrap().len(), 200 * BYTES);
        let Prompt { text, opening, .. } = found(&next).unwrap();
        let messages: serde_json::Value = serde_json::from_slice(&next[text]).unwrap();
        assert_eq!(messages, read["messages"]);
        let message: serde_json::Value = serde_json::from_slice(&next[opening.clone()]).unwrap();
        assert_eq!((message, found(&first).unwrap().opening), (read["messages"][0].clone(), opening));
        let end = b"]}".len();
        assert_eq!(first[..first.len() - end], next[..first.len() - end]);
    }
}
