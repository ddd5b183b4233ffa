//! The tokens of a text that comes piece by piece.
//!
//! To encode each piece alone would be wrong: a token may reach over the seam. To keep the whole text would take memory
//! without bound. So the text passes through a window of some kilobytes. When that is full it is encoded, a seam is sought in
//! it, and what is before the seam is counted; a little of that stays as the context of what comes next, so that whatever a
//! tokenizer does at the beginning of a text (a space in front, spaces stripped) happens where it does not count.
//!
//! A seam is a place where one token ends and another begins, best right before a word, else far enough from the window's
//! end that what is still to come can't change it. It is made sure of when the next window is encoded, which has the same
//! place in its middle: where a token reaches over it then, the count is one off or so, and says that it is not exact.
//! That happens in a single "word" of thousands of characters that the tokenizer takes as one.

use std::{ops::Range, sync::Arc};

use super::{Counted, Tokenizer};

/// The most text that is held, in bytes.
const WINDOW: usize = 4096;
/// How far a seam is from the window's end at least, unless it is before a word.
const MARGIN: usize = 256;
/// The context that stays before a seam, at least and at most.
const CONTEXT: usize = 64;
const MAX_CONTEXT: usize = 512;
/// Bytes that make a token where the tokenizer fails.
const BYTES_PER_TOKEN: u64 = 4;

/// The count of one text that comes piece by piece; exact for the whole, and its memory does not grow with it.
///
/// Nothing is put around the text: no token for its beginning or its end. It is what a model has said, so that a space at its
/// beginning is a part of its first word, also for a tokenizer that puts another before every text.
#[derive(Debug)]
pub struct Run {
    tokenizer: Arc<Tokenizer>,
    window: Window,
    begin: Begin,
}

/// What the text begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// Nothing yet.
    Open,
    /// A space that was left out, since the tokenizer will put it there. If nothing follows it is a token.
    Space,
    Text,
}

/// [`Run`] without the tokenizer.
#[derive(Clone, Debug)]
pub(super) struct Window {
    text: String,
    /// So much of the text's beginning is counted already, and is there as context.
    counted: usize,
    sum: Counted,
}

/// A text's tokens, by where they are.
struct Places<'a> {
    text: &'a str,
    tokens: Vec<(usize, usize)>,
}

// === impl Run ===

impl Run {
    /// The count of a text of which nothing has come yet.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let begin = if tokenizer.doubles_space() { Begin::Open } else { Begin::Text };
        Self { tokenizer, window: Window::default(), begin }
    }

    /// The text goes on with `text`.
    pub fn push(&mut self, mut text: &str) {
        if let (Begin::Open, Some(rest)) = (self.begin, text.strip_prefix(' ')) {
            self.begin = Begin::Space;
            text = rest;
        }
        if !text.is_empty() {
            self.begin = Begin::Text;
            self.window.push(&self.tokenizer, text);
        }
    }

    /// The text's tokens, if this were its end.
    pub fn so_far(&self) -> Counted {
        self.count(self.window.clone())
    }

    /// The text's tokens, now that it is at its end.
    pub fn finish(mut self) -> Counted {
        let window = std::mem::take(&mut self.window);
        self.count(window)
    }

    fn count(&self, window: Window) -> Counted {
        match self.begin {
            Begin::Space => Counted { tokens: 1, exact: true },
            Begin::Open | Begin::Text => window.finish(&self.tokenizer),
        }
    }
}

// === impl Window ===

impl Window {
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, mut text: &str) {
        while !text.is_empty() {
            let room = WINDOW.saturating_sub(self.text.len());
            let (head, rest) = text.split_at(text.floor_char_boundary(room));
            self.text.push_str(head);
            text = rest;
            if !text.is_empty() {
                self.advance(tokenizer);
            }
        }
    }

    pub(super) fn finish(mut self, tokenizer: &Tokenizer) -> Counted {
        if self.text.len() > self.counted {
            let places = Places::of(&self.text, tokenizer);
            count(&mut self.sum, places.as_ref(), self.counted..self.text.len());
        }
        self.sum
    }

    /// Counts what is before the next seam, and lets go of what is not needed any more.
    fn advance(&mut self, tokenizer: &Tokenizer) {
        let places = Places::of(&self.text, tokenizer);
        let hard = self.text.floor_char_boundary(self.text.len() - MARGIN);
        let seam = places.as_ref().and_then(|places| places.seam(self.counted));
        self.sum.exact &= seam.is_some();
        let seam = seam.unwrap_or(hard);
        count(&mut self.sum, places.as_ref(), self.counted..seam);
        let start = places.map_or(seam, |places| places.context(seam));
        self.text.drain(..start);
        self.counted = seam - start;
    }
}

impl Default for Window {
    fn default() -> Self {
        Self { text: String::new(), counted: 0, sum: Counted::NONE }
    }
}

/// Adds the tokens of a part of the text.
fn count(sum: &mut Counted, places: Option<&Places<'_>>, part: Range<usize>) {
    match places {
        Some(places) => {
            sum.exact &= places.is_between(part.start);
            sum.tokens += places.begin_in(part);
        }
        None => {
            sum.exact = false;
            sum.tokens += (part.len() as u64).div_ceil(BYTES_PER_TOKEN);
        }
    }
}

// === impl Places ===

impl<'a> Places<'a> {
    /// `None` where the tokenizer can't tell.
    fn of(text: &'a str, tokenizer: &Tokenizer) -> Option<Self> {
        Some(Self { text, tokens: tokenizer.offsets(text)? })
    }

    /// Where to stop counting, behind `counted`: before the last word, else behind the last token that is far enough
    /// from the end. `None` where there is no such place.
    fn seam(&self, counted: usize) -> Option<usize> {
        // Half a window at a time at least, so that no text is encoded over and over.
        let least = counted + (self.text.len() - counted) / 2;
        let last = self.text.len() - MARGIN;
        self.last_word(least, self.text.len()).or_else(|| self.last_between(least, last))
    }

    /// Where the context begins that is kept before `seam`.
    fn context(&self, seam: usize) -> usize {
        let (least, last) = (seam.saturating_sub(MAX_CONTEXT), seam.saturating_sub(CONTEXT));
        let place = self.last_word(least, last).or_else(|| self.last_between(least, last));
        place.unwrap_or_else(|| self.text.floor_char_boundary(last))
    }

    /// The last place between `least` and `last` right before a word: before a space behind which it begins, and which
    /// nothing but this word can belong to.
    fn last_word(&self, least: usize, last: usize) -> Option<usize> {
        let is_word = |at: &usize| {
            let (before, after) = self.text.split_at(*at);
            before.chars().next_back().is_some_and(|char| !char.is_whitespace())
                && after[1..].chars().next().is_some_and(char::is_alphabetic)
                && self.is_between(*at)
        };
        let bytes = self.text.as_bytes().get(least..last)?;
        memchr::memrchr_iter(b' ', bytes).map(|at| least + at).find(is_word)
    }

    /// The last place between `least` and `last` where a token ends and none goes on; best one where no spaces follow, since
    /// a space that a tokenizer puts in front of a text becomes one with them.
    fn last_between(&self, least: usize, last: usize) -> Option<usize> {
        let until = self.tokens.partition_point(|token| token.1 <= last);
        let ends = self.tokens[..until].iter().rev().map(|token| token.1);
        let places = ends.take_while(|end| *end > least).filter(|end| self.is_between(*end));
        let begins_a_word = |place: &usize| !self.text[*place..].starts_with(char::is_whitespace);
        places.clone().find(begins_a_word).or_else(|| places.clone().next())
    }

    /// Whether no token reaches over `place`.
    fn is_between(&self, place: usize) -> bool {
        let before = self.tokens.partition_point(|token| token.0 < place);
        before.checked_sub(1).is_none_or(|index| self.tokens[index].1 <= place)
    }

    /// How many tokens begin in `part`.
    fn begin_in(&self, part: Range<usize>) -> u64 {
        let before = |place| self.tokens.partition_point(|token| token.0 < place);
        (before(part.end) - before(part.start)) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::{super::trained, *};

    /// The tokens of `text`, in pieces of the sizes in `sizes` over and over, by each tokenizer: what is called exact is what
    /// the whole text comes to, and what is not is about that.
    fn check(text: &str, sizes: &[usize]) -> Result<Vec<&'static str>, TestCaseError> {
        let mut inexact = Vec::new();
        for (name, tokenizer) in trained::ALL.iter() {
            let said = if tokenizer.doubles_space() { text.strip_prefix(' ').unwrap_or(text) } else { text };
            let whole = tokenizer.offsets(said).unwrap().len() as u64;
            let mut run = Run::new(tokenizer.clone());
            let mut rest = text;
            for size in sizes.iter().cycle() {
                let (piece, after) = rest.split_at(rest.ceil_char_boundary(*size));
                run.push(piece);
                prop_assert!(run.window.text.len() <= WINDOW, "{name} holds {} bytes", run.window.text.len());
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let counted = run.finish();
            if counted.exact {
                prop_assert_eq!(counted.tokens, whole, "{}", name);
            } else {
                prop_assert!(counted.tokens.abs_diff(whole) <= 2 + whole / 50, "{name}: {} of {whole}", counted.tokens);
                inexact.push(*name);
            }
        }
        Ok(inexact)
    }

    /// Words, numbers, signs and spaces as they come in answers, and as they don't.
    fn texts() -> impl Strategy<Value = String> {
        const COMMON: [&str; 12] = [
            "the",
            "window",
            "is encoded",
            "don't",
            "fn main() {\n    ",
            "```rust\n",
            "\n\n",
            "- ",
            ", ",
            ". ",
            ": ",
            "__init__",
        ];
        const SPECIAL: [&str; 7] = ["<|im_start|>", "<|im_end|>", "<|im_", "<s>", "\u{301}", "👍🏽", "\u{200d}"];
        let piece = prop_oneof![
            6 => select(&COMMON[..]).prop_map(String::from),
            6 => "[a-z]{1,12}",
            4 => " {1,3}",
            1 => "[ \n\t\u{a0}]{1,400}",
            1 => "[0-9]{1,40}",
            2 => "[A-Za-z]{1,20}",
            2 => "[一-鿿。，ぁ-ん]{1,60}",
            1 => "[а-яё]{1,20}",
            1 => "[!-/:-@{-~]{1,20}",
            1 => "[a-zA-Z0-9+/]{200,900}",
            1 => select(&SPECIAL[..]).prop_map(String::from),
            1 => "\\PC{1,8}",
        ];
        vec(piece, 1..900).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_come_to_what_the_whole_comes_to(text in texts(), sizes in vec(1_usize..3000, 1..8)) {
            check(&text, &sizes)?;
        }
    }

    #[test]
    fn text_with_words_in_it_is_counted_exactly_by_any_tokenizer() {
        let text = include_str!("text.rs");
        for sizes in [&[1][..], &[7, 100], &[WINDOW], &[usize::MAX / 2]] {
            let sizes: Vec<_> = sizes.iter().map(|size| (*size).min(text.len())).collect();
            assert!(check(text, &sizes).unwrap().is_empty());
        }
    }

    #[test]
    fn what_has_no_words_is_exact_where_tokens_end_within_it() {
        let check = |text: &str, times, expected: &[&str]| {
            assert_eq!(check(&text.repeat(times), &[30]).unwrap(), expected, "{text:?}");
        };
        check("今天天气很好我们去公园散步吧", 300, &["words"]);
        check("abcXYZ/+", 1500, &[]);
        check("<|im_start|>user<|im_end|>\n", 400, &[]);
        check("1234567", 1500, &["wordpiece", "words"]);
        check("a", 20_000, &["wordpiece", "words"]);
    }

    #[test]
    fn no_text_has_no_tokens() {
        assert!(check("", &[1]).unwrap().is_empty());
        let mut run = Run::new(trained::ALL[0].1.clone());
        run.push("");
        assert_eq!(run.finish(), Counted::NONE);
    }

    #[test]
    fn a_space_at_the_beginning_is_a_part_of_the_first_word() {
        let check = |name: &str, text: &str, expected| {
            let (_, tokenizer) = trained::ALL.iter().find(|(known, _)| *known == name).unwrap();
            for at in 0..=text.len() {
                let mut run = Run::new(tokenizer.clone());
                run.push(&text[..at]);
                run.push(&text[at..]);
                assert_eq!(run.so_far(), Counted { tokens: expected, exact: true }, "{name}: {text:?}");
                assert_eq!(run.finish().tokens, expected, "{name}: {text:?}");
            }
        };
        for name in ["llama", "metaspace", "byte level"] {
            check(name, " the", 1);
            check(name, " the text", 2);
        }
        check("llama", "the", 1);
        check("llama", " ", 1);
        check("llama", "\n", 2);
    }

    #[test]
    fn a_word_of_megabytes_takes_no_memory() {
        let (_, tokenizer) = &trained::ALL[0];
        let mut run = Run::new(tokenizer.clone());
        for _ in 0..40 {
            run.push(&"x".repeat(50_000));
            assert!(run.window.text.len() <= WINDOW && run.window.text.capacity() <= 2 * WINDOW);
        }
        assert!(run.finish().tokens > 100_000);
    }
}
