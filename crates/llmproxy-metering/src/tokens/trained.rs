//! Small tokenizers of each kind, for tests: made here, so that no file is needed.
//!
//! They are trained on some of this module's own sources, which are English, and on a few lines of other scripts.

#![expect(clippy::unwrap_used, reason = "it is for tests alone")]

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tokenizers::{
    AddedToken,
    models::{
        TrainerWrapper, bpe::BpeTrainer, unigram::UnigramTrainer, wordlevel::WordLevelTrainer,
        wordpiece::WordPieceTrainer,
    },
    pre_tokenizers::byte_level::ByteLevel,
};

use super::Tokenizer;

const LINES: [&str; 2] = [include_str!("text.rs"), include_str!("pool.rs")];
const OTHERS: &str =
    "今天天气很好。我们去公园散步吧。 東京は日本の首都です。 Привет, как дела? ¿Cómo estás? 😀👍🏽 123 456 7890";
/// The words that GPT-4, Llama 3 and Qwen split a text into before anything else.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One tokenizer of each kind, by name.
pub(super) static ALL: LazyLock<Vec<(&'static str, Arc<Tokenizer>)>> = LazyLock::new(|| {
    let all = [
        ("byte level", byte_level()),
        ("metaspace", metaspace()),
        ("llama", llama()),
        ("wordpiece", wordpiece()),
        ("unigram", unigram()),
        ("whole lines", whole_lines()),
        ("words", words()),
    ];
    all.map(|(name, json)| (name, Tokenizer::of(&json, &[], &[]))).into()
});

/// As GPT-2, Llama 3 and Qwen: bytes, split into words by a pattern. `<s>` stands before a text.
pub(super) fn byte_level() -> String {
    let split = json!({"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    });
    let mut trained = trained(shape, bpe(800));
    let post = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    trained["post_processor"] = post;
    trained.to_string()
}

/// As newer conversions of SentencePiece: a mark in the place of each space, and one in front.
fn metaspace() -> String {
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": {}, "merges": []},
    });
    trained(shape, bpe(700)).to_string()
}

/// As Llama 2: the same by rules that change the text, so that it is one long word to the model; bytes where it knows no
/// character.
fn llama() -> String {
    let mut json: Value = serde_json::from_str(&metaspace()).unwrap();
    json["pre_tokenizer"] = Value::Null;
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
    json["model"]["byte_fallback"] = true.into();
    json["model"]["fuse_unk"] = true.into();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    for byte in 0..=255 {
        let id = vocabulary.len();
        vocabulary.insert(format!("<0x{byte:02X}>"), id.into());
    }
    json.to_string()
}

/// As BERT: lower case, `##` before what goes on, words that are too long are unknown.
fn wordpiece() -> String {
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {}},
    });
    let trainer = WordPieceTrainer::builder().vocab_size(600).show_progress(false).special_tokens(specials(&["[UNK]"]));
    trained(shape, TrainerWrapper::WordPieceTrainer(trainer.build())).to_string()
}

/// As T5 and XLM-RoBERTa: the likeliest pieces of each word.
fn unigram() -> String {
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        "model": {"type": "Unigram", "unk_id": null, "vocab": [["<unk>", 0.0]]},
    });
    let mut trainer = UnigramTrainer::builder();
    trainer.vocab_size(500).show_progress(false).special_tokens(specials(&["<unk>"])).unk_token(Some("<unk>".into()));
    trained(shape, TrainerWrapper::UnigramTrainer(trainer.build().unwrap())).to_string()
}

/// Nothing but merges, which reach over spaces.
fn whole_lines() -> String {
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": {}, "merges": []},
    });
    trained(shape, bpe(700)).to_string()
}

/// Whole words, of which it knows a few.
fn words() -> String {
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {}},
    });
    let mut trainer = WordLevelTrainer::builder();
    trainer.vocab_size(500).show_progress(false).special_tokens(specials(&["<unk>"]));
    trained(shape, TrainerWrapper::WordLevelTrainer(trainer.build().unwrap())).to_string()
}

fn bpe(size: usize) -> TrainerWrapper {
    let trainer = BpeTrainer::builder()
        .vocab_size(size)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials(&["<s>", "<unk>", "<|im_start|>", "<|im_end|>"]));
    TrainerWrapper::BpeTrainer(trainer.build())
}

fn specials(names: &[&str]) -> Vec<AddedToken> {
    names.iter().map(|name| AddedToken::from(*name, true)).collect()
}

fn trained(shape: Value, mut trainer: TrainerWrapper) -> Value {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(shape.to_string()).unwrap();
    let lines = LINES.iter().flat_map(|source| source.lines()).chain([OTHERS]);
    tokenizer.train(&mut trainer, lines).unwrap();
    serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap()
}
