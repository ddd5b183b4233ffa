//! The tokens of prompts that go through no template: a text, texts, tokens, or lists of tokens, of any length.
//!
//! Each text is counted as it is read and numbers are only counted, so that nothing is held of a list however long it is.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Counted, Tokenizer};

/// Counts with `around` tokens for each text more than it has.
#[derive(Clone, Copy)]
struct Plain<'a> {
    tokenizer: &'a Tokenizer,
    around: u64,
}

/// What a value comes to.
enum Came {
    /// A text, without what is put around it.
    Text(Counted),
    Token,
    List(Counted),
    /// It is no prompt.
    Nothing,
}

// === impl Tokenizer ===

impl Tokenizer {
    /// The tokens of `prompt`, with `around` more for each text in it; `None` where it is none.
    pub(super) fn count_plain(&self, prompt: &RawValue, around: u64) -> Option<Counted> {
        let mut json = serde_json::Deserializer::from_str(prompt.get());
        match (Plain { tokenizer: self, around }).deserialize(&mut json).ok()? {
            Came::Text(counted) => Some(Counted { tokens: counted.tokens + around, ..counted }),
            Came::List(counted) => Some(counted),
            Came::Token | Came::Nothing => None,
        }
    }
}

// === impl Plain ===

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Came;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Came, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain<'_> {
    type Value = Came;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }

    fn visit_str<E>(self, text: &str) -> Result<Came, E> {
        Ok(Came::Text(self.tokenizer.count(text)))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Came, E> {
        Ok(Came::Token)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Came, E> {
        Ok(Came::Token)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Came, E> {
        Ok(Came::Token)
    }

    fn visit_unit<E>(self) -> Result<Came, E> {
        Ok(Came::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Came, E> {
        Ok(Came::Nothing)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Came, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Came::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Came, A::Error> {
        let (mut said, mut lists) = (Counted::NONE, Counted::NONE);
        let (mut texts, mut tokens) = (0, 0);
        let (mut begins_with_text, mut is_prompt) = (false, true);
        while let Some(came) = list.next_element_seed(self)? {
            match came {
                Came::Text(counted) => {
                    begins_with_text |= texts + tokens == 0;
                    texts += 1;
                    said = said.and(counted);
                }
                Came::Token => tokens += 1,
                Came::List(counted) => lists = lists.and(counted),
                Came::Nothing => is_prompt = false,
            }
        }
        Ok(match (tokens, is_prompt) {
            (0, false) => Came::Nothing,
            (0, true) => Came::List(said.and(lists).and(Counted { tokens: texts * self.around, exact: true })),
            // Tokens already; llama.cpp takes texts between them.
            _ => {
                let around = if begins_with_text { self.around } else { 0 };
                Came::List(said.and(Counted { tokens: tokens + around, exact: true }))
            }
        })
    }
}
