//! The leading blocks of a prompt, as hashes: what two requests have in common is as long as their first hashes are the same.
//!
//! Bytes, not tokens: a server's cache goes by tokens, of which only its tokenizer knows, but the same bytes are the same
//! tokens. Blocks grow with what is before them, so that a prompt of a megabyte has some two hundred of them; what is
//! rounded off is a share of what is found.

use llmproxy_core::Prompt;

use crate::policy::{Block, Incoming};

/// Bytes of the first blocks: some 64 tokens of English.
const FINEST: usize = 256;
/// A block is this share of what is before it, where that is more.
const SHARE: usize = 16;
/// Bytes that are taken in at a time; blocks are multiples of it.
const WORDS: usize = 16;

/// What hashes begin with: chance, so that nobody can tell which prompts have the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u64, u64);

// === impl Seed ===

impl Seed {
    pub(super) fn new() -> Self {
        Self(fastrand::u64(..), fastrand::u64(..))
    }

    /// The blocks of a request's prompt; none where it is not known where that is.
    pub(super) fn blocks(self, request: &Incoming<'_>) -> Box<[Block]> {
        let Some((call, body, Prompt { before: [tools, system], text, .. })) =
            request.call.zip(request.body).and_then(|(call, body)| Some((call, body, call.prompt.as_ref()?)))
        else {
            return Box::default();
        };
        // Servers keep what they have computed for one model apart from what is another's.
        let mut chain = self.absorb(self.0, request.model.unwrap_or_default().as_bytes());
        let pieces = [tools.as_ref(), system.as_ref(), Some(text)];
        let pieces = pieces.map(|piece| piece.and_then(|piece| body.get(piece.clone())).unwrap_or_default());
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let tokens = |bytes: usize| call.prompt_estimate.saturating_mul(bytes as u64) / total as u64;
        let (mut blocks, mut at) = (Vec::new(), 0);
        for (nth, mut rest) in pieces.into_iter().enumerate() {
            while !rest.is_empty() {
                let size = size(at);
                // The messages will have others after them, so what is not a whole block yet may be one then. What is
                // before them ends where it ends.
                if nth == 2 && rest.len() < size {
                    break;
                }
                let (block, after) = rest.split_at(size.min(rest.len()));
                (chain, at, rest) = (self.absorb(chain, block), at + block.len(), after);
                blocks.push(Block { hash: chain, tokens: tokens(at) });
            }
        }
        blocks.into()
    }

    /// The hash of `bytes` and what `chain` is the hash of: sums of folded products, a word at a time.
    fn absorb(self, mut chain: u64, bytes: &[u8]) -> u64 {
        let (words, rest) = bytes.as_chunks::<WORDS>();
        for word in words {
            chain = self.mix(chain, word);
        }
        if !rest.is_empty() {
            let mut word = [0; WORDS];
            word[..rest.len()].copy_from_slice(rest);
            // A shorter end is another one than the same with zeros after it.
            chain = self.mix(chain ^ rest.len() as u64, &word);
        }
        chain
    }

    fn mix(self, chain: u64, word: &[u8; WORDS]) -> u64 {
        let word = u128::from_le_bytes(*word);
        let product = u128::from(chain ^ word as u64) * u128::from(self.1 ^ (word >> 64) as u64);
        product as u64 ^ (product >> 64) as u64
    }
}

/// Bytes of the block that has `before` of them before it.
fn size(before: usize) -> usize {
    (before / SHARE / FINEST * FINEST).max(FINEST)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use llmproxy_core::{Call, Endpoint};
    use proptest::prelude::*;

    use super::*;

    fn blocks(seed: Seed, body: &[u8], prompt: Prompt) -> Box<[Block]> {
        let (head, ()) = Request::new(()).into_parts();
        let tokens = body.len() as u64 / 4;
        let call =
            Call { prompt: Some(prompt), prompt_estimate: tokens, ..Call::new(Endpoint::of("/v1/chat/completions")) };
        let body = Bytes::copy_from_slice(body);
        seed.blocks(&Incoming { head: &head, call: Some(&call), model: None, body: Some(&body) })
    }

    fn text(seed: Seed, body: &[u8]) -> Box<[Block]> {
        blocks(seed, body, Prompt { text: 0..body.len(), ..Prompt::default() })
    }

    fn shared(a: &[Block], b: &[Block]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a.hash == b.hash).count()
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(4);
        (0..bytes).map(|_| rng.u8(..)).collect()
    }

    #[test]
    fn a_long_prompt_has_few_blocks_and_none_is_large_beside_what_is_before_it() {
        let seed = Seed::new();
        for (bytes, most) in [(255, 0), (256, 1), (4096, 16), (32 << 10, 58), (1 << 20, 116), (16 << 20, 163)] {
            let blocks = text(seed, &noise(bytes));
            assert!(blocks.len() <= most && blocks.len() + 5 > most, "{bytes}: {}", blocks.len());
            let sizes = blocks.windows(2).map(|pair| (pair[0].tokens, pair[1].tokens - pair[0].tokens));
            assert!({ sizes }.all(|(before, size)| size <= (before / 16).max(64)), "{bytes}");
        }
    }

    #[test]
    fn the_end_of_what_is_before_the_messages_ends_a_block_and_their_own_end_does_not() {
        let seed = Seed::new();
        let body = noise(1000);
        let prompt = Prompt { before: [Some(0..100), Some(100..150)], text: 150..1000, ..Prompt::default() };
        let tokens: Vec<u64> = blocks(seed, &body, prompt).iter().map(|block| block.tokens).collect();
        assert_eq!(tokens, [25, 37, 101, 165, 229], "of 250: the last 82 bytes are not a block");
    }

    #[test]
    fn what_is_beyond_the_body_is_no_part_of_it() {
        let prompt = Prompt { before: [Some(900..1100), None], text: 2000..3000, ..Prompt::default() };
        assert!(blocks(Seed::new(), &noise(1000), prompt).is_empty());
    }

    #[test]
    fn nobody_else_has_these_hashes() {
        let body = noise(1000);
        assert_eq!(shared(&text(Seed::new(), &body), &text(Seed::new(), &body)), 0);
    }

    proptest! {
        #[test]
        fn as_many_blocks_are_shared_as_are_before_the_first_difference(
            length in 0..6000_usize, at in any::<prop::sample::Index>(), more in 0..2000_usize, with in 1..=255_u8,
        ) {
            let seed = Seed::new();
            let body = noise(length + more);
            let first = text(seed, &body[..length]);
            prop_assert_eq!(shared(&first, &text(seed, &body)), first.len(), "it goes on");
            if length > 0 {
                let mut other = body.clone();
                let at = at.index(length);
                other[at] ^= with;
                let mut whole = 0;
                let mut end = size(0);
                while end <= at {
                    (whole, end) = (whole + 1, end + size(end));
                }
                prop_assert_eq!(shared(&first, &text(seed, &other)), whole.min(first.len()));
            }
        }
    }
}
