//! Words: what is said, and how it is counted.

/// Said where nothing else was given.
const TEXT: &str = "\
A proxy for language models has to do two things well, and the first is to stay out of the way. \
Every word that you read here has passed through one at the moment when it was made. \
Nothing was collected on the way, nothing was rewritten, and nobody waited for the end of the sentence. \
The second thing is to count. \
Who asked, which model answered, how many tokens went in and how many came out: all of it is known when the last word has gone. \
If you close your connection now, the server stops at once, and the bill says exactly how far it came. \
When one server is busy, the next request goes to another. \
When one of them dies before it has said a word, you will not even notice. \
When it dies in the middle of a word, you will be told, because half an answer must never look like a whole one. \
Limits are held until the stream has ended, so that a patient reader counts as much as a hasty one. \
None of this needs a large machine, and none of it needs a large model, as you can see from this one, which knows no more than a page of text. \
It will say something else when you ask it something else. ";

/// An answer that comes to its own end has at least so many words.
const ENOUGH: usize = 40;

/// What there is to say: sentences, as words.
#[derive(Debug)]
pub(crate) struct Source {
    words: Vec<String>,
    /// Where in `words` sentences begin.
    sentences: Vec<usize>,
}

/// Says words of a source, one after the other, for ever.
#[derive(Clone, Debug)]
pub(crate) struct Babble {
    next: usize,
    first: bool,
}

/// How many tokens `text` has: words, however they are spaced.
pub(crate) fn count(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

/// Mixes `values` into a number that looks random and is always the same (FNV-1a, by eight bytes).
pub(crate) fn hash(seed: u64, values: &[u64]) -> u64 {
    let mix = |hash: u64, value: &u64| {
        let hash = (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        (hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    values.iter().fold(mix(0xcbf2_9ce4_8422_2325, &seed), mix)
}

/// The same for text.
pub(crate) fn hash_text(seed: u64, text: &str) -> u64 {
    text.bytes().fold(seed, |hash, byte| self::hash(hash, &[u64::from(byte)]))
}

// === impl Source ===

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            words.push("...".to_owned());
        }
        let mut sentences = vec![0];
        sentences.extend((1..words.len()).filter(|at| words[at - 1].ends_with(['.', '!', '?'])));
        Self { words, sentences }
    }

    /// Starts at the sentence that `seed` chooses.
    pub(crate) fn babble(&self, seed: u64) -> Babble {
        Babble { next: self.sentences[(seed % self.sentences.len() as u64) as usize], first: true }
    }

    /// The next word, with the space that parts it from the one before.
    pub(crate) fn word(&self, babble: &mut Babble) -> String {
        let word = &self.words[babble.next];
        babble.next = (babble.next + 1) % self.words.len();
        if std::mem::take(&mut babble.first) { word.clone() } else { format!(" {word}") }
    }

    /// After how many words an answer that starts so has said enough: at the end of a sentence.
    pub(crate) fn natural_length(&self, babble: &Babble) -> u64 {
        let ends = |said: &usize| {
            let after = (babble.next + said) % self.words.len();
            self.sentences.contains(&after)
        };
        (ENOUGH..ENOUGH + self.words.len()).find(ends).unwrap_or(ENOUGH) as u64
    }
}

impl Default for Source {
    fn default() -> Self {
        Self::new(TEXT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_as_it_was_counted() {
        let source = Source::default();
        for seed in 0..20 {
            let mut babble = source.babble(seed);
            let length = source.natural_length(&babble);
            let said: String = (0..length).map(|_| source.word(&mut babble)).collect();
            assert_eq!(count(&said), length);
            assert!(said.ends_with(['.', '!', '?']), "{said}");
        }
    }

    #[test]
    fn a_text_of_one_word_is_enough() {
        let source = Source::new("hm");
        let mut babble = source.babble(7);
        assert_eq!(source.natural_length(&babble), ENOUGH as u64);
        assert_eq!(source.word(&mut babble) + &source.word(&mut babble), "hm hm");
        assert_eq!(Source::new(" ").words, ["..."]);
    }

    #[test]
    fn other_prompts_get_other_answers() {
        let starts: std::collections::BTreeSet<_> =
            ["a", "b", "hello", "hello!", "2"].map(|text| hash_text(0, text) % 12).into_iter().collect();
        assert!(starts.len() > 2);
    }
}
