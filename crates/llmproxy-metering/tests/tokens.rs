//! Tokenizers in files, and exchanges counted with them off the test's thread.
#![cfg(feature = "tokenizers")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use llmproxy_core::Endpoint;
use llmproxy_metering::{
    MeteringConfig, TokenizerConfig,
    tokens::{CountPool, Counted, Limits, Tokenizer, TokenizerError, Tokenizers, Totals, Uncounted},
};
use serde_json::json;
use tokio::time::Instant;

const LIMITS: Limits = Limits { threads: 1, queue: 1000, bytes: 1_000_000 };
/// Longer than anything takes; only a failure waits for it.
const SOON: Duration = Duration::from_secs(20);

/// A folder of its own for each test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("llmproxy-tokens-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the system has a folder for this");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("the folder is ours");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Words and signs are a token each; `[CLS]` stands before a text and `[SEP]` behind it.
fn words() -> String {
    let post = json!({"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 2]});
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": post,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "[SEP]": 1, "[CLS]": 2}},
    })
    .to_string()
}

fn said(models: &[&str], file: &Path) -> TokenizerConfig {
    TokenizerConfig { models: models.iter().map(|model| (*model).into()).collect(), file: file.into(), config: None }
}

fn prompt(tokenizer: &Tokenizer) -> Option<Counted> {
    let body = br#"{"messages":[{"role":"user","content":"one two"}]}"#;
    tokenizer.count_prompt(Endpoint::of("/v1/chat/completions"), body)
}

fn exactly(tokens: u64) -> Counted {
    Counted { tokens, exact: true }
}

#[test]
fn the_chat_template_is_found_beside_the_tokenizer_or_where_it_is_named() {
    let folder = Folder::new("template");
    let file = folder.write("tokenizer.json", &words());
    let load = |config: Option<&Path>| prompt(&Tokenizer::load(&file, config).unwrap()).unwrap();
    assert_eq!(load(None), Counted { tokens: 2, exact: false });
    let config = json!({"bos_token": {"content": "begin"}, "eos_token": "end", "chat_template": "{{ bos_token }} {{ messages[0].content }} {{ eos_token }}"});
    folder.write("tokenizer_config.json", &config.to_string());
    assert_eq!(load(None), exactly(4));
    let named =
        json!({"chat_template": [{"name": "default", "template": "a b c"}, {"name": "tool_use", "template": "a"}]});
    assert_eq!(load(Some(&folder.write("named.json", &named.to_string()))), exactly(3));
    // A file of its own goes before what the configuration has, as newer versions of transformers write it.
    folder.write("chat_template.jinja", "{{ bos_token }} {{ messages[0].content }} a b");
    assert_eq!(load(None), exactly(5));
    assert_eq!(load(Some(&folder.write("mine.jinja", "{{ eos_token }}"))), exactly(1));
}

#[test]
fn a_file_that_can_not_be_used_says_what_and_what_to_do() {
    let folder = Folder::new("errors");
    let good = folder.write("tokenizer.json", &words());
    let check = |file: &Path, config: Option<&Path>, expected: &[&str]| {
        let error = Tokenizer::load(file, config).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{error}");
        }
    };
    check(
        &folder.0.join("none.json"),
        None,
        &["none.json can't be read", "No such file", "name the model's tokenizer.json"],
    );
    check(&folder.0, None, &["is no regular file", "name the model's tokenizer.json"]);
    check(
        &folder.write("no.json", "{\"version\":"),
        None,
        &["no.json is no tokenizer", "EOF", "take the tokenizer.json"],
    );
    check(&folder.write("other.json", "{\"a\":1}"), None, &["other.json is no tokenizer"]);
    check(&good, Some(&folder.write("bad.json", "7")), &["bad.json can't be used", "take the tokenizer_config.json"]);
    let broken = json!({"chat_template": "{% for x in %}"}).to_string();
    check(&good, Some(&folder.write("broken.json", &broken)), &["the chat template in", "broken.json", "mend it"]);
    check(&good, Some(&folder.write("broken.jinja", "{{ x")), &["the chat template in", "broken.jinja"]);
    let of_tools = json!({"chat_template": [{"name": "tool_use", "template": "a"}]}).to_string();
    check(&good, Some(&folder.write("tools.json", &of_tools)), &["there is none for chats without tools"]);
}

#[tokio::test]
async fn the_first_entry_that_fits_counts_and_all_mistakes_are_told() {
    let folder = Folder::new("set");
    let (one, other) = (folder.write("one.json", &words()), folder.write("other.json", &words()));
    let config = vec![said(&["qwen*", "m"], &one), said(&["*"], &other)];
    let set = Tokenizers::load(config, Tokenizers::default()).await.unwrap();
    let is_same = |one: &str, other: &str| Arc::ptr_eq(&set.find(one).unwrap(), &set.find(other).unwrap());
    assert!(is_same("qwen3", "m") && !is_same("qwen3", "Qwen3"));
    let bad = vec![said(&["a"], &folder.0.join("a")), said(&["b"], &one), said(&["c"], &folder.0.join("c"))];
    assert_eq!(Tokenizers::load(bad, set).await.unwrap_err().len(), 2);
}

#[test]
fn a_reload_takes_over_what_has_not_changed() {
    let folder = Folder::new("reload");
    let file = folder.write("tokenizer.json", &words());
    let config = [said(&["a"], &file), said(&["b"], &file)];
    let load = |before: &Tokenizers| Tokenizers::load_blocking(&config, before).unwrap();
    let of = |set: &Tokenizers, model| set.find(model).unwrap();
    let first = load(&Tokenizers::default());
    assert!(Arc::ptr_eq(&of(&first, "a"), &of(&first, "b")), "one file is loaded once");
    let second = load(&first);
    assert!(Arc::ptr_eq(&of(&first, "a"), &of(&second, "a")));
    folder.write("tokenizer_config.json", &json!({"chat_template": "a b c"}).to_string());
    let third = load(&second);
    assert!(!Arc::ptr_eq(&of(&second, "a"), &of(&third, "a")));
    assert_eq!(prompt(&of(&third, "a")), Some(exactly(3)));
}

#[test]
fn an_exchange_is_counted_in_pieces_and_ends_once() {
    let folder = Folder::new("exchange");
    let tokenizer = Arc::new(Tokenizer::load(&folder.write("tokenizer.json", &words()), None).unwrap());
    let pool = CountPool::new(LIMITS);
    let (ended, ends) = mpsc::sync_channel(10);
    let finish = |ended: &mpsc::SyncSender<_>| {
        let ended = ended.clone();
        move |totals: Result<Totals, Uncounted>| ended.send(totals).unwrap()
    };
    let mut counting = pool.start(tokenizer.clone());
    counting.prompt(Endpoint::of("/v1/completions"), Bytes::from_static(br#"{"prompt":"one two"}"#));
    for _ in 0..3000 {
        // Two choices at once, and a word in two pieces.
        counting.text(0, "wor");
        counting.text(1, "other ");
        counting.text(0, "ds ");
    }
    counting.finish(finish(&ended));
    let totals = ends.recv_timeout(SOON).unwrap();
    assert_eq!(totals, Ok(Totals { prompt: Some(exactly(4)), completion: exactly(6000), marked: None }));

    pool.start(tokenizer.clone()).finish(finish(&ended));
    assert_eq!(ends.recv_timeout(SOON).unwrap(), Ok(Totals { prompt: None, completion: Counted::NONE, marked: None }));

    let mut counting = pool.start(tokenizer.clone());
    counting.prompt(Endpoint::of("/v1/completions"), Bytes::from_static(b"{}"));
    counting.text(0, "the answer");
    counting.finish(finish(&ended));
    assert_eq!(ends.recv_timeout(SOON).unwrap(), Ok(Totals { prompt: None, completion: exactly(2), marked: None }));

    let mut counting = pool.start(tokenizer);
    (0..100).for_each(|part| counting.text(part, "a b"));
    counting.finish(finish(&ended));
    let totals = ends.recv_timeout(SOON).unwrap().unwrap();
    assert!(!totals.completion.exact, "there are too many texts to tell them apart");
    assert!((150..=200).contains(&totals.completion.tokens), "{totals:?}");
}

#[tokio::test]
async fn what_is_too_much_or_too_late_is_not_counted() {
    let folder = Folder::new("full");
    let tokenizer = Arc::new(Tokenizer::load(&folder.write("tokenizer.json", &words()), None).unwrap());
    let (ended, ends) = mpsc::sync_channel(10);
    let pool = CountPool::new(Limits { bytes: 3000, ..LIMITS });
    let finish = |ended: &mpsc::SyncSender<_>| {
        let ended = ended.clone();
        move |totals: Result<Totals, Uncounted>| ended.send(totals).unwrap()
    };
    let mut counting = pool.start(tokenizer.clone());
    counting.text(0, &"a b ".repeat(1000));
    counting.text(0, "more");
    counting.finish(finish(&ended));
    assert_eq!(ends.try_recv(), Ok(Err(Uncounted::Full)));
    assert_eq!(pool.drain(Instant::now() + SOON).await, 0);
    pool.start(tokenizer).finish(finish(&ended));
    assert_eq!(ends.try_recv(), Ok(Err(Uncounted::Stopped)));
}

#[test]
fn a_configuration_is_checked_without_loading() {
    let folder = Folder::new("config");
    let file = folder.write("tokenizer.json", "not even JSON");
    let check = |config: MeteringConfig, expected: &[&str]| {
        let found = config.validate();
        let keys: Vec<_> = found.iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, expected, "{found:?}");
    };
    let with = |tokenizers| MeteringConfig { tokenizers, ..MeteringConfig::default() };
    check(with(vec![said(&["a"], &file)]), &[]);
    check(with(vec![said(&[], &file)]), &["tokenizers[0].models"]);
    check(with(vec![said(&["a", ""], &file)]), &["tokenizers[0].models"]);
    check(with(vec![said(&["a"], &file), said(&["b"], Path::new(""))]), &["tokenizers[1].file"]);
    check(with(vec![said(&["a"], &folder.0.join("none"))]), &["tokenizers[0].file"]);
    let config = Some(folder.0.join("none"));
    check(with(vec![TokenizerConfig { config, ..said(&["a"], &file) }]), &["tokenizers[0].config"]);
    check(with(vec![said(&["a"], &file); 129]), &["tokenizers"]);
    check(MeteringConfig { count_threads: 0, ..MeteringConfig::default() }, &["count_threads"]);
    check(MeteringConfig { count_threads: 65, ..MeteringConfig::default() }, &["count_threads"]);
    let nothing = MeteringConfig { count_queue: 0, count_queue_bytes: 0, ..MeteringConfig::default() };
    check(nothing, &["count_queue", "count_queue_bytes"]);
    let errors = Tokenizers::load_blocking(&[said(&["a"], &file)], &Tokenizers::default()).unwrap_err();
    assert!(matches!(&errors[..], [TokenizerError::Parse { .. }]), "{errors:?}");
}
