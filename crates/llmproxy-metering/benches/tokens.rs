//! How fast tokens are counted: a text as a stream brings it, and exchanges through the pool.
//!
//! ```text
//! cargo bench -p llmproxy-metering --features tokenizers --bench tokens -- [tokenizer.json [text]]
//! ```
//!
//! Without files it takes a small vocabulary, trained on the text, and a page of the documentation: good to compare a change
//! with what was before, not to say how fast a model's own tokenizer is.

use std::{
    env, fs,
    path::PathBuf,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use llmproxy_core::Endpoint;
use llmproxy_metering::tokens::{CountPool, Limits, Run, Tokenizer};
use serde_json::json;
use tokenizers::models::{TrainerWrapper, bpe::BpeTrainer};
use tokio::time::{Duration, Instant};

const PAGE: &str = include_str!("../../../docs/ARCHITECTURE.md");
/// Bytes of an event of a stream, about.
const PIECE: usize = 5;
/// How long each measurement takes at least.
const LASTS: Duration = Duration::from_secs(2);
const LIMITS: Limits = Limits { threads: 1, queue: 1 << 20, bytes: 1 << 30 };

fn main() {
    // What cargo says to a bench begins with a dash.
    let mut files = env::args().skip(1).filter(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let named = files.next();
    let file = named.clone().unwrap_or_else(trained);
    let page = files.next().map_or_else(|| PAGE.to_owned(), |file| fs::read_to_string(file).expect("a text in UTF-8"));
    let began = Instant::now();
    let tokenizer = Arc::new(Tokenizer::load(&file, None).unwrap_or_else(|error| panic!("{error}")));
    println!("loaded {} in {:.0?}", file.display(), began.elapsed());
    if named.is_none() {
        fs::remove_file(&file).expect("it was made just now");
    }

    measure("text in pieces", || {
        let mut run = Run::new(tokenizer.clone());
        pieces(&page).for_each(|piece| run.push(piece));
        run.finish().tokens
    });
    measure("text at once", || tokenizer.count(&page).tokens);
    let body = Bytes::from(json!({"prompt": page}).to_string());
    measure("prompt of a completion", || {
        tokenizer.count_prompt(Endpoint::of("/v1/completions"), &body).map_or(0, |counted| counted.tokens)
    });
    let pool = CountPool::new(LIMITS);
    let (ended, ends) = mpsc::sync_channel(1);
    measure("exchange through the pool", || {
        let mut counting = pool.start(tokenizer.clone());
        pieces(&page).for_each(|piece| counting.text(0, piece));
        let ended = ended.clone();
        counting
            .finish(move |totals| ended.send(totals.map_or(0, |totals| totals.completion.tokens)).unwrap_or_default());
        ends.recv().unwrap_or_default()
    });
    let began = Instant::now();
    let mut counting = pool.start(tokenizer.clone());
    let count = pieces(&page).map(|piece| counting.text(0, piece)).count();
    println!("{:>26}: {:.0?} for each event", "on the request's own task", began.elapsed() / count.max(1) as u32);
}

/// Calls `count`, which gives a number of tokens, over and over.
fn measure(name: &str, mut count: impl FnMut() -> u64) {
    count();
    let (began, mut tokens) = (Instant::now(), 0);
    while began.elapsed() < LASTS {
        tokens += count();
    }
    println!("{name:>26}: {:>10.0} tokens/s", tokens as f64 / began.elapsed().as_secs_f64());
}

fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.ceil_char_boundary(PIECE.min(text.len())));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A vocabulary made of the page, in a file.
fn trained() -> PathBuf {
    let shape = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    });
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(shape.to_string()).expect("the shape of a tokenizer");
    let trainer = BpeTrainer::builder().vocab_size(4000).show_progress(false).build();
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), PAGE.lines()).expect("text to train on");
    let file = env::temp_dir().join(format!("llmproxy-bench-{}.json", std::process::id()));
    tokenizer.save(&file, false).expect("a place for temporary files");
    file
}
