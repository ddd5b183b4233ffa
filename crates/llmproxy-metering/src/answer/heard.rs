//! The text of one answer, as far as somebody wants it.

use super::{
    Dialect,
    places::Places,
    strings::{Piece, Strings},
    texts::{self, Field, Text},
};
use crate::tokens::Counting;

/// Takes the text out of the pieces of an answer and hands it to whoever counts it. How much memory that takes does not
/// depend on how long the answer is.
#[derive(Debug)]
pub(crate) struct Heard {
    listener: Listener,
    /// The texts so far; each one's place is its number.
    texts: Vec<Text>,
    /// Of an answer that is no stream.
    strings: Option<Strings>,
    /// How many texts of it have ended.
    ended: u32,
    /// Whether there was more to be counted than text: a call of a tool, which is written in the model's own way.
    is_text_alone: bool,
    /// Whether there was text that was not handed on, or may have been.
    is_in_part: bool,
    /// Whether there were thoughts, around which the model writes signs that are not in the answer.
    has_thoughts: bool,
    /// How often the prompt is in the text.
    echoes: u64,
}

/// What came of an answer.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Who has heard it.
    pub(crate) listener: Listener,
    /// Whether that is all there was to be counted: text, and no calls of tools.
    pub(crate) is_text_alone: bool,
    /// Whether the backend's own number should be the same.
    pub(crate) is_comparable: bool,
    /// Whether there was more text than was heard, or may have been.
    pub(crate) is_in_part: bool,
    /// How often the prompt was in it.
    pub(crate) echoes: u64,
}

/// Who wants it.
#[derive(Debug)]
pub(crate) enum Listener {
    /// Only its length matters.
    Nobody,
    /// A tokenizer counts it.
    Counting(Counting),
    /// A backend may be asked about it; `None` once it was too much to be kept, or of more than one text.
    Kept(Option<String>),
}

/// The longest text that is kept to ask a backend about it, in bytes.
const MAX_KEPT: usize = 64 * 1024;
/// So many texts of one answer are told apart.
const MAX_TEXTS: usize = 128;

// === impl Heard ===

impl Heard {
    /// Of an answer in whose text the prompt stands so many times.
    pub(crate) fn new(listener: Listener, dialect: Dialect, is_stream: bool, echoes: u64) -> Self {
        let strings = (!is_stream).then(|| Strings::new(Places::of(dialect)));
        Self {
            listener,
            texts: Vec::new(),
            strings,
            ended: 0,
            is_text_alone: true,
            is_in_part: false,
            has_thoughts: false,
            echoes,
        }
    }

    /// The text of an event, which may be `cut`; a scan has found so many bytes of it.
    pub(super) fn event(&mut self, dialect: Dialect, data: &[u8], found: u64, cut: bool) {
        self.is_in_part |= cut;
        if matches!(self.listener, Listener::Nobody) {
            return;
        }
        let is_whole = texts::of_event(dialect, data, found, |text, piece| {
            self.is_text_alone &= !matches!(text.field, Field::Name | Field::Arguments);
            self.has_thoughts |= text.field == Field::Reasoning;
            let place = self.texts.iter().position(|known| *known == text).unwrap_or_else(|| {
                if self.texts.len() < MAX_TEXTS {
                    self.texts.push(text);
                }
                self.texts.len() - 1
            });
            self.listener.hear(place as u32, piece);
        });
        self.is_in_part |= !is_whole;
    }

    /// The next piece of an answer that is no stream. Returns how much text was in it, in bytes.
    pub(super) fn plain(&mut self, data: &[u8]) -> u64 {
        let Some(strings) = &mut self.strings else { return 0 };
        let mut len = 0;
        strings.feed(data, |piece| match piece {
            Piece::Text(text) => {
                len += text.len() as u64;
                self.listener.hear(self.ended, text);
            }
            Piece::End => self.ended = self.ended.saturating_add(1),
        });
        self.is_text_alone &= !strings.has_calls();
        self.is_in_part |= strings.is_mended();
        self.has_thoughts |= strings.has_thoughts();
        len
    }

    /// There was more that could not be read.
    pub(super) fn miss(&mut self) {
        self.is_in_part = true;
    }

    /// The client has left: what follows is not delivered to it.
    pub(crate) fn leave(&mut self) {
        if let Listener::Counting(counting) = &mut self.listener {
            counting.mark();
        }
    }

    /// Who has heard it, and whether that is all there was to be counted; `is_complete` says that no client has left before
    /// its end.
    pub(crate) fn finish(self, is_complete: bool) -> Finished {
        let Self { listener, strings, echoes, .. } = self;
        let breaks_off = is_complete && strings.is_some_and(|strings| !strings.is_over());
        let is_in_part = self.is_in_part || breaks_off;
        let is_text_alone = self.is_text_alone && !is_in_part && echoes == 0;
        let is_comparable = is_text_alone && !self.has_thoughts;
        Finished { listener, is_text_alone, is_comparable, is_in_part, echoes }
    }
}

// === impl Listener ===

impl Listener {
    fn hear(&mut self, place: u32, text: &str) {
        match self {
            Self::Nobody => {}
            Self::Counting(counting) => counting.text(place, text),
            Self::Kept(kept) => match kept {
                Some(all) if place == 0 && all.len() + text.len() <= MAX_KEPT => all.push_str(text),
                _ => *kept = None,
            },
        }
    }
}
